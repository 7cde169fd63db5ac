"""A solution, or several compared, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import quoted
from graphopt_gym.files import write_text
from graphopt_gym.problem import Solution
from graphopt_gym.report.gantt import drawable, figure_bytes, gantt_figure
from graphopt_gym.report.tables import Table, comparison_table, device_table, format_cell, heading
from graphopt_gym.units import format_bytes, format_cost, format_count, format_seconds

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

MOST_VECTOR_TASKS = 6000  # above, a timeline goes in as a picture: it is smaller, and as sharp as a screen shows
# the colours of matplotlib's "tab20", the strong ones first
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5",
)  # fmt: skip


def write_html(solutions: Sequence[Solution], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Write a report on one solution, or on several of one graph and cluster. Whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    return write_text(path, render_html(solutions, title=title))


def render_html(solutions: Sequence[Solution], *, title: str = "") -> str:
    """The report as a text; see :func:`write_html`. ``solutions`` holds at least one."""
    from graphopt_gym import __version__

    best = min(solutions, key=lambda solution: (not solution.outcome.valid, solution.outcome.cost))
    single = len(solutions) == 1
    problem = best.problem
    words, cluster = problem.words, problem.cluster_name
    shown = _best_of_each_method(solutions)
    chart = convergence_figure(solutions)
    return _template().render(
        title=title or (f"{best.method}: {problem.title}" if single else problem.title),
        subtitle=f"{problem.env_id} · " + f"simulated {cluster} · " * bool(cluster) + f"graphopt-gym {__version__}",
        tiles=_tiles(best, solutions),
        table=None if single else _for_template(comparison_table(solutions)),
        best=best.method,
        convergence=_picture(chart, vector=True) if chart else None,
        page_name=problem.page_name,
        runs=[_run(solution, is_open=solution is best) for solution in shown],
        facts=_for_template(_facts(best)),
        footer=f"Each {words.cost} is computed from a model of the {words.cluster}, not measured. " * bool(cluster)
        + "Check a solution file again with: graphopt validate FILE",
    )


def convergence_figure(solutions: Sequence[Solution], *, width_in: float = 12.0) -> Figure | None:
    """Best cost over evaluations, a line a method and seed; None where no method improved on its first decision."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(len(solution.history) > 1 for solution in solutions):
        return None
    problem = solutions[0].problem
    mebibytes = (2.0**-20, "MiB")
    known = {"s": (1e3, "ms"), "s/sample": (1e3, "ms/sample"), "B": mebibytes, "bytes": mebibytes}
    scale, unit = known.get(problem.unit, (1.0, problem.unit))
    figure = Figure(figsize=(width_in, 3.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    methods = list(dict.fromkeys(solution.method for solution in solutions))
    labelled = set()
    ends: list[float] = []
    for solution in solutions:
        if not solution.history:
            continue
        colour = _COLOURS[methods.index(solution.method) % len(_COLOURS)]
        label = None if solution.method in labelled else drawable(solution.method, 40)
        labelled.add(solution.method)
        calls = [row[0] for row in solution.history]
        costs = [row[2] * scale for row in solution.history]
        ends.append(costs[-1])
        if solution.evaluations > 1:
            axis.step([*calls, solution.evaluations], [*costs, costs[-1]], where="post", color=colour, label=label)
        else:
            axis.plot(calls, costs, "o", color=colour, label=label)
    axis.set_xscale("log")
    worst = max(ends)
    low, high = axis.get_ylim()
    # one method: its whole way, but for a start far off; several: where they end
    top = worst + 1.5 * (worst - min(ends)) + 0.1 * worst if len(solutions) > 1 else 3 * worst
    axis.set_ylim(low, min(high, top))
    axis.set_xlabel(f"{problem.words.evaluation}s", fontsize=12)
    axis.set_ylabel(f"best {problem.words.cost} so far" + f" ({unit})" * bool(unit), fontsize=12)
    axis.tick_params(labelsize=11)
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=11, frameon=False)
    return figure


def _best_of_each_method(solutions: Sequence[Solution]) -> list[Solution]:
    best: dict[str, Solution] = {}
    for solution in solutions:
        known = best.get(solution.method)
        rank = (not solution.outcome.valid, solution.outcome.cost)
        if known is None or rank < (not known.outcome.valid, known.outcome.cost):
            best[solution.method] = solution
    return list(best.values())


def _tiles(best: Solution, solutions: Sequence[Solution]) -> list[dict[str, str]]:
    outcome = best.outcome
    single = len(solutions) == 1
    label = best.problem.words.cost
    tiles = [
        {"value": format_cost(outcome.cost, outcome.unit), "label": label if single else f"best {label}", "mood": ""},
        {"value": "valid" if outcome.valid else "invalid", "label": "fits every constraint" if outcome.valid else
         "breaks a constraint", "mood": "good" if outcome.valid else "bad"},
    ]  # fmt: skip
    if not single:
        tiles.append({"value": best.method, "label": "best method", "mood": ""})
    calls, seconds = sum(s.evaluations for s in solutions), sum(s.wall_s for s in solutions)
    tiles.append({"value": f"{calls:,}", "label": f"{best.problem.words.evaluation}s", "mood": ""})
    tiles.append({"value": format_seconds(seconds), "label": "search time", "mood": ""})
    if outcome.timeline is not None:
        moved = outcome.metrics.get("transfer_bytes")
        if moved is not None:
            tiles.append({"value": format_bytes(moved), "label": "moved between devices", "mood": ""})
    return tiles


def _run(solution: Solution, *, is_open: bool) -> dict[str, Any]:
    from markupsafe import Markup

    outcome, timeline = solution.outcome, solution.outcome.timeline
    cost = format_cost(outcome.cost, outcome.unit) if outcome.valid else "invalid"
    run: dict[str, Any] = {
        "label": f"{solution.method}: {cost}" + (f" (seed {solution.seed})" if solution.seed else ""),
        "reasons": outcome.reasons,
        "open": is_open,
        "gantt": None,
        "devices": [],
        "details": _details(solution),
        "page": Markup(solution.problem.page(solution.decision, solution.trace, solution.details)),
    }
    if timeline is None:
        drawn = None if solution.problem.page_draws else solution.problem.figure(solution.decision)
        run["gantt"] = _picture(drawn, vector=is_open) if drawn else None
        return run
    figure = gantt_figure(timeline, title=solution.method, note="; ".join(solution.problem.notes))
    run["gantt"] = _picture(figure, vector=timeline.tasks.num_tasks <= MOST_VECTOR_TASKS and is_open)
    table = device_table(timeline)
    for row, texts in zip(table.rows, table.cells(), strict=True):
        device = dict(zip(table.columns, texts, strict=True))
        peak, capacity = row[-2:]
        run["devices"].append(
            {**device, "percent": f"{min(100.0, 100 * peak / capacity):.1f}", "over": peak > capacity}
        )
    return run


def _details(solution: Solution) -> dict[str, Any] | None:
    """What the method was told, and what it says of its run; None where it says nothing."""
    rows = [(f"option {name}", format_cell(name, value)) for name, value in solution.options.items()]
    for name, value in solution.details.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{key} ({format_cell('', item)})" for key, item in value.items())
        else:
            text = format_cell(name, value)
        rows.append((heading(name), text))
    return _for_template(Table("", ("what", "value"), tuple(rows))) if rows else None


def _facts(solution: Solution) -> Table:
    problem, words = solution.problem, solution.problem.words
    rows: list[tuple[str, str]] = []
    graph: Any = getattr(problem, "graph", None)
    if problem.graph_name and hasattr(graph, "facts"):  # no graph of ops: what it says of itself
        rows += [(words.graph, graph.name), *graph.facts(), *(("note", note) for note in graph.notes)]
    elif problem.graph_name:
        facts = graph.statistics()
        rows.append((words.graph, f"{graph.name}: {facts['ops']:,} ops, {facts['edges']:,} edges"))
        if isinstance(source := graph.metadata.get("source"), str):
            rows.append(("source", source))
        rows += [
            ("work", format_count(facts["flops"], "FLOP")),
            ("parameters", format_bytes(facts["param_bytes"])),
            ("optimiser state", format_bytes(facts["state_bytes"])),
            *(("note", note) for note in graph.notes),
        ]
    if problem.cluster_name:
        rows.append((words.cluster, f"{problem.cluster.name}: {problem.cluster.size}"))
    given = {name: value for name, value in problem.config.items() if name not in ("graph", "cluster")}
    rows += [(f"argument {name}", _told(name, value)) for name, value in given.items()]
    if problem.costs_version:
        rows.append(("version of the fitted costs", problem.costs_version))
    rows += [(f"fingerprint of {name.replace('_', ' ')}", text[:16]) for name, text in problem.fingerprints().items()]
    return Table("", ("what", "value"), tuple(rows))


def _told(name: str, value: Any) -> str:
    """An argument for people; of a large one its beginning."""
    if isinstance(value, Mapping) and set(value) == {"file", "sha256"}:
        return f"{value['file']} (sha256 {str(value['sha256'])[:12]}…)"
    if isinstance(value, Mapping) or (isinstance(value, list) and len(str(value)) > 120):
        return quoted(value, 120)
    return format_cell(name, value)


def _for_template(table: Table) -> dict[str, Any]:
    numeric = [all(not isinstance(row[index], str) for row in table.rows) for index in range(len(table.columns))]
    headings = [heading(column) for column in table.columns]
    return {"headings": headings, "cells": table.cells(), "numeric": numeric, "notes": table.notes}


def _picture(figure: Figure, *, vector: bool) -> Any:
    """A figure as markup: inline SVG, or a PNG as a data URL."""
    from markupsafe import Markup

    if vector:
        text = figure_bytes(figure, "svg").decode()
        return Markup(text[text.index("<svg") :])
    data = base64.b64encode(figure_bytes(figure, "png", dpi=100)).decode()
    return Markup(f'<img alt="timeline" src="data:image/png;base64,{data}">')


def _template() -> jinja2.Template:
    import jinja2

    folder = Path(__file__).resolve().parent
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.j2")
