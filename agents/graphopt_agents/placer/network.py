"""What is learned: the weights of the scorers, and the ranker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from graphopt_agents.placer.ranker import Ranker
from graphopt_agents.placer.scorer import BY_HAND, NUM_FEATURES
from graphopt_gym.fields import check_fields


@dataclass(frozen=True)
class PlacerConfig:
    """``scorers``: how many sets of weights there are, each trained on what those before it leave."""

    scorers: int = 8

    def __post_init__(self) -> None:
        check_fields(self, {"scorers": 1})


class PlacerNetwork(nn.Module):
    """Untrained, all scorers are the one that is written by hand, and the ranker is as it is drawn.

    ``weights``: float64 [scorers, features]. ``spread``: float64 [features], by what candidates are drawn around them.
    """

    weights: torch.Tensor
    spread: torch.Tensor

    def __init__(self, config: PlacerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weights", torch.from_numpy(BY_HAND.copy()).repeat(config.scorers, 1))
        self.register_buffer("spread", torch.full((NUM_FEATURES,), 0.2, dtype=torch.float64))
        self.ranker = Ranker()
