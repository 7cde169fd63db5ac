"""Measuring a rewritten program beside the original for real: both run on this machine's CPU, by torch.

Costs of the problem are simulated for its device, say a T4; what is measured here is this machine's CPU, under torch's
kernels, one operator after the other. So the two gains need not agree; :func:`correlation` says how far they do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt_gym.envs.rewrite.saturation.limits import check_limit
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.fields import choice
from graphopt_gym.graphs.tensor_program import TensorProgram, random_values
from graphopt_gym.graphs.tensor_program.execute import DTYPES, compile_torch

# largest difference of outputs, to the largest output: room for rounding through hundreds of operators
TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
KEPT_BYTES = 31 << 20  # just below glibc's largest dynamic threshold
WARM_UP = 2  # runs of each program that do not count
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Timing:
    """Seconds of one inference: the median, and the quartiles around it."""

    median_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class Measured:
    """Two programs, run in turns on this machine's CPU.

    Attributes:
        runs: how often each ran.
        speedup: the original's median over the rewritten program's.
        low, high: a 95 % interval of the speed-up, by bootstrap over the pairs of neighbouring runs; another process,
            with its memory laid out differently, may be a few percent off.
        difference: largest difference of outputs, to the largest output.
        same_outputs: whether it is within :data:`TOLERANCE` of the dtype.
        threads: threads of torch.
    """

    original: Timing
    rewritten: Timing
    runs: int
    speedup: float
    low: float
    high: float
    difference: float
    same_outputs: bool
    threads: int
    dtype: str
    clock: str

    @property
    def saved_percent(self) -> float:
        """How much less time the rewritten program takes, in percent of the original's."""
        return 100 * (1 - 1 / self.speedup)


def measure(
    original: TensorProgram,
    rewritten: TensorProgram,
    *,
    runs: int = 50,
    seconds: float = 30.0,
    threads: int = 1,
    dtype: str = "float32",
    clock: str = "wall",
) -> Measured:
    """Run two programs in turns on this machine's CPU, and compare their times and outputs.

    Both get the same random weights and inputs. What depends on weights alone is computed beforehand, as before
    inference. They take turns (A B, B A, A B, …), so that what slows the machine for a while slows both.

    Args:
        original: what the other is compared with; both have the same leaves and shapes of outputs.
        rewritten: a program that computes the same.
        runs: most runs of each.
        seconds: most seconds of runs that count; at least 3 pairs are made all the same.
        threads: threads that torch may use.
        dtype: ``float32`` or ``float64``.
        clock: ``wall``; or ``cpu``, this process's seconds on the CPU over all threads, for a machine that is busy with
            other things: waiting for a turn does not count.

    Raises:
        InputError: torch is not installed, a limit below 1, an unknown dtype or clock, or programs with other leaves
            or outputs.
    """
    check_limit("runs", runs, least=3)
    check_limit("seconds", seconds, whole=False)
    check_limit("threads", threads)
    choice("dtype", dtype, DTYPES)
    choice("clock", clock, CLOCKS)
    now = CLOCKS[clock]
    need("torch", what="measuring")
    import torch

    values = random_values(original, seed=0, dtype=dtype)
    foreign = next((one for one in original.nodes.values() if one.op == "opaque"), None)
    if foreign is not None:
        raise InputError(
            f"program {original.name!r} has operators that torch does not run, such as {foreign.params[0]} "
            f"({foreign.params[1]!r}); export it, and time both files in onnxruntime"
        )
    _check_alike(original, rewritten)
    calls, inputs = [], []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    # freed once, a large block lets glibc keep what each run frees for the next, as inference engines do; without it
    # the page faults of small programs count, unless a large program ran before in this process
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            for program in (original, rewritten):
                calls.append(compile_torch(program, values, dtype=dtype))
                inputs.append([torch.tensor(values[name]) for name in program.leaves("input")])
            outputs = [[one.numpy() for one in call(given)] for call, given in zip(calls, inputs, strict=True)]
            for _ in range(WARM_UP - 1):
                for call, given in zip(calls, inputs, strict=True):
                    call(given)
            times: list[tuple[float, float]] = []
            until = time.perf_counter() + seconds
            while len(times) < runs and (len(times) < 3 or time.perf_counter() < until):
                pair = [0.0, 0.0]
                for which in (0, 1) if len(times) % 2 == 0 else (1, 0):
                    started = now()
                    calls[which](inputs[which])
                    pair[which] = now() - started
                times.append((pair[0], pair[1]))
    finally:
        torch.set_num_threads(before)
    pairs = np.array(times)
    speedup, low, high = speedup_of(pairs)
    difference = _difference(*outputs)
    return Measured(
        _timing(pairs[:, 0]),
        _timing(pairs[:, 1]),
        len(pairs),
        speedup,
        low,
        high,
        difference,
        difference <= TOLERANCE[dtype],
        threads,
        dtype,
        clock,
    )


def speedup_of(pairs: np.ndarray) -> tuple[float, float, float]:
    """The ratio of the medians of the columns of [R, 2] seconds, and its 95 % interval by bootstrap over the rows."""
    rng = np.random.default_rng(0)
    medians = np.median(pairs[rng.integers(0, len(pairs), (RESAMPLES, len(pairs)))], axis=1)
    edges = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [edges, 100 - edges])
    middle = np.median(pairs, axis=0)
    return float(middle[0] / middle[1]), float(low), float(high)


def correlation(simulated: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two gains over programs; None below five programs, or where one is constant."""
    from scipy.stats import spearmanr

    if len(simulated) < 5 or len(set(simulated)) == 1 or len(set(measured)) == 1:
        return None
    return float(spearmanr(simulated, measured).statistic)


def _check_alike(original: TensorProgram, rewritten: TensorProgram) -> None:
    for op in ("input", "weight"):
        known = original.leaves(op)
        for name, shape in rewritten.leaves(op).items():
            if known.get(name) != shape:
                had = f"has {known[name]}" if name in known else "has none of that name"
                raise InputError(f"{op} {name!r} of the rewritten program has shape {shape}; the original {had}")
    shapes = [[one.shape(output) for output in one.outputs] for one in (original, rewritten)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the rewritten program's outputs have shapes {shapes[1]}, the original's {shapes[0]}")


def _difference(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Largest over the outputs; infinite where one holds a NaN."""
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        largest = float(np.abs(one).max(initial=0.0))
        apart = float(np.abs(one - other).max(initial=0.0))
        relative = apart / largest if largest else math.inf if apart else 0.0
        worst = max(worst, math.inf if math.isnan(relative) else relative)
    return worst


def _timing(seconds: np.ndarray) -> Timing:
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return Timing(float(middle), float(low), float(high))
