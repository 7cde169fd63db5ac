"""What the placer's parts take beside a simulation, and its search beside annealing's compiled walk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from graphopt_agents.placer.arrays import make_arrays
from graphopt_agents.placer.candidates import heuristic
from graphopt_agents.placer.plan import plan
from graphopt_agents.placer.ranker import Ranker
from graphopt_agents.placer.scorer import BY_HAND, place
from graphopt_agents.placer.search import GuidedWalk
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.graphs.zoo.registry import own_cluster
from graphopt_gym.search.walk import Walk

GRAPHS = ("transformer_xl_8layer", "inception_v3_b32", "amoebanet", "gnmt_8layer")
EVALUATIONS, ROUNDS = 400, 3


def placer_report(graphs: tuple[str, ...] = GRAPHS, say: Callable[[str], object] = str) -> dict[str, Any]:
    """The table behind ``graphopt bench placer``: an untrained ranker takes as long as a trained one."""
    rows = []
    for graph in graphs:
        say(graph)
        rows.append(_measured(graph))
    notes = [
        "arrays_ms, heuristics_ms: once a problem; candidate_us, plan_us, simulation_us: of one placement",
        "walk, unguided_walk, annealing_walk: simulated placements a second, from the same placement; the first also "
        "analyses timelines, and ranks 64 moves for each few that it simulates",
        f"each the best of {ROUNDS}, in turn, one thread",
    ]
    return {"title": "placer", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _least_s(function: Callable[[], Any], repeats: int = ROUNDS) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def _measured(graph: str) -> dict[str, Any]:
    problem = PlacementProblem(graph, own_cluster(graph))
    arrays, peak = make_arrays(problem), np.empty(problem.num_devices)
    home = place(arrays, BY_HAND)
    cost, valid = problem.costs(problem.decision_of(home)[None])
    torch.manual_seed(0)
    network = Ranker().arrays()

    def walked(walk: Callable[[Walk, int, int], None]) -> Callable[[], None]:
        def run() -> None:
            state = Walk(home, float(cost[0]), 0, home, float(cost[0]), bool(valid[0]))
            walk(state, EVALUATIONS, EVALUATIONS)

        run()  # what is compiled is compiled here
        return run

    def guided(by_ranker: bool) -> Callable[[Walk, int, int], None]:
        return lambda state, steps, most_idle: GuidedWalk(problem, arrays, network, by_ranker)(state, steps, most_idle)

    walks = {"walk": guided(True), "unguided_walk": guided(False), "annealing_walk": problem.walk}
    runs = {name: walked(walk) for name, walk in walks.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            taken[name].append(_least_s(run, 1))
    rates = {name: EVALUATIONS / min(times) for name, times in taken.items()}
    plan(arrays, home, peak)
    return {
        "graph": graph,
        "groups": problem.num_groups,
        "tasks": problem.simulator.num_tasks,
        "devices": problem.num_devices,
        "arrays_ms": 1e3 * _least_s(lambda: make_arrays(problem)),
        "heuristics_ms": 1e3 * _least_s(lambda: heuristic(problem, 0)),
        "candidate_us": 1e6 * _least_s(lambda: place(arrays, BY_HAND)),
        "plan_us": 1e6 * _least_s(lambda: plan(arrays, home, peak)),
        "simulation_us": 1e6 * _least_s(lambda: problem.costs(problem.decision_of(home)[None])),
        **rates,
        "to_annealing": rates["walk"] / rates["annealing_walk"],
    }
