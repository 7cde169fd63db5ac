from __future__ import annotations

import html.parser
import re

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.problem import Solution
from graphopt_gym.report.files import report_on
from graphopt_gym.report.html import convergence_figure, render_html, write_html
from graphopt_gym.report.tables import comparison_table
from tests.report.cases import make_cluster


def solution(problem, method="some_method", seed=0, decision=None, history=(), evaluations=3) -> Solution:
    decision = problem.sample(np.random.default_rng(seed)) if decision is None else decision
    return Solution(problem, method, seed, decision, problem.evaluate(decision), evaluations, 0.25, history)


@pytest.fixture(scope="module")
def problem():
    graph = layered_dag(120, 4, seed=2, phases=True).replace(name="<graph> & co")
    return gg.make_problem("Placement-v0", graph=graph, cluster=make_cluster(2))


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and that nothing is loaded from elsewhere."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href", "xlink:href") or value.startswith(("data:", "#"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_render_html__one_solution__is_well_formed_and_self_contained(problem):
    text = render_html([solution(problem, history=((1, 0.1, 2.0), (3, 0.2, 1.0)))])
    outline = Outline(text)
    assert outline.seen.count("svg") == 2  # convergence and timeline
    assert "script" not in outline.seen
    assert "&lt;graph&gt; &amp; co" in text
    assert "<graph>" not in re.sub(r"<!--.*?-->", "", text, flags=re.S)
    for device in range(2):
        assert f"<td>{device}</td><td>toy</td>" in text


def test_render_html__comparison__lists_every_method_and_opens_the_best(problem):
    runs = [solution(problem, "a", 0), solution(problem, "a", 1), solution(problem, "b", 2)]
    text = render_html(runs)
    outline = Outline(text)
    assert outline.seen.count("details") == 2
    assert text.count("<details open>") == 1
    best = min(runs, key=lambda run: run.outcome.cost)
    assert re.search(rf"<details open><summary>{best.method}: ", text)


def test_render_html__invalid_solution__gives_the_reasons(problem):
    small = gg.make_problem("Placement-v0", graph=problem.graph, cluster=make_cluster(2, memory_bytes=2**20))
    text = render_html([solution(small)])
    assert "out of memory: device 0 (toy) needs" in text
    assert "invalid" in text


def test_convergence_figure__needs_something_that_converges(problem):
    assert convergence_figure([solution(problem, history=((1, 0.0, 1.0),))]) is None
    figure = convergence_figure([solution(problem, history=((1, 0.0, 2.0), (2, 0.1, 1.0)), evaluations=5)])
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 5]
    assert line.get_ydata().tolist() == [2000.0, 1000.0, 1000.0]


def test_comparison_table__means_over_seeds_against_the_expert(problem):
    runs = [solution(problem, "expert", 3), solution(problem, "a", 0), solution(problem, "a", 1)]
    table = comparison_table(runs)
    rows = {row["method"]: row for row in table.to_json()["rows"]}
    expert, costs = runs[0].outcome.cost, [runs[1].outcome.cost, runs[2].outcome.cost]
    assert rows["a"]["step_time_s"] == pytest.approx(sum(costs) / 2)
    assert rows["a"]["best_s"] == min(costs)
    assert rows["a"]["vs_expert_percent"] == pytest.approx(100 * (sum(costs) / 2 / expert - 1))
    assert rows["expert"]["vs_expert_percent"] == 0


def test_comparison_table__counts_invalid_seeds(problem):
    small = gg.make_problem("Placement-v0", graph=problem.graph, cluster=make_cluster(2, memory_bytes=2**20))
    table = comparison_table([solution(problem, "a", 0), solution(small, "a", 1)])
    assert table.to_json()["rows"][0]["seeds"] == "1 of 2 valid"
    assert table.notes[0].startswith("a (seed 1) is invalid: out of memory")


@pytest.fixture
def stored(tmp_path):
    """A folder with solutions of a problem that can be built again from its file."""
    gg.save_graph(layered_dag(60, 3, seed=5, phases=True), tmp_path / "graph.npz")
    problem = gg.make_problem("Placement-v0", graph=str(tmp_path / "graph.npz"), cluster="toyx2")
    folder = tmp_path / "solutions"
    folder.mkdir()
    for seed, method in enumerate(["a", "b"]):
        solution(problem, method, seed).save(folder / f"{method}.json")
    return folder


def test_report_on__file__writes_beside_it(stored):
    written = report_on(stored / "a.json")
    assert written == [stored / "a.png", stored / "a.pftrace", stored / "a.html"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_report_on__a_solution_named_as_a_report__is_not_overwritten(stored):
    for ending in (".html", ".png", ".pftrace"):
        path = (stored / "a.json").rename(stored / f"a{ending}")
        with pytest.raises(InputError, match="it is the input"):
            report_on(path)
        path.rename(stored / "a.json")
    assert sorted(path.name for path in stored.iterdir()) == ["a.json", "b.json"]


def test_report_on__folder__compares_and_leaves_other_files_out(stored, tmp_path):
    (stored / "other.json").write_text("{}")
    said: list[str] = []
    out = tmp_path / "out"
    out.mkdir()
    written = report_on(stored, out, say=said.append)
    assert sorted(path.name for path in written)[-1] == "report.html"
    assert {path.parent for path in written} == {out}
    assert len(said) == 1
    assert "other.json" in said[0]


def test_report_on__nothing_or_a_mixture__is_refused(stored, tmp_path):
    with pytest.raises(InputError, match="no solution files in"):
        report_on(tmp_path)
    other = gg.make_problem("Placement-v0", graph=str(tmp_path / "graph.npz"), cluster="toy_mixedx3")
    solution(other).save(stored / "c.json")
    with pytest.raises(InputError, match="holds solutions of 2 problems"):
        report_on(stored)


def test_write_html__folder_that_is_none__is_refused(problem, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_html([solution(problem)], tmp_path / "nowhere" / "a.html")
