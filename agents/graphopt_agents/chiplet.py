"""The agent of chiplet partition: a graph network that proposes partitions, through the corrector.

    graphopt train chiplet --graphs bert_primitive --clusters mcm36 --out runs/bert
    graphopt train chiplet --graphs inference_train --clusters mcm36 --out runs/all

It draws partitions from the policy through the corrector (SAMPLE) and is trained by PPO (Xie et al., MLSys 2022), in
``core.one_shot``. What the paper leaves open, and we chose:

- The ratio of new to old probability is that of each op's choice *among the chips that the corrector left it*, clipped
  for each op by itself. Ops whose chip followed from others' choices are left out: nothing was chosen there.
- The advantage is the rank of a partition's *strain* in its batch (``strain``: the slowest chip or link counts most,
  but the next ones count too, and memory beyond capacity), and to it comes what each op feels of the strain: its own
  chip's time and its own links'. ``advantage="baseline"`` is the paper's [recalled]: the throughput relative to the
  greedy heuristic, 0 where invalid, minus the mean of the graph's earlier trials.
- ``relaxed``: the network is trained on the expected strain of its own probabilities, too, which is smooth and costs
  no evaluation (``networks.chiplet.relaxed_strain``). It knows of the cost model what the observation tells.
- ``mutants``: a share of the batch that is not drawn from the policy but changes one of the best partitions so far by
  the problem's own move, through the corrector's FIX.

``paper_arguments()`` leaves out all but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from graphopt_agents.core.one_shot import OneShotArgs, OneShotTask, OneShotTrainer, Tried, draw_each
from graphopt_agents.core.run import Costs
from graphopt_agents.networks.chiplet import STRAIN_POWER, ChipletConfig, ChipletInput, ChipletNetwork, relaxed_strain
from graphopt_gym.envs.chiplet.bounds import lower_bound
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields

SHARPENED = 4  # how much sharper than in training the policy is drawn from, at most, when a graph is partitioned
PLACE_BATCH = 8
TIE = 1e-4  # share of a period that the strain makes up among the best


@dataclass(frozen=True)
class Args(OneShotArgs, ChipletConfig):
    """What a run depends on, beside the fields of :class:`OneShotArgs` and :class:`ChipletConfig`."""

    env_id = "ChipletPartition-v0"
    config_class = ChipletConfig
    default_cluster = "mcm36"

    graphs: tuple[str, ...] = ("bert_base_b1",)
    clusters: tuple[str, ...] = ("mcm36",)  # packages
    memory_rule: bool = False  # whether the corrector keeps to the memory
    solver: bool = True  # false: partitions as the policy draws them, uncorrected
    samples: int = 20
    epochs: int = 4
    relaxed: float = 1.0  # weight of relaxed_strain in the loss, beside PPO's
    relaxed_updates: int = 10  # of a graph, after which it counts half
    local: float = 0.5  # weight of what an op feels of the strain in its advantage, beside the partition's rank
    starts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"relaxed_updates": 1}, at_least=("local", "relaxed"))
        if self.mutants and not self.elites:
            raise InputError(
                f"mutants is {self.mutants} and elites is 0; mutants change elites: give some, or 0 mutants"
            )


def paper_arguments() -> dict[str, Any]:
    """The arguments that follow the paper where its choices are known."""
    return {"advantage": "baseline", "mutants": 0.0, "elites": 0, "anchored": False, "relaxed": 0.0, "local": 0.0}


@dataclass(kw_only=True)
class Task(OneShotTask):
    """One graph on one package."""

    problem: ChipletProblem

    @cached_property
    def greedy_s(self) -> float:
        """The period of the greedy heuristic's partition: what throughput is relative to."""
        return float(self.problem.costs(greedy_decision(self.problem)[None])[0][0])

    @cached_property
    def least_s(self) -> float:
        """No period is shorter, see :func:`bounds.lower_bound`."""
        return max(lower_bound(self.problem), 1e-15)


class Trainer(OneShotTrainer):
    """The runs of this agent. Notes of a partition: ``drawn_from`` int64 [B, N], the chips that each op's was chosen
    from, as bits, 0 where an op had no choice; ``felt`` float64 [B, N], see :func:`strain`, zeros where it does not
    count."""

    agent = "chiplet"
    args_class = Args
    network_class = ChipletNetwork
    problem_arguments = ("memory_rule",)
    moved_together = 1
    most_moves = 1
    likeliest_first = True

    @classmethod
    def task_of(cls, problem: ChipletProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        return Task(problem=problem, price=price or problem.costs, graph=ChipletInput.from_problem(problem))

    def judge(
        self, task: Task, decisions: np.ndarray, costs: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Minus the strain for ranks; else throughput relative to greedy's, none where invalid, and nothing felt."""
        if self.args.advantage == "rank":
            whole, felt = strain(task, decisions)
            return -whole, {"felt": felt}
        return np.where(valid, task.greedy_s / costs, 0.0), {"felt": np.zeros(decisions.shape)}

    def draw(self, task: Task, logits: torch.Tensor, count: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        decisions, drawn_from = sample(task.problem, logits, count, self.rng, self.args.solver)
        return decisions, {"drawn_from": drawn_from}

    def not_drawn(self, task: Task, decisions: np.ndarray) -> Mapping[str, np.ndarray]:
        """As if they had been drawn in the order of the ops."""
        return {"drawn_from": np.stack([task.problem.corrector.choices_of(one) for one in decisions])}

    def rank_costs(self, costs: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Of equal periods, of which there are many, the less strained first."""
        return costs * (1.0 - TIE * rewards / (1.0 - rewards)) if self.args.advantage == "rank" else costs

    def choices(self, task: Task, tried: Tried, advantages: np.ndarray) -> tuple[Choices, torch.Tensor]:
        gains = np.repeat(advantages[:, None], task.problem.num_ops, axis=1)
        if self.args.advantage == "rank":
            local = -tried.notes["felt"]
            gains = gains + self.args.local * (local - local.mean(0)) / (local.std(0) + 0.05)
        choices = Choices.of(tried.decisions, tried.notes["drawn_from"], task.problem)
        return choices, torch.from_numpy(gains).float()[choices.row, choices.op]

    def more_loss(self, task: Task, logits: torch.Tensor) -> torch.Tensor | float:
        args = self.args
        if not args.relaxed:
            return 0.0
        weight = args.relaxed / (1 + task.trials / args.samples / args.relaxed_updates)
        return weight * relaxed_strain(logits, task.graph)

    @classmethod
    def decide(cls, network: ChipletNetwork, task: Task, samples: int, seed: int, wall_s: Callable[[], float]) -> None:
        """The first sample is the likeliest chip of each op, corrected by FIX; the rest are drawn by SAMPLE, from ever
        sharper chances."""
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            logits = network(task.graph)
        likeliest = logits.argmax(1).numpy().astype(np.int32)
        cls.try_decisions(task, task.problem.corrector.fix(likeliest, rng).decision[None], wall_s)
        done = 1
        while done < samples:
            sharp = float(rng.uniform(1, SHARPENED))
            drawn, _ = sample(task.problem, sharp * logits, min(PLACE_BATCH, samples - done), rng)
            cls.try_decisions(task, drawn, wall_s)
            done += len(drawn)


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


def sample(
    problem: ChipletProblem, logits: torch.Tensor, count: int, rng: np.random.Generator, solver: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(partitions int32 [count, N], sets of chips that each op's was chosen from, as bits, int64 [count, N]) drawn from
    logits [N, C]: through the corrector, or each op by itself."""
    if not solver:
        decisions = draw_each(logits, count, rng)
        return decisions, np.full(decisions.shape, np.int64((1 << problem.num_chips) - 1))
    chances = logits.double().softmax(1).numpy()
    drawn = [problem.corrector.sample(chances, rng) for _ in range(count)]
    return np.stack([one.decision for one in drawn]), np.stack([one.drawn_from for one in drawn])


@dataclass(frozen=True)
class Choices:
    """The M choices in a batch of partitions: an op of a partition that could get one of several chips."""

    row: torch.Tensor  # int64 [M] the partition
    op: torch.Tensor  # int64 [M]
    chip: torch.Tensor  # int64 [M]
    left_out: torch.Tensor  # bool [M, C] chips that could not be chosen

    @classmethod
    def of(cls, decisions: np.ndarray, drawn_from: np.ndarray, problem: ChipletProblem) -> Choices:
        free = (drawn_from[:, :, None] >> np.arange(problem.num_chips) & 1).astype(bool)
        row, op = np.nonzero(free.sum(axis=2) > 1)
        return cls(
            torch.from_numpy(row),
            torch.from_numpy(op),
            torch.from_numpy(decisions[row, op]).long(),
            torch.from_numpy(~free[row, op]),
        )

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [M]: the log-probability of each choice."""
        scores = logits[self.op].masked_fill(self.left_out, torch.finfo(logits.dtype).min)
        return scores.log_softmax(1).gather(1, self.chip[:, None])[:, 0]

    def scored(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.log_probs(logits), logits.log_softmax(1)


args_from, make_task, task_of, load_network = (
    Trainer.args_from,
    Trainer.make_task,
    Trainer.task_of,
    Trainer.load_network,
)
train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
zero_shot_run = Trainer.zero_shot_run
