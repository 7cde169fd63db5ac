"""What the checks share: how a rule fails, exact comparison, and wrong inputs of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError


class ContractError(AssertionError):
    """A rule of the contract that does not hold: ``"<rule>: <what was found>; <how to mend it>"``."""


def require(holds: Any, found: str, fix: str) -> None:
    if not holds:
        raise ContractError(f"{found}; {fix}")


def run_rules(rules: Sequence[Callable[[Any], None]], case: Any, where: str = "") -> None:
    """Each rule in turn; what fails is named after its rule, whatever it raises."""
    for rule in rules:
        name = where + rule.__name__.replace("_", " ")
        try:
            rule(case)
        except ContractError as error:
            raise ContractError(f"{name}: {error}") from error.__cause__
        except Exception as error:
            raise ContractError(f"{name}: {said(error)}; it must not be raised") from error


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def refuses(call: Callable[[], Any], what: str, fix: str) -> None:
    """``call`` must raise an InputError, which is one line of itself."""
    try:
        call()
    except InputError as error:
        require(str(error), f"{what} is refused with an empty line", "say what is wrong, and what would be right")
    except Exception as error:
        raise ContractError(f"{what} raises {said(error)}; {fix}") from error
    else:
        raise ContractError(f"{what} is taken; {fix}")


def form(value: Any) -> str:
    """What something is, for people."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}"


def difference(ours: Any, theirs: Any, where: str = "") -> str:
    """Where two things differ first; empty where they are equal to the last bit, with the same types, through dicts,
    sequences and object arrays. NaN equals NaN."""
    if type(ours) is not type(theirs):
        return f"{where} is {form(ours)} and {form(theirs)}"
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{where} has {sorted(map(str, ours))} and {sorted(map(str, theirs))}"
        parts = [(f"{where}[{key!r}]", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return f"{where} has {len(ours)} and {len(theirs)} entries"
        parts = [(f"{where}[{index}]", mine, other) for index, (mine, other) in enumerate(zip(ours, theirs))]
    elif isinstance(ours, np.ndarray):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return f"{where} is {form(ours)} and {form(theirs)}"
        if ours.dtype == object:
            return difference(ours.ravel().tolist(), theirs.ravel().tolist(), where)
        return "" if ours.tobytes() == theirs.tobytes() else f"{where} has other numbers"
    else:
        return "" if ours == theirs or (ours != ours and theirs != theirs) else f"{where} is {ours!r} and {theirs!r}"
    return next(filter(None, (difference(mine, other, at) for at, mine, other in parts)), "")


def wrong_forms(right: Any) -> list[tuple[str, Any]]:
    """(what it is, a wrong input) of every kind, where ``right`` is what would be taken.

    For an array (of integers, or of numbers) the wrong ones are near misses too: other shapes, types and entries.
    """
    in_itself: list[Any] = []
    in_itself.append(in_itself)
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    wrong: list[tuple[str, Any]] = [
        ("None", None),
        ("an object", object()),
        ("a dict", {}),
        ("a set", {0}),
        ("NaN", math.nan),
        ("bytes", b"0"),
        ("a text", "no such thing"),
        ("an empty list", []),
        ("a list in itself", in_itself),
        ("a list 200 deep", deep),
        ("a list of lists of unequal length", [[0], [0, 0]]),
        ("an empty array", np.empty(0, np.int32)),
    ]
    if not isinstance(right, np.ndarray):
        return wrong
    flat = right.ravel()

    def with_first(entry: Any) -> Any:
        out = right.astype(object)
        out[(0,) * out.ndim] = entry
        return out.tolist()

    wrong += [
        ("an entry too few", flat[:-1]),
        ("an entry too many", np.append(flat, flat[:1])),
        ("an axis too many", right[None]),
        ("NaN everywhere", np.full(right.shape, math.nan)),
        ("infinity everywhere", np.full(right.shape, math.inf)),
        ("complex numbers", right.astype(np.complex128)),
        ("bools", right.astype(np.bool_)),
        ("objects", right.astype(object)),
        ("texts", right.astype(str)),
        ("times", right.astype("timedelta64[s]")),
        ("10**30 as an entry", with_first(10**30)),
        ("10**5000 as an entry", with_first(10**5000)),
        ("None as an entry", with_first(None)),
        ("NaN as an entry", with_first(math.nan)),
        ("-infinity as an entry", with_first(-math.inf)),
        ("a text as an entry", with_first("0")),
        ("a list as an entry", with_first([0])),
    ]
    if right.dtype.kind in "iu":
        wrong += [
            ("whole numbers of float64", right.astype(np.float64)),
            ("a fraction as an entry", with_first(0.5)),
            ("2**31 as an entry", with_first(2**31)),
            ("2**32 as an entry", with_first(2**32)),
            ("-2**63 as an entry", with_first(-(2**63))),
            ("2**64 - 1 as an entry", with_first(2**64 - 1)),
            ("numbers of uint64 beyond int64", np.full(right.shape, 2**64 - 1, np.uint64)),
        ]
    return wrong
