"""The priority rules: against plain twins that follow their definitions, and on graphs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.envs.scheduling import orders
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.simulator import Simulator
from tests.envs.scheduling.dags import cluster_of, graph_of, simulator_of
from tests.simulator.cases import random_cluster, random_fusion, random_graph


def case(seed: int) -> tuple[Simulator, np.ndarray]:
    """A nasty random graph, fused every other time, with a placement of its tasks."""
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng), random_cluster(rng)
    simulator = Simulator(graph, cluster, fusion=random_fusion(rng, graph) if seed % 2 else None)
    return simulator, rng.integers(0, cluster.num_devices, simulator.num_tasks).astype(np.int32)


class Plain:
    """What a task takes and whom it feeds, by dicts."""

    def __init__(self, simulator: Simulator, placement: np.ndarray) -> None:
        tasks, cluster = simulator.tasks, simulator.cluster
        every = range(simulator.num_tasks)
        self.takes = {k: float(simulator.device_durations_s()[placement[k], k]) for k in every}
        self.edges = []  # producer, reader, seconds of the transfer
        for tensor, producer in enumerate(tasks.tensor_task.tolist()):
            for reader in tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]].tolist():
                seconds = 0.0
                if placement[producer] != placement[reader]:
                    link = cluster.links[cluster.link_of[placement[producer], placement[reader]]]
                    seconds = link.latency_s + tasks.tensor_bytes[tensor] / link.bytes_per_s
                self.edges.append((producer, reader, seconds))

    def rank(self, task: int, transfers: bool = True) -> float:
        ways = [seconds * transfers + self.rank(b, transfers) for a, b, seconds in self.edges if a == task]
        return self.takes[task] + max(ways, default=0.0)

    def head(self, task: int) -> float:
        return max((self.head(a) + self.takes[a] + s for a, b, s in self.edges if b == task), default=0.0)

    def descendants(self, task: int) -> set[int]:
        return {task}.union(*(self.descendants(b) for a, b, _ in self.edges if a == task))

    def depth_first(self) -> list[int]:
        path = {task: self.head(task) + self.takes[task] for task in self.takes}
        order: list[int] = []

        def visit(task: int) -> None:
            if task not in order:
                for other in sorted({a for a, b, _ in self.edges if b == task}, key=lambda one: (-path[one], one)):
                    visit(other)
                order.append(task)

        read = {a for a, _, _ in self.edges}
        for sink in sorted(set(self.takes) - read, key=lambda one: (-path[one], one)):
            visit(sink)
        return order


@pytest.mark.parametrize("seed", range(30))
def test_rules_follow_their_definitions(seed):
    simulator, placement = case(seed)
    plain = Plain(simulator, placement)
    every = range(simulator.num_tasks)
    assert orders.placed_rank(simulator, placement).tolist() == [plain.rank(task) for task in every]
    assert orders.highest_level(simulator, placement).tolist() == [plain.rank(task, False) for task in every]
    assert orders.placed_heads_s(simulator, placement).tolist() == [plain.head(task) for task in every]
    assert orders.longest_first(simulator, placement).tolist() == [plain.takes[task] for task in every]
    assert orders.shortest_first(simulator, placement).tolist() == [-plain.takes[task] for task in every]
    work = [sum(plain.takes[one] for one in sorted(plain.descendants(task))) for task in every]
    np.testing.assert_allclose(orders.most_work_remaining(simulator, placement), work, rtol=1e-12)
    order = np.argsort(-orders.depth_first(simulator, placement), kind="stable")
    assert order.tolist() == plain.depth_first()


def test_work_of_many_descendants_is_estimated():
    graph = layered_dag(1500, width=8, seed=3, zeros=0.1)
    simulator = simulator_of(graph, cluster_of(1), np.where(graph.op_class < 2, 0.0, 1.0 + np.arange(1500) % 7))
    tasks, placement = simulator.tasks, np.zeros(simulator.num_tasks, np.int32)
    assert simulator.num_tasks <= orders.MOST_EXACT
    exact = orders.most_work_remaining(simulator, placement)
    work_s = orders.placed_durations_s(simulator, placement)
    columns = (tasks.sequence, work_s, tasks.tensor_ptr, tasks.reader_ptr, tasks.reader)
    rough, close = (orders.estimated_work(*columns, samples) for samples in (orders.SAMPLES, 4096))
    some = exact > 0
    assert (rough[~some] == 0).all()
    for found, samples in ((rough, orders.SAMPLES), (close, 4096)):
        errors = np.abs(found[some] / exact[some] - 1)
        assert errors.max() < 5 / np.sqrt(samples)
        assert errors.max() > 0.01 / np.sqrt(samples)  # it is an estimate
    assert (rough == orders.estimated_work(*columns, orders.SAMPLES)).all()


def test_many_tasks_take_the_estimate(monkeypatch):
    simulator, placement = case(0)
    exact = orders.most_work_remaining(simulator, placement)
    monkeypatch.setattr(orders, "MOST_EXACT", 0)
    found = orders.most_work_remaining(simulator, placement)
    assert (found != exact).any()
    assert ((found > 0) == (exact > 0)).all()


def test_the_path_with_real_transfers_is_shorter_than_one_by_means_would_say():
    """A fork of two equal branches, one of which is far away: it must begin first, which its level does not show."""
    edges = [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)]
    simulator = simulator_of(graph_of(edges, [1, 4, 4, 1, 1, 1], [0]), cluster_of(2))
    placement = np.array([0, 0, 0, 0, 1, 0], np.int32)
    level, rank = (rule(simulator, placement) for rule in (orders.highest_level, orders.placed_rank))
    assert level[1] == level[2]
    assert rank[2] > rank[1]
    assert simulator.cost(placement, rank)[0] < simulator.cost(placement, level)[0]


def test_longest_first_balances_what_shortest_first_does_not():
    """Two tasks feed a long one elsewhere: the short one releases nothing, the long one all."""
    edges = [(0, 1), (0, 2), (2, 3)]
    simulator = simulator_of(graph_of(edges, [0] * 4, [0]), cluster_of(2), [0.0, 1.0, 5.0, 9.0])
    placement = np.array([0, 0, 0, 1], np.int32)
    longest, shortest = (
        simulator.cost(placement, rule(simulator, placement))[0]
        for rule in (orders.longest_first, orders.shortest_first)
    )
    assert (longest, shortest) == (5.0 + 9.0, 1.0 + 5.0 + 9.0)
