"""What pricing an order takes, and what the rules take that find one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import least_ms
from graphopt_gym.envs.scheduling.methods import decision_of
from graphopt_gym.envs.scheduling.problem import SchedulingProblem

GRAPHS = ("bert_base", "inception_v3_b32", "rnnlm_2layer", "gnmt_2layer")
SHOWN = ("program", "placed_rank", "most_work_remaining", "depth_first", "liu", "memory_greedy")
ROUNDS = 5


def scheduling_report(
    graphs: Sequence[str] = GRAPHS, cluster: str = "v100x2", say: Callable[[str], object] = str
) -> dict[str, Any]:
    """Milliseconds of this process, the least of several: an evaluation of random levels, and each rule from the graph
    to a decision."""
    rows = []
    for graph in graphs:
        say(f"ordering {graph}")
        problem = SchedulingProblem(graph, cluster)
        decision = problem.sample(np.random.default_rng(0))[None]
        row: dict[str, Any] = {"graph": graph, "ops": problem.num_tasks}
        row["evaluation_ms"] = least_ms(partial(problem.costs, decision), ROUNDS)
        row |= {f"{name}_ms": least_ms(partial(decision_of, problem, name), ROUNDS) for name in SHOWN}
        rows.append(row)
    return {
        "title": f"Scheduling on {cluster}", "columns": list(rows[0]), "rows": rows,
        "notes": ["evaluation: of random levels, one decision; a rule: its priorities, and the levels that stand for "
                  "them"],
    }  # fmt: skip
