"""Checks of the fields of catalog files, each with one line that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, unknown_name


def known_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises InputError for a key that is not known, with the nearest that is."""
    for key in table:
        if key not in known:
            raise unknown_name(f"{where}: key", key, known)


def number(where: str, name: str, value: Any) -> float:
    """The value of a field, or InputError where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{where}: {name} is {value!r}; give a number")
    if not math.isfinite(value):
        raise InputError(f"{where}: {name} is {value}; give a finite number")
    return float(value)


def positive(where: str, name: str, value: Any) -> float:
    """The value of a field, or InputError where it is not a finite number above 0."""
    given = number(where, name, value)
    if given <= 0:
        raise InputError(f"{where}: {name} is {value}; it must be above 0")
    return given


def not_negative(where: str, name: str, value: Any) -> float:
    """The value of a field, or InputError where it is not a finite number of at least 0."""
    given = number(where, name, value)
    if given < 0:
        raise InputError(f"{where}: {name} is {value}; it must not be negative")
    return given
