"""Quantities as people read them: three significant digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def _digits(value: float) -> str:
    """Three significant digits, without an exponent below a million."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def format_seconds(value_s: float) -> str:
    """``0.1234`` -> ``"123 ms"``; ``"-"`` for what is not finite."""
    if not math.isfinite(value_s):
        return "-"
    scale, unit = time_unit(value_s)
    return f"{_digits(value_s / scale)} {unit}"


def time_unit(value_s: float) -> tuple[float, str]:
    """(seconds in one unit, its name) of the largest unit that a duration fills."""
    return next(((scale, unit) for scale, unit in _TIME if abs(value_s) >= scale), _TIME[0 if value_s == 0 else -1])


def format_bytes(value_bytes: float) -> str:
    """``2**30`` -> ``"1.00 GiB"``."""
    power = 0
    while abs(value_bytes) >= 1024 and power < len(_BINARY) - 1:
        value_bytes, power = value_bytes / 1024, power + 1
    return f"{int(value_bytes)} B" if power == 0 else f"{_digits(value_bytes)} {_BINARY[power]}"


def format_bytes_list(values_bytes: Sequence[float]) -> str:
    """``[2**30, 2**29]`` -> ``"1.00 / 0.50 GiB"``: one unit for all, that of the largest."""
    largest, power = max(map(abs, values_bytes), default=0), 0
    while largest >= 1024 and power < len(_BINARY) - 1:
        largest, power = largest / 1024, power + 1
    digits = 0 if power == 0 else 2
    return " / ".join(f"{value / 1024**power:.{digits}f}" for value in values_bytes) + f" {_BINARY[power]}"


def format_count(value: float, unit: str = "") -> str:
    """``1.5e12, "FLOP"`` -> ``"1.50 TFLOP"``; whole numbers below 1000 stay whole."""
    power = 0
    while abs(value) >= 1000 and power < len(_DECIMAL) - 1:
        value, power = value / 1000, power + 1
    number = str(int(value)) if power == 0 and value == int(value) else _digits(value)
    return f"{number} {_DECIMAL[power]}{unit}".rstrip()


def format_cost(cost: float | None, unit: str) -> str:
    """A cost in its unit, ``"-"`` for none; seconds and bytes (also ``"s/sample"``) in the largest that they fill."""
    if cost is None or not math.isfinite(cost):
        return "-"
    base, slash, per = unit.partition("/")
    if base in ("s", "B", "bytes"):
        return (format_seconds if base == "s" else format_bytes)(cost) + slash + per
    return f"{cost:.6g} {unit}".rstrip()
