"""A program before and after rewriting: side by side as HTML, drawn, and as a small table."""

from __future__ import annotations

import html
from collections import Counter
from typing import TYPE_CHECKING, Any

from graphopt_gym.graphs.tensor_program import TensorProgram
from graphopt_gym.graphs.tensor_program.ops import OPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
    from graphopt_gym.problem import Trace

GONE, NEW, KEPT, FREE = "#f4b6b0", "#a9dcae", "#dbe4ee", "#f5f7f9"
MOST_LABELLED = 70  # nodes in a panel with their names written in them


def changed(before: TensorProgram, after: TensorProgram) -> tuple[set[int], set[int]]:
    """(nodes of ``before`` that are gone, nodes of ``after`` that are new).

    A node stays where the other program has one with the same operator, parameters and shape, that reads the same
    constants and, beside them, tensors of the same shapes. Ids do not matter.
    """
    keys = [{node: _key(program, node) for node in program.order} for program in (before, after)]
    found = []
    for own, other in (keys, keys[::-1]):
        left = Counter(other.values())
        odd = set()
        for node, key in own.items():
            if left[key]:
                left[key] -= 1
            else:
                odd.add(node)
        found.append(odd)
    return found[0], found[1]


def _key(program: TensorProgram, node: int) -> tuple[Any, ...]:
    def of_operand(source: int) -> Any:
        op, _params, _, shape = program.nodes[source]
        return _constant(program, source) if program.is_static(source) or op == "input" else shape

    op, params, inputs, shape = program.nodes[node]
    return op, params, shape, tuple(map(of_operand, inputs))


def _constant(program: TensorProgram, node: int) -> tuple[Any, ...]:
    op, params, inputs, _ = program.nodes[node]
    return op, params, tuple(_constant(program, source) for source in inputs)


def _label(program: TensorProgram, node: int) -> str:
    """The operator, and what is fused into it."""
    one = program.nodes[node]
    if one.op in ("input", "weight"):
        return str(one.params[0])
    act = one.param("act") if "act" in OPS[one.op].params else "none"
    return one.op if act == "none" else f"{one.op}+{act}"


def _levels(program: TensorProgram) -> dict[int, int]:
    level: dict[int, int] = {}
    for node in program.order:
        if not program.is_static(node):
            level[node] = max((level[one] + 1 for one in program.nodes[node].inputs if one in level), default=0)
    return level


def comparison_figure(problem: RewriteProblem, program: TensorProgram) -> Figure:
    """Both programs from top to bottom, constants left out; what is gone is red, what is new green."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from graphopt_gym.report.units import format_seconds

    gone, new = changed(problem.program, program)
    panels = ((problem.program, gone, GONE, "before"), (program, new, NEW, "after"))
    levels = [_levels(one) for one, *_ in panels]
    tallest = max(max(level.values(), default=0) + 1 for level in levels)
    widest = [max(Counter(level.values()).values(), default=1) for level in levels]
    inches = 0.42 if max(map(len, levels)) <= MOST_LABELLED else max(0.08, min(0.3, 14 / tallest))
    wide = [max(4.0, 1.25 * w) if inches == 0.42 else max(4.0, 0.5 * w) for w in widest]
    figure = Figure(figsize=(min(24.0, sum(wide)), 1.0 + inches * tallest), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=wide)
    for axis, (one, odd, colour, name), level in zip(axes, panels, levels, strict=True):
        _draw(axis, one, level, odd, colour, tallest, labelled=inches == 0.42)
        cost = format_seconds(problem.program_cost(one))
        axis.set_title(f"{name}: {cost}, {one.statistics()['computed']} ops", fontsize=12, loc="left")
    handles = [Patch(color=GONE, label="gone"), Patch(color=NEW, label="new"), Patch(color=KEPT, label="the same")]
    figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False, fontsize=11)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.75 / height, bottom=0.08 / height, wspace=0.04)
    return figure


def _draw(
    axis: Axes,
    program: TensorProgram,
    level: dict[int, int],
    odd: set[int],
    colour: str,
    tallest: int,
    *,
    labelled: bool,
) -> None:
    from matplotlib.collections import LineCollection

    rows: dict[int, list[int]] = {}
    for node, at in level.items():
        rows.setdefault(at, []).append(node)
    widest = max(map(len, rows.values()), default=1)
    place: dict[int, tuple[float, float]] = {}
    for at, nodes in sorted(rows.items()):
        # below what it reads, as far as there is room
        wanted = [_middle([place[one][0] for one in program.nodes[node].inputs if one in place]) for node in nodes]
        order = sorted(range(len(nodes)), key=wanted.__getitem__)
        for rank, index in enumerate(order):
            place[nodes[index]] = ((rank + 0.5) / len(nodes) * widest, float(at))
    lines = [[place[source], place[node]] for node in level for source in program.nodes[node].inputs if source in place]
    axis.add_collection(LineCollection(lines, colors="#8a94a0", linewidths=0.8, zorder=1))
    for node, (x, y) in place.items():
        face = colour if node in odd else FREE if program.nodes[node].op == "input" else KEPT
        text = _label(program, node) if labelled else ""
        box = {"boxstyle": "round,pad=0.25", "facecolor": face, "edgecolor": "#5b6675", "linewidth": 0.6}
        if labelled:
            axis.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box, zorder=2)
        else:
            axis.plot([x], [y], "s", markersize=4, color=face, markeredgecolor="#5b6675", markeredgewidth=0.4, zorder=2)
    axis.set_xlim(0, widest)
    axis.set_ylim(tallest - 0.4, -0.6)
    axis.axis("off")


def _middle(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def comparison_page(problem: RewriteProblem, program: TensorProgram, trace: Trace | None) -> str:
    """Markup for a report: the rules applied, in order, with the time after each; both programs op by op."""
    from graphopt_gym.report.units import format_seconds

    original_s = problem.original_s
    parts = ["<h2>Rewrites</h2>"]
    if trace:
        parts.append('<div class="scroll"><table><tr><th class="n">step</th><th>rule</th><th>source and target</th>'
                     '<th class="n">time after it</th><th class="n">to the original</th></tr>')  # fmt: skip
        rules = {rule.name: str(rule) for rule in problem.matcher.rules}
        parts.append(
            f'<tr><td class="n">0</td><td>original</td><td></td><td class="n">{format_seconds(original_s)}</td>'
            '<td class="n">100.0 %</td></tr>'
        )
        for number, (rule, _, seconds) in enumerate(trace, 1):
            mood = _mood(seconds, trace[number - 2][2] if number > 1 else original_s)
            parts.append(
                f'<tr><td class="n">{number}</td><td>{_text(rule)}</td><td><code>{_text(rules.get(rule, ""))}</code>'
                f'</td><td class="n{mood}">{format_seconds(seconds)}</td>'
                f'<td class="n">{100 * seconds / original_s if original_s else 100:.1f} %</td></tr>'
            )
        parts.append("</table></div>")
    elif trace is None:
        parts.append('<p class="note">The method does not say by which single rewrites it came here.</p>')
    else:
        parts.append('<p class="note">None: the program is the original.</p>')
    gone, new = changed(problem.program, program)
    parts.append('<h2>Programs</h2><p class="note">Operators and their simulated times; red: gone, green: new. '
                 'Operators on weights alone are computed once, before inference, and cost nothing.</p>'
                 '<div style="display: flex; gap: 24px; flex-wrap: wrap; align-items: flex-start">')  # fmt: skip
    for title, one, odd, colour in (("Before", problem.program, gone, GONE), ("After", program, new, NEW)):
        cost = format_seconds(problem.program_cost(one))
        parts.append(f'<div style="flex: 1 1 480px; min-width: 0"><h3>{title}: {cost}</h3>'
                     f'<div class="scroll">{_listing(problem, one, odd, colour)}</div></div>')  # fmt: skip
    parts.append("</div>")
    return "\n".join(parts)


def _mood(seconds: float, before: float) -> str:
    return " good" if seconds < before else " bad" if seconds > before else ""


def _listing(problem: RewriteProblem, program: TensorProgram, odd: set[int], colour: str) -> str:
    from graphopt_gym.report.units import format_seconds

    seconds = problem.program_costs.node_costs(program)
    names = {node: f"v{index}" for index, node in enumerate(program.order)}
    names |= {
        node: str(program.nodes[node].params[0])
        for node in program.order
        if program.nodes[node].op in ("input", "weight")
    }
    rows = ["<table><tr><th>tensor</th><th>operator</th><th>shape</th><th class='n'>time</th></tr>"]
    for node in program.order:
        op, params, inputs, shape = program.nodes[node]
        if op in ("input", "weight"):
            continue
        given = [names[source] for source in inputs]
        for (name, (_, default)), value in zip(OPS[op].params.items(), params, strict=True):
            if value != default:
                given.append(f"{name}={value}")
        style = f' style="background: {colour}"' if node in odd else ""
        time = format_seconds(seconds[node]) if node in seconds else "-"
        call = f"{op}({', '.join(given)})"
        size = "×".join(map(str, shape)) or "scalar"
        rows.append(
            f"<tr{style}><td>{_text(names[node])}</td><td>{_text(call)}</td>"
            f'<td style="white-space: nowrap">{size}</td><td class="n">{time}</td></tr>'
        )
    return "\n".join([*rows, "</table>"])


def _text(value: object) -> str:
    return html.escape(str(value))


def describe(state: Rewritten, best_s: float) -> str:
    """A rewriting as it stands: the time, the last rules, operators by kind."""
    from graphopt_gym.report.units import format_seconds

    problem, counts = state.problem, state.program.statistics()
    original = problem.program.statistics()
    saved = 100 * (1 - state.cost / problem.original_s) if problem.original_s else 0.0
    lines = [
        f"{problem.program.name} on {problem.cluster.name}: {format_seconds(state.cost)}, {saved:+.1f} % saved "
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
