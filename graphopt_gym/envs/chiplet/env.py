"""The chiplet environment: its documentation and its arguments; what happens in it is in ``episodes.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from graphopt_gym.envs.chiplet.episodes import make_episodes
from graphopt_gym.envs.chiplet.instances import ChipletRoster
from graphopt_gym.envs.chiplet.walk import ONE_SHOT, STEP
from graphopt_gym.envs.core.env import EpisodeEnv

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.instances import GraphLike, PackageLike


class ChipletPartitionEnv(EpisodeEnv):
    """
    ## Description

    A package holds dozens of small chips, joined to their neighbours by links much slower than a chip's own memory.
    A network runs through it as a pipeline: each op on one chip, one sample after the other. The agent says which chip
    runs each op. Once the pipeline is full, a sample is done every *period*: the time of the slowest chip (all its
    ops) or link (all bytes that pass over it).

    A partition is valid when data never flows back to a lower chip, no chip below the highest is skipped, no edge
    between chips has a longer way beside it (the triangle rule), and every chip's memory holds what its ops need. So
    few partitions are valid that a random one never is. A constraint solver therefore makes every proposal valid but
    for memory, which only the compiler's back end knows, as in Xie et al., "A Transferable Approach for Partitioning
    Machine Learning Models on Multi-Chip-Modules", MLSys 2022. With `memory_rule=True` the solver keeps to memory too,
    as far as it finds a way.

    ## Action Space

    By `mode`; N stands for `max_ops`, C for `max_chips`. Ops are in topological order.

    * `"fix"` (one step an episode): `MultiDiscrete([C] * N)`, a candidate. The solver keeps the chips that it can, in a
      random order of the ops, and gives the others the nearest that is left; a valid candidate stays as it is. An entry
      that names a chip beyond the episode's package is illegal: the package's last chip is taken in its place, and
      `info["illegal_action"]` is true.
    * `"sample"` (one step an episode): `Box(0, 1, (N, C))`, a row of chances an op (rows need not sum to 1). The solver
      visits the ops in a random order and draws each one's chip by its chances among the chips that are left for it,
      evenly where none of these has any (a row of zeros: among all of them).
    * `"step"` (one step an op): `Discrete(C)`, the chip of the current op. Ops come in topological order: what an op
      reads has its chip already, so that its transfers and the rules' effect on it can be seen, and the greedy
      heuristic goes the same way. `action_masks()` and the observation's `action_mask` are 0 for chips that contradict
      the rules at once. An illegal action does not raise: the nearest allowed chip is taken (the lower of two), and
      `info["illegal_action"]` is true. Since masks cannot see everything, an op may come to have no chip left: a dead
      end. Then the solver completes the partition, keeping the decided ops' chips where it can, and the episode ends
      with `info["dead_end"]` true. The same happens with `memory_rule=True` where the last op makes it clear that a
      chip's memory does not do.

    Entries beyond the episode's graph, and chances beyond its package, are ignored. In the one-shot modes
    `action_masks()` is bool [N * C], op by op: the chips of the package; a padded op allows chip 0 only.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the tables. All floats lie in 0 to 1 on any graph and package. The features' names and meanings are in
    `OP_FEATURES` (F of them) and `CHIP_FEATURES` (K) of `graphopt_gym.envs.chiplet.features`. E stands for
    `max_edges`. The one-shot modes show the whole graph:

    {ONE_SHOT}

    `mode="step"` shows the current op, and `env.unwrapped.static_observation()` gives the table above after each reset.
    The further features are in `STEP_CHIP_FEATURES` and `PROGRESS_FEATURES` of `graphopt_gym.envs.chiplet.walk`.

    {STEP}

    ## Rewards

    The throughput relative to the greedy compiler heuristic's (`graphopt_gym.envs.chiplet.methods.greedy_decision`):
    its period by the partition's. 0 where a chip's memory does not hold what it must. In `"step"` mode the last step
    gets it, the others 0. (Where the heuristic itself finds nothing that fits the memory, its period counts all the
    same.)

    ## Starting State

    No op has a chip. Where several graphs or packages were given, `reset` draws them, each evenly and independently,
    by the seeded generator, or takes those that `options={"graph": name, "cluster": name}` names. `info` has `graph`,
    `cluster`, `ops` and `chips`. The same generator gives the solver's random orders and draws.

    ## Episode End

    Terminated after one step, or with the last op, or at a dead end; never truncated. The last `info` has

    * `decision`, int32 [N] padded with -1, whose first `problem.num_ops` entries are a decision for
      `problem.evaluate`;
    * `changed_ops`, bool [N], and `changed`, how many: ops that did not get the chip that was asked for. In
      `"sample"` mode: whose chip is not the likeliest of its row; in `"step"` mode: what a completion took back;
    * `cost` (of `ChipletProblem.costs`: the period in seconds where valid), `valid`, and `reasons`, a tuple of lines on
      what does not fit;
    * `throughput`, the reward;
    * in `"sample"` mode `drawn_from`, int64 [N]: the set of chips, as bits, among which each op's chip was drawn; 0
      where there was no choice. It makes the exact probability of what was drawn;
    * in `"step"` mode `dead_end`, whether the solver completed the partition.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("ChipletPartition-v0", graph="bert_tiny_b16", cluster="mcm4")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], info["chips"], env.action_space.shape == (info["ops"],)
    ('bert_tiny_b16', 4, True)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> terminated, info["changed"] > 0, reward == info["throughput"]
    (True, True, True)

    ```

    * `graph`: a zoo name, a path, a `ComputationGraph`, a list of those, the name of a split of the zoo, or a problem,
      which brings its cluster; in modes `"fix"` and `"sample"` also what draws graphs anew at each reset,
      `"random:train=no"` or a function of a generator of random numbers, see `docs/generators.md`.
    * `cluster`: a package: a catalog name, a path, a `Package`, or a list of those.
    * `mode`: `"fix"`, `"sample"` or `"step"`.
    * `memory_rule`: whether the solver keeps to the chips' memory.
    * `max_ops`, `max_chips`, `max_edges`: sizes to pad to, for a policy that is to meet larger packages and graphs;
      the largest given where left out.
    * `render_mode`: `"rgb_array"` (bars of every chip's time, link and memory), `"ansi"`, or `"human"` (text).

    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("ChipletPartition-v0", num_envs=64)` gives an `EpisodeVectorEnv`, which corrects the proposals of
    all sub-environments on all cores, and agrees exactly with a `SyncVectorEnv` of this class. For
    Stable-Baselines3 see `graphopt_gym.wrappers.SB3VecEnv`.

    ## Version History

    * v0: initial version.
    """

    env_id = "ChipletPartition-v0"
    tables = {"ONE_SHOT": ONE_SHOT, "STEP": STEP}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike] = "bert_base_b1",
        cluster: PackageLike | Sequence[PackageLike] = "mcm36",
        *,
        mode: str = "fix",
        memory_rule: bool = False,
        max_ops: int | None = None,
        max_chips: int | None = None,
        max_edges: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = ChipletRoster(graph, cluster, memory_rule, max_ops, max_chips, max_edges)
        super().__init__(partial(make_episodes, roster, mode=mode), render_mode, info)
