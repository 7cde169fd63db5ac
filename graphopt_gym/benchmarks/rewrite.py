"""Program rewriting: matches kept up to date against searched anew, environment steps, e-nodes a second, extraction."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import gymnasium as gym
import numpy as np

from graphopt_gym.benchmarks.timing import seconds as clock
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.saturation.explore import saturate
from graphopt_gym.envs.rewrite.saturation.extraction import Choices, extract_greedy, extract_ilp, extract_shared

PROGRAMS = ("squeezenet", "bert", "nasrnn", "inception_v3", "nasnet_a")
REWRITES = 60  # random ones, a program: matches are compared after each
VECTOR_ENVS = 16
SECONDS = 2.0  # an environment's figure, in ROUNDS rounds; the best counts
ROUNDS = 2
EPISODE = 20  # steps of an episode
NODE_LIMIT, SATURATION_S, ILP_S = 10_000, 15.0, 5.0


def matching_report(programs: tuple[str, ...] = PROGRAMS, rewrites: int = REWRITES) -> dict[str, Any]:
    """The table behind ``graphopt bench matching``: along a random walk, the matches after each rewrite.

    Raises:
        RuntimeError: the matches kept up to date are not those of a search over the whole program.
    """
    rows = []
    for name in programs:
        problem, rng = RewriteProblem(name), np.random.default_rng(0)
        matcher, state = problem.matcher, problem.original
        found = matcher.find(state.program)
        apply_s, update_s, search_s, list_s = [], [], [], []
        for _ in range(rewrites):
            match = found.matches[int(rng.integers(len(found.matches)))]
            started = time.perf_counter()
            program, change = matcher.apply(state.program, match)
            applied = time.perf_counter()
            updated = matcher.update(found, program, change)
            update_s.append(time.perf_counter() - applied)
            apply_s.append(applied - started)
            started = time.perf_counter()
            again = matcher.find(program)
            search_s.append(time.perf_counter() - started)
            list_s.append(clock(lambda updated=updated: updated.matches))  # type: ignore[misc]
            if updated.matches != again.matches:
                raise RuntimeError(f"{name}: matches kept up to date differ from those of a search")
            found, state = updated, state.apply(match)
        apply, update, search, listed = (float(np.median(times)) for times in (apply_s, update_s, search_s, list_s))
        rows.append(
            {
                "program": name,
                "nodes": len(state.program),
                "matches": len(found),
                "apply_s": apply,
                "update_s": update,
                "search_s": search,
                "list_s": listed,
                "ratio": search / update,
                "ratio_with_list": (search + listed) / (update + listed),
            }
        )
    notes = [
        f"medians over {rewrites} random rewrites, one after the other; nodes and matches: of the last program",
        "update: the matches kept up to date after a rewrite; search: those of the whole program, anew; both agree "
        "after every rewrite; list: all matches in order, from either",
    ]
    return {"title": "Matches of rewrite rules", "columns": list(rows[0]), "rows": rows, "notes": notes}


def rewrite_env_report(programs: tuple[str, ...] = ("squeezenet", "bert", "nasnet_a")) -> dict[str, Any]:
    """``RewriteOrder-v0`` under random legal actions in episodes of :data:`EPISODE` steps: one, and the vector one."""
    rows = []
    for graph in programs:
        arguments: dict[str, Any] = {"graph": graph, "max_steps": EPISODE}
        rng = np.random.default_rng(0)
        env = gym.make("RewriteOrder-v0", **arguments)
        envs = gym.make_vec(
            "RewriteOrder-v0", num_envs=VECTOR_ENVS, vectorization_mode="vector_entry_point", **arguments
        )
        env.reset(seed=0)
        envs.reset(seed=0)

        def episode(env: Any = env, rng: np.random.Generator = rng) -> int:
            observation, _ = env.reset()
            steps, done = 0, False
            while not done:
                observation, _, done, *_ = env.step(_draw(observation["action_mask"], rng))
                steps += 1
            return steps

        def round_of_all(envs: Any = envs, rng: np.random.Generator = rng) -> int:
            observation, _ = envs.reset()
            for _ in range(EPISODE):
                observation, *_ = envs.step(np.array([_draw(mask, rng) for mask in observation["action_mask"]]))
            return EPISODE * VECTOR_ENVS

        nodes = len(env.unwrapped.problem.program)  # type: ignore[attr-defined]
        for count, work in ((1, episode), (VECTOR_ENVS, round_of_all)):
            rates = []
            for _ in range(ROUNDS):
                done, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < SECONDS / ROUNDS or not done:
                    done += work()
                rates.append(done / spent)
            rows.append({"program": graph, "nodes": nodes, "envs": count, "steps_per_s": max(rates)})
        env.close()
        envs.close()
    notes = [
        f"random legal rewrites in episodes of {EPISODE} steps, resets counted; best of {ROUNDS} rounds of "
        f"{SECONDS / ROUNDS:g} s; every program an environment comes by is matched and priced once"
    ]
    return {"title": "RewriteOrder-v0", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _draw(mask: np.ndarray, rng: np.random.Generator) -> int:
    """A legal action, the one that ends only where there is no other."""
    legal = np.flatnonzero(mask)
    return int(legal[rng.integers(1, len(legal))]) if len(legal) > 1 else int(legal[0])


def saturation_report(
    programs: tuple[str, ...] = ("squeezenet", "bert", "inception_v3"),
    node_limit: int = NODE_LIMIT,
    seconds: float = SATURATION_S,
) -> dict[str, Any]:
    """The table behind ``graphopt bench saturation``: e-nodes a second by each engine, and extraction.

    All rules, multi-pattern ones in the first iteration, up to a node limit. The engines grow e-graphs in orders of
    their own, so they are compared by nodes a second.
    """
    engines = ["native", *(["egglog"] if importlib.util.find_spec("egglog") is not None else [])]
    rows = []
    for name in programs:
        problem = RewriteProblem(name)
        for engine in engines:
            explored = saturate(
                problem.program,
                problem.matcher.rules,
                problem.program_costs,
                node_limit=node_limit,
                seconds=seconds,
                engine=engine,
            )
            started = time.perf_counter()
            choices = Choices(explored)
            choices_s = time.perf_counter() - started
            ilp = extract_ilp(explored, seconds=ILP_S, choices=choices)
            rows.append(
                {
                    "program": name,
                    "engine": engine,
                    "nodes": explored.nodes,
                    "classes": explored.classes,
                    "stopped_by": explored.stopped_by,
                    "saturation_s": explored.seconds,
                    "nodes_per_s": explored.nodes / explored.seconds,
                    "choices_s": choices_s,
                    "greedy_s": clock(extract_greedy, explored, choices),
                    "shared_s": clock(extract_shared, explored, choices),
                    "ilp_s": ilp.seconds,
                    "ilp_status": ilp.status,
                    "cost_s": ilp.cost,
                }
            )
    notes = [
        f"up to {node_limit:,} e-nodes or {seconds:g} s, all rules, k_multi 1; the linear program up to {ILP_S:g} s; "
        "one core; cost: simulated, of the program that it extracts",
        *([] if len(engines) > 1 else ['egglog is not installed: pip install "graphopt-gym[rewrite]"']),
    ]
    return {"title": "Equality saturation", "columns": list(rows[0]), "rows": rows, "notes": notes}
