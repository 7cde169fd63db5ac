"""A run of gangs as a Perfetto trace, for https://ui.perfetto.dev.

One process each for the cores (a track and a counter of memory a core class), the links (ICI, PCIe and the cards of
hosts, each way), the hosts' executors, the schedulers, the controllers and the clients; a track a resource that did
anything. A gang is a slice on all its core classes. Arrows lead from a call to its gangs' launches, and from a gang
over its transfers to who reads them. The arguments of a gang say what it waited for, until when, and behind whom it
stood.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.files import write_file
from graphopt_gym.simulator.gang.lowering import TASK_KINDS
from graphopt_gym.simulator.gang.timeline import GANG, TRANSFER, GangTimeline, Track
from graphopt_gym.simulator.gang.waiting import waits_for
from graphopt_gym.simulator.perfetto import TraceWriter, nanoseconds

_PROCESSES = {
    "cores": ("core",),
    "links": ("ici out", "ici in", "pcie up", "pcie down", "dcn out", "dcn in"),
    "hosts": ("executor",),
    "schedulers": ("scheduler",),
    "controllers": ("controller",),
    "clients": ("client",),
}


def write_gang_trace(timeline: GangTimeline, path: str | os.PathLike[str], *, name: str = "") -> Path:
    """Write a trace, whole or not at all; the usual ending is ``.pftrace``.

    Raises:
        InputError: the folder cannot be written.
    """
    write_file(path, gang_trace_bytes(timeline, name=name), make_folders=True)
    return Path(path)


def gang_trace_bytes(timeline: GangTimeline, *, name: str = "") -> bytes:
    """The content of a trace file. ``name`` goes before each process's name, e.g. the method's."""
    writer = TraceWriter(f"{name}: " if name else "")
    leaving, arriving = _flows(timeline)
    drawn: set[int] = set()
    tracks = timeline.tracks()
    for rank, (title, kinds) in enumerate(_PROCESSES.items()):
        mine = [one for one in tracks if one.kind in kinds]
        if mine:
            process = writer.process(rank + 1, title, rank)
            for one in mine:
                _track(writer, timeline, one, process, leaving, arriving, drawn)
    return writer.content()


def _track(
    writer: TraceWriter,
    timeline: GangTimeline,
    track: Track,
    process: int,
    leaving: dict[int, list[int]],
    arriving: dict[int, list[int]],
    drawn: set[int],
) -> None:
    uuid = writer.track(track.name, process)
    for task in track.tasks.tolist():
        if np.isnan(timeline.finish_s[task]):
            continue  # it never came to an end
        first = task not in drawn  # a task on several tracks has its arrows on the first
        drawn.add(task)
        label, category, arguments = _describe(timeline, task)
        writer.slice(
            uuid, timeline.start_s[task], timeline.finish_s[task], label, category, arguments,
            leaving.get(task, []) if first else [], arriving.get(task, []) if first else [],
        )  # fmt: skip
    if track.kind == "core":
        number = next(n for n in range(timeline.classes.num_classes) if timeline.resource(n) == track.name)
        counter = writer.track(f"memory of {track.name}", process, counts_bytes=True)
        for time_s, level in zip(*timeline.memory(number), strict=True):
            writer.counter(counter, time_s, int(level))


def _flows(timeline: GangTimeline) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Flows that leave tasks, and flows that end at them: one to each launch, and one to and from each transfer."""
    tables, kind = timeline.lowered.tables, timeline.lowered.kind
    before = np.repeat(np.arange(len(kind)), np.diff(tables.after_ptr))
    launch = TASK_KINDS.index("launch")
    shown = (kind[tables.after] == TRANSFER) | (kind[before] == TRANSFER) | (kind[tables.after] == launch)
    shown &= ~np.isnan(timeline.finish_s[before]) & ~np.isnan(timeline.finish_s[tables.after])
    leaving: dict[int, list[int]] = {}
    arriving: dict[int, list[int]] = {}
    pairs = zip(before[shown].tolist(), tables.after[shown].tolist(), strict=True)
    for number, (source, target) in enumerate(pairs, start=1):
        leaving.setdefault(source, []).append(number)
        arriving.setdefault(target, []).append(number)
    return leaving, arriving


def _describe(timeline: GangTimeline, task: int) -> tuple[str, str, dict[str, Any]]:
    """(name, category, arguments) of a task."""
    program, lowered = timeline.program, timeline.lowered
    kind, owner = int(lowered.kind[task]), int(lowered.owner[task])
    waited = nanoseconds(timeline.start_s[task]) - nanoseconds(timeline.ready_s[task])
    if kind == GANG:
        waits, cores = timeline.waits, timeline.gang_cores(task)
        behind = int(waits.behind[task])
        client = program.clients[int(program.client[task])].name
        return program.names[task], client, {
            "gang": task,
            "client": client,
            "call": int(program.call[task]),
            "slice": program.slices[int(program.slice[task])].name,
            "cores": f"{cores[0]}-{cores[-1]}",
            "output_bytes": int(program.output_bytes[task]),
            "temp_bytes": int(program.temp_bytes[task]),
            "launched_ns": nanoseconds(waits.launched_s[task]),
            "inputs_ns": nanoseconds(waits.inputs_s[task]),
            "waited_for": waits_for(timeline, task),
            "waited_ns": waited,
            "behind": program.names[behind] if behind >= 0 else "",
        }  # fmt: skip
    if kind == TRANSFER:
        number = task - int(np.searchsorted(lowered.kind, TRANSFER))
        return timeline.task(task), "transfer", {
            "bytes": int(lowered.transfer_bytes[number]),
            "from": program.slices[int(program.slice[owner])].name,
            "to": program.slices[int(lowered.place[task])].name,
            "waited_ns": waited,
        }  # fmt: skip
    return timeline.task(task), TASK_KINDS[kind], {"waited_ns": waited}
