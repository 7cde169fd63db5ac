"""The program: hash-consed nodes under stable ids, and the builder that makes and edits programs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program.ops import ADDED, FLOATS, OPS, Params, Shape, infer, make_params


class Node(NamedTuple):
    """One op: what it does, with which parameters (in the operator's order), on which nodes, and the shape it gives."""

    op: str
    params: Params
    inputs: tuple[int, ...]
    shape: Shape

    def param(self, name: str) -> Any:
        return self.params[list(OPS[self.op].params).index(name)]


@dataclass(frozen=True)
class Change:
    """What an edit did to a program, by node id.

    Attributes:
        added: nodes that were not there before.
        rewired: nodes that read other nodes than before (same op, parameters, shape).
        removed: nodes that are gone.
        folded: other nodes that became, or stopped being, a constant of weights alone.
    """

    added: frozenset[int]
    rewired: frozenset[int]
    removed: frozenset[int]
    folded: frozenset[int]


class TensorProgram:
    """A tensor program that cannot be changed; two nodes never compute the same op of the same operands.

    Programs made by :meth:`edit` share nodes with the one they came from, and a node that is in both keeps its id.

    Attributes:
        name: what the program is called.
        nodes: id -> :class:`Node`, only those that an output depends on; in no particular order.
        outputs: ids of the results, in order.

    Programs are equal, and hash equal, where they are isomorphic: same ops, parameters, operand order, leaf names and
    shapes, outputs in the same order; ids and names of programs do not matter.
    """

    def __init__(
        self,
        name: str,
        nodes: dict[int, Node],
        outputs: tuple[int, ...],
        ids: dict[tuple[str, Params, tuple[int, ...]], int],
        users: dict[int, tuple[int, ...]],
        static: dict[int, bool],
        digests: dict[int, bytes],
        next_id: int,
    ) -> None:
        self.name, self.outputs, self.next_id = name, outputs, next_id
        self.nodes: Mapping[int, Node] = MappingProxyType(nodes)
        self._nodes, self._ids, self._users, self._static, self._digests = nodes, ids, users, static, digests

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self._nodes, self.outputs, self._ids, self._users, self._static, self._digests, self.next_id
        return TensorProgram, (self.name, *parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorProgram:
        return self  # it cannot be changed

    def __len__(self) -> int:
        return len(self._nodes)

    def users(self, node: int) -> tuple[int, ...]:
        """The nodes that read a node."""
        return self._users[node]

    def is_static(self, node: int) -> bool:
        """Whether a node depends on weights and constants alone, so that it is computed once, before inference."""
        return self._static[node]

    def shape(self, node: int) -> Shape:
        return self._nodes[node].shape

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Ids in topological order: depth first from the outputs, so equal programs list equal ops."""
        order: list[int] = []
        seen: set[int] = set()
        nodes = self._nodes
        stack = list(reversed(self.outputs))
        while stack:
            node = stack.pop()
            if node < 0:  # ~node: all that it depends on is there
                order.append(~node)
            elif node not in seen:
                seen.add(node)
                inputs = nodes[node][2]
                if inputs:
                    stack.append(~node)
                    stack += inputs[::-1]
                else:
                    order.append(node)
        return tuple(order)

    @cached_property
    def position(self) -> dict[int, int]:
        """id -> index in :attr:`order`."""
        return {node: index for index, node in enumerate(self.order)}

    @cached_property
    def _reach(self) -> dict[int, int]:
        """id -> bit set, by position, of the node itself and all that it depends on."""
        reach: dict[int, int] = {}
        for index, node in enumerate(self.order):
            bits = 1 << index
            for source in self._nodes[node].inputs:
                bits |= reach[source]
            reach[node] = bits
        return reach

    def depends_on(self, node: int, source: int) -> bool:
        """Whether ``node`` is ``source`` or depends on it."""
        return bool(self._reach[node] >> self.position[source] & 1)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of the structure, stable between runs; equal exactly for isomorphic programs (128 bits)."""
        digests, nodes = self._digests, self._nodes
        if len(digests) < len(nodes):
            for node in self.order:
                if node not in digests:
                    op, params, inputs, _ = nodes[node]
                    content = _label(op, params) + b"".join([digests[source] for source in inputs])
                    digests[node] = hashlib.blake2b(content, digest_size=16).digest()
        return hashlib.blake2b(b"".join([digests[output] for output in self.outputs]), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorProgram) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def find(self, op: str, params: Params, inputs: tuple[int, ...]) -> int | None:
        """The node that computes an op, with parameters in normal form, on these nodes; None where there is none."""
        return self._ids.get((op, params, inputs))

    def leaves(self, op: str) -> dict[str, Shape]:
        """Name -> shape of all nodes ``input`` or ``weight``, in order."""
        found = (self._nodes[node] for node in self.order)
        return {node.params[0]: node.shape for node in found if node.op == op}

    @cached_property
    def dtype(self) -> str:
        """The type of floats that most elements of its leaves are of, which its tensors are priced as."""
        sizes: dict[str, int] = {}
        for node in self._nodes.values():
            if node.op in ("input", "weight") and node.params[2] in FLOATS:
                sizes[node.params[2]] = sizes.get(node.params[2], 0) + math.prod(node.shape)
        return max(sizes, key=lambda dtype: (sizes[dtype], dtype), default=FLOATS[0])

    def edit(self) -> ProgramBuilder:
        """A builder that starts from this program and leaves it as it is."""
        return ProgramBuilder(self.name, self)

    def statistics(self) -> dict[str, Any]:
        """Counts: nodes, those computed at inference, leaves, depth (nodes on the longest path), nodes by operator."""
        depth: dict[int, int] = {}
        counts: dict[str, int] = {}
        for node in self.order:
            op, _, inputs, _ = self._nodes[node]
            depth[node] = 1 + max((depth[source] for source in inputs), default=0)
            counts[op] = counts.get(op, 0) + 1
        return {
            "name": self.name,
            "nodes": len(self),
            "computed": sum(not self._static[node] and self._nodes[node].op != "input" for node in self._nodes),
            "inputs": counts.get("input", 0),
            "weights": counts.get("weight", 0),
            "depth": max(depth.values(), default=0),
            "ops": dict(sorted(counts.items())),
        }

    def __repr__(self) -> str:
        return f"TensorProgram({self.name!r}, nodes={len(self)}, outputs={len(self.outputs)})"


@cache
def _label(op: str, params: Params) -> bytes:
    added = ADDED.get(op, 0)
    if added and params[-added:] == tuple(default for _, default in list(OPS[op].params.values())[-added:]):
        params = params[:-added]
    text = f"{op}{params!r}".encode()
    return len(text).to_bytes(4, "little") + text


class ProgramBuilder:
    """Builds a program, or edits one::

    b = ProgramBuilder("two layers")
    x, w = b.input("x", (1, 64)), b.weight("w", (64, 64))
    program = b.finish([b.op("matmul", x, w, act="relu")])

    edit = program.edit()
    edit.replace({old: edit.op("relu", new)})
    program, change = edit.finish_change()
    """

    def __init__(self, name: str = "program", base: TensorProgram | None = None) -> None:
        self.name = name
        self._base = base
        self._nodes: dict[int, Node] = dict(base._nodes) if base else {}
        self._ids = dict(base._ids) if base else {}
        self._users: dict[int, tuple[int, ...]] = dict(base._users) if base else {}
        self._static: dict[int, bool] = dict(base._static) if base else {}
        self._outputs = base.outputs if base else ()
        self._next_id = base.next_id if base else 0
        self._rewired: set[int] = set()
        self._folded: set[int] = set()
        self._loose: list[int] = []  # nodes that may have lost, or not yet have, a user

    def shape(self, node: int) -> Shape:
        return self._nodes[node].shape

    def leaf_name(self, node: int) -> str:
        """The name of an input or a weight."""
        return str(self._nodes[node].params[0])

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        return self.op("input", name=name, shape=tuple(shape), dtype=dtype)

    def weight(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        return self.op("weight", name=name, shape=tuple(shape), dtype=dtype)

    def op(self, op: str, *inputs: int, **params: Any) -> int:
        """Adds an op with parameters by name; returns its id, or that of the node that already computes it.

        Raises:
            InputError: unknown operator or parameter, or shapes that do not fit.
        """
        return self.add(op, make_params(op, params), inputs)

    def add(self, op: str, params: Params, inputs: Sequence[int]) -> int:
        """As :meth:`op`, with the parameters as a tuple in the operator's order."""
        inputs = tuple(inputs)
        nodes = self._nodes
        params, shape = infer(op, [nodes[source].shape for source in inputs], params)
        key = (op, params, inputs)
        found = self._ids.get(key)
        if found is not None:
            return found
        node = self._next_id
        self._next_id += 1
        nodes[node] = Node(op, params, inputs, shape)
        self._ids[key] = node
        self._users[node] = ()
        self._static[node] = op != "input" and all(self._static[source] for source in inputs)
        for source in set(inputs):
            self._users[source] += (node,)
        self._loose.append(node)
        return node

    def replace(self, by: Mapping[int, int]) -> None:
        """Lets every reader of each key read its value instead; readers that become equal become one node.

        The caller sees to it that no value depends on a key.

        Raises:
            InputError: the shapes of a node and of its replacement differ.
        """
        nodes, users = self._nodes, self._users
        moved = {old: new for old, new in by.items() if old != new}
        waiting = list(moved.items())
        while waiting:
            old, new = waiting.pop()
            while new in moved:  # what was to replace it has itself been merged into another
                new = moved[new]
            if old == new:
                continue
            if nodes[old].shape != nodes[new].shape:
                raise InputError(
                    f"cannot replace {nodes[old].op} of shape {nodes[old].shape} by {nodes[new].op} of shape "
                    f"{nodes[new].shape}"
                )
            self._outputs = tuple(new if output == old else output for output in self._outputs)
            readers, users[old] = users[old], ()
            self._loose.append(old)
            for reader in readers:
                op, params, inputs, shape = nodes[reader]
                self._ids.pop((op, params, inputs), None)
                inputs = tuple([new if source == old else source for source in inputs])
                nodes[reader] = Node(op, params, inputs, shape)
                self._rewired.add(reader)
                if reader not in users[new]:
                    users[new] += (reader,)
                other = self._ids.setdefault((op, params, inputs), reader)
                if other != reader:
                    moved[reader] = other
                    waiting.append((reader, other))
        self._refold()

    def _refold(self) -> None:
        waiting = list(self._rewired)
        while waiting:
            node = waiting.pop()
            if node not in self._nodes:
                continue
            static = all(self._static[source] for source in self._nodes[node].inputs)
            if static != self._static[node]:
                self._static[node] = static
                self._folded.add(node)
                waiting.extend(self._users[node])

    def _drop_dead(self) -> set[int]:
        nodes, users, kept = self._nodes, self._users, set(self._outputs)
        removed = set()
        while self._loose:
            node = self._loose.pop()
            if node in removed or node in kept or users[node]:
                continue
            op, params, inputs, _ = nodes.pop(node)
            if self._ids.get((op, params, inputs)) == node:
                del self._ids[op, params, inputs]
            removed.add(node)
            del users[node], self._static[node]
            for source in set(inputs):
                users[source] = tuple([user for user in users[source] if user != node])
                self._loose.append(source)
        return removed

    def finish(self, outputs: Iterable[int] | None = None) -> TensorProgram:
        """The program; the builder must not be used any more. Ops that no output depends on are dropped.

        Args:
            outputs: ids of the results; an edit may leave them as they are.

        Raises:
            InputError: there are no outputs, or one leaf name stands for two tensors.
        """
        return self.finish_change(outputs)[0]

    def finish_change(self, outputs: Iterable[int] | None = None) -> tuple[TensorProgram, Change]:
        """As :meth:`finish`, and what the edit changed."""
        if outputs is not None:
            self._loose.extend(self._outputs)
            self._outputs = tuple(outputs)
        if not self._outputs:
            raise InputError(f"program {self.name!r} has no outputs")
        added = set(self._loose)
        removed = self._drop_dead()
        base = self._base._nodes if self._base else {}
        added = {node for node in added if node in self._nodes and node not in base}
        rewired = {node for node in self._rewired if node in base and node in self._nodes}
        if added or not self._base:
            self._check_names(added)
        digests: dict[int, bytes] = {}
        if self._base and self._base._digests:
            stale = self._downstream(self._rewired & self._nodes.keys())
            old = self._base._digests
            digests = {node: old[node] for node in self._nodes if node in old and node not in stale}
        program = TensorProgram(
            self.name, self._nodes, self._outputs, self._ids, self._users, self._static, digests, self._next_id
        )
        change = Change(
            added=frozenset(added),
            rewired=frozenset(rewired),
            removed=frozenset(node for node in removed if node in base),
            folded=frozenset(node for node in self._folded if node in self._nodes and node not in rewired | added),
        )
        return program, change

    def _downstream(self, start: Iterable[int]) -> set[int]:
        seen = set(start)
        waiting = list(seen)
        while waiting:
            for user in self._users[waiting.pop()]:
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return seen

    def _check_names(self, added: Iterable[int]) -> None:
        if not any(self._nodes[node].op in ("input", "weight") for node in added):
            return
        seen: dict[str, Node] = {}
        for node in self._nodes.values():
            if node.op in ("input", "weight"):
                other = seen.setdefault(node.params[0], node)
                if other is not node:
                    raise InputError(
                        f"program {self.name!r}: {node.params[0]!r} names both {other.op} {other.shape} and "
                        f"{node.op} {node.shape}; leaf names must differ"
                    )
