"""Train the policy of program rewriting on one or several programs: one file, top to bottom.

    graphopt train rewrite --graphs small_scores --out runs/scores
    graphopt train rewrite --graphs small --updates 200 --out runs/small

An update takes a few programs; on each, the policy rewrites from the original until it stops, a few episodes at once,
and then takes a few epochs of PPO (Schulman et al., 2017) over all their steps. The problem is that of X-RLflow (He et
al., MLSys 2023): an action is a rule and a place, or to stop; the reward is the drop in time. What is ours:

- The advantage is scaled for each program by itself: what there is to save differs from one to the next.
- ``foresight``: a head learns to tell what a rewrite saves at once, which every step shows exactly.
- ``imitation``: the policy learns from the rewrites that led to the best program so far, too, whichever of them it
  could do now (in another order, most lead to the same). The best is the policy's own, unless
- ``starts``: on each program, greedy and TASO's search have so many evaluations each before the first update, and the
  best that they find is the first to be imitated. So is what any single rewrite along that way would save foreseen.

A program that is visited is an evaluation, each time; those of ``starts`` and of looking around count, too.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

from graphopt_agents.core import run as training
from graphopt_agents.core.run import AnyPath, Costs, Run, TrainArgs, clipped_loss
from graphopt_agents.networks.rewrite import (
    RewriteConfig,
    RewriteInput,
    RewriteNetwork,
    RewriteOutput,
    root_gain,
    rule_numbers,
)
from graphopt_gym.envs.rewrite import searches
from graphopt_gym.envs.rewrite.episodes import progress as progress_features
from graphopt_gym.envs.rewrite.features import growth, match_features, node_features, shown
from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
from graphopt_gym.envs.rewrite.rules.matching import Match
from graphopt_gym.fields import check_fields, names
from graphopt_gym.problem import Solution
from graphopt_gym.search.solve import BudgetSpent, Evaluator

LEAST_STEPS = 20  # of an episode on the smallest program
HUBER = 0.1  # errors above it count linearly
SETTLED = 5  # updates in a row without a program that is new
LESSONS = 0.25  # to the steps of a minibatch, at most
TOGETHER = 8  # episodes that a trained policy plays at once


@dataclass(frozen=True)
class Args(TrainArgs, RewriteConfig):
    """What a run depends on, beside the fields of :class:`TrainArgs` and :class:`RewriteConfig`."""

    env_id = "RewriteOrder-v0"
    config_class = RewriteConfig
    default_cluster = "t4"

    graphs: tuple[str, ...] = ("small_scores",)  # programs: names, paths; small, network: all of the zoo's of that sort
    clusters: tuple[str, ...] = ("t4",)  # devices
    cost: str = "sum"  # or "simulated"
    episodes: int = 4  # of a program in an update
    max_steps: int = 200  # of an episode, at most; on smaller programs as many as they have nodes
    max_matches: int = 256  # shown at once
    minibatch: int = 64  # steps
    gae_lambda: float = 0.95  # rewards are not discounted: they sum to what is saved
    value: float = 0.5  # weight of the value's loss
    foresight: float = 1.0  # weight of the loss of what a rewrite is to save
    imitation: float = 0.5  # weight of the loss on the way to the best so far
    starts: int = 0  # evaluations that greedy and TASO's search each have on a program, whose best is imitated first

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", names("rules", self.rules))
        super().__post_init__()
        wholes = {**dict.fromkeys(("episodes", "max_steps", "max_matches", "minibatch"), 1), "starts": 0}
        check_fields(self, wholes, at_least=("value", "foresight", "imitation"), shares=("gae_lambda",))


# -- programs and episodes -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Task(training.Task):
    """One program on one device; decisions are :class:`Rewritten`."""

    problem: RewriteProblem
    max_steps: int
    max_matches: int
    looked_around: bool = False  # whether the best is from ``starts``
    seen: set[str] = field(default_factory=set)  # fingerprints of the programs visited by this process

    @cached_property
    def grown(self) -> list[int]:
        """Operators that each rule adds."""
        return [growth(rule)[0] for rule in self.problem.matcher.rules]

    def visit(self, states: Sequence[Rewritten], wall_s: float) -> None:
        """Have programs evaluated, as trials of the task."""
        if states:
            taken = np.empty(len(states), object)
            taken[:] = states
            before = self.best_cost
            self.evaluate(taken, wall_s)
            self.looked_around &= self.best_cost == before
            self.trials += len(states)
            self.seen.update(state.program.fingerprint for state in states)

    def saved(self, before: Rewritten, after: Rewritten) -> float:
        """The drop in time, to the original's."""
        original_s = self.problem.original_s
        return (before.cost - after.cost) / original_s if original_s > 0 else 0.0

    def solution(self, method: str, seed: int, wall_s: float) -> Solution:
        found = super().solution(method, seed, wall_s)
        return dataclasses.replace(found, decision=self.best.program, trace=self.problem.trace(self.best))

    def packed(self, decision: Rewritten) -> str:
        return json.dumps(decision.trace)

    def unpacked(self, kept: str) -> Rewritten:
        return self.problem.replay(json.loads(kept))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "looked_around": self.looked_around}

    def restore(self, kept: Mapping[str, Any]) -> None:
        super().restore(kept)
        self.looked_around = bool(kept["looked_around"])


@dataclass(frozen=True)
class Look:
    """What the policy sees of a program, and which match each action is."""

    matches: list[Match]
    input: RewriteInput


def look(task: Task, state: Rewritten, best_s: float, left: float, numbers: np.ndarray) -> Look:
    """What there is to see of a program in an episode, the same as in the environment.

    Args:
        best_s: seconds of the cheapest program so far in it.
        left: share of its steps that are left.
        numbers: of the problem's rules in the network, see :func:`rule_numbers`.
    """
    original_s, every = task.problem.original_s, state.matches
    matches = shown(every, task.max_matches)
    nodes, edges, operand = node_features(state, original_s)
    features, rule, roots = match_features(state, matches, task.grown, len(numbers), original_s)
    share = len(matches) / len(every) if every else 1.0
    arrays = {
        "nodes": nodes,
        "edge_index": edges,
        "edge_operand": operand,
        "matches": features,
        "match_rule": rule,
        "match_roots": roots,
        "progress": np.array(progress_features(state.cost, best_s, original_s, left, share)),
    }
    return Look(matches, RewriteInput.of_arrays(arrays, numbers))


@dataclass
class Step:
    """One decision of an episode."""

    input: RewriteInput
    action: int
    log_prob: float
    value: float
    reward: float
    gain: float = 0.0  # the advantage
    target: float = 0.0  # of the value


@dataclass
class Episode:
    """Rewriting of a task's program under way."""

    task: Task
    state: Rewritten
    best_s: float
    steps: list[Step] = field(default_factory=list)
    done: bool = False

    @classmethod
    def start(cls, task: Task) -> Episode:
        original = task.problem.original
        return cls(task, original, original.cost, done=not original.matches)

    def look(self, numbers: np.ndarray) -> Look:
        return look(self.task, self.state, self.best_s, 1 - len(self.steps) / self.task.max_steps, numbers)

    def act(self, seen: Look, action: int, log_prob: float, value: float) -> Rewritten | None:
        """The program that comes out; None where the action is to stop."""
        after = self.state if action == 0 else self.state.apply(seen.matches[action - 1])
        reward = self.task.saved(self.state, after)
        self.steps.append(Step(seen.input, action, log_prob, value, reward))
        self.state, self.best_s = after, min(self.best_s, after.cost)
        self.done = action == 0 or len(self.steps) >= self.task.max_steps or not after.matches
        return after if action else None

    def finish(self, gae_lambda: float) -> None:
        """Generalised advantages (Schulman et al., 2016), undiscounted, and targets of the value."""
        gain, following = 0.0, 0.0
        for step in reversed(self.steps):
            gain = step.reward + following - step.value + gae_lambda * gain
            step.gain, step.target, following = gain, gain + step.value, step.value


def play(
    network: RewriteNetwork,
    episodes: Sequence[Episode],
    wall_s: Callable[[], float],
    generator: torch.Generator | None = None,
) -> None:
    """Play episodes to their ends, all at once: actions drawn, or the likeliest without a generator."""
    known = network.config.rules
    numbers = {id(one.task): rule_numbers(known, one.task.problem.matcher.rules) for one in episodes}
    while active := [one for one in episodes if not one.done]:
        seen = [one.look(numbers[id(one.task)]) for one in active]
        batch = RewriteInput.join([one.input for one in seen])
        with torch.no_grad():
            out = network(batch)
            log_probs = out.logits(batch).log_softmax(1)
        if generator is None:
            actions = log_probs.argmax(1)
        else:
            actions = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
        chosen = log_probs.gather(1, actions[:, None])[:, 0].tolist()
        visited: dict[int, list[Rewritten]] = {}
        rows = zip(active, seen, actions.tolist(), chosen, out.values.tolist(), strict=True)
        for episode, one, action, log_prob, value in rows:
            after = episode.act(one, action, log_prob, value)
            if after is not None:
                visited.setdefault(id(episode.task), []).append(after)
        for task in {id(one.task): one.task for one in active}.values():
            task.visit(visited.get(id(task), []), wall_s())


@dataclass(frozen=True)
class Lesson:
    """A step on the way to the best: which actions are right, and what matches save at once where that is known."""

    input: RewriteInput
    right: torch.Tensor  # bool [m + 1]
    gains: torch.Tensor  # float32 [m], NaN where unknown


def lessons_of(task: Task, numbers: np.ndarray) -> list[Lesson]:
    """The way to the task's best program, each step a lesson; at its end it is right to stop.

    Right is what the way does next, and what it does later and could do now.
    """
    best = task.best
    if best is None or not best.traced or best.last is None:
        return []
    states, taken = [task.problem.original], []
    for rule, places, _ in best.trace:
        state = states[-1]
        roots = tuple(state.program.order[place] for place in places)
        taken.append(
            next(
                one for one in state.matches if one.roots == roots and task.problem.matcher.rules[one.rule].name == rule
            )
        )
        states.append(state.apply(taken[-1]))
    lessons = []
    best_s = states[0].cost
    for number, state in enumerate(states):
        best_s = min(best_s, state.cost)
        seen = look(task, state, best_s, max(0.0, 1 - number / task.max_steps), numbers)
        later = {(match.rule, match.roots) for match in taken[number:]}
        right = torch.tensor([not later, *((match.rule, match.roots) in later for match in seen.matches)])
        gains = torch.full((len(seen.matches),), torch.nan)
        for index, match in enumerate(seen.matches):
            if task.looked_around or (number < len(taken) and match == taken[number]):
                gains[index] = root_gain(torch.tensor(task.saved(state, state.apply(match))))
        if right.any():  # the next one may be among those that are not shown
            lessons.append(Lesson(seen.input, right, gains))
    return lessons


# -- training --------------------------------------------------------------------------------------------------------


class Trainer(training.Trainer):
    """The state of a run, and one update of it. Give tasks with different names."""

    agent = "rewrite"
    args_class = Args
    network_class = RewriteNetwork
    problem_arguments = ("cost",)

    def __init__(self, args: Args, tasks: Sequence[Task], network: RewriteNetwork | None = None) -> None:
        super().__init__(args, tasks, network)
        self._lessons: dict[str, tuple[Rewritten, list[Lesson]]] = {}

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        tasks: list[Task] = self.next_tasks()
        for task in tasks:
            if not task.trials:
                task.visit([task.problem.original], self.wall_s)
                if args.starts:
                    self._start(task)
        episodes = [Episode.start(task) for task in tasks for _ in range(args.episodes)]
        play(self.network, episodes, lambda: self.wall_s, self.generator)
        for episode in episodes:
            episode.finish(args.gae_lambda)
        steps = []
        for task in tasks:
            own = [step for episode in episodes if episode.task is task for step in episode.steps]
            gains = np.array([step.gain for step in own])
            for step, gain in zip(own, (gains - gains.mean()) / (gains.std() + 1e-8) if own else (), strict=True):
                step.gain = float(gain)
            steps += own
        lessons = [lesson for task in tasks for lesson in self._lessons_of(task)] if args.imitation else []
        measures = self._learn(steps, lessons)
        rows = []
        for task in tasks:
            own_episodes = [episode for episode in episodes if episode.task is task]
            costs = np.array([episode.state.cost for episode in own_episodes])
            saved = np.array([task.saved(task.problem.original, episode.state) for episode in own_episodes])
            row = self.row(task, costs, np.ones(len(costs), bool), saved)
            lengths = [len(episode.steps) for episode in own_episodes]
            rows.append(row | {"mean_steps": float(np.mean(lengths))} | measures)
        return self.finish_update(rows)

    def _start(self, task: Task) -> None:
        """What greedy and TASO's search find within ``starts`` evaluations each, as trials; the better is kept."""
        for search in (searches.greedy, searches.taso):
            evaluator = Evaluator(task.problem, self.args.starts)
            with contextlib.suppress(BudgetSpent):
                search(evaluator, self.rng)
            task.visit([evaluator.best], self.wall_s)
            task.trials += evaluator.evaluations - 1
        task.looked_around = True
        task.trials += sum(len(lesson.gains) for lesson in self._lessons_of(task))

    def _lessons_of(self, task: Task) -> list[Lesson]:
        if task.best is None:
            return []
        kept = self._lessons.get(task.name)
        if kept is None or kept[0] is not task.best:
            numbers = rule_numbers(self.network.config.rules, task.problem.matcher.rules)
            kept = self._lessons[task.name] = (task.best, lessons_of(task, numbers))
        return kept[1]

    def _learn(self, steps: list[Step], lessons: list[Lesson]) -> dict[str, float]:
        """Epochs of PPO over steps, with some lessons in each minibatch; measures of the last epoch."""
        args = self.args
        self.set_rate()
        names = ("entropy", "clipped_share", "divergence", "value_error", "gain_error", "imitation_loss")
        measures: dict[str, list[float]] = {name: [] for name in names}
        count = max(1, -(-len(steps) // args.minibatch))
        for _ in range(args.epochs):
            order = self.rng.permutation(len(steps))
            taught = self.rng.permutation(len(lessons))[: round(LESSONS * args.minibatch * count)]
            measures = {name: [] for name in names}
            for chosen, learned in zip(np.array_split(order, count), np.array_split(taught, count), strict=True):
                self.optimizer.zero_grad()
                loss: Any = 0.0
                if len(chosen):
                    loss, measured = ppo_loss(self.network, [steps[index] for index in chosen], args)
                    for name, value in measured.items():
                        measures[name].append(value)
                if len(learned):
                    part, imitation_loss = lesson_loss(self.network, [lessons[index] for index in learned])
                    loss = loss + args.imitation * part
                    measures["imitation_loss"].append(imitation_loss)
                if not isinstance(loss, float):
                    loss.backward()
                    self.descend()
        return {name: float(np.mean(values)) if values else 0.0 for name, values in measures.items()}

    @classmethod
    def task_of(cls, problem: RewriteProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        args = args or Args()
        steps = min(args.max_steps, max(LEAST_STEPS, len(problem.program)))
        return Task(problem=problem, price=price or problem.costs, max_steps=steps, max_matches=args.max_matches)

    @classmethod
    def decide(cls, network: RewriteNetwork, task: Task, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """Samples are episodes: the first takes the likeliest actions, the others draw them. Every program on the way
        is tried."""
        task.visit([task.problem.original], wall_s())
        play(network, [Episode.start(task)], wall_s)
        generator = torch.Generator().manual_seed(seed)
        for first in range(1, samples, TOGETHER):
            play(network, [Episode.start(task) for _ in range(min(TOGETHER, samples - first))], wall_s, generator)

    @classmethod
    def method_run(cls, start_from: AnyPath | None = None, **arguments: Any) -> Run:
        """As its base. Where the policy has settled on programs that it has all seen, it starts anew, with other random
        numbers; the evaluator keeps the best. From a checkpoint, the likeliest actions come first, as they are."""

        def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
            kept, given = None, dict(arguments)
            if start_from is not None:
                kept = cls.load_network(start_from)
                given = {**dataclasses.asdict(kept.config), **given}
            first = True
            while evaluator.left > 0:
                args = cls.args_from({**given, "seed": int(rng.integers(2**31))})
                task = cls.task_of(evaluator.problem, args, evaluator.costs_and_valid)  # type: ignore[arg-type]
                trainer = cls(args, [task], copy.deepcopy(kept))
                task.visit([task.problem.original], trainer.wall_s)
                if not task.problem.original.matches:
                    return
                if kept is not None and first:
                    play(trainer.network, [Episode.start(task)], lambda: evaluator.wall_s)
                first, settled = False, 0
                while evaluator.left > 0 and settled < SETTLED:
                    known = len(task.seen)
                    trainer.update()
                    settled = settled + 1 if len(task.seen) == known else 0

        return run


def ppo_loss(network: RewriteNetwork, steps: Sequence[Step], args: Args) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's clipped loss, that of the value and of the foresight, and measures for the learning curve."""
    batch = RewriteInput.join([step.input for step in steps])
    out: RewriteOutput = network(batch)
    log_probs = out.logits(batch).log_softmax(1)
    actions = torch.tensor([step.action for step in steps])
    before, gains, targets, rewards = torch.tensor(
        [[step.log_prob, step.gain, step.target, step.reward] for step in steps], dtype=torch.float32
    ).t()
    log_ratio = log_probs.gather(1, actions[:, None])[:, 0] - before
    loss, measures = clipped_loss(log_ratio, gains, log_probs, args.clip, args.entropy)
    # a few rewrites make a program several times slower: no such episode is to outweigh all others
    value_error = smooth_l1_loss(out.values, targets, beta=HUBER)
    taken = batch.slot == (actions - 1)[batch.graph_of_match]  # in the order of the steps
    gain_error = smooth_l1_loss(out.gains[taken], root_gain(rewards[actions > 0]), beta=HUBER, reduction="sum")
    gain_error = gain_error / len(steps)
    measures |= {"value_error": value_error.item(), "gain_error": gain_error.item()}
    return loss + args.value * value_error + args.foresight * gain_error, measures


def lesson_loss(network: RewriteNetwork, lessons: Sequence[Lesson]) -> tuple[torch.Tensor, float]:
    """Minus the logarithm of the chance of something right, and the error of the foresight; the first as a measure."""
    batch = RewriteInput.join([lesson.input for lesson in lessons])
    out: RewriteOutput = network(batch)
    log_probs = out.logits(batch).log_softmax(1)
    right = torch.zeros(log_probs.shape, dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        right[row, : len(lesson.right)] = lesson.right
    loss = -log_probs.masked_fill(~right, torch.finfo(torch.float32).min).logsumexp(1).mean()
    gains = torch.cat([lesson.gains for lesson in lessons])
    known = ~gains.isnan()
    error = smooth_l1_loss(out.gains[known], gains[known], beta=HUBER, reduction="sum") / max(1, int(known.sum()))
    return loss + error, loss.item()


args_from, make_task, task_of, load_network = (
    Trainer.args_from,
    Trainer.make_task,
    Trainer.task_of,
    Trainer.load_network,
)
train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
