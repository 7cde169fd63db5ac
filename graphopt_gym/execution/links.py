"""The links between workers: measured, and written with a device as a cluster for the simulator."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.execution.session import MAX_WORKERS, Workers
from graphopt_gym.fields import whole
from graphopt_gym.files import read_text, write_text

SIZES = tuple(2**power for power in range(4, 26, 3))  # 16 B to 16 MiB
ROUNDS = 200  # of the smallest; a quarter of a second's worth of the larger ones, 8 at least
WARM_UP = 3
LINK = "between_workers"


@dataclass(frozen=True)
class LinkFit:
    """How long a tensor takes from one worker to another: ``latency_s + bytes / bytes_per_s``.

    Attributes:
        rows: (bytes, seconds) that were measured: half the median of the rounds there and back.
        error: mean distance of the fit from them, as a share.
        transport: see :class:`Workers`.
    """

    latency_s: float
    bytes_per_s: float
    rows: tuple[tuple[int, float], ...]
    error: float
    transport: str


def fit_link(rows: list[tuple[int, float]], transport: str = "") -> LinkFit:
    """Latency and bandwidth, at least 0, that give the measured seconds best: least squares of relative errors."""
    from scipy.optimize import nnls

    size, seconds = np.array(rows, float).T
    (latency, per_byte), _ = nnls(np.stack([1 / seconds, size / seconds], axis=1), np.ones(len(rows)))
    error = float(np.abs((latency + per_byte * size) / seconds - 1).mean())
    return LinkFit(float(latency), 1 / max(per_byte, 1e-15), tuple(rows), error, transport)


def measure_link(workers: Workers, say: Callable[[str], object] = str) -> LinkFit:
    """Send tensors of several sizes between the first two workers, there and back, while nothing else runs there.

    A tensor goes as in a step: a thread copies it, and the other end finds out between two ops.

    Raises:
        InputError: fewer than two workers; what :class:`Workers` raises.
    """
    if workers.count < 2:
        raise InputError("a link is between two workers; give at least 2")
    rows = []
    for size in SIZES:
        say(f"link between workers: {size:,} bytes")
        first = workers.bounce(size, WARM_UP + 2)[WARM_UP:]
        rounds = int(np.clip(0.25 / float(np.median(first)), 8, ROUNDS))
        rows.append((size, float(np.median(workers.bounce(size, rounds)[1:])) / 2))
    return fit_link(rows, workers.transport)


def write_cluster(
    path: str | os.PathLike[str],
    device: str | os.PathLike[str],
    workers: int = 2,
    *,
    devices: str = "auto",
    transport: str = "auto",
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Measure the link between workers of this machine, and write a cluster of so many of a device with that link.

    Args:
        path: of the cluster's file (TOML).
        device: a name of the catalog, or a device's file, as ``graphopt calibrate`` writes it, which is copied in.
        workers, devices, transport: see :class:`Workers`.

    Returns:
        ``{"file", "device", "workers", "transport", "latency_s", "link_bytes_per_s", "fit_error", "rows"}``.

    Raises:
        InputError: no such device, fewer than two workers, a path that cannot be written; what :class:`Workers` raises.
    """
    from graphopt_gym.hardware.cluster import DEVICES, load_cluster

    whole("workers", workers, 2, MAX_WORKERS)
    known, source = DEVICES.load(device), DEVICES.path(device)
    with Workers(workers, devices=devices, transport=transport) as running:
        fit = measure_link(running, say)
        kind = running.kind
    text = cluster_text(known.name, fit, workers, kind, read_text(source) if source else "")
    written = write_text(path, text)
    load_cluster(written)  # what cannot be read here must not be left to be found out later
    return {
        "file": str(written),
        "device": known.name,
        "workers": workers,
        "transport": fit.transport,
        "latency_s": fit.latency_s,
        "link_bytes_per_s": fit.bytes_per_s,
        "fit_error": fit.error,
        "rows": [list(row) for row in fit.rows],
    }


def cluster_text(device: str, fit: LinkFit, workers: int, kind: str, device_file: str = "") -> str:
    """A cluster's file. ``device_file``: the content of the device's own, where it is not in the catalog."""
    how = f"measured between two workers of this machine ({kind}, {fit.transport}) by graphopt execute"
    lines = [
        f'about = "{workers} workers of one machine, tensors by {fit.transport}"',
        "",
        "[[hosts]]",
        f'device = "{device}"',
        f"count = {workers}",
        f'interconnect = "{LINK}"',
        "",
        f"[links.{LINK}]",
        f"latency_us = {fit.latency_s * 1e6:.4g}",
        f"gb_per_s = {fit.bytes_per_s / 1e9:.4g}",
        'shared_by = "pair"',
        f"[links.{LINK}.sources]",
        f'latency_us = "{how}"',
        f'gb_per_s = "{how}"',
    ]
    if device_file:
        lines += ["", re.sub(r"(?m)^(\s*\[\[?)(?=[^\[])", r"\1devices.", device_file).rstrip()]
    return "\n".join(lines) + "\n"
