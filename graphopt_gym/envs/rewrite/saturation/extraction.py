"""Extraction: the cheapest program of an e-graph, greedily or by an integer linear program.

What an e-node costs is exactly what it will cost in a program (:class:`ProgramCosts`): classes have one shape each, and
a class that is a constant is always extracted as one, from constants alone, for nothing. So constants need no decision,
and e-nodes that differ only in the constants that they read are one choice.

What is left is solved part by part, see :mod:`.solvers`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from graphopt_gym.envs.rewrite.cost import Operation
from graphopt_gym.envs.rewrite.fusing import may_be_absorbed
from graphopt_gym.envs.rewrite.saturation.egraph import EGraph, ENode
from graphopt_gym.envs.rewrite.saturation.explore import Saturation
from graphopt_gym.envs.rewrite.saturation.limits import check_limit
from graphopt_gym.envs.rewrite.saturation.solvers import (
    MODEL_S,
    SOLVERS,
    IlpModel,
    alike,
    eliminate,
    improve,
    like,
    parts_of,
    unsolved,
)
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram

UNIT_S = 1e-15  # greedy adds whole femtoseconds, so that sums do not round
TOLERANCE = 1e-6  # relative: what a solver's bound may be off by, and the gap at which it stops
IMPROVING, MOST_IMPROVING_S = 0.2, 5.0  # share of the seconds of a wide part in which its start is improved, and most


@dataclass(frozen=True)
class Extraction:
    """A program of an e-graph.

    Attributes:
        cost: seconds of the program, priced as a program, shared parts once.
        estimate: seconds that the extractor thought it costs: greedy counts shared parts once for each reader.
        bound: neither a program of the e-graph nor the original costs less, in seconds, but for the solver's tolerance
            (``TOLERANCE``); None where the extractor gives none.
        gap: (cost - bound) / cost; None without a bound.
        status: how the extractor ended: ``greedy`` or ``shared``; ``optimal``, or ``time limit``.
        improved: whether the program is cheaper than the one that the e-graph came from; if not, it is that one.
        variables: choices among which an exact extractor picked.
        parts: independent parts of the problem, and how many of them elimination solved.
    """

    program: TensorProgram
    cost: float
    estimate: float
    bound: float | None
    gap: float | None
    seconds: float
    status: str
    improved: bool
    variables: int = 0
    parts: tuple[int, int] = (0, 0)


class Choice(NamedTuple):
    """An e-node that may be picked for a class."""

    cost: float  # seconds
    children: frozenset[int]  # classes that it needs, constants left out
    node: ENode


class Choices:
    """What can be picked for each class that the roots may need, constants left out, hopeless choices too.

    A choice is hopeless if it needs its own class, or if another of its class costs no more and needs no other classes
    than those that it cannot do without (or, without cycles, that no program can do without).

    Args:
        until: of ``time.perf_counter``; past it hopeless choices stay.

    Attributes:
        of: class -> its choices, cheap ones first.
        mandatory: classes that every program makes.
        order: the classes in topological order, children first, as far as there are no cycles.
    """

    def __init__(self, saturation: Saturation, until: float = math.inf) -> None:
        self._saturation, self._until = saturation, until
        self.graph: EGraph = saturation.graph
        self.costs = saturation.costs
        self.program = saturation.program
        self.roots = tuple(self.graph.find(root) for root in saturation.roots)
        graph, static = self.graph, self.graph.static
        self.needed = tuple(dict.fromkeys(root for root in self.roots if not static[root]))
        self.of: dict[int, list[Choice]] = {}
        waiting = list(self.needed)
        nodes: dict[int, list[ENode]] = {}
        while waiting:
            cls = waiting.pop()
            if cls in nodes:
                continue
            nodes[cls] = [node for node in graph.nodes_of(cls) if cls not in node.children]
            waiting.extend(child for node in nodes[cls] for child in node.children if not static[child])
        times = self._times([node for group in nodes.values() for node in group])
        for cls, group in nodes.items():
            options = [
                Choice(times[id(node)], frozenset(child for child in node.children if not static[child]), node)
                for node in group
            ]
            options.sort(key=lambda option: (option.cost, len(option.children), option.node.serial))
            self.of[cls] = options
        self.mandatory: frozenset[int] = frozenset()
        self._instead: dict[int, ENode] = {}  # dropped e-node, by id -> one that does as well
        self._acyclic = saturation.acyclic
        while self._drop_hopeless() and time.perf_counter() < until:
            pass
        self._shared: dict[int, ENode] | None = None
        self.order = [cls for cls in self._place if cls in self.of]
        self._position = {cls: place for place, cls in enumerate(self._place)}
        self._cost_of = {id(option.node): option.cost for options in self.of.values() for option in options}

    def _drop_hopeless(self) -> int:
        """Drops hopeless choices, then classes that nothing needs any more; how many choices.

        Whoever picks a choice makes all classes that it cannot do without; another choice of the class that costs no
        more and needs none but those does as well, in whatever program.
        """
        order = self._order()
        bit = {cls: 1 << place for place, cls in enumerate(order)}
        always: dict[int, int] = {}  # class -> classes that every program of it makes, as a bit set
        dropped = 0
        anyway = 0
        if self._acyclic:
            for cls in self.mandatory:
                anyway |= bit[cls]
        for cls in order:
            kept: list[tuple[Choice, int]] = []
            common = -1
            for option in self.of[cls]:
                needs = makes = 0
                for child in option.children:
                    needs |= bit[child]
                    makes |= always.get(child, bit[child])
                allowed = makes | anyway
                better = next((other.node for other, below in kept if below & ~allowed == 0), None)
                if better is None:
                    kept.append((option, needs))
                    common &= makes
                else:
                    self._instead[id(option.node)] = better
            dropped += len(self.of[cls]) - len(kept)
            self.of[cls] = [option for option, _ in kept]
            always[cls] = bit[cls] | (common if kept else 0)
        self._always, self._place = always, order
        needed = 0
        for root in self.needed:
            needed |= always[root]
        self.mandatory = frozenset(cls for cls in order if needed & bit[cls])
        reached = set(self._order())
        self.of = {cls: options for cls, options in self.of.items() if cls in reached}
        return dropped

    def _order(self) -> list[int]:
        """The classes that the roots may need, children first as far as there are no cycles."""
        order: list[int] = []
        seen: set[int] = set()
        for root in self.needed:
            if root in seen:
                continue
            seen.add(root)
            stack = [(root, iter([child for option in self.of[root] for child in option.children]))]
            while stack:
                cls, children = stack[-1]
                child = next((child for child in children if child not in seen), None)
                if child is None:
                    order.append(cls)
                    stack.pop()
                else:
                    seen.add(child)
                    stack.append((child, iter([below for option in self.of[child] for below in option.children])))
        return order

    def dominators(self, cls: int) -> list[int]:
        """Classes that every program of a class makes, those left out that follow from others of them."""
        rest = self._always[cls] & ~(1 << self._position[cls])
        found = []
        while rest:
            nearest = self._place[rest.bit_length() - 1]
            found.append(nearest)
            rest &= ~(self._always[nearest] | 1 << self._position[nearest])
        return found

    def _times(self, nodes: Sequence[ENode]) -> dict[int, float]:
        find, shapes, static = self.graph.find, self.graph.shapes, self.graph.static
        priced, operations = [], []
        times = {id(node): 0.0 for node in nodes}
        for node in nodes:
            if self.costs.counts(node.op, node.params) and not (self.costs.fused and self._may_be_absorbed(node)):
                children = node.children
                priced.append(id(node))
                operations.append(
                    Operation(
                        node.op,
                        node.params,
                        shapes[find(node.owner)],
                        tuple([shapes[child] for child in children]),
                        tuple([static[child] for child in children]),
                        tuple([children.index(child) for child in children]),
                    )
                )
        times.update(zip(priced, self.costs.seconds(operations), strict=True))
        return times

    def _may_be_absorbed(self, node: ENode) -> bool:
        users = {user.op for user in self.graph.users_of(self.graph.find(node.owner)) if user.alive}
        return may_be_absorbed(self.graph, node, users)

    def build(self, picked: Mapping[int, ENode]) -> TensorProgram:
        """The program of a picked e-node for each class; constants are made from their least deep programs.

        Raises:
            InputError: the picked e-nodes are cyclic.
        """
        graph = self.graph
        constants: dict[int, ENode] | None = None
        builder = ProgramBuilder(self.program.name)
        made: dict[int, int] = {}
        for root in self.roots:
            stack = [root]
            open_: set[int] = set()
            while stack:
                cls = stack[-1]
                if cls in made:
                    stack.pop()
                    continue
                if graph.static[cls]:
                    constants = constants or graph.witnesses()
                    node = constants[cls]
                else:
                    node = picked[cls]
                waiting = [child for child in node.children if child not in made]
                if not waiting:
                    made[cls] = builder.add(node.op, node.params, [made[child] for child in node.children])
                    stack.pop()
                elif cls in open_:
                    raise InputError("the picked e-nodes are cyclic; extract with cycle_constraints=True")
                else:
                    open_.add(cls)
                    stack.extend(waiting)
        return builder.finish([made[root] for root in self.roots])

    def greedy(self) -> tuple[dict[int, ENode], float]:
        """(e-node for each class, seconds) where each class is as cheap as can be if nothing were shared."""
        value: dict[int, tuple[int, int]] = {}  # class -> (cost, depth), least
        picked: dict[int, ENode] = {}
        prices = {cls: [round(option.cost / UNIT_S) for option in options] for cls, options in self.of.items()}
        users: dict[int, set[int]] = {cls: set() for cls in self.of}
        for cls, options in self.of.items():
            for option in options:
                for child in option.children:
                    users[child].add(cls)
        waiting = dict.fromkeys(self.of)
        while waiting:
            again: dict[int, None] = {}
            for cls in waiting:
                best, best_node = value.get(cls), None
                for price, option in zip(prices[cls], self.of[cls], strict=True):
                    below = [value.get(child) for child in option.children]
                    if all(below):
                        total = price + sum(entry[0] for entry in below)  # type: ignore[index, misc]
                        found = (total, 1 + max((entry[1] for entry in below), default=0))  # type: ignore[index, misc]
                        if best is None or found < best:
                            best, best_node = found, option.node
                if best_node is not None and best is not None:
                    value[cls], picked[cls] = best, best_node
                    again.update(dict.fromkeys(users[cls]))
            waiting = again
        return picked, sum(value[cls][0] for cls in self.needed) * UNIT_S

    def original(self) -> dict[int, ENode] | None:
        """E-nodes that make the program that the e-graph came from, or one as cheap; None where it is not in there."""
        return self.picks_of(self.program)

    def picks_of(self, program: TensorProgram) -> dict[int, ENode] | None:
        """E-nodes that make a program of the e-graph, or one as cheap; None where it is not in there."""
        graph = self.graph
        class_of: dict[int, int] = {}
        picked: dict[int, ENode] = {}
        for number in program.order:
            op, params, inputs, _ = program.nodes[number]
            node = graph.lookup(op, params, [class_of[source] for source in inputs])
            if node is None:
                return None
            cls = class_of[number] = graph.find(node.owner)
            if graph.static[cls] or cls not in self.of:
                continue
            while id(node) in self._instead:
                node = self._instead[id(node)]
            if id(node) not in self._cost_of:
                return None
            picked.setdefault(cls, node)
        try:
            self.build(picked)
        except (InputError, KeyError):
            return None
        return picked

    def best_known(self) -> dict[int, ENode]:
        """The cheapest of the answers that are found fast, to start from."""
        answers = [self._shared or (self.shared(until=self._until) if self._acyclic else self.greedy()[0])]
        if not self._acyclic:
            filtered = self._filtered()
            answers += [filtered] if filtered else []
        original = self.original()
        return min([*answers, *([original] if original else [])], key=self.price)

    def _filtered(self) -> dict[int, ENode] | None:
        """What is found fast where cycles are filtered, in this e-graph."""
        graph = self.graph.copy()
        graph.clean_up()
        try:
            choices = Choices(replace(self._saturation, graph=graph, acyclic=True), self._until)
            return self.picks_of(choices.build(choices.shared(until=self._until)))
        except (InputError, KeyError, ValueError):  # filtering left a root without a choice
            return None

    def index(self, cls: int, node: ENode) -> int:
        """Which of a class's choices an e-node is."""
        return next(place for place, option in enumerate(self.of[cls]) if option.node is node)

    def price(self, picked: Mapping[int, ENode]) -> float:
        """Seconds of the program of picked e-nodes, shared parts once."""
        return sum(self._cost_of[id(picked[cls])] for cls in self.made(picked))

    def made(self, picked: Mapping[int, ENode]) -> dict[int, int]:
        """The classes that the roots need with these e-nodes, each with how many of them read it."""
        static = self.graph.static
        readers = dict.fromkeys(self.needed, 1)
        waiting = list(readers)
        while waiting:
            for child in set(picked[waiting.pop()].children):
                if not static[child]:
                    if child not in readers:
                        readers[child] = 0
                        waiting.append(child)
                    readers[child] += 1
        return readers

    def shared(self, rounds: int = 30, seed: int = 0, until: float = math.inf) -> dict[int, ENode]:
        """An e-node for each class, where what several read is paid by all of them; of acyclic e-graphs only.

        This is area flow, as in technology mapping (Cong, Wu, Ding, FPGA 1999): a class passes on its cost, divided by
        the number of its readers. Who reads what is not known before it is picked: the first round starts from the
        greedy answer; classes that it does not make are thought to be read by all classes made that could. Later rounds
        start from the round before, and err at random. The best program of all rounds.
        """
        chance = random.Random(seed)
        best, _ = self.greedy()
        best_cost = self.price(best)
        order = self._order()
        could = {cls: {child for option in options for child in option.children} for cls, options in self.of.items()}
        picked = best
        for number in range(rounds):
            if time.perf_counter() > until:
                break
            made = self.made(picked)
            readers: dict[int, float] = {}
            for cls in made:
                for child in could[cls]:
                    readers[child] = readers.get(child, 0) + 1
            if number % 2:
                readers.update(made)
            if number > 1:
                readers = {cls: max(1.0, count * chance.uniform(0.5, 1.5)) for cls, count in readers.items()}
            share: dict[int, float] = {}
            picked = {}
            for cls in order:
                cost, node = min(
                    (
                        (option.cost + sum(share[child] for child in option.children), option.node)
                        for option in self.of[cls]
                    ),
                    key=lambda entry: entry[0],
                )
                picked[cls] = node
                share[cls] = cost / readers.get(cls, 1)
            cost = self.price(picked)
            if cost < best_cost:
                best, best_cost = picked, cost
            elif number % 5 == 4:
                picked = best
        self._shared = best
        return best


def _finish(
    choices: Choices,
    picked: Mapping[int, ENode],
    estimate: float,
    status: str,
    started: float,
    *,
    bound: float | None = None,
    variables: int = 0,
    parts: tuple[int, int] = (0, 0),
) -> Extraction:
    program = choices.build(picked)
    cost, original = choices.costs.cost(program), choices.costs.cost(choices.program)
    improved = cost < original
    if not improved:
        program, cost = choices.program, original
    gap = None
    if bound is not None:
        if not improved and choices.original() is None:
            bound = min(bound, cost)  # filtering cycles took the original out, and nothing in there is cheaper
        assert bound <= cost * (1 + TOLERANCE), f"a bound of {bound} s, but a program of {cost} s"
        gap = max(0.0, cost - bound) / cost if cost > 0 else 0.0
    seconds = time.perf_counter() - started
    return Extraction(program, cost, estimate, bound, gap, seconds, status, improved, variables, parts)


def extract_greedy(saturation: Saturation, choices: Choices | None = None) -> Extraction:
    """The program of the cheapest e-node of each class, shared parts counted for each reader."""
    started = time.perf_counter()
    choices = choices or Choices(saturation)
    picked, estimate = choices.greedy()
    return _finish(choices, picked, estimate, "greedy", started)


def extract_shared(
    saturation: Saturation, choices: Choices | None = None, rounds: int = 30, until: float = math.inf
) -> Extraction:
    """The best program of some rounds in which readers share the costs of what they read: fast, and with no bound.

    On an e-graph with cycles the greedy one. No round begins past ``until`` (of ``time.perf_counter``).
    """
    started = time.perf_counter()
    choices = choices or Choices(saturation)
    picked = choices.shared(rounds, until=until) if saturation.acyclic else choices.greedy()[0]
    return _finish(choices, picked, choices.price(picked), "shared", started)


def extract_ilp(
    saturation: Saturation,
    *,
    solver: str = "both",
    cycle_constraints: bool | None = None,
    seconds: float = 60.0,
    choices: Choices | None = None,
    relative_gap: float = TOLERANCE,
    elimination: bool = True,
) -> Extraction:
    """The cheapest program, with a bound on what any program of the e-graph costs.

    Args:
        solver: ``cp-sat`` or ``highs``, of the parts that are too wide for elimination; ``both``, one after the other.
        cycle_constraints: give each class of a cycle a place in a topological order that e-nodes must follow; None:
            where cycles were not filtered. Without them, on an e-graph with cycles, cyclic answers are cut off one at a
            time.
        seconds: most time, by the clock from here on; the best so far is returned. Solvers may pass it a little.
        relative_gap: the solver stops when bound and cost are this close.
        elimination: solve narrow parts by elimination, and improve others by it first; otherwise all are integer
            linear programs from the start.

    Raises:
        InputError: seconds not above 0, or an unknown solver.
    """
    check_limit("seconds", seconds, whole=False)
    choice("solver", solver, SOLVERS)
    started = time.perf_counter()
    until = started + seconds
    choices = choices or Choices(saturation, until)
    topological = not saturation.acyclic if cycle_constraints is None else cycle_constraints
    start = choices.best_known()
    first = {cls: choices.index(cls, start[cls]) for cls in choices.made(start)}
    parts = parts_of(choices)
    picks: dict[int, int] = {}
    bound, status, eliminated, wide = 0.0, "optimal", 0, []
    for part in parts:
        solved = eliminate(part, until=until) if elimination or len(part.options) == 1 else None
        if solved is None:
            wide.append(part)
            continue
        eliminated += 1
        picks |= solved.picks
        bound += solved.bound
    groups = alike(wide)
    for place, group in enumerate(groups):  # small ones first; what they leave of their time is for the others
        (part, order), *others = group
        left = (until - time.perf_counter()) / (len(groups) - place)
        if elimination and not part.cyclic and left > 0:
            before = time.perf_counter()
            first |= improve(part, first, min(IMPROVING * left, MOST_IMPROVING_S))
            left -= time.perf_counter() - before
        if left < MODEL_S * part.size:
            solved = unsolved(part, first)
        else:
            before = time.perf_counter()
            model = IlpModel(choices, part, topological)
            left = max(0.1, left - (time.perf_counter() - before))
            cuts = not topological and bool(part.cyclic)
            solved = model.solve(solver, first, left, relative_gap, cut_cycles=cuts)
        picks |= solved.picks
        for other, other_order in others:
            picks |= like(part, order, solved.picks, other, other_order)
        bound += solved.bound * len(group)
        if solved.status != "optimal":
            status = solved.status
    picked = {cls: choices.of[cls][index].node for cls, index in picks.items()}
    return _finish(
        choices,
        picked,
        choices.price(picked),
        status,
        started,
        bound=bound,
        variables=sum(part.size for part in parts),
        parts=(len(parts), eliminated),
    )
