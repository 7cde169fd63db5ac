"""``graphopt solve`` and ``graphopt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import (
    BudgetOption,
    ClusterOption,
    DimsOption,
    EnvArgument,
    GraphOption,
    JsonFlag,
    MethodOption,
    SecondsOption,
    SetOption,
)
from graphopt_gym.files import check_output
from graphopt_gym.units import format_cost

if TYPE_CHECKING:
    from graphopt_gym.problem import Solution


def solve(
    env: EnvArgument,
    method: Annotated[str, typer.Option("--method", "-m", help="See: graphopt list methods.")],
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    dims: DimsOption = None,
    settings: SetOption = None,
    options: MethodOption = None,
    budget: BudgetOption = 1000,
    seconds: SecondsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the method's random choices.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the solution here, as JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run one method on a problem. Ctrl-C keeps the best so far."""
    from graphopt_gym.search.solve import solve as run

    given, told = common.parse_settings(settings), common.parse_settings(options, "--option")
    check_output(out, inputs=(graph, cluster, *given.values()))
    problem = common.build_problem(env, graph, cluster, given, dims)
    with common.progress_bar(method, budget) as update:

        def progress(evaluations: int, best: float) -> None:
            if update:
                update(evaluations, format_cost(best, problem.unit))

        solution = run(
            problem,
            method,
            budget=budget,
            seconds=seconds,
            seed=seed,
            options=told,
            progress=progress if update else None,
        )
    _say_interrupted([solution])
    if out:
        solution.save(out)
    if as_json:
        common.print_json(solution.row())
    else:
        common.print_solution(solution, out)
    if not solution.outcome.valid:
        raise typer.Exit(1)


def compare(
    env: EnvArgument,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    dims: DimsOption = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names, with commas between; if left out, all classical ones for any size."),
    ] = None,
    settings: SetOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="An option, for methods that have it; may be repeated."),
    ] = None,
    budget: BudgetOption = 1000,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Most seconds a method and seed.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each random method.")] = 3,
    workers: Annotated[
        str,
        typer.Option("--workers", metavar="N|ray|ADDRESS", help="Runs at a time, or the Ray cluster that runs them."),
    ] = "1",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the solutions; runs that are there already are not repeated."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Repeat them.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run several methods on one problem, under one budget. Ctrl-C keeps what is done."""
    from graphopt_gym.report.tables import comparison_table
    from graphopt_gym.search.solve import compare as run
    from graphopt_gym.search.solve import find_method
    from graphopt_gym.search.solve import methods as all_methods

    told = common.parse_settings(options, "--option")
    problem = common.build_problem(env, graph, cluster, common.parse_settings(settings), dims)
    if methods is None:
        names = [name for name in all_methods(problem) if not find_method(problem.env_id, name).small]
    else:
        names = [name.strip() for name in methods.split(",") if name.strip()]
    with common.progress_bar("", budget) as update:

        def progress(method: str, seed: int, evaluations: int, best: float) -> None:
            if update:
                update(evaluations, format_cost(best, problem.unit), label=f"{method} (seed {seed})")

        solutions = run(
            problem,
            names,
            budget=budget,
            seconds=seconds,
            seeds=seeds,
            options=told,
            workers=workers,
            out=out,
            again=again,
            progress=progress if update else None,
            say=common.warn,
        )
    _say_interrupted(solutions)
    if as_json:
        common.print_json({"rows": [solution.row() for solution in solutions]})
    else:
        title = f"{problem.env_id}: {problem.title}, at most {budget:,} {problem.words.evaluation}s a run"
        common.show(comparison_table(solutions, title), as_json=False)
        if out:
            common.say(f"solutions: {out}   report: graphopt report {out}")
    if not any(solution.outcome.valid for solution in solutions):
        raise typer.Exit(1)


def _say_interrupted(solutions: list[Solution]) -> None:
    for solution in solutions:
        if solution.stopped_by == "interrupt":
            common.warn(f"interrupted: {solution.method} keeps the best of its {solution.evaluations:,} evaluations")
