"""ONNX files: read and checked, their sizes bound. Needs the extra ``onnx``, imported when a function is called."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted, unknown_name
from graphopt_gym.files import MAX_BYTES, read_file

if TYPE_CHECKING:
    import onnx

UNNAMED = ("?",)  # what some exporters write for any size at all


def read_model_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an ONNX file.

    Raises:
        InputError: it cannot be read, or is larger than a protocol buffer can be.
    """
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        size = 0  # refused below
    if size >= MAX_BYTES:
        raise InputError(
            f"ONNX file {quoted(os.fspath(path))} has {size:,} bytes; no ONNX file holds more than 2 GB: store its "
            "weights in a file beside it, onnx.save(model, path, save_as_external_data=True)"
        )
    return read_file(path, "ONNX file")


def parse(content: bytes, where: str) -> onnx.ModelProto:
    import onnx
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
        model = inlined(model)
    except Exception as error:  # the checker and the inliner have no common error
        raise InputError(f"{where} is not a valid ONNX model: {one_line(error)}") from error
    return model


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions' nodes in place of their calls."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


def bind(graph: onnx.GraphProto, dims: Mapping[str, int], where: str, choices: Collection[str] = ()) -> None:
    """Writes the given sizes in place of symbolic dimensions; refuses names that do not occur, and what stays open.

    A key is a symbol, for all that bear it, or ``input:axis``, for one of them, which counts more. ``choices`` are keys
    that are no dimensions.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    shapeless = [value.name for value in inputs if not value.type.tensor_type.HasField("shape")]
    refuse(f"{where} has inputs that are not tensors of a known rank", shapeless, "export it with their shapes")
    open_axes = {  # input -> axis -> symbol
        value.name: {axis: symbol for axis in range(_rank(value)) if (symbol := _symbol(value, axis)) is not None}
        for value in inputs
    }
    every = [(f"{name}:{axis}", symbol) for name, axes in open_axes.items() for axis, symbol in axes.items()]
    known = dict.fromkeys([*(symbol or key for key, symbol in every), *(key for key, _ in every), *choices])
    for key, size in dims.items():
        if key not in known:
            raise unknown_name("ONNX dimension", key, known, f"(in {where})")
        least = 0 if key in choices else 1
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
            raise InputError(f"{where}: dimension {key!r} is {size!r}; give an integer of at least {least}")

    def size_of(name: str, axis: int, symbol: str) -> int | None:
        return next((int(dims[key]) for key in (f"{name}:{axis}", symbol) if key in dims), None)

    def label(value: onnx.ValueInfoProto, axis: int) -> str:
        symbol = _symbol(value, axis)
        if symbol is None:
            return str(value.type.tensor_type.shape.dim[axis].dim_value)
        return f"{value.name}:{axis}" if symbol in ("", *UNNAMED) else symbol

    lacking = [
        value
        for value in inputs
        if any(size_of(value.name, axis, symbol) is None for axis, symbol in open_axes[value.name].items())
    ]
    missing = sorted(
        {
            # a symbol that was given for some of its places is not one size: name the others by their places
            f"{value.name}:{axis}" if any(s == symbol and key in dims for key, s in every) else label(value, axis)
            for value in lacking
            for axis, symbol in open_axes[value.name].items()
            if size_of(value.name, axis, symbol) is None
        }
    )
    refuse(
        f"{where} has inputs without a fixed shape",
        [f"{value.name}[{', '.join(label(value, axis) for axis in range(_rank(value)))}]" for value in lacking],
        f"give the sizes: {fix(missing)}",
    )
    places: dict[str, set[int]] = {}  # sizes of a symbol, which may differ from place to place
    for value in inputs:
        for axis, symbol in open_axes[value.name].items():
            given = size_of(value.name, axis, symbol)
            assert given is not None
            value.type.tensor_type.shape.dim[axis].dim_value = given
            places.setdefault(symbol, set()).add(given)
    settled = {
        symbol: sizes.pop() for symbol, sizes in places.items() if len(sizes) == 1 and symbol not in ("", *UNNAMED)
    }
    # open shapes that the file states for later tensors would keep inference from closing them
    for value in (*graph.value_info, *graph.output):
        for axis in range(_rank(value)):
            known_size = settled.get(_symbol(value, axis) or "")
            if known_size is not None:
                value.type.tensor_type.shape.dim[axis].dim_value = known_size
        if not all(_symbol(value, axis) is None for axis in range(_rank(value))):
            value.type.tensor_type.ClearField("shape")


def fix(names: Sequence[str], value: str = "…") -> str:
    """How sizes are given, in Python and on the command line: ``dims={'batch': …}`` or ``--dims batch=…``."""
    options = ",".join(f"{name}={value}" for name in names)
    return f"dims={{{', '.join(f'{name!r}: {value}' for name in names)}}} (graphopt … --dims {options!r})"


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _symbol(value: onnx.ValueInfoProto, axis: int) -> str | None:
    """None where the size is fixed; else its symbol, empty where it has none (or a negative size)."""
    dim = value.type.tensor_type.shape.dim[axis]
    return None if dim.HasField("dim_value") and dim.dim_value >= 0 else str(dim.dim_param)


def captured(node: onnx.NodeProto) -> list[str]:
    """Names that a node's subgraphs take from outside, each once."""
    found: dict[str, None] = {}

    def visit(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
        inside = outer | {t.name for t in graph.initializer} | {value.name for value in graph.input}
        inside |= {t.values.name for t in graph.sparse_initializer}
        for one in graph.node:
            found.update(dict.fromkeys(name for name in one.input if name and name not in inside))
            for inner in _subgraphs(one):
                visit(inner, inside)
            inside |= {name for name in one.output if name}
        found.update(dict.fromkeys(value.name for value in graph.output if value.name not in inside))

    for graph in _subgraphs(node):
        visit(graph, frozenset())
    return list(found)


def renamed_captures(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Renames what a node's subgraphs take from outside."""

    def visit(graph: onnx.GraphProto, left: Mapping[str, str]) -> None:
        own = {t.name for t in graph.initializer} | {value.name for value in graph.input}
        own |= {name for one in graph.node for name in one.output} | {t.values.name for t in graph.sparse_initializer}
        left = {old: new for old, new in left.items() if old not in own}
        for one in graph.node:
            one.input[:] = [left.get(name, name) for name in one.input]
            for inner in _subgraphs(one):
                visit(inner, left)
        for value in graph.output:
            value.name = left.get(value.name, value.name)

    changed = {old: new for old, new in names.items() if old != new}
    if changed:
        for graph in _subgraphs(node):
            visit(graph, changed)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else [*attribute.graphs])
    ]


def shape_of(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """The shape of a tensor's type where all of it is fixed."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


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


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def node_name(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)


def refuse(what: str, items: Sequence[str], fix: str) -> None:
    """Raises where there are any items, naming the first dozen."""
    if items:
        listed = ", ".join(items[:12]) + (f" and {len(items) - 12} more" if len(items) > 12 else "")
        raise InputError(f"{what}: {listed}; {fix}")
