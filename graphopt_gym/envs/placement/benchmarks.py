"""Steps a second of ``Placement-v0``, how much of it is the simulator; and what the order of a step is worth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.placement.moves import SETS
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.search.solve import solve
from graphopt_gym.search.walk import Walk
from graphopt_gym.simulator.orders import ORDERS
from graphopt_gym.simulator.simulator import cores


def env_report(graph: str = "bert_base", cluster: str = "v100x4", say: Callable[[str], object] = str) -> dict[str, Any]:
    """``Placement-v0`` under a random policy: one environment, and the vector one on all cores.

    A row each for the environment with a reward a step (a simulation a step, where the placement changed) and with
    the terminal reward (one an episode). ``simulations_per_s`` is the engine alone on the same placements, one after
    the other, and ``overhead_s`` what a step takes beyond its simulation.
    """
    problem = PlacementProblem(graph, cluster)
    groups, devices = problem.num_groups, problem.num_devices

    def choose(count: int) -> Callable[[Any], Any]:
        shape = (groups,) if count == 1 else (groups, count)
        actions = itertools.cycle(np.random.default_rng(0).integers(0, devices, shape))
        return lambda observation: next(actions)

    start = problem.check(np.zeros(groups, np.int32))
    actions = np.random.default_rng(0).integers(0, devices, groups, dtype=np.int32)
    steps = np.where(np.tri(groups, dtype=bool), actions, start)  # the placement after each step of an episode
    changed = steps[actions != start]
    rows = []
    for reward, simulated in (("improvement", changed), ("terminal", steps[-1:])):
        say(f"steps a second with reward {reward!r}")
        counts = (1, timing.VECTOR_ENVS)
        one, several = timing.step_rates(
            "Placement-v0", groups, choose, counts, graph=graph, cluster=cluster, reward=reward
        )

        def simulations(simulated: np.ndarray = simulated) -> int:
            for placement in simulated:
                problem.simulator.cost(placement[problem.group_of_task])
            return len(simulated)

        engine = timing.best_rate(simulations)
        overhead = 1 / one["steps_per_s"] - len(simulated) / groups / engine
        rows.append({"reward": reward, **one, "simulations_per_s": engine, "overhead_s": overhead})
        rows.append({"reward": reward, **several, "simulations_per_s": None, "overhead_s": None})
    notes = [
        f"{problem.graph.num_ops} ops, {groups} groups, {devices} devices; {cores()} cores; random actions in whole "
        f"episodes, best of {timing.ROUNDS} rounds",
        "a step simulates the whole graph where its action changed the placement (about 3 in 4 on 4 devices)",
    ]
    return {"title": f"Placement-v0 on {graph}, {cluster}", "columns": list(rows[0]), "rows": rows, "notes": notes}


def order_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """The human expert's placements of the papers' graphs, and of three more, under each order: simulated step times.

    ``rank_vs_fifo_percent``: of the same placement. ``priority`` is ``rank`` until a search moves a level.
    """
    from graphopt_gym.graphs.zoo.registry import SPLITS, own_cluster

    orders = [order for order in ORDERS if order != "priority"]
    rows = []
    for graph in (*SPLITS["papers"], "bert_base", "gpt2_small", "resnet50"):
        say(graph)
        costs: dict[str, float | None] = {}
        for order in orders:
            outcome = solve(PlacementProblem(graph, own_cluster(graph), order=order), "expert").outcome
            costs[order] = outcome.cost if outcome.valid else None
        fifo, rank = costs["fifo"], costs["rank"]
        gain = {"rank_vs_fifo_percent": 100 * (rank / fifo - 1) if rank and fifo else None}
        rows.append({"graph": graph, "cluster": own_cluster(graph), **{f"{o}_s": costs[o] for o in orders}, **gain})
    notes = ["step times of the expert's placement; empty: it does not fit in memory under this order"]
    return {"title": "The order of a step", "columns": list(rows[0]), "rows": rows, "notes": notes}


SEARCHED = (("inception_v3_b32", "p100x2"), ("bert_base", "v100x4"), ("gnmt_2layer", "p100x2"))
SEARCHES = ("annealing", "hill_climbing", "evolution")
SEARCH_BUDGET, SEARCH_SEEDS = 4000, 2


class _Recorded(PlacementProblem):
    """A problem that keeps the decisions of its walks."""

    looked: list[np.ndarray]

    def walk(self, state: Walk, steps: int, most_idle: int) -> None:
        state.looked, before = np.empty((steps, *self.decision_shape), np.int32), state.step
        super().walk(state, steps, most_idle)
        self.looked.append(state.looked[: state.step - before])


def search_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Searches on three graphs: processor time beside the engine's, and costs with each set of moves.

    ``around_percent``: of a whole search's processor time, what is not the engine's on the same decisions, which are
    run through it a second time without anything else. ``mean_s``: step times, over seeds.
    """
    overhead, reached = [], []
    for graph, cluster in SEARCHED:
        problem, plain = _Recorded(graph, cluster), PlacementProblem(graph, cluster)
        for name in ("annealing", "hill_climbing"):
            say(f"{graph}, {name}: processor time")
            problem.looked = []
            solve(problem, name, budget=SEARCH_BUDGET)
            decisions = np.concatenate(problem.looked)
            shares = []
            for _ in range(timing.ROUNDS):
                started = time.process_time()
                solution = solve(plain, name, budget=SEARCH_BUDGET)
                search_s = time.process_time() - started
                started = time.process_time()
                for part in np.split(decisions, range(256, len(decisions), 256)):
                    problem.costs(part)
                engine_s = (time.process_time() - started) * solution.evaluations / len(decisions)
                shares.append((search_s, engine_s))
            search_s, engine_s = (min(column) for column in zip(*shares, strict=True))
            row = {"graph": graph, "method": name, "evaluations": SEARCH_BUDGET, "search_s": search_s}
            overhead.append({**row, "engine_s": engine_s, "around_percent": 100 * (1 - engine_s / search_s)})
        for name in SEARCHES:
            means = {}
            for moves in SETS:
                say(f"{graph}, {name}, moves={moves}")
                runs = [
                    solve(plain, name, budget=SEARCH_BUDGET, seed=seed, options={"moves": moves}).outcome.cost
                    for seed in range(SEARCH_SEEDS)
                ]
                means[f"{moves}_mean_s"] = float(np.mean(runs))
            reached.append({"graph": graph, "cluster": cluster, "method": name, "evaluations": SEARCH_BUDGET, **means})
    return {"around_the_engine": overhead, "moves": reached}


def throughput_report(say: Callable[[str], object] = str) -> dict[str, Any]:
    """Periods of four training graphs as pipelines, by method, beside a bound that none beats.

    Simulated; one sample is the graph's whole batch. ``cp_sat`` has 20 s and one thread.
    """
    from graphopt_gym.graphs.zoo.registry import own_cluster

    methods: dict[str, dict[str, Any]] = {
        "expert": {},
        "dp": {"options": {"ideals": 20_000}},
        "annealing": {"budget": 5_000},
        "load_annealing": {"budget": 300_000, "options": {"ideals": 20_000}},
        "cp_sat": {"budget": 300_000, "options": {"ideals": 20_000, "time_limit_s": 20.0, "workers": 1}},
    }
    rows = []
    for graph in ("bert_base", "gpt2_small", "resnet50", "gnmt_2layer"):
        problem = PlacementProblem(graph, own_cluster(graph), objective="throughput")
        row: dict[str, Any] = {"graph": graph, "cluster": problem.cluster.name, "groups": problem.num_groups}
        bound = max(problem.bounds().values())
        for name, arguments in methods.items():
            say(f"{graph}: {name}")
            solution = solve(problem, name, **arguments)
            row[f"{name}_s"] = solution.outcome.cost if solution.outcome.valid else None
            bound = max(bound, solution.details.get("lower_bound_s", 0.0))
            if name == "expert":
                row["one_sample_s"] = solution.outcome.metrics["step_time_s"]
        rows.append({**row, "lower_bound_s": bound})
    notes = [
        "seconds a sample, with overlap and direct transfers; one_sample_s: one by itself (expert, fifo)",
        "empty: it does not fit in memory with the samples in flight",
    ]
    return {"title": "Pipelines", "columns": list(rows[0]), "rows": rows, "notes": notes}
