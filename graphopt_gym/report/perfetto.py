"""A timeline as a Perfetto trace, for https://ui.perfetto.dev and the ``perfetto`` package's trace processor.

One process a device, with a track of kernels and a counter of the memory held; one process for the links, with a
track each. Arrows ("flows") lead from the op that produces a tensor over its transfer to the first op that reads it
there. A slice's arguments hold the op's kind, module, phase, FLOPs and bytes. Times are whole nanoseconds.

Format: the TrackEvent packets of Perfetto's ``trace.proto`` (https://perfetto.dev/docs/reference/synthetic-track-event).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import printable
from graphopt_gym.files import write_file
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    from graphopt_gym.simulator.timeline import Timeline

_SEQUENCE = 1
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
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    return _Writer(timeline, TraceProtoBuilder(), f"{name}: " if name else "").write()


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)


class _Writer:
    """Packets of one timeline. Slices of a track are written in order, each end before the next begin."""

    def __init__(self, timeline: Timeline, builder: TraceProtoBuilder, prefix: str) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import CounterDescriptor, TrackDescriptor, TrackEvent

        self.timeline = timeline
        self.builder = builder
        self.prefix = prefix
        self.event_type = TrackEvent
        self.bytes_unit = CounterDescriptor.UNIT_SIZE_BYTES
        self.explicit_order = TrackDescriptor.EXPLICIT
        self.next_uuid = 1
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
        return self.builder.serialize()

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
        process = self._process(device + 1, f"device {device}: {timeline.cluster.devices[device].name}", device)
        track = self._track("kernels", process)
        mine = np.flatnonzero((timeline.task_device == device) & ~timeline.tasks.is_source)
        for task in mine[np.lexsort((mine, timeline.finish_s[mine], timeline.start_s[mine]))].tolist():
            name, arguments = self._describe(task)
            self._slice(
                track, timeline.start_s[task], timeline.finish_s[task], name, "op", arguments,
                self.leaving.get(task, []), self.arriving.get(task, []),
            )  # fmt: skip
        counter = self._track("memory", process, counts_bytes=True)
        for time_s, level in zip(*timeline.memory(device), strict=True):
            packet = self._event(counter, time_s, self.event_type.TYPE_COUNTER)
            packet.track_event.counter_value = int(level)

    def _links(self) -> None:
        timeline = self.timeline
        process = self._process(_LINKS_PID, "links", timeline.cluster.num_devices)
        number_of = {(row[0], row[2]): number for number, row in enumerate(timeline.transfers.tolist())}
        for link, rows in timeline.link_transfers.items():
            track = self._track(timeline.cluster.links[link].name, process)
            for tensor, source, target, request_s, start_s, finish_s in rows.tolist():
                flow = [number_of[tensor, target] + 1]
                op = int(timeline.tasks.tensor_op[int(tensor)])
                arguments = {
                    "tensor": timeline.graph.label(op),
                    "bytes": int(timeline.tasks.tensor_bytes[int(tensor)]),
                    "from_device": int(source),
                    "to_device": int(target),
                    "waited_ns": _ns(start_s) - _ns(request_s),
                }
                name = f"{timeline.graph.kinds[timeline.graph.kind[op]]}[{op}] {int(source)}→{int(target)}"
                self._slice(track, start_s, finish_s, name, "transfer", arguments, flow, [])

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

    def _descriptor(self) -> Any:
        packet = self.builder.add_packet()
        packet.track_descriptor.uuid = self.next_uuid
        self.next_uuid += 1
        return packet.track_descriptor

    def _process(self, pid: int, name: str, rank: int) -> int:
        descriptor = self._descriptor()
        descriptor.process.pid = pid
        descriptor.process.process_name = printable(self.prefix + name)
        descriptor.child_ordering = self.explicit_order
        descriptor.sibling_order_rank = rank
        return descriptor.uuid

    def _track(self, name: str, parent: int, *, counts_bytes: bool = False) -> int:
        descriptor = self._descriptor()
        descriptor.parent_uuid = parent
        descriptor.name = printable(name)
        descriptor.sibling_order_rank = self.next_uuid
        if counts_bytes:
            descriptor.counter.unit = self.bytes_unit
        return descriptor.uuid

    def _event(self, track: int, time_s: float, kind: int) -> Any:
        packet = self.builder.add_packet()
        packet.timestamp = _ns(time_s)
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        return packet

    def _slice(
        self, track: int, start_s: float, finish_s: float, name: str, category: str, arguments: dict[str, Any],
        flows: list[int], ending_flows: list[int],
    ) -> None:  # fmt: skip
        event = self._event(track, start_s, self.event_type.TYPE_SLICE_BEGIN).track_event
        event.name = printable(name)
        event.categories.append(category)
        event.flow_ids.extend(flows)
        event.terminating_flow_ids.extend(ending_flows)
        for key, value in arguments.items():
            annotation = event.debug_annotations.add()
            annotation.name = key
            if isinstance(value, int):
                annotation.int_value = value
            else:
                annotation.string_value = printable(value)
        self._event(track, finish_s, self.event_type.TYPE_SLICE_END)
