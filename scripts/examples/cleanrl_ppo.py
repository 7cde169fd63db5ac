"""CleanRL's PPO, one file from top to bottom (after Huang et al., JMLR 23, 2022), on Placement-v0 with masked actions.

python scripts/examples/cleanrl_ppo.py --graph rnnlm_2layer --cluster v100x2 --total-timesteps 100000
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import graphopt_gym  # noqa: F401 - registers the environments


@dataclass
class Args:
    graph: str = "rnnlm_2layer"
    cluster: str = "v100x2"
    seed: int = 0
    total_timesteps: int = 100_000
    learning_rate: float = 3e-4
    num_envs: int = 16
    num_steps: int = 128
    gamma: float = 1.0
    gae_lambda: float = 0.95
    num_minibatches: int = 8
    update_epochs: int = 4
    clip_coef: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.critic = self.network(inputs, 1, 1.0)
        self.actor = self.network(inputs, actions, 0.01)

    @staticmethod
    def network(inputs: int, outputs: int, std: float) -> nn.Sequential:
        hidden = layer_init(nn.Linear(inputs, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()
        return nn.Sequential(*hidden, layer_init(nn.Linear(64, outputs), std))

    def policy(self, obs: torch.Tensor, mask: torch.Tensor) -> Categorical:
        return Categorical(logits=self.actor(obs).masked_fill(~mask, -1e8))


def tensors(observation: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """(float32 [envs, inputs], bool [envs, actions]): an observation in a row, and its mask."""
    parts = [observation[name] for name in sorted(observation) if name != "action_mask"]
    return torch.as_tensor(np.concatenate(parts, axis=1)), torch.as_tensor(observation["action_mask"] == 1)


def train(args: Args) -> float:
    """The least cost, in seconds, of the placements that were tried."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        "Placement-v0",
        args.num_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",  # as CleanRL's loop has it: the observation after an end is the next episode's first
        graph=args.graph,
        cluster=args.cluster,
    )
    observation, _ = envs.reset(seed=args.seed)
    next_obs, next_mask = tensors(observation)
    next_done = torch.zeros(args.num_envs)
    agent = Agent(next_obs.shape[1], next_mask.shape[1])
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    obs, masks = torch.zeros(*shape, next_obs.shape[1]), torch.zeros(*shape, next_mask.shape[1], dtype=torch.bool)
    actions = torch.zeros(shape, dtype=torch.long)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    batch_size = args.num_steps * args.num_envs
    best_s = float("inf")

    for update in range(args.total_timesteps // batch_size):
        costs: list[float] = []
        for step in range(args.num_steps):
            obs[step], masks[step], dones[step] = next_obs, next_mask, next_done
            with torch.no_grad():
                policy = agent.policy(next_obs, next_mask)
                actions[step] = policy.sample()
                logprobs[step] = policy.log_prob(actions[step])
                values[step] = agent.critic(next_obs).flatten()
            observation, reward, terminated, _, infos = envs.step(actions[step].numpy())
            rewards[step], next_done = torch.as_tensor(reward), torch.as_tensor(terminated, dtype=torch.float32)
            next_obs, next_mask = tensors(observation)
            if terminated.any():
                costs += infos["final_info"]["cost"][terminated].tolist()
        best_s = min([best_s, *costs])

        with torch.no_grad():
            next_value, following, advantages = agent.critic(next_obs).flatten(), next_done, torch.zeros(shape)
            last = torch.zeros(args.num_envs)
            for step in reversed(range(args.num_steps)):
                delta = rewards[step] + args.gamma * next_value * (1 - following) - values[step]
                advantages[step] = last = delta + args.gamma * args.gae_lambda * (1 - following) * last
                next_value, following = values[step], dones[step]
            returns = advantages + values

        flat = [one.flatten(0, 1) for one in (obs, masks, actions, logprobs, advantages, returns)]
        for _ in range(args.update_epochs):
            for rows in torch.randperm(batch_size).chunk(args.num_minibatches):
                b_obs, b_mask, b_action, b_logprob, b_advantage, b_return = (one[rows] for one in flat)
                policy = agent.policy(b_obs, b_mask)
                ratio = (policy.log_prob(b_action) - b_logprob).exp()
                b_advantage = (b_advantage - b_advantage.mean()) / (b_advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = -torch.min(b_advantage * ratio, b_advantage * clipped).mean()
                v_loss = 0.5 * (agent.critic(b_obs).flatten() - b_return).square().mean()
                loss = pg_loss - args.ent_coef * policy.entropy().mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        mean_s = float(np.mean(costs)) if costs else float("nan")
        print(f"{(update + 1) * batch_size:,} steps: mean {mean_s:.4f} s, best {best_s:.4f} s")
    return best_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Args):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    print(f"best placement: {train(Args(**vars(parser.parse_args()))):.4f} s a step")


if __name__ == "__main__":
    main()
