"""Bounds and exact orders, against every order there is of tiny graphs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym import extras
from graphopt_gym.envs.scheduling import exact
from graphopt_gym.errors import InputError
from graphopt_gym.simulator import Simulator
from tests.envs.scheduling.dags import (
    cluster_of,
    graph_of,
    least_makespan,
    least_peak,
    one_device_peak,
    priorities,
    random_dag,
    simulator_of,
)
from tests.simulator.cases import random_cluster, random_graph

ROUNDING = 1 + 1e-9


def tiny(seed: int) -> tuple[Simulator, np.ndarray]:
    """A source and 6 tasks on 2 devices, with links that matter."""
    rng = np.random.default_rng(seed)
    cluster = cluster_of(2, bytes_per_s=float(rng.choice([1.0, 3.0])), shared=bool(rng.integers(2)))
    simulator = simulator_of(random_dag(rng, 7, 0.35), cluster, [0, *rng.integers(0, 6, 6)])
    return simulator, rng.integers(0, 2, 7).astype(np.int32)


def nasty(seed: int) -> tuple[Simulator, np.ndarray] | None:
    """Views, several sources, up to 4 devices with links that are shared; None where there are too many tasks."""
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng, 11), random_cluster(rng)
    simulator = Simulator(graph, cluster, op_times_s=np.where(graph.op_class == 0, 0.0, 3 * rng.random(graph.num_ops)))
    placement = rng.integers(0, cluster.num_devices, simulator.num_tasks).astype(np.int32)
    return (simulator, placement) if (~simulator.tasks.is_source).sum() <= 6 else None


NASTY = [one for one in map(nasty, range(60)) if one]
TINY = [tiny(seed) for seed in range(30)]


# ---- bounds


def test_one_machine_is_the_hardest_subset_of_its_jobs():
    """Jackson's preemptive schedule ends with the most of a subset: first head, all work, least tail (Carlier)."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        head, work, tail = rng.integers(0, 9, (3, int(rng.integers(1, 7)))).astype(np.float64)
        jobs = range(len(head))
        subsets = itertools.chain(*(itertools.combinations(jobs, size) for size in range(1, len(head) + 1)))
        hardest = max(head[[*one]].min() + work[[*one]].sum() + tail[[*one]].min() for one in subsets)
        assert exact.one_machine_s(head, work, tail) == hardest


@pytest.mark.parametrize("cases", [TINY, NASTY], ids=["tiny", "nasty"])
def test_no_priorities_beat_the_bounds(cases):
    tight = 0
    for simulator, placement in cases:
        bounds = exact.lower_bounds(simulator, placement)
        tasks = np.flatnonzero(~simulator.tasks.is_source).tolist()
        sources = np.flatnonzero(simulator.tasks.is_source).tolist()
        every = priorities(([*sources, *one] for one in itertools.permutations(tasks)), simulator.num_tasks)
        batch = simulator.run_many(np.tile(placement, (len(every), 1)), every)
        assert bounds.makespan_s <= batch.makespan_s.min() * ROUNDING
        assert (bounds.peak_bytes <= batch.peak_bytes.min(axis=0)).all()
        assert (bounds.device_s >= batch.busy_s[0] / ROUNDING).all()
        tight += bounds.makespan_s * ROUNDING >= batch.makespan_s.min()
    assert tight > len(cases) / 2


def test_bounds_of_a_chain_and_of_a_busy_link():
    chain = simulator_of(
        graph_of([(0, 1), (1, 2)], [4, 4, 4]), cluster_of(2, bytes_per_s=2.0, latency_s=1.0), [1, 2, 3]
    )
    bounds = exact.lower_bounds(chain, np.array([0, 1, 0], np.int32))
    assert bounds.critical_path_s == 1 + (1 + 4 / 2) + 2 + (1 + 4 / 2) + 3
    # three tensors of a source at once, each to a task of its own elsewhere
    edges = [(0, 3), (1, 4), (2, 5)]
    fan = simulator_of(graph_of(edges, [5, 5, 5, 0, 0, 0], [0, 1, 2]), cluster_of(2), [0, 0, 0, 1, 1, 1])
    placement = np.array([0, 0, 0, 1, 1, 1], np.int32)
    bounds = exact.lower_bounds(fan, placement)
    assert bounds.makespan_s == bounds.link_s.max() == 3 * 5 + 1
    assert bounds.makespan_s == fan.cost(placement, np.zeros(6))[0]


def test_memory_bounds_see_what_is_held_across_a_task(monkeypatch):
    """0 is read by 2, which also needs 1: while 1 runs, 0 is held if it comes before, as by an edge to 1."""
    edges = [(0, 1), (1, 2), (0, 3), (2, 3)]
    simulator = simulator_of(graph_of(edges, [7, 2, 3, 1]), cluster_of(1))
    placement = np.zeros(4, np.int32)
    assert exact.memory_bounds(simulator, placement)[0] == 7 + 2 + 3 == least_peak(simulator)
    monkeypatch.setattr(exact, "MOST_RELATED", 0)
    assert exact.memory_bounds(simulator, placement)[0] == 7 + 3 + 1


# ---- step time


def test_least_makespan_against_every_order():
    found, proved = 0, 0
    for simulator, placement in [*TINY, *NASTY]:
        least = least_makespan(simulator, placement)
        result = exact.least_makespan(simulator, placement, seconds=10, workers=1)
        assert simulator.cost(placement, result.priority)[0] == result.makespan_s
        assert result.lower_bound_s <= least * ROUNDING
        assert result.makespan_s >= least / ROUNDING
        found += result.makespan_s <= least * ROUNDING
        proved += result.proved
        assert not result.proved or result.makespan_s <= least * (1 + exact.PROVED)
    assert found == len(TINY) + len(NASTY)
    assert proved >= 0.9 * found  # of the others, a schedule that waits would be shorter


def test_the_solver_finds_what_the_rules_do_not(monkeypatch):
    """With one rule alone to begin with, and without swaps."""
    monkeypatch.setattr(exact, "_RULES", exact._RULES[-1:])
    monkeypatch.setattr(
        exact, "_swapped", lambda simulator, placement, priority, makespan_s, limit: (priority, makespan_s)
    )
    better = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        simulator = simulator_of(random_dag(rng, 25, 0.12), cluster_of(3), [0, *rng.integers(1, 9, 24)])
        placement = rng.integers(0, 3, 25).astype(np.int32)
        begun, _ = simulator.cost(placement, exact._RULES[0](simulator, placement))
        result = exact.least_makespan(simulator, placement, seconds=10, workers=1)
        better += result.makespan_s < begun
        assert result.lower_bound_s <= result.makespan_s <= begun
    assert better


def test_swaps_alone_never_make_it_worse():
    for simulator, placement in TINY:
        priority = np.random.default_rng(1).normal(size=simulator.num_tasks)
        begun, _ = simulator.cost(placement, priority)
        swapped, made = exact._swapped(simulator, placement, priority, begun, 5.0)
        assert made <= begun
        assert simulator.cost(placement, swapped)[0] == made


def test_a_gap_that_waiting_leaves():
    """A short task is ready first, and a long one a moment later that all the rest waits for: no order waits for it."""
    #  0 (device 1, 1 s) -> 1 (device 0, 5 s) -> 3 (device 1, 9 s);  2 (device 0, 6 s) is ready at once
    edges = [(0, 1), (1, 3)]
    simulator = simulator_of(graph_of(edges, [0, 0, 0, 0]), cluster_of(2), [1, 5, 6, 9])
    placement = np.array([1, 0, 0, 1], np.int32)
    result = exact.least_makespan(simulator, placement, seconds=10, workers=1)
    assert result.makespan_s == least_makespan(simulator, placement) == 6 + 5 + 9
    assert abs(result.lower_bound_s / (1 + 5 + 9) - 1) < 1e-6  # were the device to wait
    assert not result.proved
    assert abs(result.gap - 5 / 15) < 1e-5


def test_steps_that_take_no_time():
    simulator = simulator_of(graph_of([(0, 1)], [0, 0]), cluster_of(1), [0, 0])
    result = exact.least_makespan(simulator, np.zeros(2, np.int32), seconds=1)
    assert (result.makespan_s, result.gap, result.proved) == (0.0, 0.0, True)


# ---- memory


def test_least_peak_against_every_order():
    for simulator, _ in [*TINY, *NASTY]:
        placement = np.zeros(simulator.num_tasks, np.int32)
        result = exact.least_peak(simulator, placement, seconds=10, workers=1)
        assert result.peak_bytes == least_peak(simulator) == result.lower_bound_bytes
        assert result.proved
        assert simulator.run_tasks(placement, result.priority).peak_bytes.max() == result.peak_bytes


def test_the_integer_program_alone_finds_the_least_peak():
    rng = np.random.default_rng(7)
    for _ in range(12):
        simulator = simulator_of(random_dag(rng, 9, 0.3), cluster_of(1))
        placement = np.zeros(9, np.int32)
        worst = -np.arange(9, dtype=np.float64)
        peak = int(simulator.run_tasks(placement, worst).peak_bytes[0])
        priority, bound = exact._solve_memory(simulator, placement, worst, 0, peak, 20.0, 1, 0)
        assert bound == least_peak(simulator)
        assert simulator.run_tasks(placement, priority).peak_bytes[0] == bound


def test_the_search_over_sets_alone_finds_the_least_peak_or_a_bound():
    rng = np.random.default_rng(8)
    for _ in range(20):
        simulator = simulator_of(random_dag(rng, 9, 0.3), cluster_of(1))
        least = least_peak(simulator)
        order, bound = exact.search_sets(simulator, 0, 2**62, 60.0)
        assert bound == least == one_device_peak(simulator.tasks, order)
        assert exact.search_sets(simulator, 0, least, 60.0) == (None, least)
        bounds = [exact.search_sets(simulator, 0, 2**62, 60.0, most)[1] for most in range(12)]
        assert bounds == sorted(bounds)
        assert bounds[-1] <= least


@pytest.mark.parametrize(("height", "width"), [(4, 3), (6, 4)])
def test_grids_take_as_many_pebbles_as_their_short_side_and_one(height, width):
    """A grid whose tasks read those above and to the left: a row, and what is made (the short way round)."""
    edges = [
        (row * width + column, (row + down) * width + column + 1 - down)
        for row in range(height)
        for column in range(width)
        for down in (0, 1)
        if row + down < height and column + 1 - down < width
    ]
    simulator = simulator_of(graph_of(sorted(edges), [1] * (height * width)), cluster_of(1))
    result = exact.least_peak(simulator, np.zeros(height * width, np.int32), seconds=20)
    assert result.proved
    assert result.peak_bytes == min(height, width) + 1


def test_any_one_device_of_several():
    simulator = simulator_of(random_dag(np.random.default_rng(2), 8, 0.3), cluster_of(3))
    results = [exact.least_peak(simulator, np.full(8, device, np.int32), workers=1) for device in range(3)]
    assert {one.peak_bytes for one in results} == {least_peak(simulator)}
    assert all(one.proved for one in results)


# ---- what cannot be done


def test_errors(monkeypatch):
    simulator, placement = TINY[0]
    alone = np.zeros(7, np.int32)
    with pytest.raises(InputError, match="orders one device, the placement has 2"):
        exact.least_peak(simulator, np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
    for method in (exact.least_makespan, exact.least_peak):
        with pytest.raises(InputError, match="seconds"):
            method(simulator, alone, seconds=0)
        with pytest.raises(InputError, match="workers"):
            method(simulator, alone, workers=-1)
    monkeypatch.setattr(exact, "MOST_INTERVALS", 3)
    monkeypatch.setattr(exact, "MOST_ORDERED", 3)
    with pytest.raises(InputError, match=r"intervals for tasks and transfers \(at most 3\)"):
        exact.least_makespan(simulator, placement)
    with pytest.raises(InputError, match="at most 3 tasks, here are 6"):
        exact.least_peak(simulator, alone)
    monkeypatch.setattr(extras, "installed", lambda module: False)
    for method in (exact.least_makespan, exact.least_peak):
        with pytest.raises(InputError, match="ortools"):
            method(simulator, alone)
