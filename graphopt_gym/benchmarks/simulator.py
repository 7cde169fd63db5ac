"""How fast the engine is: milliseconds a simulated step, and ratios to plain simulations of the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import seconds
from graphopt_gym.extras import NotInstalled, installed
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.simulator import cores

SIZES = ((2_000, 4), (10_000, 4), (80_000, 8))
PEER_LIMIT, PEER_REPEATS = 2_000, 5  # ops up to which the slow peers are run, and how often


def simulator_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The table behind ``graphopt bench simulator``.

    Each size is run with ops spread at random (nearly every edge is a transfer: the worst case) and in contiguous
    blocks (few transfers). The peers simulate one of the placements and must return the same makespan; a ratio is of
    the least processor time of as many runs of either.
    """
    rows: list[dict[str, Any]] = []
    notes = ["engine: least of the repeats on one core; batch: 64 placements over all cores, a placement"]
    for num_ops, num_devices in SIZES:
        graph = layered_dag(num_ops, seed=0)
        cluster = _complete_cluster(num_devices)
        rng = np.random.default_rng(0)
        durations = rng.uniform(1e-5, 1e-3, graph.num_ops)  # continuous, so that no peer has ties to break
        simulator = Simulator(graph, cluster, op_times_s=durations)
        count = simulator.num_tasks
        spreads = {
            "random": rng.integers(0, num_devices, (64, count), dtype=np.int32),
            "blocks": np.tile((np.arange(count) * num_devices // count).astype(np.int32), (64, 1)),
        }
        for spread, placements in spreads.items():
            say(f"{num_ops:,} ops on {num_devices} devices, {spread}")
            simulator.cost(placements[0])
            repeats = max(5, 400_000 // num_ops)
            one_s = min(seconds(simulator.cost, placements[i % 64]) for i in range(repeats))
            simulator.run_many(placements)
            batch_s = min(seconds(simulator.run_many, placements) for _ in range(max(2, repeats // 50))) / 64
            row: dict[str, Any] = {
                "ops": num_ops,
                "edges": graph.num_edges,
                "tasks": count,
                "devices": num_devices,
                "placement": spread,
                "transfers": len(simulator.run_tasks(placements[0]).transfers),
                "engine_ms": one_s * 1e3,
                "batch_ms": batch_s * 1e3,
                "us_per_op_and_edge": one_s * 1e6 / (graph.num_ops + graph.num_edges),
                "simpy_ratio": None,
                "twin_ratio": None,
            }
            if num_ops <= PEER_LIMIT:
                expected = simulator.cost(placements[0])[0]
                ours_s = min(_processor_s(simulator.cost, placements[0])[1] for _ in range(PEER_REPEATS))
                for name, peer in _peers(simulator, durations).items():
                    runs = [peer(placements[0]) for _ in range(PEER_REPEATS)]
                    wrong = next((makespan for makespan, _ in runs if makespan != expected), None)
                    if wrong is not None:
                        raise RuntimeError(f"{name} finds a makespan of {wrong} s, the engine {expected} s")
                    row[f"{name}_ratio"] = min(peer_s for _, peer_s in runs) / ours_s
            rows.append(row)
    notes.append(
        f"cores: {cores()}; simpy_ratio and twin_ratio: time of SimPy and of the plain Python twin over ours, "
        f"each the least processor time of {PEER_REPEATS} runs of one placement"
    )
    if not installed("simpy"):
        notes.append(str(NotInstalled("simpy", "simpy_ratio")))
    if not installed("tests"):
        notes.append("the plain twin lives in the tests: run from a checkout to see it")
    return {"title": "Simulator", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _complete_cluster(num_devices: int) -> Cluster:
    device = Device(
        name="device", kind="gpu", memory_bytes=10**15, memory_bytes_per_s=1e12, peak_flops={"float32": 1e13}
    )
    pairs = [(a, b) for a in range(num_devices) for b in range(num_devices) if a != b]
    link_of = np.full((num_devices, num_devices), -1, np.int32)
    for link, pair in enumerate(pairs):
        link_of[pair] = link
    links = tuple(Link(f"{a}-{b}", 1e-5, 1.2e10) for a, b in pairs)
    return Cluster("complete", (device,) * num_devices, links, link_of, (0,) * num_devices)


def _peers(simulator: Simulator, durations: np.ndarray) -> dict[str, Callable[[np.ndarray], tuple[float, float]]]:
    peers: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {}
    if installed("simpy"):
        peers["simpy"] = lambda placement: _simpy(simulator, placement)
    if installed("tests"):
        from tests.simulator import twin

        def plain(placement: np.ndarray) -> tuple[float, float]:
            by_op = placement[simulator.tasks.task_of_op]
            table = [dict(enumerate(durations.tolist()))] * simulator.num_devices
            result, taken_s = _processor_s(twin.run, simulator.graph, simulator.cluster, table, by_op, memory=False)
            return result["makespan"], taken_s

        peers["twin"] = plain
    return peers


def _processor_s(function: Callable[..., Any], *arguments: Any, **more: Any) -> tuple[Any, float]:
    """(the result, processor time of this process): what waits for other programs of a busy machine does not count."""
    started = time.process_time()
    return function(*arguments, **more), time.process_time() - started


def _simpy(simulator: Simulator, placement: np.ndarray) -> tuple[float, float]:
    """The same step as SimPy processes, one a device and one a link. Returns (makespan_s, seconds taken)."""
    import simpy

    tasks, cluster = simulator.tasks, simulator.cluster
    home = placement.tolist()
    duration = simulator.device_durations_s()[placement, np.arange(len(placement))].tolist()
    waiting = np.diff(tasks.input_ptr).tolist()
    readers = [
        tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]].tolist()
        for tensor in range(tasks.num_tensors)
    ]
    makes = [range(tasks.tensor_ptr[task], tasks.tensor_ptr[task + 1]) for task in range(tasks.num_tasks)]
    size = tasks.tensor_bytes.tolist()

    started = time.process_time()
    env = simpy.Environment()
    queues = [simpy.Store(env) for _ in cluster.devices]
    lines = [simpy.Store(env) for _ in cluster.links]
    last = 0.0

    def arrive(tensor: int, device: int) -> None:
        for reader in readers[tensor]:
            if home[reader] == device:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    queues[device].put(reader)

    def finish(task: int) -> None:
        for tensor in makes[task]:
            arrive(tensor, home[task])
            for target in sorted({home[reader] for reader in readers[tensor]} - {home[task]}):
                lines[cluster.link_of[home[task], target]].put((tensor, target))

    def run_device(device: int) -> Any:
        nonlocal last
        while True:
            task = yield queues[device].get()
            yield env.timeout(duration[task])
            last = env.now
            finish(task)

    def run_link(link: int) -> Any:
        while True:
            tensor, target = yield lines[link].get()
            yield env.timeout(cluster.links[link].latency_s + size[tensor] / cluster.links[link].bytes_per_s)
            arrive(tensor, target)

    for task in range(tasks.num_tasks):
        if not tasks.is_source[task] and waiting[task] == 0:
            queues[home[task]].put(task)
    for task in range(tasks.num_tasks):
        if tasks.is_source[task]:
            finish(task)
    for queue in queues:
        queue.items.sort()  # all are ready at 0: ties break by index
    for device in range(cluster.num_devices):
        env.process(run_device(device))
    for link in range(len(cluster.links)):
        env.process(run_link(link))
    env.run()
    return last, time.process_time() - started
