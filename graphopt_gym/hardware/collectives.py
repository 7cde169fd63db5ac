"""Collective communication: seconds over the links that it takes."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from graphopt_gym.fields import choice

Value = TypeVar("Value", float, np.ndarray)

COLLECTIVE_KINDS = ("none", "all_reduce", "all_gather", "reduce_scatter", "all_to_all")
ALGORITHMS = ("torus", "ring", "tree")


def ring_all_reduce_s(
    devices: Value, size_bytes: Value, bytes_per_s: Value, latency_s: float, start_s: float = 0.0
) -> Value:
    """Seconds of a ring all-reduce: each device sends 2 (n - 1) pieces of ``size_bytes / n`` to the next.

    Args:
        devices: n, at least 1.
        size_bytes: of the tensor on each device.
        bytes_per_s: what a device sends at; of several links side by side, their sum.
        latency_s: of one step.
        start_s: once.
    """
    steps = 2 * (devices - 1)
    return start_s + steps * (latency_s + size_bytes / devices / bytes_per_s)


def torus_sides(devices: int) -> tuple[int, int]:
    """The sides of the torus that so many devices form: the two factors that are nearest to each other."""
    side = math.isqrt(devices)
    while devices % side:
        side -= 1
    return side, devices // side


def collective_s(
    kind: str, algorithm: str, devices: int, size_bytes: float, bytes_per_s: float, latency_s: float
) -> float:
    """Seconds of a collective among n devices, each of which sends over one link at a time.

    - ``ring``: n - 1 steps around (all-reduce: twice), each of a piece of ``size_bytes / n``; of an all-to-all, pieces
      are handed on until they are where they belong (Thakur et al., IJHPCA 19(1), 2005, §4).
    - ``torus``: rings along the shorter side, then, of what that left to each device, along the longer one; so the
      bytes are those of a ring, in fewer steps (as TPU pods do it: Ying et al., arXiv:1811.06992, §3.2).
    - ``tree``: recursive halving and doubling (Thakur et al., §4) for all-gather and reduce-scatter, two binary trees,
      pipelined (Sanders et al., Parallel Computing 35(12), 2009), for all-reduce, Bruck's algorithm for all-to-all.

    Args:
        kind: one of :data:`COLLECTIVE_KINDS`.
        algorithm: one of :data:`ALGORITHMS`.
        devices: n, at least 1; where it is 1 nothing is sent.
        size_bytes: what each device reduces, holds at the beginning (reduce-scatter) or in the end (all-gather), or has
            to give away (all-to-all).
        bytes_per_s: of a link.
        latency_s: of a step.

    Raises:
        InputError: another kind or algorithm.
    """
    choice("collective", kind, COLLECTIVE_KINDS)
    choice("algorithm", algorithm, ALGORITHMS)
    if devices <= 1 or kind == "none":
        return 0.0
    if kind == "all_reduce" and algorithm != "tree":
        return 2 * collective_s("reduce_scatter", algorithm, devices, size_bytes, bytes_per_s, latency_s)
    if algorithm == "tree":
        steps = (devices - 1).bit_length()
        sent = {"all_reduce": 2.0, "all_to_all": steps / 2}.get(kind, (devices - 1) / devices)
        return steps * latency_s * (2 if kind == "all_reduce" else 1) + sent * size_bytes / bytes_per_s
    sides = torus_sides(devices) if algorithm == "torus" else (devices,)
    total, left = 0.0, size_bytes
    for side in sides:
        if kind == "all_to_all":  # a piece goes side / 2 steps on average
            total += (side - 1) * (latency_s + size_bytes / 2 / bytes_per_s)
        else:
            total += (side - 1) * (latency_s + left / side / bytes_per_s)
            left /= side
    return total
