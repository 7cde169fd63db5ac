"""What the vector environments share: all sub-environments in one batched call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from graphopt_gym.envs.rendering import RENDER_MODES, check_render_mode, render_frame
from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    from graphopt_gym.envs.episodes import Episodes
    from graphopt_gym.problem import Outcome, Problem

Observations = dict[str, np.ndarray]


class EpisodeVectorEnv(VectorEnv[Observations, Any, np.ndarray]):
    """Several episodes at a time. Seeds, autoreset and infos are those of Gymnasium's ``SyncVectorEnv``."""

    def __init__(self, episodes: Episodes[Any], render_mode: str | None, autoreset_mode: str | AutoresetMode) -> None:
        modes = {mode.value: mode for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else modes.get(autoreset_mode)
        if mode not in modes.values():
            raise InputError(f"autoreset_mode is {autoreset_mode!r}; give {' or '.join(map(repr, modes))}")
        self.autoreset_mode = mode
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4, "autoreset_mode": mode}
        self.episodes = episodes
        self.num_envs = episodes.count
        self.render_mode = check_render_mode(render_mode)
        self.single_observation_space = episodes.observation_space
        self.single_action_space = episodes.action_space
        self.observation_space = batch_space(episodes.observation_space, self.num_envs)
        self.action_space = batch_space(episodes.action_space, self.num_envs)
        self._rows = np.arange(self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._seeds = [-1] * self.num_envs
        self._ended: np.ndarray | None = None  # who is reset by the next step; None before the first reset

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each sub-environment."""
        return tuple(self._generator(row) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each sub-environment's generator."""
        return tuple(self._seeds[row] for row in range(self.num_envs) if self._generator(row))

    def _generator(self, row: int, seed: int | None = None) -> np.random.Generator:
        if seed is not None or self._generators[row] is None:
            self._generators[row], self._seeds[row] = seeding.np_random(seed)
        generator = self._generators[row]
        assert generator is not None
        return generator

    def problem(self, row: int) -> Problem:
        """The problem of a sub-environment's current episode."""
        return self.episodes.instance(row).problem

    def decision(self, row: int) -> Any:
        """int32, a copy: what is decided in a sub-environment now; see its scalar class for the undecided."""
        return self.episodes.decision(row)

    def outcome(self, row: int) -> Outcome:
        """The outcome of what is decided in a sub-environment now."""
        return self.episodes.outcome(row)

    def static_observation(self, row: int) -> dict[str, np.ndarray]:
        """The current graph and cluster of a sub-environment as padded arrays, new copies."""
        return self.episodes.static_arrays(int(self.episodes.instance_of[row]))

    def unflatten(self, observation: Observations) -> Observations:
        """Views of an observation, or of the batch, in the shapes of the table."""
        return self.episodes.unflatten(observation)

    def action_masks(self) -> np.ndarray:
        """bool [num_envs, actions]: the legal actions."""
        return self.episodes.masks(self._rows)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start all episodes. An int ``seed`` seeds sub-environment i with ``seed + i``; a sequence gives each its own.

        Raises:
            InputError: as many seeds as sub-environments are needed; an option or a name that is not known.
        """
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise InputError(f"{len(seeds)} seeds for {self.num_envs} sub-environments; give one each, or a number")
        generators = [self._generator(row, one) for row, one in enumerate(seeds)]
        self.episodes.reset(self._rows, generators, options)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._show()
        return self.episodes.observe(self._rows), self._reset_infos({}, self._rows)

    def step(self, actions: Any) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all. With ``NextStep`` autoreset an ended episode ignores its action and starts anew, with reward 0."""
        if self._ended is None:
            raise InputError("step() before reset(): call reset() first")
        actions = np.asarray(actions)
        if actions.shape[:1] != (self.num_envs,):
            raise InputError(f"actions have shape {actions.shape}; give one action for each of {self.num_envs}")
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        some_ended = bool(self._ended.any())
        rows = np.flatnonzero(~self._ended) if some_ended else self._rows
        rewards[rows], terminated[rows], illegal = self.episodes.act(rows, actions[rows] if some_ended else actions)
        infos: dict[str, Any] = {}
        if some_ended:
            ended = np.flatnonzero(self._ended)
            self._restart(ended)
            infos = self._reset_infos(infos, ended)
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP and bool(terminated.any())
        done = np.flatnonzero(terminated)
        if same_step:
            final = self.episodes.observe(done)
            for position, row in enumerate(done.tolist()):
                info = {"illegal_action": bool(illegal[row]), **self.episodes.end_info(row)}
                observation = {name: array[position] for name, array in final.items()}
                infos = self._add_info(infos, {"final_obs": observation, "final_info": info}, row)
            self._restart(done)
            infos = self._reset_infos(infos, done)
            self._ended = np.zeros(self.num_envs, np.bool_)
            rows, illegal = np.flatnonzero(~terminated), illegal[~terminated]
        else:
            for row in done.tolist():
                infos = self._add_info(infos, self.episodes.end_info(row), row)
            self._ended = terminated.copy()
        if len(rows):
            infos["illegal_action"] = np.zeros(self.num_envs, np.bool_)
            infos["_illegal_action"] = np.zeros(self.num_envs, np.bool_)
            infos["illegal_action"][rows], infos["_illegal_action"][rows] = illegal, True
        self._show()
        truncated = np.zeros(self.num_envs, np.bool_)
        return self.episodes.observe(self._rows), rewards, terminated, truncated, infos

    def _restart(self, rows: np.ndarray) -> None:
        self.episodes.reset(rows, [self._generator(row) for row in rows.tolist()])

    def _reset_infos(self, infos: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
        for row in rows.tolist():
            infos = self._add_info(infos, self.episodes.reset_info(row), row)
        return infos

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def render(self) -> tuple[Any, ...] | None:
        """A frame of each sub-environment."""
        return tuple(render_frame(self.episodes, row, self.render_mode) for row in range(self.num_envs))


def check_num_envs(num_envs: int) -> int:
    if not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
        raise InputError(f"num_envs is {num_envs!r}; give a whole number, at least 1")
    return int(num_envs)
