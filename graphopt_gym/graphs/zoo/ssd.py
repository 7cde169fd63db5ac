"""SSD (Liu et al., ECCV 2016) on VGG-16, and SSDLite (Sandler et al., CVPR 2018) on MobileNetV2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo import mobilenet_v2, vgg
from graphopt_gym.graphs.zoo.layers import ConvNorm, of_images


class Ssd(nn.Module):
    """Class scores [batch, boxes, classes] and offsets [batch, boxes, 4] of images [batch, 3, size, size].

    ``stems``: the backbone in pieces, each of which ends at a scale that the heads read, with its channels; further
    scales are made by ``extras``.
    """

    def __init__(
        self, stems: list[tuple[nn.Module, int]], extras: tuple[int, ...], anchors: int, classes: int, light: bool
    ) -> None:
        super().__init__()
        self.classes = classes
        self.scales = nn.ModuleList(stem for stem, _ in stems)
        channels = [outputs for _, outputs in stems]
        for outputs in extras:
            half = outputs // 2
            self.scales.append(
                nn.Sequential(ConvNorm(channels[-1], half, 1), *self._conv3(half, outputs, 2, light), nn.ReLU())
            )
            channels.append(outputs)
        self.scores = nn.ModuleList(nn.Sequential(*self._conv3(c, anchors * classes, 1, light)) for c in channels)
        self.offsets = nn.ModuleList(nn.Sequential(*self._conv3(c, anchors * 4, 1, light)) for c in channels)

    @staticmethod
    def _conv3(inputs: int, outputs: int, stride: int, light: bool) -> list[nn.Module]:
        if light:
            return [ConvNorm(inputs, inputs, 3, stride, "relu6", groups=inputs), nn.Conv2d(inputs, outputs, 1)]
        return [nn.Conv2d(inputs, outputs, 3, stride, 1)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        scores, offsets = [], []
        for scale, score, offset in zip(self.scales, self.scores, self.offsets, strict=True):
            x = scale(x)
            scores.append(score(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.classes))
            offsets.append(offset(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return torch.softmax(torch.cat(scores, 1), -1), torch.cat(offsets, 1)


def build(
    *,
    backbone: str = "vgg",
    anchors: int = 6,
    classes: int = 21,
    size: int = 300,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        if backbone == "vgg":
            layers = vgg.features(16, norm=False)
            cut = 13  # the last layer of the fourth stage
            wide = nn.Sequential(  # the paper's fc6 and fc7 as convolutions
                *layers[cut:-1], nn.MaxPool2d(3, 1, 1), ConvNorm(512, 1024, 3, dilation=6), ConvNorm(1024, 1024, 1)
            )
            stems: list[tuple[nn.Module, int]] = [(nn.Sequential(*layers[:cut]), 512), (wide, 1024)]
            extras = (512, 256, 256, 256)
        else:
            layers, last = mobilenet_v2.features(1.0)
            cut = 14  # stride 16
            rest = nn.Sequential(*layers[cut:], ConvNorm(last, 1280, 1, 1, "relu6"))
            stems = [(nn.Sequential(*layers[:cut]), 96), (rest, 1280)]
            extras = (512, 256, 256, 128)
        return of_images(Ssd(stems, extras, anchors, classes, backbone != "vgg"), size, batch)
