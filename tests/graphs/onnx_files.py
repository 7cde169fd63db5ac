"""ONNX files for tests, and an independent check of what was read of them, by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt_gym.graphs.onnx.front import bind, shape_of
from graphopt_gym.graphs.onnx.running import drawn_run, open_session
from graphopt_gym.graphs.tensor_program.execute import NUMPY_OPS
from graphopt_gym.graphs.tensor_program.ops import FOREIGN

FLOAT, DOUBLE, HALF, BFLOAT, INT64, BOOL = (
    getattr(onnx.TensorProto, name) for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "BOOL")
)


def node(kind, inputs, outputs, domain="", **attributes):
    outputs = [outputs] if isinstance(outputs, str) else outputs
    return onnx.helper.make_node(kind, inputs, outputs, domain=domain, name=f"node {outputs[0]}", **attributes)


def info(name, shape, dtype=FLOAT):
    return onnx.helper.make_tensor_value_info(name, dtype, shape)


def make_model(nodes, inputs, outputs, weights=None, opset=20, domains=(), functions=(), **graph_fields):
    """Inputs and outputs: name -> shape, or (shape, type)."""

    def infos(named):
        found = []
        for name, shape in named.items():
            typed = isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[0], tuple | list)
            found.append(info(name, *shape) if typed else info(name, shape))
        return found

    tensors = [
        value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in (weights or {}).items()
    ]
    graph = onnx.helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors, **graph_fields)
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(domain, 1) for domain in domains)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))


def assert_translated(loaded) -> int:
    """Each node that became operators of the language gives what onnxruntime gives, from onnxruntime's inputs.

    Returns how many there were.
    """
    model = onnx.load(loaded.path)
    bind(model.graph, loaded.dims, "model")
    names = [name for one in model.graph.node for name in one.output if name]
    shapes = {value.name: shape_of(value.type) for value in model.graph.input}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(model.SerializeToString(), "model", optimise=False)
    feeds, results = drawn_run(session, model, shapes, 0)
    run = dict(zip(names, results, strict=True)) | feeds
    nodes = loaded.program.nodes
    values = {
        loaded.ids[name]: np.asarray(value, np.float64)
        for name, value in run.items()
        if name in loaded.ids and isinstance(value, np.ndarray) and value.dtype.kind in "fV"
    }
    values |= {
        index: np.asarray(loaded.values[one.params[0]], np.float64)
        for index, one in nodes.items()
        if one.op == "weight"
    }
    checked = 0
    for translation in loaded.translations.values():
        steps = [step for step in translation.steps if step in nodes]
        if any(nodes[step].op in FOREIGN for step in steps) or len(steps) < len(translation.steps):
            continue
        local = {}
        for step in steps:
            op, params, inputs, shape = nodes[step]
            given = [local[source] if source in local else values[source] for source in inputs]
            local[step] = np.asarray(NUMPY_OPS[op](*given, *params))
            assert local[step].shape == shape
        for name, result in translation.results.items():
            if name in run and result in local:
                tolerance = {"float16": 2e-2, "bfloat16": 0.1, "float": 1e-4, "double": 1e-9}[loaded.dtypes[name]]
                most = max(1.0, np.abs(np.asarray(run[name], np.float64)).max(initial=0))
                np.testing.assert_allclose(
                    local[result], np.asarray(run[name], np.float64), rtol=0, atol=tolerance * most
                )
                assert local[result].shape == run[name].shape
                checked += 1
    return checked
