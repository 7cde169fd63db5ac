"""Orders of little memory: the optimum on trees by brute force, known trees, and plain twins that agree exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym.envs.scheduling import exact, memory_orders, orders
from graphopt_gym.simulator import Simulator
from tests.envs.scheduling.dags import (
    cluster_of,
    graph_of,
    least_peak,
    one_device_peak,
    random_dag,
    random_in_tree,
    simulator_of,
    topological_orders,
)
from tests.envs.scheduling.test_orders import case
from tests.simulator.cases import random_graph

METHODS = (memory_orders.liu, memory_orders.sethi_ullman, memory_orders.memory_greedy, orders.depth_first)


def alone(simulator: Simulator) -> np.ndarray:
    return np.zeros(simulator.num_tasks, np.int32)


def peak(simulator: Simulator, rule) -> int:
    return int(simulator.run_tasks(alone(simulator), rule(simulator, alone(simulator))).peak_bytes[0])


def inputs_of(simulator: Simulator) -> list[list[int]]:
    """The tasks that each task reads from and that are no sources."""
    tasks = simulator.tasks
    reads = [tasks.input_tensor[tasks.input_ptr[k] : tasks.input_ptr[k + 1]] for k in range(tasks.num_tasks)]
    return [
        sorted({int(tasks.tensor_task[t]) for t in one if not tasks.is_source[tasks.tensor_task[t]]}) for one in reads
    ]


@pytest.mark.parametrize("seed", range(40))
def test_liu_has_the_least_peak_of_all_orders_of_a_tree(seed):
    rng = np.random.default_rng(seed)
    simulator = simulator_of(random_in_tree(rng, int(rng.integers(2, 9))), cluster_of(1))
    assert memory_orders.is_in_forest(simulator.tasks)
    assert peak(simulator, memory_orders.liu) == least_peak(simulator)


@pytest.mark.parametrize("seed", range(15))
def test_sethi_ullman_has_the_least_peak_of_all_post_orders_of_a_tree(seed):
    rng = np.random.default_rng(100 + seed)
    simulator = simulator_of(random_in_tree(rng, 8), cluster_of(1))
    inputs, sources = inputs_of(simulator), np.flatnonzero(simulator.tasks.is_source).tolist()

    def post_orders(task):
        for children in itertools.permutations(inputs[task]):
            for parts in itertools.product(*(list(post_orders(child)) for child in children)):
                yield [*itertools.chain(*parts), task]

    every = [one_device_peak(simulator.tasks, [*sources, *one]) for one in post_orders(len(inputs) - 1)]
    assert peak(simulator, memory_orders.sethi_ullman) == min(every)


def test_post_orders_can_be_far_from_the_best_order():
    """Two branches with a hill, a deep valley and a hill: both first hills before the others."""
    deep = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (3, 8), (7, 8)]
    simulator = simulator_of(graph_of(deep, [20, 1, 12, 5, 20, 1, 12, 5, 0]), cluster_of(1))
    assert peak(simulator, memory_orders.liu) == least_peak(simulator)
    assert peak(simulator, memory_orders.liu) < peak(simulator, memory_orders.sethi_ullman)


@pytest.mark.parametrize("height", range(1, 9))
def test_complete_binary_trees_take_as_many_pebbles_as_is_known(height):
    """Height + 2 pebbles, without sliding: the Sethi-Ullman number, and one."""
    count = 2 ** (height + 1) - 1
    edges = [(count - 1 - child, count - 1 - (child - 1) // 2) for child in range(1, count)]
    simulator = simulator_of(graph_of(sorted(edges), [1] * count), cluster_of(1))
    for rule in (memory_orders.liu, memory_orders.sethi_ullman):
        assert peak(simulator, rule) == height + 2


@pytest.mark.parametrize("branches", [2, 3, 4])
@pytest.mark.parametrize("rule", METHODS, ids=lambda one: one.__name__)
def test_fork_joins_reach_the_optimum(branches, rule):
    """A fork, branches of two tasks whose second is small, a join: branch after branch."""
    edges, sizes = [], [2]
    for branch in range(branches):
        first = 1 + 2 * branch
        edges += [(0, first), (first, first + 1), (first + 1, 1 + 2 * branches)]
        sizes += [8, 1]
    simulator = simulator_of(graph_of(sorted(edges), [*sizes, 1]), cluster_of(1))
    assert not memory_orders.is_in_forest(simulator.tasks)
    assert peak(simulator, rule) == least_peak(simulator)


@pytest.mark.parametrize("seed", range(25))
def test_orders_of_any_graph_are_topological_and_cost_what_the_simulator_says(seed):
    simulator = Simulator(random_graph(np.random.default_rng(seed)), cluster_of(1))
    inputs = inputs_of(simulator)
    for rule in METHODS:
        priority = rule(simulator, alone(simulator))
        order = np.argsort(-priority, kind="stable").tolist()
        assert all(order.index(one) < order.index(task) for task in range(len(inputs)) for one in inputs[task])
        assert one_device_peak(simulator.tasks, order) == peak(simulator, rule)


def test_on_graphs_that_are_no_trees_they_are_near_the_optimum():
    rng = np.random.default_rng(5)
    ratios = {rule.__name__: [] for rule in METHODS}
    for _ in range(40):
        simulator = simulator_of(random_dag(rng, 8, 0.35), cluster_of(1))
        least = least_peak(simulator)
        for rule in METHODS:
            ratios[rule.__name__].append(peak(simulator, rule) / least)
            assert ratios[rule.__name__][-1] >= 1
    mean = {name: np.mean(one) for name, one in ratios.items()}
    assert 1 < mean["liu"] < 1.05  # a heuristic there
    assert mean["liu"] <= mean["sethi_ullman"] <= mean["depth_first"]


def test_forests():
    chain = graph_of([(0, 1), (1, 2)], [1, 1, 1])
    shared = graph_of([(0, 1), (0, 2), (1, 3), (2, 3)], [1] * 4, [0])  # a source with two readers
    assert memory_orders.is_in_forest(Simulator(chain, cluster_of(1)).tasks)
    assert not memory_orders.is_in_forest(Simulator(shared, cluster_of(1)).tasks)
    assert memory_orders.is_in_forest(Simulator(graph_of([], [1, 2]), cluster_of(1)).tasks)


# ---- plain twins


def plain_forest(simulator: Simulator, position: np.ndarray, last: bool, whole: bool) -> list[int]:
    """The order of :func:`memory_orders.forest_order`, by lists of pieces."""
    tasks = simulator.tasks
    readers: dict[int, set[int]] = {storage: set() for storage in range(len(tasks.storage_bytes))}
    for tensor, storage in enumerate(tasks.tensor_storage.tolist()):
        readers[storage] |= set(tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]].tolist())
    adds, net, parent = {}, dict.fromkeys(range(tasks.num_tasks), 0), {}
    for task in range(tasks.num_tasks):
        own = range(tasks.storage_ptr[task], tasks.storage_ptr[task + 1])
        adds[task] = sum(int(tasks.storage_bytes[one]) for one in own)
        every = set().union(*(readers[one] for one in own))
        if every:
            parent[task] = (max if last else min)(every, key=lambda one: position[one])
        for one in own:
            if readers[one]:
                net[max(readers[one], key=lambda reader: position[reader])] -= int(tasks.storage_bytes[one])
                net[task] += 0 if tasks.is_source[task] else int(tasks.storage_bytes[one])

    def key(piece):
        hill, left, _ = piece
        return (0, hill, 0) if left <= 0 else (1, left - hill, 0)

    def place(piece):
        return (*key(piece), piece[2][-1])

    below = {task: [] for task in [*range(tasks.num_tasks), None]}
    for task in tasks.sequence.tolist():
        if not tasks.is_source[task]:
            pieces = sorted(below[task], key=place)
            new = (adds[task], net[task], [task])
            while pieces and (whole or key(new) <= key(pieces[-1])):
                hill, left, members = pieces.pop()
                new = (max(hill, left + new[0]), left + new[1], members + new[2])
            below[parent.get(task)] += [*pieces, new]
    order = [one for piece in sorted(below[None], key=place) for one in piece[2]]
    return np.flatnonzero(tasks.is_source).tolist() + order


@pytest.mark.parametrize("seed", range(40))
def test_forest_order_follows_its_definition(seed):
    simulator, _ = case(seed)
    tasks = simulator.tasks
    held = memory_orders.holdings(tasks, alone(simulator))
    position = np.random.default_rng(seed).permutation(simulator.num_tasks).astype(np.float64)
    for last, whole in itertools.product((True, False), repeat=2):
        found = memory_orders.forest_order(
            tasks.sequence, tasks.is_source, tasks.storage_ptr, held.num_bytes, held.reader_ptr, held.reader, position,
            last, whole,
        )  # fmt: skip
        assert found.tolist() == plain_forest(simulator, position, last, whole)


def plain_greedy(simulator: Simulator, placement: np.ndarray) -> list[int]:
    """The order of :func:`memory_orders.memory_greedy`, by asking every ready task at every step."""
    tasks, inputs = simulator.tasks, inputs_of(simulator)
    readers: dict[tuple, set[int]] = {}
    size, gives = {}, {task: [] for task in range(tasks.num_tasks)}
    for task in range(tasks.num_tasks):
        for storage in range(tasks.storage_ptr[task], tasks.storage_ptr[task + 1]):
            gives[task].append(("home", storage))
            size["home", storage], readers["home", storage] = int(tasks.storage_bytes[storage]), set()
    for tensor, producer in enumerate(tasks.tensor_task.tolist()):
        for reader in tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]].tolist():
            if placement[reader] == placement[producer]:
                readers["home", int(tasks.tensor_storage[tensor])].add(reader)
            else:
                copy = ("copy", tensor, int(placement[reader]))
                readers.setdefault(copy, set()).add(reader)
                size[copy] = int(tasks.tensor_bytes[tensor])
    order = np.flatnonzero(tasks.is_source).tolist()
    left = set(range(tasks.num_tasks)) - set(order)
    work = [0.0] * simulator.num_devices
    durations = simulator.device_durations_s()
    while left:
        ready = [task for task in left if not left & set(inputs[task])]
        device = min({int(placement[task]) for task in ready}, key=lambda one: (work[one], one))

        def rank(task):
            adds = sum(size[one] for one in gives[task])
            stays = sum(size[one] for one in gives[task] if readers[one])
            frees = sum(size[one] for one, its in readers.items() if task in its and its & left == {task})
            return stays - frees, adds, task

        task = min((one for one in ready if placement[one] == device), key=rank)
        work[device] += durations[device, task]
        order.append(task)
        left.remove(task)
    return order


@pytest.mark.parametrize("seed", range(40))
def test_memory_greedy_follows_its_definition(seed):
    simulator, placement = case(seed)
    found = np.argsort(-memory_orders.memory_greedy(simulator, placement), kind="stable")
    assert found.tolist() == plain_greedy(simulator, placement)


def test_every_order_of_the_twin_costs_what_the_simulator_says():
    simulator = simulator_of(random_dag(np.random.default_rng(1), 6), cluster_of(1))
    for order in topological_orders(simulator):
        priority = orders.priority_of(np.array(order))
        said = simulator.run_tasks(alone(simulator), priority).peak_bytes[0]
        assert one_device_peak(simulator.tasks, order) == said


def test_large_trees_agree_with_the_search_over_sets():
    for seed in range(5):
        simulator = simulator_of(random_in_tree(np.random.default_rng(seed), 30), cluster_of(1))
        found = peak(simulator, memory_orders.liu)
        order, bound = exact.search_sets(simulator, 0, found, 60.0)
        assert order is None  # nothing below it
        assert bound == found
