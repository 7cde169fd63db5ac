"""How far a calibrated processor's step times are from measured ones, on models of the zoo."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError

DEVICE = "my_cpu"  # what `graphopt calibrate` calls this processor
GENERIC = "cpu_xeon_e5_2698_v4"  # of the catalog, priced without measurements
SECONDS = 4.0  # of running a model
ROUNDS = 2
# Models of the zoo at sizes of tens to hundreds of milliseconds on one thread: kind, family, configuration. None is
# among the steps that a calibration runs.
MODELS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("transformer", "bert", {"layers": 4, "width": 256, "heads": 4, "inner": 1024, "vocabulary": 6000,
                                     "sequence": 128, "batch": 4}),
    "gpt2": ("transformer", "gpt2", {"layers": 4, "width": 256, "heads": 4, "vocabulary": 4000, "positions": 128,
                                     "sequence": 128, "batch": 4}),
    "t5": ("transformer", "t5", {"layers": 3, "vocabulary": 4000, "batch": 2}),
    "vit": ("transformer", "vit", {"layers": 6, "batch": 2}),
    "resnet": ("convnet", "resnet", {"blocks": (2, 2, 2, 2), "basic": True, "size": 128, "batch": 4, "classes": 100}),
    "squeezenet": ("convnet", "squeezenet", {"size": 128, "batch": 4}),
    "densenet": ("convnet", "densenet", {"blocks": (4, 4, 4, 4), "growth": 16, "first": 32, "size": 128, "batch": 4}),
    "googlenet": ("convnet", "googlenet", {"size": 128, "batch": 2}),
    "rnnlm": ("recurrent", "rnnlm", {"layers": 2, "width": 256, "vocabulary": 2000, "steps": 16, "batch": 16}),
    "gnmt": ("recurrent", "gnmt", {"layers": 2, "width": 256, "vocabulary": 3000, "source_steps": 12,
                                   "target_steps": 12, "batch": 32}),
    "mixer": ("mlp-mixer", "mixer", {"layers": 4, "width": 256, "token_inner": 128, "inner": 1024, "size": 96,
                                     "patch": 8, "batch": 4}),
    "dlrm": ("recommender", "dlrm", {"rows": 5000, "batch": 256}),
}  # fmt: skip


def arguments_of(name: str, train: bool) -> dict[str, Any]:
    """Arguments of ``capture`` for a model of :data:`MODELS`, with real parameters and inputs."""
    import torch

    _, family, configuration = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = importlib.import_module(f"graphopt_gym.graphs.zoo.{family}").build(**configuration, device="cpu")
    keep = ("module", "example_inputs", "loss", "optimizer") if train else ("module", "example_inputs")
    return {key: built[key] for key in keep if key in built} | {"train": train, "name": name}


def calibration_report(
    say: Callable[[str], object] = str, device: str = DEVICE, seconds: float = SECONDS
) -> dict[str, list[dict[str, Any]]]:
    """``models``: a row a model and mode: measured and predicted seconds, the errors of the calibrated device and of a
    processor of the catalog; ``summary``: by kind and mode.

    Every step is measured in :data:`ROUNDS` rounds, apart in time, of which the fastest counts, as a machine that is
    shared is slow for minutes. A step is really run, eager, with as many threads as the device was calibrated for: all
    of training with torch's optimiser, or inference. Its time is measured as kernels are
    (:mod:`graphopt_gym.hardware.calibration.timing`).

    Args:
        device: a calibrated processor, by name or file.
        seconds: how long each step is run.

    Raises:
        InputError: there is no such device; the message says how to make it.
    """
    import torch

    from graphopt_gym.graphs.capture import capture
    from graphopt_gym.hardware.calibration.anchors import running_step
    from graphopt_gym.hardware.calibration.timing import clock_of, measured_s
    from graphopt_gym.hardware.cluster import DEVICES, load_device
    from graphopt_gym.hardware.cost_model import load_cost_model

    if device == DEVICE and device not in DEVICES:
        raise InputError(
            f"device {DEVICE!r} is not there yet: run graphopt calibrate, which takes two to three minutes"
        )
    calibrated, generic, model = load_device(device), load_device(GENERIC), load_cost_model()
    before = torch.get_num_threads()
    threads = max(calibrated.compute_units, 1)
    torch.set_num_threads(threads)
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    try:
        for step in itertools.product(range(ROUNDS), MODELS, (True, False)):
            number, name, train = step
            mode = "training" if train else "inference"
            say(f"{name}, {mode}, {number + 1} of {ROUNDS}")
            arguments = arguments_of(name, train)
            graph = capture(**arguments, target="cpu")
            measured = measured_s(running_step(arguments, "cpu"), clock_of("cpu", threads), seconds / ROUNDS)
            if number == 0 or measured < rows[name, train]["measured_s"]:
                kind = MODELS[name][0]
                predicted, other = (float(model.op_times(graph, one).sum()) for one in (calibrated, generic))
                rows[name, train] = {
                    "model": name, "kind": kind, "mode": mode, "ops": graph.num_ops, "measured_s": measured,
                    "calibrated_s": predicted, "error": predicted / measured - 1,
                    f"{GENERIC}_s": other, f"{GENERIC}_error": other / measured - 1,
                }  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return {"models": list(rows.values()), "summary": summary(list(rows.values()))}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind of model, and over all: how many steps, mean and worst error without its sign."""
    found = []
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        errors = np.abs([row["error"] for row in rows if kind in ("all", row["kind"])])
        others = np.abs([row[f"{GENERIC}_error"] for row in rows if kind in ("all", row["kind"])])
        found.append(
            {
                "kind": kind, "steps": len(errors), "mean_error": float(errors.mean()),
                "worst_error": float(errors.max()), f"mean_{GENERIC}_error": float(others.mean()),
            }
        )  # fmt: skip
    return found
