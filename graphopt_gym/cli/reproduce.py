"""``graphopt reproduce``: run an experiment of this project again, from a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError

EXPERIMENTS = data_path().parent / "scripts" / "experiments"  # in a checkout


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",")]


def reproduce(
    table: Annotated[str | None, typer.Argument(help="Its name; left out: say which there are.")] = None,
    workers: Annotated[
        str,
        typer.Option("--workers", "-w", help="Processes; or ray, auto, or the address of a Ray cluster."),
    ] = "1",
    tables: Annotated[bool, typer.Option("--tables", help="Only the tables, of the runs that are there.")] = False,
    graphs: Annotated[str | None, typer.Option("--graphs", help="Only these, with commas between.")] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="Only these, with commas between.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Others than the table's, with commas between.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where runs are kept; otherwise out/TABLE.")] = None,
    pretrain: Annotated[bool, typer.Option("--pretrain", help="Only train what runs begin from.")] = False,
    measuring: Annotated[bool, typer.Option(help="Whether programs are timed on this machine, last.")] = True,
    ship: Annotated[bool, typer.Option("--ship", help="Only train the policy that is shipped, and write it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an experiment again and write its tables, page and curves. Ctrl-C keeps the runs that are done.

    What is done is not repeated, and several commands may share the work.
    """
    from graphopt_gym.report.tables import Table

    if not EXPERIMENTS.is_dir():
        raise InputError(f"experiments need a checkout of the project: {str(EXPERIMENTS)!r} is not there")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: more threads only wait for each other
    sys.path.insert(0, str(EXPERIMENTS.parent))
    from experiments.runner import summaries
    from experiments.runner.command import run

    if table is None:
        common.show(Table("Tables", ("table", "shows"), tuple(summaries(EXPERIMENTS).items())), as_json)
        return
    chosen: dict[str, Any] = {
        "graphs": _names(graphs),
        "methods": _names(methods),
        "seeds": _names(seeds),
        "workers": workers,
    }
    try:
        rows = run(
            EXPERIMENTS, table, out, **chosen, tables=tables, pretrain=pretrain, measuring=measuring, ship=ship
        )  # fmt: skip
    except KeyboardInterrupt:
        common.warn("interrupted: what is done is kept, and the same command goes on")
        raise typer.Exit(130) from None
    if as_json:
        common.print_json({"table": table, "rows": rows})
