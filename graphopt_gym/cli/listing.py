"""``graphopt list``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.report.tables import Table


class What(StrEnum):
    envs = "envs"
    graphs = "graphs"
    programs = "programs"
    clusters = "clusters"
    packages = "packages"
    devices = "devices"
    methods = "methods"
    agents = "agents"


def list_things(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)],
    env: Annotated[str, typer.Option("--env", help="Whose methods.")] = "Placement-v0",
    inference: Annotated[bool, typer.Option("--inference", help="Graphs: those for partition over chips.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List environments, shipped graphs, programs, clusters, multi-chip packages, devices, methods or agents."""
    tables = {
        What.envs: env_table,
        What.graphs: lambda: zoo_table(inference=inference),
        What.programs: program_table,
        What.clusters: cluster_table,
        What.packages: package_table,
        What.devices: device_table,
        What.methods: lambda: method_table(env),
        What.agents: agent_table,
    }
    common.show(tables[what](), as_json)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *notes: str) -> Table:
    from graphopt_gym.report.tables import Table

    return Table(title, tuple(columns), tuple(map(tuple, rows)), notes)


def env_table() -> Table:
    """Environment ids and what they ask for."""
    from graphopt_gym.registration import tasks

    rows = [(env_id, one.summary) for task in tasks().values() for env_id, one in task.variants.items()]
    return _table("Environments", ["env", "summary"], rows, 'import graphopt_gym, then gym.make("Placement-v0")')


def zoo_table(*, inference: bool = False) -> Table:
    """The statistics of the shipped graphs: training steps, or the inference graphs."""
    from graphopt_gym.graphs.zoo import graph_names, load_graph

    graphs = [load_graph(name) for name in graph_names(inference=inference)]
    return graph_table(graphs, "One forward pass each." if inference else "One training step each.")


def graph_table(graphs: Sequence[ComputationGraph], note: str = "One training step each.") -> Table:
    """Statistics of graphs: a row each; ``note`` says what they are."""
    from graphopt_gym.graphs.zoo import SPLITS
    from graphopt_gym.graphs.zoo.registry import INFERENCE, ZOO

    columns = ["graph", "family", "split", "paper_cluster", "ops", "edges", "groups", "depth", "work_flops",
               "parameters_bytes", "optimiser_state_bytes", "activations_bytes", "source"]  # fmt: skip
    rows = []
    for graph in graphs:
        facts = graph.statistics()
        family, source = graph.metadata.get("family"), graph.metadata.get("source")
        entry = ZOO.get(graph.name) or INFERENCE.get(graph.name)
        split, cluster = (entry.split, entry.cluster) if entry else (None, None)
        rows.append(
            (graph.name, family, split, cluster, facts["ops"], facts["edges"], facts["groups"], facts["depth"],
             facts["flops"], facts["param_bytes"], facts["state_bytes"], facts["output_bytes"], source)
        )  # fmt: skip
    return _table(
        "Graphs",
        columns,
        rows,
        f"{note} Groups are placed together; activations: all tensors that ops produce, added up.",
        f"Split: by family; an environment takes a split's name ({', '.join(SPLITS)}) as its graph. Paper cluster: "
        "the number of devices in GO's table 1, as P100s.",
    )


def program_table() -> Table:
    """The tensor programs that can be rewritten."""
    from graphopt_gym.envs.rewrite.cost import program_cost
    from graphopt_gym.graphs.tensor_program import to_computation_graph
    from graphopt_gym.graphs.zoo.programs import PROGRAMS, load_program, program_names

    rows = []
    for name in program_names():
        program = load_program(name)
        facts, graph = program.statistics(), to_computation_graph(program).statistics()
        rows.append(
            (name, PROGRAMS[name].of, facts["nodes"], facts["computed"], facts["depth"], graph["flops"],
             graph["param_bytes"], program_cost(program), PROGRAMS[name].source)
        )  # fmt: skip
    columns = ["program", "kind", "nodes", "ops", "depth", "work_flops", "parameters_bytes", "t4_s", "source"]
    note = "For RewriteOrder-v0, as --graph. T4: the sum of operator times, simulated by the cost model."
    return _table("Programs", columns, rows, note)


def cluster_table() -> Table:
    """The catalog's clusters."""
    from graphopt_gym.hardware.cluster import cluster_names, load_cluster

    rows = []
    for name in cluster_names():
        cluster = load_cluster(name)
        devices = Counter(device.name for device in cluster.devices)
        links = Counter(link.type for link in cluster.links)
        rows.append(
            (
                name,
                ", ".join(f"{count} {device}" for device, count in devices.items()),
                len(set(cluster.hosts)),
                sum(device.memory_bytes for device in cluster.devices),
                ", ".join(f"{count} {link}" for link, count in links.items()),
                cluster.about,
            )
        )
    return _table("Clusters", ["cluster", "devices", "hosts", "memory_bytes", "links", "about"], rows)


def package_table() -> Table:
    """The catalog's multi-chip packages."""
    from graphopt_gym.hardware.package import load_package, package_names

    rows = []
    for name in package_names():
        package = load_package(name)
        kinds = Counter(chip.name for chip in package.chips)
        shape = f"{package.rows} x {package.num_chips // package.rows} mesh" if package.topology == "mesh" else "ring"
        rows.append(
            (
                name,
                ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
                shape,
                sum(chip.flops_per_s for chip in package.chips),
                sum(chip.sram_bytes for chip in package.chips),
                package.link_bytes_per_s,
                package.about,
            )
        )
    columns = ["package", "chips", "topology", "peak_flops_per_s", "memory_bytes", "link_bytes_per_s", "about"]
    return _table(
        "Packages", columns, rows, "For ChipletPartition-v0, as --cluster. The rates are chosen, not measured."
    )


def device_table() -> Table:
    """The catalog's devices, with where their numbers come from."""
    from graphopt_gym.hardware.cluster import device_names, load_device

    rows = []
    for name in device_names():
        device = load_device(name)
        sources = "; ".join(dict.fromkeys(device.sources.values()))
        rows.append(
            (name, device.kind, device.memory_bytes, device.memory_bytes_per_s, device.peak_flops["float32"], sources)
        )
    columns = ["device", "kind", "memory_bytes", "memory_bandwidth_bytes_per_s", "float32_peak_flops_per_s", "sources"]
    return _table("Devices", columns, rows)


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
    """The learned agents of the package ``graphopt_agents``, where it is installed."""
    from graphopt_gym.cli.agents import agent_rows

    return _table("Agents", ["agent", "summary", "source"], agent_rows())
