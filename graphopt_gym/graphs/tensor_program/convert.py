"""A TensorProgram as a ComputationGraph, so that cost models and simulators price it.

Subgraphs of weights alone are computed once, before inference: they stand as one parameter each and cost nothing
(TENSAT counts operators on weights as free too). Of the rest, ``split0``, ``split1`` and ``reshape`` are views: they
describe a part of memory, or another shape of it. ``transpose`` is a copy, as its result is laid out anew; that is what
makes every reshape a view. A fused activation adds neither time nor bytes to its matmul or convolution. An ``opaque``
operator says itself what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import COLUMNS, DTYPE_BYTES, DTYPES, MAX_RANK, OP_CLASSES, ComputationGraph
from graphopt_gym.graphs.tensor_program.ops import OPS, PARAMETRIC, PLAIN, Params, Shape
from graphopt_gym.graphs.tensor_program.program import TensorProgram

CLASS_OF = {
    "matmul": "matmul",
    "conv2d": "conv",
    "split0": "view",
    "split1": "view",
    "reshape": "view",
    "getitem": "view",
    "transpose": "copy",
    "concat": "copy",
    "enlarge": "copy",
    "merge": "copy",
    "maxpool": "pool",
    "avgpool": "pool",
    "softmax": "softmax",
    "layernorm": "norm",
    **dict.fromkeys(("add", "mul", "smul", "relu", "tanh", "sigmoid", "gelu", "sub", "div"), "elementwise"),
    **dict.fromkeys((*PLAIN, *PARAMETRIC), "elementwise"),
    **dict.fromkeys(("reducesum", "reducemean"), "reduction"),
}
_OPAQUE = list(OPS["opaque"].params)
_OP_CLASS, _FLOPS, _READ, _WRITTEN = map(_OPAQUE.index, ("op_class", "flops", "bytes_read", "bytes_written"))
_PER_ELEMENT = {
    "softmax": 5,
    "layernorm": 8,
    "gelu": 8,
    "tanh": 4,
    "sigmoid": 4,
    "erf": 8,
    "exp": 4,
    "log": 4,
    "power": 4,
}


def class_of(op: str, params: Params) -> str:
    """The class of an op, one of ``OP_CLASSES``; of leaves and constants ``view``, as they cost nothing."""
    return str(params[_OP_CLASS]) if op == "opaque" else CLASS_OF.get(op, "view")


def op_flops(op: str, params: Params, shape: Shape, inputs: Sequence[Shape]) -> int:
    """Floating-point operations of an op; a multiply-add counts as two, an activation that is fused not at all."""
    elements = math.prod(shape)
    if op == "matmul":
        return 2 * elements * inputs[0][-1]
    if op == "conv2d":
        return 2 * elements * math.prod(inputs[1][1:])
    if op in ("reducesum", "reducemean"):
        return math.prod(inputs[0])
    if op in ("maxpool", "avgpool"):
        return elements * math.prod(params[0])
    if op == "opaque":
        return int(params[_FLOPS])
    if CLASS_OF[op] in ("view", "copy"):
        return 0
    return elements * _PER_ELEMENT.get(op, 1)


class GraphRows:
    """Collects rows of a :class:`ComputationGraph`, all of one type and in the forward phase.

    Args:
        dtype: of all tensors.
        copied: (op, parameters, shape) -> how often a view's bytes are read and written, where it is none; None: all
            views are.
    """

    def __init__(self, dtype: str = "float32", copied: Callable[[str, Params, Shape], float] | None = None) -> None:
        self.copied, self.dtype, self.item_bytes = copied, DTYPES.index(dtype), DTYPE_BYTES[dtype]
        self.columns: dict[str, list[int]] = {column: [] for column in COLUMNS if column != "output_shape"}
        self.shapes: list[list[int]] = []
        self.edges: list[tuple[int, int]] = []
        self.kinds: dict[str, int] = {}

    def source(self, kind: str, shape: Shape) -> int:
        """A leaf, or the constant that a subgraph of weights becomes (kind ``parameter``)."""
        size = self.item_bytes * math.prod(shape)
        return self._add(kind, "source", shape, output_bytes=size, param_bytes=size if kind == "parameter" else 0)

    def op(self, op: str, params: Params, shape: Shape, rows: Sequence[int]) -> int:
        """An op that reads the given rows; one that it reads twice is one tensor, read once."""
        inputs = [tuple(size for size in self.shapes[row] if size >= 0) for row in rows]
        size = self.item_bytes * math.prod(shape)
        op_class, kind, written = class_of(op, params), op, size
        read = sum(self.columns["output_bytes"][row] for row in set(rows))
        if op == "opaque":
            kind, read, written = str(params[0]), params[_READ], params[_WRITTEN]
        elif op_class == "view" and self.copied is not None and (times := self.copied(op, params, shape)):
            op_class, read, written = "copy", int(times * size), int(times * size)
        row = self._add(
            kind,
            op_class,
            shape,
            output_bytes=size,
            flops=op_flops(op, params, shape, inputs),
            bytes_read=0 if op_class == "view" else read,
            bytes_written=0 if op_class == "view" else written,
        )
        self.edges.extend((source, row) for source in set(rows))
        return row

    def _add(self, kind: str, op_class: str, shape: Shape, **values: int) -> int:
        row = len(self.shapes)
        values |= {
            "kind": self.kinds.setdefault(kind, len(self.kinds)),
            "op_class": OP_CLASSES.index(op_class),
            "dtype": self.dtype,
            "colocation": -1,
        }
        for column, entries in self.columns.items():
            entries.append(values.get(column, 0))
        self.shapes.append([*shape, *[-1] * (MAX_RANK - len(shape))])
        return row

    def graph(self, name: str, metadata: dict[str, object]) -> ComputationGraph:
        try:
            columns = {column: np.asarray(entries, np.int64) for column, entries in self.columns.items()}
        except OverflowError:
            raise InputError(f"program {name!r} is too large: an operator's work or bytes pass 2^63") from None
        columns["output_shape"] = np.asarray(self.shapes, np.int64)
        return ComputationGraph(
            name,
            kinds=list(self.kinds),
            modules=[""],
            columns=columns,
            edges=np.asarray(self.edges, np.int64).reshape(-1, 2),
            metadata=metadata,
        )


def to_computation_graph(program: TensorProgram) -> ComputationGraph:
    """The graph of what a program computes at inference, ops in the program's topological order.

    ``metadata["program_nodes"]`` lists, for each op of the graph, the position in ``program.order`` that it stands for.
    """
    rows = GraphRows(program.dtype)
    row_of: dict[int, int] = {}
    stands_for = []
    for position, node in enumerate(program.order):
        op, params, inputs, shape = program.nodes[node]
        if program.is_static(node):
            read = any(not program.is_static(user) for user in program.users(node))
            if not read and node not in program.outputs:
                continue
            row_of[node] = rows.source("parameter", shape)
        elif op == "input":
            row_of[node] = rows.source("input", shape)
        else:
            row_of[node] = rows.op(op, params, shape, [row_of[source] for source in inputs])
        stands_for.append(position)
    metadata: dict[str, object] = {"source": "TensorProgram", "program_nodes": stands_for}
    return rows.graph(program.name, metadata)
