"""An architecture as an ONNX file of inference, weights included; no torch exporter, so ``onnx`` alone is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.extras import need

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.torch_module import ArchitectureModule

OPSET = 21  # the first whose GroupNormalization has a scale for each channel
PLAIN = {"add": "Add", "mul": "Mul", "matmul": "MatMul", "relu": "Relu", "gelu": "Gelu", "sigmoid": "Sigmoid"}


class _Writer:
    def __init__(self, module: ArchitectureModule) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper = helper, numpy_helper
        self.module, self.architecture = module, module.architecture
        self.nodes: list[Any] = []
        self.values: list[Any] = []

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def value(self, array: Any) -> str:
        name = f"v{len(self.values)}"
        self.values.append(self.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.value(np.asarray(numbers, np.int64))

    def moved(self, x: str, rank: int, source: int, to: int) -> str:
        """One axis moved to another place; axes of the tensor with its batch dimension."""
        order = [axis for axis in range(rank) if axis != source]
        order.insert(to, source)
        return x if source == to else self.node("Transpose", x, perm=order)

    def op(self, index: int, xs: list[str]) -> str:
        kind, params, inputs, shape, _ = self.architecture.ops[index]
        layer = self.module.layers[str(index)]
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in layer.state_dict().items()}
        ranks = [len(self.architecture.ops[source].shape) + 1 for source in inputs]
        rank = ranks[0] if ranks else 0
        if kind in PLAIN:
            xs = [
                x if r == max(ranks) else self.node("Unsqueeze", x, self.ints(*range(1, 1 + max(ranks) - r)))
                for x, r in zip(xs, ranks, strict=True)
            ]
            return self.node(PLAIN[kind], *xs)
        if kind == "param":
            return self.value(weights["weight"][None])
        if kind == "conv":
            _, kernel, stride, padding, dilation, groups, bias = params
            given = [self.value(weights[name]) for name in ("weight", "bias") if name in weights]
            return self.node("Conv", *xs, *given, kernel_shape=kernel, strides=stride, pads=(*padding, *padding),
                             dilations=dilation, group=groups)  # fmt: skip
        if kind == "dense":
            axis = params[2] + 1
            x = self.node("MatMul", self.moved(xs[0], rank, axis, rank - 1), self.value(weights["weight"].T))
            x = self.node("Add", x, self.value(weights["bias"])) if "bias" in weights else x
            return self.moved(x, rank, rank - 1, axis)
        if kind == "smul":
            return self.node("Mul", *xs, self.value(np.float32(params[0])))
        if kind == "silu":
            return self.node("Mul", xs[0], self.node("Sigmoid", xs[0]))
        if kind == "softmax":
            return self.node("Softmax", *xs, axis=params[0] + 1)
        if kind == "batch_norm":
            names = ("weight", "bias", "running_mean", "running_var")
            x = self.moved(xs[0], rank, params[0] + 1, 1)
            x = self.node("BatchNormalization", x, *[self.value(weights[n]) for n in names], epsilon=params[1])
            return self.moved(x, rank, 1, params[0] + 1)
        if kind == "layer_norm":
            x = self.moved(xs[0], rank, params[0] + 1, rank - 1)
            scale, bias = self.value(weights["weight"]), self.value(weights["bias"])
            x = self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=params[1])
            return self.moved(x, rank, rank - 1, params[0] + 1)
        if kind == "group_norm":
            scale, bias = self.value(weights["weight"]), self.value(weights["bias"])
            return self.node("GroupNormalization", *xs, scale, bias, num_groups=params[0], epsilon=params[1])
        if kind in ("avg_pool", "max_pool"):
            kernel, stride, padding = params
            window = {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}
            counted = {"count_include_pad": 1} if kind == "avg_pool" else {}
            return self.node("AveragePool" if counted else "MaxPool", *xs, **window, **counted)
        if kind == "mean":
            return self.node("ReduceMean", *xs, self.ints(*[axis + 1 for axis in params[0]]), keepdims=int(params[1]))
        if kind == "reshape":
            return self.node("Reshape", *xs, self.ints(0, *shape))  # 0: the batch stays
        if kind == "transpose":
            return self.node("Transpose", *xs, perm=[0, *[axis + 1 for axis in params[0]]])
        if kind == "slice":
            axis, start, stop = params
            return self.node("Slice", *xs, self.ints(start), self.ints(stop), self.ints(axis + 1))
        if kind == "concat":
            return self._concat(xs, inputs, params[0] + 1)
        return self.node("Identity", *xs)  # dropout

    def _concat(self, xs: list[str], inputs: tuple[int, ...], axis: int) -> str:
        """A ``param`` has a batch of one, and ONNX's Concat repeats nothing."""
        batch = self.node("Shape", "input0", start=0, end=1)
        repeated = []
        for x, source in zip(xs, inputs, strict=True):
            if self.architecture.ops[source].kind == "param":
                ones = self.ints(*self.architecture.ops[source].shape)
                x = self.node("Expand", x, self.node("Concat", batch, ones, axis=0))
            repeated.append(x)
        return self.node("Concat", *repeated, axis=axis)


def export_onnx(
    architecture: Architecture, path: str | os.PathLike[str], module: ArchitectureModule | None = None
) -> None:
    """Writes an ONNX file of inference on batches of any size; inputs are ``input0``, ``input1``, ….

    Args:
        module: the architecture's module with trained weights; one freshly initialised if left out.

    Raises:
        InputError: onnx or torch is not installed.
    """
    need("torch", "onnx", what="the export of an architecture")
    import onnx
    from onnx import TensorProto, helper

    writer = _Writer(architecture.to_module() if module is None else module)
    names = [f"input{index}" for index in architecture.inputs]
    for index in range(len(architecture.inputs), len(architecture)):
        names.append(writer.op(index, [names[source] for source in architecture.ops[index].inputs]))
    writer.nodes.append(helper.make_node("Identity", [names[-1]], ["output"]))
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in [*zip(names, architecture.input_shapes), ("output", architecture.ops[-1].shape)]
    ]
    graph = helper.make_graph(writer.nodes, architecture.name, infos[:-1], infos[-1:], writer.values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, os.fspath(path))
