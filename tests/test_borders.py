"""Whatever comes from outside gives a result or an InputError of one printable line; never another exception."""

from __future__ import annotations

import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.io import read_graph
from graphopt_gym.graphs.onnx_import import import_onnx
from graphopt_gym.graphs.tensor_program.onnx_io import output_names, read_onnx
from graphopt_gym.graphs.zoo.programs import load_program
from graphopt_gym.hardware.cost_model import read_fitted
from graphopt_gym.hardware.package import load_package
from graphopt_gym.report.files import report_on
from graphopt_gym.report.programs import measure_report
from graphopt_gym.solutions import load_solution

READERS = {
    "graph": gg.load_graph,
    "graph file": read_graph,
    "program": load_program,
    "cluster": gg.load_cluster,
    "package": load_package,
    "solution": load_solution,
    "report": report_on,
    "measure": lambda path: measure_report([path]),
    "fitted costs": read_fitted,
    "onnx graph": import_onnx,
    "onnx program": read_onnx,
    "onnx outputs": output_names,
}
ENDINGS = ("", ".npz", ".onnx", ".toml", ".json", ".txt")


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text.isprintable()
    assert 0 < len(text) < 1000
    return text


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("stem", ["a" * 5000, "a/" * 2500 + "b", "nul\0byte", "\0", "new\nline", "\ud800", "[/x]", "/"])
def test_readers__refuse_paths_that_lead_nowhere(reader, stem):
    for ending in ENDINGS:
        refusal(reader, stem + ending)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers__refuse_what_is_no_file(reader, tmp_path):
    for ending in ENDINGS:
        folder = tmp_path / f"folder{ending}"
        folder.mkdir()
        refusal(reader, folder)
        noise = tmp_path / f"noise{ending}"
        noise.write_bytes(bytes(range(256)) * 8)
        refusal(reader, noise)
        refusal(reader, noise / "below")
        noise.write_bytes(b"[" * 200_000)
        refusal(reader, noise)
