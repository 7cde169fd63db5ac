"""The environments of joint optimisation: their documentation and their arguments; see ``episodes.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.joint.episodes import ONE_SHOT, STEP, JointOneShot, JointStep
from graphopt_gym.envs.joint.instances import JointRoster

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel

    GraphLike = str | os.PathLike[str] | ComputationGraph
    ClusterLike = str | os.PathLike[str] | Cluster


class GraphOptimizationEnv(EpisodeEnv):
    """
    ## Description

    A compiler decides where the ops of a training step run, which of them become one kernel, and in which order a
    device takes what is ready. The three depend on each other: ops are fused only with ops on their device, and what
    is urgent depends on what is fused and where. Here they are one decision, taken one choice a step: first a device
    for each colocation group, then a fusion level for each op that may go into a consumer, then a schedule level for
    each op. Producers of the highest fusion level are tried first, those of level 0 never; a free device takes of its
    ready kernels that of the highest schedule level, of one level the earliest ready; a kernel is as urgent as its
    most urgent op. A simulator prices the complete decision.

    After GO (Zhou et al., "Transferable Graph Optimizers for ML Compilers", NeurIPS 2020). `tasks` leaves some of the
    three as a default stack has them.

    ## Action Space

    `Discrete(C)`: the device of the current group, or the level of the current op. An illegal action (a device or a
    level that is not there) does not raise: the entry keeps what it started with, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1. The features are named in `OP_FEATURES` of
    `graphopt_gym.envs.joint.instances`, `NODE_FEATURES` of `graphopt_gym.envs.placement.features` and
    `PROGRESS_FEATURES` of `graphopt_gym.envs.joint.episodes`.

    {STEP}

    ## Rewards

    `reward="improvement"`: let Φ of a decision be -sqrt(step time in seconds), entries not yet decided being what they
    started with. The reward of a step is Φ after it minus Φ before it, so those of an episode sum to Φ(final) -
    Φ(start), up to rounding. A decision that does not fit in memory is priced by `GraphOptimizationProblem.costs`.

    `reward="terminal"`: -sqrt(step time) at the end, -10 where it does not fit in memory, and 0 before.

    ## Starting State

    The default stack (`start="default"`), or everything on device 0, nothing fused, first come, first served
    (`"plain"`). Where several graphs or clusters were given, `reset` draws them by the seeded generator, or takes those
    that `options={"graph": name, "cluster": name}` names. `info` has `graph`, `cluster` and `ops`, the number of steps.

    ## Episode End

    Terminated when the last entry is decided; never truncated. The last `info` has `decision`, int32 padded with -1,
    whose first `problem.decision_shape[0]` entries are a decision for `problem.evaluate`; `cost`; `valid`; `reasons`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("GraphOptimization-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], int(env.action_space.n)
    ('transformer_xl_2layer', 16)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, or a problem.
    * `cluster`: a catalog name, a path, a `Cluster`, or a list of those.
    * `tasks`: what is decided, some of `"placement"`, `"fusion"`, `"schedule"`, all where left out.
    * `placement`, `fusion`, `schedule`: the default stack: `"expert"`, `"greedy"` and `"fifo"` where left out.
    * `levels`: how many levels there are, 16 where left out.
    * `cost_model`: prices the ops and kernels: an object with `op_times` and `components`, or how a step is run.
    * `reward`: `"improvement"` or `"terminal"`.
    * `start`: `"default"` or `"plain"`.
    * `max_ops`, `max_edges`, `max_groups`, `max_devices`: sizes to pad to; the largest given where left out.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the kernels), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("GraphOptimization-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates the decisions of
    all sub-environments in one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "GraphOptimization-v0"
    tables = {"STEP": STEP}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        tasks: str | Sequence[str] | None = None,
        placement: str | None = None,
        fusion: str | None = None,
        schedule: str | None = None,
        levels: int | None = None,
        cost_model: str | CostModel | None = None,
        reward: str = "improvement",
        start: str = "default",
        max_ops: int | None = None,
        max_edges: int | None = None,
        max_groups: int | None = None,
        max_devices: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = JointRoster(
            graph, cluster, max_ops, max_edges, max_groups, max_devices, tasks=tasks, placement=placement,
            fusion=fusion, schedule=schedule, levels=levels, cost_model=cost_model,
        )  # fmt: skip
        super().__init__(partial(JointStep, roster, start=start, reward=reward), render_mode, info)


class GraphOptimizationOneShotEnv(EpisodeEnv):
    """
    ## Description

    As `GraphOptimization-v0`, but everything is decided in one action, as GO (Zhou et al., "Transferable Graph
    Optimizers for ML Compilers", NeurIPS 2020) decides. An episode is one step.

    ## Action Space

    `MultiDiscrete([D] * max_groups + [P] * max_ops + [P] * max_ops)`: the device of each group, the fusion level of
    each op, its schedule level; the blocks of tasks that are not decided are left out. Entries beyond the episode's
    graph are ignored. One that is no device or level keeps what it started with, and `info["illegal_action"]` is true.
    `action_masks()` is bool, one choice after the other; a padded entry allows 0 only.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. K stands for `max_ops`, E for `max_edges`, G for `max_groups`, D for `max_devices`, P for `levels`.

    {ONE_SHOT}

    ## Rewards

    -sqrt(step time in seconds), or -10 for a decision that does not fit in memory.

    ## Starting State

    As in `GraphOptimization-v0`.

    ## Episode End

    Terminated after one step. Its `info` has `decision`, `cost`, `valid` and `reasons` as in `GraphOptimization-v0`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("GraphOptimizationOneShot-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> problem = env.unwrapped.problem
    >>> env.action_space.shape == problem.decision_shape
    True

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, or a problem.
    * `cluster`: a catalog name, a path, a `Cluster`, or a list of those.
    * `tasks`, `placement`, `fusion`, `schedule`, `levels`, `cost_model`, `start`: as in `GraphOptimization-v0`.
    * `max_ops`, `max_edges`, `max_groups`, `max_devices`: as there.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the kernels), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("GraphOptimizationOneShot-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates all
    decisions in one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "GraphOptimizationOneShot-v0"
    tables = {"ONE_SHOT": ONE_SHOT}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        tasks: str | Sequence[str] | None = None,
        placement: str | None = None,
        fusion: str | None = None,
        schedule: str | None = None,
        levels: int | None = None,
        cost_model: str | CostModel | None = None,
        start: str = "default",
        max_ops: int | None = None,
        max_edges: int | None = None,
        max_groups: int | None = None,
        max_devices: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = JointRoster(
            graph, cluster, max_ops, max_edges, max_groups, max_devices, tasks=tasks, placement=placement,
            fusion=fusion, schedule=schedule, levels=levels, cost_model=cost_model,
        )  # fmt: skip
        super().__init__(partial(JointOneShot, roster, start=start), render_mode, info)
