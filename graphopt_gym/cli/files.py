"""``graphopt report``, ``validate``, ``measure``, ``export`` and ``capture``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, DimsOption, GraphOption, JsonFlag, ProblemOption
from graphopt_gym.errors import InputError
from graphopt_gym.files import check_output, file_stem, make_folder
from graphopt_gym.registration import find_task, tasks
from graphopt_gym.task import resolve
from graphopt_gym.units import format_cost

if TYPE_CHECKING:
    from graphopt_gym.solutions import StoredSolution


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR…", help="Solution files, or folders of them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; beside the solutions if left out.")] = None,
    graph: GraphOption = None,
    dims: DimsOption = None,
    cluster: ClusterOption = None,
    problem: ProblemOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw solutions: a Gantt chart (PNG), a Perfetto trace and an HTML report; a folder gets one report on all."""
    from graphopt_gym.report.files import report_on

    graph = common.sized(graph, dims)
    if out:
        make_folder(out)
    given = {"graph": graph, "cluster": cluster, "problem_class": common.problem_class(problem), "say": common.warn}
    written = [file for path in paths for file in report_on(path, out, **given)]  # type: ignore[arg-type]
    if as_json:
        common.print_json({"files": [str(path) for path in written]})
    else:
        for file in written:
            common.say(str(file))


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Solution files.")],
    graph: GraphOption = None,
    dims: DimsOption = None,
    cluster: ClusterOption = None,
    problem: ProblemOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Re-check solution files: build the problem again, compare fingerprints, evaluate the decision."""
    from graphopt_gym.solutions import validate as check

    graph = common.sized(graph, dims)
    own = common.problem_class(problem)
    rows: list[dict[str, Any]] = []
    unreadable = False
    for path in paths:
        try:
            result = check(path, graph, cluster, own)
        except InputError as error:
            unreadable = True
            rows.append({"file": str(path), "ok": False, "mismatches": [str(error)]})
            common.warn(f"error: {error}")
            continue
        rows.append(result.row())
        if not as_json:
            cost = format_cost(result.cost, result.stored.unit)
            verdict = f"ok: {cost}" if result.ok else "FAILED: " + "; ".join(result.mismatches)
            common.say(f"{path}: {verdict}")
    if as_json:
        common.print_json({"ok": all(row["ok"] for row in rows), "rows": rows})
    if unreadable:
        raise typer.Exit(2)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def measure(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR…", help="Solutions, or folders of them.")],
    runs: Annotated[int, typer.Option("--runs", help="Most runs of each solution.")] = 50,
    seconds: Annotated[float, typer.Option("--seconds", help="Most seconds of runs a solution.")] = 30.0,
    threads: Annotated[int, typer.Option("--threads", help="Threads of each run.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: without what waits for other programs of a busy machine.")
    ] = "wall",
    as_json: JsonFlag = False,
) -> None:
    """Run what solutions decided on, beside what it was before, on this machine: simulated and measured gain."""
    from graphopt_gym.report.tables import Table
    from graphopt_gym.solutions import load_solutions

    stored = load_solutions(paths, common.warn)
    commands = {command_of("measure", solution) for solution in stored}
    if len(commands) > 1:
        raise InputError("these solutions are of several tasks; measure those of one at a time")
    limits = {"runs": runs, "seconds": seconds, "threads": threads, "dtype": dtype, "clock": clock}
    result = commands.pop()(stored, say=common.warn, **limits)
    common.show(Table.of(result), as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A solution.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file; its ending says the format. Beside FILE if left out."),
    ] = None,
    graph: GraphOption = None,
    dims: DimsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what a solution decided on as a file for other programs."""
    from graphopt_gym.solutions import load_solution

    stored = load_solution(path)
    said = command_of("export", stored)(stored, out, common.sized(graph, dims))
    if as_json:
        common.print_json(said)
    else:
        facts = "; ".join(f"{name}: {value}" for name, value in said.items() if name != "file")
        common.say(f"{said['file']}: {facts}")


def command_of(name: str, stored: StoredSolution) -> Callable[..., Any]:
    """What a command does with the solutions of a task."""
    task = find_task(stored.env_id)
    if task is None or name not in task.commands:
        others = ", ".join(other.env_id for other in tasks().values() if name in other.commands)
        raise InputError(
            f"{str(stored.path)!r} is a solution of {stored.env_id}, which has no {name}; those that have: {others}"
        )
    return resolve(task.commands[name])


def capture(
    function: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:FUNCTION", help="It returns what to capture.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The graph file; NAME.npz if left out.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Whose operators: gpu or cpu; the function's own target, else gpu, if left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Capture a training step from a torch module of yours, at true size without its memory."""
    from graphopt_gym.cli.listing import catalog_table
    from graphopt_gym.graphs.capture import CaptureWarning, capture_from_spec
    from graphopt_gym.graphs.io import save_graph

    check_output(out, inputs=(f"{function.partition(':')[0].replace('.', '/')}.py",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)  # said below, as every command says it
        graph = capture_from_spec(function, **({} if target is None else {"target": target}))
    for note in graph.notes:
        common.warn(f"{graph.name}: {note}")
    path = out or Path(f"{file_stem(graph.name)}.npz")
    save_graph(graph, path)
    table = catalog_table("graphs", [graph])
    table = replace(table, notes=tuple(note for note in table.notes if not note.startswith(f"{graph.name}: ")))
    if as_json:
        common.print_json({**table.to_json()["rows"][0], "file": str(path)})
    else:
        common.show(table, as_json=False)
        envs = [task.env_id for task in tasks().values() if task.catalogs.get("graph") == "graphs"]
        common.say(f"graph: {path}   use it: graphopt compare {'|'.join(envs)} --graph {path}")
