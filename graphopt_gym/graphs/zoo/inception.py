"""Inception-v3 (Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016), with its auxiliary classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Split(nn.Module):
    """The expanded filter bank: two layers side by side."""

    def __init__(self, row: nn.Module, column: nn.Module) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.row(x), self.column(x)


class Branches(nn.Module):
    """Parallel branches, each a sequence of layers, whose results are concatenated by channel."""

    def __init__(self, branches: list[list[nn.Module]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for branch in self.branches:
            y = branch(x)
            outputs.extend(y if isinstance(y, tuple) else (y,))
        return torch.cat(outputs, 1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1)


def _max() -> nn.Module:
    return nn.MaxPool2d(3, 2)


def _block_a(inputs: int, pool: int, w: int) -> Branches:
    return Branches(
        [
            [Conv(inputs, 4 * w, 1)],
            [Conv(inputs, 3 * w, 1), Conv(3 * w, 4 * w, 5, 1, 2)],
            [Conv(inputs, 4 * w, 1), Conv(4 * w, 6 * w, 3, 1, 1), Conv(6 * w, 6 * w, 3, 1, 1)],
            [_average(), Conv(inputs, pool, 1)],
        ]
    )


def _block_b(inputs: int, w: int) -> Branches:
    return Branches(
        [
            [Conv(inputs, 24 * w, 3, 2)],
            [Conv(inputs, 4 * w, 1), Conv(4 * w, 6 * w, 3, 1, 1), Conv(6 * w, 6 * w, 3, 2)],
            [_max()],
        ]
    )


def _block_c(inputs: int, c: int, w: int) -> Branches:
    outputs, row, column = 12 * w, (1, 7), (7, 1)
    pad_row, pad_column = (0, 3), (3, 0)
    return Branches(
        [
            [Conv(inputs, outputs, 1)],
            [Conv(inputs, c, 1), Conv(c, c, row, 1, pad_row), Conv(c, outputs, column, 1, pad_column)],
            [
                Conv(inputs, c, 1),
                Conv(c, c, column, 1, pad_column),
                Conv(c, c, row, 1, pad_row),
                Conv(c, c, column, 1, pad_column),
                Conv(c, outputs, row, 1, pad_row),
            ],
            [_average(), Conv(inputs, outputs, 1)],
        ]
    )


def _block_d(inputs: int, w: int) -> Branches:
    c = 12 * w
    return Branches(
        [
            [Conv(inputs, c, 1), Conv(c, 20 * w, 3, 2)],
            [Conv(inputs, c, 1), Conv(c, c, (1, 7), 1, (0, 3)), Conv(c, c, (7, 1), 1, (3, 0)), Conv(c, c, 3, 2)],
            [_max()],
        ]
    )


def _block_e(inputs: int, w: int) -> Branches:
    c = 24 * w

    def split() -> nn.Module:
        return Split(Conv(c, c, (1, 3), 1, (0, 1)), Conv(c, c, (3, 1), 1, (1, 0)))

    return Branches(
        [
            [Conv(inputs, 20 * w, 1)],
            [Conv(inputs, c, 1), split()],
            [Conv(inputs, 28 * w, 1), Conv(28 * w, c, 3, 1, 1), split()],
            [_average(), Conv(inputs, 12 * w, 1)],
        ]
    )


class Auxiliary(nn.Module):
    def __init__(self, inputs: int, classes: int, w: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = Conv(inputs, 8 * w, 1), Conv(8 * w, 48 * w, 5)
        self.fc = nn.Linear(48 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class InceptionV3(nn.Module):
    """Loss (without labels: logits) of a batch of images [batch, 3, 299, 299]; ``width`` 16 is the paper's network."""

    def __init__(self, classes: int, width: int, dropout: float, auxiliary: bool) -> None:
        super().__init__()
        w = width
        self.stem = nn.ModuleList(
            [
                Conv(3, 2 * w, 3, 2),
                Conv(2 * w, 2 * w, 3),
                Conv(2 * w, 4 * w, 3, 1, 1),
                Conv(4 * w, 5 * w, 1),
                Conv(5 * w, 12 * w, 3),
            ]
        )
        self.blocks = nn.ModuleList(
            [
                _block_a(12 * w, 2 * w, w),
                _block_a(16 * w, 4 * w, w),
                _block_a(18 * w, 4 * w, w),
                _block_b(18 * w, w),
                _block_c(48 * w, 8 * w, w),
                _block_c(48 * w, 10 * w, w),
                _block_c(48 * w, 10 * w, w),
                _block_c(48 * w, 12 * w, w),
                _block_d(48 * w, w),
                _block_e(80 * w, w),
                _block_e(128 * w, w),
            ]
        )
        self.auxiliary = Auxiliary(48 * w, classes, w) if auxiliary else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128 * w, classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = images
        for index, layer in enumerate(self.stem):
            x = layer(x)
            if index in (2, 4):
                x = F.max_pool2d(x, 3, 2)
        loss = None
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 7 and labels is not None and self.auxiliary is not None:  # the last 17x17 grid
                loss = 0.4 * F.cross_entropy(self.auxiliary(x), labels)
        x = torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
        logits = self.fc(self.dropout(x))
        if labels is None:
            return logits
        whole = F.cross_entropy(logits, labels)
        return whole if loss is None else whole + loss


def build(
    *,
    classes: int = 1000,
    width: int = 16,
    size: int = 299,
    batch: int = 32,
    dropout: float = 0.5,
    auxiliary: bool = True,
    optimizer: str | None = "momentum",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = InceptionV3(classes, width, dropout, auxiliary)
        inputs = {"images": torch.randn(batch, 3, size, size), "labels": torch.randint(0, classes, (batch,))}
    stages = [
        {"name": "stem", "part": "", "modules": ["stem"]},
        *({"name": f"block {i}", "part": "", "modules": [f"blocks.{i}"]} for i in range(len(module.blocks))),
        {"name": "head", "part": "", "modules": ["auxiliary", "dropout", "fc", "loss"]},
    ]
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
