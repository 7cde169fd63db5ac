"""GO: one policy that places, fuses and schedules a whole graph at once, trained on one or several graphs.

    graphopt train go --graphs bert_base --clusters v100x4 --out runs/bert

The network is :class:`JointNetwork`; the policy is one categorical for each entry of a decision, and it is trained by
``core.one_shot``, as GDP is. As there, a share of each batch changes the best decisions so far (ours; ``mutants=0``,
``elites=0`` and ``starts=False`` turn it off). A drawn decision has the likeliest levels but for a stretch of ops
whose levels are drawn, or, a share of the time (``independent``), all levels drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents import gdp
from graphopt_agents.blocks import Blocks, draw_placements
from graphopt_agents.core.one_shot import OneShotArgs, OneShotTrainer, draw_each
from graphopt_agents.core.run import Costs
from graphopt_agents.networks.joint import JointConfig, JointInput, JointNetwork
from graphopt_gym.envs.joint.instances import Instance
from graphopt_gym.envs.joint.problem import TASKS
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields
from graphopt_gym.graphs.zoo.registry import own_cluster

if TYPE_CHECKING:
    from graphopt_gym.envs.joint.problem import GraphOptimizationProblem


@dataclass(frozen=True)
class Args(OneShotArgs, JointConfig):
    """What a run depends on, beside the fields of :class:`OneShotArgs` and :class:`JointConfig`."""

    env_id = "GraphOptimization-v0"
    config_class = JointConfig

    graphs: tuple[str, ...] = ("bert_base",)
    tasks: str = "+".join(TASKS)  # what is decided
    levels: int = 16
    updates: int = 100
    learning_rate: float = 1e-3
    entropy: float = 0.003
    independent: float = 0.3  # share of decisions drawn entry by entry, the others in blocks
    canonical: bool = True  # like devices are named in the order of their groups, see gdp.Task.canonical

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"levels": 2}, shares=("independent",))

    def own_clusters(self, graphs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(own_cluster, graphs))


@dataclass(kw_only=True)
class Task(gdp.Task):
    """One graph on one cluster, and what the run knows of it. ``instance``: of the placement of its groups."""

    whole: Instance

    def named(self, decisions: np.ndarray) -> np.ndarray:
        """The same decisions with interchangeable devices named in the order of their groups."""
        problem: GraphOptimizationProblem = self.whole.problem
        if "placement" not in problem.tasks:
            return decisions
        changed, part = decisions.copy(), problem.slices["placement"]
        changed[:, part] = self.canonical(decisions[:, part])
        return changed


class Trainer(OneShotTrainer):
    """GO's runs."""

    agent = "go"
    args_class = Args
    network_class = JointNetwork
    problem_arguments = ("tasks", "levels")

    @classmethod
    def task_of(cls, problem: GraphOptimizationProblem, args: Args | None = None, price: Costs | None = None) -> Task:
        """A task of a problem. Raises InputError for a cluster that the network cannot serve."""
        if not 1 <= problem.num_devices <= gdp.MAX_DEVICES:
            raise InputError(
                f"cluster {problem.cluster.name!r} has {problem.num_devices} devices, the network serves 1 to "
                f"{gdp.MAX_DEVICES}; give a smaller one"
            )
        whole = Instance(problem)
        return Task(
            problem=problem,
            price=price or problem.costs,
            whole=whole,
            instance=whole.placing,
            graph=JointInput.from_instance(whole),
            blocks=Blocks.of(whole.placing),
            modules=torch.from_numpy(whole.placing.module_of_group),
        )

    def draw(self, task: Task, logits: torch.Tensor, count: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        problem = task.whole.problem
        alone = self.args.independent
        drawn = np.empty((count, len(logits)), np.int32)
        for name, part in problem.slices.items():
            if name == "placement":
                log_probs = logits[part, : problem.num_devices].log_softmax(-1)
                drawn[:, part] = draw_placements(log_probs, count, self.generator, task.blocks, alone).numpy()
                continue
            mine = logits[part, : problem.levels]
            each = draw_each(mine, count, self.rng)
            length = mine.shape[0]
            size = np.exp(self.rng.random(count) * np.log(length)).astype(int)
            size = np.where(self.rng.random(count) < alone, length, size)
            begin = (self.rng.random(count) * (length - size + 1)).astype(int)
            place = np.arange(length)
            within = (place >= begin[:, None]) & (place < (begin + size)[:, None])
            drawn[:, part] = np.where(within, each, mine.argmax(1).numpy().astype(np.int32))
        return drawn, {}

    def named(self, task: Task, decisions: np.ndarray) -> np.ndarray:
        return task.named(decisions) if self.args.canonical else decisions

    def update(self) -> list[dict[str, Any]]:
        if self.args.timeline:
            for task in self.tasks:
                if task.elites:
                    task.graph = task.graph.after(task.whole, task.elites[0][2])
        return super().update()


args_from, make_task, task_of, load_network = (
    Trainer.args_from,
    Trainer.make_task,
    Trainer.task_of,
    Trainer.load_network,
)
train, place, evaluate, method_run = Trainer.train, Trainer.place, Trainer.evaluate, Trainer.method_run
