"""Zero-cost proxies: scores of untrained networks that go with accuracy to some degree. No accuracy is claimed.

On NAS-Bench-201 such scores, and plain parameter counts, order all cells well and the best tenth hardly (see
``docs/architecture.md``): they stand beside parameter counts wherever they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.errors import one_line, unknown_name
from graphopt_gym.extras import need

IMAGES = 16  # that naswot draws
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "softmax")


def naswot(architecture: Architecture, seed: int = 0) -> float:
    """log det of how alike a network's activation patterns are on random images, an image (Mellor et al., "Neural
    Architecture Search without Training", ICML 2021): the more it tells them apart, the higher. A pattern says which
    inputs of activations are above 0."""
    import torch

    module = architecture.to_module(seed=seed)
    patterns: list[torch.Tensor] = []

    def note(layer: torch.nn.Module, operands: tuple[torch.Tensor, ...]) -> None:
        patterns.append((operands[0] > 0).flatten(1))

    for layer in module.layers.values():
        if layer.op.kind in ACTIVATIONS:  # type: ignore[union-attr, operator]
            layer.register_forward_pre_hook(note)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        module(*[torch.randn(IMAGES, *shape, generator=generator) for shape in architecture.input_shapes])
    if not patterns:
        return -math.inf
    codes = torch.cat(patterns, 1).to(torch.float32)  # counts below 2**24 are exact
    alike = (codes @ codes.T + (1 - codes) @ (1 - codes).T).numpy().astype(np.float64)
    sign, found = np.linalg.slogdet(alike)
    return float(found) / IMAGES if sign > 0 else -math.inf


def synflow(architecture: Architecture, seed: int = 0) -> float:
    """log of the sum of |weight x gradient| where all weights are made positive, the image is ones and norms are left
    out (Tanaka et al., NeurIPS 2020, as a score: Abdelfattah et al., ICLR 2021). In float64."""
    import torch

    from graphopt_gym.envs.architecture.torch_module import RUN, initialise

    generator = torch.Generator().manual_seed(seed)
    results: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for index, op in enumerate(architecture.ops):  # without modules, of which making one takes as long as all this
        operands = [results[source] for source in op.inputs]
        if op.kind == "input":
            results.append(torch.ones(1, *op.shape, dtype=torch.float64))
            continue
        tensors = {name: torch.empty(shape) for name, shape in architecture.trainable(index).items()}
        layer = SimpleNamespace(op=op, training=False, weight=tensors.get("weight"), bias=tensors.get("bias"))
        initialise(layer, generator)
        for name, tensor in tensors.items():
            positive = tensor.double().abs_().requires_grad_()
            setattr(layer, name, positive)
            weights.append(positive)
        results.append(operands[0] if "norm" in op.kind else RUN[op.kind](layer, operands, *op.params))
    results[-1].sum().backward()
    total = sum(float((weight.detach() * weight.grad).abs().sum()) for weight in weights if weight.grad is not None)
    return math.log(total) if 0 < total < math.inf else -math.inf


PROXIES: dict[str, Callable[[Architecture, int], float]] = {"naswot": naswot, "synflow": synflow}


def proxy_score(name: str, architecture: Architecture, seed: int = 0) -> tuple[float, str]:
    """(score, why there is none or ""): higher is taken for better; ``-inf`` where there is none.

    Raises:
        InputError: an unknown proxy, or torch is not installed.
    """
    if name not in PROXIES:
        raise unknown_name("proxy", name, PROXIES)
    need("torch", what=f"proxy {name!r}")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        score = PROXIES[name](architecture, seed)
    except Exception as error:  # whatever torch raises
        return -math.inf, f"proxy {name!r} fails: {type(error).__name__}: {one_line(error)}"
    finally:
        torch.set_num_threads(threads)
    return (score, "") if math.isfinite(score) else (-math.inf, f"proxy {name!r} tells nothing of this network")
