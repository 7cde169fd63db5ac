"""The environment of architecture search: its documentation and its arguments; see ``episodes.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.architecture.episodes import ArchitectureEpisodes
from graphopt_gym.envs.architecture.features import TABLE
from graphopt_gym.envs.architecture.instances import ArchitectureRoster
from graphopt_gym.envs.core.env import EpisodeEnv

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.problem import ArchitectureLike
    from graphopt_gym.envs.architecture.training import Recipe
    from graphopt_gym.hardware.cluster import Cluster, Device
    from graphopt_gym.hardware.cost_model import CostModel

    DeviceLike = str | os.PathLike[str] | Device | Cluster


class ArchitectureSearchEnv(EpisodeEnv):
    """
    ## Description

    A network is made smaller or faster than a seed without becoming worse. The agent picks a block and what is asked
    of it in place of all that it is: less depth, another shape, other mixing. A synthesiser proposes a subgraph that
    has these *properties*, which takes the place of a part of the block and of all that equals it; or the block is
    deleted, or put there twice. As in alpha-NAS (Jin, Phothilimthana, Roy: "Neural Architecture Search using Property
    Guided Synthesis", OOPSLA 2022), where a block and its mutation are drawn at random.

    How good a network is, is its *quality* by one of three tracks: its accuracy on real images after training, that of
    a NAS-Bench-201 network out of a table, or a zero-cost proxy, which is no accuracy. On the track `table` a network
    is a cell of six edges, and the agent gives one edge another operation.

    ## Action Space

    `Discrete(1 + B * K)`. Action 0 ends the episode. Action `1 + b * K + k` applies mutation `k` to block `b`: blocks
    and edges in their order, mutations as in `MUTATIONS` of `graphopt_gym.envs.architecture.moves`, or in `OPERATIONS`
    of `graphopt_gym.envs.architecture.nasbench`. Which part of the block is mutated and what is synthesised is random,
    by the generator that `reset` seeds. Synthesis may fail, or give a network that is too large; then nothing changes.
    An illegal action (of a block that is not there, or that cannot be deleted) does not raise: it changes nothing,
    takes a step, and `info["illegal_action"]` is true.

    ## Observation Space

    A `Dict` of one-dimensional boxes of fixed size; `env.unwrapped.unflatten(observation)` gives views in the shapes
    of the table. All floats lie in 0 to 1. The features are named in `BLOCK_FEATURES` and `PROGRESS_FEATURES` of
    `graphopt_gym.envs.architecture.features`. B stands for `max_blocks`, A for the number of actions.

    {TABLE}

    ## Rewards

    `reward="cost"`: the drop of the least cost of a valid network so far, to the seed's; rewards of an episode that
    starts at the seed sum to 1 minus its result's cost. Never below 0. Where nothing valid has been met, the price of
    the least invalid network stands for it (see `ArchitectureProblem.costs`).

    `reward="hypervolume"`: the gain of the hypervolume that all networks of the episode dominate, cost from 0 to 4
    times the seed's, quality from 0 to 1, as a share of that rectangle.

    ## Starting State

    The seed (`start="seed"`), or a random network near it (`"random"`; of the track `table` any cell). Where several
    seeds or devices were given, `reset` draws them by the seeded generator, or takes those that `options={"graph":
    name, "cluster": name}` names. `info` has `graph`, `cluster`, the seed's `parameters` and `flops`, `seed_quality`.

    ## Episode End

    Terminated by action 0 or after `max_steps` steps; never truncated, as the steps left are observed. The last `info`
    has `decision`, the best valid network of the episode: its text, or the cell's operations (int32), for
    `problem.evaluate`; `cost`, `valid` and `reasons`; `steps`, and its `parameters`, `flops` and `quality`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import graphopt_gym
    >>> env = gym.make("ArchitectureSearch-v0", graph="cnn_8", objective="params")
    >>> observation, info = env.reset(seed=0)
    >>> info["graph"], info["parameters"]
    ('cnn_8', 3882)

    ```

    * `graph`: the seed: a name (`graphopt list architectures`), the path of a text file, an `Architecture`, a list of
      those, or a problem.
    * `cluster`: a device: a catalog name, a `Device`, a cluster of one device, or a list of those.
    * `objective`: `"params"`, `"flops"`, `"time"` (simulated on the device) or `"error"`.
    * `track`: `"proxy"`, `"trained"` or `"table"`; `tolerance`, `data`, `recipe`, `training_seed`, `proxy`, `table`,
      `batch`, `workers`, `cost_model`: see `ArchitectureProblem`.
    * `max_steps`: after so many steps an episode ends.
    * `reward`: `"cost"` or `"hypervolume"`.
    * `start`: `"seed"` or `"random"`.
    * `max_blocks`: blocks to pad to, which a network cannot outgrow; four more than the largest seed has where left
      out.
    * `render_mode`: `"rgb_array"` (the seed and the network), `"ansi"`, or `"human"` (text).
    * `info`: `"full"`, or `"light"`: numbers and arrays of fixed sizes only.

    An unknown argument is refused with the nearest known one.

    ## Vectorized environment

    `gym.make_vec("ArchitectureSearch-v0", num_envs=8)` gives an `EpisodeVectorEnv`, which judges the networks of all
    sub-environments together (so that `workers` train them side by side), and agrees exactly with a `SyncVectorEnv` of
    this class.

    ## Version History

    * v0: initial version.
    """

    env_id = "ArchitectureSearch-v0"
    tables = {"TABLE": TABLE}  # noqa: RUF012 - never changed

    def __init__(
        self,
        graph: ArchitectureLike | Sequence[ArchitectureLike] = "resnet_8",
        cluster: DeviceLike | Sequence[DeviceLike] = "t4",
        *,
        objective: str | None = None,
        track: str | None = None,
        tolerance: float | None = None,
        data: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] | None = None,
        training_seed: int | None = None,
        proxy: str | None = None,
        table: str | os.PathLike[str] | None = None,
        batch: int | None = None,
        workers: int | str | None = None,
        cost_model: str | CostModel | None = None,
        max_steps: int = 16,
        reward: str = "cost",
        start: str = "seed",
        max_blocks: int | None = None,
        render_mode: str | None = None,
        info: str = "full",
    ) -> None:
        roster = ArchitectureRoster(
            graph, cluster, max_blocks, objective=objective, track=track, tolerance=tolerance, data=data, recipe=recipe,
            training_seed=training_seed, proxy=proxy, table=table, batch=batch, workers=workers, cost_model=cost_model,
        )  # fmt: skip
        episodes = partial(ArchitectureEpisodes, roster, max_steps=max_steps, reward=reward, start=start)
        super().__init__(episodes, render_mode, info)
