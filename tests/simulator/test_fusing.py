"""Fusing by priority against its plain twin, and the engine over fused kernels against the one that is given them."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, OP_CLASSES, ComputationGraph
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.cluster import load_cluster
from graphopt_gym.simulator import Simulator, compile_tasks
from graphopt_gym.simulator.fused import FusedSimulator
from graphopt_gym.simulator.fusing import fuse, fusion_tables, may_begin

from . import fusing_twin
from .cases import device, random_cluster, random_graph

SHAPES = ((), (4,), (2, 4), (8,), (4, 2), (64,), (3, 4))


def shaped_graph(rng, most_ops=18, groups=1):
    """As training steps are: shapes that mostly go on, few classes, some views and outputs; in ``groups`` or fewer."""
    n = int(rng.integers(2, most_ops + 1))
    columns = {name: np.zeros((n, MAX_RANK) if name == "output_shape" else n, np.int64) for name in COLUMNS}
    columns["output_shape"][:] = -1
    edges, shape_of = [], []
    names = ["elementwise", "elementwise", "copy", "matmul", "reduction", "softmax", "norm", "gather", "view"]
    few = [SHAPES[index] for index in rng.integers(0, len(SHAPES), 2)]
    for op in range(n):
        name = str(rng.choice(names)) if op else "source"
        if rng.random() < 0.1:
            name = "source"
        count = 0 if name == "source" else 1 if name == "view" else int(rng.integers(1, min(op, 3) + 1))
        inputs = rng.choice(op, count, replace=False).tolist() if op else []
        if name != "view" and count and rng.random() < 0.6:
            inputs = sorted({op - 1, *inputs[1:]})
        shape = shape_of[inputs[0]] if inputs and rng.random() < 0.8 else few[int(rng.integers(2))]
        shape_of.append(shape)
        columns["op_class"][op] = OP_CLASSES.index(name)
        columns["output_shape"][op, : len(shape)] = shape
        columns["output_bytes"][op] = 4 * int(np.prod(shape)) * int(rng.choice([1, 1, 1, 0]))
        edges += [(int(one), op) for one in inputs]
    columns["bytes_written"] = columns["output_bytes"].copy()
    for a, b in edges:
        columns["bytes_read"][b] += columns["output_bytes"][a]
    columns["bytes_read"] += rng.integers(0, 3, n)
    columns["flops"] = rng.integers(0, 100, n) * 1000
    if groups > 1:
        columns["colocation"] = np.unique(rng.integers(0, groups, n), return_inverse=True)[1]
    return ComputationGraph("shaped", kinds=["op"], modules=[""], columns=columns, edges=np.array(edges, np.int64))


def instance(seed):
    rng = np.random.default_rng(seed)
    graph = shaped_graph(rng, 14) if seed % 4 else random_graph(rng)
    cluster = random_cluster(rng)
    small = rng.random() < 0.5
    tasks = compile_tasks(graph)
    placement = rng.integers(0, cluster.num_devices if rng.random() < 0.5 else 1, tasks.num_tasks)
    levels = rng.integers(0, int(rng.choice([2, 3, 20])), tasks.num_tasks)
    most = (int(rng.integers(2, 6)), int(rng.integers(2, 8))) if small else (64, 64)
    return rng, graph, cluster, tasks, placement.astype(np.int32), levels.astype(np.int32), most


@pytest.mark.parametrize("part", range(8))
def test_fuse__equals_the_plain_twin(part):
    fused = 0
    for seed in range(60 * part, 60 * part + 60):
        _, graph, cluster, tasks, placement, levels, most = instance(seed)
        found = fuse(levels, placement.view(np.uint32), fusion_tables(tasks, cluster, *most, most_steps=4096))
        of_op = {int(op): index for index, op in enumerate(tasks.first_op)}
        twin = fusing_twin.fuse(
            graph, cluster, {op: int(placement[at]) for op, at in of_op.items()},
            {op: int(levels[at]) for op, at in of_op.items()}, *most,
        )  # fmt: skip
        kernels, groups = {}, {}
        for op, name in twin.items():
            kernels.setdefault(name, set()).add(op)
            groups.setdefault(int(found[of_op[op]]), set()).add(op)
        assert sorted(map(sorted, kernels.values())) == sorted(map(sorted, groups.values())), seed
        fused += sum(len(members) > 1 for members in groups.values())
    assert fused > 20


@pytest.mark.parametrize("steps", [0, 3, 4096])
def test_fuse__few_steps_fuse_less_and_stay_legal(steps):
    kernels = 0
    for seed in range(120):
        _, graph, cluster, tasks, placement, levels, most = instance(seed)
        simulator = Simulator(graph, cluster)
        fused = FusedSimulator(simulator)
        fused.tables = fusion_tables(tasks, cluster, *most, most_steps=steps)
        groups = fused.fusion(placement, levels)
        assert fusing_twin.faults(graph, cluster, placement[tasks.task_of_op], groups, *most) == []
        kernels += len(np.unique(fused.kernel_of_task(placement, levels)))
        compile_tasks(graph, groups)  # no cycle, by another way
    assert kernels > 0
    if steps == 0:
        assert kernels == sum(instance(seed)[3].num_tasks for seed in range(120))


@pytest.mark.parametrize("seed", range(150))
def test_run_many__equals_the_simulator_that_is_given_the_groups(seed):
    rng, graph, cluster, tasks, placement, _, _ = instance(seed)
    order = "fifo" if seed % 2 else "priority"
    fused = FusedSimulator(Simulator(graph, cluster, order=order))
    batch = 5
    placements = np.stack([placement, *rng.integers(0, cluster.num_devices, (batch - 1, tasks.num_tasks))])
    several = rng.integers(0, 6, (batch, tasks.num_tasks))
    priorities = rng.integers(0, 4, (batch, tasks.num_tasks)).astype(float) if order == "priority" else None
    out, kernels = fused.run_many(placements, several, priorities)
    for row in range(batch):
        groups = fused.fusion(placements[row], several[row])
        given = Simulator(graph, cluster, fusion=groups)
        priority = None
        if priorities is not None:
            kernel_of = given.tasks.task_of_op[tasks.first_op]
            mine = priorities[row]
            priority = np.array([mine[kernel_of == one].max() for one in range(given.num_tasks)])
        timeline = given.run_tasks(placements[row][tasks.task_of_op[given.tasks.first_op]], priority)
        assert kernels[row] == given.num_tasks
        assert out.makespan_s[row] == timeline.makespan_s
        assert out.peak_bytes[row].tolist() == timeline.peak_bytes.tolist()
        assert out.peak_time_s[row].tolist() == timeline.peak_time_s.tolist()
        assert out.busy_s[row].tolist() == timeline.busy_s.tolist()
        again = fused.timeline(placements[row], several[row], None if priorities is None else priorities[row])
        assert again.makespan_s == timeline.makespan_s


@pytest.mark.parametrize("name", ["bert_base", "inception_v3_b32", "gnmt_2layer"])
def test_zoo__same_costs_and_fewer_kernels(name):
    graph, cluster = load_graph(name), load_cluster("v100x2")
    fused = FusedSimulator(Simulator(graph, cluster))
    tasks = fused.simulator.num_tasks
    rng = np.random.default_rng(0)
    half = (np.arange(tasks) >= tasks // 2).astype(np.int32)
    levels = np.stack([np.zeros(tasks, int), np.ones(tasks, int), rng.integers(0, 9, tasks)])
    out, kernels = fused.run_many(np.repeat(half[None], 3, axis=0), levels)
    assert kernels[0] == tasks
    assert (kernels[1:] < 0.95 * tasks).all()
    assert (out.makespan_s[1:] < out.makespan_s[0]).all()
    for row in range(3):
        timeline = fused.timeline(half, levels[row])
        assert timeline.makespan_s == out.makespan_s[row]
        assert timeline.peak_bytes.tolist() == out.peak_bytes[row].tolist()
    may = may_begin(fused.tables)
    assert (fused.kernel_of_task(half, may * 1) == fused.kernel_of_task(half, levels[1])).all()  # the others never


def test_cache__what_stays_in_a_kernel_by_rows_must_fit():
    """A loop into a softmax: one kernel where the cache holds a row a compute unit, two where it does not."""
    columns = {name: np.zeros((3, MAX_RANK) if name == "output_shape" else 3, np.int64) for name in COLUMNS}
    columns["output_shape"][:] = -1
    columns["output_shape"][:, :2] = (8, 100)
    columns["op_class"] = np.array([OP_CLASSES.index(one) for one in ("source", "elementwise", "softmax")])
    columns["output_bytes"][:] = 3200
    graph = ComputationGraph("rows", kinds=["op"], modules=[""], columns=columns, edges=np.array([(0, 1), (1, 2)]))
    from graphopt_gym.hardware.cluster import Cluster

    for cache_bytes, kernels in ((1600, 2), (1599, 3), (0, 2)):  # 4 compute units, rows of 400 bytes
        one = device(compute_units=4, cache_bytes=cache_bytes)
        fused = FusedSimulator(Simulator(graph, Cluster("one", (one,), (), np.array([[-1]]), (0,))))
        _, found = fused.run_many(np.zeros((1, 3), int), np.ones((1, 3), int))
        assert found[0] == kernels
