"""TensorPrograms from and to ONNX files. Needs the extra ``onnx``; it is imported when a function is called.

Read: Add Mul (by a scalar: smul) Div (by a constant scalar) MatMul Gemm Conv BatchNormalization (inference, constant
parameters) Relu Tanh Sigmoid Gelu Softmax LayerNormalization (last axis) Transpose Concat Split Slice (step 1) MaxPool
AveragePool GlobalAveragePool Reshape Flatten Squeeze Unsqueeze Constant Identity Dropout. Opsets 13 to 24. An
activation after a product is a node of its own; rules fuse it. Shapes that a model computes at run time are not read.

Written: every operator, at opset 20. A fused activation becomes a node, ``enlarge`` concats of zeros, ``merge`` a
product with zeros and ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, printable, quoted
from graphopt_gym.extras import need
from graphopt_gym.files import read_file, write_file
from graphopt_gym.graphs.onnx.front import UNFIT, attributes_of, bind, dtype_name, node_name, parse, refuse, unfit
from graphopt_gym.graphs.tensor_program.execute import LAYERNORM_EPSILON, NUMPY_OPS, random_values
from graphopt_gym.graphs.tensor_program.ops import FOREIGN, Shape, padding_of
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 25)
WRITTEN_OPSET = 20


class _Unsupported(InputError):
    """Why a node cannot be read."""


# -- reading -----------------------------------------------------------------------------------------------------------


def read_onnx(
    path: str | os.PathLike[str], *, dims: Mapping[str, int] | None = None, name: str | None = None
) -> tuple[TensorProgram, dict[str, np.ndarray]]:
    """The program of an ONNX file, and the values of its weights by name.

    Args:
        dims: sizes of symbolic dimensions, ``{"batch": 1}``.
        name: of the program; the file's name without ending where left out.

    Raises:
        InputError: ``onnx`` is not installed; the file cannot be read or is damaged; its opset is not one of
            :data:`OPSETS`; it has operators, or forms of them, that a TensorProgram has not (all are listed).
    """
    need("onnx", what="reading ONNX files")
    where = f"ONNX file {quoted(os.fspath(path))}"
    content = read_file(path, "ONNX file")
    model = parse(content, where)
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    opset = versions.get("ai.onnx", 0)
    if opset not in OPSETS:
        raise InputError(
            f"{where} has opset {opset}; supported are {OPSETS[0]} to {OPSETS[-1]}; convert it with "
            "onnx.version_converter"
        )
    bind(model.graph, dict(dims or {}), where)
    _load_external(model, Path(path).parent, where)
    return _Reader(model.graph, where).read(name or Path(path).stem)


def output_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the outputs of an ONNX file that :func:`read_onnx` reads, in the program's order."""
    need("onnx", what="reading ONNX files")
    model = parse(read_file(path, "ONNX file"), f"ONNX file {quoted(os.fspath(path))}")
    return [value.name for value in model.graph.output]


def _load_external(model: onnx.ModelProto, folder: Path, where: str) -> None:
    """Values that lie in files beside the model."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(folder.resolve()))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{where}: the file of its weights cannot be read: {one_line(error)}") from None


class _Reader:
    def __init__(self, graph: onnx.GraphProto, where: str) -> None:
        self.graph, self.where = graph, where
        self.values: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}  # initializers and constants; they become weights when read
        self.ids: dict[str, int] = {}
        self.problems: list[str] = []

    def read(self, name: str) -> tuple[TensorProgram, dict[str, np.ndarray]]:

        self.builder = ProgramBuilder(name)
        for tensor in self.graph.initializer:
            self.constants[tensor.name] = self._array(tensor)
        for value in self.graph.input:
            if value.name not in self.constants:
                self._read_input(value)
        for node in self.graph.node:
            self._read_node(node)
        refuse(
            f"{self.where} has what a TensorProgram has not",
            self.problems if len(self.problems) <= 12 else self._summary(),
            "rewrite those parts before exporting",
        )
        outputs = [self._id(value.name) for value in self.graph.output]
        program = self.builder.finish(outputs)
        weights = program.leaves("weight")
        return program, {leaf: value for leaf, value in self.values.items() if leaf in weights}

    def _array(self, tensor: onnx.TensorProto) -> np.ndarray:
        import onnx

        try:
            return onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # an unknown type, or content that is not of its shape
            raise InputError(f"{self.where}: tensor {tensor.name!r} is damaged: {one_line(error)}") from None

    def _read_input(self, value: onnx.ValueInfoProto) -> None:
        kind = dtype_name(value.type.tensor_type.elem_type)
        if kind not in ("float", "double", "float16", "bfloat16"):
            self.problems.append(f"input {value.name!r} of {kind.upper()}, not floats")
            return
        try:
            shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            self.ids[value.name] = self.builder.input(value.name, shape)
        except InputError as error:
            self.problems.append(str(error))

    def _summary(self) -> list[str]:
        """Each kind of problem once, with how often it occurs."""
        counts: dict[str, int] = {}
        for problem in self.problems:
            kind, _, reason = problem.partition(": ")
            key = f"{kind.split()[0]}: {reason}" if reason else kind.split()[0]
            counts[key] = counts.get(key, 0) + 1
        return [f"{key} ({count} times)" for key, count in counts.items()]

    def _read_node(self, node: onnx.NodeProto) -> None:
        handler = getattr(self, f"_{node.op_type.lower()}", None) if node.domain in ("", "ai.onnx") else None
        if node.op_type not in _READABLE or handler is None:
            kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            self.problems.append(f"{kind} ({node_name(node)})")
            return
        known = self.ids.keys() | self.constants.keys()
        if any(given and given not in known for given in node.input):
            return  # it reads what could not be read: that is listed already
        try:
            results = handler(node, attributes_of(node))
        except UNFIT as error:
            self.problems.append(f"{node.op_type} ({node_name(node)}): {unfit(error)}")
            return
        if results is not None:
            results = [results] if isinstance(results, int) else results
            self.ids.update(zip([output for output in node.output if output], results, strict=False))

    def _id(self, name: str) -> int:
        """The node of a tensor; a constant becomes a weight."""
        if name not in self.ids:
            if name not in self.constants:
                raise InputError(f"{self.where}: tensor {name!r} is produced by no node")
            self.ids[name] = self._weight(name, self.constants[name])
        return self.ids[name]

    def _weight(self, name: str, value: np.ndarray) -> int:
        if value.dtype.kind != "f":
            raise _Unsupported(f"{name!r} holds {value.dtype}, not floats")
        while name in self.values:
            name += "_"
        self.values[name] = value
        return self.builder.weight(name, value.shape)

    def _constant_of(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        name = node.input[index] if len(node.input) > index else ""
        if name and name not in self.constants:
            raise _Unsupported(f"its input {name!r} is not a constant")
        return self.constants[name] if name else None

    def _op(self, op: str, *inputs: int, **params: Any) -> int:
        return self.builder.op(op, *inputs, **params)

    def _unary(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op(node.op_type.lower(), self._id(node.input[0]))

    _relu = _tanh = _sigmoid = _unary

    def _gelu(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        if attributes.get("approximate", b"none") != b"none":
            raise _Unsupported("approximated by tanh")
        return self._op("gelu", self._id(node.input[0]))

    def _constant(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:

        for key, value in attributes.items():
            if key == "value":
                self.constants[node.output[0]] = self._array(value)
                return
            if key in ("value_float", "value_floats", "value_int", "value_ints"):
                kind = np.float32 if "float" in key else np.int64
                self.constants[node.output[0]] = np.asarray(value, kind)
                return
        raise _Unsupported("of strings or sparse")

    def _identity(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int | None:
        if node.input[0] in self.constants:
            self.constants[node.output[0]] = self.constants[node.input[0]]
            return None
        return self._id(node.input[0])

    def _dropout(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        training = self._constant_of(node, 2)
        if len([output for output in node.output if output]) > 1 or (training is not None and training.any()):
            raise _Unsupported("in training, or with its mask")
        return self._id(node.input[0])

    def _add(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op("add", self._id(node.input[0]), self._id(node.input[1]))

    def _mul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, y = (self._id(name) for name in node.input)
        for one, factor in ((x, y), (y, x)):
            if self.builder.shape(factor) == ():
                return self._op("smul", one, factor)
        return self._op("mul", x, y)

    def _div(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        divisor = self._constant_of(node, 1)
        if divisor is None or divisor.size != 1:
            raise _Unsupported("by something other than one number")
        factor = self._weight(f"{node.input[1]}_reciprocal", (1 / divisor).reshape(()))
        return self._op("smul", self._id(node.input[0]), factor)

    def _matmul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op("matmul", self._id(node.input[0]), self._id(node.input[1]))

    def _gemm(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        factors = []
        for name in ("alpha", "beta"):
            factors.append(attributes.get(name, 1.0))
        x, y = (self._id(name) for name in node.input[:2])
        if len(self.builder.shape(x)) != 2 or len(self.builder.shape(y)) != 2:
            raise _Unsupported("not of matrices (rank 2)")
        x = self._op("transpose", x, perm=(1, 0)) if attributes.get("transA") else x
        y = self._op("transpose", y, perm=(1, 0)) if attributes.get("transB") else y
        result = self._scaled(self._op("matmul", x, y), f"{node_name(node)}_alpha", factors[0])
        if len(node.input) < 3 or not node.input[2]:
            return result
        return self._op("add", result, self._scaled(self._id(node.input[2]), f"{node_name(node)}_beta", factors[1]))

    def _scaled(self, x: int, name: str, factor: float) -> int:
        return x if factor == 1 else self._op("smul", x, self._weight(name, np.asarray(factor, np.float32)))

    def _conv(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, w = self._id(node.input[0]), self._id(node.input[1])
        if len(self.builder.shape(w)) != 4:
            raise _Unsupported("not of images (rank 4)")
        stride, padding = _window(attributes, self.builder.shape(w)[2:])
        result = self._op("conv2d", x, w, stride=stride, padding=padding)
        if len(node.input) < 3 or not node.input[2]:
            return result
        bias = self._id(node.input[2])
        return self._op("add", result, self._op("reshape", bias, shape=(-1, 1, 1)))

    def _batchnormalization(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        if attributes.get("training_mode"):
            raise _Unsupported("in training")
        scale, bias, mean, variance = (self._constant_of(node, index) for index in range(1, 5))
        if scale is None or bias is None or mean is None or variance is None:
            raise _Unsupported("without all of its parameters")
        x = self._id(node.input[0])
        factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        shape = (-1, *[1] * (len(self.builder.shape(x)) - 2))
        by = self._weight(f"{node_name(node)}_scale", factor.astype(scale.dtype).reshape(shape))
        plus = self._weight(f"{node_name(node)}_shift", (bias - mean * factor).astype(scale.dtype).reshape(shape))
        return self._op("add", self._op("mul", x, by), plus)

    def _softmax(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._op("softmax", self._id(node.input[0]), axis=attributes.get("axis", -1))

    def _layernormalization(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        shape = self.builder.shape(x)
        if attributes.get("axis", -1) not in (-1, len(shape) - 1) or len([name for name in node.output if name]) > 1:
            raise _Unsupported("over more than the last axis, or with its statistics")
        if not math.isclose(attributes.get("epsilon", 1e-5), LAYERNORM_EPSILON, rel_tol=1e-3):
            raise _Unsupported(f"epsilon {attributes['epsilon']:g}; only {LAYERNORM_EPSILON:g}")
        if len(node.input) > 2 and node.input[2]:
            bias = self._id(node.input[2])
        else:
            bias = self._weight(f"{node_name(node)}_bias", np.zeros(shape[-1:], np.float32))
        return self._op("layernorm", x, self._id(node.input[1]), bias)

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
        given = self._constant_of(node, 1)
        even = -(-size // parts)
        sizes = given.tolist() if given is not None else [even] * (parts - 1) + [size - even * (parts - 1)]
        results = []
        for length in sizes[:-1]:
            results.append(self._op("split0", rest, axis=axis, at=length))
            rest = self._op("split1", rest, axis=axis, at=length)
        return [*results, rest]

    def _slice(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        starts, ends, axes, steps = (self._constant_of(node, index) for index in range(1, 5))
        if starts is None or ends is None:
            raise _Unsupported("without starts or ends")
        for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            if steps is not None and steps[index] != 1:
                raise _Unsupported("with a step other than 1")
            shape = self.builder.shape(x)
            axis = int(axes[index]) % len(shape) if axes is not None else index
            begin, stop, _ = slice(start, end).indices(shape[axis])
            if stop < shape[axis]:
                x = self._op("split0", x, axis=axis, at=stop)
            if begin > 0:
                x = self._op("split1", x, axis=axis, at=begin)
        return x

    def _maxpool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._pool("maxpool", node, attributes)

    def _averagepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        return self._pool("avgpool", node, attributes)

    def _pool(self, op: str, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        if len(self.builder.shape(x)) != 4 or len([name for name in node.output if name]) > 1:
            raise _Unsupported("not of images (rank 4), or with indices")
        kernel = tuple(attributes["kernel_shape"])
        stride, padding = _window(attributes, kernel)
        result = self._op(op, x, kernel=kernel, stride=stride, padding=padding)
        if attributes.get("ceil_mode"):
            sizes = zip(self.builder.shape(x)[2:], kernel, stride, strict=True)
            if any((size + 2 * padding_of(k, padding) - k) % step for size, k, step in sizes):
                raise _Unsupported("ceil_mode, where it makes a difference")
        padded = padding == "same" and kernel != (1, 1)
        if op == "avgpool" and padded and not attributes.get("count_include_pad"):
            raise _Unsupported("padding that is not counted (count_include_pad=0)")
        return result

    def _globalaveragepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x = self._id(node.input[0])
        if len(self.builder.shape(x)) != 4:
            raise _Unsupported("not of images (rank 4)")
        return self._op("avgpool", x, kernel=self.builder.shape(x)[2:], padding="valid")

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
        x, axes = self._id(node.input[0]), self._constant_of(node, 1)
        shape = self.builder.shape(x)
        gone = [i for i, size in enumerate(shape) if size == 1] if axes is None else [int(a) % len(shape) for a in axes]
        return self._op("reshape", x, shape=[size for i, size in enumerate(shape) if i not in gone])

    def _unsqueeze(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        x, axes = self._id(node.input[0]), self._constant_of(node, 1)
        assert axes is not None
        rank = len(self.builder.shape(x)) + len(axes)
        new = {int(axis) % rank for axis in axes}
        rest = iter(self.builder.shape(x))
        return self._op("reshape", x, shape=[1 if i in new else next(rest) for i in range(rank)])


_READABLE = (
    "Add", "Mul", "Div", "MatMul", "Gemm", "Conv", "BatchNormalization", "Relu", "Tanh", "Sigmoid", "Gelu", "Softmax",
    "LayerNormalization", "Transpose", "Concat", "Split", "Slice", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Constant", "Identity", "Dropout",
)  # fmt: skip


def _window(attributes: Mapping[str, Any], kernel: Sequence[int]) -> tuple[Shape, str]:
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
    pads = tuple(attributes.get("pads", (0,) * 4))
    if not any(pads):
        return stride, "valid"
    if not odd or pads != tuple(padding_of(size, "same") for size in kernel) * 2:
        raise _Unsupported(f"pads {pads} for kernel {tuple(kernel)}: neither none nor (kernel - 1) / 2")
    return stride, "same"


# -- writing -----------------------------------------------------------------------------------------------------------

_ONNX_NAME = {
    "add": "Add",
    "mul": "Mul",
    "smul": "Mul",
    "matmul": "MatMul",
    "conv2d": "Conv",
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "transpose": "Transpose",
    "concat": "Concat",
    "maxpool": "MaxPool",
    "avgpool": "AveragePool",
    "softmax": "Softmax",
    "layernorm": "LayerNormalization",
    "gelu": "Gelu",
}


def write_onnx(
    program: TensorProgram,
    path: str | os.PathLike[str],
    values: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
) -> None:
    """Writes a program as an ONNX file, in float32, as :func:`to_onnx` makes it; whole or not at all.

    Raises:
        InputError: as :func:`to_onnx`, or the file cannot be written.
    """
    write_file(path, to_onnx(program, values, outputs).SerializeToString())


def to_onnx(
    program: TensorProgram, values: Mapping[str, np.ndarray] | None = None, outputs: Sequence[str] | None = None
) -> onnx.ModelProto:
    """A program as an ONNX model, in float32, checked by onnx's own checker.

    Args:
        values: an array for each weight, by name; random ones where left out.
        outputs: names for the outputs, in order; made up where left out.

    Raises:
        InputError: ``onnx`` is not installed; a weight has no value, or one of another shape; names of outputs that
            are too few or too many, or another tensor's.
    """
    need("onnx", what="writing ONNX files")
    import onnx

    if values is None:
        values = random_values(program, dtype="float32")
    writer = _Writer(program, values, list(outputs) if outputs is not None else None)
    graph = onnx.helper.make_graph(
        writer.nodes, printable(program.name) or "program", writer.inputs, writer.outputs, writer.initializers
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", WRITTEN_OPSET)], producer_name="graphopt-gym", ir_version=9
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    def __init__(self, program: TensorProgram, values: Mapping[str, np.ndarray], outputs: list[str] | None) -> None:
        import onnx

        self.helper, self.numpy_helper = onnx.helper, onnx.numpy_helper
        self.taken = {*program.leaves("input"), *program.leaves("weight")}
        for name in self.taken | {*(outputs or [])}:
            if not name or name != name.encode(errors="replace").decode():  # half a pair of surrogates
                raise InputError(f"{name!r} can be no name in an ONNX file; give the input, weight or output another")
        if outputs is not None and (len({*outputs} - self.taken) != len(program.outputs)):
            raise InputError(
                f"outputs are called {outputs}; give {len(program.outputs)} different names, none of an input or weight"
            )
        self.taken.update(outputs or [])
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        names: dict[int, str] = {}
        for node in program.order:
            op, params, inputs, shape = program.nodes[node]
            if op == "input":
                names[node] = params[0]
                self.inputs.append(self._info(params[0], shape))
            elif op == "weight":
                names[node] = params[0]
                if params[0] not in values or np.shape(values[params[0]]) != shape:
                    raise InputError(f"weight {params[0]!r} needs a value of shape {shape}")
                self._store(params[0], np.asarray(values[params[0]], np.float32))
            elif op in ("eye", "identity_kernel", "pool_kernel"):
                names[node] = self._constant(np.asarray(NUMPY_OPS[op](*params), np.float32))
            elif op in FOREIGN:
                what = f"operator {params[0]!r} ({params[1]!r})" if op == "opaque" else "a getitem"
                raise InputError(f"{what} is one of an ONNX file; export it from that file")
            else:
                names[node] = self._write(op, params, [names[source] for source in inputs], program, inputs)
        for index, output in enumerate(program.outputs):  # an output's name must be its own, and no leaf's
            name = outputs[index] if outputs else self._new("identity")
            self.nodes.append(self.helper.make_node("Identity", [names[output]], [name], name=name))
            self.outputs.append(self._info(name, program.shape(output)))

    def _info(self, name: str, shape: Shape) -> onnx.ValueInfoProto:
        import onnx

        return self.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    def _new(self, prefix: str) -> str:
        name = f"{prefix}_{len(self.taken)}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _store(self, name: str, value: np.ndarray) -> None:
        self.initializers.append(self.numpy_helper.from_array(value, name))

    def _constant(self, value: Any) -> str:
        name = self._new("constant")
        self._store(name, np.asarray(value, None if isinstance(value, np.ndarray) else np.int64))
        return name

    def _emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = self._new(kind.lower())
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _write(
        self, op: str, params: tuple[Any, ...], given: list[str], program: TensorProgram, inputs: Sequence[int]
    ) -> str:
        shapes = [program.shape(source) for source in inputs]
        act = "none"
        attributes: dict[str, Any] = {}
        if op == "matmul":
            (act,) = params
        elif op == "conv2d":
            stride, padding, act = params
            kernel = shapes[1][2:]
            attributes = self._window(kernel, stride, padding) | {"group": shapes[0][1] // shapes[1][1]}
        elif op in ("maxpool", "avgpool"):
            attributes = self._window(*params)
            if op == "avgpool":
                attributes["count_include_pad"] = 1
        elif op == "transpose":
            attributes = {"perm": params[0]}
        elif op in ("concat", "softmax"):
            attributes = {"axis": params[0]}
        elif op == "layernorm":
            attributes = {"axis": -1, "epsilon": LAYERNORM_EPSILON}
        elif op in ("split0", "split1"):
            axis, at = params
            bounds = (0, at) if op == "split0" else (at, shapes[0][axis])
            return self._emit("Slice", [*given, *[self._constant([value]) for value in (*bounds, axis)]])
        elif op == "reshape":
            return self._emit("Reshape", [*given, self._constant(list(params[0]))])
        elif op == "enlarge":
            return self._enlarge(given[0], shapes[0], params[0])
        elif op == "merge":
            return self._merge(given[0], shapes[0], *params)
        result = self._emit(_ONNX_NAME[op], given, **attributes)
        return result if act == "none" else self._emit(_ONNX_NAME[act], [result])

    def _window(self, kernel: Shape, stride: Shape, padding: str) -> dict[str, Any]:
        around = [padding_of(size, padding) for size in kernel]
        return {"kernel_shape": kernel, "strides": stride, "pads": [*around, *around]}

    def _enlarge(self, given: str, shape: Shape, size: Shape) -> str:
        """By concatenating zeros: onnxruntime (1.32) takes a Pad of a weight for one of the convolution's input."""
        sizes = list(shape)
        for axis in (2, 3):
            around = (size[axis - 2] - sizes[axis]) // 2
            if around:
                zeros = self._constant(np.zeros([*sizes[:axis], around, *sizes[axis + 1 :]], np.float32))
                given = self._emit("Concat", [zeros, given, zeros], axis=axis)
                sizes[axis] = size[axis - 2]
        return given

    def _merge(self, given: str, shape: Shape, groups: int, count: int) -> str:
        """[runs, count, O / groups, 1, C H W] times an identity over (count, count)."""
        outputs, channels, height, width = shape
        runs, area = groups // count, channels * height * width
        apart = self._constant([runs, count, outputs // groups, 1, area])
        mask = self._constant(np.eye(count, dtype=np.float32).reshape(count, 1, count, 1))
        merged = self._emit("Mul", [self._emit("Reshape", [given, apart]), mask])
        return self._emit("Reshape", [merged, self._constant([outputs, count * channels, height, width])])
