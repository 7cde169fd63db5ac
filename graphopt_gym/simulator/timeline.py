"""What ran where and when, and what it held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.graphs.graph import VIEW

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
    task_device: np.ndarray  # int32 [K] device of each task
    start_s: np.ndarray  # float64 [K]
    finish_s: np.ndarray  # float64 [K]
    makespan_s: float
    transfers: np.ndarray  # float64 [X, 6]: tensor, source device, destination device, request, start, finish
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
        return self.task_device[self.tasks.task_of_op]

    @property
    def _is_view(self) -> np.ndarray:
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

    @cached_property
    def memory_events(self) -> np.ndarray:
        """float64 [M, 3]: time, device, change in bytes; in order of time, what is freed before what is allocated.

        Found from the starts and finishes, apart from the engine's own count. What lives for no time is left out.
        """
        tasks = self.tasks
        storage_task = np.repeat(np.arange(tasks.num_tasks), np.diff(tasks.storage_ptr))
        reader_tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
        home = self.task_device[tasks.tensor_task]
        # a storage: from its producer's start to the last finish of a local reader or of a transfer out
        freed = self.finish_s[storage_task].copy()
        local = self.task_device[tasks.reader] == home[reader_tensor]
        np.maximum.at(freed, tasks.tensor_storage[reader_tensor[local]], self.finish_s[tasks.reader[local]])
        sent = self.transfers[:, 0].astype(np.int64)
        np.maximum.at(freed, tasks.tensor_storage[sent], self.transfers[:, 5])
        # a copy: from its transfer's start to the last finish of a reader there
        copy_of = np.full((tasks.num_tensors, self.cluster.num_devices), -1, np.int64)
        target = self.transfers[:, 2].astype(np.int64)
        copy_of[sent, target] = np.arange(len(sent))
        copy_freed = self.transfers[:, 5].copy()
        remote = ~local
        np.maximum.at(
            copy_freed,
            copy_of[reader_tensor[remote], self.task_device[tasks.reader[remote]]],
            self.finish_s[tasks.reader[remote]],
        )
        allocated = np.concatenate([self.start_s[storage_task], self.transfers[:, 4]])
        released = np.concatenate([freed, copy_freed])
        device = np.concatenate([self.task_device[storage_task], target])
        size = np.concatenate([tasks.storage_bytes, tasks.tensor_bytes[sent]])
        lives = (released > allocated) & (size > 0)
        allocated, released, device, size = allocated[lives], released[lives], device[lives], size[lives]
        kept = np.zeros(self.cluster.num_devices)
        np.add.at(kept, self.task_device, tasks.persistent_bytes)
        rows = np.concatenate(
            [
                np.stack([np.zeros(len(kept)), np.arange(len(kept)), kept], axis=1),
                np.stack([released, device, -size], axis=1),
                np.stack([allocated, device, size], axis=1),
            ]
        )
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def memory(self, device: int) -> tuple[np.ndarray, np.ndarray]:
        """(times float64 [P], bytes int64 [P]): a step function of what a device holds from each time on."""
        rows = self.memory_events[self.memory_events[:, 1] == device]
        level = np.cumsum(rows[:, 2]).astype(np.int64)
        last = np.append(rows[1:, 0] != rows[:-1, 0], True) if len(rows) else np.zeros(0, bool)
        return rows[last, 0], level[last]
