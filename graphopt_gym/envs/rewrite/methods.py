"""The methods of program rewriting."""

from __future__ import annotations

from graphopt_gym.envs.rewrite import searches
from graphopt_gym.search.solve import Method

TASO = "Jia et al., SOSP 2019 (TASO), algorithm 2"
STARTS = ("original",)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("original", searches.original, "the program as it is", "the usual baseline"),
        Method("greedy", searches.greedy, "the rewrite that saves most, until none saves", "the usual baseline"),
        Method("taso", searches.taso, f"backtracking search, alpha {searches.ALPHA}, cheapest program first", TASO),
        Method(
            "random_walk",
            searches.random_walk,
            f"random rewrites, from the original again every {searches.WALK_LENGTH}",
            "the usual baseline",
            random=True,
        ),
        Method(
            "exhaustive",
            searches.exhaustive,
            f"every program within reach; up to {searches.MOST_EXHAUSTIVE} operators, for known optima",
            "breadth first",
            small=True,
        ),
    )
}
