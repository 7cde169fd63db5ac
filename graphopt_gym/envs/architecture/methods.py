"""The methods of architecture search: alpha-NAS's evolution with its own and with others' mutations, and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt_gym.envs.architecture import nasbench
from graphopt_gym.envs.architecture.moves import MOVES
from graphopt_gym.envs.architecture.problem import ArchitectureProblem
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.properties import infer, mixing_text
from graphopt_gym.envs.architecture.seeds import SEEDS, load_seed, resnet, vit
from graphopt_gym.errors import InputError
from graphopt_gym.fields import share, whole
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator, Method

CHILDREN_AT_ONCE = 4  # made before any of them is evaluated, so that workers have something to do
BEST_SHARE, LEAST_BEST = 0.05, 4  # of the population, from which parents are drawn
WITHIN = 0.1  # parents are no further below the seed's quality, so that few evaluations do not go to tiny networks
MOST_TRIES = 200  # of mutations that fail, or give what is there already, in a row
JIN = "Jin, Phothilimthana, Roy, OOPSLA 2022 (alpha-NAS)"


def _problem(evaluator: Evaluator) -> ArchitectureProblem:
    problem = evaluator.problem
    assert isinstance(problem, ArchitectureProblem)
    return problem


def seed(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The seed as it is."""
    evaluator.cost(_problem(evaluator).seed_decision)


# -- alpha-NAS ---------------------------------------------------------------------------------------------------------


def front(points: np.ndarray) -> np.ndarray:
    """bool [N]: which of (cost, quality) points, float64 [N, 2], no other one dominates."""
    cost, quality = points.T
    better = (cost[:, None] <= cost) & (quality[:, None] >= quality)
    strictly = (cost[:, None] < cost) | (quality[:, None] > quality)
    return ~(better & strictly).any(axis=0)


def distances_to_front(points: np.ndarray) -> np.ndarray:
    """float64 [N]: of each point to the nearest of the front, where both coordinates range over 1."""
    span = np.ptp(points, axis=0)
    scaled = points / np.where(span > 0, span, 1.0)
    best = scaled[front(points)]
    return np.linalg.norm(scaled[:, None] - best[None], axis=2).min(axis=1)


def pick_parent(points: np.ndarray, rng: np.random.Generator, best: float = BEST_SHARE) -> int:
    """One of the share of points next to the front, with weight 1 / (1 + distance)."""
    distance = distances_to_front(points)
    few = np.argsort(distance, kind="stable")[: max(LEAST_BEST, round(best * len(points)))]
    weights = 1 / (1 + distance[few])
    return int(few[rng.choice(len(few), p=weights / weights.sum())])


def evolve(move: str) -> Callable[[Evaluator, np.random.Generator], None]:
    """alpha-NAS's loop with one kind of mutation.

    Each time one of parameters and FLOPs is drawn; of it and quality the front is built, a parent is drawn from those
    next to it, and mutated. Beyond the paper, parents have at least the seed's quality less ``within``. Twins of what
    has been seen are rejected; the population is never cut. What cannot be trained, or is too large, does not enter it.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = _problem(evaluator)
        best = share(f"method {move!r}: option best", evaluator.options["best"])
        within = share(f"method {move!r}: option within", evaluator.options["within"])
        at_once = whole(f"method {move!r}: option children", evaluator.options["children"], 1)
        population: list[Architecture] = []
        points: list[tuple[float, float, float]] = []  # parameters, FLOPs, quality of those that are good enough
        seen: set[str] = set()
        parent_of: dict[str, Architecture] = {}

        def take(networks: Sequence[Architecture]) -> None:
            evaluator.costs(_objects(networks))
            for one in networks:
                if not problem.is_known(one) or (found := problem.quality(one)).reason:
                    continue
                if found.value >= problem.seed_quality - within:
                    population.append(one)
                    points.append((*problem.sizes(one), found.value))

        def child() -> Architecture:
            for _ in range(MOST_TRIES):
                found = np.array(points)
                parent = population[pick_parent(found[:, [int(rng.integers(2)), 2]], rng, best)]
                made = MOVES[move](parent, rng)
                if made is not None and made.fingerprint not in seen and not problem.too_large(made):
                    seen.add(made.fingerprint)
                    parent_of[made.fingerprint] = parent
                    return made
            raise BudgetSpent("finished")  # nothing new is found from here

        seen.add(problem.seed.fingerprint)
        take([problem.seed])
        told: Any = None
        while True:
            evaluator.check_left()
            take([child() for _ in range(min(at_once, evaluator.left))])
            met = np.array(points)[:, [0, 2]]
            evaluator.note(population=len(population), on_front=int(front(met).sum()))
            if evaluator.best is not told:
                told = evaluator.best
                evaluator.note(path=_path(problem, told, parent_of))

    return run


def _path(
    problem: ArchitectureProblem, network: Architecture, parent_of: Mapping[str, Architecture]
) -> list[dict[str, Any]]:
    """The networks from the seed to one, with their properties."""
    way = [network]
    while way[-1].fingerprint in parent_of:
        way.append(parent_of[way[-1].fingerprint])
    found = []
    for one in reversed(way):
        properties = infer(one)
        found.append(
            {
                "parameters": one.parameters, "flops": one.flops, "quality": round(problem.quality(one).value, 6),
                "depth": list(properties.depth), "mixing": ", ".join(map(mixing_text, properties.mixing)),
            }
        )  # fmt: skip
    return found


def _objects(networks: Sequence[Architecture]) -> np.ndarray:
    batch = np.empty(len(networks), object)
    batch[:] = networks
    return batch


# -- baselines ---------------------------------------------------------------------------------------------------------


def narrower(problem: ArchitectureProblem) -> list[Architecture]:
    """The seed with fewer features in all layers, the widest first: what one would try before any search.

    Raises:
        InputError: the seed is none of the catalog's, whose builders have a width.
    """
    name = problem.seed.name
    entry = SEEDS.get(name)
    if entry is None or entry.build is nasbench.seed or load_seed(name) != problem.seed:
        raise InputError(f"method 'width_scaling' is for the seeds of the catalog, and {name!r} is none of these")
    sizes: dict[str, Any] = dict(entry.sizes)
    options: list[dict[str, Any]]
    if entry.build is resnet:
        full = sizes.get("width", 64)
        options = [{"width": width} for width in range(full - 1, 0, -1)]
    elif entry.build is vit:
        full, heads = sizes.get("width", 384), sizes.get("heads", 6)
        options = [{"width": width} for width in range(full - heads, 0, -heads)]
    elif "hidden" in sizes or name.startswith("cnn"):
        full, hidden = sizes.get("width", 32), sizes.get("hidden", 256)
        options = [{"width": width, "hidden": hidden * width // full} for width in range(full - 1, 0, -1)]
    else:
        options = [{"width": tenths / 10} for tenths in range(9, 0, -1)]
    found = [load_seed(name, **option).renamed(f"{name} {option}") for option in options]
    return list(dict.fromkeys(found))


def width_scaling(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Every narrower seed, the widest first."""
    problem = _problem(evaluator)
    evaluator.cost(problem.seed_decision)
    for one in narrower(problem):
        evaluator.costs(_objects([one]))


def local_search(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """All cells that differ in one edge, the best of them next, until none is better; then from another cell."""
    problem = _problem(evaluator)
    edges, kinds = len(nasbench.EDGES), problem.num_choices
    while True:
        cell = problem.sample(rng)
        cost = evaluator.cost(cell)
        while True:
            around = np.repeat(cell[None], edges * kinds, axis=0)
            around[np.arange(edges * kinds), np.repeat(np.arange(edges), kinds)] = np.tile(np.arange(kinds), edges)
            around = rng.permutation(around[(around != cell).any(axis=1)])
            costs = evaluator.costs(around)
            at = int(np.argmin(costs))
            if costs[at] >= cost:
                break
            cell, cost = around[at], float(costs[at])


def exhaustive(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Every cell."""
    for part in np.array_split(nasbench.all_cells(), 25):
        evaluator.costs(part)


_OPTIONS: dict[str, float] = {"best": BEST_SHARE, "within": WITHIN, "children": CHILDREN_AT_ONCE}
_NETWORKS, _CELLS = {"space": "networks"}, {"space": "cells"}
_EVOLUTIONS = {
    "alpha_nas": ("evolution by mutated properties, parents next to the Pareto front", JIN),
    "mixing_only": ("the same, of the properties mixing alone", f"{JIN}, an ablation"),
    "depth_only": ("the same, of the properties depth alone", f"{JIN}, an ablation"),
    "shape_only": ("the same, of the properties shape alone", f"{JIN}, an ablation"),
    "undirected": ("the same loop, random subgraphs that no property directs", f"{JIN}, an ablation"),
    "primer_like": ("the same loop, single ops deleted, inserted or swapped", "after So et al., Primer, NeurIPS 2021"),
    "automl_zero_like": (
        "the same loop, random ops and components", "after Real et al., AutoML-Zero, ICML 2020",
    ),
}  # fmt: skip
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("seed", seed, "the seed as it is", "the usual baseline"),
        *(
            Method(name, evolve(name), summary, source, random=True, options=_OPTIONS, rules=_NETWORKS)
            for name, (summary, source) in _EVOLUTIONS.items()
        ),
        Method("width_scaling", width_scaling, "the seed with fewer features in all layers",
               "width multipliers: Howard et al., MobileNets, 2017", rules=_NETWORKS),
        Method("local_search", local_search, "the best neighbour until none is better, then from another cell",
               "White, Nolen, Savani, UAI 2021", random=True, rules=_CELLS),
        Method("exhaustive", exhaustive, "every cell of NAS-Bench-201", "enumeration", small=True, rules=_CELLS),
    )
}  # fmt: skip
