"""The rewrite environment: its documentation and its arguments; what happens in it is in ``episodes.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.rewrite.episodes import RewriteEpisodes
from graphopt_gym.envs.rewrite.features import TABLE
from graphopt_gym.envs.rewrite.instances import DeviceLike, RewriteRoster

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.problem import ProgramLike
    from graphopt_gym.hardware.cost_model import CostModel


class RewriteOrderEnv(EpisodeEnv):
    """
    ## Description

    A network as a program of tensor operators can be rewritten by rules that keep what it computes: two matrix
    products that read the same input become one with concatenated weights, an activation goes into the operator before
    it, a transpose is undone. Some rewrites save time at once; others cost time and make room for those that save
    more. The agent says which rule is applied where, one rewrite after the other, or that it is done, as in X-RLflow
    (He et al., MLSys 2023). The rules are those of TENSAT (Yang et al., MLSys 2021) and TASO (Jia et al., SOSP 2019),
    each verified by running both sides; time is the sum of operator times on one device, simulated by a cost model.

    ## Action Space

    `Discrete(max_matches + 1)`. Action 0 ends the episode. Action `i` applies match `i - 1` of the observation: a rule
    and the one or two nodes (the roots) that it replaces. Matches are in order of rule, then roots, and are kept up to
    date from one rewrite to the next. Where there are more than `max_matches`, each rule shows as evenly many as it
    goes. A rewrite for which the program might outgrow `max_nodes` or `max_edges` is not shown. `action_masks()` and
    the observation's `action_mask` are 0 for actions beyond the matches. Such an action does not raise: it changes
    nothing, takes a step, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1 on any program and device. The features' names and meanings are in
    `NODE_FEATURES` (F of them) and `MATCH_FEATURES` (K) of `graphopt_gym.envs.rewrite.features`, and in
    `PROGRESS_FEATURES` there. N stands for `max_nodes`, E for `max_edges`, M for
    `max_matches`.

    {TABLE}

    `env.unwrapped.static_observation()` gives the table (without `progress`) for the original program.

    ## Rewards

    The drop in time, relative to the original's; negative where a rewrite costs time. So an episode's rewards add up to
    the share of the original's time that is saved in the end.

    ## Starting State

    The original program. Where several programs or devices were given, `reset` draws them, each evenly and
    independently, by the seeded generator, or takes those that `options={"graph": name, "cluster": name}` names.
    `info` has `graph`, `cluster`, `nodes`, `matches` (how many there are) and `cost`, the original's seconds.

    ## Episode End

    Terminated by action 0, after `max_steps` steps, or where no match is left; never truncated, as the steps left are
    observed. The last `info` has

    * `decision`: the text of the program, a decision for `problem.evaluate`; `cost` (seconds), `valid` and `reasons`:
      true and empty, since rules keep what a program computes;
    * `trace`: a row a rewrite: the rule, the places of its roots in the order of the program that it was applied to,
      and the seconds after it;
    * `steps`, `best_cost` (the least on the way), and `saved`, the sum of all rewards.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("RewriteOrder-v0", graph="squeezenet", cluster="t4")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], info["matches"] == int(observation["action_mask"].sum()) - 1
    ('squeezenet', True)
    >>> observation, reward, terminated, truncated, info = env.step(1)
    >>> terminated, info["illegal_action"]
    (False, False)
    >>> observation, reward, terminated, truncated, info = env.step(0)
    >>> terminated, len(info["trace"]), env.unwrapped.outcome().valid
    (True, 1, True)

    ```

    * `graph`: a program: a zoo name (`graphopt_gym.graphs.zoo.programs.program_names()`), the path of a text or ONNX
      file, a `TensorProgram`, a list of those, the name of a split, or a problem, which brings its device.
    * `cluster`: a device: a catalog name, a `Device`, a cluster of one device, or a list of those.
    * `cost`: `"sum"` of operator times, or `"simulated"`.
    * `rules`: names of rules or families; all where left out.
    * `max_steps`: after so many steps an episode ends.
    * `max_matches`: matches that are shown at most.
    * `max_nodes`, `max_edges`: sizes to pad to, which a program cannot outgrow; half as many again as the largest
      program has where left out.
    * `cost_model`: prices the operators: an object with `op_times`, or how a program is run (`"eager"`,
      `"back_to_back"`, `"graph"`, or with TF32, `"graph, tf32 all"`); back to back where left out.
    * `render_mode`: `"rgb_array"` (the program before and now), `"ansi"`, or `"human"` (text).

    * `info`: `"full"`, or `"light"`: numbers only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("RewriteOrder-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which shares programs, matches and
    prices between its sub-environments, and agrees exactly with a `SyncVectorEnv` of this class. For Stable-Baselines3
    see `graphopt_gym.wrappers.SB3VecEnv`.

    An environment keeps the last 256 programs that it came by, with their matches and what is seen of them. A step to
    one of these takes tens of microseconds, any other about a millisecond: steps a second depend on how often a policy
    repeats itself (`graphopt bench rewrite-env` has both).

    ## Version History

    * v0: initial version.
    """

    env_id = "RewriteOrder-v0"
    tables = {"TABLE": TABLE}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: ProgramLike | Sequence[ProgramLike] = "squeezenet",
        cluster: DeviceLike | Sequence[DeviceLike] = "t4",
        *,
        cost: str = "sum",
        rules: str | Iterable[str] | None = None,
        max_steps: int = 100,
        max_matches: int = 256,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        cost_model: str | CostModel | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = RewriteRoster(graph, cluster, cost, rules, max_matches, max_nodes, max_edges, cost_model)
        super().__init__(partial(RewriteEpisodes, roster, max_steps=max_steps), render_mode, info)
