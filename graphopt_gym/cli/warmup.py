"""``graphopt warmup``: compile everything ahead, such as when an image is built."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.errors import InputError
from graphopt_gym.registration import env_ids, make_problem, task_of

BUDGET = 32  # evaluations of a method on a toy
SECONDS = 1.0  # of methods that take as long as they are told


def warmup(
    env: Annotated[
        list[str] | None, typer.Option("--env", help="An environment; may be repeated. All if left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compile what environments and methods need and keep it, so that no later run waits for it."""
    from graphopt_gym.compiled import Tally
    from graphopt_gym.report.tables import Table

    chosen = [(env_id, name, work) for env_id in env or env_ids() for name, work in _works(env_id)]
    rows: dict[str, list[Any]] = {env_id: [env_id, 0, 0, 0.0] for env_id in env or env_ids()}
    with common.progress_bar("compiling", len(chosen)) as update:
        for done, (env_id, name, work) in enumerate(chosen):
            if update:
                update(done, name, label=env_id)
            compiled, loaded, started = Tally.compiled, Tally.loaded, time.perf_counter()
            with contextlib.suppress(InputError):  # a method that refuses the toy, or that needs what is not installed
                work()
            row = rows[env_id]
            row[1] += Tally.compiled - compiled
            row[2] += Tally.loaded - loaded
            row[3] += time.perf_counter() - started
    columns = ("environment", "compiled", "kept before", "seconds")
    common.show(Table("Compiled functions", columns, tuple(map(tuple, rows.values()))), as_json)


def _works(env_id: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what to do): together, everything about an environment that is compiled."""
    task = task_of(env_id)
    for toy in task.toys:
        yield str(toy), partial(_play, env_id, toy)
    if task.toys and env_id == task.env_id:
        from graphopt_gym.search.solve import method_table

        for name in method_table(env_id):
            yield name, partial(_solve, env_id, name)


def _play(env_id: str, toy: Mapping[str, Any]) -> None:
    import gymnasium as gym

    one = gym.make(env_id, **toy)
    one.reset(seed=0)
    one.action_space.seed(0)
    while not any(one.step(one.action_space.sample())[2:4]):
        pass
    many = gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point", **toy)
    many.reset(seed=0)
    many.step(many.action_space.sample())


def _solve(env_id: str, name: str) -> None:
    import inspect

    from graphopt_gym.search.solve import find_method, solve

    task, method = task_of(env_id), find_method(env_id, name)
    known = inspect.signature(task.problem_class()).parameters
    toy = {argument: value for argument, value in task.toys[0].items() if argument in known}
    options = {"time_limit_s": SECONDS} if "time_limit_s" in method.options else {}
    solve(make_problem(env_id, **toy, **method.rules), name, budget=BUDGET, options=options)
