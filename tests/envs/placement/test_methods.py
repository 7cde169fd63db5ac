"""The classical placement methods: against brute force, plain twins, another HEFT, and on real training graphs."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.catalog import catalogs
from graphopt_gym.envs.placement import TASK, baechi, methods, partition, projection
from graphopt_gym.envs.placement import list_scheduling as schedulers
from graphopt_gym.envs.placement.groups import make_group_graph
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.graphs.graph import COLUMNS, ComputationGraph
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.hardware.cost_model import CostModel
from graphopt_gym.search.evaluator import Evaluator
from graphopt_gym.search.solve import solve
from graphopt_gym.simulator.orders import upward_rank
from tests.envs.placement import plain_schedulers as plain
from tests.simulator.cases import random_cluster, random_graph

CONSTRUCTIVE = [name for name, method in methods.METHODS.items() if not method.rules]
SEARCHES = ("hill_climbing", "hill_climbing_random", "annealing", "annealing_random", "cross_entropy")


class Times(CostModel):
    """Given seconds an op, divided by the device's speed (its peak FLOP/s, for short)."""

    def __init__(self, seconds):
        self.seconds = np.asarray(seconds, np.float64)

    def op_times(self, graph, device):
        return self.seconds / device.peak("float32")


def cluster_of(speeds, bytes_per_s=1.0, latency_s=0.0, memory_bytes=2**50) -> Cluster:
    """A device a speed, a link for each ordered pair."""
    count = len(speeds)
    link_of = np.full((count, count), -1, np.int32)
    link_of[~np.eye(count, dtype=bool)] = np.arange(count * (count - 1))
    links = tuple(Link(f"link{index}", latency_s, bytes_per_s) for index in range(count * (count - 1)))
    devices = tuple(Device(f"speed{speed}", "gpu", memory_bytes, 1e9, {"float32": speed}) for speed in speeds)
    return Cluster("equal_links", devices, links, link_of, (0,) * count)


def tiny_problem(seed: int) -> PlacementProblem:
    """Up to 8 ops on 2 or 3 devices, of one or two speeds, with links that matter."""
    rng = np.random.default_rng(seed)
    graph = layered_dag(8, width=2, seed=seed, sources=0.1, views=0.0, zeros=0.1)
    seconds = np.where(graph.op_class == 0, 0.0, rng.integers(1, 10, 8))
    mean_bytes = max(1.0, float(graph.output_bytes.mean()))
    speeds = [1.0, 1.0, 2.0][: 2 + seed % 2]
    cluster = cluster_of(speeds, bytes_per_s=mean_bytes / float(rng.choice([0.5, 3.0])), latency_s=0.1)
    return PlacementProblem(graph, cluster, grouping="op", cost_model=Times(seconds))


def optimum(problem: PlacementProblem) -> float:
    every = np.array(list(itertools.product(range(problem.num_devices), repeat=problem.num_groups)), np.int32)
    costs, valid = problem.costs(every)
    return float(costs[valid].min())


# ---- brute force


@pytest.mark.parametrize("seed", range(10))
def test_methods__never_beat_brute_force_and_searches_reach_it(seed):
    problem = tiny_problem(seed)
    best = optimum(problem)
    for name in gg.methods(problem):
        solution = solve(problem, name, budget=5000, seed=seed)
        assert problem.check(solution.decision) is not None
        assert solution.outcome.valid
        assert solution.outcome.cost >= best, name
        if name in SEARCHES:
            assert solution.outcome.cost == best, name


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", CONSTRUCTIVE)
def test_constructive__valid_decisions_on_nasty_graphs(name, seed):
    rng = np.random.default_rng(seed)
    grouping = ("op", "colocation")[seed % 2]
    graph = random_graph(rng)
    times = Times(rng.integers(0, 4, graph.num_ops) * 1e12)
    problem = PlacementProblem(graph, random_cluster(rng), grouping=grouping, cost_model=times)
    solution = solve(problem, name, budget=100)
    assert solution.outcome.valid  # memory is ample
    assert solution.decision.shape == (problem.num_groups,)
    assert solution.stopped_by == "finished"


# ---- the schedulers against plain twins


def same_plan(ours, theirs):
    """Where all units that compute are, and when tasks run; lone sources may be anywhere."""
    device_of_unit, start, finish = theirs
    placed = device_of_unit >= 0
    assert np.array_equal(ours.device_of_unit[placed], device_of_unit[placed])
    assert np.array_equal(ours.start_s, start)
    assert np.array_equal(ours.finish_s, finish)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("name", ["heft", "cpop"])
def test_heft_and_cpop__agree_with_the_plain_twin(name, seed):
    rng = np.random.default_rng(seed)
    graph = layered_dag(int(rng.integers(5, 70)), seed=seed, zeros=0.1, colocated=float(rng.choice([0.0, 0.7])))
    problem = PlacementProblem(graph, random_cluster(rng), cost_model=Times(rng.integers(0, 5, graph.num_ops) * 1e12))
    for instance in (schedulers.make_instance(problem), projection.op_instance(problem)):
        same_plan(getattr(schedulers, name)(instance), getattr(plain, name)(instance))
        total = int(plain.held_bytes(instance, np.zeros(len(instance.unit_bytes), int), 1).max())
        for share in (2.0, 0.5):
            capacity = np.full(problem.num_devices, int(total * share) + 1)
            ours, theirs = (getattr(room, name)(instance, capacity) for room in (schedulers, plain))
            if theirs is None:
                assert not ours.fits
            else:
                same_plan(ours, theirs)


# The example of the HEFT paper: seconds of ten tasks on three processors, and of what they send (Fig. 2).
PAPER_S = [[14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10], [13, 16, 9], [7, 15, 11], [5, 11, 14],
           [18, 12, 20], [21, 7, 16]]  # fmt: skip
PAPER_SENDS = [(1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14), (2, 8, 19), (2, 9, 16), (3, 7, 23),
               (4, 8, 27), (4, 9, 23), (5, 9, 13), (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13)]  # fmt: skip


def paper_problem(**arguments) -> PlacementProblem:
    base = chain(10)
    graph = ComputationGraph(
        "paper",
        kinds=base.kinds,
        modules=base.modules,
        columns={name: getattr(base, name) for name in COLUMNS},
        edges=np.array([(a - 1, b - 1) for a, b, _ in PAPER_SENDS]),
    )
    sends = [(a - 1, b - 1, seconds) for a, b, seconds in PAPER_SENDS]
    return PlacementProblem(
        graph, cluster_of([1.0] * 3), grouping="op", op_times_s=np.array(PAPER_S, float), transfer_s=sends, **arguments
    )


@pytest.mark.parametrize(("schedule", "makespan_s"), [(schedulers.heft, 80), (schedulers.cpop, 86)])
def test_heft_and_cpop__the_example_of_the_paper(schedule, makespan_s):
    instance = projection.op_instance(paper_problem())
    assert schedule(instance).finish_s.max() == makespan_s
    ranks = [108.0, 77.0, 80.0, 80.0, 69.0, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert np.round(instance.rank_s, 3).tolist() == ranks
    assert np.round(schedulers.downward_rank(instance), 3).tolist() == [
        0.0, 31.0, 25.0, 22.0, 24.0, 27.0, 62.333, 66.667, 63.667, 93.333]  # fmt: skip
    assert schedulers.critical_path(instance).tolist() == [0, 1, 8, 9]


@pytest.mark.parametrize("name", ["heft", "cpop"])
def test_heft_and_cpop__keep_to_allowed_devices(name):
    allowed = np.ones((10, 3), bool)
    allowed[1, 1] = allowed[8, 1] = False
    instance = schedulers.make_instance(paper_problem(allowed_devices=allowed))
    plan = getattr(schedulers, name)(instance)
    assert instance.allowed[np.arange(10), plan.device_of_unit].all()


@pytest.mark.parametrize("seed", range(20))
def test_project__to_where_most_of_the_time_is(seed):
    rng = np.random.default_rng(seed)
    graph = layered_dag(60, seed=seed, colocated=0.7)
    problem = PlacementProblem(graph, random_cluster(rng), cost_model=Times(rng.integers(1, 9, graph.num_ops) * 1e12))
    groups, ops = schedulers.make_instance(problem), projection.op_instance(problem)
    plan = schedulers.heft(ops)
    most, longest = projection.project(groups, ops, plan)
    device_of_task = plan.device_of_unit[ops.unit_of_task]
    for unit in range(len(groups.unit_bytes)):
        tasks = groups.unit_task[groups.unit_ptr[unit] : groups.unit_ptr[unit + 1]]
        if ops.mean_s[tasks].any():
            mine = np.flatnonzero(groups.unit_of_group == unit)
            time_s = np.bincount(device_of_task[tasks], ops.mean_s[tasks], problem.num_devices)
            assert time_s[most[mine]] == pytest.approx(time_s.max())
            assert (longest[mine] == device_of_task[tasks[np.argmax(ops.mean_s[tasks])]]).all()


@pytest.mark.parametrize("name", ["heft", "cpop"])
def test_heft_and_cpop__are_within_memory_where_the_blind_plan_is_not(name):
    problem = PlacementProblem("gpt2_small", "v100x2")  # takes three quarters of the memory of both
    assert solve(problem, name).outcome.valid


def test_heft__its_ranks_are_levels_where_the_decision_has_such():
    graph = layered_dag(60, seed=3, colocated=0.5)
    problem = PlacementProblem(graph, cluster_of([1.0, 1.0]), order="priority", cost_model=Times(graph.flops + 1.0))
    evaluator = Evaluator(problem, 100)
    methods.METHODS["heft"].run(evaluator, np.random.default_rng(0))
    assert evaluator.evaluations == 6  # three placements, of one level and by rank
    instance = schedulers.make_instance(problem)
    levels = projection.rank_levels(problem, instance)
    assert (levels.min(), levels.max()) == (0, problem.priority_levels - 1)
    mean = [instance.rank_s[(problem.group_of_task == g) & ~instance.is_source] for g in range(problem.num_groups)]
    mean = np.array([rank.mean() if len(rank) else 0.0 for rank in mean])
    assert (np.diff(levels[np.argsort(mean, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("seed", range(25))
def test_heft__agrees_with_saga(seed):
    """Where the models agree: a complete network, links of one speed without latency, one size a producer."""
    from saga import Network, TaskGraph
    from saga.schedulers.heft import HeftScheduler

    rng = np.random.default_rng(seed)
    count, devices = int(rng.integers(4, 30)), int(rng.integers(2, 5))
    edges = [(a, b) for b in range(1, count) for a in rng.choice(b, min(b, 2), replace=False).tolist()]
    # powers of two and whole numbers: sums and quotients are exact, so that equal means equal
    seconds, size = rng.integers(1, 10**6, count) * 64, rng.integers(1, 10**6, count) * 64
    speeds = rng.choice([1.0, 2.0, 4.0], devices).tolist()
    link = float(rng.choice([0.25, 1.0, 4.0]))
    base = chain(count)
    graph = ComputationGraph(
        "dag",
        kinds=base.kinds,
        modules=base.modules,
        columns={name: getattr(base, name) for name in COLUMNS} | {"output_bytes": size},
        edges=np.array(edges),
    )
    problem = PlacementProblem(graph, cluster_of(speeds, link), grouping="op", cost_model=Times(seconds))
    instance = schedulers.make_instance(problem)
    # saga's mean over the network counts each device's link to itself, which takes no time
    mean_transfer_s = instance.mean_transfer_s * (devices - 1) / (devices + 1)
    rank_s = upward_rank(
        problem.simulator.tasks.sequence, instance.durations_s.mean(axis=0), mean_transfer_s, instance.tensor_ptr,
        instance.reader_ptr, instance.reader,
    )  # fmt: skip
    ours = schedulers.heft(instance._replace(mean_transfer_s=mean_transfer_s, rank_s=rank_s))
    network = Network.create(
        [(str(d), speed) for d, speed in enumerate(speeds)],
        [(str(a), str(b), link) for a, b in itertools.combinations(range(devices), 2)],
    )
    tasks = TaskGraph.create(
        [(str(task), float(cost)) for task, cost in enumerate(seconds)],
        [(str(a), str(b), float(size[a])) for a, b in edges],
    )
    theirs = HeftScheduler().schedule(network, tasks)
    assert ours.finish_s.max() == theirs.makespan


@pytest.mark.parametrize("seed", range(40))
def test_etf_and_sct__agree_with_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph = layered_dag(int(rng.integers(5, 45)), seed=seed, zeros=0.1, colocated=float(rng.choice([0.0, 0.7])))
    problem = PlacementProblem(
        graph, random_cluster(rng), cost_model=Times(rng.integers(0, 5, graph.num_ops) * 10.0**7)
    )
    instance = schedulers.make_instance(problem)
    total = int(plain.held_bytes(instance, np.zeros(len(instance.unit_bytes), int), 1).max())
    favourites = baechi.favourite_children(instance)
    for favourite, scheduler in ((np.zeros(0, np.int32), baechi.m_etf), (favourites, baechi.m_sct)):
        for share, by_finish in itertools.product((2.0, 0.7), (False, True)):
            capacity = np.full(problem.num_devices, int(total * share) + 1)
            expected = plain.etf(instance, capacity, favourite, by_finish)
            plan = scheduler(instance, capacity, by_finish=by_finish)
            if expected is None:
                assert share < 1
                continue
            same_plan(plan, expected)


def test_etf__by_finish_a_task_goes_to_the_fast_device_that_is_busy():
    """Two free ops: the slow device could start the second at once, and takes ten times as long."""
    base = chain(2)
    columns = {name: getattr(base, name) for name in COLUMNS}
    graph = ComputationGraph(
        "two", kinds=base.kinds, modules=base.modules, columns=columns, edges=np.zeros((0, 2), int)
    )
    problem = PlacementProblem(graph, cluster_of([10.0, 1.0]), grouping="op", cost_model=Times([10.0, 10.0]))
    instance = schedulers.make_instance(problem)
    for by_finish, makespan_s in ((False, 10.0), (True, 2.0)):
        for scheduler in (baechi.m_etf, baechi.m_sct):
            assert scheduler(instance, problem.capacity_bytes, by_finish=by_finish).finish_s.max() == makespan_s


def test_m_topo__fills_devices_in_the_order_given():
    problem = PlacementProblem(
        chain(12, output_bytes=10), cluster_of([1.0, 4.0]), grouping="op", cost_model=Times(np.ones(12))
    )
    instance = schedulers.make_instance(problem)
    size = int(instance.unit_bytes.sum())
    full = baechi.m_topo(instance, np.array([size, size]), np.inf, np.array([1, 0]))
    assert (full.device_of_unit == 1).all()
    by_index, turned = (baechi.m_topo(instance, np.array([size, size]), 0.5, np.array(o)) for o in ([0, 1], [1, 0]))
    assert (np.diff(by_index.device_of_unit) >= 0).all()
    assert (np.diff(turned.device_of_unit) <= 0).all()
    assert set(turned.device_of_unit.tolist()) == {0, 1}


def frugal_etf(instance, capacity_bytes):
    return baechi.m_etf(instance, capacity_bytes, slack=0.0)


def frugal_sct(instance, capacity_bytes):
    return baechi.m_sct(instance, capacity_bytes, slack=0.1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "scheduler",
    [baechi.m_topo, baechi.m_etf, baechi.m_sct, frugal_etf, frugal_sct],
    ids=lambda scheduler: scheduler.__name__,
)
def test_memory_aware__plans_that_fit_stay_within_capacity(scheduler, seed):
    rng = np.random.default_rng(seed)
    graph = layered_dag(80, seed=seed, colocated=0.5, phases=True)
    problem = PlacementProblem(graph, cluster_of([1.0, 1.0, 2.0]), cost_model=Times(rng.random(graph.num_ops)))
    instance = schedulers.make_instance(problem)
    total = int(plain.held_bytes(instance, np.zeros(len(instance.unit_bytes), int), 1).max())
    fits = []
    for share in (2.0, 0.8, 0.6, 0.4, 0.1):
        capacity = np.array([total * share, total * share, total * share / 2], np.int64)
        plan = scheduler(instance, capacity)
        held = plain.held_bytes(instance, plan.device_of_unit, 3)
        assert plan.fits == (held <= capacity[:, None]).all()
        fits.append(plan.fits)
    assert fits[0]  # a device holds at most everything once
    assert not fits[-1]


@pytest.mark.parametrize("seed", range(10))
def test_memory_account__on_one_device_is_what_the_simulator_measures(seed):
    """A chain of few ops runs in the graph's own order, a bucket a task."""
    rng = np.random.default_rng(seed)
    graph = chain(20, output_bytes=1000)
    graph = graph.replace(
        output_bytes=rng.integers(0, 1000, 20), param_bytes=rng.integers(0, 50, 20), state_bytes=rng.integers(0, 9, 20)
    )
    problem = PlacementProblem(graph, cluster_of([1.0]), grouping="op", cost_model=Times(np.ones(20)))
    held = plain.held_bytes(schedulers.make_instance(problem), np.zeros(20, int), 1)
    assert held.max() == problem.evaluate(np.zeros(20, int)).metrics["peak_bytes"][0]


@pytest.mark.parametrize("name", ["m_topo", "m_etf", "m_sct", "expert", "metis", "annealing", "hill_climbing"])
def test_tight_memory__found_where_one_device_does_not_do(name):
    graph = layered_dag(300, seed=5, colocated=0.5, phases=True)
    ample = PlacementProblem(graph, cluster_of([1e12, 1e12, 1e12], bytes_per_s=1e10), cost_model=Times(graph.flops))
    peak = ample.evaluate(np.zeros(ample.num_groups, int)).metrics["peak_bytes"][0]
    tight = PlacementProblem(
        graph, cluster_of([1e12] * 3, bytes_per_s=1e10, memory_bytes=int(peak * 0.6)), cost_model=Times(graph.flops)
    )
    assert not solve(tight, "single").outcome.valid
    assert solve(tight, name, budget=500).outcome.valid


@pytest.mark.parametrize("name", ["m_topo", "m_etf", "m_sct", "expert", "metis"])
def test_tight_memory__gpt2_on_two_gpus(name):
    problem = PlacementProblem("gpt2_small", "v100x2")  # takes three quarters of the memory of both
    assert not solve(problem, "single").outcome.valid
    assert solve(problem, name).outcome.valid


# ---- favourite children


def test_favourite_children__at_most_one_child_and_one_parent():
    graph = layered_dag(200, seed=3)
    problem = PlacementProblem(graph, "p100x2", grouping="op")
    instance = schedulers.make_instance(problem)
    favourite = baechi.favourite_children(instance)
    children = favourite[favourite >= 0]
    assert len(children) > 20
    assert len(np.unique(children)) == len(children)
    for task in np.flatnonzero(favourite >= 0):
        tensors = range(instance.tensor_ptr[task], instance.tensor_ptr[task + 1])
        assert any(favourite[task] in plain.readers(instance, tensor) for tensor in tensors)


def test_favourite_children__the_costly_transfer_is_spared():
    """A fork: the program makes the child on the critical path the favourite."""
    base = chain(3, output_bytes=100)
    graph = ComputationGraph(
        "fork",
        kinds=base.kinds,
        modules=base.modules,
        columns={name: getattr(base, name) for name in COLUMNS},
        edges=np.array([[0, 1], [0, 2]]),
    )
    problem = PlacementProblem(graph, cluster_of([1.0, 1.0]), grouping="op", cost_model=Times([1, 5, 500]))
    assert baechi.favourite_children(schedulers.make_instance(problem)).tolist() == [2, -1, -1]


def test_favourite_children__by_rule_above_the_size_limit(monkeypatch):
    problem = PlacementProblem(layered_dag(120, seed=3), "p100x2", grouping="op")
    instance = schedulers.make_instance(problem)
    monkeypatch.setattr(baechi, "MAX_LP_EDGES", 0)
    monkeypatch.setattr(baechi, "_relaxed_favourites", None)  # calling it would fail
    favourite = baechi.favourite_children(instance)
    assert (favourite >= 0).any()
    assert solve(problem, "m_sct").outcome.valid


# ---- units


def test_units__lone_parameters_follow_their_first_reader():
    graph = layered_dag(100, seed=1, sources=0.3)
    problem = PlacementProblem(graph, "p100x2", grouping="op")
    tasks, instance = problem.simulator.tasks, schedulers.make_instance(problem)
    for task in np.flatnonzero(tasks.is_source):
        tensors = range(tasks.tensor_ptr[task], tasks.tensor_ptr[task + 1])
        read = [reader for tensor in tensors for reader in plain.readers(instance, tensor)]
        if read:
            assert instance.unit_of_task[task] == instance.unit_of_task[min(read)]
    computing = np.flatnonzero(~tasks.is_source)
    assert (np.diff(instance.unit_of_task[computing]) == 1).all()  # in the order of the graph


# ---- partitions


@pytest.mark.parametrize(("cluster", "tolerance"), [("p100x4", 1.08), ("p100x2_v100x2", 1.12)])
def test_metis__balances_the_time_of_devices(cluster, tolerance):
    problem = PlacementProblem(layered_dag(1500, width=20, seed=2, equal=True), cluster, grouping="op")
    decision = next(partition.metis(problem))
    work = make_group_graph(problem).work_s
    busy = np.array([work[device, decision == device].sum() for device in range(4)])
    assert busy.max() / busy.mean() < tolerance


def test_metis__cuts_less_than_round_robin():
    problem = PlacementProblem("inception_v3_b32", "p100x2")
    graph = make_group_graph(problem)

    def cut(decision):
        return graph.edge_bytes[decision[graph.edges[:, 0]] != decision[graph.edges[:, 1]]].sum()

    assert cut(next(partition.metis(problem))) < 0.2 * cut(methods.round_robin_decision(problem))


def test_expert__layers_in_order_embedding_first_head_last():
    problem = PlacementProblem("bert_base", "v100x4")
    stages = problem.graph.metadata["stages"]
    stage_of_group = partition._stage_of_group(problem, stages)
    decision = next(partition.expert(problem))
    device = []
    for stage in range(len(stages)):
        devices = np.unique(decision[stage_of_group == stage])
        assert len(devices) == 1
        device.append(int(devices[0]))
    assert device == sorted(device)
    assert set(device) == {0, 1, 2, 3}
    assert device[0] == device[1]
    assert device[-1] == device[-2]
    busy = np.array(problem.evaluate(decision).metrics["busy_s"])
    layer_s = make_group_graph(problem).work_s[0, stage_of_group == 1].sum()
    assert busy.max() - busy.min() < 1.5 * layer_s  # whole layers


def test_expert__encoder_and_decoder_on_a_half_each():
    problem = PlacementProblem("gnmt_2layer", "p100x4")
    stages = problem.graph.metadata["stages"]
    stage_of_group = partition._stage_of_group(problem, stages)
    decision = next(partition.expert(problem))
    parts = np.array([stage["part"] for stage in stages])
    assert {"encoder", "decoder"} <= set(parts)
    for part, allowed in (("encoder", {0, 1}), ("decoder", {2, 3})):
        devices = set(decision[np.isin(stage_of_group, np.flatnonzero(parts == part))].tolist())
        assert devices
        assert devices <= allowed


def test_expert__without_stages_cuts_the_order_evenly():
    problem = PlacementProblem(chain(40), "p100x4", grouping="op")
    assert next(partition.expert(problem)).tolist() == np.repeat([0, 1, 2, 3], 10).tolist()


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        (["embedding", "layer.0", "layer.1", "head"], [0, 0, 1, 1]),
        (["stem", "Mixed_5b", "Mixed_5c", "Mixed_6a", "fc"], [0, 0, 1, 2, 2]),
        (["a", "b", "c"], [0, 1, 2]),
    ],
)
def test_layers__what_surrounds_them_joins_the_first_and_the_last(names, runs):
    assert partition._layers(names).tolist() == runs


@pytest.mark.parametrize("seed", range(10))
def test_cut__has_the_least_greatest_load(seed):
    rng = np.random.default_rng(seed)
    runs, devices = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    load = rng.integers(1, 20, runs) * rng.choice([1.0, 2.0], (devices, 1))
    ours = partition._cut(load)
    assert (np.diff(ours) >= 0).all()

    def greatest(assigned):
        return max(load[device, np.asarray(assigned) == device].sum() for device in range(devices))

    every = itertools.combinations_with_replacement(range(devices), runs)
    assert greatest(ours) == pytest.approx(min(greatest(assigned) for assigned in every))


# ---- single, and real graphs


def test_single__tries_each_kind_of_device():
    graph = chain(12)
    problem = PlacementProblem(graph, cluster_of([1.0, 4.0, 1.0]), grouping="op", cost_model=Times(np.ones(12)))
    solution = solve(problem, "single")
    assert solution.evaluations == 2
    assert set(solution.decision.tolist()) == {1}
    assert solution.outcome.cost == 3.0


@pytest.mark.parametrize(("graph", "cluster"), [("bert_base", "v100x4"), ("inception_v3_b32", "p100x2")])
def test_annealing__beats_every_constructive_method_from_a_random_start(graph, cluster):
    problem = PlacementProblem(graph, cluster)
    annealed = solve(problem, "annealing_random", budget=8000).outcome.cost
    for name in CONSTRUCTIVE:
        assert annealed < solve(problem, name).outcome.cost, name


@pytest.mark.parametrize("name", CONSTRUCTIVE)
def test_constructive__same_seed_same_decision(name):
    problem = PlacementProblem("inception_v3_b32", "p100x2")
    one, other = (solve(problem, name, seed=4) for _ in range(2))
    assert np.array_equal(one.decision, other.decision)


def test_starts__are_methods():
    assert set(TASK.starts) <= set(methods.METHODS)


def test_schedulers__eighty_thousand_ops_in_seconds():
    import time

    graph = layered_dag(80_000, width=40, seed=1, phases=True, colocated=0.5)
    graph = graph.replace(output_bytes=graph.output_bytes // 30)
    problem = PlacementProblem(graph, "v100x8")
    for name in ("heft", "m_topo", "m_etf"):
        solve(tiny_problem(0), name)  # compile
        begin = time.perf_counter()
        methods.METHODS[name].run(Evaluator(problem, 10), np.random.default_rng(0))
        assert time.perf_counter() - begin < 30, name


@pytest.mark.parametrize(
    "stages",
    [3, "x", {"a": 1}, [3], [[]], [{}], [{"name": 3}], [{"name": "a", "part": 3}], [{"name": "a", "modules": 3}],
     [{"name": "a", "modules": [3]}], [{"name": "a", "modules": ["x"]}, None]],
    ids=str,
)  # fmt: skip
def test_expert__stages_that_are_none__are_refused_in_one_line(stages):
    graph = layered_dag(12, 2, seed=1)
    problem = PlacementProblem(graph.replace(metadata={"stages": stages}), "toyx2")
    with pytest.raises(InputError, match="its metadata has 'stages'"):
        solve(problem, "expert")
    for none in (None, [], [{"name": "a"}], [{"name": "a", "modules": [""], "part": "other"}]):
        problem = PlacementProblem(graph.replace(metadata={"stages": none}), "toyx2")
        assert solve(problem, "expert").outcome.valid


@pytest.mark.parametrize("ops", [1, 2, 5, 12])
def test_metis__prints_nothing_where_it_cannot_bisect(ops, capfd):
    problem = PlacementProblem(layered_dag(ops, 2, seed=1), "v100x8", grouping="op")
    assert solve(problem, "metis").outcome.valid
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("graph", ["resnet50", "bert_base"])
@pytest.mark.parametrize("name", ["expert", "metis", "heft", "m_topo", "m_etf", "m_sct"])
def test_methods__leave_slow_devices_out_where_those_would_hold_up_the_rest(graph, name):
    fast, slow = (catalogs()["devices"].load(one) for one in ("v100_sxm2_32gb", "p4"))
    pair = Cluster(
        "unlike", (slow, fast), (Link("wire", 1e-5, 1.2e10),), np.array([[-1, 0], [0, -1]], np.int32), (0, 0)
    )
    problem = PlacementProblem(graph, pair)
    assert len(list(methods.on_fastest(problem))) == 2
    found = solve(problem, name).outcome
    assert found.valid
    assert found.cost <= solve(problem, "single").outcome.cost * (1 + 1e-12)
    # where no device is faster, there is one choice of devices
    assert len(list(methods.on_fastest(PlacementProblem(graph, "v100x4")))) == 1


def test_on_devices__keeps_to_what_may_be():
    graph = layered_dag(60, seed=1, colocated=0.5)
    allowed = np.ones((graph.num_ops, 3), bool)
    allowed[:, 2] = False
    problem = PlacementProblem(graph, cluster_of([1.0, 2.0, 4.0], 1.0), allowed_devices=allowed, grouping="op")
    assert problem.on_devices(np.array([False, False, True])) is None
    narrowed = problem.on_devices(np.array([False, True, True]))
    assert (narrowed.allowed == [False, True, False]).all()
    assert problem.allowed[:, 0].all()  # the problem itself is as it was
    assert (narrowed.sample(np.random.default_rng(0)) == 1).all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", [name for name in CONSTRUCTIVE if name not in ("single", "round_robin")])
def test_methods__on_unlike_devices_no_worse_than_one_that_fits(name, seed):
    rng = np.random.default_rng(seed)
    graph = layered_dag(int(rng.integers(20, 90)), seed=seed, colocated=0.5, phases=True)
    speeds = rng.choice([1e11, 4e11, 1e12], 4)
    speeds[:2] = 1e12, 1e11
    rate = float(rng.choice([1e8, 1e10]))
    allowed = None
    if seed % 3 == 0:  # some ops may not be on some devices; all may be on one device of each kind but the first
        allowed = np.ones((graph.num_ops, 4), bool)
        allowed[rng.integers(0, graph.num_ops, 5), 0] = False
    ample = PlacementProblem(graph, cluster_of(speeds, rate), cost_model=Times(graph.flops), allowed_devices=allowed)
    peak = max(ample.evaluate(np.full(ample.num_groups, 1)).metrics["peak_bytes"])
    memory = int(peak * rng.choice([0.7, 3.0]))
    problem = PlacementProblem(
        graph,
        cluster_of(speeds, rate, memory_bytes=memory),
        cost_model=Times(graph.flops),
        allowed_devices=allowed,
    )
    found, alone = solve(problem, name, seed=seed).outcome, solve(problem, "single").outcome
    if memory > peak:
        assert found.valid
    if alone.valid:
        assert found.cost <= alone.cost
    assert not any("not allowed" in reason for reason in found.reasons)


def test_expert_and_metis__shares_in_proportion_to_speed():
    graph = layered_dag(1200, width=12, seed=2, equal=True)
    problem = PlacementProblem(graph, cluster_of([3e12, 1e12], 1e9), grouping="op", cost_model=Times(graph.flops + 1.0))
    for decision in (next(partition.expert(problem)), next(partition.metis(problem))):
        share = np.bincount(decision, make_group_graph(problem).work_s[0], 2)
        assert share[0] / share.sum() == pytest.approx(0.75, abs=0.04)
