from __future__ import annotations

import numpy as np
import pytest

from graphopt_gym.envs.architecture.checker import check_runs
from graphopt_gym.envs.architecture.moves import (
    MOVES,
    MUTATIONS,
    PROPERTY_MUTATIONS,
    border,
    can_delete,
    delete_block,
    duplicate_block,
    labelled,
    mutate_block,
)
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.envs.architecture.properties import Requirement, infer
from graphopt_gym.envs.architecture.seeds import load_seed

SEEDS = ("cnn_8", "resnet_8", "vit_8", "efficientnet_8")


def unlabelled(architecture):
    return Architecture(architecture.name, [op._replace(block="") for op in architecture.ops])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("move", MOVES)
def test_moves__give_other_networks_that_run_and_keep_the_interface(name, move):
    seed, rng = load_seed(name), np.random.default_rng(1)
    children = [child for _ in range(12) if (child := MOVES[move](seed, rng)) is not None]
    assert len(children) >= 5
    for child in children[:4]:
        assert child != seed
        assert (child.input_shapes, child.ops[-1].shape) == (seed.input_shapes, seed.ops[-1].shape)
        assert check_runs(child) == []
    again = np.random.default_rng(1)
    repeated = [child for _ in range(12) if (child := MOVES[move](seed, again)) is not None]
    assert [one.fingerprint for one in repeated] == [one.fingerprint for one in children]


def test_delete_and_duplicate__are_of_whole_blocks():
    seed = load_seed("resnet_28")
    block = "stage1.block1"
    ops = seed.blocks[block]
    weights = sum(np.prod(shape) for index in ops for shape in seed.trainable(index).values())
    without, twice = delete_block(seed, block), duplicate_block(seed, block)
    assert without.parameters == seed.parameters - weights
    assert twice.parameters == seed.parameters + weights
    assert (len(without), len(twice)) == (len(seed) - len(ops), len(seed) + len(ops))
    assert list(twice.blocks)[4:6] == [block, f"{block}~2"]
    assert delete_block(twice, f"{block}~2") == delete_block(twice, block) == seed
    assert duplicate_block(twice, block).blocks.keys() > {f"{block}~2", f"{block}~3"}
    assert check_runs(twice) == check_runs(without) == []


def test_delete_and_duplicate__where_they_do_not_fit():
    seed = load_seed("resnet_8")
    assert not can_delete(seed, "stage1.block0")  # it halves the image
    assert delete_block(seed, "stage1.block0") is None
    assert duplicate_block(seed, "stage1.block0") is not None  # the head takes any image
    assert delete_block(seed, "head") is None
    assert duplicate_block(seed, "head") is None
    assert duplicate_block(load_seed("cnn_8"), "layer0") is None  # the dense layer takes one size
    assert border(seed, "none such") is None
    b = ArchitectureBuilder()
    x = b.input("x", (4, 8, 8))
    b.block = "two"
    first, second = b.op("relu", x), b.op("sigmoid", x)
    b.block = ""
    both = b.finish(b.op("add", first, second))
    assert border(both, "two") is None
    assert not can_delete(both, "two")


def test_border__is_what_enters_and_leaves():
    seed = load_seed("efficientnet_8")
    for block, ops in seed.blocks.items():
        source, last = border(seed, block)
        assert source not in ops
        assert last == max(ops)
        outside = [index for index in range(len(seed)) if index not in ops]
        assert all(set(seed.ops[index].inputs) & set(ops) <= {last} for index in outside)


def test_labelled__gives_blocks_to_a_network_without():
    seed = load_seed("resnet_8")
    assert labelled(seed) is seed
    found = labelled(unlabelled(seed))
    assert found == seed
    assert list(found.blocks) == [f"part{number}" for number in range(4)]
    assert sum(map(len, found.blocks.values())) == len(seed) - 1


def test_property_mutations__ask_for_what_they_say():
    asked = Requirement.of(infer(load_seed("cnn_8")))
    rng = np.random.default_rng(0)
    depth = asked.depth[0]
    for _ in range(8):
        found = {name: mutate(asked, rng) for name, mutate in PROPERTY_MUTATIONS.items()}
        assert found["same"].depth == asked.depth
        assert found["same"].shape == asked.shape
        assert found["shallower"].depth[0] in (depth - 1, depth - 2)
        assert found["deeper"].depth[0] in (depth + 1, depth + 2)
        assert found["free_shape"].shape == (None,)
        assert (found["free_shape"].depth, found["free_mixing"].shape) == (asked.depth, asked.shape)
        assert found["free_mixing"].mixing == (None,)
        assert found["free_mixing_shallower"].depth[0] < depth
        assert found["free_shape_shallower"].mixing[0] is not None


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutate_block__changes_the_block_and_its_equals(mutation):
    seed, rng = load_seed("resnet_28"), np.random.default_rng(0)
    children = [mutate_block(seed, "stage0.block0", mutation, rng) for _ in range(6)]
    made = [child for child in children if child is not None]
    assert made
    assert all(child.ops[-1].shape == (10,) for child in made)


def test_mutate_block__of_a_block_without_primitives():
    b = ArchitectureBuilder()
    x = b.input("x", (4, 8, 8))
    b.block = "view"
    x = b.op("reshape", x, shape=(-1,))
    b.block = "head"
    network = b.finish(b.op("dense", x, features=3))
    assert mutate_block(network, "view", "same", np.random.default_rng(0)) is None
