"""Extraction: the cheapest program of an e-graph, greedily or by an integer linear program.

What an e-node costs is exactly what it will cost in a program (:class:`ProgramCosts`): classes have one shape each, and
a class that is a constant is always extracted as one, from constants alone, for nothing. So constants need no decision,
and e-nodes that differ only in the constants that they read are one choice.

The linear program is TENSAT's (section 5.1): a binary variable an e-node, the roots' classes are picked, a picked
e-node picks a node of every child class. Its rows are summed over the e-nodes of a class that read the same child,
which is as right, as one e-node a class is enough, and tighter; and where every program of a class makes another, that
is said too, which the relaxation would not know. HiGHS solves it.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.envs.rewrite.cost import Operation
from graphopt_gym.envs.rewrite.egraph import EGraph, ENode
from graphopt_gym.envs.rewrite.saturation import Saturation, check_limit
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program.convert import CLASS_OF
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram

UNIT_S = 1e-15  # greedy adds whole femtoseconds, so that sums do not round
MICROSECOND = 1e-6  # the linear program's unit


@dataclass(frozen=True)
class Extraction:
    """A program of an e-graph.

    Attributes:
        cost: seconds of the program, priced as a program, shared parts once.
        estimate: seconds that the extractor thought it costs: greedy counts shared parts once for each reader.
        bound: no program of the e-graph costs less, in seconds; None where the extractor gives none.
        gap: (cost - bound) / cost; None without a bound.
        status: ``greedy``, ``shared``, ``optimal`` (within HiGHS's tolerance, ``gap``), ``time limit``, or
            ``original``:
            nothing cheaper than the program that the e-graph came from was found, and this is that program.
        variables: binary variables of the linear program.
    """

    program: TensorProgram
    cost: float
    estimate: float
    bound: float | None
    gap: float | None
    seconds: float
    status: str
    variables: int = 0


class Choice(NamedTuple):
    """An e-node that may be picked for a class."""

    cost: float  # seconds
    children: frozenset[int]  # classes that it needs, constants left out
    node: ENode


class Choices:
    """What can be picked for each class that the roots may need, constants left out, hopeless choices too.

    A choice is hopeless if it needs its own class, or if another of its class costs no more and needs no other classes
    than those that it cannot do without.
    """

    def __init__(self, saturation: Saturation) -> None:
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
        while self._drop_hopeless():
            pass
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
        for cls in order:
            kept: list[tuple[Choice, int]] = []
            common = -1
            for option in self.of[cls]:
                needs = makes = 0
                for child in option.children:
                    needs |= bit[child]
                    makes |= always.get(child, bit[child])
                if not any(other & ~makes == 0 for _, other in kept):
                    kept.append((option, needs))
                    common &= makes
            dropped += len(self.of[cls]) - len(kept)
            self.of[cls] = [option for option, _ in kept]
            always[cls] = bit[cls] | (common if kept else 0)
        self._always, self._place = always, order
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
            if CLASS_OF.get(node.op, "view") != "view":
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

    def shared(self, rounds: int = 30, seed: int = 0) -> dict[int, ENode]:
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
        return best


def _finish(
    choices: Choices,
    program: TensorProgram,
    estimate: float,
    bound: float | None,
    status: str,
    started: float,
    size: int,
) -> Extraction:
    cost, original = choices.costs.cost(program), choices.costs.cost(choices.program)
    if original <= cost:
        program, cost, status = choices.program, original, "original" if status != "optimal" else status
    if bound is not None:
        bound = min(bound, cost)  # the solver's bound is within its tolerance of the truth, and may be above
    gap = None if bound is None else (cost - bound) / cost if cost > 0 else 0.0
    return Extraction(program, cost, estimate, bound, gap, time.perf_counter() - started, status, size)


def extract_greedy(saturation: Saturation, choices: Choices | None = None) -> Extraction:
    """The program of the cheapest e-node of each class, shared parts counted for each reader."""
    started = time.perf_counter()
    choices = choices or Choices(saturation)
    picked, estimate = choices.greedy()
    return _finish(choices, choices.build(picked), estimate, None, "greedy", started, 0)


def extract_shared(saturation: Saturation, choices: Choices | None = None, rounds: int = 30) -> Extraction:
    """The best program of some rounds in which readers share the costs of what they read: fast, and with no bound.

    On an e-graph with cycles the greedy one.
    """
    started = time.perf_counter()
    choices = choices or Choices(saturation)
    picked = choices.shared(rounds) if saturation.acyclic else choices.greedy()[0]
    return _finish(choices, choices.build(picked), choices.price(picked), None, "shared", started, 0)


def extract_ilp(
    saturation: Saturation,
    *,
    cycle_constraints: bool | None = None,
    seconds: float = 60.0,
    choices: Choices | None = None,
    relative_gap: float = 1e-6,
) -> Extraction:
    """The cheapest program, with a bound on what any program of the e-graph costs.

    Args:
        cycle_constraints: give each class of a cycle a place in a topological order that e-nodes must follow; None:
            where cycles were not filtered. Without them, on an e-graph with cycles, cyclic answers are cut off one at a
            time.
        seconds: most time of the solver; its best program so far is returned.
        relative_gap: the solver stops when bound and cost are this close.

    Raises:
        InputError: seconds not above 0.
    """
    check_limit("seconds", seconds, whole=False)
    started = time.perf_counter()
    choices = choices or Choices(saturation)
    if cycle_constraints is None:
        cycle_constraints = not saturation.acyclic
    start = choices.shared() if saturation.acyclic else choices.greedy()[0]
    model = _Model(choices, cycle_constraints)
    cuts: list[list[int]] = []
    while True:
        left = max(0.1, seconds - (time.perf_counter() - started))
        picked, objective, bound, status = model.solve(start, cuts, left, relative_gap)
        cycle = model.cycle(picked)
        if not cycle:
            break
        cuts.append(cycle)
        if time.perf_counter() - started >= seconds:
            picked, objective, status = start, float("inf"), "time limit"
            break
    program = choices.build(picked)
    return _finish(choices, program, objective, bound, status, started, model.size)


def _quiet_solver() -> Any:
    """A HiGHS solver. The first one of a process prints who it is, before it can be told not to."""
    import highspy

    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        return highspy.Highs()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Model:
    """The linear program of some choices."""

    def __init__(self, choices: Choices, cycle_constraints: bool) -> None:
        self.choices = choices
        self.options: list[tuple[int, Choice]] = []
        self.columns: dict[int, list[int]] = {}
        for cls, options in choices.of.items():
            self.columns[cls] = list(range(len(self.options), len(self.options) + len(options)))
            self.options.extend((cls, option) for option in options)
        self.size = len(self.options)
        self.place: dict[int, int] = {}  # class of a cycle -> column of its place in the order
        component = self._components() if cycle_constraints else {}
        rows: list[tuple[float, list[int], list[float]]] = []  # least value, columns, coefficients
        for root in choices.needed:
            rows.append((1.0, self.columns[root], [1.0] * len(self.columns[root])))
        sizes: dict[int, int] = {}
        for number in component.values():
            sizes[number] = sizes.get(number, 0) + 1
        for cls, number in component.items():
            if sizes[number] > 1:
                self.place[cls] = self.size + len(self.place)
        self.most_places = [sizes[component[cls]] - 1 for cls in self.place]
        for cls, columns in self.columns.items():
            readers: dict[int, list[int]] = {}
            for column in columns:
                for child in self.options[column][1].children:
                    readers.setdefault(child, []).append(column)
            for other in choices.dominators(cls):
                if other not in readers or len(readers[other]) < len(columns):
                    rows.append(
                        (0.0, self.columns[other] + columns, [1.0] * len(self.columns[other]) + [-1.0] * len(columns))
                    )
            for child, reading in readers.items():
                below = self.columns[child]
                rows.append((0.0, below + reading, [1.0] * len(below) + [-1.0] * len(reading)))
                if cls in self.place and component.get(child) == component[cls]:
                    size = float(sizes[component[cls]])
                    rows.append(
                        (
                            1.0 - size,
                            [self.place[cls], self.place[child], *reading],
                            [1.0, -1.0, *[-size] * len(reading)],
                        )
                    )
        self.rows = rows

    def _components(self) -> dict[int, int]:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        index = {cls: place for place, cls in enumerate(self.columns)}
        edges = np.array(
            [(index[cls], index[child]) for cls, option in self.options for child in option.children], np.int64
        ).reshape(-1, 2)
        matrix = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(index), len(index)))
        _, labels = connected_components(matrix, connection="strong")
        return {cls: int(labels[place]) for cls, place in index.items()}

    def solve(
        self, start: Mapping[int, ENode], cuts: Sequence[Sequence[int]], seconds: float, relative_gap: float
    ) -> tuple[dict[int, ENode], float, float, str]:
        """(e-node for each class that is needed, seconds of the program, bound in seconds, status)."""
        if not self.size:  # all outputs are constants
            return {}, 0.0, 0.0, "optimal"
        import highspy

        prices = np.array([option.cost / MICROSECOND for _, option in self.options] + [0.0] * len(self.place))
        rows = [*self.rows, *((1.0 - len(cut), list(cut), [-1.0] * len(cut)) for cut in cuts)]
        problem = highspy.HighsLp()
        problem.num_col_, problem.num_row_ = len(prices), len(rows)
        problem.col_cost_ = prices
        problem.col_lower_ = np.zeros(len(prices))
        problem.col_upper_ = np.array([1.0] * self.size + [float(most) for most in self.most_places])
        problem.row_lower_ = np.array([least for least, _, _ in rows])
        problem.row_upper_ = np.full(len(rows), highspy.kHighsInf)
        problem.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        problem.a_matrix_.start_ = np.cumsum([0, *(len(columns) for _, columns, _ in rows)])
        problem.a_matrix_.index_ = np.array([column for _, columns, _ in rows for column in columns])
        problem.a_matrix_.value_ = np.array([value for _, _, values in rows for value in values])
        kinds = [highspy.HighsVarType.kInteger] * self.size + [highspy.HighsVarType.kContinuous] * len(self.place)
        problem.integrality_ = kinds
        solver = _quiet_solver()
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("time_limit", float(seconds)),
            ("mip_rel_gap", relative_gap),
            ("mip_abs_gap", 1e-9),
        ):
            solver.setOptionValue(name, value)
        solver.passModel(problem)
        first = self._solution(start)
        solution = highspy.HighsSolution()
        solution.col_value = first
        solver.setSolution(solution)
        solver.run()
        info = solver.getInfo()
        values = np.asarray(solver.getSolution().col_value)
        optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible and len(values)
        bound = max(0.0, float(info.mip_dual_bound)) if np.isfinite(info.mip_dual_bound) else 0.0
        if not found:
            values = np.array(first)
        picked = self._needed(values)
        cost = float(sum(self.options[column][1].cost for column in picked.values()))
        nodes = {cls: self.options[column][1].node for cls, column in picked.items()}
        return nodes, cost, bound * MICROSECOND, "optimal" if optimal else "time limit"

    def _needed(self, values: np.ndarray) -> dict[int, int]:
        """The column picked for each class that the roots need: of several the cheapest, in a class's order."""
        picked: dict[int, int] = {}
        waiting = list(self.choices.needed)
        while waiting:
            cls = waiting.pop()
            if cls in picked:
                continue
            picked[cls] = max(self.columns[cls], key=lambda column: (values[column] > 0.5, -column))
            waiting.extend(self.options[picked[cls]][1].children)
        return picked

    def _solution(self, picked: Mapping[int, ENode]) -> list[float]:
        """Values of all variables for e-nodes picked without cycles."""
        values = [0.0] * (self.size + len(self.place))
        needed: dict[int, int] = {}
        waiting = list(self.choices.needed)
        while waiting:
            cls = waiting.pop()
            if cls in needed:
                continue
            needed[cls] = next(column for column in self.columns[cls] if self.options[column][1].node is picked[cls])
            values[needed[cls]] = 1.0
            waiting.extend(self.options[needed[cls]][1].children)
        height: dict[int, int] = {}
        stack = list(self.choices.needed)
        while stack and self.place:
            cls = stack[-1]
            children = self.options[needed[cls]][1].children
            left = [child for child in children if child not in height]
            if left:
                stack.extend(left)
                continue
            stack.pop()
            inside = [height[child] + 1 for child in children if child in self.place and cls in self.place]
            height[cls] = max(inside, default=0)
            if cls in self.place:
                place = self.place[cls]
                values[place] = float(min(height[cls], self.most_places[place - self.size]))
        return values

    def cycle(self, picked: Mapping[int, ENode]) -> list[int]:
        """Columns of the picked e-nodes of a cycle; empty if there is none."""
        static = self.choices.graph.static
        done: set[int] = set()
        for root in self.choices.needed:
            way: list[int] = []
            edges: list[list[int]] = []

            def enter(cls: int, way: list[int] = way, edges: list[list[int]] = edges) -> None:
                way.append(cls)
                edges.append([child for child in picked[cls].children if not static[child]])

            if root not in done:
                enter(root)
            while way:
                if not edges[-1]:
                    done.add(way.pop())
                    edges.pop()
                    continue
                child = edges[-1].pop()
                if child in way:
                    around = way[way.index(child) :]
                    return [
                        next(column for column in self.columns[cls] if self.options[column][1].node is picked[cls])
                        for cls in around
                    ]
                if child not in done:
                    enter(child)
        return []
