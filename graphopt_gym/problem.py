"""Problem, Outcome, Solution: one way of scoring for every method.

A :class:`Problem` is a graph and a cluster with a decision space. Agents, searches and solvers all end in
:meth:`Problem.evaluate`, so their results can be compared, and checked again from the stored decision alone.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt_gym.errors import printable
from graphopt_gym.fields import check_integers as check_integers
from graphopt_gym.fields import choice
from graphopt_gym.files import write_text
from graphopt_gym.registration import find_task
from graphopt_gym.task import Task, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster, Device
    from graphopt_gym.search.walk import Walk
    from graphopt_gym.simulator.timeline import Timeline

Trace = tuple[tuple[Any, ...], ...]  # a row a step, JSON-able; its columns are the task's own

ALL_MOVES = "all"  # the moves of a problem that has no others
SOLUTION_FORMAT, SOLUTION_VERSION = "graphopt-solution", 1

# every class of problems that this process knows, by "module:name": a solution of one that no task is registered for
# names it, and a file cannot make us import anything
PROBLEM_CLASSES: dict[str, type[Problem]] = {}


@dataclass(frozen=True)
class Outcome:
    """What a decision is worth.

    Attributes:
        valid: whether every constraint holds.
        cost: to be minimised, in ``unit``; ``inf`` where the decision is invalid.
        unit: ``"s"`` for a step time, …
        reasons: empty where valid; otherwise which rule fails, where, and by how much.
        metrics: further figures by name, with units in the names.
        timeline: what ran where and when, where the problem simulates one.
    """

    valid: bool
    cost: float
    unit: str
    reasons: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None


class Problem(ABC):
    """A graph, a cluster, and the decisions to take.

    Subclasses set ``env_id`` (the class's name where no environment belongs to it) and ``unit``, keep their
    constructor's arguments in ``config`` (JSON-able; a graph or cluster given as an object is stored by its name), and
    implement the methods below; ``graph`` and ``cluster`` may be left out where there is none. A decision is an int
    array of shape ``decision_shape``; or, where that is ``()``, an object of the problem's own class that cannot be
    changed, and batches are object arrays [B]. Such a problem implements :meth:`encode` and :meth:`crossover` too.
    Where each entry of an array is free of the others, from 0 to less than a number of choices, ``num_choices`` says
    how many; the sampling searches need it. ``choices_allowed``, bool [*decision_shape, num_choices], says which of
    them each entry may have, where that is not all.
    """

    env_id: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    page_name: ClassVar[str] = "Timeline"  # what a report shows of a decision, for people
    # moves an entry of a decision that annealing needs for its hot part: with fewer it begins colder, in proportion
    slow_moves: ClassVar[float] = 0.0
    page_draws: ClassVar[bool] = False  # whether page() has the picture, so that a report needs no figure()
    graph: ComputationGraph
    cluster: Cluster
    config: Mapping[str, Any] = MappingProxyType({})
    decision_shape: tuple[int, ...]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.env_id = cls.env_id or cls.__name__
        PROBLEM_CLASSES[class_name(cls)] = cls

    @property
    def task(self) -> Task | None:
        """What it is of; None where no task is registered for its class."""
        return find_task(self.env_id)

    @property
    def words(self) -> Words:
        """What its task calls things."""
        return self.task.words if self.task else Words()

    @property
    def starts(self) -> tuple[str, ...]:
        """The names of the cheap methods that searches begin from: its task's."""
        return self.task.starts if self.task else ()

    @property
    def graph_name(self) -> str:
        """Of its graph; empty where it has none."""
        return getattr(getattr(self, "graph", None), "name", "")

    @property
    def cluster_name(self) -> str:
        """Of its cluster; empty where it has none."""
        return getattr(getattr(self, "cluster", None), "name", "")

    @property
    def title(self) -> str:
        """What is decided on, for people."""
        return printable(" on ".join(name for name in (self.graph_name, self.cluster_name) if name) or self.env_id)

    @abstractmethod
    def check(self, decision: Any) -> Any:
        """The decision as an int32 array of ``decision_shape``, or an object of the problem's class.

        Also takes what :meth:`encode` gave.

        Raises:
            InputError: wrong length, type or range; the message names the first bad entry.
        """

    @abstractmethod
    def evaluate(self, decision: Any) -> Outcome:
        """The outcome of a decision, with its timeline. Raises InputError as :meth:`check` does."""

    @abstractmethod
    def costs(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of B checked decisions [B, *decision_shape], without timelines.

        The cost of a valid decision is exactly ``evaluate(decision).cost``. That of an invalid one is finite, above
        what any sensible valid one costs, and grows with the violation, so that a search can climb out.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Any:
        """A random decision."""

    @abstractmethod
    def neighbour(self, decision: Any, rng: np.random.Generator) -> Any:
        """A copy of a decision with one random small change (the move of the local searches)."""

    @property
    def has_walk(self) -> bool:
        """Whether local searches take their steps by :meth:`walk`, not by :meth:`neighbour` and :meth:`costs`."""
        return False

    def walk(self, state: Walk, steps: int, most_idle: int) -> None:
        """Take up to ``steps`` steps of a walk over neighbours, compiled, or ``most_idle`` that improve nothing."""
        raise NotImplementedError

    def with_moves(self, moves: str) -> Problem:
        """The same problem with the moves of a named set in :meth:`neighbour`; here all have one set, ``"all"``.

        Raises:
            InputError: another name.
        """
        choice("moves", moves, (ALL_MOVES,))
        return self

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        """A decision with some entries of each of two: here each entry from either with equal chances."""
        return np.where(rng.random(first.shape) < 0.5, first, second).astype(np.int32)

    def encode(self, decision: Any) -> Any:
        """A checked decision in JSON's types, as solutions store it; :meth:`check` takes it back."""
        return decision.tolist()

    def trace(self, decision: Any) -> Trace | None:
        """How a decision that a method proposed came about, where the task records it."""
        return None

    def check_trace(self, decision: Any, trace: Trace) -> str:
        """What is wrong with a stored trace of a checked decision; empty: it leads there."""
        return "this task records no traces"

    def page(self, decision: Any, trace: Trace | None, details: Mapping[str, Any]) -> str:
        """More on a checked decision for its HTML report, as markup; empty: nothing. Details: the solution's."""
        return ""

    def figure(self, decision: Any) -> Figure | None:
        """A picture of a checked decision, where the problem draws one beside or in place of a timeline."""
        return None

    def trace_file(self, decision: Any) -> bytes | None:
        """A Perfetto trace of a checked decision, where the problem writes one itself and has no timeline."""
        return None

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        """More lines on an outcome for people who solved for it; ``details``: the solution's."""
        return ()

    @property
    def rules(self) -> Mapping[str, str]:
        """The rules that costs rest on, by name, such as ``{"order": "fifo"}``: reports, solutions and tables say them,
        as costs under other rules cannot be compared."""
        return MappingProxyType({})

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people under a cost: its rules, and what it rests on."""
        rules = ", ".join(f"{name} {value}" for name, value in self.rules.items())
        return tuple(line for line in (rules, self.costs_note) if line)

    @property
    def pricing(self) -> tuple[Any, Sequence[Device]] | None:
        """The cost model and the devices that its costs rest on; None where it prices by nothing that was fitted."""
        return None

    @property
    def costs_version(self) -> str:
        """The version of the fitted costs that it prices by, see :func:`hardware.cost_model.costs_version`.

        Empty where it prices by nothing that was fitted. Solutions keep it; one priced by another version is refused.
        """
        from graphopt_gym.hardware.cost_model import costs_version

        return costs_version(*self.pricing) if self.pricing else ""

    @property
    def costs_note(self) -> str:
        """A line for people on what its costs rest on and how far off they are; empty where there is nothing to say."""
        from graphopt_gym.hardware.cost_model import costs_note

        return costs_note(*self.pricing, self.graph) if self.pricing else ""

    @property
    def uncertainty(self) -> dict[str, float | None]:
        """How far costs are off on average, as a share, by kind of device; None: not known; empty: not said."""
        from graphopt_gym.hardware.cost_model import uncertainties

        return uncertainties(*self.pricing, self.graph) if self.pricing else {}

    def fingerprints(self) -> dict[str, str]:
        """What a cost depends on, by name: fingerprints of graph, cluster and cost model, as far as it has them."""
        parts = {name: getattr(self, name, None) for name in ("graph", "cluster")}
        return {name: part.fingerprint for name, part in parts.items() if part is not None}


def class_name(problem_class: type[Problem]) -> str:
    """``"module:name"`` of a class."""
    return f"{problem_class.__module__}:{problem_class.__qualname__}"


@dataclass(frozen=True)
class Solution:
    """The best decision that a method found, and what it took.

    ``history`` has a row each time the best improved: (evaluations, seconds, cost). ``options`` are the method's, by
    name; ``details`` what it says of its run, JSON-able, units in the names. ``budget`` and ``seconds`` are the limits
    of the search, where it had such.
    """

    problem: Problem
    method: str
    seed: int
    decision: Any
    outcome: Outcome
    evaluations: int
    wall_s: float
    history: tuple[tuple[int, float, float], ...] = ()
    stopped_by: str = "finished"  # or "budget", "seconds", "interrupt"
    trace: Trace | None = None  # how the decision came about, where the task and the method record it
    options: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    seconds: float | None = None

    def row(self) -> dict[str, Any]:
        """What ``graphopt solve --json`` prints: JSON-able, ``cost`` null where invalid."""
        return {
            "env": self.problem.env_id,
            "graph": self.problem.graph_name,
            "cluster": self.problem.cluster_name,
            **({"rules": dict(self.problem.rules)} if self.problem.rules else {}),
            "method": self.method,
            "seed": self.seed,
            "valid": self.outcome.valid,
            "cost": self.outcome.cost if math.isfinite(self.outcome.cost) else None,
            "unit": self.outcome.unit,
            "reasons": list(self.outcome.reasons),
            "metrics": dict(self.outcome.metrics),
            "evaluations": self.evaluations,
            "wall_s": self.wall_s,
            **({"uncertainty": self.problem.uncertainty} if self.problem.uncertainty else {}),
            **({"options": dict(self.options)} if self.options else {}),
            **({"details": dict(self.details)} if self.details else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """What :meth:`save` writes: JSON-able."""
        text = {
            "format": SOLUTION_FORMAT,
            "version": SOLUTION_VERSION,
            **self.row(),
            "problem": dict(self.problem.config),
            "fingerprints": self.problem.fingerprints(),
            **({"costs_version": self.problem.costs_version} if self.problem.costs_version else {}),
            "stopped_by": self.stopped_by,
            "budget": self.budget,
            "seconds": self.seconds,
            "history": [list(row) for row in self.history],
            "decision": self.problem.encode(self.decision),
        }
        task = self.problem.task
        if task is None or type(self.problem) is not task.problem_class():
            text["problem_class"] = class_name(type(self.problem))
        if self.trace is not None:
            text["trace"] = [list(step) for step in self.trace]
        return text

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the solution as JSON, whole or not at all.

        Raises:
            InputError: the folder does not exist or cannot be written.
        """
        return write_text(path, json.dumps(self.to_json(), indent=None, separators=(", ", ": ")) + "\n")
