"""The environments of gang scheduling: their documentation and their arguments; see ``episodes.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.gang.episodes import ONE_SHOT, STEP, GangOneShot, GangStep
from graphopt_gym.envs.gang.instances import GangRoster

if TYPE_CHECKING:
    import os

    from graphopt_gym.hardware.machine import Machine
    from graphopt_gym.simulator.gang.workloads import Workload

    WorkloadLike = str | os.PathLike[str] | Workload
    MachineLike = str | os.PathLike[str] | Machine


class GangSchedulingEnv(EpisodeEnv):
    """
    ## Description

    A *gang* is a computation over all cores of a slice of an island of accelerators: it starts on all of them at once
    and runs without preemption. A workload of gangs (the stages of a pipeline over its micro-batches, or the calls of
    several clients) runs on a machine, over a control plane whose own costs are simulated, as Pathways does (Barham et
    al., MLSys 2022). First the plan is chosen that the workload is run by, such as the number of stages and
    micro-batches of a pipeline; then where each slice lies; then the run begins, and whenever gangs may start
    (launched, with their inputs, their cores free and memory for them) the agent says which one does, or that it waits
    for something else to happen.

    What is chosen in the end is the order in which gangs started: every core takes its gangs in that order. That is the
    decision that the simulator prices, see `GangProblem`. Choices of which there is one only are taken by themselves.

    ## Action Space

    `Discrete(A)`. Of a plan or a place: its number. Of gangs: a place in the window of `gangs`, which has up to W of
    those that may start, the earliest ready first; W: wait until something else happens, as often as there are gangs
    in an episode. An illegal action does not raise: the first plan, the place where the slice lies by default or the
    earliest gang is taken, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes of
    the table. All floats lie in 0 to 1. The features are named in `graphopt_gym.envs.gang.instances`.

    {STEP}

    ## Rewards

    Costs are to a reference: that of first come, first served, by the first plan (1 where fairness is asked for).

    `reward="improvement"`: let Φ be minus the least cost that the run can come to from where it is (a lower bound, by
    the work left on each core and the longest way to the end; of fairness, what the worst served lacks now), -1 before
    the run begins, and minus the cost of the decision at the end, -10 where it is invalid. The reward of a step is Φ
    after it minus Φ before it, so those of an episode sum to 1 minus its cost, up to rounding.

    `reward="terminal"`: minus the cost at the end, -10 where it is invalid, and 0 before.

    ## Starting State

    Nothing is chosen; what stands for it in `env.unwrapped.decision` is first come, first served, by the first plan.
    Where several workloads or machines were given, `reset` draws them by the seeded generator, or takes those that
    `options={"graph": name, "cluster": name}` names. `info` has `graph`, `cluster`, `gangs` and `plans`.

    ## Episode End

    Terminated when nothing more can start: all has run, or, which is rare, gangs wait for memory that never comes free.
    The last `info` has `decision`, int32 padded with -1, whose first `problem.decision_shape[0]` entries are a decision
    for `problem.evaluate`; `cost`; `valid`; `reasons`; `relative_cost`, to the reference.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("GangScheduling-v0", graph="toy_tenants", cluster="toy_islands")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], info["gangs"], int(env.action_space.n)
    ('toy_tenants', 11, 33)

    ```

    * `graph`: a workload: a name, the path of a JSON file, a `Workload`, a list of those, or a problem.
    * `cluster`: a machine: a name, a path, a `Machine`, or a list of those.
    * `objective`: `"step"`, `"throughput"` or `"fairness"`; see `GangProblem`.
    * `horizon_s`: when the clients' progress is looked at.
    * `controllers`: `"single"`, `"multi"` or `"none"`.
    * `dispatch`: `"parallel"` or `"sequential"`.
    * `back_pressure`: whether what lacks memory waits for it.
    * `place`: whether slices may lie elsewhere than they do by default.
    * `window`: W, ready gangs that are shown at most.
    * `wait`: whether the agent may wait although gangs may start.
    * `reward`: `"improvement"` or `"terminal"`.
    * `max_gangs`, `max_slices`, `max_clients`, `max_plans`, `max_islands`, `max_positions`: sizes to pad to; the
      largest given where left out.
    * `render_mode`: `"rgb_array"` (cores over time), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("GangScheduling-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which agrees exactly with a
    `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "GangScheduling-v0"
    tables = {"STEP": STEP}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: WorkloadLike | Sequence[WorkloadLike] = "decoder_3b",
        cluster: MachineLike | Sequence[MachineLike] = "pathways_b_16hosts",
        *,
        objective: str | None = None,
        horizon_s: float | None = None,
        controllers: str | None = None,
        dispatch: str | None = None,
        back_pressure: bool | None = None,
        place: bool | None = None,
        window: int = 32,
        wait: bool = True,
        reward: str = "improvement",
        max_gangs: int | None = None,
        max_slices: int | None = None,
        max_clients: int | None = None,
        max_plans: int | None = None,
        max_islands: int | None = None,
        max_positions: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = GangRoster(
            graph, cluster, window, max_gangs, max_slices, max_clients, max_plans, max_islands, max_positions,
            objective=objective, horizon_s=horizon_s, controllers=controllers, dispatch=dispatch,
            back_pressure=back_pressure, place=place,
        )  # fmt: skip
        super().__init__(partial(GangStep, roster, reward=reward, wait=wait), render_mode, info)


class GangSchedulingOneShotEnv(EpisodeEnv):
    """
    ## Description

    `GangScheduling-v0` in one action: the plan, how cores take turns, where each slice lies, and a level for each gang.
    With `safe=False` each core class has an order of its own, and orders that do not agree deadlock.

    ## Action Space

    `MultiDiscrete([K, 2, *[Q] * V, *[P] * N])`: the plan; 0: by level, or 1: strict; a place of each slice; a level of
    each gang, or with `safe=False` of each pair of a gang and a core class; see `GangProblem`. What lies beyond the
    chosen plan's slices and gangs is ignored. `env.unwrapped.action_masks()` says what is legal, entry by entry. An
    illegal action does not raise: its illegal entries stay as in first come, first served, by the first plan, and
    `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size, the same at every step; `env.unwrapped.unflatten(observation)`
    gives views in the shapes of the table.

    {ONE_SHOT}

    ## Rewards

    Minus the cost of the decision, to that of first come, first served by the first plan (1 where fairness is asked
    for); -10 where it is invalid.

    ## Starting State

    As in `GangScheduling-v0`.

    ## Episode End

    Terminated after one step. Its `info` has `decision`, `cost`, `valid`, `reasons` and `relative_cost` as in
    `GangScheduling-v0`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("GangSchedulingOneShot-v0", graph="toy_tenants", cluster="toy_islands")
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space.shape == env.unwrapped.problem.decision_shape
    True

    ```

    * `graph`: a workload: a name, the path of a JSON file, a `Workload`, a list of those, or a problem.
    * `cluster`: a machine: a name, a path, a `Machine`, or a list of those.
    * `objective`, `horizon_s`, `controllers`, `dispatch`, `back_pressure`, `place`: as in `GangScheduling-v0`.
    * `safe`: whether the cores' orders agree; with `False` slices lie where they do by default.
    * `levels`: P, how many levels there are.
    * `max_gangs`, `max_slices`, `max_clients`, `max_plans`, `max_positions`, `max_edges`: sizes to pad to.
    * `render_mode`: `"rgb_array"` (cores over time), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("GangSchedulingOneShot-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which agrees exactly with a
    `SyncVectorEnv` of this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "GangSchedulingOneShot-v0"
    tables = {"ONE_SHOT": ONE_SHOT}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: WorkloadLike | Sequence[WorkloadLike] = "decoder_3b",
        cluster: MachineLike | Sequence[MachineLike] = "pathways_b_16hosts",
        *,
        objective: str | None = None,
        horizon_s: float | None = None,
        controllers: str | None = None,
        dispatch: str | None = None,
        back_pressure: bool | None = None,
        place: bool | None = None,
        safe: bool | None = None,
        levels: int = 16,
        max_gangs: int | None = None,
        max_slices: int | None = None,
        max_clients: int | None = None,
        max_plans: int | None = None,
        max_positions: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = GangRoster(
            graph, cluster, 1, max_gangs, max_slices, max_clients, max_plans, None, max_positions, max_edges, levels,
            objective=objective, horizon_s=horizon_s, controllers=controllers, dispatch=dispatch,
            back_pressure=back_pressure, place=place, safe=safe,
        )  # fmt: skip
        super().__init__(partial(GangOneShot, roster), render_mode, info)
