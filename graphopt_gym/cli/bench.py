"""``graphopt bench``: the project's own figures, measured on the spot."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt_gym.benchmarks import BENCHMARKS
from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.errors import unknown_name
from graphopt_gym.extras import need
from graphopt_gym.registration import tasks
from graphopt_gym.task import Benchmark, resolve


def benchmarks() -> dict[str, Benchmark]:
    """The general ones, and those of the tasks, by name."""
    return BENCHMARKS | {name: one for task in tasks().values() for name, one in task.benchmarks.items()}


def bench(
    name: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(benchmarks())}; all are named if left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a benchmark and print its table; without a name, say which there are."""
    from graphopt_gym.report.tables import Table

    known = benchmarks()
    if name is None:
        rows = tuple((key, one.shows) for key, one in known.items())
        common.show(Table("Benchmarks", ("name", "shows"), rows), as_json)
        return
    if name not in known:
        raise unknown_name("benchmark", name, known)
    need(*known[name].needs, what=f"benchmark {name!r}")
    with common.status(f"bench {name}: {known[name].shows}") as say:
        result = resolve(known[name].run)(say=say)
    if "rows" in result:
        common.show(Table.of(result), as_json)
        return
    tables = [
        Table.of({"title": title.replace("_", " "), **(one if isinstance(one, dict) else {"rows": one})})
        for title, one in result.items()
    ]
    if as_json:
        common.print_json({"title": name, "tables": [table.to_json() for table in tables]})
    else:
        for table in tables:
            common.show(table, as_json=False)
