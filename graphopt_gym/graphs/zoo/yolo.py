"""YOLOv3 (Redmon and Farhadi 2018), and its tiny version: Darknet convolutions and boxes from two or three scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import ConvNorm, of_images


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> ConvNorm:
    return ConvNorm(inputs, outputs, kernel, stride, "leaky_relu")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(width, width // 2, 1), conv(width // 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Tiny(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        w = width
        layers: list[nn.Module] = [conv(3, w)]
        for stage in range(4):
            layers += [nn.MaxPool2d(2), conv(w << stage, 2 * w << stage)]
        self.fine = nn.Sequential(*layers)
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2),
            conv(16 * w, 32 * w),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.MaxPool2d(2, 1),
            conv(32 * w, 64 * w),
            conv(64 * w, 16 * w, 1),
        )
        self.head_coarse = nn.Sequential(conv(16 * w, 32 * w), nn.Conv2d(32 * w, outputs, 1))
        self.up = conv(16 * w, 8 * w, 1)
        self.head_fine = nn.Sequential(conv(24 * w, 16 * w), nn.Conv2d(16 * w, outputs, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        coarse = self.coarse(fine)
        up = F.interpolate(self.up(coarse), scale_factor=2.0)
        return self.head_coarse(coarse), self.head_fine(torch.cat([up, fine], 1))


class Full(nn.Module):
    """Darknet-53 (``blocks`` residual blocks a stage) and three scales."""

    def __init__(self, width: int, blocks: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        w = width
        self.stem = conv(3, w)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(w << s, 2 * w << s, 3, 2), *(Residual(2 * w << s) for _ in range(count)))
            for s, count in enumerate(blocks)
        )
        self.necks, self.heads, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, half in enumerate((16 * w, 8 * w, 4 * w)):
            inputs = 2 * half if index == 0 else 3 * half
            self.necks.append(
                nn.Sequential(
                    conv(inputs, half, 1),
                    conv(half, 2 * half),
                    conv(2 * half, half, 1),
                    conv(half, 2 * half),
                    conv(2 * half, half, 1),
                )
            )
            self.heads.append(nn.Sequential(conv(half, 2 * half), nn.Conv2d(2 * half, outputs, 1)))
            if index < 2:
                self.ups.append(conv(half, half // 2, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        found = []
        x = features.pop()
        for index, (neck, head) in enumerate(zip(self.necks, self.heads, strict=True)):
            x = neck(x)
            found.append(head(x))
            if index < 2:
                x = torch.cat([F.interpolate(self.ups[index](x), scale_factor=2.0), features.pop()], 1)
        return found


def build(
    *,
    tiny: bool = False,
    width: int = 32,
    blocks: tuple[int, ...] = (1, 2, 8, 8, 4),
    classes: int = 80,
    size: int = 416,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are YOLOv3. The tiny version has width 16."""
    outputs = 3 * (5 + classes)
    with torch.device(device):
        module = Tiny(width, outputs) if tiny else Full(width, tuple(blocks), outputs)
        return of_images(module, size, batch)
