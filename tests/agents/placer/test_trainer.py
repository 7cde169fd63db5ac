"""The placer: its problems to train on, its runs, its methods."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from graphopt_agents.placer import Args, Trainer, instances
from graphopt_agents.placer.candidates import FULL, drawn, heuristic, ordered, planned
from graphopt_agents.placer.network import PlacerConfig, PlacerNetwork
from graphopt_agents.placer.ranker import NUM_FEATURES, Ranker, fit
from graphopt_agents.placer.scorer import place
from graphopt_agents.placer.search import GuidedWalk
from graphopt_agents.placer.trainer import auc, make_arrays

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve
from tests.envs.placement.cases import cluster

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Args(
    graphs=("resnet18_step_b64", "dlrm_criteo_step_b2048", "tcn_l4_w512_step_b32"), clusters=("p100x2", "v100x4"),
    problems=12, population=4,
    batch=3, first=3, more=2, rounds=2, walks=3, scorers=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, whole, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    return Trainer.train(SMALL, folder), folder


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


# -- problems to train on


def test_problems__are_drawn_from_their_number_alone_and_differ():
    drawn_ones = [instances.draw(SMALL.graphs, SMALL.clusters, number, 0) for number in range(20)]
    again = instances.draw(SMALL.graphs, SMALL.clusters, 7, 0)
    assert again.fingerprints() == drawn_ones[7].fingerprints()
    assert len({one.cluster_name for one in drawn_ones}) == 20
    assert {one.order for one in drawn_ones} > {"fifo", "stream"}
    assert {one.grouping for one in drawn_ones} == {"colocation", "phase", "op"}
    shipped = PlacementProblem(again.graph, "v100x4").cluster
    assert any(one.cluster.devices[0].memory_bytes != shipped.devices[0].memory_bytes for one in drawn_ones)
    for one in drawn_ones:
        assert instances.FEWEST_GROUPS <= one.num_groups <= instances.MOST_GROUPS


def test_problems__of_graphs_of_no_such_size_are_refused():
    tiny = layered_dag(8, seed=0, colocated=1.0)
    with pytest.raises(InputError, match="graphs has none of 12 to 900 groups"):
        instances.draw([tiny], ["p100x2"], 0, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"scorers": 0}, "scorers is 0"), ({"problems": 2}, "problems is 2"), ({"graphs": ()}, "graphs is an empty list"),
     ({"rounds": 0}, "rounds is 0"), ({"population": 1}, "population is 1")],
)  # fmt: skip
def test_arguments__that_make_no_sense_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, updates=0, **given)


# -- runs


def test_run__trains_each_scorer_and_then_the_ranker(run):
    trainer, _ = run
    assert trainer.updates == SMALL.updates == 3 + 2 + 2
    assert [row["phase"] for row in trainer.curve] == ["scorer 0"] * 3 + ["scorer 1"] * 2 + ["ranker"] * 2
    counts = [row["evaluations"] for row in trainer.curve]
    assert counts == sorted(counts)
    assert counts[0] >= SMALL.population * SMALL.batch
    assert trainer.curve[-1]["moves"] == sum(map(len, trainer.gains)) > 0
    untrained = PlacerNetwork(PlacerConfig(2)).state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in weights_of(trainer).items())


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_run__that_was_stopped_goes_on_as_if_it_had_not_been(run, stop, tmp_path):
    Trainer.train(dataclasses.replace(SMALL, updates=stop), tmp_path)
    again = Trainer.train(SMALL, tmp_path, resume=True)
    for name, value in weights_of(run[0]).items():
        assert torch.equal(value, weights_of(again)[name]), name
    told = [{key: value for key, value in row.items() if key != "wall_s"} for row in again.curve]
    assert told == [{key: value for key, value in row.items() if key != "wall_s"} for row in run[0].curve]


def test_checkpoint__decides_other_graphs_with_as_many_evaluations_as_samples(run):
    _, folder = run
    first, second = (Trainer.evaluate(folder, "transformer_xl_2layer", samples=40, seed=3) for _ in range(2))
    assert first.evaluations == 40
    assert first.problem.cluster_name == "p100x2"
    assert first.outcome.valid
    assert np.array_equal(first.decision, second.decision)
    tuned = Trainer.evaluate(folder, "transformer_xl_2layer", updates=1, seed=3)
    assert tuned.evaluations == 8 + 64
    assert tuned.outcome.cost <= Trainer.evaluate(folder, "transformer_xl_2layer", samples=8, seed=3).outcome.cost


def test_evolution__finds_weights_that_are_better_than_by_hand():
    args = dataclasses.replace(SMALL, updates=20, first=20, population=8, batch=10, problems=12, scorers=1)
    trainer = Trainer.train(args)
    tasks = [task for task, out in zip(trainer.tasks, trainer.held_out) if not out]
    by_hand = PlacerNetwork(PlacerConfig(1)).weights.numpy()[0]
    found = trainer.network.weights.numpy()[0]
    assert np.mean([task.value(found) for task in tasks]) < np.mean([task.value(by_hand) for task in tasks]) - 0.01


def test_ranker__learns_what_can_be_seen():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, NUM_FEATURES)).astype(np.float32)
    gains = np.where(features[:, 7] + 0.5 * features[:, 20] > 1, 0.01, -0.01).astype(np.float32)
    torch.manual_seed(0)
    ranker = Ranker()
    fit(ranker, features[:3000], gains[:3000], 6, 2e-3, torch.Generator().manual_seed(0), batch=128)
    with torch.no_grad():
        scores = ranker(torch.from_numpy(features[3000:]))[:, 0].numpy()
    assert auc(scores, gains[3000:] > 0) > 0.95
    assert auc(np.array([0.1, 0.2, 0.3]), np.array([False, True, True])) == 1.0
    assert auc(np.array([0.3, 0.2, 0.1]), np.array([False, True, True])) == 0.0
    assert auc(np.ones(3), np.ones(3, bool)) is None


# -- candidates and methods


def method(**arguments):
    return Method("placer", Trainer.method_run(**arguments), "", "", random=True)


def test_candidates__are_ordered_by_the_plan_and_those_without_room_last():
    problem, rng = PlacementProblem("transformer_xl_4layer", "p100x4"), np.random.default_rng(0)
    arrays, network = make_arrays(problem), PlacerNetwork(PlacerConfig())
    settings = drawn(network.weights.numpy(), network.spread.numpy(), 40, rng)
    found = [*(place(arrays, *one) for one in settings), *heuristic(problem, 0)]
    first = ordered(arrays, found)
    assert {home.tobytes() for home in first} == {home.tobytes() for home in found}
    seconds, fullest = planned(arrays, first)
    keys = list(zip(np.maximum(fullest, FULL), seconds))
    assert keys == sorted(keys)
    assert fullest[-1] > FULL > fullest[0]


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize(
    ("order", "grouping"),
    [("fifo", "phase"), ("stream", "colocation"), ("program", "op"), ("rank", "colocation"), ("priority", "phase")],
)
def test_methods__take_every_order_and_grouping_and_keep_to_the_budget(search, order, grouping):
    problem = PlacementProblem("transformer_xl_2layer", "v100x4", order=order, grouping=grouping)
    for budget in (1, 5, 70):
        found = solve(problem, method(search=search), budget=budget, seed=1)
        assert found.evaluations == budget
        assert found.outcome.cost == problem.evaluate(found.decision).cost
    assert found.outcome.cost <= solve(problem, "expert", budget=100).outcome.cost


def test_methods__keep_groups_where_they_may_be():
    graph, rng = layered_dag(40, seed=4, colocated=0.3), np.random.default_rng(0)
    allowed = rng.random((graph.num_ops, 3)) < 0.6
    allowed[:, 1] = True
    problem = PlacementProblem(graph, cluster(3), allowed_devices=allowed)
    for search in (True, False):
        found = solve(problem, method(search=search, starts=False), budget=60, seed=0)
        assert found.outcome.valid
        assert not problem.misplaced(found.decision).any()


def test_methods__keep_to_their_seconds_where_planning_takes_longer():
    problem = PlacementProblem("gnmt_4layer", "p100x4")
    for search in (True, False):
        solve(problem, method(search=search), budget=10)  # what is compiled is compiled here
        found = solve(problem, method(search=search), seconds=0.3, budget=10**6)
        assert found.stopped_by == "seconds"
        assert found.evaluations >= 1


def test_methods__refuse_a_pipeline():
    problem = PlacementProblem("transformer_xl_2layer", "v100x2", objective="throughput")
    with pytest.raises(InputError, match="objective 'throughput' has no timeline"):
        solve(problem, method(), budget=10)


@pytest.mark.parametrize("seed", range(4))
def test_search__finds_the_optimum_of_tiny_problems_and_ends_where_all_is_known(seed):
    graph = layered_dag(9, seed=seed)
    times = np.exp(np.random.default_rng(seed).normal(np.log(1e-3), 1, (graph.num_ops, 1))) * np.ones((1, 2))
    problem = PlacementProblem(graph, cluster(2), grouping="op", op_times_s=times)
    every = np.array(list(itertools.product(range(2), repeat=problem.num_groups)), np.int32)
    costs, valid = problem.costs(every)
    found = solve(problem, method(starts=False), budget=3 * len(every), seed=seed)
    assert found.outcome.cost == pytest.approx(costs[valid].min(), rel=1e-12)
    assert found.evaluations == 3 * len(every)


def test_search__on_one_device_ends():
    problem = PlacementProblem(layered_dag(20, seed=0), cluster(1))
    found = solve(problem, method(), budget=50)
    assert found.evaluations < 50
    assert not found.decision.any()


def test_walk__simulates_nothing_twice():
    problem = PlacementProblem("transformer_xl_2layer", "v100x4")
    start = np.zeros(problem.num_groups, np.int32)
    walk = GuidedWalk(problem, make_arrays(problem), Ranker().arrays(), guided=False)
    from graphopt_gym.search.walk import Walk

    cost, valid = problem.costs(start[None])
    state = Walk(start, float(cost[0]), 5, start, float(cost[0]), bool(valid[0]))
    walk(state, 400, 0)
    assert walk.made == 400
    assert len(np.unique(walk.seen)) - 1 >= 390  # but for a few that share a place in the table


def test_benchmark__measures_each_graph():
    from graphopt_agents.placer.benchmark import placer_report

    report = placer_report(("transformer_xl_2layer",))
    (row,) = report["rows"]
    assert row["to_annealing"] == row["walk"] / row["annealing_walk"] > 0
    assert all(row[name] > 0 for name in report["columns"][1:])
