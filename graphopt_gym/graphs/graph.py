"""The computation graph: immutable columns over ops, and CSR edges.

An op produces exactly one tensor. An op with several outputs is followed by zero-cost ``getitem`` ops of class
``view``, one an output that is used. Parameters and inputs are ops of class ``source``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    import networkx
    import torch_geometric.data

OP_CLASSES = (
    "source",  # parameters, inputs, constants: there when the step starts, no cost
    "view",  # metadata only (reshape, transpose, slice, getitem): no cost, stays with its producer
    "matmul",
    "conv",
    "elementwise",
    "reduction",
    "softmax",
    "norm",
    "pool",
    "gather",  # embedding look-ups and their scatters
    "copy",  # concat, pad, contiguous, cast
    "optimizer",  # the update of one parameter
    "other",
)
SOURCE, VIEW = 0, 1
PHASES = ("forward", "backward", "optimizer")
DTYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}
DTYPES = tuple(DTYPE_BYTES)
MAX_RANK = 8

# column -> (dtype, what it holds)
COLUMNS: dict[str, tuple[str, str]] = {
    "kind": ("int16", "index into `kinds`, the names of the operators"),
    "op_class": ("int8", "index into OP_CLASSES"),
    "phase": ("int8", "index into PHASES"),
    "dtype": ("int8", "index into DTYPES, of the output"),
    "output_shape": ("int64", "[N, MAX_RANK], padded with -1"),
    "flops": ("int64", "floating-point operations (a multiply-add counts as two)"),
    "bytes_read": ("int64", "bytes the op reads from its device's memory"),
    "bytes_written": ("int64", "bytes the op writes"),
    "output_bytes": ("int64", "size of the tensor that the op produces; 0 where it updates in place"),
    "param_bytes": ("int64", "parameters held by the op for the whole step (at `source` ops)"),
    "state_bytes": ("int64", "optimiser state held by the op for the whole step"),
    "module": ("int32", "index into `modules`, the paths of the modules the ops come from"),
    "colocation": ("int32", "colocation group; ops that share one belong on one device; -1: none"),
}


class ComputationGraph:
    """A directed acyclic graph of ops, in topological order, that cannot be changed.

    Args:
        name: what the graph is called.
        kinds: names of the operators that occur, e.g. ``("mm", "add")``.
        modules: paths of the modules that the ops come from, e.g. ``("", "encoder.0.attention")``.
        columns: one array an entry of :data:`COLUMNS`, each with N rows.
        edges: int array [E, 2] of (producer, consumer), producer < consumer; duplicates are merged.
        metadata: JSON-able facts: source, configuration, versions, licence, expert stages.

    Each column is an attribute (``graph.flops``: int64 [N]). Arrays are read-only.

    Raises:
        InputError: a column is missing, has the wrong length, or holds values out of range; an edge does not
            point forward (the message names a cycle where there is one); a ``view`` has no or several inputs.
    """

    name: str
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    metadata: dict[str, Any]
    kind: np.ndarray
    op_class: np.ndarray
    phase: np.ndarray
    dtype: np.ndarray
    output_shape: np.ndarray
    flops: np.ndarray
    bytes_read: np.ndarray
    bytes_written: np.ndarray
    output_bytes: np.ndarray
    param_bytes: np.ndarray
    state_bytes: np.ndarray
    module: np.ndarray
    colocation: np.ndarray
    edge_src: np.ndarray  # int32 [E], sorted by (producer, consumer)
    edge_dst: np.ndarray  # int32 [E]
    succ_ptr: np.ndarray  # int64 [N+1]: consumers of op i are edge_dst[succ_ptr[i]:succ_ptr[i+1]]
    pred_ptr: np.ndarray  # int64 [N+1]
    pred: np.ndarray  # int32 [E]: producers that op i reads are pred[pred_ptr[i]:pred_ptr[i+1]]

    def __init__(
        self,
        name: str,
        *,
        kinds: Sequence[str],
        modules: Sequence[str],
        columns: Mapping[str, Any],
        edges: Any,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.__dict__.update(name=str(name), kinds=tuple(kinds), modules=tuple(modules), metadata=dict(metadata or {}))
        n = np.size(columns.get("kind", ()))
        if n == 0 and "kind" in columns:
            raise InputError(f"graph {name!r} has no ops")
        for column, (dtype, _) in COLUMNS.items():
            if column not in columns:
                raise InputError(f"graph {name!r}: column {column!r} is missing")
            given = np.asarray(columns[column])
            shape = (n, MAX_RANK) if column == "output_shape" else (n,)
            if given.shape != shape:
                raise InputError(
                    f"graph {name!r}: column {column!r} has shape {given.shape}, expected {shape} for {n} ops"
                )
            if given.dtype.kind not in "iu":
                raise InputError(f"graph {name!r}: column {column!r} has dtype {given.dtype}, expected integers")
            self._check_range(column, given)
            self._set(column, np.array(given, dtype=dtype, order="C"))
        unknown = set(columns) - set(COLUMNS)
        if unknown:
            raise InputError(f"graph {name!r}: unknown column {sorted(unknown)[0]!r}")
        self._set_edges(n, np.asarray(edges))
        self._check_views()

    def _set(self, name: str, array: np.ndarray) -> None:
        array.flags.writeable = False
        self.__dict__[name] = array

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a ComputationGraph is immutable: cannot set {name!r}; use replace()")

    def _check_range(self, column: str, values: np.ndarray) -> None:
        """Before the cast to the column's type, so that a value too large is refused and not wrapped."""
        sizes = {
            "kind": len(self.kinds),
            "op_class": len(OP_CLASSES),
            "phase": len(PHASES),
            "dtype": len(DTYPES),
            "module": len(self.modules),
        }
        low = -1 if column in ("colocation", "output_shape") else 0
        high = sizes.get(column, np.iinfo(COLUMNS[column][0]).max + 1)
        if values.min() < low or values.max() >= high:
            op = int(np.argwhere((values < low) | (values >= high))[0][0])
            allowed = f"{low} to {high - 1}" if column in sizes else f"at least {low}, below 2**{high.bit_length() - 1}"
            raise InputError(
                f"graph {self.name!r}: column {column!r} of op {op} is {values[op].tolist()}; allowed: {allowed}"
            )
        if column == "output_shape" and ((values[:, 1:] >= 0) & (values[:, :-1] < 0)).any():
            op = int(np.argwhere((values[:, 1:] >= 0) & (values[:, :-1] < 0))[0][0])
            raise InputError(
                f"graph {self.name!r}: output_shape of op {op} is {values[op].tolist()}; pad with -1 at the end only"
            )
        if column == "output_shape":
            elements = np.maximum(values, 1).astype(np.float64).prod(axis=1)
            if elements.max() >= 2**63:
                op = int(elements.argmax())
                raise InputError(
                    f"graph {self.name!r}: output_shape of op {op} is {values[op].tolist()}: 2**63 elements or more"
                )
        if column.endswith("_bytes") and values.sum(dtype=np.float64) >= 2**63:
            raise InputError(f"graph {self.name!r}: column {column!r} adds up to 2**63 bytes or more")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a copied or unpickled array is writable again
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def _set_edges(self, n: int, edges: np.ndarray) -> None:
        if edges.size == 0:
            edges = np.zeros((0, 2), np.int64)
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
            raise InputError(f"graph {self.name!r}: edges must be integers [E, 2], got {edges.dtype} {edges.shape}")
        bad = (edges < 0) | (edges >= n)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise InputError(f"graph {self.name!r}: edge {row} is {edges[row].tolist()}, but ops are 0 to {n - 1}")
        backward = np.flatnonzero(edges[:, 0] >= edges[:, 1])
        if backward.size:
            cycle = _find_cycle(n, edges)
            if cycle:
                path = " -> ".join(self.label(op) for op in cycle[:6]) + (" -> …" if len(cycle) > 6 else "")
                raise InputError(f"graph {self.name!r} is cyclic: {path}")
            source, target = edges[backward[0]].tolist()
            raise InputError(
                f"graph {self.name!r}: ops are not in topological order: edge {self.label(source)} -> "
                f"{self.label(target)}; use ComputationGraph.sorted()"
            )
        keys = np.unique(edges[:, 0].astype(np.int64) * n + edges[:, 1].astype(np.int64))
        src, dst = keys // n, keys % n
        self._set("edge_src", src.astype(np.int32))
        self._set("edge_dst", dst.astype(np.int32))
        self._set("succ_ptr", _pointers(src, n))
        order = np.argsort(dst, kind="stable")
        self._set("pred", src[order].astype(np.int32))
        self._set("pred_ptr", _pointers(dst, n))

    def _check_views(self) -> None:
        inputs = np.diff(self.pred_ptr)
        bad = np.flatnonzero((self.op_class == VIEW) & (inputs != 1))
        if bad.size:
            op = int(bad[0])
            raise InputError(
                f"graph {self.name!r}: {self.label(op)} is a view with {inputs[op]} inputs; a view has one "
                "(use class 'copy' or 'other')"
            )
        bad = np.flatnonzero((self.op_class == SOURCE) & (inputs != 0))
        if bad.size:
            op = int(bad[0])
            raise InputError(f"graph {self.name!r}: {self.label(op)} is a source with {inputs[op]} inputs")

    @classmethod
    def sorted(
        cls,
        name: str,
        *,
        kinds: Sequence[str],
        modules: Sequence[str],
        columns: Mapping[str, Any],
        edges: Any,
        metadata: Mapping[str, Any] | None = None,
    ) -> ComputationGraph:
        """As the constructor, for ops in any order: sorts them topologically, stable in the given order."""
        edges = np.asarray(edges)
        n = np.size(columns.get("kind", ()))
        # anything malformed, and a cycle, is left for the constructor to refuse
        well_formed = edges.ndim == 2 and edges.shape[1] == 2 and edges.dtype.kind in "iu" and edges.size > 0
        if well_formed and edges.min() >= 0 and edges.max() < n and (edges[:, 0] >= edges[:, 1]).any():
            order = _topological_order(n, edges)
            if len(order) == n and all(len(np.asarray(values)) == n for values in columns.values()):
                rank = np.empty(n, np.int64)
                rank[order] = np.arange(n)
                columns = {column: np.asarray(values)[order] for column, values in columns.items()}
                edges = rank[edges]
        return cls(name, kinds=kinds, modules=modules, columns=columns, edges=edges, metadata=metadata)

    def replace(
        self,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> ComputationGraph:
        """A new graph with some columns, the name or the metadata replaced."""
        return ComputationGraph(
            self.name if name is None else name,
            kinds=self.kinds,
            modules=self.modules,
            columns={column: columns.pop(column, getattr(self, column)) for column in COLUMNS} | columns,
            edges=self.edges,
            metadata=self.metadata if metadata is None else metadata,
        )

    @property
    def num_ops(self) -> int:
        return len(self.kind)

    @property
    def num_edges(self) -> int:
        return len(self.edge_src)

    @property
    def edges(self) -> np.ndarray:
        """int32 [E, 2] of (producer, consumer)."""
        return np.stack([self.edge_src, self.edge_dst], axis=1)

    @property
    def edge_bytes(self) -> np.ndarray:
        """int64 [E]: bytes of the tensor that crosses each edge."""
        return self.output_bytes[self.edge_src]

    def successors(self, op: int | np.integer[Any]) -> np.ndarray:
        """int32: the ops that read op's tensor."""
        return self.edge_dst[self.succ_ptr[op] : self.succ_ptr[op + 1]]

    def predecessors(self, op: int | np.integer[Any]) -> np.ndarray:
        """int32: the ops whose tensors op reads."""
        return self.pred[self.pred_ptr[op] : self.pred_ptr[op + 1]]

    def shape(self, op: int | np.integer[Any]) -> tuple[int, ...]:
        """The output shape of an op, unpadded."""
        return tuple(int(size) for size in self.output_shape[op] if size >= 0)

    def label(self, op: int | np.integer[Any]) -> str:
        """A short name of an op for people: ``mm[12] encoder.0.query``."""
        module = self.modules[self.module[op]]
        return f"{self.kinds[self.kind[op]]}[{op}]" + (f" {module}" if module else "")

    @cached_property
    def view_root(self) -> np.ndarray:
        """int32 [N]: for a view, the op at the start of its chain of views; for any other op, itself."""
        root = np.arange(self.num_ops, dtype=np.int32)
        views = np.flatnonzero(self.op_class == VIEW)
        root[views] = self.pred[self.pred_ptr[views]]
        while not np.array_equal(further := root[root], root):  # pointer jumping: each round doubles the reach
            root = further
        root.flags.writeable = False
        return root

    @cached_property
    def level(self) -> np.ndarray:
        """int32 [N]: the most edges on any path that ends at the op; 0 where it reads nothing."""
        level = [0] * self.num_ops
        for source, target in zip(self.edge_src.tolist(), self.edge_dst.tolist(), strict=True):
            if level[source] >= level[target]:  # edges go by producer, so level[source] is final
                level[target] = level[source] + 1
        array = np.asarray(level, np.int32)
        array.flags.writeable = False
        return array

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a cost depends on (not the name or the metadata)."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.kinds, self.modules]).encode())
        for column in COLUMNS:
            digest.update(getattr(self, column).tobytes())
        digest.update(self.edges.tobytes())
        return digest.hexdigest()

    @property
    def notes(self) -> list[str]:
        """What a user should know before believing the graph's costs, a line each; empty where there is nothing."""
        lines = []
        missing = self.metadata.get("parameters_without_gradient")
        if missing:
            more = ", …" if missing["count"] > len(missing["names"]) else ""
            lines.append(
                f"{missing['count']} of {missing['of']} trainable parameters get no gradient and no update: the loss "
                f"does not depend on {', '.join(missing['names'])}{more}; give loss= a function of all outputs, or "
                "freeze them (requires_grad_(False))"
            )
        if self.metadata.get("autocast_off"):
            lines.append(
                "a torch.autocast('cuda') that was made before the capture was off, as torch makes it without CUDA: "
                "types may be wider than meant; make it inside forward, or use graphopt capture, which imports "
                "the model itself"
            )
        assumed = self.metadata.get("control_flow_assumed")
        if assumed:
            named = ", ".join(assumed[:6]) + ", …" * (len(assumed) > 6)
            lines.append(
                f"control flow that depends on data is assumed: {named}"
                "; --dims branch:NAME=0 or trips:NAME=8 (dims= in Python) says otherwise"
            )
        unmodelled = self.metadata.get("unmodelled_ops")
        if unmodelled:
            counts = sorted(unmodelled.items(), key=lambda item: (-item[1], item[0]))
            named, count = ", ".join(f"{kind} ×{times}" for kind, times in counts[:12]), sum(unmodelled.values())
            lines.append(
                f"{count} {'op has' if count == 1 else 'ops have'} no formula, priced by bytes and at most one FLOP an "
                f"element: {named}{', …' if len(counts) > 12 else ''}"
            )
        return lines

    def statistics(self) -> dict[str, Any]:
        """Counts and totals: ops, edges, colocation groups, depth (ops on the longest path), FLOPs, bytes, phases."""
        return {
            "name": self.name,
            "ops": self.num_ops,
            "edges": self.num_edges,
            "groups": int(len(np.unique(self.colocation[self.colocation >= 0])) + (self.colocation < 0).sum()),
            "depth": int(self.level.max()) + 1,
            "flops": int(self.flops.sum()),
            "param_bytes": int(self.param_bytes.sum()),
            "state_bytes": int(self.state_bytes.sum()),
            "output_bytes": int(self.output_bytes[self.view_root == np.arange(self.num_ops)].sum()),
            "phases": {phase: int((self.phase == code).sum()) for code, phase in enumerate(PHASES)},
        }

    def to_networkx(self) -> networkx.DiGraph:
        """A ``networkx.DiGraph``: ops 0..N-1 with their columns as attributes, edges with ``bytes``."""
        import networkx as nx

        graph = nx.DiGraph(name=self.name)
        scalars = [column for column in COLUMNS if column not in ("kind", "module", "output_shape")]
        values = {column: getattr(self, column).tolist() for column in scalars}
        for op in range(self.num_ops):
            graph.add_node(
                op,
                kind=self.kinds[self.kind[op]],
                module=self.modules[self.module[op]],
                output_shape=self.shape(op),
                **{column: values[column][op] for column in scalars},
            )
        graph.add_edges_from(
            (source, target, {"bytes": size})
            for source, target, size in zip(
                self.edge_src.tolist(), self.edge_dst.tolist(), self.edge_bytes.tolist(), strict=True
            )
        )
        return graph

    def to_pyg(self) -> torch_geometric.data.Data:
        """A PyTorch Geometric ``Data``.

        ``x`` float32 [N, F]: log1p of FLOPs, bytes read, written, output, parameters, state; one-hot op class and
        phase. ``edge_index`` int64 [2, E]; ``edge_attr`` float32 [E, 1]: log1p of the bytes that cross.
        """
        import torch
        from torch_geometric.data import Data

        x, edge_attr = self.features(), np.log1p(self.edge_bytes.astype(np.float32))[:, None]
        return Data(
            x=torch.from_numpy(x),
            edge_index=torch.from_numpy(self.edges.T.astype(np.int64)),
            edge_attr=torch.from_numpy(edge_attr),
            num_nodes=self.num_ops,
            name=self.name,
        )

    def features(self) -> np.ndarray:
        """float32 [N, F]: what an agent sees of each op, no cost model involved. See :meth:`to_pyg`."""
        sizes = ("flops", "bytes_read", "bytes_written", "output_bytes", "param_bytes", "state_bytes")
        logs = [np.log1p(getattr(self, column).astype(np.float64)) for column in sizes]
        one_hot_class = np.eye(len(OP_CLASSES), dtype=np.float32)[self.op_class]
        one_hot_phase = np.eye(len(PHASES), dtype=np.float32)[self.phase]
        return np.concatenate([np.stack(logs, 1).astype(np.float32), one_hot_class, one_hot_phase], axis=1)

    def __repr__(self) -> str:
        return f"ComputationGraph({self.name!r}, ops={self.num_ops}, edges={self.num_edges})"


def _pointers(rows: np.ndarray, n: int) -> np.ndarray:
    pointers = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n), out=pointers[1:])
    return pointers


def _topological_order(n: int, edges: np.ndarray) -> np.ndarray:
    """Kahn's algorithm, smallest index first; shorter than n where there is a cycle."""
    import heapq

    successors: list[list[int]] = [[] for _ in range(n)]
    waiting = [0] * n
    for source, target in edges.tolist():
        successors[source].append(target)
        waiting[target] += 1
    ready = [op for op in range(n) if waiting[op] == 0]
    order = []
    while ready:
        op = heapq.heappop(ready)
        order.append(op)
        for target in successors[op]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, target)
    return np.asarray(order, np.int64)


def _find_cycle(n: int, edges: np.ndarray) -> list[int]:
    """The ops of one cycle, the first one repeated at the end; empty where there is none."""
    import networkx as nx

    if len(_topological_order(n, edges)) == n:
        return []
    graph = nx.DiGraph(edges.tolist())
    cycle = nx.find_cycle(graph)
    return [edge[0] for edge in cycle] + [cycle[0][0]]
