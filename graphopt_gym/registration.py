"""The registry of tasks: ours, those of other packages, and those that a program registers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import InputError, unknown_argument, unknown_name
from graphopt_gym.task import Task, resolve

if TYPE_CHECKING:
    from graphopt_gym.problem import Problem

OURS = (
    "graphopt_gym.envs.placement:TASK",
    "graphopt_gym.envs.fusion:TASK",
    "graphopt_gym.envs.joint:TASK",
    "graphopt_gym.envs.scheduling:TASK",
    "graphopt_gym.envs.chiplet:TASK",
    "graphopt_gym.envs.rewrite:TASK",
    "graphopt_gym.envs.gang:TASK",
    "graphopt_gym.envs.architecture:TASK",
)
ENTRY_POINTS = "graphopt_gym.tasks"
VECTOR_ENTRY_POINT = "graphopt_gym.envs.core.vector"

_tasks: dict[str, Task] = {}
_by_env: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make a task known: to ``make_problem``, ``solve``, the command line, and its environments to ``gym.make``.

    A task that is registered again takes its own place, such as when a notebook's cell runs twice.

    Raises:
        InputError: an id of its environments is another task's.
    """
    import gymnasium

    for env_id in task.variants:
        other = _by_env.get(env_id)
        if other is not None and other.name != task.name:
            raise InputError(f"environment {env_id!r} of task {task.name!r} is task {other.name!r}'s; give another id")
    _tasks[task.name] = task
    for env_id, variant in task.variants.items():
        _by_env[env_id] = task
        gymnasium.registry.pop(env_id, None)
        gymnasium.register(env_id, entry_point=variant.env, vector_entry_point=f"{VECTOR_ENTRY_POINT}:{env_id}")


def register_all() -> None:
    """Register our tasks and those of installed packages. A package whose task cannot be had is left out, with a
    warning."""
    for reference in OURS:
        register(resolve(reference))
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:  # another package's fault must not take ours away
            import warnings

            warnings.warn(f"task {entry.name!r} of {entry.value!r} is left out: {error}", stacklevel=2)


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    return dict(_tasks)


def env_ids() -> tuple[str, ...]:
    """The ids of all environments."""
    return tuple(_by_env)


def find_task(env_id: str) -> Task | None:
    """The task of an environment or a problem; None where it is of a class that no task is registered for."""
    return _by_env.get(env_id)


def task_of(env_id: str) -> Task:
    """The task of an environment. Raises InputError for an unknown id, with the nearest."""
    if env_id not in _by_env:
        raise unknown_name("environment", env_id, _by_env)
    return _by_env[env_id]


def make_problem(env_id: str, **arguments: Any) -> Problem:
    """The problem behind an environment: a graph, a cluster and one call, ``evaluate(decision)``.

    Args:
        env_id: e.g. ``"Placement-v0"``.
        arguments: those of the problem's class; each has a default. ``dims``, a graph file's open sizes by name, goes
            with ``graph`` everywhere: ``graph="model.onnx", dims={"batch": 1}`` is ``graph="model.onnx@batch=1"``.

    Raises:
        InputError: an unknown id or argument (the nearest known one is named), or bad values.
    """
    problem_class = task_of(env_id).problem_class()
    arguments = dims_of_graph(arguments, problem_class.__init__)
    refuse_unknown(arguments, problem_class.__init__, env_id)
    return problem_class(**arguments)


def dims_of_graph(arguments: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """Arguments with ``dims`` made a part of ``graph``, where ``function`` takes them only so.

    Raises:
        InputError: there is no path that they could be of.
    """
    parameters = inspect.signature(function).parameters
    if "dims" not in arguments or "dims" in parameters or "graph" not in parameters:
        return dict(arguments)
    from graphopt_gym.catalog import check_dims, with_dims

    rest = {name: value for name, value in arguments.items() if name != "dims"}
    dims = check_dims(arguments["dims"])
    if not dims:
        return rest
    if not isinstance(rest.get("graph"), str | os.PathLike):
        raise InputError("dims are sizes of a graph's file: give its path as graph")
    return rest | {"graph": with_dims(rest["graph"], dims)}


def refuse_unknown(arguments: Mapping[str, Any], function: Any, owner: str) -> None:
    """Raise UnknownArgument for the first argument that ``function`` does not take."""
    parameters = inspect.signature(function).parameters
    known = [name for name, kind in parameters.items() if name != "self" and kind.kind is not kind.VAR_KEYWORD]
    for name in arguments:
        if name not in known:
            raise unknown_argument(owner, name, known)
