"""The ranker of moves: the chance that a change of a placement shortens the step, from what the timeline shows.

A move takes some groups to other devices. Its features say what it does to loads, traffic and memory, and where its
groups stand in the simulated timeline that it starts from: on the critical path or with slack, waiting for transfers,
with room or without on the device that they go to.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from graphopt_agents.placer.arrays import Arrays
from graphopt_agents.placer.timeline import State
from graphopt_gym.compiled import kernel

# Of a move. Times are to the step, a weighted mean is by work.
FEATURES = (
    "groups, log", "work, log", "work", "load where it goes, mean", "load where it comes from, mean",
    "load where it goes, after", "largest load", "change of the largest load", "change of transfers, squashed",
    "change of those of parameters and inputs", "change of how many transfers", "all transfers",
    "all of parameters and inputs", "critical work", "share of it that is critical",
    "critical transfers with where it goes", "critical transfers with third devices", "room where it goes, mean",
    "room where it comes from, mean", "queued", "lateness of new transfers", "lateness of the worst of them",
    "least slack", "memory where it goes, after", "memory where it comes from, mean", "whether that overflows",
    "share of its modules where it goes", "and where it comes from", "share of its layers where it goes",
    "and where it comes from", "neighbours in order it joins, less those it leaves", "devices, log",
    "utilisation", "work there to work here, log", "when it runs", "memory moved", "one group", "several targets",
    "urgent transfers that it saves", "difference of room",
)  # fmt: skip
NUM_FEATURES = len(FEATURES)
TIMELINE = (13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 34, 38, 39)  # what a placement alone does not show
HIDDEN = (48, 32)
JUST = 1 - 1e-6  # of the time that it may take: a transfer on the critical path takes all of it
LEAST_GAIN = 1e-4  # of the step: what counts as shorter


class Ranker(nn.Module):
    """Two outputs of each move: the logit of its shortening the step, and by how much (share of the step, times 20).

    ``mean`` and ``scale``: float32 [features], of the moves that it was trained on.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("scale", torch.ones(NUM_FEATURES))
        sizes = (NUM_FEATURES, *HIDDEN)
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float32 [moves, 2] of features float32 [moves, NUM_FEATURES]."""
        return self.layers(((features - self.mean) / self.scale).clamp(-5, 5))  # type: ignore[no-any-return]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """What :func:`scores` takes: mean, scale, and weights and biases of each layer, float32."""
        state = [self.mean, self.scale]
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                state += [layer.weight.T, layer.bias]
        return tuple(np.ascontiguousarray(one.detach().numpy(), np.float32) for one in state)


@kernel(inner=True, allocates=False)
def _root(value):
    """A root that keeps the sign, of at most 3."""
    value = min(max(value, -9.0), 9.0)
    return np.sqrt(value) if value >= 0.0 else -np.sqrt(-value)


@kernel
def move_features(arrays: Arrays, state: State, candidates, out):
    """Features of moves, float32 [M, features], into ``out``.

    Args:
        candidates: int32 [M, G], the placements that they lead to from ``state.home``.
    """
    devices, groups = arrays.work_s.shape
    step = max(state.step_s, 1e-30)
    home, readers = state.home.copy(), state.readers.copy()
    load, memory = np.zeros(devices), np.zeros(devices)
    whole, most = 0.0, 0.0
    for device in range(devices):
        whole += state.load_s[device]
        most = max(most, state.load_s[device])
    targets = np.zeros(devices, np.bool_)
    for row in range(candidates.shape[0]):
        wanted, f = candidates[row], out[row]
        load[:], memory[:], targets[:] = state.load_s, state.peak_bytes, False
        moved, work, there, critical, wait_target, wait_other = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        room_there, room_here, queued, middle, slack, held = 0.0, 0.0, 0.0, 0.0, step, 0.0
        load_there, load_here, peak_here = 0.0, 0.0, 0.0
        module_there, module_here, modules, layer_there, layer_here, layers = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        acts, sources, number, late, worst, saved, joins = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for group in range(groups):
            here, target = state.home[group], wanted[group]
            if here == target:
                continue
            moved += 1
            targets[target] = True
            own, other = arrays.work_s[here, group], arrays.work_s[target, group]
            work += own
            there += other
            held += arrays.held_bytes[group]
            load[here] -= own
            load[target] += other
            memory[here] -= arrays.held_bytes[group]
            memory[target] += arrays.held_bytes[group]
            critical += state.critical_s[group]
            for device in range(devices):
                if device == target:
                    wait_target += state.waits_for_s[group, device]
                elif device != here:
                    wait_other += state.waits_for_s[group, device]
            room_there += own * state.room[group, target]
            room_here += own * state.room[group, here]
            queued += state.queued_s[group]
            middle += own * state.middle[group]
            slack = min(slack, state.slack_s[group])
            load_there += own * state.load_s[target]
            load_here += own * state.load_s[here]
            peak_here += own * state.peak_bytes[here] / arrays.capacity_bytes[here]
            module, layer = arrays.part[0, group], arrays.part[1, group]
            module_there += own * state.in_module[module, target]
            module_here += own * state.in_module[module, here]
            layer_there += own * state.in_layer[layer, target]
            layer_here += own * state.in_layer[layer, here]
            for device in range(devices):
                modules += own * state.in_module[module, device]
                layers += own * state.in_layer[layer, device]
            at = arrays.position[0, group]
            for place in (at - 1, at + 1):
                if 0 <= place < groups:
                    beside = arrays.order[0, place]
                    if wanted[beside] == state.home[beside]:
                        joins += (state.home[beside] == target) - (state.home[beside] == here)
            for place in range(arrays.reads_ptr[group], arrays.reads_ptr[group + 1]):
                tensor = arrays.reads[place]
                sender, seconds = home[arrays.sender[tensor]], arrays.sent_s[tensor]
                if readers[tensor, here] == 1 and sender != here:  # nobody else here needs it
                    if arrays.of_source[tensor]:
                        sources -= seconds
                    else:
                        acts -= seconds
                        number -= 1
                        saved += seconds >= JUST * state.may_take_s[tensor]
                if readers[tensor, target] == 0 and sender != target:
                    if arrays.of_source[tensor]:
                        sources += seconds
                    else:
                        acts += seconds
                        number += 1
                    if sender == here and seconds > state.may_take_s[tensor]:
                        late += seconds - state.may_take_s[tensor]
                        worst = max(worst, seconds - state.may_take_s[tensor])
                readers[tensor, here] -= 1
                readers[tensor, target] += 1
            for place in range(arrays.sends_ptr[group], arrays.sends_ptr[group + 1]):
                tensor = arrays.sends[place]
                seconds = arrays.sent_s[tensor]
                if readers[tensor, target] > 0:
                    if arrays.of_source[tensor]:
                        sources -= seconds
                    else:
                        acts -= seconds
                        number -= 1
                if readers[tensor, here] > 0:
                    if arrays.of_source[tensor]:
                        sources += seconds
                    else:
                        acts += seconds
                        number += 1
                    if seconds > state.may_take_s[tensor]:
                        late += seconds - state.may_take_s[tensor]
                        worst = max(worst, seconds - state.may_take_s[tensor])
            home[group] = target
        for group in range(groups):  # back
            here, target = state.home[group], wanted[group]
            if here != target:
                for place in range(arrays.reads_ptr[group], arrays.reads_ptr[group + 1]):
                    readers[arrays.reads[place], here] += 1
                    readers[arrays.reads[place], target] -= 1
                home[group] = here
        per = 1.0 / max(work, 1e-30)
        largest, fullest, after, goals = 0.0, 0.0, 0.0, 0
        for device in range(devices):
            largest = max(largest, load[device])
            if targets[device]:
                goals += 1
                after = max(after, load[device])
                fullest = max(fullest, memory[device] / arrays.capacity_bytes[device])
        f[0], f[1], f[2] = np.log2(moved + 1.0) / 4, np.log10(work / step + 1e-6) / 3, work / step
        f[3], f[4], f[5], f[6] = load_there * per / step, load_here * per / step, after / step, most / step
        f[7] = 10.0 * (largest - most) / step
        f[8], f[9], f[10] = _root(acts / step), _root(sources / step), _root(number / 20.0)
        f[11], f[12] = min(3.0, state.cut_s / step), min(3.0, state.cut_sources_s / step)
        f[13], f[14] = critical / step, critical * per
        f[15], f[16] = np.sqrt(wait_target / step), np.sqrt(wait_other / step)
        f[17], f[18], f[19] = room_there * per, room_here * per, np.sqrt(max(0.0, queued) / step)
        f[20], f[21], f[22] = np.sqrt(late / step), np.sqrt(worst / step), np.sqrt(max(0.0, slack) / step)
        f[23], f[24], f[25] = fullest, peak_here * per, fullest > 1.0
        f[26], f[27] = module_there / max(modules, 1e-30), module_here / max(modules, 1e-30)
        f[28], f[29] = layer_there / max(layers, 1e-30), layer_here / max(layers, 1e-30)
        f[30] = min(max(0.5 * joins, -2.0), 2.0)
        f[31], f[32] = np.log2(float(devices)) / 3, whole / (devices * step)
        f[33] = np.log2((there + 1e-12) / (work + 1e-12))
        f[34], f[35] = middle * per, held / arrays.capacity_bytes.max()
        f[36], f[37] = moved == 1, goals > 1
        f[38], f[39] = min(3.0, saved / 4), (room_here - room_there) * per


@kernel
def score_moves(features, network, out):
    """The first output of a :class:`Ranker` for features float32 [M, features], into ``out``, float32 [M].

    ``network``: see :meth:`Ranker.arrays`.
    """
    mean, scale, w1, b1, w2, b2, w3, b3 = network
    first, second = np.empty(b1.shape[0], np.float32), np.empty(b2.shape[0], np.float32)
    for row in range(features.shape[0]):
        first[:], second[:] = b1, b2
        for number in range(features.shape[1]):
            value = min(max((features[row, number] - mean[number]) / scale[number], np.float32(-5)), np.float32(5))
            for unit in range(first.shape[0]):
                first[unit] += value * w1[number, unit]
        for unit in range(first.shape[0]):
            if first[unit] > 0:
                for other in range(second.shape[0]):
                    second[other] += first[unit] * w2[unit, other]
        total = b3[0]
        for unit in range(second.shape[0]):
            if second[unit] > 0:
                total += second[unit] * w3[unit, 0]
        out[row] = total


def loss_of(ranker: Ranker, features: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Of moves: cross-entropy of whether each shortens the step, and a robust loss of by how much.

    ``gains``: float32 [moves], the share of the step that each saved.
    """
    given = ranker(features)
    better = nn.functional.binary_cross_entropy_with_logits(given[:, 0], (gains > LEAST_GAIN).float())
    return better + nn.functional.smooth_l1_loss(given[:, 1], gains.clamp(0, 0.05) * 20)


def fit(
    ranker: Ranker, features: Any, gains: Any, epochs: int, rate: float, generator: torch.Generator, batch: int = 1024
) -> float:
    """Train a ranker on moves; the mean loss of the last epoch.

    Args:
        features: float32 [moves, features]. ``gains``: see :func:`loss_of`.
        rate: of learning, which falls to 0.
        generator: of the order of moves.
    """
    features, gains = torch.as_tensor(features), torch.as_tensor(gains)
    optimizer = torch.optim.Adam(ranker.parameters(), rate, weight_decay=1e-5)
    total = 0.0
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs) + rate / 200
        total = 0.0
        for rows in torch.randperm(len(features), generator=generator).split(batch):
            loss = loss_of(ranker, features[rows], gains[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(features)
    return total


def steps(
    ranker: Ranker, optimizer: torch.optim.Optimizer, features: Any, gains: Any, count: int, batch: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """So many steps of learning on moves drawn from those given."""
    features, gains = torch.as_tensor(features), torch.as_tensor(gains)
    for _ in range(count):
        rows = torch.randint(len(features), (batch,), generator=generator)
        optimizer.zero_grad()
        loss_of(ranker, features[rows], gains[rows]).backward()
        optimizer.step()
