"""Local search after GDP: the policy's moves, and the share of the budget."""

from __future__ import annotations

import numpy as np
import pytest
from graphopt_agents import gdp_search
from graphopt_agents.gdp_search import PolicyMoves

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve

SMALL = {"width": 16, "sage_layers": 2, "blocks": 1, "samples": 16}


class Still:
    """A problem whose own move changes nothing, so that only the policy's moves do."""

    allowed = None

    def __init__(self, order: np.ndarray, part: list[int] | None = None) -> None:
        groups = len(order)
        parts = np.array([] if part is None else [part], np.int64).reshape(-1, groups)
        last = np.array([np.cumsum(np.bincount(one))[one] for one in parts], np.int32).reshape(-1, groups)
        size = np.array([np.bincount(one)[one] for one in parts], np.int32).reshape(-1, groups)
        self.decision_shape = (groups,)
        self.move_tables = PlacementProblem("transformer_xl_2layer", "v100x2").move_tables._replace(
            orders=np.array([order], np.int32),
            positions=np.argsort([order], axis=1).astype(np.int32),
            members=np.argsort(parts, axis=1, kind="stable").astype(np.int32),
            begin=last - size,
            end=last,
            work=np.ones(groups),
        )

    def neighbour(self, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return decision.copy()


def test_moves__are_stretches_of_an_order_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdp_search, "OWN_MOVES", 0)
    rng = np.random.default_rng(0)
    order = rng.permutation(8)
    moves = PolicyMoves(Still(order), np.full((8, 3), 1 / 3))
    nowhere = np.full(8, -1, np.int32)
    for _ in range(1000):
        changed = moves.neighbour(nowhere, rng)
        taken = np.flatnonzero(changed[order] >= 0)
        assert len(taken)
        assert (np.diff(taken) == 1).all()
        assert len(set(changed[order[taken]].tolist())) == 1
    assert (nowhere == -1).all()


def test_moves__follow_the_mean_probability_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdp_search, "OWN_MOVES", 0)
    rng = np.random.default_rng(1)
    probs = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]])
    moves = PolicyMoves(Still(np.arange(4), [0, 1, 0, 1]), probs)
    nowhere = np.full(4, -1, np.int32)
    seen: dict[tuple[int, ...], list[int]] = {}
    for _ in range(40_000):
        changed = moves.neighbour(nowhere, rng)
        taken = np.flatnonzero(changed >= 0)
        if len(taken):
            seen.setdefault(tuple(taken.tolist()), []).append(int(changed[taken[0]]))
    assert {(0, 2), (1, 3), (0, 1, 2, 3), (1, 2)} <= set(seen)  # parts and stretches
    for block, devices in seen.items():
        expected = (probs[list(block), 0].mean() + 0.5) / 2  # mixed half and half with the uniform distribution
        assert np.mean(np.array(devices) == 0) == pytest.approx(expected, abs=0.06)


def test_run__spends_the_budget_and_is_seeded() -> None:
    problem = PlacementProblem(layered_dag(40, seed=3), "toyx2", grouping="op")
    method = Method("gdp_search", gdp_search.method_run(**SMALL), "", "", random=True)
    first, again = (solve(problem, method, budget=300, seed=1) for _ in range(2))
    assert first.evaluations == 300
    assert first.history[-1][2] == first.outcome.cost
    assert np.array_equal(first.decision, again.decision)
    assert first.outcome.cost <= solve(problem, "expert").outcome.cost  # it starts from the heuristics


def test_run__keeps_to_seconds() -> None:
    problem = PlacementProblem(layered_dag(40, seed=3), "toyx2")
    method = Method("gdp_search", gdp_search.method_run(**SMALL), "", "", random=True)
    assert solve(problem, method, budget=10**9, seconds=1.0).stopped_by == "seconds"


def test_arguments__are_refused_by_name() -> None:
    with pytest.raises(InputError, match="share is 2"):
        gdp_search.method_run(share=2)
