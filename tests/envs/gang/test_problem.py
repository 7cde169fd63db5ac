"""Gang scheduling: a plain checker agrees, policies and orders are decisions, optimisers reach known optima."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.gang import exact
from graphopt_gym.envs.gang.bounds import bounds, least_cost, one_machine, plan_bounds
from graphopt_gym.envs.gang.methods import METHODS
from graphopt_gym.envs.gang.orders import topological_order
from graphopt_gym.envs.gang.problem import GangProblem
from graphopt_gym.envs.gang.rules import ORDERS, POLICIES, pipeline_decision, policy_decision
from graphopt_gym.errors import InputError
from graphopt_gym.hardware.machine import load_machine
from graphopt_gym.report.files import write_report
from graphopt_gym.simulator.gang import Builder, pipeline, pipeline_lists, together
from graphopt_gym.simulator.gang.workloads import Plan, Workload, load_workload, workload_of
from graphopt_gym.solutions import validate
from tests.envs.gang.checker import judge, one_order
from tests.report.test_perfetto import Trace
from tests.simulator.gang.cases import random_machine, random_program

TOY = {"cluster": "toy_islands"}


def random_problem(seed, most=9, **options):
    """Two random programs as plans, on a random machine."""
    rng = np.random.default_rng(seed)
    while True:
        machine = random_machine(rng)
        plans = tuple(Plan(str(n), random_program(rng, machine, most)[0]) for n in range(int(rng.integers(1, 3))))
        try:
            return GangProblem(Workload("random", plans), machine, **options), rng
        except InputError:  # a wide slice whose gangs may not span islands
            continue


OPTIONS = [
    {},
    {"back_pressure": False},
    {"objective": "throughput", "controllers": "multi"},
    {"objective": "fairness", "controllers": "none"},
    {"safe": False},
    {"place": False, "dispatch": "sequential"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_costs__agree_with_a_plain_checker(options):
    for seed in range(25):
        problem, rng = random_problem(seed, **options)
        decisions = [problem.sample(rng) for _ in range(3)]
        decisions += [problem.neighbour(one, rng) for one in decisions]
        free = rng.integers(0, problem.entry_choices, (2, *problem.decision_shape)).astype(np.int32)
        free[:, 1] |= not problem.safe
        decisions += list(free)
        costs, valid = problem.costs(np.stack(decisions))
        for decision, cost, fits in zip(decisions, costs, valid):
            expected = judge(problem, decision)
            assert expected[0] == fits
            if fits:
                assert cost == pytest.approx(expected[1], rel=1e-12, abs=1e-12)
                assert cost >= least_cost(problem) * (1 - 1e-12)
            else:
                assert cost > problem.worst


def test_topological_order__is_that_of_the_plain_one():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        program, _ = random_program(rng, random_machine(rng))
        levels = rng.integers(0, 4, program.num_gangs).astype(np.int32)
        assert topological_order(*program.successors, levels).tolist() == one_order(program, levels.tolist())


# ---- policies and orders


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("graph", ["toy_tenants", "toy_pipeline", "tenants_mixed"])
def test_policies__are_decisions_that_cost_the_same(policy, graph):
    problem = GangProblem(graph, "pathways_c" if graph == "tenants_mixed" else "toy_islands")
    for plan, first in enumerate(problem.spread):
        simulator = problem.simulator(plan, first)
        if policy == "longest":
            run = simulator.run("priority", priorities=simulator.program.remaining_s)
        elif policy.startswith("backfill"):
            run = greedily(simulator, simulator.program.remaining_s if policy == "backfill_longest" else None)
        else:
            run = simulator.run(policy)
        decision = policy_decision(problem, plan, policy)
        assert problem.costs(decision[None])[0][0] == run.makespan_s
        again = problem.timeline(decision)
        assert again.gang_start_s.tolist() == run.gang_start_s.tolist()


def greedily(simulator, urgency):
    """A run in which whatever can start does, the most urgent first, then the earliest ready."""
    state = simulator.choose()
    count = simulator.step(state)
    while count:
        may = [gang for gang, able in enumerate(simulator.candidates(state)) if able]
        urgent = [0.0 if urgency is None else -urgency[gang] for gang in may]
        count = simulator.step(state, min(zip(urgent, state.ready_s[may], may, strict=True))[2])
    return simulator.timeline(state)


def test_backfill__keeps_no_core_free_for_a_wide_gang():
    """Two narrow gangs after the other while a wide one waits for both halves; in turn it goes before the second."""
    build = Builder("wide")
    left, right, both = build.slice("left", 2), build.slice("right", 2), build.slice("both", 4)
    for name, at, time_s, arrival_s in (
        ("a", left, 2e-3, 0.0), ("b", right, 4e-3, 0.0), ("wide", both, 1e-3, 1e-3), ("c", left, 2e-3, 1.5e-3),
    ):  # fmt: skip
        build.call(arrival_s=arrival_s)
        build.gang(name, at, time_s)
    problem = GangProblem(workload_of(build.program()), "toy_islands", controllers="none")
    places = np.array([0, 2, 0])
    costs = {
        name: problem.costs(policy_decision(problem, 0, name, places)[None])[0][0] for name in ("fifo", "backfill")
    }
    assert costs == pytest.approx({"fifo": 7e-3, "backfill": 5e-3})


@pytest.mark.parametrize("order", ORDERS)
def test_orders__are_decisions_that_cost_the_same(order):
    problem = GangProblem("toy_pipeline", "toy_islands")
    fitting = 0
    for plan, one in enumerate(problem.plans):
        decision = pipeline_decision(problem, plan, order)
        if decision is None:
            continue
        fitting += 1
        simulator = problem.simulator(plan, problem.spread[plan])
        lists = simulator.lists_of_slices(pipeline_lists(one.pipeline, order))
        assert problem.costs(decision[None])[0][0] == simulator.run("lists", lists=lists).makespan_s
    assert fitting


def test_gpipe__has_the_published_bubble():
    made = pipeline(4, 8, 1e-3, 2e-3, cores=1)
    problem = GangProblem(workload_of(made), "toy_islands", controllers="none")
    for order in ("gpipe", "1f1b"):
        solution = gg.solve(problem, order)
        assert solution.outcome.cost == pytest.approx((8 + 3) * 3e-3)
        assert solution.outcome.metrics["bubble"] == pytest.approx(3 / 11)
    assert least_cost(problem) == pytest.approx(11 * 3e-3)  # no order is better


def test_zero_bubble__beats_1f1b_where_the_weights_are_apart():
    made = pipeline(4, 8, 1e-3, 1e-3, weight_s=1e-3, cores=1)
    problem = GangProblem(workload_of(made), "toy_islands", controllers="none", place=False)
    costs = {order: gg.solve(problem, order).outcome.cost for order in ("1f1b", "zb_h1", "zb_h2")}
    assert costs["zb_h2"] == pytest.approx(27e-3)  # no bubble but that of the last slice's late start
    assert costs["zb_h1"] < costs["1f1b"]
    assert costs["zb_h2"] >= least_cost(problem)


def test_methods__that_are_for_no_plan_say_so():
    problem = GangProblem("toy_tenants", **TOY)
    for name in ("gpipe", "zb_v", "dp"):
        with pytest.raises(InputError, match="is for none of the plans of workload 'toy_tenants'; give another"):
            gg.solve(problem, name)


def test_heuristics__are_the_best_of_all():
    problem = GangProblem("toy_pipeline", **TOY)
    best = gg.solve(problem, "heuristics").outcome.cost
    others = [name for name in METHODS if name not in ("cp_sat", "exhaustive", "heuristics")]
    assert best == min(gg.solve(problem, name).outcome.cost for name in others)


# ---- optima


def tiny(seed):
    """A problem of at most 6 gangs, of one plan, on slices that share cores."""
    rng = np.random.default_rng(seed)
    build = Builder("tiny")
    for number in range(2):
        build.client(f"c{number}", 1.0 + number)
    slices = [build.slice(f"s{number}", size) for number, size in enumerate(rng.choice([1, 2, 4], 3).tolist())]
    for number in range(6):
        build.call(int(rng.integers(2)), float(rng.integers(3)) * 1e-4)
        build.gang(f"g{number}", slices[int(rng.integers(3))], float(rng.integers(1, 6)) * 1e-4)
    for _ in range(4):
        a, b = sorted(rng.choice(6, 2, replace=False).tolist())
        build.edge(a, b, int(rng.integers(0, 3)) * 20_000)
    machine = replace(load_machine("toy_islands"), islands=load_machine("toy_islands").islands[:1])
    return workload_of(build.program()), machine


@pytest.mark.parametrize("seed", range(4))
def test_searches__reach_the_optimum_of_tiny_instances(seed):
    workload, machine = tiny(seed)
    problem = GangProblem(workload, machine, place=False)
    best = gg.solve(problem, "exhaustive", budget=10_000)
    assert best.details["complete"]
    rng = np.random.default_rng(seed)
    drawn = problem.costs(np.stack([problem.sample(rng) for _ in range(200)]))[0].min()
    assert best.outcome.cost <= drawn * (1 + 1e-12)  # no decision is better, strict or not
    for name in ("annealing", "evolution", "hill_climbing"):
        found = gg.solve(problem, name, budget=600, seed=seed).outcome.cost
        assert found == pytest.approx(best.outcome.cost, rel=1e-9)
    assert least_cost(problem) <= best.outcome.cost


@pytest.mark.parametrize("seed", range(3))
def test_cp_sat__agrees_with_all_orders(seed):
    pytest.importorskip("ortools")
    problem = GangProblem(*tiny(seed), place=False, controllers="none")
    best = gg.solve(problem, "exhaustive", budget=10_000).outcome.cost
    found = gg.solve(problem, "cp_sat", options={"time_limit_s": 5.0, "workers": 1})
    assert found.details["lower_bound_s"] <= best * (1 + 1e-9)
    assert found.outcome.cost == pytest.approx(best, rel=1e-5)


def test_exhaustive__of_slices_and_orders():
    build = Builder("two")
    for number in range(2):
        build.gang(f"g{number}", build.slice(f"s{number}", 2), 1e-3)
    problem = GangProblem(workload_of(build.program()), "toy_islands", controllers="none")
    assert [one.tolist() for one in problem.positions[0]] == [[0, 2, 4, 6]] * 2
    decisions = list(exact.all_decisions(problem))
    assert len(decisions) == 4 * 3 + 4 * 2  # elsewhere one order, on the same cores two
    assert gg.solve(problem, "exhaustive", budget=50).outcome.cost == 1e-3
    assert max(problem.costs(np.stack(decisions))[0]) == 2e-3
    with pytest.raises(InputError, match="for at most 10 gangs, and workload 'toy_tenants' has 11; give 'cp_sat'"):
        gg.solve(GangProblem("toy_tenants", **TOY), "exhaustive")


def test_one_machine__is_jacksons_bound():
    head, duration, tail = np.array([0.0, 1.0, 1.0]), np.array([4.0, 2.0, 1.0]), np.array([0.0, 5.0, 1.0])
    # the second interrupts the first: it ends at 3 + 5; then 1 + 1, then the rest of the first, at 7
    assert one_machine(head, duration, tail) == 8.0
    assert one_machine(np.zeros(2), np.ones(2), np.zeros(2)) == 2.0


def test_bounds__of_memory_and_paths():
    problem = GangProblem("toy_crowd", **TOY)
    found = bounds(problem)
    assert found.memory_bytes == 9 * 2**30
    assert found.cores_s == pytest.approx(0.02)
    assert plan_bounds(problem, 0) == found
    assert gg.solve(problem, "heuristics").outcome.cost >= found.step_s


# ---- memory and deadlocks


def test_memory__that_never_comes_free_is_a_deadlock_with_its_gangs():
    problem = GangProblem("toy_crowd", **TOY)
    outcome = problem.evaluate(pipeline_decision(problem, 0, "1f1b"))
    assert outcome.valid
    order = np.argsort([name[0] == "B" for name in problem.plans[0].program.names], kind="stable")
    outcome = problem.evaluate(problem.decision_of(0, problem.levels_of_order(order)))
    assert not outcome.valid
    assert outcome.reasons[0].startswith("deadlock: F")
    assert "waits for memory of cores" in outcome.reasons[0]
    assert outcome.metrics["step_time_s"] is None


def test_memory__overflows_at_once_without_back_pressure():
    problem = GangProblem("toy_crowd", **TOY, back_pressure=False)
    order = np.argsort([name[0] == "B" for name in problem.plans[0].program.names], kind="stable")
    outcome = problem.evaluate(problem.decision_of(0, problem.levels_of_order(order)))
    assert not outcome.valid
    assert outcome.reasons[0].startswith("out of memory: each of cores")


def test_unsafe__orders_of_cores_that_disagree_deadlock():
    build = Builder("crossed")
    whole, left, right = build.slice("whole", 4), build.slice("left", 2), build.slice("right", 2)
    gangs = [build.gang("all", whole, 1e-3), build.gang("also", whole, 1e-3)]
    build.gang("left", left, 1e-3)
    build.gang("right", right, 1e-3)
    machine = replace(load_machine("toy_islands"), islands=load_machine("toy_islands").islands[:1])
    problem = GangProblem(workload_of(build.program()), machine, safe=False)
    pairs = problem.pairs[0]
    assert problem.decision_shape == (2 + len(pairs),)
    decision = np.zeros(problem.decision_shape, np.int32)
    decision[1] = 1
    assert problem.evaluate(decision).valid
    one = np.flatnonzero((pairs[:, 0] == gangs[1]) & (pairs[:, 1] == 0))
    decision[2 + one] = 3  # on the first class the second gang comes first
    outcome = problem.evaluate(decision)
    assert not outcome.valid
    assert outcome.reasons[0].startswith("deadlock: ")
    assert "all (cores 0-3) waits for its turn on cores 0-1 behind also" in outcome.reasons[0]


# ---- objectives


def shared(weights, times=(1e-3, 1e-3), calls=(8, 8), **options):
    """Clients that share four cores."""
    programs = []
    for index, (seconds, number) in enumerate(zip(times, calls)):
        build = Builder(f"client {index}")
        at = build.slice("all", 4)
        for call in range(number):
            build.call()
            build.gang(f"c{call}", at, seconds)
        programs.append(build.program())
    machine = replace(load_machine("toy_islands"), islands=load_machine("toy_islands").islands[:1])
    program = together(programs, [float(one) for one in weights])
    return GangProblem(workload_of(program), machine, controllers="none", **options)


def test_fairness__of_weights():
    problem = shared([1, 3], objective="fairness")
    assert problem.horizon_s == pytest.approx(8e-3)
    # the first client's eight calls come first: the second has nothing of its 6 ms
    assert gg.solve(problem, "fifo").outcome.cost == 1.0
    outcome = gg.solve(problem, "stride").outcome
    assert outcome.cost == pytest.approx(0.0, abs=0.51)
    assert outcome.metrics["jain_index"] > 0.9
    equal = shared([1, 1], objective="fairness")
    assert gg.solve(equal, "round_robin").outcome.cost == pytest.approx(0.0, abs=1e-9)
    assert gg.solve(equal, "round_robin").outcome.metrics["jain_index"] == pytest.approx(1.0)
    assert gg.solve(equal, "fifo").outcome.metrics["jain_index"] == pytest.approx(0.5)


def test_fairness__what_nobody_asks_for_is_nobodys_due():
    problem = shared([1, 1], calls=(2, 14), objective="fairness")
    assert problem.due(problem.simulator(0, problem.spread[0])).tolist() == pytest.approx([4 * 2e-3, 4 * 4e-3])


def test_throughput__is_a_unit_of_the_plan():
    made = pipeline(2, 4, 1e-3, 2e-3, cores=1, steps=3)
    workload = workload_of(made)
    step = GangProblem(workload, "toy_islands")
    unit = GangProblem(workload, "toy_islands", objective="throughput")
    a, b = gg.solve(step, "1f1b").outcome, gg.solve(unit, "1f1b").outcome
    assert b.cost == pytest.approx(a.cost / 3)
    assert b.unit == "s/unit"
    assert 0 < a.metrics["steady_unit_s"] <= b.cost


# ---- what is stored, and bad input


def test_solutions__validate_and_workloads_are_stored(tmp_path):
    workload = load_workload("toy_tenants")
    path = tmp_path / "own.json"
    path.write_text(json.dumps(workload.to_json()))
    problem = gg.make_problem("GangScheduling-v0", graph=str(path), cluster="toy_islands", objective="fairness")
    solution = gg.solve(problem, "stride")
    assert not validate(solution.save(tmp_path / "solution.json")).mismatches
    program = workload.plans[0].program
    path.write_text(json.dumps(program.to_json()))
    assert gg.make_problem("GangScheduling-v0", graph=str(path), cluster="toy_islands").num_gangs == program.num_gangs
    of_object = GangProblem(replace(workload, name="mine"), "toy_islands")
    again = GangProblem(**json.loads(json.dumps(dict(of_object.config))))
    assert again.fingerprints() == of_object.fingerprints()


def test_default__works_at_once():
    problem = gg.make_problem("GangScheduling-v0")
    assert problem.title == "decoder_3b on pathways_b_16hosts"
    outcome = gg.solve(problem, "fifo").outcome
    assert outcome.valid
    assert 14 < outcome.cost < 16


def bad_program(**changes):
    return {**load_workload("toy_tenants").plans[0].program.to_json(), **changes}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"graph": "toy_pipelin"}, "unknown workload 'toy_pipelin'"),
        ({"cluster": "toy"}, "unknown machine 'toy'"),
        ({"objective": "steps"}, "unknown objective 'steps'"),
        ({"horizon_s": 0}, "horizon_s is 0; give"),
        ({"controllers": "two"}, "unknown controllers 'two'"),
        ({"place": True, "safe": False}, "place is true and safe is false"),
        ({"back_pressure": "yes"}, "back_pressure is 'yes'; give true or false"),
        ({"graph": 3}, "workload is a int; give a name, a path or a Workload"),
        ({"graph": bad_program(clients=[["a", -1.0], ["b", 1], ["c", 1]])}, "client 'a': weight is -1.0"),
        ({"graph": bad_program(clients=[["a", 0.0], ["b", 0], ["c", 0]])}, "weights of clients are all zero"),
        ({"graph": bad_program(slices=[["a", 64, 0], ["b", 4, 0], ["c", 2, 0]])}, "takes 64 cores, more than the 4"),
        ({"graph": bad_program(edge_dst=[0] * 8, edge_src=[0] * 8)}, "has a cycle: "),
        ({"graph": {"plans": []}}, "workload is no stored workload: KeyError"),
        ({"graph": {"plans": [], "name": "none"}}, "workload 'none' has 0 plans; give 1 to 256"),
        ({"graph": "tenants:clients=2"}, "stands for many"),
        ({"graph": "tenants:client=2:seed=1"}, "unknown key 'client'"),
    ],
)
def test_problem__bad_input_is_one_line(arguments, said):
    with pytest.raises(InputError) as error:
        gg.make_problem("GangScheduling-v0", **{"graph": "toy_tenants", **TOY, **arguments})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_check__names_the_bad_entry():
    problem = GangProblem("toy_tenants", **TOY)
    decision = problem.sample(np.random.default_rng(0))
    for at, value, said in ((0, 1, "plan"), (1, 2, "strict"), (2, 2, "position 0"), (7, 11, "level 2 of the levels")):
        wrong = decision.copy()
        wrong[at] = value
        with pytest.raises(InputError, match=rf"decision\[{at}\] is {value}, allowed: 0 to .*{said}"):
            problem.evaluate(wrong)
    unsafe = GangProblem("toy_tenants", **TOY, safe=False)
    with pytest.raises(InputError, match=r"decision\[1\] is 0; with safe=False"):
        unsafe.evaluate(np.zeros(unsafe.decision_shape, np.int32))


@pytest.mark.parametrize(
    ("graph", "shown"), [("toy_pipeline", "apply gradients"), ("toy_tenants", "client 1, weight 2:")]
)
def test_report__has_a_picture_a_trace_and_who_waits_for_whom(graph, shown, tmp_path):
    problem = GangProblem(graph, **TOY)
    solution = gg.solve(problem, "fifo")
    files = {path.suffix: path for path in write_report(solution, tmp_path, "run")}
    assert files[".png"].stat().st_size > 5000
    labels = [text.get_text() for text in problem.figure(solution.decision).legends[0].get_texts()]
    assert any(shown in label for label in labels)
    trace = Trace(files[".pftrace"].read_bytes())
    drawn = {event.name for track in trace.slices.values() for *_, event in track}
    assert set(problem.timeline(solution.decision).program.names) <= drawn
    assert "waited for" in files[".html"].read_text("utf-8")
