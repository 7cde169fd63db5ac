"""Placements as pipelines: the objective, workloads of the paper's format, and the methods that plan them."""

from __future__ import annotations

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.placement import balancing, contiguous
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.envs.placement.workload import read_workload
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.solutions import validate
from tests.envs.placement.cases import cluster
from tests.envs.placement.workloads import max_load, random_workload


def pipeline_of(content, **arguments) -> PlacementProblem:
    return PlacementProblem(content, objective="throughput", **arguments)


def devices_by_id(problem, content, decision) -> dict[int, int]:
    ids, of_op = read_workload(content).ids, problem.op_placement(decision)
    return dict(zip(ids.tolist(), of_op.tolist(), strict=True))


# ---- the objective


@pytest.mark.parametrize("transfers", ["direct", "host"])
@pytest.mark.parametrize("overlap", [True, False])
def test_problem__evaluates_and_prices_alike(overlap, transfers):
    graph = layered_dag(60, seed=3, colocated=0.6, phases=True)
    problem = PlacementProblem(graph, cluster(3), objective="throughput", overlap=overlap, transfers=transfers)
    rng = np.random.default_rng(0)
    decisions = np.stack([problem.sample(rng) for _ in range(20)])
    costs, valid = problem.costs(decisions)
    for decision, cost, good in zip(decisions, costs, valid, strict=True):
        outcome = problem.evaluate(decision)
        assert outcome.unit == "s/sample"
        assert good == outcome.valid
        assert cost == outcome.cost == outcome.metrics["period_s"]
    assert problem.rules == {
        "objective": "throughput", "overlap": "yes" if overlap else "no", "transfers": transfers,
        "grouping": "colocation",
    }  # fmt: skip
    assert costs.min() >= max(problem.bounds().values())


def test_problem__invalid_ones_cost_more_than_any_valid_one():
    graph = layered_dag(60, seed=3, colocated=0.6, phases=True)
    free = PlacementProblem(graph, cluster(3), objective="throughput", overlap=False)
    tight = PlacementProblem(graph, cluster(3, memory_bytes=10**6), objective="throughput", overlap=False)
    rng = np.random.default_rng(0)
    decisions = np.stack([free.sample(rng) for _ in range(200)])
    costs, valid = tight.costs(decisions)
    assert not valid.any()
    assert costs.min() > free.costs(decisions)[0].max()
    assert "out of memory" in tight.evaluate(decisions[0]).reasons[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "latency"}, "objective"),
        ({"overlap": True}, "throughput"),
        ({"objective": "throughput", "order": "priority"}, "priority"),
        ({"objective": "throughput", "transfers": "hosts"}, "transfers"),
        ({"objective": "throughput", "overlap": "yes"}, "overlap"),
    ],
)
def test_problem__refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        PlacementProblem(layered_dag(10, seed=0), cluster(2), **arguments)


def test_env__pays_for_periods_and_agrees_with_its_vector_form():
    arguments = {"graph": layered_dag(60, seed=3, colocated=0.6, phases=True), "cluster": cluster(3)}
    env = gym.make("Placement-v0", **arguments, objective="throughput", overlap=False)
    env.reset(seed=0)
    start = env.unwrapped.problem.costs(np.full((1, env.unwrapped.problem.num_groups), 0))[0][0]
    total, done, rng = 0.0, False, np.random.default_rng(0)
    actions = []
    while not done:
        actions.append(int(rng.integers(3)))
        _, reward, done, _, info = env.step(actions[-1])
        total += reward
    assert info["cost"] == env.unwrapped.problem.evaluate(info["decision"][: len(actions)]).cost
    assert total == pytest.approx(np.sqrt(start) - np.sqrt(info["cost"]))
    envs = gym.make_vec("Placement-v0", num_envs=2, vectorization_mode="vector_entry_point", **arguments,
                        objective="throughput", overlap=False)  # fmt: skip
    envs.reset(seed=0)
    for action in actions:
        *_, infos = envs.step(np.array([action, action]))
    assert infos["cost"].tolist() == [info["cost"]] * 2


def test_env__takes_a_workload(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(random_workload(np.random.default_rng(1), 8)))
    env = gym.make("Placement-v0", graph=str(path), objective="throughput")
    _, info = env.reset(seed=0)
    assert info["graph"] == "small"
    assert env.unwrapped.problem.cluster.num_devices == 3


# ---- workloads


@pytest.mark.parametrize("seed", range(20))
def test_workload__period_is_the_papers_max_load(seed):
    rng = np.random.default_rng(seed)
    content = random_workload(rng, 12, accelerators=3, cpus=int(rng.integers(0, 3)), train=seed % 2 == 1)
    try:
        problem = pipeline_of(content)
    except InputError:  # colours that put together what no device may have together
        return
    for _ in range(10):
        decision = problem.sample(rng)
        outcome = problem.evaluate(decision)
        load, fits = max_load(content, devices_by_id(problem, content, decision))
        assert outcome.valid == fits
        assert outcome.metrics["period_s"] == pytest.approx(load, rel=1e-12)


def test_workload__solution_is_checked_again_from_its_file(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(random_workload(np.random.default_rng(5), 10)))
    solution = gg.solve(pipeline_of(path), "dp")
    stored = solution.save(tmp_path / "solution.json")
    assert validate(stored).ok
    in_memory = gg.solve(pipeline_of(json.loads(path.read_text())), "dp").save(tmp_path / "whole.json")
    assert validate(in_memory).ok


def _broken(change) -> dict:
    content = {
        "maxFPGAs": 2, "maxCPUs": 1, "maxSizePerFPGA": 100.0,
        "nodes": [{"id": n, "supportedOnFpga": 1, "cpuLatency": 2.0, "fpgaLatency": 1.0, "isBackwardNode": 0,
                   "size": 1.0} for n in range(3)],
        "edges": [{"sourceId": 0, "destId": 1, "cost": 1.0}, {"sourceId": 0, "destId": 2, "cost": 1.0}],
    }  # fmt: skip
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("nodes"), "graph|nodes"),
        (lambda c: c.update(nodes=[]), "nodes is empty"),
        (lambda c: c.update(nodes=3), "nodes is 3"),
        (lambda c: c.update(maxFPGAs=0, maxCPUs=0), "from 1 to"),
        (lambda c: c.update(maxFPGAs=1.5), "maxFPGAs"),
        (lambda c: c.pop("maxSizePerFPGA"), "maxSizePerFPGA"),
        (lambda c: c["nodes"][1].pop("fpgaLatency"), r"nodes\[1\].*fpgaLatency"),
        (lambda c: c["nodes"][1].update(cpuLatency=-1), r"nodes\[1\].*cpuLatency"),
        (lambda c: c["nodes"][1].update(cpuLatency=float("nan")), r"nodes\[1\].*cpuLatency"),
        (lambda c: c["nodes"][1].update(id=0), "id is 0"),
        (lambda c: c["nodes"][1].update(id="a"), "id"),
        (lambda c: c["nodes"][1].update(supportedOnFpga=2), "supportedOnFpga"),
        (lambda c: c["nodes"][0].update(isBackwardNode=1), "backward"),
        (lambda c: c["nodes"][0].update(size=1e30), "size"),
        (lambda c: c["edges"][0].update(destId=7), "destId is 7"),
        (lambda c: c["edges"][0].update(destId=0), "cycle"),
        (lambda c: c["edges"].append({"sourceId": 1, "destId": 0, "cost": 1.0}), "cycle"),
        (lambda c: c["edges"][1].update(cost=2.0), "costs 1.0"),
        (lambda c: (c.update(maxCPUs=0), c["nodes"][0].update(supportedOnFpga=False)), "maxCPUs is 0"),
    ],
)
def test_workload__names_what_is_wrong(change, message):
    with pytest.raises(InputError, match=message):
        read_workload(_broken(change))


def test_workload__brings_its_devices_and_costs():
    content = _broken(lambda c: None)
    for name, value in {"cluster": "v100x4", "op_times_s": [1.0] * 3, "cost_model": "graph"}.items():
        with pytest.raises(InputError, match=name):
            pipeline_of(content, **{name: value})


# ---- methods


def tiny(seed: int, train: bool = False) -> tuple[dict, PlacementProblem] | None:
    rng = np.random.default_rng(seed)
    content = random_workload(rng, int(rng.integers(3, 7)), accelerators=2, cpus=int(rng.integers(0, 2)), train=train)
    try:
        return content, pipeline_of(content)
    except InputError:
        return None


def every_decision(problem) -> np.ndarray:
    return np.array(list(itertools.product(range(problem.num_devices), repeat=problem.num_groups)), np.int32)


def is_contiguous(content, device_of) -> bool:
    """Whether what each device has of the forward nodes can be cut off as one ideal after the other."""
    forward = {node["id"] for node in content["nodes"] if not node["isBackwardNode"]}
    colour = {node["id"]: node.get("colorClass", -1 - node["id"]) for node in content["nodes"]}
    before = {(device_of[edge["sourceId"]], device_of[edge["destId"]]) for edge in content["edges"]
              if edge["sourceId"] in forward and edge["destId"] in forward}  # fmt: skip
    # a colour of backward nodes alone follows in mirror image
    orphans = set(colour.values()) - {colour[one] for one in forward}
    for edge in content["edges"]:
        ends = {colour[edge["sourceId"]], colour[edge["destId"]]}
        if edge["sourceId"] not in forward and ends & orphans:
            before.add((device_of[edge["destId"]], device_of[edge["sourceId"]]))
    left = set(device_of.values())
    while left:
        first = [one for one in left if not any(b == one and a != one and a in left for a, b in before)]
        if not first:
            return False
        left -= set(first)
    return True


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_dp__is_the_best_contiguous_pipeline(seed, train):
    made = tiny(seed, train)
    if made is None:
        return
    content, problem = made
    decisions = every_decision(problem)
    costs, valid = problem.costs(decisions)
    order = np.flatnonzero(valid)[np.argsort(costs[valid], kind="stable")]
    contiguous_ones = (at for at in order if is_contiguous(content, devices_by_id(problem, content, decisions[at])))
    best = next(contiguous_ones, None)
    solution = gg.solve(problem, "dp", budget=100)
    if best is None:
        assert not solution.outcome.valid
        return
    assert solution.details["all_contiguous"]
    assert solution.outcome.cost <= costs[best] * (1 + 1e-9)
    assert is_contiguous(content, devices_by_id(problem, content, solution.decision))


@pytest.mark.parametrize("seed", range(12))
def test_cp_sat__is_the_best_pipeline(seed):
    pytest.importorskip("ortools")
    made = tiny(seed, seed % 2 == 1)
    if made is None:
        return
    _, problem = made
    costs, valid = problem.costs(every_decision(problem))
    solution = gg.solve(problem, "cp_sat", budget=2000, options={"time_limit_s": 20.0, "workers": 1})
    if not valid.any():
        assert not solution.outcome.valid
        return
    assert solution.outcome.cost == pytest.approx(costs[valid].min(), rel=1e-6)
    assert solution.details["proved"]
    assert solution.details["lower_bound_s"] <= costs[valid].min() * (1 + 1e-9)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("transfers", ["direct", "host"])
def test_cp_sat__knows_links_and_overlap(transfers, overlap):
    pytest.importorskip("ortools")
    graph = layered_dag(14, seed=4, colocated=0.7, phases=True)
    problem = PlacementProblem(graph, cluster(2), objective="throughput", overlap=overlap, transfers=transfers)
    costs, valid = problem.costs(every_decision(problem))
    solution = gg.solve(problem, "cp_sat", budget=2000, options={"time_limit_s": 20.0, "workers": 1})
    assert solution.outcome.cost == pytest.approx(costs[valid].min(), rel=1e-6)
    assert solution.details["proved"]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("transfers", ["direct", "host"])
def test_load_annealing__keeps_the_loads_of_the_pipeline(transfers, overlap):
    """After thousands of moves, loads kept up to date are those of the placement counted anew."""
    graph = layered_dag(80, seed=4, colocated=0.3, phases=True)
    problem = PlacementProblem(graph, cluster(4), objective="throughput", overlap=overlap, transfers=transfers)
    tables = balancing.make_tables(problem)
    devices = problem.num_devices
    count = devices + (2 * devices * overlap if transfers == "host" else problem.cluster.num_links)
    placement = problem.sample(np.random.default_rng(0)).astype(np.int64)
    readers, held, loads = np.zeros((len(tables.home), devices), np.int64), np.zeros(devices), np.zeros(count)
    best = placement.copy()
    period = problem.costs(placement[None])[0][0]
    for moves in (1, 100, 4000):
        least = balancing.anneal(
            tables, placement, 1, moves, period / 10, period / 100, tables.capacity_bytes, readers, held, loads, best
        )
        expected = problem.pipeline.loads(problem.lowering.placement(placement))
        of_devices = expected.compute_s + (0 if overlap else expected.sent_s + expected.received_s)
        assert loads[:devices] == pytest.approx(of_devices, rel=1e-9)
        if transfers == "direct":
            assert loads[devices:] == pytest.approx(expected.link_s, rel=1e-9, abs=1e-12)
        elif overlap:
            assert loads[devices:] == pytest.approx(np.concatenate([expected.sent_s, expected.received_s]), abs=1e-9)
        assert least == pytest.approx(problem.costs(best[None])[0][0])


def test_load_annealing__is_never_behind_the_contiguous_pipeline_and_reproduces():
    content = random_workload(np.random.default_rng(7), 40, accelerators=3, train=True)
    problem = pipeline_of(content)
    first, again, dp = (
        gg.solve(problem, name, budget=30_000, seed=1, options={"ideals": 3000})
        for name in ("load_annealing", "load_annealing", "dp")
    )
    assert first.outcome.cost <= dp.outcome.cost
    assert (first.decision == again.decision).all()
    assert first.evaluations <= 30_000


def test_dp__of_a_wide_graph_takes_the_widest_band_that_has_few_enough_ideals():
    content = random_workload(np.random.default_rng(0), 30, accelerators=3, cpus=0, colours=False)
    content["maxSizePerFPGA"] = 1e9
    problem = pipeline_of(content)
    narrow = gg.solve(problem, "dp", options={"ideals": 100})
    wide = gg.solve(problem, "dp", options={"ideals": 20_000})
    assert not narrow.details["all_contiguous"]
    assert narrow.details["ideals"] <= 100
    assert wide.outcome.cost <= narrow.outcome.cost


def test_ideals__are_counted_as_sets_are():
    rng = np.random.default_rng(3)
    for _ in range(20):
        count = int(rng.integers(1, 9))
        edges = np.array([(a, b) for a in range(count) for b in range(a + 1, count) if rng.random() < 0.3], np.int64)
        edges = edges.reshape(-1, 2)
        sets = {
            frozenset(chosen)
            for size in range(count + 1)
            for chosen in itertools.combinations(range(count), size)
            if all(a in chosen for a, b in edges.tolist() if b in chosen)
        }
        ideals = contiguous.make_ideals(count, edges, 10_000)
        bits = np.unpackbits(ideals.words.view(np.uint8), axis=1, bitorder="little")[:, :count]
        assert {frozenset(np.flatnonzero(row).tolist()) for row in bits} == sets
        assert len(bits) == len(sets)
        assert contiguous.make_ideals(count, edges, len(sets)) is not None
        assert contiguous.make_ideals(count, edges, len(sets) - 1) is None


@pytest.mark.parametrize("name", ["dp", "cp_sat", "load_annealing"])
def test_methods__ask_for_the_objective(name):
    if name == "cp_sat":
        pytest.importorskip("ortools")
    with pytest.raises(InputError, match="objective='throughput'"):
        gg.solve(PlacementProblem(layered_dag(10, seed=0), cluster(2)), name)


def test_searches__begin_from_the_contiguous_pipeline():
    content = random_workload(np.random.default_rng(8), 40, accelerators=3)
    problem = pipeline_of(content)
    dp = gg.solve(problem, "dp", options={"ideals": contiguous.START_IDEALS})
    for name in ("annealing", "hill_climbing", "evolution"):
        assert gg.solve(problem, name, budget=200).outcome.cost <= dp.outcome.cost
