"""ONNX models run by onnxruntime on this machine's CPU, on random inputs; imported when a function is called."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, shortened
from graphopt_gym.extras import need
from graphopt_gym.graphs.onnx.front import dtype_name, shape_of

if TYPE_CHECKING:
    import onnx

# what is drawn, in the order in which that is tried: floats (normal or from 0 to 1), whole numbers from and below:
# ids, then flags, sizes, positions; small, as some are sizes
DRAWN = (("normal", 0, 8), ("normal", 0, 2), ("uniform", 1, 2), ("uniform", 0, 1))


class NoKernel(InputError):
    """A model that is valid, but has an operator on a type that onnxruntime's CPU provider does not compute."""


def open_session(source: str | os.PathLike[str] | bytes, where: str, *, optimise: bool = True) -> Any:
    """A session of a model: the path of its file, or its bytes.

    Raises:
        NoKernel: this machine's onnxruntime has no kernel for one of its operators.
        InputError: onnxruntime is not installed, or cannot load the model.
    """
    need("onnxruntime", what="running ONNX files")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = source if isinstance(source, bytes) else os.fspath(source)
    try:
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no public base
        kind = NoKernel if type(error).__name__ == "NotImplemented" else InputError
        raise kind(f"{where} cannot be run by onnxruntime: {said(error)}") from None


def said(error: Exception) -> str:
    """What an error of onnxruntime says, without its numbers, paths and places in its sources."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error, 10_000))
    text = re.sub(r"^Load model from .*? failed:", "", text)
    text = re.sub(r"^/onnxruntime_src\S+ .*?\) ", "", text)
    return shortened(text.strip(), 300)


def feeds_of(
    inputs: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    drawn: tuple[str, int, int] = DRAWN[0],
) -> dict[str, Any]:
    """A random value for each input: floats and whole numbers as ``drawn`` says, truth values either, short strings.

    Raises:
        InputError: an input of another kind, such as bfloat16, which numpy does not have.
    """
    import onnx

    floats, low, high = drawn
    feeds: dict[str, Any] = {}
    for place, value in enumerate(inputs):
        kind, shape = value.type.tensor_type.elem_type, tuple(shapes[value.name])
        name = dtype_name(kind)
        random = np.random.default_rng([seed, place])
        if name == "bool":
            feeds[value.name] = random.integers(0, 2, shape).astype(bool)
        elif name in ("float", "double", "float16"):
            numbers = random.standard_normal(shape) if floats == "normal" else random.random(shape)
            feeds[value.name] = np.asarray(numbers).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        elif name in WHOLE:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
            feeds[value.name] = np.asarray(random.integers(low, high, shape)).astype(dtype)
        elif name == "string":
            feeds[value.name] = np.asarray(random.integers(0, 10, shape)).astype(str).astype(object)
        else:
            raise InputError(f"input {value.name!r} is of {name}, of which no random values are drawn")
    return feeds


WHOLE = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def run(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """The named outputs."""
    return list(session.run(list(names), dict(feeds)))


def drawn_run(
    session: Any, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], seed: int
) -> tuple[dict[str, Any], list[Any]]:
    """Inputs and outputs of a run that the model takes, of the first of :data:`DRAWN` that it does take.

    Raises:
        InputError: it takes none.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    names = [value.name for value in model.graph.output]
    last: Exception | None = None
    for drawn in DRAWN:
        feeds = feeds_of(inputs, shapes, seed, drawn)
        try:
            return feeds, run(session, names, feeds)
        except Exception as error:  # onnxruntime's own have no public base
            last = last or error
    raise InputError(f"onnxruntime does not run it: {said(last or Exception())}")


def shapes_by_running(model: onnx.ModelProto, names: Sequence[str], where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of a bound model as they come out on random inputs; empty where it cannot be run.

    For tensors whose shape depends on data: what comes out of other data may differ.
    """
    import onnx

    shapes = {value.name: shape_of(value.type) or () for value in model.graph.input}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        session = open_session(copy.SerializeToString(), where, optimise=False)
        _, results = drawn_run(session, copy, shapes, 0)
    except (InputError, ValueError):  # ValueError: more than 2 GB
        return {}
    return {
        name: tuple(result.shape) for name, result in zip(names, results, strict=True) if isinstance(result, np.ndarray)
    }
