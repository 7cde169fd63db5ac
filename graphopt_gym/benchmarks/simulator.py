"""How fast the engine is: milliseconds a simulated step, and ratios to plain simulations of the same step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.benchmarks import peer
from graphopt_gym.benchmarks.timing import seconds
from graphopt_gym.extras import NotInstalled, installed
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, OP_CLASSES, SOURCE, ComputationGraph
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.simulator import cores

SIZES = ((2_000, 4), (10_000, 4), (80_000, 8))
PEER_LIMIT, PEER_REPEATS = 2_000, 5  # ops up to which the slow peers are run, and how often
C_GRAPHS = (("bert_base", 4), *SIZES, (1_000_000, 8))  # by name, or by how many ops are drawn; devices
C_ORDERS, C_LARGE = ("fifo", "program", "stream"), 100_000  # ops from which on only the first order is run
C_SECONDS, C_PLACEMENTS = 1.0, 8  # of running the engine and the C loop in turn; repeats go through the placements


def simulator_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The tables behind ``graphopt bench simulator``: ``steps``, ``beside_C`` and ``hard_cases``."""
    return {"steps": steps_report(say), "beside_C": c_report(say), "hard_cases": hard_report(say)}


def steps_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Milliseconds a step, alone and in batches, and ratios to slow peers.

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
    return {"columns": list(rows[0]), "rows": rows, "notes": notes}


def c_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The engine beside the event loop in C of ``peer.c``: ``ratio`` is its processor time over that of C.

    Both run the same placements in turn. The least time of each placement counts, summed up over the placements. They
    are several, so that neither is measured on branches that the processor knows by heart.
    """
    rows: list[dict[str, Any]] = []
    if peer.c_loop() is None:
        return {"rows": rows, "notes": [peer.NO_COMPILER]}
    for what, num_devices in C_GRAPHS:
        graph = load_graph(what) if isinstance(what, str) else layered_dag(what, seed=0)
        rng = np.random.default_rng(0)
        durations = rng.uniform(1e-5, 1e-3, graph.num_ops)
        for order in C_ORDERS if graph.num_ops < C_LARGE else C_ORDERS[:1]:
            simulator = Simulator(graph, _complete_cluster(num_devices), op_times_s=durations, order=order)
            count = simulator.num_tasks
            several = C_PLACEMENTS if graph.num_ops < C_LARGE else 1
            cuts = np.sort(rng.integers(0, count, (several, num_devices - 1)), axis=1)
            spreads = {
                "random": rng.integers(0, num_devices, (several, count), dtype=np.int32),
                "blocks": np.stack([np.searchsorted(row, np.arange(count), "right") for row in cuts]).astype(np.int32),
            }
            for spread, placements in spreads.items():
                say(f"{graph.name}, {order}, {spread}: the engine and C")
                engine_s, c_s = _engine_and_c_s(simulator, list(placements))
                rows.append(
                    {
                        "graph": graph.name, "tasks": count, "devices": num_devices, "order": order,
                        "placement": spread, "engine_ms": engine_s * 1e3, "c_ms": c_s * 1e3, "ratio": engine_s / c_s,
                    }
                )  # fmt: skip
    notes = ["processor time a step, by Simulator.cost and by peer.c (-O3, binary heaps), which gives the same costs"]
    return {"rows": rows, "notes": notes}


def _engine_and_c_s(
    simulator: Simulator, placements: list[np.ndarray], priority: np.ndarray | None = None
) -> tuple[float, float]:
    """Seconds of processor time a step, by the engine and by C: see :func:`c_report`."""
    loops = [peer.bound(simulator, placement, priority) for placement in placements]
    for placement, loop in zip(placements, loops, strict=True):
        makespan_s, peak_bytes = simulator.cost(placement, priority)
        found = loop()
        if makespan_s != found["makespan_s"][0] or (peak_bytes != found["peak_bytes"]).any():
            raise RuntimeError(f"{peer.SOURCE.name} finds a makespan of {found['makespan_s'][0]} s, the engine of "
                               f"{makespan_s} s")  # fmt: skip
    least = np.full((2, len(placements)), np.inf)
    spent, rounds = 0.0, 0
    while spent < C_SECONDS or rounds < PEER_REPEATS:
        for index, (placement, loop) in enumerate(zip(placements, loops, strict=True)):
            taken_s = (_processor_s(simulator.cost, placement, priority)[1], _processor_s(loop)[1])
            least[:, index] = np.minimum(least[:, index], taken_s)
            spent += sum(taken_s)
        rounds += 1
    engine_s, c_s = least.mean(axis=1).tolist()
    return engine_s, c_s


def hard_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Steps that an engine can easily be slow at, each run in a process of its own, whose peak memory is shown."""
    rows = []
    for name in HARD_CASES:
        say(f"hard case {name}")
        command = [sys.executable, "-c", f"from {__name__} import hard_case; hard_case({name!r})"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"the hard case {name!r} failed: {found.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(found.stdout))
    notes = ["memory_mb: most that the process held before C was run, Python, its libraries and the graph included"]
    return {"rows": rows, "notes": notes if peer.c_loop() else [*notes, peer.NO_COMPILER]}


def hard_case(name: str) -> None:
    """Run one of :data:`HARD_CASES` and print its row as JSON."""
    simulator, placement, priority = HARD_CASES[name]()
    simulator.cost(placement, priority)
    row: dict[str, Any] = {
        "case": name, "tasks": simulator.num_tasks, "devices": simulator.num_devices,
        "engine_s": min(_processor_s(simulator.cost, placement, priority)[1] for _ in range(PEER_REPEATS)),
        "memory_mb": _peak_mb(), "c_s": None, "ratio": None,
    }  # fmt: skip
    if peer.c_loop() is not None:
        row["engine_s"], row["c_s"] = _engine_and_c_s(simulator, [placement], priority)
        row["ratio"] = row["engine_s"] / row["c_s"]
    print(json.dumps(row))


Case = tuple[Simulator, np.ndarray, np.ndarray | None]  # with a placement, int32 [K], and priorities, float64 [K]


def _tasks_alike(count: int = 40_000) -> Case:
    """As many tasks, on one device, become ready at one instant, the last one first."""
    graph = _small_ops(count, list(range(2 * count - 1, count - 1, -1)), sources=True)
    simulator = Simulator(graph, _bus(2), op_times_s=np.full(graph.num_ops, 1e-5))
    return simulator, np.zeros(2 * count, np.int32), None


def _transfers_alike(count: int = 40_000) -> Case:
    """As many transfers are requested of one link at one instant, the last one first."""
    graph = _small_ops(count, list(range(count, 2 * count)), sources=False)
    times = np.where(np.arange(2 * count) < count, 0.0, 1e-5)
    placement = (np.arange(2 * count) >= count).astype(np.int32)
    return Simulator(graph, _bus(2), op_times_s=times), placement, np.arange(2.0 * count)


def _on_many(num_ops: int, num_devices: int) -> Case:
    """A layered graph spread at random over devices, each with a link that all it sends goes through."""
    graph, rng = layered_dag(num_ops, seed=0), np.random.default_rng(0)
    simulator = Simulator(graph, _bus(num_devices, True), op_times_s=rng.uniform(1e-5, 1e-3, num_ops))
    return simulator, rng.integers(0, num_devices, simulator.num_tasks, dtype=np.int32), None


HARD_CASES: dict[str, Callable[[], Case]] = {
    "40,000 tasks ready at once": _tasks_alike,
    "40,000 transfers at once": _transfers_alike,
    "200 ops on 4,096 devices": lambda: _on_many(200, 4_096),
    "100,000 ops on 1,024 devices": lambda: _on_many(100_000, 1_024),
}


def _peak_mb() -> float | None:
    """Most megabytes that this process held; None where the system does not say (it does on Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), None)


def _small_ops(count: int, readers: list[int], sources: bool) -> ComputationGraph:
    """Ops 0 to ``count``, sources or not, each read by one of as many others."""
    columns = dict.fromkeys(COLUMNS, np.zeros(2 * count, np.int64))
    columns["output_shape"] = np.zeros((2 * count, MAX_RANK), np.int64)
    columns["op_class"] = np.where(sources & (np.arange(2 * count) < count), SOURCE, OP_CLASSES.index("matmul"))
    columns["output_bytes"] = np.full(2 * count, 8)
    edges = np.stack([np.arange(count), readers], axis=1)
    return ComputationGraph("alike", kinds=["op"], modules=[""], columns=columns, edges=edges)


def _bus(num_devices: int, one_each: bool = False) -> Cluster:
    """Devices on one link, or each with a link that all it sends goes through."""
    link_of = np.zeros((num_devices, num_devices), np.int32)
    if one_each:
        link_of += np.arange(num_devices, dtype=np.int32)[:, None]
    np.fill_diagonal(link_of, -1)
    links = tuple(Link(f"bus{index}", 1e-5, 1.2e10) for index in range(num_devices if one_each else 1))
    return Cluster("bus", (DEVICE,) * num_devices, links, link_of, (0,) * num_devices)


DEVICE = Device(name="device", kind="gpu", memory_bytes=10**15, memory_bytes_per_s=1e12, peak_flops={"float32": 1e13})


def _complete_cluster(num_devices: int) -> Cluster:
    pairs = [(a, b) for a in range(num_devices) for b in range(num_devices) if a != b]
    link_of = np.full((num_devices, num_devices), -1, np.int32)
    for link, pair in enumerate(pairs):
        link_of[pair] = link
    links = tuple(Link(f"{a}-{b}", 1e-5, 1.2e10) for a, b in pairs)
    return Cluster("complete", (DEVICE,) * num_devices, links, link_of, (0,) * num_devices)


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
