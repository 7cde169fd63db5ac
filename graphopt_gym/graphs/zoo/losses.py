"""Losses that several families share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def constant_token_loss(vocabulary: int) -> Callable[[Tensor], Tensor]:
    """Cross-entropy of logits [..., vocabulary] against token 1 everywhere: for models that are given no labels."""

    def loss(logits: Tensor) -> Tensor:
        logits = logits.view(-1, vocabulary)
        return F.cross_entropy(logits, torch.ones(logits.shape[0], dtype=torch.long, device=logits.device))

    return loss
