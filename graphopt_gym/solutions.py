"""Solution files: read them back, and re-check what they claim from the stored decision alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.fields import not_negative
from graphopt_gym.files import parse_json, read_file
from graphopt_gym.problem import (
    PROBLEM_CLASSES,
    SOLUTION_FORMAT,
    SOLUTION_VERSION,
    Problem,
    Solution,
    Trace,
    class_name,
)
from graphopt_gym.registration import make_problem, refuse_unknown

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster

FIRST_COSTS = "1"  # the version of the fitted costs that priced the files which name none
COST_TOLERANCE = 1e-12  # relative: a cost is recomputed by the same arithmetic, so it agrees to the last digits
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "env": str,
    "graph": str,
    "cluster": str,
    "method": str,
    "seed": int,
    "valid": bool,
    "cost": (int, float, type(None)),
    "unit": str,
    "reasons": list,
    "metrics": dict,
    "evaluations": int,
    "wall_s": (int, float),
    "problem": dict,
    "fingerprints": dict,
    "decision": (list, str),
}


@dataclass(frozen=True)
class StoredSolution:
    """What a solution file says, not yet checked. Fields as in :class:`graphopt_gym.problem.Solution`."""

    path: Path
    env_id: str
    graph: str
    cluster: str
    method: str
    seed: int
    valid: bool
    cost: float  # inf where the file says invalid
    unit: str
    metrics: Mapping[str, Any]
    evaluations: int
    wall_s: float
    config: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    decision: Any  # an int array, or a text that the problem reads
    history: tuple[tuple[int, float, float], ...]
    stopped_by: str
    trace: Trace | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    problem_class: str = ""  # "module:name", where no task is registered for the problem
    budget: int | None = None
    seconds: float | None = None
    costs_version: str | None = None  # None: the file names none

    def make_problem(
        self,
        graph: str | os.PathLike[str] | ComputationGraph | None = None,
        cluster: str | os.PathLike[str] | Cluster | None = None,
        problem_class: type[Problem] | None = None,
        cost_model: Any = None,
    ) -> Problem:
        """The problem, built again from the stored arguments.

        ``graph`` and ``cluster`` stand in for the stored names, ``problem_class`` for what the file says it is of;
        ``cost_model``: the one of one's own that it was solved with.

        Raises:
            InputError: a name that is not known here, or arguments that the problem does not take.
        """
        given = {"graph": graph, "cluster": cluster, "cost_model": cost_model}
        given = {name: value for name, value in given.items() if value is not None}
        arguments = {**self.config, **given}
        try:
            problem_class = problem_class or PROBLEM_CLASSES.get(self.problem_class)
            if problem_class is None and not self.problem_class:
                return make_problem(self.env_id, **arguments)
            if problem_class is None:
                raise InputError(
                    f"its problem is of {quoted(self.problem_class, 80)}, which is not known here; import the module "
                    "that makes it first (graphopt … --problem MODULE:CLASS), or register its task"
                )
            refuse_unknown(arguments, problem_class.__init__, class_name(problem_class))
            return problem_class(**arguments)
        except InputError as error:
            raise InputError(f"{str(self.path)!r}: {error}") from None

    def costs_of(self, problem: Problem) -> str:
        """The version of the costs that priced it, in the words of :attr:`Problem.costs_version`."""
        return named_costs(self.costs_version, problem)

    def changes(self, problem: Problem) -> list[str]:
        """Why a problem is another one than what was solved: a line for the costs' version, if it is another, and one
        for each fingerprint that is (that of op times says nothing beside the version)."""
        found, versions = problem.fingerprints(), other_costs(self.costs_version, problem)
        lines = [versions] if versions else []
        for what in sorted({*found, *self.fingerprints}):
            mine, theirs = found.get(what), self.fingerprints.get(what)
            if mine != theirs and not (versions and what == "op_times"):
                lines.append(f"{what.replace('_', ' ')} changed: stored {_short(theirs)}, here {_short(mine)}")
        return lines

    def evaluate(self, problem: Problem) -> Solution:
        """The stored decision on the problem that was solved: its outcome is computed, the rest is as stored.

        Raises:
            InputError: it is another problem, or is priced by another version of the costs.
        """
        changes = self.changes(problem)
        if changes:
            raise InputError(f"{str(self.path)!r} is of another problem: {changes[0]}")
        return Solution(
            problem=problem,
            method=self.method,
            seed=self.seed,
            decision=problem.check(self.decision),
            outcome=problem.evaluate(self.decision),
            evaluations=self.evaluations,
            wall_s=self.wall_s,
            history=self.history,
            stopped_by=self.stopped_by,
            trace=self.trace,
            options=self.options,
            details=self.details,
            budget=self.budget,
            seconds=self.seconds,
        )


def load_solutions(paths: Iterable[str | os.PathLike[str]], say: Callable[[str], object] = str) -> list[StoredSolution]:
    """Read solution files, and those that lie in folders.

    Args:
        paths: of files and folders.
        say: called with a line for each other JSON file of a folder, which is left out.

    Raises:
        InputError: a file that is no solution, or none in all folders.
    """
    found = []
    for path in paths:
        for file in sorted(Path(path).glob("*.json")) if os.path.isdir(path) else [Path(path)]:
            try:
                found.append(load_solution(file))
            except InputError as error:
                if not os.path.isdir(path):
                    raise
                say(f"left out: {error}")
    if not found:
        where = ", ".join(quoted(os.fspath(path)) for path in paths)
        raise InputError(f"no solution files in {where}; write some with: graphopt compare … --out FOLDER")
    return found


def load_solution(path: str | os.PathLike[str]) -> StoredSolution:
    """Read a file that :meth:`Solution.save` wrote.

    Raises:
        InputError: there is no such file, or it is damaged, of a newer version or not a solution; one line.
    """
    path = Path(path)
    where = f"solution file {quoted(str(path))}"
    facts = parse_json(read_file(path, "solution file"), where)
    if not isinstance(facts, dict) or facts.get("format") != SOLUTION_FORMAT:
        raise InputError(f"{where} does not say format {SOLUTION_FORMAT!r}, so it is not a solution of ours")
    version = facts.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{where}: version is {version!r}, expected {SOLUTION_VERSION}")
    if version > SOLUTION_VERSION:
        raise InputError(
            f"{where} has version {version}, newer than the {SOLUTION_VERSION} this release reads: upgrade graphopt-gym"
        )
    for name, kind in _FIELDS.items():
        value = facts.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if name not in facts or wrong:
            raise InputError(f"{where}: {name!r} is missing or of the wrong type; save the solution again")
    if facts["valid"] and not (facts["cost"] is not None and math.isfinite(facts["cost"])):
        raise InputError(f"{where}: it says valid, but cost is {facts['cost']!r}; save the solution again")
    not_negative(f"{where}: wall_s", facts["wall_s"])
    costs = facts.get("costs_version")
    if costs is not None and not (isinstance(costs, str) and costs):
        raise InputError(f"{where}: costs_version is {quoted(costs)}, expected a text; save the solution again")
    extras = [facts.get(name, {}) for name in ("options", "details")]
    texts = [*facts["reasons"], *facts["fingerprints"].values()]
    if not all(isinstance(extra, dict) for extra in extras) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where}: 'options', 'details', 'reasons' or 'fingerprints' is of the wrong type; save the solution again"
        )
    try:
        decision = facts["decision"] if isinstance(facts["decision"], str) else np.array(facts["decision"])
        trace = tuple(tuple(step) for step in facts["trace"]) if "trace" in facts else None
        history = tuple((int(row[0]), float(row[1]), float(row[2])) for row in facts.get("history", []))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise InputError(f"{where}: 'decision', 'history' or 'trace' holds something else than numbers") from None
    if isinstance(decision, np.ndarray) and decision.dtype.kind not in "iu":
        raise InputError(f"{where}: 'decision' holds {decision.dtype}, expected integers")
    return StoredSolution(
        path=path,
        env_id=facts["env"],
        graph=facts["graph"],
        cluster=facts["cluster"],
        method=facts["method"],
        seed=facts["seed"],
        valid=facts["valid"],
        cost=float(facts["cost"]) if facts["cost"] is not None and facts["valid"] else math.inf,
        unit=facts["unit"],
        metrics=facts["metrics"],
        evaluations=facts["evaluations"],
        wall_s=float(facts["wall_s"]),
        config=facts["problem"],
        fingerprints=facts["fingerprints"],
        costs_version=costs,
        decision=decision,
        history=history,
        stopped_by=str(facts.get("stopped_by", "finished")),
        trace=trace,
        options=extras[0],
        details=extras[1],
        problem_class=str(facts.get("problem_class", "")),
        budget=facts.get("budget"),
        seconds=facts.get("seconds"),
    )


@dataclass(frozen=True)
class Validation:
    """What a re-check found. ``mismatches`` is empty where everything agrees and the decision is valid."""

    path: Path
    stored: StoredSolution
    cost: float  # recomputed; inf where invalid or where it could not be computed
    mismatches: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def row(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "file": str(self.path),
            "ok": self.ok,
            "env": self.stored.env_id,
            "graph": self.stored.graph,
            "cluster": self.stored.cluster,
            "method": self.stored.method,
            "stored_cost": self.stored.cost if math.isfinite(self.stored.cost) else None,
            "cost": self.cost if math.isfinite(self.cost) else None,
            "unit": self.stored.unit,
            "mismatches": list(self.mismatches),
        }


def validate(
    path: str | os.PathLike[str],
    graph: str | os.PathLike[str] | ComputationGraph | None = None,
    cluster: str | os.PathLike[str] | Cluster | None = None,
    problem_class: type[Problem] | None = None,
    cost_model: Any = None,
) -> Validation:
    """Re-check a solution file: build its problem again, compare the fingerprints, evaluate the decision.

    Args:
        path: a file that :meth:`Solution.save` wrote.
        graph: stands in for the stored name, for a graph that is neither in the zoo nor at its stored path.
        cluster: likewise.
        problem_class: stands in for what the file says that its problem is of.
        cost_model: the one of one's own that it was solved with; a file cannot hold it.

    Returns:
        Every mismatch by name: a fingerprint (graph, cluster, op times), the decision, the cost (relative tolerance
        :data:`COST_TOLERANCE`), each metric, and an invalid outcome. Where the costs are of another version, both are
        named, and nothing is priced.

    Raises:
        InputError: the file is no solution, or its problem cannot be built here.
    """
    stored = load_solution(path)
    problem = stored.make_problem(graph, cluster, problem_class, cost_model)
    mismatches = stored.changes(problem)
    try:
        if other_costs(stored.costs_version, problem):
            problem.check(stored.decision)
            return Validation(stored.path, stored, math.inf, tuple(mismatches))
        outcome = problem.evaluate(stored.decision)
    except InputError as error:
        return Validation(stored.path, stored, math.inf, (*mismatches, str(error)))
    if outcome.unit != stored.unit:
        mismatches.append(f"unit: stored {stored.unit!r}, here {outcome.unit!r}")
    if outcome.valid != stored.valid:
        mismatches.append(f"valid: stored {stored.valid}, here {outcome.valid}")
    if outcome.valid and stored.valid and not _agree(outcome.cost, stored.cost):
        mismatches.append(f"cost: stored {stored.cost!r} {stored.unit}, here {outcome.cost!r} {outcome.unit}")
    for name in sorted({*outcome.metrics, *stored.metrics}):
        if name not in stored.metrics or name not in outcome.metrics:
            mismatches.append(f"metric {name}: only {'here' if name in outcome.metrics else 'stored'}")
        elif not _agree(outcome.metrics[name], stored.metrics[name]):
            there = quoted(stored.metrics[name], 80)
            mismatches.append(f"metric {name}: stored {there}, here {outcome.metrics[name]}")
    if stored.trace is not None:
        wrong = problem.check_trace(problem.check(stored.decision), stored.trace)
        mismatches.extend([f"trace: {wrong}"] if wrong else [])
    mismatches.extend(outcome.reasons)
    return Validation(stored.path, stored, outcome.cost, tuple(mismatches))


def named_costs(stored: str | None, problem: Problem) -> str:
    """The version of the costs in a file of a problem; :data:`FIRST_COSTS` where it names none and the problem's are
    our fitted ones."""
    from graphopt_gym.hardware.cost_model import load_cost_model

    here = problem.costs_version
    ours = here.split(", ")[0] == load_cost_model().version  # whatever way a step is run
    return (FIRST_COSTS if ours else here) if stored is None else stored


def other_costs(stored: str | None, problem: Problem) -> str:
    """A line with both versions, where a file of a problem is priced by another than the problem; else empty."""
    theirs, here = named_costs(stored, problem), problem.costs_version
    if theirs == here:
        return ""
    return f"it was priced by costs {quoted(theirs)}, here they are {quoted(here) if here else 'none'}: solve it again"


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else f"{fingerprint[:12]}…"


def _agree(here: Any, stored: Any) -> bool:
    if isinstance(here, list | tuple) and isinstance(stored, list | tuple):
        return len(here) == len(stored) and all(map(_agree, here, stored))
    if isinstance(here, float) and isinstance(stored, int | float):
        return math.isclose(here, stored, rel_tol=COST_TOLERANCE, abs_tol=0.0)
    return bool(here == stored)
