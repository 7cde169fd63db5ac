"""Graphs by name: the shipped zoo, the user's own, files of ours, ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt_gym.catalog import Catalog
from graphopt_gym.generator import Generator
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.io import read_graph
from graphopt_gym.graphs.zoo.registry import ENTRIES, SPLITS, held_out, own_cluster

__all__ = ["GRAPHS", "SPLITS", "graph_names", "held_out", "load_graph", "own_cluster"]


def _read_onnx(path: Path, dims: Mapping[str, int] | None = None) -> ComputationGraph:
    from graphopt_gym.graphs.onnx_import import import_onnx

    return import_onnx(path, dims=dims)


def _generators() -> dict[str, type[Generator[ComputationGraph]]]:
    from graphopt_gym.graphs.random_graphs import RandomGraphs
    from graphopt_gym.graphs.variations import GraphVariations

    return {one.word: one for one in (RandomGraphs, GraphVariations)}


def _row(name: str | None, graph: ComputationGraph) -> tuple[Any, ...]:
    facts, said = graph.statistics(), graph.metadata
    entry = ENTRIES.get(name or "")
    return (said.get("family"), entry and entry.split, entry and entry.cluster, facts["ops"], facts["edges"],
            facts["groups"], facts["depth"], facts["flops"], facts["param_bytes"], facts["state_bytes"],
            facts["output_bytes"], said.get("source"))  # fmt: skip


GRAPHS = Catalog(
    "graphs",
    "graph",
    ComputationGraph,
    {".npz": read_graph, ".onnx": _read_onnx, "": read_graph},
    lambda: {name: entry.path(name) for name, entry in ENTRIES.items()},
    SPLITS,
    main="all",
    columns=("family", "split", "paper_cluster", "ops", "edges", "groups", "depth", "work_flops", "parameters_bytes",
             "optimiser_state_bytes", "activations_bytes", "source"),
    row=_row,
    notes=("One training step each, or one forward pass (inference). Groups are placed together; activations: all "
           "tensors that ops produce, added up. Split: by family. Paper cluster: the number of devices in GO's "
           "table 1, as P100s.",),
    keep=False,  # a graph's arrays are large
    sized=(".onnx",),
    generators=_generators,
)  # fmt: skip

load_graph = GRAPHS.load
graph_names = GRAPHS.names
