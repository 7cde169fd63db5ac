from __future__ import annotations

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.architecture import methods, training
from graphopt_gym.envs.architecture.episodes import hypervolume
from graphopt_gym.envs.architecture.front_page import Point, front_of, front_page
from graphopt_gym.envs.architecture.methods import distances_to_front, front, narrower, pick_parent
from graphopt_gym.envs.architecture.nasbench import EDGES, all_cells, load_table
from graphopt_gym.envs.architecture.program import ArchitectureBuilder
from graphopt_gym.envs.architecture.properties import infer
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.errors import InputError

ENV = "ArchitectureSearch-v0"


def test_front__is_that_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 5, (12, 2)).astype(float)
        expected = [
            not any(
                cost <= mine[0] and quality >= mine[1] and (cost < mine[0] or quality > mine[1])
                for cost, quality in points
            )
            for mine in points
        ]
        assert front(points).tolist() == expected
        distance = distances_to_front(points)
        assert (distance[expected] == 0).all()
        assert (distance >= 0).all()


def test_pick_parent__is_next_to_the_front():
    points = np.array([[cost, quality] for cost in range(10) for quality in range(10)], float)
    rng = np.random.default_rng(0)
    picked = [tuple(points[pick_parent(points, rng)]) for _ in range(200)]
    assert (0.0, 9.0) in picked
    assert max(cost + 9 - quality for cost, quality in picked) <= 2


def test_hypervolume__is_that_of_a_grid():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = [(float(cost), float(quality) / 8) for cost, quality in rng.integers(0, [5, 9], (6, 2))]
        cells = [
            any(cost <= x and quality >= (y + 1) / 8 for cost, quality in points) for x in range(4) for y in range(8)
        ]
        assert hypervolume(points) == pytest.approx(sum(cells) / 32)
    assert hypervolume([]) == 0.0


@pytest.mark.parametrize("name", methods._EVOLUTIONS)
def test_evolutions__find_smaller_networks_and_no_twins(name, monkeypatch):
    problem = gg.make_problem(ENV, graph="cnn_8", tolerance=0.45)
    seen = []
    plain = type(problem).costs

    def costs(self, decisions):
        seen.extend(one.fingerprint for one in decisions)
        return plain(self, decisions)

    monkeypatch.setattr(type(problem), "costs", costs)
    found = gg.solve(problem, name, budget=30, seed=0)
    assert len(seen) == len(set(seen)) == found.evaluations == 30
    assert found.outcome.cost < 1
    assert 1 <= found.details["on_front"] <= found.details["population"] <= 30
    path = found.details["path"]
    assert (path[0]["parameters"], path[0]["quality"]) == (problem.seed.parameters, 0.5)
    assert path[-1]["parameters"] == found.outcome.metrics["parameters"]
    assert path[-1]["depth"] == list(infer(found.decision).depth)
    assert "From the seed to the network" in problem.page(found.decision, None, found.details)
    whole = gg.solve(problem, name, budget=12, seed=0, options={"within": 1.0})
    assert whole.details["population"] == 12
    with pytest.raises(InputError, match="option best is 2; give a number from 0 to 1"):
        gg.solve(problem, name, budget=3, options={"best": 2})


def test_alpha_nas__interrupted__keeps_the_best_and_goes_on_without_training_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_TRAINED", str(tmp_path))
    given = {"graph": "cnn_8", "track": "trained", "recipe": {"epochs": 1}, "tolerance": 0.6}
    plain, calls = training._train_text, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(training, "_train_text", interrupted)
    stopped = gg.solve(gg.make_problem(ENV, **given), "alpha_nas", budget=9, seed=0)
    assert stopped.stopped_by == "interrupt"
    assert stopped.outcome.valid
    assert stopped.evaluations == 5  # the seed, and the first four children
    again = gg.make_problem(ENV, **given)
    whole = gg.solve(again, "alpha_nas", budget=9, seed=0)
    assert whole.evaluations == 9
    assert again.trainer.trained == 9 - 6
    assert whole.outcome.cost <= stopped.outcome.cost


def test_width_scaling__is_every_narrower_seed():
    for name, count in (("resnet_8", 15), ("vit_8", 15), ("efficientnet_8", 1), ("cnn_8", 3)):
        problem = gg.make_problem(ENV, graph=name, tolerance=1.0)
        found = narrower(problem)
        assert len(found) >= count
        sizes = [one.parameters for one in found]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] < problem.seed.parameters
    solution = gg.solve(gg.make_problem(ENV, graph="resnet_8", tolerance=1.0), "width_scaling", budget=100)
    assert solution.evaluations == 16
    assert solution.decision == load_seed("resnet_8", width=1)
    b = ArchitectureBuilder("mine")
    mine = b.finish(b.op("dense", b.op("reshape", b.input("x", (1, 8, 8)), shape=(-1,)), features=10))
    with pytest.raises(
        InputError, match=r"^method 'width_scaling' is for the seeds of the catalog, and 'mine' is none"
    ):
        narrower(gg.make_problem(ENV, graph=mine))


def test_local_search__ends_where_no_neighbour_is_better():
    table = load_table()
    problem = gg.make_problem(ENV, graph="nasbench201", track="table", objective="error")
    found = gg.solve(problem, "local_search", budget=400, seed=0)
    mine = table.accuracy[tuple(found.decision.tolist())]
    cells = all_cells()
    around = cells[(cells != found.decision).sum(axis=1) == 1]
    assert len(around) == 4 * len(EDGES)
    assert mine >= max(table.accuracy[tuple(cell)] for cell in around.tolist())
    assert mine > 0.93


def test_methods__are_those_of_the_space():
    networks = gg.methods(gg.make_problem(ENV, graph="cnn_8"))
    cells = gg.methods(gg.make_problem(ENV, graph="nasbench201", track="table"))
    assert {"alpha_nas", "width_scaling", "evolution", "random"} <= set(networks)
    assert {"local_search", "exhaustive", "cross_entropy", "evolution", "random"} <= set(cells)
    assert not {"local_search", "cross_entropy"} & set(networks)
    assert not {"alpha_nas", "width_scaling"} & set(cells)


# -- a front as a page -------------------------------------------------------------------------------------------------


def test_front_page__every_point_of_the_front_opens_its_network():
    seed = load_seed("cnn_8")
    networks = [load_seed("cnn_8", width=width) for width in (4, 3, 2, 1)]
    points = [Point(one, quality, "widths") for one, quality in zip(networks, (0.9, 0.95, 0.5, 0.6), strict=True)]
    assert [point.quality for point in front_of(points)] == [0.6, 0.95]
    page = front_page(seed, points, "Small networks of <digits>")
    assert page.count("<details id=") == page.count('<a href="#n') == 2
    assert "Small networks of &lt;digits&gt;" in page
    assert "★" in page  # the seed is one of the points
    assert networks[3].text().splitlines()[-1] in page
    with pytest.raises(InputError, match=r"^a front has no points; give at least one network"):
        front_page(seed, [], "nothing")
