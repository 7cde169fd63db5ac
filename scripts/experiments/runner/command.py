"""What ``graphopt reproduce NAME`` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runner import Experiment, agents, load
from experiments.runner.curves import draw_curves
from experiments.runner.page import render
from experiments.runner.runs import make_all, read_runs, store, stored_runs, train, trained_folder
from experiments.runner.tables import Runs, finite
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.files import write_file
from graphopt_gym.solutions import other_costs


def run(
    folder: Path,
    name: str,
    out: Path | None = None,
    graphs: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    workers: int | str = 1,
    tables: bool = False,
    pretrain: bool = False,
    measuring: bool = True,
    ship: bool = False,
) -> list[Any]:
    """Make the runs of an experiment that are missing, then its tables; the rows.

    Args:
        folder: ``scripts/experiments`` of a checkout.
        out: of the runs; None: ``out/NAME``.
        graphs, methods, seeds: None: all.
        workers: see ``run_side_by_side``.
        tables: only the tables. ``pretrain``: only what runs begin from. ``ship``: only the policy that is shipped.
        measuring: whether what is timed on this machine is.

    Raises:
        Interrupted: what is finished is kept.
        InputError: an unknown name, a bad seed; what a run raises.
    """
    experiment, root = load(folder, name), folder.parents[1]
    out = (out or root / "out" / name).absolute()
    methods = methods or list(experiment.entries)
    for method in methods:
        if method not in experiment.entries:
            raise unknown_name("method", method, experiment.entries)
    if ship:
        ship_policy(folder, name, out)
        return []
    if not tables:
        graphs = graphs or experiment.graphs
        numbers = [seed_of(seed) for seed in seeds] if seeds else experiment.seeds
        make_all(folder, name, out, graphs, methods, numbers, workers, pretrain)
        if experiment.measure and measuring and not pretrain:
            experiment.measure(out, read_runs(experiment, out), graphs)
    return [] if pretrain else write_tables(folder, name, out)


def seed_of(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"seed is {text!r}; give a whole number, at least 0")
    return int(text)


def write_tables(folder: Path, name: str, out: Path) -> list[Any]:
    """Write the results, the page and its figure of the runs in ``out``, or else of the stored ones; the rows."""
    experiment, root = load(folder, name), folder.parents[1]
    room, page = root / "envs_data" / experiment.room, root / "docs" / f"{experiment.room}.md"
    runs = of_todays_costs(experiment, read_runs(experiment, out), out)
    if not runs:
        print(f"no runs under {out}: the tables of those that are stored", file=sys.stderr)
        runs = stored_runs(room)
    summary = experiment.summary(runs, out)
    store(experiment, room, runs, summary)
    if experiment.curves:
        draw_curves(experiment, runs, page.parent)
    if experiment.draw:
        experiment.draw(runs, summary, page.parent)
    write_file(page, render(folder, name, summary).encode(), make_folders=True)
    print(f"wrote {room} and {page}", file=sys.stderr)
    return finite(summary["rows"])  # type: ignore[no-any-return]


def of_todays_costs(experiment: Experiment, runs: Runs, out: Path) -> Runs:
    """The runs that are priced as problems are now; how many are not, on standard error.

    Raises:
        InputError: there are runs, and none is.
    """
    kept = Runs(
        {job: run for job, run in runs.items() if not other_costs(run.get("costs_version"), experiment.problem(job[0]))}
    )
    if len(kept) < len(runs):
        what = f"{len(runs) - len(kept)} of {len(runs)} runs under {out} are priced by other costs than today's"
        if not kept:
            raise InputError(f"{what}; make them again: leave out --tables")
        print(f"{what}: left out of the tables", file=sys.stderr)
    return kept


def ship_policy(folder: Path, name: str, out: Path) -> None:
    """Train the policy that is shipped, as far as it is not, and write it."""
    experiment = load(folder, name)
    if experiment.shipped is None:
        raise InputError(f"experiment {name!r} ships no policy")
    agent, wanted = experiment.shipped
    train(wanted, out)
    target = folder.parents[1] / "envs_data" / "checkpoints" / f"{agent}.pt"
    agents.ship(trained_folder(wanted, out), target, f"graphopt reproduce {name} --ship")
    print(f"wrote {target}", file=sys.stderr)
