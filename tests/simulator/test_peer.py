"""The event loop in C against the engine: two programs that share no code give the same costs, to the last bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from graphopt_gym.benchmarks import peer, simulator
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.orders import ORDERS

from .cases import random_cluster, random_fusion, random_graph

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, peer.COMPILERS)), reason="no C compiler")


def assert_same(problem: Simulator, placement: np.ndarray, priority: np.ndarray | None) -> None:
    found = peer.bound(problem, placement, priority)()
    expected = problem.run_many(placement[None], None if priority is None else priority[None])
    for name, values in found.items():
        assert values.tolist() == getattr(expected, name).ravel().tolist(), name


@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
def test_peer__small_graphs_of_ties_zeros_and_shared_links__same_costs(order):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        cluster = random_cluster(rng)
        times = rng.choice([0.0, 1.0, 2.0, 0.7], graph.num_ops)
        problem = Simulator(graph, cluster, op_times_s=times, order=order)
        if seed % 3 == 0:
            problem = Simulator(graph, cluster, fusion=random_fusion(rng, graph), order=order)
        placement = rng.integers(0, cluster.num_devices, problem.num_tasks, dtype=np.int32)
        levels = rng.choice([0.0, 1.0, 2.0], problem.num_tasks)
        assert_same(problem, placement, levels if order == "priority" and seed % 2 else None)


@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
def test_peer__layered_graphs__same_costs(order):
    for seed, equal in enumerate((False, True, False, True)):
        rng = np.random.default_rng(seed)
        graph = layered_dag(1_500, (4, 40)[seed // 2], seed=seed, equal=equal, phases=True, zeros=0.1)
        cluster = simulator._complete_cluster(5) if seed < 2 else simulator._bus(70, True)
        times = None if equal else rng.uniform(1e-5, 1e-3, graph.num_ops)
        problem = Simulator(graph, cluster, op_times_s=times, order=order)
        for blocks in (False, True):
            placement = rng.integers(0, cluster.num_devices, problem.num_tasks, dtype=np.int32)
            assert_same(problem, np.sort(placement) if blocks else placement, None)


@needs_compiler
@pytest.mark.parametrize("case", [simulator._tasks_alike, simulator._transfers_alike])
def test_peer__hard_cases__same_costs(case):
    assert_same(*case(300))


def test_peer__without_a_compiler__is_said_in_the_tables(monkeypatch):
    monkeypatch.setattr(peer, "COMPILERS", ())
    peer.c_loop.cache_clear()
    monkeypatch.setattr(simulator, "HARD_CASES", {})
    try:
        assert simulator.c_report() == {"rows": [], "notes": [peer.NO_COMPILER]}
        assert peer.NO_COMPILER in simulator.hard_report()["notes"]
        problem, placement, _ = simulator._on_many(10, 2)
        with pytest.raises(RuntimeError, match="no event loop in C"):
            peer.bound(problem, placement)
    finally:
        peer.c_loop.cache_clear()


@needs_compiler
def test_bench_simulator__ratios_to_c_and_hard_cases(monkeypatch):
    monkeypatch.setattr(simulator, "C_GRAPHS", ((200, 2),))
    monkeypatch.setattr(simulator, "C_SECONDS", 0.01)
    rows = simulator.c_report()["rows"]
    assert [(row["order"], row["placement"]) for row in rows] == [
        (order, placement) for order in ("fifo", "program", "stream") for placement in ("random", "blocks")
    ]
    assert all(row["ratio"] == row["engine_ms"] / row["c_ms"] > 0 for row in rows)
    name = "200 ops on 4,096 devices"
    monkeypatch.setattr(simulator, "HARD_CASES", {name: simulator.HARD_CASES[name]})
    (row,) = simulator.hard_report()["rows"]
    assert row["devices"] == 4_096
    assert 0 < row["memory_mb"] < 1_000
