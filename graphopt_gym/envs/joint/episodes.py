"""Episodes of joint optimisation: one choice a step, or all in one action."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.episodes import one_shot_masks
from graphopt_gym.envs.core.levels import LevelEpisodes, StepLevels
from graphopt_gym.envs.core.observation import ObservationTable, Part
from graphopt_gym.envs.core.roster import Roster
from graphopt_gym.envs.joint.instances import OP_FEATURES, STARTS, Instance, JointRoster
from graphopt_gym.envs.joint.problem import TASKS
from graphopt_gym.envs.placement.features import NODE_FEATURES, STATIC_DEVICE_FEATURES

PROGRESS_FEATURES = (
    "decided",  # share of the entries
    "decided_of_task",  # share of those of the task that is decided on
    "cost",  # squashed: square root of the cost now to that at the start
    "valid",  # 1 where the decision as it stands is valid
)

STEP = ObservationTable(
    (
        Part("op", (len(OP_FEATURES),), "share", "the op that is decided on; of a group, the mean of its ops"),
        Part("group", (len(NODE_FEATURES),), "share", "its group, as in `Placement-v0`'s one-shot form"),
        Part("task", (len(TASKS),), "share", "1: what is decided: placement, fusion or schedule"),
        Part("here", ("D",), "share", "1: the device where the group is now"),
        Part("around", ("D",), "share", "share, on each device, of the groups that it exchanges tensors with"),
        Part("devices", ("D", len(STATIC_DEVICE_FEATURES)), "share", "speed, capacity, bandwidths of each device"),
        Part("progress", (len(PROGRESS_FEATURES),), "share", "share decided, cost of the decision now", "none"),
        Part("action_mask", ("C",), "mask", "1: the device or level is there", "none"),
    )
)
ONE_SHOT = ObservationTable(
    (
        Part("nodes", ("K", len(OP_FEATURES)), "share", "the features of every op"),
        Part("node_mask", ("K",), "mask", "1: an op"),
        Part("edge_index", (2, "E"), "index", "sending and reading op of each edge between ops", "-1", "K"),
        Part("group_of_op", ("K",), "index", "the colocation group of each op", "-1", "G"),
        Part("groups", ("G", len(NODE_FEATURES)), "share", "the features of every group, as in `PlacementOneShot-v0`"),
        Part("group_mask", ("G",), "mask", "1: a group"),
        Part("times", ("G", "D"), "share", "squashed: seconds of each group on each device, to an even share"),
        Part("memory", ("G", "D"), "share", "squashed: what each group holds, to the device's capacity"),
        Part("devices", ("D", len(STATIC_DEVICE_FEATURES)), "share", "speed, capacity, bandwidths of each device"),
        Part("links", ("D", "D"), "share", "squashed: seconds of an average tensor from device to device"),
        Part("device_mask", ("D",), "mask", "1: the device is there"),
    )
)


class JointStep(StepLevels):
    """One choice a step: the groups' devices, then the ops' fusion levels, then their schedule levels."""

    def __init__(self, roster: Roster[Any], count: int, info: str, start: str, reward: str) -> None:
        super().__init__(roster, count, info, start, STARTS, reward)

    def _table(self, roster: Roster[Any]) -> ObservationTable:
        return STEP

    def _most_choices(self, roster: Roster[Any]) -> int:
        return int(roster.sizes["C"])

    def _choices(self, instance: Instance, current: int) -> int:
        return int(instance.choices[current])

    def masks(self, rows: np.ndarray) -> np.ndarray:
        most = np.ones(len(rows), np.int64)  # at the end of an episode the first alone
        for at, row in enumerate(rows.tolist()):
            instance, current = self.instance(row), int(self.current[row])
            if current < instance.num_ops:
                most[at] = instance.choices[current]
        return np.arange(self.roster.sizes["C"]) < most[:, None]

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        shapes = self.observation_shapes
        out = {name: np.zeros((len(rows), *shape), np.float32) for name, shape in shapes.items()}
        for at, row in enumerate(rows.tolist()):
            instance, current = self.instance(row), int(self.current[row])
            out["devices"][at, : instance.num_devices] = instance.placing.tables.device_features
            ratio = np.sqrt(self.cost[row] / self.start_cost[row]) if self.start_cost[row] > 0 else 0.0
            out["progress"][at] = (current / max(1, instance.num_ops), 1.0, ratio / (1 + ratio), self.valid[row])
            if current >= instance.num_ops:
                continue
            task, op = int(instance.task_of_entry[current]), int(instance.op_of_entry[current])
            group = int(instance.problem.group_of_task[op])
            out["op"][at] = instance.group_means[group] if TASKS[task] == "placement" else instance.features[op]
            out["group"][at] = instance.group_features[group]
            out["task"][at, task] = 1.0
            mine = np.searchsorted(instance.task_of_entry, [task, task + 1])
            out["progress"][at, 1] = (current - mine[0]) / (mine[1] - mine[0])
            devices = instance.problem.parts(self.decided[row, : instance.length]).placement
            out["here"][at, devices[group]] = 1.0
            near = instance.around[instance.around_ptr[group] : instance.around_ptr[group + 1]]
            counts = np.bincount(devices[near], minlength=instance.num_devices)
            out["around"][at, : instance.num_devices] = counts / max(1, len(near))
        out["action_mask"] = self.masks(rows).astype(np.int8)
        return {name: array.reshape(len(rows), -1) for name, array in out.items()}


class JointOneShot(LevelEpisodes):
    """The whole decision in one action, of fixed size: a device for each group, then levels for each op."""

    longest = 1

    roster: JointRoster

    def __init__(self, roster: JointRoster, count: int, info: str, start: str) -> None:
        self.table = ONE_SHOT
        super().__init__(roster, count, info, start, STARTS, "terminal")
        self.action_space = spaces.MultiDiscrete(
            np.concatenate([np.full(size, choices) for size, choices in roster.blocks.values()])
        )

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        illegal = np.zeros(len(rows), bool)
        for at, row in enumerate(rows.tolist()):
            instance, begin = self.instance(row), 0
            chosen = []
            for task, (size, _) in self.roster.blocks.items():
                part = instance.problem.slices[task]
                chosen.append(actions[at, begin : begin + part.stop - part.start])
                begin += size
            given = np.concatenate(chosen)
            wrong = (given < 0) | (given >= instance.problem.entry_choices)
            illegal[at] = wrong.any()
            self.decided[row, : instance.length] = np.where(wrong, self.decided[row, : instance.length], given)
            self.current[row] = instance.num_ops
        return self._final_rewards(rows), np.ones(len(rows), bool), illegal

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        instance, shapes = self.instances[index], self.table.shapes(self.roster.sizes)
        placing = instance.placing
        given = {
            "nodes": instance.features,
            "node_mask": np.ones(instance.num_tasks),
            "edge_index": instance.edges.T,
            "group_of_op": instance.problem.group_of_task,
            "groups": instance.group_features,
            "group_mask": np.ones(instance.num_groups),
            "times": placing.time_features,
            "memory": placing.memory_features,
            "devices": placing.tables.device_features,
            "links": placing.link_features,
            "device_mask": np.ones(instance.num_devices),
        }
        out = {}
        for part in self.table:
            full = np.full(shapes[part.name], -1 if part.kind == "index" else 0, part.dtype)
            full[tuple(slice(size) for size in given[part.name].shape)] = given[part.name]
            out[part.name] = full
        return out

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        self._fill_static(rows, out)
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        masks = []
        for task, (size, choices) in self.roster.blocks.items():
            which = ("num_devices", "num_groups") if task == "placement" else ("num_levels", "num_tasks")
            allowed, count = (self.of_instances(rows, what) for what in which)
            masks.append(one_shot_masks(np.arange(choices) < allowed[:, None], count, size))
        return np.concatenate(masks, axis=1)
