"""Architectures that a search starts from: published networks at their true sizes, and small twins for small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from graphopt_gym.catalog import Catalog
from graphopt_gym.envs.architecture import nasbench
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder, parse_architecture
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import read_text


def _conv_norm(
    b: ArchitectureBuilder, x: int, features: int, kernel: int, stride: int = 1, act: str = "relu", **params: Any
) -> int:
    x = b.op("conv", x, features=features, kernel=kernel, stride=stride, bias=False, **params)
    x = b.op("batch_norm", x)
    return b.op(act, x) if act else x


def _head(b: ArchitectureBuilder, x: int, classes: int) -> Architecture:
    b.block = "head"
    x = b.op("mean", x, axes=(1, 2))
    return b.finish(b.op("dense", x, features=classes))


def resnet(
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    bottleneck: bool = False,
    stem: str = "imagenet",
    image: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    name: str = "resnet",
) -> Architecture:
    """ResNet (He, Zhang, Ren, Sun, CVPR 2016, table 1); the stride sits on the (first) 3x3, as torchvision has it.

    Args:
        stem: ``imagenet``: 7x7 at stride 2 and max pooling; ``cifar``: 3x3 at stride 1 and none.
    """
    if stem not in ("imagenet", "cifar"):
        raise unknown_name("stem", stem, ("imagenet", "cifar"))
    b = ArchitectureBuilder(name)
    x = b.input("image", image)
    b.block = "stem"
    if stem == "imagenet":
        x = b.op("max_pool", _conv_norm(b, x, width, 7, 2), kernel=3, stride=2, padding=1)
    else:
        x = _conv_norm(b, x, width, 3)
    for stage, count in enumerate(blocks):
        inner = width << stage
        outer = 4 * inner if bottleneck else inner
        for block in range(count):
            b.block = f"stage{stage}.block{block}"
            stride = 2 if stage and not block else 1
            if bottleneck:
                y = _conv_norm(b, _conv_norm(b, x, inner, 1), inner, 3, stride)
                y = _conv_norm(b, y, outer, 1, act="")
            else:
                y = _conv_norm(b, _conv_norm(b, x, inner, 3, stride), inner, 3, act="")
            if stride != 1 or b.shape(x)[0] != outer:
                x = _conv_norm(b, x, outer, 1, stride, act="")
            x = b.op("relu", b.op("add", y, x))
    return _head(b, x, classes)


def vit(
    layers: int = 12,
    width: int = 384,
    heads: int = 6,
    patch: int = 16,
    image: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    name: str = "vit_s16",
) -> Architecture:
    """Vision Transformer (Dosovitskiy et al., ICLR 2021), with class token and learned positions.

    Defaults are ViT-S/16 (Touvron et al.: DeiT, ICML 2021, table 1: DeiT-S).
    """
    if any(size % patch for size in image[1:]) or width % heads:
        raise InputError(f"patch {patch} must divide the image {tuple(image)}, and {heads} heads the width {width}")
    b = ArchitectureBuilder(name)
    x = b.input("image", image)
    b.block = "stem"
    x = b.op("conv", x, features=width, kernel=patch, stride=patch, padding=0)
    x = b.op("transpose", b.op("reshape", x, shape=(width, -1)), perm=(1, 0))
    x = b.op("concat", b.op("param", shape=(1, width), init="zeros"), x, axis=0)
    tokens = b.shape(x)[0]
    x = b.op("add", x, b.op("param", shape=(tokens, width)))
    for layer in range(layers):
        b.block = f"layer{layer}.attention"
        y = b.op("layer_norm", x)
        parts = []
        for perm in ((1, 0, 2), (1, 2, 0), (1, 0, 2)):  # query, key (transposed), value
            part = b.op("reshape", b.op("dense", y, features=width), shape=(tokens, heads, width // heads))
            parts.append(b.op("transpose", part, perm=perm))
        query, key, value = parts
        scores = b.op("matmul", b.op("smul", query, factor=(width // heads) ** -0.5), key)
        y = b.op("matmul", b.op("softmax", scores, axis=-1), value)
        y = b.op("reshape", b.op("transpose", y, perm=(1, 0, 2)), shape=(tokens, width))
        x = b.op("add", x, b.op("dense", y, features=width))
        b.block = f"layer{layer}.mlp"
        y = b.op("gelu", b.op("dense", b.op("layer_norm", x), features=4 * width))
        x = b.op("add", x, b.op("dense", y, features=width))
    b.block = "head"
    x = b.op("reshape", b.op("slice", b.op("layer_norm", x), axis=0, start=0, stop=1), shape=(width,))
    return b.finish(b.op("dense", x, features=classes))


def _rounded(channels: float) -> int:
    """To a multiple of 8, never down by more than a tenth (Sandler et al., MobileNetV2)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# Tan and Le, table 1: expansion, kernel, stride, channels, blocks
_MBCONV = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet(
    width: float = 1.0,
    depth: float = 1.0,
    stages: Sequence[Sequence[int]] = _MBCONV,
    stem: int = 32,
    stem_stride: int = 2,
    last: int = 1280,
    dropout: float = 0.2,
    image: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    name: str = "efficientnet_b0",
) -> Architecture:
    """EfficientNet (Tan, Le, ICML 2019, table 1): mobile inverted bottlenecks with squeeze and excitation.

    Args:
        stages: rows of expansion, kernel, stride, channels, blocks.
    """
    b = ArchitectureBuilder(name)
    x = b.input("image", image)
    b.block = "stem"
    x = _conv_norm(b, x, _rounded(stem * width), 3, stem_stride, "silu")
    for stage, (expansion, kernel, first_stride, channels, count) in enumerate(stages):
        for block in range(math.ceil(count * depth)):
            b.block = f"stage{stage}.block{block}"
            inputs, outputs = b.shape(x)[0], _rounded(channels * width)
            inner, stride = inputs * expansion, first_stride if block == 0 else 1
            y = _conv_norm(b, x, inner, 1, act="silu") if expansion > 1 else x
            y = _conv_norm(b, y, inner, kernel, stride, "silu", groups=inner)
            gate = b.op("conv", b.op("mean", y, axes=(1, 2), keep=True), features=max(1, inputs // 4), kernel=1)
            gate = b.op("conv", b.op("silu", gate), features=inner, kernel=1)
            y = b.op("mul", y, b.op("sigmoid", gate))
            y = _conv_norm(b, y, outputs, 1, act="")
            x = b.op("add", x, y) if stride == 1 and inputs == outputs else y
    b.block = "last"
    x = _conv_norm(b, x, _rounded(last * width), 1, act="silu")
    b.block = "head"
    x = b.op("mean", x, axes=(1, 2))
    if dropout:
        x = b.op("dropout", x, rate=dropout)
    return b.finish(b.op("dense", x, features=classes))


def cnn(
    width: int = 32,
    hidden: int = 256,
    image: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    name: str = "cnn_2layer",
) -> Architecture:
    """The two-layer CNN of alpha-NAS's release (google-research, abstract_nas/zoo/cnn.py, CifarNet): a projection to
    ``width`` channels, twice a 3x3 convolution to twice the channels, ReLU and average pooling, and two dense layers.
    """
    b = ArchitectureBuilder(name)
    x = b.input("image", image)
    b.block = "stem"
    x = b.op("conv", x, features=width, kernel=1)
    for layer in range(2):
        b.block = f"layer{layer}"
        x = b.op("relu", b.op("conv", x, features=2 * b.shape(x)[0], kernel=3))
        x = b.op("avg_pool", x, kernel=2)
    b.block = "head"
    x = b.op("relu", b.op("dense", b.op("reshape", x, shape=(-1,)), features=hidden))
    return b.finish(b.op("dense", x, features=classes))


@dataclass(frozen=True)
class Seed:
    """A seed by name: what builds it, with which sizes, and where these come from."""

    build: Callable[..., Architecture]
    source: str
    sizes: Mapping[str, Any] = field(default_factory=dict)


_SMALL_STAGES = ((1, 3, 1, 8, 1), (4, 3, 2, 16, 2), (4, 5, 1, 24, 1))
_TWIN = "a small twin, for images of {0} x {0}"
_RESNET = {"blocks": (1, 1, 1), "width": 16, "stem": "cifar", "classes": 10}
_EFFICIENT = {"stages": _SMALL_STAGES, "stem": 8, "stem_stride": 1, "last": 64, "dropout": 0.0, "classes": 10}
SEEDS: dict[str, Seed] = {
    "resnet34": Seed(resnet, "He et al., CVPR 2016, table 1"),
    "resnet34_cifar": Seed(
        resnet,
        "the same for CIFAR-10: 3x3 stem, no max pooling; 21.3 M parameters in alpha-NAS",
        {"stem": "cifar", "image": (3, 32, 32), "classes": 10},
    ),
    "resnet50": Seed(resnet, "He et al., CVPR 2016, table 1", {"bottleneck": True}),
    "vit_s16": Seed(vit, "Touvron et al., ICML 2021, table 1 (DeiT-S)"),
    "efficientnet_b0": Seed(efficientnet, "Tan, Le, ICML 2019, table 1"),
    nasbench.NAME: Seed(
        nasbench.seed,
        "Dong, Yang, ICLR 2020: the cell that they call ResNet; one of the 15,625 whose accuracy is known",
    ),
    "cnn_2layer": Seed(cnn, "google-research, abstract_nas/zoo/cnn.py"),
    **{
        f"{family}_{size}": Seed(build, _TWIN.format(size), {**sizes, "image": (1, size, size)})
        for size in (8, 28)
        for family, build, sizes in (
            ("resnet", resnet, _RESNET | {"blocks": (1, 1, 1) if size == 8 else (2, 2, 2)}),
            ("vit", vit, {"layers": 3, "width": 48, "heads": 3, "patch": 2 if size == 8 else 4, "classes": 10}),
            ("efficientnet", efficientnet, _EFFICIENT),
            ("cnn", cnn, {"width": 4 if size == 8 else 8, "hidden": 32 if size == 8 else 64, "classes": 10}),
        )
    },
}


def load_seed(name: str, **sizes: Any) -> Architecture:
    """A seed by name; ``sizes`` replace the builder's arguments, such as ``image`` or ``classes``.

    Raises:
        InputError: no such seed or size, or sizes that do not fit.
    """
    if name not in SEEDS:
        raise unknown_name("seed", name, SEEDS)
    seed = SEEDS[name]
    try:
        return seed.build(**{"name": name, **seed.sizes, **sizes})
    except TypeError as error:
        raise InputError(f"seed {name!r} has no such size: {error}") from None


def _read_text(path: Path) -> Architecture:
    return parse_architecture(read_text(path, "architecture file"), str(path))


def _row(name: str | None, architecture: Architecture) -> tuple[Any, ...]:
    seed = SEEDS.get(name or "")
    image = " x ".join(map(str, architecture.input_shapes[0])) if architecture.inputs else ""
    return (image, len(architecture), len(architecture.blocks), architecture.parameters, architecture.flops,
            seed and seed.source)  # fmt: skip


CATALOG = Catalog(
    "architectures",
    "architecture",
    Architecture,
    {".txt": _read_text, "": _read_text},
    lambda: {name: partial(load_seed, name) for name in SEEDS},
    {
        "published": tuple(name for name in SEEDS if not name.endswith(("_8", "_28"))),
        "small": tuple(name for name in SEEDS if name.endswith(("_8", "_28"))),
    },
    columns=("image", "ops", "blocks", "parameters", "work_flops", "source"),
    row=_row,
)
