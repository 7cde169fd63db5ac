"""An e-graph of tensor operators: many equal programs at once.

After egg (Willsey et al., "egg: Fast and Extensible Equality Saturation", POPL 2021): e-nodes are hash-consed, classes
are merged by union-find, congruence is restored once a round (:meth:`EGraph.rebuild`). Every class carries what is
known about its tensor: its shape, and whether it is a constant (depends on weights alone).

Why our own, beside :mod:`.egglog_engine`: egglog's rules cannot veto a single match, as cycle filtering does by a map
of descendants, nor stop in the middle of a round where a limit is reached. Where neither matters both find the same
e-graphs, which tests check class by class. ``graphopt bench saturation`` times both; on its three programs egglog took
1.8 to 3.8 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt_gym.graphs.tensor_program.ops import Params, Shape, infer
from graphopt_gym.graphs.tensor_program.program import TensorProgram


class ENode:
    """An operator on classes.

    Attributes:
        children: classes, canonical after a rebuild.
        owner: the class that it is in, as it was when it was made; ``find`` gives what that is now.
        serial: nodes made later have larger ones.
        alive: False once it turned out to be the same as another.
        filtered: taken out of its class, because it closes a cycle.
    """

    __slots__ = ("alive", "children", "filtered", "op", "owner", "params", "serial")

    def __init__(self, op: str, params: Params, children: tuple[int, ...], owner: int, serial: int) -> None:
        self.op, self.params, self.children, self.owner, self.serial = op, params, children, owner, serial
        self.alive, self.filtered = True, False

    def __repr__(self) -> str:
        return f"{self.op}{self.params}{self.children}"


class EGraph:
    """Classes of equal tensors. Nodes are added and classes merged at will; then :meth:`rebuild` restores congruence.

    Attributes:
        by_op: class -> operator -> its e-nodes; of canonical classes only, None for others.
        shapes: class -> shape.
        static: class -> whether it is a constant. A class with one constant e-node is one.
        nodes: number of e-nodes, those filtered left out.
        filtered: number of e-nodes that were filtered.
    """

    def __init__(self) -> None:
        self.by_op: list[dict[str, list[ENode]] | None] = []
        self.shapes: list[Shape] = []
        self.static: list[bool] = []
        self.nodes = 0
        self.filtered = 0
        self._parent: list[int] = []
        self._users: list[list[ENode]] = []
        self._memo: dict[tuple[str, Params, tuple[int, ...]], ENode] = {}
        self._inferred: dict[tuple[str, Params, tuple[Shape, ...]], tuple[Params, Shape]] = {}
        self._pending: list[int] = []
        self._changed: set[int] = set()
        self._serial = 0

    def add_program(self, program: TensorProgram) -> tuple[int, ...]:
        """Adds a program; the classes of its outputs."""
        class_of: dict[int, int] = {}
        for node in program.order:
            op, params, inputs, _ = program.nodes[node]
            class_of[node] = self.add(op, params, [class_of[source] for source in inputs])
        return tuple(class_of[output] for output in program.outputs)

    def find(self, cls: int) -> int:
        """The class that a class is part of now."""
        parent = self._parent
        while parent[cls] != cls:
            parent[cls] = parent[parent[cls]]
            cls = parent[cls]
        return cls

    def classes(self) -> Iterator[int]:
        """Canonical classes."""
        return (cls for cls, parts in enumerate(self.by_op) if parts is not None)

    @property
    def num_classes(self) -> int:
        return sum(parts is not None for parts in self.by_op)

    def nodes_of(self, cls: int) -> Iterator[ENode]:
        """The e-nodes of a canonical class."""
        parts = self.by_op[cls]
        assert parts is not None
        for nodes in parts.values():
            yield from nodes

    def users_of(self, cls: int) -> list[ENode]:
        """The e-nodes that read a canonical class; some may be dead or filtered."""
        return self._users[cls]

    def shape(self, cls: int) -> Shape:
        return self.shapes[cls]

    def add(self, op: str, params: Params, inputs: Sequence[int]) -> int:
        """The class of an operator on classes; a new one if there is none yet.

        Raises:
            InputError: shapes that do not fit.
        """
        find, shapes = self.find, self.shapes
        children = tuple([find(cls) for cls in inputs])
        question = (op, params, tuple([shapes[cls] for cls in children]))
        answer = self._inferred.get(question)
        if answer is None:
            answer = self._inferred[question] = infer(op, question[2], params)
        params, shape = answer
        key = (op, params, children)
        known = self._memo.get(key)
        if known is not None:
            return find(known.owner)
        cls = len(self._parent)
        node = ENode(op, params, children, cls, self._serial)
        self._serial += 1
        self._memo[key] = node
        self._parent.append(cls)
        shapes.append(shape)
        static = self.static
        static.append(op != "input" and all(static[child] for child in children))
        self.by_op.append({op: [node]})
        self._users.append([])
        for child in set(children):
            self._users[child].append(node)
        self._changed.add(cls)
        self.nodes += 1
        return cls

    def lookup(self, op: str, params: Params, inputs: Sequence[int]) -> ENode | None:
        """The e-node of an operator on classes; None if there is none (any more). Only after a rebuild."""
        node = self._memo.get((op, params, tuple([self.find(cls) for cls in inputs])))
        return None if node is None or node.filtered else node

    def union(self, a: int, b: int) -> bool:
        """Makes two classes one; whether they were two.

        Raises:
            AssertionError: their shapes differ.
        """
        a, b = self.find(a), self.find(b)
        if a == b:
            return False
        assert self.shapes[a] == self.shapes[b], (self.shapes[a], self.shapes[b])
        if len(self._users[a]) < len(self._users[b]):
            a, b = b, a
        self._parent[b] = a
        into, rest = self.by_op[a], self.by_op[b]
        assert into is not None
        assert rest is not None
        for op, nodes in rest.items():
            if op in into:
                into[op].extend(nodes)
            else:
                into[op] = nodes
        self.by_op[b] = None
        self._users[a].extend(self._users[b])
        self._users[b] = []
        if self.static[a] != self.static[b]:
            self.static[a] = self.static[b] = True
        self._pending.append(a)
        self._changed.add(a)
        return True

    def filter(self, node: ENode) -> None:
        """Takes a node out of its class. It stays known: adding it again gives its class and nothing new."""
        assert node.alive
        assert not node.filtered
        node.filtered = True
        parts = self.by_op[self.find(node.owner)]
        assert parts is not None
        parts[node.op].remove(node)
        if not parts[node.op]:
            del parts[node.op]
        self.nodes -= 1
        self.filtered += 1

    def rebuild(self) -> set[int]:
        """Restores congruence; the classes whose e-nodes changed since the last time."""
        find, memo, static = self.find, self._memo, self.static
        touched: set[int] = set()
        while self._pending:
            waiting = {find(cls) for cls in self._pending}
            self._pending = []
            for merged in waiting:
                cls = find(merged)
                users, self._users[cls] = self._users[cls], []
                kept = []
                seen: set[int] = set()
                for node in users:
                    if not node.alive or node.serial in seen:
                        continue
                    seen.add(node.serial)
                    children = tuple([find(child) for child in node.children])
                    if children != node.children:
                        key = (node.op, node.params, node.children)
                        if memo.get(key) is node:
                            del memo[key]
                        node.children = children
                        if not node.filtered:
                            self._changed.add(node.owner)
                    other = memo.setdefault((node.op, node.params, children), node)
                    if other is not node:
                        keep, drop = (node, other) if other.filtered and not node.filtered else (other, node)
                        memo[node.op, node.params, children] = keep
                        drop.alive = False
                        if drop.filtered:
                            self.filtered -= 1
                        else:
                            self.nodes -= 1
                            touched.add(drop.owner)
                        keep.serial = min(keep.serial, drop.serial)
                        self.union(drop.owner, keep.owner)
                        node = keep
                    kept.append(node)
                    owner = find(node.owner)
                    if not static[owner] and node.op != "input" and all(static[find(child)] for child in children):
                        static[owner] = True
                        self._pending.append(owner)
                # a union above may have moved this very class into another
                self._users[find(cls)].extend({id(node): node for node in kept if node.alive}.values())
        for cls in {find(cls) for cls in touched}:
            parts = self.by_op[cls]
            assert parts is not None
            for op in list(parts):
                nodes = [node for node in parts[op] if node.alive]
                if nodes:
                    parts[op] = nodes
                else:
                    del parts[op]
        changed = {find(cls) for cls in self._changed}
        self._changed = set()
        return changed

    def copy(self) -> EGraph:
        """A copy that shares nothing that changes. Only right after a rebuild."""
        other = EGraph()
        new: dict[int, ENode] = {}

        def of(node: ENode) -> ENode:
            made = new.get(id(node))
            if made is None:
                made = new[id(node)] = ENode(node.op, node.params, node.children, node.owner, node.serial)
                made.alive, made.filtered = node.alive, node.filtered
            return made

        other.by_op = [
            None if parts is None else {op: [of(node) for node in nodes] for op, nodes in parts.items()}
            for parts in self.by_op
        ]
        other.shapes, other.static, other._parent = list(self.shapes), list(self.static), list(self._parent)
        other._users = [[of(node) for node in nodes if node.alive] for nodes in self._users]
        other._memo = {key: of(node) for key, node in self._memo.items()}
        other._inferred = self._inferred  # grows only
        other.nodes, other.filtered, other._serial = self.nodes, self.filtered, self._serial
        other._changed = set(self._changed)
        return other

    # -- cycles --------------------------------------------------------------------------------------------------------

    def dynamic_edges(self, cls: int) -> list[tuple[ENode, int]]:
        """(e-node, child class) for the e-nodes and children of a class that are not constants.

        A constant can always be made from constants alone, so neither it nor a node of its class closes a cycle.
        """
        static = self.static
        if static[cls]:
            return []
        return [(node, child) for node in self.nodes_of(cls) for child in node.children if not static[child]]

    def witnesses(self) -> dict[int, ENode]:
        """For each class the root of one of its least deep programs. They refer to less deep ones, so they are acyclic.

        Of a class that is a constant: of its constant programs.
        """
        depth: dict[int, int] = {}
        chosen: dict[int, ENode] = {}
        left: dict[int, set[int]] = {}  # serial of a node -> children without a depth
        level: list[ENode] = []
        static = self.static

        def counts(node: ENode) -> bool:
            owner = self.find(node.owner)
            if not static[owner]:
                return True
            return node.op != "input" and all(static[child] for child in node.children)

        for cls in self.classes():
            for node in self.nodes_of(cls):
                if not node.children and counts(node):
                    level.append(node)
        current = 0
        while level:
            new = []
            for node in sorted(level, key=_serial):
                owner = self.find(node.owner)
                if owner not in depth:
                    depth[owner] = current
                    chosen[owner] = node
                    new.append(owner)
            level = []
            for cls in new:
                for user in self._users[cls]:
                    if user.alive and not user.filtered and self.find(user.owner) not in depth and counts(user):
                        missing = left.setdefault(user.serial, set(user.children))
                        missing.discard(cls)
                        if not missing:
                            level.append(user)
            current += 1
        return chosen

    def clean_up(self) -> int:
        """Filters e-nodes until the classes are acyclic; how many.

        Depth-first searches; of each cycle that one finds, the newest e-node goes that is not the witness of its class,
        so every class can still be extracted. Repeated until a search finds none, as in TENSAT (section 5.2).
        """
        total = 0
        witnesses: dict[int, ENode] | None = None
        while True:
            cycles = self._cycles()
            if not cycles:
                return total
            if witnesses is None:
                witnesses = self.witnesses()
            for cycle in cycles:
                if any(node.filtered for node in cycle):
                    continue
                self.filter(max((node for node in cycle if witnesses[self.find(node.owner)] is not node), key=_serial))
                total += 1

    def _cycles(self) -> list[list[ENode]]:
        """For each back edge of one depth-first search, the e-nodes of the cycle that it closes."""
        cycles = []
        place: dict[int, int] = {}  # class -> its place on the way; -1: done
        for start in self.classes():
            if start in place:
                continue
            place[start] = 0
            way = [start]
            taken: list[ENode] = []  # taken[i]: the e-node that leads from way[i] on
            edges = [iter(self.dynamic_edges(start))]
            while way:
                step = next(edges[-1], None)
                if step is None:
                    place[way.pop()] = -1
                    edges.pop()
                    if taken:
                        taken.pop()
                    continue
                node, child = step
                at = place.get(child)
                if at is None:
                    place[child] = len(way)
                    way.append(child)
                    taken.append(node)
                    edges.append(iter(self.dynamic_edges(child)))
                elif at >= 0:
                    cycles.append([*taken[at:], node])
        return cycles

    def descendants(self) -> Descendants:
        """Which classes each class leads to. The classes must be acyclic."""
        return Descendants(self)


class Descendants:
    """For each class, the classes that its programs may read: a bit set by topological position."""

    def __init__(self, graph: EGraph) -> None:
        self._position: dict[int, int] = {}
        self._below: dict[int, int] = {}
        for start in graph.classes():
            if start in self._below:
                continue
            stack = [(start, {child for _, child in graph.dynamic_edges(start)})]
            while stack:
                cls, children = stack[-1]
                if cls in self._below:
                    stack.pop()
                    continue
                waiting = [child for child in children if child not in self._below]
                if waiting:
                    stack.extend((child, {below for _, below in graph.dynamic_edges(child)}) for child in waiting)
                    continue
                position = self._position[cls] = len(self._position)
                bits = 1 << position
                for child in children:
                    bits |= self._below[child]
                self._below[cls] = bits
                stack.pop()

    def reaches(self, cls: int, other: int) -> bool:
        """Whether ``cls`` is ``other`` or leads to it."""
        return bool(self._below[cls] >> self._position[other] & 1)


def _serial(node: ENode) -> int:
    return node.serial
