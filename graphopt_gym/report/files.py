"""The files of a report: a Gantt chart, a Perfetto trace and an HTML page, beside a solution or in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import InputError
from graphopt_gym.files import check_output, write_file
from graphopt_gym.report.gantt import figure_bytes, save_gantt
from graphopt_gym.report.html import write_html
from graphopt_gym.report.perfetto import write_trace
from graphopt_gym.solutions import load_solutions

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.problem import Problem, Solution

COMPARISON = "report.html"


def report_on(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    graph: str | os.PathLike[str] | ComputationGraph | None = None,
    cluster: str | os.PathLike[str] | Cluster | None = None,
    problem_class: type[Problem] | None = None,
    cost_model: Any = None,
    say: Callable[[str], object] = str,
) -> list[Path]:
    """Report on a solution file, or on all that lie in a folder (one page that compares them).

    Args:
        path: a solution file, or a folder of them; other JSON files in it are left out.
        out: an existing folder; beside the solutions where left out.
        graph: stands in for the stored name.
        cluster: likewise.
        problem_class: stands in for what the files say that their problem is of.
        cost_model: the one of one's own that they were solved with; a file cannot hold it.
        say: called with a line for each file that is left out or whose stored cost is no longer what comes out, and for
            each note on the graph.

    Raises:
        InputError: no solution there, solutions of several problems in one folder, or a folder that cannot be written.
    """
    path = Path(path)
    solutions: list[tuple[Path, Solution]] = []
    problems: dict[str, Problem] = {}
    for stored in load_solutions([path], say):
        file = stored.path
        key = f"{stored.env_id} {sorted(stored.config.items())}"
        if key not in problems:
            made = problems[key] = stored.make_problem(graph, cluster, problem_class, cost_model)
            for note in made.graph.notes if made.graph_name else ():
                say(f"{made.graph_name}: {note}")
        problem = problems[key]
        solution = stored.evaluate(problem)
        if solution.outcome.cost != stored.cost:
            say(f"{file}: the cost is {solution.outcome.cost!r}, the file says {stored.cost!r}; see graphopt validate")
        wrong = solution.trace and problem.check_trace(solution.decision, solution.trace)
        if wrong:
            say(f"{file}: its trace is left out: {wrong}")
            solution = replace(solution, trace=None)
        solutions.append((file, solution))
    if len(problems) > 1:
        raise InputError(f"{str(path)!r} holds solutions of {len(problems)} problems; put those of one into a folder")
    folder = Path(out) if out is not None else (path if os.path.isdir(path) else path.parent)
    if os.path.isdir(path):
        return write_comparison([(file.stem, solution) for file, solution in solutions], folder)
    for ending in (".png", ".pftrace", ".html"):
        check_output(folder / f"{path.stem}{ending}", inputs=(path, graph, cluster))
    return write_report(solutions[0][1], folder, path.stem)


def write_report(solution: Solution, folder: str | os.PathLike[str], stem: str) -> list[Path]:
    """``stem.png``, ``stem.pftrace`` and ``stem.html`` of one solution (the trace where there is one)."""
    return [*_draw(solution, Path(folder), stem), write_html([solution], Path(folder) / f"{stem}.html")]


def write_comparison(solutions: Sequence[tuple[str, Solution]], folder: str | os.PathLike[str]) -> list[Path]:
    """One page on all solutions (given with their files' stems), and the chart and the trace of the best."""
    ranked = sorted(solutions, key=lambda pair: (not pair[1].outcome.valid, pair[1].outcome.cost))
    stem, best = ranked[0]
    page = write_html([solution for _, solution in ranked], Path(folder) / COMPARISON)
    return [*_draw(best, Path(folder), stem), page]


def _draw(solution: Solution, folder: Path, stem: str) -> list[Path]:
    timeline = solution.outcome.timeline
    if timeline is None:
        figure = solution.problem.figure(solution.decision)
        content = solution.problem.trace_file(solution.decision)
        drawn = [] if figure is None else [write_file(folder / f"{stem}.png", figure_bytes(figure, "png"))]
        return drawn if content is None else [*drawn, write_file(folder / f"{stem}.pftrace", content)]
    name = f"{solution.method}: {solution.problem.title}"
    return [
        save_gantt(timeline, folder / f"{stem}.png", title=name, note="; ".join(solution.problem.notes)),
        write_trace(timeline, folder / f"{stem}.pftrace", name=solution.method),
    ]
