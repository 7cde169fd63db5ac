"""The vector twin of the chiplet environment: all sub-environments in one batched call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.chiplet.episodes import make_episodes
from graphopt_gym.envs.chiplet.instances import ChipletRoster
from graphopt_gym.envs.vector import EpisodeVectorEnv, check_num_envs
from graphopt_gym.registration import refuse_unknown

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode

    from graphopt_gym.envs.chiplet.instances import GraphLike, PackageLike


class ChipletPartitionVectorEnv(EpisodeVectorEnv):
    """``num_envs`` copies of :class:`ChipletPartitionEnv`; the arguments are its own, and:

    Args:
        num_envs: how many.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after an episode's last starts the next) or
            ``"SameStep"`` (an episode's last step returns the next one's first observation, and
            ``infos["final_obs"]``, ``infos["final_info"]``).
    """

    def __init__(
        self,
        num_envs: int = 1,
        graph: GraphLike | Sequence[GraphLike] = "bert_base_b1",
        cluster: PackageLike | Sequence[PackageLike] = "mcm36",
        *,
        mode: str = "fix",
        memory_rule: bool = False,
        max_ops: int | None = None,
        max_chips: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "NextStep",
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, ChipletPartitionVectorEnv.__init__, "ChipletPartition-v0")
        roster = ChipletRoster(graph, cluster, memory_rule, max_ops, max_chips, max_edges)
        super().__init__(make_episodes(roster, check_num_envs(num_envs), mode), render_mode, autoreset_mode)
