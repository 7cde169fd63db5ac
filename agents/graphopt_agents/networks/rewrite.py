"""The network of program rewriting: a score for each match of a rule, one for stopping, and what is still to be saved.

A graph network over the program's operators (``sage``; an edge is an operand, its place among the operands enters the
message), as in X-RLflow (He et al., MLSys 2023). A match is embedded from the states of the nodes that it replaces, its
rule and its features; a pointer scores it by the state of the whole graph, so any number of matches and rules fits, and
the order in which they are listed does not matter. Sizes are ours, and so is the *foresight*: what one rewrite saves
is known exactly after each step, so a head learns to tell it beforehand, and the score builds on what it tells.

Several programs are computed as one graph without edges between them; nothing is padded in here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphopt_agents.networks.sage import GraphNetwork
from graphopt_gym.envs.rewrite.features import MATCH_FEATURES, NODE_FEATURES, PROGRESS_FEATURES
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.rules.patterns import Rule

RULE_COLUMN = list(MATCH_FEATURES).index("rule")  # its place in a list of rules that need not be the network's
STOP = 1.0  # the score of stopping before training, that of a match being about 0: episodes begin short
GAIN_SCALE = 8.0  # of the foresight in the score before training


@dataclass(frozen=True)
class RewriteConfig:
    """Sizes of :class:`RewriteNetwork`. ``rules``: the names of those that it tells apart; all of now if left out."""

    width: int = 32
    layers: int = 3  # of GraphSAGE
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, {"width": 1, "layers": 0})
        if isinstance(self.rules, str) or not all(isinstance(name, str) for name in self.rules):
            raise InputError(f"rules is {self.rules!r}; give a list of names of rules")
        object.__setattr__(self, "rules", tuple(self.rules) or all_rules())


def all_rules() -> tuple[str, ...]:
    """The names of all rules, in their order."""
    from graphopt_gym.envs.rewrite.rules.table import load_rules

    return tuple(rule.name for rule in load_rules())


def rule_numbers(known: Sequence[str], rules: Sequence[Rule | str]) -> np.ndarray:
    """int64 [R]: each rule's number in a network that knows some of them; one more for the others."""
    number = {name: index for index, name in enumerate(known)}
    names = [rule if isinstance(rule, str) else rule.name for rule in rules]
    return np.array([number.get(name, len(known)) for name in names], np.int64)


@dataclass(frozen=True)
class RewriteInput:
    """B programs of N nodes, E operands and M matches in all.

    ``match_roots`` has N in place of a second node that is not there. ``slot``: the match's place among those of its
    program, from 0.
    """

    nodes: Tensor  # float32 [N, F]
    graph_of_node: Tensor  # int64 [N]
    edge_index: Tensor  # int64 [2, E]
    edge_operand: Tensor  # float32 [E]
    matches: Tensor  # float32 [M, K]
    match_rule: Tensor  # int64 [M], numbers of the network
    match_roots: Tensor  # int64 [M, 2]
    graph_of_match: Tensor  # int64 [M]
    slot: Tensor  # int64 [M]
    progress: Tensor  # float32 [B, P]

    @property
    def count(self) -> int:
        """Of programs."""
        return len(self.progress)

    @classmethod
    def from_observations(cls, observations: Mapping[str, Tensor], rule_number: Tensor) -> RewriteInput:
        """B flat observations of ``RewriteOrder-v0``, each [B, ...]; padding is cut away here."""
        batch = len(observations["node_mask"])
        real = observations["node_mask"] > 0
        counts = real.sum(1)
        first = counts.cumsum(0) - counts
        total = int(counts.sum())
        edges = observations["edge_index"].reshape(batch, 2, -1).long()
        used = edges[:, 0] >= 0
        edges = edges + first[:, None, None]
        rule = observations["match_rule"].long()
        shown = rule >= 0
        roots = observations["match_roots"].reshape(batch, -1, 2).long()
        roots = torch.where(roots < 0, total, roots + first[:, None, None])
        at = shown.nonzero()
        return cls(
            nodes=observations["nodes"].reshape(batch, real.shape[1], -1)[real].float(),
            graph_of_node=real.nonzero()[:, 0],
            edge_index=torch.stack([edges[:, 0][used], edges[:, 1][used]]),
            edge_operand=observations["edge_operand"][used].float(),
            matches=observations["matches"].reshape(batch, shown.shape[1], -1)[shown].float(),
            match_rule=rule_number[rule[shown]],
            match_roots=roots[shown],
            graph_of_match=at[:, 0],
            slot=at[:, 1],
            progress=observations["progress"].float(),
        )

    @classmethod
    def join(cls, parts: Sequence[RewriteInput]) -> RewriteInput:
        """Several as one."""
        sizes = [len(part.nodes) for part in parts]
        total, node, graph = sum(sizes), 0, 0
        moved: dict[str, list[Tensor]] = {one.name: [] for one in dataclasses.fields(cls)}
        for part, size in zip(parts, sizes, strict=True):
            for name, tensors in moved.items():
                value = getattr(part, name)
                if name == "edge_index":
                    value = value + node
                elif name == "match_roots":
                    value = torch.where(value == size, total, value + node)
                elif name in ("graph_of_node", "graph_of_match"):
                    value = value + graph
                tensors.append(value)
            node, graph = node + size, graph + part.count
        return cls(**{name: torch.cat(tensors, dim=int(name == "edge_index")) for name, tensors in moved.items()})


@dataclass(frozen=True)
class RewriteOutput:
    """What the network says of B programs with M matches."""

    match_scores: Tensor  # float32 [M]
    stop_scores: Tensor  # float32 [B]
    values: Tensor  # float32 [B] what the rest of the episode is to save, to the original's time
    gains: Tensor  # float32 [M] the root of what the match alone is to save, negative where it costs time

    def logits(self, batch: RewriteInput, matches: int | None = None) -> Tensor:
        """float32 [B, matches + 1]: stopping, then the matches in order; the least number where there is none.

        ``matches``: as many as any has if left out.
        """
        if matches is None:
            matches = int(batch.slot.max()) + 1 if len(batch.slot) else 0
        out = self.stop_scores.new_full((batch.count, matches + 1), torch.finfo(torch.float32).min)
        out[:, 0] = self.stop_scores
        return out.index_put((batch.graph_of_match, batch.slot + 1), self.match_scores)


class RewriteNetwork(nn.Module):
    """Scores, values and foresight for a batch of programs; the weights fit any sizes."""

    def __init__(self, config: RewriteConfig) -> None:
        super().__init__()
        self.config = config
        width, features = config.width, len(MATCH_FEATURES)
        self.graph = GraphNetwork(len(NODE_FEATURES), width, config.layers)
        self.pool = nn.Sequential(nn.Linear(2 * width + len(PROGRESS_FEATURES), width), nn.ReLU(), nn.LayerNorm(width))
        self.rule = nn.Embedding(len(config.rules) + 1, width)
        nn.init.normal_(self.rule.weight, std=0.5)
        self.roots = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.features = nn.Linear(features, width)
        self.match = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.gain = nn.Linear(width, 1)
        self.query = _zero(nn.Linear(width, width + 1))
        self.stop = _zero(nn.Linear(width, 1))
        nn.init.constant_(self.stop.bias, STOP)
        self.value = nn.Sequential(nn.Linear(width, width), nn.ReLU(), _zero(nn.Linear(width, 1)))

    def forward(self, batch: RewriteInput) -> RewriteOutput:
        state = self.graph(batch.nodes, batch.edge_index, batch.edge_operand)
        whole = self.pool(torch.cat([*_pooled(state, batch.graph_of_node, batch.count), batch.progress], dim=1))
        none = state.new_zeros(1, state.shape[1])
        keep = torch.ones(len(MATCH_FEATURES), device=state.device)
        keep[RULE_COLUMN] = 0  # the embedding tells the rules apart
        parts = self.rule(batch.match_rule) + self.features(batch.matches * keep)
        for place, root in enumerate(self.roots):
            # the product over nodes, not over matches
            parts = parts + torch.cat([root(state), none])[batch.match_roots[:, place]]
        match = self.match(parts)
        gains = self.gain(match)[:, 0]
        query = self.query(whole)[batch.graph_of_match]
        score = (match * query[:, :-1]).sum(1) / math.sqrt(self.config.width)
        score = score + (GAIN_SCALE + query[:, -1]) * gains
        return RewriteOutput(score, self.stop(whole)[:, 0], self.value(whole)[:, 0], gains)


def _pooled(state: Tensor, graph: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the nodes of each graph, float32 [count, width] each."""
    index = graph[:, None].expand_as(state)
    empty = state.new_zeros(count, state.shape[1])
    mean = empty.scatter_reduce(0, index, state, "mean", include_self=False)
    return mean, empty.scatter_reduce(0, index, state, "amax", include_self=False)


def root_gain(rewards: Any) -> Any:
    """What :attr:`RewriteOutput.gains` is to tell of rewards (tensor or array)."""
    if isinstance(rewards, Tensor):
        return rewards.sign() * rewards.abs().sqrt()
    return np.sign(rewards) * np.sqrt(np.abs(rewards))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
