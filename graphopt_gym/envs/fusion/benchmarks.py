"""What fusing and pricing a decision takes, beside the engine alone on ops by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import least_ms
from graphopt_gym.envs.fusion.methods import greedy
from graphopt_gym.envs.fusion.problem import FusionProblem

GRAPHS = ("bert_base", "inception_v3_b32", "wavenet_4x36", "gnmt_2layer", "gnmt_8layer")


def fusion_report(
    graphs: Sequence[str] = GRAPHS, cluster: str = "v100x2", say: Callable[[str], object] = str
) -> dict[str, Any]:
    """Milliseconds of this process, the least of several: the engine on single ops, fusing by random levels, and the
    whole evaluation, fusing and the columns of kernels included; and how many kernels the greedy order leaves."""
    rows = []
    for graph in graphs:
        say(f"fusing {graph}")
        problem = FusionProblem(graph, cluster)
        decision = problem.sample(np.random.default_rng(0))[None]
        placement = problem.placement[None]
        engine_ms = least_ms(partial(problem.simulator.run_many, placement))
        fusing_ms = least_ms(partial(problem.fused.kernel_of_task, problem.placement, decision[0]))
        rows.append(
            {
                "graph": graph,
                "ops": problem.num_tasks,
                "kernels": int(problem.fused.run_many(placement, greedy(problem)[None])[1][0]),
                "engine_ms": engine_ms,
                "fusing_ms": fusing_ms,
                "evaluation_ms": least_ms(partial(problem.costs, decision)),
                "ns_per_edge": 1e6 * fusing_ms / max(1, len(problem.fused.tables.succ)),
            }
        )
    return {
        "title": f"Fusion on {cluster}", "columns": list(rows[0]), "rows": rows,
        "notes": ["kernels: of the greedy order, sources included; evaluation: of random levels, one decision"],
    }  # fmt: skip
