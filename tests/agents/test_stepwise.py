"""The stepwise trainer by itself: with a network and nothing else it trains in any environment that has masks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphopt_agents.core import checkpoints
from graphopt_agents.core.stepwise import StepArgs, StepTrainer
from torch import Tensor, nn

from graphopt_gym.graphs.generators import chain
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.solutions import validate
from tests.agents.test_gdp import assert_same

ACTIONS = 64


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 16
    size: int = 0  # of a flat observation


class Plain(nn.Module):
    """Two layers over a flat observation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Sequential(nn.LazyLinear(config.width), nn.Tanh())
        self.head = nn.LazyLinear(ACTIONS + 1)
        self.head(self.body(torch.zeros(1, config.size)))

    def inputs(self, observations: Mapping[str, np.ndarray], masks: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        flat = np.concatenate([np.asarray(one, np.float32) for one in observations.values()], axis=1)
        return list(zip(torch.from_numpy(flat), torch.from_numpy(masks), strict=True))

    def forward(self, inputs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        seen, masks = (torch.stack(part) for part in zip(*inputs, strict=True))
        out = self.head(self.body(seen))
        logits = out[:, : masks.shape[1]].masked_fill(~masks, torch.finfo(torch.float32).min)
        return logits, out[:, -1]


@dataclasses.dataclass(frozen=True)
class Args(StepArgs, Config):
    config_class = Config
    default_cluster = "v100x2"


def trainer_for(env: str, **more: Any) -> type[StepTrainer]:
    @dataclasses.dataclass(frozen=True)
    class Own(Args):
        env_id = env

    class Trainer(StepTrainer):
        agent = "plain"
        args_class = Own
        network_class = Plain

        @classmethod
        def environment(cls, problem: Any, args: Any) -> dict[str, Any]:
            return more

    return Trainer


def observed(trainer: type[StepTrainer], **given: Any) -> int:
    """Numbers in an observation."""
    (task,) = trainer.make_tasks(trainer.args_class(**given))
    return sum(int(np.prod(space.shape)) for space in task.episodes.observation_space.spaces.values())


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Placement-v0": ("", "v100x2", {"max_devices": 3}),
    "ChipletPartition-v0": ("bert_tiny_b16", "mcm4", {"mode": "step"}),
    "RewriteOrder-v0": ("small_fire", "t4", {"max_steps": 6, "max_matches": 30}),
}


@pytest.mark.parametrize("env_id", CASES)
def test_trainer__needs_a_network_alone_and_goes_on_exactly(env_id: str, tmp_path: Path) -> None:
    graph, cluster, environment = CASES[env_id]
    if not graph:
        graph = str(tmp_path / "chain.npz")
        save_graph(chain(10, flops=10**8, output_bytes=10**7), graph)
    trainer = trainer_for(env_id, **environment)
    given = {"graphs": graph, "clusters": cluster, "episodes": 4, "checkpoint_every": 1}
    size = observed(trainer, **given)
    args = trainer.args_class(**given, size=size, updates=4)
    whole = trainer.train(args, tmp_path / "whole")
    trainer.train(dataclasses.replace(args, updates=2), tmp_path / "parts")
    parts = trainer.train(args, tmp_path / "parts", resume=True)
    states = []
    for name in ("whole", "parts"):
        state = checkpoints.load_checkpoint(tmp_path / name, "plain").state
        curve = [{key: row[key] for key in row if key != "wall_s"} for row in json.loads(state.pop("curve"))]
        state.pop("wall_s")
        for task in state["tasks"].values():
            task["improved"] = [(row[0], row[2]) for row in task["improved"]]
        states.append((state, curve))
    assert_same(*states)
    assert whole.evaluations == parts.evaluations == 16  # an episode each
    solution = parts.solution()
    assert solution.outcome.cost == solution.problem.evaluate(solution.decision).cost
    (path,) = (tmp_path / "parts").glob("solution_*.json")
    assert validate(path).mismatches == ()
    zero_shot = trainer.evaluate(tmp_path / "parts", samples=3)
    assert zero_shot.evaluations == 3
    assert trainer.evaluate(tmp_path / "parts", updates=1).evaluations == 1 + 4


def test_trainer__puts_a_chain_on_one_device(tmp_path: Path) -> None:
    path = tmp_path / "chain.npz"
    save_graph(chain(12, flops=10**8, output_bytes=10**9), path)
    trainer = trainer_for("Placement-v0")
    given = {"graphs": str(path), "clusters": "v100x2", "episodes": 16, "updates": 25, "learning_rate": 1e-2}
    result = trainer.train(trainer.args_class(**given, size=observed(trainer, **given), epochs=6))
    problem = result.tasks[0].problem
    rng = np.random.default_rng(0)
    random_costs, _ = problem.costs(np.stack([problem.sample(rng) for _ in range(400)]))
    assert result.solution().outcome.cost == problem.costs(np.zeros((1, problem.num_groups), np.int32))[0][0]
    assert result.curve[-1]["mean_cost"] <= random_costs.min() < random_costs.mean()
