"""What placements live in: the order of a step, and what its groups are; named wherever a cost is told."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.placement.benchmarks import order_report
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import PHASES, ComputationGraph
from graphopt_gym.report.html import render_html
from graphopt_gym.report.tables import comparison_table
from graphopt_gym.simulator.lowering import PARTS, parts_of_tasks
from graphopt_gym.simulator.orders import ORDERS
from graphopt_gym.solutions import load_solution, validate
from tests.envs.placement.cases import cluster
from tests.simulator import twin
from tests.simulator.cases import random_cluster, random_graph

FORWARD, BACKWARD, UPDATE = range(len(PHASES))


def plain_parts(graph: ComputationGraph) -> dict[int, str]:
    """The part of each kernel, by its lowest op, from the words of ``parts_of_tasks`` alone."""
    k = twin.Kernels(graph)
    readers = {one: set() for one in k.kernels}
    for tensor, who in k.readers.items():
        readers[k.kernel[tensor]] |= who
    parts = {}
    for one in sorted(k.kernels, reverse=True):
        phase, group = int(graph.phase[one]), int(graph.colocation[one])
        mine = []
        for reader in readers[one]:
            is_sum = graph.op_class[reader] == 4 and all(
                graph.output_bytes[tensor] == graph.output_bytes[reader] for tensor in k.reads[reader]
            )
            near = graph.phase[reader] != phase or graph.colocation[reader] == group or is_sum
            mine.append(near and parts[reader] == "parameter_gradient")
        if phase == UPDATE or (phase == BACKWARD and all(mine)):
            parts[one] = "parameter_gradient"
        elif phase == BACKWARD:
            parts[one] = "input_gradient"
        else:
            updated = any(graph.phase[r] == UPDATE and graph.colocation[r] == group for r in readers[one])
            holds = graph.op_class[one] == 0 and graph.param_bytes[one] > 0
            parts[one] = "parameter_gradient" if holds and updated else "forward"
    return parts


def with_phases(graph: ComputationGraph, rng: np.random.Generator) -> ComputationGraph:
    """A graph whose ops are forward, backward, and updates, in this order, with groups of a few ops."""
    from graphopt_gym.graphs.graph import COLUMNS

    columns = {name: np.array(getattr(graph, name)) for name in COLUMNS}
    at = np.sort(rng.random(graph.num_ops))
    columns["phase"] = np.searchsorted([0.4, 0.8], at)
    columns["phase"][columns["op_class"] == 0] = FORWARD
    columns["colocation"] = rng.integers(-1, 4, graph.num_ops)
    edges = np.stack([graph.edge_src, graph.edge_dst], axis=1)
    return ComputationGraph("phases", kinds=graph.kinds, modules=graph.modules, columns=columns, edges=edges)


@pytest.mark.parametrize("seed", range(120))
def test_parts__are_those_of_plain_words(seed):
    rng = np.random.default_rng(seed)
    graph = with_phases(random_graph(rng, 30), rng)
    problem = PlacementProblem(graph, random_cluster(rng), grouping="phase")
    tasks = problem.simulator.tasks
    found = {int(op): PARTS[part] for op, part in zip(tasks.first_op, parts_of_tasks(tasks), strict=True)}
    assert found == plain_parts(graph)
    # a group is one part of one colocation group, and all of it
    keys = [("alone", op) if graph.colocation[op] < 0 else (int(graph.colocation[op]), found[op]) for op in found]
    same = {(keys[a] == keys[b]) == (problem.group_of_task[a] == problem.group_of_task[b])
            for a, b in itertools.combinations(range(len(keys)), 2)}  # fmt: skip
    assert same <= {True}
    whole = problem.lowering.group_of_unit[problem.group_of_task]
    assert (whole == PlacementProblem(graph, problem.cluster).group_of_task).all()


def test_parts__of_a_captured_model_are_where_they_belong():
    problem = gg.make_problem("Placement-v0", graph="bert_base", grouping="phase")
    graph, tasks = problem.graph, problem.simulator.tasks
    part = parts_of_tasks(tasks)
    dense = [i for i, path in enumerate(graph.modules) if path.endswith("layers.3.attention.query")]
    assert len(dense) == 1
    mine = np.flatnonzero(graph.module[tasks.first_op] == dense[0])
    of = {}
    for task in mine:
        op = tasks.first_op[task]
        of.setdefault((graph.kinds[graph.kind[op]], PHASES[graph.phase[op]]), []).append(PARTS[part[task]])
    assert of[("mm", "backward")] == ["input_gradient", "parameter_gradient"] or of[("mm", "backward")] == [
        "parameter_gradient",
        "input_gradient",
    ]
    assert set(of[("parameter", "forward")]) == {"parameter_gradient"}  # with their updates
    assert set(of[("adam", "optimizer")]) == {"parameter_gradient"}
    assert problem.num_groups == 492


@pytest.fixture(scope="module")
def graph() -> ComputationGraph:
    return layered_dag(120, seed=3, colocated=0.7, phases=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grouping", ["colocation", "phase"])
def test_costs__of_every_order_equal_evaluate_and_its_simulated_step(graph, order, grouping):
    problem = PlacementProblem(graph, cluster(3), order=order, grouping=grouping)
    rng = np.random.default_rng(0)
    decisions = np.stack([problem.sample(rng) for _ in range(6)])
    assert decisions.shape[1:] == problem.decision_shape
    costs, valid = problem.costs(decisions)
    assert valid.all()
    assert costs.tolist() == [problem.evaluate(decision).cost for decision in decisions]
    if order != "priority":
        placement = problem.op_placement(decisions[0])
        step = gg.simulate(graph, problem.cluster, placement, order=order)
        assert step.makespan_s == costs[0]


def test_order__makes_a_difference_and_rank_is_priority_of_one_level(graph):
    problems = {order: PlacementProblem(graph, cluster(3), order=order) for order in ORDERS}
    devices = problems["fifo"].sample(np.random.default_rng(1))
    costs = {order: problem.evaluate(problem.decision_of(devices)).cost for order, problem in problems.items()}
    assert costs["rank"] == costs["priority"]
    assert len(set(costs.values())) == 4
    assert problems["priority"].evaluate(devices).cost == costs["rank"]  # devices alone are taken too


def test_priority__levels_come_before_the_way_to_the_end():
    # two chains on one device: op by op, the level decides which goes first
    graph = layered_dag(30, seed=0, sources=0.0, views=0.0)
    problem = PlacementProblem(graph, cluster(1), order="priority", grouping="op", priority_levels=4)
    ready = np.flatnonzero(np.diff(problem.simulator.tasks.input_ptr) == 0)
    ready = ready[~problem.simulator.tasks.is_source[ready]]
    assert len(ready) == 0  # the first layer is sources
    levels = np.zeros(problem.num_groups, np.int32)
    rng = np.random.default_rng(0)
    levels[:] = rng.integers(0, 4, problem.num_groups)
    timeline = problem.evaluate(np.stack([np.zeros_like(levels), levels])).timeline
    tasks, rank = problem.simulator.tasks, problem.simulator.priorities
    # whenever a task starts, none that was ready has a higher (level, rank)
    key = [(int(levels[t]), float(rank[t])) for t in range(tasks.num_tasks)]
    ready_at = np.zeros(tasks.num_tasks)
    for task in range(tasks.num_tasks):
        inputs = tasks.input_tensor[tasks.input_ptr[task] : tasks.input_ptr[task + 1]]
        ready_at[task] = timeline.finish_s[tasks.tensor_task[inputs]].max(initial=0.0)
    running = np.flatnonzero(~tasks.is_source)
    for task in running:
        start = timeline.start_s[task]
        others = [o for o in running if ready_at[o] <= start and timeline.start_s[o] > start]
        assert all(key[o] <= key[task] for o in others)


def test_priority__searches_find_better_orders_than_they_start_from():
    problem = gg.make_problem("Placement-v0", graph="rnnlm_2layer", cluster="p100x2", order="priority")
    rank = gg.make_problem("Placement-v0", graph="rnnlm_2layer", cluster="p100x2", order="rank")
    expert = gg.solve(problem, "expert")
    assert expert.outcome.cost == gg.solve(rank, "expert").outcome.cost
    found = gg.solve(problem, "annealing", budget=1500)
    assert found.outcome.valid
    assert found.outcome.cost < expert.outcome.cost
    assert found.decision.shape == (2, problem.num_groups)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (lambda n: [[0] * n, [16] + [0] * (n - 1)], r"decision\[1\]\[0\] is 16, allowed: 0 to 15 \(level\)"),
        (lambda n: [[3] + [0] * (n - 1), [0] * n], r"decision\[0\]\[0\] is 3, allowed: 0 to 2 \(device\)"),
        (lambda n: [[0] * n], r"shape \(1, \d+\), expected"),
    ],
)
def test_check__names_the_bad_level(graph, decision, message):
    problem = PlacementProblem(graph, cluster(3), order="priority")
    with pytest.raises(InputError, match=message):
        problem.check(decision(problem.num_groups))


def test_arguments__are_refused_with_what_there_is(graph):
    with pytest.raises(InputError, match="unknown order 'rnk'; did you mean 'rank'"):
        PlacementProblem(graph, cluster(2), order="rnk")
    with pytest.raises(InputError, match="priority_levels is 0"):
        PlacementProblem(graph, cluster(2), order="priority", priority_levels=0)
    with pytest.raises(InputError, match="order 'priority' decides on priorities beside devices"):
        gym.make("Placement-v0", graph=graph, cluster=cluster(2), order="priority")


@pytest.mark.parametrize("order", ["stream", "rank"])
@pytest.mark.parametrize("env_id", ["Placement-v0", "PlacementOneShot-v0"])
def test_environments__price_by_their_order(graph, env_id, order):
    env = gym.make(env_id, graph=graph, cluster=cluster(3), order=order, grouping="phase")
    env.reset(seed=0)
    env.action_space.seed(0)
    done = False
    while not done:
        _, _, done, _, info = env.step(env.action_space.sample())
    problem = PlacementProblem(graph, cluster(3), order=order, grouping="phase")
    assert info["cost"] == problem.evaluate(info["decision"][: problem.num_groups]).cost
    assert info["cost"] != PlacementProblem(graph, cluster(3), grouping="phase").evaluate(info["decision"]).cost


def test_rules__stand_in_solutions_tables_and_reports(graph, tmp_path):
    problem = gg.make_problem("Placement-v0", graph="rnnlm_2layer", cluster="p100x2", order="rank", grouping="phase")
    assert problem.rules == {"order": "rank", "grouping": "phase"}
    solutions = gg.compare(problem, ["expert", "single"])
    assert solutions[0].row()["rules"] == {"order": "rank", "grouping": "phase"}
    assert "order rank, grouping phase" in comparison_table(solutions).notes
    assert "order rank, grouping phase" in render_html(solutions)
    path = solutions[0].save(tmp_path / "solution.json")
    assert json.loads(path.read_text())["problem"]["order"] == "rank"
    assert validate(path).ok
    text = path.read_text().replace('"order": "rank"', '"order": "fifo"')
    path.write_text(text)
    found = validate(path)
    assert not found.ok
    assert any("cost" in line for line in found.mismatches)


def test_solution__of_levels_is_read_back(graph, tmp_path):
    problem = gg.make_problem("Placement-v0", graph="rnnlm_2layer", cluster="p100x2", order="priority")
    solution = gg.solve(problem, "annealing", budget=60)
    assert validate(solution.save(tmp_path / "solution.json")).ok
    stored = load_solution(tmp_path / "solution.json").make_problem()
    assert stored.evaluate(solution.decision).cost == solution.outcome.cost


@pytest.mark.parametrize("method", ["expert", "metis", "heft", "m_etf", "annealing", "evolution", "cross_entropy"])
@pytest.mark.parametrize("order", ["priority", "stream"])
def test_methods__work_in_every_order(graph, method, order):
    problem = PlacementProblem(graph, cluster(3), order=order, grouping="phase")
    solution = gg.solve(problem, method, budget=80)
    assert solution.outcome.valid
    assert solution.outcome.cost == problem.evaluate(solution.decision).cost


def test_page__has_what_the_benchmark_prints():
    """The table of ``docs/rules.md`` is that of ``graphopt bench order``."""
    page = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
    rows = order_report()["rows"]
    for row in rows:
        costs = [row[f"{order}_s"] for order in ("fifo", "stream", "program", "rank")]
        texts = [f"{cost * 1e3:.0f} ms" if cost < 1 else f"{cost:.2f} s" for cost in costs]
        line = " | ".join([row["graph"], row["cluster"], *texts, f"{row['rank_vs_fifo_percent']:.1f} %"])
        assert f"| {line} |" in page
    for grouping in ("colocation", "phase", "op"):
        groups = gg.make_problem("Placement-v0", graph="bert_base", grouping=grouping).num_groups
        assert re.search(rf"\| `{grouping}`.*\| {groups:,}\b", page)
