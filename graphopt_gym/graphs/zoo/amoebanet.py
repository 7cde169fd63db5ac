"""AmoebaNet-D (Real, Aggarwal, Huang, Le, AAAI 2019).

The cells, stem and auxiliary head are those of the authors' TensorFlow release (tensorflow/tpu, ``amoeba_net``),
whose normal cell also hands on its input and its second sum, unlike the paper's figure. Drop path is left out (its
rate starts at zero there).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Ten operations, two a combination: (state read, operation). State 0 is the previous cell's output, 1 that of the
# cell before it, 2 to 6 the combinations. Then the states that make up the cell's output.
NORMAL = "1:1x1 1:max3 1:none 0:1x7_7x1 0:1x1 0:1x7_7x1 2:max3 2:none 1:avg3 5:1x1"
NORMAL_RESULT = (0, 3, 4, 6)
REDUCTION = "0:max2 0:max3 2:none 1:3x3 2:1x7_7x1 2:max3 3:none 1:max2 2:avg3 3:1x1"
REDUCTION_RESULT = (4, 5, 6)
AUXILIARY_SCALING = 0.4


class Conv(nn.Module):
    """ReLU (unless ``raw``), convolution and batch norm: one call, one colocation group."""

    mean: Tensor
    variance: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (1, 1), stride: Any = 1, raw: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.raw = stride, raw
        self.pad = (kernel[0] // 2, kernel[1] // 2)
        scale = (2 / (outputs * kernel[0] * kernel[1])) ** 0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel) * scale)
        self.gamma, self.beta = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("variance", torch.ones(outputs))

    def norm(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.gamma, self.beta, self.training, 0.0003, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.raw else F.relu(x)
        return self.norm(F.conv2d(x, self.weight, None, self.stride, self.pad))


class FactorizedReduction(Conv):
    """Half the channels from the even pixels, half from the odd ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        even, odd = self.weight.chunk(2)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([F.conv2d(x, even, stride=2), F.conv2d(shifted, odd, stride=2)], 1))


class Pool(nn.Module):
    def __init__(self, kind: str, stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "max2":  # TensorFlow pads an odd size at its end
            return F.max_pool2d(x, 2, self.stride, ceil_mode=True)
        if self.kind == "max3":
            return F.max_pool2d(x, 3, self.stride, 1)
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)


def _operation(kind: str, inputs: int, width: int, stride: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()  # in these cells it never has a stride
    if kind == "1x1":
        return Conv(inputs, width, stride=stride)
    if kind in ("3x3", "1x7_7x1"):
        narrow = width // 4
        if kind == "3x3":
            middle = [Conv(narrow, narrow, (3, 3), stride)]
        else:
            middle = [Conv(narrow, narrow, (1, 7), (1, stride)), Conv(narrow, narrow, (7, 1), (stride, 1))]
        return nn.Sequential(Conv(inputs, narrow), *middle, Conv(narrow, width))
    pool = Pool(kind, stride)
    return pool if inputs == width else nn.Sequential(pool, Conv(inputs, width, raw=True))


class Cell(nn.Module):
    """One cell from the outputs of the two before it; ``inputs`` and ``before`` are their channels."""

    def __init__(self, inputs: int, before: int | None, width: int, reduction: bool, before_is_larger: bool) -> None:
        super().__init__()
        recipe = [item.split(":") for item in (REDUCTION if reduction else NORMAL).split()]
        self.reads = [int(state) for state, _ in recipe]
        self.result = REDUCTION_RESULT if reduction else NORMAL_RESULT
        self.enter = Conv(inputs, width)
        self.adapt: nn.Module = nn.Identity()
        if before_is_larger and before is not None:
            self.adapt = FactorizedReduction(before, width)
        elif before is not None and before != width:
            self.adapt = Conv(before, width)
        channels = [width, inputs if before is None else width] + [width] * 5
        self.operations = nn.ModuleList(
            _operation(kind, channels[state], width, 2 if reduction and state < 2 else 1)
            for state, (_, kind) in zip(self.reads, recipe, strict=True)
        )
        self.outputs = width * len(self.result)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        states = [self.enter(x), self.adapt(before)]
        for left in range(0, len(self.reads), 2):
            both = [self.operations[i](states[self.reads[i]]) for i in (left, left + 1)]
            states.append(both[0] + both[1])
        return torch.cat([states[i] for i in self.result], 1)


class Auxiliary(nn.Module):
    """The auxiliary classifier; ``size`` is the side of the images it gets."""

    def __init__(self, inputs: int, size: int, classes: int) -> None:
        super().__init__()
        narrow, wide = int(128 * AUXILIARY_SCALING), int(768 * AUXILIARY_SCALING)
        self.project = Conv(inputs, narrow, raw=True)
        side = (size - 5) // 3 + 1
        self.whole = Conv(narrow, wide, (side, side))
        self.whole.pad = (0, 0)
        self.fc = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(x), 5, 3)
        return self.fc(F.relu(torch.flatten(self.whole(self.project(x)), 1)))


class AmoebaNet(nn.Module):
    """Loss of a batch of images [batch, 3, size, size].

    ``cells`` normal cells in three stacks, of ``width``, twice and four times ``width`` channels an operation.
    """

    def __init__(self, cells: int, width: int, stem: int, size: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.stem = Conv(3, stem, (3, 3), 2, raw=True)
        self.stem.pad = (0, 0)
        stack = cells // 3
        plan = [(True, width // 4), (True, width // 2)]  # (reduction, channels) of each cell
        for index in range(3):
            plan += [(True, width << index)] * (index > 0) + [(False, width << index)] * stack
        self.cells = nn.ModuleList()
        self.auxiliary_after = 2 * stack + 2  # the last cell of the second stack
        before, inputs, shrunk = None, stem, False
        size = (size - 3) // 2 + 1
        for index, (reduction, channels) in enumerate(plan):
            cell = Cell(inputs, before, channels, reduction, shrunk)
            before, inputs, shrunk = inputs, cell.outputs, reduction
            self.cells.append(cell)
            size = (size + 1) // 2 if reduction else size
            if index == self.auxiliary_after:
                self.auxiliary = Auxiliary(inputs, size, classes)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = before = self.stem(images)
        loss = None
        for index, cell in enumerate(self.cells):
            x, before = cell(x, before), x
            if index == self.auxiliary_after:
                loss = 0.4 * F.cross_entropy(self.auxiliary(x), labels, label_smoothing=0.1)
        assert loss is not None
        x = self.dropout(F.relu(x).mean((2, 3)))
        return F.cross_entropy(self.fc(x), labels, label_smoothing=0.1) + loss


def build(
    *,
    cells: int = 18,
    width: int = 256,
    stem: int = 32,
    classes: int = 1000,
    size: int = 224,
    batch: int = 32,
    dropout: float = 0.5,
    optimizer: str | None = "momentum",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = AmoebaNet(cells, width, stem, size, classes, dropout)
        inputs = {"images": torch.randn(batch, 3, size, size), "labels": torch.randint(0, classes, (batch,))}
    stages = [
        {"name": "stem", "part": "", "modules": ["stem"]},
        *({"name": f"cell {i}", "part": "", "modules": [f"cells.{i}"]} for i in range(len(module.cells))),
        {"name": "head", "part": "", "modules": ["auxiliary", "dropout", "fc", "loss"]},
    ]
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
