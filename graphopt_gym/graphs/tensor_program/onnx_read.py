"""TensorPrograms from ONNX files. Needs the extra ``onnx``; it is imported when a function is called.

Any file that onnxruntime runs is read. Of floats (float16, bfloat16, float32, float64) are read as the language's own
operators: Add Sum Sub Mul (by a scalar: smul) Neg Div (by one constant number: smul) MatMul Gemm Conv
BatchNormalization (inference, constant parameters) Relu Tanh Sigmoid Gelu Softmax LayerNormalization (last axis)
Transpose Concat Split Slice (step 1) Gather (one index, or a run of them) MaxPool AveragePool GlobalAveragePool
ReduceMean ReduceSum Reshape Flatten Squeeze Unsqueeze Expand Identity Dropout Cast (to the same type) Clip Pow (by one
constant number) Erf Sqrt Reciprocal Exp Log Abs LeakyRelu HardSigmoid HardSwish; opsets 7 to 24. An activation after a
product is a node of its own; rules fuse it.

All else is ``opaque``: other operators, and other forms of these; control flow; whole numbers and truth values; what
depends on a shape that is found in data; what stands between DequantizeLinear and QuantizeLinear, as onnxruntime
fuses it with these. What follows from shapes and constants alone is worked out beforehand. Where it follows from an
open size (``batch``), it is opaque too, so that a rewritten file holds for other sizes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted
from graphopt_gym.extras import installed, need
from graphopt_gym.graphs.graph import DTYPE_BYTES, MAX_RANK, OP_CLASSES
from graphopt_gym.graphs.onnx.contrib import Tensor
from graphopt_gym.graphs.onnx.flatten import known_of
from graphopt_gym.graphs.onnx.front import (
    UNFIT,
    attributes_of,
    bind,
    captured,
    dtype_name,
    node_name,
    parse,
    read_model_file,
    shape_of,
    unfit,
)
from graphopt_gym.graphs.onnx.operators import SAME_SIZE, class_of, flops_of
from graphopt_gym.graphs.onnx.running import NoKernel, drawn_run, open_session, shapes_by_running
from graphopt_gym.graphs.tensor_program.ops import LARGEST, Padding, Shape, pads_of
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram

if TYPE_CHECKING:
    import onnx

OPSETS = range(7, 25)  # whose operators are read as the language's own
FLOATS = ("float", "double", "float16", "bfloat16")


class _Unsupported(InputError):
    """Why a node is opaque."""


@dataclass(frozen=True)
class Translation:
    """What one node of an ONNX graph became.

    Attributes:
        steps: the nodes of the program that it added, or that were there already, in order.
        results: output -> node of the program.
    """

    steps: tuple[int, ...]
    results: Mapping[str, int]


@dataclass
class OnnxProgram:
    """An ONNX file as a program.

    Attributes:
        program: what it computes.
        values: of the program's weights, by name; as they are in the file, or worked out from those.
        ids: tensor of the file -> node of ``program``, before dead ones were dropped.
        translations: index of a node of the file -> what it became; those of constants are left out.
        dtypes: tensor -> type of its elements, as ONNX names it in small letters.
        shapes: tensor -> shape, as far as it is known.
        sized: tensors that follow from open sizes, such as shapes.
        constants: weight of the program -> the tensor of the file that it is; others are worked out from some.
        dims: sizes of open dimensions.
    """

    program: TensorProgram
    values: dict[str, np.ndarray]
    ids: dict[str, int]
    translations: dict[int, Translation]
    dtypes: dict[str, str]
    shapes: dict[str, Shape]
    sized: set[str]
    constants: dict[str, str]
    path: Path
    dims: dict[str, int] = field(default_factory=dict)


def read_onnx(
    path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None, name: str | None = None
) -> tuple[TensorProgram, dict[str, np.ndarray]]:
    """The program of an ONNX file, and the values of its weights by name; see :func:`load_onnx`."""
    loaded = load_onnx(path, dims=dims, name=name)
    return loaded.program, loaded.values


def load_onnx(
    path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None, name: str | None = None
) -> OnnxProgram:
    """An ONNX file as a program.

    Args:
        dims: sizes of symbolic dimensions, ``{"batch": 1}``; an unnamed one is called ``input:axis``, as ``"x:0"``.
        name: of the program; the file's name without ending where left out.

    Raises:
        InputError: ``onnx`` is not installed; the file cannot be read or is damaged; a dimension is open (all are
            named); onnxruntime, where it is installed, cannot run it.
    """
    need("onnx", what="reading ONNX files")
    where = f"ONNX file {quoted(os.fspath(path))}"
    model = parse(read_model_file(path), where)
    given = dict(dims or {})
    is_open = any(
        not (dimension.HasField("dim_value") and dimension.dim_value >= 0)
        for value in model.graph.input
        for dimension in value.type.tensor_type.shape.dim
    )
    bind(model.graph, given, where)
    load_external(model, Path(path).parent, where)
    reader = _Reader(model, where, is_open)
    loaded = reader.read(name or Path(path).stem, Path(path))
    loaded.dims = given
    if installed("onnxruntime"):
        with contextlib.suppress(NoKernel):  # on another machine there may be one
            session = open_session(path, where, optimise=False)
            if reader.doubtful:
                shapes = {value.name: shape_of(value.type) or () for value in model.graph.input}
                try:
                    drawn_run(session, model, shapes, 0)
                except InputError as error:
                    raise InputError(f"{where}: {reader.doubtful[0]}; {error}") from None
    elif reader.doubtful:
        raise InputError(
            f"{where}: {reader.doubtful[0]}; where onnxruntime is installed, it is asked whether that runs"
        )
    return loaded


def output_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the outputs of an ONNX file that :func:`read_onnx` reads, in the program's order."""
    need("onnx", what="reading ONNX files")
    model = parse(read_model_file(path), f"ONNX file {quoted(os.fspath(path))}")
    return [value.name for value in model.graph.output]


def load_external(model: onnx.ModelProto, folder: Path, where: str) -> None:
    """Values that lie in files beside the model."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(folder.resolve()))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{where}: the file of its weights cannot be read: {one_line(error)}") from None


@lru_cache(maxsize=4096)
def _since(kind: str, opset: int) -> int:
    """The opset that a form of an operator is of; one beyond all where it is not known."""
    import onnx

    try:
        return int(onnx.defs.get_schema(kind, opset).since_version)
    except onnx.defs.SchemaError:
        return OPSETS[-1] + 1


class _Reader:
    def __init__(self, model: onnx.ModelProto, where: str, is_open: bool) -> None:
        self.model, self.graph, self.where, self.is_open = model, model.graph, where, is_open
        self.opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
        self.types, known = known_of(model, where)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        large = {
            node.output[0]: attribute.t
            for node in self.graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        self._known = {**large, **known, **self.initializers}
        self._arrays: dict[str, np.ndarray] = {}
        self.sized = self._sized()
        self.values: dict[str, np.ndarray] = {}
        self.ids: dict[str, int] = {}
        self.constants: dict[str, str] = {}
        self.translations: dict[int, Translation] = {}
        self.loose: set[str] = set()  # tensors whose shape, or whether they are tensors at all, depends on data
        self.doubtful: list[str] = []  # nodes whose attributes and inputs seem not to fit
        self._steps: list[int] = []
        nodes = self.graph.node
        self.quantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output} | {
            node.input[0] for node in nodes if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        }
        self.used = {name for node in nodes for name in (*node.input, *captured(node))}
        self.used |= {value.name for value in self.graph.output}
        self.produced = {name for node in nodes for name in node.output if name}

    def read(self, name: str, path: Path) -> OnnxProgram:
        self.builder = ProgramBuilder(name)
        self._run_shapes()
        for value in self.graph.input:
            if value.name not in self.initializers:
                self._input(value)
        for index, node in enumerate(self.graph.node):
            try:
                self._node(index, node)
            except UNFIT as error:
                raise InputError(f"{self.where}: {node.op_type} ({node_name(node)}): {one_line(error)}") from None
        for tensor in self.graph.sparse_initializer:
            self.ids[tensor.values.name] = self._foreign(tensor.values.name, "SparseInitializer", ())
        outputs = [self._output(value.name) for value in self.graph.output]
        program = self.builder.finish(outputs)
        weights = program.leaves("weight")
        values = {leaf: value for leaf, value in self.values.items() if leaf in weights}
        dtypes = {name: dtype_name(kind.tensor_type.elem_type) for name, kind in self.types.items()}
        shapes = {name: shape for name, kind in self.types.items() if (shape := shape_of(kind)) is not None}
        return OnnxProgram(
            program, values, self.ids, self.translations, dtypes, shapes, self.sized, self.constants, path
        )

    # -- what is known of tensors ----------------------------------------------------------------------------------

    def _sized(self) -> set[str]:
        """Tensors that follow from shapes, where sizes are open."""
        found: set[str] = set()
        for node in self.graph.node if self.is_open else ():
            kinds = [self.types[name] for name in node.input if name in self.types]
            if (node.op_type in ("Shape", "Size") and kinds) or not found.isdisjoint(node.input):
                known = [name for name in node.output if name in self._known]
                found.update(known if node.op_type not in ("Shape", "Size") else node.output)
        return found

    def _run_shapes(self) -> None:
        """Shapes of tensors that inference does not know, as they come out of a run."""
        import onnx

        names = [
            name
            for node in self.graph.node
            for name in node.output
            if name and name in self.used and shape_of(self.types.get(name)) is None
        ]
        self.loose.update(names)
        if not names or not installed("onnxruntime"):
            return
        for name, shape in shapes_by_running(self.model, names, self.where).items():
            element = self.types[name].tensor_type.elem_type if name in self.types else 0
            self.types[name] = onnx.helper.make_tensor_type_proto(element, shape)

    def is_constant(self, name: str) -> bool:
        return name in self._known

    def array(self, name: str) -> np.ndarray:
        """The value of a constant."""
        import onnx

        if name not in self._arrays:
            tensor = self._known[name]
            try:
                self._arrays[name] = onnx.numpy_helper.to_array(tensor)
            except Exception as error:  # an unknown type, or content that is not of its shape
                raise InputError(f"{self.where}: tensor {tensor.name!r} is damaged: {one_line(error)}") from None
        return self._arrays[name]

    def dtype(self, name: str) -> str:
        return dtype_name(self.types[name].tensor_type.elem_type) if name in self.types else ""

    def shape(self, name: str) -> Shape:
        """Of a tensor; of what is none, or of more dimensions than a program has, some that stand for it."""
        shape = shape_of(self.types.get(name)) or ()
        return shape if len(shape) <= MAX_RANK else (math.prod(shape[: 1 - MAX_RANK]), *shape[1 - MAX_RANK :])

    # -- leaves ----------------------------------------------------------------------------------------------------

    def _input(self, value: onnx.ValueInfoProto) -> None:
        shape = shape_of(value.type) or ()
        if 0 in shape or len(shape) > MAX_RANK:
            self.loose.add(value.name)
            self.ids[value.name] = self._foreign(value.name, "Input", ())
        else:
            self.ids[value.name] = self.builder.input(value.name, shape, _priced_as(self.dtype(value.name)))

    def _id(self, name: str) -> int:
        """The node of a tensor; a constant becomes a weight."""
        if name not in self.ids:
            if not self.is_constant(name):
                raise _Unsupported(f"tensor {name!r} is produced by no node")
            if self.dtype(name) not in FLOATS or name in self.sized or 0 in self.shape(name):
                raise _Unsupported(f"{name!r} is no constant of floats")
            self.ids[name] = self._weight(name, self.array(name))
            self.constants[self.builder.leaf_name(self.ids[name])] = name
        return self.ids[name]

    def _output(self, name: str) -> int:
        try:
            return self._id(name)
        except InputError:
            if not (name in self.types or self.is_constant(name) or name in self.produced):
                raise InputError(f"{self.where}: output {name!r} is produced by no node") from None
            self.ids[name] = self._foreign(name, "Constant", ())
            return self.ids[name]

    def _weight(self, name: str, value: np.ndarray) -> int:
        while name in self.values:
            name += "_"
        self.values[name] = value
        return self.builder.weight(name, value.shape, _priced_as(value.dtype.name))

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _node(self, index: int, node: onnx.NodeProto) -> None:
        outputs = [name for name in node.output if name]
        if outputs and all(self.is_constant(name) and name not in self.sized for name in outputs):
            return
        self._steps = []
        results = self._known_operator(node, outputs)
        if results is None:
            self._steps = []
            results = self._opaque(node, outputs)
        self.ids.update(results)
        self.translations[index] = Translation(tuple(dict.fromkeys(self._steps)), results)

    def _known_operator(self, node: onnx.NodeProto, outputs: Sequence[str]) -> dict[str, int] | None:
        """Results as the language's own operators; None where it has none for this node."""
        handler = getattr(self, f"_{node.op_type.lower()}", None)
        if (
            node.op_type not in KNOWN
            or handler is None
            or node.domain not in ("", "ai.onnx")
            or (self.opset not in OPSETS and _since(node.op_type, self.opset) not in OPSETS)
        ):
            return None
        given = [name for name in node.input if name]
        read = [name for name in given if not self.is_constant(name)]
        if any(self.dtype(name) not in FLOATS for name in (*read, *outputs[:1])):
            return None
        if not read and not self.sized.isdisjoint(given):
            return None  # else it would be worked out for this size alone
        if not (self.loose.isdisjoint(given) and self.loose.isdisjoint(outputs)):
            return None
        if not (self.quantised.isdisjoint(given) and self.quantised.isdisjoint(outputs)):
            return None
        try:
            found = handler(node, attributes_of(node))
        except _Unsupported:
            return None
        except UNFIT as error:  # a form that is not known, or damage
            self.doubtful.append(f"{node.op_type} ({node_name(node)}): {unfit(error)}")
            return None
        ids = [found] if isinstance(found, int) else found
        results = dict(zip(outputs, ids, strict=False))
        # what onnx infers is the judge of the translation
        if any(self.builder.shape(one) != shape_of(self.types.get(name)) for name, one in results.items()):
            return None
        if len({self.dtype(name) for name in (given[0], *results)}) > 1:
            return None
        return results

    def _opaque(self, node: onnx.NodeProto, outputs: Sequence[str]) -> dict[str, int]:
        given = dict.fromkeys(name for name in (*node.input, *captured(node)) if name)
        read = dict.fromkeys(self.ids[name] for name in given if name in self.ids and not self.is_constant(name))
        kept = [name for name in outputs if name in self.used] or list(outputs[:1])
        if not kept:
            return {}
        first = next((name for name in kept if 0 not in self.shape(name)), kept[0])
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        op_class, flops = self._work(node, kept)
        if op_class == "view" and (len(read) != 1 or (len(outputs) > 1 and node.op_type != "Split")):
            op_class = "copy"
        sizes = {}
        if op_class != "view":
            sizes = {"bytes_read": sum(map(self._bytes, given)), "bytes_written": sum(map(self._bytes, kept))}
            if max(flops, *sizes.values()) >= 2**63:
                raise InputError("2**63 FLOPs or bytes, or more")
            sizes["flops"] = flops
        main = self._foreign(first, kind, tuple(read), op_class=op_class, **sizes)
        results = {first: main}
        for index, name in enumerate(node.output):
            if name in kept and name != first:
                dtype = self.dtype(name) or "undefined"
                results[name] = self._op("getitem", main, index=index, shape=self.shape(name), dtype=dtype)
        found = any(name in self.loose for name in given) and node.op_type not in ("Shape", "Size")
        self.loose.update(  # a shape that a run gave holds for that run, and so does what follows from it
            name
            for name in kept
            if not self.is_constant(name)
            and (found or len(shape_of(self.types.get(name)) or ()) > MAX_RANK or 0 in self.shape(name))
        )
        return results

    def _foreign(self, name: str, kind: str, read: Sequence[int], **work: Any) -> int:
        dtype = self.dtype(name) or "undefined"
        return self._op("opaque", *read, kind=kind, name=name, shape=self.shape(name), dtype=dtype, **work)

    def _work(self, node: onnx.NodeProto, kept: Sequence[str]) -> tuple[str, int]:
        """Class and FLOPs of an operator; ``other`` and none where they are not known."""
        given = [self._tensor(name) for name in node.input]
        out = self._tensor(kept[0])
        op_class = OP_CLASSES[class_of(node)]
        if out is None or op_class in ("view", "copy"):
            return op_class, 0
        try:
            flops = flops_of(node, given, out)
        except UNFIT:
            flops = None
        return ("other", 0) if flops is None else (op_class, int(flops))

    def _tensor(self, name: str) -> Tensor | None:
        shape = shape_of(self.types.get(name)) if name else None
        dtype = self.dtype(name)
        return None if shape is None else Tensor(SAME_SIZE.get(dtype, dtype), shape)

    def _bytes(self, name: str) -> int:
        tensor = self._tensor(name)
        return 0 if tensor is None else tensor.elements * DTYPE_BYTES.get(tensor.dtype, 4)

    def _op(self, op: str, *inputs: int, **params: Any) -> int:
        made = self.builder.op(op, *inputs, **params)
        self._steps.append(made)
        return made

    def _constant_of(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        name = node.input[index] if len(node.input) > index else ""
        if name and not self.is_constant(name):
            raise _Unsupported(f"its input {name!r} is not a constant")
        return self.array(name) if name else None

    def _settled(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """A constant that a weight is worked out from: it must not follow from an open size."""
        value = self._constant_of(node, index)
        if value is None or node.input[index] in self.sized:
            raise _Unsupported("of a constant that is missing, or follows from an open size")
        return value

    def _given(self, node: onnx.NodeProto, attributes: Mapping[str, Any], name: str, index: int) -> list[int] | None:
        """Whole numbers that are an attribute in older opsets, an input in newer ones."""
        if name in attributes:
            return [int(value) for value in attributes[name]]
        value = self._constant_of(node, index)
        return None if value is None else [int(one) for one in value.reshape(-1)]

    # -- operators -------------------------------------------------------------------------------------------------

    def _unary(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op(node.op_type.lower(), self._id(node.input[0]))

    _relu = _tanh = _sigmoid = _unary

    def _gelu(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        if attributes.get("approximate", b"none") != b"none":
            raise _Unsupported("approximated by tanh")
        return self._op("gelu", self._id(node.input[0]))

    def _plain(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op(node.op_type.lower(), self._id(node.input[0]))

    _erf = _sqrt = _reciprocal = _exp = _log = _abs = _hardswish = _plain

    def _clip(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        bounds = {}
        for place, (name, ours) in enumerate((("min", "low"), ("max", "high")), start=1):
            given = self._constant_of(node, place)
            value = attributes.get(name) if given is None else float(given.reshape(()))
            if value is not None and abs(value) < LARGEST:
                bounds[ours] = _number(value)
        return self._op("clip", self._id(node.input[0]), **bounds)

    def _pow(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        exponent = self._settled(node, 1)
        if exponent.size != 1 or exponent.ndim > len(self.shape(node.input[0])):
            raise _Unsupported("by more than one exponent")
        return self._op("power", self._id(node.input[0]), exponent=_number(float(exponent.reshape(()))))

    def _leakyrelu(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op("leakyrelu", self._id(node.input[0]), alpha=_number(attributes.get("alpha", 0.01)))

    def _hardsigmoid(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        alpha, beta = _number(attributes.get("alpha", 0.2)), _number(attributes.get("beta", 0.5))
        return self._op("hardsigmoid", self._id(node.input[0]), alpha=alpha, beta=beta)

    def _identity(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._id(node.input[0])

    _cast = _identity  # to the same type; to another one it is opaque, as its output's type differs

    def _expand(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._id(node.input[0])  # to its own shape; else the output's differs

    def _dropout(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        training = self._constant_of(node, 2)
        if len([name for name in node.output if name in self.used]) > 1 or (training is not None and training.any()):
            raise _Unsupported("in training, or with its mask")
        return self._id(node.input[0])

    def _add(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op("add", self._id(node.input[0]), self._id(node.input[1]))

    def _sum(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        total, *others = (self._id(name) for name in node.input)
        for other in others:
            total = self._op("add", total, other)
        return total

    def _sub(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        if not self.is_constant(node.input[1]):
            return self._op("sub", self._id(node.input[0]), self._id(node.input[1]))
        plus = self._weight(f"{node.output[0]}_negative", np.negative(self._settled(node, 1)))
        return self._op("add", self._id(node.input[0]), plus)

    def _neg(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._scaled(self._id(node.input[0]), f"{node.output[0]}_minus", -1.0, node.output[0])

    def _mul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, y = (self._id(name) for name in node.input)
        for one, factor in ((x, y), (y, x)):
            if self.builder.shape(factor) == ():
                return self._op("smul", one, factor)
        return self._op("mul", x, y)

    def _div(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        divisor = self._settled(node, 1) if self.is_constant(node.input[1]) else None
        if divisor is None or divisor.size != 1:
            return self._op("div", x, self._id(node.input[1]))
        wide = divisor.astype(np.float64)
        with np.errstate(all="ignore"):
            factor = (1 / wide).astype(divisor.dtype)
        limits = _limits(divisor.dtype)
        if not limits[0] <= abs(float(factor.reshape(()))) <= limits[1]:
            raise _Unsupported("by a number whose reciprocal its type does not hold")
        # a divisor of more dimensions raises the rank: it stays as it is
        shape = () if divisor.ndim <= len(self.builder.shape(x)) else divisor.shape
        by = self._weight(f"{node.output[0]}_reciprocal", factor.reshape(shape))
        return self._op("mul" if shape else "smul", x, by)

    def _matmul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, y = self._id(node.input[0]), self._id(node.input[1])
        first, second = self.builder.shape(x), self.builder.shape(y)
        if len(first) > 1 and len(second) > 1:
            return self._op("matmul", x, y)
        if len(first) == 1:
            x = self._op("reshape", x, shape=(1, *first))
        if len(second) == 1:
            y = self._op("reshape", y, shape=(*second, 1))
        return self._op("reshape", self._op("matmul", x, y), shape=self.shape(node.output[0]))

    def _gemm(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, y = (self._id(name) for name in node.input[:2])
        if len(self.builder.shape(x)) != 2 or len(self.builder.shape(y)) != 2:
            raise _Unsupported("not of matrices (rank 2)")
        x = self._op("transpose", x, perm=(1, 0)) if attributes.get("transA") else x
        y = self._op("transpose", y, perm=(1, 0)) if attributes.get("transB") else y
        out = node.output[0]
        result = self._scaled(self._op("matmul", x, y), f"{out}_alpha", attributes.get("alpha", 1.0), out)
        if len(node.input) < 3 or not node.input[2]:
            return result
        bias = self._scaled(self._id(node.input[2]), f"{out}_beta", attributes.get("beta", 1.0), out)
        return self._op("add", result, bias)

    def _scaled(self, x: int, name: str, factor: float, like: str) -> int:
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.types[like].tensor_type.elem_type)
        return x if factor == 1 else self._op("smul", x, self._weight(name, np.asarray(factor, dtype)))

    def _conv(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, w = self._id(node.input[0]), self._id(node.input[1])
        size, kernel = self.builder.shape(x), self.builder.shape(w)
        if len(kernel) == 3:  # of a sequence: an image of height 1
            x = self._op("reshape", x, shape=(*size[:2], 1, size[2]))
            w = self._op("reshape", w, shape=(*kernel[:2], 1, kernel[2]))
            attributes = _as_image(attributes)
        elif len(kernel) != 4:
            raise _Unsupported("not of images or sequences")
        stride, padding = _window(attributes, self.builder.shape(w)[2:])
        result = self._op("conv2d", x, w, stride=stride, padding=padding)
        if len(kernel) == 3:
            result = self._op("reshape", result, shape=self.shape(node.output[0]))
        if len(node.input) < 3 or not node.input[2]:
            return result
        bias = self._op("reshape", self._id(node.input[2]), shape=(-1, *[1] * (len(kernel) - 2)))
        return self._op("add", result, bias)

    def _batchnormalization(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        others = [name for name in node.output[1:] if name in self.used]
        if attributes.get("training_mode") or others or not attributes.get("spatial", 1):
            raise _Unsupported("in training")
        scale, bias, mean, variance = (self._settled(node, index).astype(np.float64) for index in range(1, 5))
        x = self._id(node.input[0])
        dtype = self._settled(node, 1).dtype
        factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        shape = (-1, *[1] * (len(self.builder.shape(x)) - 2))
        by = self._weight(f"{node.output[0]}_scale", factor.astype(dtype).reshape(shape))
        plus = self._weight(f"{node.output[0]}_shift", (bias - mean * factor).astype(dtype).reshape(shape))
        return self._op("add", self._op("mul", x, by), plus)

    def _softmax(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        rank = len(self.builder.shape(x))
        axis = attributes.get("axis", -1 if self.opset >= 13 else 1)
        if self.opset < 13 and axis % rank != rank - 1:
            raise _Unsupported("over several axes at once")
        return self._op("softmax", x, axis=axis)

    def _layernormalization(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        shape = self.builder.shape(x)
        others = [name for name in node.output[1:] if name in self.used]
        if attributes.get("axis", -1) not in (-1, len(shape) - 1) or others:
            raise _Unsupported("over more than the last axis, or with its statistics")
        scale = self._id(node.input[1])
        if len(node.input) > 2 and node.input[2]:
            bias = self._id(node.input[2])
        else:
            bias = self._weight(f"{node.output[0]}_bias", np.zeros(shape[-1:], self.array(node.input[1]).dtype))
        return self._op("layernorm", x, scale, bias, epsilon=_number(attributes.get("epsilon", 1e-5)))

    def _transpose(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        return self._op("transpose", x, perm=attributes.get("perm", list(range(len(self.builder.shape(x))))[::-1]))

    def _concat(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        parts = [self._id(name) for name in node.input]
        return self._op("concat", *parts, axis=attributes["axis"]) if len(parts) > 1 else parts[0]

    def _split(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[int]:
        rest = self._id(node.input[0])
        axis = attributes.get("axis", 0) % len(self.builder.shape(rest))
        size, parts = self.builder.shape(rest)[axis], len(node.output)
        if not all(node.output):
            raise _Unsupported("with a part that is left out")
        even = -(-size // parts)
        given = self._given(node, attributes, "split", 1)
        sizes = given if given is not None else [even] * (parts - 1) + [size - even * (parts - 1)]
        results = []
        for length in sizes[:-1]:
            results.append(self._op("split0", rest, axis=axis, at=length))
            rest = self._op("split1", rest, axis=axis, at=length)
        return [*results, rest]

    def _slice(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        starts, ends = (self._given(node, attributes, name, place) for place, name in ((1, "starts"), (2, "ends")))
        axes, steps = self._given(node, attributes, "axes", 3), self._given(node, {}, "", 4)
        if starts is None or ends is None or (steps is not None and set(steps) != {1}):
            raise _Unsupported("without starts or ends, or with a step other than 1")
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            x = self._cut(x, axes[index] if axes is not None else index, start, end)
        return x

    def _cut(self, x: int, axis: int, start: int, end: int) -> int:
        shape = self.builder.shape(x)
        axis %= len(shape)
        begin, stop, _ = slice(start, end).indices(shape[axis])
        if stop < shape[axis]:
            x = self._op("split0", x, axis=axis, at=stop)
        return self._op("split1", x, axis=axis, at=begin) if begin > 0 else x

    def _gather(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, indices = self._id(node.input[0]), self._settled(node, 1)
        shape, axis = self.builder.shape(x), attributes.get("axis", 0)
        axis %= len(shape)
        flat = [int(index) % shape[axis] for index in indices.reshape(-1)]
        if not flat or flat != list(range(flat[0], flat[0] + len(flat))):
            raise _Unsupported("of what is no run of indices")
        part = self._cut(x, axis, flat[0], flat[-1] + 1)
        if indices.ndim == 1:
            return part
        return self._op("reshape", part, shape=(*shape[:axis], *indices.shape, *shape[axis + 1 :]))

    def _maxpool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._pool("maxpool", node, attributes)

    def _averagepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._pool("avgpool", node, attributes)

    def _pool(self, op: str, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        if len(self.builder.shape(x)) != 4 or any(name in self.used for name in node.output[1:]):
            raise _Unsupported("not of images (rank 4), or with indices")
        kernel = tuple(attributes["kernel_shape"])
        stride, padding = _window(attributes, kernel)
        result = self._op(op, x, kernel=kernel, stride=stride, padding=padding)
        if attributes.get("ceil_mode"):
            sizes = zip(self.builder.shape(x)[2:], kernel, stride, strict=True)
            above, left, below, right = pads_of(kernel, padding)
            around = (above + below, left + right)
            if any((size + more - k) % step for (size, k, step), more in zip(sizes, around, strict=True)):
                raise _Unsupported("ceil_mode, where it makes a difference")
        padded = any(pads_of(kernel, padding))
        if op == "avgpool" and padded and not attributes.get("count_include_pad"):
            raise _Unsupported("padding that is not counted (count_include_pad=0)")
        return result

    def _globalaveragepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        if len(self.builder.shape(x)) != 4:
            raise _Unsupported("not of images (rank 4)")
        return self._op("avgpool", x, kernel=self.builder.shape(x)[2:], padding="valid")

    def _reducemean(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, axes = self._id(node.input[0]), self._axes(node, attributes)
        shape, keepdims = self.builder.shape(x), attributes.get("keepdims", 1)
        if len(shape) == 4 and axes == [2, 3]:
            pooled = self._op("avgpool", x, kernel=shape[2:], padding="valid")
            return pooled if keepdims else self._op("reshape", pooled, shape=shape[:2])
        return self._op("reducemean", x, axes=axes, keepdims=keepdims)

    def _reducesum(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        axes, keepdims = self._axes(node, attributes), attributes.get("keepdims", 1)
        return self._op("reducesum", self._id(node.input[0]), axes=axes, keepdims=keepdims)

    def _axes(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[int]:
        axes, rank = self._given(node, attributes, "axes", 1), len(self.shape(node.input[0]))
        if not axes:
            if attributes.get("noop_with_empty_axes"):
                raise _Unsupported("of no axes")
            return list(range(rank))
        return sorted(axis % rank for axis in axes)

    def _reshape(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, target = self._id(node.input[0]), self._constant_of(node, 1)
        assert target is not None
        shape = [int(size) for size in target]
        if not attributes.get("allowzero"):
            shape = [self.builder.shape(x)[index] if size == 0 else size for index, size in enumerate(shape)]
        return self._op("reshape", x, shape=shape)

    def _flatten(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        shape, axis = self.builder.shape(x), attributes.get("axis", 1)
        return self._op("reshape", x, shape=(math.prod(shape[:axis]), math.prod(shape[axis:])))

    def _squeeze(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, axes = self._id(node.input[0]), self._given(node, attributes, "axes", 1)
        shape = self.builder.shape(x)
        gone = [i for i, size in enumerate(shape) if size == 1] if axes is None else [a % len(shape) for a in axes]
        return self._op("reshape", x, shape=[size for i, size in enumerate(shape) if i not in gone])

    def _unsqueeze(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, axes = self._id(node.input[0]), self._given(node, attributes, "axes", 1)
        assert axes is not None
        rank = len(self.builder.shape(x)) + len(axes)
        new = {axis % rank for axis in axes}
        rest = iter(self.builder.shape(x))
        return self._op("reshape", x, shape=[1 if i in new else next(rest) for i in range(rank)])


KNOWN = frozenset((
    "Add", "Sum", "Sub", "Neg", "Mul", "Div", "MatMul", "Gemm", "Conv", "BatchNormalization", "Relu", "Tanh", "Sigmoid",
    "Gelu", "Softmax", "LayerNormalization", "Transpose", "Concat", "Split", "Slice", "Gather", "MaxPool",
    "AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand",
    "Identity", "Dropout", "Cast", "Clip", "Pow", "LeakyRelu", "HardSigmoid", "HardSwish", "ReduceSum", "Erf", "Sqrt",
    "Reciprocal", "Exp", "Log", "Abs",
))  # fmt: skip


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """The least and the largest number of a type of floats that keep all its digits."""
    info: Callable[[Any], Any] = np.finfo
    if dtype.kind != "f":  # bfloat16, which numpy does not have
        import ml_dtypes

        info = ml_dtypes.finfo
    return float(info(dtype).smallest_normal), float(info(dtype).max)


def _as_image(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Of a window on a sequence, as one on an image of height 1."""
    pads = attributes.get("pads", (0, 0))
    wide = {name: (1, *attributes[name]) for name in ("strides", "dilations") if name in attributes}
    return {**attributes, "strides": (1, 1), **wide, "pads": (0, pads[0], 0, pads[1])}


def _priced_as(dtype: str) -> str:
    """A program's word for a type of elements; float32 for those that it has none for, as text."""
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return dtype if dtype in DTYPE_BYTES else "float32"


def _number(value: float) -> float:
    """A float32 of a file as the shortest number that is the same in float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _window(attributes: Mapping[str, Any], kernel: Sequence[int]) -> tuple[Shape, Padding]:
    """Stride and padding of a convolution or pooling."""
    stride = tuple(attributes.get("strides", (1, 1)))
    if any(step != 1 for step in attributes.get("dilations", ())):
        raise _Unsupported(f"dilations {tuple(attributes['dilations'])}")
    odd = all(size % 2 for size in kernel)
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    if automatic == "VALID":
        return stride, "valid"
    if automatic.startswith("SAME"):
        if not odd or set(stride) != {1}:
            raise _Unsupported(f"auto_pad {automatic} with stride {stride} and kernel {tuple(kernel)}")
        return stride, "same"
    return stride, tuple(attributes.get("pads", (0,) * 4))
