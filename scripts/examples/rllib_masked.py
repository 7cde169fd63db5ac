"""RLlib's PPO with its action-masking module, on Placement-v0. RLlib needs `pip install "ray[rllib]"` and torch.

python scripts/examples/rllib_masked.py --graph rnnlm_2layer --cluster v100x2 --iterations 20
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.tune.registry import register_env


class Masked(gym.ObservationWrapper[dict[str, np.ndarray], Any, dict[str, np.ndarray]]):
    """The observation in the two parts that RLlib's module asks for: all of it in a row, and the mask."""

    def __init__(self, env: gym.Env[dict[str, np.ndarray], Any]) -> None:
        super().__init__(env)
        mask, row = (self.observation(env.observation_space.sample())[name] for name in ("action_mask", "observations"))
        spaces = {"action_mask": Box(0.0, 1.0, mask.shape), "observations": Box(0.0, 1.0, row.shape)}
        self.observation_space = gym.spaces.Dict(spaces)

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row = np.concatenate([observation[name] for name in sorted(observation) if name != "action_mask"])
        return {"action_mask": observation["action_mask"].astype(np.float32), "observations": row}


def make_env(arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    # RLlib calls this in processes of its own, too: the module before the colon is imported there
    return Masked(gym.make("graphopt_gym:Placement-v0", **arguments))


def train(graph: str, cluster: str, iterations: int, batch: int, runners: int, seed: int) -> list[float]:
    """The mean return of the episodes of each iteration."""
    register_env("masked_placement", make_env)
    config = (
        PPOConfig()
        .environment("masked_placement", env_config={"graph": graph, "cluster": cluster, "info": "light"})
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=4)
        .training(gamma=1.0, lr=3e-4, train_batch_size_per_learner=batch, minibatch_size=256, num_epochs=4)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
        .debugging(seed=seed)
    )
    algorithm = config.build_algo()
    returns = []
    for _ in range(iterations):
        returns.append(float(algorithm.train()["env_runners"]["episode_return_mean"]))
        print(f"mean return: {returns[-1]:.4f}")
    algorithm.stop()
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", default="rnnlm_2layer")
    parser.add_argument("--cluster", default="v100x2")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4_000, help="decisions an iteration")
    parser.add_argument("--runners", type=int, default=0, help="processes that step environments; 0: this one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.graph, args.cluster, args.iterations, args.batch, args.runners, args.seed)


if __name__ == "__main__":
    main()
