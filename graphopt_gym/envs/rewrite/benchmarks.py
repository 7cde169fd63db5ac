"""Program rewriting: matches kept up to date against searched anew, environment steps, e-nodes a second, extraction."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.rewrite.episodes import KEPT
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.saturation.explore import saturate
from graphopt_gym.envs.rewrite.saturation.extraction import Choices, extract_greedy, extract_ilp, extract_shared
from graphopt_gym.extras import NotInstalled, installed

PROGRAMS = ("squeezenet", "bert", "nasrnn", "inception_v3", "nasnet_a")
REWRITES = 60  # random ones, a program: matches are compared after each
VECTOR_ENVS = 16
EPISODE = 20  # steps of an episode
NODE_LIMIT, SATURATION_S, ILP_S = 10_000, 15.0, 5.0


def matching_report(
    programs: tuple[str, ...] = PROGRAMS, rewrites: int = REWRITES, say: Callable[[str], object] = str
) -> dict[str, Any]:
    """The table behind ``graphopt bench matching``: along a random walk, the matches after each rewrite.

    Raises:
        RuntimeError: the matches kept up to date are not those of a search over the whole program.
    """
    rows = []
    for name in programs:
        say(name)
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
            list_s.append(timing.seconds(lambda updated=updated: updated.matches))  # type: ignore[misc]
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


def env_report(
    programs: tuple[str, ...] = ("squeezenet", "bert", "nasnet_a"), say: Callable[[str], object] = str
) -> dict[str, Any]:
    """``RewriteOrder-v0`` in episodes of :data:`EPISODE` steps: one, and the vector one. Under random legal actions
    most programs are new; under the first legal action again and again all are kept."""
    rng = np.random.default_rng(0)
    policies: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "random": lambda mask: timing.draw_legal(mask, rng, least=1),
        "repeated": lambda mask: 1 + mask[..., 1:].argmax(axis=-1),
    }
    rows = []
    for name in programs:
        say(name)
        nodes = len(RewriteProblem(name).program)
        random: dict[int, float] = {}
        for actions, policy in policies.items():
            found = timing.step_rates(
                "RewriteOrder-v0",
                EPISODE,
                lambda count, policy=policy: lambda observation: policy(observation["action_mask"]),  # type: ignore[misc]
                (1, VECTOR_ENVS),
                graph=name,
                max_steps=EPISODE,
            )
            for row in found:
                base = random.setdefault(row["envs"], row["steps_per_s"])
                ratio = row["steps_per_s"] / base
                rows.append({"program": name, "nodes": nodes, "actions": actions, **row, "ratio": ratio})
    notes = [
        f"legal rewrites in episodes of {EPISODE} steps, resets counted; best of {timing.ROUNDS} rounds of "
        f"{timing.SECONDS / timing.ROUNDS:.2g} s",
        f"random: most programs are new, and are matched, priced and described; repeated: always the first action, as "
        f"of a policy that is settled; the last {KEPT} programs are kept; ratio: to random",
    ]
    return {"title": "RewriteOrder-v0", "columns": list(rows[0]), "rows": rows, "notes": notes}


def saturation_report(
    programs: tuple[str, ...] = ("squeezenet", "bert", "inception_v3"),
    node_limit: int = NODE_LIMIT,
    seconds: float = SATURATION_S,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """The table behind ``graphopt bench saturation``: e-nodes a second by each engine, and extraction.

    All rules, multi-pattern ones in the first iteration, up to a node limit. The engines grow e-graphs in orders of
    their own, so they are compared by nodes a second.
    """
    engines = ["native", *(["egglog"] if installed("egglog") else [])]
    rows = []
    for name in programs:
        problem = RewriteProblem(name)
        for engine in engines:
            say(f"{name}: {engine}")
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
                    "greedy_s": timing.seconds(extract_greedy, explored, choices),
                    "shared_s": timing.seconds(extract_shared, explored, choices),
                    "ilp_s": ilp.seconds,
                    "ilp_status": ilp.status,
                    "cost_s": ilp.cost,
                }
            )
    notes = [
        f"up to {node_limit:,} e-nodes or {seconds:g} s, all rules, k_multi 1; the linear program up to {ILP_S:g} s; "
        "one core; cost: simulated, of the program that it extracts",
        *([] if len(engines) > 1 else [str(NotInstalled("egglog", "engine 'egglog'"))]),
    ]
    return {"title": "Equality saturation", "columns": list(rows[0]), "rows": rows, "notes": notes}
