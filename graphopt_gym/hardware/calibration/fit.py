"""Fits the prices of terms to timed kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt_gym.hardware.calibration.kernels import OPS
from graphopt_gym.hardware.calibration.table import Timed
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.terms import TERMS, Work, family_of

NOISE = 0.1  # relative residuals beyond this count less and less
NOISE_OF_CLASS = 0.5  # of the fit that stands in for operators that were not timed
FEWEST = 3  # kernels of a key
FOLDS = 5
FEWEST_TO_TELL, MOST_TO_TELL = 40, 240  # rows of an operator that are tried in another order
EXCHANGED = 0.67  # columns are taken to be exchanged where the error of a fit with them exchanged is below this share
SURELY = 0.05  # … and the fit as given is off by at least this much in the median
Table = dict[str, dict[str, dict[str, float]]]  # dtype -> key -> term -> seconds a unit


def features(works: Sequence[Work], family: str) -> np.ndarray:
    """float64 [kernels, terms of the family]."""
    return np.array([[float(np.asarray(work[term])) for term in TERMS[family]] for work in works]).reshape(
        len(works), len(TERMS[family])
    )


def fit_prices(amounts: np.ndarray, seconds: np.ndarray, noise: float = NOISE) -> np.ndarray:
    """float64 [terms]: prices that are not negative, by robust least squares on relative errors.

    Non-negative least squares (Lawson and Hanson 1974), weighted anew by the residuals of the last round, as a loss
    that is quadratic up to ``noise`` and grows with the square root beyond.
    """
    from scipy.optimize import nnls

    weight = 1 / seconds
    scale = np.maximum(amounts.max(axis=0, initial=0.0), 1e-300)  # bytes and calls are many orders apart
    prices = np.zeros(amounts.shape[1])
    for _ in range(20):
        prices, _ = nnls(amounts / scale * weight[:, None], seconds * weight, maxiter=100 * amounts.shape[1])
        residual = amounts @ (prices / scale) / seconds - 1
        weight = 1 / seconds / (1 + (residual / noise) ** 2) ** 0.375
    return prices / scale


def fit_terms(rows: Sequence[Timed]) -> tuple[Table, list[dict[str, Any]]]:
    """(prices by dtype and key, a row of errors a key).

    A key with fewer than :data:`FEWEST` kernels gets none. Where no kernel of a key is large enough to show what fresh
    memory costs, it takes the price of ``fill``. ``median_error`` is cross-validated: each kernel predicted
    from a fit without its fifth of the key's kernels.
    """
    tables: Table = {}
    report = []
    for dtype in dict.fromkeys(one.kernel.dtype for one in rows):
        of_dtype = [one for one in rows if one.kernel.dtype == dtype]
        keys: dict[str, list[Timed]] = {}
        for one in of_dtype:
            keys.setdefault(one.kernel.op, []).append(one)
            if OPS[one.kernel.op].family != "attention":
                keys.setdefault(f"class:{OPS[one.kernel.op].op_class}", []).append(one)
        table = tables.setdefault(dtype, {})
        without: list[str] = []  # keys of which no kernel had a result from fresh memory
        for key, members in keys.items():
            if len(members) < FEWEST:
                continue
            family = family_of(key)
            amounts = features([one.kernel.work for one in members], family)
            seconds = np.array([one.seconds for one in members])
            noise = NOISE_OF_CLASS if key.startswith("class:") else NOISE
            prices = fit_prices(amounts, seconds, noise)
            table[key] = {term: float(price) for term, price in zip(TERMS[family], prices) if price > 0}
            if not amounts[:, TERMS[family].index("fresh_byte")].any():
                without.append(key)
            if not key.startswith("class:"):
                errors = np.abs(validated(amounts, seconds) / seconds - 1)
                report.append(
                    {
                        "dtype": dtype, "op": key, "kernels": len(members), "median_error": float(np.median(errors)),
                        "p90_error": float(np.percentile(errors, 90)),
                    }
                )  # fmt: skip
        fresh = table.get("fill", {}).get("fresh_byte", 0.0)
        for key in without if fresh else ():
            table[key]["fresh_byte"] = fresh
    return tables, report


def validated(amounts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """float64 [kernels]: the seconds predicted for each from a fit to the others."""
    fold = np.random.default_rng(0).permutation(len(seconds)) % FOLDS
    predicted = np.empty(len(seconds))
    for one in np.unique(fold):
        out = fold == one
        predicted[out] = amounts[out] @ fit_prices(amounts[~out], seconds[~out]) if (~out).any() else seconds[out]
    return predicted


def exchanged(rows: Sequence[Timed], device: Device | None = None) -> list[str]:
    """Warnings where columns of a product's shape fit far better in another order, a line each.

    No single row shows that m, n and k are exchanged: FLOPs and bytes stay what they are. Many rows may: with the right
    columns a fit is closer. So a part of an operator's rows is fitted with each of the three columns as the one that is
    summed over, the rest is predicted, and an order is named whose median error is below :data:`EXCHANGED` of that of
    the columns as given (itself at least :data:`SURELY`). The formula is the cost model's for a GPU, else FLOPs, bytes
    read and bytes written. Kernels that do not show the difference give no warning.
    """
    warnings = []
    groups: dict[tuple[str, str], list[Timed]] = {}
    for one in rows:
        op = one.kernel.op.split(":")[0]
        if OPS[one.kernel.op].family == "product" and one.kernel.dtype == "float32":
            groups.setdefault((op, one.kernel.dtype), []).append(one)
    for (op, dtype), members in groups.items():
        if len(members) < FEWEST_TO_TELL:
            continue
        members = [members[at] for at in np.random.default_rng(0).permutation(len(members))[:MOST_TO_TELL]]
        error = {order: _order_error(members, order, device) for order in ("mnk", "mkn", "nkm")}
        best = min(error, key=lambda order: error[order])
        if error["mnk"] > SURELY and error[best] < EXCHANGED * error["mnk"]:
            warnings.append(
                f"{op} ({dtype}): the columns m, n, k fit better as {', '.join(best)} (median error "
                f"{100 * error[best]:.0f} % against {100 * error['mnk']:.0f} % as given); a product is [batch, m, k] x "
                "[batch, k, n], its result m x n: are columns exchanged?"
            )
    return warnings


def _order_error(rows: Sequence[Timed], order: str, device: Device | None) -> float:
    """Median relative error of the last third of the rows, predicted from the others, with columns in an order."""
    given = {name: np.array([float(one.kernel.shape[name]) for one in rows]) for name in ("batch", "m", "n", "k")}
    batch, m, n, k = given["batch"], *(given[column] for column in order)
    seconds = np.array([one.seconds for one in rows])
    train = np.arange(len(rows)) < len(rows) * 2 // 3
    if device is not None and device.kind == "gpu":
        from graphopt_gym.hardware.fitting import fit_gemm
        from graphopt_gym.hardware.measured import isolated_seconds
        from graphopt_gym.hardware.roofline import gemm_seconds

        table = {"batch": batch, "m": m, "n": n, "k": k, "latency_s": seconds, "order": np.zeros(len(rows))}
        linear = rows[0].kernel.op.startswith("linear")
        p, loop = fit_gemm(device, {name: column[train] for name, column in table.items()}, linear=linear, quick=True)
        bandwidth = device.memory_bytes_per_s
        work = gemm_seconds(p, max(device.compute_units, 1), device.peak("float32"), bandwidth, batch, m, n, k)
        work = np.maximum(work, 4 * batch * (m * k + k * n + m * n) / (bandwidth * p["bytes"]))
        predicted = isolated_seconds(loop, work, table["order"])
    else:
        flops, read, written = 2 * batch * m * n * k, 4 * batch * (m * k + k * n), 4 * batch * m * n
        amounts = np.stack([np.ones(len(rows)), flops, read, written], axis=1)
        predicted = amounts @ fit_prices(amounts[train], seconds[train])
    return float(np.median(np.abs(predicted / seconds - 1)[~train]))


def solve_factors(amounts: np.ndarray, target: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """float64 [factors]: ``amounts [steps, factors] @ factors`` as close to the target as can be, each factor between
    its bounds."""
    from scipy.optimize import lsq_linear

    return np.asarray(lsq_linear(amounts, target, (low, high), tol=1e-12).x)
