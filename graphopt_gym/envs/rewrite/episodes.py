"""Rewritings in progress: the one implementation behind the scalar and the vector environment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from graphopt_gym.envs.core.episodes import Episodes, Result
from graphopt_gym.envs.rewrite.features import (
    TABLE,
    match_features,
    node_features,
    shown,
)
from graphopt_gym.envs.rewrite.instances import Instance, RewriteRoster, count_edges
from graphopt_gym.envs.rewrite.problem import Rewritten
from graphopt_gym.envs.rewrite.rules.matching import Match
from graphopt_gym.fields import whole
from graphopt_gym.graphs.tensor_program import TensorProgram, program_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


KEPT = 256  # programs that episodes came by lately, with what is seen of them: 22 MB on squeezenet


class _View(NamedTuple):
    """What an agent sees of a program, steps and history aside, and which match each action is."""

    matches: list[Match]
    arrays: dict[str, np.ndarray]  # flat
    shown_share: float


class RewriteEpisodes(Episodes[Instance]):
    """``count`` episodes on instances of a roster; see the environment for what is asked and told."""

    roster: RewriteRoster

    table = TABLE

    def __init__(self, roster: RewriteRoster, count: int, info: str = "full", max_steps: int = 100) -> None:
        self.max_steps = self.longest = whole("max_steps", max_steps, 1)
        super().__init__(roster, count, info)
        self.action_space = spaces.Discrete(roster.max_matches + 1)
        self.states: list[Rewritten | None] = [None] * count
        self.views: list[_View | None] = [None] * count
        self.steps = np.zeros(count, np.int64)
        self.best_s = np.zeros(count)
        self._first: dict[int, _View] = {}  # of each instance's original
        self._kept: OrderedDict[tuple[Rewritten, Match], tuple[Rewritten, _View]] = OrderedDict()  # the latest last

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}

    # -- episodes --------------------------------------------------------------------------------------------------

    def _begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            index, instance = int(self.instance_of[row]), self.instance(row)
            if index not in self._first:
                self._first[index] = self._look(instance, instance.problem.original)
            self.states[row], self.views[row] = instance.problem.original, self._first[index]
            self.steps[row] = 0
            self.best_s[row] = instance.original_s

    def act(self, rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, done, illegal = np.zeros(len(rows)), np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        for at, (row, action) in enumerate(zip(rows.tolist(), actions.tolist(), strict=True)):
            state, view = self.state(row), self._view(row)
            self.steps[row] += 1
            if 1 <= action <= len(view.matches):
                self.rewrite(row, view.matches[action - 1])
                rewards[at] = self._relative(row, state.cost - self.state(row).cost)
            else:
                illegal[at] = action != 0
            done[at] = action == 0 or self.steps[row] >= self.max_steps or len(self._view(row).matches) == 0
        return rewards, done, illegal

    def rewrite(self, row: int, match: Match) -> None:
        """Apply a match, which need not be among those that are shown. It takes no step."""
        key = self.state(row), match
        found = self._kept.pop(key, None)
        if found is None:
            after = key[0].apply(match)
            found = after, self._look(self.instance(row), after)
            if len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
        self._kept[key] = found
        self.states[row], self.views[row] = found
        self.best_s[row] = min(self.best_s[row], found[0].cost)

    def shown(self, row: int) -> list[Match]:
        """The matches of actions 1, 2, …"""
        return self._view(row).matches

    def _relative(self, row: int, seconds: float) -> float:
        original_s = self.instance(row).original_s
        return seconds / original_s if original_s > 0 else 0.0

    def state(self, row: int) -> Rewritten:
        """The program as it stands, with its matches."""
        state = self.states[row]
        assert state is not None
        return state

    def _view(self, row: int) -> _View:
        view = self.views[row]
        if view is None:
            view = self.views[row] = self._look(self.instance(row), self.state(row))
        return view

    def _look(self, instance: Instance, state: Rewritten) -> _View:
        roster, original_s = self.roster, instance.original_s
        n, e = len(state.program), count_edges(state)
        fitting: Sequence[Match] = state.matches
        if n + max(instance.new_nodes) > roster.max_nodes or e + max(instance.new_edges) > roster.max_edges:
            fitting = [
                match
                for match in fitting
                if n + instance.new_nodes[match.rule] <= roster.max_nodes
                and e + instance.new_edges[match.rule] <= roster.max_edges
            ]
        matches = shown(fitting, roster.max_matches)
        m = len(matches)
        features, edges, operand = node_features(state, original_s)
        arrays = {
            part.name: np.full(self.observation_shapes[part.name], -1 if part.kind == "index" else 0, part.dtype)
            for part in TABLE
            if part.name != "progress"
        }
        arrays["node_mask"][:n] = 1
        arrays["action_mask"][: m + 1] = 1
        arrays["nodes"][:n] = features
        arrays["edge_index"][:, :e] = edges
        arrays["edge_operand"][:e] = operand
        arrays["matches"][:m], arrays["match_rule"][:m], arrays["match_roots"][:m] = match_features(
            state, matches, instance.grown, roster.num_rules, original_s
        )
        share = m / len(state.matches) if len(state.matches) else 1.0
        return _View(matches, {name: array.ravel() for name, array in arrays.items()}, share)

    def _progress(self, row: int) -> list[float]:
        left = 1.0 - min(1.0, self.steps[row] / self.max_steps)
        seconds = self.state(row).cost, float(self.best_s[row])
        return progress(*seconds, self.instance(row).original_s, left, self._view(row).shown_share)

    def observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        views = [self._view(row) for row in rows.tolist()]
        out = {
            name: np.array([view.arrays[name] for view in views])
            for name in self.observation_shapes
            if name != "progress"
        }
        out["progress"] = np.array([self._progress(row) for row in rows.tolist()], np.float32)
        return out

    def masks(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._view(row).arrays["action_mask"] for row in rows.tolist()]).astype(np.bool_)

    # -- what is told ----------------------------------------------------------------------------------------------

    def decision(self, row: int) -> TensorProgram:
        """The program as it stands."""
        return self.state(row).program

    def begun(self, row: int) -> dict[str, Any]:
        problem = self.instance(row).problem
        return {
            "nodes": len(problem.program),
            "matches": len(problem.original.matches),
            "cost": problem.original_s,
        }

    def result(self, row: int) -> Result:
        state = self.state(row)
        return Result(program_text(state.program), state.cost, state.valid, ())

    def ended(self, row: int) -> dict[str, Any]:
        state = self.state(row)
        return {
            "trace": state.trace,
            "steps": int(self.steps[row]),
            "best_cost": float(self.best_s[row]),
            "saved": self._relative(row, self.instance(row).original_s - state.cost),
        }

    def static_arrays(self, index: int) -> dict[str, np.ndarray]:
        view = self._look(self.instances[index], self.instances[index].problem.original)
        return {name: view.arrays[name].reshape(shape).copy() for name, shape in self.observation_shapes.items()
                if name != "progress"}  # fmt: skip

    def figure(self, row: int) -> Figure:
        from graphopt_gym.envs.rewrite.rendering import comparison_figure

        return comparison_figure(self.instance(row).problem, self.state(row).program)

    def describe(self, row: int) -> str:
        from graphopt_gym.envs.rewrite.rendering import describe

        return describe(self.state(row), self.best_s[row])


def progress(seconds: float, best_s: float, original_s: float, left: float, shown_share: float) -> list[float]:
    """:data:`PROGRESS_FEATURES`, of seconds and shares."""

    def against(one: float) -> float:
        return one / (one + original_s) if one + original_s > 0 else 0.5

    return [against(seconds), against(best_s), left, shown_share]
