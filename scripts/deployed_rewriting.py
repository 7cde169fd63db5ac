"""Rewrites networks as PyTorch exports them, and times the files: ``python scripts/deployed_rewriting.py``.

Exports the networks of ``deployed_models.py`` (seeded random weights), searches with ``--cluster cpu`` and
``rules="deployed"`` by greedy search and by equality saturation, exports the better program as an edit of the file, and
times original and rewritten file at every level of onnxruntime's own optimiser, beside a second copy of the original,
and beside the file after onnxslim where that is installed. Keeps a row a network in ``envs_data/rewrite/deployed.json``
as it is done (one that is there is not made again), and writes the page. Half an hour on two cores that are busy.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from deployed_models import MODELS, export

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.onnx_timing import LEVELS, TWIN, slimmed, spread_of, time_files, verdict
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.rules.table import BESIDE
from graphopt_gym.envs.rewrite.saturation.explore import saturate
from graphopt_gym.extras import installed
from graphopt_gym.files import write_text
from graphopt_gym.graphs.tensor_program.onnx_edit import original_runs, write_edited
from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx
from graphopt_gym.search.solve import solve

METHODS = {"greedy": {}, "saturation": {"iteration_limit": 60, "node_limit": 20_000}}
RULES = "deployed"
GROWN = (
    "small_recurrent",
    "small_fire",
    "small_separable",
    "small_siamese",
    "bert",
    "resnext50",
    "squeezenet",
    "vgg19",
)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "rewrite_files.md"
TEMPLATE = Path(__file__).resolve().with_suffix(".md")


def searched(problem: RewriteProblem, seconds: float):
    """(the better solution, facts of each method)."""
    found, facts = [], {}
    for method, options in METHODS.items():
        started = time.perf_counter()
        one = solve(problem, method, seconds=seconds, budget=10_000_000, options=options)
        found.append(one)
        details = {key: one.details[key] for key in ("nodes", "saturation_stopped_by", "gap") if key in one.details}
        facts[method] = {"cost": one.outcome.cost, "seconds": time.perf_counter() - started, **details}
    best = min(found, key=lambda one: one.outcome.cost)
    for one in found:
        if one.outcome.cost <= best.outcome.cost * (1 + 1e-9):
            best = one  # of equals the one by rewrites that are listed
            break
    return best, facts


def measured(name: str, seconds: float, runs: int, search_s: float) -> dict:
    """The row of a network."""
    with tempfile.TemporaryDirectory(prefix="graphopt.") as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "rewritten.onnx"
        export(name, path)
        loaded = load_onnx(path)
        problem = RewriteProblem(loaded.program, "cpu", rules=RULES)
        best, facts = searched(problem, search_s)
        outcome = problem.evaluate(best.decision)
        edited = write_edited(loaded, problem.check(best.decision), out)
        files = {"original": str(path), "rewritten": str(out)}
        if installed("onnxslim"):
            files["onnxslim"] = slimmed(str(path))
        [(_, several), *_] = original_runs(loaded)
        times = time_files(files, several[0][0], levels=LEVELS, runs=runs, seconds=seconds, clock="cpu")
    levels = {}
    for level in LEVELS:
        spread = spread_of(times[TWIN, level])
        levels[level] = {"original_s": times["original", level].seconds, "spread": spread}
        for other in list(files)[1:]:
            one = times[other, level]
            levels[level][other] = {
                "seconds": one.seconds, "ratio": one.ratio, "low": one.low, "high": one.high, "runs": one.runs,
                "verdict": verdict(one, spread),
            }  # fmt: skip
    rules: dict[str, int] = {}
    for step in best.trace or ():
        rules[step[0]] = rules.get(step[0], 0) + 1
    return {
        "model": name, "ops": problem.program.statistics()["computed"], "rewritten_ops": outcome.metrics["ops"],
        "valid": outcome.valid, "simulated_s": problem.original_s, "rewritten_s": outcome.cost, "method": best.method,
        "methods": facts, "kept": edited["kept"], "added": edited["added"], "levels": levels, "rules": rules,
    }  # fmt: skip


def growth() -> list[dict]:
    """E-nodes after saturation of small programs and networks on a T4, with each family beside the published ones."""
    found = []
    for name in GROWN:
        row: dict = {"program": name}
        for family in (None, *BESIDE):
            problem = RewriteProblem(name, "t4", rules=["published", *([family] if family else [])])
            limits = {"k_multi": 1, "node_limit": 20_000, "iteration_limit": 8, "seconds": 20}
            explored = saturate(problem.program, problem.matcher.rules, problem.program_costs, **limits)
            row[family or "published"] = [explored.nodes, explored.stopped_by]
        found.append(row)
    return found


def page(rows: list[dict], grown: list[dict]) -> str:
    import jinja2

    def saved(one: dict) -> str:
        return f"{100 * (1 - 1 / one['ratio']):.1f} %"

    text = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["saved"] = saved
    words = {word: [row["model"] for row in rows if row["levels"]["all"]["rewritten"]["verdict"] == word]
             for word in ("faster", "the same", "slower")}  # fmt: skip
    most = max(row["methods"]["saturation"]["nodes"] for row in rows)
    return (
        environment.from_string(text)
        .render(rows=rows, words=words, levels=LEVELS, grown=grown, families=BESIDE, most=most)
        .rstrip()
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_path("rewrite", "deployed.json"))
    parser.add_argument("--seconds", type=float, default=16.0, help="of runs, a network and level")
    parser.add_argument("--runs", type=int, default=30, help="most runs of a session that count")
    parser.add_argument("--search", type=float, default=40.0, help="seconds of each search")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    for name in MODELS:
        if any(row["model"] == name for row in rows):
            continue
        print(f"{len(rows)} of {len(MODELS)}: {name}", file=sys.stderr, flush=True)
        rows.append(measured(name, options.seconds, options.runs, options.search))
        write_text(options.out, json.dumps(rows, indent=1) + "\n")
    path = options.out.with_name("growth.json")
    if not path.exists():
        write_text(path, json.dumps(growth(), indent=1) + "\n")
    write_text(PAGE, page(rows, json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
