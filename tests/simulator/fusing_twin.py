"""Fusing in plain Python, with a graph library's reachability, and a checker of fusions that knows ops alone."""

from __future__ import annotations

import networkx as nx
import numpy as np

LOOPS, PRODUCTS, ROW_WISE = {"elementwise", "copy"}, {"matmul", "conv"}, {"reduction", "softmax", "norm"}
NAMES = (
    "source", "view", "matmul", "conv", "elementwise", "reduction", "softmax", "norm", "pool", "gather", "copy",
    "optimizer", "other",
)  # fmt: skip


def elements(graph, op):
    return int(np.prod([max(1, size) for size in graph.output_shape[op] if size >= 0], dtype=np.int64))


class Ops:
    """What kernels are made of, each op with the views of what it makes: by its index, sources left out."""

    def __init__(self, graph):
        self.graph = graph
        self.root = list(range(graph.num_ops))
        for op in range(graph.num_ops):
            if NAMES[graph.op_class[op]] == "view":
                producer = next(a for a, b in zip(graph.edge_src.tolist(), graph.edge_dst.tolist()) if b == op)
                self.root[op] = self.root[producer]
        self.name = {op: NAMES[graph.op_class[op]] for op in range(graph.num_ops)}
        self.real = [op for op in range(graph.num_ops) if self.name[op] not in ("source", "view")]
        self.edges = nx.DiGraph()
        self.edges.add_nodes_from(self.real)
        self.reads = {op: set() for op in self.real}  # tensors, each named by the view or op that it is
        self.read_by = {}
        for a, b in zip(graph.edge_src.tolist(), graph.edge_dst.tolist()):
            if b in self.reads:
                tensor = self.tensor(a)
                self.reads[b].add(tensor)
                self.read_by.setdefault(tensor, set()).add(b)
                if self.name[self.root[a]] != "source":
                    self.edges.add_edge(self.root[a], b)
        self.tensors_of = {op: sorted(t for t in self.read_by if self.root[t] == op) for op in self.real}
        self.space = {
            op: max([elements(graph, op), *(elements(graph, t) for t in self.reads[op])])
            if self.name[op] in ROW_WISE
            else elements(graph, op)
            for op in self.real
        }

    def tensor(self, op):
        """The op that names what a reader of ``op`` reads: a view as large as what it views is that."""
        while self.name[op] == "view":
            producer = next(a for a, b in zip(self.graph.edge_src.tolist(), self.graph.edge_dst.tolist()) if b == op)
            if self.graph.output_bytes[op] < self.graph.output_bytes[self.tensor(producer)]:
                return op
            op = producer
        return op

    def may(self, producer, consumer):
        """Whether the two may be in one kernel, the one reading the other."""
        made, read = self.name[producer], self.name[consumer]
        if made in LOOPS:
            return read in LOOPS | ROW_WISE
        if made in PRODUCTS | ROW_WISE:
            return read in LOOPS and elements(self.graph, producer) == elements(self.graph, consumer)
        return False

    def why_not(self, members, device, most_members, most_operands):
        """What forbids a kernel of these ops, but for cycles; empty: nothing."""
        members = set(members)
        if len(members) > most_members:
            return "too many ops"
        anchors = [op for op in members if self.name[op] not in LOOPS]
        if len(anchors) > 1:
            return "two products or row-wise ops"
        inner = [(a, b) for a, b in self.edges.subgraph(members).edges]
        if not all(self.may(a, b) for a, b in inner):
            return "an op that may not go into its consumer"
        read = {t for op in members for t in self.reads[op] if self.root[t] not in members}
        written = sum(any(r not in members for r in self.read_by[t]) for op in members for t in self.tensors_of[op])
        written += sum(not self.tensors_of[op] for op in members)
        if len(read) + written > most_operands:
            return "too many operands"
        ends = [op for op in members if not any(a == op for a, _ in inner)]
        widest = max(self.space[op] for op in ends)
        for op in ends:
            if self.space[op] != widest and not (
                anchors and self.name[anchors[0]] in ROW_WISE
                and elements(self.graph, op) == elements(self.graph, anchors[0])
            ):  # fmt: skip
                return "two iteration spaces"
        if anchors and self.name[anchors[0]] in ("softmax", "norm") and device.cache_bytes:
            shape = [size for size in self.graph.output_shape[anchors[0]] if size >= 0]
            rows = elements(self.graph, anchors[0]) // max(1, shape[-1] if shape else 1)
            inside = sum(int(self.graph.output_bytes[op]) for op in members if any(a == op for a, _ in inner))
            if inside / rows * max(1, device.compute_units) > device.cache_bytes:
                return "rows that do not fit into the cache"
        return ""

    def makes_cycle(self, kernel_of):
        """Whether kernels, named for each op, read each other in a circle."""
        quotient = nx.DiGraph((kernel_of[a], kernel_of[b]) for a, b in self.edges.edges if kernel_of[a] != kernel_of[b])
        return not nx.is_directed_acyclic_graph(quotient)


def fuse(graph, cluster, device_of, level_of, most_members=64, most_operands=64):
    """{op: the kernel's name} of devices and levels by op: see ``graphopt_gym.simulator.fusing.fuse``."""
    ops = Ops(graph)
    kernel_of = {op: op for op in ops.real}
    for producer in sorted(ops.real, key=lambda op: (-level_of[op], -op)):
        consumers = sorted(ops.edges.successors(producer))
        if level_of[producer] == 0 or not consumers:
            continue
        device = cluster.devices[device_of[producer]]

        def legal(joined, device=device):
            members = [op for op in ops.real if kernel_of[op] in joined]
            if ops.why_not(members, device, most_members, most_operands):
                return False
            name = min(joined)
            return not ops.makes_cycle({op: name if one in joined else one for op, one in kernel_of.items()})

        home = kernel_of[producer]
        barred = {
            kernel_of[one] for one in consumers if not ops.may(producer, one) or device_of[one] != device_of[producer]
        }
        wanted = {kernel_of[one] for one in consumers} - barred - {home}
        wanted = {there for there in wanted if legal({home, there})}
        if wanted and legal({home, *wanted}):
            for op, one in kernel_of.items():
                if one in wanted:
                    kernel_of[op] = home
    return kernel_of


def faults(graph, cluster, placement, fusion, most_members=64, most_operands=64):
    """What is wrong with groups int [N] (-1: alone) of a placement int [N]: lines; none: they are legal."""
    ops = Ops(graph)
    group_of = {op: int(fusion[op]) if fusion[op] >= 0 else -1 - op for op in ops.real}
    found = []
    if any(fusion[op] >= 0 for op in range(graph.num_ops) if ops.name[ops.root[op]] == "source"):
        found.append("a source in a group")
    for group in sorted(set(group_of.values())):
        members = [op for op in ops.real if group_of[op] == group]
        if len({int(placement[op]) for op in members}) > 1:
            found.append(f"group {group} is on two devices")
        if len(members) > 1:
            why = ops.why_not(members, cluster.devices[placement[members[0]]], most_members, most_operands)
            found += [f"group {group}: {why}"] if why else []
    return [*found, *(["a cycle"] if ops.makes_cycle(group_of) else [])]
