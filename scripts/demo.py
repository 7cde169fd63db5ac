"""The main job, start to end: place one training step of BERT on four GPUs with every method, train an agent, draw it.

Run it with ``scripts/demo``, which installs first. Step times are simulated; see README.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.files import make_folder, write_text
from graphopt_gym.graphs.generators import chain
from graphopt_gym.problem import Outcome, Problem, Solution
from graphopt_gym.report.files import write_comparison
from graphopt_gym.report.tables import comparison_table
from graphopt_gym.units import format_cost, format_seconds

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graph", default="bert_base")
    parser.add_argument("--cluster", default="v100x4")
    parser.add_argument("--budget", type=int, default=20_000, help="most simulator calls of each classical method")
    parser.add_argument("--steps", type=int, default=150_000, help="decisions that the agent takes in training")
    parser.add_argument("--agent", default="maskable_ppo", choices=["ppo", "maskable_ppo"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    # without a terminal each result is a line, and tables are as wide as they need
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    make_folder(args.out)
    problem = gg.make_problem("Placement-v0", graph=args.graph, cluster=args.cluster)
    facts = problem.graph.statistics()
    console.rule(f"[bold]{problem.graph.name} on {problem.cluster.name}")
    console.print(
        f"One training step: {facts['ops']:,} ops, {facts['edges']:,} edges, in {facts['groups']:,} groups that are "
        f"placed together, on {problem.cluster.num_devices} devices ({problem.cluster.about}). All times are simulated."
    )
    with console.status("compiling the simulator (the first time, about half a minute)"):
        warm_up(problem)

    solutions = solve_all(console, problem, args)
    console.print(f"\nNow {args.agent} (reinforcement learning) takes {args.steps:,} decisions to learn the same:")
    agent = train_agent(console, args)
    solutions.append(agent)
    solutions.sort(key=lambda solution: (not solution.outcome.valid, solution.outcome.cost))

    table = comparison_table(solutions, f"{problem.graph.name} on {problem.cluster.name}, one simulated training step")
    note = f"{agent.method}: its calls are its decisions in training, of which those that change nothing need no call"
    table = replace(table, notes=(*table.notes, note))
    console.print()
    table.print(console)
    paths = [solution.save(args.out / f"{solution.method}.json") for solution in solutions]
    paths.append(write_text(args.out / "table.md", table.to_markdown()))
    with console.status("drawing the chart, the trace and the report"):
        pictures = write_comparison([(solution.method, solution) for solution in solutions], args.out)
    console.print(
        f"done in {format_seconds(time.perf_counter() - started)}; check a solution again: graphopt validate FILE"
    )
    for path in [*paths, *pictures]:
        print(path)


def warm_up(problem: Problem) -> None:
    """Compile what the methods run, on a tiny problem, so that their times are their own."""
    tiny = gg.make_problem(problem.env_id, graph=chain(8), cluster=problem.cluster)
    for name in gg.methods(tiny):
        gg.solve(tiny, name, budget=4)


def solve_all(console: Console, problem: Problem, args: argparse.Namespace) -> list[Solution]:
    """Every classical method, each with the same budget of simulator calls."""
    solutions = []
    names = gg.methods(problem)
    console.print(f"\n{len(names)} classical methods, at most {args.budget:,} simulator calls each:")
    for name in names:
        with bar(console, name, args.budget) as progress:
            solution = gg.solve(
                problem, name, budget=args.budget, seed=args.seed, progress=partial(show_search, progress)
            )  # fmt: skip
        solutions.append(solution)
        result = step_time(solution.outcome)
        console.print(
            f"  {name:<20} {result:>24}   {solution.evaluations:>6,} calls   {format_seconds(solution.wall_s)}"
        )
    return solutions


def show_search(progress: Progress, calls: int, best: float) -> None:
    progress.update(progress.task_ids[0], completed=calls, text=format_cost(best, "s"))


def step_time(outcome: Outcome) -> str:
    return format_cost(outcome.cost, outcome.unit) if outcome.valid else "does not fit in memory"


def train_agent(console: Console, args: argparse.Namespace) -> Solution:
    """A small agent on the same problem; what it has found so far stands beside the bar."""
    from graphopt_agents.ppo import TRAINERS, Args

    checkpoint = args.out / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)  # of an earlier demo; training would refuse to overwrite it
    given = Args(graph=args.graph, cluster=args.cluster, steps=args.steps, seed=args.seed)
    said = 0.0
    with bar(console, args.agent, args.steps) as progress:
        task = progress.task_ids[0]

        def show(row: dict[str, float]) -> None:
            nonlocal said
            steps = int(row["steps"])
            text = f"mean {format_cost(row['mean_cost'], 's')}  best {format_cost(row['best_cost'], 's')}"
            progress.update(task, completed=steps, text=text)
            due = row["wall_s"] - said >= 5 or steps >= args.steps
            if due and not console.is_terminal:  # a log has no bar
                said = row["wall_s"]
                console.print(f"  {steps:>9,} decisions  {row['wall_s']:>6.1f} s  {text}")

        result = TRAINERS[args.agent].train(given, checkpoint, progress=show)
    solution = result.solution()
    console.print(
        f"  {solution.method}: best {step_time(solution.outcome)}, by its likeliest actions "
        f"{step_time(result.likeliest().outcome)}, in {format_seconds(solution.wall_s)}"
    )
    return solution


def bar(console: Console, label: str, total: int) -> Progress:
    """A progress bar with one task, drawn only on a terminal."""
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task(label, total=total, text="")
    return progress


if __name__ == "__main__":
    main()
