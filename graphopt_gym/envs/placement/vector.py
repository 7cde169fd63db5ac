"""The vector twins of the placement environments: all sub-environments in one batched call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.placement.episodes import OneShotEpisodes, StepEpisodes
from graphopt_gym.envs.placement.instances import PlacementRoster
from graphopt_gym.envs.vector import EpisodeVectorEnv, check_num_envs
from graphopt_gym.registration import refuse_unknown

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode

    from graphopt_gym.envs.placement.instances import ClusterLike, GraphLike
    from graphopt_gym.hardware.cost_model import CostModel


class PlacementVectorEnv(EpisodeVectorEnv):
    """``num_envs`` copies of :class:`PlacementEnv`; the arguments are its own, and:

    Args:
        num_envs: how many.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after an episode's last starts the next) or
            ``"SameStep"`` (an episode's last step returns the next one's first observation, and
            ``infos["final_obs"]``, ``infos["final_info"]``).
    """

    def __init__(
        self,
        num_envs: int = 1,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x4",
        *,
        grouping: str = "colocation",
        reward: str = "improvement",
        start: str | Sequence[int] | np.ndarray = "single",
        observation: str = "step",
        max_devices: int | None = None,
        max_groups: int | None = None,
        max_edges: int | None = None,
        cost_model: CostModel | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "NextStep",
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, PlacementVectorEnv.__init__, "Placement-v0")
        roster = PlacementRoster(graph, cluster, grouping, cost_model, max_devices, max_groups, max_edges)
        episodes = StepEpisodes(roster, check_num_envs(num_envs), start, reward, observation)
        super().__init__(episodes, render_mode, autoreset_mode)


class PlacementOneShotVectorEnv(EpisodeVectorEnv):
    """``num_envs`` copies of :class:`PlacementOneShotEnv`; arguments as there and in :class:`PlacementVectorEnv`."""

    def __init__(
        self,
        num_envs: int = 1,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x4",
        *,
        grouping: str = "colocation",
        max_devices: int | None = None,
        max_groups: int | None = None,
        max_edges: int | None = None,
        cost_model: CostModel | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "NextStep",
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, PlacementOneShotVectorEnv.__init__, "PlacementOneShot-v0")
        roster = PlacementRoster(graph, cluster, grouping, cost_model, max_devices, max_groups, max_edges)
        super().__init__(OneShotEpisodes(roster, check_num_envs(num_envs)), render_mode, autoreset_mode)
