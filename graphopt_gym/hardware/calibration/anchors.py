"""Small training steps and inferences of our own that a calibration runs: what kernels by themselves do not show.

A step differs from its kernels in three ways: every operator is called from Python through modules and autograd
(``launch_us``), products find their operands in other caches (``in_model_products``), and so do kernels that stream
through memory (``in_model_streams``). These three numbers are fitted to the steps below, none of which is a model of
the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.hardware.calibration.fit import solve_factors
from graphopt_gym.hardware.calibration.timing import Clock, measured_s

if TYPE_CHECKING:
    import torch

    from graphopt_gym.graphs.graph import ComputationGraph

NAMES = ("chain", "dense", "image", "heads")
BOUNDS = {"in_model_products": (0.7, 2.0), "in_model_streams": (0.7, 4.0), "launch_us": (0.0, 1e3)}
SECONDS = 1.0  # of a step


class Anchor(NamedTuple):
    name: str
    graph: ComputationGraph
    seconds: float


def anchor(name: str, train: bool, scale: int = 1) -> dict[str, Any]:
    """Arguments of :func:`~graphopt_gym.graphs.capture.capture`; ``scale`` multiplies the batch."""
    import torch
    from torch import nn

    class Heads(nn.Module):
        """Attention written out."""

        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads, self.norm = heads, nn.LayerNorm(width)
            self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, width = x.shape
            parts = self.into(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(parts[0] @ parts[1].transpose(-1, -2) * width**-0.5, -1)
            return x + self.out((weights @ parts[2]).transpose(1, 2).reshape(batch, length, width))

    class Dense(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    def convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    if name == "chain":
        layers: list[nn.Module] = []
        for _ in range(16):
            layers += [nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh()]
        module, inputs, optimizer = nn.Sequential(*layers), torch.randn(4, 16), "adam"
    elif name == "dense":
        module = nn.Sequential(*(Dense(384, 1152) for _ in range(3)))
        inputs, optimizer = torch.randn(192 * scale, 384), "adam"
    elif name == "image":
        stages = [*convolution(3, 32, 2), *convolution(32, 32, 1), *convolution(32, 80, 2), *convolution(80, 80, 1)]
        module = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 10))
        inputs, optimizer = torch.randn(6 * scale, 3, 80, 80), "momentum"
    else:
        module = nn.Sequential(*(Heads(320, 5) for _ in range(3)))
        inputs, optimizer = torch.randn(2 * scale, 112, 320), "adam"
    torch.random.set_rng_state(generator_state)
    return {
        "module": module, "example_inputs": (inputs,), "train": train, "optimizer": optimizer if train else None,
        "name": f"{name} {'train' if train else 'inference'}",
    }  # fmt: skip


def running_step(arguments: dict[str, Any], device: str) -> Callable[[], object]:
    """What really runs one step as :func:`~graphopt_gym.graphs.capture.capture` captures it: eager, with torch's own
    optimiser.

    Args:
        arguments: of ``capture``: ``module``, ``example_inputs``, and ``loss``, ``optimizer``, ``train``.
        device: ``"cpu"`` or ``"cuda"``; module and inputs are moved there.
    """
    import torch
    from torch.utils import _pytree as pytree

    module = arguments["module"].to(device)
    given = pytree.tree_map(
        lambda one: one.to(device) if isinstance(one, torch.Tensor) else one, arguments["example_inputs"]
    )
    given = (given,) if isinstance(given, torch.Tensor) else given
    loss, rule = arguments.get("loss"), arguments.get("optimizer", "adam")

    def forward() -> Any:
        return module(**given) if isinstance(given, dict) else module(*given)

    if not arguments.get("train", True):
        module.eval()

        def infer() -> object:
            with torch.no_grad():
                return forward()

        return infer

    module.train()
    parameters = [one for one in module.parameters() if one.requires_grad]
    optimizer: torch.optim.Optimizer | None = None
    if rule == "adam":
        optimizer = torch.optim.Adam(parameters)
    elif rule is not None:
        optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9 if rule == "momentum" else 0.0)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        result = forward()
        value = loss(result) if loss is not None else result
        first = next(t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor) and t.is_floating_point())
        (first if first.numel() == 1 else first.mean()).backward()
        if optimizer is not None:
            optimizer.step()

    return step


def measure_anchors(
    device: str, clock: Clock, done: Callable[[str], object] = str, quick: bool = False
) -> list[Anchor]:
    """The steps with their times; ``done`` is called with the name of each."""
    from graphopt_gym.graphs.capture import capture

    found = []
    for name in NAMES:
        for train in (False, True):
            arguments = anchor(name, train, 1 if device == "cpu" else 16)
            graph = capture(**arguments, target="cpu" if device == "cpu" else "gpu")
            seconds = measured_s(running_step(arguments, device), clock, SECONDS / (4 if quick else 1))
            found.append(Anchor(graph.name, graph, seconds))
            done(graph.name)
    return found


def fastest(rounds: Sequence[Sequence[Anchor]]) -> list[Anchor]:
    """Of steps that were measured in several rounds, apart in time, each with its least time: a machine that is shared
    is slow for minutes, and what disturbs it only ever adds.
    """
    return [min(of_one, key=lambda one: one.seconds) for of_one in zip(*rounds, strict=True)]


def fit_anchors(parts: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    """``in_model_products``, ``in_model_streams`` and ``launch_us`` from steps.

    Args:
        parts: float64 [steps, 4]: as :func:`~graphopt_gym.hardware.terms.keyed_parts` gives them.
        seconds: measured.
    """
    low, high = zip(*BOUNDS.values())
    amounts, fixed = _amounts(parts)
    return dict(zip(BOUNDS, solve_factors(amounts / seconds[:, None], 1 - fixed / seconds, low, high).tolist()))


def predict_anchors(parts: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """float64 [steps]: seconds of steps with these factors."""
    amounts, fixed = _amounts(parts)
    return np.asarray(amounts @ np.array([factors[name] for name in BOUNDS]) + fixed)


def _amounts(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what each factor multiplies, what none does)."""
    products, others, copies, kernels = parts.T
    return np.stack([products, copies, kernels * 1e-6], axis=1), others - copies
