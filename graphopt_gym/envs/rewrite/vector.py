"""The vector twin of the rewrite environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.rewrite.episodes import RewriteEpisodes
from graphopt_gym.envs.rewrite.instances import DeviceLike, RewriteRoster
from graphopt_gym.envs.vector import EpisodeVectorEnv, check_num_envs
from graphopt_gym.registration import refuse_unknown

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode

    from graphopt_gym.envs.rewrite.problem import ProgramLike


class RewriteOrderVectorEnv(EpisodeVectorEnv):
    """``num_envs`` copies of :class:`RewriteOrderEnv`; the arguments are its own, and:

    Args:
        num_envs: how many.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after an episode's last starts the next) or
            ``"SameStep"`` (an episode's last step returns the next one's first observation, and
            ``infos["final_obs"]``, ``infos["final_info"]``).
    """

    def __init__(
        self,
        num_envs: int = 1,
        graph: ProgramLike | Sequence[ProgramLike] = "squeezenet",
        cluster: DeviceLike | Sequence[DeviceLike] = "t4",
        *,
        cost: str = "sum",
        rules: str | Iterable[str] | None = None,
        max_steps: int = 100,
        max_matches: int = 256,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "NextStep",
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, RewriteOrderVectorEnv.__init__, "RewriteOrder-v0")
        roster = RewriteRoster(graph, cluster, cost, rules, max_matches, max_nodes, max_edges)
        episodes = RewriteEpisodes(roster, check_num_envs(num_envs), max_steps)
        super().__init__(episodes, render_mode, autoreset_mode)
