"""Files timed in onnxruntime: a file that does half the work is faster, a copy is the same; by the command, too."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from graphopt_gym.envs.rewrite import onnx_timing
from graphopt_gym.envs.rewrite.onnx_timing import TWIN, FileTiming, spread_of, time_files, verdict
from graphopt_gym.errors import InputError
from tests.commands import run_command
from tests.graphs.onnx_files import make_model, node

rng = np.random.default_rng(0)


def chain(length, size=256):
    nodes = [node("MatMul", ["x" if i == 0 else f"h{i}", "w"], f"h{i + 1}") for i in range(length)]
    nodes.append(node("Tanh", [f"h{length}"], "y"))
    weight = (rng.standard_normal((size, size)) / 16).astype(np.float32)
    return make_model(nodes, {"x": (64, size)}, {"y": (64, size)}, {"w": weight}).SerializeToString()


def test_time_files__half_the_work_is_faster__a_copy_is_the_same():
    feeds = {"x": rng.standard_normal((64, 256)).astype(np.float32)}
    eight = chain(8)
    files = {"original": eight, "rewritten": chain(4), "copy": eight}
    found = time_files(files, feeds, levels=("none", "all"), runs=12, seconds=4, loads=3)
    assert set(found) == {(name, level) for name in (*files, TWIN) for level in ("none", "all")}
    for level in ("none", "all"):
        spread = spread_of(found[TWIN, level])
        half = found["rewritten", level]
        assert half.low <= half.ratio <= half.high
        assert 1.3 < half.ratio < 3
        assert half.saved_percent == pytest.approx(100 * (1 - 1 / half.ratio))
        assert verdict(half, spread) == "faster"
        assert 0.6 < found["copy", level].ratio < 1.6


@pytest.mark.parametrize(
    ("ratio", "spread", "word"), [(1.1, 0.05, "faster"), (1.04, 0.05, "the same"), (1 / 1.1, 0.05, "slower")]
)
def test_verdict__needs_more_than_the_spread(ratio, spread, word):
    assert verdict(FileTiming("all", 1.0, ratio, ratio, ratio, 9), spread) == word
    assert spread_of(FileTiming("all", 1.0, 1.0, 1 / 1.2, 1.1, 9)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ("most",)}, "unknown level 'most'"),
        ({"runs": 1}, "runs is 1; give a whole number, at least 3"),
        ({"clock": "sun"}, "unknown clock 'sun'"),
        ({"files": {"a": b"no model"}}, "onnxruntime cannot load a file to be timed"),
    ],
)
def test_time_files__refuses_in_one_line(change, message):
    given = {"files": {"a": chain(1)}, "feeds": {"x": np.zeros((64, 256), np.float32)}, **change}
    with pytest.raises(InputError, match=message) as caught:
        time_files(given.pop("files"), given.pop("feeds"), **given)
    assert "\n" not in str(caught.value)


def test_measure__of_an_onnx_file_has_a_row_a_level(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "m.onnx", tmp_path / "s.json"
    path.write_bytes(chain(2, 64))
    monkeypatch.setattr(onnx_timing, "LOADS", 1)
    solve = ["solve", "RewriteOrder-v0", "-g", path, "-c", "cpu", "-m", "greedy", "-o", out]
    assert run_command(solve, monkeypatch, capsys)[0] == 0
    command = ["measure", out, "--runs", 3, "--seconds", 1, "--clock", "cpu", "--json"]
    status, said, error = run_command(command, monkeypatch, capsys)
    assert status == 0, error
    rows = json.loads(said)["rows"]
    levels = [row["executor"] for row in rows if "after" not in row["executor"]]
    assert levels == [*(f"onnxruntime, {level}" for level in onnx_timing.LEVELS), "torch"]
    assert all(row["same_outputs"] for row in rows)
    assert {row["verdict"] for row in rows[:4]} <= {"faster", "slower", "the same"}
