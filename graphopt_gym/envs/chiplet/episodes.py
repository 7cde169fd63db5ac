"""Partitions in progress: the one implementation behind the scalar and the vector environment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.compiled import form
from graphopt_gym.envs.chiplet.corrector import Correction, check_probabilities
from graphopt_gym.envs.chiplet.instances import ChipletRoster, Instance, memory_reasons
from graphopt_gym.envs.chiplet.propagator import make_states
from graphopt_gym.envs.chiplet.rendering import Load, describe, load_of, pipeline_figure
from graphopt_gym.envs.chiplet.walk import ONE_SHOT, STEP, begin_walks, end_walk, new_walk, step_walks
from graphopt_gym.envs.core.episodes import Episodes, Result, one_shot_masks
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.simulator.simulator import on_all_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.problem import Outcome

MODES = ("fix", "sample", "step")


def make_episodes(roster: ChipletRoster, count: int, info: str = "full", mode: str = "fix") -> ChipletEpisodes:
    """Episodes of a mode. Raises InputError for one that is not known."""
    choice("mode", mode, MODES)
    return StepEpisodes(roster, count, info) if mode == "step" else OneShotEpisodes(roster, count, info, mode)


class ChipletEpisodes(Episodes[Instance]):
    """``count`` episodes on instances of a roster; see the environment for what is asked and told."""

    roster: ChipletRoster

    def __init__(self, roster: ChipletRoster, count: int, info: str = "full") -> None:
        super().__init__(roster, count, info)
        self.partition = np.full((count, roster.max_ops), -1, np.int32)  # -1: undecided, or padding
        self.changed = np.zeros((count, roster.max_ops), np.bool_)  # ops that did not get the chip that was asked for
        self.cost = np.zeros(count)
        self.valid = np.zeros(count, np.bool_)
        self.reasons: list[tuple[str, ...]] = [()] * count
        self.throughput = np.zeros(count)

    def _begin(self, rows: np.ndarray) -> None:
        self.partition[rows] = -1

    def _end(self, row: int, decision: np.ndarray, changed: np.ndarray, reason: str = "") -> None:
        """Price a whole partition, and keep what the last info tells.

        Args:
            changed: bool [N].
            reason: why the corrector found nothing, where it did not.
        """
        instance = self.instance(row)
        cost, valid = instance.problem.costs(decision[None])
        self.partition[row, : instance.num_ops] = decision
        self.changed[row] = False
        self.changed[row, : instance.num_ops] = changed
        self.cost[row], self.valid[row] = cost[0], valid[0]
        self.reasons[row] = ()
        self.throughput[row] = 0.0
        if not valid[0]:
            self.reasons[row] = ((reason,) if reason else ()) + memory_reasons(instance.problem, decision)
        else:
            self.throughput[row] = instance.greedy_s / cost[0] if cost[0] > 0 else 1.0

    def decision(self, row: int) -> np.ndarray:
        """int32 [N], a copy: the chip of each op; -1 where it is undecided."""
        return self.partition[row, : self.instance(row).num_ops].copy()

    def outcome(self, row: int) -> Outcome:
        decision = self.decision(row)
        decided = int((decision >= 0).sum())
        if decided < len(decision):
            raise InputError(f"the partition is not complete: {decided} of {len(decision)} ops have a chip; go on")
        return self.instance(row).problem.evaluate(decision)

    def _load(self, row: int) -> Load:
        return load_of(self.instance(row).problem, self.decision(row))

    def begun(self, row: int) -> dict[str, Any]:
        return {"ops": self.instance(row).num_ops, "chips": self.instance(row).num_chips}

    def result(self, row: int) -> Result:
        return Result(self.partition[row].copy(), float(self.cost[row]), bool(self.valid[row]), self.reasons[row])

    def ended(self, row: int) -> dict[str, Any]:
        return {
            "changed": int(self.changed[row].sum()),
            "changed_ops": self.changed[row].copy(),
            "throughput": float(self.throughput[row]),
        }

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance, roster = self.instances[index], self.roster
        ops, chips, edges = instance.num_ops, instance.num_chips, instance.num_edges
        out = {name: np.zeros(shape, np.float32) for name, shape in ONE_SHOT.shapes(roster.sizes).items()}
        out["nodes"][:ops] = instance.op_features[:ops]
        out["node_mask"] = (np.arange(roster.max_ops) < ops).astype(np.int8)
        out["edge_index"] = np.full((2, roster.max_edges), -1, np.int32)
        out["edge_index"][:, :edges] = instance.problem.ops.edges.T
        out["edge_bytes"][:edges] = instance.edge_features
        out["chips"][:chips] = instance.chip_features
        out["action_mask"] = (np.arange(roster.max_chips) < chips).astype(np.int8)
        return out

    def _chip_mask(self, rows: np.ndarray) -> np.ndarray:
        """bool [rows, max_chips]: the chips that are there."""
        chips = self.of_instances(rows, "num_chips")
        return np.arange(self.roster.max_chips) < chips[:, None]

    def figure(self, row: int) -> Figure:
        return pipeline_figure(self._load(row))

    def describe(self, row: int) -> str:
        return describe(self._load(row))


class OneShotEpisodes(ChipletEpisodes):
    """A whole proposal in one action, corrected; modes ``"fix"`` and ``"sample"``."""

    table = ONE_SHOT
    longest = 1

    def __init__(self, roster: ChipletRoster, count: int, info: str = "full", mode: str = "fix") -> None:
        super().__init__(roster, count, info)
        self.mode = mode
        if mode == "fix":
            self.action_space = spaces.MultiDiscrete([roster.max_chips] * roster.max_ops)
        else:
            self.action_space = spaces.Box(0.0, 1.0, (roster.max_ops, roster.max_chips), np.float32)
            self.drawn_from = np.zeros((count, roster.max_ops), np.int64)

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # all are checked before the first is corrected, so that a refused step changes nothing
        proposals = [self._proposal(self.instance(row), action) for row, action in zip(rows, actions, strict=True)]
        illegal = np.zeros(len(rows), np.bool_)
        for instance, _, _ in self._parts(rows):
            _ = instance.greedy_s  # made once, before the threads ask for it

        def correct(low: int, high: int) -> None:
            for at in range(low, high):
                illegal[at] = self._correct(int(rows[at]), proposals[at])

        on_all_cores(correct, len(rows))
        return self.throughput[rows], np.ones(len(rows), np.bool_), illegal

    def _proposal(self, instance: Instance, action: np.ndarray) -> np.ndarray:
        """The part of an action that counts: int [N], or float64 [N, C]."""
        part = action[: instance.num_ops]
        if self.mode == "fix":
            return part
        return check_probabilities(part[:, : instance.num_chips], instance.num_ops, instance.num_chips)

    def _correct(self, row: int, proposal: np.ndarray) -> bool:
        """Correct a proposal and end the episode. Whether it named chips that are not there."""
        instance, generator = self.instance(row), self.generators[row]
        if self.mode == "fix":
            candidate = np.clip(proposal, 0, instance.num_chips - 1)
            with instance.corrector() as corrector:
                found = corrector.fix(candidate, generator)
            self._end(row, found.decision, found.decision != proposal, found.reason)
            return bool((candidate != proposal).any())
        with instance.corrector() as corrector:
            found = corrector.sample(proposal, generator)
        taken = proposal[np.arange(instance.num_ops), found.decision]
        self.drawn_from[row] = 0
        self.drawn_from[row, : instance.num_ops] = found.drawn_from
        self._end(row, found.decision, taken < proposal.max(axis=1), found.reason)
        return False

    def ended(self, row: int) -> dict[str, Any]:
        info = super().ended(row)
        return info if self.mode == "fix" else info | {"drawn_from": self.drawn_from[row].copy()}

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        self._fill_static(rows, out)
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        ops = self.of_instances(rows, "num_ops")
        return one_shot_masks(self._chip_mask(rows), ops, self.roster.max_ops)


class _Room:
    """Propagators for the episodes on one instance, as many as there have been at a time, and what steps them."""

    def __init__(self, instance: Instance) -> None:
        self.rules, self.tables, self.begun = instance.problem.corrector.rules, instance.tables, instance.begun
        self.states, self.snapshots = make_states(self.rules, 0), np.empty(0)
        self.step: Callable[..., None] | None = None  # :func:`step_walks`, for what is given here
        self.end: Callable[..., None] = end_walk
        self._free: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"step": None, "end": end_walk}  # copies ask for theirs when they need them

    def take(self, count: int) -> list[int]:
        """The places of as many propagators, whatever they hold."""
        there = len(self.states.store)
        if len(self._free) < count:
            old, more = self.states, max(there, count - len(self._free))
            self.states = make_states(self.rules, there + more)
            for before, after in zip(old, self.states, strict=True):
                after[:there] = before
            self.snapshots = np.empty_like(self.states.chips)
            self._free += range(there, there + more)
        return [self._free.pop() for _ in range(count)]

    def give_back(self, place: int) -> None:
        self._free.append(place)


class StepEpisodes(ChipletEpisodes):
    """One op a step, with masks from the propagator; mode ``"step"``. A step of all is one kernel, on all cores."""

    table = STEP

    def __init__(self, roster: ChipletRoster, count: int, info: str = "full") -> None:
        if roster.draws:
            raise InputError("mode 'step' draws no graphs and packages anew; give mode 'fix' or 'sample', or a list")
        super().__init__(roster, count, info)
        self.action_space = spaces.Discrete(roster.max_chips)
        self.longest = roster.max_ops
        problems = [one.problem for one in self.instances]
        self.walk = new_walk(count, problems, roster.max_ops, roster.max_chips)
        self.partition, self.allowed, self.dead_end = self.walk.chip_of, self.walk.allowed, self.walk.dead_end
        self._rooms: dict[int, _Room] = {}  # by instance
        self._room_of = np.full(count, -1)  # the instance that an episode has a propagator for; -1: none yet
        self._place = np.zeros(count, np.int64)  # of that propagator in its room

    def _begin(self, rows: np.ndarray) -> None:
        moved = rows[self._room_of[rows] != self.instance_of[rows]]
        for row in moved.tolist():
            if self._room_of[row] >= 0:
                self._rooms[int(self._room_of[row])].give_back(int(self._place[row]))
        for instance, part, _ in self._parts(moved):
            index = int(self.instance_of[part[0]])
            if index not in self._rooms:
                self._rooms[index] = _Room(instance)
            self._place[part] = self._rooms[index].take(len(part))
            self._room_of[part] = index
        for _, part, _ in self._parts(rows):
            room = self._room(part)
            fixed = room.rules, room.tables, *room.begun, room.states, room.snapshots, self.walk, part, self._place
            on_all_cores(partial(begin_walks, *fixed), len(part))

    def _room(self, rows: np.ndarray) -> _Room:
        """Where the propagators of episodes on one instance are."""
        return self._rooms[int(self.instance_of[rows[0]])]

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, done, illegal = np.zeros(len(rows)), np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        rows, actions = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(actions, np.int64)
        for _, part, at in self._parts(rows):
            room = self._room(part)
            given = self.walk, part, self._place, at, actions, illegal, done
            fixed = room.rules, room.tables, room.states, room.snapshots, *given
            if room.step is None:
                room.step = form(step_walks, *fixed, 0, 0)
                room.end = form(end_walk, room.tables, self.walk, 0, np.zeros(1, np.int32))
            if len(part) == 1:
                room.step(*fixed, 0, 1)
            else:
                on_all_cores(partial(room.step, *fixed), len(part))
        if done.any():
            over = rows[done]

            def finish(low: int, high: int) -> None:
                for row in over[low:high].tolist():
                    self._finish(row)

            on_all_cores(finish, len(over))
            rewards[done] = self.throughput[over]
        return rewards, done, illegal

    def _finish(self, row: int) -> None:
        """End an episode whose ops all have a chip, or that has come to a dead end."""
        instance = self.instance(row)
        decision = self.decision(row)
        if not self.dead_end[row]:
            self._end(row, decision, np.zeros(instance.num_ops, np.bool_))
        # the propagator knows part of what chips hold; the rest is found out now
        if self.dead_end[row] or not (self.valid[row] or not instance.problem.memory_rule):
            self._complete(row, decision)
        self.allowed[row] = self._chip_mask(np.array([row]))[0]

    def _complete(self, row: int, decision: np.ndarray) -> None:
        """End an episode by a correction: decided ops keep their chips where they can."""
        instance, room = self.instance(row), self._room(np.array([row]))
        store = room.states.store[self._place[row]]
        decided = decision >= 0
        left = np.maximum(store[: instance.num_ops], 1)
        lowest = np.log2((left & -left).astype(np.float64)).astype(np.int32)
        with instance.corrector() as corrector:
            found: Correction = corrector.fix(
                np.where(decided, decision, lowest), self.generators[row], first=np.flatnonzero(decided)
            )
        self.dead_end[row] = True
        room.end(room.tables, self.walk, row, np.ascontiguousarray(found.decision, np.int32))
        self._end(row, found.decision, decided & (found.decision != decision), found.reason)

    def so_far(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(seconds float64 [C], link bytes float64 [L], memory int64 [C]) of the decided ops; memory as in ``walk``."""
        package, walk = self.instance(row).problem.package, self.walk
        chips, links = package.num_chips, package.num_links
        return walk.seconds[row, :chips], walk.link_bytes[row, :links], walk.memory[row, :chips]

    def _load(self, row: int) -> Load:
        return load_of(self.instance(row).problem, self.decision(row), self.so_far(row))

    def ended(self, row: int) -> dict[str, Any]:
        return super().ended(row) | {"dead_end": bool(self.dead_end[row])}

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        walk = self.walk
        return {
            "op": walk.seen_op.take(rows, 0),
            "chips": walk.seen_chips.take(rows, 0).reshape(len(rows), -1),
            "progress": walk.seen_progress.take(rows, 0),
            "action_mask": walk.allowed.take(rows, 0).view(np.int8),
        }

    def masks(self, rows: np.ndarray) -> np.ndarray:
        return self.allowed.take(rows, 0)
