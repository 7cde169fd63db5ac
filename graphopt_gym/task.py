"""Task: what one kind of decision over a graph is to all other rooms.

The command line, reports, searches and wrappers know a task by this record alone. A task of another package is the
same record, registered by :func:`graphopt_gym.register` or found by the entry-point group ``graphopt_gym.tasks``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    from graphopt_gym.problem import Problem
    from graphopt_gym.search.evaluator import Method

# an object, or "module:name", which is imported when it is first needed
Reference = Any


@dataclass(frozen=True)
class Words:
    """What a task calls things, for people."""

    cost: str = "cost"
    decision: str = "decision"
    evaluation: str = "evaluation"
    graph: str = "graph"
    cluster: str = "cluster"


@dataclass(frozen=True)
class Variant:
    """One environment of a task."""

    env: Reference  # a subclass of EpisodeEnv
    summary: str


@dataclass(frozen=True)
class Benchmark:
    """A function that gives ``{"title", "columns", "rows", "notes"}``, or by several titles rows, or such
    mappings without title.

    It is called with ``say``, which takes a line on what it does, for people who wait. ``needs``: modules without
    which it does not run.
    """

    run: Reference
    shows: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a task is.

    Attributes:
        name: one word.
        summary: one line.
        variants: environments by id; the first id is also that of the problem.
        problem: the class of its problems.
        methods: a table of methods by name, or the module whose ``METHODS`` it is.
        starts: names of the cheap methods that local searches start from.
        references: what tables compare against: the first of these that is in the table.
        words: what it calls things.
        catalogs: the catalog in which each argument of the problem is named.
        benchmarks: of this task, by name.
        commands: what can be done with its solutions alone, by the name of the command. ``measure``, a function of
            stored solutions, ``say`` and limits, gives a table; ``export``, of one and a path, writes a file;
            ``execute``, of stored solutions and what else :func:`cli.execute.execute` gives it, gives tables.
        toys: arguments of its environments with which an episode takes milliseconds, for each form of them that has
            compiled code of its own: what ``graphopt warmup`` compiles. None where nothing is compiled.

    Raises:
        InputError: no variant.
    """

    name: str
    summary: str
    variants: Mapping[str, Variant]
    problem: Reference
    methods: Reference = field(default_factory=dict)
    starts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    words: Words = Words()
    catalogs: Mapping[str, str] = field(default_factory=lambda: {"graph": "graphs", "cluster": "clusters"})
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    commands: Mapping[str, Reference] = field(default_factory=dict)
    toys: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.variants:
            raise InputError(f"task {self.name!r} has no variants; give at least one environment by its id")

    @property
    def env_id(self) -> str:
        """The id that its problems go by."""
        return next(iter(self.variants))

    def problem_class(self) -> type[Problem]:
        return resolve(self.problem)

    def env_class(self, env_id: str) -> Any:
        return resolve(self.variants[env_id].env)

    def method_table(self) -> Mapping[str, Method]:
        """Its own methods by name."""
        table = resolve(self.methods)
        return table if isinstance(table, Mapping) else table.METHODS


def resolve(reference: Reference) -> Any:
    """The object itself, or what ``"module"`` or ``"module:name"`` names, imported now."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
