"""Runs: made side by side, a file each, claimed by processes, and read again."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runner import Experiment, Pretraining, agents, load
from experiments.runner.tables import Job, Runs, finite
from graphopt_gym.files import write_file, write_text
from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.search.solve import find_method, solve
from graphopt_gym.search.workers import run_side_by_side
from graphopt_gym.solutions import other_costs
from graphopt_gym.units import format_cost

FINISHED = "finished"  # a file in the folder of a network that is trained
ENDLESS = 10**9  # evaluations: more than any run makes


class Made(NamedTuple):
    """How a job went, and what its file holds, if it has one."""

    line: str
    text: str | None = None


BUSY = Made("another process is at it, or at what it begins from")


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process has the claim, until it is done or ends, however it ends; others keep off meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        mine = False
        with contextlib.suppress(OSError):  # another has it, or has just given it up
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)


def run_file(out: Path, job: Job) -> Path:
    """Where a run is kept."""
    graph, name, seed = job
    return out / graph / f"{name}-{seed}.json"


def is_there(experiment: Experiment, out: Path, job: Job) -> bool:
    """Whether a run is kept, and of its problem as it is now."""
    path = run_file(out, job)
    if not path.exists():
        return False
    run, problem = json.loads(path.read_text("utf-8")), experiment.problem(job[0])
    return bool(run["fingerprints"] == problem.fingerprints()) and not other_costs(run.get("costs_version"), problem)


def make_all(
    folder: Path,
    name: str,
    out: Path,
    graphs: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    workers: int | str = 1,
    only_train: bool = False,
) -> None:
    """Make the runs that are missing, a seed of everything before the next, so that an early end leaves whole tables.

    What entries begin from is trained beside the runs of those that begin from nothing. What other processes are at is
    left to them. On a Ray cluster whose machines do not share ``out``, each trains by itself what its runs begin from.

    Raises:
        Interrupted: see ``run_side_by_side``; what is finished is kept, and a training goes on where it was.
        InputError: what a run raises.
    """
    experiment = load(folder, name)
    make = functools.partial(make_one, folder, name, out)
    batch: list[tuple[str, Job]] = []
    for seed in seeds:
        todo = [
            (graph, method, seed)
            for method in methods
            for graph in graphs
            if graph in (experiment.entries[method].graphs or graphs)
            and (seed == seeds[0] or experiment.is_random(method))
            and not is_there(experiment, out, (graph, method, seed))
        ]
        begin = {job: trained_folder(wanted, out) for job in todo if (wanted := experiment.pretraining(job))}
        first = {path: job for job, path in reversed(begin.items()) if not (path / FINISHED).exists()}
        batch += [("run", job) for job in todo if job not in begin and not only_train]
        if first:
            _make(make, [*batch, *(("train", job) for job in first.values())], out, workers)
            batch = []
        batch += [("run", job) for job in begin if not only_train]
    _make(make, batch, out, workers)


def _make(make: Callable[[Any], Made], batch: Sequence[tuple[str, Job]], out: Path, workers: int | str) -> None:
    waiting = 0

    def progress(number: int, made: Made) -> None:
        nonlocal waiting
        what, job = batch[number]
        path = run_file(out, job)
        waiting += made == BUSY
        # a machine of a cluster may keep its files to itself
        if made.text is not None and not (path.exists() and path.read_text("utf-8") == made.text):
            write_file(path, made.text.encode(), make_folders=True)
        print(f"[{number + 1}/{len(batch)}] {what} {' '.join(map(str, job))}: {made.line}", file=sys.stderr, flush=True)

    if batch:
        run_side_by_side(make, batch, workers, progress)
    if waiting:
        print(f"{waiting} are left to other processes; run this again when they are done", file=sys.stderr)


def make_one(folder: Path, name: str, out: Path, todo: tuple[str, Job]) -> Made:
    """Make a run and write it, or train what runs begin from.

    Raises:
        KeyboardInterrupt: it was stopped; a run that is not finished is not kept.
    """
    experiment, (what, job) = load(folder, name), todo
    wanted, path = experiment.pretraining(job), run_file(out, job)
    if what == "train":
        assert wanted is not None
        return train(wanted, out)
    with claim(path.with_suffix(".claim")) as mine:
        if not mine:
            return BUSY
        if is_there(experiment, out, job):
            return Made("made by another process meanwhile", path.read_text("utf-8"))
        if wanted and train(wanted, out) == BUSY:
            return BUSY
        row = run_row(experiment, job, trained_folder(wanted, out) if wanted else None)
        text = json.dumps(finite(row)) + "\n"
        write_text(path, text)
    cost = format_cost(row["cost"], row["unit"]) if row.get("valid") else "nothing valid"
    return Made(f"{cost}, {row['evaluations']:,} evaluations, {row['wall_s']:.1f} s", text)


def trained_folder(wanted: Pretraining, out: Path) -> Path:
    """Where a network that runs begin from is kept."""
    return out / "pretrained" / wanted.name


def train(wanted: Pretraining, out: Path) -> Made:
    """Train a network that runs begin from, as far as it is not."""
    folder = trained_folder(wanted, out)
    finished = folder / FINISHED
    if not finished.exists():
        with claim(folder.with_name(f"{folder.name}.claim")) as mine:
            if not mine:
                return BUSY
            if not finished.exists():
                write_text(finished, agents.train(wanted, out, folder) + "\n")
    return Made(finished.read_text("utf-8").strip())


def run_row(experiment: Experiment, job: Job, start_from: Path | None) -> dict[str, Any]:
    """What a run's file holds."""
    graph, name, seed = job
    problem, entry = experiment.problem(graph), experiment.entries[name]
    if experiment.run:
        return experiment.run(name, problem, seed)
    if entry.agent:
        method = Method(name, agents.method_run(entry, start_from, seed), "", "", random=True)
    else:
        method = find_method(experiment.env, entry.method or name)
    seconds = entry.seconds(graph) if callable(entry.seconds) else entry.seconds
    solution = solve(
        problem,
        dataclasses.replace(method, run=counted(method)) if entry.count_valid else method,
        budget=entry.budget or (experiment.budget if seconds is None else ENDLESS),
        seconds=seconds or experiment.seconds,
        seed=seed,
        options=None if entry.agent else entry.options,
    )
    if solution.stopped_by == "interrupt":
        raise KeyboardInterrupt
    return {**solution.to_json(), **(experiment.facts(problem, solution) if experiment.facts else {})}


def counted(method: Method) -> Any:
    """A method's run that also notes what share of its decisions was valid."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        try:
            method.run(evaluator, rng)
        finally:
            evaluator.note(valid_share=evaluator.valid_evaluations / max(1, evaluator.evaluations))

    return run


def read_runs(experiment: Experiment, out: Path) -> Runs:
    """Finished runs of the experiment's graphs and entries."""
    runs = Runs()
    for path in sorted(out.glob("*/*-*.json")):
        graph, (name, _, seed) = path.parent.name, path.stem.rpartition("-")
        if graph in experiment.graphs and name in experiment.entries:
            runs[graph, name, int(seed)] = {**json.loads(path.read_text("utf-8")), "name": name}
    return Runs(sorted(runs.items()))


def stored_runs(room: Path) -> Runs:
    """The runs in a folder of ``envs_data``; none where it keeps none."""
    path = room / "runs.json.gz"
    kept = json.loads(gzip.decompress(path.read_bytes())) if path.exists() else []
    return Runs({(run["graph"], run["name"], run["seed"]): run for run in kept})


def store(experiment: Experiment, room: Path, runs: Runs, summary: Mapping[str, Any]) -> None:
    """Write what is kept of the runs, and the summary, into a folder of ``envs_data``."""
    if runs and experiment.kept:
        kept = [
            {"graph": graph, "name": name, **{key: run[key] for key in experiment.kept if key in run}}
            for (graph, name, _), run in runs.items()
        ]
        text = json.dumps(kept, separators=(",", ":")).encode()
        write_file(room / "runs.json.gz", gzip.compress(text, mtime=0), make_folders=True)
    whole = json.dumps(finite(summary), indent=1) + "\n"
    write_file(room / "summary.json", whole.encode(), make_folders=True)
    if runs and experiment.store:
        experiment.store(room, runs)
