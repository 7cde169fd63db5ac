"""The trainer of agents that decide one step after the other, in the episodes of any environment with masks.

An update takes a few tasks; on each, the policy plays a few episodes to their ends, all at once, and then takes a few
epochs of PPO (Schulman et al., 2017) over all their steps. Rewards are not discounted: they sum to what is wanted. The
advantage is scaled for each task by itself (ours): what there is to win differs from one to the next.

The episodes are the environment's own (:class:`graphopt_gym.envs.core.episodes.Episodes`): what is observed, which
actions are legal, and what is rewarded is said there and nowhere else. Each update begins with new ones, so all that a
run goes on with is in its checkpoint. An agent gives a network (:class:`StepNetwork`); what it does otherwise than
here, it overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

from graphopt_agents.core.run import Costs, Task, TrainArgs, Trainer, clipped_loss
from graphopt_gym.envs.core.episodes import Episodes
from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.fields import check_fields

HUBER = 0.1  # errors above it count linearly
LESSONS = 0.25  # to the steps of a minibatch, at most
TOGETHER = 8  # episodes that a trained policy plays at once


class StepNetwork(Protocol):
    """A ``torch.nn.Module`` that acts. ``config``: what it was made of."""

    config: Any

    def inputs(self, observations: Mapping[str, np.ndarray], masks: np.ndarray) -> list[Any]:
        """What it is to see of each row of observations [rows, …] and masks bool [rows, actions]."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """(logits float32 [B, actions], the least number where there is no action; values float32 [B], of what the
        rest of the episode is to bring; what else there is), of inputs of B rows."""


@dataclass(frozen=True)
class StepArgs(TrainArgs):
    """What the runs of all stepwise agents depend on."""

    episodes: int = 4  # of a graph in an update
    minibatch: int = 64  # steps
    gae_lambda: float = 0.95
    value: float = 0.5  # weight of the value's loss

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"episodes": 1, "minibatch": 1}, at_least=("value",), shares=("gae_lambda",))


@dataclass(kw_only=True)
class StepTask(Task):
    """One graph on one cluster, and its episodes."""

    episodes: Episodes[Any]


@dataclass
class Step:
    """One action of an episode."""

    input: Any
    action: int
    log_prob: float
    value: float
    reward: float
    gain: float = 0.0  # the advantage
    target: float = 0.0  # of the value


@dataclass
class Episode:
    """A row of a task's episodes under way."""

    task: Any
    row: int
    steps: list[Step] = field(default_factory=list)
    done: bool = False
    cost: float = 0.0  # at its end
    valid: bool = False

    @property
    def reward(self) -> float:
        return sum(step.reward for step in self.steps)

    def finish(self, gae_lambda: float) -> None:
        """Generalised advantages (Schulman et al., 2016), undiscounted, and targets of the value."""
        gain, following = 0.0, 0.0
        for step in reversed(self.steps):
            gain = step.reward + following - step.value + gae_lambda * gain
            step.gain, step.target, following = gain, gain + step.value, step.value


class StepTrainer(Trainer):
    """Trains a :class:`StepNetwork` in the environment of ``args.env_id``."""

    measured: ClassVar[tuple[str, ...]] = ("entropy", "clipped_share", "divergence", "value_error")

    # -- what an agent may do otherwise ----------------------------------------------------------------------------

    @classmethod
    def environment(cls, problem: Any, args: Any) -> dict[str, Any]:
        """Arguments of the environment, beside its problem."""
        return {}

    @classmethod
    def task_of(cls, problem: Any, args: Any = None, price: Costs | None = None) -> Any:
        return StepTask(problem=problem, price=price or problem.costs, episodes=cls.make_episodes(problem, args))

    @classmethod
    def make_episodes(cls, problem: Any, args: Any, more: int = 0) -> Episodes[Any]:
        """As many episodes of a problem as are played at once, and ``more``."""
        args = args or cls.args_class()
        count = max(args.episodes, TOGETHER) + more
        envs = EpisodeVectorEnv(args.env_id, count, graph=problem, info="light", **cls.environment(problem, args))
        return envs.episodes

    @classmethod
    def inputs(cls, network: Any, task: Any, rows: np.ndarray) -> list[Any]:
        """What the network is to see of each row of the task's episodes."""
        return network.inputs(task.episodes.observe(rows), task.episodes.masks(rows))  # type: ignore[no-any-return]

    @classmethod
    def act(cls, network: Any, inputs: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """(logits, values, what else there is), see :class:`StepNetwork`."""
        logits, values, *rest = network(inputs)
        return logits, values, rest

    @classmethod
    def visited(cls, task: Any, rows: np.ndarray, actions: np.ndarray, done: np.ndarray, wall_s: float) -> None:
        """Have evaluated what the rows came to by actions, as trials of the task: here the decisions at the end."""
        if done.any():
            decisions = np.stack([task.episodes.decision(row) for row in rows[done].tolist()])
            task.evaluate(decisions, wall_s)
            task.trials += len(decisions)

    def begin(self, task: Any) -> None:
        """Before the first episode of a task."""

    def more_loss(self, rest: Any, steps: Sequence[Step], actions: torch.Tensor) -> tuple[Any, dict[str, float]]:
        """(what comes to the loss of steps, measures); ``rest``: what the network gave."""
        return 0.0, {}

    def lessons(self, task: Any) -> list[Any]:
        """What is to be learned beside the steps."""
        return []

    def lesson_loss(self, lessons: Sequence[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """(the loss of lessons, measures)."""
        raise NotImplementedError

    # -- an update -------------------------------------------------------------------------------------------------

    @classmethod
    def play(
        cls,
        network: Any,
        counts: Sequence[tuple[Any, int]],
        key: tuple[int, ...],
        wall_s: Callable[[], float],
        generator: torch.Generator | None = None,
    ) -> list[Episode]:
        """Play so many episodes of tasks to their ends, all at once.

        Args:
            key: what the environment's random numbers are drawn from.
            generator: what actions are drawn with; None: the likeliest.
        """
        playing = []
        for number, (task, count) in enumerate(counts):
            generators = [np.random.default_rng((*key, number, row)) for row in range(count)]
            task.episodes.reset(np.arange(count), generators)
            playing += [Episode(task, row) for row in range(count)]
        while active := [one for one in playing if not one.done]:
            parts = [(task, [one for one in active if one.task is task]) for task, _ in counts]
            parts = [(task, own) for task, own in parts if own]
            rows = [np.array([one.row for one in own]) for _, own in parts]
            inputs = [one for (task, _), mine in zip(parts, rows) for one in cls.inputs(network, task, mine)]
            with torch.no_grad():
                logits, values, _ = cls.act(network, inputs)
                log_probs = logits.log_softmax(1)
            if generator is None:
                actions = log_probs.argmax(1)
            else:
                actions = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
            chosen, taken = log_probs.gather(1, actions[:, None])[:, 0].tolist(), actions.numpy()
            at = 0
            for (task, own), mine in zip(parts, rows):
                part = slice(at, at + len(mine))
                at += len(mine)
                rewards, done, _ = task.episodes.act(mine, taken[part])
                told = zip(own, inputs[part], taken[part].tolist(), chosen[part], values[part].tolist(), rewards, done)
                for episode, seen, action, log_prob, value, reward, ended in told:
                    episode.steps.append(Step(seen, action, log_prob, value, float(reward)))
                    episode.done = bool(ended)
                    if ended:
                        episode.cost, episode.valid = task.episodes.result(episode.row)[1:3]
                cls.visited(task, mine, taken[part], done, wall_s())
        return playing

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        tasks = self.next_tasks()
        for task in tasks:
            if not task.trials:
                self.begin(task)
        counts = [(task, self.args.episodes) for task in tasks]
        episodes = self.play(self.network, counts, (self.args.seed, self.updates), lambda: self.wall_s, self.generator)
        steps = []
        for task in tasks:
            own = [one for one in episodes if one.task is task]
            for episode in own:
                episode.finish(self.args.gae_lambda)
            mine = [step for episode in own for step in episode.steps]
            gains = np.array([step.gain for step in mine])
            for step, gain in zip(mine, (gains - gains.mean()) / (gains.std() + 1e-8), strict=True):
                step.gain = float(gain)
            steps += mine
        measures = self.learn(steps, [lesson for task in tasks for lesson in self.lessons(task)])
        rows = []
        for task in tasks:
            own = [one for one in episodes if one.task is task]
            told = ([one.cost for one in own], [one.valid for one in own], [one.reward for one in own])
            row = self.row(task, *map(np.array, told))
            rows.append(row | {"mean_steps": float(np.mean([len(one.steps) for one in own]))} | measures)
        return self.finish_update(rows)

    def learn(self, steps: Sequence[Step], lessons: Sequence[Any]) -> dict[str, float]:
        """Epochs of PPO over steps, with some lessons in each minibatch; measures of the last epoch."""
        args = self.args
        self.set_rate()
        count = max(1, -(-len(steps) // args.minibatch))
        measures: dict[str, list[float]] = {}
        for _ in range(args.epochs):
            order = self.rng.permutation(len(steps))
            taught = self.rng.permutation(len(lessons))[: round(LESSONS * args.minibatch * count)]
            measures = {name: [] for name in self.measured}
            for chosen, learned in zip(np.array_split(order, count), np.array_split(taught, count), strict=True):
                self.optimizer.zero_grad()
                loss, measured = self.ppo_loss([steps[index] for index in chosen])
                if len(learned):
                    part, more = self.lesson_loss([lessons[index] for index in learned])
                    loss, measured = loss + part, measured | more
                for name, value in measured.items():
                    measures[name].append(value)
                loss.backward()
                self.descend()
        return {name: float(np.mean(values)) if values else 0.0 for name, values in measures.items()}

    def ppo_loss(self, steps: Sequence[Step]) -> tuple[torch.Tensor, dict[str, float]]:
        """PPO's clipped loss, that of the value, and an agent's own; and measures for the learning curve."""
        args = self.args
        logits, values, rest = self.act(self.network, [step.input for step in steps])
        log_probs = logits.log_softmax(1)
        actions = torch.tensor([step.action for step in steps])
        before, gains, targets = torch.tensor(
            [[step.log_prob, step.gain, step.target] for step in steps], dtype=torch.float32
        ).t()
        log_ratio = log_probs.gather(1, actions[:, None])[:, 0] - before
        loss, measures = clipped_loss(log_ratio, gains, log_probs, args.clip, args.entropy)
        # a few steps may make a decision several times worse: no such episode is to outweigh all others
        value_error = smooth_l1_loss(values, targets, beta=HUBER)
        more, measured = self.more_loss(rest, steps, actions)
        return loss + args.value * value_error + more, measures | {"value_error": value_error.item()} | measured

    # -- a trained network -----------------------------------------------------------------------------------------

    @classmethod
    def decide(cls, network: Any, task: Any, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """Samples are episodes: the first takes the likeliest actions, the others draw them."""
        cls.play(network, [(task, 1)], (seed,), wall_s)
        generator = torch.Generator().manual_seed(seed)
        for first in range(1, samples, TOGETHER):
            cls.play(network, [(task, min(TOGETHER, samples - first))], (seed, first), wall_s, generator)
