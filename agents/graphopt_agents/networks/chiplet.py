"""The network of chiplet partition: which chip each op goes to, all ops at once, in a few passes.

From Xie et al. (MLSys 2022): GraphSAGE over the ops, a feed-forward head with a probability for each op on each chip,
a few non-autoregressive passes, each of which sees what the pass before decided. Ours, where the paper says nothing:

- A pass sees the *expected* partition of the pass before (what each chip would hold and how long it would take), not a
  drawn one, so a graph is computed once for all samples of an update, and the passes are trained through.
- Chips stand in a row and data only flows forward, so the head places an op at a point of that row, with a spread;
  a term without that order is added. ``anchored``: an op's point begins where the share of the work before it in
  topological order lies; training moves it from there. Without it all begin in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphopt_agents.networks.inputs import waves_of
from graphopt_agents.networks.sage import GraphNetwork
from graphopt_gym.envs.chiplet.features import CHIP_FEATURES, OP_FEATURES
from graphopt_gym.fields import check_fields

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.problem import ChipletProblem

_OP, _CHIP = list(OP_FEATURES), list(CHIP_FEATURES)
PLACE_COLUMNS = [_OP.index(name) for name in ("work_before", "work_above", "work_below", "parameters_before")]
WORK_BEFORE, TIME, PARAMETERS = _OP.index("work_before"), _OP.index("time_to_average"), _OP.index("parameters")
SPEED, PLACE, CARRIED = _CHIP.index("speed"), _CHIP.index("place"), _CHIP.index("carried")
FEEDBACK = 9  # what a pass is told of an op by the pass before
STRAIN_POWER = 8  # of the mean of times: the slowest counts most, but the next ones count too
FULL = 0.9  # of a chip's memory: expectations leave some out
BROKEN_WEIGHT = 5.0
LIMIT = 12.0  # of a logit: no chip's chance vanishes for good


@dataclass(frozen=True)
class ChipletConfig:
    """Sizes of :class:`ChipletNetwork`."""

    width: int = 64
    layers: int = 3  # of GraphSAGE
    passes: int = 3
    waves: int = 5  # frequencies, each twice the one before, that tell places apart
    anchored: bool = True

    def __post_init__(self) -> None:
        check_fields(self, {"width": 4, "layers": 0, "passes": 1, "waves": 0})


@dataclass(frozen=True)
class ChipletInput:
    """A graph of N ops and E edges on C chips; the features are those of ``ChipletPartition-v0``."""

    nodes: Tensor  # float32 [N, F]
    edge_index: Tensor  # int64 [2, E]
    edge_bytes: Tensor  # float32 [E]
    chips: Tensor  # float32 [C, K]

    @property
    def num_ops(self) -> int:
        return self.nodes.shape[0]

    @property
    def num_chips(self) -> int:
        return self.chips.shape[0]

    @classmethod
    def from_problem(cls, problem: ChipletProblem) -> ChipletInput:
        """The input of a problem."""
        from graphopt_gym.envs.chiplet.features import chip_features, edge_features, op_features

        return cls(
            nodes=torch.from_numpy(op_features(problem)),
            edge_index=torch.from_numpy(problem.ops.edges.T.copy()).long(),
            edge_bytes=torch.from_numpy(edge_features(problem)),
            chips=torch.from_numpy(chip_features(problem)),
        )

    @classmethod
    def from_observation(cls, observation: Mapping[str, Tensor]) -> ChipletInput:
        """The input in one (flat or shaped) observation of ``ChipletPartition-v0``: padding is cut away here."""
        max_ops, max_chips = observation["node_mask"].numel(), observation["action_mask"].numel()
        ops, chips = int(observation["node_mask"].sum()), int(observation["action_mask"].sum())
        edge_index = observation["edge_index"].reshape(2, -1).long()
        edges = int((edge_index[0] >= 0).sum())
        return cls(
            nodes=observation["nodes"].reshape(max_ops, -1)[:ops].float(),
            edge_index=edge_index[:, :edges],
            edge_bytes=observation["edge_bytes"][:edges].float(),
            chips=observation["chips"].reshape(max_chips, -1)[:chips].float(),
        )

    def work(self) -> Tensor:
        """float32 [N]: each op's share of the work."""
        time = _ratio(self.nodes[:, TIME])
        return time / time.sum().clamp(min=1e-12)

    def held(self) -> Tensor:
        """float32 [N]: each op's parameters to an average chip's memory."""
        return _ratio(self.nodes[:, PARAMETERS]) / self.num_chips

    def centres(self) -> Tensor:
        """float32 [C]: the middle of each chip's share of the work, by speed, along 0 to 1."""
        share = self.chips[:, SPEED] / self.chips[:, SPEED].sum()
        return share.cumsum(0) - share / 2


class ChipletNetwork(nn.Module):
    """Logits float32 [N, C] of a graph's ops over a package's chips; the weights fit any number of both."""

    def __init__(self, config: ChipletConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.graph = GraphNetwork(len(_OP) + 2 * len(PLACE_COLUMNS) * config.waves + len(_CHIP), width, config.layers)
        self.again = nn.Sequential(nn.Linear(width + FEEDBACK, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.place = _zero(nn.Linear(width, 2))  # a shift along the row of chips, and how sure
        self.query = _zero(nn.Linear(width, width))
        chips = len(_CHIP) + 2 * config.waves
        self.key = nn.Sequential(nn.Linear(chips, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, graph: ChipletInput) -> Tensor:
        count, waves = graph.num_chips, self.config.waves
        package = graph.chips.mean(0).expand(graph.num_ops, -1)
        features = torch.cat([graph.nodes, *waves_of(graph.nodes[:, PLACE_COLUMNS], waves), package], dim=1)
        state = self.graph(features, graph.edge_index, graph.edge_bytes)
        key = self.key(torch.cat([graph.chips, *waves_of(graph.chips[:, PLACE, None], waves)], dim=1))
        work, held, centres = graph.work(), graph.held(), graph.centres()
        speed = graph.chips[:, SPEED] / graph.chips[:, SPEED].sum()
        before = graph.nodes[:, WORK_BEFORE]
        place = before if self.config.anchored else torch.full_like(before, 0.5)
        feedback = state.new_zeros(graph.num_ops, FEEDBACK)
        logits = state.new_zeros(graph.num_ops, count)
        for _ in range(self.config.passes):
            state = self.norm(state + self.again(torch.cat([state, feedback], dim=1)))
            shift, sure = self.place(state).unbind(1)
            # in chips, and over the whole row where far is right
            place = (place + torch.tanh(shift) * (1.0 / count + 0.1 * shift.abs())).clamp(-0.1, 1.1)
            apart = (place[:, None] - centres) * count
            score = -0.5 * apart**2 * (2.0 * sure.clamp(-2, 2)).exp()[:, None]
            score = score + self.query(state) @ key.t() / math.sqrt(key.shape[1])
            logits = LIMIT * (score / LIMIT).tanh()
            feedback = _feedback(logits.softmax(1), work, held, centres, speed, before)
        return logits


def _feedback(chances: Tensor, work: Tensor, held: Tensor, centres: Tensor, speed: Tensor, before: Tensor) -> Tensor:
    """float32 [N, FEEDBACK]: what the expected partition means to each op, all about 1 in size.

    ``chances`` float32 [N, C]; ``speed``: each chip's share of the speed of all.
    """
    count = len(speed)
    load = chances.t() @ work / speed  # to the even share
    memory = chances.t() @ held
    ahead = ((load * speed).cumsum(0) - load * speed / 2 - centres) * count  # chips by which the row is behind its plan
    mean = chances @ centres
    spread = ((chances @ centres**2 - mean**2).clamp(min=1e-8)).sqrt()
    columns = torch.stack(
        [
            load - 1,
            nn.functional.pad(load[:-1], (1, 0)) - 1,
            nn.functional.pad(load[1:], (0, 1)) - 1,
            ahead,
            memory,
        ],
        dim=1,
    )
    own = torch.stack([(mean - before) * count, spread * count, work * count, held], dim=1)
    return torch.cat([chances @ columns, own], dim=1).clamp(-5, 5)


def relaxed_strain(logits: Tensor, graph: ChipletInput) -> Tensor:
    """A scalar that is small where partitions drawn from logits [N, C] are good, smooth in the logits: nothing drawn.

    As if each op were drawn by itself: the logarithm of a power mean of the expected times of chips and links, the
    expected memory beyond capacity, and the chance that an edge goes back or farther than to the next chip. A graph
    network can be trained by such an expectation alone (Karalias and Loukas, Erdos goes neural, NeurIPS 2020).
    """
    chances = logits.softmax(1)
    source, target = graph.edge_index
    carried = _ratio(graph.edge_bytes)
    load = chances.t() @ graph.work() / (graph.chips[:, SPEED] / graph.chips[:, SPEED].sum())
    up_to = chances.cumsum(1)
    links = (carried[:, None] * up_to[source] * (1 - up_to[target])).sum(0)[:-1]
    times = torch.cat([load, links]).clamp(min=1e-6)
    strain = (times**STRAIN_POWER).sum() ** (1 / STRAIN_POWER)
    here, there = chances[source], chances[target]
    # a sender keeps a tensor until it is sent, a receiver has room for two
    buffers = (carried[:, None] * (here * (1 - there) + 2 * there * (1 - here))).sum(0) * _ratio(
        graph.chips[0, CARRIED]
    )
    memory = chances.t() @ graph.held() + buffers
    back = (there * (1 - up_to[source])).sum(1)
    far = (here[:, :-2] * (1 - up_to[target][:, 1:-1])).sum(1) if graph.num_chips > 2 else torch.zeros_like(back)
    broken = (back + far).mean() if len(back) else logits.sum() * 0
    return strain.log() + torch.relu(memory - FULL).sum() + BROKEN_WEIGHT * broken


def _ratio(squashed: Tensor) -> Tensor:
    """x of x / (1 + x)."""
    squashed = squashed.clamp(max=1 - 1e-6)
    return squashed / (1 - squashed)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
