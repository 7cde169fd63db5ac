"""Timing ONNX files against each other in onnxruntime on this machine's CPU.

Files take turns, by the process's own seconds where asked, so that what else runs here counts for none. Each is
loaded several times, since where a session's memory lies can change its time by some percent; a second copy of the
first file, timed like all others, says how much: its ratio to the first is the *spread*, below which no difference
means anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt_gym.envs.rewrite.measure import CLOCKS
from graphopt_gym.envs.rewrite.saturation.limits import check_limit
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.fields import choice

LEVELS = ("none", "basic", "extended", "all")  # of onnxruntime's own optimiser
LOADS = 5  # sessions of each file
LEAST_RUNS = 3  # of a session that count
WARM_UP = 2
TWIN = "original again"


@dataclass(frozen=True)
class FileTiming:
    """One file at one level.

    Attributes:
        seconds: of one inference: the median over loads of each load's median.
        ratio: the first file's seconds over this one's, the median over loads (pairs of loads that ran side by side).
        low, high: the least and the largest ratio of a pair of loads.
        runs: runs that count, over all loads.
    """

    level: str
    seconds: float
    ratio: float
    low: float
    high: float
    runs: int

    @property
    def saved_percent(self) -> float:
        return 100 * (1 - 1 / self.ratio)


def time_files(
    files: Mapping[str, Any],
    feeds: Mapping[str, Any],
    *,
    levels: Sequence[str] = ("all",),
    runs: int = 20,
    seconds: float = 30.0,
    threads: int = 1,
    clock: str = "cpu",
    loads: int | None = None,
    say: Callable[[str], object] = str,
) -> dict[tuple[str, str], FileTiming]:
    """(file, level) -> what it takes; the first file is what the others are compared with, at the same level.

    Args:
        files: name -> path, or the bytes of a model; the first is loaded a second time as :data:`TWIN`.
        feeds: a value for each input.
        levels: of onnxruntime's optimiser, of :data:`LEVELS`.
        runs: most runs of a session that count.
        seconds: most seconds over all runs of a level; each session makes at least :data:`LEAST_RUNS`.
        threads: of onnxruntime, inside operators.
        clock: ``cpu``, this process's seconds on the CPU, or ``wall``.
        say: called with a line before each level.

    Raises:
        InputError: onnxruntime is not installed, cannot run a file, an unknown level, or a limit below 1.
    """
    need("onnxruntime", what="timing ONNX files")
    check_limit("runs", runs, least=LEAST_RUNS)
    check_limit("seconds", seconds, whole=False)
    check_limit("threads", threads)
    loads = LOADS if loads is None else loads
    check_limit("loads", loads)
    now = CLOCKS[choice("clock", clock, CLOCKS)]
    names = list(files)
    given = {**files, TWIN: files[names[0]]}
    found: dict[tuple[str, str], FileTiming] = {}
    for level in levels:
        choice("level", level, LEVELS)
        say(f"onnxruntime, optimisation {level}")
        times: dict[str, list[float]] = {name: [] for name in given}
        count = 0
        for load in range(loads):
            sessions = {name: _session(one, level, threads) for name, one in given.items()}
            for session in sessions.values():
                for _ in range(WARM_UP):
                    session.run(None, dict(feeds))
            own: dict[str, list[float]] = {name: [] for name in given}
            until = time.perf_counter() + seconds / loads
            made = 0
            while made < runs and (made < LEAST_RUNS or time.perf_counter() < until):
                order = list(sessions) if (made + load) % 2 == 0 else list(sessions)[::-1]
                for name in order:
                    started = now()
                    sessions[name].run(None, dict(feeds))
                    own[name].append(now() - started)
                made += 1
            count += made
            for name, one in own.items():
                times[name].append(float(np.median(one)))
        base = np.array(times[names[0]])
        for name, each in times.items():
            ratios = base / np.array(each)
            found[name, level] = FileTiming(
                level, float(np.median(each)), float(np.median(ratios)), float(ratios.min()), float(ratios.max()), count
            )
    return found


def spread_of(timing: FileTiming) -> float:
    """How far a file and itself were apart at most, as a share: what a difference has to pass to mean anything."""
    return max(timing.high, 1 / timing.low) - 1


def verdict(timing: FileTiming, spread: float) -> str:
    """``faster`` or ``slower`` where the median ratio passes the spread, else ``the same``."""
    if timing.ratio > 1 + spread:
        return "faster"
    return "slower" if 1 / timing.ratio > 1 + spread else "the same"


def _session(model: Any, level: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, "ORT_DISABLE_ALL" if level == "none" else f"ORT_ENABLE_{level.upper()}"
    )
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own have no public base
        raise InputError(f"onnxruntime cannot load a file to be timed: {str(error).splitlines()[0]}") from None


def slimmed(path: str) -> bytes:
    """A file as the optimiser onnxslim leaves it.

    Raises:
        InputError: onnxslim is not installed, or fails.
    """
    need("onnxslim", what="comparing with onnxslim")
    import onnxslim

    try:
        model = onnxslim.slim(path)
    except Exception as error:  # of its own, without a public base
        raise InputError(f"onnxslim cannot slim {path!r}: {str(error).splitlines()[0]}") from None
    return bytes(model.SerializeToString())
