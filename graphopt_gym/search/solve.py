"""``solve``: run a method on a problem under a budget, and keep the best, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.extras import need
from graphopt_gym.fields import positive, whole
from graphopt_gym.files import file_stem, make_folder
from graphopt_gym.problem import Problem, Solution
from graphopt_gym.registration import find_task, task_of
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator, Method
from graphopt_gym.search.workers import Interrupted, check_workers, run_side_by_side
from graphopt_gym.solutions import load_solution


def _compiling_explained() -> contextlib.AbstractContextManager[None]:
    compiled = sys.modules.get("graphopt_gym.compiled")
    return compiled.explained() if compiled else contextlib.nullcontext()


def method_table(env_id: str) -> dict[str, Method]:
    """The methods of a task: its own first, then the task-independent searches."""
    from graphopt_gym.search.methods import METHODS as SEARCHES

    task = find_task(env_id)
    own = {} if task is None else task.method_table()
    return {**own, **{name: method for name, method in SEARCHES.items() if name not in own}}


def installed_methods(env_id: str) -> dict[str, EntryPoint]:
    """Methods of other packages for a task: entry points of the group ``graphopt_gym.methods.<task>``.

    Each names a :class:`Method`, which ``load()`` imports. The learned agents' methods come in this way.
    """
    task = find_task(env_id)
    found = () if task is None else entry_points(group=f"graphopt_gym.methods.{task.name}")
    return {entry.name: entry for entry in found}


def find_method(env_id: str, name: str) -> Method:
    """The method of that name: the task's own, a search, or one of another installed package.

    Raises:
        InputError: no such method, with the nearest.
    """
    table = method_table(env_id)
    if name in table:
        return table[name]
    installed = installed_methods(env_id)
    if name not in installed:
        raise unknown_name("method", name, [*table, *installed])
    method: Method = installed[name].load()
    return method


def methods(env_id: str | Problem) -> list[str]:
    """The names of this package's methods for an environment, or a problem; ``solve`` takes those of others by name.

    Those that need decisions whose entries are free of each other are left out where they are not, and those that a
    problem's rules do not suit; an environment's name stands for all rules.
    """
    owner, known = (task_of(env_id).problem_class(), env_id) if isinstance(env_id, str) else (env_id, env_id.env_id)
    free = hasattr(owner, "num_choices")
    return [
        name
        for name, method in method_table(known).items()
        if (free or not method.free_entries) and (isinstance(env_id, str) or method.suits(env_id))
    ]


def method_options(method: Method, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A method's options: those given, and its own values for the rest.

    Raises:
        InputError: one that the method does not have, with the nearest.
    """
    for name in given or {}:
        if name not in method.options:
            if not method.options:
                raise InputError(f"method {method.name!r} takes no options; {name!r} was given")
            raise unknown_name(f"method {method.name!r}: option", name, method.options)
    return {**method.options, **(given or {})}


def solve(
    problem: Problem,
    method: str | Method,
    *,
    budget: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Solution:
    """Run one method on a problem.

    Args:
        problem: from :func:`make_problem`.
        method: one of ``methods(problem.env_id)``, one that another package installs, or a method of one's own.
        budget: most evaluations of the problem. Constructive heuristics use one or a few.
        seconds: most seconds, checked between evaluations; None for no limit.
        seed: of the method's random choices.
        options: of the method, by name; see ``Method.options``.
        progress: called with (evaluations, best cost so far).

    Returns:
        The best decision found. An interrupt (Ctrl-C) ends the run and keeps it.

    Raises:
        InputError: an unknown method or option, a value that an option cannot take, a budget or seconds not above 0, a
            module that the method needs and that is not installed, or nothing evaluated within the seconds.
    """
    chosen = method if isinstance(method, Method) else find_method(problem.env_id, method)
    check_limits(budget, seconds)
    whole("seed", seed)
    told = method_options(chosen, options)
    need(*chosen.needs, what=f"method {chosen.name!r}")
    if not chosen.suits(problem):
        asked = ", ".join(f"{name}={rule!r}" for name, rule in chosen.rules.items())
        raise InputError(f"method {chosen.name!r} is for problems with {asked}; make the problem with that")
    evaluator = Evaluator(problem, int(budget), seconds, progress, told)
    stopped_by = "finished"
    try:
        with _compiling_explained():
            chosen.run(evaluator, np.random.default_rng(seed))
    except BudgetSpent as spent:
        stopped_by = spent.by
    except KeyboardInterrupt:
        if evaluator.best is None:
            raise
        stopped_by = "interrupt"
    wall_s = evaluator.wall_s
    if evaluator.best is None:
        raise InputError(f"method {chosen.name!r} evaluated nothing within {evaluator.seconds} s; give more seconds")
    return Solution(
        problem=problem,
        method=chosen.name,
        seed=int(seed),
        decision=problem.check(evaluator.best),
        outcome=problem.evaluate(evaluator.best),
        evaluations=evaluator.evaluations,
        wall_s=wall_s,
        history=tuple(evaluator.history),
        stopped_by=stopped_by,
        trace=problem.trace(evaluator.best),
        options=evaluator.options,
        details=evaluator.details,
        budget=evaluator.budget,
        seconds=evaluator.seconds,
    )


def check_limits(budget: Any, seconds: Any) -> None:
    """Raises InputError for a budget or seconds that are none."""
    whole("budget", budget, 1)
    if seconds is not None:
        positive("seconds", seconds)


def compare(
    problem: Problem,
    names: Iterable[str],
    *,
    budget: int = 1000,
    seconds: float | None = None,
    seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    workers: int | str = 1,
    out: str | os.PathLike[str] | None = None,
    again: bool = False,
    progress: Callable[[str, int, int, float], Any] | None = None,
    say: Callable[[str], Any] = str,
) -> list[Solution]:
    """Several methods under one budget; random ones with seeds 0 to seeds-1, the others once.

    Args:
        problem: as :func:`solve` takes it; it is pickled where there are several workers.
        names: of methods.
        budget, seconds: of each run.
        seeds: of each random method.
        options: each method takes those that it has.
        workers: how many runs at a time, or where Ray is: see :func:`run_side_by_side`. The rows are the same.
        out: a folder in which each solution is kept as soon as it is done, as ``METHOD-SEED.json``. A run that is
            there already, of the same problem, budget, seconds and options, is not repeated, unless it was interrupted.
        again: repeat it.
        progress: called with (method, seed, evaluations, best cost); with several workers when a run is done.
        say: called with a line on what is not repeated, and on an interrupt.

    Returns:
        A solution a run, in order. An interrupt (Ctrl-C, SIGTERM) ends the runs and keeps those that have one.

    Raises:
        InputError: as :func:`solve` does, before anything runs, and for an option that no method has.
    """
    chosen = [find_method(problem.env_id, name) for name in dict.fromkeys(names)]
    if not chosen:
        raise InputError("no methods given; name at least one")
    check_limits(budget, seconds)
    whole("seeds", seeds, 1)
    known = {name for method in chosen for name in method.options}
    for name in options or {}:
        if name not in known:
            if not known:
                raise InputError(f"none of the methods takes options; {name!r} was given")
            raise unknown_name("option", name, known)
    here = check_workers(workers) == 1
    folder = make_folder(out) if out is not None else None
    runs: list[Run] = []
    for method in chosen:
        need(*method.needs, what=f"method {method.name!r}")
        own = {name: value for name, value in (options or {}).items() if name in method.options}
        told = method_options(method, own)
        limit = None if seconds is None else float(seconds)
        runs += [Run(method.name, seed, told, budget, limit) for seed in range(seeds if method.random else 1)]

    rows: dict[Run, Solution] = {}
    if folder and not again:
        for run in runs:
            if (kept := run.kept(problem, folder)) is not None:
                rows[run] = kept
                say(f"{run.file(folder)}: done before; not repeated (--again, again=True: repeats it)")
    todo = [run for run in runs if run not in rows]

    def keep(number: int, solution: Solution) -> None:
        if not here:
            outcome = solution.outcome or problem.evaluate(solution.decision)
            solution = replace(solution, problem=problem, outcome=outcome)
            if progress:
                progress(solution.method, solution.seed, solution.evaluations, outcome.cost)
        rows[todo[number]] = solution
        if folder:
            solution.save(todo[number].file(folder))

    try:
        function = partial(_solve_here, problem, progress) if here else partial(_solve_elsewhere, problem)
        run_side_by_side(function, todo, workers, keep)
    except Interrupted:
        if not rows:
            raise
        say(f"interrupted: {len(rows)} of {len(runs)} runs have a solution")
    return [rows[run] for run in runs if run in rows]


@dataclass(frozen=True, eq=False)
class Run:
    """One method on a problem, once."""

    method: str
    seed: int
    options: Mapping[str, Any]
    budget: int
    seconds: float | None

    def solve(self, problem: Problem, progress: Callable[[int, float], None] | None = None) -> Solution:
        limits = {"budget": self.budget, "seconds": self.seconds, "seed": self.seed}
        return solve(problem, self.method, options=self.options, progress=progress, **limits)  # type: ignore[arg-type]

    def file(self, folder: Path) -> Path:
        return folder / f"{file_stem(self.method)}-{self.seed}.json"

    def kept(self, problem: Problem, folder: Path) -> Solution | None:
        """What the folder holds of this run; None where that is nothing, or of another problem, limit or option."""
        try:
            stored = load_solution(self.file(folder))
        except InputError:
            return None
        theirs = [stored.method, stored.seed, stored.budget, stored.seconds, stored.options]
        theirs += [stored.env_id, stored.config, stored.fingerprints, stored.costs_of(problem)]
        mine = [self.method, self.seed, self.budget, self.seconds, self.options]
        mine += [problem.env_id, problem.config, problem.fingerprints(), problem.costs_version]
        if stored.stopped_by == "interrupt" or json.dumps(mine, default=dict) != json.dumps(theirs, default=dict):
            return None
        solution = stored.evaluate(problem)
        return solution if solution.outcome.valid == stored.valid and solution.outcome.cost == stored.cost else None


def _solve_here(problem: Problem, progress: Callable[[str, int, int, float], Any] | None, run: Run) -> Solution:
    return run.solve(problem, partial(progress, run.method, run.seed) if progress else None)


def _solve_elsewhere(problem: Problem, run: Run) -> Solution:
    """A solution without what the first process has or can make anew: the problem, and an outcome with a timeline."""
    solution = run.solve(problem)
    outcome = None if solution.outcome.timeline is not None else solution.outcome
    return replace(solution, problem=None, outcome=outcome)  # type: ignore[arg-type]
