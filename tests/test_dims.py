"""Open sizes of files: wherever a graph's file is named, they can be given, and a solution keeps them."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.catalog import check_dims, read_dims, with_dims
from graphopt_gym.cli import common
from graphopt_gym.errors import InputError

onnx = pytest.importorskip("onnx")
helper = onnx.helper


@pytest.fixture
def model(tmp_path):
    """x [batch, seq, 8] through a product and a Relu."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="a"), helper.make_node("Relu", ["h"], ["y"], name="b")]
    values = [helper.make_tensor_value_info(name, 1, ["batch", "seq", 8]) for name in "xy"]
    weights = [onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("batch=1", {"batch": 1}),
        ("batch=1,seq=128", {"batch": 1, "seq": 128}),
        ("x:0=2,?=3,trips:loop/a=8", {"x:0": 2, "?": 3, "trips:loop/a": 8}),
        ("a=b=2,c,d=3", {"a=b": 2, "c,d": 3}),
        ("", None), ("batch", None), ("batch=x", None), ("batch=1,", None), ("batch=-1", None), ("=1", None),
    ],
)  # fmt: skip
def test_read_dims__names_and_sizes(text, dims):
    assert read_dims(text) == dims
    if dims:
        assert with_dims("m.onnx", dims) == f"m.onnx@{text}"


def test_with_dims__adds_to_those_that_are_there():
    assert with_dims("m.onnx@a=1", {"b": 2}) == "m.onnx@a=1,b=2"
    assert with_dims("m.onnx", {}) == "m.onnx"
    for wrong in (1.5, "2", True, -1):
        with pytest.raises(InputError, match="dimension 'a' is"):
            with_dims("m.onnx", {"a": wrong})
    for wrong in (5, [1], {1: 2}):
        with pytest.raises(InputError, match="give the sizes by name"):
            check_dims(wrong)


def test_listed__commas_between_sizes_part_nothing():
    assert common.listed("a, b") == ["a", "b"]
    assert common.listed("m.onnx@a=1,b=2,bert_base") == ["m.onnx@a=1,b=2", "bert_base"]
    assert common.listed("m.onnx@a=1,n.onnx@b=2") == ["m.onnx@a=1", "n.onnx@b=2"]


def test_load_graph__sizes_beside_the_path_or_after_it(model):
    graph = gg.load_graph(model, dims={"batch": 2, "seq": 3})
    assert graph.shape(graph.num_ops - 1) == (2, 3, 8)
    for given in (
        gg.load_graph(f"{model}@batch=2,seq=3"),
        gg.load_graph(f"{model}@batch=2", dims={"seq": 3}),
        gg.load_graph(f"{model}@batch=5,seq=3", dims={"batch": 2}),
    ):
        assert given.fingerprint == graph.fingerprint


def test_load_graph__sizes_of_what_has_none__are_refused(model):
    with pytest.raises(InputError, match=r"dims are sizes of an \.onnx file's symbolic dimensions; graph 'bert_base'"):
        gg.load_graph("bert_base", dims={"batch": 2})
    with pytest.raises(InputError, match="'model' is loaded already"):
        gg.load_graph(gg.load_graph(model, dims={"batch": 2, "seq": 3}), dims={"batch": 2})
    with pytest.raises(InputError, match=r"give sizes as .*model\.onnx@batch=1,seq=128"):
        gg.load_graph(f"{model}@batch")
    with pytest.raises(InputError, match="did you mean 'batch'"):
        gg.load_graph(f"{model}@bach=2")
    with pytest.raises(InputError, match=r"give the sizes: dims=\{'seq': …\} \(graphopt … --dims 'seq=…'\)"):
        gg.load_graph(f"{model}@batch=2")


def test_load_graph__a_file_with_an_at_in_its_name(model, tmp_path):
    path = tmp_path / "v@2.onnx"
    path.write_bytes((tmp_path / "model.onnx").read_bytes())
    assert gg.load_graph(f"{path}@batch=2,seq=3").num_ops == 4


def test_load_graph__a_name_of_the_users_own(model, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "graphs"
    folder.mkdir(parents=True)
    (folder / "mine.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    assert gg.load_graph("mine@batch=2,seq=3").num_ops == 4


@pytest.mark.parametrize("env_id", ["Placement-v0", "RewriteOrder-v0"])
def test_problem__takes_dims_and_its_solution_keeps_them(model, tmp_path, env_id):
    given = {"graph": model, "dims": {"batch": 2, "seq": 3}}
    solution = gg.solve(gg.make_problem(env_id, **given), gg.methods(env_id)[0])
    solution.save(tmp_path / "solution.json")
    from graphopt_gym.solutions import validate

    assert validate(tmp_path / "solution.json").ok


def test_problem__of_a_loaded_graph__keeps_path_and_sizes(model, tmp_path):
    from graphopt_gym.solutions import validate

    problem = gg.make_problem("Placement-v0", graph=gg.load_graph(model, dims={"batch": 2, "seq": 3}))
    assert problem.config["graph"] == f"{model}@batch=2,seq=3"
    gg.solve(problem, "single").save(tmp_path / "solution.json")
    assert validate(tmp_path / "solution.json").ok


def test_make_problem__dims_without_a_file__are_refused(model):
    with pytest.raises(InputError, match="give its path as graph"):
        gg.make_problem("Placement-v0", dims={"batch": 2})
    with pytest.raises(InputError, match="give the sizes by name"):
        gg.make_problem("Placement-v0", graph=model, dims=5)


def test_environment__takes_sizes_after_the_path(model):
    env = gym.make("Placement-v0", graph=[f"{model}@batch=2,seq=3", "rnnlm_2layer"], cluster="toyx2")
    _, info = env.reset(seed=0, options={"graph": "model"})
    assert info["graph"] == "model"


def test_commands__dims(model, tmp_path, graphopt):
    out = tmp_path / "solution.json"
    sizes = ("--dims", "batch=2,seq=3")
    chosen = ("Placement-v0", "-g", model, "-c", "toyx2")
    status, _, error = graphopt("solve", *chosen, "-m", "single")
    assert status == 2
    assert "--dims 'batch=…,seq=…'" in error
    assert graphopt("solve", *chosen, *sizes, "-m", "single", "-o", out)[0] == 0
    assert json.loads(out.read_text())["problem"]["graph"] == f"{model}@batch=2,seq=3"
    assert graphopt("validate", out)[0] == 0
    assert graphopt("validate", out, "-g", model, *sizes)[0] == 0
    status, said, _ = graphopt("validate", out, "-g", model, "--dims", "batch=2", "--dims", "seq=4")
    assert (status, "graph changed" in said) == (1, True)
    assert graphopt("report", out)[0] == 0
    assert graphopt("compare", *chosen, *sizes, "--methods", "single,expert", "-b", 10)[0] == 0
    assert graphopt("solve", *chosen, "-m", "single", "--set", 'dims={"batch": 2, "seq": 3}')[0] == 0
    status, said, _ = graphopt("list", "graphs", model, "bert_base", *sizes, "--json")
    assert status == 0
    assert [row["graph"] for row in json.loads(said)["rows"]] == ["model", "bert_base"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("solve", "Placement-v0", "-m", "single", "--dims", "a=1"), "give it as --graph"),
        (("validate", "x.json", "--dims", "a=1"), "give it as --graph"),
        (("list", "graphs", "bert_base", "--dims", "a=1"), "there is none that ends in .onnx"),
        (("solve", "Placement-v0", "-m", "single", "-g", "bert_base", "--dims", "a"), "--dims 'a' is not NAME=N"),
    ],
)
def test_commands__dims_that_are_none__are_refused(arguments, message, graphopt):
    status, _, error = graphopt(*arguments)
    assert status == 2
    assert message in error


def test_train__on_a_file_with_sizes(model, tmp_path, graphopt):
    pytest.importorskip("stable_baselines3")
    run = tmp_path / "run"
    status, _, error = graphopt(
        "train", "ppo", "--env", "Placement-v0", "--graph", model, "--dims", "batch=2,seq=3", "-c", "toyx2", "--steps",
        8, "--set", "num_envs=2", "--out", run,
    )  # fmt: skip
    assert status == 0, error
