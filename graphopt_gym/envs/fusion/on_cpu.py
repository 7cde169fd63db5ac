"""What fusing really saves on this processor, beside what the cost model says: eager PyTorch, its compiler, loops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt_gym.benchmarks.timing import least_ms
from graphopt_gym.compiled import kernel
from graphopt_gym.data import data_path
from graphopt_gym.envs.fusion.methods import greedy, none
from graphopt_gym.envs.fusion.problem import FusionProblem

SHAPES = ((64, 256), (1024, 1024), (4096, 4096))


def cpu_fusion_report(shapes: Sequence[tuple[int, int]] = SHAPES, say: Callable[[str], object] = str) -> dict[str, Any]:
    """Milliseconds of one thread: ops one by one, fused by ``torch.compile``'s C++ backend, and as one Numba loop where
    there is one; and the same two by the cost model, on the processor of ``envs_data/calibration``.

    Raises:
        ImportError: no PyTorch.
    """
    import torch

    from graphopt_gym.graphs.capture import capture

    device = data_path("calibration") / "my_cpu.toml"
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
            for name, (module, inputs_of, loop) in _programs(torch).items():
                for shape in shapes:
                    say(f"{name} of {shape[0]} x {shape[1]}")
                    inputs = inputs_of(*shape)
                    problem = FusionProblem(
                        capture(module, inputs, optimizer=None, train=False, target="cpu"), device, placement="single"
                    )
                    alone, fused = problem.costs(np.stack([none(problem), greedy(problem)]))[0].tolist()
                    torch._dynamo.reset()
                    compiled: Any = torch.compile(module, dynamic=False)
                    eager_ms, compiled_ms = least_ms(partial(module, *inputs)), least_ms(partial(compiled, *inputs))
                    arrays = [one.numpy() for one in inputs]
                    loop_ms = least_ms(partial(loop, *arrays)) if loop else None
                    rows.append(
                        {
                            "program": name,
                            "shape": "x".join(map(str, shape)),
                            "eager_ms": eager_ms,
                            "simulated_ms": 1e3 * alone,
                            "compiled_ms": compiled_ms,
                            "loop_ms": loop_ms,
                            "fused_simulated_ms": 1e3 * fused,
                            "speedup": eager_ms / min(compiled_ms, loop_ms or compiled_ms),
                            "simulated_speedup": alone / fused,
                        }
                    )
    finally:
        torch.set_num_threads(threads)
    return {
        "title": "Fusion on this processor, one thread", "columns": list(rows[0]), "rows": rows,
        "notes": [
            "speedup: eager to the faster of compiled and loop; simulated: by envs_data/calibration, which another "
            "processor may differ from; a compiler also vectorises what eager kernels do not, which no model of "
            "launches and bytes knows",
        ],
    }  # fmt: skip


@kernel(allocates=True)
def _affine_loop(x, y):
    out = np.empty_like(x)
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            out[row, column] = max(x[row, column] * np.float32(1.5) + y[row, column], np.float32(0)) * np.float32(0.5)
    return out


def _programs(torch: Any) -> dict[str, tuple[Any, Callable[[int, int], tuple[Any, ...]], Any]]:
    """Of each: a module, its inputs of so many rows and columns, and the same as one loop, where there is one."""
    functional, nn = torch.nn.functional, torch.nn

    def module(function: Callable[..., Any], **parts: Any) -> Any:
        made = nn.Module()
        for name, part in parts.items():
            setattr(made, name, part)
        made.forward = (lambda *inputs: function(made, *inputs)) if parts else function
        return made

    def drawn(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    def two(rows: int, columns: int) -> tuple[Any, ...]:
        return drawn((rows, columns), (rows, columns))

    return {
        "affine, relu": (module(lambda x, y: torch.relu(x * 1.5 + y) * 0.5), two, _affine_loop),
        "gelu of a sum, residual": (module(lambda x, y: functional.gelu(x + y) + x), two, None),
        "LSTM's gates": (
            module(lambda i, f, g, c: torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c),
            lambda rows, columns: drawn(*[(rows, columns)] * 4),
            None,
        ),
        "scaled, masked softmax": (module(lambda x, y: torch.softmax(x * 0.125 + y, -1)), two, None),
        "residual, layer norm": (
            module(lambda x, y: functional.layer_norm(x + y, x.shape[-1:])), two, None,
        ),
        "root mean square norm": (
            module(lambda x, y: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * y), two, None,
        ),
        "product, bias, relu": (
            module(lambda x, y: torch.relu(x @ y + 1.0)),
            lambda rows, columns: drawn((rows, columns), (columns, 256)),
            None,
        ),
    }  # fmt: skip
