"""The stored runs of the rewriting experiment, and the programs that came out, checked again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from experiments.runner import module
from experiments.runner.page import render
from experiments.runner.runs import stored_runs
from experiments.runner.tables import finite

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from tests.stored_costs import is_refused, of_today, same_but_costs

ROOT = data_path().parent
FOLDER = ROOT / "scripts" / "experiments"
SCRIPT = module(FOLDER, "rewrite")
GRAPHS = SCRIPT.EXPERIMENT.graphs
RUNS = stored_runs(data_path("rewrite"))
BEST = json.loads(gzip.decompress(data_path("rewrite", "best.json.gz").read_bytes()))
SUMMARY = json.loads(data_path("rewrite", "summary.json").read_text(encoding="utf-8"))
EXECUTED = ("squeezenet", "resnext50", "bert_tensat", "nasrnn_tensat", "nasrnn")  # the others take minutes, or memory


@pytest.mark.parametrize("graph", GRAPHS)
def test_stored_runs__are_of_the_programs_as_they_are(graph, tmp_path):
    problem = RewriteProblem(graph, SCRIPT.DEVICE)
    runs = {job: run for job, run in RUNS.items() if job[0] == graph}
    assert {name for _, name, _ in runs} == set(SCRIPT.ENTRIES)
    for (_, name, seed), run in runs.items():
        same_but_costs({**run, "name": name}, problem)
        assert run["valid"], (name, seed)
        if of_today(run, problem):
            assert run["original"] == problem.original_s
        costs = [cost for _, _, cost in run["curve"]]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == pytest.approx(run["cost"], rel=1e-9)
        bound = run["details"].get("bound_s")
        if name in SCRIPT.PLAIN and bound is not None:
            assert bound <= run["cost"] * (1 + 1e-6), (name, seed)
    if not of_today(run, problem):
        is_refused(run, problem, problem.program, tmp_path)


@pytest.mark.parametrize("graph", GRAPHS)
def test_best_programs__compute_the_same__and_cost_what_they_say_or_are_refused(graph, tmp_path):
    problem = RewriteProblem(graph, SCRIPT.DEVICE)
    best = SCRIPT.bests(RUNS)[graph]
    program = problem.check(BEST[graph])
    if graph in EXECUTED:
        outcome = problem.evaluate(program)
        assert outcome.valid, outcome.reasons
        assert outcome.cost == problem.program_cost(program)
    if of_today(best, problem):
        assert problem.program_cost(program) == pytest.approx(best["cost"], rel=1e-12)
    else:
        is_refused(best, problem, program, tmp_path)


def test_document__says_what_the_stored_runs_say():
    assert finite(SCRIPT.EXPERIMENT.summary(RUNS, Path("none"))) == SUMMARY
    written = (ROOT / "docs" / "rewrite.md").read_text(encoding="utf-8")
    assert render(FOLDER, "rewrite", SUMMARY) == written


def test_policy__was_trained_on_other_programs():
    facts = json.loads(data_path("checkpoints", "rewrite.json").read_text(encoding="utf-8"))
    assert not set(facts["args"]["graphs"]) & set(GRAPHS)


def test_stored_files__are_what_the_page_says__and_none_is_slower_than_it_was():
    pytest.importorskip("jinja2")
    script = data_path().parent / "scripts" / "deployed_rewriting.py"
    text = script.with_suffix(".md").read_text(encoding="utf-8")
    rows = json.loads(data_path("rewrite", "deployed.json").read_text(encoding="utf-8"))
    assert len(rows) >= 8
    for row in rows:
        assert row["valid"]
        assert row["rewritten_s"] <= row["simulated_s"]
        one = row["levels"]["all"]["rewritten"]
        assert one["low"] <= one["ratio"] <= one["high"]
    verdicts = [row["levels"]["all"]["rewritten"]["verdict"] for row in rows]
    assert "slower" not in verdicts
    assert verdicts.count("faster") >= 3
    page = (ROOT / "docs" / "rewrite_files.md").read_text(encoding="utf-8")
    for row in rows:
        one = row["levels"]["all"]["rewritten"]
        assert f"| {100 * (1 - 1 / one['ratio']):.1f} % |" in page
    for line in text.splitlines():  # the page is of this template
        if line.startswith("## "):
            assert line in page


def test_stored_published__is_what_the_page_says():
    rows = json.loads(data_path("rewrite", "published.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "rewrite_published.md").read_text(encoding="utf-8")
    for row in rows:
        cells = " | ".join(f"{100 * row['published'][method]:.1f} %" for method in ("greedy", "taso", "saturation"))
        assert f"| {row['program']} | {cells} |" in page
        launches = [max(row[f"{launch} us"].values()) for launch in (18, 5, 2)]
        cells = " | ".join(f"{100 * gain:.1f} %" for gain in launches)
        assert f" | {cells} |" in page
        assert all(gain >= 0 for setting in row if setting.endswith("us") for gain in row[setting].values())
