"""What an op costs on a device: a roofline with launch overhead."""

from __future__ import annotations

from functools import cache

import numpy as np

from graphopt_gym.graphs.graph import DTYPES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.hardware.cluster import Device


class CostModel:
    """Seconds of each op: ``launch_s + max(compute_s, (bytes_read + bytes_written) / bytes_per_s)``."""

    name = "roofline"

    def components(self, graph: ComputationGraph, device: Device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(compute_s, bytes_per_s, launch_s), each float64 [N]; 0, 1 and 0 for sources and views.

        A fused group takes ``max(launch_s) + max(sum(compute_s), sum(border bytes / bytes_per_s))``.
        """
        peak = np.array([device.peak(dtype) for dtype in DTYPES])
        costless = (graph.op_class == SOURCE) | (graph.op_class == VIEW)
        compute_s = np.where(costless, 0.0, graph.flops / (0.7 * peak[graph.dtype]))
        bytes_per_s = np.where(costless, 1.0, 0.8 * device.memory_bytes_per_s)
        launch_s = np.where(costless, 0.0, 5e-6)
        return compute_s, bytes_per_s, launch_s

    def op_times(self, graph: ComputationGraph, device: Device) -> np.ndarray:
        """float64 [N]: seconds of each op by itself on a device; 0 for sources and views."""
        compute_s, bytes_per_s, launch_s = self.components(graph, device)
        costless = (graph.op_class == SOURCE) | (graph.op_class == VIEW)
        memory_s = (graph.bytes_read + graph.bytes_written) / bytes_per_s
        return np.where(costless, 0.0, launch_s + np.maximum(compute_s, memory_s))


@cache
def load_cost_model() -> CostModel:
    """The cost model of the package."""
    return CostModel()
