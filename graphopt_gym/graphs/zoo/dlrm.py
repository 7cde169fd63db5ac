"""DLRM (Naumov et al. 2019): embeddings, two towers of linear layers, and the products of all pairs of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dlrm(nn.Module):
    """Click probabilities [batch, 1] of dense features [batch, dense] and one index a table [batch, tables]."""

    pairs: Tensor

    def __init__(self, tables: int, rows: int, dense: int, bottom: tuple[int, ...], top: tuple[int, ...]) -> None:
        super().__init__()
        width = bottom[-1]
        self.embeddings = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        self.bottom = nn.ModuleList(nn.Linear(a, b) for a, b in zip((dense, *bottom), bottom))
        pairs = (tables + 1) * tables // 2
        sizes = (width + pairs, *top)
        self.top = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, top))
        row, column = torch.tril_indices(tables + 1, tables + 1, -1, device="cpu")
        self.register_buffer("pairs", row * (tables + 1) + column, persistent=False)

    def forward(self, dense: Tensor, indices: Tensor) -> Tensor:
        x = dense
        for layer in self.bottom:
            x = F.relu(layer(x))
        looked_up = [table(indices[:, number]) for number, table in enumerate(self.embeddings)]
        features = torch.stack([x, *looked_up], 1)
        products = features @ features.transpose(1, 2)
        flat = products.flatten(1).index_select(1, self.pairs)
        y = torch.cat([x, flat], 1)
        for layer in self.top[:-1]:
            y = F.relu(layer(y))
        return torch.sigmoid(self.top[-1](y))


def build(
    *,
    tables: int = 26,
    rows: int = 100_000,
    dense: int = 13,
    bottom: tuple[int, ...] = (512, 256, 64),
    top: tuple[int, ...] = (512, 256, 1),
    batch: int = 16,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; layers and tables are those of its Criteo benchmark."""
    with torch.device(device):
        module = Dlrm(tables, rows, dense, tuple(bottom), tuple(top))
        inputs = {"dense": torch.randn(batch, dense), "indices": torch.randint(0, rows, (batch, tables))}
    return {"module": module, "example_inputs": inputs, "metadata": {}}
