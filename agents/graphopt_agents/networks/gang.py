"""The policy of gang scheduling: which of the gangs that may start does, or none; which plan; where a slice lies.

What is chosen from is a set, so every choice has its score by the same weights: from what is seen of it, and of it
beside the others (how much shorter its way is than the longest of them, how much less served its client is, …). So the
weights fit any number of gangs, clients, islands and plans, and the order of none of them matters (Zaheer et al., Deep
Sets, NeurIPS 2017). Scores are linear: some forty weights, which evolution can find from what whole runs cost.

More decisions than one are drawn by weights that stray from its own, by half to four times of how large these are. All
weights begin at 0: untrained, the likeliest choice is the first, which is the gang that has been ready for longest, and
what is drawn are random linear policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graphopt_gym.envs.gang.episodes import CHOOSES_GANG, CHOOSES_PLAN, CHOOSES_SLICE, PHASES
from graphopt_gym.envs.gang.instances import (
    GANG_FEATURES,
    ISLAND_FEATURES,
    PLAN_FEATURES,
    POSITION_FEATURES,
    PROGRESS_FEATURES,
)

NUMBERED = {GANG_FEATURES.index(name) for name in ("there", "number")}  # say nothing of another program
SEEN = [index for index in range(len(GANG_FEATURES)) if index not in NUMBERED]
BESIDE = [GANG_FEATURES.index(name) for name in ("time", "path", "waited", "served", "cores", "left", "keeps")]
PATH, KEEPS = GANG_FEATURES.index("path"), GANG_FEATURES.index("keeps")
STRAYS = (0.5, 1.0, 2.0, 4.0)  # of drawn weights, to the size of its own
URGENT = PROGRESS_FEATURES.index("urgent")
SETS = {
    "gangs": GANG_FEATURES, "plans": PLAN_FEATURES, "positions": POSITION_FEATURES, "islands": ISLAND_FEATURES,
}  # fmt: skip
# how many weights score each kind of choice
SIZES = {
    "starts": len(SEEN) + len(BESIDE) + 2,
    "waits": 2 + len(PROGRESS_FEATURES) + len(ISLAND_FEATURES),
    "plans": len(PLAN_FEATURES),
    "positions": len(POSITION_FEATURES),
}


@dataclass(frozen=True)
class GangConfig:
    """The network has no sizes to choose."""


class GangNetwork(nn.Module):
    """(logits float32 [B, A], values float32 [B], all 0) of B observations of ``GangScheduling-v0``."""

    def __init__(self, config: GangConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.Parameter(torch.zeros(sum(SIZES.values()), dtype=torch.float64))
        self.candidates: np.ndarray | None = None  # float64 [rows, D]: weights in place of its own, by row

    def drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """float64 [count, D]: weights that stray from its own, by each of :data:`STRAYS` in turn."""
        mean = self.weights.detach().numpy()
        size = float(np.sqrt((mean**2).mean())) or 1.0
        strays = size * np.resize(STRAYS, count)
        return mean + strays[:, None] * rng.standard_normal((count, len(mean)))

    def inputs(self, observations: Mapping[str, np.ndarray], masks: np.ndarray) -> list[dict[str, np.ndarray]]:
        """What each row is seen of, by kind of choice, and its mask."""
        rows = len(masks)
        parts = {name: observations[name].reshape(rows, -1, len(features)) for name, features in SETS.items()}
        gangs, progress = parts["gangs"], observations["progress"].reshape(rows, -1)
        there = gangs[:, :, :1] > 0
        most = np.where(there, gangs, 0.0).max(axis=1, keepdims=True)
        kept = np.maximum(0.0, gangs[:, :, KEEPS] - gangs[:, :, PATH])[:, :, None]
        seen = {
            "starts": np.concatenate(
                [gangs[:, :, SEEN], (gangs - most)[:, :, BESIDE], kept, gangs[:, :, KEEPS, None] > 0], axis=2
            ),
            "waits": np.concatenate(
                [np.ones((rows, 1)), np.maximum(0.0, progress[:, URGENT, None] - most[:, :, PATH]), progress,
                 parts["islands"].mean(axis=1)], axis=1,
            )[:, None, :],
            "plans": parts["plans"],
            "positions": parts["positions"],
            "phase": observations["phase"].reshape(rows, len(PHASES)),
            "mask": masks,
        }  # fmt: skip
        return [{name: part[row] for name, part in seen.items()} for row in range(rows)]

    def forward(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[Tensor, Tensor]:
        own = self.weights.detach().numpy()
        weights = np.stack([one.get("weights", own) for one in inputs])
        parts = np.split(weights, np.cumsum(list(SIZES.values()))[:-1], axis=1)
        of = dict(zip(SIZES, parts, strict=True))
        phase = np.stack([one["phase"] for one in inputs]).argmax(axis=1)
        actions = max(len(one["mask"]) for one in inputs)
        logits = np.full((len(inputs), actions), np.finfo(np.float32).min, np.float32)
        kinds = {CHOOSES_GANG: ("starts", "waits"), CHOOSES_PLAN: ("plans",), CHOOSES_SLICE: ("positions",)}
        for row, one in enumerate(inputs):
            # waiting is the action behind the window
            scores = np.concatenate([one[kind] @ of[kind][row] for kind in kinds[int(phase[row])]])
            legal = np.flatnonzero(one["mask"])
            logits[row, legal] = scores[legal]
        return torch.from_numpy(logits), torch.zeros(len(inputs))
