"""An architecture as a ComputationGraph, which cost models and simulators price."""

from __future__ import annotations

from typing import Any

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.extras import need
from graphopt_gym.fields import whole
from graphopt_gym.graphs.graph import ComputationGraph


def to_computation_graph(
    architecture: Architecture, batch: int = 1, train: bool = False, optimizer: str | None = "momentum"
) -> ComputationGraph:
    """The graph of inference, or of a training step, on a batch: the aten operators that torch runs on a GPU.

    Args:
        batch: samples.
        train: forward, backward and the update; the loss is the cross-entropy of the output's last dimension.
        optimizer: of a training step, as :func:`graphopt_gym.graphs.capture.capture` takes it.

    Raises:
        InputError: a batch below 1, an unknown optimiser, or torch is not installed.
    """
    need("torch", what="the graph of an architecture")
    import torch

    from graphopt_gym.envs.architecture.torch_module import to_module
    from graphopt_gym.graphs.capture import capture

    batch = whole("batch", batch, 1)
    module = to_module(architecture, None, "meta").train(train)
    inputs = tuple(torch.empty(batch, *shape, device="meta") for shape in architecture.input_shapes)
    return capture(
        module,
        inputs,
        loss=_cross_entropy if train else None,
        optimizer=optimizer if train else None,
        train=train,
        name=architecture.name,
        metadata={"source": "Architecture", "fingerprint": architecture.fingerprint},
    )


def _cross_entropy(output: Any) -> Any:
    """Of the first class; the graph does not depend on which."""
    return -output.log_softmax(-1)[..., 0].mean()
