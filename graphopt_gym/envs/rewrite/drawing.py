"""A program laid out from top to bottom, with what a rewriting left alone folded away, and drawn as SVG.

Only what is computed at inference is drawn: weights, and operators on them alone, are named where one points at the
operator that reads them. Levels are longest paths, every operator as far down as its readers allow; places within a
level minimise the squared distance to the neighbours', in their order (pool adjacent violators).
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt_gym.graphs.tensor_program import TensorProgram
from graphopt_gym.graphs.tensor_program.ops import OPS
from graphopt_gym.units import format_seconds

GONE, NEW, KEPT, FREE = "#f4b6b0", "#a9dcae", "#dbe4ee", "#f5f7f9"
WIDTH, HEIGHT = 152.0, 38.0  # of a box, in pixels
ACROSS, DOWN = 14.0, 24.0  # between boxes
MOST_TITLE, MOST_BELOW = 21, 27  # letters that there is room for
SWEEPS = 12
LEAST_SCALE = 0.8  # of a drawing that does not fit
LEAST_FOLDED = 4  # operators: fewer are drawn


@dataclass(frozen=True)
class Box:
    """An operator, or several that were left alone and are drawn as one; ``x`` and ``y`` of its middle."""

    nodes: tuple[int, ...]
    x: float
    y: float
    title: str
    below: str
    hover: str
    colour: str


@dataclass(frozen=True)
class Drawing:
    """Boxes, and edges between them by index; sizes in pixels."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]
    width: float
    height: float


def draw_program(
    program: TensorProgram, seconds: Mapping[int, float], odd: set[int], colour: str, *, fold: bool = True
) -> Drawing:
    """Lay out a program.

    Args:
        seconds: of each node that takes any.
        odd: the nodes that a rewriting took away or brought, in ``colour``.
        fold: draw connected operators that are neither odd nor next to an odd one as one box.
    """
    drawn = [node for node in program.order if not program.is_static(node)]
    owner = _folded(program, drawn, odd) if fold else {node: node for node in drawn}
    groups: dict[int, list[int]] = {}
    for node in drawn:
        groups.setdefault(owner[node], []).append(node)
    index = {first: at for at, first in enumerate(groups)}
    reads = {
        (index[owner[source]], index[owner[node]])
        for node in drawn
        for source in program.nodes[node].inputs
        if source in owner and owner[source] != owner[node]
    }
    edges = tuple(sorted(reads))
    places, width, height = places_of(len(groups), edges)
    names = {node: f"v{at}" for at, node in enumerate(program.order)}
    boxes = []
    for (x, y), nodes in zip(places, groups.values(), strict=True):
        boxes.append(Box(tuple(nodes), x, y, *_texts(program, seconds, names, nodes, odd, colour)))
    return Drawing(tuple(boxes), edges, width, height)


def _folded(program: TensorProgram, drawn: Sequence[int], odd: set[int]) -> dict[int, int]:
    """node -> the first node of the box that it is drawn in.

    Folded nodes are connected and have as many drawn ones on their longest path from the inputs, so that no path
    leaves a box and comes back.
    """
    live = set(drawn)
    inner = {
        node
        for node in drawn
        if node not in odd
        and program.nodes[node].op != "input"
        and node not in program.outputs
        and not odd.intersection(program.nodes[node].inputs)
        and not odd.intersection(program.users(node))
    }
    above: dict[int, int] = {}
    leader = {node: node for node in drawn}

    def find(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for node in drawn:
        sources = [source for source in program.nodes[node].inputs if source in live]
        above[node] = max((above[source] + (source not in inner) for source in sources), default=0)
        if node in inner:
            for source in sources:
                if source in inner and above[source] == above[node]:
                    leader[find(node)] = find(source)
    sizes = Counter(map(find, drawn))
    first: dict[int, int] = {}
    for node in drawn:
        first.setdefault(find(node), node)
    return {node: first[find(node)] if sizes[find(node)] >= LEAST_FOLDED else node for node in drawn}


def call_text(program: TensorProgram, names: Mapping[int, str], node: int) -> str:
    """``conv2d(v3, w, stride=(2, 2))``: parameters with their defaults are left out."""
    op, params, inputs, _ = program.nodes[node]
    given = [names[source] for source in inputs]
    for (name, (_, default)), value in zip(OPS[op].params.items(), params, strict=True):
        if value != default:
            given.append(f"{name}={value}")
    return f"{op}({', '.join(given)})"


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _texts(
    program: TensorProgram,
    seconds: Mapping[int, float],
    names: Mapping[int, str],
    nodes: Sequence[int],
    odd: set[int],
    colour: str,
) -> tuple[str, str, str, str]:
    """(title, line below, hover title, colour) of a box."""
    total = sum(seconds.get(node, 0.0) for node in nodes)
    time = format_seconds(total) if any(node in seconds for node in nodes) else "free"
    if len(nodes) > 1:
        counts = Counter(program.nodes[node].op for node in nodes)
        hover = "\n".join(f"{count} × {op}" for op, count in counts.most_common())
        return f"{len(nodes)} unchanged", time, f"{len(nodes)} operators, left alone: {time}\n{hover}", FREE
    (node,) = nodes
    one = program.nodes[node]
    if one.op == "input":
        return str(one.params[0]), shape_text(one.shape), f"input {one.params[0]} {shape_text(one.shape)}", FREE
    act = one.param("act") if "act" in OPS[one.op].params else "none"
    title = one.op if act == "none" else f"{one.op} + {act}"
    lines = [f"{names[node]} = {call_text(program, names, node)}", f"{shape_text(one.shape)}, {time}"]
    for source in one.inputs:
        known = program.nodes[source]
        what = str(known.params[0]) if known.op in ("input", "weight") else known.op
        constant = ", a constant" if program.is_static(source) else ""
        lines.append(f"reads {names[source]}: {what} {shape_text(known.shape)}{constant}")
    face = colour if node in odd else KEPT
    return title, f"{shape_text(one.shape)} · {time}", "\n".join(lines), face


# -- places ------------------------------------------------------------------------------------------------------------


def places_of(count: int, edges: Sequence[tuple[int, int]]) -> tuple[list[tuple[float, float]], float, float]:
    """Middles of boxes that are given in topological order, and the size of the whole."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for source, node in edges:
        above[node].append(source)
        below[source].append(node)
    level = [0] * count
    for node in _topological(count, above, below):
        level[node] = max((level[source] + 1 for source in above[node]), default=0)
    for node in reversed(_topological(count, above, below)):  # as far down as the readers allow
        if below[node]:
            level[node] = min(level[reader] for reader in below[node]) - 1
    top = min(level, default=0)
    rows: list[list[int]] = [[] for _ in range(max(level, default=0) - top + 1)]
    for node in range(count):
        rows[level[node] - top].append(node)
    gap = WIDTH + ACROSS
    x = [0.0] * count
    for row in rows:
        for at, node in enumerate(row):
            x[node] = (at - (len(row) - 1) / 2) * gap
    for sweep in range(SWEEPS):
        near = [above, below, above][min(sweep % 3, 2)] if sweep < SWEEPS - 2 else None
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = []
            for node in row:
                around = near[node] if near is not None else above[node] + below[node]
                wanted.append(sum(x[other] for other in around) / len(around) if around else x[node])
            order = sorted(range(len(row)), key=lambda at, row=row, wanted=wanted: (wanted[at], x[row[at]]))  # type: ignore[misc]
            spread = _spread([wanted[at] for at in order], gap)
            for at, place in zip(order, spread, strict=True):
                x[row[at]] = place
    left = min(x, default=0.0) - gap / 2
    places = [(x[node] - left, (level[node] - top + 0.5) * (HEIGHT + DOWN)) for node in range(count)]
    return places, max(x, default=0.0) - left + gap / 2, len(rows) * (HEIGHT + DOWN)


def _topological(count: int, above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> list[int]:
    waiting = [len(sources) for sources in above]
    order = [node for node in range(count) if not waiting[node]]
    for node in order:
        for reader in below[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                order.append(reader)
    return order


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least ``gap`` apart, in order, with the least sum of squares to what is wanted."""
    blocks: list[list[float]] = []  # (sum, count)
    for at, place in enumerate(wanted):
        blocks.append([place - at * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    flat = np.concatenate([np.full(int(size), total / size) for total, size in blocks]) if blocks else np.zeros(0)
    return (flat + np.arange(len(wanted)) * gap).tolist()


# -- SVG ---------------------------------------------------------------------------------------------------------------


def svg(drawing: Drawing) -> str:
    """A drawing as inline SVG, as wide as there is room; pointing at a box shows its ``hover``."""
    text = html.escape
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" '
        f'style="display: block; margin: 0 auto; width: 100%; height: auto; max-width: {drawing.width:.0f}px; '
        f'min-width: {LEAST_SCALE * drawing.width:.0f}px" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        f'<g fill="none" stroke="#8a94a0">{"".join(_edge(drawing, edge) for edge in drawing.edges)}</g>',
    ]
    for box in drawing.boxes:
        left, top = box.x - WIDTH / 2, box.y - HEIGHT / 2
        dashed = ' stroke-dasharray="4 3"' if len(box.nodes) > 1 else ""
        parts.append(
            f'<g><title>{text(box.hover)}</title><rect x="{left:.1f}" y="{top:.1f}" width="{WIDTH:g}" '
            f'height="{HEIGHT:g}" rx="5" fill="{box.colour}" stroke="#5b6675"{dashed}/>'
            f'<text x="{box.x:.1f}" y="{box.y - 3:.1f}" font-size="13">{text(cut(box.title, MOST_TITLE))}</text>'
            f'<text x="{box.x:.1f}" y="{box.y + 13:.1f}" font-size="11" fill="#3a4452">'
            f"{text(cut(box.below, MOST_BELOW))}</text></g>"
        )
    return "\n".join([*parts, "</svg>"])


def _edge(drawing: Drawing, edge: tuple[int, int]) -> str:
    first, last = (drawing.boxes[at] for at in edge)
    top, bottom = first.y + HEIGHT / 2, last.y - HEIGHT / 2
    bend = max(DOWN / 2, (bottom - top) / 3)
    return (
        f'<path d="M{first.x:.1f} {top:.1f}C{first.x:.1f} {top + bend:.1f} {last.x:.1f} {bottom - bend:.1f} '
        f'{last.x:.1f} {bottom:.1f}"/>'
    )


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Markup: a coloured square and a word each."""
    return "".join(
        f'<span style="margin-right: 18px; white-space: nowrap"><span style="display: inline-block; width: 14px; '
        f"height: 14px; border: 1px solid #5b6675; border-radius: 3px; vertical-align: -2px; margin-right: 6px; "
        f'background: {colour}"></span>{html.escape(word)}</span>'
        for colour, word in entries
    )


def bars(counts: Sequence[int], label: str) -> str:
    """A small bar chart as inline SVG, a bar a count with its number above."""
    wide, tall, most = 64, 120, max([*counts, 1])
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide * len(counts)}" height="{tall + 40}" '
             f'role="img" aria-label="{html.escape(label)}" font-family="system-ui, sans-serif" '
             'text-anchor="middle">']  # fmt: skip
    for at, count in enumerate(counts):
        size = tall * count / most
        middle = wide * (at + 0.5)
        parts.append(
            f'<rect x="{middle - 22:.0f}" y="{tall + 18 - size:.1f}" width="44" height="{size:.1f}" fill="#4c78a8"/>'
            f'<text x="{middle:.0f}" y="{tall + 13 - size:.1f}" font-size="12">{count:,}</text>'
            f'<text x="{middle:.0f}" y="{tall + 34}" font-size="12" fill="#5b6675">{at + 1}</text>'
        )
    return "".join([*parts, "</svg>"])
