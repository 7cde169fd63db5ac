"""The one place where experiments meet the learned agents: as methods, as pre-trainings, as what is shipped."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.runner import Entry, Pretraining
from graphopt_gym.agent import find_agent
from graphopt_gym.files import write_file, write_text
from graphopt_gym.search.evaluator import Evaluator

Run = Callable[[Evaluator, np.random.Generator], None]


def method_run(entry: Entry, start_from: Path | None, seed: int) -> Run:
    """What an entry's agent does on a problem."""
    trainer = find_agent(entry.agent or "").load()
    paper = importlib.import_module(trainer.__module__).paper_arguments() if entry.paper else {}
    given = {**paper, **entry.options}
    if not entry.zero_shot:
        return trainer.method_run(start_from, **given)  # type: ignore[no-any-return]
    if start_from:
        return trainer.zero_shot_run(start_from)  # type: ignore[no-any-return]

    def untrained(evaluator: Evaluator, rng: np.random.Generator) -> None:
        task = trainer.task_of(evaluator.problem, None, evaluator.costs_and_valid)
        network = trainer(trainer.args_from({"seed": seed, **given}), [task]).network
        trainer.place(network, task, evaluator.left, int(rng.integers(2**31)))

    return untrained


def train(wanted: Pretraining, out: Path, folder: Path) -> str:
    """Train a network, or go on with it; what it took, in words.

    Raises:
        KeyboardInterrupt: it was stopped; what it has learned is kept.
    """
    trainer = find_agent(wanted.agent).load()
    arguments = trainer.args_from(wanted.arguments(out))
    result = trainer.train(arguments, folder, resume=(folder / "checkpoint.pt").exists())
    if result.interrupted:
        raise KeyboardInterrupt
    return f"{result.evaluations:,} evaluations, {result.wall_s:.1f} s"


def ship(folder: Path, target: Path, command: str) -> None:
    """Write a run's policy as the one that is shipped, without what only training needs, and its curve beside it."""
    from graphopt_agents.core import checkpoints

    target.parent.mkdir(parents=True, exist_ok=True)
    kept = checkpoints.load_checkpoint(folder)
    facts = {
        "command": command,
        "evaluations": sum(int(task["trials"]) for task in kept.state["tasks"].values()),
        "wall_s": round(float(kept.state["wall_s"]), 1),
    }
    checkpoints.save_checkpoint(target, kept.agent, kept.args, {"network": kept.state["network"]}, facts)
    text = json.dumps({**facts, "args": kept.args, "libraries": kept.libraries})
    write_text(target.with_suffix(".json"), text + "\n")
    write_file(target.with_suffix(".csv.gz"), gzip.compress((folder / "curve.csv").read_bytes(), mtime=0))
