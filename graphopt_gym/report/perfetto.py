"""A timeline as a Perfetto trace, for https://ui.perfetto.dev and the ``perfetto`` package's trace processor.

One process a device, with a track of kernels and a counter of the memory held; one process for the links, with a
track each. Arrows ("flows") lead from the op that produces a tensor over its transfer to the first op that reads it
there. A slice's arguments hold the op's kind, module, phase, FLOPs and bytes. Times are whole nanoseconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.files import write_file
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.simulator.perfetto import TraceWriter, nanoseconds

if TYPE_CHECKING:
    from graphopt_gym.simulator.timeline import Timeline

_LINKS_PID = 1000  # after the devices' process ids


def write_trace(timeline: Timeline, path: str | os.PathLike[str], *, name: str = "") -> Path:
    """Write a trace, whole or not at all; the usual ending is ``.pftrace``.

    Raises:
        InputError: the folder cannot be written.
    """
    write_file(path, trace_bytes(timeline, name=name), make_folders=True)
    return Path(path)


def trace_bytes(timeline: Timeline, *, name: str = "") -> bytes:
    """The content of a trace file. ``name`` goes before each process's name, e.g. the method's."""
    return _Writer(timeline, f"{name}: " if name else "").write()


class _Writer(TraceWriter):
    """Packets of one timeline."""

    def __init__(self, timeline: Timeline, prefix: str) -> None:
        super().__init__(prefix)
        self.timeline = timeline
        fused = np.argsort(timeline.tasks.fused, kind="stable")
        groups, first = np.unique(timeline.tasks.fused[fused], return_index=True)
        self.fused = dict(zip(groups.tolist(), np.split(fused, first[1:]), strict=True))  # ops of each fused group
        self.fused.pop(-1, None)
        # flows that leave a task, and flows that end at one
        self.leaving: dict[int, list[int]] = {}
        self.arriving: dict[int, list[int]] = {}

    def write(self) -> bytes:
        self._connect()
        for device in range(self.timeline.cluster.num_devices):
            self._device(device)
        if self.timeline.link_transfers:
            self._links()
        return self.content()

    def _connect(self) -> None:
        """Flow x is transfer x: from the task that produces its tensor to the first task there that reads it."""
        tasks, start_s = self.timeline.tasks, self.timeline.start_s
        for number, (tensor, _, target, *_) in enumerate(self.timeline.transfers.tolist()):
            tensor = int(tensor)
            readers = tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]]
            there = readers[self.timeline.task_device[readers] == int(target)]
            producer = int(tasks.tensor_task[tensor])
            if not tasks.is_source[producer]:
                self.leaving.setdefault(producer, []).append(number + 1)
            self.arriving.setdefault(int(there[np.argmin(start_s[there])]), []).append(number + 1)

    def _device(self, device: int) -> None:
        timeline = self.timeline
        process = self.process(device + 1, f"device {device}: {timeline.cluster.devices[device].name}", device)
        track = self.track("kernels", process)
        mine = np.flatnonzero((timeline.task_device == device) & ~timeline.tasks.is_source)
        for task in mine[np.lexsort((mine, timeline.finish_s[mine], timeline.start_s[mine]))].tolist():
            name, arguments = self._describe(task)
            self.slice(
                track, timeline.start_s[task], timeline.finish_s[task], name, "op", arguments,
                self.leaving.get(task, []), self.arriving.get(task, []),
            )  # fmt: skip
        counter = self.track("memory", process, counts_bytes=True)
        for time_s, level in zip(*timeline.memory(device), strict=True):
            self.counter(counter, time_s, int(level))

    def _links(self) -> None:
        timeline = self.timeline
        process = self.process(_LINKS_PID, "links", timeline.cluster.num_devices)
        number_of = {(row[0], row[2]): number for number, row in enumerate(timeline.transfers.tolist())}
        for link, rows in timeline.link_transfers.items():
            track = self.track(timeline.cluster.links[link].name, process)
            for tensor, source, target, request_s, start_s, finish_s in rows.tolist():
                flow = [number_of[tensor, target] + 1]
                op = int(timeline.tasks.tensor_op[int(tensor)])
                arguments = {
                    "tensor": timeline.graph.label(op),
                    "bytes": int(timeline.tasks.tensor_bytes[int(tensor)]),
                    "from_device": int(source),
                    "to_device": int(target),
                    "waited_ns": nanoseconds(start_s) - nanoseconds(request_s),
                }
                name = f"{timeline.graph.kinds[timeline.graph.kind[op]]}[{op}] {int(source)}→{int(target)}"
                self.slice(track, start_s, finish_s, name, "transfer", arguments, flow, [])

    def _describe(self, task: int) -> tuple[str, dict[str, Any]]:
        graph, tasks = self.timeline.graph, self.timeline.tasks
        op = int(tasks.first_op[task])
        members = self.fused.get(int(tasks.fused[op]), np.array([op]))
        kinds = [graph.kinds[graph.kind[member]] for member in members.tolist()]
        return "+".join(dict.fromkeys(kinds)), {
            "op": op,
            "kind": ", ".join(kinds),
            "op_class": OP_CLASSES[graph.op_class[op]],
            "phase": PHASES[graph.phase[op]],
            "module": graph.modules[graph.module[op]],
            "shape": str(list(graph.shape(op))),
            "flops": int(graph.flops[members].sum()),
            "bytes_read": int(graph.bytes_read[members].sum()),
            "bytes_written": int(graph.bytes_written[members].sum()),
            "output_bytes": int(graph.output_bytes[members].sum()),
        }
