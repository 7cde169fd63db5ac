"""A network beside its seed: drawn, what differs coloured, and as a small table."""

from __future__ import annotations

import difflib
import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.architecture.moves import border
from graphopt_gym.envs.architecture.ops import OPS
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.properties import infer, mixing_text
from graphopt_gym.envs.rewrite.drawing import FREE, GONE, KEPT, NEW, Box, Drawing, legend, places_of, shape_text, svg
from graphopt_gym.envs.rewrite.rendering import draw_on
from graphopt_gym.units import format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.envs.architecture.problem import ArchitectureProblem

MOST_INCHES = (24.0, 40.0)  # of a figure, across and down


def changed(before: Architecture, after: Architecture) -> tuple[set[int], set[int]]:
    """(ops of ``before`` that are gone, ops of ``after`` that are new): the longest common runs of both lists stay."""

    def keys(one: Architecture) -> list[Any]:
        return [(op.kind, op.params, op.shape) for op in one.ops]

    gone, new = set(range(len(before))), set(range(len(after)))
    for run in difflib.SequenceMatcher(None, keys(before), keys(after), autojunk=False).get_matching_blocks():
        gone.difference_update(range(run.a, run.a + run.size))
        new.difference_update(range(run.b, run.b + run.size))
    return gone, new


def op_text(architecture: Architecture, index: int) -> str:
    """``conv(features=16, kernel=(3, 3))``: parameters with their defaults are left out."""
    op = architecture.ops[index]
    given = [
        f"{name}={value}"
        for (name, (_, default)), value in zip(OPS[op.kind].params.items(), op.params, strict=True)
        if value != default
    ]
    return f"{op.kind}({', '.join(given)})"


def draw_architecture(architecture: Architecture, odd: set[int], colour: str) -> Drawing:
    """Lay out a network; ``odd`` ops in ``colour``. A block of which none is odd is one box, where one tensor enters
    and one leaves."""
    owner = list(range(len(architecture)))
    for block, ops in architecture.blocks.items():
        if len(ops) > 2 and not odd & set(ops) and border(architecture, block) is not None:
            for index in ops:
                owner[index] = ops[0]
    groups: dict[int, list[int]] = {}
    for index, first in enumerate(owner):
        groups.setdefault(first, []).append(index)
    at = {first: place for place, first in enumerate(groups)}
    edges = {
        (at[owner[source]], at[owner[index]])
        for index, op in enumerate(architecture.ops)
        for source in op.inputs
        if owner[source] != owner[index]
    }
    places, width, height = places_of(len(groups), sorted(edges))
    boxes = [
        Box(tuple(ops), x, y, *_texts(architecture, ops, odd, colour))
        for (x, y), ops in zip(places, groups.values(), strict=True)
    ]
    return Drawing(tuple(boxes), tuple(sorted(edges)), width, height)


def _texts(architecture: Architecture, ops: list[int], odd: set[int], colour: str) -> tuple[str, str, str, str]:
    """(title, line below, hover title, colour) of a box."""
    last = architecture.ops[ops[-1]]
    hover = "\n".join(f"{op_text(architecture, index)} → {shape_text(architecture.ops[index].shape)}" for index in ops)
    if len(ops) > 1:
        return last.block, f"{len(ops)} ops · {shape_text(last.shape)}", hover, FREE
    title = str(last.params[0]) if last.kind == "input" else last.kind
    if last.kind == "conv":
        kernel = "×".join(map(str, last.param("kernel")))
        title = f"conv {kernel}" + (f" / {last.param('groups')}" if last.param("groups") > 1 else "")
    weights = sum(math.prod(shape) for shape in architecture.trainable(ops[0]).values())
    below = shape_text(last.shape) + (f" · {format_count(weights)}" if weights else "")
    face = FREE if last.kind == "input" else colour if ops[0] in odd else KEPT
    return title, below, f"{last.block}\n{hover}".strip(), face


def _title(name: str, one: Architecture) -> str:
    return f"{name}: {len(one)} ops, {format_count(one.parameters)} parameters, {format_count(one.flops)} FLOPs"


def comparison_figure(problem: ArchitectureProblem, network: Architecture) -> Figure:
    """Both networks from top to bottom; what is gone is red, what is new green."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    gone, new = changed(problem.seed, network)
    sides = (("seed", problem.seed, gone, GONE), ("network", network, new, NEW))
    drawings = [draw_architecture(one, odd, colour) for _, one, odd, colour in sides]
    wide = [max(drawing.width, 420.0) for drawing in drawings]
    tall = max(drawing.height for drawing in drawings)
    scale = min(1 / 96, MOST_INCHES[0] / sum(wide), MOST_INCHES[1] / tall)  # inches a pixel
    head = 0.75
    figure = Figure(figsize=(sum(wide) * scale, tall * scale + head), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=wide)
    for axis, (name, one, *_), drawing, width in zip(axes, sides, drawings, wide, strict=True):
        draw_on(axis, drawing, 72 * scale)
        margin = (width - drawing.width) / 2
        axis.set_xlim(-margin, drawing.width + margin)
        axis.set_ylim(tall, 0)
        axis.set_title(_title(name, one), fontsize=9, loc="left")
    handles = [Patch(color=GONE, label="gone"), Patch(color=NEW, label="new"), Patch(color=KEPT, label="the same")]
    figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False, fontsize=9)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - head / height, bottom=0.0, wspace=0.0)
    return figure


def comparison_page(problem: ArchitectureProblem, network: Architecture, details: Mapping[str, Any]) -> str:
    """Markup for a report: both networks drawn, the way from one to the other, and the network's text."""
    return comparison_markup(problem.seed, network) + _path(details.get("path")) + _curves(problem, network)


def _curves(problem: ArchitectureProblem, network: Architecture) -> str:
    """Validation accuracy after each epoch, of the seed and of the network; nothing where they are not trained."""
    if problem.track != "trained":
        return ""
    lines = []
    for one, colour, name in ((problem.seed, "#5b6675", "seed"), (network, "#2a7f3f", "network")):
        found = problem.trainer.kept(one)
        if found is not None and found.accuracies:
            points = " ".join(
                f"{40 + 320 * at / max(1, len(found.accuracies) - 1):.1f},{190 - 170 * accuracy:.1f}"
                for at, accuracy in enumerate(found.accuracies)
            )
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"><title>{name}</title>'
                f'</polyline><text x="366" y="{194 - 170 * found.accuracies[-1]:.1f}" fill="{colour}">{name} '
                f"{found.accuracies[-1]:.3f}</text>"
            )
    if not lines:
        return ""
    return (
        '<h2>Training</h2><svg xmlns="http://www.w3.org/2000/svg" width="500" height="215" font-size="12" '
        'font-family="system-ui, sans-serif"><path d="M40 20V190H360" fill="none" stroke="#5b6675"/>'
        '<text x="34" y="24" text-anchor="end">1</text><text x="34" y="194" text-anchor="end">0</text>'
        f"{''.join(lines)}<text x='200' y='208' text-anchor='middle'>epochs; accuracy on the validation split</text>"
        "</svg>"
    )


def _path(path: Any) -> str:
    """The networks between the seed and what a method ended with; nothing where it does not say."""
    if not isinstance(path, list | tuple) or not all(isinstance(step, Mapping) for step in path):
        return ""
    rows = "".join(
        f'<tr><td class="n">{number}</td><td class="n">{_text(step.get("parameters"))}</td>'
        f'<td class="n">{_text(step.get("flops"))}</td><td class="n">{_text(step.get("quality"))}</td>'
        f"<td>{_text(step.get('depth'))}</td><td><code>{_text(step.get('mixing'))}</code></td></tr>"
        for number, step in enumerate(path)
    )
    return (
        '<h2>From the seed to the network</h2><table><tr><th class="n">mutations</th><th class="n">parameters</th>'
        f'<th class="n">FLOPs</th><th class="n">quality</th><th>depth</th><th>mixing</th></tr>{rows}</table>'
    )


def _text(value: object) -> str:
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def comparison_markup(seed: Architecture, network: Architecture) -> str:
    """Markup: both networks drawn, their properties, and the network's text."""
    gone, new = changed(seed, network)
    sides = (("Seed", seed, gone, GONE), ("Network", network, new, NEW))
    words = [(GONE, "gone"), (NEW, "new"), (KEPT, "the same"), (FREE, "blocks that are the same, in one box")]
    parts = [
        f'<p class="note">{legend(words)}</p><p class="note">Ops with the shapes that they give and their trainable '
        'numbers. Point at one for its parameters.</p><div style="display: flex; gap: 24px; flex-wrap: wrap; '
        'align-items: flex-start">'
    ]
    for name, one, odd, colour in sides:
        parts.append(
            f'<div style="flex: 1 1 480px; min-width: 0"><h3>{html.escape(_title(name, one))}</h3>'
            '<div style="overflow: auto; max-height: 900px; border: 1px solid var(--line); border-radius: 8px; '
            'padding: 8px">'
            f"{svg(draw_architecture(one, odd, colour))}</div></div>"
        )
    rows = []
    for name, one, *_ in sides:
        found = infer(one)
        mixing = ", ".join(map(mixing_text, found.mixing))
        rows.append(
            f"<tr><td>{name}</td><td><code>{mixing}</code></td><td>{found.depth}</td><td>{found.shape}</td></tr>"
        )
    parts.append(
        "</div><h2>Properties</h2><table><tr><th></th><th>mixing</th><th>depth</th><th>shape</th></tr>"
        f"{''.join(rows)}</table><h2>The network</h2><pre>{html.escape(network.text())}</pre>"
    )
    return "\n".join(parts)
