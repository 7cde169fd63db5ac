"""HDP's networks: a grouper, and a placer that reads the groups and names a device for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphopt_agents.networks import GraphInput
from graphopt_agents.networks.inputs import NODE_WIDTH
from graphopt_gym.fields import check_fields


@dataclass(frozen=True)
class HDPArgs:
    """Constants, from the released code but for those that say otherwise."""

    max_groups: int = 256  # groups: min(max_groups, groups_per_device x devices)
    groups_per_device: int = 20
    grouper_hidden: int = 64
    hidden: int = 512
    learning_rate: float = 0.1
    decay: float = 0.95  # of the learning rate
    decay_every: int = 50  # placements
    decay_from: int = 400
    gradient_bound: float = 1.0
    tanh_constant: float = 1.0
    temperature: float = 1.0
    logit_noise: float = 0.5  # standard deviation
    noise_until: int = 750  # placements
    failing_signal_s: float = 100.0  # step time of a placement that does not fit
    baseline_decay: float = 0.9
    device_width: int = 32  # ours: embedding of the device before
    children: int = 16  # ours: placements a gradient step

    def __post_init__(self) -> None:
        sizes = ("max_groups", "groups_per_device", "grouper_hidden", "hidden", "children", "device_width")
        check_fields(self, dict.fromkeys((*sizes, "decay_every"), 1), above=("learning_rate",))

    def groups(self, devices: int) -> int:
        """How many groups for a cluster."""
        return min(self.max_groups, self.groups_per_device * devices)

    def rate(self, placements: int) -> float:
        """The learning rate after that many placements."""
        return self.learning_rate * self.decay ** (max(0, placements - self.decay_from) // self.decay_every)


class Grouper(nn.Module):
    """A logit for each op (float32 [N, features]) and group: [N, groups]."""

    def __init__(self, features: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, groups))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class AdditiveScores(torch.autograd.Function):
    """score[b, i, j] = mix . tanh(key[b, j] + query[b, i]): additive attention without its [B, I, J, width] in memory.

    Blocks that fit a core's cache are computed, and computed again in the backward pass.
    """

    @staticmethod
    def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[int, slice]]:
        rows = max(1, 2**19 // (key.shape[1] * key.shape[2]))
        for batch in range(len(query)):
            for start in range(0, query.shape[1], rows):
                yield batch, slice(start, start + rows)

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, mix: Tensor) -> Tensor:
        """``query`` float32 [B, I, width], ``key`` [B, J, width], ``mix`` [width] -> float32 [B, I, J]."""
        ctx.save_for_backward(query, key, mix)
        scores = query.new_empty(len(query), query.shape[1], key.shape[1])
        for batch, part in AdditiveScores._blocks(query, key):
            scores[batch, part] = (query[batch, part, None] + key[batch]).tanh_() @ mix
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, mix = ctx.saved_tensors
        (gradient,) = gradients
        to_query, to_key, to_mix = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(mix)
        for batch, part in AdditiveScores._blocks(query, key):
            squashed, passed = (query[batch, part, None] + key[batch]).tanh_(), gradient[batch, part]
            to_mix += passed.reshape(-1) @ squashed.view(-1, len(mix))
            slope = squashed.mul_(squashed).neg_().add_(1).mul_(passed[..., None])
            to_query[batch, part] = slope.sum(1)
            to_key[batch] += slope.sum(0)
        return to_query * mix, to_key * mix, to_mix


class Placer(nn.Module):
    """Reads the groups with a bidirectional LSTM, and names their devices with an LSTM that attends to them."""

    def __init__(self, features: int, devices: int, args: HDPArgs) -> None:
        super().__init__()
        hidden = args.hidden
        self.args = args
        # half the width for each direction: `hidden` together
        self.encoder = nn.LSTM(features, max(1, hidden // 2), bidirectional=True, batch_first=True)
        width = 2 * max(1, hidden // 2)
        self.decoder = nn.LSTM(args.device_width + width, width, batch_first=True)
        self.before = nn.Embedding(devices + 1, args.device_width)  # the last: none yet
        self.keys, self.query = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(2 * width, devices)

    def forward(
        self, groups: Tensor, noise: float, generator: torch.Generator | None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Devices int64 [B, K] of groups float32 [B, K, features], and their log-probabilities float32 [B].

        ``chosen``: score these devices in place of sampling. ``noise``: standard deviation added to the logits.

        Devices are sampled one after the other without gradient, and then scored all at once.
        """
        states, _ = self.encoder(groups)
        batch, count, _ = states.shape
        noises = noise * torch.randn(batch, count, self.out.out_features, generator=generator) if noise else None
        nothing = torch.full((batch,), self.before.num_embeddings - 1)
        # the decoder begins with the encoder's last output and an empty cell
        start = states[:, -1], torch.zeros_like(states[:, -1])
        if chosen is None:
            decoder = self.decoder
            weights: Any = decoder.weight_ih_l0, decoder.weight_hh_l0, decoder.bias_ih_l0, decoder.bias_hh_l0
            with torch.no_grad():
                keys, last, at, names = self.keys(states), nothing, start, []
                for position in range(count):
                    # not nn.LSTM, which lays its weights out anew in every call: four times as slow for one step
                    at = torch.lstm_cell(torch.cat([self.before(last), states[:, position]], 1), at, *weights)
                    noised = None if noises is None else noises[:, position, None]
                    scores = self._score(states, keys, at[0][:, None], noised)
                    last = torch.multinomial(scores[:, 0].exp(), 1, generator=generator)[:, 0]
                    names.append(last)
                chosen = torch.stack(names, 1)
        before = self.before(torch.cat([nothing[:, None], chosen[:, :-1]], 1))
        hidden, _ = self.decoder(torch.cat([before, states], 2), tuple(part[None].contiguous() for part in start))
        scores = self._score(states, self.keys(states), hidden, noises)
        return chosen, scores.gather(2, chosen[:, :, None])[:, :, 0].sum(1)

    def _score(self, states: Tensor, keys: Tensor, hidden: Tensor, noises: Tensor | None) -> Tensor:
        """Log-probabilities float32 [B, P, devices], of decoder states ``hidden`` float32 [B, P, width]."""
        args = self.args
        scores: Any = AdditiveScores.apply(self.query(hidden), keys, self.mix.weight[0])  # type: ignore[no-untyped-call]
        attended = scores.softmax(2) @ states
        logits = self.out(torch.cat([hidden, attended], 2)) / args.temperature
        logits = args.tanh_constant * logits.tanh()
        return (logits if noises is None else logits + noises).log_softmax(2)


class HDP(nn.Module):
    """Grouper and placer for N ops on D devices."""

    def __init__(self, ops: int, devices: int, args: HDPArgs) -> None:
        super().__init__()
        self.args = args
        self.num_groups = min(args.groups(devices), ops)
        self.grouper = Grouper(NODE_WIDTH, args.grouper_hidden, self.num_groups)
        self.placer = Placer(NODE_WIDTH + 1 + self.num_groups, devices, args)

    def group_features(self, graph: GraphInput, group: Tensor) -> Tensor:
        """float32 [B, K, features]: mean features and share of ops of each group, and which groups it sends to.

        ``group`` int64 [B, N]: the group of each op.
        """
        batch, count = group.shape[0], self.num_groups
        member = torch.nn.functional.one_hot(group, count).float()  # [B, N, K]
        size = member.sum(1)  # [B, K]
        mean = torch.einsum("bnk,nf->bkf", member, graph.nodes) / size.clamp(min=1).unsqueeze(2)
        sends = torch.zeros(batch, count * count)
        pairs = group[:, graph.edge_index[0]] * count + group[:, graph.edge_index[1]]
        sends.scatter_(1, pairs, 1.0)
        return torch.cat([mean, size.unsqueeze(2) / group.shape[1], sends.view(batch, count, count)], 2)

    def forward(
        self, graph: GraphInput, batch: int, noise: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(int64 [B, N] device of each op, float32 [B] log-probability of grouping and placement)."""
        log_probs = self.grouper(graph.nodes).log_softmax(1)
        group = torch.multinomial(log_probs.exp(), batch, replacement=True, generator=generator).t()  # [B, N]
        grouping = log_probs.gather(1, group.t()).sum(0)
        with torch.no_grad():  # a sampled grouping passes no gradient
            features = self.group_features(graph, group)
        devices, placing = self.placer(features, noise, generator)
        return devices.gather(1, group), grouping + placing
