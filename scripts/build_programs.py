"""Writes envs_data/programs: the known best of the small programs, and a README with the statistics of all of them.

    python scripts/build_programs.py [--statistics]

``--statistics`` leaves the searches out and takes the known bests that are there.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jinja2

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.cost import program_cost
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.searches import ROOM
from graphopt_gym.files import write_text
from graphopt_gym.graphs.tensor_program import TensorProgram, program_text, to_computation_graph
from graphopt_gym.graphs.tensor_program.convert import CLASS_OF
from graphopt_gym.graphs.zoo.programs import PROGRAMS, known_best, load_program, program_names
from graphopt_gym.search.solve import solve

BUDGET = 100_000  # far more programs than the small ones reach


def statistics(program: TensorProgram) -> dict[str, Any]:
    """Counts of a program, and its cost on the T4."""
    live = [program.nodes[node] for node in program.order if not program.is_static(node)]
    kinds: dict[str, int] = {}
    for node in live:
        if node.op in CLASS_OF:
            kinds[node.op] = kinds.get(node.op, 0) + 1
    graph = to_computation_graph(program).statistics()
    return {
        "operators": sum(kinds.values()),
        "kinds": dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": sum(math.prod(shape) for shape in program.leaves("weight").values()),
        "gflop": graph["flops"] / 1e9,
        "t4_s": program_cost(program),
    }


def search(name: str) -> dict[str, Any]:
    """The best of a small program by exhaustive search.

    Raises:
        AssertionError: the search did not come to an end, or its result is not valid.
    """
    problem = RewriteProblem(name, "t4")
    solution = solve(problem, "exhaustive", budget=BUDGET)
    assert solution.stopped_by == "finished", name
    assert solution.outcome.valid, name
    best = problem.check(solution.decision)
    return {
        "original_s": problem.original_s,
        "best_s": solution.outcome.cost,
        "programs": solution.evaluations,
        "best": program_text(best),
    }


def readme() -> str:
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    networks, small = (
        {name: statistics(load_program(name)) for name in program_names(kind)} for kind in ("network", "small")
    )
    names = {"networks": networks, "small": small, "PROGRAMS": PROGRAMS, "ROOM": ROOM, "known_best": known_best}
    return environment.get_template("build_programs.md").render(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statistics", action="store_true", help="keep the known bests")
    options = parser.parse_args()
    folder = data_path("programs")
    folder.mkdir(exist_ok=True)
    if not options.statistics:
        found = {name: search(name) for name in program_names("small")}
        write_text(folder / "small.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "README.md", readme())


if __name__ == "__main__":
    main()
