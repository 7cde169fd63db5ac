"""Synthesis at a network's true size, beside enumeration; and steps a second of the environment."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt_gym.benchmarks import timing
from graphopt_gym.envs.architecture.checker import check_runs
from graphopt_gym.envs.architecture.ops import Shape
from graphopt_gym.envs.architecture.primitives import classes_by_kind, primitives, singles
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.properties import Requirement, infer
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.envs.architecture.subgraph import cut, pick_subgraph, sequence
from graphopt_gym.envs.architecture.synthesis import (
    BEYOND,
    Synthesis,
    enumerative,
    features_of,
    progressive,
    realise,
    requirement_of,
    verified,
)

SUBGRAPHS, MOST_OPS, LIMIT_S = 30, 8, 20.0
CHAINS = (1, 2, 3, 4, 6, 8)  # convolutions, each with an activation
CHAIN_SHAPE: Shape = (64, 56, 56)  # of ResNet-34's first stage
Asked = list[tuple[Shape, Requirement, int]]  # of each piece: the shape that it reads, what is asked, its ops


def draw_subgraphs(architecture: Architecture, count: int, seed: int = 0) -> list[Asked]:
    """Random subgraphs of up to :data:`MOST_OPS` ops, cut, with mutated properties of each piece."""
    rng = np.random.default_rng(seed)
    return [
        [
            (architecture.ops[piece.source].shape, requirement_of(architecture, piece, rng), len(piece.ops))
            for piece in cut(architecture, pick_subgraph(architecture, rng, MOST_OPS))
        ]
        for _ in range(count)
    ]


def enumerate_plainly(
    shape: Shape, requirement: Requirement, length: int, rng: np.random.Generator, seconds: float
) -> Synthesis:
    """Enumeration as the paper's release does it: all sequences of primitives by length, one at a time, each inferred
    as a whole (google-research, abstract_nas/synthesis/enum_sequential.py)."""
    started, tried = time.perf_counter(), 0
    target = features_of(requirement.shape)
    options = primitives(len(shape))
    options = tuple(options[i] for i in rng.permutation(len(options)))
    for longest in range(1, length + BEYOND + 1):
        for members in itertools.product(options, repeat=longest):
            taken = time.perf_counter() - started
            if taken > seconds:
                return Synthesis(None, None, f"gave up after {seconds:g} s", tried, taken)
            steps = realise(members, shape, target)
            if steps is None:
                continue
            tried += 1
            if requirement.distance(infer(sequence(shape, steps))) == 0 and not verified(shape, steps, requirement):
                return Synthesis(members, steps, "", tried, time.perf_counter() - started)
    reason = f"no sequence of up to {length + BEYOND} ops"
    return Synthesis(None, None, reason, tried, time.perf_counter() - started)


def _run(method: str, asked: Asked, rng: np.random.Generator, limit_s: float) -> list[Synthesis]:
    """Of each piece, up to the first that fails."""
    results: list[Synthesis] = []
    for shape, requirement, length in asked:
        if method in PROGRESSIVE:
            results.append(progressive(shape, requirement, length, rng, attempts=PROGRESSIVE[method]))
        elif method == "enumerative, plain":
            results.append(enumerate_plainly(shape, requirement, length, rng, limit_s))
        else:
            over = method.removeprefix("enumerative, ")
            results.append(enumerative(shape, requirement, length, rng, seconds=limit_s, over=over))
        if not results[-1].found:
            break
    return results


ATTEMPTS = 50
AGAIN = f"progressive, up to {ATTEMPTS} attempts"
PROGRESSIVE = {"progressive": 1, AGAIN: ATTEMPTS}
METHODS = (*PROGRESSIVE, "enumerative, classes", "enumerative, primitives", "enumerative, plain")


def _rows(subgraphs: list[Asked], limit_s: float, say: Callable[[str], object], label: str) -> list[dict[str, Any]]:
    rows, first_s, first_found = [], np.zeros(0), np.zeros(0, bool)
    for asked in subgraphs:
        for shape, requirement, _ in asked:  # what fits where is kept from then on, as in a search
            classes_by_kind(shape, features_of(requirement.shape))
            singles(shape, features_of(requirement.shape))
    check_runs(load_seed("cnn_8"))  # so that no method's time has the import of torch
    for method in METHODS:
        rng = np.random.default_rng(1)
        results = []
        for number, asked in enumerate(subgraphs):
            say(f"{label}{method}: subgraph {number + 1} of {len(subgraphs)}")
            results.append(_run(method, asked, rng, limit_s))
        seconds = np.array([sum(one.seconds for one in pieces) for pieces in results])
        found = np.array([all(one.found for one in pieces) for pieces in results])
        ended = np.array([not any(one.reason.startswith("gave up") for one in pieces) for pieces in results])
        if method in PROGRESSIVE:
            first_s, first_found = seconds, found
        both = found & first_found
        rows.append(
            {
                "method": method,
                "subgraphs": len(subgraphs),
                "found": float(found.mean()),
                "ended": float(ended.mean()),
                "mean_s": float(seconds.mean()),
                "median_s": float(np.median(seconds)),
                "most_s": float(seconds.max()),
                "tried": float(np.mean([sum(one.tried for one in pieces) for pieces in results])),
                "ratio": float(seconds[both].sum() / first_s[both].sum()) if both.any() else None,
                "ratio_at_least": float(seconds.sum() / first_s.sum()),
            }
        )
    return rows


def synthesis_report(
    name: str = "resnet34",
    subgraphs: int = SUBGRAPHS,
    limit_s: float = LIMIT_S,
    chains: tuple[int, ...] = CHAINS,
    repeats: int = 10,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """The tables behind ``graphopt bench synthesis``: the same subgraphs by each method, once.

    Enumeration gives up after ``limit_s`` a piece. Verification counts, by an independent checker and by running.
    """
    drawn = draw_subgraphs(load_seed(name), subgraphs)
    table = _rows(drawn, limit_s, say, "")
    by_length = []
    for convolutions in chains:
        steps = [("conv", {"features": CHAIN_SHAPE[0], "kernel": 3}), ("relu", {})] * convolutions
        requirement = Requirement.of(infer(_chain(steps)))
        asked: list[Asked] = [[(CHAIN_SHAPE, requirement, len(steps))]]
        found = _rows(asked * repeats, limit_s / repeats, say, f"{len(steps)} ops: ")
        by_length += [{"ops": len(steps), **row} for row in found]
    notes = [
        f"random subgraphs of up to {MOST_OPS} ops, cut into sequences, their properties mutated",
        "classes: over classes of equal abstraction; primitives: over all with all parameters; both take the distances "
        "of all options at once; plain: a sequence at a time, inferred as a whole, as the paper's release does it",
        f"an enumeration gives up after {limit_s:g} s a piece; ratio: of seconds to those of all attempts, over "
        "subgraphs that both found; at least: over all, with those that it gave up on",
        "published for ResNet-34: 67 s progressive, 1,932 s enumerative (Jin et al., OOPSLA 2022)",
    ]
    length_notes = [
        f"sequences of 3x3 convolutions and ReLU on {CHAIN_SHAPE}, {repeats} times each, all properties asked for as "
        f"they are; limit {limit_s / repeats:g} s"
    ]
    return {
        f"Synthesis of subgraphs of {name}": {"columns": list(table[0]), "rows": table, "notes": notes},
        "By length": {"columns": list(by_length[0]), "rows": by_length, "notes": length_notes},
    }


def _chain(steps: list[tuple[str, dict[str, Any]]]) -> Architecture:
    from graphopt_gym.envs.architecture.program import ArchitectureBuilder

    builder = ArchitectureBuilder("chain")
    index = builder.input("x", CHAIN_SHAPE)
    for kind, params in steps:
        index = builder.op(kind, index, **params)
    return builder.finish(index)


CASES: tuple[dict[str, Any], ...] = (
    {"graph": "cnn_8"},
    {"graph": "resnet_8"},
    {"graph": "nasbench201", "track": "table"},
)


def env_report(cases: Sequence[Mapping[str, Any]] = CASES, say: Callable[[str], object] = str) -> dict[str, Any]:
    """``ArchitectureSearch-v0`` without training, one environment and several, a random one of the legal actions each
    step, episodes ended by their steps alone.

    Args:
        cases: arguments of the environment.
        say: takes a line on what is done.
    """
    rows = []
    for case in cases:
        say(f"steps a second on {case['graph']}")
        rows.append(
            {
                "seed": case["graph"],
                "track": case.get("track", "proxy"),
                "steps_per_s": _rate(1, case),
                f"steps_per_s_of_{timing.VECTOR_ENVS}": _rate(timing.VECTOR_ENVS, case),
            }
        )
    notes = [
        "resets counted; the mask is asked for at every step; one process; the proxy is synflow",
        "a step of the track trained takes as long as a training, of objective time some 30 ms more, for a new network",
    ]
    return {"title": "ArchitectureSearch-v0", "columns": list(rows[0]), "rows": rows, "notes": notes}


def _rate(count: int, case: Mapping[str, Any], steps: int = 600) -> float:
    """Steps a second of all environments together, after some that nobody counts."""
    import gymnasium as gym

    env: Any = (
        gym.make("ArchitectureSearch-v0", disable_env_checker=True, **case).unwrapped
        if count == 1
        else gym.make_vec("ArchitectureSearch-v0", count, vectorization_mode="vector_entry_point", **case)
    )
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def run(taken: int) -> None:
        ended = False
        for _ in range(taken):
            if ended:
                env.reset()
            masks = np.atleast_2d(env.action_masks())
            masks[:, 0] = False
            actions = np.where(masks, rng.random(masks.shape), -1.0).argmax(axis=1)
            ended = count == 1 and env.step(int(actions[0]))[2]
            if count > 1:
                env.step(actions)

    run(10)
    begun = time.perf_counter()
    rounds = max(10, steps // count)
    run(rounds)
    return count * rounds / (time.perf_counter() - begun)
