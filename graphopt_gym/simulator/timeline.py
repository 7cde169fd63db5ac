"""What ran where and when, and what it held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.simulator.tasks import TaskGraph


@dataclass(frozen=True, eq=False)
class Timeline:
    """One simulated step. K tasks, D devices, X transfers."""

    graph: ComputationGraph
    cluster: Cluster
    tasks: TaskGraph
    placement: np.ndarray  # int32 [K] device of each task
    start_s: np.ndarray  # float64 [K]
    finish_s: np.ndarray  # float64 [K]
    makespan_s: float
    transfers: np.ndarray  # float64 [X, 6]: tensor, source device, destination device, request, start, finish
    memory_events: np.ndarray  # float64 [M, 3]: time, device, change in bytes; in order of time
    peak_bytes: np.ndarray  # int64 [D]
    peak_time_s: np.ndarray  # float64 [D]
    busy_s: np.ndarray  # float64 [D] seconds of compute

    @cached_property
    def op_start_s(self) -> np.ndarray:
        """float64 [N]: start of each op; a member of a fused group starts with it, a view when its root finishes."""
        return np.where(self._is_view, self.op_finish_s, self.start_s[self.tasks.task_of_op])

    @cached_property
    def op_finish_s(self) -> np.ndarray:
        """float64 [N]: finish of each op."""
        return self.finish_s[self.tasks.task_of_op]

    @cached_property
    def op_device(self) -> np.ndarray:
        """int32 [N]: device of each op."""
        return self.placement[self.tasks.task_of_op]

    @property
    def _is_view(self) -> np.ndarray:
        from graphopt_gym.graphs.graph import VIEW

        return self.graph.op_class == VIEW

    @cached_property
    def link_transfers(self) -> dict[int, np.ndarray]:
        """Rows of ``transfers`` by link, in order of start."""
        pairs = self.transfers[:, 1:3].astype(int)
        links = self.cluster.link_of[pairs[:, 0], pairs[:, 1]]
        rows = {int(link): self.transfers[links == link] for link in np.unique(links)}
        return {link: part[np.argsort(part[:, 4], kind="stable")] for link, part in rows.items()}

    @cached_property
    def transfer_bytes(self) -> np.ndarray:
        """int64 [X]: bytes of each transfer."""
        return self.tasks.tensor_bytes[self.transfers[:, 0].astype(int)]

    def memory(self, device: int) -> tuple[np.ndarray, np.ndarray]:
        """(times float64 [P], bytes int64 [P]): a step function of what a device holds from each time on."""
        rows = self.memory_events[self.memory_events[:, 1] == device]
        level = np.cumsum(rows[:, 2]).astype(np.int64)
        last = np.append(rows[1:, 0] != rows[:-1, 0], True) if len(rows) else np.zeros(0, bool)
        return rows[last, 0], level[last]
