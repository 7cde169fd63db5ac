from __future__ import annotations

import math

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.architecture.nasbench import all_cells, load_table, network, sizes
from graphopt_gym.envs.architecture.problem import MOST_SHARE
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.envs.architecture.proxies import naswot, proxy_score, synflow
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.errors import InputError
from graphopt_gym.solutions import validate

ENV = "ArchitectureSearch-v0"


def small(features=4, image=(1, 8, 8), classes=10, **options):
    b = ArchitectureBuilder(f"dense{features}")
    x = b.op("reshape", b.input("image", image), shape=(-1,))
    return b.finish(b.op("dense", b.op("relu", b.op("dense", x, features=features)), features=classes))


def test_costs__are_shares_of_the_seed():
    seed = load_seed("cnn_8")
    narrow = load_seed("cnn_8", width=3)
    for objective, own in (("params", lambda one: one.parameters), ("flops", lambda one: one.flops)):
        problem = gg.make_problem(ENV, graph="cnn_8", objective=objective, tolerance=1.0)
        costs, valid = problem.costs([seed, narrow])
        assert valid.all()
        assert costs.tolist() == [1.0, own(narrow) / own(seed)]
    problem = gg.make_problem(ENV, graph="cnn_8", cluster="v100_sxm2_32gb", objective="time", tolerance=1.0)
    graph, narrow_graph = (one.to_graph() for one in (seed, narrow))
    expected = [math.fsum(problem.model.op_times(one, problem.device)) for one in (graph, narrow_graph)]
    assert problem.costs([narrow])[0][0] == expected[1] / expected[0]
    assert problem.evaluate(narrow).metrics["simulated_s"] == expected[1]
    assert problem.costs_version
    assert not gg.make_problem(ENV, graph="cnn_8").costs_version


def test_time__of_a_group_norm_of_one_value_a_group():
    b = ArchitectureBuilder("lonely groups")
    x = b.op("mean", b.input("image", (1, 8, 8)), axes=(1, 2), keep=True)
    x = b.op("group_norm", b.op("conv", x, features=4, kernel=1), groups=4)
    network = b.finish(b.op("dense", b.op("reshape", x, shape=(-1,)), features=10))
    problem = gg.make_problem(ENV, graph="cnn_8", objective="time", tolerance=1.0)
    assert problem.evaluate(network).valid
    assert problem.seconds(network) > 0


def test_time__of_what_cannot_be_captured_is_a_reason(monkeypatch):
    problem = gg.make_problem(ENV, graph="cnn_8", objective="time", tolerance=1.0)
    other = load_seed("cnn_8", width=3)

    def broken(architecture):
        raise InputError("capture: it fails")

    monkeypatch.setattr(problem, "seconds", broken)
    assert problem.costs([other])[0][0] == MOST_SHARE + 2
    assert problem.judged([other])[0][2] == "capture: it fails"


def test_trained__is_valid_where_accuracy_is_no_lower_than_allowed():
    seed, other = small(16), small(2)
    recipe = {"epochs": 2}
    problem = gg.make_problem(ENV, graph=seed, track="trained", recipe=recipe)
    assert problem.seed_quality == problem.trainer.results([seed])[0].accuracy
    gap = problem.seed_quality - problem.quality(other).value
    assert gap > 0.05
    outcome = problem.evaluate(other)
    assert not outcome.valid
    assert outcome.reasons[0].startswith(f"its accuracy is {problem.quality(other).value:.4f}, the seed's less")
    assert problem.costs([other])[0][0] == pytest.approx(MOST_SHARE + gap)
    loose = gg.make_problem(ENV, graph=seed, track="trained", recipe=recipe, tolerance=gap + 1e-9)
    assert loose.evaluate(other).cost == other.parameters / seed.parameters
    assert problem.trainer.trained == 2
    assert loose.trainer.trained == 0  # what the other has trained is there


def test_trained__a_network_that_fails_is_invalid_with_its_reason():
    b = ArchitectureBuilder("diverges")
    x = b.op("reshape", b.op("smul", b.input("image", (1, 8, 8)), factor=3e38), shape=(-1,))
    broken = b.finish(b.op("dense", x, features=10))
    problem = gg.make_problem(ENV, graph=small(), track="trained", recipe={"epochs": 1})
    outcome = problem.evaluate(broken)
    assert (outcome.valid, outcome.cost) == (False, math.inf)
    assert outcome.reasons[0].startswith("the loss is ")
    with pytest.raises(InputError, match=r"^the seed 'diverges' is no start: the loss is "):
        gg.make_problem(ENV, graph=broken, track="trained", recipe={"epochs": 1}).evaluate(small())


def test_costs__of_networks_that_cannot_stand_in():
    problem = gg.make_problem(ENV, graph=small(8), tolerance=1.0)
    large, larger, other = small(64), small(200), small(8, classes=3)
    costs, valid = problem.costs([small(8), large, larger, other, small(8, image=(1, 4, 4))])
    assert valid.tolist() == [True, False, False, False, False]
    assert MOST_SHARE < costs[1] < costs[2] < costs[3] == costs[4]
    assert problem.evaluate(large).reasons == (
        f"it has {large.parameters:,} parameters, more than 4 times the seed's {small(8).parameters:,}",
    )
    assert problem.evaluate(other).reasons == ("it gives (3,), the seed (10,)",)
    assert problem.evaluate(small(8, image=(1, 4, 4))).reasons[0].startswith("it reads ((1, 4, 4),), the seed")


def test_table__costs_are_looked_up():
    table = load_table()
    problem = gg.make_problem(ENV, graph="nasbench201", track="table", objective="flops", tolerance=0.01)
    cells = all_cells()[::500]
    costs, valid = problem.costs(cells)
    least = table.accuracy[problem.seed_cell] - 0.01
    for cell, cost, good in zip(map(tuple, cells.tolist()), costs, valid, strict=True):
        large = sizes(cell)[1] > 4 * problem.seed_sizes[1]
        assert good == (table.accuracy[cell] >= least and not large)
        assert not good or cost == sizes(cell)[1] / problem.seed_sizes[1]
    assert problem.architecture(cells[7]) == network(tuple(cells[7].tolist()))
    error = gg.make_problem(ENV, graph="nasbench201", track="table", objective="error")
    found = gg.solve(error, "exhaustive", budget=20_000)
    assert found.evaluations == 15_625
    assert tuple(found.decision.tolist()) == table.best[0]
    assert found.outcome.cost == pytest.approx((1 - table.best[1]) / (1 - table.accuracy[error.seed_cell]))


def test_table__of_a_file_that_lacks_cells(tmp_path):
    path = tmp_path / "few.json"
    path.write_text('{"2,1,0,2,1,0": 93.5, "2,2,2,2,2,2": 94}')
    problem = gg.make_problem(ENV, graph="nasbench201", track="table", table=str(path))
    assert problem.evaluate([2, 2, 2, 2, 2, 2]).valid
    assert problem.evaluate([0, 0, 0, 0, 0, 0]).reasons == ("the table lacks this cell",)
    path.with_name("none.json").write_text('{"2,2,2,2,2,2": 94}')
    with pytest.raises(InputError, match=r"lacks the seed's cell \(2, 1, 0, 2, 1, 0\); give another seed"):
        gg.make_problem(ENV, graph="nasbench201", track="table", table=str(path.with_name("none.json")))


@pytest.mark.parametrize("proxy", ["synflow", "naswot"])
def test_proxy__is_named_and_squashed_to_the_seed(proxy):
    problem = gg.make_problem(ENV, graph="cnn_8", proxy=proxy)
    wide, narrow = load_seed("cnn_8", width=6), load_seed("cnn_8", width=2)
    assert problem.quality(problem.seed).value == 0.5
    assert problem.quality(narrow).value < 0.5 < problem.quality(wide).value < 1
    outcome = problem.evaluate(narrow)
    assert not outcome.valid
    assert "quality by the proxy" in outcome.reasons[0]
    assert "accuracy" not in outcome.metrics
    assert "no accuracy is claimed" in problem.notes[0]
    assert f"{proxy} (a proxy; the seed 0.5)" in problem.summary_lines(outcome, {})[0]


def test_proxies__by_hand():
    b = ArchitectureBuilder()
    x = b.input("x", (3,))
    two = b.finish(b.op("dense", b.op("dense", x, features=2, bias=False), features=1, bias=False))
    first, second = (np.abs(weight.detach().numpy().astype(np.float64)) for weight in two.to_module(0).parameters())
    assert synflow(two, 0) == pytest.approx(math.log(2 * float((second @ first).sum())))
    assert naswot(two) == -math.inf  # it has no activation
    assert proxy_score("naswot", two) == (-math.inf, "proxy 'naswot' tells nothing of this network")
    with pytest.raises(InputError, match=r"^unknown proxy 'sinflow'; did you mean 'synflow'"):
        proxy_score("sinflow", two)


@pytest.mark.parametrize("name", ["resnet_8", "vit_8", "efficientnet_8", "cnn_8"])
def test_synflow__is_that_of_the_module(name):
    torch = pytest.importorskip("torch")
    network = load_seed(name)
    module = network.to_module(seed=2).double().eval()
    for layer in module.layers.values():
        if "norm" in layer.op.kind:
            layer.forward = lambda x: x
    with torch.no_grad():
        for weight in module.parameters():
            weight.abs_()
    module(torch.ones(1, *network.input_shapes[0], dtype=torch.float64)).sum().backward()
    total = sum(float((one.detach() * one.grad).abs().sum()) for one in module.parameters() if one.grad is not None)
    assert synflow(network, 2) == pytest.approx(math.log(total), rel=1e-12)


def test_naswot__is_the_determinant_of_agreements():
    torch = pytest.importorskip("torch")
    found = small(6)
    module = found.to_module(3)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    with torch.no_grad():
        active = (module.layers["2"](module.layers["1"](images)) > 0).numpy()
    agree = np.array([[(a == b).sum() for b in active] for a in active], float)
    sign, expected = np.linalg.slogdet(agree)
    assert naswot(found, 3) == (pytest.approx(expected / 16) if sign > 0 else -math.inf)


def test_solution__is_stored_as_text_and_validated(tmp_path):
    problem = gg.make_problem(ENV, graph=small(16), track="trained", recipe={"epochs": 1}, tolerance=0.5)
    solution = gg.solve(problem, "alpha_nas", budget=5, seed=1)
    path = solution.save(tmp_path / "found.json")
    assert '"decision": "\\"dense16\\"\\n' in path.read_text()
    assert validate(path).mismatches == ()
    curves = problem.page(solution.decision, None, {})
    assert curves.count("<polyline") == 2
    assert f"seed {problem.seed_quality:.3f}" in curves
    assert isinstance(solution.decision, Architecture)


def test_figure_and_page__show_what_changed(tmp_path):
    problem = gg.make_problem(ENV, graph="resnet_8", tolerance=1.0)
    network = problem.neighbour(problem.seed, np.random.default_rng(3))
    figure = problem.figure(network)
    figure.savefig(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 10_000
    page = problem.page(network, None, {})
    for word in ("Seed: 31 ops", "Network: ", "mixing", network.text().splitlines()[-1]):
        assert word in page


def test_report__draws_a_stored_solution(tmp_path, graphopt):
    problem = gg.make_problem(ENV, graph="cnn_8", tolerance=0.4, objective="time")
    path = gg.solve(problem, "alpha_nas", budget=12, seed=0).save(tmp_path / "found.json")
    code, out, err = graphopt("report", str(path))
    assert code == 0, err
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "From the seed to the network" in page
    assert "Seed: 12 ops" in page
    assert "simulated" in out + page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graph": "resent_8"}, "unknown architecture 'resent_8'; did you mean 'resnet_8'"),
        ({"objective": "size"}, "unknown objective 'size'"),
        ({"track": "train"}, "unknown track 'train'; did you mean 'trained'"),
        ({"tolerance": -0.1}, "tolerance is -0.1; give a number from 0 to 1"),
        ({"tolerance": "low"}, "tolerance is 'low'; give a number"),
        ({"graph": "resnet34", "track": "trained"}, r"no images of shape \(3, 224, 224\) are there to train on"),
        ({"track": "trained", "data": "mnist_data"}, r"architecture 'resnet_8' reads \(1, 8, 8\); images of 'mnist_"),
        ({"track": "trained", "recipe": "fast"}, "unknown recipe 'fast'"),
        ({"track": "trained", "recipe": {"epoch": 1}}, "recipe: unknown key 'epoch'|unknown recipe: key 'epoch'"),
        ({"data": "digits"}, "data is 'digits'; leave it out, or give track='trained'"),
        ({"table": "x.json"}, "table is 'x.json'; leave it out, or give track='table'"),
        ({"track": "table"}, "architecture 'resnet_8' is no network of NAS-Bench-201"),
        ({"cluster": "v100x2"}, "cluster 'v100x2' has 2 devices; a network is found for one"),
        ({"proxy": "grasp"}, "unknown proxy 'grasp'"),
        ({"workers": 0}, "workers is 0; give a number of processes"),
        ({"batch": 0}, "batch is 0; give a whole number, at least 1"),
    ],
)
def test_problem__bad_input_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        gg.make_problem(ENV, **arguments)
    assert "\n" not in str(caught.value)


def test_solve__a_budget_of_nothing():
    with pytest.raises(InputError, match=r"^budget is 0; give a whole number, at least 1"):
        gg.solve(gg.make_problem(ENV, graph="cnn_8"), "alpha_nas", budget=0)
