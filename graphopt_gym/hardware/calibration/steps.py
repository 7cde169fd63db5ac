"""A device from measured step times: the few factors that they can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.hardware.calibration.device import rounded
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.cost_model import CostModel, load_cost_model
from graphopt_gym.units import format_seconds

FACTORS = ("in_model_products", "launch_us", "in_model_streams")
BOUNDS = {"in_model_products": (0.05, 50.0), "launch_us": (0.0, 1e5), "in_model_streams": (0.05, 50.0)}
WHAT = {
    "in_model_products": "how many times as long products and convolutions take",
    "launch_us": "microseconds that a kernel costs beside its work",
    "in_model_streams": "how many times as long all other kernels take",
}
LEAST_SHARE = 0.02  # of a step's time that must hang on a factor for it to be fitted


class Step(NamedTuple):
    """A measured step."""

    name: str
    graph: ComputationGraph
    seconds: float


def with_factors(device: Device, factors: Mapping[str, float], model: CostModel) -> Device:
    """The device with factors in place of those that it has; ``launch_us`` for the way a step is run of ``model``."""
    fitted: dict[str, Any] = dict(device.fitted)
    for name, value in factors.items():
        fitted[name] = value if name != "launch_us" else {**fitted.get("launch_us", {}), model.launch: value}
    return replace(device, fitted=fitted)


def factors_of(device: Device, model: CostModel) -> dict[str, float]:
    """What a device's factors are now."""
    return {
        "in_model_products": float(device.fitted.get("in_model_products", 1.0)),
        "launch_us": model.launch_s(device) * 1e6,
        "in_model_streams": float(device.fitted.get("in_model_streams", 1.0)),
    }


def fit_steps(
    device: Device, steps: Sequence[Step], model: CostModel | None = None
) -> tuple[Device, dict[str, float], list[dict[str, Any]]]:
    """(the device with the factors fitted, those factors, a row for each step: measured, before and after).

    As many factors as there are steps, at most three: first the one that most of a step's time hangs on, then those of
    :data:`FACTORS` in that order. A factor on which less than :data:`LEAST_SHARE` hangs, or that the steps cannot tell
    from those before it, is left as it is.
    With as many steps as factors the step times come out exactly, where the factors' bounds allow it; with more, as
    close as can be in relative terms.

    Raises:
        InputError: no factor that is possible gives a step its time.
    """
    from scipy.optimize import least_squares

    model = model or load_cost_model()
    if not steps:
        raise InputError("steps: none given; give at least one, e.g. --step bert_base=0.182")
    start = factors_of(device, model)
    measured = np.array([one.seconds for one in steps])

    def predicted(factors: Mapping[str, float]) -> np.ndarray:
        one = with_factors(device, factors, model)
        return np.array([float(model.op_times(step.graph, one).sum()) for step in steps])

    before = predicted({})
    # what hangs on each: the relative change of the steps where the factor doubles (a launch of 0: a microsecond more)
    slopes = {}
    for name in FACTORS:
        more = max(2 * start[name], start[name] + 1.0) if name == "launch_us" else 2 * start[name]
        slopes[name] = (predicted({name: more}) - before) / before
    chosen: list[str] = []
    most = max(FACTORS, key=lambda name: float(np.abs(slopes[name]).max()))
    for name in (most, *(name for name in FACTORS if name != most)):
        tried = np.array([slopes[other] for other in (*chosen, name)])
        tells = np.linalg.matrix_rank(tried / np.linalg.norm(tried, axis=1, keepdims=True).clip(1e-30), tol=0.05)
        if len(chosen) < len(steps) and np.abs(slopes[name]).max() >= LEAST_SHARE and tells == len(tried):
            chosen.append(name)
    if not chosen:
        raise InputError(f"steps: nothing that can be fitted changes {', '.join(one.name for one in steps)}")
    low, high = np.array([BOUNDS[name] for name in chosen]).T

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(predicted(dict(zip(chosen, x))) / measured - 1)

    x0 = np.array([start[name] for name in chosen]).clip(low + 1e-9, high - 1e-9)
    best = min(
        (
            least_squares(residuals, x0 * scale, bounds=(low, high), x_scale=np.maximum(x0, 1e-2), xtol=1e-14,
                          ftol=1e-14, gtol=1e-14, diff_step=1e-4)
            for scale in (1.0, 0.5)
        ),
        key=lambda result: result.cost,
    )  # fmt: skip
    factors = dict(zip(chosen, map(float, best.x)))
    fitted = with_factors(device, rounded(factors), model)
    after = np.array([float(model.op_times(step.graph, fitted).sum()) for step in steps])
    if len(steps) == len(chosen) == 1 and abs(after[0] / measured[0] - 1) > 0.01:
        lowest, highest = (predicted({chosen[0]: bound})[0] for bound in BOUNDS[chosen[0]])
        raise InputError(
            f"step {steps[0].name}={measured[0]:.4g}: {chosen[0]} gives {format_seconds(lowest)} to "
            f"{format_seconds(highest)} on {device.name}; is it the right device, and the time in seconds?"
        )
    rows = [
        {"step": one.name, "measured_s": one.seconds, "before_s": float(b), "fitted_s": float(a),
         "error": float(a / one.seconds - 1)}
        for one, b, a in zip(steps, before, after)
    ]  # fmt: skip
    return fitted, {name: rounded(value) for name, value in factors.items()}, rows
