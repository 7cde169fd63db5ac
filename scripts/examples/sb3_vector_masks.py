"""sb3-contrib's MaskablePPO on RewriteOrder-v0: several programs at a time in one batch, illegal rewrites masked.

python scripts/examples/sb3_vector_masks.py --graph small_chain,small_scores --steps 20000
"""

from __future__ import annotations

import argparse

import numpy as np
from sb3_contrib import MaskablePPO

from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.wrappers import SB3VecEnv


def train(graphs: list[str], count: int, steps: int, seed: int) -> dict[str, float]:
    """The share of each program's time that the trained policy saves, taking the likeliest rewrite at each step."""
    # SB3VecEnv resets by itself, and gives MaskablePPO the masks
    arguments = {"graph": graphs, "max_steps": 20, "max_matches": 64}
    envs = SB3VecEnv(EpisodeVectorEnv("RewriteOrder-v0", count, autoreset_mode="SameStep", **arguments))
    agent = MaskablePPO("MultiInputPolicy", envs, n_steps=64, batch_size=64, gamma=1.0, seed=seed, verbose=1)
    agent.learn(steps)
    saved = {}
    alone = EpisodeVectorEnv("RewriteOrder-v0", 1, **arguments)
    for graph in graphs:
        observations, _ = alone.reset(options={"graph": graph})
        ended = np.zeros(1, bool)
        while not ended.any():
            actions, _ = agent.predict(observations, action_masks=alone.action_masks(), deterministic=True)
            observations, _, ended, _, infos = alone.step(actions)
        saved[graph] = float(infos["saved"][0])
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", default="small_chain,small_scores", help="names, with commas between them")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for graph, share in train(args.graph.split(","), args.envs, args.steps, args.seed).items():
        print(f"{graph}: {share:.1%} of its time saved")


if __name__ == "__main__":
    main()
