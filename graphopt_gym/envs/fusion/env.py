"""The fusion environments: their documentation and their arguments; what happens in them is in ``core/levels.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.core.levels import OneShotLevels, StepLevels, one_shot_table, step_table
from graphopt_gym.envs.fusion.instances import OP_FEATURES, STARTS, fusion_roster

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel

    GraphLike = str | os.PathLike[str] | ComputationGraph
    ClusterLike = str | os.PathLike[str] | Cluster

STEP, ONE_SHOT = step_table(len(OP_FEATURES)), one_shot_table(len(OP_FEATURES))


class FusionEnv(EpisodeEnv):
    """
    ## Description

    A compiler turns the thousands of ops of a training step into fewer kernels: an op that is fused into those that
    read it saves its launch, and its result need not go through memory. The placement is given. The agent goes through
    the ops that may be fused into a consumer, in topological order, and gives each a level: producers of the highest
    level are tried first, those of level 0 never. A producer goes into all of its consumers that it may go into, or
    into none; what is legal is as in production compilers, see `docs/fusion.md`. Which fusions are tried first matters
    as one can stand in the way of another: a kernel has one matmul, convolution or row-wise op at most, kernels never
    make a cycle, and their size is bounded. A simulator prices the complete decision.

    Fusion by a priority an op is a task of GO (Zhou et al., "Transferable Graph Optimizers for ML Compilers",
    NeurIPS 2020).

    ## Action Space

    `Discrete(P)`: the level of the current op, of `levels` levels. An illegal action (a level that is not there) does
    not raise: the op keeps the level that it started with, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1. The features are named in `OP_FEATURES` of
    `graphopt_gym.envs.fusion.instances` and `PROGRESS_FEATURES` of `graphopt_gym.envs.core.levels`.

    {STEP}

    ## Rewards

    `reward="improvement"`: let Φ of a decision be -sqrt(step time in seconds), ops not yet decided having the level
    that they started with. The reward of a step is Φ after it minus Φ before it, so those of an episode sum to
    Φ(final) - Φ(start), up to rounding. A decision that does not fit in memory is priced by `FusionProblem.costs`.

    `reward="terminal"`: -sqrt(step time) at the end, -10 where it does not fit in memory, and 0 before.

    ## Starting State

    All ops have level 0, nothing is fused (`start="none"`), or all have level 1 (`"greedy"`). Where several graphs or
    clusters were given, `reset` draws them by the seeded generator, or takes those that
    `options={"graph": name, "cluster": name}` names. `info` has `graph`, `cluster` and `ops`.

    ## Episode End

    Terminated when the last op is decided; never truncated. The last `info` has `decision`, int32 padded with -1, whose
    first `problem.num_tasks` entries are a decision for `problem.evaluate`; `cost`; `valid`; and `reasons`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("Fusion-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], int(env.action_space.n)
    ('transformer_xl_2layer', 16)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, a problem, or
      what draws graphs, such as `"random"`; others in place of those that do not fit the devices.
    * `cluster`: a catalog name, a path, a `Cluster`, a list of those, or what draws clusters.
    * `placement`: the name of a placement method, `"expert"` where left out, or the device of each op.
    * `levels`: how many levels there are, 16 where left out.
    * `order`: what a free device takes next: `"fifo"` or `"rank"`, see `docs/rules.md`.
    * `cost_model`: prices the ops and kernels: an object with `op_times` and `components`, or how a step is run.
    * `reward`: `"improvement"` or `"terminal"`.
    * `start`: `"none"` or `"greedy"`.
    * `max_ops`, `max_edges`: sizes to pad to; the largest given, or that may be drawn, where left out.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the kernels), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("Fusion-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates the decisions of all
    sub-environments in one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "Fusion-v0"
    tables = {"STEP": STEP}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray | None = None,
        levels: int | None = None,
        order: str | None = None,
        cost_model: str | CostModel | None = None,
        reward: str = "improvement",
        start: str = "none",
        max_ops: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        rules: dict[str, Any] = {"placement": placement, "levels": levels, "order": order, "cost_model": cost_model}
        roster = fusion_roster(graph, cluster, max_ops, max_edges, **rules)
        super().__init__(partial(StepLevels, roster, start=start, starts=STARTS, reward=reward), render_mode, info)


class FusionOneShotEnv(EpisodeEnv):
    """
    ## Description

    As `Fusion-v0`, but all ops get their levels in one action, as GO (Zhou et al., "Transferable Graph Optimizers for
    ML Compilers", NeurIPS 2020) decides. An episode is one step.

    ## Action Space

    `MultiDiscrete([P] * max_ops)`: the level of each op that may be fused into a consumer, in topological order.
    Entries beyond the episode's graph are ignored. An op whose entry is no level keeps the level it started with, and
    `info["illegal_action"]` is true. `action_masks()` is bool [max_ops * P]; a padded op allows level 0 only.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. M stands for `max_ops`, E for `max_edges`, P for `levels`.

    {ONE_SHOT}

    ## Rewards

    -sqrt(step time in seconds), or -10 for a decision that does not fit in memory.

    ## Starting State

    As in `Fusion-v0`.

    ## Episode End

    Terminated after one step. Its `info` has `decision`, `cost`, `valid` and `reasons` as in `Fusion-v0`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("FusionOneShot-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space.shape == (info["ops"],)
    True

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, a problem, or
      what draws graphs, such as `"random"`; others in place of those that do not fit the devices.
    * `cluster`: a catalog name, a path, a `Cluster`, a list of those, or what draws clusters.
    * `placement`, `levels`, `order`, `cost_model`, `start`, `max_ops`, `max_edges`: as in `Fusion-v0`.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the kernels), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("FusionOneShot-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates all decisions in one
    batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "FusionOneShot-v0"
    tables = {"ONE_SHOT": ONE_SHOT}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray | None = None,
        levels: int | None = None,
        order: str | None = None,
        cost_model: str | CostModel | None = None,
        start: str = "none",
        max_ops: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        rules: dict[str, Any] = {"placement": placement, "levels": levels, "order": order, "cost_model": cost_model}
        roster = fusion_roster(graph, cluster, max_ops, max_edges, **rules)
        super().__init__(partial(OneShotLevels, roster, start=start, starts=STARTS), render_mode, info)
