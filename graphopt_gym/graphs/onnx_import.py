"""Import of an inference graph from an ONNX file. Needs the extra ``onnx``; it is imported when a function is called.

Shapes come from ``onnx.shape_inference``, node by node; ``onnx.reference`` works out on the way what follows from
shapes and constants alone, so that shapes a model computes for itself are known. Such tensors are there before the
step starts: they are folded away where they only say how to reshape or slice, and are a ``source`` otherwise. FLOPs
count a multiply-add as two and leave out biases, as the capture from torch does.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted, unknown_name
from graphopt_gym.extras import need
from graphopt_gym.files import read_file
from graphopt_gym.graphs.capture import FLOPS_PER_ELEMENT
from graphopt_gym.graphs.graph import COLUMNS, DTYPE_BYTES, DTYPES, MAX_RANK, OP_CLASSES, SOURCE, VIEW, ComputationGraph

if TYPE_CHECKING:
    import onnx

_CLASS_OF_KIND = {
    "matmul": "Gemm MatMul MatMulInteger QLinearMatMul Einsum Attention RNN LSTM GRU",
    "conv": "Conv ConvTranspose ConvInteger QLinearConv",
    "softmax": "Softmax LogSoftmax Hardmax",
    "norm": "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization "
    "LpNormalization MeanVarianceNormalization LRN",
    "pool": "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool",
    "reduction": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare ArgMax ArgMin TopK CumSum",
    "gather": "Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot",
    "copy": "Transpose Concat Pad Tile Expand Cast CastLike DepthToSpace SpaceToDepth Resize Upsample Trilu "
    "ReverseSequence ConstantOfShape EyeLike",
    "elementwise": "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor "
    "Ceil Celu Clip Cos Cosh DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not "
    "Or PRelu Pow QuantizeLinear Range Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt "
    "Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
    "view": "Reshape Squeeze Unsqueeze Flatten Identity Slice Dropout Split",
}
_CLASS = {kind: OP_CLASSES.index(name) for name, kinds in _CLASS_OF_KIND.items() for kind in kinds.split()}
_COPY, _OTHER = OP_CLASSES.index("copy"), OP_CLASSES.index("other")
# As in the capture from torch; one operation per element for the rest.
_PER_ELEMENT = {
    "Gelu": FLOPS_PER_ELEMENT["gelu"],
    "Tanh": FLOPS_PER_ELEMENT["tanh"],
    "Sigmoid": FLOPS_PER_ELEMENT["sigmoid"],
    "Swish": FLOPS_PER_ELEMENT["silu"],
}
_PER_ELEMENT_OF_CLASS = {"softmax": FLOPS_PER_ELEMENT["_softmax"], "norm": FLOPS_PER_ELEMENT["native_layer_norm"]}
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_STATIC = frozenset({"Constant", "Shape", "Size"})
_NOT_INFERRED = frozenset({"GroupNormalization", "MeanVarianceNormalization"})  # by onnx: the shape of the input
_SMALL = 65536  # elements up to which the value of a constant is worked out
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_READS_ROWS = frozenset({"Gather", "GatherElements", "GatherND"})
# types that DTYPES lacks, as one of the same size
_SAME_SIZE = {
    "uint16": "int16",
    "uint32": "int32",
    "uint64": "int64",
    "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8",
    "float8e5m2": "uint8",
    "float8e5m2fnuz": "uint8",
    "float": "float32",
    "double": "float64",
}


class _Tensor(NamedTuple):
    """A tensor's type."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


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
    Weights kept in files beside the model are not read.

    Args:
        path: the file.
        dims: sizes of symbolic dimensions, ``{"batch": 1}``; an unnamed one is called ``input:axis``, as ``"x:0"``.
        name: of the graph; the file's name without ending where left out.

    Raises:
        InputError: ``onnx`` is not installed; the file cannot be read, is not ONNX or is damaged; a dimension is
            open, or a shape cannot be inferred (all are listed); control flow, sequences or strings occur.
    """
    need("onnx", what="reading ONNX files")
    import onnx

    where = f"ONNX file {quoted(os.fspath(path))}"
    content = read_file(path, "ONNX file")
    model = _parse(content, where)
    _refuse(
        f"{where} has control flow, whose cost depends on data",
        [f"{node.op_type} {_node_name(node)}" for node in model.graph.node if node.op_type in _CONTROL_FLOW],
        "export a traced model without it",
    )
    dims = dict(dims or {})
    _bind(model.graph, dims, where)
    types = _infer_types(model)
    metadata: dict[str, Any] = {
        "source": f"ONNX file {Path(path).name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "dims": {key: int(size) for key, size in dims.items()},
        "versions": {"onnx": onnx.__version__},
    }
    if model.metadata_props:
        metadata["properties"] = {entry.key: entry.value for entry in model.metadata_props}
    return _Importer(model.graph, types, where).build(Path(path).stem if name is None else name, metadata)


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InputError(f"{where} is not an ONNX model, or is damaged or truncated ({one_line(error)})") from error
    if not (model.ir_version and model.opset_import and model.graph.node):
        lacking = [f for f in ("ir_version", "opset_import", "graph") if not getattr(model, f)] or ["nodes"]
        raise InputError(f"{where} is not an ONNX model, or is truncated: it has no {lacking[0]}")
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    for value in model.graph.output:  # the checker wants a shape; an open one will do, and is inferred later
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.add().dim_param = "?"
    try:
        if not external:  # the checker insists on opening the files beside
            onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the checker and the inliner have no common error
        raise InputError(f"{where} is not a valid ONNX model: {one_line(error)}") from error
    return model


def _bind(graph: onnx.GraphProto, dims: Mapping[str, int], where: str) -> None:
    """Writes the given sizes in place of symbolic dimensions; refuses names that do not occur, and what stays open."""
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    shapeless = [value.name for value in inputs if not value.type.tensor_type.HasField("shape")]
    _refuse(f"{where} has inputs that are not tensors of a known rank", shapeless, "export it with their shapes")
    names = {value.name: [_dim_name(value, axis) for axis in range(_rank(value))] for value in inputs}
    known = {name for row in names.values() for name in row if not name.isdigit()}
    for key, size in dims.items():
        if key not in known:
            raise unknown_name("ONNX dimension", key, known, f"(in {where})")
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InputError(f"{where}: dimension {key!r} is {size!r}; give an integer of at least 1")
    missing = sorted(known - set(dims))
    _refuse(
        f"{where} has inputs without a fixed shape",
        [f"{name}[{', '.join(row)}]" for name, row in names.items() if not set(missing).isdisjoint(row)],
        f"give the sizes: dims={{{', '.join(f'{name!r}: …' for name in missing)}}}",
    )
    for value in (*graph.input, *graph.value_info, *graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (key := _dim_name(value, axis)) in dims:
                dim.dim_value = int(dims[key])
    # open shapes that the file states for later tensors would keep inference from closing them
    for value in (*graph.value_info, *graph.output):
        if not all(_dim_name(value, axis).isdigit() for axis in range(_rank(value))):
            value.type.tensor_type.ClearField("shape")


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _dim_name(value: onnx.ValueInfoProto, axis: int) -> str:
    """The size of a dimension, its symbol, or where it has none (or a negative size) ``value:axis``."""
    dim = value.type.tensor_type.shape.dim[axis]
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return str(dim.dim_value)
    return dim.dim_param or f"{value.name}:{axis}"


def _infer_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The type of each tensor as far as it can be known; where inference gives up, what the file states."""
    import onnx.shape_inference

    graph, versions = model.graph, {entry.domain: entry.version for entry in model.opset_import}
    types = {t.name: onnx.helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}
    for value in graph.input:
        types.setdefault(value.name, value.type)
    stated = {value.name: value.type for value in (*graph.value_info, *graph.output)}
    external = onnx.TensorProto.EXTERNAL
    values = {  # small tensors whose contents are known before the step
        t.name: t for t in graph.initializer if math.prod(t.dims) <= _SMALL and t.data_location != external
    }
    for node in graph.node:
        given = {name: types[name] for name in node.input if name in types}
        found: dict[str, onnx.TypeProto] = {}
        if len(given) == len({name for name in node.input if name}):
            # an operator of another domain, or types that do not fit, are refused later, where none is stated
            with contextlib.suppress(Exception):  # of half a dozen types, for what the checker lets pass
                found = onnx.shape_inference.infer_node_outputs(
                    onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain),
                    node,
                    given,
                    {name: values[name] for name in given if name in values},
                    opset_imports=list(model.opset_import),
                    ir_version=model.ir_version,
                )
        if node.op_type in _NOT_INFERRED and node.domain == "":
            found = {node.output[0]: given[node.input[0]]} if node.input[0] in given else {}
        for name in node.output:
            kinds = [kind for kind in (found.get(name), stated.get(name)) if kind is not None]
            if kinds:
                types[name] = next((kind for kind in kinds if _shape(kind) is not None), kinds[0])
        known = node.op_type in ("Shape", "Size") or values.keys() >= {name for name in node.input if name}
        shapes = [_shape(types.get(name)) for name in node.output if name]
        small = all(shape is not None and math.prod(shape) <= _SMALL for shape in shapes)
        if known and small and node.op_type not in _RANDOM | _CONTROL_FLOW:
            values.update(_evaluate(node, given, values, versions))
    return types


def _evaluate(
    node: onnx.NodeProto,
    given: Mapping[str, onnx.TypeProto],
    values: Mapping[str, onnx.TensorProto],
    versions: Mapping[str, int],
) -> dict[str, onnx.TensorProto]:
    """The values of a node's outputs, from those of its inputs (of Shape and Size: from the input's shape)."""
    import onnx.reference

    feeds = {}
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.helper.make_value_info(name, kind) for name, kind in given.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    try:
        for name, kind in given.items():
            if name in values:
                feeds[name] = onnx.numpy_helper.to_array(values[name])
            elif (shape := _shape(kind)) is not None:
                feeds[name] = np.broadcast_to(np.float32(0), shape)  # takes no memory
        results = onnx.reference.ReferenceEvaluator(graph, opsets=dict(versions)).run(None, feeds)
        return {
            name: onnx.numpy_helper.from_array(np.asarray(result), name)
            for name, result in zip([name for name in node.output if name], results, strict=True)
        }
    except Exception:  # whatever an operator's reference raises: the value stays unknown, a shape may too
        return {}


def _shape(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """The shape of a tensor's type where all of it is fixed."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


class _Importer:
    """Turns the nodes of an ONNX graph with inferred shapes into rows and edges."""

    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, onnx.TypeProto], where: str) -> None:
        self.graph = graph
        self.types = types
        self.where = where
        self.initializers = {tensor.name for tensor in graph.initializer}
        self.weights = self.initializers | {
            node.output[0]
            for node in graph.node
            if node.op_type == "Constant" and math.prod(_shape(types.get(node.output[0])) or [1]) > 1
        }
        self.inputs = {value.name for value in graph.input} - self.initializers
        self.tensors: dict[str, _Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        self.edges: list[tuple[int, int]] = []
        self.kinds: dict[str, int] = {}
        self.modules: dict[str, int] = {}
        self.op_of: dict[str, int] = {}  # tensor name -> the op that stands for it
        self.groups = 0
        self.unmodelled: Counter[str] = Counter()

    def build(self, name: str, metadata: dict[str, Any]) -> ComputationGraph:
        sparse = [tensor.values.name for tensor in self.graph.sparse_initializer]
        _refuse(f"{self.where} has sparse initializers", sparse, "store them dense")
        live, used = self._live(self._static())
        if not live:
            raise InputError(f"{self.where} computes nothing: its outputs do not depend on its inputs")
        self._read_types(used)
        for node, reads in live:
            try:
                self._add_node(node, reads, used)
            except UNFIT as error:
                raise InputError(f"{self.where}: {node.op_type} {quoted(_node_name(node))}: {unfit(error)}") from None
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
        static = {tensor.name for tensor in self.graph.initializer if tensor.data_type in integers}
        for node in self.graph.node:
            given = {name for name in node.input if name}
            if node.op_type in _STATIC or (given and given <= static and node.op_type not in _RANDOM):
                static.update(node.output)
        return static

    def _live(self, static: set[str]) -> tuple[list[tuple[onnx.NodeProto, list[str]]], set[str]]:
        """The nodes that the outputs depend on, each with the tensors whose contents it reads, in order; and the
        tensors that are read, or are an output. A view reads its first input; the others only say how it looks.
        """
        outputs = {value.name for value in self.graph.output}
        used: set[str] = set()
        live = []
        for node in reversed(self.graph.node):
            produced = {name for name in node.output if name in used or name in outputs}
            if not produced or produced <= static:
                continue
            reads = list(dict.fromkeys(name for name in node.input if name))
            if _class_of(node) == VIEW and static.union(self.initializers).issuperset(reads[1:]):
                reads = reads[:1]
            used.update(produced, reads)
            live.append((node, reads))
        return live[::-1], used

    def _read_types(self, used: set[str]) -> None:
        """Fills ``tensors`` with the used ones; refuses what has no fixed type or shape, all at once."""
        unknown = {name for name in used if _shape(self.types.get(name)) is None}
        first = [
            f"{name} (of {node.op_type})"
            for node in self.graph.node
            if unknown.isdisjoint(node.input) or _class_of(node) == _OTHER
            for name in node.output
            if name in unknown
        ] or sorted(unknown)
        _refuse(
            f"{self.where}: {len(unknown)} shapes cannot be inferred, starting with",
            first,
            "store them in the file (value_info), or export it with fixed shapes",
        )
        for name in used:
            shape = _shape(self.types[name])
            assert shape is not None
            dtype = dtype_name(self.types[name].tensor_type.elem_type)
            self.tensors[name] = _Tensor(_SAME_SIZE.get(dtype, dtype), shape)
        _refuse(
            f"{self.where} has tensors of an unsupported type",
            [f"{name} ({t.dtype})" for name, t in sorted(self.tensors.items()) if t.dtype not in DTYPES],
            f"supported: {', '.join(DTYPES)}",
        )
        _refuse(
            f"{self.where} has tensors of more than {MAX_RANK} dimensions",
            [f"{name} {t.shape}" for name, t in sorted(self.tensors.items()) if len(t.shape) > MAX_RANK],
            "merge some of them",
        )
        _refuse(
            f"{self.where} has tensors of 2**63 bytes or more",
            [f"{name} {t.shape}" for name, t in sorted(self.tensors.items()) if t.bytes >= 2**63],
            "export it with its true shapes",
        )

    # -- ops ----------------------------------------------------------------------------------------------------

    def _add_node(self, node: onnx.NodeProto, reads: list[str], used: set[str]) -> None:
        outputs = [name for name in node.output if name in used]
        produced = [self.tensors[name] for name in outputs]
        given = [self.tensors.get(name) for name in node.input]
        op_class = _class_of(node)
        if op_class == VIEW and (len(reads) > 1 or (len(outputs) > 1 and node.op_type != "Split")):
            op_class = _COPY  # its look depends on data, or (Dropout) it makes a mask
        elif node.op_type == "Transpose" and _keeps_order(node, given[0]):
            op_class = VIEW
        flops = 0 if op_class in (VIEW, _COPY) else _flops(node, given, produced[0])
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
        label, sources = _node_name(node), [self.op_of[name] for name in reads]
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
        self, kind: str, op_class: int, tensor: _Tensor, module: str, group: int, reads: list[int], **sizes: int
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


# what comes of attributes and inputs that are not those of the operator
UNFIT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


def unfit(error: Exception) -> str:
    """What is wrong with a node, where working on it raised one of :data:`UNFIT`."""
    return str(error) if isinstance(error, InputError) else f"its attributes and inputs do not fit ({one_line(error)})"


def dtype_name(data_type: int) -> str:
    """The name of an ONNX type of elements, in small letters; its number where there is none."""
    import onnx

    known = data_type in onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(data_type).lower() if known else f"type {data_type}"


def _class_of(node: onnx.NodeProto) -> int:
    return _CLASS.get(node.op_type, _OTHER) if node.domain in ("", "ai.onnx") else _OTHER


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _keeps_order(node: onnx.NodeProto, tensor: _Tensor | None) -> bool:
    """Whether a Transpose only moves dimensions of size 1, so that the elements stay where they are."""
    assert tensor is not None
    axes = _attributes(node).get("perm", range(len(tensor.shape))[::-1])
    moved = [axis for axis in axes if tensor.shape[axis] != 1]
    return moved == sorted(moved)


def _flops(node: onnx.NodeProto, given: Sequence[_Tensor | None], out: _Tensor) -> int | None:
    """FLOPs of a node; None where its operator, or this form of it, is not known."""
    kind, op_class = node.op_type, OP_CLASSES[_class_of(node)]
    x = given[0] if given and given[0] is not None else out
    attributes = _attributes(node)
    if op_class == "gather" or kind in ("Range",):
        return 0
    if kind in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return 2 * out.elements * x.shape[-1]
    if kind == "Gemm":
        return 2 * out.elements * x.shape[0 if attributes.get("transA") else 1]
    if kind == "Einsum":
        return _einsum_flops(attributes["equation"].decode(), given)
    if kind == "Attention":  # queries by keys, then weights by values: opset 23
        keys, past = given[1], given[4] if len(given) > 4 else None
        assert keys is not None
        length = keys.shape[-2] + (past.shape[-2] if past is not None else 0)
        return 2 * (x.elements + out.elements) * length
    if kind in ("RNN", "LSTM", "GRU"):  # both weights times each step of each sequence
        return 2 * x.shape[0] * x.shape[1] * sum(w.elements for w in given[1:3] if w is not None)
    if op_class == "conv":
        weight = given[3 if kind == "QLinearConv" else 1]
        assert weight is not None
        positions = x if kind == "ConvTranspose" else out
        return 2 * positions.elements * math.prod(weight.shape[1:])
    if op_class == "pool":
        return out.elements * math.prod(attributes["kernel_shape"]) if "kernel_shape" in attributes else x.elements
    if op_class == "reduction":
        return x.elements
    if op_class in _PER_ELEMENT_OF_CLASS:
        return _PER_ELEMENT_OF_CLASS[op_class] * x.elements
    if kind in ("Sum", "Max", "Min", "Mean"):
        return max(1, len(given) - 1) * out.elements
    if op_class == "elementwise":
        return _PER_ELEMENT.get(kind, 1) * out.elements
    return None


def _einsum_flops(equation: str, given: Sequence[_Tensor | None]) -> int | None:
    """Of the plain loop over all indices; None with an ellipsis."""
    left, _, right = equation.replace(" ", "").partition("->")
    if "." in left or not right:
        return None
    sizes: dict[str, int] = {}
    for indices, tensor in zip(left.split(","), given, strict=True):
        assert tensor is not None
        sizes.update(zip(indices, tensor.shape, strict=True))
    return math.prod(sizes.values()) * (len(given) - 1 + (not set(sizes) <= set(right)))


def _node_name(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)


def _refuse(what: str, items: Sequence[str], fix: str) -> None:
    """Raises where there are any items, naming the first dozen."""
    if items:
        listed = ", ".join(items[:12]) + (f" and {len(items) - 12} more" if len(items) > 12 else "")
        raise InputError(f"{what}: {listed}; {fix}")
