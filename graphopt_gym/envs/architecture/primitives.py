"""What synthesis appends: the grammar's one-operand ops with their parameters, and classes of equal abstraction.

Features are relative to the input (a quarter, a half, as many, twice, four times; Jin et al., OOPSLA 2022), or those
that the target shape asks for; kernels 1, 3, 5 with stride 1 or the kernel's size; groups, dilations and windows from
small sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.envs.architecture.ops import OPS, Params, Shape, feature_axis, infer, make_params
from graphopt_gym.envs.architecture.properties import op_mixing
from graphopt_gym.errors import InputError

RATIOS = (Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2), Fraction(4))
KERNELS, DILATIONS = (1, 3, 5), (1, 2, 3)
GROUPS = (1, 2, 4, 16, 64)
NORM_GROUPS = (1, 2, 4, 8, 16, 32)
WINDOWS = (2, 3, 4, 8)
RATES = (0.1, 0.2, 0.5)
FACTORS = (0.5, 2.0)
EACH = 0  # groups: one for each channel
TO_TARGET = Fraction(0)  # features: those of the target shape
MOST_NUMBERS = 2**26  # in a tensor of one sample, and in a trainable tensor: larger ones are not drawn


class Primitive(NamedTuple):
    """An op whose parameters fit tensors of any size.

    Attributes:
        kind: the operator.
        settings: parameters by name, as they are.
        features: of the output, as a ratio of the input's; :data:`TO_TARGET` for those of the target; None where the
            operator has no such parameter.
        groups: of a grouped convolution; :data:`EACH`: one for each channel; None where it has none.
    """

    kind: str
    settings: tuple[tuple[str, Any], ...] = ()
    features: Fraction | None = None
    groups: int | None = None

    def on(self, shape: Shape, target: int | None = None) -> tuple[Params, Shape] | None:
        """Parameters on a tensor and the shape of what it gives; None where it does not fit.

        It does not fit, too, where it would be another primitive: as many groups as channels, a window that leaves
        positions out, a kernel of several on an image of one pixel.

        Args:
            target: features that :data:`TO_TARGET` stands for.
        """
        given = dict(self.settings)
        channels = shape[feature_axis(shape)]
        if self.features is not None:
            features = Fraction(target or 0) if self.features == TO_TARGET else self.features * channels
            if features < 1 or features.denominator != 1:
                return None
            given["features"] = int(features)
        if self.groups is not None:
            if self.groups != EACH and (1 < self.groups >= channels):
                return None
            given["groups"] = self.groups or channels
        window = given.get("kernel", 1)
        if window > 1:
            strided = given["stride"] > 1
            if min(shape[1:]) < 2 or (strided and any(n % window for n in shape[1:])):
                return None
        try:
            params, out = infer(self.kind, [shape], make_params(self.kind, given))
        except InputError:
            return None
        tensors = (out, *OPS[self.kind].trainable([shape], *params).values())
        return None if max(map(math.prod, tensors)) > MOST_NUMBERS else (params, out)


def _named(kind: str, **settings: Any) -> Primitive:
    return Primitive(kind, tuple(settings.items()))


@cache
def primitives(rank: int) -> tuple[Primitive, ...]:
    """All primitives for tensors of a rank: images (3), tokens (2), vectors (1) and others."""
    ratios = (*RATIOS, TO_TARGET)
    found = [Primitive("dense", (("bias", bias),), ratio) for bias in (True, False) for ratio in ratios]
    found += [_named(kind) for kind in ("relu", "gelu", "silu", "sigmoid", "batch_norm", "layer_norm")]
    found += [_named("softmax", axis=axis) for axis in range(rank)]
    found += [_named("dropout", rate=rate) for rate in RATES]
    found += [_named("smul", factor=factor) for factor in FACTORS]
    if rank != 3:
        return tuple(found)
    found += [_named("group_norm", groups=groups) for groups in NORM_GROUPS]
    for kernel in KERNELS:
        shapes = [(1, dilation) for dilation in (DILATIONS if kernel > 1 else (1,))]
        shapes += [(kernel, 1)] if kernel > 1 else []
        for stride, dilation in shapes:
            settings: tuple[tuple[str, Any], ...] = (("kernel", kernel), ("stride", stride), ("dilation", dilation))
            if stride > 1:
                settings += (("padding", 0),)
            found += [
                Primitive("conv", (*settings, ("bias", bias)), ratio, groups)
                for bias in (True, False)
                for ratio in ratios
                for groups in (*GROUPS, EACH)
            ]
    for kind in ("avg_pool", "max_pool"):
        found += [_named(kind, kernel=window, stride=window) for window in WINDOWS]
        found += [_named(kind, kernel=window, stride=1, padding=window // 2) for window in WINDOWS if window % 2]
    return tuple(found)


@dataclass(frozen=True)
class Class:
    """Primitives that are the same in the space of properties, on tensors of one shape.

    Attributes:
        mixing: of each, uint8 [rank + 1, rank + 1].
        segment: what paths count each as.
        shape: of what each gives.
        members: the primitives; the first stands for all in a search.
    """

    mixing: np.ndarray
    segment: str
    shape: Shape
    members: tuple[Primitive, ...]

    def draw(self, rng: np.random.Generator) -> Primitive:
        """A member, each evenly."""
        return self.members[int(rng.integers(len(self.members)))]


@lru_cache(maxsize=4096)
def classes(shape: Shape, target: int | None = None) -> tuple[Class, ...]:
    """The classes of all primitives that fit on a tensor.

    Args:
        target: features that the target shape asks for.
    """
    found: dict[Any, tuple[np.ndarray, list[Primitive]]] = {}
    for primitive in primitives(len(shape)):
        fits = primitive.on(shape, target)
        if fits is None:
            continue
        params, out = fits
        (mixing,) = op_mixing(primitive.kind, params, (shape,), out)
        key = mixing.tobytes(), OPS[primitive.kind].segment, out
        found.setdefault(key, (mixing, []))[1].append(primitive)
    return tuple(Class(mixing, key[1], key[2], tuple(members)) for key, (mixing, members) in found.items())


@lru_cache(maxsize=4096)
def classes_by_kind(shape: Shape, target: int | None = None) -> tuple[Class, ...]:
    """The classes, each divided by operator."""
    divided = []
    for one in classes(shape, target):
        for kind in dict.fromkeys(member.kind for member in one.members):
            members = tuple(member for member in one.members if member.kind == kind)
            divided.append(Class(one.mixing, one.segment, one.shape, members))
    return tuple(divided)


@lru_cache(maxsize=4096)
def singles(shape: Shape, target: int | None = None) -> tuple[Class, ...]:
    """Every primitive that fits as a class of its own: what a search without classes goes over."""
    return tuple(
        Class(one.mixing, one.segment, one.shape, (member,)) for one in classes(shape, target) for member in one.members
    )


def stacked(options: Sequence[Class]) -> np.ndarray:
    """Their mixing, uint8 [classes, rank + 1, rank + 1]."""
    return np.stack([one.mixing for one in options])
