"""Logarithms, exponentials and powers that are the same on every processor.

NumPy's differ in the last bit between processors with and without AVX-512, and what prices ops may not: stored
decisions are told by their op times, bit for bit. These are the C library's, which Python's ``math`` calls, one value
at a time (each different one once).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def exp(values: Any) -> np.ndarray:
    """float64, of the shape of ``values``."""
    return _each(math.exp, values)


def log(values: Any) -> np.ndarray:
    """float64, of the shape of ``values``, which are at least 0; -inf of 0."""
    return _each(lambda value: math.log(value) if value else -math.inf, values)


def power(base: Any, exponent: Any) -> np.ndarray:
    """float64: ``base ** exponent``, of which one is an array and the other a number; bases are at least 0.

    Infinite for 0 to a negative power, and where the power is too large.
    """

    def one(a: float, b: float) -> float:
        try:
            return math.pow(a, b)
        except (OverflowError, ValueError):
            return math.inf

    if np.ndim(base):
        return _each(lambda value: one(value, exponent), base)
    return _each(lambda value: one(base, value), exponent)


def _each(function: Callable[[float], float], values: Any) -> np.ndarray:
    given = np.asarray(values, np.float64)
    different, where = np.unique(given, return_inverse=True)
    found = np.array([function(value) for value in different.tolist()], np.float64)
    return found[where].reshape(given.shape)
