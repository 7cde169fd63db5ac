"""``graphopt list``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.catalog import catalogs
from graphopt_gym.cli import common
from graphopt_gym.cli.common import DimsOption, JsonFlag
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.registration import env_ids, tasks

if TYPE_CHECKING:
    from graphopt_gym.report.tables import Table

WHAT = f"envs, methods, agents, {', '.join(catalogs())}; ops or edges of a graph."


def list_things(
    what: Annotated[str, typer.Argument(help=WHAT, show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE|SPLIT]...", help="Only these.", show_default=False)
    ] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Those of a split; may be repeated.")] = None,
    env: Annotated[str, typer.Option("--env", help="Whose methods.")] = env_ids()[0],
    cluster: Annotated[
        str | None, typer.Option("--cluster", "-c", help="Of ops: what they take there, by the cost model.")
    ] = None,
    dims: DimsOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List environments, methods, agents, or graphs, clusters, …: what is shipped, and what is yours.

    The ops of a graph on a cluster, and its edges, as --csv, are files of costs that can be changed and given back.
    """
    if as_csv and as_json:
        raise InputError("--csv and --json are two forms; give one")
    if cluster is not None and what != "ops":
        raise InputError(f"--cluster is {cluster!r}; only ops have costs there: graphopt list ops GRAPH --cluster …")
    if dims:
        names = common.all_sized(names or [], dims)
    tables = {"envs": env_table, "methods": lambda: method_table(env), "agents": agent_table}
    if what in catalogs():
        members = [name for one in split or [] for name in catalogs()[what].names(one)]
        table = catalog_table(what, [*(names or []), *members] or None)
    elif what in ("ops", "edges") and not split:
        if len(names or []) != 1:
            raise InputError(f"graphopt list {what} GRAPH: name one graph, or its file; got {len(names or [])}")
        assert names is not None
        table = op_table(names[0], cluster) if what == "ops" else edge_table(names[0])
    elif split:
        raise InputError(f"--split is {split[0]!r}; only {', '.join(catalogs())} have splits")
    elif what in tables:
        table = tables[what]()
        rows = {row[0]: row for row in table.rows}
        for name in names or []:
            if name not in rows:
                raise unknown_name(what.removesuffix("s"), name, rows)
        table = replace(table, rows=tuple(rows[name] for name in names or rows))
    else:
        raise unknown_name("thing to list", what, [*tables, *catalogs(), "ops", "edges"])
    if as_csv:
        common.print_csv(table)
    else:
        common.show(table, as_json)


def catalog_table(catalog: str, given: Any = None) -> Table:
    """What a catalog says of some of its things, by name, split, path or as objects; of all where nothing is given."""
    from graphopt_gym.registration import tasks

    columns, rows, notes = catalogs()[catalog].table(given)
    arguments = [(one, name) for task in tasks().values() for name, of in task.catalogs.items() if of == catalog
                 for one in task.variants]  # fmt: skip
    taken = [f"Taken by {', '.join(f'{one} as {name}' for one, name in arguments)}."] if arguments else []
    return _table(catalog.capitalize(), columns, rows, *notes, *taken)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *notes: str) -> Table:
    from graphopt_gym.report.tables import Table

    return Table(title, tuple(columns), tuple(map(tuple, rows)), notes)


def op_table(graph: str, cluster: str | None = None) -> Table:
    """The ops of a graph; on a cluster, the seconds of each on each kind of device, by the cost model."""
    from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
    from graphopt_gym.graphs.zoo import load_graph
    from graphopt_gym.hardware.cluster import load_cluster
    from graphopt_gym.hardware.cost_model import load_cost_model

    found = load_graph(graph)
    named = [(op, found.label(op)) for op in range(found.num_ops)]
    if cluster is None:
        classes = [OP_CLASSES[code] for code in found.op_class.tolist()]
        phases = [PHASES[code] for code in found.phase.tolist()]
        sizes = (found.flops, found.output_bytes, found.param_bytes, found.state_bytes)
        columns = ["op", "label", "class", "phase", "work_flops", "output_bytes", "param_bytes", "state_bytes"]
        rows = zip(classes, phases, *(one.tolist() for one in sizes), strict=True)
        return _table(f"Ops of {found.name}", columns, [(*name, *row) for name, row in zip(named, rows, strict=True)])
    devices = {device.name: device for device in load_cluster(cluster).devices}
    times = [load_cost_model().op_times(found, device).tolist() for device in devices.values()]
    note = "Seconds, by the cost model; views and sources have no kernel."
    cells = [(*name, *row) for name, row in zip(named, zip(*times, strict=True), strict=True)]
    return _table(f"Op times of {found.name}", ["op", "label", *devices], cells, note)


def edge_table(graph: str) -> Table:
    """The edges of a graph, and the bytes of what they carry."""
    from graphopt_gym.graphs.zoo import load_graph

    found = load_graph(graph)
    rows = zip(found.edge_src.tolist(), found.edge_dst.tolist(), found.edge_bytes.tolist(), strict=True)
    return _table(f"Edges of {found.name}", ["src", "dst", "bytes"], list(rows))


def env_table() -> Table:
    """Environment ids and what they ask for."""
    rows = [(env_id, one.summary) for task in tasks().values() for env_id, one in task.variants.items()]
    return _table("Environments", ["env", "summary"], rows, f"import graphopt_gym, then gym.make({rows[0][0]!r})")


def method_table(env_id: str) -> Table:
    """The methods of an environment, with their sources."""
    from graphopt_gym.search.solve import find_method, installed_methods, methods

    found = [find_method(env_id, name) for name in (*methods(env_id), *installed_methods(env_id))]
    rows = [(method.name, method.summary, method.random, method.source) for method in found]
    told = {method.name: method.options for method in found if method.options}
    notes = [
        f"Options of {name}: " + ", ".join(f"{option}={json.dumps(value)}" for option, value in options.items())
        for name, options in told.items()
    ]
    if notes:
        notes.append("An option is given as --option NAME=VALUE, or solve(…, options={name: value}).")
    return _table(f"Methods of {env_id}", ["method", "summary", "random", "source"], rows, *notes)


def agent_table() -> Table:
    """The learned agents of all installed packages."""
    from graphopt_gym.cli.agents import agent_rows

    return _table("Agents", ["agent", "environments", "summary", "cluster_if_not_named", "source"], agent_rows())
