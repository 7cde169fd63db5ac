"""The loads and the memory of a pipeline, against a plain count from the words of its module alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.graphs.graph import COLUMNS
from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.pipeline import TRANSFERS, Pipeline
from tests.envs.placement.cases import UNIT, cluster
from tests.simulator.cases import device, random_cluster, random_graph
from tests.simulator.twin import SOURCE, Kernels


def plain_loads(graph, machine, durations, placement, overlap, transfers):
    """Everything that ``Pipeline.loads`` says, as a dict; ``durations[device][kernel]``, ``placement`` by op."""
    k = Kernels(graph)
    devices = range(machine.num_devices)
    home = {one: int(placement[one]) for one in k.kernels}
    hosts = [one for one in devices if machine.devices[one].kind == "cpu"]
    compute, sent, received = ([0.0] * len(devices) for _ in range(3))
    links = [0.0] * machine.num_links
    for one in k.kernels:
        compute[home[one]] += durations[home[one]][one]

    def seconds(link, size):
        return machine.links[link].latency_s + size / machine.links[link].bytes_per_s

    def to_host(one, leaving):
        others = hosts[:1] or [other for other in devices if other != one]
        pairs = [machine.link_of[one, other] if leaving else machine.link_of[other, one] for other in others]
        return max(pairs, key=lambda link: machine.links[link].bytes_per_s)

    for tensor in sorted(k.readers):
        source, size = home[k.kernel[tensor]], int(graph.output_bytes[tensor])
        targets = sorted({home[reader] for reader in k.readers[tensor]} - {source})
        for target in targets:
            if transfers == "direct":
                link = machine.link_of[source, target]
                sent[source] += seconds(link, size)
                received[target] += seconds(link, size)
                links[link] += seconds(link, size)
            elif target not in hosts:
                received[target] += seconds(to_host(target, False), size)
        if targets and transfers == "host" and source not in hosts:
            sent[source] += seconds(to_host(source, True), size)
    if not overlap:
        period = max([compute[one] + sent[one] + received[one] for one in devices] + links)
    elif transfers == "host":
        period = max(compute + sent + received)
    else:
        period = max(compute + links)

    passes = 2 if (graph.phase == 1).any() else 1
    depth = {}
    for one in k.kernels:
        makers = {k.kernel[tensor] for tensor in k.reads[one]}
        depth[one] = max([depth[maker] + (home[maker] != home[one]) for maker in makers], default=0)
    at = {one: position for position, one in enumerate(k.kernels)}
    held = [[0] * len(k.kernels) for _ in devices]  # by device, at each kernel in captured order
    samples = [1] * len(devices)

    def hold(where, size, first, last, changes, is_source):
        further = 0 if is_source else math.ceil(changes / passes)
        samples[where] = max(samples[where], 1 + further)
        for position in range(len(k.kernels)):
            held[where][position] += further * size
            if (0 if is_source else first) <= position <= last:
                held[where][position] += size

    for op in range(graph.num_ops):
        for position in range(len(k.kernels)):
            held[home[k.kernel[op]]][position] += int(graph.param_bytes[op]) + int(graph.state_bytes[op])
    for storage in k.storages:
        maker = k.kernel[storage]
        tensors = [tensor for tensor in k.readers if k.root[tensor] == storage]
        readers = {reader for tensor in tensors for reader in k.readers[tensor]}
        here = [reader for reader in readers if home[reader] == home[maker]]
        size = 0 if graph.param_bytes[storage] else int(graph.output_bytes[storage])
        last = max([at[maker], *(at[reader] for reader in here)]) if readers else len(k.kernels)
        changes = max([0, *(depth[reader] - depth[maker] for reader in here)])
        hold(home[maker], size, at[maker], last, changes, graph.op_class[maker] == SOURCE)
        for tensor in tensors:
            for target in {home[reader] for reader in k.readers[tensor]} - {home[maker]}:
                there = [reader for reader in k.readers[tensor] if home[reader] == target]
                changes = max([0, *(depth[reader] - depth[maker] - 1 for reader in there)])
                last = max(at[reader] for reader in there)
                hold(target, int(graph.output_bytes[tensor]), at[maker], last, changes, graph.op_class[maker] == SOURCE)
    peaks = [max(row) for row in held]
    return {"period_s": period, "compute_s": compute, "sent_s": sent, "received_s": received, "link_s": links,
            "peak_bytes": peaks, "samples": samples}  # fmt: skip


@pytest.mark.parametrize("transfers", TRANSFERS)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_loads__are_those_of_a_plain_count(seed, overlap, transfers):
    rng = np.random.default_rng(seed)
    machine = random_cluster(rng)
    if rng.random() < 0.5:  # with a host
        machine = type(machine)(
            "random", (*machine.devices[:-1], device("host", kind="cpu")), machine.links, machine.link_of, machine.hosts
        )
    graph = random_graph(rng)
    if rng.random() < 0.5:
        graph = layered_dag(int(rng.integers(2, 40)), seed=seed, phases=bool(rng.random() < 0.5))
    simulator = Simulator(graph, machine)
    pipeline = Pipeline(simulator, overlap, transfers)
    first, rows = simulator.tasks.first_op, simulator.device_durations_s()
    durations = [dict(zip(first.tolist(), row.tolist(), strict=True)) for row in rows]
    placements = rng.integers(0, machine.num_devices, (5, simulator.num_tasks))
    periods, peaks = pipeline.costs(placements)
    for row, placement in enumerate(placements):
        of_op = placement[simulator.tasks.task_of_op]
        plain = plain_loads(graph, machine, durations, of_op, overlap, transfers)
        loads = pipeline.loads(placement)
        for name, expected in plain.items():
            found = getattr(loads, name)
            if name in ("peak_bytes", "samples"):
                assert found.tolist() == expected, name
            else:
                assert found == pytest.approx(expected, rel=1e-12, abs=1e-15), name
        assert periods[row] == loads.period_s
        assert peaks[row].tolist() == loads.peak_bytes.tolist()


def test_memory__first_of_s_stages_holds_s_samples_in_training_with_one_forward_one_backward():
    """A chain of four ops and their backward ops, an op and its gradient a device."""
    forward = chain(8, output_bytes=100)
    columns = {name: getattr(forward, name).copy() for name in COLUMNS}
    columns["phase"] = np.repeat([0, 1], 4)
    edges = [(op, op + 1) for op in range(7)] + [(op, 7 - op) for op in range(3)]
    graph = type(forward)("steps", kinds=forward.kinds, modules=forward.modules, columns=columns, edges=np.array(edges))
    loads = Pipeline(Simulator(graph, cluster(4), UNIT)).loads(np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    assert loads.samples.tolist() == [4, 3, 2, 1]
    assert loads.compute_s.tolist() == [2.0] * 4


def test_period__of_a_chain_is_that_of_its_fullest_stage():
    graph = chain(6, output_bytes=10**10)  # a second on a wire
    simulator = Simulator(graph, cluster(3, latency_s=0.0), UNIT)
    assert Pipeline(simulator).loads(np.array([0, 0, 1, 1, 2, 2])).period_s == 2.0
    assert Pipeline(simulator, overlap=False).loads(np.array([0, 0, 1, 1, 2, 2])).period_s == 4.0
    assert Pipeline(simulator).loads(np.array([0, 1, 0, 1, 0, 1])).period_s == 3.0


def test_pipeline__refuses_other_transfers():
    with pytest.raises(InputError, match="transfers"):
        Pipeline(Simulator(chain(3), cluster(2), UNIT), transfers="hosts")
