"""The scalar environments; their vector form is in ``vector.py``, what both share in ``episodes.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from graphopt_gym.envs.core.actions import checked_action
from graphopt_gym.envs.core.rendering import RENDER_MODES, check_render_mode, render_frame
from graphopt_gym.errors import InputError, one_line
from graphopt_gym.fields import whole
from graphopt_gym.registration import refuse_unknown

if TYPE_CHECKING:
    from graphopt_gym.envs.core.episodes import Episodes
    from graphopt_gym.envs.core.observation import ObservationTable
    from graphopt_gym.problem import Outcome, Problem

_ROW = np.zeros(1, np.int64)  # a scalar environment is row 0 of its episodes


def made(make_episodes: Callable[..., Episodes[Any]], count: int, info: str) -> Episodes[Any]:
    """``count`` episodes. Raises InputError where they do not fit in memory."""
    try:
        return make_episodes(count=count, info=info)
    except MemoryError as error:
        raise InputError(
            f"{count} episodes do not fit in memory: {one_line(error)}; give fewer, or smaller sizes to pad to"
        ) from None


class EpisodeEnv(gym.Env[dict[str, np.ndarray], Any]):
    """A Gymnasium environment over one episode at a time.

    A subclass says its ``env_id``, documents itself, and states its arguments in ``__init__``, ``render_mode`` and
    ``info`` among them; the vector form takes the same. In its docstring ``{NAME}`` stands for a table of ``tables``.

    Args:
        make_episodes: gives the episodes, called with ``count`` and ``info``; ``functools.partial`` of a class, so
            that an environment can be pickled.
        render_mode: one of RENDER_MODES, or None.
        info: ``"full"``, or ``"light"``: numbers and arrays of fixed sizes only.
    """

    env_id: ClassVar[str]
    tables: ClassVar[dict[str, ObservationTable]] = {}
    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 - Gymnasium's own form

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, table in cls.tables.items():
            if cls.__doc__:  # not under python -OO
                cls.__doc__ = cls.__doc__.replace(f"{{{name}}}", table.markdown())

    def __new__(cls, *positional: Any, **arguments: Any) -> EpisodeEnv:
        refuse_unknown(arguments, cls.__init__, cls.env_id)
        return super().__new__(cls)

    def __init__(
        self, make_episodes: Callable[..., Episodes[Any]], render_mode: str | None = None, info: str = "full"
    ) -> None:
        self.make_episodes = make_episodes
        self.render_mode = check_render_mode(render_mode)
        self.info = info
        self.episodes = made(make_episodes, 1, info)
        self.observation_space = self.episodes.observation_space  # type: ignore[assignment]
        self.action_space = self.episodes.action_space
        self._running = self._started = False

    def _begun(self) -> Episodes[Any]:
        """The episodes. Raises ResetNeeded where none has begun."""
        if not self._started:
            raise ResetNeeded("no episode has begun: call reset() first")
        return self.episodes

    @property
    def problem(self) -> Problem:
        """The problem of the current episode; before the first, that of an environment which has only one."""
        return self.episodes.only_problem or self._begun().instance(0).problem

    @property
    def decision(self) -> Any:
        """What is decided now, int32 and a copy in most tasks; the class says what stands for the undecided."""
        return self._begun().decision(0)

    def outcome(self) -> Outcome:
        """The outcome of what is decided now."""
        return self._begun().outcome(0)

    def set_stage(self, stage: int) -> None:
        """Go to a stage of the curriculum, from the next reset on. Raises InputError where there is none such."""
        self.episodes.set_stage(stage)

    def static_observation(self) -> dict[str, np.ndarray]:
        """The current graph and cluster as padded arrays, new copies; shapes as the class describes."""
        return self._begun().static_arrays(int(self.episodes.instance_of[0]))

    def unflatten(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Views of an observation (or of a batch of them) in the shapes of the table."""
        return self.episodes.unflatten(observation)

    def action_masks(self) -> np.ndarray:
        """bool [actions]: the legal actions, in the form that sb3-contrib's MaskablePPO asks for."""
        return self._begun().masks(_ROW)[0]

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: array[0] for name, array in self.episodes.observe(_ROW).items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the generator that draws graph, cluster and all else that is random.
            options: ``{"graph": name, "cluster": name}``, either or both, to choose in place of drawing; ``"stage"``,
                a stage of the curriculum for this episode.

        Raises:
            InputError: an option or a name that is not known, or a seed that is none; nothing is changed.
        """
        self.episodes.roster.check(options)
        super().reset(seed=None if seed is None else whole("seed", seed))
        self.episodes.reset(_ROW, [self.np_random], options)
        self._running = self._started = True
        if self.render_mode == "human":
            self.render()
        return self._observation(), self.episodes.reset_info(0)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take an action. Raises ResetNeeded where no episode runs, InputError for what is no action."""
        if not self._running:
            raise ResetNeeded("the episode has ended, or none has begun: call reset() first")
        rewards, done, illegal = self.episodes.act(_ROW, checked_action(self.action_space, action))
        info: dict[str, Any] = self.episodes.told({"illegal_action": bool(illegal[0])})
        if done[0]:
            self._running = False
            info |= self.episodes.end_info(0)
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(rewards[0]), bool(done[0]), False, info

    def render(self) -> Any:
        """A frame, a text, or nothing, by ``render_mode``. Raises ResetNeeded before the first episode."""
        return render_frame(self._begun(), 0, self.render_mode)
