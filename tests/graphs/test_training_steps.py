"""The shipped training steps of further families: what their rows say, and that each is a whole step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.graphs.zoo import SPLITS, graph_names, load_graph
from graphopt_gym.graphs.zoo.registry import INFERENCE, MEASURED, PAPERS, TRAINING, ZOO

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shipped():
    return {name: load_graph(name) for name in TRAINING}


def test_training_steps__names_families_and_size():
    assert sorted(SPLITS["training_steps"]) == sorted(graph_names("training_steps")) == sorted(TRAINING)
    assert len(TRAINING) >= 50
    assert not set(TRAINING) & {*ZOO, *INFERENCE, *MEASURED, *SPLITS}
    families = {entry.family for entry in TRAINING.values()}
    assert not families & {ZOO[name].family for name in PAPERS}  # new to a policy that is tested on the papers' graphs
    assert len(families) >= 25
    assert sum(entry.path(name).stat().st_size for name, entry in TRAINING.items()) < 1_000_000
    for split in ("train", "validation", "test", "papers", "all"):
        assert not set(SPLITS[split]) & set(TRAINING)


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_training_steps__is_what_its_row_says(shipped, name):
    graph, entry = shipped[name], TRAINING[name]
    facts = graph.metadata
    assert graph.name == name
    assert (facts["family"], facts["source"], facts["note"]) == (entry.family, entry.source, entry.note)
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.config.items()}
    assert facts["configuration"] == as_json
    assert "Apache-2.0" in facts["licence"]
    assert (facts["train"], facts["optimizer"]) == (True, entry.optimizer)
    assert graph.num_ops <= 6_000
    assert not (graph.op_class == OP_CLASSES.index("other")).any()
    assert (graph.colocation >= 0).all()


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_training_steps__every_parameter_gets_a_gradient_and_an_update(shipped, name):
    graph = shipped[name]
    update = graph.phase == PHASES.index("optimizer")
    parameters = graph.param_bytes > 0
    assert update.sum() == parameters.sum() > 0
    copies = {"adam": 2, "momentum": 1}[TRAINING[name].optimizer]
    assert graph.state_bytes[update].sum() == copies * graph.param_bytes.sum()
    assert graph.flops[graph.phase == PHASES.index("backward")].sum() > graph.flops[~update].sum() / 2


def test_training_steps__hold_every_parameter_of_their_modules(shipped):
    pytest.importorskip("torch")
    for name, entry in TRAINING.items():
        parameters = [one for one in entry.arguments()["module"].parameters() if one.requires_grad]
        assert (shipped[name].param_bytes > 0).sum() == len(parameters), name
        assert shipped[name].param_bytes.sum() == sum(one.nbytes for one in parameters), name


@pytest.mark.parametrize("name", ["vgg11_step_b64", "ssd300_vgg_step_b16", "gru_l1_w1024_t24_step_b64"])
def test_training_steps__rebuilding_gives_the_same_bytes(name, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.__version__.split("+")[0] != load_graph(name).metadata["torch"]:
        pytest.skip("another torch may dispatch other operators")
    save_graph(TRAINING[name].capture(name), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == TRAINING[name].path(name).read_bytes()


def test_sum_of_means__is_over_all_floating_outputs():
    torch = pytest.importorskip("torch")
    from graphopt_gym.graphs.zoo.losses import sum_of_means

    outputs = (torch.tensor([1.0, 3.0]), [torch.tensor([[5.0]]), torch.tensor([7])])
    assert float(sum_of_means(outputs)) == np.mean([1, 3]) + 5


def test_readme__training_table_is_that_of_the_shipped_files():
    spec = importlib.util.spec_from_file_location("build_graphs", ROOT / "scripts" / "build_graphs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert "\n".join(script.training_table()) in (ROOT / "envs_data" / "graphs" / "README.md").read_text()
