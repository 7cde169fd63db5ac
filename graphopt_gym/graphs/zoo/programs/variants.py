"""Programs like the zoo's networks, smaller and of random sizes: what a policy of rewriting is trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.files import write_text
from graphopt_gym.graphs.tensor_program import program_text
from graphopt_gym.graphs.zoo.programs import build_program

HEAD = 64  # width of a head of attention


def write_variants(folder: str | os.PathLike[str], count: int, seed: int = 0) -> list[str]:
    """Writes ``count`` programs like the zoo's networks, smaller and of random sizes, as text files; returns the paths.

    They have fewer layers than the networks, but are about as wide, since what a rewrite saves depends on the width.
    """
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        name = VARIED[index % len(VARIED)]
        program = build_program(name, **_sizes(name, rng))
        path = Path(folder) / f"{name}_{index}.txt"
        lines = program_text(program).split("\n", 1)
        write_text(path, json.dumps(path.stem) + "\n" + lines[1])
        paths.append(str(path))
    return paths


VARIED = (
    "bert",
    "nasrnn",
    "nasnet_a",
    "resnext50",
    "squeezenet",
    "bert_tensat",
    "nasrnn_tensat",
    "vgg19",
    "inception_v3",
)


def _sizes(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Random sizes of a network of the zoo."""

    def one(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    width = one(256, 512, 768, 1024)
    if name == "bert":
        return {
            "layers": one(1, 2),
            "width": width,
            "heads": width // HEAD,
            "inner": 4 * width,
            "sequence": one(32, 64, 128),
            "biases": one(False, True),
        }
    if name == "bert_tensat":
        return {"layers": one(1, 2, 3), "width": width, "heads": width // HEAD, "sequence": HEAD}
    if name in ("nasrnn", "nasrnn_tensat"):
        return {"steps": one(1, 2, 3), "width": width}
    images: dict[str, Any] = {"size": one(128, 192, 224)}
    if name == "nasnet_a":
        return images | {"channels": one(64, 96, 128), "cells": one(1, 2), "stages": one(1, 2)}
    if name == "resnext50":
        return images | {"blocks": one((1, 1), (1, 2), (1, 1, 1)), "groups": one(16, 32), "biases": one(False, True)}
    if name == "inception_v3":
        return {"width": one(8, 12, 16), "size": one(139, 203, 299)}
    if name == "squeezenet":
        return images | {"width": one(8, 16, 24)}
    # a few stages leave large images for the classifier, whose weights would fill the memory
    small = {"size": one(32, 48, 64), "inner": one(256, 512)}
    return small | {"stages": one((1, 1), (2, 2), (1, 2, 2)), "biases": one(False, True)}
