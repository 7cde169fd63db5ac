"""A program before and after rewriting: side by side as HTML, drawn, and as a small table."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.rewrite.drawing import (
    FREE,
    GONE,
    HEIGHT,
    KEPT,
    MOST_BELOW,
    MOST_TITLE,
    NEW,
    WIDTH,
    Drawing,
    bars,
    call_text,
    cut,
    draw_program,
    legend,
    shape_text,
    svg,
)
from graphopt_gym.graphs.tensor_program import TensorProgram
from graphopt_gym.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
    from graphopt_gym.problem import Trace

MOST_INCHES = (24.0, 40.0)  # of a figure, across and down
LEAST_POINTS = 3.5  # of a letter
MOST_LISTED = 120  # nodes: the list of more is closed at first
SIDE_BY_SIDE = 560  # pixels: wider drawings go below each other


def changed(before: TensorProgram, after: TensorProgram) -> tuple[set[int], set[int]]:
    """(nodes of ``before`` that are gone, nodes of ``after`` that are new). Ids do not matter.

    A node stays where the other program has one of its kind: first one that computes the very same, then one that the
    outputs are computed from in the same way, then one with the same operator, parameters and shape, that reads the
    same constants and, beside them, tensors of the same shapes.
    """
    numbers: dict[Any, int] = {}

    def number(key: Any) -> int:
        return numbers.setdefault(key, len(numbers))

    def computed(program: TensorProgram) -> dict[int, int]:
        found: dict[int, int] = {}
        for node in program.order:
            op, params, inputs, _ = program.nodes[node]
            found[node] = number((op, params, tuple(found[source] for source in inputs)))
        return found

    def read(program: TensorProgram) -> dict[int, int]:
        found: dict[int, int] = {}
        for node in reversed(program.order):
            readers = sorted(
                (found[user], place)
                for user in program.users(node)
                for place, source in enumerate(program.nodes[user].inputs)
                if source == node
            )
            outputs = tuple(place for place, output in enumerate(program.outputs) if output == node)
            found[node] = number(("read", _key(program, node), tuple(readers), outputs))
        return found

    def alike(program: TensorProgram) -> dict[int, int]:
        return {node: number(("alike", _key(program, node))) for node in program.order}

    gone, new = set(before.order), set(after.order)
    for view in (computed, read, alike):
        kinds, others = view(before), view(after)
        waiting: dict[int, list[int]] = {}
        for node in after.order:
            if node in new:
                waiting.setdefault(others[node], []).append(node)
        for node in before.order:
            if node in gone and waiting.get(kinds[node]):
                gone.remove(node)
                new.remove(waiting[kinds[node]].pop(0))
    return gone, new


def _key(program: TensorProgram, node: int) -> tuple[Any, ...]:
    def of_operand(source: int) -> Any:
        op, _params, _, shape = program.nodes[source]
        return _constant(program, source) if program.is_static(source) or op == "input" else shape

    op, params, inputs, shape = program.nodes[node]
    return op, params, shape, tuple(map(of_operand, inputs))


def _constant(program: TensorProgram, node: int) -> tuple[Any, ...]:
    op, params, inputs, _ = program.nodes[node]
    return op, params, tuple(_constant(program, source) for source in inputs)


def comparison_figure(problem: RewriteProblem, program: TensorProgram) -> Figure:
    """Both programs from top to bottom, constants left out; what is gone is red, what is new green."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    gone, new = changed(problem.program, program)
    sides = ((problem.program, gone, GONE, "before"), (program, new, NEW, "after"))
    drawings = [draw_program(one, problem.program_costs.node_costs(one), odd, colour) for one, odd, colour, _ in sides]
    wide = [max(drawing.width, 260.0) for drawing in drawings]
    tall = max(drawing.height for drawing in drawings)
    scale = min(1 / 96, MOST_INCHES[0] / sum(wide), MOST_INCHES[1] / tall)  # inches a pixel
    head = 0.75
    figure = Figure(figsize=(sum(wide) * scale, tall * scale + head), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=wide)
    for axis, (one, _, _, name), drawing, width in zip(axes, sides, drawings, wide, strict=True):
        draw_on(axis, drawing, 72 * scale)
        margin = (width - drawing.width) / 2
        axis.set_xlim(-margin, drawing.width + margin)
        axis.set_ylim(tall, 0)
        cost = format_seconds(problem.program_cost(one))
        axis.set_title(f"{name}: {cost}, {one.statistics()['computed']} operators", fontsize=9, loc="left")
    handles = [Patch(color=GONE, label="gone"), Patch(color=NEW, label="new"), Patch(color=KEPT, label="the same")]
    figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False, fontsize=9)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - head / height, bottom=0.0, wspace=0.0)
    return figure


def draw_on(axis: Axes, drawing: Drawing, points: float) -> None:
    """``points`` a pixel of the drawing; letters that would be too small to read are left out."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    from graphopt_gym.report.gantt import drawable

    ends = [[(drawing.boxes[at].x, drawing.boxes[at].y) for at in edge] for edge in drawing.edges]
    axis.add_collection(LineCollection(ends, colors="#8a94a0", linewidths=points, zorder=1))
    patches = [Rectangle((box.x - WIDTH / 2, box.y - HEIGHT / 2), WIDTH, HEIGHT) for box in drawing.boxes]
    faces = [box.colour for box in drawing.boxes]
    axis.add_collection(PatchCollection(patches, facecolors=faces, edgecolors="#5b6675", linewidths=points, zorder=2))
    if 11 * points >= LEAST_POINTS:
        for box in drawing.boxes:
            given: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3}
            axis.text(box.x, box.y - 8, drawable(cut(box.title, MOST_TITLE)), fontsize=12 * points, **given)
            axis.text(
                box.x, box.y + 9, drawable(cut(box.below, MOST_BELOW)), fontsize=10 * points, color="#3a4452", **given
            )
    axis.axis("off")


def comparison_page(
    problem: RewriteProblem, program: TensorProgram, trace: Trace | None, details: Mapping[str, Any] | None = None
) -> str:
    """Markup for a report: both programs drawn, the rules applied or the e-graph explored, both programs op by op."""
    gone, new = changed(problem.program, program)
    sides = (("Before", problem.program, gone, GONE), ("After", program, new, NEW))
    titles = {
        name: f"{name}: {format_seconds(problem.program_cost(one))}, {one.statistics()['computed']} operators"
        for name, one, *_ in sides
    }
    words = [(GONE, "gone"), (NEW, "new"), (KEPT, "the same"), (FREE, "inputs; left alone, several in one box")]
    drawings = [draw_program(one, problem.program_costs.node_costs(one), odd, colour) for _, one, odd, colour in sides]
    basis = "480px" if max(drawing.width for drawing in drawings) <= SIDE_BY_SIDE else "100%"
    parts = [
        f'<p class="note">{legend(words)}</p><p class="note">Operators with the shapes that they give and their '
        "simulated times; those on weights alone are computed once, before inference, and not drawn. Point at one for "
        f"what it reads. Scroll inside.</p>{_ROW}"
    ]
    for (name, *_), drawing in zip(sides, drawings, strict=True):
        parts.append(
            f'<div style="flex: 1 1 {basis}; min-width: 0"><h3>{titles[name]}</h3><div class="drawing" style="'
            'overflow: auto; max-height: 900px; border: 1px solid var(--line); border-radius: 8px; padding: 8px">'
            f"{svg(drawing)}</div></div>"
        )
    parts.append(f"</div>{_MIDDLE}")
    explored = _explored(problem, details) if details else ""
    parts.append(explored)
    parts.append("<h2>Rewrites</h2>")
    if trace:
        parts.append(_steps(problem, trace))
    elif trace is None and explored:
        parts.append(
            '<p class="note">No order: equality saturation applies all rules side by side, and extraction picks '
            "a program from the e-graph.</p>"
        )
    elif trace is None:
        parts.append('<p class="note">The method does not say by which single rewrites it came here.</p>')
    else:
        parts.append('<p class="note">None: the program is the original.</p>')
    many = max(len(one) for _, one, *_ in sides) > MOST_LISTED
    parts.append(f"<h2>Operators</h2><details{'' if many else ' open'}><summary>One by one</summary>{_ROW}")
    for name, one, odd, colour in sides:
        parts.append(f'<div style="flex: 1 1 480px; min-width: 0"><h3>{titles[name]}</h3>'
                     f'<div class="scroll">{_listing(problem, one, odd, colour)}</div></div>')  # fmt: skip
    parts.append("</div></details>")
    return "\n".join(parts)


_MIDDLE = """<script>for (const one of document.querySelectorAll(".drawing"))
one.scrollLeft = (one.scrollWidth - one.clientWidth) / 2</script>"""
_ROW = '<div style="display: flex; gap: 24px; flex-wrap: wrap; align-items: flex-start">'
MOST_RULES = 12  # of an e-graph's rules: the busiest are named


def _explored(problem: RewriteProblem, details: Mapping[str, Any]) -> str:
    """What the e-graph was, and what each extractor found in it; nothing where the details do not say."""
    growth = details.get("growth_nodes")
    if not isinstance(growth, list | tuple) or not all(isinstance(count, int) for count in growth):
        return ""
    nodes, classes = details.get("nodes", growth[-1] if growth else 0), details.get("classes")
    text = f"{nodes:,} operators" if isinstance(nodes, int) else "operators"
    text += f" in {classes:,} classes of equals" if isinstance(classes, int) else ""
    text += f" after {len(growth)} iteration{'s' * (len(growth) != 1)}"
    if "saturation_stopped_by" in details:
        text += f"; exploration ended by: {details['saturation_stopped_by']}"
    parts = [f"<h2>The e-graph</h2><p>{_text(text)}.</p>"]
    if growth:
        parts.append(f'<div class="scroll">{bars(growth, "operators after each iteration")}</div>'
                     '<p class="note">Operators after each iteration.</p>')  # fmt: skip
    rows = []
    for key, name in (("greedy", "cheapest of each class"), ("shared", "costs shared among readers"),
                      ("ilp", "integer linear program")):  # fmt: skip
        cost = details.get(f"{key}_cost_s")
        if isinstance(cost, int | float):
            share = f"{100 * cost / problem.original_s:.1f} %" if problem.original_s else "-"
            rows.append(f'<tr><td>{name}</td><td class="n">{format_seconds(cost)}</td><td class="n">{share}</td></tr>')
    if rows:
        parts.append('<table><tr><th>extraction</th><th class="n">time of its program</th>'
                     f'<th class="n">to the original</th></tr>{"".join(rows)}</table>')  # fmt: skip
    bound, gap = details.get("bound_s"), details.get("gap")
    if isinstance(bound, int | float) and isinstance(gap, int | float):
        parts.append(f'<p class="note">No program of this e-graph takes less than {format_seconds(bound)}, by the '
                     f"linear program's bound: its own is within {100 * gap:.1f} % "
                     f"({_text(details.get('ilp_status', ''))}). Other rules, or multi-pattern ones in more rounds, "
                     f"make another e-graph.</p>")  # fmt: skip
    entered = details.get("rules_that_entered_the_e_graph")
    if isinstance(entered, Mapping) and entered:
        counted = ((rule, count) for rule, count in entered.items() if isinstance(count, int))
        busiest = sorted(counted, key=lambda row: (-row[1], row[0]))
        named = "".join(f'<tr><td>{_text(rule)}</td><td class="n">{count:,}</td></tr>'
                        for rule, count in busiest[:MOST_RULES])  # fmt: skip
        rest = len(busiest) - MOST_RULES
        more = f'<p class="note">and {rest} further rules.</p>' if rest > 0 else ""
        parts.append(
            f'<table><tr><th>rule</th><th class="n">times it changed the e-graph</th></tr>{named}</table>{more}'
        )
    return "\n".join(parts)


def _steps(problem: RewriteProblem, trace: Trace) -> str:
    original_s = problem.original_s
    parts = ['<div class="scroll"><table style="white-space: nowrap">'
             '<tr><th class="n">step</th><th>rule</th><th>source and target</th>'
             '<th class="n">time after it</th><th class="n">to the original</th></tr>']  # fmt: skip
    rules = {rule.name: str(rule) for rule in problem.matcher.rules}
    parts.append(
        f'<tr><td class="n">0</td><td>original</td><td></td><td class="n">{format_seconds(original_s)}</td>'
        '<td class="n">100.0 %</td></tr>'
    )
    before, cost = "", original_s
    for number, (rule, _, seconds) in enumerate(trace, 1):
        code = f'<code style="white-space: normal">{_text(rules.get(rule, ""))}</code>' if rule != before else ""
        parts.append(
            f'<tr><td class="n">{number}</td><td>{_text(rule)}</td><td>{code}</td>'
            f'<td class="n{_mood(seconds, cost)}">{format_seconds(seconds)}</td>'
            f'<td class="n">{100 * seconds / original_s if original_s else 100:.1f} %</td></tr>'
        )
        before, cost = rule, seconds
    return "\n".join([*parts, "</table></div>"])


def _mood(seconds: float, before: float) -> str:
    return " good" if seconds < before else " bad" if seconds > before else ""


def _listing(problem: RewriteProblem, program: TensorProgram, odd: set[int], colour: str) -> str:
    seconds = problem.program_costs.node_costs(program)
    names = {node: f"v{index}" for index, node in enumerate(program.order)}
    names |= {
        node: str(program.nodes[node].params[0])
        for node in program.order
        if program.nodes[node].op in ("input", "weight")
    }
    rows = ["<table><tr><th>tensor</th><th>operator</th><th>shape</th><th class='n'>time</th></tr>"]
    for node in program.order:
        if program.nodes[node].op in ("input", "weight"):
            continue
        style = f' style="background: {colour}"' if node in odd else ""
        time = format_seconds(seconds[node]) if node in seconds else "-"
        rows.append(
            f"<tr{style}><td>{_text(names[node])}</td><td style='overflow-wrap: anywhere'>"
            f"{_text(call_text(program, names, node))}</td>"
            f'<td style="white-space: nowrap">{shape_text(program.shape(node))}</td>'
            f'<td class="n" style="white-space: nowrap">{time}</td></tr>'
        )
    return "\n".join([*rows, "</table>"])


def _text(value: object) -> str:
    return html.escape(str(value))


def describe(state: Rewritten, best_s: float) -> str:
    """A rewriting as it stands: the time, the last rules, operators by kind."""
    problem, counts = state.problem, state.program.statistics()
    original = problem.program.statistics()
    saved = 100 * (1 - state.cost / problem.original_s) if problem.original_s else 0.0
    lines = [
        f"{problem.title}: {format_seconds(state.cost)}, {saved:+.1f} % saved "
        f"(best {format_seconds(best_s)}, original {format_seconds(problem.original_s)})",
        f"  {counts['computed']} ops (original {original['computed']}), {len(state.matches)} matches",
    ]
    trace = state.trace
    lines.extend(
        f"  {number}. {rule}: {format_seconds(seconds)}"
        for number, (rule, _, seconds) in list(enumerate(trace, 1))[-5:]
    )
    for op in sorted({*counts["ops"], *original["ops"]} - {"input", "weight"}):
        had, has = original["ops"].get(op, 0), counts["ops"].get(op, 0)
        lines.append(f"  {op:>16} {has:>4}" + (f"  ({has - had:+d})" if has != had else ""))
    return "\n".join(lines)
