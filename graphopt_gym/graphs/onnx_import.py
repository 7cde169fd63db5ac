"""Import of an inference graph from an ONNX file. Needs the extra ``onnx``; it is imported when a function is called.

Control flow is laid flat, and what follows from shapes and constants alone is worked out, see
:mod:`graphopt_gym.graphs.onnx.flatten`. Such tensors are there before the step starts: they are folded away where they
only say how to reshape or slice, and are a ``source`` otherwise. FLOPs count a multiply-add as two and leave out
biases, as the capture from torch does.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.extras import need
from graphopt_gym.graphs.graph import COLUMNS, DTYPES, MAX_RANK, OP_CLASSES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.graphs.onnx.contrib import Tensor
from graphopt_gym.graphs.onnx.flatten import RANDOM, FlatModel, choices_of, flatten
from graphopt_gym.graphs.onnx.front import (
    UNFIT,
    attributes_of,
    bind,
    dtype_name,
    node_name,
    parse,
    read_model_file,
    refuse,
    shape_of,
    unfit,
)
from graphopt_gym.graphs.onnx.operators import SAME_SIZE, class_of, flops_of

if TYPE_CHECKING:
    import onnx

_COPY, _OTHER = OP_CLASSES.index("copy"), OP_CLASSES.index("other")
_STATIC = frozenset({"Constant", "Shape", "Size"})
_READS_ROWS = frozenset({"Gather", "GatherElements", "GatherND", "GatherBlockQuantized"})


def import_onnx(
    path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None, name: str | None = None
) -> ComputationGraph:
    """The inference graph of an ONNX file.

    Initializers, inputs and constants are ``source`` ops, of the kinds ``parameter`` (with ``param_bytes``; also a
    Constant node of several elements, as some exporters keep weights so), ``input`` and ``constant``. Reshape,
    Squeeze, Unsqueeze, Flatten, Identity, Slice, Split and inference's Dropout are views. A node with several
    outputs that are used is followed by a ``getitem`` view for each. ``modules`` holds the names of nodes and
    tensors. A node, what views it, and the sources that it is the first to read are one colocation group. An
    operator that is not known is of class ``other``, has no FLOPs, and is counted in ``metadata["unmodelled_ops"]``.
    ``metadata["control_flow"]`` says which branches and how many rounds were taken, ``"control_flow_assumed"`` which of
    those depend on data and were not given.
    Weights kept in files beside the model are not read.

    Args:
        path: the file.
        dims: sizes of symbolic dimensions, ``{"batch": 1}``; an unnamed one is called ``input:axis``, as ``"x:0"``,
            which also tells places of one name apart. ``"trips:NAME"`` is how often the Loop of that name runs,
            ``"branch:NAME"`` which branch of that If is taken (1: then, 0: else), where the file leaves it open.
        name: of the graph; the file's name without ending where left out.

    Raises:
        InputError: ``onnx`` is not installed; the file cannot be read, is not ONNX or is damaged; a dimension is
            open, or a shape cannot be inferred (all are listed); how often a loop runs is not known, nor given; strings
            occur.
    """
    need("onnx", what="reading ONNX files")
    import onnx

    where = f"ONNX file {quoted(os.fspath(path))}"
    content = read_model_file(path)
    model = parse(content, where)
    dims = dict(dims or {})
    bind(model.graph, dims, where, choices_of(model.graph))
    sparse = [tensor.values.name for tensor in model.graph.sparse_initializer]
    refuse(f"{where} has sparse initializers", sparse, "store them dense")
    flat = flatten(model, dims, where)
    metadata: dict[str, Any] = {
        "source": f"ONNX file {Path(path).name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "dims": {key: int(size) for key, size in dims.items()},
        "versions": {"onnx": onnx.__version__},
    }
    if flat.choices:
        metadata["control_flow"] = flat.choices
    if flat.assumed:
        metadata["control_flow_assumed"] = flat.assumed
    if model.metadata_props:
        metadata["properties"] = {entry.key: entry.value for entry in model.metadata_props}
    return _Importer(flat, where).build(Path(path).stem if name is None else name, metadata)


class _Importer:
    """Turns the nodes of an ONNX graph with inferred shapes into rows and edges."""

    def __init__(self, flat: FlatModel, where: str) -> None:
        self.nodes, self.types, self.where = flat.nodes, flat.types, where
        self.initializers, self.outputs, self.inputs = flat.initializers, set(flat.outputs), set(flat.inputs)
        self.weights = (flat.initializers.keys() - flat.generated) | {
            node.output[0]
            for node in flat.nodes
            if node.op_type == "Constant" and math.prod(shape_of(flat.types.get(node.output[0])) or [1]) > 1
        }
        self.tensors: dict[str, Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        self.edges: list[tuple[int, int]] = []
        self.kinds: dict[str, int] = {}
        self.modules: dict[str, int] = {}
        self.op_of: dict[str, int] = {}  # tensor name -> the op that stands for it
        self.groups = 0
        self.unmodelled: Counter[str] = Counter()

    def build(self, name: str, metadata: dict[str, Any]) -> ComputationGraph:
        live, used = self._live(self._static())
        if not live:
            raise InputError(f"{self.where} computes nothing: its outputs do not depend on its inputs")
        self._read_types(used)
        for node, reads in live:
            try:
                self._add_node(node, reads, used)
            except UNFIT as error:
                raise InputError(f"{self.where}: {node.op_type} {quoted(node_name(node))}: {unfit(error)}") from None
        if self.unmodelled:
            metadata["unmodelled_ops"] = dict(sorted(self.unmodelled.items()))
        return ComputationGraph(
            name,
            kinds=list(self.kinds),
            modules=list(self.modules),
            columns={column: np.asarray([row.get(column, 0) for row in self.rows], np.int64) for column in COLUMNS},
            edges=np.asarray(self.edges, np.int64),
            metadata=metadata,
        )

    # -- which nodes and tensors count --------------------------------------------------------------------------

    def _static(self) -> set[str]:
        """Tensors that follow from shapes and constants alone; integer initializers count, as they index."""
        import onnx

        integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        static = {name for name, tensor in self.initializers.items() if tensor.data_type in integers}
        for node in self.nodes:
            given = {name for name in node.input if name}
            if node.op_type in _STATIC or (given and given <= static and node.op_type not in RANDOM):
                static.update(node.output)
        return static

    def _live(self, static: set[str]) -> tuple[list[tuple[onnx.NodeProto, list[str]]], set[str]]:
        """The nodes that the outputs depend on, each with the tensors whose contents it reads, in order; and the
        tensors that are read, or are an output. A view reads its first input; the others only say how it looks.
        """
        fixed = static | self.initializers.keys()
        used: set[str] = set()
        live = []
        for node in reversed(self.nodes):
            produced = {name for name in node.output if name in used or name in self.outputs}
            if not produced or produced <= static:
                continue
            reads = list(dict.fromkeys(name for name in node.input if name))
            if class_of(node) == VIEW and fixed.issuperset(reads[1:]):
                reads = reads[:1]
            used.update(produced, reads)
            live.append((node, reads))
        return live[::-1], used

    def _read_types(self, used: set[str]) -> None:
        """Fills ``tensors`` with the used ones; refuses what has no fixed type or shape, all at once."""
        unknown = {name for name in used if shape_of(self.types.get(name)) is None}
        first = [
            f"{name} (of {node.op_type})"
            for node in self.nodes
            if unknown.isdisjoint(node.input) or class_of(node) == _OTHER
            for name in node.output
            if name in unknown
        ] or sorted(unknown)
        refuse(
            f"{self.where}: {len(unknown)} shapes cannot be inferred, starting with",
            first,
            "store them in the file (value_info), or export it with fixed shapes",
        )
        for name in used:
            shape = shape_of(self.types[name])
            assert shape is not None
            dtype = dtype_name(self.types[name].tensor_type.elem_type)
            self.tensors[name] = Tensor(SAME_SIZE.get(dtype, dtype), shape)
        refuse(
            f"{self.where} has tensors of an unsupported type",
            [f"{name} ({t.dtype})" for name, t in sorted(self.tensors.items()) if t.dtype not in DTYPES],
            f"supported: {', '.join(DTYPES)}",
        )
        refuse(
            f"{self.where} has tensors of more than {MAX_RANK} dimensions",
            [f"{name} {t.shape}" for name, t in sorted(self.tensors.items()) if len(t.shape) > MAX_RANK],
            "merge some of them",
        )
        refuse(
            f"{self.where} has tensors of 2**63 bytes or more",
            [f"{name} {t.shape}" for name, t in sorted(self.tensors.items()) if t.bytes >= 2**63],
            "export it with its true shapes",
        )

    # -- ops ----------------------------------------------------------------------------------------------------

    def _add_node(self, node: onnx.NodeProto, reads: list[str], used: set[str]) -> None:
        outputs = [name for name in node.output if name in used]
        produced = [self.tensors[name] for name in outputs]
        given = [self.tensors.get(name) for name in node.input]
        op_class = class_of(node)
        if op_class == VIEW and (len(reads) > 1 or (len(outputs) > 1 and node.op_type != "Split")):
            op_class = _COPY  # its look depends on data, or (Dropout) it makes a mask
        elif node.op_type == "Transpose" and _keeps_order(node, given[0]):
            op_class = VIEW
        flops = 0 if op_class in (VIEW, _COPY) else flops_of(node, given, produced[0])
        if flops is None:
            op_class, flops = _OTHER, 0
            self.unmodelled[f"{node.domain}.{node.op_type}".lstrip(".")] += 1

        if op_class == VIEW and reads[0] in self.op_of:
            group = self.rows[self.op_of[reads[0]]]["colocation"]  # a view stays with its input
        else:
            group, self.groups = self.groups, self.groups + 1
        for name in reads:
            if name not in self.op_of:  # a source stands just before its first reader
                self._add_source(name, group)
        sizes = {}
        if op_class != VIEW:
            read_bytes = [self.tensors[name].bytes for name in reads]
            if node.op_type in _READS_ROWS:
                read_bytes[0] = min(read_bytes[0], produced[0].bytes)
            written = sum(tensor.bytes for tensor in produced)
            sizes = {"flops": flops, "bytes_read": sum(read_bytes), "bytes_written": written}
            if max(sizes.values()) >= 2**63:
                raise InputError("2**63 FLOPs or bytes, or more")
        label, sources = node_name(node), [self.op_of[name] for name in reads]
        op = self._add(node.op_type, op_class, produced[0], label, group, sources, **sizes)
        if len(outputs) == 1:
            self.op_of[outputs[0]] = op
            return
        self.rows[op]["output_bytes"] = sum(tensor.bytes for tensor in produced)
        for name, tensor in zip(outputs, produced, strict=True):
            self.op_of[name] = self._add("getitem", VIEW, tensor, label, group, [op])

    def _add_source(self, name: str, group: int) -> None:
        kind = "parameter" if name in self.weights else "input" if name in self.inputs else "constant"
        tensor = self.tensors[name]
        held = tensor.bytes if kind == "parameter" else 0
        self.op_of[name] = self._add(kind, SOURCE, tensor, name, group, [], param_bytes=held)

    def _add(
        self, kind: str, op_class: int, tensor: Tensor, module: str, group: int, reads: list[int], **sizes: int
    ) -> int:
        op = len(self.rows)
        row = {
            "kind": self.kinds.setdefault(kind, len(self.kinds)),
            "op_class": op_class,
            "dtype": DTYPES.index(tensor.dtype),
            "output_shape": [*tensor.shape, *[-1] * (MAX_RANK - len(tensor.shape))],
            "output_bytes": tensor.bytes,
            "module": self.modules.setdefault(module, len(self.modules)),
            "colocation": group,
        }
        self.rows.append(row | sizes)
        self.edges.extend((source, op) for source in reads)
        return op


def _keeps_order(node: onnx.NodeProto, tensor: Tensor | None) -> bool:
    """Whether a Transpose only moves dimensions of size 1, so that the elements stay where they are."""
    assert tensor is not None
    axes = attributes_of(node).get("perm", range(len(tensor.shape))[::-1])
    moved = [axis for axis in axes if tensor.shape[axis] != 1]
    return moved == sorted(moved)
