"""ResNet (He, Zhang, Ren, Sun, CVPR 2016), with bottleneck or basic blocks. The stride sits on the (first) 3x3.

With ``groups`` the bottlenecks are those of ResNeXt (Xie, Girshick, Dollar, Tu, He, CVPR 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        if groups > 1:
            width *= 2  # ResNeXt, table 1
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.down_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.down_bn(self.down_conv(x)) if self.project else x))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.project = stride != 1 or inputs != width
        if self.project:
            self.down_conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.down_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.down_bn(self.down_conv(x)) if self.project else x))


class ResNet(nn.Module):
    """Logits of a batch of images [batch, 3, size, size], or the cross-entropy loss where labels are given."""

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int, basic: bool, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        inputs = width
        for stage, count in enumerate(blocks):
            stack = nn.ModuleList()
            for block in range(count):
                sizes = (inputs, width << stage, 2 if stage and not block else 1)
                stack.append(Basic(*sizes) if basic else Bottleneck(*sizes, groups))
                inputs = (Basic if basic else Bottleneck).expansion * (width << stage)
            self.stages.append(stack)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
        logits = self.fc(x)
        return logits if labels is None else F.cross_entropy(logits, labels)


def build(
    *,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    classes: int = 1000,
    basic: bool = False,
    groups: int = 1,
    size: int = 224,
    batch: int = 128,
    train: bool = True,
    optimizer: str | None = "momentum",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are ResNet-50."""
    with torch.device(device):
        module = ResNet(tuple(blocks), width, classes, basic, groups)
        inputs = {"images": torch.randn(batch, 3, size, size), "labels": torch.randint(0, classes, (batch,))}
    stages = [{"name": "stem", "part": "", "modules": ["conv1", "bn1"]}]
    for stage, count in enumerate(blocks):
        for block in range(count):
            path = f"stages.{stage}.{block}"
            stages.append({"name": f"stack {stage} block {block}", "part": "", "modules": [path]})
    stages.append({"name": "head", "part": "", "modules": ["fc", "loss"]})
    if not train:
        del inputs["labels"]
    return {
        "module": module,
        "example_inputs": inputs,
        "train": train,
        "optimizer": optimizer,
        "metadata": {"stages": stages},
    }
