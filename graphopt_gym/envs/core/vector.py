"""The vector form of every environment: all sub-environments in one batched call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from graphopt_gym.envs.core.actions import checked_actions
from graphopt_gym.envs.core.env import EpisodeEnv, made
from graphopt_gym.envs.core.rendering import RENDER_MODES, render_frame
from graphopt_gym.errors import InputError
from graphopt_gym.fields import whole
from graphopt_gym.registration import task_of

if TYPE_CHECKING:
    from graphopt_gym.envs.core.episodes import Episodes
    from graphopt_gym.problem import Outcome, Problem

Observations = dict[str, np.ndarray]
MODES = {mode.value: mode for mode in AutoresetMode}


def __getattr__(env_id: str) -> Callable[..., EpisodeVectorEnv]:
    """The vector form of an id, by which ``gym.make_vec`` finds it."""
    try:
        task_of(env_id)
    except InputError:
        raise AttributeError(f"module {__name__!r} has no attribute {env_id!r}") from None
    return partial(EpisodeVectorEnv, env_id)


class EpisodeVectorEnv(VectorEnv[Observations, Any, np.ndarray]):
    """Several episodes of an environment at a time. Seeds, autoreset and infos are those of Gymnasium's
    ``SyncVectorEnv``, and so is everything that is observed: one code makes both forms.

    Args:
        env: an id such as ``"Placement-v0"``, or a subclass of :class:`EpisodeEnv`.
        num_envs: how many.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after an episode's last starts the next),
            ``"SameStep"`` (an episode's last step returns the next one's first observation, and
            ``infos["final_obs"]``, ``infos["final_info"]``), or ``"Disabled"`` (the caller resets those that have
            ended: ``reset(options={"reset_mask": mask})``).
        positional, arguments: those of the environment.

    Raises:
        InputError: as the environment does; another mode; less than one environment.
    """

    def __init__(
        self,
        env: str | type[EpisodeEnv],
        num_envs: int = 1,
        *positional: Any,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else MODES.get(autoreset_mode)
        if mode is None:
            raise InputError(f"autoreset_mode is {autoreset_mode!r}; give {', '.join(map(repr, MODES))}")
        self.num_envs = whole("num_envs", num_envs, 1)
        one = (task_of(env).env_class(env) if isinstance(env, str) else env)(*positional, **arguments)
        self.autoreset_mode = mode
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4, "autoreset_mode": mode}
        self.episodes: Episodes[Any] = made(one.make_episodes, self.num_envs, one.info)
        self.render_mode = one.render_mode
        self.single_observation_space = self.episodes.observation_space
        self.single_action_space = self.episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows = np.arange(self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._seeds = [-1] * self.num_envs
        self._ended: np.ndarray | None = None  # bool: whose episode is over; None before the first reset

    def _begun(self) -> Episodes[Any]:
        """The episodes. Raises ResetNeeded where none has begun."""
        if self._ended is None:
            raise ResetNeeded("no episode has begun: call reset() first")
        return self.episodes

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
        """The problem of a sub-environment's current episode; before the first, that of the only one there is."""
        return self.episodes.only_problem or self._begun().instance(row).problem

    def decision(self, row: int) -> Any:
        """int32, a copy: what is decided in a sub-environment now; see its scalar class for the undecided."""
        return self._begun().decision(row)

    def outcome(self, row: int) -> Outcome:
        """The outcome of what is decided in a sub-environment now."""
        return self._begun().outcome(row)

    def set_stage(self, stage: int) -> None:
        """Go to a stage of the curriculum, from each sub-environment's next reset on. Raises InputError where there is
        none such."""
        self.episodes.set_stage(stage)

    def static_observation(self, row: int) -> dict[str, np.ndarray]:
        """The current graph and cluster of a sub-environment as padded arrays, new copies."""
        return self._begun().static_arrays(int(self.episodes.instance_of[row]))

    def unflatten(self, observation: Observations) -> Observations:
        """Views of an observation, or of the batch, in the shapes of the table."""
        return self.episodes.unflatten(observation)

    def action_masks(self) -> np.ndarray:
        """bool [num_envs, actions]: the legal actions."""
        return self._begun().masks(self._rows)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start all episodes. An int ``seed`` seeds sub-environment i with ``seed + i``; a sequence gives each its own.

        Args:
            options: those of the environment, and ``reset_mask``, bool [num_envs]: start these episodes only.

        Raises:
            InputError: as many seeds as sub-environments are needed; an option or a name that is not known; nothing is
                changed.
        """
        seeds = self._seeds_of(seed)
        chosen = {} if options is None else options
        rows = self._rows
        if isinstance(chosen, Mapping) and "reset_mask" in chosen:
            rows = self._masked(chosen["reset_mask"])
            chosen = {name: value for name, value in chosen.items() if name != "reset_mask"}
        self.episodes.roster.check(chosen)  # before a generator is seeded
        self.episodes.reset(rows, [self._generator(row, seeds[row]) for row in rows.tolist()], chosen)
        if self._ended is None:
            self._ended = np.zeros(self.num_envs, np.bool_)
        self._ended[rows] = False
        self._show()
        return self.episodes.observe(self._rows), self._reset_infos({}, rows)

    def _seeds_of(self, seed: Any) -> list[int | None]:
        """The seed of each row."""
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, Sequence | np.ndarray):
            return [whole("seed", seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise InputError(f"{len(seed)} seeds for {self.num_envs} sub-environments; give one each, or a number")
        return [None if one is None else whole(f"seed[{row}]", one) for row, one in enumerate(seed)]

    def _masked(self, mask: Any) -> np.ndarray:
        """The rows that a reset mask names."""
        given = np.asarray(mask)
        if given.shape != (self.num_envs,) or given.dtype != np.bool_ or not given.any():
            raise InputError(f"reset_mask is {mask!r}; give bool [{self.num_envs}] with at least one True")
        if self._ended is None and not given.all():
            raise ResetNeeded("reset_mask leaves out episodes that have not begun: call reset() without it first")
        return np.flatnonzero(given)

    def step(self, actions: Any) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all. With ``NextStep`` autoreset an ended episode ignores its action and starts anew, with reward 0.

        Raises:
            ResetNeeded: before the first reset, or with ``Disabled`` autoreset where an episode has ended.
            InputError: what is no action; nothing is changed.
        """
        self._begun()
        assert self._ended is not None
        checked = checked_actions(self.single_action_space, actions, self.num_envs)
        some_ended = bool(self._ended.any())
        if some_ended and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of {np.flatnonzero(self._ended).tolist()} have ended: "
                "call reset(options={'reset_mask': mask}) first"
            )
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        rows = np.flatnonzero(~self._ended) if some_ended else self._rows
        if some_ended:
            checked = checked[rows] if isinstance(checked, np.ndarray) else [checked[row] for row in rows.tolist()]
        rewards[rows], terminated[rows], illegal = self.episodes.act(rows, checked)
        infos: dict[str, Any] = {}
        if some_ended:
            ended = np.flatnonzero(self._ended)
            self._restart(ended)
            infos = self._reset_infos(infos, ended)
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP and bool(terminated.any())
        done = np.flatnonzero(terminated)
        if same_step:
            final = self.episodes.observe(done)
            told = {row: bool(one) for row, one in zip(rows.tolist(), illegal, strict=True)}
            for position, row in enumerate(done.tolist()):
                info = {"illegal_action": told[row], **self.episodes.end_info(row)}
                observation = {name: array[position] for name, array in final.items()}
                infos = self._add_info(infos, {"final_obs": observation, "final_info": info}, row)
            self._restart(done)
            infos = self._reset_infos(infos, done)
            self._ended = np.zeros(self.num_envs, np.bool_)
            rows, illegal = rows[~terminated[rows]], illegal[~terminated[rows]]
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
        episodes = self._begun()
        return tuple(render_frame(episodes, row, self.render_mode) for row in range(self.num_envs))
