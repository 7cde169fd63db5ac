"""The trainer of agents that decide a whole graph at once: one choice for each entry of the decision, all together.

An update takes a few tasks; for each it draws a batch of decisions from the policy, has them priced, and takes a few
steps of PPO with a ratio for each choice by itself. Beside what the policy draws, a share of the batch changes one of
the best decisions so far (the *elites*) by the problem's own move, and the policy learns from these and from the elites
as if it had drawn them, with the same clipped ratio: a mix of PPO with self-imitation. Each is one evaluation like any
other. All of this is ours, and each part can be turned off.

An agent gives its network's input (:meth:`OneShotTrainer.task_of`); what it does otherwise than here, it overrides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from graphopt_agents.core.run import Task, TrainArgs, Trainer, clipped_loss
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields, choice
from graphopt_gym.search.evaluator import Evaluator
from graphopt_gym.search.methods import good_start

ADVANTAGES = ("rank", "baseline")


@dataclass(frozen=True)
class OneShotArgs(TrainArgs):
    """What the runs of all one-shot agents depend on."""

    samples: int = 64  # decisions of a graph in an update, each one evaluation
    advantage: str = "rank"  # in the batch; or "baseline": reward minus the mean of the graph's earlier trials
    starts: bool = True  # whether the first elites are the decisions of cheap heuristics, one evaluation each
    mutants: float = 0.75  # share of the samples that change one of the elites
    elites: int = 8  # the best decisions of a graph so far, learned from in each of its updates; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"samples": 2, "elites": 0}, shares=("mutants",))
        choice("advantage", self.advantage, ADVANTAGES)
        if self.elites and round(self.samples * self.mutants) == self.samples:
            raise InputError(
                f"mutants is {self.mutants}, which leaves none of {self.samples} samples to the policy; give a smaller "
                "share, or more samples"
            )


@dataclass(kw_only=True)
class OneShotTask(Task):
    """One graph on one cluster, and what the run knows of it. ``graph``: what the network takes."""

    graph: Any
    reward_mean: float = 0.0  # of the trials
    elites: list[tuple[float, float, np.ndarray]] = field(default_factory=list)  # (cost, reward, decision), best first

    def keep_elites(self, decisions: np.ndarray, costs: np.ndarray, rewards: np.ndarray, count: int) -> None:
        """Take decisions int32 [B, …] into the best ``count`` different ones so far."""
        if not count:
            return
        kept: list[tuple[float, float, np.ndarray]] = []
        rows = [(float(costs[row]), float(rewards[row]), decisions[row]) for row in range(len(costs))]
        for one in sorted(self.elites + rows, key=lambda one: one[0]):  # stable: earlier ones first
            if all(one[0] != other[0] or not np.array_equal(one[2], other[2]) for other in kept):
                kept.append(one)
            if len(kept) == count:
                break
        self.elites = kept

    def elite(self, rng: np.random.Generator) -> np.ndarray:
        """One of the best so far, better ones more often."""
        return self.elites[int(len(self.elites) * rng.random() ** 2)][2]

    def count(self, rewards: np.ndarray) -> None:
        """Take trials into the mean reward."""
        total = self.trials + len(rewards)
        self.reward_mean = (self.reward_mean * self.trials + float(rewards.sum())) / total
        self.trials = total

    def starts(self, rng: np.random.Generator, wall_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(decisions, costs, valid) of what the cheap heuristics that local searches start from decide; one trial each,
        to be counted by the caller."""
        evaluator = _Starts(self, wall_s)
        good_start(evaluator, rng)
        costs, valid = (np.concatenate(part) for part in zip(*evaluator.prices, strict=True))
        return np.concatenate(evaluator.tried), costs, valid

    def state(self) -> dict[str, Any]:
        elites = [(cost, reward, torch.from_numpy(one)) for cost, reward, one in self.elites]
        return {**super().state(), "reward_mean": self.reward_mean, "elites": elites}

    def restore(self, kept: Mapping[str, Any]) -> None:
        super().restore(kept)
        self.reward_mean = float(kept["reward_mean"])
        check = self.problem.check
        self.elites = [(float(cost), float(reward), check(one.numpy())) for cost, reward, one in kept["elites"]]


class _Starts(Evaluator):
    """What heuristics propose to: prices as trials of a task."""

    def __init__(self, task: OneShotTask, wall_s: float) -> None:
        super().__init__(task.problem, budget=10**9)
        self.task, self.at = task, wall_s
        self.tried: list[np.ndarray] = []
        self.prices: list[tuple[np.ndarray, np.ndarray]] = []

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.prices.append(self.task.evaluate(decisions, self.at, self.evaluations))
        self.tried.append(decisions)
        return self.prices[-1]


@dataclass(frozen=True)
class Tried:
    """B decisions that were evaluated. ``notes``: what the agent keeps of each beside, arrays [B, …] by name."""

    decisions: np.ndarray  # int32 [B, N]
    costs: np.ndarray  # float64 [B]
    valid: np.ndarray  # bool [B]
    rewards: np.ndarray  # float64 [B]
    notes: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Tried]) -> Tried:
        """Several as one."""
        decisions, costs, valid, rewards = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("decisions", "costs", "valid", "rewards")
        )
        notes = {name: np.concatenate([part.notes[name] for part in parts]) for name in parts[0].notes}
        return cls(decisions, costs, valid, rewards, notes)


class Choices(Protocol):
    """The choices that a batch of decisions consists of."""

    def scored(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the log-probability of each choice, of any shape; all of them, float32 [N, C]) of logits float32 [N, C]."""


@dataclass(frozen=True)
class EveryEntry:
    """Each entry of each decision was chosen by itself, among all there is: int64 [N, B]."""

    decisions: torch.Tensor

    def scored(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = logits.log_softmax(-1)
        return every.gather(1, self.decisions), every


class OneShotTrainer(Trainer):
    """Trains a network that gives logits float32 [N, C] of a task's ``graph``."""

    moved_together: ClassVar[int] = 8  # changed elites that are priced together; the next build on them
    most_moves: ClassVar[int] = 3  # that change an elite

    # -- what an agent may do otherwise ----------------------------------------------------------------------------

    @classmethod
    def task_of(cls, problem: Any, args: Any = None, price: Any = None) -> Any:
        return OneShotTask(problem=problem, price=price or problem.costs, graph=cls.graph_input(problem))

    @classmethod
    def graph_input(cls, problem: Any) -> Any:
        """What the network takes of a problem."""
        raise NotImplementedError

    def judge(
        self, task: Any, decisions: np.ndarray, costs: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """(rewards float64 [B], notes) of decisions that were priced."""
        return -np.sqrt(costs), {}

    def draw(self, task: Any, logits: torch.Tensor, count: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """(decisions int32 [count, N], notes) from the policy: each entry by itself."""
        return draw_each(logits, count, self.rng), {}

    def changed(self, task: Any, logits: torch.Tensor, count: int) -> np.ndarray:
        """int32 [at most ``count``, N]: elites changed as the policy would, priced with what it draws."""
        return np.empty((0, logits.shape[0]), np.int32)

    def named(self, task: Any, decisions: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        """Decisions that mean the same made equal. ``logits``: of the policy."""
        return decisions

    def not_drawn(self, task: Any, decisions: np.ndarray) -> Mapping[str, np.ndarray]:
        """The notes that :meth:`draw` gives, of decisions that the policy did not draw."""
        return {}

    def rank_costs(self, costs: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """float64 [B]: what elites are ranked by."""
        return costs

    def choices(self, task: Any, tried: Tried, advantages: np.ndarray) -> tuple[Choices, torch.Tensor]:
        """The choices in a batch, and the advantage of each, of ``advantages`` float64 [B]."""
        decisions = torch.from_numpy(tried.decisions).long().t().contiguous()
        return EveryEntry(decisions), torch.from_numpy(advantages).float()

    def more_loss(self, task: Any, logits: torch.Tensor) -> torch.Tensor | float:
        """What comes to PPO's loss."""
        return 0.0

    # -- an update -------------------------------------------------------------------------------------------------

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        batches, rows = [], []
        for task in self.next_tasks():
            with torch.no_grad():
                old = self.network(task.graph)
            if args.starts and args.elites and not task.trials:
                decisions, costs, valid = task.starts(self.rng, self.wall_s)
                task.count(self.tried(task, self.named(task, decisions, old), costs, valid).rewards)
            tried = self.try_some(task, old)
            choices, gains = self.learned_from(task, tried)
            task.count(tried.rewards)
            batches.append((task, choices, gains, choices.scored(old)[0]))
            rows.append(self.row(task, tried.costs, tried.valid, tried.rewards))
        self.set_rate()
        for _ in range(args.epochs):
            self.optimizer.zero_grad()
            for (task, choices, gains, before), row in zip(batches, rows, strict=True):
                logits = self.network(task.graph)
                loss, measures = ppo_loss(logits, choices, gains, before, args.clip, args.entropy)
                ((loss + self.more_loss(task, logits)) / len(batches)).backward()
                row |= measures
            self.descend()
        return self.finish_update(rows)

    def tried(
        self,
        task: Any,
        decisions: np.ndarray,
        costs: np.ndarray,
        valid: np.ndarray,
        drawn: Mapping[str, np.ndarray] | None = None,
    ) -> Tried:
        """Decisions that were priced, judged and taken among the elites. ``drawn``: notes of :meth:`draw`."""
        rewards, notes = self.judge(task, decisions, costs, valid)
        task.keep_elites(decisions, self.rank_costs(costs, rewards), rewards, self.args.elites)
        drawn = self.not_drawn(task, decisions) if drawn is None else drawn
        return Tried(decisions, costs, valid, rewards, {**notes, **drawn})

    def try_some(self, task: Any, logits: torch.Tensor) -> Tried:
        """Decisions from the policy, and changed elites, which learn of each other."""
        args = self.args
        mutants = round(args.samples * args.mutants) if task.elites else 0
        decisions, drawn = self.draw(task, logits, args.samples - mutants)
        changed = self.changed(task, logits, mutants)
        if len(changed):
            decisions = np.concatenate([decisions, changed])
        decisions = self.named(task, decisions, logits)
        costs, valid = task.evaluate(decisions, self.wall_s)
        parts = [self.tried(task, decisions, costs, valid, drawn)]
        done = len(decisions)
        while done < args.samples:
            moved = self.named(task, self.moved(task, min(args.samples - done, self.moved_together)), logits)
            costs, valid = task.evaluate(moved, self.wall_s, done)
            parts.append(self.tried(task, moved, costs, valid))
            done += len(moved)
        return Tried.join(parts)

    def moved(self, task: Any, count: int) -> np.ndarray:
        """int32 [count, N]: an elite each, better ones more often, after a few moves of its own problem."""
        rows = []
        for _ in range(count):
            row = task.elite(self.rng)
            for _ in range(int(self.rng.integers(1, self.most_moves + 1))):
                row = task.problem.neighbour(row, self.rng)
            rows.append(row)
        return np.stack(rows)

    def learned_from(self, task: Any, tried: Tried) -> tuple[Choices, torch.Tensor]:
        """The choices of a batch and of the elites, and the advantage of each."""
        if task.elites:
            costs, rewards, decisions = (np.array(part) for part in zip(*task.elites, strict=True))
            valid = np.ones(len(costs), bool)
            notes = {**self.judge(task, decisions, costs, valid)[1], **self.not_drawn(task, decisions)}
            tried = Tried.join([tried, Tried(decisions, costs, valid, rewards, notes)])
        if self.args.advantage == "rank":
            return self.choices(task, tried, rank_advantages(tried.rewards))
        baseline = task.reward_mean if task.trials else float(tried.rewards.mean())
        return self.choices(task, tried, (tried.rewards - baseline) / (tried.rewards.std() + 1e-8))

    # -- a trained network -----------------------------------------------------------------------------------------

    @classmethod
    def try_decisions(cls, task: Any, decisions: np.ndarray, wall_s: Callable[[], float]) -> np.ndarray:
        """float64 [B]: the costs of decisions, which count as trials of the task."""
        costs, _ = task.evaluate(decisions, wall_s())
        task.count(-np.sqrt(costs))
        return costs  # type: ignore[no-any-return]

    @classmethod
    def decide(cls, network: Any, task: Any, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """The first sample is the likeliest choice of each entry; the others are drawn."""
        with torch.no_grad():
            logits = network(task.graph)
        likeliest = logits.argmax(1).numpy().astype(np.int32)[None]
        drawn = draw_each(logits, samples - 1, np.random.default_rng(seed))
        cls.try_decisions(task, np.concatenate([likeliest, drawn]), wall_s)


def draw_each(logits: torch.Tensor, count: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [count, N] of logits float32 [N, C]: each entry by itself."""
    chances = np.cumsum(logits.double().softmax(1).numpy(), axis=1)[:, :-1]
    drawn: np.ndarray = (rng.random((count, len(chances), 1)) > chances).sum(axis=2, dtype=np.int32)
    return drawn


def ppo_loss(
    logits: torch.Tensor,
    choices: Choices,
    gains: torch.Tensor,
    before: torch.Tensor,
    clip: float,
    entropy: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's clipped loss with one ratio for each choice, and the entropy bonus.

    Args:
        logits: float32 [N, C] of the network now.
        choices: in B decisions; ``before``: their log-probabilities when drawn; ``gains``: their advantages.

    Returns:
        The loss, and measures for the learning curve: mean entropy of an entry, share of clipped ratios, divergence.
    """
    chosen, every = choices.scored(logits)
    return clipped_loss(chosen - before, gains, every, clip, entropy)


def rank_advantages(rewards: np.ndarray) -> np.ndarray:
    """float64 [B]: ranks of the rewards (equal rewards share theirs), of mean 0 and at most sqrt(3) apart from it.

    Ranks, because rewards have a long tail: one placement that overflows would drown all differences among the good.
    """
    _, inverse, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2  # mean of the ranks 0.. that equal rewards share
    centred = middle[inverse] - (len(rewards) - 1) / 2
    return centred * (2 * math.sqrt(3) / max(1, len(rewards) - 1))
