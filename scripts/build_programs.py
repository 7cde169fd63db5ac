"""Writes envs_data/programs: the known best of the small programs, and a README with the statistics of all of them.

    python scripts/build_programs.py [--statistics]

``--statistics`` leaves the searches out and takes the known bests that are there.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

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
INTRODUCTION = """# Tensor programs

Programs of `RewriteOrder-v0`, made by `graphopt_gym/graphs/zoo/programs` from their architecture; this page is written
by `scripts/build_programs.py`. Inference, batch 1, float32. Work: floating-point operations, a multiply-add as two.
Parameters and costs leave out biases, as TASO's and TENSAT's own programs do (layer norms keep theirs). T4: the sum of
operator times by the cost model for that device, so simulated. Views (reshape, split) cost nothing.

## Networks

Where they differ from TENSAT's own programs (uwplse/tensat, MIT):

- `bert` is BERT's encoder: TENSAT's program of that name has no softmax, residuals and feed-forward layers, and its
  output projection reads the layer's input; it is here as `bert_tensat`, to be compared with published figures.
- `nasrnn` has the same weights in all steps; in TENSAT's each step has its own, here as `nasrnn_tensat`. In both the
  first state is an input; it is a weight in TENSAT's.
- `nasnet_a` is TENSAT's, but a pooling that two sums read is one node.
- `resnext50` has no activation after the projections, as in its paper, and ends in the classifier.
- `inception_v3` follows its paper: all poolings within blocks that keep the size average, those that halve it take the
  maximum; concatenations take all branches at once, where TENSAT's take pairs.
- `vgg19` ends in its classifier's logits, with activations by themselves, as TENSAT has it; so `squeezenet`.
"""
SMALL_TEXT = f"""
## Small programs

Their best is found by going through every program that rewrites reach with at most {ROOM} nodes more than the
original, with all rules, on the T4 (`small.json`; a test searches again).
"""


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
    lines = [
        INTRODUCTION,
        "| program | operators | parameters | GFLOP | T4 ms | by kind |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name in program_names("network"):
        facts = statistics(load_program(name))
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
        lines.append(
            f"| {name} | {facts['operators']} | {facts['parameters']:,} | {facts['gflop']:.3f} | "
            f"{1e3 * facts['t4_s']:.3f} | {kinds} |"
        )
    lines += ["", "Sources:", ""]
    lines += [f"- {name}: {PROGRAMS[name].source}" for name in program_names("network")]
    lines += [SMALL_TEXT, "| program | operators | T4 us | best us | ratio | programs reached | what it has |"]
    lines.append("|---|--:|--:|--:|--:|--:|---|")
    for name in program_names("small"):
        facts, best = statistics(load_program(name)), known_best(name)
        lines.append(
            f"| {name} | {facts['operators']} | {1e6 * facts['t4_s']:.2f} | {1e6 * best['best_s']:.2f} | "
            f"{best['best_s'] / best['original_s']:.4f} | {best['programs']} | {PROGRAMS[name].source} |"
        )
    return "\n".join(lines) + "\n"


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
