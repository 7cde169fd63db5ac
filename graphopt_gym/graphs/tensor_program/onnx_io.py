"""TensorPrograms to ONNX files, in float32: those that came of no file. Needs the extra ``onnx``, imported when used.

Every operator is written, at opset 20, but those that only a file knows (``opaque``). A fused activation is a node,
``enlarge`` concats of zeros, ``merge`` a product with zeros and ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, printable
from graphopt_gym.extras import need
from graphopt_gym.files import write_file
from graphopt_gym.graphs.tensor_program.execute import NUMPY_OPS, random_values
from graphopt_gym.graphs.tensor_program.onnx_read import output_names as output_names
from graphopt_gym.graphs.tensor_program.onnx_read import read_onnx as read_onnx
from graphopt_gym.graphs.tensor_program.ops import FOREIGN, Padding, Shape, pads_of
from graphopt_gym.graphs.tensor_program.program import TensorProgram

if TYPE_CHECKING:
    import onnx

WRITTEN_OPSET = 20
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
    "sub": "Sub",
    "div": "Div",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "exp": "Exp",
    "log": "Log",
    "abs": "Abs",
    "hardswish": "HardSwish",
    "clip": "Clip",
    "power": "Pow",
    "leakyrelu": "LeakyRelu",
    "hardsigmoid": "HardSigmoid",
    "reducesum": "ReduceSum",
    "reducemean": "ReduceMean",
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
        self._store(name, np.asarray(value, None if isinstance(value, np.ndarray | np.generic) else np.int64))
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
            attributes = {"axis": -1, "epsilon": params[0]}
        elif op in ("leakyrelu", "hardsigmoid"):
            attributes = dict(zip(("alpha", "beta"), params, strict=False))
        elif op in ("clip", "power"):
            return self._emit(_ONNX_NAME[op], [*given, *[self._constant(np.float32(one)) for one in params]])
        elif op in ("reducesum", "reducemean"):
            return self._emit(_ONNX_NAME[op], [*given, self._constant(list(params[0]))], keepdims=params[1])
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

    def _window(self, kernel: Shape, stride: Shape, padding: Padding) -> dict[str, Any]:
        return {"kernel_shape": kernel, "strides": stride, "pads": list(pads_of(kernel, padding))}

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
