"""Limits of an exploration, by either engine, and what each says of an iteration."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import InputError, quoted

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.saturation.egraph import EGraph


class LimitHit(Exception):
    """A limit ended the exploration in the middle of an iteration; its text names the limit."""


@dataclass(frozen=True)
class Iteration:
    """One iteration: what the e-graph was like after it.

    Attributes:
        matches: matches looked at (those seen before left out).
        applied: those that changed the e-graph.
        refused: those left out because they would close a cycle.
        filtered: e-nodes that the clean-up took out.
    """

    nodes: int
    classes: int
    matches: int
    applied: int
    refused: int
    filtered: int
    seconds: float


@dataclass
class Limits:
    """Limits of an exploration; see :func:`saturate`."""

    nodes: int = 50_000
    seconds: float = 60.0
    memory_bytes: int = 4 << 30
    started: float = field(default_factory=time.perf_counter)
    memory_before: int = field(default_factory=lambda: resident_bytes())

    def check(self, graph: EGraph) -> None:
        """Raises LimitHit where one is reached."""
        if graph.nodes >= self.nodes:
            raise LimitHit("node limit")
        self.check_time()

    def check_time(self) -> None:
        if time.perf_counter() - self.started >= self.seconds:
            raise LimitHit("time limit")
        if resident_bytes() - self.memory_before >= self.memory_bytes:
            raise LimitHit("memory limit")


def resident_bytes() -> int:
    """Memory that this process holds; its peak where the system does not tell the present."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_limit(name: str, value: Any, least: int = 1, whole: bool = True) -> None:
    """Raises InputError where a limit is not a number, or is too small."""
    kinds = (int,) if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not (value >= least if whole else value > 0):
        wanted = f"a whole number, at least {least}" if whole else "a number above 0"
        raise InputError(f"{name} is {quoted(value, 80)}; give {wanted}")
