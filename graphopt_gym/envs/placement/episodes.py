"""Placements in progress: the one implementation behind the scalar and the vector environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.episodes import Episodes, Result, one_shot_masks
from graphopt_gym.envs.core.observation import ObservationTable
from graphopt_gym.envs.placement.features import (
    ALLOWED,
    DEVICE_FEATURES,
    EACH_MASK,
    EXCHANGED,
    GRAPH,
    GROUP_FEATURES,
    ONE_SHOT,
    PROGRESS_FEATURES,
    STATIC_DEVICE_FEATURES,
    STEP,
    STEP_GRAPH,
    begin,
    decide,
    new_state,
    observe,
)
from graphopt_gym.envs.placement.instances import Instance, PlacementRoster
from graphopt_gym.envs.placement.rendering import describe
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice

REWARDS = ("improvement", "terminal")
OBSERVATIONS = ("step", "graph")
STARTS = ("single", "expert", "random")
INVALID_REWARD = -10.0  # of the papers' terminal reward, for a placement that does not fit in memory


class PlacementEpisodes(Episodes[Instance]):
    """``count`` episodes on instances of a roster; see the environments for what the arguments mean."""

    roster: PlacementRoster

    def __init__(
        self,
        roster: PlacementRoster,
        count: int,
        info: str = "full",
        start: str | Sequence[int] | np.ndarray = "single",
        reward: str = "terminal",
    ) -> None:
        super().__init__(roster, count, info)
        self.reward = reward
        self.start = _check_start(start, None if self.only_problem is None else self.instances[0])
        self.state = new_state(count, roster.max_groups, roster.max_tasks, roster.max_devices)
        self.groups_of = np.zeros(count, np.int64)

    def decision(self, row: int) -> np.ndarray:
        """int32 [G], a copy: the device of each group now; undecided groups are where they started."""
        return self.state.decision[row, : self.groups_of[row]].copy()

    def _begin(self, rows: np.ndarray) -> None:
        self._make_room(rows)
        state, start = self.state, self.start
        at_random = isinstance(start, str) and start == "random"
        starts: dict[int, np.ndarray] = {}
        for row in rows.tolist():
            instance = self.instance(row)
            self.groups_of[row] = instance.num_groups
            if at_random:
                starts[row] = instance.problem.sample(self.generators[row])
        for instance, part, _ in self._parts(rows):
            if at_random:
                begin(instance.tables, state, part, np.stack([starts[row] for row in part.tolist()]))
                if self.reward == "improvement":
                    self._simulate(instance, part)
            else:
                decision, cost, valid, peak = instance.start(start)
                begin(instance.tables, state, part, np.repeat(decision[None], len(part), axis=0))
                if self.reward == "improvement":
                    state.cost[part], state.valid[part] = cost, valid
                    state.peak_bytes[part, : instance.num_devices] = peak
            state.start_cost[part] = state.cost[part]

    def _make_room(self, rows: np.ndarray) -> None:
        """For the tasks of graphs that are drawn: how many there may be is not known before."""
        had = self.state.task_device.shape[1]
        needed = max((self.instance(row).num_tasks for row in rows.tolist()), default=0)
        if needed > had:
            wider = np.zeros((self.count, max(needed, 2 * had)), np.int32)
            wider[:, :had] = self.state.task_device
            self.state = self.state._replace(task_device=wider)

    def _simulate(self, instance: Instance, rows: np.ndarray) -> None:
        """Price the complete placements of ``rows``, in one batch on all cores."""
        problem, state = instance.problem, self.state
        if len(rows):
            seconds, peak = problem.simulated(state.task_device[rows, : instance.num_tasks])
            decisions = state.decision[rows, : instance.num_groups]
            state.cost[rows], state.valid[rows] = problem.price(seconds, peak, decisions)
            state.peak_bytes[rows, : instance.num_devices] = peak

    def _final_rewards(self, rows: np.ndarray) -> np.ndarray:
        """The papers' reward of complete placements: -sqrt(step time), or -10 where they do not fit."""
        for instance, part, _ in self._parts(rows):
            self._simulate(instance, part)
        return np.where(self.state.valid[rows], -np.sqrt(self.state.cost[rows]), INVALID_REWARD)

    def begun(self, row: int) -> dict[str, Any]:
        return {"groups": self.instance(row).num_groups}

    def result(self, row: int) -> Result:
        state, instance = self.state, self.instance(row)
        valid = bool(state.valid[row])
        reasons: tuple[str, ...] = ()
        if not (valid or self.light):
            decision = state.decision[row, : instance.num_groups]
            reasons = instance.problem.reasons(decision, state.peak_bytes[row, : instance.num_devices])
        return Result(state.decision[row].copy(), float(state.cost[row]), valid, reasons)

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance = self.instances[index]
        groups, devices, edges = instance.num_groups, instance.num_devices, instance.num_edges
        shapes = GRAPH.shapes(self.roster.sizes)
        out = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        out["nodes"][:groups] = instance.tables.node_features
        out["times"][:groups, :devices] = instance.time_features
        out["memory"][:groups, :devices] = instance.memory_features
        out["edge_index"] = np.full(shapes["edge_index"], -1, np.int32)
        out["edge_index"][:, :edges] = instance.group_edges.T
        out["edge_bytes"][:edges] = instance.edge_features
        out["links"][:devices, :devices] = instance.link_features
        out["node_mask"] = (np.arange(self.roster.max_groups) < groups).astype(np.int8)
        return out

    def _static_allowed(self, index: int) -> np.ndarray:
        """int8 [G, D]: where each group may be."""
        out, instance = np.zeros((self.roster.max_groups, self.roster.max_devices), np.int8), self.instances[index]
        out[: instance.num_groups, : instance.num_devices] = instance.allowed
        return out

    def _device_mask(self, rows: np.ndarray) -> np.ndarray:
        devices = self.of_instances(rows, "num_devices")
        return np.arange(self.roster.max_devices) < devices[:, None]

    def describe(self, row: int) -> str:
        return describe(self, row)


class StepEpisodes(PlacementEpisodes):
    """One decision a group; ``Placement-v0``."""

    def __init__(
        self,
        roster: PlacementRoster,
        count: int,
        info: str = "full",
        start: str | Sequence[int] | np.ndarray = "single",
        reward: str = "improvement",
        observation: str = "step",
    ) -> None:
        choice("reward", reward, REWARDS)
        choice("observation", observation, OBSERVATIONS)
        self.with_graph = observation == "graph"
        self.table = ObservationTable((*STEP, *STEP_GRAPH)) if self.with_graph else STEP
        if self.with_graph and roster.restricted:
            self.table = ObservationTable((*self.table, ALLOWED))
        super().__init__(roster, count, info, start, reward)
        self.longest = roster.max_groups
        self.action_space = spaces.Discrete(roster.max_devices)

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        arrays = super().static_arrays(index)
        return arrays | {"allowed": self._static_allowed(index)} if self.roster.restricted else arrays

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state = self.state
        illegal, changed = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        rewards = np.zeros(len(rows))
        for instance, part, at in self._parts(rows):
            decide(instance.tables, state, part, at, actions, illegal, changed)
        done = state.current[rows] == self.groups_of[rows]
        if self.reward == "improvement":
            # a placement that stays as it was keeps its cost: no simulation, a change of exactly 0
            moved = rows[changed]
            if len(moved):
                before = np.sqrt(state.cost[moved])
                for instance, part, _ in self._parts(moved):
                    self._simulate(instance, part)
                rewards[changed] = before - np.sqrt(state.cost[moved])
        elif done.any():
            rewards[done] = self._final_rewards(rows[done])
        return rewards, done, illegal

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        count, devices = len(rows), self.roster.max_devices
        out: dict[str, np.ndarray] = {
            "group": np.zeros((count, len(GROUP_FEATURES)), np.float32),
            "devices": np.zeros((count, devices, len(DEVICE_FEATURES)), np.float32),
            "progress": np.zeros((count, len(PROGRESS_FEATURES)), np.float32),
            "action_mask": np.zeros((count, devices), np.int8),
        }
        arrays = tuple(out.values())
        for instance, part, at in self._parts(rows):
            exchanged = np.empty((instance.problem.num_devices, 2 * EXCHANGED))
            observe(instance.tables, self.state, part, at, exchanged, *arrays)
        out["devices"] = out["devices"].reshape(count, devices * len(DEVICE_FEATURES))
        if self.with_graph:
            self._fill_static(rows, out)
            out["placement"] = self.state.decision[rows]
            out["current"] = self.state.current[rows, None]
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        masks = self._device_mask(rows)
        if self.roster.restricted:
            for instance, part, at in self._parts(rows):
                masks[at, : instance.num_devices] = instance.tables.allowed[self.state.current[part]]
        return masks


class OneShotEpisodes(PlacementEpisodes):
    """The whole graph in one action; ``PlacementOneShot-v0``."""

    table = ONE_SHOT
    longest = 1

    def __init__(self, roster: PlacementRoster, count: int, info: str = "full") -> None:
        if roster.restricted:
            self.table = ObservationTable((*ONE_SHOT[:-1], EACH_MASK))
        super().__init__(roster, count, info)
        self.action_space = spaces.MultiDiscrete([roster.max_devices] * roster.max_groups)

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state = self.state
        illegal = np.zeros(len(rows), np.bool_)
        for position, row in enumerate(rows.tolist()):
            instance = self.instance(row)
            chosen = actions[position, : instance.num_groups]
            wrong = (chosen < 0) | (chosen >= instance.num_devices)
            wrong |= instance.problem.misplaced(np.where(wrong, 0, chosen))
            illegal[position] = wrong.any()
            decision = np.where(wrong, instance.start("single")[0], chosen).astype(np.int32)
            begin(instance.tables, state, np.array([row]), decision[None])
            state.current[row] = instance.num_groups
        return self._final_rewards(rows), np.ones(len(rows), np.bool_), illegal

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance, most = self.instances[index], self.roster.max_devices
        devices = np.zeros((most, len(STATIC_DEVICE_FEATURES)), np.float32)
        devices[: instance.num_devices] = instance.tables.device_features
        mask = (np.arange(most) < instance.num_devices).astype(np.int8)
        if self.roster.restricted:
            mask = self._static_allowed(index)
            mask[instance.num_groups :, 0] = 1
        return super().static_arrays(index) | {"devices": devices, "action_mask": mask}

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        self._fill_static(rows, out)
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        masks = one_shot_masks(self._device_mask(rows), self.groups_of[rows], self.roster.max_groups)
        if self.roster.restricted:
            each = masks.reshape(len(rows), self.roster.max_groups, self.roster.max_devices)
            for instance, _, at in self._parts(rows):
                each[at, : instance.num_groups, : instance.num_devices] = instance.allowed
        return masks


def _check_start(start: str | Sequence[int] | np.ndarray, instance: Instance | None) -> str | np.ndarray:
    if isinstance(start, str):
        choice("start", start, STARTS)
        return start
    if instance is None:
        raise InputError("start is an array, which fits one graph on one cluster only; name a start instead")
    return instance.problem.check(start)
