"""Running a sharded program on a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_numbers, choice, flag
from graphopt_gym.hardware.machine import Machine, load_machine
from graphopt_gym.simulator.gang import engine
from graphopt_gym.simulator.gang.engine import (
    BEGIN,
    CHOOSE,
    LISTS,
    NUM_DONE,
    OVER_BYTES,
    OVER_CLASS,
    OVER_TIME,
    ROUND_ROBIN,
    STATIC,
    STRIDE,
    State,
)
from graphopt_gym.simulator.gang.lowering import CONTROLLERS, DISPATCH, lower
from graphopt_gym.simulator.gang.program import ShardedProgram
from graphopt_gym.simulator.gang.slices import classify, spread
from graphopt_gym.simulator.gang.timeline import GangTimeline, why_stuck
from graphopt_gym.units import format_bytes, format_seconds

POLICIES = ("fifo", "priority", "shortest", "stride", "round_robin", "lists")
_MODES = {"stride": STRIDE, "round_robin": ROUND_ROBIN, "lists": LISTS}


class GangSimulator:
    """A program on a machine, whose gangs may be ordered in one way after the other. G gangs, V slices, P core classes.

    Args:
        program: what is run.
        machine: a name, a path or a :class:`Machine`.
        first_core: int [V], the core that each slice begins on; :func:`spread` where left out.
        controllers: ``single``, ``multi`` or ``none``; see :mod:`graphopt_gym.simulator.gang.lowering`.
        dispatch: ``parallel`` or ``sequential``; there.
        back_pressure: whether what lacks memory waits for it; else a run is invalid where memory overflows.

    Raises:
        InputError: one line naming the field, the value and the fix.
    """

    def __init__(
        self,
        program: ShardedProgram,
        machine: str | Machine = "pathways_b",
        first_core: Sequence[int] | np.ndarray | None = None,
        *,
        controllers: str = "single",
        dispatch: str = "parallel",
        back_pressure: bool = True,
    ) -> None:
        self.program, self.machine = program, load_machine(machine)
        self.controllers = choice("controllers", controllers, CONTROLLERS)
        self.dispatch = choice("dispatch", dispatch, DISPATCH)
        self.back_pressure = flag("back_pressure", back_pressure)
        first = spread(program, self.machine) if first_core is None else first_core
        self.classes = classify(program, self.machine, first)
        self.lowered = lower(program, self.machine, self.classes, controllers, dispatch)

    @property
    def num_tasks(self) -> int:
        return len(self.lowered.kind)

    def run(
        self,
        policy: str = "fifo",
        priorities: Sequence[float] | np.ndarray | None = None,
        lists: Sequence[Sequence[int]] | None = None,
    ) -> GangTimeline:
        """Runs the program.

        Args:
            policy: which ready gang a core takes next. ``fifo``: the earliest ready. ``priority``: of the highest
                priority. ``shortest``: with the least work left from it to the end of its program. ``stride``: of the
                client with the least served for its weight. ``round_robin``: of the client served longest ago.
                ``lists``: strictly the next of the core's list, which can end in a deadlock.
            priorities: float [G], of ``priority``.
            lists: P of gangs, one for each core class (``classes.label`` says which), of ``lists``; see
                :meth:`lists_of_slices` and :meth:`lists_of_order`.

        Raises:
            InputError: an unknown policy, or one without what it needs; lists that do not hold each gang of their cores
                once.
        """
        state = self.begin(policy, priorities, lists)
        engine.advance(self.lowered.tables, state, BEGIN)
        return self.timeline(state)

    def begin(
        self,
        policy: str = "fifo",
        priorities: Sequence[float] | np.ndarray | None = None,
        lists: Sequence[Sequence[int]] | None = None,
    ) -> State:
        """A state before anything happened; arguments and errors as of :meth:`run`."""
        choice("policy", policy, POLICIES)
        for name, given, of in (("priorities", priorities, "priority"), ("lists", lists, "lists")):
            if (given is not None) != (policy == of):
                raise InputError(f"{name} goes with policy {of!r}, and policy is {policy!r}; give both or neither")
        level = None
        if policy == "priority":
            level = -check_numbers("priorities", priorities, (self.program.num_gangs,))
            if np.isnan(level).any():
                raise InputError(f"priorities[{int(np.isnan(level).argmax())}] is nan; give a number")
        elif policy == "shortest":
            level = self.program.remaining_s
        rows = self._rows(lists) if lists is not None else None
        mode = _MODES.get(policy, STATIC)
        return engine.new_state(
            self.lowered.tables, self.program.num_gangs, self.lowered.num_resources, mode, self.back_pressure, level,
            rows,
        )  # fmt: skip

    def choose(self) -> State:
        """A state for :meth:`step`, before anything happened: gangs start when the caller says."""
        return engine.new_state(
            self.lowered.tables, self.program.num_gangs, self.lowered.num_resources, CHOOSE, self.back_pressure
        )

    def step(self, state: State, choice: int = BEGIN) -> int:
        """Runs on from a state of :meth:`choose` to where a gang is to be chosen. Returns from how many; 0: the end.

        Args:
            state: changed in place; ``engine.copied(state)`` keeps one.
            choice: ``engine.BEGIN`` at first; then a gang of :meth:`candidates`, or ``engine.WAIT``: none before
                something else happens.

        Raises:
            InputError: a gang that cannot start now.
        """
        if choice >= 0 and not (choice < self.program.num_gangs and self.candidates(state)[choice]):
            raise InputError(f"choice is {choice}, a gang that cannot start now; give one of candidates(state)")
        return int(engine.advance(self.lowered.tables, state, choice))

    def candidates(self, state: State) -> np.ndarray:
        """bool [G]: the gangs that may start now: ready, with their cores free and memory for them."""
        mask = np.zeros(self.program.num_gangs, bool)
        engine.candidates(self.lowered.tables, state, mask)
        return mask

    def timeline(self, state: State) -> GangTimeline:
        """What happened up to a state, at the end of which nothing goes on."""
        classes, tables = self.classes, self.lowered.tables
        found = GangTimeline(
            self.program, self.machine, classes, self.lowered, state.ready_s, state.start_s, state.finish_s,
            state.busy_s, state.peak_bytes, state.peak_s, state.lacked, reasons=(), deadlock=(),
        )  # fmt: skip
        reasons: list[str] = []
        cycle: tuple[int, ...] = ()
        over = tables.resident_bytes - tables.capacity_bytes
        time_s, more, at = state.clock[OVER_TIME], state.clock[OVER_BYTES], int(state.clock[OVER_CLASS])
        if (over > 0).any():
            time_s, more, at = 0.0, over.max(), int(over.argmax())
        if at >= 0:
            capacity = format_bytes(int(tables.capacity_bytes[at]))
            reasons.append(
                f"out of memory: each of {classes.label(at)} held {format_bytes(int(more))} more than its {capacity} "
                f"at {format_seconds(time_s)}"
            )
        if state.counts[NUM_DONE] < self.num_tasks:
            stuck = why_stuck(found, state, (state.list_ptr, state.list) if state.mode[0] == LISTS else None)
            reasons.append(stuck.reason)
            cycle = stuck.cycle
        return replace(found, reasons=tuple(reasons), deadlock=cycle)

    # ---- lists

    def lists_of_order(self, order: Sequence[int] | np.ndarray) -> list[list[int]]:
        """Lists for each core class from one order of all gangs: consistent, so without deadlock where the order is one
        of the program's.

        Raises:
            InputError: not every gang once.
        """
        given = np.asarray(order)
        gangs = self.program.num_gangs
        if given.shape != (gangs,) or given.dtype.kind not in "iu" or not (np.sort(given) == np.arange(gangs)).all():
            raise InputError(f"order must hold each of the {gangs} gangs once")
        return [given[np.isin(given, members)].tolist() for members in self._members]

    def lists_of_slices(self, orders: Mapping[int, Sequence[int]] | Sequence[Sequence[int]]) -> list[list[int]]:
        """Lists for each core class from one order of gangs for each slice, such as a pipeline's.

        Raises:
            InputError: two slices share cores, so that their orders leave it open whose turn it is.
        """
        by_slice = dict(orders) if isinstance(orders, Mapping) else dict(enumerate(orders))
        found: list[list[int]] = []
        for number in range(self.classes.num_classes):
            slices = [
                v
                for v in range(self.program.num_slices)
                if number in self.classes.slice_class[self.classes.slice_ptr[v] : self.classes.slice_ptr[v + 1]]
            ]
            if len(slices) > 1:
                names = " and ".join(repr(self.program.slices[v].name) for v in slices[:2])
                raise InputError(f"slices {names} share {self.classes.label(number)}; give lists of their core classes")
            found.append([int(gang) for gang in by_slice.get(slices[0], ())])
        return found

    @property
    def _members(self) -> list[np.ndarray]:
        """Gangs of each core class."""
        tables, gangs = self.lowered.tables, self.program.num_gangs
        owner = np.repeat(np.arange(gangs), np.diff(tables.resource_ptr[: gangs + 1]))
        at = tables.resource[: len(owner)]
        order = np.argsort(at, kind="stable")
        bounds = np.searchsorted(at[order], np.arange(self.classes.num_classes + 1))
        return [owner[order[a:b]] for a, b in pairwise(bounds)]

    def _rows(self, lists: Any) -> tuple[np.ndarray, np.ndarray]:
        if len(lists) != self.classes.num_classes:
            raise InputError(
                f"lists has {len(lists)} entries for {self.classes.num_classes} core classes; give one each"
            )
        for number, (given, members) in enumerate(zip(lists, self._members, strict=True)):
            if sorted(int(gang) for gang in given) != members.tolist():
                wrong = sorted(set(map(int, given)) ^ set(members.tolist()))
                named = self.program.names[wrong[0]] if wrong and 0 <= wrong[0] < self.program.num_gangs else wrong[:1]
                raise InputError(
                    f"lists[{number}] of {self.classes.label(number)} must hold each of the {len(members)} gangs there "
                    f"once; look at {named!r}"
                )
        ptr = np.cumsum([0, *(len(given) for given in lists)]).astype(np.int64)
        return ptr, np.concatenate([np.asarray(given, np.int32) for given in lists])


def simulate_gangs(program: ShardedProgram, machine: str | Machine = "pathways_b", **options: Any) -> GangTimeline:
    """One run: arguments of :class:`GangSimulator`, and ``policy``, ``priorities`` and ``lists`` of its ``run``."""
    asked = {name: options.pop(name) for name in ("policy", "priorities", "lists") if name in options}
    return GangSimulator(program, machine, **options).run(**asked)
