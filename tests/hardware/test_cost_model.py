"""What ops cost: the formula, the features it takes from a graph, fused groups, speed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import COLUMNS, DTYPES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.hardware.cluster import ARCHITECTURES, device_names, load_device
from graphopt_gym.hardware.cost_model import (
    LAUNCH_MODES,
    TRANSFER_FROM,
    CostModel,
    cost_model_of,
    costs_note,
    costs_version,
    load_cost_model,
    read_fitted,
    run_of,
    uncertainties,
)
from graphopt_gym.hardware.roofline import power_share
from graphopt_gym.hardware.validation import kernel_seconds
from tests.hardware.graphs import convolution, graph_of, product, source

V100 = load_device("v100_pcie_16gb")


@pytest.fixture(scope="module")
def model() -> CostModel:
    return load_cost_model()


@pytest.fixture(scope="module")
def mixed() -> ComputationGraph:
    """Ops of every class that is priced by itself."""
    return graph_of(
        source(64, 128),
        {"kind": "t", "op_class": "view", "shape": (128, 64), "inputs": [0]},
        {"kind": "mm", "op_class": "matmul", "shape": (64, 64), "inputs": [0, 1], "flops": 2 * 64 * 64 * 128,
         "bytes_read": 65536, "bytes_written": 16384},
        {"kind": "relu", "op_class": "elementwise", "shape": (64, 64), "inputs": [2], "flops": 4096,
         "bytes_read": 16384, "bytes_written": 16384},
        {"kind": "_softmax", "op_class": "softmax", "shape": (64, 64), "inputs": [3], "flops": 20480,
         "bytes_read": 16384, "bytes_written": 16384},
        {"kind": "native_layer_norm", "op_class": "norm", "shape": (64, 64), "inputs": [4], "flops": 20480,
         "bytes_read": 16384, "bytes_written": 16384},
        {"kind": "clone", "op_class": "copy", "shape": (64, 64), "inputs": [5], "bytes_read": 10**9,
         "bytes_written": 10**9},
        {"kind": "sum", "op_class": "reduction", "shape": (), "inputs": [6], "flops": 4096, "bytes_read": 16384},
        {"kind": "dot", "op_class": "matmul", "shape": (), "inputs": [6], "flops": 2048, "bytes_read": 8192},
    )  # fmt: skip


@pytest.mark.parametrize("name", device_names())
def test_op_times__are_the_components_exactly(model, mixed, name):
    device = load_device(name)
    compute_s, bytes_per_s, launch_s = model.components(mixed, device)
    times = model.op_times(mixed, device)
    costless = (mixed.op_class == SOURCE) | (mixed.op_class == VIEW)
    moved = np.where(costless, 0, mixed.bytes_read + mixed.bytes_written)
    assert np.array_equal(times, launch_s + np.maximum(compute_s, moved / bytes_per_s))
    assert (times[costless] == 0).all()
    assert (times[~costless] > 0).all()
    assert np.isfinite(times).all()
    assert (bytes_per_s[~costless] <= device.memory_bytes_per_s * 1.001).all()


def test_op_times__of_an_ideal_device_follow_by_hand(model):
    graph = product(100, 200, 300)
    times = model.op_times(graph, load_device("toy_1tflops"))
    flops, moved = 2 * 100 * 200 * 300, 4 * (100 * 300 + 300 * 200 + 100 * 200)
    assert times.tolist() == [0.0, 0.0, max(flops / 1e12, moved / 100e9)]


def test_op_times__grow_with_the_batch(model):
    times = [model.op_times(product(128, 128, 128, batch), V100)[-1] for batch in (2, 64, 256, 1024)]
    assert times == sorted(times)
    assert times[-1] > 3 * times[-2]


def test_op_times__agree_with_the_kernels_that_were_fitted(model):
    """A graph's product is priced by the formula that the fit was judged by: features are taken right."""
    p = model.architectures["volta"]
    shape = {"batch": 48.0, "m": 300.0, "n": 200.0, "k": 150.0}
    expected = kernel_seconds(p, V100, "bmm", {name: np.array([v]) for name, v in shape.items()})
    compute_s, _, launch_s = model.components(product(300, 200, 150, batch=48), V100)
    assert launch_s[-1] == model.launch_s(V100)
    assert compute_s[-1] / p["in_model"]["bmm"] == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize(("transposed", "op"), [(True, "linear"), (False, "bmm")])
def test_op_times__tell_a_transposed_weight_from_a_plain_one(model, transposed, op):
    p100 = load_device("p100_pcie_16gb")
    shape = {"batch": 1.0, "m": 4096.0, "n": 2048.0, "k": 1024.0}
    expected = kernel_seconds(
        model.architectures["pascal"], p100, op, {name: np.array([v]) for name, v in shape.items()}
    )
    compute_s, _, _ = model.components(product(4096, 2048, 1024, transposed_weight=transposed), p100)
    assert compute_s[-1] / model.architectures["pascal"]["in_model"][op] == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("order", [("t", "_to_copy"), ("_to_copy", "t"), ("_to_copy", "t", "_to_copy")])
def test_op_times__find_the_layout_of_a_weight_through_its_casts(model, order):
    """Under autocast a cast lies before or behind the transpose; a cast alone transposes nothing."""

    def graph(*kinds: str) -> ComputationGraph:
        steps = [
            {"kind": kind, "op_class": "view" if kind == "t" else "copy", "shape": (1024, 2048), "inputs": [1 + index],
             "bytes_read": 1, "bytes_written": 1}
            for index, kind in enumerate(kinds)
        ]  # fmt: skip
        mm = {"kind": "mm", "op_class": "matmul", "shape": (4096, 2048), "inputs": [0, 1 + len(kinds)],
              "flops": 2 * 4096 * 2048 * 1024, "bytes_read": 1, "bytes_written": 1}  # fmt: skip
        return graph_of(source(4096, 1024, param=False), source(2048, 1024), *steps, mm)

    p100 = load_device("p100_pcie_16gb")
    seconds = [model.components(graph(*kinds), p100)[0][-1] for kinds in (("t",), order, ("_to_copy",))]
    assert seconds[0] == seconds[1] != seconds[2]


def test_op_times__winograd_is_for_three_by_three_with_stride_one(model):
    def share(graph: ComputationGraph) -> float:
        compute_s, _, _ = model.components(graph, V100)
        return graph.flops[2] / compute_s[2] / V100.peak("float32")

    assert share(convolution(64, 28, 256, 256, kernel=3)) > 1.1  # beats the datasheet's multiplications
    assert share(convolution(64, 28, 256, 256, kernel=3, stride=2)) < 1
    assert share(convolution(64, 28, 256, 256, kernel=5)) < 1
    assert share(convolution(64, 28, 256, 256, kernel=1)) < 1


def test_op_times__agree_with_the_convolutions_that_were_fitted(model):
    shape = {"batch": 32, "in_channels": 96, "out_channels": 160, "kernel": 3, "size": 20, "stride": 1}
    p = model.architectures["volta"]
    expected = kernel_seconds(p, V100, "conv", {name: np.array([float(v)]) for name, v in shape.items()})
    compute_s, _, _ = model.components(convolution(32, 20, 96, 160, kernel=3), V100)
    assert compute_s[2] / p["in_model"]["conv"] == pytest.approx(expected[0], rel=1e-9)


def test_op_times__backward_convolutions_cost_about_what_their_flops_say(model):
    for kernel in (1, 3, 5):
        times = model.op_times(convolution(32, 28, 128, 128, kernel=kernel), V100) - model.launch_s(V100)
        assert times[3] == pytest.approx(2 * times[2], rel=0.2)
        assert times[4] < 4 * times[2]


def test_op_times__half_precision_is_faster_where_the_device_says_so(model):
    graph = product(4096, 4096, 4096)
    half = graph.replace(dtype=np.full(graph.num_ops, 2))
    assert model.op_times(half, V100)[-1] < 0.3 * model.op_times(graph, V100)[-1]


def test_parameters__of_a_device_that_was_not_measured_are_the_mean_of_the_others(model, mixed):
    h100 = replace(load_device("h100_sxm_80gb"), board_watts=0)  # power goes by the architecture's own boards
    assert h100.architecture not in model.architectures
    several = [model.components(mixed, replace(h100, architecture=architecture)) for architecture in TRANSFER_FROM]
    compute_s, bytes_per_s, _ = model.components(mixed, h100)
    real = mixed.op_class > VIEW
    with np.errstate(divide="ignore"):
        mean = np.exp(np.mean([np.log(c[real]) for c, _, _ in several], axis=0))
    assert np.allclose(compute_s[real], mean)
    assert np.allclose(bytes_per_s[real], np.exp(np.mean([np.log(b[real]) for _, b, _ in several], axis=0)))


def test_fused_times__one_launch_summed_compute_and_the_border(model):
    ops = product(512, 512, 512)
    compute_s, _, launch_s = model.components(ops, V100)
    group = np.array([-1, -1, 0])
    border = np.array([0, 0, ops.bytes_read[2] + ops.bytes_written[2]])
    assert model.fused_times(ops, V100, group, border)[0] == model.op_times(ops, V100)[2]
    assert model.fused_times(ops, V100, group, 0 * border)[0] == launch_s[2] + compute_s[2]


def test_fused_times__of_a_chain_are_below_the_sum_of_its_ops(model, mixed):
    group = np.array([-1, -1, 0, 0, 0, 1, 1, -1, -1])
    border = np.where(group >= 0, 16384.0, 0.0)
    fused = model.fused_times(mixed, V100, group, border)
    compute_s, bytes_per_s, launch_s = model.components(mixed, V100)
    times = model.op_times(mixed, V100)
    assert fused.shape == (2,)
    for index in (0, 1):
        members = group == index
        expected = launch_s[members].max() + max(compute_s[members].sum(), (border / bytes_per_s)[members].sum())
        assert fused[index] == pytest.approx(expected, rel=1e-12)
        assert fused[index] < times[members].sum()


def test_op_times__price_eighty_thousand_ops_at_once(model):
    rng = np.random.default_rng(0)
    n = 80_000
    columns = {name: np.zeros((n, 8) if name == "output_shape" else n, np.int64) for name in COLUMNS}
    columns["op_class"] = rng.integers(2, 13, n)
    columns["output_shape"][:] = -1
    columns["output_shape"][:, :4] = rng.integers(1, 60, (n, 4))
    columns["flops"] = rng.integers(0, 10**9, n)
    columns["bytes_read"] = rng.integers(0, 10**7, n)
    columns["bytes_written"] = rng.integers(0, 10**7, n)
    edges = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    graph = ComputationGraph("large", kinds=["op"], modules=[""], columns=columns, edges=edges)
    model.op_times(graph, V100)
    started = time.perf_counter()
    times = model.op_times(graph, V100)
    assert time.perf_counter() - started < 2  # well under a second on an idle machine
    assert np.isfinite(times).all()


def test_read_fitted__refuses_what_it_is_not(tmp_path):
    path = tmp_path / "fitted.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_fitted(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_fitted(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a fitted cost model"):
        read_fitted(path)
    fitted = json.loads(data_path("cost_model", "fitted.json").read_text())
    path.write_text(json.dumps({**fitted, "version": 1}))
    with pytest.raises(InputError, match="version 1"):
        read_fitted(path)
    for costs in (None, "", 2):
        path.write_text(json.dumps({**fitted, "costs": costs}))
        with pytest.raises(InputError, match=rf"costs is {costs!r}; give the version of the costs"):
            read_fitted(path)


def test_costs_version__is_the_files__and_that_of_ones_own_model_is_its_own():
    class Mine(CostModel):
        pass

    fitted = load_cost_model()
    ideal = load_device("toy_1tflops")
    assert fitted.version == json.loads(data_path("cost_model", "fitted.json").read_text())["costs"]
    assert costs_version(fitted, [V100]) == costs_version(fitted, [ideal, V100]) == fitted.version
    assert costs_version(fitted, [ideal]) == ""
    mine = Mine(fitted.fitted)
    assert costs_version(mine, [ideal]) == costs_version(mine, [V100]) == "Mine"
    mine.version = "of June"
    assert costs_version(mine, [V100]) == "of June"


def test_costs_version__says_how_a_step_is_run():
    assert load_cost_model("graph").version == load_cost_model().version + ", graph"
    assert load_cost_model(tf32="all").version == load_cost_model().version + ", tf32 all"


def test_launch__is_the_modes_and_a_devices_own_where_it_has_one(model):
    by_mode = {mode: load_cost_model(mode).launch_s(V100) for mode in LAUNCH_MODES}
    assert by_mode["graph"] < by_mode["back_to_back"] < by_mode["eager"]
    own = replace(V100, fitted={**model.architectures["volta"], "launch_us": {"eager": 25.0}})
    assert model.launch_s(own) == pytest.approx(25e-6)
    assert load_cost_model("graph").launch_s(own) == by_mode["graph"]
    graph = product(64, 64, 64)
    saved = model.op_times(graph, V100)[-1] - load_cost_model("graph").op_times(graph, V100)[-1]
    assert saved == pytest.approx(by_mode["eager"] - by_mode["graph"])
    with pytest.raises(InputError, match="launch"):
        load_cost_model("lazy")


def test_fitted__of_a_device_stand_in_for_its_architectures(model):
    graph = product(512, 512, 512)
    own = replace(V100, fitted=model.architectures["pascal"])
    pascal = replace(V100, architecture="pascal", board_watts=0)
    # the same parameters; what power leaves goes by the architecture
    assert model.components(graph, replace(own, board_watts=0))[0][-1] == model.components(graph, pascal)[0][-1]
    assert model.op_times(graph, own)[-1] != model.op_times(graph, V100)[-1]


def test_op_times__float32_products_take_tensor_cores_where_tf32_says_so(model):
    a100, image, plain = (
        load_device("a100_pcie_40gb"),
        convolution(64, 56, 256, 256, kernel=1),
        product(4096, 4096, 4096),
    )
    of = {tf32: load_cost_model(tf32=tf32) for tf32 in ("none", "conv", "all")}
    conv = {tf32: one.op_times(image, a100)[2] for tf32, one in of.items()}
    mm = {tf32: one.op_times(plain, a100)[-1] for tf32, one in of.items()}
    assert conv["none"] > 1.5 * conv["conv"] == 1.5 * conv["all"]
    assert mm["none"] == mm["conv"] > 2 * mm["all"]
    assert of["all"].op_times(plain, V100)[-1] == of["none"].op_times(plain, V100)[-1]  # no such rate there


def test_op_times__half_precision_products_stay_below_the_measured_rates(model):
    h100 = load_device("h100_sxm_80gb")
    graph = product(4096, 4096, 4096, batch=2)
    half = graph.replace(dtype=np.full(graph.num_ops, DTYPES.index("bfloat16")))
    rate = graph.flops[-1] / model.op_times(half, h100)[-1]
    assert 600e12 < rate < 800e12  # 783 TFLOP/s were measured for one of these


@pytest.mark.parametrize(("name", "share"), [("t4", 0.63), ("v100_pcie_16gb", 1.0), ("a100_sxm_40gb", 1.0)])
def test_power_share__holds_back_boards_below_their_chips_full_rate(name, share):
    assert power_share(load_device(name)) == pytest.approx(share, abs=0.01)


def test_power_share__is_one_where_power_or_architecture_is_unknown():
    t4 = load_device("t4")
    assert power_share(replace(t4, board_watts=0)) == power_share(replace(t4, architecture="")) == 1.0
    assert power_share(replace(t4, board_watts=35)) == pytest.approx(power_share(t4) / 2 ** (2 / 3))


def test_op_times__fused_attention_costs_more_than_a_product_of_as_many_flops(model):
    a100, flops = load_device("a100_pcie_40gb"), 4 * 8 * 16 * 2048 * 2048 * 64
    shape = (8, 16, 2048, 64)
    size = 2 * 8 * 16 * 2048 * 64
    times = {}
    for kind in ("flash", "efficient", "flash_attention_backward"):
        kind = f"_scaled_dot_product_{kind}"
        graph = graph_of(
            source(*shape),
            {"kind": kind, "op_class": "matmul", "shape": shape, "inputs": [0], "flops": flops, "bytes_read": 3 * size,
             "bytes_written": size},
        )  # fmt: skip
        times[kind] = model.op_times(graph.replace(dtype=np.full(2, DTYPES.index("bfloat16"))), a100)[1]
    flash, efficient, backward = times.values()
    assert 0.5 < flops / flash / 312e12 < 0.73  # FlashAttention-2's paper: 50 to 73 % of an A100's peak
    assert efficient > 2 * flash
    assert backward > flash


def test_cost_model_of__takes_models_and_how_a_step_is_run(model):
    assert cost_model_of(None) is model
    assert cost_model_of(model) is model
    assert cost_model_of(None, "graph") is cost_model_of("graph") is load_cost_model("graph")
    assert cost_model_of("eager, tf32 all") is cost_model_of("tf32 all") is load_cost_model(tf32="all")
    for given in ("eager", "graph, tf32 none", "back_to_back, tf32 all"):
        assert cost_model_of(given).run == given
        assert run_of(cost_model_of(given)) == given
    assert run_of(object()) is None


def test_problems__of_ones_own_model_store_no_way_to_run(model):
    """No text stands for it: a file that named one would be priced by another model."""

    class Mine(CostModel):
        pass

    mine = Mine(model.fitted)
    assert "cost_model" not in gg.make_problem("RewriteOrder-v0", graph="small_fire", cost_model=mine).config
    assert "cost_model" not in gg.make_problem("Placement-v0", cost_model=mine).config
    assert gg.make_problem("RewriteOrder-v0", graph="small_fire", cost_model="eager").config["cost_model"] == "eager"
    assert "cost_model" not in gg.make_problem("RewriteOrder-v0", graph="small_fire", cost_model="back_to_back").config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("lazy", "launch"),
        ("eager, graph", "launch is given twice"),
        ("tf32 some", "tf32"),
        (3, "op_times"),
        ("", "launch"),
    ],
)
def test_cost_model_of__refuses_all_else(given, says):
    with pytest.raises(InputError, match=says):
        cost_model_of(given)


def test_costs_note__says_what_times_rest_on_and_how_far_they_are_off(model, mixed):
    half = mixed.replace(dtype=np.full(mixed.num_ops, DTYPES.index("float16")))
    fitted = model.fitted["uncertainty"]
    note = costs_note(model, [V100, V100], mixed)
    assert f"by costs {model.version}; whole models in float32" in note
    assert f"{100 * fitted['float32']['volta']:.0f} % on v100_pcie_16gb on average" in note
    assert f"half precision were off by {100 * fitted['half']['others']:.0f} %" in costs_note(model, [V100], half)
    assert f"{100 * fitted['float32']['others']:.0f} % on l4" in costs_note(model, [load_device("l4")], mixed)
    assert "tpu_v4 is not known" in costs_note(model, [load_device("tpu_v4")], mixed)
    assert costs_note(model, [load_device("toy_1tflops")], mixed) == ""
    own = replace(V100, fitted={**model.architectures["volta"], "uncertainty": 0.25})
    assert "25 % on v100" in costs_note(model, [own], mixed)


def test_page_of_costs__says_the_launches_that_are_shipped(model):
    page = (Path(__file__).resolve().parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")
    for mode in LAUNCH_MODES:
        assert f"| `{mode}` | {1e6 * model.fitted['launch_s'][mode]:.2g} us |" in page
    assert f"by costs {model.version};" in page
    for architecture in ARCHITECTURES:
        assert f"`{architecture}`" in page


def test_uncertainties__are_by_kind_of_device_and_in_the_row_of_a_solution(model, mixed):
    volta = model.fitted["uncertainty"]["float32"]["volta"]
    tpu, ideal = load_device("tpu_v4"), load_device("toy_1tflops")
    assert uncertainties(model, [V100, V100, tpu, ideal], mixed) == {V100.name: volta, tpu.name: None}
    assert uncertainties(object(), [V100], mixed) == {}
    row = gg.solve(gg.make_problem("Placement-v0", graph="bert_base", cluster="v100x4"), "expert").row()
    assert row["uncertainty"] == {"v100_pcie_16gb": volta}
    row = gg.solve(gg.make_problem("Placement-v0", graph="bert_base", cluster="toyx2"), "single").row()
    assert "uncertainty" not in row
