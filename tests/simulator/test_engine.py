"""The compiled engine against its plain twin, and against instances worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, ComputationGraph
from graphopt_gym.hardware.cluster import Cluster, Link
from graphopt_gym.simulator import Simulator, compile_tasks, simulate
from graphopt_gym.simulator.tasks import border_bytes

from . import twin
from .cases import device, random_cluster, random_fusion, random_graph


def durations_of(simulator: Simulator, kernels: twin.Kernels) -> list[dict[int, float]]:
    """The simulator's own durations, by device and kernel (the twin checks the schedule; times are checked apart)."""
    tasks = simulator.tasks
    per_device = simulator.device_durations_s()
    return [{kernel: float(row[tasks.task_of_op[kernel]]) for kernel in kernels.kernels} for row in per_device]


class Prices:
    """A cost model with given components, for tests of fused times."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.table = {}
        self.rng, self.n = rng, n

    def components(self, graph, device):
        if device.name not in self.table:
            self.table[device.name] = (
                self.rng.choice([0.0, 1.0, 2.0, 0.7], self.n),
                self.rng.choice([1.0, 10.0, 3.0], self.n),
                self.rng.choice([0.0, 0.5], self.n),
            )
        return self.table[device.name]

    def op_times(self, graph, device):
        compute, rate, launch = self.components(graph, device)
        times = launch + np.maximum(compute, (graph.bytes_read + graph.bytes_written) / rate)
        return np.where(graph.op_class < 2, 0.0, times)


@pytest.mark.parametrize("seed", range(600))
def test_engine__agrees_exactly_with_its_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, most_ops=6 if seed < 40 else 24)
    cluster = random_cluster(rng)
    fusion = random_fusion(rng, graph) if seed % 3 == 0 else None
    priority = rng.choice([0.0, 1.0, 2.0], graph.num_ops) if seed % 2 else None
    stream = seed % 4 == 2
    prices = Prices(rng, graph.num_ops)
    simulator = Simulator(graph, cluster, prices, fusion, order="stream" if stream else "fifo")
    kernels = twin.Kernels(graph, fusion)
    placement = rng.integers(0, cluster.num_devices, graph.num_ops)
    for kernel, members in kernels.members.items():
        placement[members] = placement[kernel]

    timeline = simulator.run(placement, priority)
    expected = twin.run(graph, cluster, durations_of(simulator, kernels), placement, priority, fusion, stream=stream)

    assert expected["done"] == len(kernels.kernels) == simulator.num_tasks
    assert timeline.makespan_s == expected["makespan"]
    for kernel in kernels.kernels:
        task = simulator.tasks.task_of_op[kernel]
        assert timeline.start_s[task] == expected["start"][kernel]
        assert timeline.finish_s[task] == expected["finish"][kernel]
    rows = sorted((int(simulator.tasks.tensor_op[int(row[0])]), *row[1:].tolist()) for row in timeline.transfers)
    assert rows == sorted(
        (x["tensor"], float(x["from"]), float(x["to"]), x["request"], x["start"], x["finish"])
        for x in expected["transfers"]
    )
    assert timeline.peak_bytes.tolist() == expected["peak"]
    instant_transfers = (timeline.transfers[:, 5] == timeline.transfers[:, 4]).sum()
    for device_index in range(cluster.num_devices):  # the recorded curve has the same peak
        levels = timeline.memory(device_index)[1]
        assert levels.max() <= timeline.peak_bytes[device_index]
        if (simulator.durations_s[:, ~simulator.tasks.is_source] > 0).all() and instant_transfers == 0:
            assert levels.max() == timeline.peak_bytes[device_index]

    # the batch and the cost-only path say the same
    if stream:  # a device's kernels start in captured order
        order = twin.captured_order(kernels)
        assert simulator.tasks.first_op[simulator.tasks.sequence].tolist() == order
        for index in range(cluster.num_devices):
            starts = [expected["start"][k] for k in order if placement[k] == index and graph.op_class[k] > 0]
            assert starts == sorted(starts)
    tasks_placement = placement[simulator.tasks.first_op]
    priorities = None if priority is None else np.stack([priority[simulator.tasks.first_op]] * 3)
    batch = simulator.run_many(np.stack([tasks_placement] * 3), priorities)
    assert batch.makespan_s.tolist() == [timeline.makespan_s] * 3
    assert (batch.peak_bytes == timeline.peak_bytes).all()
    assert (batch.busy_s == timeline.busy_s).all()


@pytest.mark.parametrize("seed", range(120))
def test_task_times__fused_groups_match_plain_arithmetic(seed):
    rng = np.random.default_rng(1000 + seed)
    graph = random_graph(rng)
    cluster = random_cluster(rng)
    fusion = random_fusion(rng, graph)
    prices = Prices(rng, graph.num_ops)
    simulator = Simulator(graph, cluster, prices, fusion)
    kernels = twin.Kernels(graph, fusion)
    durations = simulator.device_durations_s()
    for index, one in enumerate(cluster.devices):
        components = [part.tolist() for part in prices.components(graph, one)]
        alone = prices.op_times(graph, one)
        for kernel, members in kernels.members.items():
            if graph.op_class[kernel] == 0:
                expected = 0.0
            elif len(members) == 1:
                expected = alone[kernel]
            else:
                expected = twin.fused_time(graph, kernels, kernel, *components)
            assert durations[index][simulator.tasks.task_of_op[kernel]] == pytest.approx(expected, rel=1e-12)


def test_border_bytes__a_tensor_and_its_views_are_read_once():
    # an input of 20 bytes (op 0), seen whole (1) and by halves (2, 3); members 4 and 5 read it, and its whole view
    both = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 4], [0, 5], [1, 5], [4, 6], [5, 6]]
    sizes, reads = [20, 20, 10, 10, 1, 1, 1], [0, 0, 0, 0, 40, 40, 2]
    graph = small([0, 1, 1, 1, 2, 2, 2], sizes, both, bytes_read=reads)
    fused = np.array([-1, -1, -1, -1, 7, 7, -1])
    moved = border_bytes(compile_tasks(graph, fused))
    assert moved[[4, 5]].tolist() == [20.0, 0.0]
    # a half, then all: the rest of it; then the other half: nothing more
    parts = [[0, 1], [0, 2], [0, 3], [2, 4], [0, 4], [3, 5], [4, 6], [5, 6]]
    graph = small([0, 1, 1, 1, 2, 2, 2], sizes, parts, bytes_read=[0, 0, 0, 0, 30, 10, 2])
    assert border_bytes(compile_tasks(graph, fused))[[4, 5]].tolist() == [20.0, 0.0]
    # two halves are all of it
    halves = [[0, 1], [0, 2], [0, 3], [2, 4], [3, 5], [4, 6], [5, 6]]
    graph = small([0, 1, 1, 1, 2, 2, 2], sizes, halves, bytes_read=[0, 0, 0, 0, 10, 10, 2])
    assert border_bytes(compile_tasks(graph, fused))[[4, 5]].tolist() == [10.0, 10.0]


def small(op_class, output_bytes, edges, **more) -> ComputationGraph:
    n = len(op_class)
    columns = {name: np.zeros((n, MAX_RANK) if name == "output_shape" else n, np.int64) for name in COLUMNS}
    columns["op_class"] = np.array(op_class)
    columns["output_bytes"] = np.array(output_bytes)
    for name, values in more.items():
        columns[name] = np.array(values)
    return ComputationGraph("small", kinds=["op"], modules=[""], columns=columns, edges=np.array(edges))


def pair(latency_s: float = 0.5, bytes_per_s: float = 10.0, shared: bool = False) -> Cluster:
    links = tuple(Link(f"link{i}", latency_s, bytes_per_s) for i in range(1 if shared else 2))
    return Cluster("pair", (device(), device()), links, np.array([[-1, 0], [0 if shared else 1, -1]], np.int32), (0, 0))


def test_engine__worked_example():
    # op 0 (1 s) feeds ops 1 and 2 (2 s each); 1 and 2 feed op 3 (1 s). 20 bytes over 10 bytes/s + 0.5 s = 2.5 s
    graph = small([2, 2, 2, 2], [20, 20, 20, 20], [[0, 1], [0, 2], [1, 3], [2, 3]])
    times = np.array([1.0, 2.0, 2.0, 1.0])
    assert simulate(graph, pair(), [0, 0, 0, 0], op_times_s=times).makespan_s == 6.0
    timeline = simulate(graph, pair(), [0, 0, 1, 0], op_times_s=times)
    # 0: 0-1, 1: 1-3; transfer 1-3.5; 2: 3.5-5.5; transfer 5.5-8; 3: 8-9
    assert timeline.start_s.tolist() == [0.0, 1.0, 3.5, 8.0]
    assert timeline.makespan_s == 9.0
    assert timeline.transfers[:, 3:].tolist() == [[1.0, 1.0, 3.5], [5.5, 5.5, 8.0]]
    # device 0 holds tensor 0 to 3.5 and tensor 1 from 1; device 1 holds the copy and its own output
    assert timeline.peak_bytes.tolist() == [60, 40]


def test_engine__one_transfer_serves_all_readers_of_a_device():
    graph = small([2, 2, 2, 2], [20, 1, 1, 1], [[0, 1], [0, 2], [0, 3]])
    timeline = simulate(graph, pair(), [0, 1, 1, 1], op_times_s=np.ones(4))
    assert len(timeline.transfers) == 1


def test_engine__transfers_on_a_shared_link_wait_in_order_of_request():
    graph = small([2, 2, 2, 2], [10, 10, 1, 1], [[0, 3], [1, 2]])
    times = np.array([1.0, 1.0, 1.0, 1.0])
    # ops 0 and 1 finish at 1 on devices 0 and 1; both directions share one link: 0's tensor goes first
    timeline = simulate(graph, pair(shared=True), [0, 1, 0, 1], op_times_s=times)
    assert timeline.transfers[:, 4:].tolist() == [[1.0, 2.5], [2.5, 4.0]]
    assert simulate(graph, pair(), [0, 1, 0, 1], op_times_s=times).makespan_s == 3.5


def test_engine__views_are_free_and_a_transposed_weight_is_sent_once():
    # a weight (source, 20 bytes), its transpose (view), read by ops 2 (the weight) and 3 (the view) on device 1
    graph = small([0, 1, 2, 2], [20, 20, 0, 0], [[0, 1], [0, 2], [1, 3]], param_bytes=[20, 0, 0, 0])
    timeline = simulate(graph, pair(), [0, 0, 1, 1], op_times_s=np.array([9.0, 9.0, 1.0, 1.0]))
    assert len(timeline.transfers) == 1
    assert timeline.makespan_s == 4.5
    assert timeline.peak_bytes.tolist() == [20, 20]
    # a slice is a tensor of its own
    sliced = small([0, 1, 2, 2], [20, 10, 0, 0], [[0, 1], [0, 2], [1, 3]])
    assert len(simulate(sliced, pair(), [0, 0, 1, 1], op_times_s=np.ones(4)).transfers) == 2


def test_engine__priorities_order_the_ready_queue():
    graph = small([2, 2, 2], [0, 0, 0], [])
    cluster = pair()
    times = np.array([1.0, 2.0, 4.0])
    first = simulate(graph, cluster, [0, 0, 0], op_times_s=times)
    assert first.start_s.tolist() == [0.0, 1.0, 3.0]
    by_priority = simulate(graph, cluster, [0, 0, 0], priority=np.array([0.0, 1.0, 2.0]), op_times_s=times)
    assert by_priority.start_s.tolist() == [6.0, 4.0, 0.0]


def test_engine__orders_differ_as_their_words_say():
    # device 1 runs ops 0 and 4, device 0 the others: op 1 reads 0 and takes long, 2 feeds 3, and 3 feeds 4
    graph = small([2, 2, 2, 2, 2], [0] * 5, [[0, 1], [2, 3], [3, 4]])
    cluster, placement = pair(latency_s=0.0), [1, 0, 0, 0, 1]
    times = np.array([0.5, 4.0, 1.0, 1.0, 1.0])

    def starts(order):
        return simulate(graph, cluster, placement, op_times_s=times, order=order).start_s.tolist()

    # op 1 is ready at 0.5, while op 2 runs; op 3 is at 1
    for order in ("fifo", "program", "rank", "priority"):
        assert starts(order) == [0.0, 1.0, 0.0, 5.0, 6.0]
    assert starts("stream") == [0.0, 0.5, 4.5, 5.5, 6.5]  # device 0 waits for op 1 before it takes op 2
    times[1] = 1.5  # now there is more to come after op 3 than op 1 takes
    assert starts("rank") == starts("priority") == [0.0, 2.0, 0.0, 1.0, 2.0]
    assert starts("fifo") == starts("program") == [0.0, 1.0, 0.0, 2.5, 3.5]
    with pytest.raises(InputError, match="unknown order 'streams'; did you mean 'stream'"):
        simulate(graph, cluster, placement, order="streams")


@pytest.mark.parametrize("seed", range(40))
def test_orders__program_and_rank_are_the_priorities_of_plain_arithmetic(seed):
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng), random_cluster(rng)
    fusion = random_fusion(rng, graph) if seed % 2 else None
    prices = Prices(rng, graph.num_ops)
    kernels = twin.Kernels(graph, fusion)
    order = twin.captured_order(kernels)
    placement = np.array([int(rng.integers(cluster.num_devices))] * graph.num_ops)
    placement = np.where(rng.random(graph.num_ops) < 0.5, placement, 0)
    for kernel, members in kernels.members.items():
        placement[members] = placement[kernel]
    durations = durations_of(Simulator(graph, cluster, prices, fusion), kernels)

    links = [cluster.links[link] for link in cluster.link_of.ravel().tolist() if link >= 0]

    def transfer_s(tensor):
        size = float(graph.output_bytes[tensor])
        return sum(link.latency_s + size / link.bytes_per_s for link in links) / max(len(links), 1)

    rank = {}
    for kernel in reversed(order):
        made = [tensor for tensor in kernels.readers if kernels.kernel[tensor] == kernel]
        ways = [transfer_s(tensor) + rank[reader] for tensor in made for reader in kernels.readers[tensor]]
        rank[kernel] = sum(row[kernel] for row in durations) / len(durations) + max(ways, default=0.0)
    ranks = Simulator(graph, cluster, prices, fusion, order="rank").priorities
    first = kernels.kernels
    assert ranks == pytest.approx([rank[kernel] for kernel in first], rel=1e-12)
    place = Simulator(graph, cluster, prices, fusion, order="program").priorities
    assert [first[i] for i in np.argsort(-place)] == order


def shared_by(count: int) -> Cluster:
    """Devices on one link."""
    link_of = np.zeros((count, count), np.int32)
    np.fill_diagonal(link_of, -1)
    return Cluster("bus", (device(),) * count, (Link("bus", 0.5, 10.0),), link_of, (0,) * count)


@pytest.mark.parametrize("seed", range(20))
def test_engine__many_ties_in_a_bad_order_agree_with_the_plain_twin(seed):
    """Tasks that become ready, and transfers that are requested, at one instant, far from the order of their queues."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(30, 60))
    second = count + (np.arange(count)[::-1] if seed < 5 else rng.permutation(count))
    third = 2 * count + rng.integers(0, count, count)
    edges = np.concatenate([np.stack([np.arange(count), second], 1), np.stack([second, third], 1)])
    kinds = [0 if seed % 2 else 2] * count + [2] * (2 * count)
    graph = small(kinds, rng.choice([0, 10, 20], 3 * count).tolist(), edges)
    cluster = shared_by(count if seed % 3 else 2)
    placement = rng.integers(0, cluster.num_devices, 3 * count)
    if seed % 3 == 1:  # each op of the first row on a device of its own, from the last to the first
        placement[:count] = np.arange(count)[::-1]
    times = np.where(np.arange(3 * count) < count, 1.0, rng.choice([0.0, 1.0, 2.0], 3 * count))
    simulator = Simulator(graph, cluster, op_times_s=times)
    timeline = simulator.run(placement)
    durations = durations_of(simulator, twin.Kernels(graph))
    expected = twin.run(graph, cluster, durations, placement)
    assert timeline.start_s.tolist() == [expected["start"][op] for op in range(3 * count)]
    rows = sorted((int(simulator.tasks.tensor_op[int(row[0])]), *row[1:].tolist()) for row in timeline.transfers)
    assert rows == sorted(
        (x["tensor"], float(x["from"]), float(x["to"]), x["request"], x["start"], x["finish"])
        for x in expected["transfers"]
    )
    assert timeline.peak_bytes.tolist() == expected["peak"]


def test_compile_tasks__refuses_bad_fusion():
    graph = small([2, 2, 2], [1, 1, 1], [[0, 1], [1, 2]])
    with pytest.raises(InputError, match="cycle of groups"):
        compile_tasks(graph, np.array([5, -1, 5]))
    with pytest.raises(InputError, match=r"integers \[3\]"):
        compile_tasks(graph, np.array([0, 1]))
    with pytest.raises(InputError, match="source has no kernel"):
        compile_tasks(small([0, 2], [1, 1], [[0, 1]]), np.array([1, 1]))


def test_timeline__views_and_members_get_their_kernels_times():
    graph = small([2, 1, 2], [4, 4, 4], [[0, 1], [1, 2]])
    timeline = simulate(graph, pair(), [0, 0, 1], op_times_s=np.ones(3))
    assert timeline.op_start_s.tolist() == [0.0, 1.0, 1.9]
    assert timeline.op_finish_s.tolist() == [1.0, 1.0, 2.9]
    assert timeline.op_device.tolist() == [0, 0, 1]
    times, levels = timeline.memory(1)
    assert times.tolist() == [0.0, 1.0, 1.9, 2.9]
    assert levels.tolist() == [0, 4, 8, 0]
