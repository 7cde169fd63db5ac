"""What gangs, transfers and the control plane did, and who waited for whom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.simulator.gang.engine import ASIDE, DONE, LISTS, READY, RUNNING, State
from graphopt_gym.simulator.gang.lowering import RESOURCES, TASK_KINDS, Lowered
from graphopt_gym.units import format_bytes

if TYPE_CHECKING:
    from graphopt_gym.hardware.machine import Machine
    from graphopt_gym.simulator.gang.program import ShardedProgram
    from graphopt_gym.simulator.gang.slices import Classes

GANG, TRANSFER = TASK_KINDS.index("gang"), TASK_KINDS.index("transfer")


class Waits(NamedTuple):
    """Why each gang did not start earlier. G gangs.

    A gang waits for its launch until ``launched_s`` and for its inputs until ``inputs_s``; from the later of the two
    on it waits for its turn, its cores or memory.
    """

    launched_s: np.ndarray  # float64 [G]: the last launch reached its cores; 0 without a control plane
    inputs_s: np.ndarray  # float64 [G]: the last input was there
    start_s: np.ndarray  # float64 [G]
    last: np.ndarray  # int32 [G]: the task that it waited for last before it was ready; -1: none
    behind: np.ndarray  # int32 [G]: the gang on its cores whose finish let it start; -1: it started when ready
    lacked: np.ndarray  # int32 [G]: the core class whose memory it lacked first; -1: none


class Track(NamedTuple):
    """A resource that did something."""

    kind: str  # one of RESOURCES
    name: str
    tasks: np.ndarray  # int64, in order of start


@dataclass(frozen=True, eq=False)
class GangTimeline:
    """A simulated run. G gangs, T tasks, X transfers, P core classes, R resources.

    Times of what did not happen (after a deadlock) are nan.
    """

    program: ShardedProgram
    machine: Machine
    classes: Classes
    lowered: Lowered
    ready_s: np.ndarray  # float64 [T]
    start_s: np.ndarray  # float64 [T]
    finish_s: np.ndarray  # float64 [T]
    busy_s: np.ndarray  # float64 [R]
    peak_bytes: np.ndarray  # int64 [P], of each core of a class
    peak_s: np.ndarray  # float64 [P]
    lacked: np.ndarray  # int32 [T]
    reasons: tuple[str, ...]  # empty: valid
    deadlock: tuple[int, ...]  # the tasks around a cycle of waits; empty: none

    @property
    def valid(self) -> bool:
        return not self.reasons

    @cached_property
    def makespan_s(self) -> float:
        """From time 0 to the last finish of a gang or a transfer; nan after a deadlock."""
        last = self.finish_s[self.lowered.kind <= TRANSFER]
        return float(last.max()) if len(last) else 0.0

    @cached_property
    def gang_start_s(self) -> np.ndarray:
        """float64 [G]"""
        return self.start_s[: self.program.num_gangs]

    @cached_property
    def gang_finish_s(self) -> np.ndarray:
        """float64 [G]"""
        return self.finish_s[: self.program.num_gangs]

    @cached_property
    def transfers(self) -> np.ndarray:
        """float64 [X, 6]: producer, slice that receives, bytes, request, start, finish."""
        rows = np.flatnonzero(self.lowered.kind == TRANSFER)
        columns = (self.lowered.owner[rows], self.lowered.place[rows], self.lowered.transfer_bytes, self.ready_s[rows],
                   self.start_s[rows], self.finish_s[rows])  # fmt: skip
        return np.stack([np.asarray(one, np.float64) for one in columns], axis=1)

    @cached_property
    def class_busy_s(self) -> np.ndarray:
        """float64 [P]: seconds that the cores of each class computed."""
        return self.busy_s[: self.classes.num_classes]

    @property
    def utilisation(self) -> float:
        """Share of the cores in slices x makespan that computed."""
        size = self.classes.class_size
        whole = size.sum() * self.makespan_s
        return float((self.class_busy_s * size).sum() / whole) if whole else 0.0

    def resource(self, number: int) -> str:
        """What a resource is called: ``cores 0-31``, ``dcn out of hosts of core 8``, ``scheduler of island 0``."""
        name = next(one for one in reversed(RESOURCES) if self.lowered.offsets[one] <= number)
        index = number - self.lowered.offsets[name]
        if name == "core":
            return self.classes.label(index)
        if name in ("client", "controller"):
            return f"{name} {self.program.clients[index].name}"
        if name == "scheduler":
            return f"scheduler of island {index}"
        if name in ("dcn out", "dcn in", "executor"):
            count = int(self.classes.host_size[index])
            first = int(self.machine.core_host[self.classes.host_core[index]])
            return f"{name} of {f'{count} hosts from host' if count > 1 else 'host'} {first}"
        return f"{name} of {self.classes.label(index)}"

    def resource_tasks(self, number: int) -> np.ndarray:
        """int64: the tasks of a resource that started, in order of start."""
        ptr, tasks = self._by_resource
        return tasks[ptr[number] : ptr[number + 1]]

    @cached_property
    def _by_resource(self) -> tuple[np.ndarray, np.ndarray]:
        tables = self.lowered.tables
        owner = np.repeat(np.arange(len(self.start_s)), np.diff(tables.resource_ptr))
        ran = ~np.isnan(self.start_s[owner])
        owner, at = owner[ran], tables.resource[ran]
        order = np.lexsort((self.finish_s[owner], self.start_s[owner], at))
        ptr = np.zeros(self.lowered.num_resources + 1, np.int64)
        np.cumsum(np.bincount(at, minlength=self.lowered.num_resources), out=ptr[1:])
        return ptr, owner[order]

    def tracks(self) -> list[Track]:
        """What did anything, each with its tasks: core classes, links, hosts, schedulers, controllers and clients."""
        starts = [*self.lowered.offsets.values(), self.lowered.num_resources]
        found = []
        for kind, begin, end in zip(RESOURCES, starts[:-1], starts[1:], strict=True):
            for number in range(begin, end):
                tasks = self.resource_tasks(number)
                if len(tasks):
                    found.append(Track(kind, self.resource(number), tasks))
        return found

    def memory(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(times float64, bytes int64): a step function of what each core of a class holds from each time on.

        Found from starts and finishes, apart from the engine's own count. What never started holds nothing; what never
        finished is held to the end.
        """
        tables = self.lowered.tables
        owner = np.repeat(np.arange(len(self.start_s)), np.diff(tables.memory_ptr))
        rows = np.flatnonzero((tables.memory_class == number) & ~np.isnan(self.start_s[owner]))
        reader = np.repeat(np.arange(len(self.start_s)), np.diff(tables.read_ptr))
        ends = np.where(np.isnan(self.finish_s), np.inf, self.finish_s)
        freed = ends.copy()
        np.maximum.at(freed, tables.read, ends[reader])
        task, kept, temp = owner[rows], tables.keep_bytes[rows], tables.temp_bytes[rows]
        times = np.concatenate([[0.0], self.start_s[task], self.finish_s[task], freed[task]])
        change = np.concatenate([[tables.resident_bytes[number]], kept + temp, -temp, -kept])
        later = np.isfinite(times) & (change != 0)
        later[0] = True
        times, change = times[later], change[later]
        order = np.lexsort((change, times))  # at one instant what is freed comes first
        level, times = np.cumsum(change[order]), times[order]
        last = np.append(times[1:] != times[:-1], True)
        return times[last], level[last]

    def task(self, number: int) -> str:
        """What a task is called."""
        kind, owner = TASK_KINDS[self.lowered.kind[number]], int(self.lowered.owner[number])
        place, names = int(self.lowered.place[number]), self.program.names
        if kind == "gang":
            return names[owner]
        if kind == "transfer":
            return f"transfer of {names[owner]} to {self.program.slices[place].name}"
        if kind in ("scheduler", "launch"):
            return f"{kind} of {names[owner]}"
        return f"call {owner} in its {'host' if kind == 'python' else kind}"

    def gang_cores(self, gang: int) -> np.ndarray:
        """int64: the cores of a gang."""
        at = int(self.program.slice[gang])
        first = int(self.classes.first_core[at])
        return np.arange(first, first + self.program.slices[at].cores)

    def shares(self, begin_s: float, end_s: float) -> np.ndarray:
        """float64 [C]: core-seconds that each client computed between two times."""
        tables, gangs = self.lowered.tables, self.program.num_gangs
        start, finish = self.gang_start_s, self.gang_finish_s
        inside = np.clip(np.minimum(finish, end_s) - np.maximum(start, begin_s), 0.0, None)
        inside = np.where(np.isnan(inside), 0.0, inside) * tables.cores[:gangs]
        return np.bincount(self.program.client, inside, len(self.program.clients))

    @cached_property
    def waits(self) -> Waits:
        """Why each gang did not start earlier."""
        tables, gangs = self.lowered.tables, self.program.num_gangs
        before = np.repeat(np.arange(len(self.start_s)), np.diff(tables.after_ptr))
        to_gang = tables.after < gangs
        source, gang = before[to_gang], tables.after[to_gang]
        there = self.finish_s[source] + tables.delay_s[to_gang]
        control = self.lowered.kind[source] > TRANSFER
        launched, inputs = np.zeros(gangs), np.zeros(gangs)
        np.fmax.at(launched, gang[control], there[control])
        np.fmax.at(inputs, gang[~control], there[~control])
        last = np.full(gangs, -1, np.int32)
        order = np.argsort(there, kind="stable")
        last[gang[order]] = source[order]
        behind = np.full(gangs, -1, np.int32)
        of_gangs = int(tables.resource_ptr[gangs])
        owner = np.repeat(np.arange(gangs), np.diff(tables.resource_ptr[: gangs + 1]))
        at = tables.resource[:of_gangs]
        ran = (at < self.classes.num_classes) & ~np.isnan(self.start_s[owner])
        owner, at = owner[ran], at[ran]
        order = np.lexsort((self.finish_s[owner], self.start_s[owner], at))
        owner, at = owner[order], at[order]
        follows = (at[1:] == at[:-1]) & (self.start_s[owner[1:]] == self.finish_s[owner[:-1]])
        follows &= self.start_s[owner[1:]] > self.ready_s[owner[1:]]
        behind[owner[1:][follows]] = owner[:-1][follows]
        return Waits(launched, inputs, self.gang_start_s, last, behind, self.lacked[:gangs])

    def critical_path(self) -> list[int]:
        """Tasks from the first to the last, each of which the next waited for last."""
        waits, gangs, tables = self.waits, self.program.num_gangs, self.lowered.tables
        before = np.repeat(np.arange(len(self.start_s)), np.diff(tables.after_ptr))
        there = self.finish_s[before] + tables.delay_s
        order = np.argsort(there, kind="stable")
        last = np.full(len(self.start_s), -1, np.int64)
        last[tables.after[order]] = before[order]
        ends = np.where(self.lowered.kind <= TRANSFER, self.finish_s, -1.0)
        at = int(np.nanargmax(ends))
        path = [at]
        while True:
            behind = int(waits.behind[at]) if at < gangs else -1
            at = behind if behind >= 0 else int(last[at])
            if at < 0:
                return path[::-1]
            path.append(at)


class Stuck(NamedTuple):
    """Why a run came to no end."""

    reason: str
    cycle: tuple[int, ...]  # tasks, each waiting for the next one, and the last for the first; empty: no cycle


def why_stuck(timeline: GangTimeline, state: State, lists: Any) -> Stuck:
    """The cycle of waits that a run without an end is in, with gangs and cores; or what can never fit.

    Args:
        timeline: of the run.
        state: where it stopped.
        lists: (pointers, gangs) of core classes, where gangs take turns by lists.
    """
    tables, classes = timeline.lowered.tables, timeline.classes
    total = len(state.status)
    before = np.repeat(np.arange(total), np.diff(tables.after_ptr))
    back = np.argsort(tables.after, kind="stable")
    back_ptr = np.r_[0, np.cumsum(np.bincount(tables.after, minlength=total))]
    readers_order = np.argsort(tables.read, kind="stable")
    reader = np.repeat(np.arange(total), np.diff(tables.read_ptr))
    reader_ptr = np.r_[0, np.cumsum(np.bincount(tables.read, minlength=total))]
    memory_owner = np.repeat(np.arange(total), np.diff(tables.memory_ptr))

    @cache
    def holders(at: int) -> list[int]:
        """Unfinished tasks that have to read what is held in a class."""
        kept = memory_owner[(tables.memory_class == at) & (tables.keep_bytes > 0)]
        found: list[int] = []
        for one in kept.tolist():
            if state.status[one] in (RUNNING, DONE) and state.left[one] > 0:
                rows = reader[readers_order[reader_ptr[one] : reader_ptr[one + 1]]]
                found += [int(other) for other in rows if state.status[other] != DONE]
        return found

    def lacks(task: int) -> int:
        """The class whose memory a task lacks; -1: none."""
        if state.status[task] != READY or state.lacks[task] < 0:
            return int(state.lacks[task])
        for row in range(tables.memory_ptr[task], tables.memory_ptr[task + 1]):  # in its turn all along: as it is now
            at, need = int(tables.memory_class[row]), tables.keep_bytes[row] + tables.temp_bytes[row]
            if state.used_bytes[at] + need > tables.capacity_bytes[at]:
                return at
        return -1

    def waits(task: int) -> list[tuple[int, str]]:
        """(task that it waits for, why)."""
        status = int(state.status[task])
        if status not in (READY, ASIDE):
            rows = before[back[back_ptr[task] : back_ptr[task + 1]]].tolist()
            return [(one, "for what it reads or is launched by,") for one in rows if state.status[one] != DONE]
        at = lacks(task)
        if at >= 0:
            return [(one, f"for memory of {classes.label(at)} that is held for") for one in holders(at)]
        if int(state.mode[0]) != LISTS or lists is None:
            return []
        found = []
        for at in tables.resource[tables.resource_ptr[task] : tables.resource_ptr[task + 1]].tolist():
            if at < classes.num_classes and state.place[at] < lists[0][at + 1]:
                first = int(lists[1][state.place[at]])
                if first != task:
                    found.append((first, f"for its turn on {classes.label(at)} behind"))
        return found

    unfinished = np.flatnonzero(state.status != DONE).tolist()
    seen: set[int] = set()
    for root in unfinished:
        path: list[int] = []
        whys: list[str] = []
        stack = [(root, iter(waits(root)))] if root not in seen else []
        if stack:
            path.append(root)
            seen.add(root)
        on_path = {root}
        while stack:
            step = next(stack[-1][1], None)
            if step is None:
                stack.pop()
                on_path.discard(path.pop())
                if whys:
                    whys.pop()
                continue
            other, why = step
            if other in on_path:
                begin = path.index(other)
                cycle, causes = path[begin:], [*whys[begin:], why]
                said = [
                    f"{_placed(timeline, one)} waits {cause} {timeline.task(after)}"
                    for one, cause, after in zip(cycle, causes, [*cycle[1:], cycle[0]], strict=True)
                ]
                shown = said[:8] + ([f"… ({len(said) - 8} more)"] if len(said) > 8 else [])
                return Stuck(f"deadlock: {'; '.join(shown)}", tuple(cycle))
            if other not in seen:
                seen.add(other)
                on_path.add(other)
                path.append(other)
                whys.append(why)
                stack.append((other, iter(waits(other))))
    for task in unfinished:
        at = lacks(task)
        if at >= 0:
            rows = slice(int(tables.memory_ptr[task]), int(tables.memory_ptr[task + 1]))
            own = tables.memory_class[rows] == at
            need = int((tables.keep_bytes[rows][own] + tables.temp_bytes[rows][own]).sum())
            left = int(tables.capacity_bytes[at] - state.used_bytes[at])
            return Stuck(
                f"out of memory: {timeline.task(task)} needs {format_bytes(need)} on each of "
                f"{classes.label(at)}, where {format_bytes(left)} of "
                f"{format_bytes(int(tables.capacity_bytes[at]))} can ever be free",
                (),
            )
    return Stuck(f"{len(unfinished)} tasks can never start, {timeline.task(unfinished[0])} among them", ())


def _placed(timeline: GangTimeline, task: int) -> str:
    name = timeline.task(task)
    if timeline.lowered.kind[task] != GANG:
        return name
    cores = timeline.gang_cores(task)
    return f"{name} (cores {cores[0]}-{cores[-1]})" if len(cores) > 1 else f"{name} (core {cores[0]})"
