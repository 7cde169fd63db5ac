"""GO's network: placement, fusion and schedule of a graph, decided together in a few passes.

From GO (Zhou et al., NeurIPS 2020): a graph network and recurrent attention over segments, as in GDP; each of the tasks
has a segmented recurrent attention layer, which passes on to the next task's through residual connections, with shared
parameters [read]; a few non-autoregressive passes, each conditioned on the whole decision of the pass before
[recalled]. Sizes are ours. So are:

- A pass is told the *expected* decision of the pass before, so a graph is computed once for all samples of an update,
  and the passes are trained through.
- A level is scored by a few functions of it (``level_basis``), so neighbouring levels are alike.
- ``timeline``: the first pass is told the best decision so far, and when each op began and ended in it. The paper has
  no such thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from graphopt_agents.networks.attention import SegmentAttention
from graphopt_agents.networks.heads import DeviceHead
from graphopt_agents.networks.inputs import (
    DEVICE_WIDTH,
    GRAPH_WIDTH,
    OUT_OF_REACH,
    PAIR_WIDTH,
    GraphInput,
    node_width,
    waves_of,
)
from graphopt_agents.networks.placement import CONTEXT_WIDTH, SAVE_MEMORY_ABOVE
from graphopt_agents.networks.sage import GraphNetwork
from graphopt_agents.networks.superposition import SuperposedLinear
from graphopt_gym.envs.joint.instances import OP_FEATURES
from graphopt_gym.envs.joint.problem import TASKS
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields

if TYPE_CHECKING:
    from graphopt_gym.envs.joint.instances import Instance

LEVEL = OP_FEATURES.index("level")
TIMES = [OP_FEATURES.index(name) for name in ("time", "memory_bound", "saving", "head", "tail")]
SENT = OP_FEATURES.index("log_output_bytes")
BASIS = 5  # functions of a level
DEVICE_WAVES = 2  # frequencies of a device's place
FEEDBACK = 2 + 2 * DEVICE_WAVES + 4  # what a pass is told of an op by the pass before
BEFORE = 2 + 3 + 2  # of a decision that was simulated


@dataclass(frozen=True)
class JointConfig:
    """Sizes and switches. All sizes are ours; the papers do not give theirs."""

    width: int = 64
    sage_layers: int = 3  # 0: no graph network (ablation)
    recurrence: bool = True  # False: a segment does not see the one before it (ablation)
    superposition: bool = True  # False: no gates (ablation)
    passes: int = 2  # 1: no refinement (ablation)
    joint: bool = True  # False: a task's layer sees no other task's (ablation)
    shared: bool = True  # False: a layer of its own for each task (ablation)
    timeline: bool = False  # whether the first pass is told the best decision so far, as it was simulated
    heads: int = 4
    segment: int = 256  # ops attended to together
    use_times: bool = True  # the simulated time of each op among its features; the papers have none (recalled)
    waves: int = 4  # frequencies of an op's level in the graph
    logit_limit: float = 10.0

    def __post_init__(self) -> None:
        least = {"width": 1, "sage_layers": 0, "passes": 1, "heads": 1, "segment": 1, "waves": 0}
        check_fields(self, least, above=("logit_limit",))
        if self.width % self.heads:
            raise InputError(f"width is {self.width}, which {self.heads} heads cannot share; give a multiple")


@dataclass(frozen=True)
class JointInput:
    """A graph of K ops in G groups on D devices; the features are those of ``GraphOptimizationOneShot-v0``."""

    nodes: Tensor  # float32 [K, F]
    edge_index: Tensor  # int64 [2, E]
    group_of_op: Tensor  # int64 [K]
    place: GraphInput  # of the groups, without edges
    tasks: tuple[str, ...]
    levels: int
    before: Tensor | None = None  # float32 [K, BEFORE], see :meth:`after`

    @property
    def num_ops(self) -> int:
        return self.nodes.shape[0]

    @property
    def num_groups(self) -> int:
        return self.place.num_groups

    @classmethod
    def from_instance(cls, instance: Instance) -> JointInput:
        """The input of a problem."""
        place = GraphInput.from_instance(instance.placing)
        return cls(
            nodes=torch.from_numpy(instance.features),
            edge_index=torch.from_numpy(instance.edges.T.copy()).long(),
            group_of_op=torch.from_numpy(instance.problem.group_of_task.astype(np.int64)),
            place=replace(place, edge_index=place.edge_index[:, :0], edge_bytes=place.edge_bytes[:0]),
            tasks=instance.problem.tasks,
            levels=instance.num_levels,
        )

    @classmethod
    def from_observation(cls, observation: Mapping[str, Tensor], tasks: tuple[str, ...], levels: int) -> JointInput:
        """The input in one observation of ``GraphOptimizationOneShot-v0``: padding is cut away here."""
        max_ops, max_groups, max_devices = (
            observation[name].numel() for name in ("node_mask", "group_mask", "device_mask")
        )
        ops, groups, devices = (int(observation[name].sum()) for name in ("node_mask", "group_mask", "device_mask"))
        edge_index = observation["edge_index"].reshape(2, -1).long()
        edges = int((edge_index[0] >= 0).sum())

        def cut(name: str, rows: int, columns: int | None = None) -> Tensor:
            most = {"groups": max_groups, "times": max_groups, "memory": max_groups}.get(name, max_devices)
            shaped = observation[name].reshape(most, -1)[:rows].float()
            return shaped if columns is None else shaped[:, :columns]

        return cls(
            nodes=observation["nodes"].reshape(max_ops, -1)[:ops].float(),
            edge_index=edge_index[:, :edges],
            group_of_op=observation["group_of_op"].reshape(-1)[:ops].long(),
            place=GraphInput(
                nodes=cut("groups", groups),
                edge_index=edge_index[:, :0],
                edge_bytes=torch.zeros(0),
                times=cut("times", groups, devices),
                memory=cut("memory", groups, devices),
                devices=cut("devices", devices),
                links=cut("links", devices, devices),
            ),
            tasks=tasks,
            levels=levels,
        )

    def after(self, instance: Instance, decision: np.ndarray) -> JointInput:
        """This graph after a decision int32 [length], simulated anew: its device's place, its levels, begin and end."""
        problem = instance.problem
        parts = problem.parts(decision)
        timeline = problem.evaluate(decision).timeline
        assert timeline is not None
        task = timeline.tasks.task_of_op[problem.simulator.tasks.first_op]
        whole = max(timeline.makespan_s, 1e-300)
        device = parts.placement[problem.group_of_task]
        top = max(1, problem.levels - 1)
        columns = np.stack(
            [
                np.ones(self.num_ops), (device + 0.5) / problem.num_devices, parts.fusion / top, parts.schedule / top,
                (parts.fusion > 0).astype(float), timeline.start_s[task] / whole, timeline.finish_s[task] / whole,
            ],
            axis=1,
        )  # fmt: skip
        return replace(self, before=torch.from_numpy(columns).float())

    def features(self, use_times: bool, waves: int) -> Tensor:
        """float32 [K, op_width(waves)]: of the op, its level by waves, and of its group."""
        nodes = self.nodes
        if not use_times:
            nodes = nodes.clone()
            nodes[:, TIMES] = 0
        group = self.place.node_features(use_times, 0)[self.group_of_op]
        return torch.cat([nodes, *waves_of(nodes[:, LEVEL, None], waves), group], dim=1)


def op_width(waves: int) -> int:
    """Columns of :meth:`JointInput.features`."""
    return len(OP_FEATURES) + 2 * waves + node_width(0)


def level_basis(levels: int) -> Tensor:
    """float32 [levels, BASIS]: functions of a level: itself, its square, a wave, whether it is the first or last."""
    place = torch.linspace(-1, 1, levels)
    ends = torch.zeros(2, levels)
    ends[0, 0] = ends[1, -1] = 1.0
    return torch.stack([place, place**2 - place.square().mean(), torch.sin(torch.pi * place), *ends], dim=1)


class JointNetwork(nn.Module):
    """Logits float32 [length, C] of a decision's entries; the weights fit any number of ops, groups and devices."""

    def __init__(self, config: JointConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or JointConfig()
        width = config.width
        condition = CONTEXT_WIDTH if config.superposition else None
        self.graph = GraphNetwork(op_width(config.waves), width, config.sage_layers)
        self.context = nn.Sequential(nn.Linear(GRAPH_WIDTH, CONTEXT_WIDTH), nn.Tanh()) if condition else None
        told = FEEDBACK + (BEFORE if config.timeline else 0)
        self.again = nn.Sequential(nn.Linear(width + told, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.task = nn.Parameter(0.1 * torch.randn(len(TASKS), width))
        self.layers = nn.ModuleList(
            SegmentAttention(width, 1, config.heads, config.segment, config.recurrence, condition)
            for _ in range(1 if config.shared else len(TASKS))
        )
        self.place = DeviceHead(width, DEVICE_WIDTH, PAIR_WIDTH, condition, config.logit_limit)
        heads = {task: SuperposedLinear(width, BASIS, condition) for task in TASKS[1:]}
        for head in heads.values():  # training starts from the uniform policy
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.level = nn.ModuleDict(heads)

    def forward(self, graph: JointInput) -> Tensor:
        """Logits float32 [length, C], out of reach where an entry has fewer choices."""
        config, place = self.config, graph.place
        save_memory = graph.num_ops > SAVE_MEMORY_ABOVE
        sent = graph.nodes[graph.edge_index[0], SENT]
        state = self.graph(graph.features(config.use_times, config.waves), graph.edge_index, sent, save_memory)
        context = None if self.context is None else self.context(place.graph_features(config.use_times))
        devices, pairs = place.device_features(), place.pair_features(config.use_times)
        basis = level_basis(graph.levels)
        members = torch.bincount(graph.group_of_op, minlength=graph.num_groups).clamp(min=1)[:, None]
        told = state.new_zeros(graph.num_ops, FEEDBACK)
        for turn in range(config.passes):
            more = [told]
            if config.timeline:
                more.append(state.new_zeros(graph.num_ops, BEFORE) if graph.before is None else graph.before)
            x = self.norm(state + self.again(torch.cat([state, *more], dim=1)))
            start, logits = x, {}
            for index, task in enumerate(TASKS):
                if task not in graph.tasks:
                    continue
                layer = self.layers[0 if config.shared else index]
                x = (x if config.joint else start) + self.task[index]
                x = x + layer(x, context, save_memory)
                if task == "placement":
                    pooled = x.new_zeros(graph.num_groups, x.shape[1]).index_add_(0, graph.group_of_op, x) / members
                    logits[task] = place.masked(self.place(pooled, devices, pairs, context))
                else:
                    score = self.level[task](x, context) @ basis.t()
                    logits[task] = config.logit_limit * (score / config.logit_limit).tanh()
            if turn + 1 < config.passes:
                told = self._told(graph, logits)
        most = max(one.shape[1] for one in logits.values())
        return torch.cat([
            nn.functional.pad(logits[task], (0, most - logits[task].shape[1]), value=OUT_OF_REACH)
            for task in TASKS if task in logits
        ])  # fmt: skip

    def _told(self, graph: JointInput, logits: Mapping[str, Tensor]) -> Tensor:
        """float32 [K, FEEDBACK]: the expected decision of each op, with how sure it is."""
        count = graph.num_ops
        columns = []
        if "placement" in logits:
            chances = logits["placement"].softmax(1)
            places = graph.place.device_places()
            points = torch.stack([places, *waves_of(places, DEVICE_WAVES)], dim=1)
            load = _load(graph, chances)
            mean = torch.cat([chances @ points, (chances @ load)[:, None]], dim=1)
            columns.append(mean[graph.group_of_op])
        else:
            columns.append(graph.nodes.new_zeros(count, 2 + 2 * DEVICE_WAVES))
        for task in TASKS[1:]:
            if task in logits:
                chances = logits[task].softmax(1)
                level = torch.linspace(0, 1, graph.levels)
                columns.append(torch.stack([chances @ level, chances[:, 0]], dim=1))
            else:
                columns.append(graph.nodes.new_zeros(count, 2))
        return torch.cat(columns, dim=1)


def _load(graph: JointInput, chances: Tensor) -> Tensor:
    """float32 [D]: the expected time of each device to an even share, less 1."""
    times = graph.place.times.clamp(max=1 - 1e-6)
    seconds = times / (1 - times)
    load = (chances * seconds).sum(0)
    return (load / load.mean().clamp(min=1e-9) - 1).clamp(-3, 3)
