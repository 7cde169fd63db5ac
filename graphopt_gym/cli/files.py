"""``graphopt report``, ``validate``, ``measure``, ``export`` and ``capture``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, GraphOption, JsonFlag
from graphopt_gym.errors import InputError


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR…", help="Solution files, or folders of them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; beside the solutions if left out.")] = None,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw solutions: a Gantt chart (PNG), a Perfetto trace and an HTML report; a folder gets one report on all."""
    from graphopt_gym.report.files import report_on

    common.check_folder(out)
    written = [file for path in paths for file in report_on(path, out, graph=graph, cluster=cluster, say=common.warn)]
    if as_json:
        common.print_json({"files": [str(path) for path in written]})
    else:
        for file in written:
            print(file)


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Solution files.")],
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Re-check solution files: build the problem again, compare fingerprints, evaluate the decision."""
    from graphopt_gym.report.units import format_cost
    from graphopt_gym.solutions import validate as check

    rows: list[dict[str, Any]] = []
    unreadable = False
    for path in paths:
        try:
            result = check(path, graph, cluster)
        except InputError as error:
            unreadable = True
            rows.append({"file": str(path), "ok": False, "mismatches": [str(error)]})
            common.warn(f"error: {error}")
            continue
        rows.append(result.row())
        if not as_json:
            cost = format_cost(result.cost, result.stored.unit)
            verdict = f"ok: {cost}" if result.ok else "FAILED: " + "; ".join(result.mismatches)
            print(f"{path}: {verdict}")
    if as_json:
        common.print_json({"ok": all(row["ok"] for row in rows), "rows": rows})
    if unreadable:
        raise typer.Exit(2)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def measure(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE|DIR…", help="Solutions of RewriteOrder-v0, or folders of them.")
    ],
    runs: Annotated[int, typer.Option("--runs", help="Most runs of each program.")] = 50,
    seconds: Annotated[float, typer.Option("--seconds", help="Most seconds of runs a solution.")] = 30.0,
    threads: Annotated[int, typer.Option("--threads", help="Threads of torch.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: without what waits for other programs of a busy machine.")
    ] = "wall",
    as_json: JsonFlag = False,
) -> None:
    """Run rewritten programs and their originals in turns on this machine's CPU: simulated beside measured gain."""
    from graphopt_gym.envs.rewrite.programs import measure_report
    from graphopt_gym.report.tables import Table

    limits = {"runs": runs, "seconds": seconds, "threads": threads, "dtype": dtype, "clock": clock}
    result = measure_report(paths, say=common.warn, **limits)
    common.show(Table.of(result), as_json)
    if not all(row["same_outputs"] for row in result["rows"]):
        raise typer.Exit(1)


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A solution of RewriteOrder-v0.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="NAME.onnx, or any other ending for the text; FILE.onnx if left out."),
    ] = None,
    graph: GraphOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the program of a solution: as ONNX with the weights of the file that it came from, or as text."""
    from graphopt_gym.envs.rewrite.programs import export_solution

    target = out or path.with_suffix(".onnx")
    common.check_file(target)
    said = export_solution(path, target, graph)
    if as_json:
        common.print_json(said)
    else:
        common.stdout().print(
            f"{said['file']}: {said['ops']} ops; weights: {said['weights']}", soft_wrap=True, markup=False
        )


def capture(
    function: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:FUNCTION", help="It returns what to capture.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The graph file; NAME.npz if left out.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Capture a training step from a torch module of yours, at true size without its memory."""
    import sys

    from graphopt_gym.cli.listing import catalog_table
    from graphopt_gym.graphs.capture import capture_from_spec
    from graphopt_gym.graphs.io import save_graph

    common.check_file(out)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: your module need not be installed
    graph = capture_from_spec(function)
    path = out or Path(f"{graph.name}.npz")
    save_graph(graph, path)
    table = catalog_table("graphs", [graph])
    if as_json:
        common.print_json({**table.to_json()["rows"][0], "file": str(path)})
    else:
        common.show(table, as_json=False)
        common.stdout().print(f"graph: {path}   place it: graphopt solve Placement-v0 --graph {path} --method heft",
                              soft_wrap=True, markup=False)  # fmt: skip
