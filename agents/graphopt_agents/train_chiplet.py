"""Train the policy of chiplet partition on one or several graphs: one file, top to bottom.

    python -m graphopt_agents.train_chiplet --graphs bert_primitive --clusters mcm36 --out runs/bert
    python -m graphopt_agents.train_chiplet --graphs inference_train --clusters mcm36 --out runs/all

An update takes a few (graph, package) pairs; for each it draws a batch of partitions from the policy through the
corrector (SAMPLE), prices them, and takes a few steps of PPO (Xie et al., MLSys 2022). What the paper leaves open, and
we chose:

- The ratio of new to old probability is that of each op's choice *among the chips that the corrector left it*, clipped
  for each op by itself. Ops whose chip followed from others' choices are left out: nothing was chosen there.
- The advantage is the rank of a partition's *strain* in its batch (``strain``: the slowest chip or link counts most,
  but the next ones count too, and memory beyond capacity), and to it comes what each op feels of the strain: its own
  chip's time and its own links'. ``advantage="baseline"`` is the paper's [recalled]: the throughput relative to the
  greedy heuristic, 0 where invalid, minus the mean of the graph's earlier trials.
- ``relaxed``: the network is trained on the expected strain of its own probabilities, too, which is smooth and costs
  no evaluation (``networks.chiplet.relaxed_strain``). It knows of the cost model what the observation tells.
- ``mutants``: a share of the batch that is not drawn from the policy but changes one of the best partitions so far by
  the problem's own move, through the corrector's FIX; the policy learns from these and from the best themselves as if
  it had drawn them. 0: what the policy draws alone.

``paper_arguments()`` leaves out all but the first.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents import training
from graphopt_agents.networks.chiplet import STRAIN_POWER, ChipletConfig, ChipletInput, ChipletNetwork, relaxed_strain
from graphopt_agents.training import Costs, Progress, TrainResult, clipped_loss, rank_advantages
from graphopt_gym.envs.chiplet.bounds import lower_bound
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import check_fields, whole
from graphopt_gym.problem import Solution
from graphopt_gym.search.solve import Evaluator

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.package import Package

AGENT = "chiplet"
ADVANTAGES = ("rank", "baseline")
DEFAULT_PACKAGE = "mcm36"
SHARPENED = 4  # how much sharper than in training the policy is drawn from, at most, when a graph is partitioned
PLACE_BATCH = 8
TIE = 1e-4  # share of a period that the strain makes up among the best


@dataclass(frozen=True)
class Args(training.GraphArgs, ChipletConfig):
    """What a run depends on, beside the fields of :class:`ChipletConfig`; stored with the checkpoint."""

    config_class = ChipletConfig

    graphs: tuple[str, ...] = ("bert_base_b1",)  # names, paths, and splits of the zoo, which become their graphs' names
    clusters: tuple[str, ...] = (DEFAULT_PACKAGE,)  # packages: one for all graphs, or one for each
    memory_rule: bool = False  # whether the corrector keeps to the memory
    solver: bool = True  # false: partitions as the policy draws them, uncorrected
    seed: int = 0
    updates: int = 100
    samples: int = 20  # partitions of a graph in an update, each one evaluation
    graphs_per_update: int = 4  # at most; each graph in turn
    epochs: int = 4  # PPO steps an update
    learning_rate: float = 1e-3
    decay: bool = False  # whether it falls linearly to 0 over all updates
    clip: float = 0.2
    entropy: float = 0.003  # bonus for the mean entropy of an op
    max_grad_norm: float = 1.0
    advantage: str = "rank"  # in the batch; or "baseline"
    relaxed: float = 1.0  # weight of relaxed_strain in the loss, beside PPO's
    relaxed_updates: int = 10  # of a graph, after which it counts half
    local: float = 0.5  # weight of what an op feels of the strain in its advantage, beside the partition's rank
    mutants: float = 0.75  # share of the batch that changes one of the best
    elites: int = 8  # the best partitions of a graph so far, learned from in each of its updates; 0: none
    starts: bool = False  # whether the first of them are those of cheap heuristics, one evaluation each
    checkpoint_every: int = 20  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        training.list_graphs(self, lambda graphs: (DEFAULT_PACKAGE,))
        least = {
            "seed": 0,
            "updates": 1,
            "samples": 2,
            "graphs_per_update": 1,
            "epochs": 1,
            "elites": 0,
            "relaxed_updates": 1,
        }
        check_fields(
            self,
            {**least, "checkpoint_every": 1},
            above=("learning_rate", "clip", "max_grad_norm"),
            at_least=("entropy", "local", "relaxed"),
            shares=("mutants",),
        )
        if self.mutants and not self.elites:
            raise InputError(
                f"mutants is {self.mutants} and elites is 0; mutants change elites: give some, or 0 mutants"
            )
        if round(self.samples * self.mutants) == self.samples:
            raise InputError(
                f"mutants is {self.mutants}, which leaves none of {self.samples} samples to the policy; give a smaller "
                "share, or more samples"
            )
        if self.advantage not in ADVANTAGES:
            raise unknown_name("advantage", self.advantage, ADVANTAGES)


def paper_arguments() -> dict[str, Any]:
    """The arguments that follow the paper where its choices are known."""
    return {"advantage": "baseline", "mutants": 0.0, "elites": 0, "anchored": False, "relaxed": 0.0, "local": 0.0}


def args_from(given: dict[str, Any]) -> Args:
    """Arguments from a dictionary. Raises InputError for an unknown name, with the nearest known one."""
    return training.args_from(Trainer, given)  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Task(training.Task):
    """One graph on one package."""

    problem: ChipletProblem
    graph: ChipletInput

    @cached_property
    def greedy_s(self) -> float:
        """The period of the greedy heuristic's partition: what throughput is relative to."""
        return float(self.problem.costs(greedy_decision(self.problem)[None])[0][0])

    @cached_property
    def least_s(self) -> float:
        """No period is shorter, see :func:`bounds.lower_bound`."""
        return max(lower_bound(self.problem), 1e-15)


@dataclass(frozen=True)
class Batch:
    """B partitions, and what each op's chip was chosen from."""

    decisions: np.ndarray  # int32 [B, N]
    drawn_from: np.ndarray  # int64 [B, N] sets of chips, as bits; 0 where an op had no choice


@dataclass(frozen=True)
class Tried(Batch):
    """Partitions that were evaluated."""

    costs: np.ndarray  # float64 [B]
    valid: np.ndarray  # bool [B]
    rewards: np.ndarray  # float64 [B]
    felt: np.ndarray  # float64 [B, N] see :func:`strain`; zeros where it does not count

    @classmethod
    def join(cls, parts: Sequence[Tried]) -> Tried:
        """Several as one."""
        fields = ([getattr(part, one.name) for part in parts] for one in dataclasses.fields(cls))
        return cls(*map(np.concatenate, fields))


def make_task(
    graph: str | os.PathLike[str] | ComputationGraph,
    package: str | os.PathLike[str] | Package,
    memory_rule: bool = False,
    price: Costs | None = None,
) -> Task:
    """A task to train on or to partition. Raises InputError for unknown names."""
    return task_of(ChipletProblem(graph, package, memory_rule=memory_rule), price)


def task_of(problem: ChipletProblem, price: Costs | None = None) -> Task:
    """A task of a problem; ``price`` in place of its ``costs``."""
    return Task(problem=problem, price=price or problem.costs, graph=ChipletInput.from_problem(problem))


class Trainer(training.Trainer):
    """The state of a run, and one update of it. Give tasks with different names."""

    agent = AGENT
    args_class = Args
    network_class = ChipletNetwork

    def update(self) -> list[dict[str, Any]]:
        """One update on the next few tasks; returns a row of the learning curve for each."""
        args = self.args
        batches, rows = [], []
        for task in self.next_tasks():
            if args.starts and args.elites and not task.trials:
                decisions, costs, valid = task.starts(self.rng, self.wall_s)
                rewards, _ = self._judge(task, decisions, costs, valid)
                self._keep(task, decisions, costs, rewards)
                task.count(rewards)
            with torch.no_grad():
                old = self.network(task.graph)
            tried = self._try(task, old)
            batch, advantages = self._with_elites(task, tried)
            task.count(tried.rewards)
            choices = Choices.of(batch, task.problem)
            batches.append((task, choices, torch.from_numpy(advantages).float(), choices.log_probs(old)))
            rows.append(self.row(task, tried.costs, tried.valid, tried.rewards))
        share_left = 1 - self.updates / args.updates if args.decay else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * share_left
        for _ in range(args.epochs):
            self.optimizer.zero_grad()
            for (task, choices, gains, before), row in zip(batches, rows, strict=True):
                logits = self.network(task.graph)
                loss, measures = ppo_loss(logits, choices, gains, before, args.clip, args.entropy)
                if args.relaxed:
                    weight = args.relaxed / (1 + task.trials / args.samples / args.relaxed_updates)
                    loss = loss + weight * relaxed_strain(logits, task.graph)
                (loss / len(batches)).backward()
                row |= measures
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), args.max_grad_norm)
            self.optimizer.step()
        return self.finish_update(rows)

    def _judge(
        self, task: Task, decisions: np.ndarray, costs: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rewards float64 [B], what each op feels float64 [B, N]): minus the strain for ranks; else throughput
        relative to greedy's, none where invalid, and nothing felt."""
        if self.args.advantage == "rank":
            whole, felt = strain(task, decisions)
            return -whole, felt
        return np.where(valid, task.greedy_s / costs, 0.0), np.zeros(decisions.shape)

    def _try(self, task: Task, logits: torch.Tensor) -> Tried:
        """Partitions from the policy, and changed ones of the best so far, which learn of each other."""
        args = self.args
        mutants = round(args.samples * args.mutants) if task.elites else 0
        parts = [self._tried(task, sample(task.problem, logits, args.samples - mutants, self.rng, args.solver), 0)]
        for number in range(mutants):  # one at a time, so that one can build on another
            changed = task.problem.neighbour(task.elite(self.rng), self.rng)[None]
            parts.append(self._tried(task, _as_drawn(task, changed), args.samples - mutants + number))
        return Tried.join(parts)

    def _tried(self, task: Task, batch: Batch, before: int) -> Tried:
        """Evaluate partitions and take them among the best; ``before``: those of this update not counted yet."""
        costs, valid = task.evaluate(batch.decisions, self.wall_s, before)
        rewards, felt = self._judge(task, batch.decisions, costs, valid)
        self._keep(task, batch.decisions, costs, rewards)
        return Tried(batch.decisions, batch.drawn_from, costs, valid, rewards, felt)

    def _keep(self, task: Task, decisions: np.ndarray, costs: np.ndarray, rewards: np.ndarray) -> None:
        """Take partitions among the best so far; of equal periods, of which there are many, the less strained first."""
        if self.args.advantage == "rank":
            costs = costs * (1.0 - TIE * rewards / (1.0 - rewards))
        task.keep_elites(decisions, costs, rewards, self.args.elites)

    def _with_elites(self, task: Task, tried: Tried) -> tuple[Batch, np.ndarray]:
        """What was tried with the task's best partitions so far, and an advantage for each op of each row."""
        batch, rewards, felt = Batch(tried.decisions, tried.drawn_from), tried.rewards, tried.felt
        ranked = self.args.advantage == "rank"
        if task.elites:
            best = _as_drawn(task, np.stack([one[2] for one in task.elites]))
            batch = Batch(
                np.concatenate([tried.decisions, best.decisions]), np.concatenate([tried.drawn_from, best.drawn_from])
            )
            rewards = np.concatenate([rewards, [one[1] for one in task.elites]])
            felt = np.concatenate([felt, strain(task, best.decisions)[1]]) if ranked else felt
        if ranked:
            gains = np.repeat(rank_advantages(rewards)[:, None], task.problem.num_ops, axis=1)
            local = -felt
            return batch, gains + self.args.local * (local - local.mean(0)) / (local.std(0) + 0.05)
        baseline = task.reward_mean if task.trials else float(rewards.mean())
        gains = (rewards - baseline) / (rewards.std() + 1e-8)
        return batch, np.repeat(gains[:, None], task.problem.num_ops, axis=1)


def strain(task: Task, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [B], float64 [B, N]): how strained the package is by partitions, and what each op feels of it.

    The first is a power mean of all chips' and links' times to the least period: the slowest counts most, but the next
    ones count too, which the period itself does not see. The second is the largest of the op's chip's time and those
    of the links that its own tensors take. Memory beyond a chip's capacity counts as time beyond the period.
    """
    problem = task.problem
    package, edges = problem.package, problem.ops.edges
    sources, targets = np.array(package.links, np.int64).reshape(-1, 2).T
    whole, parts = np.empty(len(decisions)), np.empty(decisions.shape)
    for row, decision in enumerate(decisions):
        compute_s, link_bytes, memory, violated = problem.measure(decision)
        chips = compute_s / task.least_s
        over = np.maximum(memory / package.sram_bytes - 1.0, 0.0)
        links = link_bytes / package.link_bytes_per_s / task.least_s
        times = np.concatenate([chips, links])
        whole[row] = np.mean(times**STRAIN_POWER) ** (1 / STRAIN_POWER) + 4.0 * over.sum() + 4.0 * violated[:3].sum()
        felt = np.where(over > 0, chips.max() + over, chips)[decision]
        leaving, coming = np.zeros(problem.num_chips), np.zeros(problem.num_chips)
        np.maximum.at(leaving, sources, links)
        np.maximum.at(coming, targets, links)
        a, b = edges.T
        across = decision[a] != decision[b]
        np.maximum.at(felt, a[across], leaving[decision[a[across]]])
        np.maximum.at(felt, b[across], coming[decision[b[across]]])
        parts[row] = felt
    return whole, parts


def _as_drawn(task: Task, decisions: np.ndarray) -> Batch:
    """Partitions int32 [B, N] as if they had been drawn in the order of the ops."""
    return Batch(decisions, np.stack([task.problem.corrector.choices_of(one) for one in decisions]))


def sample(
    problem: ChipletProblem, logits: torch.Tensor, count: int, rng: np.random.Generator, solver: bool = True
) -> Batch:
    """Partitions drawn from logits [N, C]: through the corrector, or each op by itself."""
    chances = logits.double().softmax(1).numpy()
    if solver:
        drawn = [problem.corrector.sample(chances, rng) for _ in range(count)]
        return Batch(np.stack([one.decision for one in drawn]), np.stack([one.drawn_from for one in drawn]))
    above = rng.random((count, problem.num_ops, 1)) > np.cumsum(chances, axis=1)[:, :-1]
    decisions = above.sum(axis=2, dtype=np.int32)
    return Batch(decisions, np.full(decisions.shape, np.int64((1 << problem.num_chips) - 1)))


@dataclass(frozen=True)
class Choices:
    """The M choices in a batch of partitions: an op of a partition that could get one of several chips."""

    row: torch.Tensor  # int64 [M] the partition
    op: torch.Tensor  # int64 [M]
    chip: torch.Tensor  # int64 [M]
    left_out: torch.Tensor  # bool [M, C] chips that could not be chosen

    @classmethod
    def of(cls, batch: Batch, problem: ChipletProblem) -> Choices:
        free = (batch.drawn_from[:, :, None] >> np.arange(problem.num_chips) & 1).astype(bool)
        row, op = np.nonzero(free.sum(axis=2) > 1)
        return cls(
            torch.from_numpy(row),
            torch.from_numpy(op),
            torch.from_numpy(batch.decisions[row, op]).long(),
            torch.from_numpy(~free[row, op]),
        )

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [M]: the log-probability of each choice."""
        scores = logits[self.op].masked_fill(self.left_out, torch.finfo(logits.dtype).min)
        return scores.log_softmax(1).gather(1, self.chip[:, None])[:, 0]


def ppo_loss(
    logits: torch.Tensor,
    choices: Choices,
    advantages: torch.Tensor,
    before: torch.Tensor,
    clip: float,
    entropy: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's clipped loss with one ratio for each choice, and the entropy bonus.

    Args:
        logits: float32 [N, C] of the network now.
        choices: M of them in B partitions; ``before``: float32 [M], their log-probabilities when drawn.
        advantages: float32 [B, N], of each op's choice in each partition.

    Returns:
        The loss, and measures for the learning curve: mean entropy of an op, share of clipped ratios, divergence.
    """
    log_ratio = choices.log_probs(logits) - before
    return clipped_loss(log_ratio, advantages[choices.row, choices.op], logits.log_softmax(1), clip, entropy)


def train(
    args: Args,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    start_from: str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Train on the graphs of ``args``; see :func:`training.run` for the other arguments.

    Raises:
        InputError: bad arguments; what :func:`training.run` raises.
    """

    def make_tasks() -> list[Task]:
        pairs = zip(args.graphs, args.each_cluster(), strict=True)
        return [make_task(graph, package, args.memory_rule) for graph, package in pairs]

    return training.run(Trainer, make_tasks, args, out, resume, progress, start_from)


def load_network(path: str | os.PathLike[str]) -> ChipletNetwork:
    """The network of a checkpoint, see :meth:`training.Trainer.load_network`."""
    return Trainer.load_network(path)  # type: ignore[no-any-return]


def place(network: ChipletNetwork, task: Task, samples: int = 1, seed: int = 0) -> Solution:
    """Partition a graph with a trained network as it is, no weight of it changed (zero-shot).

    Args:
        samples: evaluations in all. The first is the likeliest chip of each op, corrected by FIX; the rest are drawn
            by SAMPLE, from ever sharper chances.

    The best of them.
    """
    whole("samples", samples, 1)
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        logits = network(task.graph)
    likeliest = logits.argmax(1).numpy().astype(np.int32)
    done = 1
    _price(task, task.problem.corrector.fix(likeliest, rng).decision[None], started)
    while done < samples:
        sharp = float(rng.uniform(1, SHARPENED))
        drawn = sample(task.problem, sharp * logits, min(PLACE_BATCH, samples - done), rng)
        _price(task, drawn.decisions, started)
        done += len(drawn.decisions)
    return task.solution(f"{AGENT} zero-shot", seed, time.perf_counter() - started)


def _price(task: Task, decisions: np.ndarray, started: float) -> None:
    """Have partitions evaluated as trials of the task."""
    costs, _ = task.evaluate(decisions, time.perf_counter() - started)
    task.count(-costs)


def evaluate(
    checkpoint: str | os.PathLike[str],
    graph: str | os.PathLike[str] | ComputationGraph | None = None,
    cluster: str | os.PathLike[str] | Package | None = None,
    *,
    samples: int = 1,
    updates: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Partition one graph with a trained policy, zero-shot or after fine-tuning on it.

    Args:
        checkpoint: the folder or file that training wrote.
        graph, cluster: the first of its own where left out.
        samples: evaluations of the policy as it is.
        updates: of fine-tuning, each of the checkpoint's ``samples``; 0: none.
        progress: called with each row of the fine-tuning's curve.

    Raises:
        InputError: see :func:`load_network`, :func:`make_task`.
    """
    given = training.kept_arguments(Trainer, checkpoint, updates, seed)
    task = make_task(
        given.graphs[0] if graph is None else graph,
        given.clusters[0] if cluster is None else cluster,
        given.memory_rule,
    )
    network = load_network(checkpoint)
    if not updates:
        return place(network, task, samples, seed)
    return fine_tune(network, task, given, progress)


def fine_tune(network: ChipletNetwork, task: Task, args: Args, progress: Progress | None = None) -> Solution:
    """Train a network (changed in place) on one task for ``args.updates``; the best partition on the way.

    The likeliest partition before the first update is evaluated too.
    """
    started = time.perf_counter()
    trainer = Trainer(args, [task], network)
    place(network, task)
    return training.tune(trainer, task, progress, started)


def method_run(
    start_from: str | os.PathLike[str] | None = None, **arguments: Any
) -> Callable[[Evaluator, np.random.Generator], None]:
    """The policy on one problem, from scratch or from a checkpoint, as a method of ``solve``: ``run(evaluator, rng)``.

    It trains until the evaluator's budget is spent; from a checkpoint, the likeliest partition comes first.
    ``arguments``: fields of :class:`Args`.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        network, given = None, {"seed": int(rng.integers(2**31)), **arguments}
        if start_from is not None:
            network = load_network(start_from)
            given = {**dataclasses.asdict(network.config), **given}
        args = args_from(given)
        task = task_of(evaluator.problem, evaluator.costs_and_valid)  # type: ignore[arg-type]
        trainer = Trainer(args, [task], network)
        if network is not None:
            place(network, task)
        while evaluator.left > 0:
            trainer.update()

    return run


def zero_shot_run(start_from: str | os.PathLike[str]) -> Callable[[Evaluator, np.random.Generator], None]:
    """A checkpoint as it is, as a method of ``solve``: :func:`place` until the budget is spent."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        task = task_of(evaluator.problem, evaluator.costs_and_valid)  # type: ignore[arg-type]
        place(load_network(start_from), task, evaluator.left, int(rng.integers(2**31)))

    return run


def main() -> None:
    training.command("Train the policy of chiplet partition.", Trainer, train)


if __name__ == "__main__":
    main()
