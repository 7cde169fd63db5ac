"""Where virtual slices lie on a machine, and the classes of cores and hosts that follow from it.

A slice lies on consecutive cores, from a first one on. Cores that are in the same slices, on hosts that are alike in
this, always act together: they are a *core class*, and a simulation looks at each class once. Hosts whose cores belong
to the same classes, so many to each, are a *host class*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers
from graphopt_gym.hardware.machine import Machine
from graphopt_gym.simulator.gang.program import ShardedProgram


@dataclass(frozen=True, eq=False)
class Classes:
    """Core and host classes of a program's slices. V slices, P core classes, Q host classes, N cores of the machine.

    Rows of classes by slice are ascending: those of slice v stand at ``[ptr[v], ptr[v + 1])``.
    """

    first_core: np.ndarray  # int64 [V]
    core_class: np.ndarray  # int32 [N]; -1: in no slice
    class_core: np.ndarray  # int64 [P]: the first core of each class
    class_size: np.ndarray  # int64 [P]: cores of each class
    class_island: np.ndarray  # int64 [P]
    class_host: np.ndarray  # int64 [P]: its host class
    host_size: np.ndarray  # int64 [Q]: hosts of each class
    host_island: np.ndarray  # int64 [Q]
    host_core: np.ndarray  # int64 [Q]: the first core of its first host
    slice_ptr: np.ndarray  # int64 [V + 1]
    slice_class: np.ndarray  # int32: core classes
    host_ptr: np.ndarray  # int64 [V + 1]
    slice_host: np.ndarray  # int32: host classes
    slice_host_cores: np.ndarray  # int64: the slice's cores on each host of that class
    island_ptr: np.ndarray  # int64 [V + 1]
    slice_island: np.ndarray  # int32: islands

    @property
    def num_classes(self) -> int:
        return len(self.class_core)

    @property
    def num_hosts(self) -> int:
        return len(self.host_size)

    def cores(self, number: int) -> np.ndarray:
        """int64: the cores of a class."""
        return np.flatnonzero(self.core_class == number)

    def label(self, number: int) -> str:
        """The cores of a class, for people: ``cores 0-31``."""
        cores = self.cores(number)
        breaks = np.flatnonzero(np.diff(cores) != 1)
        starts, ends = cores[np.append(0, breaks + 1)], cores[np.append(breaks, len(cores) - 1)]
        parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
        shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
        return f"core{'s' if len(cores) > 1 else ''} {shown}"


def spread(program: ShardedProgram, machine: Machine) -> np.ndarray:
    """int64 [V]: slices one after the other around the machine, from its first core again where none is left.

    A slice goes to the next island where the one at hand has too few cores left, unless all its gangs may span islands.

    Raises:
        InputError: a slice that is larger than every island (or the machine).
    """
    bounds, total = machine.first_core, machine.num_cores
    may_span = may_span_islands(program)
    found, at = np.empty(program.num_slices, np.int64), 0
    for number, one in enumerate(program.slices):
        if may_span[number]:
            if one.cores > total:
                raise InputError(f"slice {one.name!r} takes {one.cores} cores; the machine has {total}")
            at = at if at + one.cores <= total else 0
        else:
            _check_island(program, number, machine)
            island = int(np.searchsorted(bounds, at, "right")) - 1 if at < total else 0
            at = at if at < total else 0
            while at + one.cores > bounds[island + 1]:
                island = (island + 1) % machine.num_islands
                at = int(bounds[island])
        found[number] = at
        at += one.cores
    return found


def may_span_islands(program: ShardedProgram) -> np.ndarray:
    """bool [V]: whether all gangs of a slice may span islands."""
    spans = np.ones(program.num_slices, bool)
    np.logical_and.at(spans, program.slice, program.spans)
    return spans


def _check_island(program: ShardedProgram, number: int, machine: Machine) -> None:
    largest = max(one.num_cores for one in machine.islands)
    one = program.slices[number]
    if one.cores > largest:
        gang = int(np.flatnonzero((program.slice == number) & ~program.spans)[0])
        raise InputError(
            f"gang {program.names[gang]!r} takes {one.cores} cores, more than the {largest} of the largest island of "
            f"machine {machine.name!r}; give it a smaller slice, or spans=True"
        )


def classify(program: ShardedProgram, machine: Machine, first_core: Sequence[int] | np.ndarray | Any) -> Classes:
    """The classes of slices that begin at these cores, int [V].

    Raises:
        InputError: a slice that does not exist on the machine; a gang across islands that may not span them.
    """
    first = check_integers(first_core, (program.num_slices,), machine.num_cores, "core", "first_core").astype(np.int64)
    last = first + program.slice_cores - 1
    may_span = may_span_islands(program)
    for number, one in enumerate(program.slices):
        if not may_span[number]:
            _check_island(program, number, machine)
        if last[number] >= machine.num_cores:
            raise InputError(
                f"slice {one.name!r} does not exist: cores {first[number]} to {last[number]}, and the machine has "
                f"{machine.num_cores}; begin at {machine.num_cores - one.cores} at the latest"
            )
        a, b = machine.core_island[first[number]], machine.core_island[last[number]]
        if a != b and not may_span[number]:
            gang = int(np.flatnonzero((program.slice == number) & ~program.spans)[0])
            raise InputError(
                f"slice {one.name!r} lies on cores {first[number]} to {last[number]}, islands {a} to {b}, and gang "
                f"{program.names[gang]!r} may not span islands; begin elsewhere, or give spans=True"
            )
    return _classify(machine, first, last)


def _classify(machine: Machine, first: np.ndarray, last: np.ndarray) -> Classes:
    total, slices = machine.num_cores, len(first)
    # pieces: between two borders (of slices, of hosts) all cores are alike; a slice is a run of pieces
    host_first = np.searchsorted(machine.core_host, np.arange(machine.num_hosts))
    borders = np.unique(np.concatenate([first, last + 1, host_first, [total]]))
    piece_core, piece_size = borders[:-1], np.diff(borders)
    host, island = machine.core_host[piece_core], machine.core_island[piece_core]
    begin, end = np.searchsorted(borders, first), np.searchsorted(borders, last + 1)
    # a piece's signature: the sum of a random number for each slice that covers it
    numbers = np.random.default_rng(0).integers(1, 2**63, slices, dtype=np.uint64)
    steps = np.zeros(len(piece_core) + 1, np.uint64)
    np.add.at(steps, begin, numbers)
    np.subtract.at(steps, end, numbers)
    signature = np.cumsum(steps)[:-1]
    used = signature != 0
    # a host's signature: of its pieces and their sizes; hosts are alike within an island
    with np.errstate(over="ignore"):
        mixed = (signature ^ (signature >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * piece_size.astype(np.uint64)
    of_host = np.zeros(machine.num_hosts, np.uint64)
    np.add.at(of_host, host[used], mixed[used])
    island_of_host = machine.core_island[host_first]
    served = np.zeros(machine.num_hosts, bool)
    served[host[used]] = True
    host_class, hosts = _numbered(np.flatnonzero(served), island_of_host, of_host)
    keys = np.stack([signature[used], host_class[host[used]].astype(np.uint64)], axis=1)
    _, at, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(at, kind="stable")  # classes by their first core
    rank = np.empty(len(at), np.int64)
    rank[order] = np.arange(len(at))
    piece_class = np.full(len(piece_core), -1, np.int32)
    piece_class[used] = rank[inverse.reshape(-1)]
    firsts = np.flatnonzero(used)[at[order]]
    size = np.bincount(piece_class[used], piece_size[used], len(at)).astype(np.int64)

    class_host = host_class[host[firsts]]
    per_host = size // np.maximum(hosts[class_host], 1)
    slice_class, slice_host, slice_cores, slice_island = [], [], [], []
    for a, b in zip(begin.tolist(), end.tolist(), strict=True):
        classes = np.unique(piece_class[a:b])
        slice_class.append(classes)
        of = np.bincount(class_host[classes], per_host[classes], len(hosts)).astype(np.int64)
        slice_host.append(np.flatnonzero(of))
        slice_cores.append(of[of > 0])
        slice_island.append(np.unique(island[a:b]))
    host_rows = np.array([int(np.flatnonzero(host_class == number)[0]) for number in range(len(hosts))], np.int64)
    return Classes(
        first, np.repeat(piece_class, piece_size), piece_core[firsts], size, island[firsts], class_host, hosts,
        island_of_host[host_rows], host_first[host_rows],
        _pointers(slice_class), _joined(slice_class), _pointers(slice_host), _joined(slice_host),
        np.concatenate(slice_cores).astype(np.int64), _pointers(slice_island), _joined(slice_island),
    )  # fmt: skip


def _numbered(rows: np.ndarray, island: np.ndarray, signature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class of each host or -1, hosts of each class), classes by their first host."""
    keys = np.stack([island[rows].astype(np.uint64), signature[rows]], axis=1)
    _, at, inverse, counts = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(at, kind="stable")
    rank = np.empty(len(at), np.int64)
    rank[order] = np.arange(len(at))
    found = np.full(len(island), -1, np.int64)
    found[rows] = rank[inverse.reshape(-1)]
    return found, counts[order].astype(np.int64)


def _pointers(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows).astype(np.int32)
