"""Stored runs that are priced by other costs than today's: refused by name, and marked on their page."""

from __future__ import annotations

import json

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.problem import Solution
from graphopt_gym.solutions import load_solution, validate


def of_today(run, problem) -> bool:
    """Whether a stored run names the costs of its problem; one that names none is of version 1."""
    return not problem.costs_version or run.get("costs_version", "1") == problem.costs_version


def is_refused(run, problem, decision, folder) -> None:
    """A run of other costs, as the file of a solution: nothing prices it, and both versions are named."""
    theirs, here = run.get("costs_version", "1"), problem.costs_version
    solution = Solution(problem, run["name"], run["seed"], decision, problem.evaluate(decision), 1, 0.0)
    text = {**solution.to_json(), "cost": run["cost"], "valid": run["valid"], "fingerprints": run["fingerprints"]}
    text.pop("costs_version")
    if "costs_version" in run:
        text["costs_version"] = theirs
    path = folder / "run.json"
    path.write_text(json.dumps(text), encoding="utf-8")
    line = f"it was priced by costs {theirs!r}, here they are {here!r}: solve it again"
    assert validate(path).mismatches == (line,)
    with pytest.raises(InputError, match=line):
        load_solution(path).evaluate(problem)


def same_but_costs(run, problem) -> None:
    """What does not depend on costs is as it was."""
    mine, theirs = dict(problem.fingerprints()), dict(run["fingerprints"])
    if not of_today(run, problem):
        mine.pop("op_times"), theirs.pop("op_times")
    assert mine == theirs, run["name"]
