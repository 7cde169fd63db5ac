"""``graphopt reproduce``: run a published table or an experiment of this project again, from a checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError, unknown_name

# table -> (script in a checkout, the JSON with rows that it writes, what it shows)
TABLES = {
    "placement": (
        "reproduce_placement.py",
        ("placement", "summary.json"),
        "GDP, HDP and the classical methods on the fourteen graphs of GO's table 1; some hours, resumable",
    ),
    "chiplet": (
        "reproduce_chiplet.py",
        ("chiplet", "summary.json"),
        "a policy and searches partition test networks over 36 chips through one solver; one to two hours, resumable",
    ),
    "rewrite": (
        "reproduce_rewrite.py",
        ("rewrite", "summary.json"),
        "sequential search, equality saturation, tree search and learning rewrite the networks of TENSAT's table; "
        "two hours, resumable",
    ),
    "placement-learning": (
        "train_placement.py",
        ("learning", "summary.json"),
        "PPO and MaskablePPO place three graphs, three seeds each, against random placements; about 20 minutes",
    ),
}


def reproduce(
    table: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(TABLES)}.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run an experiment again and write its table; without a name, say which there are."""
    from graphopt_gym.report.tables import Table

    if table is None:
        rows = tuple((name, summary) for name, (_, _, summary) in TABLES.items())
        common.show(Table("Tables", ("table", "shows"), rows), as_json)
        return
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    script_name, result, _ = TABLES[table]
    script = data_path().parent / "scripts" / script_name
    if not script.is_file():
        raise InputError(f"table {table!r} needs a checkout of the project: {str(script)!r} is not there")
    # the script's own words are progress where the answer is JSON
    done = subprocess.run([sys.executable, str(script)], stdout=2 if as_json else None, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    if as_json:
        common.print_json({"table": table, "rows": json.loads(data_path(*result).read_text(encoding="utf-8"))["rows"]})
