"""Workloads of Tarnawski et al. ("Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020).

A workload is a graph with its devices and all its costs, in one JSON file; the paper's are published, under the MIT
licence, as ``msr-fiddle/dnn-partitioning``, whose README defines the format::

    {"maxFPGAs": 3, "maxCPUs": 1, "maxSizePerFPGA": 16e9,
     "nodes": [{"id": 0, "supportedOnFpga": true, "cpuLatency": 4.5, "fpgaLatency": 0.2, "isBackwardNode": false,
                "colorClass": 7, "size": 1024.0}, ...],
     "edges": [{"sourceId": 0, "destId": 1, "cost": 0.73}, ...]}

An FPGA is any accelerator. ``colorClass`` (which may be left out) colocates, ``size`` is memory on an accelerator for
the whole run, ``cost`` the time that the source's output takes between an accelerator and the memory of the host, the
same for all edges out of a node. Other keys are let be. The format names no unit of time: one of the file is a second
here, so a period is the paper's *max-load* as it stands. (In its operator graphs times are milliseconds, and so are
costs, at 2**31 bytes a second; in its layer graphs costs are 1,000 times smaller, as if they were seconds.)

The paper's model of throughput is ``objective="throughput"`` with ``overlap=False`` and ``transfers="host"``, which a
workload therefore brings: an accelerator's load is what it computes, and what it writes to and reads from the host,
each tensor once; CPUs compute only; devices are filled from memory limits of accelerators alone. Accelerators come
first, then CPUs.
"""

from __future__ import annotations

import heapq
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.fields import needed, not_negative, number, whole
from graphopt_gym.files import parse_json, read_text
from graphopt_gym.graphs.graph import COLUMNS, DTYPES, MAX_RANK, OP_CLASSES, PHASES, ComputationGraph
from graphopt_gym.hardware.cluster import MAX_DEVICES, Cluster, Device, Link

ENDING = ".json"
LARGEST = 2**61  # bytes of a device without a limit
SAME = 1e-6  # how much costs of edges out of one node may differ, as in the paper's own reader
_TABLES = ("nodes", "edges")
_NUMBER = re.compile(r"[\d_]+$")


@dataclass(frozen=True, eq=False)
class Workload:
    """A graph of N ops, its cluster of D devices, and its costs.

    ``costs`` are arguments of :meth:`OwnCosts.of`; ``pipeline`` rules of ``objective="throughput"``; ``ids`` int64 [N]
    the file's ids of the ops, which are in topological order here; ``stored`` what a solution keeps, from which
    :func:`read_workload` makes it again.
    """

    graph: ComputationGraph
    cluster: Cluster
    costs: Mapping[str, Any]
    pipeline: Mapping[str, Any]
    ids: np.ndarray
    stored: Any


def is_workload(given: Any) -> bool:
    """Whether what is given as a graph is a workload, its content, or the path of its file."""
    if isinstance(given, str | os.PathLike):
        return Path(os.fsdecode(given)).suffix.lower() == ENDING
    return isinstance(given, Workload) or (isinstance(given, Mapping) and "nodes" in given)


def read_workload(given: Any) -> Workload:
    """A workload from the path of its file, or from its content; one that is made already stays as it is.

    Raises:
        InputError: a file that cannot be read, a field that is missing or no sensible value, an unknown id, a cycle;
            one line names the field, the value and the fix.
    """
    if isinstance(given, Workload):
        return given
    if isinstance(given, Mapping):
        return _read(given, "workload", "workload", given)
    where = f"workload {quoted(os.fsdecode(given))}"
    content = parse_json(read_text(given, "workload"), where)
    return _read(content, where, Path(os.fsdecode(given)).stem, os.fsdecode(given))


def _read(content: Any, where: str, name: str, stored: Any) -> Workload:
    if not isinstance(content, Mapping):
        raise InputError(f"{where} holds a {type(content).__name__}; give an object with 'nodes' and 'edges'")
    for table in _TABLES:
        rows = needed(where, content, table, "a list of objects")
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
            raise InputError(f"{where}: {table} is {quoted(rows, 60)}; give a list of objects")
    accelerators = _field(where, content, "maxFPGAs", "a number of accelerators", _counted)
    cpus = _field(where, content, "maxCPUs", "a number of CPUs", _counted)
    if not 1 <= accelerators + cpus <= MAX_DEVICES:
        raise InputError(
            f"{where}: maxFPGAs is {accelerators} and maxCPUs is {cpus}; give from 1 to {MAX_DEVICES} devices in all"
        )
    memory = _field(where, content, "maxSizePerFPGA", "bytes", not_negative)
    nodes, edges = content["nodes"], content["edges"]
    if not nodes:
        raise InputError(f"{where}: nodes is empty; give at least one")
    ids = [_field(f"{where}: nodes[{n}]", node, "id", "a whole number", _id) for n, node in enumerate(nodes)]
    row_of: dict[int, int] = {}
    for row, one in enumerate(ids):
        if row_of.setdefault(one, row) != row:
            raise InputError(
                f"{where}: nodes[{row}]: id is {one}, which nodes[{row_of[one]}] has too; give each its own"
            )
    cost = np.full(len(nodes), np.nan)
    pairs = []
    for n, edge in enumerate(edges):
        at = f"{where}: edges[{n}]"
        ends = [_field(at, edge, key, "the id of a node", _id) for key in ("sourceId", "destId")]
        for key, one in zip(("sourceId", "destId"), ends, strict=True):
            if one not in row_of:
                raise InputError(f"{at}: {key} is {one}, which is the id of no node; give one of the ids in nodes")
        source, target = (row_of[one] for one in ends)
        takes = _field(at, edge, "cost", "a time", not_negative)
        if abs(cost[source] - takes) > SAME:  # not where it is the first: NaN
            raise InputError(
                f"{at}: cost is {takes}, but another edge out of node {ends[0]} costs {cost[source]}; a node's output "
                "takes one time wherever it goes: give the same"
            )
        cost[source] = takes if math.isnan(cost[source]) else cost[source]
        pairs.append((source, target))
    order = _topological(where, ids, pairs)
    position = np.argsort(order)
    rows = [nodes[row] for row in order.tolist()]
    places = [f"{where}: nodes[{row}]" for row in order.tolist()]
    seconds = np.array(
        [
            [_field(w, node, "fpgaLatency", "a time", not_negative) for w, node in zip(places, rows, strict=True)],
            [_field(w, node, "cpuLatency", "a time", not_negative) for w, node in zip(places, rows, strict=True)],
        ]
    )
    supported = np.array([_flag(w, node, "supportedOnFpga") for w, node in zip(places, rows, strict=True)])
    size = np.array([_optional(w, node, "size", 0.0, not_negative) for w, node in zip(places, rows, strict=True)])
    if size.sum() >= LARGEST:
        raise InputError(f"{where}: sizes add up to {size.sum():.3g} bytes; give less than {LARGEST:.3g}")
    graph = _graph(name, where, places, rows, position[np.array(pairs, np.int64).reshape(-1, 2)])
    costs: dict[str, Any] = {
        "op_times_s": np.repeat(seconds, (accelerators, cpus), axis=0).T,
        "transfer_s": np.nan_to_num(cost)[order],
        "static_bytes": np.rint(size).astype(np.int64),
    }
    if not supported.all():
        if not cpus:
            node = int(np.flatnonzero(~supported)[0])
            raise InputError(f"{places[node]}: supportedOnFpga is false, but maxCPUs is 0; give at least one CPU")
        allowed = np.ones((len(nodes), accelerators + cpus), bool)
        allowed[~supported, :accelerators] = False
        costs["allowed_devices"] = allowed
    return Workload(
        graph,
        _cluster(accelerators, cpus, min(int(memory), LARGEST)),
        MappingProxyType(costs),
        MappingProxyType({"overlap": False, "transfers": "host"}),
        np.array(ids, np.int64)[order],
        stored,
    )


def _graph(name: str, where: str, at: list[str], rows: list[Mapping[str, Any]], edges: np.ndarray) -> ComputationGraph:
    """Ops without FLOPs or bytes of their own, named as the nodes are; a colour is a colocation group."""
    names = [str(node.get("name", f"node{node['id']}")) for node in rows]
    kinds = [_NUMBER.sub("", one.rsplit(".", 1)[-1]) or "node" for one in names]
    colours: dict[int, int] = {}
    group = np.full(len(rows), -1, np.int64)
    for op, node in enumerate(rows):
        if "colorClass" in node:
            colour = _field(at[op], node, "colorClass", "a whole number", _id)
            group[op] = colours.setdefault(colour, len(colours))
    backward = np.array([_flag(w, node, "isBackwardNode") for w, node in zip(at, rows, strict=True)])
    wrong = np.flatnonzero(backward[edges[:, 0]] & ~backward[edges[:, 1]])
    if wrong.size:
        source, target = (rows[int(op)]["id"] for op in edges[wrong[0]])
        raise InputError(f"{where}: an edge goes from backward node {source} to forward node {target}; none may")
    distinct, modules = list(dict.fromkeys(kinds)), list(dict.fromkeys(names))
    known, paths = {one: n for n, one in enumerate(distinct)}, {one: n for n, one in enumerate(modules)}
    zeros = np.zeros(len(rows), np.int64)
    columns = dict.fromkeys(COLUMNS, zeros)
    columns |= {
        "kind": np.array([known[one] for one in kinds]),
        "op_class": zeros + OP_CLASSES.index("other"),
        "phase": backward.astype(np.int64) * PHASES.index("backward"),
        "dtype": zeros + DTYPES.index("float32"),
        "output_shape": np.full((len(rows), MAX_RANK), -1),
        "module": np.array([paths[one] for one in names]),
        "colocation": group,
    }
    facts = {"source": "a workload in the format of Tarnawski et al., NeurIPS 2020"}
    return ComputationGraph(name, kinds=distinct, modules=modules, columns=columns, edges=edges, metadata=facts)


def _cluster(accelerators: int, cpus: int, memory_bytes: int) -> Cluster:
    """All costs are stated, so rates count for nothing; a wire for each pair of devices."""
    count = accelerators + cpus
    kinds = [("accelerator", max(1, memory_bytes))] * accelerators + [("cpu", LARGEST)] * cpus
    devices = tuple(Device(kind, kind, memory, 1e12, {"float32": 1e12}) for kind, memory in kinds)
    link_of = np.full((count, count), -1)
    link_of[~np.eye(count, dtype=bool)] = np.arange(count * (count - 1))
    links = tuple(Link(f"host:{n}", 0.0, 1e12, "host") for n in range(count * (count - 1)))
    about = f"{accelerators} accelerators and {cpus} CPUs of a workload, which states all times"
    return Cluster(f"{accelerators}_accelerators_{cpus}_cpus", devices, links, link_of, (0,) * count, about)


def _topological(where: str, ids: list[int], pairs: list[tuple[int, int]]) -> np.ndarray:
    """int64 [N]: rows of nodes in topological order, of those that are ready the first in the file first."""
    readers: list[list[int]] = [[] for _ in ids]
    waits = np.zeros(len(ids), np.int64)
    for source, target in set(pairs):
        readers[source].append(target)
        waits[target] += 1
    ready = np.flatnonzero(waits == 0).tolist()
    order = []
    while ready:
        row = heapq.heappop(ready)
        order.append(row)
        for reader in readers[row]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(ids):
        on = [ids[row] for row in np.flatnonzero(waits > 0).tolist()]
        raise InputError(f"{where}: edges make a cycle through, or before, node {on[0]}; leave one of its edges out")
    return np.array(order, np.int64)


def _field(where: str, table: Mapping[str, Any], key: str, what: str, check: Any) -> Any:
    return check(f"{where}: {key}", needed(where, table, key, what))


def _optional(where: str, table: Mapping[str, Any], key: str, otherwise: Any, check: Any) -> Any:
    return check(f"{where}: {key}", table[key]) if key in table else otherwise


def _id(name: str, value: Any) -> int:
    return whole(name, value, -(2**53), 2**53)


def _counted(name: str, value: Any) -> int:
    return whole(name, value, 0, MAX_DEVICES)


def _flag(where: str, table: Mapping[str, Any], key: str) -> bool:
    given = needed(where, table, key, "true or false")
    if not isinstance(given, bool) and number(f"{where}: {key}", given) not in (0, 1):
        raise InputError(f"{where}: {key} is {quoted(given)}; give true or false")
    return bool(given)
