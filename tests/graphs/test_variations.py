"""Variations of the zoo: other batches without a capture, other sizes with one, the same by their number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphopt_gym.envs.placement.env import PlacementEnv
from graphopt_gym.errors import InputError
from graphopt_gym.graphs import variations
from graphopt_gym.graphs.generators import chain
from graphopt_gym.graphs.variations import GraphVariations, with_batch
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.graphs.zoo.registry import ENTRIES

SIZES = ("flops", "bytes_read", "bytes_written", "output_bytes", "param_bytes", "state_bytes")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Captures are kept here, and none is known."""

    class Dirs:
        user_cache_dir = str(tmp_path)

    monkeypatch.setattr(variations, "AppDirs", lambda **named: Dirs)
    variations._variation.cache_clear()
    yield tmp_path / "variations"
    variations._variation.cache_clear()


@pytest.mark.parametrize(("name", "batch"), [("transformer_xl_2layer", 24), ("resnet50", 32), ("wavenet_2x18", 6)])
def test_with_batch__is_what_a_capture_gives(name: str, batch: int) -> None:
    pytest.importorskip("torch")
    entry = ENTRIES[name]
    captured = replace(entry, config={**entry.config, "batch": batch}).capture(name)
    scaled = with_batch(load_graph(name), batch)
    assert scaled.num_ops == captured.num_ops
    np.testing.assert_array_equal(scaled.edges, captured.edges)
    np.testing.assert_array_equal(scaled.colocation, captured.colocation)
    for column in SIZES:
        mine, theirs = getattr(scaled, column), getattr(captured, column)
        assert abs(mine.sum() / theirs.sum() - 1) < 2e-3, column
        assert (mine == theirs).mean() > 0.85, column


def test_with_batch__is_the_graph_itself_at_its_own() -> None:
    graph = load_graph("bert_base")
    assert with_batch(graph, 32).fingerprint == graph.fingerprint
    twice = with_batch(graph, 64)
    assert twice.param_bytes.sum() == graph.param_bytes.sum()
    assert 1.9 < twice.flops.sum() / graph.flops.sum() <= 2
    with pytest.raises(InputError, match="does not say its batch"):
        with_batch(chain(3), 2)


def test_batch_alone__needs_no_torch(monkeypatch) -> None:
    def refuse(*modules: str, what: str) -> None:
        raise AssertionError(what)

    monkeypatch.setattr(variations, "need", refuse)
    variations._variation.cache_clear()
    few = GraphVariations.parse("variations:resnet50:batch=8-64")
    sizes = {few.make(seed).metadata["configuration"]["batch"] for seed in range(12)}
    assert len(sizes) > 4
    assert 8 <= min(sizes) <= max(sizes) <= 64
    assert few.most["ops"] == load_graph("resnet50").num_ops


def test_captures__are_kept(folder: Path, monkeypatch) -> None:
    pytest.importorskip("torch")
    text = "variations:transformer_xl_2layer:layers=1:width=128-256:heads=2:batch=4-8:seed=5"
    first = load_graph(text)
    (kept,) = folder.glob("transformer_xl_2layer-*.npz")
    variations._variation.cache_clear()
    monkeypatch.setattr(type(ENTRIES["bert_base"]), "capture", lambda *given: pytest.fail("captured again"))
    assert load_graph(text).fingerprint == first.fingerprint
    assert first.name == text
    monkeypatch.undo()
    kept.write_bytes(b"damaged")
    monkeypatch.setattr(variations, "AppDirs", lambda **named: type("Dirs", (), {"user_cache_dir": str(folder.parent)}))
    variations._variation.cache_clear()
    assert load_graph(text).fingerprint == first.fingerprint


def test_text__is_read_back() -> None:
    for text in ("variations:bert_base:batch=8-64", "variations:gpt2_small:layers=2-6:batch=8:seed=0-9"):
        one = GraphVariations.parse(text)
        assert one.text == text
        assert GraphVariations.parse(one.text) == one
        assert one.has(GraphVariations.parse(one.name_of(3)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variations:bert_bas:batch=3", "unknown graph 'bert_bas'; did you mean 'bert_base'?"),
        ("variations:bert_base", "give at least one size of bert_base a range"),
        ("variations:bert_base:batc=3", "unknown size of bert_base 'batc'; did you mean 'batch'?"),
        ("variations:bert_base:batch=0", "batch is 0"),
        ("variations:bert_base:batch", "'batch' is no KEY=VALUE"),
        ("variations:resnet50:blocks=3", "unknown size of resnet50 'blocks'"),
    ],
)
def test_refused__by_name(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_graph(text)
    assert said in str(caught.value)


def test_environment__draws_them() -> None:
    env = PlacementEnv(graph="variations:transformer_xl_2layer:batch=8-64", cluster="v100x2")
    costs = set()
    for seed in range(4):
        _, info = env.reset(seed=seed)
        assert info["graph"].startswith("variations:transformer_xl_2layer:batch=8-64:seed=")
        costs.add(env.outcome().cost)
    assert len(costs) == 4
