"""The one table of environment ids, and what builds each part of a task."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import unknown_name

if TYPE_CHECKING:
    from graphopt_gym.problem import Problem


@dataclass(frozen=True)
class EnvironmentSpec:
    """Where the parts of a task live, as ``"module:name"``."""

    env_id: str
    summary: str
    problem: str
    env: str
    vector_env: str
    methods: str  # a module with a table METHODS


_PLACEMENT = "graphopt_gym.envs.placement"
_CHIPLET = "graphopt_gym.envs.chiplet"
_REWRITE = "graphopt_gym.envs.rewrite"
ENVIRONMENTS: Mapping[str, EnvironmentSpec] = {
    spec.env_id: spec
    for spec in (
        EnvironmentSpec(
            "Placement-v0",
            "device placement, one group of ops a step",
            f"{_PLACEMENT}.problem:PlacementProblem",
            f"{_PLACEMENT}.env:PlacementEnv",
            f"{_PLACEMENT}.vector:PlacementVectorEnv",
            f"{_PLACEMENT}.heuristics",
        ),
        EnvironmentSpec(
            "PlacementOneShot-v0",
            "device placement, the whole graph in one action",
            f"{_PLACEMENT}.problem:PlacementProblem",
            f"{_PLACEMENT}.env:PlacementOneShotEnv",
            f"{_PLACEMENT}.vector:PlacementOneShotVectorEnv",
            f"{_PLACEMENT}.heuristics",
        ),
        EnvironmentSpec(
            "ChipletPartition-v0",
            "partition onto the chips of a package, proposals corrected by a constraint solver",
            f"{_CHIPLET}.problem:ChipletProblem",
            f"{_CHIPLET}.env:ChipletPartitionEnv",
            f"{_CHIPLET}.vector:ChipletPartitionVectorEnv",
            f"{_CHIPLET}.methods",
        ),
        EnvironmentSpec(
            "RewriteOrder-v0",
            "rewriting a tensor program: which rule, where, in what order",
            f"{_REWRITE}.problem:RewriteProblem",
            f"{_REWRITE}.env:RewriteOrderEnv",
            f"{_REWRITE}.vector:RewriteOrderVectorEnv",
            f"{_REWRITE}.methods",
        ),
    )
}


def environment(env_id: str) -> EnvironmentSpec:
    """The table's row. Raises InputError for an unknown id, with the nearest."""
    if env_id not in ENVIRONMENTS:
        raise unknown_name("environment", env_id, ENVIRONMENTS)
    return ENVIRONMENTS[env_id]


def resolve(path: str) -> Any:
    """The object that ``"module:name"`` names, imported now."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def make_problem(env_id: str, **arguments: Any) -> Problem:
    """The problem behind an environment: a graph, a cluster and one call, ``evaluate(decision)``.

    Args:
        env_id: e.g. ``"Placement-v0"``.
        arguments: those of the problem's class; each has a default.

    Raises:
        InputError: an unknown id or argument (the nearest known one is named), or bad values.
    """
    problem_class = resolve(environment(env_id).problem)
    refuse_unknown(arguments, problem_class.__init__, env_id)
    return problem_class(**arguments)


def refuse_unknown(arguments: Mapping[str, Any], function: Any, owner: str) -> None:
    """Raise InputError for the first argument that ``function`` does not take."""
    parameters = inspect.signature(function).parameters
    known = [name for name, kind in parameters.items() if name != "self" and kind.kind is not kind.VAR_KEYWORD]
    for name in arguments:
        if name not in known:
            raise unknown_name(f"argument of {owner}", name, known)


def register_environments() -> None:
    """Register every row with Gymnasium (once)."""
    import gymnasium

    for spec in ENVIRONMENTS.values():
        if spec.env_id not in gymnasium.registry:
            gymnasium.register(spec.env_id, entry_point=spec.env, vector_entry_point=spec.vector_env)
