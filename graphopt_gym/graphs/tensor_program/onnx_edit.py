"""A rewritten program of an ONNX file, as an edit of that file.

What a rewriting left alone stays as it is in the file: nodes with their names, attributes and domains, tensors with
their names, types and open sizes, inputs (those that are not used too), outputs, metadata. Which is which is found by
value: original and rewritten program are executed together on random values, and tensors that come out equal are one.
So a node whose input was rewritten, but means the same, is the file's node still. What depends on weights alone is
worked out, in float64, and stored in the type of the tensors around it.

An edited model is compared with its original in onnxruntime before it is written, see :func:`difference`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted
from graphopt_gym.extras import installed
from graphopt_gym.files import check_output, write_file
from graphopt_gym.graphs.onnx.front import (
    attributes_of,
    bind,
    captured,
    inlined,
    read_model_file,
    renamed_captures,
    shape_of,
)
from graphopt_gym.graphs.onnx.running import NoKernel, drawn_run, open_session, run, said
from graphopt_gym.graphs.tensor_program.convert import to_computation_graph
from graphopt_gym.graphs.tensor_program.execute import NUMPY_OPS, RandomValues, execute
from graphopt_gym.graphs.tensor_program.onnx_read import OnnxProgram, load_external, load_onnx
from graphopt_gym.graphs.tensor_program.ops import FOREIGN, LEAVES, PLAIN, Shape, infer, pads_of
from graphopt_gym.graphs.tensor_program.program import Node, ProgramBuilder, TensorProgram

if TYPE_CHECKING:
    import onnx

EQUAL = 1e-9  # of sums over random weights, to their size, where two tensors are one
TORCH_FLOPS = 1e8  # programs with more work are executed by torch, where it is installed
# largest difference of outputs, to the largest: rounding in that type through hundreds of operators
TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-8}
MOST_BYTES = 2**31 - 2**20  # of a protocol buffer, with room for all but the weights
LARGE = 1024  # bytes from which on a tensor lies in the file beside, where there is one
_SIMPLE = {
    "add": "Add", "mul": "Mul", "smul": "Mul", "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "Gelu",
    "matmul": "MatMul", "concat": "Concat", "transpose": "Transpose", "softmax": "Softmax",
    "sub": "Sub", "div": "Div", "power": "Pow", "leakyrelu": "LeakyRelu", "hardsigmoid": "HardSigmoid", "clip": "Clip",
    "reducesum": "ReduceSum", "reducemean": "ReduceMean", **{op: op.capitalize() for op in PLAIN},
    "hardswish": "HardSwish",
}  # fmt: skip
_LEAST_OPSET = {"gelu": 20, "layernorm": 17, "softmax": 13}


@dataclass
class Edited:
    """An edited model.

    Attributes:
        model: complete, its weights inside.
        kept: nodes of the file that are in it as they were, but for names of what they read.
        added: nodes that are new.
        external: whether the original keeps weights in files beside it.
    """

    model: onnx.ModelProto
    kept: int
    added: int
    external: bool


def edit_onnx(source: OnnxProgram, rewritten: TensorProgram, other_dims: Mapping[str, int] | None = None) -> Edited:
    """The model of a file with a rewritten program in place of its own.

    Args:
        other_dims: other sizes of its open dimensions, for which the model shall hold too; None: it need not.

    Raises:
        InputError: the file has changed meanwhile, or the program has what cannot be written.
    """
    where = f"ONNX file {quoted(os.fspath(source.path))}"
    model, external = _whole(source.path, where)
    if rewritten == source.program:
        return Edited(model, len(model.graph.node), 0, external)
    rewritten = _biased_before_split(_unfused(rewritten))
    return _Editor(source, rewritten, model, where, other_dims).edit(external)


def write_edited(source: OnnxProgram, rewritten: TensorProgram, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes :func:`edit_onnx`'s model where it gives what the original does; whole or not at all.

    Weights go into a file beside it, ``NAME.onnx.data``, where the original's do or the model would pass 2 GB.

    Returns:
        ``kept`` and ``added``, the numbers of nodes; ``checked``, the sizes at which both were run.

    Raises:
        InputError: they differ, onnxruntime does not run one of them, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, inputs=(source.path,))
    runs = original_runs(source)
    other = next((dims for dims, _ in runs if dims != source.dims), None)
    edited = edit_onnx(source, rewritten, other)
    check_same(source, edited.model, runs)
    beside = edited.external or edited.model.ByteSize() > MOST_BYTES
    if not beside:
        write_file(path, edited.model.SerializeToString())
    else:
        _write_beside(edited.model, path)
    return {"kept": edited.kept, "added": edited.added, "checked": [dims for dims, _ in runs]}


def _unfused(program: TensorProgram) -> TensorProgram:
    """With activations as nodes of their own, as in ONNX: runtimes fuse them again, and nodes of the file are found."""
    builder = ProgramBuilder(program.name)
    ids: dict[int, int] = {}
    for node in program.order:
        op, params, inputs, _ = program.nodes[node]
        given = [ids[source] for source in inputs]
        if op in ("matmul", "conv2d") and params[-1] != "none":
            ids[node] = builder.op(params[-1], builder.add(op, (*params[:-1], "none"), given))
        else:
            ids[node] = builder.add(op, params, given)
    return builder.finish([ids[output] for output in program.outputs])


def _biased_before_split(program: TensorProgram) -> TensorProgram:
    """With constants that are added to both parts of a split product added before it, as its bias."""
    while True:
        for node in program.order:
            edited = _biased_at(program, node)
            if edited is not None:
                program = edited
                break
        else:
            return program


def _biased_at(program: TensorProgram, node: int) -> TensorProgram | None:
    """A tensor that is read by the two parts of a split alone, and these by additions of constants alone."""
    nodes = program.nodes
    parts = sorted(program.users(node), key=lambda user: nodes[user].op)
    if [nodes[part].op for part in parts] != ["split0", "split1"] or node in program.outputs or program.is_static(node):
        return None
    if nodes[parts[0]].params != nodes[parts[1]].params or nodes[node].op not in ("conv2d", "matmul", "split1"):
        return None
    axis = nodes[parts[0]].params[0] - len(nodes[node].shape)  # from the end
    adds, biases = [], []
    for part in parts:
        users = program.users(part)
        one = nodes[users[0]] if len(users) == 1 else None
        if one is None or one.op != "add" or part in program.outputs or one.shape != nodes[part].shape:
            return None
        bias = one.inputs[one.inputs[0] == part]
        size = nodes[bias].shape
        wide = bias == part or len(size) < -axis or size[axis] != nodes[part].shape[axis]
        if wide or not program.is_static(bias) or math.prod(size) != size[axis]:
            return None
        adds.append(users[0])
        biases.append(bias)
    if len(nodes[biases[0]].shape) != len(nodes[biases[1]].shape):
        return None
    edit = program.edit()
    sum_ = edit.op("add", node, edit.op("concat", *biases, axis=axis))
    edit.replace({add: edit.add(nodes[part].op, nodes[part].params, (sum_,))
                  for add, part in zip(adds, parts, strict=True)})  # fmt: skip
    return edit.finish()


def _whole(path: Path, where: str) -> tuple[onnx.ModelProto, bool]:
    """The model of a file as it is, weights loaded, local functions inlined; whether weights lie beside it."""
    import onnx

    model = onnx.ModelProto.FromString(read_model_file(path))
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    load_external(model, path.parent, where)
    return inlined(model), external


def _write_beside(model: onnx.ModelProto, path: Path) -> None:
    """The weights first, so that no model is there without them. A link stays, and its target is replaced."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    if path.exists() and (not path.is_file() or path.is_relative_to("/dev")):
        raise InputError(
            f"{quoted(os.fspath(path))} is no file, beside which the model's weights could lie; give the path of one"
        )
    path = Path(os.path.realpath(path))
    data = path.with_name(path.name + ".data")
    check_output(data)
    convert_model_to_external_data(model, location=data.name, size_threshold=LARGE)
    try:
        with tempfile.TemporaryDirectory(prefix=".graphopt.", dir=path.parent) as folder:
            onnx.save(model, os.path.join(folder, path.name))
            if os.path.exists(os.path.join(folder, data.name)):  # where no weight is large there is none
                os.replace(os.path.join(folder, data.name), data)
            os.replace(os.path.join(folder, path.name), path)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"cannot write {quoted(os.fspath(path))}: {why}; give a path that can be written") from None


# -- which tensors are equal -------------------------------------------------------------------------------------------


def _equals(original: TensorProgram, rewritten: TensorProgram) -> dict[int, list[int]]:
    """Node of the original -> nodes of the rewritten program that always have its value."""
    builder = ProgramBuilder(original.name)
    places: list[dict[int, int]] = []
    for program in (original, rewritten):
        ids: dict[int, int] = {}
        for node in program.order:
            op, params, inputs, _ = program.nodes[node]
            ids[node] = builder.add(op, params, [ids[source] for source in inputs])
        places.append(ids)
    outputs = [
        ids[output] for program, ids in zip((original, rewritten), places, strict=True) for output in program.outputs
    ]
    joined = builder.finish(outputs)
    sums: dict[int, tuple[float, float, float]] = {}

    def watch(node: int, value: np.ndarray) -> None:
        flat = value.reshape(-1).astype(np.float64, copy=False)
        weights = np.random.default_rng(flat.size).standard_normal((2, flat.size))
        size = math.sqrt(float(flat @ flat)) if flat.size else 0.0
        sums[node] = (float(weights[0] @ flat), float(weights[1] @ flat), size)

    backend = "numpy"
    if installed("torch") and int(to_computation_graph(joined).flops.sum()) > TORCH_FLOPS:
        backend = "torch"
    execute(joined, RandomValues(joined, seed=2), backend=backend, watch=watch)
    alike: dict[Shape, list[tuple[int, int]]] = {}
    structural: dict[int, list[int]] = {}
    for node, place in places[1].items():
        structural.setdefault(place, []).append(node)
        if place in sums:
            alike.setdefault(joined.shape(place), []).append((node, place))
    equal: dict[int, list[int]] = {}
    for node, place in places[0].items():
        found = list(structural.get(place, ()))
        if place in sums:
            mine = sums[place]
            for other, there in alike.get(joined.shape(place), ()):
                theirs = sums[there]
                room = EQUAL * max(mine[2], theirs[2])
                if there != place and all(abs(a - b) <= room for a, b in zip(mine, theirs, strict=True)):
                    found.append(other)
        equal[node] = found
    return equal


# -- editing -----------------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """A new node of the model."""

    kind: str
    reads: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


class _Editor:
    def __init__(
        self,
        source: OnnxProgram,
        rewritten: TensorProgram,
        model: onnx.ModelProto,
        where: str,
        other_dims: Mapping[str, int] | None,
    ) -> None:
        self.source, self.program, self.model, self.graph, self.where = source, rewritten, model, model.graph, where
        self.nodes: Mapping[int, Node] = rewritten.nodes
        self.opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
        self.producer = {name: i for i, one in enumerate(self.graph.node) for name in one.output if name}
        self.initializers = {tensor.name for tensor in self.graph.initializer}
        self.given = {value.name for value in self.graph.input}
        self.given |= self.initializers | {tensor.values.name for tensor in self.graph.sparse_initializer}
        self.taken = set(self.given) | set(self.producer)
        self.equal = _equals(source.program, rewritten)
        self.tensors: dict[int, list[str]] = {}  # node of the program -> tensors of the file that it equals
        outputs = {value.name: place for place, value in enumerate(self.graph.output)}
        for name in sorted(source.ids, key=lambda name: (outputs.get(name, len(outputs)), self.producer.get(name, -1))):
            for node in self.equal.get(source.ids[name], ()):
                self.tensors.setdefault(node, []).append(name)
        self.maker: dict[int, tuple[int, str, dict[int, int]]] = {}  # node -> node of the file, output, its operands
        for index, translation in source.translations.items():
            self._match(index, translation.steps, translation.results)
        self.claimed = {name: node for node, (_, name, _) in self.maker.items()}
        self.names: dict[tuple[int, str], str] = {}  # node, type -> tensor
        self.kept: dict[int, dict[str, str]] = {}  # node of the file -> tensor -> what it is called now
        self.stated: set[str] = set()  # tensors that new nodes and constants produce
        self.made: list[_Made] = []
        self.stored: list[onnx.TensorProto] = []
        self.node_names = {one.name for one in self.graph.node}
        self.new_nodes: set[str] = set()
        self._dtypes: dict[int, str] = {}
        self.folded: dict[int, np.ndarray] = {}
        self.foreign_below = self._foreign_below()
        self.elsewhere = self._at_other_sizes(other_dims)

    # -- what stays --------------------------------------------------------------------------------------------

    def _match(self, index: int, steps: Sequence[int], results: Mapping[str, int]) -> None:
        """Whether the rewritten program does what a node of the file does, on tensors equal to those it read."""
        before = self.source.program.nodes
        live = [step for step in steps if step in before]
        inside = set(live)
        operands = list(dict.fromkeys(s for step in live for s in before[step].inputs if s not in inside))
        choices = [self.equal.get(operand, []) for operand in operands]
        for chosen in itertools.islice(itertools.product(*choices), 64):
            local = dict(zip(operands, chosen, strict=True))
            for step in live:
                op, params, inputs, _ = before[step]
                found = self.program.find(op, params, tuple([local[source] for source in inputs]))
                if found is None or found not in self.nodes:
                    break
                local[step] = found
            else:
                for name, result in results.items():
                    if result in inside:
                        self.maker.setdefault(local[result], (index, name, local))
                return

    def _foreign_below(self) -> set[int]:
        found: set[int] = set()
        for node in self.program.order:
            one = self.nodes[node]
            if one.op in FOREIGN or not found.isdisjoint(one.inputs):
                found.add(node)
        return found

    def _at_other_sizes(self, other_dims: Mapping[str, int] | None) -> dict[int, Shape]:
        """Shapes of the program's nodes where all open sizes are others; empty where none are open."""
        if not other_dims:
            return {}
        other = load_onnx(self.source.path, dims=other_dims)
        self.other_shapes = other.shapes
        shapes: dict[int, Shape] = {}
        for node in self.program.order:
            op, params, inputs, shape = self.nodes[node]
            known = next((other.shapes[name] for name in self.tensors.get(node, ()) if name in other.shapes), None)
            if known is None and op in LEAVES:
                known = other.shapes.get(params[0], shape) if op in ("input", "weight") else shape
            if known is None and op in FOREIGN:
                known = shape
            if known is None and op == "reshape":
                known = _reshaped(params[0], self.program.shape(inputs[0]), shapes[inputs[0]])
            if known is None:
                try:
                    known = infer(op, [shapes[source] for source in inputs], params)[1]
                except InputError:
                    return {}
            shapes[node] = known
        return shapes

    def edit(self, external: bool) -> Edited:
        import onnx

        for node in self.program.order:  # from the inputs on, so that nothing recurs deeply
            if node in self.maker:
                self.name(node)
        for value, output in zip(self.graph.output, self.program.outputs, strict=True):
            name = self.name(output)
            if name != value.name:
                alias = self.producer.get(value.name)
                if alias is not None and alias not in self.kept and self.graph.node[alias].op_type == "Identity":
                    self.kept[alias] = {self.graph.node[alias].input[0]: name}
                else:
                    self.made.append(_Made("Identity", [name], [value.name]))
                    self.stated.add(value.name)
        nodes = self._live(self._ordered())
        read = {name for one in nodes for name in (*one.input, *captured(one))}
        read |= {value.name for value in self.graph.output}
        there = {name for one in nodes for name in one.output} | self.given
        model = onnx.ModelProto()
        _copy_without_weights(self.model, model)
        graph = model.graph
        del graph.node[:]
        graph.node.extend(nodes)
        inputs = {value.name for value in graph.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read or tensor.name in inputs]
        del graph.initializer[:]
        stored = [tensor for tensor in self.stored if tensor.name in read]
        graph.initializer.extend([*kept, *stored])
        if stored:
            model.ir_version = max(model.ir_version, 4)  # before it every initialiser is an input
        for stated in (graph.value_info, graph.quantization_annotation):
            left = [one for one in stated if (one.name if hasattr(one, "name") else one.tensor_name) in there]
            del stated[:]
            stated.extend(left)
        try:
            if model.ByteSize() < MOST_BYTES:
                onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise InputError(f"{self.where}: its rewritten form is no valid model: {one_line(error)}") from error
        kept_nodes = sum(one.name not in self.new_nodes for one in nodes)
        return Edited(model, kept_nodes, len(nodes) - kept_nodes, external)

    def _live(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Those that an output depends on."""
        read = {value.name for value in self.graph.output}
        live = []
        for one in reversed(nodes):
            if not read.isdisjoint(one.output):
                read.update(one.input, captured(one))
                live.append(one)
        return live[::-1]

    def _ordered(self) -> list[onnx.NodeProto]:
        """The nodes, each after what it reads: the file's in its order, new ones as soon as they can be."""
        import onnx

        nodes: list[tuple[int, onnx.NodeProto]] = []
        for index, renamed in self.kept.items():
            copy = onnx.NodeProto()
            copy.CopyFrom(self.graph.node[index])
            copy.input[:] = [renamed.get(name, name) for name in copy.input]
            renamed_captures(copy, renamed)
            # an output that a new node produces now is one that nobody reads of this node
            copy.output[:] = [self._new(name) if name in self.stated else name for name in copy.output]
            nodes.append((index, copy))
        for made in self.made:
            name = self._unused(f"{made.outputs[0]}/{made.kind}", self.node_names)
            self.new_nodes.add(name)
            nodes.append((-1, onnx.helper.make_node(made.kind, made.reads, made.outputs, name=name, **made.attributes)))
        producer = {name: place for place, (_, one) in enumerate(nodes) for name in one.output if name}
        waits = []
        readers: dict[int, list[int]] = {}
        for place, (_, one) in enumerate(nodes):
            sources = {producer[name] for name in (*one.input, *captured(one)) if name in producer}
            waits.append(len(sources))
            for one_source in sources:
                readers.setdefault(one_source, []).append(place)
        ready = [(nodes[place][0], place) for place, count in enumerate(waits) if not count]
        heapq.heapify(ready)
        order = []
        while ready:
            _, place = heapq.heappop(ready)
            order.append(nodes[place][1])
            for reader in readers.get(place, ()):
                waits[reader] -= 1
                if not waits[reader]:
                    heapq.heappush(ready, (nodes[reader][0], reader))
        if len(order) < len(nodes):
            raise InputError(f"{self.where}: its rewritten form has nodes that wait for each other; report this")
        return order

    # -- tensors -----------------------------------------------------------------------------------------------

    def name(self, node: int, dtype: str = "") -> str:
        """The tensor of a node; what makes it is added to the model where it is not there yet."""
        dtype = self.dtype(node) or dtype or "float"
        key = (node, dtype)
        if key not in self.names:
            op, params, inputs, _ = self.nodes[node]
            if op == "input":
                self.names[key] = params[0]
            elif op == "weight" and params[0] in self.source.constants:
                self.names[key] = self._tensor_of_file(self.source.constants[params[0]])
            elif node in self.maker:
                index, name, local = self.maker[node]
                self.names[key] = name
                self._keep(index, local)
            elif op == "opaque" and not inputs and params[1] in self.given | self.producer.keys():
                self.names[key] = self._tensor_of_file(params[1])
            elif self.program.is_static(node) and node not in self.foreign_below:
                self.names[key] = self._store(self.fold(node), self._free(node), dtype)
            else:
                self._make(node, key)
        return self.names[key]

    def _keep(self, index: int, local: Mapping[int, int]) -> None:
        if index in self.kept:
            return
        renamed = self.kept[index] = {}
        one = self.graph.node[index]
        for name in dict.fromkeys((*one.input, *captured(one))):
            if name:
                mine = self.source.ids.get(name, -1)
                renamed[name] = self.name(local[mine]) if mine in local else self._tensor(name)

    def _tensor(self, name: str) -> str:
        """What a tensor of the file is called now."""
        for node in self.equal.get(self.source.ids.get(name, -1), ()):
            return self.name(node)
        return self._tensor_of_file(name)

    def _tensor_of_file(self, name: str) -> str:
        """A tensor of the file, made as the file makes it."""
        if name in self.given or name not in self.producer:
            return name
        index = self.producer[name]
        if index not in self.kept:
            one = self.graph.node[index]
            if one.op_type == "Shape" and not self.elsewhere and self._gone(one.input[0]):
                shape = self.source.shapes[one.input[0]]
                settings = attributes_of(one)
                value = np.asarray(shape, np.int64)[settings.get("start", 0) : settings.get("end")]
                self.stated.add(name)
                self.given.add(name)
                return self._store(value, name)
            renamed = self.kept[index] = {}
            for read in dict.fromkeys((*one.input, *captured(one))):
                if read:
                    alike = self._alike(read) if one.op_type in ("Shape", "Size") else None
                    renamed[read] = alike if alike is not None else self._tensor(read)
        return name

    def _alike(self, name: str) -> str | None:
        """A tensor of the same shape at all sizes, where the one whose shape is asked for is gone; None where it is
        there."""
        if not self._gone(name) or not self.elsewhere:
            return None
        mine, other = self.source.shapes.get(name), self.other_shapes.get(name)
        for node in self.program.order:
            if self.program.shape(node) == mine and self.elsewhere[node] == other and not self.program.is_static(node):
                return self.name(node)
        return None

    def _gone(self, name: str) -> bool:
        """Whether a tensor of the program is in the rewritten one no more."""
        mine = self.source.ids.get(name)
        return mine is not None and not self.equal.get(mine) and name in self.source.shapes

    def dtype(self, node: int) -> str:
        """The type of a node's elements, as ONNX names it; empty where it follows from who reads it."""
        memo = self._dtypes
        if not memo:
            for one in self.program.order:
                op, params, inputs, _ = self.nodes[one]
                if op == "input":
                    memo[one] = self.source.dtypes.get(params[0], "float")
                elif op == "weight":
                    name = self.source.constants.get(params[0])
                    memo[one] = self.source.dtypes.get(name, "") if name else _onnx_type(self.source.values[params[0]])
                elif op in FOREIGN:
                    memo[one] = params[3] if op == "opaque" else params[2]
                else:
                    memo[one] = next((memo[source] for source in inputs if memo[source]), "")
        return memo[node]

    def fold(self, node: int) -> np.ndarray:
        """The value of a node of weights alone."""
        if node not in self.folded:
            op, params, inputs, _ = self.nodes[node]
            if op == "weight":
                return np.asarray(self.source.values[params[0]], np.float64)
            self.folded[node] = np.asarray(
                NUMPY_OPS[op](*[self.fold(source) for source in inputs], *params), np.float64
            )
        return self.folded[node]

    def _free(self, node: int) -> str:
        """A name for what a new node or constant produces: that of an equal tensor of the file, or a new one."""
        for name in self.tensors.get(node, ()):
            index = self.producer.get(name)
            if index is None or name in self.stated or name in self.given or self.claimed.get(name, node) != node:
                continue
            self.stated.add(name)
            return name
        name = self._new(self.nodes[node].op)
        self.stated.add(name)
        return name

    def _new(self, prefix: str) -> str:
        return self._unused(f"{prefix}_rewritten", self.taken)

    @staticmethod
    def _unused(prefix: str, taken: set[str]) -> str:
        name, count = prefix, 0
        while name in taken:
            count += 1
            name = f"{prefix}_{count}"
        taken.add(name)
        return name

    def _store(self, value: np.ndarray, name: str, dtype: str = "") -> str:
        import onnx

        if dtype:
            number = onnx.TensorProto.DataType.Value(dtype.upper())
            value = value.astype(onnx.helper.tensor_dtype_to_np_dtype(number))
        self.stored.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def _whole_numbers(self, values: Sequence[int]) -> str:
        return self._store(np.asarray(values, np.int64), self._new("constant"))

    # -- new nodes ---------------------------------------------------------------------------------------------

    def _make(self, node: int, key: tuple[int, str]) -> None:
        op, params, inputs, _ = self.nodes[node]
        dtype = key[1]
        if op in FOREIGN:
            raise InputError(f"{self.where} has no operator {params[0]!r}; is the solution of another file?")
        if self.opset < _LEAST_OPSET.get(op, 0) or op in ("enlarge", "merge"):
            raise InputError(
                f"{self.where}: its rewritten form has a new {op} of what is no constant, which opset {self.opset} "
                "cannot say; leave out the rules that bring it"
            )
        if op in ("split0", "split1") and self._make_parts(node, key):
            return
        out = self.names[key] = self._free(node)
        if op == "add" and self._make_biased(node, out, dtype):
            return
        if op == "conv2d":
            self._emit("Conv", [self.name(source, dtype) for source in inputs], out, **self._conv(node))
        elif op in ("maxpool", "avgpool"):
            self._make_pool(node, out, dtype)
        elif op in ("split0", "split1"):
            axis, at = params
            size = self.program.shape(inputs[0])[axis]
            self._make_slice(self.name(inputs[0], dtype), out, axis, *((0, at) if op == "split0" else (at, size)))
        elif op == "reshape":
            target = self._whole_numbers(self._target(node))
            self._emit("Reshape", [self.name(inputs[0], dtype), target], out)
        elif op == "layernorm":
            reads = [self.name(source, dtype) for source in inputs]
            self._emit("LayerNormalization", reads, out, axis=-1, epsilon=params[0])
        elif op in ("clip", "power"):
            self._make_with_numbers(node, out, dtype)
        elif op in ("leakyrelu", "hardsigmoid"):
            attributes = dict(zip(("alpha", "beta"), params, strict=False))
            self._emit(_SIMPLE[op], [self.name(inputs[0], dtype)], out, **attributes)
        elif op in ("reducesum", "reducemean"):
            axes, keepdims = params
            reads, attributes = [self.name(inputs[0], dtype)], {"keepdims": keepdims}
            if self.opset >= (13 if op == "reducesum" else 18):
                reads.append(self._whole_numbers(axes))
            else:
                attributes["axes"] = list(axes)
            self._emit(_SIMPLE[op], reads, out, **attributes)
        else:
            settings = {"concat": "axis", "softmax": "axis", "transpose": "perm"}
            attributes = {settings[op]: params[0]} if op in settings else {}
            self._emit(_SIMPLE[op], [self.name(source, dtype) for source in inputs], out, **attributes)

    def _emit(self, kind: str, reads: list[str], out: str, **attributes: Any) -> None:
        self.made.append(_Made(kind, reads, [out], attributes))

    def _conv(self, node: int) -> dict[str, Any]:
        _, (stride, padding, _), (x, w), _ = self.nodes[node]
        kernel = self.program.shape(w)[2:]
        groups = self.program.shape(x)[1] // self.program.shape(w)[1]
        return {"kernel_shape": kernel, "strides": stride, "pads": list(pads_of(kernel, padding)), "group": groups}

    def _make_biased(self, node: int, out: str, dtype: str) -> bool:
        """A product and a constant as one node: a convolution with its bias, a Gemm."""
        for product, bias in (self.nodes[node].inputs, self.nodes[node].inputs[::-1]):
            one = self.nodes[product]
            alone = self.program.users(product) == (node,) and product not in self.program.outputs
            if (
                one.op not in ("conv2d", "matmul") or not alone or product in self.maker
                or not self.program.is_static(bias) or bias in self.foreign_below
                or one.shape != self.program.shape(node)
                or self.program.is_static(product)
            ):  # fmt: skip
                continue
            size = self.program.shape(bias)
            x, w = one.inputs
            if one.op == "conv2d" and size[-3:] == (one.shape[1], 1, 1) and math.prod(size) == one.shape[1]:
                reads = [self.name(x, dtype), self.name(w, dtype), self._flat(bias, dtype)]
                self._emit("Conv", reads, out, **self._conv(product))
                return True
            if one.op == "matmul" and len(one.shape) == 2 and len(size) <= 2 and self.program.is_static(w):
                turned = self._turned(w)
                reads = [
                    self.name(x, dtype),
                    self.name(w if turned is None else turned, dtype),
                    self.name(bias, dtype),
                ]
                self._emit("Gemm", reads, out, **({} if turned is None else {"transB": 1}))
                return True
        return False

    def _turned(self, weight: int) -> int | None:
        """The weight of the file that a constant is the transpose of."""
        op, params, inputs, _ = self.nodes[weight]
        leaf = op == "transpose" and params[0] == (1, 0) and self.nodes[inputs[0]].op == "weight"
        return inputs[0] if leaf else None

    def _flat(self, bias: int, dtype: str) -> str:
        """A convolution's bias, as a vector."""
        op, _, inputs, _ = self.nodes[bias]
        if op == "reshape" and len(self.program.shape(inputs[0])) == 1:
            return self.name(inputs[0], dtype)
        return self._store(self.fold(bias).reshape(-1), self._new("bias"), self.dtype(bias) or dtype)

    def _make_pool(self, node: int, out: str, dtype: str) -> None:
        op, (kernel, stride, padding), (x,), _ = self.nodes[node]
        reads = [self.name(x, dtype)]
        if op == "avgpool" and kernel == self.program.shape(x)[2:] and (padding == "valid" or kernel == (1, 1)):
            self._emit("GlobalAveragePool", reads, out)
            return
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": list(pads_of(kernel, padding))}
        if op == "avgpool":
            attributes["count_include_pad"] = 1
        self._emit("MaxPool" if op == "maxpool" else "AveragePool", reads, out, **attributes)

    def _make_with_numbers(self, node: int, out: str, dtype: str) -> None:
        """What has its numbers as operands; before opset 11 a Clip has them as attributes."""
        op, params, (x,), _ = self.nodes[node]
        if op == "clip" and self.opset < 11:
            self._emit("Clip", [self.name(x, dtype)], out, min=params[0], max=params[1])
            return
        numbers = [self._store(np.asarray(one), self._new("constant"), dtype) for one in params]
        self._emit(_SIMPLE[op], [self.name(x, dtype), *numbers], out)

    def _make_parts(self, node: int, key: tuple[int, str]) -> bool:
        """A tensor in parts that are all needed, by one Split."""
        (axis, _), (whole,) = self.nodes[node].params, self.nodes[node].inputs
        root = node
        while True:  # up, as long as the rest of one cut is cut again and nothing else
            parent = self.nodes[root].inputs[0]
            one = self.nodes[parent]
            if one.op != "split1" or one.params[0] != axis or parent in self.maker or not self._only_cut(parent, axis):
                break
            root = parent
        whole = self.nodes[root].inputs[0]
        parts: list[int] = []
        rest = whole
        while True:
            cuts = [cut for cut in self.program.users(rest) if self.nodes[cut].op in ("split0", "split1")]
            at = next((self.nodes[cut].params for cut in cuts if self.nodes[cut].params[0] == axis), None)
            pair = [self.program.find(which, at, (rest,)) for which in ("split0", "split1")] if at else [None]
            if None in pair or any(cut in self.maker for cut in pair if cut is not None):
                break
            parts.append(pair[0])  # type: ignore[arg-type]
            rest = pair[1]  # type: ignore[assignment]
            if not self._only_cut(rest, axis):
                break
        if not parts:
            return False
        parts.append(rest)
        if node not in parts:
            return False
        names = []
        for part in parts:
            self.names[part, key[1]] = self._free(part)
            names.append(self.names[part, key[1]])
        sizes = [self.program.shape(part)[axis] for part in parts]
        reads, attributes = [self.name(whole, key[1])], {"axis": axis}
        if self.opset >= 13:
            reads.append(self._whole_numbers(sizes))
        else:
            attributes["split"] = sizes
        self.made.append(_Made("Split", reads, names, attributes))
        return True

    def _only_cut(self, node: int, axis: int) -> bool:
        """Whether a tensor is read by the two cuts of one place alone."""
        users = [self.nodes[user] for user in self.program.users(node)]
        cut = {one.params for one in users if one.op in ("split0", "split1")}
        return len(users) == 2 and len(cut) == 1 and all(one.op in ("split0", "split1") for one in users) and (
            next(iter(cut))[0] == axis and node not in self.program.outputs
        )  # fmt: skip

    def _make_slice(self, x: str, out: str, axis: int, begin: int, end: int) -> None:
        end = 2**31 - 1 if begin else end  # to the end, whatever its size
        if self.opset >= 10:
            self._emit("Slice", [x, *[self._whole_numbers([value]) for value in (begin, end, axis)]], out)
        else:
            self._emit("Slice", [x], out, starts=[begin], ends=[end], axes=[axis])

    def _target(self, node: int) -> list[int]:
        """What a Reshape is given: 0 for a size that stays, -1 for one that follows, where sizes are open."""
        target = list(self.nodes[node].params[0])
        source = self.nodes[node].inputs[0]
        if not self.elsewhere:
            return target
        there, before, after = self.elsewhere[node], self.program.shape(source), self.elsewhere[source]
        varying = [axis for axis, size in enumerate(target) if there[axis] != size]
        if len(varying) > 1:
            for axis in varying:
                if axis < len(before) and before[axis] == target[axis] and after[axis] == there[axis]:
                    target[axis] = 0
            varying = [axis for axis in varying if target[axis]]
        for axis in varying[:1]:
            target[axis] = -1
        return target


def _copy_without_weights(model: onnx.ModelProto, copy: onnx.ModelProto) -> None:
    """Copies all but the weights, which are large."""
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    copy.CopyFrom(model)
    model.graph.initializer.extend(weights)


def _onnx_type(value: np.ndarray) -> str:
    return {"float32": "float", "float64": "double"}.get(value.dtype.name, value.dtype.name)


def _reshaped(target: Shape, before: Shape, after: Shape) -> Shape:
    """What a reshape to ``target`` of a tensor of sizes ``before`` means where these are ``after``.

    Sizes are parted into the least runs that hold as many elements on both sides; in a run with a size that grew, the
    first size of the target that can grows with it.
    """
    sizes = list(target)
    i = j = 0
    while i < len(before) and j < len(target):
        first, start = i, j
        mine, theirs = before[i], target[j]
        while mine != theirs:
            if mine < theirs:
                i += 1
                mine *= before[i]
            else:
                j += 1
                theirs *= target[j]
        i, j = i + 1, j + 1
        ratio = Fraction(math.prod(after[first:i]), mine)
        for axis in range(start, j):
            if ratio != 1 and (sizes[axis] * ratio).denominator == 1:
                sizes[axis] = int(sizes[axis] * ratio)
                break
    return tuple(sizes)


# -- checking ----------------------------------------------------------------------------------------------------------


# at sizes of open dimensions, inputs and outputs of several runs
Runs = list[tuple[dict[str, int], list[tuple[dict[str, Any], list[Any]]]]]


def original_runs(source: OnnxProgram) -> Runs:
    """Runs of a file in onnxruntime, on random inputs: at the sizes read, and at others, where it holds for these:
    all twice as large, and each alone.

    Raises:
        InputError: onnxruntime is not installed, or does not run it.
    """
    where = f"ONNX file {quoted(os.fspath(source.path))}"
    model, _ = _whole(source.path, where)
    sizes = [dict(source.dims)]
    if source.dims:
        sizes.append({key: 2 * size for key, size in source.dims.items()})
    if len(source.dims) > 1:
        sizes += [source.dims | {key: 2 * size} for key, size in source.dims.items()]
    try:
        session = open_session(source.path, where)
    except NoKernel as error:
        raise InputError(f"{error}; so its rewritten form cannot be checked, and is not written") from None
    found: Runs = []
    for dims in sizes:
        try:
            shapes = _input_shapes(model, dims, where)
            found.append((dims, [drawn_run(session, model, shapes, seed) for seed in (1, 2)]))
        except InputError as error:
            if not found:
                raise InputError(f"{where}: {error}; so its rewritten form cannot be checked") from None
    return found


def check_same(source: OnnxProgram, model: onnx.ModelProto, runs: Runs) -> None:
    """Run an edited model in onnxruntime on the inputs that its original ran on.

    Raises:
        InputError: the outputs differ by more than rounding, or onnxruntime does not run it.
    """
    where = f"ONNX file {quoted(os.fspath(source.path))}"
    with tempfile.TemporaryDirectory(prefix="graphopt.") as folder:
        given: str | bytes
        if model.ByteSize() < MOST_BYTES:
            given = model.SerializeToString()
        else:
            import onnx

            given = os.path.join(folder, "model.onnx")
            onnx.save(model, given, save_as_external_data=True, location="model.data")
        after = open_session(given, f"the rewritten form of {where}")
        for dims, several in runs:
            for feeds, expected in several:
                _compare(source, after, model, feeds, expected, dims)


def _input_shapes(model: onnx.ModelProto, dims: Mapping[str, int], where: str) -> dict[str, Shape]:
    import onnx

    graph = onnx.GraphProto()
    names = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in names)
    bind(graph, dict(dims), where)
    return {value.name: shape_of(value.type) or () for value in graph.input}


def _compare(
    source: OnnxProgram,
    after: Any,
    model: onnx.ModelProto,
    feeds: Mapping[str, Any],
    expected: Sequence[Any],
    dims: Mapping[str, int],
) -> None:
    where, names = f"ONNX file {quoted(os.fspath(source.path))}", [value.name for value in model.graph.output]
    at = f" at {', '.join(f'{key}={size}' for key, size in dims.items())}" if dims else ""
    try:
        results = run(after, names, feeds)
    except Exception as error:  # onnxruntime's own have no public base
        raise InputError(
            f"{where}: onnxruntime does not run its rewritten form{at}, so it is not written: {said(error)}"
        ) from None
    for name, mine, theirs in zip(names, expected, results, strict=True):
        wrong = difference(mine, theirs)
        if wrong:
            raise InputError(f"{where}: output {name!r} of its rewritten form{at} {wrong}; it is not written")


def difference(mine: Any, theirs: Any) -> str:
    """What is not the same in two outputs; empty where they differ by rounding alone."""
    if isinstance(mine, list | tuple):
        if len(mine) != len(theirs):
            return f"holds {len(theirs)} tensors, the original's {len(mine)}"
        return next((wrong for one in zip(mine, theirs, strict=True) if (wrong := difference(*one))), "")
    if mine is None or theirs is None or isinstance(mine, dict):
        return "" if mine == theirs else "is another one"
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return f"is {theirs.dtype}{list(theirs.shape)}, the original's {mine.dtype}{list(mine.shape)}"
    tolerance = TOLERANCE.get(mine.dtype.name)
    if tolerance is None:
        count = int((mine != theirs).sum())
        return f"differs in {count} of {mine.size} elements of {mine.dtype}" if count else ""
    wide, other = mine.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(finite, np.isfinite(other)) or not np.array_equal(
        wide[~finite], other[~finite], equal_nan=True
    ):
        return "has infinities or NaNs elsewhere"
    largest = float(np.abs(wide[finite]).max(initial=0.0))
    apart = float(np.abs(wide[finite] - other[finite]).max(initial=0.0))
    return f"differs by {apart:.3g} where the largest is {largest:.3g}" if apart > tolerance * largest else ""
