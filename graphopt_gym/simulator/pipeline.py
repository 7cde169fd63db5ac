"""A placement as a pipeline: samples follow each other through the devices, and the busiest resource sets the pace.

A *sample* is one run of the graph (a micro-batch). In the steady state each device does its part of a sample once a
*period*, so the period is the load of the busiest device or link (Tarnawski et al., NeurIPS 2020, §3; Narayanan et al.,
PipeDream, SOSP 2019, §3.1). No order of a step is simulated: a period needs none.

**Loads.** A device computes all its ops of a sample. A tensor that other devices read takes links. With
``transfers="direct"`` it is sent once to each of them, over the link of that pair, as in a simulated step. With
``transfers="host"`` it is written once to the host's memory, over the link from its device to the host, and read from
there once by each of the others; CPUs live in the host's memory, and pay nothing. Seconds that are stated of a tensor
are those of each transfer. With ``overlap`` devices send and receive while they compute, and the period is the largest
load of a device's compute or of a link (to and from the host each device has its own, one for each way); without it a
device does one after the other, and its load is all three.

**Memory.** What a device holds is what it holds for the whole run (parameters and optimiser state, in one version),
the most that one sample holds in captured order, and what further samples in flight hold. Let a task's depth be the
most changes of device on any way to it. A tensor that is read ``n`` changes after it was made (or arrived) is held for
``n`` further samples; in training for half as many, rounded up, as a sample then goes through the pipeline twice in a
period: so the first of S stages holds S samples and the last one 1, as with one forward, one backward (1F1B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.fields import choice
from graphopt_gym.graphs.graph import PHASES
from graphopt_gym.simulator.simulator import Simulator, on_all_cores

TRANSFERS = ("direct", "host")


@dataclass(frozen=True, eq=False)
class Loads:
    """What one sample takes of each device and link. D devices, L links."""

    period_s: float
    compute_s: np.ndarray  # float64 [D]
    sent_s: np.ndarray  # float64 [D]
    received_s: np.ndarray  # float64 [D]
    link_s: np.ndarray  # float64 [L]
    peak_bytes: np.ndarray  # int64 [D]
    samples: np.ndarray  # int64 [D], most samples in flight that any tensor on the device is of


class Pipeline:
    """The pipelines that placements of a simulator's tasks are. K tasks, D devices, L links.

    Args:
        simulator: whose tasks, times and links are meant.
        overlap: whether devices send and receive while they compute.
        transfers: ``"direct"``, or ``"host"``; see the module's text. The host is the first CPU of the cluster; where
            there is none, a device's link to it is the fastest that leaves it (or leads to it).

    Raises:
        InputError: other ``transfers``.
    """

    def __init__(self, simulator: Simulator, overlap: bool = True, transfers: str = "direct") -> None:
        choice("transfers", transfers, TRANSFERS)
        self.simulator, self.overlap, self.transfers = simulator, overlap, transfers
        tasks, cluster = simulator.tasks, simulator.cluster
        trains = bool((tasks.graph.phase == PHASES.index("backward")).any())
        self.phases = 2 if trains else 1
        self.in_host = np.array([device.kind == "cpu" for device in cluster.devices])
        up, down = _host_links(simulator, self.in_host)
        latency = np.array([link.latency_s for link in cluster.links], np.float64)
        rate = np.array([link.bytes_per_s for link in cluster.links], np.float64)
        self._columns = (
            simulator.durations_s, simulator.device_type, np.array(cluster.link_of, np.int32, order="C"), latency, rate,
            transfers == "host", overlap, self.phases, self.in_host, up, down,
            tasks.sequence, tasks.is_source, tasks.persistent_bytes, tasks.storage_ptr, tasks.storage_bytes,
            tasks.tensor_ptr, tasks.tensor_bytes, tasks.tensor_storage, tasks.tensor_task, tasks.reader_ptr,
            tasks.reader, tasks.input_ptr, tasks.input_tensor, tasks.transfer_s,
        )  # fmt: skip

    def host_s(self) -> tuple[np.ndarray, np.ndarray]:
        """(out, in) float64 [D, T]: seconds of each tensor from each device to the host's memory, and back."""
        tasks, (up, down) = self.simulator.tasks, _host_links(self.simulator, self.in_host)
        links = self.simulator.cluster.links
        found = []
        for chosen in (up, down):
            rows = np.zeros((len(chosen), tasks.num_tensors))
            for device, number in enumerate(chosen.tolist()):
                if number >= 0 and not self.in_host[device]:
                    by_link = links[number].latency_s + tasks.tensor_bytes / links[number].bytes_per_s
                    rows[device] = np.where(tasks.transfer_s >= 0, tasks.transfer_s, by_link)
            found.append(rows)
        return found[0], found[1]

    def loads(self, placement: np.ndarray) -> Loads:
        """The loads of one placement of tasks, int [K]."""
        placement = np.ascontiguousarray(placement, np.int32)[None]
        devices, links = self.simulator.num_devices, self.simulator.cluster.num_links
        period, peak = np.empty(1), np.empty((1, devices), np.int64)
        of_devices, of_links, samples = np.empty((3, devices)), np.empty(links), np.empty(devices, np.int64)
        _price(placement, *self._columns, period, peak, of_devices, of_links, samples)
        compute_s, sent_s, received_s = of_devices
        return Loads(float(period[0]), compute_s, sent_s, received_s, of_links, peak[0], samples)

    def costs(self, placements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(period_s float64 [B], peak_bytes int64 [B, D]) of placements of tasks, int [B, K], on all cores."""
        placements = np.ascontiguousarray(placements, np.int32)
        count, devices, links = len(placements), self.simulator.num_devices, self.simulator.cluster.num_links
        period, peak = np.empty(count), np.empty((count, devices), np.int64)

        def rows(low: int, high: int) -> None:
            of_devices, of_links, samples = np.empty((3, devices)), np.empty(links), np.empty(devices, np.int64)
            _price(
                placements[low:high], *self._columns, period[low:high], peak[low:high], of_devices, of_links, samples
            )

        on_all_cores(rows, count)
        return period, peak


def _host_links(simulator: Simulator, in_host: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 [D] each: the link from each device to the host's memory, and from there to it; -1: none is needed."""
    cluster = simulator.cluster
    rate = np.array([link.bytes_per_s for link in cluster.links] + [0.0])  # the last one: of no link
    hosts = np.flatnonzero(in_host)
    up = np.full(cluster.num_devices, -1, np.int32)
    down = up.copy()
    for device in range(cluster.num_devices):
        if cluster.num_devices > 1 and not in_host[device]:
            others = hosts[:1] if len(hosts) else np.delete(np.arange(cluster.num_devices), device)
            leaving, coming = cluster.link_of[device, others], cluster.link_of[others, device]
            up[device], down[device] = leaving[rate[leaving].argmax()], coming[rate[coming].argmax()]
    return up, down


@kernel
def _price(
    placements, durations, device_type, link_of, latency, rate, through_host, overlap, phases, in_host, up, down,
    sequence, is_source, persistent, storage_ptr, storage_bytes, tensor_ptr, tensor_bytes, tensor_storage, tensor_task,
    reader_ptr, reader, input_ptr, input_tensor, transfer_s,
    period_s, peak_bytes, of_devices, link_s, samples,
):  # fmt: skip
    """Fills the outputs for B placements; ``of_devices`` (compute, sent, received), ``link_s`` and ``samples`` with
    those of the last one."""
    tasks, tensors, devices = len(sequence), len(tensor_bytes), len(device_type)
    depth = np.zeros(tasks, np.int64)
    at = np.zeros(tasks, np.int64)  # where each task is in captured order
    for position in range(tasks):
        at[sequence[position]] = position
    last = np.full(devices, -1, np.int64)  # of a storage: the last reader's position on each device
    deepest = np.zeros(devices, np.int64)
    copied = np.zeros(devices, np.int64)  # of a storage: 1 + the tensor that was last copied to each device
    reached = np.zeros(devices, np.int64)  # the devices of a storage
    held = np.zeros(devices, np.int64)
    entries = len(storage_bytes) + len(reader)
    first_free = np.full(tasks + 1, -1, np.int64)  # what is freed after each task: a chain of entries
    next_free = np.zeros(entries, np.int64)
    free_device = np.zeros(entries, np.int64)
    free_bytes = np.zeros(entries, np.int64)
    for row in range(len(placements)):
        place = placements[row]
        of_devices[:] = 0.0
        link_s[:] = 0.0
        samples[:] = 1
        held[:] = 0
        for task in range(tasks):
            of_devices[0, place[task]] += durations[device_type[place[task]], task]
            held[place[task]] += persistent[task]
            first_free[task] = -1
        for position in range(tasks):
            task = sequence[position]
            most = 0
            for index in range(input_ptr[task], input_ptr[task + 1]):
                producer = tensor_task[input_tensor[index]]
                most = max(most, depth[producer] + (place[producer] != place[task]))
            depth[task] = most
        # what is sent
        for tensor in range(tensors):
            home = place[tensor_task[tensor]]
            left = False
            for index in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                device = place[reader[index]]
                if device == home or copied[device] == tensor + 1:
                    continue
                copied[device] = tensor + 1
                if through_host:
                    if not left and not in_host[home]:
                        link = up[home]
                        taken = transfer_s[tensor]
                        if taken < 0:
                            taken = latency[link] + tensor_bytes[tensor] / rate[link]
                        of_devices[1, home] += taken
                    left = True
                    if not in_host[device]:
                        link = down[device]
                        taken = transfer_s[tensor]
                        if taken < 0:
                            taken = latency[link] + tensor_bytes[tensor] / rate[link]
                        of_devices[2, device] += taken
                else:
                    link = link_of[home, device]
                    taken = transfer_s[tensor]
                    if taken < 0:
                        taken = latency[link] + tensor_bytes[tensor] / rate[link]
                    of_devices[1, home] += taken
                    of_devices[2, device] += taken
                    link_s[link] += taken
        copied[:] = 0
        # what is held: by further samples for the whole run, by this one from task to task
        used = 0
        for task in range(tasks):
            home = place[task]
            for storage in range(storage_ptr[task], storage_ptr[task + 1]):
                read, final, deep = False, at[task], depth[task]
                for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
                    if tensor_storage[tensor] != storage:
                        continue
                    count = 0
                    for index in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                        read = True
                        other = reader[index]
                        device = place[other]
                        if device == home:
                            final = max(final, at[other])
                            deep = max(deep, depth[other])
                        else:
                            if last[device] < 0:
                                reached[count] = device
                                count += 1
                                deepest[device] = depth[task] + 1
                            last[device] = max(last[device], at[other])
                            deepest[device] = max(deepest[device], depth[other])
                    for number in range(count):
                        device = reached[number]
                        further = 0
                        if not is_source[task]:
                            further = (deepest[device] - depth[task] - 1 + phases - 1) // phases
                        samples[device] = max(samples[device], 1 + further)
                        held[device] += further * tensor_bytes[tensor]
                        free_device[used], free_bytes[used] = device, tensor_bytes[tensor]
                        next_free[used] = first_free[sequence[last[device]]]
                        first_free[sequence[last[device]]] = used
                        used += 1
                        last[device] = -1
                        if is_source[task]:
                            held[device] += tensor_bytes[tensor]
                further = 0
                if not is_source[task]:
                    further = (deep - depth[task] + phases - 1) // phases
                else:
                    held[home] += storage_bytes[storage]
                samples[home] = max(samples[home], 1 + further)
                held[home] += further * storage_bytes[storage]
                if read:
                    free_device[used], free_bytes[used] = home, storage_bytes[storage]
                    next_free[used] = first_free[sequence[final]]
                    first_free[sequence[final]] = used
                    used += 1
        peak = peak_bytes[row]
        peak[:] = held
        for position in range(tasks):
            task = sequence[position]
            if not is_source[task]:
                home = place[task]
                for storage in range(storage_ptr[task], storage_ptr[task + 1]):
                    held[home] += storage_bytes[storage]
                    peak[home] = max(peak[home], held[home])
                for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
                    for index in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                        device = place[reader[index]]
                        if device != home and copied[device] != tensor + 1:
                            copied[device] = tensor + 1
                            held[device] += tensor_bytes[tensor]
                            peak[device] = max(peak[device], held[device])
            entry = first_free[task]
            while entry >= 0:
                held[free_device[entry]] -= free_bytes[entry]
                entry = next_free[entry]
        copied[:] = 0
        period = 0.0
        for device in range(devices):
            if overlap:  # sent and received alone are those of links, but for the host's
                period = max(period, of_devices[0, device])
                if through_host:
                    period = max(period, of_devices[1, device], of_devices[2, device])
            else:
                period = max(period, of_devices[0, device] + of_devices[1, device] + of_devices[2, device])
        for link in range(len(link_s)):
            period = max(period, link_s[link])
        period_s[row] = period
