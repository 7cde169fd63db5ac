"""The methods of program rewriting."""

from __future__ import annotations

from graphopt_gym.envs.rewrite import saturation_methods, searches, tree_search
from graphopt_gym.search.evaluator import Method

TASO = "Jia et al., SOSP 2019 (TASO), algorithm 2"
TENSAT = "Yang et al., MLSys 2021 (TENSAT)"
HARTMANN = "after Hartmann et al., PACT 2024 (arXiv 2410.05534)"

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
        Method(
            "saturation_greedy",
            saturation_methods.saturation_greedy,
            "equality saturation, then the cheapest operator of each class",
            TENSAT,
            options=saturation_methods.SATURATION_OPTIONS,
        ),
        Method(
            "saturation",
            saturation_methods.saturation,
            "equality saturation, then extraction by an integer linear program",
            TENSAT,
            options=saturation_methods.ILP_OPTIONS,
        ),
        Method(
            "saturation_repeat",
            saturation_methods.saturation_repeat,
            "equality saturation from the best program so far, again and again, until nothing improves",
            "Yang et al., MLSys 2021 (TENSAT), repeated",
            options=saturation_methods.REPEAT_OPTIONS,
        ),
        Method(
            "tree_search",
            tree_search.tree_search,
            "UCT over the order in which rules enter the e-graph",
            HARTMANN,
            random=True,
            options=tree_search.OPTIONS,
        ),
        Method(
            "tree_search_repeat",
            tree_search.tree_search_repeat,
            "tree search from the best program so far, again and again",
            HARTMANN + ", repeated",
            random=True,
            options=tree_search.OPTIONS,
        ),
    )
}
