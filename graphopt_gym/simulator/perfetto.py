"""Packets of a Perfetto trace: processes, tracks, slices, counters and flows.

Format: the TrackEvent packets of Perfetto's ``trace.proto`` (https://perfetto.dev/docs/reference/synthetic-track-event).
Times are whole nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt_gym.errors import printable

_SEQUENCE = 1


def nanoseconds(time_s: float) -> int:
    return round(time_s * 1e9)


class TraceWriter:
    """Collects a trace. Slices of a track are given in order, each end before the next begin.

    Args:
        prefix: goes before each process's name.
    """

    def __init__(self, prefix: str = "") -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import CounterDescriptor, TrackDescriptor, TrackEvent
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder

        self.builder = TraceProtoBuilder()
        self.prefix = prefix
        self.event_type = TrackEvent
        self.bytes_unit = CounterDescriptor.UNIT_SIZE_BYTES
        self.explicit_order = TrackDescriptor.EXPLICIT
        self.next_uuid = 1

    def content(self) -> bytes:
        """The trace so far, as a file's content."""
        return self.builder.serialize()

    def process(self, pid: int, name: str, rank: int) -> int:
        """Adds a process, shown by rank. Returns its uuid."""
        descriptor = self._descriptor()
        descriptor.process.pid = pid
        descriptor.process.process_name = printable(self.prefix + name)
        descriptor.child_ordering = self.explicit_order
        descriptor.sibling_order_rank = rank
        return descriptor.uuid

    def track(self, name: str, parent: int, *, counts_bytes: bool = False) -> int:
        """Adds a track of a process, below those there are. Returns its uuid."""
        descriptor = self._descriptor()
        descriptor.parent_uuid = parent
        descriptor.name = printable(name)
        descriptor.sibling_order_rank = self.next_uuid
        if counts_bytes:
            descriptor.counter.unit = self.bytes_unit
        return descriptor.uuid

    def counter(self, track: int, time_s: float, value: int) -> None:
        """Adds what a counter stands at from a time on."""
        packet = self._event(track, time_s, self.event_type.TYPE_COUNTER)
        packet.track_event.counter_value = value

    def slice(
        self,
        track: int,
        start_s: float,
        finish_s: float,
        name: str,
        category: str,
        arguments: Mapping[str, Any],
        flows: Sequence[int] = (),
        ending_flows: Sequence[int] = (),
    ) -> None:
        """Adds a slice, with whole numbers or texts as arguments, and the flows that leave it and end at it."""
        event = self._event(track, start_s, self.event_type.TYPE_SLICE_BEGIN).track_event
        event.name = printable(name)
        event.categories.append(printable(category))
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

    def _descriptor(self) -> Any:
        packet = self.builder.add_packet()
        packet.track_descriptor.uuid = self.next_uuid
        self.next_uuid += 1
        return packet.track_descriptor

    def _event(self, track: int, time_s: float, kind: int) -> Any:
        packet = self.builder.add_packet()
        packet.timestamp = nanoseconds(time_s)
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        return packet
