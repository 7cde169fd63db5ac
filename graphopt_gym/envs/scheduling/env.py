"""The scheduling environments: their documentation and arguments; what happens in them is in ``core/levels.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.core.levels import OneShotLevels, StepLevels, one_shot_table, step_table
from graphopt_gym.envs.scheduling.instances import OP_FEATURES, STARTS, scheduling_roster

if TYPE_CHECKING:
    import os

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel

    GraphLike = str | os.PathLike[str] | ComputationGraph
    ClusterLike = str | os.PathLike[str] | Cluster

STEP, ONE_SHOT = step_table(len(OP_FEATURES)), one_shot_table(len(OP_FEATURES))


class SchedulingEnv(EpisodeEnv):
    """
    ## Description

    The ops of a training step are on devices already; what is left to say is which ready op a device runs next. The
    agent goes through the ops in captured order and gives each a level. A free device takes the ready op of the highest
    level, and never waits while one is ready. Either the step should take as little time as possible, or the device
    that holds the most should hold as little as possible. After the scheduling task of GO (Zhou et al., "Transferable
    Graph Optimizers for ML Compilers", NeurIPS 2020), where a priority of each op orders the ready queues.

    ## Action Space

    `Discrete(P)`: the level of the current op, of `levels` levels, higher first. An illegal action (a level that is not
    there) does not raise: the op keeps the level that it started with, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1. The features are named in `OP_FEATURES` of
    `graphopt_gym.envs.scheduling.instances` and `PROGRESS_FEATURES` of `graphopt_gym.envs.core.levels`.

    {STEP}

    ## Rewards

    `reward="improvement"`: let Φ of a decision be -sqrt(cost), the step time in seconds or the peak in GiB, ops not yet
    decided having the level that they started with. The reward of a step is Φ after it minus Φ before it, so those of
    an episode sum to Φ(final) - Φ(start), up to rounding. A decision that does not fit in memory, or takes longer than
    `within` allows, is priced by `SchedulingProblem.costs`.

    `reward="terminal"`: -sqrt(cost) at the end, -10 where the decision is invalid, and 0 before.

    ## Starting State

    Ops have the levels of a named order (`start`), captured order where left out: all of one level. Where several
    graphs or clusters were given, or what draws them, `reset` draws by the seeded generator, or takes those that
    `options={"graph": name, "cluster": name}` names. `info` has `graph`, `cluster` and `ops`.

    ## Episode End

    Terminated when the last op is decided; never truncated. The last `info` has `decision`, int32 padded with -1, whose
    first `problem.num_tasks` entries are a decision for `problem.evaluate`; `cost`; `valid`; and `reasons`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("Scheduling-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], int(env.action_space.n)
    ('transformer_xl_2layer', 16)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, a problem, or
      what draws graphs, such as `"random"`; others in place of those that do not fit the devices.
    * `cluster`: a catalog name, a path, a `Cluster`, a list of those, or what draws clusters.
    * `placement`: the name of a placement method, `"expert"` where left out, or the device of each op.
    * `objective`: `"step"`, the step time, or `"memory"`, the peak of the device that holds the most.
    * `levels`: how many levels there are, 16 where left out.
    * `ties`: within a level, the first in captured order (`"program"`), the earliest ready (`"fifo"`), or the longest
      way to the end (`"rank"`).
    * `within`: with the objective `"memory"`, how long a step may take, to that of first come, first served.
    * `memory_cap_bytes`: with the objective `"step"`, what each device may hold, where that is less than it has.
    * `cost_model`: prices the ops: an object with `op_times`, or how a step is run.
    * `reward`: `"improvement"` or `"terminal"`.
    * `start`: the name of an order: `"program"`, `"fifo"`, `"rank"`, or another of the methods that need no search.
    * `max_ops`, `max_edges`: sizes to pad to; the largest given, or that may be drawn, where left out.
    * `render_mode`: `"rgb_array"` (a Gantt chart), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("Scheduling-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates the decisions of all
    sub-environments in one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "Scheduling-v0"
    tables = {"STEP": STEP}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray | None = None,
        objective: str | None = None,
        levels: int | None = None,
        ties: str | None = None,
        within: float | None = None,
        memory_cap_bytes: int | None = None,
        cost_model: str | CostModel | None = None,
        reward: str = "improvement",
        start: str = "program",
        max_ops: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        rules: dict[str, Any] = {
            "placement": placement, "objective": objective, "ties": ties, "within": within,
            "memory_cap_bytes": memory_cap_bytes, "cost_model": cost_model,
        }  # fmt: skip
        roster = scheduling_roster(graph, cluster, max_ops, max_edges, levels, **rules)
        super().__init__(partial(StepLevels, roster, start=start, starts=STARTS, reward=reward), render_mode, info)


class SchedulingOneShotEnv(EpisodeEnv):
    """
    ## Description

    As `Scheduling-v0`, but all ops get their levels in one action, as GO (Zhou et al., "Transferable Graph Optimizers
    for ML Compilers", NeurIPS 2020) decides. An episode is one step.

    ## Action Space

    `MultiDiscrete([P] * max_ops)`: the level of each op, in captured order. Entries beyond the episode's graph are
    ignored. An op whose entry is no level keeps the level it started with, and `info["illegal_action"]` is true.
    `action_masks()` is bool [max_ops * P]; a padded op allows level 0 only.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. M stands for `max_ops`, E for `max_edges`, P for `levels`.

    {ONE_SHOT}

    ## Rewards

    -sqrt(cost), the step time in seconds or the peak in GiB, or -10 for a decision that does not fit in memory or takes
    longer than `within` allows.

    ## Starting State

    As in `Scheduling-v0`.

    ## Episode End

    Terminated after one step. Its `info` has `decision`, `cost`, `valid` and `reasons` as in `Scheduling-v0`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("SchedulingOneShot-v0", graph="transformer_xl_2layer", cluster="v100x2")
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space.shape == (info["ops"],)
    True

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, a problem, or
      what draws graphs, such as `"random"`; others in place of those that do not fit the devices.
    * `cluster`: a catalog name, a path, a `Cluster`, a list of those, or what draws clusters.
    * `placement`, `objective`, `levels`, `ties`, `within`, `memory_cap_bytes`, `cost_model`, `start`, `max_ops`,
      `max_edges`: as in `Scheduling-v0`.
    * `render_mode`: `"rgb_array"` (a Gantt chart), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("SchedulingOneShot-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates all decisions in
    one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "SchedulingOneShot-v0"
    tables = {"ONE_SHOT": ONE_SHOT}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] = "v100x2",
        *,
        placement: str | Sequence[int] | np.ndarray | None = None,
        objective: str | None = None,
        levels: int | None = None,
        ties: str | None = None,
        within: float | None = None,
        memory_cap_bytes: int | None = None,
        cost_model: str | CostModel | None = None,
        start: str = "program",
        max_ops: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        rules: dict[str, Any] = {
            "placement": placement, "objective": objective, "ties": ties, "within": within,
            "memory_cap_bytes": memory_cap_bytes, "cost_model": cost_model,
        }  # fmt: skip
        roster = scheduling_roster(graph, cluster, max_ops, max_edges, levels, **rules)
        super().__init__(partial(OneShotLevels, roster, start=start, starts=STARTS), render_mode, info)
