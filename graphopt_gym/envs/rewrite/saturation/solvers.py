"""The extraction problem in parts, and what solves a part exactly.

Classes that every program makes are paid for whatever is picked, so what depends on them falls apart: a *part* is a set
of classes whose choices have to do with one another (:func:`parts_of`). The cost of a program is the sum of its parts'.

A part without cycles that is narrow is solved by elimination (:func:`eliminate`): a boolean a class, whether it is
made; the classes are minimised out one after the other, as in dynamic programming on a tree decomposition (Bertelè
and Brioschi 1972; Dechter 1999). Others are integer linear programs (:class:`IlpModel`), TENSAT's (section 5.1): a
binary variable an e-node, the roots' classes are picked, a picked e-node picks a node of every child class. Its rows
are summed over the e-nodes of a class that read the same child, which is as right, as one e-node a class is enough, and
tighter; and where every program of a class makes another, that is said too, which the relaxation would not know.
Before,
their answers are improved by elimination of neighbourhoods (:func:`improve`); parts that are alike, as the layers of a
network may make them, are solved once (:func:`alike`).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import unknown_name
from graphopt_gym.files import silenced

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.saturation.extraction import Choices

SOLVERS = {"both": ("ortools", "highspy"), "cp-sat": ("ortools",), "highs": ("highspy",)}  # and what each needs
FIRST_SHARE = 0.6  # of the seconds, for CP-SAT: it proves what is of middle size, and HiGHS bounds what is large
MICROSECOND = 1e-6  # HiGHS's unit
FEMTOSECOND = 1e-15  # CP-SAT's: costs are rounded down to whole ones, so that its bound is one of the true costs
MOST_ENTRIES = 1 << 26  # of all tables of an elimination: some seconds
MOST_WIDTH = 23  # dimensions that a variable's elimination leaves: 128 MiB before it
MOST_CHILDREN = 16  # of a choice, in an elimination
LEAST_REGION, REGION_ENTRIES = 30, 1 << 18  # of a neighbourhood: classes to begin with, and its tables
MOST_IDLE, LEAST_GAIN = 300, 1e-9  # neighbourhoods without a gain before it ends; relative, less is rounding
MODEL_S = 1e-4  # for each choice of a part, that making its linear program may take: where less is left, it is not made
MOST_REFINED = 500  # classes of a part that is compared with others

Picks = dict[int, int]  # class -> which of its choices


class Option(NamedTuple):
    """A choice of a class of a part."""

    cost: float  # seconds
    children: frozenset[int]  # classes of the part that it needs and that are not made anyway
    number: int  # which of the class's choices it is


@dataclass
class Part:
    """Classes whose choices have to do with one another.

    Attributes:
        options: class -> its choices; classes in topological order as far as there is one, children first.
        forced: classes that every program makes.
        cyclic: class -> number of the cycle (strong component) that it is in; classes of none left out.
    """

    options: dict[int, list[Option]] = field(default_factory=dict)
    forced: list[int] = field(default_factory=list)
    cyclic: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Choices."""
        return sum(len(options) for options in self.options.values())


class Solved(NamedTuple):
    """What a solver found: a choice for each class that it makes, seconds of a bound, how it ended."""

    picks: Picks
    bound: float
    status: str  # "optimal" or "time limit"


def parts_of(choices: Choices) -> list[Part]:
    """The parts of an extraction problem, small ones first."""
    forced = choices.mandatory
    cyclic = _cycles(choices)
    parent = {cls: cls for cls in choices.of}

    def find(cls: int) -> int:
        while parent[cls] != cls:
            parent[cls] = parent[parent[cls]]
            cls = parent[cls]
        return cls

    for cls, group in choices.of.items():
        for option in group:
            for child in option.children:
                if child not in forced:
                    parent[find(child)] = find(cls)
    first: dict[int, int] = {}
    for cls, number in cyclic.items():
        parent[find(cls)] = find(first.setdefault(number, cls))
    parts: dict[int, Part] = {}
    for cls in choices.order:
        part = parts.setdefault(find(cls), Part())
        if cls in cyclic:
            part.cyclic[cls] = cyclic[cls]
        part.options[cls] = []
        if cls in forced:
            part.forced.append(cls)
    for part in parts.values():
        for cls, options in part.options.items():
            for index, (cost, children, _) in enumerate(choices.of[cls]):
                left = [
                    child for child in children & part.options.keys() if child not in forced or child in part.cyclic
                ]
                options.append(Option(cost, frozenset(left), index))
    return sorted(parts.values(), key=lambda part: part.size)


def alike(parts: Sequence[Part]) -> list[list[tuple[Part, list[int]]]]:
    """Parts in groups of the same structure and costs, as the layers of a network may make them.

    Each comes with its classes in an order such that the classes at one place correspond: what is picked for one part
    of a group, by place, can be picked for the others. Parts with cycles are left alone.
    """
    groups: dict[object, list[tuple[Part, list[int]]]] = {}
    for part in parts:
        order = _canonical_order(part)
        place = {cls: number for number, cls in enumerate(order)}
        form: object = (
            frozenset(place[cls] for cls in part.forced),
            tuple(
                tuple(
                    sorted(
                        (option.cost, tuple(sorted(place[child] for child in option.children))) for option in options
                    )
                )
                for options in (part.options[cls] for cls in order)
            ),
        )
        groups.setdefault(id(part) if part.cyclic else form, []).append((part, order))
    return list(groups.values())


def _canonical_order(part: Part) -> list[int]:
    """The classes of a part in an order that depends on its structure, not on their numbers: by colour refinement, a
    class of those that look alike being told apart from the others until all are. Large parts: in the order they are.
    """
    if part.cyclic or len(part.options) > MOST_REFINED:
        return list(part.options)
    forced = set(part.forced)
    readers: dict[int, list[tuple[int, Option]]] = {cls: [] for cls in part.options}
    for cls, options in part.options.items():
        for option in options:
            for child in option.children:
                readers[child].append((cls, option))
    colour = {cls: hash(cls in forced) for cls in part.options}
    kinds = 0
    while True:
        while len(set(colour.values())) > kinds:
            kinds = len(set(colour.values()))
            chosen = {
                id(option): hash((option.cost, tuple(sorted(colour[child] for child in option.children))))
                for options in part.options.values()
                for option in options
            }
            colour = {
                cls: hash(
                    (
                        colour[cls],
                        tuple(sorted(chosen[id(option)] for option in options)),
                        tuple(sorted(hash((colour[user], chosen[id(option)])) for user, option in readers[cls])),
                    )
                )
                for cls, options in part.options.items()
            }
        order = sorted(part.options, key=colour.__getitem__)
        tied = next((cls for cls, after in itertools.pairwise(order) if colour[cls] == colour[after]), None)
        if tied is None:
            return order
        colour[tied] = hash((colour[tied], 1))


def like(part: Part, order: Sequence[int], picks: Picks, other: Part, other_order: Sequence[int]) -> Picks:
    """The picks of a part, carried over to another of its group."""
    to = dict(zip(order, other_order, strict=True))
    carried: Picks = {}
    for cls, number in picks.items():
        option = next(option for option in part.options[cls] if option.number == number)
        wanted = (option.cost, frozenset(to[child] for child in option.children))
        carried[to[cls]] = next(
            option.number for option in other.options[to[cls]] if (option.cost, option.children) == wanted
        )
    return carried


def _cycles(choices: Choices) -> dict[int, int]:
    """Class -> number of the strong component that it is in, of components of several classes."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    place = {cls: number for number, cls in enumerate(choices.of)}
    edges = np.array(
        [
            (place[cls], place[child])
            for cls, group in choices.of.items()
            for option in group
            for child in option.children
        ],
        np.int64,
    ).reshape(-1, 2)
    matrix = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(place), len(place)))
    _, labels = connected_components(matrix, connection="strong")
    sizes = np.bincount(labels, minlength=1)
    return {cls: int(labels[number]) for cls, number in place.items() if sizes[labels[number]] > 1}


# -- elimination -------------------------------------------------------------------------------------------------------


def eliminate(part: Part, most_entries: int = MOST_ENTRIES, until: float = math.inf) -> Solved | None:
    """The cheapest choices of a part without cycles; None where the tables would be too large, or it is past ``until``
    (of ``time.perf_counter``).

    The choices of a class are looked at one after the other, with a boolean after each: whether one was picked so far;
    the last of them is whether the class is made. So no table has to span all choices of a class.
    """
    if part.cyclic:
        return None
    if len(part.options) == len(part.forced) == 1:
        (options,) = part.options.values()
        best = min(options, key=lambda option: option.cost)
        return Solved({part.forced[0]: best.number}, best.cost, "optimal")
    forced = set(part.forced)
    variable = {cls: number for number, cls in enumerate(cls for cls in part.options if cls not in forced)}
    count = len(variable)
    tables: list[tuple[list[int], np.ndarray]] = []
    chain: dict[int, list[tuple[int, int]]] = {}  # class -> (boolean after an option, the option's index); -1: true
    for cls, options in part.options.items():
        before: int | None = None  # false
        chain[cls] = []
        near = {option.number: sorted(variable[child] for child in option.children) for option in options}
        for place, option in enumerate(sorted(options, key=lambda option, near=near: near[option.number])):  # type: ignore[misc]
            if len(option.children) > MOST_CHILDREN:
                return None
            if place + 1 < len(options):
                after = count
                count += 1
            else:
                after = variable.get(cls, -1)
            chain[cls].append((after, option.number))
            scope = list(near[option.number])
            table = np.full((2, 2, *[2] * len(scope)), np.inf)
            table[0, 0] = table[1, 1] = 0.0
            table[(0, 1) + (1,) * len(scope)] = option.cost
            if after < 0:
                table = table[:, 1]
            else:
                scope.insert(0, after)
            if before is None:
                table = table[0]
            else:
                scope.insert(0, before)
            tables.append((scope, table))
            before = after
    order = _elimination_order(count, [scope for scope, _ in tables], most_entries, until)
    if order is None:
        return None
    position = {var: place for place, var in enumerate(order)}
    buckets: list[list[tuple[list[int], np.ndarray]]] = [[] for _ in order]
    total = 0.0

    def file(scope: list[int], table: np.ndarray) -> None:
        nonlocal total
        if scope:
            buckets[position[scope[0]]].append((scope, table))
        else:
            total += float(table)

    for scope, table in tables:
        places = sorted(range(len(scope)), key=lambda place, scope=scope: position[scope[place]])  # type: ignore[misc]
        file([scope[place] for place in places], table.transpose(places))
    better: list[tuple[list[int], np.ndarray]] = []  # where the variable had better be true
    for place, bucket in enumerate(buckets):
        if time.perf_counter() > until:
            return None
        union = sorted({var for scope, _ in bucket for var in scope} | {order[place]}, key=position.__getitem__)
        table = np.zeros((2,) * len(union))
        for scope, part_table in sorted(bucket, key=lambda entry: entry[1].ndim):
            inside = set(scope)
            table += part_table.reshape([2 if var in inside else 1 for var in union])
        bucket.clear()
        better.append((union[1:], table[1] < table[0]))
        file(union[1:], np.minimum(table[0], table[1]))
    assert np.isfinite(total), "a class cannot be made"
    value: dict[int, bool] = {-1: True}
    for var, (scope, true) in zip(reversed(order), reversed(better), strict=True):
        value[var] = bool(true[tuple([int(value[other]) for other in scope])])
    picks = {
        cls: next(index for after, index in steps if value[after])
        for cls, steps in chain.items()
        if value[steps[-1][0]]
    }
    return Solved(picks, total, "optimal")


def _elimination_order(
    count: int, scopes: Sequence[Sequence[int]], most_entries: int, until: float
) -> list[int] | None:
    """An order in which to minimise variables out, of fewest neighbours first; None if its tables are too large, or it
    is past ``until``."""
    near: list[set[int]] = [set() for _ in range(count)]
    for scope in scopes:
        for var in scope:
            near[var].update(scope)
    for var, others in enumerate(near):
        others.discard(var)
    heap = [(len(others), var) for var, others in enumerate(near)]
    heapq.heapify(heap)
    order: list[int] = []
    done = [False] * count
    entries = 0
    while heap:
        width, var = heapq.heappop(heap)
        if done[var] or width != len(near[var]):
            continue
        entries += 2 << width
        if entries > most_entries or width > MOST_WIDTH or time.perf_counter() > until:
            return None
        done[var] = True
        order.append(var)
        for other in near[var]:
            near[other] |= near[var]
            near[other] -= {var, other}
            heapq.heappush(heap, (len(near[other]), other))
    return order


def improve(part: Part, start: Mapping[int, int], seconds: float, seed: int = 0) -> Picks:
    """Better choices for a part without cycles, by a large neighbourhood search: the classes about one drawn at random
    are picked anew, by elimination, the others keep what they have. It ends early where nothing gets better for long.

    Args:
        start: a choice for each class that it makes; classes of other parts are left out.
    """
    chance = random.Random(seed)
    option_of = {cls: {option.number: option for option in options} for cls, options in part.options.items()}
    picks = _made(part, {cls: option_of[cls][number] for cls, number in start.items() if cls in part.options})
    near: dict[int, set[int]] = {cls: set() for cls in part.options}
    for cls, options in part.options.items():
        for option in options:
            for child in option.children:
                near[cls].add(child)
                near[child].add(cls)
    end = time.perf_counter() + seconds
    cost = sum(option.cost for option in picks.values())
    size, idle = min(LEAST_REGION, len(near)), 0
    while time.perf_counter() < end and idle < MOST_IDLE:
        idle += 1
        region = [chance.choice(list(picks))]
        inside = set(region)
        for cls in region:
            if len(region) >= size:
                break
            for other in chance.sample(sorted(near[cls]), len(near[cls])):
                if other not in inside:
                    inside.add(other)
                    region.append(other)
        outside = picks.keys() - inside
        known = {child for cls in outside for child in picks[cls].children} | set(part.forced)
        small = Part(forced=[cls for cls in region if cls in known])
        for cls in (cls for cls in part.options if cls in inside):
            small.options[cls] = [
                option._replace(children=option.children & inside)
                for option in part.options[cls]
                if option.children <= inside | outside
            ]
        # classes that no choice is left for cannot be made
        while empty := [cls for cls, options in small.options.items() if not options]:
            for cls in empty:
                del small.options[cls]
            for cls, options in small.options.items():
                small.options[cls] = [option for option in options if option.children.isdisjoint(empty)]
        solved = _eliminate_free(small)
        if solved is None:
            size = max(2, size * 3 // 4)
            continue
        found = {cls: option_of[cls][number] for cls, number in solved.picks.items()}
        found = _made(part, {**{cls: picks[cls] for cls in outside}, **found})
        found_cost = sum(option.cost for option in found.values())
        if found_cost < cost * (1 - LEAST_GAIN):
            idle = 0
        if found_cost <= cost:
            picks, cost = found, found_cost
        if len(region) == len(near):
            break  # nothing was left out
        size = min(size + 1, len(near))
    return {cls: option.number for cls, option in picks.items()}


def _eliminate_free(part: Part) -> Solved | None:
    """Elimination in which children that are forced are made anyway."""
    forced = set(part.forced)
    options = {
        cls: [option._replace(children=option.children - forced) for option in options]
        for cls, options in part.options.items()
    }
    return eliminate(Part(options, part.forced), REGION_ENTRIES)


def _made(part: Part, picked: Mapping[int, Option]) -> dict[int, Option]:
    """Of picked options, those of classes that are needed."""
    needed: dict[int, Option] = {}
    waiting = list(part.forced)
    while waiting:
        cls = waiting.pop()
        if cls not in needed:
            needed[cls] = picked[cls]
            waiting.extend(picked[cls].children)
    return needed


# -- integer linear programs -------------------------------------------------------------------------------------------


def unsolved(part: Part, first: Mapping[int, int]) -> Solved:
    """The choices that are known already, and what classes that every program makes cost at least."""
    bound = sum(min(option.cost for option in part.options[cls]) for cls in part.forced)
    return Solved({cls: number for cls, number in first.items() if cls in part.options}, bound, "time limit")


class IlpModel:
    """The linear program of a part.

    Args:
        topological: give each class of a cycle a place in an order that picked e-nodes must follow.
    """

    def __init__(self, choices: Choices, part: Part, topological: bool) -> None:
        self.part = part
        self.options: list[tuple[int, Option]] = []
        self.columns: dict[int, list[int]] = {}
        for cls, options in part.options.items():
            self.columns[cls] = list(range(len(self.options), len(self.options) + len(options)))
            self.options.extend((cls, option) for option in options)
        self.size = len(self.options)
        sizes: dict[int, int] = {}
        for number in part.cyclic.values():
            sizes[number] = sizes.get(number, 0) + 1
        self.places = {cls: sizes[number] for cls, number in part.cyclic.items()} if topological else {}
        self.covers: list[tuple[int, list[int]]] = []  # (class, columns): one of the columns needs the class
        self.steps: list[tuple[int, int, list[int]]] = []  # (class, child, columns): these put the child before it
        for cls, columns in self.columns.items():
            readers: dict[int, list[int]] = {}
            for column in columns:
                for child in self.options[column][1].children:
                    readers.setdefault(child, []).append(column)
            for other in choices.dominators(cls):
                if other in self.columns and len(readers.get(other, ())) < len(columns):
                    self.covers.append((other, columns))
            for child, reading in readers.items():
                self.covers.append((child, reading))
                if cls in self.places and part.cyclic.get(child) == part.cyclic[cls]:
                    self.steps.append((cls, child, reading))

    def solve(
        self, solver: str, start: Mapping[int, int], seconds: float, relative_gap: float, cut_cycles: bool
    ) -> Solved:
        """The best choices found in the time, and a bound.

        Args:
            start: a choice for each class that it makes, without cycles.
            cut_cycles: cut cyclic answers off, one at a time.
        """
        if solver == "both":
            begun = time.perf_counter()
            one = self.solve("cp-sat", start, FIRST_SHARE * seconds, relative_gap, cut_cycles)
            left = seconds - (time.perf_counter() - begun)
            if one.status == "optimal" or left <= 0:
                return one
            two = self.solve("highs", one.picks, left, relative_gap, cut_cycles)
            return two._replace(bound=max(one.bound, two.bound))
        run = {"highs": self._highs, "cp-sat": self._cp_sat}.get(solver)
        if run is None:
            raise unknown_name("solver", solver, SOLVERS)
        first = self._made({cls: self.columns[cls][place] for cls, place in self._places_of(start).items()})
        cuts: list[list[int]] = []
        end = time.perf_counter() + seconds
        bound = 0.0
        while True:
            left = end - time.perf_counter()
            if left <= 0:
                return Solved(self._picks(first), bound, "time limit")
            values, found_bound, optimal = run(first, cuts, left, relative_gap)
            bound = max(bound, found_bound)
            picked = first if values is None else self._needed(values)
            cycle = self.cycle(picked) if cut_cycles else []
            if not cycle:
                if self._cost(picked) > self._cost(first):
                    picked = first
                return Solved(self._picks(picked), bound, "optimal" if optimal else "time limit")
            cuts.append(cycle)

    def _places_of(self, start: Mapping[int, int]) -> dict[int, int]:
        place = {
            cls: {option.number: number for number, option in enumerate(options)}
            for cls, options in self.part.options.items()
        }
        return {cls: place[cls][index] for cls, index in start.items() if cls in place}

    def _picks(self, picked: Mapping[int, int]) -> Picks:
        return {cls: self.options[column][1].number for cls, column in picked.items()}

    def _cost(self, picked: Mapping[int, int]) -> float:
        return sum(self.options[column][1].cost for column in picked.values())

    def _made(self, picked: Mapping[int, int]) -> dict[int, int]:
        """Of some picked columns, those of classes that are needed."""
        needed: dict[int, int] = {}
        waiting = list(self.part.forced)
        while waiting:
            cls = waiting.pop()
            if cls not in needed:
                needed[cls] = picked[cls]
                waiting.extend(self.options[picked[cls]][1].children)
        return needed

    def _needed(self, values: np.ndarray) -> dict[int, int]:
        """The column picked for each class that is needed: of several the first, which is the cheapest."""
        return self._made(
            {
                cls: max(columns, key=lambda column: (values[column] > 0.5, -column))
                for cls, columns in self.columns.items()
            }
        )

    def _heights(self, picked: Mapping[int, int]) -> dict[int, int]:
        """A place in the order for each class with one, that the picked columns (without cycles) follow."""
        height: dict[int, int] = {}
        stack = list(picked) if self.places else []
        while stack:
            cls = stack[-1]
            children = self.options[picked[cls]][1].children
            left = [child for child in children if child not in height]
            if left:
                stack.extend(left)
                continue
            stack.pop()
            number = self.part.cyclic.get(cls, -1)
            height[cls] = max([height[child] + 1 for child in children if self.part.cyclic.get(child) == number] or [0])
        return {cls: height.get(cls, 0) for cls in self.places}

    def _highs(
        self, first: Mapping[int, int], cuts: Sequence[Sequence[int]], seconds: float, relative_gap: float
    ) -> tuple[np.ndarray | None, float, bool]:
        """(values of the variables, if any were found, bound in seconds, whether it is optimal)."""
        import highspy

        place = {cls: self.size + number for number, cls in enumerate(self.places)}
        rows: list[tuple[float, list[int], list[float]]] = []  # least value, columns, coefficients
        for cls in self.part.forced:
            rows.append((1.0, self.columns[cls], [1.0] * len(self.columns[cls])))
        for cls, reading in self.covers:
            below = self.columns[cls]
            rows.append((0.0, below + reading, [1.0] * len(below) + [-1.0] * len(reading)))
        for cls, child, reading in self.steps:
            most = float(self.places[cls])
            rows.append((1.0 - most, [place[cls], place[child], *reading], [1.0, -1.0, *[-most] * len(reading)]))
        rows.extend((1.0 - len(cut), list(cut), [-1.0] * len(cut)) for cut in cuts)
        problem = highspy.HighsLp()
        problem.num_col_, problem.num_row_ = self.size + len(place), len(rows)
        problem.col_cost_ = np.array([option.cost / MICROSECOND for _, option in self.options] + [0.0] * len(place))
        problem.col_lower_ = np.zeros(problem.num_col_)
        problem.col_upper_ = np.array([1.0] * self.size + [size - 1.0 for size in self.places.values()])
        problem.row_lower_ = np.array([least for least, _, _ in rows])
        problem.row_upper_ = np.full(len(rows), highspy.kHighsInf)
        problem.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        problem.a_matrix_.start_ = np.cumsum([0, *(len(columns) for _, columns, _ in rows)])
        problem.a_matrix_.index_ = np.array([column for _, columns, _ in rows for column in columns])
        problem.a_matrix_.value_ = np.array([value for _, _, values in rows for value in values])
        kinds = [highspy.HighsVarType.kInteger] * self.size + [highspy.HighsVarType.kContinuous] * len(place)
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
        known = [0.0] * problem.num_col_
        for column in first.values():
            known[column] = 1.0
        for cls, height in self._heights(first).items():
            known[place[cls]] = float(height)
        solution = highspy.HighsSolution()
        solution.col_value = known
        solver.setSolution(solution)
        solver.run()
        info = solver.getInfo()
        values = np.asarray(solver.getSolution().col_value)
        optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible and len(values)
        bound = max(0.0, float(info.mip_dual_bound)) if np.isfinite(info.mip_dual_bound) else 0.0
        return values if found else None, bound * MICROSECOND, optimal

    def _cp_sat(
        self, first: Mapping[int, int], cuts: Sequence[Sequence[int]], seconds: float, relative_gap: float
    ) -> tuple[np.ndarray | None, float, bool]:
        """(values of the variables, if any were found, bound in seconds, whether it is optimal)."""
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        picked = [model.new_bool_var("") for _ in self.options]
        made = {cls: model.new_bool_var("") for cls in self.columns}
        for cls, columns in self.columns.items():
            model.add_exactly_one([*(picked[column] for column in columns), ~made[cls]])
        for cls in self.part.forced:
            model.add(made[cls] == 1)
        for cls, reading in self.covers:
            model.add(sum(picked[column] for column in reading) <= made[cls])
        heights = self._heights(first)
        place = {cls: model.new_int_var(0, size - 1, "") for cls, size in self.places.items()}
        for cls, child, reading in self.steps:
            for column in reading:
                model.add(place[cls] > place[child]).only_enforce_if(picked[column])
        for cut in cuts:
            model.add_bool_or([~picked[column] for column in cut])
        known = set(first.values())
        for column, variable in enumerate(picked):
            model.add_hint(variable, column in known)
        for cls, variable in made.items():
            model.add_hint(variable, cls in first)
        for cls, variable in place.items():
            model.add_hint(variable, heights[cls])
        prices = [int(option.cost / FEMTOSECOND) for _, option in self.options]
        model.minimize(sum(price * variable for price, variable in zip(prices, picked, strict=True)))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.linearization_level = 2
        solver.parameters.max_time_in_seconds = seconds
        solver.parameters.relative_gap_limit = relative_gap
        status = solver.solve(model)
        bound = max(0.0, solver.best_objective_bound * FEMTOSECOND)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, bound, False
        return np.array([solver.value(variable) for variable in picked]), bound, status == cp_model.OPTIMAL

    def cycle(self, picked: Mapping[int, int]) -> list[int]:
        """Columns of the picked e-nodes of a cycle; empty if there is none."""
        done: set[int] = set()
        for start in picked:
            if start in done:
                continue
            way = [start]
            edges = [list(self.options[picked[start]][1].children)]
            while way:
                if not edges[-1]:
                    done.add(way.pop())
                    edges.pop()
                    continue
                child = edges[-1].pop()
                if child in way:
                    return [picked[cls] for cls in way[way.index(child) :]]
                if child not in done:
                    way.append(child)
                    edges.append(list(self.options[picked[child]][1].children))
        return []


def _quiet_solver() -> Any:
    """A HiGHS solver. The first one of a process prints who it is, before it can be told not to."""
    import highspy

    with silenced():
        return highspy.Highs()
