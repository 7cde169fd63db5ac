"""RetinaNet (Lin, Goyal, Girshick, He, Dollar, ICCV 2017): feature pyramid and the two subnets, without a backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Subnet(nn.Sequential):
    """Convolutions whose weights all levels share."""

    def __init__(self, width: int, depth: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, outputs, 3, padding=1))


class RetinaNet(nn.Module):
    """Class probabilities and box offsets of the backbone's features C3, C4, C5."""

    def __init__(self, channels: tuple[int, ...], width: int, depth: int, anchors: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.p6 = nn.Conv2d(channels[-1], width, 3, 2, 1)
        self.p7 = nn.Conv2d(width, width, 3, 2, 1)
        self.class_subnet = Subnet(width, depth, anchors * classes)
        self.box_subnet = Subnet(width, depth, anchors * 4)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor]:
        merged = []
        above = None
        for lateral, feature in zip(list(self.lateral)[::-1], (c5, c4, c3), strict=True):
            x = lateral(feature)
            above = x if above is None else x + F.interpolate(above, scale_factor=2.0)
            merged.append(above)
        levels = [smooth(x) for smooth, x in zip(self.smooth, merged[::-1], strict=True)]
        levels.append(self.p6(c5))
        levels.append(self.p7(F.relu(levels[-1])))
        scores, boxes = [], []
        for x in levels:
            scores.append(self.class_subnet(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.classes))
            boxes.append(self.box_subnet(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return torch.sigmoid(torch.cat(scores, 1)), torch.cat(boxes, 1)


def build(
    *,
    channels: tuple[int, ...] = (512, 1024, 2048),
    width: int = 256,
    depth: int = 4,
    anchors: int = 9,
    classes: int = 80,
    size: int = 256,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults fit a ResNet-50."""
    with torch.device(device):
        module = RetinaNet(tuple(channels), width, depth, anchors, classes)
        inputs = {
            f"c{level}": torch.randn(batch, c, size >> level, size >> level)
            for level, c in zip((3, 4, 5), channels, strict=True)
        }
    return {"module": module, "example_inputs": inputs, "metadata": {}}
