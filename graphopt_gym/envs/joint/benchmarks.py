"""What a joint evaluation takes: fusing, the columns of kernels, and the engine on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import least_ms
from graphopt_gym.envs.joint.problem import GraphOptimizationProblem
from graphopt_gym.graphs.zoo.registry import ZOO, own_cluster

GRAPHS = (
    "bert_base", "inception_v3_b32", "gnmt_2layer", "gnmt_8layer",
    "random:num_ops=2000:seed=1", "random:num_ops=20000:seed=1", "random:num_ops=80000:seed=1",
)  # fmt: skip


def joint_report(graphs: Sequence[str] = GRAPHS, say: Callable[[str], object] = str) -> dict[str, Any]:
    """Milliseconds of this process, the least of several: the engine on single ops in the default placement, fusing
    greedily, and whole evaluations: of the default stack and of a random decision."""
    rows = []
    for graph in graphs:
        say(f"evaluating decisions on {graph}")
        problem = GraphOptimizationProblem(graph, own_cluster(graph) if graph in ZOO else "v100x4")
        default = problem.decision_of(problem.default)[None]
        placed = problem.default.placement[problem.group_of_task]
        drawn = problem.sample(np.random.default_rng(0))[None]
        levels = np.zeros((1, problem.num_tasks))
        evaluation_ms = least_ms(partial(problem.costs, default))
        rows.append(
            {
                "graph": graph,
                "cluster": problem.cluster.name,
                "ops": problem.num_tasks,
                "edges": len(problem.fused.tables.succ),
                "engine_ms": least_ms(partial(problem.simulator.run_many, placed[None], levels)),
                "fusing_ms": least_ms(partial(problem.fused.kernel_of_task, placed, problem.default.fusion)),
                "default_ms": evaluation_ms,
                "random_ms": least_ms(partial(problem.costs, drawn)),
                "ns_per_edge": 1e6 * evaluation_ms / max(1, len(problem.fused.tables.succ)),
            }
        )
    return {
        "title": "Joint evaluations", "columns": list(rows[0]), "rows": rows,
        "notes": ["one decision on one core; the engine alone runs single ops, so more of them than kernels"],
    }  # fmt: skip
