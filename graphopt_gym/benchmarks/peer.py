"""The engine's step in C (``peer.c``), compiled with the system's compiler where there is one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphopt_gym.simulator import Simulator
from graphopt_gym.simulator.orders import PRIORITY, engine_order

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")
NO_COMPILER = f"none of {', '.join(COMPILERS)} is on PATH and compiles {SOURCE.name}: no event loop in C to compare"
OPTIONS = ("-O3", "-std=c11", "-ffp-contract=off", "-shared", "-fPIC")


# the fields of ``Problem`` of ``peer.c``, in its order: numbers, then arrays
COUNTS = ("num_tasks", "num_tensors", "num_storages", "num_reads", "num_devices", "num_links")
ARRAYS: dict[str, Any] = {
    "device_type": np.int32, "link_of": np.int32, "link_latency_s": np.float64, "link_bytes_per_s": np.float64,
    "durations": np.float64, "sequence": np.int32, "is_source": np.uint8, "persistent_bytes": np.int64,
    "storage_ptr": np.int32, "storage_bytes": np.int64, "tensor_ptr": np.int32, "tensor_bytes": np.int64,
    "tensor_storage": np.int32, "tensor_task": np.int32, "reader_ptr": np.int32, "reader": np.int32,
    "input_ptr": np.int32, "input_tensor": np.int32, "read_of_input": np.int32, "transfer_s": np.float64,
}  # fmt: skip


class _Problem(ctypes.Structure):
    _fields_: ClassVar[Any] = [(name, ctypes.c_int64) for name in COUNTS] + [(name, ctypes.c_void_p) for name in ARRAYS]


@lru_cache(maxsize=1)
def c_loop() -> Any:
    """``run`` of ``peer.c``, or None: there is no compiler, or it fails."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder, "peer.so")
        if subprocess.run([compiler, *OPTIONS, "-o", library, SOURCE], capture_output=True).returncode:
            return None
        run: Any = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_int64
    run.argtypes = [ctypes.POINTER(_Problem), ctypes.c_int] + [ctypes.c_void_p] * 6
    return run


def bound(simulator: Simulator, placement: np.ndarray, priority: np.ndarray | None = None) -> Callable[[], dict]:
    """A function that runs the step of a simulator in C and returns its makespan_s, peak_bytes, peak_time_s, busy_s.

    Args:
        simulator: its graph, costs, cluster and order.
        placement: int32 [K], the device of each task.
        priority: float64 [K]; None: as the simulator's order says.

    Raises:
        RuntimeError: there is no compiler; at a call: memory ran out, or not every task finished.
    """
    run = c_loop()
    if run is None:
        raise RuntimeError(NO_COMPILER)
    tasks, cluster = simulator.tasks, simulator.cluster
    tensor_of_read = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    priority = simulator.priorities if priority is None else priority
    order = PRIORITY if len(priority) else engine_order(simulator.order)
    given: dict[str, Any] = {
        "device_type": simulator.device_type,
        "link_of": cluster.link_of,
        "link_latency_s": [link.latency_s for link in cluster.links],
        "link_bytes_per_s": [link.bytes_per_s for link in cluster.links],
        "durations": simulator.durations_s,
        "read_of_input": np.lexsort((tensor_of_read, tasks.reader)),
    }
    columns: list[np.ndarray] = [
        np.ascontiguousarray(given[name] if name in given else getattr(tasks, name), kind)
        for name, kind in ARRAYS.items()
    ]
    counts = (len(tasks.storage_bytes), len(tasks.reader), simulator.num_devices, len(cluster.links))
    problem = _Problem(tasks.num_tasks, tasks.num_tensors, *counts, *(column.ctypes.data for column in columns))
    decision: list[np.ndarray] = [np.ascontiguousarray(placement, np.int32), np.ascontiguousarray(priority, np.float64)]
    out: dict[str, np.ndarray] = {
        "makespan_s": np.empty(1),
        "peak_bytes": np.empty(simulator.num_devices, np.int64),
        "peak_time_s": np.empty(simulator.num_devices),
        "busy_s": np.empty(simulator.num_devices),
    }
    arguments = (ctypes.byref(problem), order, *(array.ctypes.data for array in [*decision, *out.values()]))
    kept = (problem, columns, decision)  # the pointers do not

    def call(kept: Any = kept) -> dict:
        done = run(*arguments)
        if done != simulator.num_tasks:
            raise RuntimeError(f"{SOURCE.name} finished {done} of {simulator.num_tasks} tasks")
        return out

    return call
