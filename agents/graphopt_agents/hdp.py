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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphopt_agents.networks import GraphInput
from graphopt_agents.networks.hdp import HDP, HDPArgs
from graphopt_gym.envs.placement.instances import Instance
from graphopt_gym.errors import unknown_name

if TYPE_CHECKING:
    from graphopt_gym.search.evaluator import Evaluator


class HDPTrainer:
    """REINFORCE on one instance; :meth:`step` draws, prices and learns from ``children`` placements.

    Args:
        instance: the graph on the cluster. Its groups are HDP's ops; what HDP puts where it may not be goes elsewhere,
            see :meth:`PlacementProblem.keep_to_allowed`, since one choice of HDP's is for many of them.
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
        self.args, self.price, self.problem = args, price, instance.problem
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
        # a policy that has all but decided has gradients so small that a processor takes many times as long for them
        torch.set_flush_denormal(True)
        try:
            return self._step()
        finally:
            torch.set_flush_denormal(False)

    def _step(self) -> dict[str, Any]:
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = args.rate(self.placements)
        noise = args.logit_noise if self.placements < args.noise_until else 0.0
        devices, log_prob = self.network(self.graph, args.children, noise, self.generator)
        decisions = devices.numpy().astype(np.int32)
        if self.problem.allowed is not None:
            decisions = np.stack([self.problem.keep_to_allowed(row) for row in decisions])
        costs, fits = self.price(decisions)
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
        instance = Instance(evaluator.problem)  # type: ignore[arg-type]
        trainer = HDPTrainer(instance, evaluator.costs_and_valid, args, int(rng.integers(2**31)))
        while evaluator.left > 0:
            trainer.step()

    return run
