"""TorchRL's PPO on Placement-v0, with masked actions, on one environment or several in one batch. Needs TorchRL 0.14.

python scripts/examples/torchrl_ppo.py --envs 8 --decisions 51200
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, ExplorationType, GymEnv, GymWrapper, RewardSum, TransformedEnv, set_exploration_type
from torchrl.modules import MaskedCategorical, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import graphopt_gym  # noqa: F401 - registers the environments

PARTS = ["group", "devices", "progress"]  # of the observation; beside them stands action_mask


class Network(nn.Module):
    """The parts of an observation through one multilayer perceptron."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.head = nn.Linear(128, outputs)

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(torch.cat(parts, dim=-1)))


class Masked(Network):
    """The same, and the mask: the parameters of a MaskedCategorical."""

    def forward(self, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(*parts[:-1]), parts[-1].bool()


def make_env(graph: str, cluster: str, count: int) -> EnvBase:
    if count == 1:
        return GymEnv("Placement-v0", graph=graph, cluster=cluster, categorical_action_encoding=True)
    # TorchRL resets by itself those that have ended
    how = {"vectorization_mode": "vector_entry_point", "autoreset_mode": "Disabled"}
    envs = gym.make_vec("Placement-v0", count, graph=graph, cluster=cluster, **how)
    return GymWrapper(envs, categorical_action_encoding=True)


def train(graph: str, cluster: str, count: int, decisions: int, batch: int, seed: int) -> float:
    """The step time, in seconds, of the placement that the trained policy finds likeliest."""
    torch.manual_seed(seed)
    env = TransformedEnv(make_env(graph, cluster, count), RewardSum())
    env.set_seed(seed)
    inputs = sum(env.observation_spec[part].shape[-1] for part in PARTS)
    logits = Module(Masked(inputs, env.action_spec.space.n), [*PARTS, "action_mask"], ["logits", "mask"])
    policy = ProbabilisticActor(
        logits, ["logits", "mask"], spec=env.action_spec, distribution_class=MaskedCategorical, return_log_prob=True
    )
    value = Module(Network(inputs, 1), PARTS, ["state_value"])
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=value)
    loss = ClipPPOLoss(policy, value, clip_epsilon=0.2, entropy_coeff=0.01, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)
    for data in Collector(
        env, policy, frames_per_batch=batch, total_frames=decisions, auto_register_policy_transforms=True
    ):
        ended = data["next", "done"]
        if ended.any():
            print(f"mean return of {int(ended.sum())} episodes: {data['next', 'episode_reward'][ended].mean():.4f}")
        for _ in range(4):
            with torch.no_grad():
                advantage(data)
            for rows in torch.randperm(data.numel()).split(256):
                losses = loss(data.reshape(-1)[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    alone = make_env(graph, cluster, 1)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        alone.rollout(100_000, policy)  # to the end of the episode
    return alone.unwrapped.outcome().cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", default="rnnlm_2layer")
    parser.add_argument("--cluster", default="v100x2")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--decisions", type=int, default=51_200)
    parser.add_argument("--batch", type=int, default=2_048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cost = train(args.graph, args.cluster, args.envs, args.decisions, args.batch, args.seed)
    print(f"likeliest placement: {cost:.4f} s a step")


if __name__ == "__main__":
    main()
