"""What torch exports is read, translated as onnxruntime runs it, rewritten at random, and written back the same."""

import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from graphopt_gym.envs.rewrite.problem import RewriteProblem  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_edit import write_edited  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx  # noqa: E402
from tests.graphs.exported import MODULES, export  # noqa: E402
from tests.graphs.onnx_files import assert_translated  # noqa: E402


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dynamo", [True, False], ids=["default exporter", "exporter of TorchScript"])
@pytest.mark.filterwarnings("ignore")
def test_exported__is_read_rewritten_and_written_back(name, dynamo, tmp_path):
    if dynamo:
        pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        export(name, path, dynamo)
    axes = (MODULES[name][2] or {}) if not dynamo else {}
    dims = {symbol: {"batch": 1, "seq": 6}[symbol] for by_axis in axes.values() for symbol in by_axis.values()}
    loaded = load_onnx(path, dims=dims)
    assert assert_translated(loaded) > 0
    problem = RewriteProblem(loaded.program)
    rng = np.random.default_rng(0)
    model = onnx.load(path)
    for _ in range(3):
        said = write_edited(loaded, problem.sample(rng).program, tmp_path / "out.onnx")
        assert len(said["checked"]) == (1 if not dims else 2 if len(dims) == 1 else 4)
        new = onnx.load(tmp_path / "out.onnx")
        assert new.graph.input == model.graph.input
        assert new.graph.output == model.graph.output
