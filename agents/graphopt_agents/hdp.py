"""HDP, the learned prior art: a hierarchical controller trained by REINFORCE for one graph.

Mirhoseini et al., "A Hierarchical Model for Device Placement", ICLR 2018. A feed-forward grouper puts each op into one
of a few hundred groups; a bidirectional LSTM reads the groups, and an LSTM with attention names a device for each, one
after the other. Both are sampled, and trained from the square root of the step time.

The constants of :class:`HDPArgs` are those of its released code. Ours, because the code's values are not known here or
belong to its own features: the features of an op (those of the environment, in place of type, output shape and
adjacency embeddings), the embedding width of a device, ``children`` placements a gradient step (the LSTMs are slow; a
batch of them costs little more than one), and initial weights as PyTorch has them. Schedules count placements, which
are the release's steps where it has one child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphopt_agents.networks import GraphInput
from graphopt_agents.networks.inputs import NODE_WIDTH
from graphopt_gym.envs.placement.instances import Instance
from graphopt_gym.errors import InputError, unknown_name

if TYPE_CHECKING:
    from graphopt_gym.search.solve import Evaluator

AGENT = "hdp"


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
        for name in ("max_groups", "groups_per_device", "grouper_hidden", "hidden", "children", "device_width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; give a whole number, at least 1")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate!r}; give a number above 0")

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


class Placer(nn.Module):
    """Reads the groups with a bidirectional LSTM, and names their devices with an LSTM that attends to them."""

    def __init__(self, features: int, devices: int, args: HDPArgs) -> None:
        super().__init__()
        hidden = args.hidden
        self.args = args
        # half the width for each direction: `hidden` together
        self.encoder = nn.LSTM(features, max(1, hidden // 2), bidirectional=True, batch_first=True)
        width = 2 * max(1, hidden // 2)
        self.decoder = nn.LSTMCell(args.device_width + width, width)
        self.before = nn.Embedding(devices + 1, args.device_width)  # the last: none yet
        self.keys, self.query = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(2 * width, devices)

    def forward(
        self, groups: Tensor, noise: float, generator: torch.Generator | None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Devices int64 [B, K] of groups float32 [B, K, features], and their log-probabilities float32 [B].

        ``chosen``: score these devices in place of sampling. ``noise``: standard deviation added to the logits.
        """
        args = self.args
        states, _ = self.encoder(groups)
        batch, count, width = states.shape
        keys = self.keys(states)
        hidden, cell = states[:, -1], torch.zeros(batch, width)
        last = torch.full((batch,), self.before.num_embeddings - 1)
        devices, total = [], torch.zeros(batch)
        for position in range(count):
            hidden, cell = self.decoder(torch.cat([self.before(last), states[:, position]], 1), (hidden, cell))
            weight = self.mix((keys + self.query(hidden)[:, None]).tanh()).softmax(1)
            attended = (weight * states).sum(1)
            logits = self.out(torch.cat([hidden, attended], 1)) / args.temperature
            logits = args.tanh_constant * logits.tanh()
            if noise:
                logits = logits + noise * torch.randn(logits.shape, generator=generator)
            log_probs = logits.log_softmax(1)
            if chosen is not None:
                last = chosen[:, position]
            else:
                last = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
            total = total + log_probs.gather(1, last[:, None])[:, 0]
            devices.append(last)
        return torch.stack(devices, 1), total


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


class HDPTrainer:
    """REINFORCE on one instance; :meth:`step` draws, prices and learns from ``children`` placements.

    Args:
        instance: the graph on the cluster. Its groups are HDP's ops.
        price: decisions int32 [B, G] -> (costs float64 [B], fits bool [B]).
        args: constants.
        seed: of weights and samples.
    """

    def __init__(
        self,
        instance: Instance,
        price: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        args: HDPArgs,
        seed: int,
    ) -> None:
        self.args, self.price = args, price
        self.graph = GraphInput.from_instance(instance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = HDP(instance.num_groups, instance.num_devices, args)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=args.learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.baseline: float | None = None
        self.placements = 0

    def step(self) -> dict[str, Any]:
        """One step; returns the placements so far, mean cost and share of placements that fit."""
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = args.rate(self.placements)
        noise = args.logit_noise if self.placements < args.noise_until else 0.0
        devices, log_prob = self.network(self.graph, args.children, noise, self.generator)
        costs, fits = self.price(devices.numpy().astype(np.int32))
        rewards = np.sqrt(np.where(fits, costs, args.failing_signal_s))
        # the first step is its own baseline; with one child it teaches nothing
        baseline = float(rewards.mean()) if self.baseline is None else self.baseline
        advantage = torch.from_numpy(rewards - baseline).float()
        self.baseline = args.baseline_decay * baseline + (1 - args.baseline_decay) * float(rewards.mean())
        loss = (advantage * log_prob).mean()  # a step time: less is better
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), args.gradient_bound)
        self.optimizer.step()
        self.placements += args.children
        return {"placements": self.placements, "mean_cost_s": float(costs.mean()), "valid_share": float(fits.mean())}


def method_run(**arguments: Any) -> Callable[[Evaluator, np.random.Generator], None]:
    """HDP on one problem as a method of ``solve``: ``run(evaluator, rng)``, until the budget is spent.

    ``arguments``: fields of :class:`HDPArgs`. Raises InputError for an unknown one.
    """
    for name in arguments:
        if name not in HDPArgs.__dataclass_fields__:
            raise unknown_name("argument of hdp", name, HDPArgs.__dataclass_fields__)
    args = HDPArgs(**arguments)

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem: Any = evaluator.problem

        def price(decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            costs = evaluator.costs(decisions)  # ends the run by raising when the budget is spent
            # no evaluation of its own: what does not fit costs more than all ops one after the other, so only what
            # costs as much is looked at again; the part of the last batch that the budget cut (inf) teaches nothing
            fits = costs <= problem.serial_s
            doubtful = ~fits & np.isfinite(costs)
            if doubtful.any():
                fits[doubtful] = problem.costs(decisions[doubtful])[1]
            return costs, fits

        trainer = HDPTrainer(Instance(problem), price, args, int(rng.integers(2**31)))
        while evaluator.left > 0:
            trainer.step()

    return run


run = method_run()
