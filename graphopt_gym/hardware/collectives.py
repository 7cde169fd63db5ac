"""Collective communication over a link."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Value = TypeVar("Value", float, np.ndarray)


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
