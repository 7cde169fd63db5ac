"""The fit against the measurements."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from graphopt_gym.data import data_path
from graphopt_gym.hardware.cluster import load_device, load_link
from graphopt_gym.hardware.collectives import ring_all_reduce_s
from graphopt_gym.hardware.cost_model import read_fitted
from graphopt_gym.hardware.fitting import fit_attention, fit_streams, fit_tensor_cores
from graphopt_gym.hardware.measured import (
    SHAPE_COLUMNS,
    STREAM_OPS,
    held_out,
    held_out_of_table,
    isolated_seconds,
    load_attention_rates,
    load_gemm_table,
    load_kernels,
)
from graphopt_gym.hardware.validation import ALL_REDUCE_LINKS, CLASSES, cost_model_report, kernel_seconds, without
from graphopt_gym.report.tables import Table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report():
    return cost_model_report()


def test_held_out__a_shape_is_on_one_side_only():
    for op in ("linear", "conv", "add"):
        sides: dict[tuple, set[bool]] = {}
        shares = []
        for (_, measured), kernels in load_kernels().items():
            if measured != op:
                continue
            test = held_out(op, kernels)
            shares.append(test.mean())
            columns = [kernels[name].tolist() for name in SHAPE_COLUMNS.get(op, ("rows", "columns"))]
            for shape, side in zip(zip(*columns), test.tolist()):
                sides.setdefault(shape, set()).add(side)
        assert all(len(side) == 1 for side in sides.values())
        assert 0.25 < min(shares) <= max(shares) < 0.36


def test_load_kernels__has_every_row():
    tables = load_kernels()
    assert sum(len(kernels["latency_s"]) for kernels in tables.values()) == 61_200
    assert {op for _, op in tables} == {op for ops, _ in CLASSES.values() for op in ops}


def test_isolated_seconds__has_a_floor_and_drifts():
    timing = {"issue_s": 2.0, "floor_s": 5.0, "drift_s": 10.0}
    work, order = np.array([1.0, 4.0, 4.0]), np.array([0.0, 0.0, 0.5])
    assert isolated_seconds(timing, work, order).tolist() == [5.0, 6.0, 11.0]


# on a T4 products scatter by a tenth around any formula of their shape: its clocks wander under the board's 70 W
KNOWN_MISSES = {("t4", "bmm"), ("t4", "linear")}


def test_report__kernels_meet_their_targets_on_shapes_not_fitted_on(report):
    rows = report["kernels"]
    assert {(row["device"], row["op_class"]) for row in rows} == {
        (device, op_class)
        for op_class in CLASSES
        for device in (
            "p100_pcie_16gb",
            "v100_pcie_32gb",
            "t4",
            "a100_pcie_80gb" if op_class == "conv" else "a100_pcie_40gb",
        )
    }
    assert {(row["device"], row["op_class"]) for row in rows if row["met"] is False} == KNOWN_MISSES
    for row in rows:
        assert row["shapes_over_100us"] >= 20
        if row["target"] is not None and (row["device"], row["op_class"]) not in KNOWN_MISSES:
            assert row["median_error"] < row["target"], row
        assert row["worst_error"] >= row["p90_error"] >= row["median_error"]


def test_report__whole_models_meet_their_targets(report):
    rows = {row["device"]: row for row in report["summary"] if row["what"] == "whole models"}
    assert set(rows) == {"p100_pcie_16gb", "t4", "v100_pcie_32gb", "all"}
    for row in rows.values():
        assert row["mean_error"] < row["target"] == 0.06, row
        assert row["mean_error_not_fitted"] < 0.06, row
    assert rows["all"]["left_out"] < rows["all"]["left_out_target"] == 0.12
    totals = [row for row in report["models"] if row["phase"] == "total"]
    assert len(totals) == 23
    assert sum(not row["fitted"] for row in totals) == 12
    # see envs_data/cost_model/README.md
    assert {row["model"] for row in totals if abs(row["error"]) > 0.1} == {"switchxl4"}


def test_report__says_which_rows_were_fitted_on(report):
    fitted = {(row["device"], row["model"], row["mode"]) for row in report["models"] if row["fitted"]}
    assert len(fitted) == 11
    for device, model, mode in fitted:  # of each model that is fitted on, the smallest batch
        of = {int(row["batch"]): row["fitted"] for row in report["models"]
              if (row["device"], row["model"], row["mode"]) == (device, model, mode)}  # fmt: skip
        assert [batch for batch, chosen in of.items() if chosen] == [min(of)]


def test_report__half_precision_products_are_within_ten_percent_held_out_ones_too(report):
    rows = [row for row in report["half_precision"] if row["op_class"] == "matmul" and row["type"] == "bfloat16"]
    assert sorted((row["held_out"], row["rows"]) for row in rows) == [(False, 17), (True, 10)]
    for row in rows:
        assert row["mean_error"] < row["target"] == 0.10, row


def test_report__published_rates_are_within_fifteen_percent_with_one_factor_a_precision(report):
    rows = report["published"]
    assert len(rows) == 10
    factors = {(row["type"], row["software_factor"]) for row in rows}
    assert len(factors) == 2
    for row in rows:
        assert abs(row["error"]) < 0.15, row
        assert row["measured_s"] / (row["predicted_s"] * row["software_factor"]) - 1 == pytest.approx(row["error"])


def test_report__leaves_each_architecture_out(report):
    for row in report["kernels"]:
        assert row["left_out"] != row["median_error"]
    fitted = read_fitted(data_path("cost_model", "fitted.json"))
    for architecture in fitted["architectures"]:
        model = without(fitted, architecture)
        assert architecture not in model.architectures
        assert architecture not in model.transfer_from
        assert model.transfer_from


def test_report__all_reduce_holds_for_numbers_of_gpus_not_fitted_on(report):
    for row in report["all_reduce"]:
        if (row["device"], row["gpus"]) != ("v100", 5):  # no whole number of rings
            assert row["median_error"] < 0.10, row


def test_report__is_plain_and_prints(report):
    assert json.loads(json.dumps(report)) == report
    shown = [Table.of({"title": name, "rows": rows}) for name, rows in report.items()]
    assert len(shown) == len(report)
    assert [len(table.cells()) for table in shown] == [len(rows) for rows in report.values()]


def test_catalog__nvlink_bandwidths_are_those_fitted_to_all_reduce():
    fitted = read_fitted(data_path("cost_model", "fitted.json"))["all_reduce"]
    for device, link in ALL_REDUCE_LINKS.items():
        assert load_link(link).bytes_per_s == pytest.approx(fitted[device]["bytes_per_s"], rel=0.02)


def test_ring_all_reduce__sends_each_piece_twice_around():
    assert ring_all_reduce_s(1.0, 1e9, 1e9, 1.0) == 0
    assert ring_all_reduce_s(4.0, 1e9, 1e9, 0.5, start_s=2.0) == pytest.approx(2 + 6 * (0.5 + 0.25))


def test_fit_script__gives_the_shipped_numbers():
    spec = importlib.util.spec_from_file_location("fit_cost_model", ROOT / "scripts" / "fit_cost_model.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["fit_cost_model"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    fitted = read_fitted(data_path("cost_model", "fitted.json"))
    v100 = "v100_pcie_32gb"
    stream, _ = fit_streams(load_device(v100), {op: script.fitted_on(v100, op) for op in STREAM_OPS})
    assert stream == pytest.approx(fitted["architectures"]["volta"]["stream"], rel=5e-3)
    [bfloat16, _] = load_gemm_table()
    rows = {name: values[~held_out_of_table(bfloat16)] for name, values in bfloat16.items()}
    cores, start_s = fit_tensor_cores(load_device("h100_sxm_80gb"), rows, "bfloat16", 2, operands=False)
    assert cores == pytest.approx(fitted["tensor_cores"]["bfloat16"], rel=5e-3)
    assert start_s == pytest.approx(fitted["timing_loop"]["tensor_cores"]["bfloat16"], rel=5e-3)
    attention = fit_attention(load_device("h100_sxm_80gb"), load_attention_rates())
    for name, p in attention.items():
        assert p == pytest.approx(fitted["attention"][name], rel=5e-3)
    again = json.loads(json.dumps(fitted))
    script.fit_models(again)
    assert again["launch_s"] == pytest.approx(fitted["launch_s"], rel=5e-3)
    for name, p in again["architectures"].items():
        assert p["in_model"] == pytest.approx(fitted["architectures"][name]["in_model"], rel=5e-3)


def test_data__recorded_shapes_are_physically_possible():
    """No product or stream beats its datasheet; exchanged columns show in bytes that no memory could have moved."""
    for (name, op), kernels in load_kernels().items():
        device, latency = load_device(name), kernels["latency_s"]
        if op in ("bmm", "linear"):
            batch, m, n, k = (kernels[column] for column in ("batch", "m", "n", "k"))
            flops, moved = 2 * batch * m * n * k, 4 * batch * (m * k + k * n + m * n)
        elif op == "conv":
            outputs = kernels["batch"] * kernels["out_channels"] * kernels["size"] ** 2
            # Winograd's F(4x4) does a quarter of the multiplications
            flops = 2 * outputs * kernels["in_channels"] * kernels["kernel"] ** 2 / 4
            moved = 4 * (outputs + kernels["batch"] * kernels["in_channels"] * kernels["size"] ** 2)
        else:
            flops, moved = np.zeros(len(latency)), 8 * kernels["rows"] * kernels["columns"]
        assert (flops / latency <= device.peak("float32")).all(), (name, op)
        in_memory = moved > 2 * device.cache_bytes
        assert (moved / latency <= device.memory_bytes_per_s)[in_memory].all(), (name, op)


def test_data__exchanged_columns_of_products_would_show():
    """In the right order, k barely matters to how far the best tiles fill the units; exchanged, the fit falls apart."""
    for name in ("p100_pcie_16gb", "v100_pcie_32gb", "t4", "a100_pcie_40gb"):
        device = load_device(name)
        p = read_fitted(data_path("cost_model", "fitted.json"))["architectures"][device.architecture]
        for op in ("bmm", "linear"):
            kernels = load_kernels()[name, op]
            exchanged = kernels | {"n": kernels["k"], "k": kernels["n"]}
            right, wrong = (
                np.median(
                    np.abs(np.log(kernel_seconds(p, device, op, table) / table["latency_s"])[table["latency_s"] > 5e-4])
                )
                for table in (kernels, exchanged)
            )
            assert wrong > 1.3 * right, (name, op, right, wrong)
