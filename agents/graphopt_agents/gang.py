"""The agent of gang scheduling: a small scorer of the gangs that may start, which fits any program and machine.

    graphopt train gang --out runs/gang  # on small drawn tenants and pipelines
    graphopt evaluate runs/gang --graph tenants_crossing_128 --cluster pathways_b_16hosts

It acts in ``GangScheduling-v0``, on what it sees in relation to the program and the machine at hand, so that it may be
tried on larger ones and on other programs (``networks.gang``). Its weights are found by CMA-ES (Hansen, The CMA
Evolution Strategy: A Tutorial, arXiv:1604.00772, 2016): an update draws candidates, each plays the episodes of a few
workloads to their ends by its likeliest actions, and what the runs cost, to first come, first served, ranks them.
PPO on a network of two layers, tried first, had not moved off its start in forty updates: one choice says little of
such a cost.

A trial is an episode. A second decision and more are by weights that stray from the policy's own. The paper of the task
schedules first come, first served; the agent is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from graphopt_agents.core.stepwise import TOGETHER, Episode, StepArgs, StepTask, StepTrainer
from graphopt_agents.networks.gang import GangConfig, GangNetwork
from graphopt_gym.envs.gang.episodes import INVALID
from graphopt_gym.fields import check_fields


@dataclass(frozen=True)
class Args(StepArgs, GangConfig):
    """What a run depends on, beside the fields of :class:`StepArgs`, of which those of PPO are not used."""

    env_id = "GangScheduling-v0"
    config_class = GangConfig
    default_cluster = "pathways_b_4hosts"

    graphs: tuple[str, ...] = (
        "crossing:pipelines=1-2:services=2-4:calls=4-8:seed=0-5", "pipelines:micro_batches=4:seed=0-5",
    )  # workloads  # fmt: skip
    clusters: tuple[str, ...] = ("pathways_b_4hosts",)  # machines
    objective: str = "step"  # or "throughput", "fairness"
    place: bool = False  # whether slices may lie elsewhere than they do by default
    wait: bool = True  # whether it may wait although gangs may start
    updates: int = 30
    graphs_per_update: int = 12
    episodes: int = 16  # candidates of an update
    step: float = 0.5  # how far candidates stray at first

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"episodes": 4}, above=("step",))


class Evolution:
    """CMA-ES in D dimensions, with the defaults of Hansen's tutorial (table 1, without negative weights)."""

    def __init__(self, mean: np.ndarray, step: float, population: int) -> None:
        size = len(mean)
        self.mean, self.step, self.population = mean.copy(), step, population
        self.covariance = np.eye(size)
        self.path_step, self.path = np.zeros(size), np.zeros(size)
        self.updates = 0
        chosen = population // 2
        weights = np.log((population + 1) / 2) - np.log(np.arange(1, chosen + 1))
        self.weights = weights / weights.sum()
        self.effective = mu = 1 / float((self.weights**2).sum())
        self.rate_step = (mu + 2) / (size + mu + 5)
        self.damping = 1 + 2 * max(0.0, np.sqrt((mu - 1) / (size + 1)) - 1) + self.rate_step
        self.rate_path = (4 + mu / size) / (size + 4 + 2 * mu / size)
        self.rate_one = 2 / ((size + 1.3) ** 2 + mu)
        self.rate_mu = min(1 - self.rate_one, 2 * (mu - 2 + 1 / mu) / ((size + 2) ** 2 + mu))
        self.length = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))  # of a normal vector

    def ask(self, rng: np.random.Generator) -> np.ndarray:
        """float64 [population, D]"""
        values, axes = np.linalg.eigh(self.covariance)
        drawn = rng.standard_normal((self.population, len(self.mean)))
        return self.mean + self.step * (drawn * np.sqrt(np.maximum(values, 1e-20))) @ axes.T

    def tell(self, candidates: np.ndarray, costs: np.ndarray) -> None:
        """What :meth:`ask` gave, and the cost of each; of equal ones the earlier."""
        size = len(self.mean)
        steps = (candidates[np.argsort(costs, kind="stable")[: len(self.weights)]] - self.mean) / self.step
        moved = self.weights @ steps
        self.mean = self.mean + self.step * moved
        values, axes = np.linalg.eigh(self.covariance)
        whitened = axes @ ((axes.T @ moved) / np.sqrt(np.maximum(values, 1e-20)))
        rate = self.rate_step
        self.path_step = (1 - rate) * self.path_step + np.sqrt(rate * (2 - rate) * self.effective) * whitened
        self.updates += 1
        norm = float(np.linalg.norm(self.path_step))
        stalls = norm / np.sqrt(1 - (1 - rate) ** (2 * self.updates)) >= (1.4 + 2 / (size + 1)) * self.length
        rate = self.rate_path
        self.path = (1 - rate) * self.path
        if not stalls:
            self.path += np.sqrt(rate * (2 - rate) * self.effective) * moved
        kept = 1 - self.rate_one - self.rate_mu + stalls * self.rate_one * rate * (2 - rate)
        self.covariance = (
            kept * self.covariance
            + self.rate_one * np.outer(self.path, self.path)
            + self.rate_mu * (steps.T * self.weights) @ steps
        )
        self.step *= float(np.exp(self.rate_step / self.damping * (norm / self.length - 1)))

    def state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        return {
            "mean": self.mean.tolist(), "covariance": self.covariance.tolist(), "path": self.path.tolist(),
            "path_step": self.path_step.tolist(), "step": self.step, "updates": self.updates,
        }  # fmt: skip

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name in ("mean", "covariance", "path", "path_step"):
            setattr(self, name, np.array(kept[name]))
        self.step, self.updates = float(kept["step"]), int(kept["updates"])


class Trainer(StepTrainer):
    """The runs of this agent."""

    agent = "gang"
    args_class = Args
    network_class = GangNetwork
    problem_arguments = ("objective", "place")
    likeliest_first = True

    def make_network(self) -> None:
        super().make_network()
        self.evolution = Evolution(self.network.weights.detach().numpy(), self.args.step, self.args.episodes)

    @classmethod
    def environment(cls, problem: Any, args: Args) -> dict[str, Any]:
        return {"wait": args.wait}

    @classmethod
    def inputs(cls, network: GangNetwork, task: StepTask, rows: np.ndarray) -> list[Any]:
        found = super().inputs(network, task, rows)
        if network.candidates is not None:
            found = [one | {"weights": network.candidates[row]} for one, row in zip(found, rows.tolist(), strict=True)]
        return found

    @classmethod
    def play_each(
        cls, network: GangNetwork, tasks: Sequence[StepTask], weights: np.ndarray, key: tuple[int, ...],
        wall_s: Callable[[], float],
    ) -> list[Episode]:  # fmt: skip
        """An episode of each task by each of the weights [B, D], by the likeliest actions."""
        network.candidates = weights
        try:
            return cls.play(network, [(task, len(weights)) for task in tasks], key, wall_s)
        finally:
            network.candidates = None

    def update(self) -> list[dict[str, Any]]:
        tasks = self.next_tasks()
        candidates = self.evolution.ask(self.rng)
        key = (self.args.seed, self.updates)
        episodes = self.play_each(self.network, tasks, candidates, key, lambda: self.wall_s)
        rows, relative = [], np.empty((len(tasks), len(candidates)))
        for number, task in enumerate(tasks):
            own = sorted((one for one in episodes if one.task is task), key=lambda one: one.row)
            costs, valid = np.array([one.cost for one in own]), np.array([one.valid for one in own])
            relative[number] = np.where(valid, costs / task.episodes.instance(0).reference, INVALID)
            row = self.row(task, costs, valid, 1 - relative[number])
            rows.append(row | {"mean_steps": float(np.mean([len(one.steps) for one in own]))})
        self.evolution.tell(candidates, np.log(relative).mean(axis=0))
        with torch.no_grad():
            self.network.weights.copy_(torch.from_numpy(self.evolution.mean))
        return self.finish_update([row | {"step": self.evolution.step} for row in rows])

    def state(self) -> dict[str, Any]:
        return {**super().state(), "evolution": json.dumps(self.evolution.state())}

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        super().restore(state, where)
        self.evolution.restore(json.loads(state["evolution"]))

    @classmethod
    def decide(cls, network: GangNetwork, task: StepTask, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """The first sample is by the policy's own weights, each of the others by weights around them."""
        rng = np.random.default_rng(seed)
        cls.play(network, [(task, 1)], (seed,), wall_s)
        for first in range(1, samples, TOGETHER):
            weights = network.drawn(min(TOGETHER, samples - first), rng)
            cls.play_each(network, [task], weights, (seed, first), wall_s)


method_run, zero_shot_run = Trainer.method_run, Trainer.zero_shot_run
