"""The agent of program rewriting: a graph network that says which rule rewrites a program where, one after the other.

    graphopt train rewrite --graphs small_scores --out runs/scores
    graphopt train rewrite --graphs small --updates 200 --out runs/small

It is trained in ``RewriteOrder-v0`` by ``core.stepwise``, with enough room for a program to grow. The problem is that
of X-RLflow (He et al., MLSys 2023): an action is a rule and a place, or to stop; the reward is the drop in time. What
is ours:

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
from typing import Any

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

from graphopt_agents.core.run import AnyPath, Costs, Run
from graphopt_agents.core.stepwise import HUBER, Step, StepArgs, StepTask, StepTrainer
from graphopt_agents.lessons import Lesson, lessons_of
from graphopt_agents.networks.rewrite import (
    RewriteConfig,
    RewriteInput,
    RewriteNetwork,
    RewriteOutput,
    root_gain,
    rule_numbers,
)
from graphopt_gym.envs.rewrite import searches
from graphopt_gym.envs.rewrite.episodes import RewriteEpisodes
from graphopt_gym.envs.rewrite.instances import count_edges
from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
from graphopt_gym.fields import check_fields, names
from graphopt_gym.problem import Solution
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator

LEAST_STEPS = 20  # of an episode on the smallest program
ROOM = 3  # nodes and edges that there is room for, to those of the original
SETTLED = 5  # updates in a row without a program that is new


@dataclass(frozen=True)
class Args(StepArgs, RewriteConfig):
    """What a run depends on, beside the fields of :class:`StepArgs` and :class:`RewriteConfig`."""

    env_id = "RewriteOrder-v0"
    config_class = RewriteConfig
    default_cluster = "t4"

    graphs: tuple[str, ...] = ("small_scores",)  # programs: names, paths; small, network: all of the zoo's of that sort
    clusters: tuple[str, ...] = ("t4",)  # devices
    cost: str = "sum"  # or "simulated"
    max_steps: int = 200  # of an episode, at most; on smaller programs as many as they have nodes
    max_matches: int = 256  # shown at once
    foresight: float = 1.0  # weight of the loss of what a rewrite is to save
    imitation: float = 0.5  # weight of the loss on the way to the best so far
    starts: int = 0  # evaluations that greedy and TASO's search each have on a program, whose best is imitated first

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", names("rules", self.rules))
        super().__post_init__()
        check_fields(self, {"max_steps": 1, "max_matches": 1, "starts": 0}, at_least=("foresight", "imitation"))


@dataclass(kw_only=True)
class Task(StepTask):
    """One program on one device; decisions are :class:`Rewritten`. The last of its episodes is for lessons."""

    problem: RewriteProblem
    episodes: RewriteEpisodes
    looked_around: bool = False  # whether the best is from ``starts``
    seen: set[str] = field(default_factory=set)  # fingerprints of the programs visited by this process
    numbers: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)  # see rule_numbers; by what is known
    taught: tuple[Any, list[Lesson]] = field(default=(None, []))  # the lessons of a best program

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


class Trainer(StepTrainer):
    """The runs of this agent."""

    agent = "rewrite"
    args_class = Args
    network_class = RewriteNetwork
    problem_arguments = ("cost",)
    measured = (*StepTrainer.measured, "gain_error", "imitation_loss")

    @classmethod
    def task_of(cls, problem: RewriteProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        episodes: Any = cls.make_episodes(problem, args, more=1)
        return Task(problem=problem, price=price or problem.costs, episodes=episodes)

    @classmethod
    def environment(cls, problem: RewriteProblem, args: Args) -> dict[str, Any]:
        size = len(problem.program)
        return {
            "max_steps": min(args.max_steps, max(LEAST_STEPS, size)),
            "max_matches": args.max_matches,
            "max_nodes": ROOM * size + 64,
            "max_edges": ROOM * count_edges(problem.original) + 64,
        }

    @classmethod
    def inputs(cls, network: RewriteNetwork, task: Task, rows: np.ndarray) -> list[RewriteInput]:
        known, rules = network.config.rules, task.problem.matcher.rules
        numbers = task.numbers.setdefault(known, torch.from_numpy(rule_numbers(known, rules)))
        seen = {name: torch.from_numpy(one) for name, one in task.episodes.observe(rows).items()}
        each = ({name: one[row : row + 1] for name, one in seen.items()} for row in range(len(rows)))
        return [RewriteInput.from_observations(one, numbers) for one in each]

    @classmethod
    def act(cls, network: RewriteNetwork, inputs: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        batch = RewriteInput.join(inputs)
        out: RewriteOutput = network(batch)
        return out.logits(batch), out.values, (batch, out)

    @classmethod
    def visited(cls, task: Task, rows: np.ndarray, actions: np.ndarray, done: np.ndarray, wall_s: float) -> None:
        """Every program on the way."""
        task.visit([task.episodes.state(row) for row in rows[actions > 0].tolist()], wall_s)

    def begin(self, task: Task) -> None:
        """The original, and what greedy and TASO's search find within ``starts`` evaluations each; the best is kept."""
        task.visit([task.problem.original], self.wall_s)
        if not self.args.starts:
            return
        for search in (searches.greedy, searches.taso):
            evaluator = Evaluator(task.problem, self.args.starts)
            with contextlib.suppress(BudgetSpent):
                search(evaluator, self.rng)
            task.visit([evaluator.best], self.wall_s)
            task.trials += evaluator.evaluations - 1
        task.looked_around = True
        task.trials += sum(len(lesson.gains) for lesson in self.kept_lessons(task))

    def more_loss(self, rest: Any, steps: Sequence[Step], actions: torch.Tensor) -> tuple[Any, dict[str, float]]:
        """That of the foresight."""
        batch, out = rest
        taken = batch.slot == (actions - 1)[batch.graph_of_match]  # in the order of the steps
        rewards = torch.tensor([step.reward for step in steps], dtype=torch.float32)
        error = smooth_l1_loss(out.gains[taken], root_gain(rewards[actions > 0]), beta=HUBER, reduction="sum")
        error = error / len(steps)
        return self.args.foresight * error, {"gain_error": error.item()}

    def lessons(self, task: Task) -> list[Lesson]:
        return self.kept_lessons(task) if self.args.imitation else []

    def kept_lessons(self, task: Task) -> list[Lesson]:
        """Those of the best so far, made once."""
        if task.taught[0] is not task.best:
            task.taught = task.best, lessons_of(task, lambda rows: self.inputs(self.network, task, rows))
        return task.taught[1]

    def lesson_loss(self, lessons: Sequence[Lesson]) -> tuple[torch.Tensor, dict[str, float]]:
        """Minus the logarithm of the chance of something right, and the error of the foresight."""
        logits, _, (_, out) = self.act(self.network, [lesson.input for lesson in lessons])
        log_probs = logits.log_softmax(1)
        right = torch.zeros(log_probs.shape, dtype=torch.bool)
        for row, lesson in enumerate(lessons):
            right[row, : len(lesson.right)] = lesson.right
        loss = -log_probs.masked_fill(~right, torch.finfo(torch.float32).min).logsumexp(1).mean()
        gains = torch.cat([lesson.gains for lesson in lessons])
        known = ~gains.isnan()
        error = smooth_l1_loss(out.gains[known], gains[known], beta=HUBER, reduction="sum") / max(1, int(known.sum()))
        return self.args.imitation * (loss + error), {"imitation_loss": loss.item()}

    @classmethod
    def decide(cls, network: RewriteNetwork, task: Task, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """As its base; every program on the way is tried, the original first."""
        task.visit([task.problem.original], wall_s())
        super().decide(network, task, samples, seed, wall_s)

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
                    cls.play(trainer.network, [(task, 1)], (args.seed,), lambda: evaluator.wall_s)
                first, settled = False, 0
                while evaluator.left > 0 and settled < SETTLED:
                    known = len(task.seen)
                    trainer.update()
                    settled = settled + 1 if len(task.seen) == known else 0

        return run


make_task, task_of, load_network = Trainer.make_task, Trainer.task_of, Trainer.load_network
train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
