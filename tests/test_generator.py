"""Generators: texts are read and written, numbers make things again, and what is wrong is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt_gym.errors import InputError
from graphopt_gym.generator import MOST_SEED, Called, Curriculum
from graphopt_gym.graphs.random_graphs import FAMILIES, RandomGraphs
from graphopt_gym.graphs.zoo import GRAPHS, load_graph
from graphopt_gym.hardware.cluster import CLUSTERS, load_cluster
from graphopt_gym.hardware.random_clusters import PerturbedClusters, RandomClusters


def test_text__says_what_is_not_as_by_default() -> None:
    assert RandomGraphs().text == "random"
    one = RandomGraphs(num_ops=(64, 300), families="chain+layered", train=False, seed=7)
    assert one.text == "random:num_ops=64-300:families=chain+layered:train=no:seed=7"
    assert PerturbedClusters(cluster="v100x4", speed=0.5).text == "perturbed:v100x4:speed=0.5"
    assert RandomClusters(mixed=(0.0, 1.0)).text == "random:mixed=0-1"


@given(
    st.integers(128, 10**6), st.integers(0, 10**5), st.lists(st.sampled_from(list(FAMILIES)), min_size=1),
    st.booleans(), st.none() | st.tuples(st.integers(0, 1000), st.integers(1000, MOST_SEED)),
)  # fmt: skip
def test_text__is_read_back(low: int, more: int, families: list[str], train: bool, seed: Any) -> None:
    one = RandomGraphs(num_ops=(low, min(low + more, 10**6)), families=families, train=train, seed=seed)
    assert RandomGraphs.parse(one.text) == one


@given(st.floats(0, 2), st.floats(0, 2))
def test_text__keeps_every_digit_of_numbers(low: float, high: float) -> None:
    one = PerturbedClusters(cluster="v100x2", speed=tuple(sorted((low, high))))
    assert PerturbedClusters.parse(one.text) == one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("random:num_op=3", "unknown key 'num_op'; did you mean 'num_ops'?"),
        ("random:num_ops=few", "num_ops is 'few'; give a number or a range"),
        ("random:num_ops=1.5", "num_ops is '1.5'; give a number or a range"),
        ("random:num_ops=300-200", "from 300 to 200; give the lower end first"),
        ("random:num_ops=3", "at least 64"),
        ("random:num_ops=64:families=recurrent", "give at least 128 for recurrent"),
        ("random:families=chin", "unknown families 'chin'; did you mean 'chain'?"),
        ("random:train=maybe", "unknown train 'maybe'; did you mean 'yes'?"),
        ("random:seed", "'seed' has no value"),
        ("random:seed=1:seed=2", "seed is there twice"),
        ("random:seed=-1", "seed is '-1'"),
        (f"random:seed={MOST_SEED + 1}", "seed is"),
        ("random", "stands for many"),
        ("random:seed=0-3", "give one of them by its seed: 'random:seed=0'"),
        ("randon:seed=0", "unknown graph 'randon:seed=0'; did you mean 'random'?"),
    ],
)
def test_load__refuses_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        load_graph(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("perturbed", "cluster is missing; give it after the word, perturbed:NAME"),
        ("perturbed:v100x5", "unknown cluster 'v100x5'; did you mean"),
        ("perturbed:v100x4:speed=3", "give numbers from 0 to 2"),
        ("random:devices=0", "at least 1"),
        ("random:kinds=t5", "unknown kinds 't5'; did you mean 't4'?"),
    ],
)
def test_load__refuses_clusters_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_cluster(text)
    assert said in str(caught.value)


def test_load__gives_what_was_drawn() -> None:
    for catalog, text in ((GRAPHS, "random:num_ops=128"), (CLUSTERS, "random"), (CLUSTERS, "perturbed:v100x4")):
        drawn = catalog.generator(text)
        assert drawn is not None
        thing, name = catalog.drawn(drawn, np.random.default_rng(3))
        assert name is not None
        assert thing.name == name
        assert catalog.load(name).fingerprint == thing.fingerprint
        again, _ = catalog.drawn(drawn, np.random.default_rng(3))
        other, _ = catalog.drawn(drawn, np.random.default_rng(4))
        assert thing.fingerprint == again.fingerprint != other.fingerprint


def test_draw__keeps_to_the_numbers_given() -> None:
    rng, few = np.random.default_rng(0), RandomGraphs(seed=(5, 7))
    assert {few.draw_seed(rng) for _ in range(50)} == {5, 6, 7}
    assert RandomGraphs(seed=9).only == 9
    assert few.only is None


def test_has__knows_what_it_draws() -> None:
    some = RandomGraphs(num_ops=100, seed=(0, 9), families="chain")
    assert some.has(RandomGraphs(num_ops=100, seed=4, families="chain"))
    assert not some.has(RandomGraphs(num_ops=100, seed=10, families="chain"))
    assert not some.has(RandomGraphs(num_ops=101, seed=4, families="chain"))
    assert not some.has(RandomClusters(seed=4))


def test_generator__is_only_of_its_catalog() -> None:
    with pytest.raises(InputError, match="draws no graph"):
        GRAPHS.generator(RandomClusters())
    assert GRAPHS.generator("bert_base") is None
    assert isinstance(GRAPHS.generator(lambda rng: None), Called)


def test_curriculum__needs_stages() -> None:
    with pytest.raises(InputError, match="no stages"):
        Curriculum()


def test_each__is_a_name_a_number() -> None:
    assert GRAPHS.each(["bert_base", "random:num_ops=64:seed=3-5"]) == (
        "bert_base", "random:num_ops=64:seed=3", "random:num_ops=64:seed=4", "random:num_ops=64:seed=5",
    )  # fmt: skip
    assert GRAPHS.each("random") == ("random",)
    with pytest.raises(InputError, match="is 5001; give 4096 at most"):
        GRAPHS.each("random:seed=0-5000")
