"""Our networks as policies of Stable-Baselines3's own loops: one adapter for each form of environment.

:class:`OneShotPolicy` decides a whole graph at once: one categorical over devices (or chips) for each group (or op),
all decided together, one batched distribution of [batch, groups, devices], not one object a group.
:class:`StepPolicy` takes one action after the other, among those that a mask allows.

**Which log-probability goes into PPO's ratio** of a whole decision. PPO clips the ratio of new to old probability at
1 ± 0.2. The joint probability of a placement is a product over hundreds of groups: if each group's log-probability
moves by 0.01, the joint ratio of 209 groups is e^2 = 8, so nearly every sample is clipped after the first step and the
rest is noise. Three ways out, all here:

- ``ratio="mean"`` (the default, for SB3's own loop, which knows one ratio an action): the mean
  over groups of the log-probability in place of the sum, so the clip bounds the geometric mean of the groups' ratios,
  as GSPO does for tokens (Zheng et al., Group Sequence Policy Optimization, 2025). The gradient is the true one times
  1 / groups, which Adam does not see. Entropy is the mean over groups alike.
- ``ratio="joint"``: the sum, the true log-probability. Needs a small learning rate and ``target_kl``.
- a ratio and a clip for each group, in the trainer of our own (``one_shot``): what learns best.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor, nn

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import choice
from graphopt_gym.wrappers import SB3VecEnv

# what the mixin comes before; for the type checker, one of them
_Base: Any = ActorCriticPolicy if TYPE_CHECKING else object
RATIOS = ("mean", "joint")
SCALE_KEY = 1  # of the random numbers that the scale of rewards is found with


def observation_key(observation: Mapping[str, Any], row: int) -> bytes:
    """Which graph on which cluster an observation of a batch shows: equal keys, equal graphs."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(observation):
        digest.update(np.ascontiguousarray(np.asarray(observation[name][row]), np.float32).tobytes())
    return digest.digest()


class NetworkPolicy(_Base):
    """What both forms share: the spaces are checked, and the network is made of its configuration's fields.

    Args:
        network: fields of ``config_class``.

    Raises:
        InputError: spaces that are not those of the environment, or an unknown field.
    """

    keys: ClassVar[tuple[str, ...]]  # of the observation, all of what the network sees
    config_class: ClassVar[type[Any]]
    network_class: ClassVar[type[Any]]  # made of the configuration
    action_class: ClassVar[type[spaces.Space[Any]]]
    wrong_environment: ClassVar[str]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        network: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        known = isinstance(observation_space, spaces.Dict) and set(self.keys) <= set(observation_space.spaces)
        if not known or not isinstance(action_space, self.action_class):
            raise InputError(self.wrong_environment)
        fields = self.config_class.__dataclass_fields__
        for name in network or {}:
            if name not in fields:
                raise unknown_name("argument of the network", name, fields)
        self.network_config = self.config_class(**(network or {}))
        super().__init__(observation_space, action_space, lr_schedule, **unused)

    def _build(self, lr_schedule: Any) -> None:
        self.network = self.network_class(self.network_config)
        self._build_more()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _build_more(self) -> None:
        """Further modules."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"network": vars(self.network_config)}


class OneShotPolicy(NetworkPolicy, ActorCriticPolicy):
    """A network over whole graphs as the policy of Stable-Baselines3's PPO and A2C on a one-shot environment.

    ``PPO(policy, env, n_steps=1, ...)`` with many environments trains with SB3's own loop, callbacks, saving and
    loading. A batch is mostly the same few graphs again and again: the network runs once for each of them. The
    weights do not depend on the sizes that an environment pads to, so they can be carried to another one.

    Give the callback :class:`GraphBaseline` to ``learn``: it puts the mean reward of each graph's earlier trials in
    the place of the value head as the baseline.

    Args:
        network: fields of ``config_class``.
        ratio: ``"mean"`` or ``"joint"``, see the module's text.

    Raises:
        InputError: spaces that are not those of the one-shot environment, an unknown field or ratio.
    """

    action_class = spaces.MultiDiscrete
    graph_width: ClassVar[int]  # of graph_features

    def __init__(self, *spaces_and_rate: Any, ratio: str = "mean", **given: Any) -> None:
        self.ratio = choice("ratio", ratio, RATIOS)
        super().__init__(*spaces_and_rate, **given)

    @abstractmethod
    def graph_input(self, observation: Mapping[str, Tensor]) -> Any:
        """What the network takes, from one observation; it has ``num_groups`` or ``num_ops`` rows."""

    @abstractmethod
    def graph_features(self, graph: Any) -> Tensor:
        """float32 [graph_width]: what the value head sees."""

    def draw(self, log_probs: Tensor) -> Tensor:
        """int64 [B, groups] drawn from float32 [B, groups, devices]: each group by itself, unless a subclass knows
        better."""
        uniform = torch.rand_like(log_probs).clamp(1e-7, 1 - 1e-7)
        return (log_probs - (-uniform.log()).log()).argmax(2)

    def _build_more(self) -> None:
        self.value_net = nn.Sequential(  # type: ignore[assignment]
            nn.Linear(self.graph_width, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"ratio": self.ratio}

    def _graphs(self, obs: Mapping[str, Tensor]) -> tuple[list[Any], Tensor]:
        """The different graphs of a batch, and int64 [B], which is whose."""
        arrays = {name: value.cpu().numpy() for name, value in obs.items()}
        seen: dict[bytes, int] = {}
        graphs: list[Any] = []
        which: list[int] = []
        for row in range(len(obs["node_mask"])):
            key = observation_key({name: arrays[name] for name in self.keys}, row)
            if key not in seen:
                seen[key] = len(graphs)
                graphs.append(self.graph_input({name: obs[name][row] for name in self.keys}))
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
            rows = nn.functional.pad(rows, (0, max_devices - rows.shape[1]), value=lowest)
            certain = rows.new_full((max_groups - len(rows), max_devices), lowest)
            certain[:, 0] = 0
            padded.append(torch.cat([rows, certain]))
            values.append(self.value_net(self.graph_features(graph)))
        return torch.stack(padded)[which], obs["node_mask"] > 0, torch.cat(values)[which]

    def _score(self, log_probs: Tensor, real: Tensor, actions: Tensor) -> Tensor:
        """float32 [B]: sum or mean over real groups of the chosen devices' log-probabilities."""
        chosen = log_probs.gather(2, actions.long().unsqueeze(2)).squeeze(2)
        total = chosen.where(real, torch.zeros_like(chosen)).sum(1)
        return total / real.sum(1) if self.ratio == "mean" else total

    def _act(self, log_probs: Tensor, deterministic: bool) -> Tensor:
        """int64 [B, max_groups]: the likeliest devices, or drawn ones."""
        return log_probs.argmax(2) if deterministic else self.draw(log_probs)

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
        return torch.stack([self.value_net(self.graph_features(graph)) for graph in graphs])[which]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self._act(self._log_probs(observation)[0], deterministic)

    def get_distribution(self, obs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} scores whole decisions: use forward() or evaluate_actions()")


class GraphBaseline(BaseCallback):
    """The mean reward of each graph's earlier trials as the baseline of SB3's PPO, in place of the value head.

    One-shot episodes are one step, so an advantage is a reward minus its baseline. A graph's first
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


class StepPolicy(NetworkPolicy, MaskableActorCriticPolicy):
    """A network over one graph at a time as the policy of sb3-contrib's MaskablePPO, one action after the other.

    Actions that the observation's ``action_mask`` rules out have no probability even where MaskablePPO is told of no
    masks. The weights do not depend on the sizes that an environment pads to, so they can be carried to another one.
    """

    action_class = spaces.Discrete

    @abstractmethod
    def act(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logits float32 [B, actions], values float32 [B]) of B observations."""

    def _run(self, obs: Mapping[str, Tensor], action_masks: Any = None) -> tuple[MaskableDistribution, Tensor]:
        """(the distribution over actions, values float32 [B, 1]) of B observations."""
        logits, values = self.act(obs)
        distribution: Any = self.action_dist.proba_distribution(action_logits=logits)
        mask = (obs["action_mask"] > 0).cpu().numpy()
        if action_masks is not None:
            mask &= np.asarray(torch.as_tensor(action_masks).cpu(), bool).reshape(mask.shape)
        distribution.apply_masking(mask)
        return distribution, values[:, None]

    def forward(  # type: ignore[override]
        self, obs: Any, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(actions int64 [B], values float32 [B, 1], log-probabilities float32 [B])."""
        distribution, values = self._run(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(values float32 [B, 1], log-probabilities float32 [B], entropies float32 [B])."""
        distribution, values = self._run(obs, action_masks)
        entropy = distribution.entropy()
        assert entropy is not None
        return values, distribution.log_prob(actions), entropy

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:  # type: ignore[override]
        return self._run(obs, action_masks)[0]

    def predict_values(self, obs: Any) -> Tensor:
        """float32 [B, 1]: what the rest of the episode is to bring."""
        return self.act(obs)[1][:, None]


# -- what a run of Stable-Baselines3 needs beside a policy -------------------------------------------------------------


class ScaledRewards(VecEnvWrapper):
    """Rewards divided by a constant, so that PPO sees returns of order 1 whatever the graph."""

    def __init__(self, envs: SB3VecEnv, scale: float) -> None:
        super().__init__(envs)
        self.scale = scale

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, done, infos = self.venv.step_wait()
        return observations, rewards / self.scale, done, infos


def reward_scale(envs: Any, seed: int) -> float:
    """Root mean square of the returns of an episode of random actions in each environment."""
    rng = np.random.default_rng((seed, SCALE_KEY))
    envs.reset(seed=seed)
    space = envs.single_action_space
    space.seed(seed)
    returns, running = np.zeros(envs.num_envs), np.ones(envs.num_envs, bool)
    while running.any():
        if isinstance(space, spaces.Discrete):
            actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in envs.action_masks()])
        else:
            actions = np.stack([space.sample() for _ in range(envs.num_envs)])
        _, rewards, terminated, truncated, _ = envs.step(actions)
        returns += np.where(running, rewards, 0.0)
        running &= ~(terminated | truncated)
    scale = float(np.sqrt(np.mean(returns**2)))
    return scale if scale > 0 and math.isfinite(scale) else 1.0


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The libraries' own random numbers from a seed; a caller's stay as they are."""
    first, second = np.random.SeedSequence(key).generate_state(2).tolist()
    before, before_too = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(first)
        np.random.seed(second)
        random.seed(second)
        try:
            yield
        finally:
            np.random.set_state(before)
            random.setstate(before_too)


class Track(BaseCallback):
    """Offers what a rollout's episodes end with to the task, and keeps their costs, and returns.

    ``task`` is None where each episode is of another graph.
    """

    def __init__(self, task: Any, envs: ScaledRewards, wall_s: Callable[[], float]) -> None:
        super().__init__()
        self.task, self.envs, self.wall_s = task, envs, wall_s
        self.costs: list[float] = []
        self.valid: list[bool] = []
        self.returns: list[float] = []
        self.sums = np.zeros(envs.num_envs)

    def _on_step(self) -> bool:
        self.sums += self.locals["rewards"] * self.envs.scale
        for row, info in enumerate(self.locals["infos"]):
            if "decision" in info:
                self.costs.append(info["cost"])
                self.valid.append(info["valid"])
                self.returns.append(float(self.sums[row]))
                self.sums[row] = 0.0
                if self.task is None:
                    continue
                self.task.trials = self.num_timesteps  # each is at most one evaluation
                cost, valid = np.array(self.costs[-1:]), np.array(self.valid[-1:])
                self.task.offer([exact(self.task.problem, info["decision"])], cost, valid, self.wall_s(), -1)
        return True


def exact(problem: Any, decision: Any) -> Any:
    """A decision without the padding that infos have."""
    return decision[: problem.decision_shape[0]] if isinstance(decision, np.ndarray) else problem.check(decision)
