"""Names of graphs, operators, devices and methods are anything: no output breaks on one, or takes it for markup."""

import html
import json
import re
from dataclasses import replace
from io import StringIO

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.files import write_text
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import COLUMNS
from graphopt_gym.graphs.tensor_program import ProgramBuilder, parse_program, program_text
from graphopt_gym.graphs.tensor_program.onnx_io import read_onnx, write_onnx
from graphopt_gym.problem import Solution
from graphopt_gym.report.gantt import drawable, figure_bytes, gantt_figure
from graphopt_gym.report.html import render_html
from graphopt_gym.report.perfetto import trace_bytes
from graphopt_gym.report.tables import Table, comparison_table, device_table
from tests.report.cases import make_cluster

NAMES = [
    "[/x]", "[bold]x", "$\\frac$", "$x^2$ $", "😀", "模型", "two\nlines", "a|b", "a\\|b", "<script>x</script>", "&amp;",
    "\x1b[31mred", "nul\0", "\ud800", "_x", "🦜", "../up", "`code`", "*x*_y_", ":smile:", "n" * 5000, "", " ",
    "\u202eright", '"',
]  # fmt: skip


def solved(name):
    """Solutions whose graph, operators, modules, devices, links, cluster and methods are called so."""
    graph = layered_dag(30, 3, seed=1, phases=True)
    graph = gg.ComputationGraph(
        name,
        kinds=[f"{name}{kind}" for kind in graph.kinds],
        modules=[f"{name}{module}" for module in graph.modules],
        columns={column: getattr(graph, column) for column in COLUMNS},
        edges=graph.edges,
        metadata={"source": name},
    )
    cluster = make_cluster(2)
    devices = tuple(replace(device, name=name) for device in cluster.devices)
    links = tuple(replace(link, name=name) for link in cluster.links)
    cluster = replace(cluster, name=name, devices=devices, links=links, about=name)
    problem = gg.make_problem("Placement-v0", graph=graph, cluster=cluster, grouping="op")
    solutions = []
    for seed in range(2):
        decision = problem.sample(np.random.default_rng(seed))
        outcome = problem.evaluate(decision)
        history = ((1, 0.1, outcome.cost * 2), (3, 0.2, outcome.cost))
        solutions.append(
            Solution(problem, name, seed, decision, outcome, 3, 0.25, history, options={name: name}, details={name: 1})
        )
    return solutions


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names__break_no_figure_page_table_or_trace(name, tmp_path):
    first, second = solved(name)
    timeline = first.outcome.timeline
    for kind in ("png", "svg"):
        assert figure_bytes(gantt_figure(timeline, title=name), kind)
    assert figure_bytes(gantt_figure(timeline), "svg").decode().isprintable() is False  # it has lines
    page = render_html([first, second])
    assert "<script>x" not in page
    if name.isprintable() and len(name) < 100 and name.strip():
        assert html.escape(name) in page.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
    assert trace_bytes(timeline, name=name)
    for table in (comparison_table([first, second], name), device_table(timeline)):
        out = StringIO()
        table.print(Console(file=out, width=100))
        assert all(line.isprintable() for line in out.getvalue().replace("\n", "").splitlines())
        lines = table.to_markdown().split("\n\n")[0].splitlines()
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {len(table.columns) + 1}
        json.dumps(table.to_json(), allow_nan=False)
    saved = first.save(tmp_path / "solution.json")
    assert json.loads(saved.read_text())["graph"] == name


def test_table__markdown_shows_texts_as_they_are():
    table = Table("", ("name",), (("a\\|b",), ("*x* `y` <b> [z](u) $1$",), ("bert_base _x_",), ("two\nlines",)))
    assert table.to_markdown().splitlines()[2:6] == [
        "| a\\\\\\|b |",
        "| \\*x\\* \\`y\\` \\<b> \\[z\\](u) \\$1\\$ |",
        "| bert_base \\_x\\_ |",
        "| two lines |",
    ]


def test_drawable__is_text_that_no_figure_reads_as_a_formula():
    assert drawable("$\\frac$") == "\\$\\frac\\$"
    assert drawable("bert_base: 模型 🦜 µs →") == "bert_base: \ufffd\ufffd \ufffd µs →"
    assert len(drawable("x" * 5000)) < 130
    assert [drawable(text) for text in ("", " \n", "_x")] == ["?", "?", " _x"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names__go_into_onnx_files_and_back(name, tmp_path):
    pytest.importorskip("onnx")
    builder = ProgramBuilder(name)
    x = builder.input(name or "x", (2, 3))
    program = builder.finish([builder.op("add", x, builder.weight(f"{name}w", (2, 3)))])
    path = tmp_path / "program.onnx"
    if name == "\ud800":
        with pytest.raises(InputError, match="can be no name in an ONNX file"):
            write_onnx(program, path)
        return
    write_onnx(program, path)
    assert read_onnx(path)[0] == program


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(min_size=1), st.text(min_size=1))
def test_program_text__round_trips_whatever_the_names(name, first, second):
    assume(first != second)
    builder = ProgramBuilder(name)
    x = builder.input(first, (2, 3))
    program = builder.finish([builder.op("relu", builder.op("add", x, builder.weight(second, (2, 3))))])
    text = program_text(program)
    again = parse_program(text)
    assert again.name == name
    assert again == program
    assert program_text(again) == text


@pytest.mark.parametrize("name", [*NAMES, "\ud83d\ude00", "\u2028", "\r", "\\", "\\u0041", "'''"], ids=ascii)
def test_program_text__is_a_file_that_is_read_again(name, tmp_path):
    builder = ProgramBuilder(name)
    program = builder.finish([builder.op("relu", builder.input(name or "x", (2, 3)))])
    path = write_text(tmp_path / "program.txt", program_text(program))
    again = gg.load_program(path)
    assert (again.name, again) == (name, program)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names__break_no_report_and_no_text_of_an_episode(name, tmp_path):
    builder = ProgramBuilder(name)
    x = builder.input(name or "x", (4, 8))
    products = [builder.op("matmul", x, builder.weight(f"{name}{side}", (8, 8))) for side in "vw"]
    program = builder.finish(products)
    graph = layered_dag(12, 2, seed=1, phases=True).replace(name=name)
    for env_id, what, method in (
        ("Placement-v0", graph, "metis"),
        ("ChipletPartition-v0", graph, "random"),
        ("RewriteOrder-v0", program, "greedy"),
    ):
        problem = gg.make_problem(env_id, graph=what)
        solution = gg.solve(problem, method, budget=20)
        assert render_html([solution])
        figure = problem.figure(solution.decision)
        assert figure is None or figure_bytes(figure, "svg")
        assert problem.title.isprintable()
        env = gym.make(env_id, graph=what, render_mode="ansi").unwrapped
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert env.render().replace("\n", "").isprintable()
