"""``graphopt execute``: from a solution file to simulated beside measured, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError

torch = pytest.importorskip("torch")

from graphopt_gym.envs.placement import execution  # noqa: E402
from graphopt_gym.graphs.capture import capture_from_spec  # noqa: E402
from graphopt_gym.graphs.io import save_graph  # noqa: E402

MODEL = "tests.execution.models:step"


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("execute")
    save_graph(capture_from_spec(MODEL), folder / "tangled.npz")
    problem = gg.make_problem("Placement-v0", graph=str(folder / "tangled.npz"), cluster="v100x2")
    return gg.solve(problem, "expert").save(folder / "expert.json")


def test_execute__prints_simulated_beside_measured(solution, tmp_path, graphopt):
    out = tmp_path / "result.json"
    code, text, error = graphopt(
        "execute", str(solution), "--model", MODEL, "--decisions", "6", "--repeat", "4", "--op-times", "measured",
        "--devices", "cpu", "--out", str(out), "--json",
    )  # fmt: skip
    assert code == 0, error
    result = json.loads(text)
    assert result == json.loads(out.read_text())
    [table] = result["tables"]
    assert len(table["rows"]) == 6
    assert table["rows"][0]["placement"] == "expert (expert.json)"
    assert -1 <= table["rank_correlation"] <= 1
    for row in table["rows"]:
        assert row["difference"] < 1e-5
        assert row["measured_s"] >= row["fastest_s"] > 0
        assert row["simulated_s"] > 0
        assert len(row["measured_busy_s"]) == len(row["simulated_busy_s"]) == 2
        assert max(row["measured_busy_s"]) <= 1.001 * row["measured_s"] + 1e-3
    assert "worker" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "graph 'tangled' is not the zoo's; name the function that it was captured from: --model"),
        (("--model", "tests.execution.models:pieces"), "makes another graph than the solution's ("),
        (("--model", "tests.execution.models:nothing"), "unknown function in tests.execution.models 'nothing'"),
        (("--model", MODEL, "--repeat", "0"), "repeat is 0; give a whole number, at least 1"),
        (("--model", MODEL, "--op-times", "guessed"), "unknown op_times 'guessed'"),
        (("--model", MODEL, "--devices", "cuda"), "workers need a GPU each"),
        (("--device", "t4"), "--device goes with --write-cluster"),
        (("--write-cluster", "x.toml"), "leave one of the two out"),
    ],
)
def test_execute__refuses_in_one_line(solution, graphopt, arguments, words):
    code, text, error = graphopt("execute", str(solution), *arguments)
    assert (code, text) == (2, "")
    assert words in error
    assert error.strip().splitlines()[-1].startswith("error: ")


def test_execute__needs_solutions_of_a_task_that_has_it(solution, tmp_path, graphopt):
    code, _, error = graphopt("execute")
    assert code == 2
    assert "name a solution to run, or --write-cluster" in error
    path = tmp_path / "chips.json"
    path.write_text(json.dumps(json.loads(solution.read_text()) | {"env": "ChipletPartition-v0"}))
    code, _, error = graphopt("execute", str(path))
    assert code == 2
    assert "is a solution of ChipletPartition-v0, which has no execute; those that have: Placement-v0" in error
    code, _, error = graphopt("execute", "--write-cluster", str(tmp_path / "x.toml"))
    assert code == 2
    assert "--write-cluster needs --device" in error


def test_execute__refuses_what_does_not_fit(solution, monkeypatch, graphopt):
    monkeypatch.setattr(execution, "free_memory_bytes", lambda: 2000)
    code, _, error = graphopt("execute", str(solution), "--model", MODEL)
    assert code == 2
    assert "expert (expert.json) of tangled needs" in error
    assert "of this machine's memory, and 1.95 KiB are free: give a smaller batch or model" in error


def test_zoo_graph__is_built_again_from_its_name_and_from_its_metadata():
    from graphopt_gym.execution.program import zoo_arguments
    from graphopt_gym.graphs.capture import capture
    from graphopt_gym.graphs.zoo.registry import ENTRIES

    sizes = {"layers": 1, "width": 16, "steps": 3, "vocabulary": 20, "batch": 2}
    arguments = ENTRIES["rnnlm_2layer"].arguments(**sizes)
    facts = {"metadata": {"family": "rnnlm", "configuration": sizes}, "target": "cpu", "name": "small"}
    graph = capture(**arguments | facts)
    problem = gg.make_problem("Placement-v0", graph=graph, cluster="v100x2")
    program = execution.program_of(problem, None, "small")
    assert program.graph.fingerprint == graph.fingerprint
    assert not any(value.is_meta for value in program.sources.values())
    assert zoo_arguments(graph.replace(metadata={"family": "os.path", "configuration": {}}), "small") is None
    with pytest.raises(InputError, match="does not take the graph's configuration"):
        zoo_arguments(graph.replace(metadata={"family": "rnnlm", "configuration": {"colour": 3}}), "small")


@pytest.mark.parametrize("name", ["resnet18_b1", "vgg11_b1", "dcgan_both_step_b128"])
def test_zoo_graph__is_built_as_its_table_says(name):
    from graphopt_gym.execution.program import zoo_arguments
    from graphopt_gym.graphs.zoo import load_graph
    from graphopt_gym.graphs.zoo.registry import ENTRIES

    built, told = zoo_arguments(load_graph(name), name), ENTRIES[name].arguments()
    for field in ("train", "optimizer", "loss"):
        assert built.get(field) == told.get(field), field
    types = [{one.dtype for one in given["module"].parameters()} for given in (built, told)]
    assert types[0] == types[1]
    assert not any(one.is_meta for one in built["module"].parameters())


def test_further__are_valid_distinct_and_spread():
    problem = gg.make_problem("Placement-v0", graph="transformer_xl_2layer", cluster="v100x4")
    known = np.zeros(problem.num_groups, int)
    found = execution.further(problem, 9, 0, [known])
    assert len(found) == 9
    decisions = [known.tolist(), *(one.decision.tolist() for one in found)]
    assert all(a != b for i, a in enumerate(decisions) for b in decisions[:i])
    costs = [problem.evaluate(one.decision).cost for one in found]
    assert max(costs) / min(costs) > 1.3
    again = execution.further(problem, 9, 0, [known])
    assert [one.name for one in again] == [one.name for one in found]


def test_largest_difference__sees_what_is_missing_and_what_is_nan():
    one = {"a": torch.tensor([1.0, float("nan"), float("inf")]), "b": torch.tensor([3, 4])}
    assert execution.largest_difference(one, one) == 0
    assert execution.largest_difference({"a": one["a"]}, one) == float("inf")
    other = {**one, "a": torch.tensor([1.5, float("nan"), float("inf")])}
    assert execution.largest_difference(other, one) == 0.5
    assert execution.largest_difference({**one, "a": torch.tensor([1.0, 2.0, float("inf")])}, one) == float("inf")
