"""How long it takes from nothing to a first outcome and a first step, on a new machine and later."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from graphopt_gym.registration import env_ids, task_of

REPEATS = 3  # of what is not compiled; the least counts
STEP = (
    "import sys, gymnasium, graphopt_gym; env = gymnasium.make(sys.argv[1]); env.reset(seed=0); "
    "env.step(env.action_space.sample())"
)


def start_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The table behind ``graphopt bench start``: seconds of processor time, each of a new process."""
    rows = []
    for env_id in env_ids():
        task = task_of(env_id)
        works = {"first_step": ["-c", STEP, env_id]}
        if env_id == task.env_id:
            method = (*task.starts, "random")[0]
            works["first_outcome"] = ["-m", "graphopt_gym", "solve", env_id, "--method", method]
        row: dict[str, Any] = {"environment": env_id}
        for name in ("first_outcome", "first_step"):
            cold, warm = f"{name}_cold_s", f"{name}_warm_s"
            row[cold] = row[warm] = None
            if name in works:
                with tempfile.TemporaryDirectory() as folder:
                    say(f"{env_id}: {name}")
                    row[cold] = _cpu_s(works[name], folder)
                    row[warm] = min(_cpu_s(works[name], folder) for _ in range(REPEATS))
        rows.append(row)
    import_s = min(_cpu_s(["-c", "import graphopt_gym"], "") for _ in range(REPEATS))
    notes = (
        "processor time of a new process, all of it; cold: nothing compiled is kept; warm: the least of "
        f"{REPEATS} runs afterwards",
        f"import graphopt_gym alone: {import_s:.2f} s",
    )
    return {"title": "Start", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _cpu_s(arguments: list[str], folder: str) -> float:
    """Processor time of a Python process that keeps what it compiles in a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
