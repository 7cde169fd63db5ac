"""Joint decisions: against the simulator that is given the kernels, all decisions of tiny graphs, a checker."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.fusion.problem import FusionProblem
from graphopt_gym.envs.joint.problem import SCHEDULES, TASKS, GraphOptimizationProblem, Parts
from graphopt_gym.envs.scheduling.methods import RULES
from graphopt_gym.errors import InputError
from graphopt_gym.simulator import Simulator
from graphopt_gym.solutions import load_solution, validate
from tests.envs.placement.cases import cluster
from tests.simulator import fusing_twin
from tests.simulator.cases import random_cluster
from tests.simulator.test_fusing import shaped_graph

SMALL = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}


def random_problem(seed, most_ops=18, **arguments):
    rng = np.random.default_rng(seed)
    graph = shaped_graph(rng, most_ops, groups=int(rng.integers(2, 6)))
    return GraphOptimizationProblem(graph, random_cluster(rng), placement="single", levels=4, **arguments)


@pytest.mark.parametrize("seed", range(60))
def test_outcomes__are_of_legal_kernels_and_priced_as_the_simulator_prices_them(seed):
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    decisions = np.stack([problem.sample(rng) for _ in range(6)])
    costs, valid = problem.costs(decisions)
    assert valid.all()
    for decision, cost in zip(decisions, costs):
        groups, placement = problem.kernel_of_op(decision), problem.op_placement(decision)
        assert fusing_twin.faults(problem.graph, problem.cluster, placement, groups) == []
        simulator = Simulator(problem.graph, problem.cluster, fusion=groups, order="priority")
        levels = problem.parts(decision).schedule[problem.simulator.tasks.task_of_op]
        urgent = np.full(simulator.num_tasks, -np.inf)
        of_task = simulator.tasks.task_of_op[problem.simulator.tasks.first_op]
        np.maximum.at(urgent, of_task, levels[problem.simulator.tasks.first_op].astype(float))
        placed = placement[simulator.tasks.first_op].astype(np.int32)
        assert simulator.run_tasks(placed, urgent).makespan_s == cost
        assert problem.evaluate(decision).cost == cost
        assert cost >= max(problem.bounds().values()) * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_equal_schedule_levels__are_first_come_first_served(seed):
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    parts = problem.parts(problem.sample(rng))
    decision = problem.decision_of(parts._replace(schedule=np.full(problem.num_tasks, 2, np.int32)))
    placed = parts.placement[problem.placing.group_of_op]
    fusing = FusionProblem(problem.graph, problem.cluster, placement=placed, levels=4)
    assert problem.evaluate(decision).cost == fusing.evaluate(parts.fusion).cost


def all_decisions(problem):
    choices = [range(count) for count in problem.entry_choices]
    matters = np.ones(len(choices), bool)
    for task, of in (("fusion", problem.producers), ("schedule", problem.scheduled)):
        part = np.ones(problem.num_tasks, bool)
        part[of] = False
        matters[problem.slices[task]] &= ~part
    choices = [one if used else (0,) for one, used in zip(choices, matters, strict=True)]
    return itertools.product(*choices)


def tiny_problems():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        graph = shaped_graph(rng, 7, groups=2)
        problem = GraphOptimizationProblem(graph, cluster(2, latency_s=1e-9), placement="single", levels=2)
        count = problem.num_groups + len(problem.producers) + len(problem.scheduled)
        if len(problem.producers) and problem.num_groups > 1 and 6 <= count <= 12:
            yield seed, problem


TINY = dict(itertools.islice(tiny_problems(), 12))


@pytest.mark.parametrize("seed", TINY)
def test_searches__find_the_best_of_all_decisions(seed):
    problem = TINY[seed]
    costs, valid = problem.costs(np.array(list(all_decisions(problem)), np.int32))
    best = costs[valid].min()
    assert max(problem.bounds().values()) <= best * (1 + 1e-12)
    for method in ("default", "heuristics", "in_turn"):
        assert gg.solve(problem, method, budget=400, seed=0).outcome.cost >= best
    for method in ("annealing", "evolution"):
        assert gg.solve(problem, method, budget=1500, seed=0).outcome.cost == pytest.approx(best, rel=1e-12)


def test_tiny_problems__are_several():
    assert len(TINY) == 12


def test_tasks__what_is_not_decided_is_the_default_stack():
    whole = GraphOptimizationProblem(**SMALL)
    rng = np.random.default_rng(0)
    default = whole.decision_of(whole.default)
    assert whole.evaluate(default).cost == gg.solve(whole, "default").outcome.cost
    for count in (1, 2):
        for tasks in itertools.combinations(TASKS, count):
            part = GraphOptimizationProblem(**SMALL, tasks=tasks)
            decision = part.sample(rng)
            assert part.evaluate(decision).cost == whole.evaluate(whole.decision_of(part.parts(decision))).cost
            assert part.evaluate(part.decision_of(part.default)).cost == whole.evaluate(default).cost
            assert part.rules["tasks"] == "+".join(tasks)
            only = whole.only(*tasks, default=whole.default)
            assert only.costs(decision[None])[0] == part.costs(decision[None])[0]


def test_default__is_the_named_stack():
    problem = GraphOptimizationProblem(**SMALL, fusion="none", schedule="placed_rank")
    placed = gg.solve(gg.make_problem("Placement-v0", **SMALL), "expert").decision
    assert problem.default.placement.tolist() == placed.tolist()
    assert not problem.default.fusion.any()
    assert len(np.unique(problem.default.schedule[problem.scheduled])) == problem.levels


@pytest.mark.parametrize("name", SCHEDULES[1:])
def test_schedules__levels_follow_the_priorities(name):
    problem = GraphOptimizationProblem("bert_base", "v100x2")
    placed = problem.default.placement[problem.group_of_task]
    levels = problem.schedule_by(name, placed)[problem.scheduled]
    priority = RULES[name][0](problem.simulator, placed)[problem.scheduled]
    order = np.argsort(priority, kind="stable")
    assert (np.diff(levels[order]) >= 0).all()
    assert np.bincount(levels).max() - np.bincount(levels).min() <= 1


def test_memory__decides_validity():
    graph = shaped_graph(np.random.default_rng(3), groups=3)
    free = GraphOptimizationProblem(graph, cluster(1), placement="single")
    decision = free.decision_of(free.default)
    peak = free.evaluate(decision).metrics["peak_bytes"][0]
    problem = GraphOptimizationProblem(graph, cluster(1, memory_bytes=peak - 1), placement="single")
    outcome = problem.evaluate(decision)
    assert not outcome.valid
    assert "out of memory: device 0" in outcome.reasons[0]
    cost, valid = problem.costs(decision[None])
    assert not valid[0]
    assert cost[0] > free.evaluate(decision).cost


def test_methods__in_turn_and_together_beat_the_default_stack():
    problem = GraphOptimizationProblem("bert_base", "v100x2")
    costs = {
        name: gg.solve(problem, name, budget=600, seed=0).outcome.cost
        for name in ("default", "heuristics", "in_turn", "annealing", "evolution", "cross_entropy")
    }
    assert costs["heuristics"] < 0.9 * costs["default"]
    assert max(costs[name] for name in ("in_turn", "annealing", "evolution", "cross_entropy")) <= costs["heuristics"]
    assert min(costs.values()) > max(problem.bounds().values())


def test_in_turn__keeps_to_its_budget():
    solution = gg.solve(GraphOptimizationProblem(**SMALL), "in_turn", budget=200, seed=1)
    assert solution.evaluations == 200
    again = gg.solve(GraphOptimizationProblem(**SMALL), "in_turn", budget=200, seed=1)
    assert again.decision.tolist() == solution.decision.tolist()


def test_solutions__are_kept_and_validated__and_wrong_kernels_refused(tmp_path):
    problem = GraphOptimizationProblem(**SMALL)
    path = gg.solve(problem, "heuristics").save(tmp_path / "heuristics.json")
    assert load_solution(path).config == problem.config
    assert validate(path).ok
    text = json.loads(path.read_text())

    def said(**changes):
        path.write_text(json.dumps(text | changes))
        return "; ".join(validate(path).mismatches)

    device, ops = text["trace"][0]
    placement = problem.op_placement(np.array(text["decision"]))
    elsewhere = int(np.flatnonzero(placement != device)[0])
    assert "a kernel is on one device" in said(trace=[[device, [*ops, elsewhere]], *text["trace"][1:]])
    assert "too" in said(trace=[text["trace"][0], *text["trace"]])
    assert "not those that its levels lead to" in said(trace=text["trace"][1:])
    assert "ops are whole numbers" in said(trace=[[device, [10**6]]])
    assert "a device and a list of ops" in said(trace=[[device]])
    wrong = list(text["decision"])
    wrong[problem.num_groups] = 99
    assert "fusion level" in said(decision=wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": "placement+fusin"}, "did you mean 'fusion'"),
        ({"tasks": []}, "name some of placement, fusion, schedule"),
        ({"tasks": "fusion+fusion"}, "each once"),
        ({"levels": 1}, "levels is 1"),
        ({"placement": "exprt"}, "did you mean 'expert'"),
        ({"fusion": "greedi"}, "did you mean 'greedy'"),
        ({"schedule": "lifo"}, "unknown schedule 'lifo'"),
    ],
)
def test_arguments__bad_ones_are_refused_in_one_line(arguments, said):
    with pytest.raises(InputError, match=said) as caught:
        GraphOptimizationProblem(**SMALL, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [(0, 2, "device"), (-1, 16, "schedule level"), (-1, -1, "-1"), (60, 16, "fusion level")],
)
def test_check__names_what_is_out_of_range(place, value, said):
    problem = GraphOptimizationProblem(**SMALL)
    decision = problem.decision_of(problem.default)
    decision[place] = value
    with pytest.raises(InputError, match=said):
        problem.evaluate(decision)


def test_parts__and_decisions_are_the_same():
    problem = GraphOptimizationProblem(**SMALL)
    decision = problem.sample(np.random.default_rng(0))
    parts = problem.parts(decision)
    assert isinstance(parts, Parts)
    assert problem.decision_of(parts).tolist() == decision.tolist()
