"""The trace is read with the classes of the ``perfetto`` package: its trace processor downloads a program."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.report.files import write_report
from graphopt_gym.report.perfetto import trace_bytes, write_trace
from tests.report.cases import make_timeline


class Trace:
    """Slices and counters of a trace by track, as the trace processor reads them: sorted by time, stable."""

    def __init__(self, content: bytes) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

        trace = Trace()
        assert trace.ParseFromString(content) == len(content)
        self.tracks = {
            p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
        }
        self.slices = defaultdict(list)  # track uuid -> (start, end, begin event)
        self.counters = defaultdict(list)
        events = [packet for packet in trace.packet if packet.HasField("track_event")]
        assert {packet.trusted_packet_sequence_id for packet in events} == {1}
        open_slices = defaultdict(list)
        for packet in sorted(events, key=lambda packet: packet.timestamp):
            event = packet.track_event
            assert event.track_uuid in self.tracks
            if event.type == TrackEvent.TYPE_SLICE_BEGIN:
                open_slices[event.track_uuid].append((packet.timestamp, event))
            elif event.type == TrackEvent.TYPE_SLICE_END:
                start, begin = open_slices[event.track_uuid].pop()  # raises where an end has no begin
                self.slices[event.track_uuid].append((start, packet.timestamp, begin))
            else:
                assert event.type == TrackEvent.TYPE_COUNTER
                self.counters[event.track_uuid].append((packet.timestamp, event.counter_value))
        assert not any(open_slices.values())

    def named(self, process: str, track: str) -> int:
        """The uuid of a track of a process."""
        parent = next(u for u, d in self.tracks.items() if d.process.process_name == process)
        return next(u for u, d in self.tracks.items() if d.parent_uuid == parent and d.name == track)


def arguments(event) -> dict[str, object]:
    return {a.name: a.string_value if a.HasField("string_value") else a.int_value for a in event.debug_annotations}


@pytest.fixture(scope="module")
def trace(timeline) -> Trace:
    return Trace(trace_bytes(timeline))


def test_trace__has_a_slice_for_each_kernel_with_its_times_and_arguments(timeline, trace):
    tasks, graph = timeline.tasks, timeline.graph
    seen = {}
    for device in range(2):
        for start, end, event in trace.slices[trace.named(f"device {device}: toy", "kernels")]:
            seen[arguments(event)["op"]] = (device, start, end, event)
    runs = np.flatnonzero(~tasks.is_source)
    assert sorted(seen) == tasks.first_op[runs].tolist()
    for task in runs.tolist():
        op = int(tasks.first_op[task])
        device, start, end, event = seen[op]
        assert device == timeline.task_device[task]
        assert (start, end) == (round(timeline.start_s[task] * 1e9), round(timeline.finish_s[task] * 1e9))
        assert event.name == graph.kinds[graph.kind[op]]
        assert arguments(event)["flops"] == graph.flops[op]
        assert arguments(event)["bytes_written"] == graph.bytes_written[op]


def test_trace__has_a_slice_for_each_transfer(timeline, trace):
    rows = [
        (int(link), start, end, arguments(event))
        for link in (0, 1)
        for start, end, event in trace.slices[trace.named("links", timeline.cluster.links[link].name)]
    ]
    assert len(rows) == len(timeline.transfers)
    assert sum(facts["bytes"] for *_, facts in rows) == timeline.transfer_bytes.sum()
    for link, start, end, facts in rows:
        assert timeline.cluster.link_of[facts["from_device"], facts["to_device"]] == link
        assert end >= start
        assert facts["waited_ns"] >= 0


def test_trace__slices_of_a_track_do_not_overlap(trace):
    for slices in trace.slices.values():
        ordered = sorted(slices, key=lambda row: row[:2])
        assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def test_trace__flows_lead_from_producer_over_transfer_to_first_reader(timeline, trace):
    ends, starts, through = {}, {}, {}
    for uuid, slices in trace.slices.items():
        is_link = trace.tracks[trace.tracks[uuid].parent_uuid].process.process_name == "links"
        for start, end, event in slices:
            for flow in event.flow_ids:
                (through if is_link else starts)[flow] = (start, end, event)
            for flow in event.terminating_flow_ids:
                ends[flow] = (start, end, event)
    assert len(through) == len(timeline.transfers)
    assert set(ends) == set(through)
    assert set(starts) <= set(through)
    assert starts
    tasks = timeline.tasks
    for number, (tensor, _, target, *_) in enumerate(timeline.transfers.tolist()):
        producer, reader = int(tasks.tensor_task[int(tensor)]), arguments(ends[number + 1][2])["op"]
        if number + 1 in starts:
            assert arguments(starts[number + 1][2])["op"] == tasks.first_op[producer]
        else:
            assert tasks.is_source[producer]  # sources run nowhere: no slice to start from
        assert timeline.op_device[reader] == target
        assert through[number + 1][1] <= ends[number + 1][0]


def test_trace__memory_counter_peaks_at_the_peak(timeline, trace):
    for device in range(2):
        rows = trace.counters[trace.named(f"device {device}: toy", "memory")]
        assert max(level for _, level in rows) == timeline.peak_bytes[device]
        assert all(before[0] <= after[0] for before, after in pairwise(rows))


def test_trace__fused_kernel_is_one_slice_with_the_work_of_its_members():
    fused = make_timeline(300, 2, fuse=True)
    groups, size = np.unique(fused.tasks.fused[fused.tasks.fused >= 0], return_counts=True)
    assert (size > 1).any()
    trace = Trace(trace_bytes(fused, name="method"))
    slices = [
        row for device in range(2) for row in trace.slices[trace.named(f"method: device {device}: toy", "kernels")]
    ]
    by_op = {arguments(event)["op"]: event for _, _, event in slices}
    assert len(by_op) == (~fused.tasks.is_source).sum()
    for group in groups[size > 1].tolist():
        members = np.flatnonzero(fused.tasks.fused == group)
        first = int(fused.tasks.first_op[fused.tasks.task_of_op[members[0]]])
        assert arguments(by_op[first])["flops"] == fused.graph.flops[members].sum()


def test_write_trace__same_timeline__same_bytes(timeline, tmp_path):
    path = write_trace(timeline, tmp_path / "a.pftrace")
    assert path.read_bytes() == trace_bytes(timeline)
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_trace(timeline, blocker / "a.pftrace")


def test_report__writes_the_trace_of_a_problem_that_makes_its_own(monkeypatch, tmp_path):
    problem = gg.make_problem("Placement-v0", graph=layered_dag(20, 3, seed=1), cluster="v100x2")
    solution = gg.solve(problem, "heft")
    solution = replace(solution, outcome=replace(solution.outcome, timeline=None))
    without = write_report(solution, tmp_path, "none")
    monkeypatch.setattr(type(problem), "trace_file", lambda self, decision: b"trace")
    files = write_report(solution, tmp_path, "own")
    assert [path.suffix for path in (*without, *files)] == [".html", ".pftrace", ".html"]
    assert files[0].read_bytes() == b"trace"
