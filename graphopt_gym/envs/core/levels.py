"""Episodes in which ops get levels, one op a step or all in one action: the process of fusing and of scheduling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.episodes import Episodes, Result, one_shot_masks
from graphopt_gym.envs.core.observation import ObservationTable, Part
from graphopt_gym.envs.core.placed import UnfitError
from graphopt_gym.envs.core.roster import Roster, padded_size
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice, whole
from graphopt_gym.problem import Problem

REWARDS = ("improvement", "terminal")
MOST_UNFIT = 50  # instances drawn one after the other that may not fit
INVALID_REWARD = -10.0  # of the terminal reward, for what does not fit in memory
PROGRESS_FEATURES = (
    "ops_decided",  # share
    "time_decided",  # share of the time of all ops that are decided on
    "level_before",  # of the op decided last, as a share of the highest
    "cost",  # squashed: square root of the cost now to that at the start
    "valid",  # 1 where the decision as it stands is valid
)


class LevelInstance(Protocol):
    """One graph on one cluster, with the ops that get levels. M ops, E edges between them, P levels."""

    @property
    def problem(self) -> Problem: ...

    entry: np.ndarray  # int64 [M]: which entry of a decision each is, ascending
    features: np.ndarray  # float32 [M, F] in 0 to 1
    time_before: np.ndarray  # float64 [M+1]: the share of the time of all M that those before each take
    reward_unit: float  # what a cost is divided by before rewards take its root: seconds, or as many bytes
    edges: np.ndarray  # int32 [E, 2] of (sending, reading op)
    num_levels: int
    num_ops: int
    num_edges: int
    length: int  # of a decision

    def start(self, name: str) -> np.ndarray:
        """int32 [length]: a decision to begin from; entries of other ops stay as they are in it."""


def step_table(features: int) -> ObservationTable:
    """What one op a step shows: F features of it."""
    return ObservationTable(
        (
            Part("op", (features,), "share", "the current op", "0 at the end of an episode"),
            Part("progress", (len(PROGRESS_FEATURES),), "share", "share decided, cost of the decision now", "none"),
            Part("action_mask", ("P",), "mask", "1: the level is there", "none"),
        )
    )


def one_shot_table(features: int) -> ObservationTable:
    """What the whole graph in one action shows."""
    return ObservationTable(
        (
            Part("nodes", ("M", features), "share", "the features of every op"),
            Part("node_mask", ("M",), "mask", "1: an op"),
            Part("edge_index", (2, "E"), "index", "sending and reading op of each edge between ops", "-1", "M"),
            Part("action_mask", ("P",), "mask", "1: the level is there", "none"),
        )
    )


class LevelRoster(Roster[Any]):
    """All graphs on all clusters that an environment of levels may be asked for, and the padded sizes they share.

    Args:
        problem_class, instance_class, graph, cluster, options: see :class:`Roster`; what is None is left out.
        features: how many an op has.
        max_ops, max_edges: sizes to pad to, None: the largest. Where graphs are drawn, there is room for sources, too.
        levels: how many levels there are.

    Raises:
        InputError: as :class:`Roster`; nothing to decide on; a size smaller than what is there.
    """

    measures = MappingProxyType({"max_ops": "length", "max_edges": "num_edges"})  # of what is drawn

    def __init__(
        self,
        problem_class: Any,
        instance_class: Callable[[Any], Any],
        features: int,
        graph: Any,
        cluster: Any,
        max_ops: int | None,
        max_edges: int | None,
        levels: int,
        **options: Any,
    ) -> None:
        stated = {name: value for name, value in options.items() if value is not None}
        super().__init__(problem_class, instance_class, graph, cluster, levels=whole("levels", levels, 2), **stated)
        self.num_features = features
        if self.draws:
            self.max_ops = self.room("max_ops", max_ops, "graph", "ops")
            self.max_edges = self.room("max_edges", max_edges, "graph", "edges")
        else:
            check_decides(self.flat)
            self.max_ops = padded_size("max_ops", max_ops, max(1, *(one.num_ops for one in self.flat), 1))
            self.max_edges = padded_size("max_edges", max_edges, max(1, *(one.num_edges for one in self.flat), 1))
        most = max((one.num_levels for one in self.flat), default=0)  # of a problem that was given, its own
        self.sizes = {"M": self.max_ops, "E": self.max_edges, "P": max(most, levels if self.draws else 0)}

    def _drawn(self, rng: np.random.Generator, chosen: Mapping[str, tuple[int, str | None]], stage: int) -> Any:
        """An instance that is drawn; others in place of those that cannot fit, which would end a training."""
        for _ in range(MOST_UNFIT):
            try:
                return super()._drawn(rng, chosen, stage)
            except UnfitError as error:
                unfit = error
        raise unfit


class LevelEpisodes(Episodes[Any]):
    """``count`` episodes on instances of a roster, whose ``sizes`` are M, E and P; see the environments."""

    def __init__(
        self, roster: Roster[Any], count: int, info: str, start: str, starts: tuple[str, ...], reward: str
    ) -> None:
        super().__init__(roster, count, info)
        self.reward = choice("reward", reward, REWARDS)
        self.start = choice("start", start, starts)
        longest = roster.sizes["M"] if roster.draws else max(one.length for one in roster.flat)
        self.decided = np.full((count, longest), -1, np.int32)
        self.current = np.zeros(count, np.int64)
        self.ops_of = np.zeros(count, np.int64)
        self.cost, self.start_cost = np.zeros(count), np.zeros(count)
        self.valid = np.zeros(count, bool)
        self._started: dict[int, tuple[float, bool]] = {}  # of each instance

    def decision(self, row: int) -> np.ndarray:
        """int32 [K], a copy: ops that are not decided have the level that they started with."""
        return self.decided[row, : self.instance(row).length].copy()

    def _begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            instance, index = self.instance(row), int(self.instance_of[row])
            self.decided[row] = -1
            self.decided[row, : instance.length] = instance.start(self.start)
            self.current[row], self.ops_of[row] = 0, instance.num_ops
            self.cost[row] = self.start_cost[row] = 0.0
            self.valid[row] = False
            if self.reward == "improvement":
                if index not in self._started or index >= len(self.roster.flat):  # those behind are drawn anew
                    cost, valid = instance.problem.costs(self.decided[row : row + 1, : instance.length])
                    self._started[index] = (float(cost[0]), bool(valid[0]))
                self.cost[row], self.valid[row] = self._started[index]
                self.start_cost[row] = self.cost[row]

    def _price(self, rows: np.ndarray) -> None:
        for instance, part, _ in self._parts(rows):
            self.cost[part], self.valid[part] = instance.problem.costs(
                np.ascontiguousarray(self.decided[part, : instance.length])
            )

    def _final_rewards(self, rows: np.ndarray) -> np.ndarray:
        self._price(rows)
        return np.where(self.valid[rows], -self._root(rows), INVALID_REWARD)

    def _root(self, rows: np.ndarray) -> np.ndarray:
        """float64 [rows]: the square root of the cost now, in the unit of rewards."""
        return np.sqrt(self.cost[rows] / [self.instance(row).reward_unit for row in rows.tolist()])

    def begun(self, row: int) -> dict[str, Any]:
        return {"ops": int(self.ops_of[row])}

    def result(self, row: int) -> Result:
        valid = bool(self.valid[row])
        reasons = () if valid or self.light else self.outcome(row).reasons
        return Result(self.decided[row].copy(), float(self.cost[row]), valid, reasons)

    def _level_mask(self, rows: np.ndarray) -> np.ndarray:
        return np.arange(self.roster.sizes["P"]) < self.of_instances(rows, "num_levels")[:, None]


class StepLevels(LevelEpisodes):
    """One op a step, in topological order."""

    def __init__(
        self, roster: Roster[Any], count: int, info: str = "full", start: str = "", starts: tuple[str, ...] = (),
        reward: str = "improvement",
    ) -> None:  # fmt: skip
        self.table = self._table(roster)
        super().__init__(roster, count, info, start, starts, reward)
        self.longest = roster.sizes["M"]
        self.action_space = spaces.Discrete(self._most_choices(roster))

    def _table(self, roster: Any) -> ObservationTable:
        return step_table(roster.num_features)

    def _most_choices(self, roster: Roster[Any]) -> int:
        return int(roster.sizes["P"])

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, illegal = np.zeros(len(rows)), np.zeros(len(rows), bool)
        changed = np.zeros(len(rows), bool)
        for at, row in enumerate(rows.tolist()):
            instance, level = self.instance(row), int(actions[at])
            if instance.num_ops:
                entry = instance.entry[self.current[row]]
                illegal[at] = not 0 <= level < self._choices(instance, int(self.current[row]))
                if not illegal[at]:
                    changed[at] = self.decided[row, entry] != level
                    self.decided[row, entry] = level
            self.current[row] += 1
        done = self.current[rows] >= self.ops_of[rows]
        if self.reward == "improvement":
            moved = rows[changed]
            if len(moved):  # what stays as it was keeps its cost: a change of exactly 0
                before = self._root(moved)
                self._price(moved)
                rewards[changed] = before - self._root(moved)
        elif done.any():
            rewards[done] = self._final_rewards(rows[done])
        return rewards, done, illegal

    def _choices(self, instance: Any, current: int) -> int:
        """How many there are for an entry that is decided on."""
        return int(instance.num_levels)

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        features = self.observation_shapes["op"][0]
        op = np.zeros((len(rows), features), np.float32)
        progress = np.zeros((len(rows), len(PROGRESS_FEATURES)), np.float32)
        for at, row in enumerate(rows.tolist()):
            instance, current = self.instance(row), int(self.current[row])
            if current < instance.num_ops:
                op[at] = instance.features[current]
            ratio = np.sqrt(self.cost[row] / self.start_cost[row]) if self.start_cost[row] > 0 else 0.0
            before = self.decided[row, instance.entry[current - 1]] if 0 < current <= instance.num_ops else 0
            progress[at] = (
                min(1.0, current / max(1, instance.num_ops)), min(1.0, instance.time_before[current]),
                before / max(1, instance.num_levels - 1), ratio / (1 + ratio), self.valid[row],
            )  # fmt: skip
        return {"op": op, "progress": progress, "action_mask": self.masks(rows).astype(np.int8)}

    def masks(self, rows: np.ndarray) -> np.ndarray:
        return self._level_mask(rows)


class OneShotLevels(LevelEpisodes):
    """All ops in one action."""

    longest = 1

    def __init__(
        self, roster: LevelRoster, count: int, info: str = "full", start: str = "", starts: tuple[str, ...] = ()
    ) -> None:
        self.table = one_shot_table(roster.num_features)
        super().__init__(roster, count, info, start, starts, "terminal")
        self.action_space = spaces.MultiDiscrete([roster.sizes["P"]] * roster.sizes["M"])

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        illegal = np.zeros(len(rows), bool)
        for at, row in enumerate(rows.tolist()):
            instance = self.instance(row)
            chosen = actions[at, : instance.num_ops]
            wrong = (chosen < 0) | (chosen >= instance.num_levels)
            illegal[at] = wrong.any()
            entries = self.decided[row, instance.entry]
            self.decided[row, instance.entry] = np.where(wrong, entries, chosen)
            self.current[row] = instance.num_ops
        return self._final_rewards(rows), np.ones(len(rows), bool), illegal

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance, shapes = self.instances[index], self.table.shapes(self.roster.sizes)
        nodes = np.zeros(shapes["nodes"], np.float32)
        nodes[: instance.num_ops] = instance.features
        edges = np.full(shapes["edge_index"], -1, np.int32)
        edges[:, : instance.num_edges] = instance.edges.T
        return {
            "nodes": nodes,
            "node_mask": (np.arange(self.roster.sizes["M"]) < instance.num_ops).astype(np.int8),
            "edge_index": edges,
            "action_mask": (np.arange(self.roster.sizes["P"]) < instance.num_levels).astype(np.int8),
        }

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        self._fill_static(rows, out)
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        return one_shot_masks(self._level_mask(rows), self.ops_of[rows], self.roster.sizes["M"])


def check_decides(instances: Sequence[Any]) -> None:
    """Raises InputError where there is nothing to decide on."""
    if all(one.num_ops == 0 for one in instances):
        raise InputError("no op of these graphs has a decision; give another graph")
