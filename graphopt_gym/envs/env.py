"""What the scalar environments share; their vector twins are in ``vector.py``, what both share in ``episodes.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from graphopt_gym.envs.rendering import RENDER_MODES, check_render_mode, render_frame

if TYPE_CHECKING:
    from graphopt_gym.envs.episodes import Episodes
    from graphopt_gym.problem import Outcome, Problem

_ROW = np.zeros(1, np.int64)  # a scalar environment is row 0 of its episodes


class EpisodeEnv(gym.Env[dict[str, np.ndarray], Any]):
    """A Gymnasium environment over one episode at a time."""

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, episodes: Episodes[Any], render_mode: str | None) -> None:
        self.episodes = episodes
        self.observation_space = episodes.observation_space  # type: ignore[assignment]
        self.action_space = episodes.action_space
        self.render_mode = check_render_mode(render_mode)
        self._running = self._started = False

    @property
    def problem(self) -> Problem:
        """The problem of the current episode."""
        return self.episodes.instance(0).problem

    @property
    def decision(self) -> Any:
        """What is decided now, int32 and a copy in most tasks; the class says what stands for the undecided."""
        return self.episodes.decision(0)

    def outcome(self) -> Outcome:
        """The outcome of what is decided now."""
        return self.episodes.outcome(0)

    def static_observation(self) -> dict[str, np.ndarray]:
        """The current graph and cluster as padded arrays, new copies; shapes as the class describes."""
        return self.episodes.static_arrays(int(self.episodes.instance_of[0]))

    def unflatten(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Views of an observation (or of a batch of them) in the shapes of the table."""
        return self.episodes.unflatten(observation)

    def action_masks(self) -> np.ndarray:
        """bool [actions]: the legal actions, in the form that sb3-contrib's MaskablePPO asks for."""
        return self.episodes.masks(_ROW)[0]

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: array[0] for name, array in self.episodes.observe(_ROW).items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the generator that draws graph, cluster and all else that is random.
            options: ``{"graph": name, "cluster": name}``, either or both, to choose in place of drawing.

        Raises:
            InputError: an option or a name that is not known.
        """
        super().reset(seed=seed)
        self.episodes.reset(_ROW, [self.np_random], options)
        self._running = self._started = True
        if self.render_mode == "human":
            self.render()
        return self._observation(), self.episodes.reset_info(0)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise ResetNeeded("the episode has ended, or none has begun: call reset() first")
        rewards, done, illegal = self.episodes.act(_ROW, np.asarray(action)[None])
        info: dict[str, Any] = {"illegal_action": bool(illegal[0])}
        if done[0]:
            self._running = False
            info |= self.episodes.end_info(0)
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(rewards[0]), bool(done[0]), False, info

    def render(self) -> Any:
        if not self._started:
            raise ResetNeeded("nothing to render yet: call reset() first")
        return render_frame(self.episodes, 0, self.render_mode)
