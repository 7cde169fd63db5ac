"""Candidates: placements of scorers and of heuristics, in the order in which a plan likes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from graphopt_agents.placer.arrays import Arrays
from graphopt_agents.placer.plan import plan
from graphopt_gym.envs.placement import baechi, list_scheduling, partition, projection
from graphopt_gym.envs.placement.problem import PlacementProblem

CANDIDATES = 64
TWICE = 0.3  # share of draws that decide each group twice
FULL = 0.97  # share of the planned memory above which a candidate comes after all others
PLANS = 3  # of a heuristic that makes several


def drawn(
    weights: np.ndarray, spread: np.ndarray, count: int, rng: np.random.Generator, first: bool = True
) -> list[tuple[np.ndarray, int]]:
    """(weights float64 [features], passes) of ``count`` placements, see ``scorer.place``.

    Args:
        weights: float64 [scorers, features]; ``spread``: float64 [features].
        first: whether each scorer's own are first, in one pass and in two; the others are drawn around scorers.
    """
    found = [(one, passes) for passes in (1, 2) for one in weights] if first else []
    while len(found) < count:
        around = weights[int(rng.integers(len(weights)))] + spread * rng.normal(size=weights.shape[1])
        found.append((around, 1 + int(rng.random() < TWICE)))
    return found[:count]


def heuristic(problem: PlacementProblem, seed: int) -> Iterator[np.ndarray]:
    """Placements, int32 [G] each, that the human expert, METIS, HEFT and m-ETF propose, none of them simulated."""

    def heft() -> Iterator[np.ndarray]:
        groups = list_scheduling.make_instance(problem)
        by_op = problem.num_groups < problem.simulator.tasks.num_tasks
        ops = projection.op_instance(problem) if by_op else groups
        for capacity in (None, problem.capacity_bytes):
            yield list_scheduling.heft(groups, capacity).device_of_unit[groups.unit_of_group]
            if by_op:
                yield from projection.project(groups, ops, list_scheduling.heft(ops, capacity))

    def m_etf() -> Iterator[np.ndarray]:
        groups = list_scheduling.make_instance(problem)
        for share in (1.0, 0.9, 0.8):
            capacity = (problem.capacity_bytes * share).astype(np.int64)
            yield baechi.m_etf(groups, capacity, np.inf).device_of_unit[groups.unit_of_group]

    sources = (partition.expert(problem), partition.metis(problem, seed), heft(), m_etf())
    for source in sources:
        for one in itertools.islice(source, 2 * PLANS):
            yield np.asarray(one, np.int32)


def planned(arrays: Arrays, homes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [B], float64 [B]): planned seconds, and the fullest device's planned share of its memory."""
    seconds, fullest, peak = np.empty(len(homes)), np.empty(len(homes)), np.empty(len(arrays.capacity_bytes))
    for row, home in enumerate(homes):
        seconds[row] = plan(arrays, home, peak)
        fullest[row] = (peak / arrays.capacity_bytes).max()
    return seconds, fullest


def ordered(arrays: Arrays, homes: list[np.ndarray]) -> list[np.ndarray]:
    """The different ones, by planned time; those whose planned memory is short come last, the least short first."""
    homes = list({home.tobytes(): home for home in homes}.values())
    seconds, fullest = planned(arrays, homes)
    return [homes[row] for row in np.lexsort((seconds, np.maximum(fullest, FULL)))]
