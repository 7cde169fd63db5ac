"""Steps a second of ``GangScheduling-v0``, beside the simulator alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.gang.problem import GangProblem

CASES = (
    ("decoder_3b", "pathways_b_16hosts"), ("tenants_even", "pathways_b_4hosts"), ("tenants_mixed", "pathways_c"),
)  # fmt: skip


def env_report(cases: Sequence[tuple[str, str]] = CASES, say: Callable[[str], object] = str) -> dict[str, Any]:
    """``GangScheduling-v0`` on slices where ``spread`` puts them, one environment and several, a random one of the
    legal actions each step; and what a whole decision takes the simulator.

    Args:
        cases: workloads and machines.
        say: takes a line on what is done.
    """
    rows = []
    for graph, cluster in cases:
        say(f"steps a second on {graph}")
        problem = GangProblem(graph, cluster, place=False)
        start = problem.decision_of(0, np.zeros(problem.plans[0].program.num_gangs, np.int32), False)
        rows.append(
            {
                "workload": graph,
                "machine": cluster,
                "gangs": problem.plans[0].program.num_gangs,
                "steps_per_s": _rate(1, graph, cluster),
                f"steps_per_s_of_{timing.VECTOR_ENVS}": _rate(timing.VECTOR_ENVS, graph, cluster),
                "decision_ms": timing.least_ms(partial(problem.costs, start[None])),
            }
        )
    notes = ["resets counted; the mask is asked for at every step; one process"]
    return {"title": "GangScheduling-v0", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _rate(count: int, graph: str, cluster: str, steps: int = 400) -> float:
    """Steps a second of all environments together, after an episode's worth of steps that nobody counts."""
    arguments: dict[str, Any] = {"graph": graph, "cluster": cluster, "place": False}
    env: Any = (
        gym.make("GangScheduling-v0", disable_env_checker=True, **arguments).unwrapped
        if count == 1
        else gym.make_vec("GangScheduling-v0", count, vectorization_mode="vector_entry_point", **arguments)
    )
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def run(taken: int) -> None:
        ended = False
        for _ in range(taken):
            if ended:
                env.reset()
            masks = np.atleast_2d(env.action_masks())
            actions = np.where(masks, rng.random(masks.shape), -1.0).argmax(axis=1)
            ended = count == 1 and env.step(int(actions[0]))[2]
            if count > 1:
                env.step(actions)

    run(20)
    begun = time.perf_counter()
    rounds = max(20, steps // count)
    run(rounds)
    return count * rounds / (time.perf_counter() - begun)
