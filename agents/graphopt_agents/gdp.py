"""GDP's policy: how placements are drawn and scored, and the same network as a Stable-Baselines3 policy.

The policy is one categorical over devices for each group, all groups decided together (Zhou et al., GDP, 2019):
one batched distribution of [batch, groups, devices], not one object a group.

**Which log-probability goes into PPO's ratio.** PPO clips the ratio of new to old probability at 1 ± 0.2. The joint
probability of a placement is a product over hundreds of groups: if each group's log-probability moves by 0.01, the
joint ratio of 209 groups is e^2 = 8, so nearly every sample is clipped after the first step and the rest is noise.
Three ways out, all here:

- ``ratio="mean"`` (the default of :class:`GDPPolicy`, for SB3's own loop, which knows one ratio an action): the mean
  over groups of the log-probability in place of the sum, so the clip bounds the geometric mean of the groups' ratios,
  as GSPO does for tokens (Zheng et al., Group Sequence Policy Optimization, 2025). The gradient is the true one times
  1 / groups, which Adam does not see. Entropy is the mean over groups alike.
- ``ratio="joint"``: the sum, the true log-probability. Needs a small learning rate and ``target_kl``.
- a ratio and a clip for each group, in the trainer of our own (``train_gdp``): what learns best.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_agents.networks.inputs import GRAPH_WIDTH
from graphopt_gym.errors import InputError, unknown_name

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import Instance

RATIOS = ("mean", "joint")
_KEYS = ("node_mask", "action_mask", "nodes", "times", "memory", "edge_index", "edge_bytes", "links", "devices")


@dataclass(frozen=True)
class Blocks:
    """What blocks of groups are drawn from, which go to a device together.

    Args:
        groups: how many, G.
        orders: int64 [G] each, permutations of the groups; their own where none is given.
        partitions: int64 [G] each, the part of each group, such as its module.
    """

    groups: int
    orders: tuple[Tensor, ...] = ()
    partitions: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, instance: Instance) -> Blocks:
        """Of a problem: the groups' own order and, where it is another one, module after module; its modules.

        In an unrolled network the groups' own order is that of time and visits all layers in each step; sorted by the
        module that a group comes from (modules as they first occur), a layer is in one piece.
        """
        own, by_module = (
            torch.arange(instance.num_groups),
            torch.from_numpy(instance.module_of_group).argsort(stable=True),
        )
        orders = (own,) if torch.equal(own, by_module) else (own, by_module)
        return cls(instance.num_groups, orders, tuple(map(torch.from_numpy, instance.module_partitions)))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """int64 [G]: the block of each group. One of the partitions every other time, where there are any; else one of
        the orders, cut into blocks of a mean length that is drawn too, log-uniformly from 1 to G."""
        if self.partitions and int(torch.randint(2, (), generator=generator)):
            return self.partitions[int(torch.randint(len(self.partitions), (), generator=generator))]
        length = float(self.groups) ** float(torch.rand((), generator=generator))
        block = (torch.rand(self.groups, generator=generator) < 1 / length).cumsum(0)
        if not self.orders:
            return block
        order = self.orders[int(torch.randint(len(self.orders), (), generator=generator))]
        return torch.empty_like(block).scatter_(0, order, block)


def draw_placements(
    log_probs: Tensor, count: int, generator: torch.Generator | None, blocks: Blocks, independent: float = 0.0
) -> Tensor:
    """Draw placements from a policy: int64 [count, G], of ``log_probs`` float32 [G, D].

    The share ``independent`` of them draws each group by itself. The others draw blocks: the groups of a block share
    their noise, ``argmax(log_probs[g] + gumbel[block(g)])``. Each group still follows the policy exactly (its marginal
    is the categorical), but neighbours tend to land on the same device, as in any placement worth having; from
    independent draws over hundreds of groups, learning hardly finds such placements. Ours.
    """
    groups, devices = log_probs.shape
    alone = round(count * independent)
    rows = []
    for row in range(count):
        block = torch.arange(groups) if row < alone else blocks.draw(generator)
        uniform = torch.rand(int(block.max()) + 1, devices, generator=generator)
        # 24 bits of the uniform can be 0; never infinite noise
        noise = -(-(uniform.clamp(1e-7, 1 - 1e-7).log())).log()
        rows.append((log_probs + noise[block]).argmax(1))
    return torch.stack(rows)


def mutate_placements(
    placements: Tensor, log_probs: Tensor, count: int, generator: torch.Generator | None, blocks: Blocks
) -> Tensor:
    """int64 [count, G]: placements out of int64 [K, G], each with one block drawn anew as a whole.

    The block lies around a random group; its device is drawn from the policy's mean over the block, mixed half and
    half with the uniform distribution. Ours.
    """
    groups, devices = log_probs.shape
    rows = []
    for _ in range(count):
        row = placements[int(torch.randint(len(placements), (), generator=generator))].clone()
        block = blocks.draw(generator)
        inside = block == block[int(torch.randint(groups, (), generator=generator))]
        weights = log_probs[inside].exp().mean(0) + 1 / devices
        row[inside] = torch.multinomial(weights, 1, generator=generator)
        rows.append(row)
    return torch.stack(rows)


def check_share(name: str, value: Any) -> float:
    """A number from 0 to 1. Raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; give a number from 0 to 1")
    return float(value)


def observation_key(observation: Mapping[str, Any], row: int) -> bytes:
    """Which graph on which cluster an observation of a batch shows: equal keys, equal graphs."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("node_mask", "action_mask", "nodes", "times", "memory", "edge_index", "devices", "links"):
        digest.update(np.ascontiguousarray(np.asarray(observation[name][row]), np.float32).tobytes())
    return digest.digest()


class GDPPolicy(ActorCriticPolicy):
    """The placement network as the policy of Stable-Baselines3's PPO and A2C on ``PlacementOneShot-v0``.

    ``PPO(GDPPolicy, env, n_steps=1, ...)`` with many environments trains with SB3's own loop, callbacks, saving and
    loading. A batch is mostly the same few graphs again and again: the network runs once for each of them. The
    weights do not depend on the sizes that an environment pads to, so they can be carried to another one.

    Give the callback :class:`GraphBaseline` to ``learn``: it puts the mean reward of each graph's earlier trials in
    the place of the value head as the baseline.

    Args:
        network: fields of :class:`NetworkConfig`.
        ratio: ``"mean"`` or ``"joint"``, see the module's text.
        independent: share of placements drawn group by group, the others in blocks, see :func:`draw_placements`.

    Raises:
        InputError: spaces that are not those of ``PlacementOneShot-v0``, an unknown field or ratio.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        network: Mapping[str, Any] | None = None,
        ratio: str = "mean",
        independent: float = 0.3,
        **unused: Any,
    ) -> None:
        known = isinstance(observation_space, spaces.Dict) and set(_KEYS) <= set(observation_space.spaces)
        if not known or not isinstance(action_space, spaces.MultiDiscrete):
            raise InputError("GDPPolicy places whole graphs; give it an environment of PlacementOneShot-v0")
        if ratio not in RATIOS:
            raise unknown_name("ratio", ratio, RATIOS)
        fields = NetworkConfig.__dataclass_fields__
        for name in network or {}:
            if name not in fields:
                raise unknown_name("argument of the network", name, fields)
        self.ratio = ratio
        self.independent = check_share("independent", independent)
        self.network_config = NetworkConfig(**(network or {}))
        super().__init__(observation_space, action_space, lr_schedule, **unused)

    def _build(self, lr_schedule: Any) -> None:
        self.network = PlacementNetwork(self.network_config)
        self.value_net = nn.Sequential(  # type: ignore[assignment]
            nn.Linear(GRAPH_WIDTH, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | {"network": vars(self.network_config), "ratio": self.ratio, "independent": self.independent}

    def _graphs(self, obs: Mapping[str, Tensor]) -> tuple[list[GraphInput], Tensor]:
        """The different graphs of a batch, and int64 [B], which is whose."""
        arrays = {name: value.cpu().numpy() for name, value in obs.items()}
        seen: dict[bytes, int] = {}
        graphs: list[GraphInput] = []
        which: list[int] = []
        for row in range(len(obs["node_mask"])):
            key = observation_key(arrays, row)
            if key not in seen:
                seen[key] = len(graphs)
                graphs.append(GraphInput.from_observation({name: obs[name][row] for name in _KEYS}))
            which.append(seen[key])
        return graphs, torch.tensor(which, device=self.device)

    def _log_probs(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(float32 [B, max_groups, max_devices] of log-probabilities, bool [B, max_groups] of groups, values [B]).

        Padded groups are on device 0 with certainty; devices that are not there have the least number.
        """
        graphs, which = self._graphs(obs)
        max_groups, max_devices = obs["node_mask"].shape[1], obs["action_mask"].shape[1]
        lowest = torch.finfo(torch.float32).min
        padded, values = [], []
        for graph in graphs:
            rows = self.network(graph).log_softmax(-1)
            rows = nn.functional.pad(rows, (0, max_devices - graph.num_devices), value=lowest)
            certain = rows.new_full((max_groups - graph.num_groups, max_devices), lowest)
            certain[:, 0] = 0
            padded.append(torch.cat([rows, certain]))
            values.append(self.value_net(graph.graph_features(self.network_config.use_times)))
        return torch.stack(padded)[which], obs["node_mask"] > 0, torch.cat(values)[which]

    def _score(self, log_probs: Tensor, real: Tensor, actions: Tensor) -> Tensor:
        """float32 [B]: sum or mean over real groups of the chosen devices' log-probabilities."""
        chosen = log_probs.gather(2, actions.long().unsqueeze(2)).squeeze(2)
        total = chosen.where(real, torch.zeros_like(chosen)).sum(1)
        return total / real.sum(1) if self.ratio == "mean" else total

    def _act(self, log_probs: Tensor, deterministic: bool) -> Tensor:
        """int64 [B, max_groups]: the likeliest devices, or drawn ones."""
        if deterministic:
            return log_probs.argmax(2)
        alone = torch.rand(len(log_probs)) < self.independent
        blocks = Blocks(log_probs.shape[1])
        return torch.cat(
            [draw_placements(row, 1, None, blocks, float(one)) for row, one in zip(log_probs, alone, strict=True)]
        )

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(actions int64 [B, max_groups], values float32 [B, 1], log-probabilities float32 [B])."""
        log_probs, real, values = self._log_probs(obs)
        actions = self._act(log_probs, deterministic)
        return actions, values.unsqueeze(1), self._score(log_probs, real, actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values float32 [B, 1], log-probabilities float32 [B], entropies float32 [B]), over real groups only."""
        log_probs, real, values = self._log_probs(obs)
        entropy = -(log_probs.exp() * log_probs).sum(2).where(real, torch.zeros_like(log_probs[..., 0])).sum(1)
        if self.ratio == "mean":
            entropy = entropy / real.sum(1)
        return values.unsqueeze(1), self._score(log_probs, real, actions), entropy

    def predict_values(self, obs: Any) -> Tensor:
        """float32 [B, 1]: the value head, from the graph's pooled features."""
        graphs, which = self._graphs(obs)
        use_times = self.network_config.use_times
        return torch.stack([self.value_net(graph.graph_features(use_times)) for graph in graphs])[which]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self._act(self._log_probs(observation)[0], deterministic)

    def get_distribution(self, obs: Any) -> Any:
        raise NotImplementedError("GDPPolicy scores whole placements: use forward() or evaluate_actions()")


class GraphBaseline(BaseCallback):
    """The mean reward of each graph's earlier trials as the baseline of SB3's PPO, in place of the value head.

    ``PlacementOneShot-v0``'s episodes are one step, so an advantage is a reward minus its baseline. A graph's first
    rollout has no earlier trials: its own mean is taken. GDP's baseline [recalled].
    """

    def __init__(self) -> None:
        super().__init__()
        self.means: dict[bytes, tuple[int, float]] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        steps, envs = buffer.rewards.shape
        keys = [
            [observation_key({name: array[step] for name, array in buffer.observations.items()}, env)
             for env in range(envs)]
            for step in range(steps)
        ]  # fmt: skip
        flat = np.array([[hash(key) for key in row] for row in keys])
        for key in {key for row in keys for key in row}:
            mine = flat == hash(key)
            rewards = buffer.rewards[mine].astype(np.float64)
            count, mean = self.means.get(key, (0, float(rewards.mean())))
            buffer.advantages[mine] = rewards - mean
            total = count + len(rewards)
            self.means[key] = (total, (mean * count + float(rewards.sum())) / total)
        self.logger.record("train/graphs", len(self.means))
