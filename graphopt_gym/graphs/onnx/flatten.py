"""Lays an ONNX model flat: types of all tensors, branches taken, loops unrolled, sequences resolved.

Shapes come from ``onnx.shape_inference``, node by node; ``onnx.reference`` works out on the way what follows from
shapes and constants alone, so that shapes a model computes for itself are known, and with them which branch of an
``If`` is taken and how often a ``Loop`` runs, where that is decided before the step starts. Else:

- of an ``If`` the costlier branch counts, or that which ``dims={"branch:NAME": 1}`` (then) or ``0`` (else) names;
- a ``Loop`` runs as often as its trip count says, whatever its condition; without one, as ``dims={"trips:NAME": 8}``.

What a subgraph takes from outside is an edge like any other. Sequences and optionals are resolved to the tensors in
them, so their positions and lengths must be known.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.graphs.graph import DTYPE_BYTES, VIEW
from graphopt_gym.graphs.onnx import contrib
from graphopt_gym.graphs.onnx.front import UNFIT, attributes_of, fix, node_name, refuse, shape_of
from graphopt_gym.graphs.onnx.operators import OWN, SAME_SIZE, class_of, flops_of, is_contrib

if TYPE_CHECKING:
    import onnx

SMALL = 65536  # elements up to which the value of a constant is worked out
MOST_NODES = 200_000  # after unrolling
UNBOUNDED = 2**31  # a trip count from here on stands for "while"
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_NOT_INFERRED = frozenset({"GroupNormalization", "MeanVarianceNormalization"})  # by onnx: the shape of the input
# To tell the costlier of two branches: a device of 10 TFLOP/s and 1 TB/s.
_FLOPS_PER_S, _BYTES_PER_S = 1e13, 1e12


@dataclass
class FlatModel:
    """A model without control flow. Names of tensors are unique; those inside subgraphs begin with their node's."""

    nodes: list[onnx.NodeProto]
    types: dict[str, onnx.TypeProto]  # as far as they can be known
    initializers: dict[str, onnx.TensorProto]
    generated: set[str]  # those of them that came of unrolling: counters and lengths
    inputs: list[str]
    outputs: list[str]
    choices: dict[str, str] = field(default_factory=dict)  # which branches and how many rounds were taken
    assumed: list[str] = field(default_factory=list)  # those of them that depend on data, and were not given


class _Branch(NamedTuple):
    nodes: list[onnx.NodeProto]
    outputs: list[str]
    endless: dict[str, None]
    choices: dict[str, str]
    assumed: list[str]


def choices_of(graph: onnx.GraphProto) -> list[str]:
    """Keys of ``dims`` that choose branches and numbers of rounds, of all subgraphs too."""
    found = []
    for node in graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type in ("If", "Loop"):
            found.append(_key(node))
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += choices_of(inner)
    return found


def _key(node: onnx.NodeProto) -> str:
    return f"{'branch' if node.op_type == 'If' else 'trips'}:{node_name(node)}"


def flatten(model: onnx.ModelProto, dims: Mapping[str, int], where: str) -> FlatModel:
    """The flat form of a model whose dimensions are bound.

    Raises:
        InputError: how often a loop runs is not known (all are named), a sequence's length or position is not, or
            unrolling makes too many nodes.
    """
    return _Flattener(model, dims, where).run()


def known_of(model: onnx.ModelProto, where: str) -> tuple[dict[str, onnx.TypeProto], dict[str, onnx.TensorProto]]:
    """Types of a bound model's tensors, and values of those that follow from shapes and constants alone.

    Control flow is left as it is: of what a subgraph gives, the types that the file states are known.
    """
    flattener = _Flattener(model, {}, where)
    flattener.handlers = {}
    flattener.run()
    return flattener.types, flattener.values


class _Flattener:
    def __init__(self, model: onnx.ModelProto, dims: Mapping[str, int], where: str) -> None:
        self.model, self.dims, self.where = model, dims, where
        self.versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = self.versions.get("", self.versions.get("ai.onnx", 1))
        self.nodes: list[onnx.NodeProto] = []
        self.types: dict[str, onnx.TypeProto] = {}
        self.stated: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, onnx.TensorProto] = {}  # small tensors whose contents are known before the step
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.generated: set[str] = set()
        self.sequences: dict[str, list[str]] = {}
        self.absent: set[str] = set()  # optionals that hold nothing
        self.choices: dict[str, str] = {}
        self.assumed: list[str] = []
        self.endless: dict[str, None] = {}  # loops of which it is not known how often they run
        self.emitted = 0
        self.handlers: dict[str, Callable[..., None]] = {
            "If": self._if,
            "Loop": self._loop,
            "Scan": self._scan,
            "SequenceMap": self._sequence_map,
            "SequenceEmpty": self._sequence_empty,
            "SequenceConstruct": self._sequence_construct,
            "SequenceInsert": self._sequence_insert,
            "SequenceErase": self._sequence_erase,
            "SequenceAt": self._sequence_at,
            "SequenceLength": self._sequence_length,
            "SplitToSequence": self._split_to_sequence,
            "ConcatFromSequence": self._concat_from_sequence,
            "Optional": self._optional,
            "OptionalGetElement": self._optional_get,
            "OptionalHasElement": self._optional_has,
        }

    def run(self) -> FlatModel:
        graph = self.model.graph
        scope: dict[str, str] = {}
        self._begin(graph, scope, "")
        for value in graph.input:
            self.types.setdefault(value.name, value.type)
        self._walk(graph.node, scope, "")
        if self.endless:
            refuse(
                f"{self.where} has loops whose number of rounds depends on data",
                [f"Loop {name}" for name in self.endless],
                f"give it: {fix([f'trips:{name}' for name in self.endless], '8')}",
            )
        inputs = [value.name for value in graph.input if value.name not in self.initializers]
        outputs = [name for value in graph.output for name in self._tensors(scope.get(value.name, value.name))]
        return FlatModel(
            self.nodes, self.types, self.initializers, self.generated, inputs, outputs, self.choices, self.assumed
        )

    # -- graphs and nodes ---------------------------------------------------------------------------------------

    def _begin(self, graph: onnx.GraphProto, scope: dict[str, str], prefix: str) -> None:
        """Takes in what a graph says of its tensors, under a prefix."""
        import onnx

        for tensor in graph.initializer:
            name = scope[tensor.name] = prefix + tensor.name
            if name in self.initializers:
                continue
            self.initializers[name] = tensor
            self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if math.prod(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
                self.values[name] = tensor
        if not prefix:
            scope.clear()  # the names are the names
        self.stated.update({prefix + value.name: value.type for value in (*graph.value_info, *graph.output)})

    def _walk(self, nodes: Iterable[onnx.NodeProto], scope: dict[str, str], prefix: str) -> None:
        for node in nodes:
            handler = self.handlers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            held = [scope.get(name, name) for name in node.input if scope.get(name, name) in self.sequences]
            if handler is not None:
                try:
                    handler(node, scope, prefix)
                except UNFIT as error:
                    if isinstance(error, InputError):
                        raise
                    raise InputError(f"{self._label(node)}: its attributes and inputs do not fit") from error
            elif held and node.op_type == "Identity":
                self._bind(node.output[0], held[0], scope, prefix)
            elif held:
                raise InputError(f"{self._label(node)} takes a sequence of tensors, which is not known of it")
            else:
                self._emit(self._renamed(node, scope, prefix))

    def _label(self, node: onnx.NodeProto) -> str:
        return f"{self.where}: {node.op_type} {quoted(node_name(node))}"

    def _renamed(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> onnx.NodeProto:
        """A node as it stands in the flat graph; its outputs get names there."""
        import onnx

        if not prefix:
            if not any(name in scope for name in node.input):
                return node
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [scope.get(name, name) for name in node.input]
            return copy
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node_name(node)
        copy.input[:] = [scope.get(name, name) for name in node.input]
        copy.output[:] = [prefix + name if name else "" for name in node.output]
        scope.update({name: prefix + name for name in node.output if name})
        return copy

    def _bind(self, name: str, to: str, scope: dict[str, str], prefix: str) -> None:
        """Lets a name stand for a tensor or a sequence that is there already."""
        scope[name] = to
        stated = self.stated.get(prefix + name)
        if stated is not None and shape_of(self.types.get(to)) is None and shape_of(stated) is not None:
            self.types[to] = stated

    def _emit(self, node: onnx.NodeProto) -> None:
        self.emitted += 1
        if self.emitted > MOST_NODES:
            raise InputError(f"{self.where}: its loops make more than {MOST_NODES:,} operators; give fewer rounds")
        self._infer(node)
        self.nodes.append(node)

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = OWN, **attributes: Any
    ) -> None:
        """A node of our own making, called after its first output."""
        import onnx

        self._emit(onnx.helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))

    def _constant(self, name: str, value: Any) -> str:
        import onnx

        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
        self.initializers[name] = self.values[name] = tensor
        self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        self.generated.add(name)
        return name

    def _value(self, name: str) -> np.ndarray | None:
        import onnx

        return onnx.numpy_helper.to_array(self.values[name]) if name in self.values else None

    def _whole(self, node: onnx.NodeProto, name: str, what: str) -> int:
        value = self._value(name)
        if value is None:
            raise InputError(f"{self._label(node)}: its {what} depends on data; make it a constant")
        return int(value.reshape(-1)[0])

    def _tensors(self, name: str) -> list[str]:
        """The tensors of a name: itself, or those of the sequence that it is."""
        if name in self.absent:
            return []
        return (
            [part for item in self.sequences[name] for part in self._tensors(item)]
            if name in self.sequences
            else [name]
        )

    def _rank_and_size(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        shape = shape_of(self.types.get(name))
        if shape is None:
            raise InputError(f"{self._label(node)}: the shape of its input {quoted(name)} is not known")
        return shape

    # -- control flow -------------------------------------------------------------------------------------------

    def _inline(
        self, graph: onnx.GraphProto, given: Mapping[str, str], scope: dict[str, str], shared: str, prefix: str
    ) -> list[str]:
        """Adds a subgraph's nodes; the tensors that are its outputs. ``shared`` begins the names of its weights."""
        inner = dict(scope)
        self._begin(graph, inner, shared)
        inner |= given
        self.stated.update({prefix + value.name: value.type for value in (*graph.value_info, *graph.output)})
        self._walk(graph.node, inner, prefix)
        return [inner.get(value.name, value.name) for value in graph.output]

    def _if(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        branches = {name: attributes_of(node)[f"{name}_branch"] for name in ("then", "else")}
        condition, key = self._value(scope.get(node.input[0], node.input[0])), _key(node)
        taken, why = "", "the costlier"
        if condition is not None:
            taken, why = ("then" if condition.reshape(-1)[0] else "else"), "its condition is constant"
        if key in self.dims:
            taken, why = ("then" if self.dims[key] else "else"), "as given"
        label = f"{prefix}{node_name(node)}"
        found: dict[str, _Branch] = {}
        for name, branch in branches.items():
            if taken in ("", name):
                found[name] = self._branch(branch, scope, f"{label}/{name}/")
        if not taken:
            taken = max(found, key=lambda name: self._cost(found[name].nodes))
            self.assumed.append(f"If {label} ({taken}, the costlier)")
        self.choices[label] = f"{taken}: {why}"
        self.nodes += found[taken].nodes
        self.endless |= found[taken].endless
        self.choices |= found[taken].choices
        self.assumed += found[taken].assumed
        outputs = found[taken].outputs
        for name, output in zip(node.output, outputs, strict=True):
            if name:
                self._bind(name, output, scope, prefix)

    def _branch(self, graph: onnx.GraphProto, scope: dict[str, str], prefix: str) -> _Branch:
        """What a branch would add."""
        kept = self.nodes, self.endless, self.choices, self.assumed
        self.nodes, self.endless, self.choices, self.assumed = [], {}, {}, []
        outputs = self._inline(graph, {}, scope, prefix, prefix)
        branch = _Branch(self.nodes, outputs, self.endless, self.choices, self.assumed)
        self.nodes, self.endless, self.choices, self.assumed = kept
        return branch

    def _cost(self, nodes: Iterable[onnx.NodeProto]) -> float:
        """Seconds of nodes, roughly; what cannot be priced counts nothing."""
        total = 0.0
        for node in nodes:
            given = [self._tensor(name) for name in node.input]
            out = [tensor for name in node.output if (tensor := self._tensor(name)) is not None]
            if class_of(node) == VIEW or not out:
                continue
            with contextlib.suppress(*UNFIT):
                total += (flops_of(node, given, out[0]) or 0) / _FLOPS_PER_S
            moved = sum(tensor.elements * DTYPE_BYTES.get(tensor.dtype, 4) for tensor in (*filter(None, given), *out))
            total += moved / _BYTES_PER_S
        return total

    def _loop(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        body, label = attributes_of(node)["body"], node_name(node)
        names = [scope.get(name, name) for name in node.input]
        most = self._value(names[0]) if names[0] else None
        limit = None if most is None or most.reshape(-1)[0] >= UNBOUNDED else int(most.reshape(-1)[0])
        given = self.dims.get(_key(node))
        why = "its trip count" if given is None else "as given"
        if names[0] and most is None and given is None:
            self.endless[label] = None
            given = 1  # to find the others
        begin = f"{prefix}{label}/"
        condition = names[1] if len(names) > 1 and names[1] else self._constant(f"{begin}cond", True)
        carried, scanned = names[2:], [[] for _ in body.output[len(names) - 1 :]]  # type: list[str], list[list[str]]
        rounds = 0
        while rounds != (limit if given is None else given):
            if given is None:
                going = self._value(condition)
                if going is not None and not going.reshape(-1)[0]:
                    why = "until its condition is false"
                    break
                if going is None and limit is None:
                    self.endless[label] = None
                    given = rounds + 1
                elif going is None:
                    why = "as many as there may be"
            here = f"{begin}{rounds}/"
            inside = [self._constant(f"{here}iteration", np.int64(rounds)), condition, *carried]
            given_names = dict(zip([value.name for value in body.input], inside, strict=True))
            outputs = self._inline(body, given_names, scope, begin, here)
            condition, carried = outputs[0], outputs[1 : 1 + len(carried)]
            for row, output in zip(scanned, outputs[1 + len(carried) :], strict=True):
                row.append(output)
            rounds += 1
        self.choices[prefix + label] = f"{rounds} rounds: {why}"
        if why == "as many as there may be":
            self.assumed.append(f"Loop {prefix}{label} ({rounds} rounds, {why})")
        results = [*carried, *self._stacked(node, scanned, [0] * len(scanned), scope, prefix)]
        for name, output in zip(node.output, results, strict=False):
            if name and output:
                self._bind(name, output, scope, prefix)

    def _stacked(
        self, node: onnx.NodeProto, rows: list[list[str]], axes: list[int], scope: dict[str, str], prefix: str
    ) -> list[str]:
        """One tensor of each row of tensors, along a new axis."""
        outputs = node.output[len(node.output) - len(rows) :] if rows else []
        found = []
        for name, row, axis in zip(outputs, rows, axes, strict=True):
            if not name:
                found.append("")
                continue
            out = prefix + name
            if row:
                self._add("Stack", row, [out], axis=axis)
            elif shape_of(self.stated.get(out)) is not None:
                self.types[out] = self.stated[out]
            found.append(out)
        return found

    def _scan(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        if self.opset < 9:
            raise InputError(f"{self._label(node)} is of opset {self.opset}; convert it to 9 or later")
        attributes = attributes_of(node)
        body, count = attributes["body"], int(attributes["num_scan_inputs"])
        names = [scope.get(name, name) for name in node.input]
        carried, sources = names[: len(names) - count], names[len(names) - count :]
        axes = attributes.get("scan_input_axes") or [0] * count
        backwards = attributes.get("scan_input_directions") or [0] * count
        shapes = [self._rank_and_size(node, name) for name in sources]
        axes = [axis % len(shape) for axis, shape in zip(axes, shapes, strict=True)]
        rounds = shapes[0][axes[0]]
        begin = f"{prefix}{node_name(node)}/"
        results = len(body.output) - len(carried)
        scanned: list[list[str]] = [[] for _ in range(results)]
        for step in range(rounds):
            here, inside = f"{begin}{step}/", list(carried)
            for number, (source, axis) in enumerate(zip(sources, axes, strict=True)):
                inside.append(f"{here}in{number}")
                index = rounds - 1 - step if backwards[number] else step
                self._add("Select", [source], [inside[-1]], axis=axis, index=index)
            given = dict(zip([value.name for value in body.input], inside, strict=True))
            outputs = self._inline(body, given, scope, begin, here)
            carried = outputs[: len(carried)]
            for row, output in zip(scanned, outputs[len(carried) :], strict=True):
                row.append(output)
        reverse = attributes.get("scan_output_directions") or [0] * results
        scanned = [row[::-1] if back else row for row, back in zip(scanned, reverse, strict=True)]
        self.choices[prefix + node_name(node)] = f"{rounds} rounds: the length of what it scans"
        stacked = self._stacked(node, scanned, attributes.get("scan_output_axes") or [0] * results, scope, prefix)
        for name, output in zip(node.output, [*carried, *stacked], strict=False):
            if name and output:
                self._bind(name, output, scope, prefix)

    # -- sequences and optionals --------------------------------------------------------------------------------

    def _sequence(self, node: onnx.NodeProto, scope: dict[str, str]) -> list[str]:
        name = scope.get(node.input[0], node.input[0])
        if name not in self.sequences:
            raise InputError(f"{self._label(node)}: what its sequence {quoted(name)} holds is not known")
        return self.sequences[name]

    def _hold(self, name: str, tensors: Sequence[str], scope: dict[str, str], prefix: str) -> None:
        held = f"{prefix}{name}"
        self.sequences[held] = list(tensors)
        scope[name] = held

    def _sequence_empty(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        self._hold(node.output[0], [], scope, prefix)

    def _sequence_construct(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        self._hold(node.output[0], [scope.get(name, name) for name in node.input], scope, prefix)

    def _position(self, node: onnx.NodeProto, scope: dict[str, str], index: int, default: int) -> int:
        if len(node.input) <= index or not node.input[index]:
            return default
        return self._whole(node, scope.get(node.input[index], node.input[index]), "position")

    def _sequence_insert(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        held = self._sequence(node, scope)
        position = self._position(node, scope, 2, len(held))
        item = scope.get(node.input[1], node.input[1])
        self._hold(node.output[0], [*held[:position], item, *held[position:]], scope, prefix)

    def _sequence_erase(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        held = self._sequence(node, scope)
        position = self._position(node, scope, 1, -1) % len(held)
        self._hold(node.output[0], [*held[:position], *held[position + 1 :]], scope, prefix)

    def _sequence_at(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        held = self._sequence(node, scope)
        position = self._position(node, scope, 1, 0)
        if not -len(held) <= position < len(held):
            raise InputError(f"{self._label(node)} takes item {position} of a sequence of {len(held)}")
        self._bind(node.output[0], held[position], scope, prefix)

    def _sequence_length(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        length = np.int64(len(self._sequence(node, scope)))
        self._bind(node.output[0], self._constant(prefix + node.output[0], length), scope, prefix)

    def _split_to_sequence(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        attributes, source = attributes_of(node), scope.get(node.input[0], node.input[0])
        shape = self._rank_and_size(node, source)
        axis = int(attributes.get("axis", 0)) % len(shape)
        given = scope.get(node.input[1], node.input[1]) if len(node.input) > 1 and node.input[1] else ""
        base = prefix + node.output[0]
        if not given and not attributes.get("keepdims", 1):
            parts = [f"{base}/{index}" for index in range(shape[axis])]
            for index, part in enumerate(parts):
                self._add("Select", [source], [part], axis=axis, index=index)
        else:
            sizes: list[int] = [1] * shape[axis]
            if given:
                value = self._value(given)
                if value is None:
                    raise InputError(f"{self._label(node)}: its sizes depend on data; make them constants")
                sizes = value.reshape(-1).tolist()
                if value.ndim == 0:
                    whole, rest = divmod(shape[axis], sizes[0])
                    sizes = [sizes[0]] * whole + [rest] * bool(rest)
            parts = [f"{base}/{index}" for index in range(len(sizes))]
            if self.opset >= 13:
                self._add(
                    "Split", [source, self._constant(f"{base}/sizes", np.array(sizes, np.int64))], parts, "", axis=axis
                )
            else:
                self._add("Split", [source], parts, "", axis=axis, split=sizes)
        self._hold(node.output[0], parts, scope, prefix)

    def _concat_from_sequence(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        attributes, held = attributes_of(node), self._sequence(node, scope)
        if not held:
            raise InputError(f"{self._label(node)} joins an empty sequence")
        out, axis = prefix + node.output[0], int(attributes["axis"])
        if attributes.get("new_axis", 0):
            self._add("Stack", held, [out], axis=axis)
        else:
            self._add("Concat", held, [out], "", axis=axis)
        self._bind(node.output[0], out, scope, prefix)

    def _sequence_map(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        body, label = attributes_of(node)["body"], node_name(node)
        length = len(self._sequence(node, scope))
        rows: list[list[str]] = [[] for _ in body.output]
        names = [scope.get(name, name) for name in node.input]
        for index in range(length):
            begin = f"{prefix}{label}/"
            inside = [self.sequences[name][index] if name in self.sequences else name for name in names]
            given = dict(zip([value.name for value in body.input], inside, strict=True))
            outputs = self._inline(body, given, scope, begin, f"{begin}{index}/")
            for row, output in zip(rows, outputs, strict=True):
                row.append(output)
        self.choices[prefix + label] = f"{length} rounds: the length of its sequence"
        for name, row in zip(node.output, rows, strict=True):
            self._hold(name, row, scope, prefix)

    def _optional(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        if node.input and node.input[0]:
            self._bind(node.output[0], scope.get(node.input[0], node.input[0]), scope, prefix)
        else:
            self.absent.add(prefix + node.output[0])
            scope[node.output[0]] = prefix + node.output[0]

    def _optional_get(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        name = scope.get(node.input[0], node.input[0])
        if name in self.absent:
            raise InputError(f"{self._label(node)} takes what an empty optional holds")
        self._bind(node.output[0], name, scope, prefix)

    def _optional_has(self, node: onnx.NodeProto, scope: dict[str, str], prefix: str) -> None:
        name = scope.get(node.input[0], node.input[0]) if node.input else ""
        has = bool(name) and name not in self.absent
        self._bind(node.output[0], self._constant(prefix + node.output[0], has), scope, prefix)

    # -- types and values ---------------------------------------------------------------------------------------

    def _tensor(self, name: str) -> contrib.Tensor | None:
        import onnx

        shape = shape_of(self.types.get(name))
        if shape is None:
            return None
        kind = self.types[name].tensor_type.elem_type
        known = kind in onnx.TensorProto.DataType.values()
        dtype = onnx.TensorProto.DataType.Name(kind).lower() if known else ""
        return contrib.Tensor(SAME_SIZE.get(dtype, dtype), shape)

    def _infer(self, node: onnx.NodeProto) -> None:
        """The types of a node's outputs, where inference gives up those that the file states; and small values."""
        import onnx.shape_inference

        given = {name: self.types[name] for name in node.input if name in self.types}
        found: dict[str, onnx.TypeProto] = {}
        complete = len(given) == len({name for name in node.input if name})
        if node.domain == OWN or is_contrib(node):
            # what does not fit is refused later, where no shape is stated
            with contextlib.suppress(*UNFIT):
                found = self._own_types(node)
        elif complete:
            # an operator of another domain, or types that do not fit, are refused later, where none is stated
            with contextlib.suppress(Exception):  # of half a dozen types, for what the checker lets pass
                found = onnx.shape_inference.infer_node_outputs(
                    onnx.defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain),
                    node,
                    given,
                    {name: self.values[name] for name in given if name in self.values},
                    opset_imports=list(self.model.opset_import),
                    ir_version=self.model.ir_version,
                )
        if node.op_type in _NOT_INFERRED and node.domain == "":
            found = {node.output[0]: given[node.input[0]]} if node.input[0] in given else {}
        for name in node.output:
            kinds = [kind for kind in (found.get(name), self.stated.get(name)) if kind is not None]
            if kinds:
                self.types[name] = next((kind for kind in kinds if shape_of(kind) is not None), kinds[0])
        known = node.op_type in ("Shape", "Size") or self.values.keys() >= {name for name in node.input if name}
        shapes = [shape_of(self.types.get(name)) for name in node.output if name]
        small = all(shape is not None and math.prod(shape) <= SMALL for shape in shapes)
        if known and small and node.op_type not in RANDOM and node.domain in ("", "ai.onnx"):
            self.values.update(self._evaluate(node, given))

    def _own_types(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """Of operators that onnx has no schema of."""
        import onnx

        attributes = attributes_of(node)
        given = [self._tensor(name) if name else None for name in node.input]
        if node.domain == OWN:
            first = given[0]
            if first is None:
                return {}
            axis = attributes["axis"]
            if node.op_type == "Select":
                shape = first.shape[:axis] + first.shape[axis + 1 :]
            else:
                axis %= len(first.shape) + 1
                shape = (*first.shape[:axis], len(given), *first.shape[axis:])
            elements = self.types[node.input[0]].tensor_type.elem_type
            return {node.output[0]: onnx.helper.make_tensor_type_proto(elements, shape)}
        found = {}
        for name, tensor in zip(node.output, contrib.outputs_of(node.op_type, attributes, given), strict=False):
            if name and tensor is not None:
                number = onnx.TensorProto.DataType.Value(_ONNX_NAMES.get(tensor.dtype, tensor.dtype.upper()))
                found[name] = onnx.helper.make_tensor_type_proto(number, tensor.shape)
        return found

    def _evaluate(self, node: onnx.NodeProto, given: Mapping[str, onnx.TypeProto]) -> dict[str, onnx.TensorProto]:
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
                if name in self.values:
                    feeds[name] = onnx.numpy_helper.to_array(self.values[name])
                elif (shape := shape_of(kind)) is not None:
                    feeds[name] = np.broadcast_to(np.float32(0), shape)  # takes no memory
            with np.errstate(all="ignore"):
                results = onnx.reference.ReferenceEvaluator(graph, opsets=dict(self.versions)).run(None, feeds)
            return {
                name: onnx.numpy_helper.from_array(np.asarray(result), name)
                for name, result in zip([name for name in node.output if name], results, strict=True)
            }
        except Exception:  # whatever an operator's reference raises: the value stays unknown, a shape may too
            return {}


_ONNX_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}
