"""Graphs by name: the shipped zoo, files of ours, ONNX files."""

from __future__ import annotations

import os
from pathlib import Path

from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.zoo.registry import INFERENCE, MEASURED, SPLITS, ZOO, graphs_in, held_out, own_cluster

__all__ = ["SPLITS", "graph_names", "graphs_in", "held_out", "load_graph", "own_cluster"]


def graph_names(*, measured: bool = False, inference: bool = False) -> list[str]:
    """Names that :func:`load_graph` takes: the zoo's, or those of the sets asked for.

    Args:
        measured: the graphs of published whole-model timings, which check the cost model.
        inference: the inference graphs, for partition over the chips of a package.
    """
    chosen = [table for table, asked in ((MEASURED, measured), (INFERENCE, inference)) if asked] or [ZOO]
    return sorted(name for table in chosen for name in table)


def load_graph(graph: str | os.PathLike[str] | ComputationGraph) -> ComputationGraph:
    """A graph by zoo name, by the path of an ``.npz`` of ours or of an ``.onnx`` file; a graph is returned as it is.

    Raises:
        InputError: no such name or file, or a file that cannot be read as a graph.
    """
    from graphopt_gym.graphs.io import read_graph

    if isinstance(graph, ComputationGraph):
        return graph
    if not isinstance(graph, str | os.PathLike):
        raise InputError(f"graph is a {type(graph).__name__}; give a name, a path or a ComputationGraph")
    name = os.fspath(graph)
    entry = ZOO.get(name) or INFERENCE.get(name) or MEASURED.get(name)
    if entry is not None:
        return read_graph(entry.path(name))
    if name in SPLITS:
        raise InputError(f"graph is {name!r}, a split of several graphs; give one of them: {', '.join(SPLITS[name])}")
    path = Path(name)
    if path.suffix not in (".npz", ".onnx") and not os.path.isfile(path):
        raise unknown_name(
            "graph", name, [*ZOO, *INFERENCE, *MEASURED, *SPLITS], "(or give the path of an .npz or .onnx file)"
        )
    if not os.path.isfile(path):
        raise InputError(f"graph file {quoted(name)} does not exist")
    if path.suffix == ".onnx":
        from graphopt_gym.graphs.onnx_import import import_onnx

        return import_onnx(path)
    return read_graph(path)
