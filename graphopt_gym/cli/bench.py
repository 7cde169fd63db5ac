"""``graphopt bench``: the project's own figures, measured on the spot."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.errors import unknown_name
from graphopt_gym.task import resolve

# name -> (function without arguments, what it shows); it gives {"title", "columns", "rows", "notes"}, or rows by the
# title of each of several tables
BENCHMARKS = {
    "graphs": ("graphopt_gym.benchmarks.graphs:graphs_report", "milliseconds to read and to build graphs"),
    "simulator": (
        "graphopt_gym.benchmarks.simulator:simulator_report",
        "seconds an evaluation, against a plain Python twin and other simulators",
    ),
    "env": ("graphopt_gym.benchmarks.env:env_report", "steps a second of Placement-v0, scalar and vector"),
    "chiplet-env": (
        "graphopt_gym.benchmarks.env:chiplet_env_report",
        "steps a second of ChipletPartition-v0 by mode, beside the corrector alone",
    ),
    "rewrite-env": (
        "graphopt_gym.benchmarks.rewrite:rewrite_env_report",
        "steps a second of RewriteOrder-v0, scalar and vector",
    ),
    "matching": (
        "graphopt_gym.benchmarks.rewrite:matching_report",
        "matches of rewrite rules kept up to date, against searching the whole program anew",
    ),
    "saturation": (
        "graphopt_gym.benchmarks.rewrite:saturation_report",
        "e-nodes a second of equality saturation by engine, and seconds of extraction",
    ),
    "agent": (
        "graphopt_gym.benchmarks.agent:agent_report",
        "seconds and memory of the GDP network, up to 80,000 ops",
    ),
    "corrector": (
        "graphopt_gym.benchmarks.corrector:corrector_report",
        "corrections of chiplet partitions a second, beside z3 alone",
    ),
    "cost-model": (
        "graphopt_gym.hardware.validation:cost_model_report",
        "the cost model's error on kernels it was not fitted on, and on whole models",
    ),
}


def bench(
    name: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}; all are named if left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a benchmark and print its table; without a name, say which there are."""
    from graphopt_gym.report.tables import Table

    if name is None:
        rows = tuple((key, summary) for key, (_, summary) in BENCHMARKS.items())
        common.show(Table("Benchmarks", ("name", "shows"), rows), as_json)
        return
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    result = resolve(BENCHMARKS[name][0])()
    if "rows" in result:
        common.show(Table.of(result), as_json)
        return
    tables = [Table.of({"title": title.replace("_", " "), "rows": rows}) for title, rows in result.items()]
    if as_json:
        common.print_json({"title": name, "tables": [table.to_json() for table in tables]})
    else:
        for table in tables:
            common.show(table, as_json=False)
