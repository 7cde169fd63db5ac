"""Tree search over the order in which rules enter an e-graph.

After the idea of He, Singh, Yoneki, "MCTS-GEB: Monte Carlo tree search is a good e-graph builder" (2023), and Hartmann,
He, Yoneki, "Optimizing tensor computation graphs with equality saturation and Monte Carlo tree search" (PACT 2024,
arXiv 2410.05534). Saturation applies every rule in every iteration, and the e-graph is full before the deep rewrites
come. Here a state is an e-graph, an action is a group of rules that is applied for one iteration, and what an e-graph
is worth is the cheapest program in it after some more iterations of random rules (the roll-out). E-graphs stay small,
so that the exact extraction takes a fraction of a second. Trees are grown by UCT (Kocsis and Szepesvári, ECML 2006)
with progressive widening.

``tree_search_repeat`` starts a new tree from each better program: its e-graph is small again, and what was found once
need not be found again. Where that ends it starts over.

A seed gives the same run again where no time limit is hit: neither of the run, nor of an extraction from one e-graph.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.rewrite.saturation_methods import (
    LEAST_GAIN,
    RESERVE,
    as_decision,
    check_solver,
    problem_of,
    seconds_left,
)
from graphopt_gym.graphs.tensor_program.program import TensorProgram

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.rules.patterns import Rule
    from graphopt_gym.envs.rewrite.saturation.explore import Explorer, Saturation
    from graphopt_gym.envs.rewrite.saturation.extraction import Choices, Extraction
    from graphopt_gym.search.evaluator import Evaluator

EXPLORATION = 0.5  # weight of UCT's bonus; values are between 0 and 1
WIDENING = (2.0, 0.5)  # a state visited n times may have this[0] * n ** this[1] children
KEPT_SHARES = (0.3, 0.6, 0.9, 1.0)  # of the rules, that a roll-out applies
MOST_MULTI = 3  # iterations of a roll-out in which multi-pattern rules take part
MOST_KEPT = 48  # e-graphs kept; others are made again from their parents when they are needed
SAME_PLACE = 4  # an e-graph may have this many times the nodes of its program, whatever the limit
BEST_KEPT = 3  # e-graphs that the exact extraction takes more time for at the end
ILP_SHARE = 0.25  # of the seconds
ILP_SECONDS = 10.0  # for each, where the caller gives no limit
LEAST_SECONDS = 0.1
REPEATED_ILP_SHARE = 0.1  # of the seconds that are left, of the repeated search
PATIENCE = 16  # roll-outs without a better program, after which a repeated search starts again
MOST_DRY = 3  # trees in a row without a roll-out, after which it ends: the rules change nothing
SCALES = (0.5, 1.0, 1.0, 2.0)  # of the node limit asked for, then

OPTIONS: dict[str, Any] = {
    "node_limit": 2000,
    "iteration_limit": 15,
    "memory_bytes": 4 << 30,
    "extraction_seconds": 0.5,
    "solver": "cp-sat",
}


class _State:
    """An e-graph in the tree: how it came about, and what was found below it."""

    __slots__ = ("action", "children", "costs", "depth", "done", "least", "parent", "untried", "visits")

    def __init__(self, parent: _State | None, action: int, untried: Sequence[int]) -> None:
        self.parent, self.action = parent, action
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.untried = list(untried)
        self.children: list[_State] = []
        self.visits = 0
        self.costs = 0.0  # summed over visits
        self.least = math.inf
        self.done = False  # nothing below it is left to try


class _Found:
    """The best e-graphs seen among those whose extraction ran out of time."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, Saturation, Choices]] = []
        self._count = 0

    def add(self, cost: float, explored: Saturation, choices: Choices) -> None:
        self._count += 1
        self.rows.append((cost, -explored.nodes, explored, choices))
        self.rows.sort(key=lambda row: row[:2])
        del self.rows[BEST_KEPT:]


class _Tree:
    """A tree of e-graphs of one program.

    Args:
        node_limit: most e-nodes of an e-graph; more where the program is large.
    """

    def __init__(self, evaluator: Evaluator, rng: np.random.Generator, program: TensorProgram, node_limit: int) -> None:
        from graphopt_gym.envs.rewrite.saturation.explore import Explorer
        from graphopt_gym.envs.rewrite.saturation.limits import Limits

        self.evaluator, self.rng, self.program = evaluator, rng, program
        self.problem = problem_of(evaluator)
        options = evaluator.options
        self.iteration_limit = options["iteration_limit"]
        rules = self.problem.matcher.rules
        self.singles = [index for index, rule in enumerate(rules) if not rule.merges]
        self.multis = [index for index, rule in enumerate(rules) if rule.merges]
        self.actions = rule_groups(rules)
        self.limits = Limits(
            max(node_limit, SAME_PLACE * len(program)), max(0.0, seconds_left(evaluator)), options["memory_bytes"]
        )
        self.found = _Found()
        self.best = self.original = self.problem.total(program, self.problem.program_costs.node_costs(program))
        self.best_program = program
        self.worst = self.original
        self.largest = 0
        self.rules: dict[str, int] = {}  # of the best e-graph
        self._kept: OrderedDict[int, Explorer] = OrderedDict()
        self.root = self._state(None, -1)
        self._root_explorer = Explorer(program, rules)

    def _state(self, parent: _State | None, action: int) -> _State:
        return _State(parent, action, self.rng.permutation(len(self.actions)).tolist())

    def explorer(self, state: _State) -> Explorer:
        """The e-graph of a state, not to be changed; made again by its actions where it was not kept."""
        if state.parent is None:
            return self._root_explorer
        kept = self._kept.get(id(state))
        if kept is None:
            kept = self.explorer(state.parent).copy()
            kept.iterate(self.actions[state.action], self.limits)
            self._keep(state, kept)
        else:
            self._kept.move_to_end(id(state))
        return kept

    def _keep(self, state: _State, explorer: Explorer) -> None:
        self._kept[id(state)] = explorer
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def step(self) -> float | None:
        """Grows the tree by a state, prices what is found below it, tells its ancestors; None: nothing is left."""
        state = self._leaf()
        if state is None:
            return None
        explorer = self.explorer(state)
        cost = self._price(explorer) if state.done else self._roll_out(explorer)
        above: _State | None = state
        while above is not None:
            above.visits += 1
            above.costs += cost
            above.least = min(above.least, cost)
            above = above.parent
        return cost

    def _leaf(self) -> _State | None:
        """A new state: down the tree by UCT, to where another child may be had."""
        state = self.root
        while not self.root.done:
            child = self._expand(state) if self._may_widen(state) else None
            if child is not None:
                return child
            children = [one for one in state.children if not one.done]
            if children:
                state = max(children, key=self._score)
            else:
                state.done, state = True, self.root
        return None

    def _may_widen(self, state: _State) -> bool:
        factor, power = WIDENING
        open_ = any(not child.done for child in state.children)
        return bool(state.untried) and (not open_ or len(state.children) < factor * (state.visits + 1) ** power)

    def _expand(self, state: _State) -> _State | None:
        """A new child of a state, or None where no action that is left changes anything."""
        explorer = self.explorer(state)
        while state.untried:
            action = state.untried.pop()
            self.evaluator.check_left()
            grown = explorer.copy()
            iteration, stopped = grown.iterate(self.actions[action], self.limits)
            if not iteration.applied:
                continue
            child = self._state(state, action)
            state.children.append(child)
            self._keep(child, grown)
            child.done = bool(stopped) or child.depth >= self.iteration_limit
            return child
        return None

    def _score(self, state: _State) -> float:
        assert state.parent is not None
        span = self.worst - self.best
        cost = 0.5 * (state.costs / state.visits + state.least)
        value = (self.worst - cost) / span if span > 0 else 0.0
        return value + EXPLORATION * math.sqrt(math.log(state.parent.visits + 1) / state.visits)

    def _roll_out(self, explorer: Explorer) -> float:
        """The cost of a program found after iterations of some rules, drawn once, until a limit or nothing new."""
        grown, rng = explorer.copy(), self.rng
        share = KEPT_SHARES[int(rng.integers(len(KEPT_SHARES)))]
        kept = [index for index, draw in zip(self.singles, rng.random(len(self.singles)), strict=True) if draw < share]
        pairs = [index for index, draw in zip(self.multis, rng.random(len(self.multis)), strict=True) if draw < share]
        iterations = int(rng.integers(1, self.iteration_limit + 1))
        multi: Sequence[int] = range(int(rng.integers(MOST_MULTI + 1)))  # first, as in plain saturation, or at any time
        if rng.random() < 0.5:
            multi = rng.integers(iterations, size=len(multi)).tolist()
        idle = False
        for number in range(iterations):
            if idle and number not in multi:
                continue
            self.evaluator.check_left()
            iteration, stopped = grown.iterate(pairs + kept if number in multi else kept, self.limits)
            idle = not iteration.applied
            if stopped:
                break
        return self._price(grown)

    def _price(self, explorer: Explorer) -> float:
        """The cost of the program that the exact extraction finds in its time; proposes it."""
        from graphopt_gym.envs.rewrite.saturation.explore import Saturation
        from graphopt_gym.envs.rewrite.saturation.extraction import Choices

        explored = Saturation(
            self.program, explorer.graph, explorer.roots, self.problem.program_costs, "", (), 0.0, 0, True,
            explorer.entered,
        )  # fmt: skip
        choices = Choices(explored)
        options = self.evaluator.options
        seconds = min(options["extraction_seconds"], max(LEAST_SECONDS, seconds_left(self.evaluator)))
        found = self._extract(explored, choices, seconds)
        self.evaluator.finish(as_decision(self.problem, found.program))
        if found.status != "optimal":
            self.found.add(found.cost, explored, choices)
        self.largest = max(self.largest, explored.nodes)
        self.worst = max(self.worst, found.cost)
        self._learn(found, explorer.entered)
        return found.cost

    def _extract(self, explored: Saturation, choices: Choices, seconds: float) -> Extraction:
        from graphopt_gym.envs.rewrite.saturation.extraction import extract_ilp

        return extract_ilp(explored, solver=self.evaluator.options["solver"], seconds=seconds, choices=choices)

    def _learn(self, found: Extraction, entered: Mapping[str, int]) -> None:
        if found.cost < self.best:
            self.best, self.best_program, self.rules = found.cost, found.program, dict(entered)

    def forget(self) -> None:
        """Gives the memory of the e-graphs back."""
        self.found.rows.clear()
        self._kept.clear()

    def finish(self, seconds: float) -> float:
        """Extracts once more from the best e-graphs whose extraction ran out of time; the best cost."""
        rows = list(self.found.rows)
        for place, (_, _, explored, choices) in enumerate(rows):
            share = seconds / len(rows)
            if self.evaluator.seconds is not None:
                left = (1 - RESERVE) * seconds_left(self.evaluator)
                share = min(share, left / (len(rows) - place))
            if share <= 0:
                break
            found = self._extract(explored, choices, share)
            self.evaluator.finish(as_decision(self.problem, found.program))
            self._learn(found, explored.entered)
        return self.best


def rule_groups(rules: Sequence[Rule]) -> list[list[int]]:
    """The actions: all single-pattern rules, those of each family, and each multi-pattern rule; by index."""
    families: dict[str, list[int]] = {}
    for index, rule in enumerate(rules):
        families.setdefault(rule.name if rule.merges else rule.family, []).append(index)
    everything = [index for index, rule in enumerate(rules) if not rule.merges]
    return [everything, *(group for group in families.values() if group != everything)]


def check_options(options: Mapping[str, Any]) -> None:
    """Raises InputError for a limit below 1."""
    from graphopt_gym.envs.rewrite.saturation.limits import check_limit

    for name in ("node_limit", "iteration_limit", "memory_bytes"):
        check_limit(name, options[name])
    check_limit("extraction_seconds", options["extraction_seconds"], whole=False)
    check_solver(options)


def tree_search(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """One tree, from the program as it is; at the end more time for extraction from the best e-graphs.

    Raises:
        InputError: a limit below 1.
    """
    check_options(evaluator.options)
    problem = problem_of(evaluator)
    evaluator.cost(problem.original)
    tree = _Tree(evaluator, rng, problem.program, evaluator.options["node_limit"])
    steps = 0
    while evaluator.left > BEST_KEPT and _search_goes_on(evaluator) and tree.step() is not None:
        steps += 1
        _note(evaluator, [tree], steps)
    tree.finish(ILP_SECONDS * BEST_KEPT if evaluator.seconds is None else seconds_left(evaluator))
    _note(evaluator, [tree], steps)


def tree_search_repeat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Trees one after the other, each from the best program of the one before, until one finds nothing better.

    Then it starts again from the original, or from a program on the way to the best, with another node limit.

    Raises:
        InputError: a limit below 1.
    """
    check_options(evaluator.options)
    problem = problem_of(evaluator)
    evaluator.cost(problem.original)
    way = [problem.program]  # to the best program so far
    chain, chain_best, scale = [problem.program], problem.original_s, 1.0
    best = problem.original_s
    trees: list[_Tree] = []
    steps = dry = 0
    while evaluator.left > BEST_KEPT and dry < MOST_DRY:
        evaluator.check_left()
        tree = _Tree(evaluator, rng, chain[-1], max(1, int(scale * evaluator.options["node_limit"])))
        trees.append(tree)
        idle, before = 0, steps
        while idle < PATIENCE and evaluator.left > BEST_KEPT and tree.best >= chain_best * (1 - LEAST_GAIN):
            if tree.step() is None:
                break
            steps += 1
            idle += 1
        if tree.best >= chain_best * (1 - LEAST_GAIN) and chain_best <= best:
            left = seconds_left(evaluator)
            tree.finish(BEST_KEPT * ILP_SECONDS if math.isinf(left) else REPEATED_ILP_SHARE * left)
        dry = dry + 1 if steps == before else 0
        tree.forget()
        _note(evaluator, trees, steps)
        if tree.best < chain_best * (1 - LEAST_GAIN):
            chain_best = tree.best
            chain.append(tree.best_program)
            if chain_best < best * (1 - LEAST_GAIN):
                best, way = chain_best, list(chain)
        else:
            place = 0 if rng.random() < 0.5 else int(rng.integers(len(way)))
            chain = way[: place + 1]
            chain_best = problem.program_cost(chain[-1])
            scale = SCALES[int(rng.integers(len(SCALES)))]


def _search_goes_on(evaluator: Evaluator) -> bool:
    return evaluator.seconds is None or evaluator.wall_s < (1 - ILP_SHARE) * evaluator.seconds


def _note(evaluator: Evaluator, trees: Sequence[_Tree], steps: int) -> None:
    best = min(trees, key=lambda tree: tree.best)
    evaluator.note(
        trees=len(trees),
        roll_outs=steps,
        largest_nodes=max(tree.largest for tree in trees),
        rules_that_entered_the_e_graph=dict(sorted(best.rules.items(), key=lambda row: (-row[1], row[0]))),
    )
