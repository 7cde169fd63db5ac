"""Small torch modules of many kinds, to be exported as ONNX files."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.block(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 24, 1), nn.SiLU(),
        )  # fmt: skip
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Hardsigmoid())

    def forward(self, x):
        x = self.features(x)
        return (x * self.excite(x)).mean((2, 3))


class Fire(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x):
        a = F.silu(self.a(x))
        b = F.interpolate(F.silu(self.b(a)), scale_factor=2.0, mode="nearest")
        h = self.head(torch.cat([a, b], 1))
        n, c, height, width = h.shape
        return torch.sigmoid(h.view(n, c, height * width).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.table, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16, eps=1e-12)

    def forward(self, ids, mask):
        x = self.table(ids)
        batch, length, _ = x.shape
        q, k, v = (one(x).view(batch, length, 2, 8).transpose(1, 2) for one in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / 8**0.5 + (1.0 - mask[:, None, None, :]) * -1e4
        return self.norm(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 16)))


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(4, 8, 5, 2, 2), nn.Conv1d(8, 8, 3, padding=2, dilation=2), nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose1d(8, 4, 4, 2, 1)

    def forward(self, x):
        return torch.tanh(self.up(F.leaky_relu(self.c(self.b(F.gelu(self.a(x)))))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return F.log_softmax(self.head(self.lstm(x)[0][:, -1]), -1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        return torch.sigmoid(self.c(torch.cat([a, self.up(b)], 1)))


class Odds(nn.Module):
    def forward(self, x):
        return (torch.clamp(x, 0, 1).pow(2).sum(-1), torch.where(x > 0, x, -x).sqrt(), x.topk(2).values,
                F.pad(x, (1, 2)), torch.erf(x) - 1 / (x * x + 1))  # fmt: skip


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


IMAGE = (torch.randn(1, 3, 32, 32),)
BATCH = {"x": {0: "batch"}}
MODULES = {  # module, example inputs, open sizes
    "ResNet": (ResNet, IMAGE, BATCH),
    "MobileNet": (MobileNet, IMAGE, BATCH),
    "SqueezeNet": (Fire, IMAGE, None),
    "detector": (Detector, IMAGE, BATCH),
    "attention": (Attention, (torch.randint(0, 50, (1, 6)), torch.ones(1, 6)),
                  {"ids": {0: "batch", 1: "seq"}, "mask": {0: "batch", 1: "seq"}}),
    "speech": (Speech, (torch.randn(1, 4, 32),), None),
    "recurrent": (Recurrent, (torch.randn(1, 5, 8),), BATCH),
    "U-Net": (UNet, (torch.randn(1, 1, 16, 16),), None),
    "perceptron": (mlp, (torch.randn(1, 6),), BATCH),
    "perceptron, float16": (lambda: mlp().half(), (torch.randn(1, 6).half(),), None),
    "perceptron, float64": (lambda: mlp().double(), (torch.randn(1, 6).double(),), None),
    "odds": (Odds, (torch.rand(2, 5),), None),
}  # fmt: skip


def export(name: str, path, dynamo: bool) -> None:
    """The ONNX file of a module, by torch's default exporter (``dynamo``) or by the one before."""
    make, args, axes = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    if dynamo:
        torch.onnx.export(module, args, str(path), dynamo=True, verbose=False)
    else:
        names = list(axes) if axes else None
        torch.onnx.export(module, args, str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes)
