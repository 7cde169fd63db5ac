"""Checks of arguments and of fields in files, each with one line that says what is wrong and what would be right.

``name`` is the field's; where it stands may come before it: ``"v100.toml: hosts[0]: count"``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted, unknown_name


def known_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises InputError for a key that is not known, with the nearest that is."""
    for key in table:
        if key not in known:
            raise unknown_name(f"{where}: key", key, known)


def needed(where: str, table: Mapping[str, Any], key: str, what: str) -> Any:
    """The value of a key, or InputError with ``what`` is to be given where it is missing."""
    if key not in table:
        raise InputError(f"{where}: '{key}' is missing; give {what}")
    return table[key]


def texts(where: str, table: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises InputError for a key whose value is there and is no text."""
    for key in keys:
        if not isinstance(table.get(key, ""), str):
            raise InputError(f"{where}: {key} is {quoted(table[key])}; give a text in quotes")


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the names that are known, or InputError with the nearest."""
    if not isinstance(value, str) or value not in known:
        raise unknown_name(name, value, known)
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """Names in a list, or in text with commas between, or InputError for anything else."""
    if not isinstance(value, str | list | tuple):
        raise InputError(f"{name} is {quoted(value, 80)}; give names with commas between them")
    listed = [str(one).strip() for one in (value.split(",") if isinstance(value, str) else value)]
    return tuple(one for one in listed if one)


def flag(name: str, value: Any) -> bool:
    """True or false, or InputError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {quoted(value, 80)}; give true or false")
    return bool(value)


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number of at least ``least`` and at most ``most``, or InputError for anything else."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise InputError(f"{name} is {quoted(value, 80)}; give a whole number, at least {least}{limit}")
    return int(value)


def count(name: str, value: Any, most: int) -> int:
    """A whole number from 1 to ``most``, or InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"{name} is {quoted(value, 80)}; give an integer from 1 to {most}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number, or InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{name} is {quoted(value, 80)}; give a number")
    try:
        given = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        given = math.inf
    if not math.isfinite(given):
        raise InputError(f"{name} is {quoted(value, 80)}; give a finite number")
    return given


def positive(name: str, value: Any) -> float:
    """A finite number above 0, or InputError for anything else."""
    given = number(name, value)
    if given <= 0:
        raise InputError(f"{name} is {quoted(value, 80)}; give a number above 0")
    return given


def not_negative(name: str, value: Any) -> float:
    """A finite number of at least 0, or InputError for anything else."""
    given = number(name, value)
    if given < 0:
        raise InputError(f"{name} is {quoted(value, 80)}; give a number, at least 0")
    return given


def rate(name: str, value: Any) -> float:
    """How much in a second: a number of at least 1e-9, so that no time that it gives overflows, or InputError."""
    given = positive(name, value)
    if given < 1e-9:
        raise InputError(f"{name} is {quoted(value, 80)}; give at least 1e-9")
    return given


def byte_count(name: str, value: Any, unit: int = 1, least: int = 0) -> int:
    """A number of ``unit`` bytes in bytes; InputError for less than ``least``, for 2**63 and for anything else."""
    given = number(name, value) * unit
    if given >= 2**63:
        raise InputError(f"{name} is {quoted(value, 80)}, 2**63 bytes or more; give less")
    if given < 0 or round(given) < least:
        raise InputError(f"{name} is {quoted(value, 80)}, less than {'a byte' if least == 1 else least}; give more")
    return round(given)


def share(name: str, value: Any) -> float:
    """A number from 0 to 1, or InputError for anything else."""
    given = number(name, value)
    if not 0 <= given <= 1:
        raise InputError(f"{name} is {quoted(value, 80)}; give a number from 0 to 1")
    return given


def plain(value: Any) -> Any:
    """A value in JSON's types: NumPy's numbers and arrays unpacked, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def check_integers(value: Any, shape: tuple[int, ...], limit: int, what: str, name: str = "decision") -> np.ndarray:
    """An int32 array of ``shape`` with entries 0 to limit-1, or an InputError that names the first bad entry."""
    given = _array(name, value)
    if given.shape != shape:
        raise InputError(f"{name} has shape {given.shape}, expected {shape}: one {what} an entry")
    if given.dtype.kind not in "iu":
        raise InputError(f"{name} has type {given.dtype}, expected integers: one {what} an entry")
    bad = (given < 0) | (given >= limit)
    if bad.any():
        where = tuple(int(index) for index in np.argwhere(bad)[0])
        entry = where[0] if len(where) == 1 else where
        raise InputError(f"{name}[{entry}] is {given[where]}, allowed: 0 to {limit - 1} ({what})")
    return np.ascontiguousarray(given, np.int32)


def check_numbers(name: str, value: Any, *shapes: tuple[int, ...]) -> np.ndarray:
    """A float64 array of one of the shapes, whatever numbers it holds, or InputError for anything else."""
    given = _array(name, value)
    if given.dtype.kind not in "iuf":
        raise InputError(f"{name} has type {given.dtype}, expected numbers")
    if given.shape not in shapes:
        raise InputError(f"{name} has shape {given.shape}, expected {' or '.join(map(str, shapes))}")
    return given.astype(np.float64)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name} must be an array; got rows of unequal length") from None
    except Exception as error:  # of another library's array, such as one on another device
        raise InputError(f"{name} must be an array; a {type(value).__name__} is none: {one_line(error)}") from error


def check_fields(
    owner: Any,
    wholes: Mapping[str, int] | None = None,
    above: Sequence[str] = (),
    at_least: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Checks fields of a dataclass: whole numbers with their least, numbers above 0, of at least 0, from 0 to 1; and
    all that are of type bool.

    Raises:
        InputError: for the first that is none.
    """
    for name, least in (wholes or {}).items():
        whole(name, getattr(owner, name), least)
    for check, which in ((positive, above), (not_negative, at_least), (share, shares)):
        for name in which:
            check(name, getattr(owner, name))
    for one in dataclasses.fields(owner):
        if one.type in ("bool", bool):
            flag(one.name, getattr(owner, one.name))
