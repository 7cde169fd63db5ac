"""Steps a second of the environments, and how much of it is the simulator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

VECTOR_ENVS = 64
SECONDS = 2.0  # a figure, in whole episodes; the best of ROUNDS counts
ROUNDS = 3


def env_report(graph: str = "bert_base", cluster: str = "v100x4") -> dict[str, Any]:
    """``Placement-v0`` under a random policy: one environment, and the vector one on all cores.

    A row each for the environment with a reward a step (a simulation a step, where the placement changed) and with
    the terminal reward (one an episode). ``simulations_per_s`` is the engine alone on the same placements, one after
    the other, and ``overhead_s`` what a step takes beyond its simulation.
    """
    from graphopt_gym.simulator.simulator import cores

    rows = []
    for reward in ("improvement", "terminal"):
        arguments = {"graph": graph, "cluster": cluster, "reward": reward}
        rows.append(_scalar(arguments))
        rows.append(_vector(arguments))
    problem = gym.make("Placement-v0", graph=graph, cluster=cluster).unwrapped.episodes.instances[0].problem  # type: ignore[attr-defined]
    return {
        "title": f"Placement-v0 on {graph}, {cluster}",
        "columns": ["environment", "reward", "envs", "steps_per_s", "simulations_per_s", "overhead_s"],
        "rows": rows,
        "notes": [
            f"{problem.graph.num_ops} ops, {problem.num_groups} groups, {problem.num_devices} devices; "
            f"{cores()} cores; random actions in whole episodes, best of {ROUNDS} rounds",
            "a step simulates the whole graph where its action changed the placement (about 3 in 4 on 4 devices)",
        ],
    }


def _scalar(arguments: dict[str, Any]) -> dict[str, Any]:
    env = gym.make("Placement-v0", **arguments)
    env.reset(seed=0)
    base: Any = env.unwrapped
    problem = base.problem
    rng = np.random.default_rng(0)
    changed: list[np.ndarray] = []

    def episode() -> int:
        env.reset()
        actions = rng.integers(0, problem.num_devices, problem.num_groups)
        for action in actions:
            env.step(action)
        return len(actions)

    rate = _rate(episode)
    # the placements of one episode again, for the engine alone
    env.reset()
    before = base.decision
    for action in rng.integers(0, problem.num_devices, problem.num_groups):
        env.step(action)
        if arguments["reward"] == "improvement" and (base.decision != before).any():
            before = base.decision
            changed.append(before[problem.group_of_task])
    if arguments["reward"] == "terminal":
        changed.append(base.decision[problem.group_of_task])

    def simulations() -> int:
        for placement in changed:
            problem.simulator.cost(placement)
        return len(changed)

    engine = _rate(simulations)
    per_step = len(changed) / problem.num_groups
    return {
        "environment": "PlacementEnv",
        "reward": arguments["reward"],
        "envs": 1,
        "steps_per_s": rate,
        "simulations_per_s": engine,
        "overhead_s": 1 / rate - per_step / engine,
    }


def _vector(arguments: dict[str, Any]) -> dict[str, Any]:
    envs = gym.make_vec("Placement-v0", num_envs=VECTOR_ENVS, vectorization_mode="vector_entry_point", **arguments)
    envs.reset(seed=0)
    problem = envs.problem(0)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)

    def episode() -> int:
        envs.reset()
        actions = rng.integers(0, problem.num_devices, (problem.num_groups, VECTOR_ENVS))
        for row in actions:
            envs.step(row)
        return actions.size

    return {
        "environment": "PlacementVectorEnv",
        "reward": arguments["reward"],
        "envs": VECTOR_ENVS,
        "steps_per_s": _rate(episode),
        "simulations_per_s": None,
        "overhead_s": None,
    }


def _rate(work: Callable[[], int]) -> float:
    """The best rate over rounds of about SECONDS; ``work`` says how much it did."""
    work()
    rates = []
    for _ in range(ROUNDS):
        done, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < SECONDS / ROUNDS or not done:
            done += work()
        rates.append(done / spent)
    return max(rates)


def chiplet_env_report(graph: str = "bert_base_b1", cluster: str = "mcm36") -> dict[str, Any]:
    """``ChipletPartition-v0`` under a random policy, by mode: one environment, and the vector one on all cores.

    ``alone_per_s`` is what the environment does at its core on the same proposals, one after the other: a correction
    and its price; ``share`` what part of a step's time that is.
    """
    from graphopt_gym.envs.chiplet.problem import ChipletProblem
    from graphopt_gym.simulator.simulator import cores

    problem = ChipletProblem(graph, cluster)
    shape = (problem.num_ops, problem.num_chips)
    rng = np.random.default_rng(0)
    chances = rng.random(shape).astype(np.float32)
    candidate = rng.integers(0, problem.num_chips, problem.num_ops)

    def corrected(mode: str) -> int:
        corrector = problem.corrector
        fixed = corrector.fix(candidate, rng) if mode == "fix" else corrector.sample(chances, rng)
        problem.costs(fixed.decision[None])
        return 1

    rows = []
    for mode in ("fix", "sample", "step"):
        arguments: dict[str, Any] = {"graph": graph, "cluster": cluster, "mode": mode}
        env = gym.make("ChipletPartition-v0", **arguments)
        env.reset(seed=0)
        envs = gym.make_vec(
            "ChipletPartition-v0", num_envs=VECTOR_ENVS, vectorization_mode="vector_entry_point", **arguments
        )
        envs.reset(seed=0)
        action = candidate if mode == "fix" else chances
        actions = np.repeat(action[None], VECTOR_ENVS, axis=0)

        def whole(env: Any = env, action: Any = action) -> int:
            env.reset()
            env.step(action)
            return 1

        def all_whole(envs: Any = envs, actions: Any = actions) -> int:
            envs.reset()
            envs.step(actions)
            return VECTOR_ENVS

        def walk(env: Any = env) -> int:
            env.reset()
            steps, done = 0, False
            while not done:
                allowed = np.flatnonzero(env.unwrapped.action_masks())
                done = env.step(int(rng.choice(allowed)))[2]
                steps += 1
            return steps

        alone = None if mode == "step" else _rate(lambda mode=mode: corrected(mode))  # type: ignore[misc]
        rate = _rate(walk if mode == "step" else whole)
        share = None if alone is None else rate / alone
        rows.append({"mode": mode, "envs": 1, "steps_per_s": rate, "alone_per_s": alone, "share": share})
        if mode != "step":
            rate = _rate(all_whole)
            rows.append({"mode": mode, "envs": VECTOR_ENVS, "steps_per_s": rate, "alone_per_s": None, "share": None})
        env.close()
        envs.close()
    return {
        "title": f"ChipletPartition-v0 on {graph}, {cluster}",
        "columns": ["mode", "envs", "steps_per_s", "alone_per_s", "share"],
        "rows": rows,
        "notes": [
            f"{problem.num_ops} ops, {problem.num_chips} chips; {cores()} cores; one random proposal again and again "
            f"(its corrections differ), step: random legal actions; best of {ROUNDS} rounds",
        ],
    }
