"""What all experiments share: what one declares, its runs, its tables, its page and curves."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runner.tables import Job, Row, Runs
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.problem import Problem, Solution
from graphopt_gym.registration import make_problem
from graphopt_gym.search.solve import find_method
from graphopt_gym.solutions import named_costs, other_costs

Column = Callable[[Row], str]

KEPT = (
    "seed", "cost", "valid", "evaluations", "wall_s", "fingerprints", "costs_version", "history", "decision",
    "valid_share",
)  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """A network that is trained before the runs that begin from it, and kept under ``OUT/pretrained/NAME``.

    ``agent``: see ``runner.agents``. ``arguments``: the fields of its ``Args``, given the folder of the experiment.
    """

    agent: str
    name: str
    arguments: Callable[[Path], Mapping[str, Any]]

    @classmethod
    def on(cls, pairs: Iterable[tuple[str, str]], agent: str, name: str, **arguments: Any) -> Pretraining:
        """On (graph, cluster) pairs."""
        graphs, clusters = zip(*pairs, strict=True)
        return cls(agent, name, lambda out: {"graphs": graphs, "clusters": clusters, **arguments})


@dataclass(frozen=True)
class Entry:
    """A method of the tables.

    Attributes:
        label: what tables call it.
        method: of ``solve``; None: of the entry's own name.
        agent: whose training on the problem is the method instead, told ``options``; ``paper``: as in its paper.
        options: of the method.
        budget, seconds: of a run, the seconds perhaps of its graph; None: the experiment's. With seconds, an entry has
            no budget but one of its own.
        random: whether the seed matters; None: as it does for the method.
        graphs: on which it runs; None: all.
        pretraining: what its agent begins from, given graph and seed. ``zero_shot``: it is not trained further; without
            a pre-training it knows nothing.
        count_valid: whether ``details`` say what share of the decisions was valid.
    """

    label: str
    method: str | None = None
    agent: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: bool = False
    budget: int | None = None
    seconds: float | Callable[[str], float] | None = None
    random: bool | None = None
    graphs: Sequence[str] | None = None
    pretraining: Callable[[str, int], Pretraining] | None = None
    zero_shot: bool = False
    count_valid: bool = False


@dataclass(frozen=True)
class Curves:
    """Best cost against evaluations, a panel a graph: mean over seeds, and their range.

    ``methods``: their colours; ``called``: what the legend says in place of their labels. ``line``: one that is drawn
    as a dotted line. ``labels``: of the axes. ``columns``: panels a row. ``graphs``: those drawn; None: all.
    """

    image: str
    methods: Mapping[str, str]
    line: str
    labels: tuple[str, str]
    called: Mapping[str, str] = field(default_factory=dict)
    columns: int = 4
    graphs: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a file declares.

    Attributes:
        room: the folder of ``envs_data`` that its results go to.
        env: the task's environment. ``arguments``: of the problem of a graph, by its name.
        entries: by name, in the order of the tables.
        budget, seconds: of a run of an entry that says nothing else.
        summarise: what the tables hold, with ``rows``, of all runs and the folder they are in.
        cost: how pages show a cost: its form, the word for nothing valid, and what it is multiplied by.
        before, after: the columns of its tables beside the costs, by title: the text of a row.
        kept: the fields of a run that are stored; none: runs are not.
        facts: more fields of a run, of its problem and its solution.
        run: makes a run in place of ``solve``, of (entry's name, problem, seed): JSON-able, with ``fingerprints``.
        measure: times something after the runs, of (their folder, runs, graphs): it wants a quiet machine.
        store: more files in the room, of (the room's folder, runs).
        curves: the page's figure; ``draw``: or what draws it, of (runs, summary, the folder of the page).
        shipped: (the checkpoint in ``envs_data/checkpoints``, its training).
    """

    room: str
    env: str
    arguments: Callable[[str], Mapping[str, Any]]
    graphs: Sequence[str]
    entries: Mapping[str, Entry]
    summarise: Callable[[Runs, Path], dict[str, Any]]
    budget: int = 10**9
    seconds: float | None = None
    seeds: Sequence[int] = (0, 1, 2)
    cost: tuple[str, str, float] = (".4g", "invalid", 1.0)
    before: Mapping[str, Column] = field(default_factory=dict)
    after: Mapping[str, Column] = field(default_factory=dict)
    kept: Sequence[str] = KEPT
    facts: Callable[[Any, Solution], Mapping[str, Any]] | None = None
    run: Callable[[str, Any, int], dict[str, Any]] | None = None
    measure: Callable[[Path, Runs, Sequence[str]], None] | None = None
    store: Callable[[Path, Runs], None] | None = None
    curves: Curves | None = None
    draw: Callable[[Runs, Mapping[str, Any], Path], None] | None = None
    shipped: tuple[str, Pretraining] | None = None

    @functools.cache  # noqa: B019 - an experiment lives as long as its process
    def problem(self, graph: str) -> Problem:
        """The problem of a graph."""
        return make_problem(self.env, **self.arguments(graph))

    def summary(self, runs: Runs, out: Path) -> dict[str, Any]:
        """What :attr:`summarise` gives, and the version of the costs that priced the runs, where they rest on such."""
        versions = {self.priced_by(job[0], run) for job, run in runs.items()} - {""}
        if len(versions) > 1:
            raise InputError(
                f"runs of several costs, {' and '.join(sorted(versions))}: make those of the older ones again"
            )
        found = self.summarise(runs, out)
        stored = versions.pop() if versions else found.get("costs_version")
        version = named_costs(stored, self.problem(self.graphs[0]))
        return {**found, "costs_version": version} if version else found

    def is_of_today(self, runs: Runs) -> bool:
        """Whether all runs are priced as their problems are now."""
        return not any(other_costs(run.get("costs_version"), self.problem(job[0])) for job, run in runs.items())

    def priced_by(self, graph: str, run: Mapping[str, Any]) -> str:
        """The version of the fitted costs that priced a run; empty where its problem rests on none."""
        return named_costs(run.get("costs_version"), self.problem(graph))

    def is_random(self, name: str) -> bool:
        """Whether the seed matters to an entry."""
        entry = self.entries[name]
        if entry.random is not None or entry.agent or self.run:
            return entry.random is not False
        return find_method(self.env, entry.method or name).random

    def pretraining(self, job: Job) -> Pretraining | None:
        """What a run begins from."""
        begins = self.entries[job[1]].pretraining
        return begins(job[0], job[2]) if begins else None

    def names_in(self, runs: Runs) -> dict[str, int]:
        """The entries that have runs, in order, and how many seeds."""
        found = {name: len({seed for _, method, seed in runs if method == name}) for name in self.entries}
        return {name: seeds for name, seeds in found.items() if seeds}

    def lacking(self, runs: Runs) -> list[str]:
        """The entries that have fewer seeds than they should somewhere, in words."""
        found = []
        for name, entry in self.entries.items():
            wanted = self.seeds if self.is_random(name) else self.seeds[:1]
            cases = entry.graphs or self.graphs
            there = [sum((case, name, seed) in runs for seed in wanted) for case in cases]
            few = [number for number in there if number < len(wanted)]
            if few:
                least = f"{min(few)} of {len(wanted)} seeds at least"
                found.append(f"{entry.label} on {len(few)} of {len(cases)} ({least})")
        return found


def summaries(folder: Path) -> dict[str, str]:
    """The experiments of a folder, by name, and the first line of what each file says of itself."""
    return {
        path.stem.replace("_", "-"): (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        for path in sorted(folder.glob("*.py"))
        if path.with_suffix(".md").is_file()
    }


@functools.cache
def load(folder: Path, name: str) -> Experiment:
    """The ``EXPERIMENT`` of ``FOLDER/NAME.py``. Raises InputError for an unknown name, with the nearest."""
    return module(folder, name).EXPERIMENT  # type: ignore[no-any-return]


@functools.cache
def module(folder: Path, name: str) -> Any:
    """The module of an experiment."""
    if not folder.is_dir():
        raise InputError(f"experiments need a checkout of the project: {str(folder)!r} is not there")
    if name not in summaries(folder):
        raise unknown_name("table", name, summaries(folder))
    stem = name.replace("-", "_")
    spec = importlib.util.spec_from_file_location(f"experiments.{stem}", folder / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
