"""Who waits for whom: what idle cores wait for, and which clients stand behind which."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from graphopt_gym.errors import printable, shortened
from graphopt_gym.simulator.gang.lowering import TASK_KINDS
from graphopt_gym.simulator.gang.timeline import GANG, TRANSFER, GangTimeline
from graphopt_gym.units import format_seconds

MOST_ROWS = 40
_ARRIVAL, _CONTROL = "calls to arrive", "the control plane"


@dataclass(frozen=True)
class Idle:
    """What the cores of a class did, in seconds up to the end of the run."""

    cores: str
    computed_s: float
    done_s: float  # after its last gang
    waited_s: dict[str, float]  # by what the next gang waited for last, the longest first


def idle_cores(timeline: GangTimeline) -> list[Idle]:
    """Of each core class. The time between two gangs is put down to what the second one waited for last: its launch, a
    gang or a transfer that it reads, memory, its turn, or other cores of its slice."""
    rows = []
    for number in range(timeline.classes.num_classes):
        waited: dict[str, float] = {}
        free_s = 0.0
        for gang in timeline.resource_tasks(number).tolist():
            gap_s = float(timeline.start_s[gang]) - free_s
            if gap_s > 0:
                cause = waits_for(timeline, gang)
                waited[cause] = waited.get(cause, 0.0) + gap_s
            if np.isnan(timeline.finish_s[gang]):
                break
            free_s = float(timeline.finish_s[gang])
        done_s = timeline.makespan_s - free_s if timeline.makespan_s > free_s else 0.0  # also where there was no end
        ordered = dict(sorted(waited.items(), key=lambda item: -item[1]))
        rows.append(Idle(timeline.classes.label(number), float(timeline.class_busy_s[number]), done_s, ordered))
    return rows


def waits_for(timeline: GangTimeline, gang: int) -> str:
    """What a gang waited for last before it started, for people."""
    waits, program = timeline.waits, timeline.program
    if waits.start_s[gang] > timeline.ready_s[gang]:
        if waits.lacked[gang] >= 0:
            return f"memory of {timeline.classes.label(int(waits.lacked[gang]))}"
        behind = int(waits.behind[gang])
        if behind < 0:
            return "its turn"
        return f"its turn, behind {_whose(timeline, behind)}"
    last = int(waits.last[gang])
    if last < 0:
        return _ARRIVAL
    kind, owner = int(timeline.lowered.kind[last]), int(timeline.lowered.owner[last])
    if kind == GANG:
        return f"gangs on {program.slices[int(program.slice[owner])].name}"
    if kind == TRANSFER:
        return f"transfers from {program.slices[int(program.slice[owner])].name}"
    return _CONTROL


def _whose(timeline: GangTimeline, gang: int) -> str:
    program = timeline.program
    if len(program.clients) > 1:
        return program.clients[int(program.client[gang])].name
    return f"gangs on {program.slices[int(program.slice[gang])].name}"


def clients_behind(timeline: GangTimeline) -> np.ndarray:
    """float64 [C, C]: core-seconds that gangs of each client (row) were ready and stood behind one of each other
    (column): the one on their cores whose finish let them start."""
    program, waits = timeline.program, timeline.waits
    count, gangs = len(program.clients), np.flatnonzero(waits.behind >= 0)
    waited_s = (waits.start_s - timeline.ready_s[: program.num_gangs])[gangs]
    cells = program.client[gangs].astype(np.int64) * count + program.client[waits.behind[gangs]]
    cores = timeline.lowered.tables.cores[gangs]
    return np.bincount(cells, waited_s * cores, count * count).reshape(count, count)


def control_s(timeline: GangTimeline) -> dict[str, float]:
    """Seconds that the control plane's processors worked, by kind of task, all of them together."""
    kind = timeline.lowered.kind
    spent = np.nan_to_num(timeline.finish_s - timeline.start_s)
    totals = np.bincount(kind, spent, len(TASK_KINDS))
    return {name: float(total) for name, total in zip(TASK_KINDS, totals, strict=True) if total and name not in _RUNS}


_RUNS = (TASK_KINDS[GANG], TASK_KINDS[TRANSFER])


def waiting_lines(timeline: GangTimeline) -> list[str]:
    """Lines for people: each core class and what it waited for, each client and whom it stood behind."""
    lines = [shortened(printable(reason), 400) for reason in timeline.reasons]
    rows = idle_cores(timeline)
    for row in rows[:MOST_ROWS]:
        waited = ", ".join(f"{cause} {format_seconds(time_s)}" for cause, time_s in list(row.waited_s.items())[:5])
        waited = f"; waited for {waited}" if waited else ""
        done = f"; had nothing left for {format_seconds(row.done_s)}" if row.done_s else ""
        lines.append(printable(f"{row.cores} computed {format_seconds(row.computed_s)}{waited}{done}"))
    if len(rows) > MOST_ROWS:
        lines.append(f"… and {len(rows) - MOST_ROWS} more classes of cores")
    names = [one.name for one in timeline.program.clients]
    behind = clients_behind(timeline)
    if len(names) > 1:
        for client, name in enumerate(names[:MOST_ROWS]):
            order = [
                other for other in np.argsort(-behind[client], kind="stable").tolist() if behind[client, other] > 0
            ]
            said = ", ".join(f"{names[other]} {format_seconds(behind[client, other])}" for other in order[:5])
            if said:
                lines.append(printable(f"{name} stood behind (core-seconds): {said}"))
    return lines


def waiting_html(timeline: GangTimeline) -> str:
    """The same as markup: a table of core classes, and, of several clients, one of who stood behind whom."""
    rows = idle_cores(timeline)
    parts = [f"<p>{_text(reason, 400)}</p>" for reason in timeline.reasons]
    head = "".join(f"<th>{title}</th>" for title in ("cores", "computed", "waited for", "had nothing left"))
    parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>")
    for row in rows[:MOST_ROWS]:
        waited = "<br>".join(f"{_text(cause)}: {format_seconds(time_s)}" for cause, time_s in row.waited_s.items())
        row_cells = (_text(row.cores), format_seconds(row.computed_s), waited, format_seconds(row.done_s))
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row_cells) + "</tr>")
    parts.append("</tbody></table>")
    if len(rows) > MOST_ROWS:
        parts.append(f"<p>… and {len(rows) - MOST_ROWS} more classes of cores</p>")
    clients = timeline.program.clients[:MOST_ROWS]
    if len(clients) > 1:
        behind = clients_behind(timeline)
        head = "".join(f"<th>{_text(one.name)}</th>" for one in clients)
        parts.append(f"<table><thead><tr><th>core-seconds behind</th>{head}</tr></thead><tbody>")
        for number, one in enumerate(clients):
            cells = "".join(f"<td>{format_seconds(behind[number, other])}</td>" for other in range(len(clients)))
            parts.append(f"<tr><td>{_text(one.name)}</td>{cells}</tr>")
        parts.append("</tbody></table>")
    return "".join(parts)


def _text(text: str, limit: int = 120) -> str:
    return escape(shortened(printable(text), limit))
