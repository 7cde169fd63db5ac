"""Scheduling decisions: priced as the simulator prices priorities, stated by few levels, against every order."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.scheduling import RULES, levels, methods
from graphopt_gym.envs.scheduling.problem import TIES, SchedulingProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, fork_join, layered_dag
from graphopt_gym.hardware.cluster import Cluster
from graphopt_gym.simulator import Simulator
from graphopt_gym.solutions import load_solution, validate
from tests.envs.scheduling.dags import (
    cluster_of,
    graph_of,
    least_makespan,
    least_peak,
    priorities,
    random_dag,
    random_in_tree,
)
from tests.simulator.cases import device, random_cluster, random_graph

SMALL = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}


class Prices:
    """A cost model that gives the seconds of ops by their number, the same on all devices."""

    def __init__(self, seconds):
        self.seconds = np.asarray(seconds, np.float64)

    def op_times(self, graph, _):
        return np.where(graph.op_class == 0, 0.0, self.seconds)


def tiny(seed, tasks=7, devices=2, latency_s=0.0, **arguments):
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, tasks, 0.35)
    cluster = cluster_of(devices, float(rng.choice([1.0, 3.0])), latency_s, bool(rng.integers(2)))
    seconds, placement = [0, *rng.integers(1, 6, tasks - 1)], rng.integers(0, devices, tasks)
    return SchedulingProblem(graph, cluster, placement=placement, cost_model=Prices(seconds), **arguments)


def test_costs__are_those_of_the_priorities_in_the_simulator():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        graph, cluster = random_graph(rng, 24), random_cluster(rng)
        for ties in TIES:
            problem = SchedulingProblem(
                graph, cluster, placement=rng.integers(0, cluster.num_devices, graph.num_ops), ties=ties, levels=4
            )
            decisions = np.stack([problem.sample(rng) for _ in range(5)])
            costs, valid = problem.costs(decisions)
            for decision, cost, fits in zip(decisions, costs, valid):
                outcome = problem.evaluate(decision)
                placement = problem.placement[problem.simulator.tasks.task_of_op]
                timeline = Simulator(graph, cluster, order="fifo").run(placement, problem.op_priorities(decision))
                assert outcome.valid == fits
                assert outcome.metrics["step_time_s"] == timeline.makespan_s
                assert outcome.metrics["most_bytes"] == timeline.peak_bytes.max()
                assert not fits or cost == timeline.makespan_s


def test_levels__state_any_schedule_exactly():
    for seed in range(150):
        rng = np.random.default_rng(seed)
        graph, cluster = random_graph(rng, 30), random_cluster(rng)
        seconds = np.where(graph.op_class == 0, 0.0, rng.choice([0.0, 1.0, 2.0, 0.7], graph.num_ops))
        problem = SchedulingProblem(
            graph, cluster, placement=rng.integers(0, cluster.num_devices, graph.num_ops),
            ties=TIES[seed % 3], cost_model=Prices(seconds),
        )  # fmt: skip
        priority = rng.choice([rng.normal(size=problem.num_tasks), rng.integers(0, 3, problem.num_tasks)])
        timeline = problem.simulator.run_tasks(problem.placement, priority.astype(np.float64))
        outcome = problem.evaluate(problem.decision_of(priority.astype(np.float64)))
        assert outcome.timeline.start_s.tolist() == timeline.start_s.tolist()
        assert outcome.timeline.peak_bytes.tolist() == timeline.peak_bytes.tolist()


def test_levels__are_the_fewest():
    """No decision with one level less gives the same starts."""
    checked = 0
    for seed in range(40):
        problem = tiny(seed, 6, latency_s=0.25)
        rng = np.random.default_rng(seed)
        timeline = problem.simulator.run_tasks(problem.placement, rng.normal(size=6))
        few = levels.fewest_levels(timeline, problem.tie)
        count = int(few.max()) + 1
        assert problem.simulator.run_tasks(problem.placement, few + problem.tie).start_s.tolist() == (
            timeline.start_s.tolist()
        )
        if count > 1:
            checked += 1
            fewer = itertools.product(range(count - 1), repeat=6)
            starts = (problem.simulator.run_tasks(problem.placement, np.array(one) + problem.tie) for one in fewer)
            assert all((one.start_s != timeline.start_s).any() for one in starts)
    assert checked > 10


def test_levels__spread_over_those_there_are():
    assert levels.spread(np.array([0, 0]), 9).tolist() == [4, 4]
    assert levels.spread(np.array([0, 1, 2]), 9).tolist() == [0, 4, 8]
    assert levels.spread(np.array([0, 1, 2]), 8).tolist() == [0, 3, 6]
    assert levels.spread(np.array([0, 1, 2, 3, 4, 5]), 3).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("graph", ["transformer_xl_2layer", "rnnlm_2layer"])
def test_rules__lose_nothing_where_any_order_can_be_stated(graph):
    problem = SchedulingProblem(graph)
    for order, name in (("fifo", "fifo"), ("program", "program"), ("rank", "rank")):
        simulator = Simulator(problem.graph, problem.cluster, order=order)
        assert gg.solve(problem, name).outcome.cost == simulator.cost(problem.placement)[0]
    for name in RULES:
        priority = methods.RULES[name][0](problem.simulator, problem.placement)
        assert gg.solve(problem, name).outcome.cost == problem.simulator.cost(problem.placement, priority)[0]


def test_rules__are_all_named():
    assert tuple(methods.RULES) == RULES
    assert set(RULES) <= set(gg.methods("Scheduling-v0"))


# ---- against every order


def every_order(problem):
    """(seconds float64 [B], peaks int64 [B]) of all rankings of the tasks."""
    tasks = np.flatnonzero(~problem.simulator.tasks.is_source).tolist()
    sources = np.flatnonzero(problem.simulator.tasks.is_source).tolist()
    every = priorities(([*sources, *one] for one in itertools.permutations(tasks)), problem.num_tasks)
    batch = problem.simulator.run_many(np.tile(problem.placement, (len(every), 1)), every)
    return batch.makespan_s, batch.peak_bytes.max(axis=1)


@pytest.mark.parametrize("seed", range(12))
def test_step__methods_against_every_order(seed):
    problem = tiny(seed)
    best = least_makespan(problem.simulator, problem.placement)
    assert max(problem.bounds().values()) <= best * (1 + 1e-9)
    for name in RULES:
        assert gg.solve(problem, name).outcome.cost >= best
    assert gg.solve(problem, "annealing", budget=800, seed=0).outcome.cost == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("within", [None, 1.0])
def test_memory__methods_against_every_order(seed, within):
    problem = tiny(seed, objective="memory", within=within)
    seconds, peaks = every_order(problem)
    fifo_s, _ = problem.simulator.cost(problem.placement, np.zeros(problem.num_tasks))
    best = peaks[seconds <= fifo_s].min() if within else peaks.min()
    assert problem.bounds()["held_bytes"] <= best
    found = gg.solve(problem, "annealing", budget=800, seed=0).outcome
    assert (found.cost, found.unit) == (best, "B")


def test_memory_cap__the_best_step_that_keeps_it():
    tighter = 0
    for seed in range(12):
        free = tiny(seed)
        seconds, peaks = every_order(free)
        cap = int(peaks.min())
        if cap == 0:
            continue
        problem = tiny(seed, memory_cap_bytes=cap)
        best = seconds[peaks <= cap].min()
        tighter += best > seconds.min()
        solution = gg.solve(problem, "annealing", budget=800, seed=0)
        assert solution.outcome.valid
        assert solution.outcome.cost == pytest.approx(best, rel=1e-12)
    assert tighter


@pytest.mark.parametrize("seed", range(6))
def test_cp_sat__proves_the_best_step(seed):
    pytest.importorskip("ortools")
    problem = tiny(seed)
    best = least_makespan(problem.simulator, problem.placement)
    solution = gg.solve(problem, "cp_sat", budget=100, options={"time_limit_s": 20.0, "workers": 1})
    assert solution.outcome.cost == pytest.approx(best, rel=1e-9)
    assert solution.details["lower_bound_s"] <= best * (1 + 1e-9)
    assert solution.details["proved"] == (solution.details["gap_percent"] <= 0.01)


@pytest.mark.parametrize("seed", range(6))
def test_olla__proves_the_least_peak(seed):
    pytest.importorskip("ortools")
    problem = tiny(seed, devices=1, objective="memory")
    solution = gg.solve(problem, "olla", budget=100, options={"time_limit_s": 20.0, "workers": 1})
    assert solution.outcome.cost == least_peak(problem.simulator) == solution.details["lower_bound_bytes"]
    assert solution.details["proved"]


def test_exact_methods__are_each_of_one_objective():
    step, memory = tiny(0), tiny(0, objective="memory")
    assert "cp_sat" in gg.methods(step)
    assert "olla" not in gg.methods(step)
    with pytest.raises(InputError, match="'cp_sat' is for problems with objective='step'"):
        gg.solve(memory, "cp_sat")
    pytest.importorskip("ortools")
    with pytest.raises(InputError, match="orders one device, the placement has 2"):
        gg.solve(memory, "olla")


# ---- known optima


@pytest.mark.parametrize(("branches", "length"), [(4, 3), (6, 5)])
def test_fork_join__whole_branches_on_two_devices(branches, length):
    graph = fork_join(branches, length)
    problem = SchedulingProblem(
        graph, cluster_of(2), cost_model=Prices(np.ones(graph.num_ops)),
        placement=[0, *np.repeat(np.arange(branches) % 2, length), 0],
    )  # fmt: skip
    assert problem.bounds()["device_s"] == gg.solve(problem, "fifo").outcome.cost == 2 + branches * length / 2


def test_fork_join__the_branch_that_crosses_goes_first():
    """A branch ends on the other device: the order by what is left reaches the optimum, first come does not."""
    edges = [(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (1, 5), (2, 5)]
    graph = graph_of(edges, [0] * 6)
    problem = SchedulingProblem(
        graph, cluster_of(2), placement=[0, 0, 0, 0, 1, 0], cost_model=Prices([1, 2, 2, 2, 4, 1])
    )
    assert gg.solve(problem, "fifo").outcome.cost == 1 + 6 + 4 + 1
    for name in ("rank", "placed_rank", "most_work_remaining", "annealing"):
        assert gg.solve(problem, name, budget=100).outcome.cost == 1 + 2 + 4 + 1 == problem.bounds()["path_s"]


@pytest.mark.parametrize("seed", range(8))
def test_trees__of_least_memory(seed):
    graph = random_in_tree(np.random.default_rng(seed), 8)
    seconds = np.ones(graph.num_ops)
    problem = SchedulingProblem(
        graph, cluster_of(1), placement="single", objective="memory", cost_model=Prices(seconds)
    )
    assert gg.solve(problem, "liu").outcome.cost == least_peak(problem.simulator)


def test_chain__has_one_order():
    problem = SchedulingProblem(chain(5), cluster_of(1), placement="single")
    rng = np.random.default_rng(0)
    costs, _ = problem.costs(np.stack([problem.sample(rng) for _ in range(9)]))
    assert len(set(costs)) == 1


# ---- searches and a graph of the zoo


@pytest.mark.parametrize("objective", ["step", "memory"])
def test_annealing__is_no_worse_than_any_named_order(objective):
    problem = SchedulingProblem("inception_v3_b32", "v100x2", objective=objective)
    named = min(gg.solve(problem, name).outcome.cost for name in RULES)
    found = gg.solve(problem, "annealing", budget=600, seed=0).outcome.cost
    assert max(problem.bounds().values()) <= found <= named


def test_moves__reach_every_order_and_stay_in_the_levels():
    problem, rng = tiny(3, 5, 1, levels=5), np.random.default_rng(0)
    decision, seen = problem.sample(rng), set()
    for _ in range(4000):
        decision = problem.neighbour(decision, rng)
        problem.check(decision)
        on = np.argsort(-(decision + problem.tie))
        seen.add(tuple(task for task in on.tolist() if not problem.simulator.tasks.is_source[task]))
    assert len(seen) == 24


def test_cross_entropy__on_few_levels_and_not_on_too_many():
    problem = SchedulingProblem(**SMALL, levels=4)
    assert gg.solve(problem, "cross_entropy", budget=200).outcome.cost <= gg.solve(problem, "fifo").outcome.cost
    with pytest.raises(InputError, match="would keep 185,640,625 chances, 13,625 of each entry") as caught:
        gg.solve(SchedulingProblem("gnmt_2layer"), "cross_entropy", budget=20)
    assert "\n" not in str(caught.value)


def test_validity__memory_decides_and_time_where_it_is_limited():
    free = SchedulingProblem(**SMALL, objective="memory")
    decision = methods.decision_of(free, "fifo")
    peak = free.evaluate(decision).cost
    narrow = cluster_of(2)
    ops = layered_dag(30, seed=2)
    roomy = SchedulingProblem(ops, narrow, placement=[0, 1] * 15)
    held = max(roomy.evaluate(methods.decision_of(roomy, "fifo")).metrics["peak_bytes"])
    small = Cluster("small", (device(memory_bytes=held - 1),) * 2, narrow.links, narrow.link_of, (0, 0))
    for objective in ("step", "memory"):
        problem = SchedulingProblem(ops, small, placement=[0, 1] * 15, objective=objective)
        outcome = problem.evaluate(methods.decision_of(problem, "fifo"))
        assert not outcome.valid
        assert "out of memory: device" in outcome.reasons[0]
    late = SchedulingProblem(**SMALL, objective="memory", within=0.99)
    (said,) = late.evaluate(methods.decision_of(late, "fifo")).reasons
    assert said.startswith("too slow: a step takes ")
    costs, valid = late.costs(np.stack([methods.decision_of(late, name) for name in ("fifo", "depth_first")]))
    assert valid.tolist() == [False, True]
    assert costs[0] > peak > 0


def test_solutions__are_kept_and_validated(tmp_path):
    problem = SchedulingProblem(**SMALL, levels=64)
    path = gg.solve(problem, "rank").save(tmp_path / "rank.json")
    assert load_solution(path).config == problem.config
    assert validate(path).ok
    text = json.loads(path.read_text())
    text["decision"][0] = 64
    path.write_text(json.dumps(text))
    (said,) = validate(path).mismatches
    assert "decision[0] is 64, allowed: 0 to 63 (level)" in said


def test_solutions__of_another_placement_are_refused(tmp_path):
    path = gg.solve(SchedulingProblem(**SMALL), "rank").save(tmp_path / "rank.json")
    text = json.loads(path.read_text())
    text["fingerprints"]["placement"] = "0" * 64  # as if the named method placed ops elsewhere by now
    path.write_text(json.dumps(text))
    (said,) = validate(path).mismatches
    assert "placement" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": 1}, "levels is 1"),
        ({"objective": "memroy"}, "unknown objective 'memroy'; did you mean 'memory'"),
        ({"ties": "stream"}, "unknown ties 'stream'"),
        ({"placement": "exprt"}, "did you mean 'expert'"),
        ({"placement": [0, 1]}, "placement"),
        ({"within": 1.0}, "within is 1.0, a rule of objective 'memory'; leave it out, or give that"),
        ({"objective": "memory", "memory_cap_bytes": 9}, "memory_cap_bytes is 9, a rule of objective 'step'"),
        ({"objective": "memory", "within": 0}, "within"),
        ({"objective": "memory", "within": 0.1}, r"but no order of this placement takes less than .*; give at least"),
        ({"memory_cap_bytes": 10**9}, r"holds at least .* GiB in any order of this placement; give at least \d+"),
        ({"memory_cap_bytes": -1}, "memory_cap_bytes is -1"),
    ],
)
def test_arguments__bad_ones_are_refused_in_one_line(arguments, said):
    with pytest.raises(InputError, match=said) as caught:
        SchedulingProblem(**{**SMALL, **arguments})
    assert "\n" not in str(caught.value)


def test_memory_cap__at_the_bound_is_taken():
    with pytest.raises(InputError) as caught:
        SchedulingProblem(**SMALL, memory_cap_bytes=1)
    least = int(str(caught.value).split("give at least ")[1].split(",")[0])
    assert SchedulingProblem(**SMALL, memory_cap_bytes=least).capacity_bytes.tolist() == [least] * 2


def test_summary__says_what_was_proved():
    problem = SchedulingProblem(**SMALL)
    outcome = problem.evaluate(methods.decision_of(problem, "rank"))
    assert problem.summary_lines(outcome, {}) == ()
    found = {"lower_bound_s": 0.25, "gap_percent": 3.14159, "proved": False}
    for changed, said in (
        ({}, "this is 3.14 % above"),
        ({"gap_percent": 0.00123, "proved": True}, "this is the best but for 0.001 %"),
        ({"gap_percent": 0.0, "proved": True}, "this is the best"),
    ):
        (line,) = problem.summary_lines(outcome, {**found, **changed})
        assert line == f"no order of this placement gives less than 250 ms: {said}"
    (line,) = problem.summary_lines(outcome, {**found, "gap_percent": None})
    assert line == "no order of this placement gives less than 250 ms"
