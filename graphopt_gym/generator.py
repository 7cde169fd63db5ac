"""Endless things: graphs or clusters that are drawn anew whenever one is asked for.

A :class:`Generator` numbers its things: the same generator makes the same thing of the same number, its *seed*. So a
drawn thing has a name that anyone can load it by, ``random:num_ops=64-300:seed=7``, and a solution of one is checked as
any other. Without ``seed`` the text stands for all of them, with ``seed=0-99`` for a hundred; environments draw from
these at each reset, by their own generator.

The text is ``WORD:KEY=VALUE:KEY=VALUE``; a range is ``64-300``, several names are ``chain+branches``. What is left out
has its default. See ``docs/generators.md``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.fields import choice, flag, number, whole

T = TypeVar("T")
MOST_SEED = 2**32 - 1
_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")


class Key(NamedTuple):
    """How the value of a key is read, from text or as Python has it, and written."""

    read: Callable[[str, Any], Any]
    write: Callable[[Any], str] = str


def whole_range(least: int, most: int) -> Key:
    """Whole numbers from one to another, both among them: ``64-300``, ``64``, ``(64, 300)`` or ``64``."""

    def read(name: str, value: Any) -> tuple[int, int]:
        low, high = (whole(name, one, least, most) for one in _two(name, value, int))
        return _in_order(name, low, high)

    return Key(read, _written)


def number_range(least: float, most: float) -> Key:
    """Numbers from one to another."""

    def read(name: str, value: Any) -> tuple[float, float]:
        low, high = (number(name, one) for one in _two(name, value, float))
        if not (least <= low and high <= most):
            raise InputError(f"{name} is {quoted(value, 80)}; give numbers from {least:g} to {most:g}")
        return _in_order(name, low, high)

    return Key(read, _written)


def some_of(known: Callable[[], Iterable[str]]) -> Key:
    """Several of the known names: ``a+b``, or a list."""

    def read(name: str, value: Any) -> tuple[str, ...]:
        listed = value.split("+") if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not listed:
            raise InputError(f"{name} is {quoted(value, 80)}; give names with + between them")
        return tuple(choice(name, one, tuple(known())) for one in listed)

    return Key(read, "+".join)


def _yes(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return choice(name, value, ("yes", "no")) == "yes"
    return flag(name, value)


YES_OR_NO = Key(_yes, lambda value: "yes" if value else "no")


def _two(name: str, value: Any, kind: type) -> tuple[Any, Any]:
    """The ends of a range as it is given."""
    if isinstance(value, str):
        found = _RANGE.fullmatch(value)
        try:
            if found:
                return kind(found[1]), kind(found[2] or found[1])
        except ValueError:  # a fraction where a whole number is needed
            pass
        raise InputError(f"{name} is {quoted(value, 80)}; give a number or a range, such as 2-8")
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    return value, value


def _in_order(name: str, low: Any, high: Any) -> Any:
    if low > high:
        raise InputError(f"{name} is from {low} to {high}; give the lower end first")
    return low, high


def _written(ends: tuple[Any, Any]) -> str:
    low, high = (f"{end:g}" if float(f"{end:g}") == end else repr(end) for end in ends)
    low, high = (text if isinstance(end, float) else str(end) for text, end in zip((low, high), ends, strict=True))
    return low if low == high else f"{low}-{high}"


SEED = whole_range(0, MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class Generator(ABC, Generic[T]):
    """Things of one kind, each of a number. A subclass is a frozen dataclass that says its ``word`` and its ``keys``.

    Args:
        seed: the numbers that things are drawn by, as a range; None: all up to :data:`MOST_SEED`.

    Raises:
        InputError: a value that makes no sense.
    """

    word: ClassVar[str]
    keys: ClassVar[Mapping[str, Key]]
    first: ClassVar[str] = ""  # the key whose value follows the word by itself

    seed: Any = None

    def __post_init__(self) -> None:
        for key, (read, _) in self.known().items():
            value = getattr(self, key)
            if not (key == "seed" and value is None):
                object.__setattr__(self, key, read(f"{self.word}: {key}", value))

    @classmethod
    def known(cls) -> dict[str, Key]:
        """All keys."""
        return {**cls.keys, "seed": SEED}

    @classmethod
    def parse(cls, text: str) -> Generator[T]:
        """A generator from its text.

        Raises:
            InputError: an unknown key, with the nearest that is known; a value that makes no sense.
        """
        parts = text.split(":")[1:]
        given: dict[str, Any] = {}
        if cls.first and parts and "=" not in parts[0]:
            given[cls.first] = parts.pop(0)
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"{cls.word}: {quoted(part, 80)} has no value; give KEY=VALUE, such as seed=0")
            if key not in cls.known():
                raise unknown_name(f"{cls.word}: key", key, cls.known())
            if key in given:
                raise InputError(f"{cls.word}: {key} is there twice; give it once")
            given[key] = value
        missing = [one.name for one in fields(cls) if one.name == cls.first and cls.first not in given]
        if missing:
            raise InputError(f"{cls.word}: {missing[0]} is missing; give it after the word, {cls.word}:NAME")
        return cls(**given)

    @property
    def text(self) -> str:
        """What it is called: the word, and each key that is not as by default."""
        return ":".join([*self._start(), *([] if self.seed is None else [f"seed={_written(self.seed)}"])])

    def _start(self) -> list[str]:
        """The text in parts, without the seed."""
        parts = [self.word]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "seed":
                continue
            written = self.known()[one.name].write(value)
            if one.name == self.first:
                parts.insert(1, written)
            elif value != self.known()[one.name].read(one.name, one.default):
                parts.append(f"{one.name}={written}")
        return parts

    def name_of(self, seed: int) -> str:
        """The name of the thing of a number."""
        return ":".join([*self._start(), f"seed={seed}"])

    @property
    def only(self) -> int | None:
        """The one number there is; None where there are several."""
        return self.seed[0] if self.seed is not None and self.seed[0] == self.seed[1] else None

    def has(self, other: Any) -> bool:
        """Whether another generator's things are all among this one's."""
        if type(other) is not type(self) or replace(other, seed=None) != replace(self, seed=None):
            return False
        (low, high), theirs = self._ends, other._ends
        return bool(low <= theirs[0] and theirs[1] <= high)

    @property
    def _ends(self) -> tuple[int, int]:
        return (0, MOST_SEED) if self.seed is None else self.seed

    @property
    def low(self) -> int:
        """The first number."""
        return self._ends[0]

    def draw_seed(self, rng: np.random.Generator) -> int:
        """A number, each as likely."""
        low, high = self._ends
        return int(rng.integers(low, high + 1))

    def draw(self, rng: np.random.Generator) -> T:
        """A thing, drawn by a generator of random numbers."""
        return self.make(self.draw_seed(rng))

    def make(self, seed: int) -> T:
        """The thing of a number; its name is :meth:`name_of` that."""
        seed = whole("seed", seed, 0, MOST_SEED)
        return self._make(np.random.default_rng(seed), self.name_of(seed))

    @abstractmethod
    def _make(self, rng: np.random.Generator, name: str) -> T:
        """A thing by that name, from nothing but ``rng``."""

    @property
    @abstractmethod
    def most(self) -> Mapping[str, int]:
        """What no thing has more of: ``devices`` of clusters; of graphs ``ops`` and ``edges``, colocation ``groups``
        and ``group_edges`` between them."""


class Called(Generic[T]):
    """A function of a generator of random numbers that returns a thing, in the form of a :class:`Generator`.

    What it returns has no number, so solutions can be checked only where the thing is given again.
    """

    most: Mapping[str, int] = {}

    def __init__(self, function: Callable[[np.random.Generator], T]) -> None:
        self.function = function
        self.text = getattr(function, "__name__", type(function).__name__)

    def draw(self, rng: np.random.Generator) -> T:
        """What the function returns."""
        return self.function(rng)

    def has(self, other: Any) -> bool:
        """Whether it is the same function."""
        return isinstance(other, Called) and other.function is self.function


class Curriculum:
    """Generators one after the other, from easy to hard: an environment draws from the stage that it is at.

    It begins at stage 0; ``env.set_stage(k)`` goes to another, and ``env.reset(options={"stage": k})`` does for one
    episode. Observations are padded to what the largest stage needs.

    Args:
        stages: generators, their texts, or functions that draw.

    Raises:
        InputError: no stage.
    """

    def __init__(self, *stages: Any) -> None:
        if not stages:
            raise InputError("a Curriculum has no stages; give at least one generator")
        self.stages = stages

    def __repr__(self) -> str:
        return f"Curriculum({', '.join(map(repr, self.stages))})"
