"""The task-independent searches, on a problem that is no placement, and what every method owes its budget."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.problem import Outcome, Problem
from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.search.methods import METHODS
from graphopt_gym.search.solve import method_table, solve

searches = importlib.import_module("graphopt_gym.search.methods")  # the package has a function of this name
LOCAL = [name for name in METHODS if name != "random"]


class Named:
    """Stands in for a graph and a cluster where only a name is asked for."""

    name = fingerprint = "toy"


class Knapsack(Problem):
    """Choose items (bits) of most worth within a weight; overweight is priced. The optimum is known by dynamic
    programming, and the decision has two axes, as a placement's has not."""

    env_id = "Knapsack-v0"
    unit = "worth lost"
    num_choices = 2

    def __init__(self, items: int = 16, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weight, self.worth = rng.integers(1, 20, items), rng.integers(1, 20, items)
        self.limit = int(self.weight.sum() * 0.4)
        self.decision_shape = (2, items // 2)
        self.graph, self.cluster, self.config = Named(), Named(), {}
        self.calls = 0

    def check(self, decision):
        return np.asarray(decision, np.int32)

    def costs(self, decisions):
        self.calls += len(decisions)
        flat = np.asarray(decisions).reshape(len(decisions), -1)
        over = np.maximum(flat @ self.weight - self.limit, 0)
        lost = self.worth.sum() - flat @ self.worth
        return np.where(over == 0, lost, self.worth.sum() + over).astype(np.float64), over == 0

    def evaluate(self, decision):
        costs, valid = self.costs(np.asarray(decision)[None])
        return Outcome(bool(valid[0]), float(costs[0]) if valid[0] else float("inf"), self.unit)

    def sample(self, rng):
        return rng.integers(0, 2, self.decision_shape, dtype=np.int32)

    def neighbour(self, decision, rng):
        changed = decision.copy()
        for entry in rng.integers(0, changed.size, int(rng.integers(1, 3))):
            changed.flat[entry] ^= 1
        return changed

    def optimum(self) -> int:
        most = np.zeros(self.limit + 1, np.int64)
        for weight, worth in zip(self.weight.tolist(), self.worth.tolist()):
            most[weight:] = np.maximum(most[weight:], most[:-weight] + worth)
        return int(self.worth.sum() - most.max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LOCAL)
def test_search__reaches_the_optimum_of_a_problem_that_is_no_placement(name, seed):
    problem = Knapsack(seed=seed)
    solution = solve(problem, METHODS[name], budget=6000, seed=seed)
    assert solution.outcome.valid
    assert solution.outcome.cost == problem.optimum()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 100, 333])
def test_search__spends_its_budget_exactly(name, budget):
    problem = Knapsack()
    solution = solve(problem, METHODS[name], budget=budget)
    assert solution.evaluations == budget
    assert problem.calls == budget + 1  # and one evaluate() of the best
    assert solution.stopped_by == "budget"


@pytest.mark.parametrize("name", METHODS)
def test_search__same_seed_same_run(name):
    def run(seed):
        solution = solve(Knapsack(), METHODS[name], budget=300, seed=seed)
        return solution.decision.tolist(), [(row[0], row[2]) for row in solution.history]

    assert run(3) == run(3)
    assert run(3)[1] != run(4)[1]


@pytest.mark.parametrize("name", METHODS)
def test_search__interrupt_keeps_the_best(name):
    costs = []

    def progress(evaluations, best):
        costs.append(best)
        if evaluations >= 150:
            raise KeyboardInterrupt

    solution = solve(Knapsack(), METHODS[name], budget=10_000, progress=progress)
    assert solution.stopped_by == "interrupt"
    assert 150 <= solution.evaluations < 10_000
    assert solution.outcome.cost == costs[-1]


@pytest.mark.parametrize("name", METHODS)
def test_search__stops_by_seconds(name):
    solution = solve(Knapsack(), METHODS[name], budget=10**9, seconds=0.1)
    assert solution.stopped_by == "seconds"
    assert solution.wall_s < 5


@pytest.mark.parametrize("name", METHODS)
def test_search__history_only_improves(name):
    solution = solve(Knapsack(40, seed=1), METHODS[name], budget=500)
    evaluations, _, costs = zip(*solution.history)
    assert list(evaluations) == sorted(evaluations)
    assert list(costs) == sorted(costs, reverse=True)
    assert costs[-1] == solution.outcome.cost


@pytest.mark.parametrize("name", ["hill_climbing", "annealing"])
def test_local_search__beats_random_search(name):
    """Medians over seeds, on a problem too large to sample."""
    problem = Knapsack(200)

    def median(method):
        return np.median([solve(problem, METHODS[method], budget=2000, seed=seed).outcome.cost for seed in range(5)])

    assert median(name) < 0.9 * median("random")


class Loads(Knapsack):
    """Items of uneven sizes on four devices, which a planted partition fills evenly: the least load is 1. A device
    takes a limited number of items; more are priced far above."""

    env_id = "Loads-v0"
    num_choices = 4

    def __init__(self, per_device: int = 20, spread: float = 2.0, room: int = 1000, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        size = rng.lognormal(0.0, spread, (4, per_device))
        self.size = rng.permutation((size / size.sum(axis=1, keepdims=True)).ravel())
        self.room, self.decision_shape = room, (4 * per_device,)

    def costs(self, decisions):
        on = np.asarray(decisions)[:, :, None] == np.arange(4)
        over = np.maximum(on.sum(axis=1) - self.room, 0).sum(axis=1)
        return (on * self.size[:, None]).sum(axis=1).max(axis=1) + np.where(over, 100.0 * (1 + over), 0.0), over == 0

    def sample(self, rng):
        return rng.permutation(np.arange(len(self.size)) % 4).astype(np.int32)

    def neighbour(self, decision, rng):
        changed, entries = decision.copy(), rng.integers(0, decision.size, 2)
        if rng.random() < 0.5:
            changed[entries] = changed[entries[::-1]]
        else:
            changed[entries[0]] = (changed[entries[0]] + rng.integers(1, 4)) % 4
        return changed


@pytest.mark.parametrize("spread", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("room", [1000, 20])
def test_annealing__is_near_the_optimum_where_costs_are_uneven(spread, room):
    for seed in range(3):
        problem = Loads(spread=spread, room=room, seed=seed)
        assert solve(problem, METHODS["annealing_random"], budget=10_000, seed=seed).outcome.cost < 1.01


class Ordered(Knapsack):
    """Entries that are not free of each other: no ``num_choices``."""

    env_id = "Ordered-v0"
    num_choices = None


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_random"])
def test_cross_entropy__refuses_entries_that_depend_on_each_other(name):
    with pytest.raises(InputError, match="Ordered-v0 has none"):
        solve(Ordered(), METHODS[name], budget=10)


class Steps(Knapsack):
    """One entry from 0 to 9 that moves by one, circular; the cost is its height."""

    env_id = "Steps-v0"
    heights = np.array([0.0, 1.0, 0.5, 1.5, 0.2, 0.7, 2.0, 0.4, 0.9, 0.3])

    def __init__(self):
        super().__init__()
        self.decision_shape = (1,)

    def costs(self, decisions):
        return self.heights[np.asarray(decisions)[:, 0]], np.ones(len(decisions), bool)

    def neighbour(self, decision, rng):
        return ((decision + rng.choice([-1, 1])) % 10).astype(np.int32)


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("at_once", [1, 7])
def test_walk__visits_states_by_boltzmann(temperature, at_once, monkeypatch):
    """However many moves are evaluated at once, the time spent in a state follows exp(-cost / temperature)."""
    monkeypatch.setattr(searches, "WASTE", 1e9 if at_once > 1 else 1e-9)
    monkeypatch.setattr(searches, "MOST_AT_ONCE", at_once)
    problem = Steps()
    moves = 60_000
    time_in, state = np.zeros(10), np.zeros(1, np.int32)

    class Watch(Evaluator):
        def costs(self, decisions):
            assert len(decisions) == at_once
            return super().costs(decisions)

    # the walk's own moves, followed from outside: what it moves from is what it holds
    held = []
    original = problem.neighbour

    def neighbour(decision, rng):
        held.append(int(decision[0]))
        return original(decision, rng)

    problem.neighbour = neighbour

    def cooling():
        return searches.Cooling(np.log(temperature), 0.0, 10**9 if len(held) < moves else 0)

    searches._walk(Watch(problem, 10**9), np.random.default_rng(0), state, 0.0, cooling, 10**9)
    # a round of ``at_once`` moves counts as often as moves were looked at: up to the first accepted one
    rounds = held[::at_once]
    weights = np.exp(-problem.heights / temperature)
    leave = np.array(
        [
            np.mean(
                [min(1.0, np.exp((problem.heights[s] - problem.heights[(s + d) % 10]) / temperature)) for d in (-1, 1)]
            )
            for s in range(10)
        ]
    )
    for s in rounds:
        time_in[s] += (1 - (1 - leave[s]) ** at_once) / leave[s]  # mean moves looked at in a round
    assert np.allclose(time_in / time_in.sum(), weights / weights.sum(), atol=0.02)


def test_good_start__is_the_best_of_the_cheap_heuristics():
    from graphopt_gym.envs.placement import TASK
    from graphopt_gym.envs.placement.problem import PlacementProblem

    problem = PlacementProblem("inception_v3_b32", "p100x2")
    cheap = {name: solve(problem, name) for name in TASK.starts}
    best = min(cheap.values(), key=lambda solution: solution.outcome.cost)
    evaluations = sum(solution.evaluations for solution in cheap.values())
    evaluator = Evaluator(problem, 100)
    decision, cost = searches.good_start(evaluator, np.random.default_rng(0))
    assert cost == best.outcome.cost
    assert evaluator.evaluations == evaluations
    assert np.array_equal(decision, best.decision)


def test_method_table__own_methods_first_then_the_searches():
    names = list(method_table("Placement-v0"))
    assert names[0] == "single"
    assert set(METHODS) <= set(names)
    for method in method_table("Placement-v0").values():
        assert isinstance(method, Method)
        assert method.summary
        assert method.source
