"""A device file from timed kernels: what this machine is, what the kernels fit to, TOML that the catalog reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.hardware.calibration.fit import Table
from graphopt_gym.hardware.calibration.kernels import OPS
from graphopt_gym.hardware.calibration.table import Timed
from graphopt_gym.hardware.cluster import Device

if TYPE_CHECKING:
    from graphopt_gym.hardware.calibration.anchors import Anchor

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
STREAMS = ("add", "mul", "sub", "clone", "copy", "relu", "neg", "threshold_backward")  # a kernel that only moves bytes


def check_name(name: str) -> str:
    """A device's name, which is the name of its file too.

    Raises:
        InputError: other signs than letters, digits, ``_``, ``-`` and ``.``.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"name is {quoted(name)}; give letters, digits, '_', '-' and '.'")
    return name


def own_folder() -> Path:
    """Where the catalog looks for the user's devices: in the first folder of ``GRAPHOPT_HOME``, or ``~/.graphopt``."""
    from graphopt_gym.catalog import HOME

    homes = [home for home in os.environ.get(HOME, "").split(os.pathsep) if home]
    return Path(os.path.expanduser(homes[0] if homes else os.path.join("~", ".graphopt"))) / "devices"


def this_processor(name: str, threads: int, rows: Sequence[Timed]) -> Device:
    """The processor of this machine: memory and caches as the system tells, peaks and bandwidth as measured.

    The peak of a type is the best rate of a matrix product, the bandwidth that of the kernels that only move bytes
    between tensors that together are larger than the last cache.
    """
    cache_bytes = last_cache_bytes()
    return Device(
        name=name,
        kind="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_bytes_per_s=best_bandwidth(rows, cache_bytes),
        peak_flops=best_rates(rows),
        compute_units=threads,
        cache_bytes=cache_bytes,
        sources={
            "memory_gib": "the system's physical memory",
            "memory_gb_per_s": "measured: the best kernel that only moves bytes, on tensors larger than the last cache",
            "peak_tflops": "measured: the best rate of a matrix product",
            "compute_units": "the threads that were used",
            "cache_mib": "the system's last level of cache",
        },
    )


def this_gpu(name: str, device: str, rows: Sequence[Timed]) -> Device:
    """The GPU of this machine as CUDA tells; peaks and bandwidth as measured."""
    import torch

    facts = torch.cuda.get_device_properties(device)
    return Device(
        name=name,
        kind="gpu",
        memory_bytes=int(facts.total_memory),
        memory_bytes_per_s=best_bandwidth(rows, facts.L2_cache_size),
        peak_flops=best_rates(rows),
        compute_units=int(facts.multi_processor_count),
        cache_bytes=int(facts.L2_cache_size),
        sources={
            "memory_gib": f"CUDA's properties of {facts.name}",
            "memory_gb_per_s": "measured: the best kernel that only moves bytes, on tensors larger than the last cache",
            "peak_tflops": "measured: the best rate of a matrix product",
            "compute_units": "CUDA's properties: multiprocessors",
            "cache_mib": "CUDA's properties: L2 cache",
        },
    )


def last_cache_bytes() -> int:
    """Of the processor of this machine, 0 where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        sizes.append(int(number) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(unit, 1))
    return max(sizes)


def best_rates(rows: Sequence[Timed]) -> dict[str, float]:
    """FLOP/s of the fastest product by type."""
    rates: dict[str, float] = {}
    for one in rows:
        if OPS[one.kernel.op].family == "product":
            rate = float(one.kernel.work["flop"]) / one.seconds
            rates[one.kernel.dtype] = max(rates.get(one.kernel.dtype, 0.0), rate)
    if "float32" not in rates:
        raise InputError(
            "kernel times: no matrix product in float32, whose best rate is the device's peak; time some (mm), or name "
            "a device of the catalog that has the datasheet's peaks"
        )
    return rates


def best_bandwidth(rows: Sequence[Timed], cache_bytes: int) -> float:
    """Bytes a second of the fastest kernel that only moves bytes, among those of tensors larger than the last cache."""
    moved = [(float(one.kernel.work["byte"]), one.seconds) for one in rows if one.kernel.op in STREAMS]
    if not moved:
        raise InputError(
            "kernel times: none of add, copy, relu, whose rate on large tensors is the memory's bandwidth; time some, "
            "or name a device of the catalog that has the datasheet's"
        )
    large = [one for one in moved if one[0] > max(cache_bytes, 2**22)]
    large = large or sorted(moved)[-max(len(moved) // 8, 1) :]
    return max(size / seconds for size, seconds in large)


def fit_device(
    base: Device,
    tables: Table,
    anchors: Sequence[Anchor] = (),
    rows: Sequence[Timed] = (),
    launches: Mapping[str, float] | None = None,
) -> tuple[Device, list[dict[str, Any]]]:
    """(the device with its fitted parameters, a row for each anchor: measured and fitted seconds)."""
    from dataclasses import replace

    from graphopt_gym.hardware.calibration.anchors import fit_anchors, predict_anchors
    from graphopt_gym.hardware.terms import keyed_parts

    if base.kind == "gpu":
        from graphopt_gym.hardware.calibration.gpu import fit_gpu

        fitted = fit_gpu(base, rows, tables)
    else:
        fitted = {"terms": tables}
    fitted |= {"in_model_products": 1.0, "in_model_streams": 1.0}
    if base.kind == "gpu":
        made = replace(base, fitted=rounded(fitted | ({"launch_us": dict(launches)} if launches else {})))
        if not anchors:
            return made, []
        from graphopt_gym.hardware.calibration.steps import Step, fit_steps

        made, _, report = fit_steps(made, [Step(*one) for one in anchors])
        return made, report
    fitted["launch_us"] = {"eager": 0.0, "back_to_back": 0.0, "graph": 0.0}
    report = []
    if anchors:
        parts = np.array([keyed_parts(tables, one.graph) for one in anchors])
        seconds = np.array([one.seconds for one in anchors])
        factors = fit_anchors(parts, seconds)
        fitted |= {name: factors[name] for name in ("in_model_products", "in_model_streams")}
        fitted["launch_us"] = fitted["launch_us"] | {"eager": factors["launch_us"]}
        predicted = predict_anchors(parts, factors)
        report = [
            {
                "step": one.name,
                "measured_s": one.seconds,
                "fitted_s": float(value),
                "error": float(value / one.seconds - 1),
            }
            for one, value in zip(anchors, predicted)
        ]
    return replace(base, fitted=rounded(fitted)), report


def rounded(value: Any) -> Any:
    """The value with four digits of each number."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def device_toml(device: Device, about: Sequence[str] = ()) -> str:
    """The content of a device file; ``about``: lines of comment above it."""
    name = _key(device.name)
    facts: dict[str, Any] = {
        "kind": device.kind,
        "memory_gib": device.memory_bytes / 2**30,
        "memory_gb_per_s": device.memory_bytes_per_s / 1e9,
        "peak_tflops": {dtype: rate / 1e12 for dtype, rate in device.peak_flops.items()},
        "architecture": device.architecture,
        "compute_units": device.compute_units,
        "cache_mib": device.cache_bytes / 2**20,
    }
    if device.board_watts:
        facts["board_watts"] = device.board_watts
    lines = [*(f"# {line}" for line in about), f"[{name}]"]
    lines += [f"{key} = {_value(value)}" for key, value in facts.items() if value not in ("", 0, 0.0)]
    if device.fitted:
        lines += _tables(f"{name}.fitted", device.fitted)
    if device.sources:
        lines += _tables(f"{name}.sources", device.sources)
    return "\n".join(lines) + "\n"


def _tables(at: str, table: Mapping[str, Any]) -> list[str]:
    """A table with what nests deeper than one level in tables of its own."""
    deep = {key: value for key, value in table.items() if isinstance(value, Mapping) and _depth(value) > 1}
    lines = [f"[{at}]"] if len(deep) < len(table) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in deep]
    for key, value in deep.items():
        lines += _tables(f"{at}.{_key(key)}", value)
    return lines


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value.values()), default=0) if isinstance(value, Mapping) else 0


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)
