"""Small graphs of known shape for the methods of scheduling, and what their orders cost by plain rules."""

from __future__ import annotations

import itertools

import numpy as np

from graphopt_gym.envs.scheduling.memory_orders import holdings
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, ComputationGraph
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.tasks import TaskGraph


def graph_of(edges, num_bytes, sources=()) -> ComputationGraph:
    """Ops that are matmuls but for the sources, with output bytes and edges given."""
    n = len(num_bytes)
    columns = {name: np.zeros((n, MAX_RANK) if name == "output_shape" else n, np.int64) for name in COLUMNS}
    columns["op_class"][:] = 2
    columns["op_class"][list(sources)] = 0
    columns["output_bytes"] = np.asarray(num_bytes, np.int64)
    return ComputationGraph(
        "dag", kinds=["op"], modules=[""], columns=columns, edges=np.array(edges, np.int64).reshape(-1, 2)
    )


def cluster_of(devices: int, bytes_per_s: float = 1.0, latency_s: float = 0.0, shared: bool = False) -> Cluster:
    """Equal devices; a link for each ordered pair, or one for all."""
    link_of = np.full((devices, devices), -1, np.int32)
    apart = ~np.eye(devices, dtype=bool)
    link_of[apart] = 0 if shared else np.arange(apart.sum())
    links = tuple(Link(f"link{one}", latency_s, bytes_per_s) for one in range(int(link_of.max()) + 1))
    device = Device("device", "gpu", 2**50, 1e9, {"float32": 1e12})
    return Cluster("equal", (device,) * devices, links, link_of, (0,) * devices)


def simulator_of(graph: ComputationGraph, cluster: Cluster, seconds=None) -> Simulator:
    seconds = np.where(graph.op_class == 0, 0.0, 1.0) if seconds is None else np.asarray(seconds, np.float64)
    return Simulator(graph, cluster, op_times_s=seconds)


def random_in_tree(rng: np.random.Generator, tasks: int) -> ComputationGraph:
    """Each task has one reader; about half of them read a source of their own, too."""
    parent = [int(rng.integers(task + 1, tasks)) for task in range(tasks - 1)]
    reads = [task for task in range(tasks) if rng.random() < 0.5]
    num_bytes = rng.choice([0, 1, 2, 3, 5, 9], len(reads) + tasks)
    count = len(reads)
    edges = [(one, count + task) for one, task in enumerate(reads)]
    edges += [(count + task, count + above) for task, above in enumerate(parent)]
    return graph_of(edges, num_bytes, range(count))


def random_dag(rng: np.random.Generator, tasks: int, density: float = 0.4) -> ComputationGraph:
    """Tasks that read some of those before them; the first one is a source."""
    edges = [(a, b) for b in range(1, tasks) for a in range(b) if rng.random() < density]
    return graph_of(edges, rng.choice([0, 1, 2, 3, 5, 9], tasks), [0])


def topological_orders(simulator: Simulator):
    """All orders of the tasks that are no sources, sources first."""
    tasks = simulator.tasks
    inputs = [
        {int(tasks.tensor_task[t]) for t in tasks.input_tensor[tasks.input_ptr[k] : tasks.input_ptr[k + 1]]}
        for k in range(tasks.num_tasks)
    ]
    sources = np.flatnonzero(tasks.is_source).tolist()

    def longer(order, left):
        if not left:
            yield order
        for task in sorted(left):
            if not inputs[task] & left:
                yield from longer([*order, task], left - {task})

    yield from longer(sources, set(range(tasks.num_tasks)) - set(sources))


def priorities(orders, num_tasks: int) -> np.ndarray:
    """float64 [B, K] of orders, int [B, K]."""
    orders = np.array(list(orders))
    found = np.empty((len(orders), num_tasks))
    np.put_along_axis(found, orders, -np.arange(num_tasks, dtype=np.float64)[None], axis=1)
    return found


def least_peak(simulator: Simulator) -> int:
    """Bytes, over all topological orders, on one device, by the simulator."""
    every = priorities(topological_orders(simulator), simulator.num_tasks)
    placement = np.zeros(every.shape, np.int32)
    return int(simulator.run_many(placement, every).peak_bytes.max(axis=1).min())


def one_device_peak(tasks: TaskGraph, order) -> int:
    """Bytes at the peak of all tasks on one device in an order, int [K] without or with sources."""
    held = holdings(tasks, np.zeros(tasks.num_tasks, np.int32))
    left = np.diff(held.reader_ptr)
    is_source, of = tasks.is_source, held.producer
    memory = peak = int(held.num_bytes[is_source[of] & (left > 0)].sum())
    for task in np.asarray(order, int).tolist():
        if is_source[task]:
            continue
        given = np.flatnonzero(of == task)
        memory += int(held.num_bytes[given].sum())
        peak = max(peak, memory)
        memory -= int(held.num_bytes[given[left[given] == 0]].sum())
        read = held.read[held.read_ptr[task] : held.read_ptr[task + 1]]
        left[read] -= 1
        memory -= int(held.num_bytes[read[left[read] == 0]].sum())
    return peak + int(tasks.persistent_bytes.sum())


def least_makespan(simulator: Simulator, placement: np.ndarray) -> float:
    """Seconds, over all rankings of the tasks, by the simulator."""
    tasks = np.flatnonzero(~simulator.tasks.is_source).tolist()
    sources = np.flatnonzero(simulator.tasks.is_source).tolist()
    every = priorities(([*sources, *order] for order in itertools.permutations(tasks)), simulator.num_tasks)
    return float(simulator.run_many(np.tile(placement, (len(every), 1)), every).makespan_s.min())
