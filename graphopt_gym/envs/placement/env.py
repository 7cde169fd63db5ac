"""The placement environments: their documentation and their arguments; what happens in them is in ``episodes.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.placement.episodes import OneShotEpisodes, StepEpisodes
from graphopt_gym.envs.placement.features import ONE_SHOT, STEP, STEP_GRAPH
from graphopt_gym.envs.placement.instances import PlacementRoster

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import ClusterLike, GraphLike
    from graphopt_gym.hardware.cost_model import CostModel


class PlacementEnv(EpisodeEnv):
    """
    ## Description

    A training step of a neural network is a graph of thousands of ops; a cluster has a handful of devices. The agent
    goes through the graph's groups of ops in the order of their first op (a topological order of the ops) and says
    for each which device runs it. A simulator prices the complete placement: devices run one op at a time, in the
    order that `order` names, by default first come, first served; tensors that cross devices take their link; what a
    device holds must fit its memory.

    By default a group is one of the graph's colocation groups: the call of a module together with its backward ops,
    its parameters and their updates. With `grouping="phase"` the forward pass of a module call, the gradients of its
    inputs, and those of its parameters with their update are decided apart; with `grouping="op"` each op.

    Device placement by reinforcement learning goes back to Mirhoseini et al., "Device Placement Optimization with
    Reinforcement Learning", ICML 2017; one decision a group in topological order, with a reward for each, to
    Addanki et al., "Placeto", NeurIPS 2019.

    ## Action Space

    `Discrete(max_devices)`: the device of the current group. Devices beyond those of the episode's cluster (padding,
    where the environment draws from clusters of several sizes) are illegal, and so are those that `allowed_devices`
    leaves out for the group: `action_masks()`, and the observation's `action_mask`, are 0 there. An illegal action
    does not raise: the group stays where it started, the reward is that of no change, 0, and
    `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1 on any graph and cluster. The names of the features, column by column, with
    the meaning and scale of each, are `GROUP_FEATURES`, `DEVICE_FEATURES` and `PROGRESS_FEATURES` in
    `graphopt_gym.envs.placement.features`. D stands for `max_devices`, G for `max_groups`, E for `max_edges`.

    {STEP}

    The graph itself does not change within an episode and so stays out of the observation:
    `env.unwrapped.static_observation()` gives it after each reset. `observation="graph"` adds it to every
    observation, for policies that want all at once:

    {STEP_GRAPH}

    The last two change within an episode and are in the observation only. With `allowed_devices` there is `allowed`,
    int8 [G, D], too: 1 where a group may be on a device.

    ## Rewards

    `reward="improvement"`: let Φ of a placement be -sqrt(step time in seconds). The reward of a step is Φ after it
    minus Φ before it, where groups not yet decided are where they started. So the rewards of an episode sum to
    Φ(final) - Φ(start), up to rounding of the sum. A placement that does not fit in memory is priced by
    `PlacementProblem.costs` in place of its step time: its step time, plus the time of all ops one after the other on
    the slowest device, times one plus the share of memory that is missing. The sum then still tells the truth, and
    less overflow is better.

    `reward="terminal"`: the papers' reward, -sqrt(step time) of the final placement, -10 where it does not fit in
    memory, and 0 before; nothing is simulated before the end, and the observation's `cost`, `valid` and
    `peak_memory` stay 0.

    ## Starting State

    All groups are on one device (`start="single"`: the one that runs the whole graph the fastest, the first of
    equals), where the human expert has them (`"expert"`), on random devices (`"random"`), or as an array says; the
    first group is to be decided. Where several graphs or clusters were given, `reset` draws them, each evenly and
    independently, by the seeded generator, or takes those that `options={"graph": name, "cluster": name}` names.
    `info` has `graph`, `cluster` and `groups`.

    ## Episode End

    Terminated when the last group is decided; never truncated. The last `info` has `decision`, int32 [G] padded with
    -1, whose first `problem.num_groups` entries are a decision for `problem.evaluate`; `cost` (of
    `PlacementProblem.costs`: the step time in seconds where valid); `valid`; and `reasons`, a tuple of lines on what
    does not fit.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("Placement-v0", graph="rnnlm_2layer", cluster="v100x4")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], int(env.action_space.n)
    ('rnnlm_2layer', 4)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, or a problem,
      which brings its cluster; so does a workload's `.json` file, see `docs/throughput.md`; or what draws graphs anew
      at each reset, `"random"` or a function of a generator of random numbers, see `docs/generators.md`.
    * `cluster`: a catalog name, a path, a `Cluster`, or a list of those; or what draws them, `"random"`; `v100x4` where
      left out.
    * `grouping`: `"colocation"`, `"phase"` or `"op"`.
    * `order`: what a free device takes next: `"fifo"`, `"stream"`, `"program"` or `"rank"`, see `docs/rules.md`.
    * `objective`: `"step"`, or `"throughput"`: costs and rewards are of a pipeline's period in place of the step time,
      with its rules `overlap` and `transfers`, see `docs/throughput.md`.
    * `reward`: `"improvement"` or `"terminal"`.
    * `start`: `"single"`, `"expert"`, `"random"`, or one device a group (with one graph and one cluster).
    * `observation`: `"step"` or `"graph"`.
    * `max_devices`, `max_groups`, `max_edges`: sizes to pad to, for a policy that is to meet larger clusters and
      graphs; the largest given, or that may be drawn, where left out. What is drawn and is larger is an error.
    * `cost_model`: prices the ops: an object with `op_times`, or how a step is run (`"eager"`, `"back_to_back"`,
      `"graph"`, or with TF32, `"eager, tf32 all"`); the fitted roofline, eager, where left out.
    * `op_times_s`, `missing_op_times`, `tensor_bytes`, `transfer_s`, `allowed_devices`, `static_bytes`: costs of your
      own, as arrays, mappings, or files: see `docs/own_costs.md`. They are of one graph on one cluster.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the complete placement), `"ansi"`, or `"human"` (text).

    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("Placement-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates the placements of all
    sub-environments in one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class. For
    Stable-Baselines3 see `graphopt_gym.wrappers.SB3VecEnv`.

    ## Version History

    * v0: initial version.
    """

    env_id = "Placement-v0"
    tables = {"STEP": STEP, "STEP_GRAPH": STEP_GRAPH}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] | None = None,
        *,
        grouping: str = "colocation",
        order: str = "fifo",
        objective: str = "step",
        overlap: bool | None = None,
        transfers: str | None = None,
        reward: str = "improvement",
        start: str | Sequence[int] | np.ndarray = "single",
        observation: str = "step",
        max_devices: int | None = None,
        max_groups: int | None = None,
        max_edges: int | None = None,
        cost_model: str | CostModel | None = None,
        op_times_s: Any = None,
        missing_op_times: str = "refuse",
        tensor_bytes: Any = None,
        transfer_s: Any = None,
        allowed_devices: Any = None,
        static_bytes: Any = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        own = {
            "op_times_s": op_times_s, "missing_op_times": missing_op_times, "tensor_bytes": tensor_bytes,
            "transfer_s": transfer_s, "allowed_devices": allowed_devices, "static_bytes": static_bytes,
        }  # fmt: skip
        rules = {"objective": objective, "overlap": overlap, "transfers": transfers}
        roster = PlacementRoster(
            graph, cluster, grouping, order, cost_model, max_devices, max_groups, max_edges, own, rules
        )
        episodes = partial(StepEpisodes, roster, start=start, reward=reward, observation=observation)
        super().__init__(episodes, render_mode, info)


class PlacementOneShotEnv(EpisodeEnv):
    """
    ## Description

    As `Placement-v0`, but the whole graph is placed in one action: the agent sees the graph and names the device of
    every group at once, as GDP (Zhou et al., "GDP: Generalized Device Placement for Dataflow Graphs", 2019) and GO
    (Zhou et al., "Transferable Graph Optimizers for ML Compilers", NeurIPS 2020) decide. An episode is one step.

    ## Action Space

    `MultiDiscrete([max_devices] * max_groups)`: the device of each group, groups in the order of their first op.
    Entries beyond the episode's graph are ignored. An entry that names a device beyond the episode's cluster, or one
    that `allowed_devices` leaves out for the group, is illegal: that group goes to the device that runs the whole
    graph the fastest (or to one where it may be), and `info["illegal_action"]` is true. `action_masks()` is bool
    [max_groups * max_devices], group by group; a padded group allows device 0 only.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1 on any graph and cluster. D stands for `max_devices`, G for `max_groups`,
    E for `max_edges`; the features are named in `graphopt_gym.envs.placement.features`.

    {ONE_SHOT}

    With `allowed_devices` the `action_mask` is int8 [G, D], as `action_masks()` is: 1 where a group may be on a device.

    ## Rewards

    -sqrt(step time in seconds), or -10 for a placement that does not fit in memory.

    ## Starting State

    Where several graphs or clusters were given, `reset` draws them, each evenly and independently, by the seeded
    generator, or takes those that `options={"graph": name, "cluster": name}` names. `info` has `graph`, `cluster`
    and `groups`.

    ## Episode End

    Terminated after one step. Its `info` has `decision`, `cost`, `valid` and `reasons` as in `Placement-v0`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("PlacementOneShot-v0", graph="rnnlm_2layer", cluster="v100x4")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], env.action_space.shape == (info["groups"],)
    ('rnnlm_2layer', True)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, or a problem,
      which brings its cluster; so does a workload's `.json` file, see `docs/throughput.md`; or what draws graphs anew
      at each reset, `"random"` or a function of a generator of random numbers, see `docs/generators.md`.
    * `cluster`: a catalog name, a path, a `Cluster`, or a list of those; or what draws them, `"random"`; `v100x4` where
      left out.
    * `grouping`: `"colocation"`, `"phase"` or `"op"`.
    * `order`: what a free device takes next: `"fifo"`, `"stream"`, `"program"` or `"rank"`, see `docs/rules.md`.
    * `objective`: `"step"`, or `"throughput"`: costs and rewards are of a pipeline's period in place of the step time,
      with its rules `overlap` and `transfers`, see `docs/throughput.md`.
    * `max_devices`, `max_groups`, `max_edges`: sizes to pad to; the largest given, or that may be drawn, where left
      out.
    * `cost_model`: prices the ops: an object with `op_times`, or how a step is run (`"eager"`, `"back_to_back"`,
      `"graph"`, or with TF32, `"eager, tf32 all"`); the fitted roofline, eager, where left out.
    * `op_times_s`, `missing_op_times`, `tensor_bytes`, `transfer_s`, `allowed_devices`, `static_bytes`: costs of your
      own, as arrays, mappings, or files: see `docs/own_costs.md`. They are of one graph on one cluster.
    * `render_mode`: `"rgb_array"` (a Gantt chart of the placement), `"ansi"`, or `"human"` (text).

    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("PlacementOneShot-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which simulates all placements in
    one batch on all cores, and agrees exactly with a `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "PlacementOneShot-v0"
    tables = {"ONE_SHOT": ONE_SHOT}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base",
        cluster: ClusterLike | Sequence[ClusterLike] | None = None,
        *,
        grouping: str = "colocation",
        order: str = "fifo",
        objective: str = "step",
        overlap: bool | None = None,
        transfers: str | None = None,
        max_devices: int | None = None,
        max_groups: int | None = None,
        max_edges: int | None = None,
        cost_model: str | CostModel | None = None,
        op_times_s: Any = None,
        missing_op_times: str = "refuse",
        tensor_bytes: Any = None,
        transfer_s: Any = None,
        allowed_devices: Any = None,
        static_bytes: Any = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        own = {
            "op_times_s": op_times_s, "missing_op_times": missing_op_times, "tensor_bytes": tensor_bytes,
            "transfer_s": transfer_s, "allowed_devices": allowed_devices, "static_bytes": static_bytes,
        }  # fmt: skip
        rules = {"objective": objective, "overlap": overlap, "transfers": transfers}
        roster = PlacementRoster(
            graph, cluster, grouping, order, cost_model, max_devices, max_groups, max_edges, own, rules
        )
        super().__init__(partial(OneShotEpisodes, roster), render_mode, info)
