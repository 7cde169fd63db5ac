"""Placement with own costs: what is allowed is kept to by all, and solutions keep what was stated."""

from __future__ import annotations

import contextlib
import json
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import graphopt_gym as gg
from graphopt_gym.envs.placement.env import PlacementEnv, PlacementOneShotEnv
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cluster import Cluster, Link
from graphopt_gym.hardware.package import Chip, Package
from graphopt_gym.report.files import report_on
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator
from graphopt_gym.search.solve import find_method
from graphopt_gym.solutions import load_solution, validate
from graphopt_gym.testing import check_problem, check_task
from tests.envs.placement.cases import assert_same, cluster
from tests.envs.placement.plain_env import PlainEnv
from tests.simulator.cases import device, random_cluster

THROUGHPUT = ["dp", "load_annealing", "cp_sat"]  # methods of pipelines
METHODS = [name for name in gg.methods("Placement-v0") if name not in THROUGHPUT]
GRAPH = layered_dag(60, 4, seed=2, phases=True, colocated=0.4)
LAB = Cluster(
    "lab",
    (device("fast"), device("fast"), device("slow", kind="cpu", memory_bytes=10**13)),
    (Link("bus", 1e-5, 1e9), Link("wire", 1e-6, 1e8)),
    np.array([[-1, 0, 1], [0, -1, 1], [0, 1, -1]]),
    (0, 0, 0),
)


def stated(seed=0, graph=GRAPH, on=LAB, allowed=True):
    """Own costs of every kind."""
    rng = np.random.default_rng(seed)
    edges = list(zip(graph.edge_src.tolist(), graph.edge_dst.tolist(), strict=True))
    own = {
        "op_times_s": rng.random((graph.num_ops, on.num_devices)) * 1e-3,
        "tensor_bytes": {int(op): int(rng.integers(1, 10**6)) for op in rng.choice(graph.num_ops, 9, replace=False)},
        "transfer_s": [(*edges[at], float(rng.random() * 1e-3)) for at in range(0, len(edges), 3)],
        "static_bytes": {int(op): int(rng.integers(0, 10**6)) for op in rng.choice(graph.num_ops, 5, replace=False)},
    }
    if allowed:
        plain = PlacementProblem(graph, on)
        may = rng.random((plain.num_groups, on.num_devices)) < 0.6
        may[np.arange(plain.num_groups), rng.integers(0, on.num_devices, plain.num_groups)] = True
        own["allowed_devices"] = may[plain.group_of_op]
    return own


@cache
def restricted():
    return PlacementProblem(GRAPH, LAB, **stated())


def test_contract__holds_with_own_costs():
    problem = restricted()
    bad = np.zeros(problem.num_groups, np.int32)
    assert problem.misplaced(bad).any()
    check_problem(problem, ["heft", "annealing"], invalid=[bad], graph=GRAPH)


@pytest.mark.parametrize("reward", ["improvement", "terminal"])
def test_environment__holds_the_contract_with_own_costs(reward):
    check_task("Placement-v0", {"graph": GRAPH, "cluster": LAB, "reward": reward, **stated()})


def test_one_shot_environment__holds_the_contract_with_own_costs():
    check_task("PlacementOneShot-v0", {"graph": GRAPH, "cluster": LAB, **stated()})


@pytest.mark.parametrize("seed", range(12))
def test_observation__agrees_with_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph, on = layered_dag(24, 3, seed=seed, colocated=0.5), random_cluster(rng)
    env = PlacementEnv(graph, on, **stated(seed, graph, on), start="random")
    env.reset(seed=seed)
    twin = PlainEnv(env.problem)
    twin.reset(env.decision.tolist())
    done, observation = False, env.reset(seed=seed)[0]
    while not done:
        for key, expected in twin.observe().items():
            np.testing.assert_array_max_ulp(observation[key].astype(np.float32), expected.astype(np.float32), maxulp=2)
        assert (env.action_masks() == twin.observe()["action_mask"]).all()
        action = int(rng.integers(on.num_devices))
        observation, reward, done, _, info = env.step(action)
        legal = twin.may(twin.current, action)
        assert info["illegal_action"] != legal
        assert reward == twin.step(action)
    assert info["cost"] == twin.cost
    assert info["decision"].tolist() == twin.placement
    assert info["reasons"] == env.problem.evaluate(info["decision"]).reasons


@pytest.mark.parametrize("env_class", [PlacementEnv, PlacementOneShotEnv])
def test_vector__agrees_exactly_with_sync(env_class):
    arguments = {"graph": GRAPH, "cluster": LAB, **stated()}
    if env_class is PlacementEnv:
        arguments |= {"observation": "graph", "start": "random"}
    sync = SyncVectorEnv([lambda: env_class(**arguments)] * 3)
    vector = gym.make_vec(env_class.env_id, 3, vectorization_mode="vector_entry_point", **arguments)
    assert vector.single_observation_space == sync.single_observation_space
    assert_same(vector.reset(seed=1), sync.reset(seed=1))
    sync.action_space.seed(0)
    for _ in range(40):
        actions = sync.action_space.sample()
        assert_same(vector.step(actions), sync.step(actions))
        assert_same(vector.action_masks(), np.stack(sync.call("action_masks")))


def test_masks_and_observation__are_what_is_allowed():
    problem, arguments = restricted(), {"graph": GRAPH, "cluster": LAB, **stated()}
    padded = {"max_devices": 5, "max_groups": problem.num_groups + 2}
    env = PlacementOneShotEnv(**arguments, **padded)
    observation, _ = env.reset(seed=0)
    shaped = env.unflatten(observation)
    groups = problem.num_groups
    masks = env.action_masks().reshape(groups + 2, 5)
    assert np.array_equal(shaped["action_mask"], masks)
    assert np.array_equal(masks[:groups, :3], problem.allowed)
    assert masks[groups:].tolist() == [[True, False, False, False, False]] * 2
    env.action_space.seed(0)
    action = env.action_space.sample(mask=tuple(row.astype(np.int8) for row in masks))
    assert not env.step(action)[-1]["illegal_action"]
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.full(groups + 2, 0))
    assert info["illegal_action"]
    assert not problem.misplaced(info["decision"][:groups]).any()
    step = PlacementEnv(**arguments, **padded, observation="graph")
    allowed = step.unflatten(step.reset(seed=0)[0])["allowed"]
    assert np.array_equal(allowed[:groups, :3], problem.allowed)
    assert not allowed[groups:].any()
    assert not allowed[:, 3:].any()
    assert "allowed" not in PlacementEnv(GRAPH, LAB, observation="graph").observation_space.spaces
    assert PlacementOneShotEnv(GRAPH, LAB).observation_space["action_mask"].shape == (3,)


def test_start__that_is_not_allowed__is_refused__and_named_ones_keep_to_it():
    problem = restricted()
    arguments = {"graph": GRAPH, "cluster": LAB, **stated()}
    with pytest.raises(InputError, match=r"start: not allowed there: group .* is on device 0"):
        PlacementEnv(**arguments, start=np.zeros(problem.num_groups, int)).reset(seed=0)
    for start in ("single", "expert", "random"):
        env = PlacementEnv(**arguments, start=start)
        for seed in range(3):
            env.reset(seed=seed)
            assert not problem.misplaced(env.decision).any(), start


# ---- methods


@pytest.mark.parametrize("name", METHODS + THROUGHPUT)
@pytest.mark.parametrize("grouping", ["colocation", "op"])
def test_methods__propose_only_what_is_allowed(name, grouping):
    objective = "throughput" if name in THROUGHPUT else "step"
    problem = PlacementProblem(GRAPH, LAB, grouping=grouping, objective=objective, **stated())
    proposed = []

    class Recorder(Evaluator):
        def price(self, decisions):
            proposed.append(decisions.copy())
            return super().price(decisions)

    evaluator = Recorder(problem, budget=300)
    with contextlib.suppress(BudgetSpent):
        find_method("Placement-v0", name).run(evaluator, np.random.default_rng(0))
    decisions = np.concatenate(proposed)
    assert not problem.misplaced(decisions).any()
    assert evaluator.best_valid


@pytest.mark.parametrize("name", [name for name in METHODS + THROUGHPUT if name != "round_robin"])
def test_methods__leave_a_device_alone_that_nothing_may_be_on(name):
    objective = "throughput" if name in THROUGHPUT else "step"
    problem = PlacementProblem(GRAPH, LAB, allowed_devices={"": ["fast"]}, objective=objective)
    solution = gg.solve(problem, name, budget=100)
    assert (solution.decision < 2).all()
    free = PlacementProblem(GRAPH, Cluster("two", LAB.devices[:2], LAB.links, LAB.link_of[:2, :2], (0, 0)))
    if name in ("expert", "metis", "heft", "m_etf", "m_sct", "single"):  # as if the third were not there
        assert solution.outcome.cost == pytest.approx(gg.solve(free, name, budget=100).outcome.cost, rel=1e-12)


def test_methods__plan_with_stated_transfers():
    """A chain of two ops, each fast on another device: worth moving only where sending is said to be quick."""
    from graphopt_gym.graphs.generators import chain

    graph = chain(2, output_bytes=10**6)
    on = cluster(2)
    times = np.array([[1.0, 3.0], [3.0, 1.0]])
    for seconds, cost in ((0.5, 2.5), (5.0, 4.0)):
        problem = PlacementProblem(graph, on, grouping="op", op_times_s=times, transfer_s={0: seconds})
        for name in ("heft", "annealing"):
            assert gg.solve(problem, name, budget=50).outcome.cost == cost, (name, seconds)


def test_agents__keep_groups_where_they_may_be():
    pytest.importorskip("torch")
    problem = restricted()
    for name in ("gdp", "hdp", "gdp_search"):
        solution = gg.solve(problem, name, budget=60, seed=1)
        assert solution.outcome.valid
    from graphopt_agents import gdp
    from graphopt_agents.networks import GraphInput, PlacementNetwork

    task = gdp.task_of(problem)
    probabilities = PlacementNetwork().probabilities(task.graph).numpy()
    assert (probabilities[~problem.allowed] == 0).all()
    env = PlacementOneShotEnv(GRAPH, LAB, **stated(), max_groups=80)
    import torch

    observation = {name: torch.from_numpy(np.asarray(one)) for name, one in env.reset(seed=0)[0].items()}
    assert torch.equal(GraphInput.from_observation(observation).allowed, task.graph.allowed)
    kinds = problem.interchangeable
    assert len(set(kinds.tolist())) == 3  # each device has times of its own
    alike = PlacementProblem(GRAPH, LAB, op_times_s=np.ones((GRAPH.num_ops, 2)))
    assert alike.interchangeable.tolist() == LAB.interchangeable.tolist()


# ---- outcomes


def test_evaluate__not_allowed__names_group_and_devices_and_costs_more_than_any_valid():
    problem = restricted()
    rng = np.random.default_rng(0)
    good = np.stack([problem.sample(rng) for _ in range(50)])
    costs, valid = problem.costs(good)
    assert valid.all()
    assert len(np.unique(good[:, problem.allowed.sum(axis=1) == 1], axis=0)) == 1
    group = int(np.flatnonzero(~problem.allowed.all(axis=1))[0])
    one, two = good[0].copy(), np.zeros(problem.num_groups, np.int32)
    one[group] = int(np.flatnonzero(~problem.allowed[group])[0])
    (first, second), valid = problem.costs(np.stack([one, two]))
    assert not valid.any()
    assert costs.max() < min(first, second) <= max(first, second) < np.inf
    outcome = problem.evaluate(one)
    assert not outcome.valid
    (reason,) = outcome.reasons
    assert reason.startswith(f"not allowed there: group {group} (")
    assert f"is on device {one[group]} ({LAB.devices[one[group]].name}), it may be on " in reason
    wrong = int(problem.misplaced(two).sum())
    assert f"(and {wrong - 1} more groups are where they may not be)" in problem.evaluate(two).reasons[0]


def test_groups__without_a_device_in_common__are_refused():
    problem = PlacementProblem(GRAPH, LAB)
    group = int(np.bincount(problem.group_of_task).argmax())
    members = np.flatnonzero((problem.group_of_op == group) & (GRAPH.view_root == np.arange(GRAPH.num_ops)))
    first, second = members[:2].tolist()
    with pytest.raises(
        InputError, match=rf"ops of group {group} go together and have no device in common: .*may be on 0; "
    ):
        PlacementProblem(GRAPH, LAB, allowed_devices={first: 0, second: [1, 2]})
    assert PlacementProblem(GRAPH, LAB, grouping="op", allowed_devices={first: 0, second: [1, 2]}).num_groups > 1


def test_bounds__no_allowed_placement_beats_them():
    problem = restricted()
    loose = PlacementProblem(GRAPH, LAB, **stated(allowed=False))
    rng = np.random.default_rng(0)
    costs, _ = problem.costs(np.stack([problem.sample(rng) for _ in range(200)]))
    for name, bound in problem.bounds().items():
        assert loose.bounds()[name] <= bound <= costs.min()


def test_static_bytes__count_for_the_whole_step():
    base = PlacementProblem(GRAPH, LAB, grouping="op")
    decision = base.sample(np.random.default_rng(0))
    heavy = PlacementProblem(GRAPH, LAB, grouping="op", static_bytes={GRAPH.num_ops - 1: 10**12})
    where = int(decision[base.group_of_op[GRAPH.num_ops - 1]])
    before, after = (np.array(one.evaluate(decision).metrics["peak_bytes"]) for one in (base, heavy))
    last = int(GRAPH.state_bytes[-1] + GRAPH.param_bytes[-1])
    assert (after - before)[where] == 10**12 - last
    assert (np.delete(after, where) == np.delete(before, where)).all()
    tight = PlacementProblem(GRAPH, cluster(2, 10**9), static_bytes={0: 2 * 10**9})
    assert "out of memory" in tight.evaluate(np.zeros(tight.num_groups, int)).reasons[0]


# ---- solutions


def test_solution__is_validated_and_drawn_from_its_file_alone(tmp_path):
    """Neither the cluster nor the costs are anywhere else."""
    gg.save_graph(GRAPH, tmp_path / "graph.npz")
    problem = PlacementProblem(str(tmp_path / "graph.npz"), LAB, **stated())
    solution = gg.solve(problem, "annealing", budget=100)
    path = solution.save(tmp_path / "solution.json")
    assert "costs_version" not in json.loads(path.read_text())  # all times were stated
    result = validate(path)
    assert result.ok, result.mismatches
    assert result.cost == solution.outcome.cost
    again = load_solution(path).make_problem()
    assert again.fingerprints() == problem.fingerprints()
    assert again.config == json.loads(json.dumps(problem.config))
    assert {file.suffix for file in report_on(path)} == {".png", ".pftrace", ".html"}
    assert "argument transfer_s" in (tmp_path / "solution.html").read_text()


@pytest.mark.parametrize("name", ["op_times_s", "tensor_bytes", "transfer_s", "static_bytes", "allowed_devices"])
def test_solution__with_a_cost_that_is_another_now__is_refused(tmp_path, name):
    gg.save_graph(GRAPH, tmp_path / "graph.npz")
    own = stated()
    problem = PlacementProblem(str(tmp_path / "graph.npz"), LAB, **own)
    path = gg.solve(problem, "single").save(tmp_path / "solution.json")
    facts = json.loads(path.read_text())
    other = {
        "op_times_s": (own["op_times_s"] * 2).tolist(),
        "tensor_bytes": {0: 77},
        "transfer_s": None,
        "static_bytes": {0: 77},
        "allowed_devices": None,
    }[name]
    facts["problem"][name] = other
    path.write_text(json.dumps(facts))
    mismatches = validate(path).mismatches
    what = "op times" if name == "op_times_s" else "own costs"
    assert any(line.startswith(f"{what} changed: stored") for line in mismatches), mismatches
    with pytest.raises(InputError, match=f"is of another problem: {what} changed"):
        report_on(path)


def test_solution__of_part_of_the_times__names_the_costs_of_the_rest(tmp_path):
    gg.save_graph(GRAPH, tmp_path / "graph.npz")
    real = int(np.flatnonzero(GRAPH.flops > 0)[0])
    arguments = {"op_times_s": {real: 1.0}, "missing_op_times": "cost_model"}
    problem = gg.make_problem("Placement-v0", graph=str(tmp_path / "graph.npz"), cluster="v100x2", **arguments)
    path = gg.solve(problem, "single").save(tmp_path / "solution.json")
    assert json.loads(path.read_text())["costs_version"]
    assert validate(path).ok


def test_solution__of_a_cost_model_of_ones_own__is_checked_with_it(tmp_path):
    class Mine:
        version = "7"

        def op_times(self, graph, device):
            return np.full(graph.num_ops, 0.25)

    gg.save_graph(GRAPH, tmp_path / "graph.npz")
    problem = PlacementProblem(str(tmp_path / "graph.npz"), LAB, cost_model=Mine())
    path = gg.solve(problem, "single").save(tmp_path / "solution.json")
    assert "it was priced by costs '7'" in validate(path).mismatches[0]
    assert validate(path, cost_model=Mine()).ok
    assert report_on(path, cost_model=Mine())


def test_cluster__of_a_catalog_is_stored_by_name__another_of_that_name_whole(tmp_path):
    v100x2 = gg.load_cluster("v100x2")
    assert PlacementProblem(GRAPH, v100x2).config["cluster"] == "v100x2"
    other = Cluster("v100x2", v100x2.devices[:1], (), np.full((1, 1), -1), (0,))
    whole = json.loads(json.dumps(PlacementProblem(GRAPH, other).config["cluster"], allow_nan=False))
    again = gg.load_cluster(whole)
    assert again.fingerprint == other.fingerprint
    assert again.name == "v100x2"
    assert again.devices == other.devices
    for wrong in ({}, {**whole, "hosts": None}, {**whole, "device_types": [{"name": "x"}]}, {**whole, "devices": [9]}):
        with pytest.raises(InputError, match=r"no stored cluster|hosts has"):
            gg.load_cluster(wrong)


def test_package_and_device_objects__are_stored_whole(tmp_path):
    kinds = Chip("small", 1e12, 1e11, 2**28), Chip("large", 2e12, 1e11, 2**29)
    package = Package("mine", (kinds[0], kinds[1], kinds[0], kinds[0]), "mesh", 1e9, rows=2)
    problem = gg.make_problem("ChipletPartition-v0", graph="bert_tiny_b16", cluster=package)
    path = gg.solve(problem, "greedy").save(tmp_path / "chiplet.json")
    assert validate(path).ok
    again = gg.load_package(json.loads(path.read_text())["problem"]["cluster"])
    assert (again.fingerprint, again.name, again.chips) == (package.fingerprint, "mine", package.chips)
    with pytest.raises(InputError, match="no stored package"):
        gg.load_package({"name": "x"})
    problem = gg.make_problem("RewriteOrder-v0", graph="small_chain", cluster=device("mine"))
    path = gg.solve(problem, "greedy", budget=5).save(tmp_path / "rewrite.json")
    assert validate(path).ok


# ---- the command line


def test_commands__take_files_of_own_costs(graphopt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gg.save_graph(GRAPH, "graph.npz")
    code, out, _ = graphopt("list", "ops", "graph.npz", "--cluster", "toy_mixedx3", "--csv")
    assert code == 0
    (tmp_path / "times.csv").write_text(out)
    _, edges, _ = graphopt("list", "edges", "graph.npz", "--csv")
    (tmp_path / "edges.csv").write_text(edges)
    (tmp_path / "allowed.json").write_text(json.dumps({"0": ["toy_2tflops"]}))
    _, listed, _ = graphopt("list", "ops", "graph.npz", "--cluster", "toy_mixedx3", "--json")
    (tmp_path / "times.json").write_text(listed)
    arguments = ["Placement-v0", "--graph", "graph.npz", "--cluster", "toy_mixedx3"]
    _, plain, _ = graphopt("solve", *arguments, "--method", "heft", "--json")
    for times in ("times.csv", "times.json"):  # the cost model's own times, given by hand
        given = [*arguments, "--set", f"op_times_s={times}", "--set", "tensor_bytes=edges.csv"]
        code, out, err = graphopt("solve", *given, "--method", "heft", "--json", "--out", "heft.json")
        assert code == 0, err
        assert json.loads(out)["cost"] == json.loads(plain)["cost"]
        assert graphopt("validate", "heft.json")[0] == 0
    given += ["--set", "allowed_devices=allowed.json"]
    code, out, err = graphopt("compare", *given, "--methods", "heft,metis", "--seeds", "1", "--json", "--out", "runs")
    assert code == 0, err
    problem = load_solution("runs/heft-0.json").make_problem()
    assert problem.allowed is not None
    assert graphopt("report", "runs")[0] == 0
    _, _, err = graphopt("compare", *given, "--methods", "heft,metis", "--seeds", "1", "--json", "--out", "runs")
    assert err.count("not repeated") == 2
    (tmp_path / "times.json").write_text(listed.replace("0.0,", "-1,", 1).replace("0.0", "-1"))
    code, _, err = graphopt("solve", *given, "--method", "heft")
    assert (code, err.count("\n")) == (2, 1)
    assert "is -1; give a number, at least 0" in err


def test_train__takes_own_costs_of_one_graph_on_one_cluster(graphopt, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    gg.save_graph(GRAPH, "graph.npz")
    (tmp_path / "allowed.json").write_text(json.dumps({"": [0, "toy_2tflops"], "0": [0]}))
    options = ["--graphs", "graph.npz", "--clusters", "toyx2", "--set", 'allowed_devices={"0": 1}', "--out", "run"]
    options += ["--set", 'static_bytes={"1": 1000}', "--set", "samples=4"]
    code, _, err = graphopt("train", "gdp", *options, "--updates", "1")
    assert code == 0, err
    (path,) = (tmp_path / "run").glob("solution*.json")
    assert validate(path).ok
    assert load_solution(path).make_problem().allowed is not None
    assert graphopt("evaluate", "run")[0] == 0
    code, _, err = graphopt(
        "evaluate", "run", "--graph", "graph.npz", "--cluster", "v100x2"
    )  # they are not of this one
    assert code == 0, err
    code, _, err = graphopt("train", "gdp", "--graphs", "graph.npz,bert_base", "--set", 'static_bytes={"1": 1000}')
    assert code == 2
    assert "static_bytes is of one graph on one cluster" in err
