"""Sharded programs: dataflow graphs whose nodes are computations over a gang of cores.

A *gang* is one computation on all cores of a *slice*: every core runs its shard for the same time, and a collective
inside holds all of them. A slice is virtual, a number of cores: where it lies on a machine is said apart (see
:mod:`graphopt_gym.simulator.gang.slices`). Gangs reach the machine in *calls*, each by one *client* (Barham et al.,
Pathways, MLSys 2022, §4).

**Edges.** An edge of some bytes is a tensor: all of it, over all shards. It is resharded on its way: ``keep`` sends
each shard to one core (or splits it evenly, where the slices differ in size), ``gather`` gives every core of the
consumer the whole, ``transpose`` sends a part of every shard to every core. Where the consumer lies on the same cores,
``keep`` moves nothing. An edge of no bytes is a dependency alone.

**Memory** (HBM, of each core of the slice). ``output_bytes`` are allocated when a gang starts and freed when all gangs
on its cores that read it by an edge of bytes, and all transfers out of it, have finished; ``temp_bytes`` while it runs;
the copy that a transfer makes from its start until its readers have finished. ``resident_bytes`` of a slice stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from graphopt_gym.catalog import stored_whole
from graphopt_gym.compiled import kernel
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.fields import byte_count, choice, count, flag, not_negative, plain, whole
from graphopt_gym.hardware.collectives import COLLECTIVE_KINDS
from graphopt_gym.hardware.machine import MAX_CORES

RESHARDS = ("keep", "gather", "transpose")
KEEP, GATHER, TRANSPOSE = range(3)
COLUMNS: dict[str, Any] = {  # of a program, and their types
    "call_client": np.int32, "arrival_s": np.float64, "call": np.int32, "slice": np.int32, "time_s": np.float64,
    "collective": np.int8, "collective_bytes": np.int64, "repeats": np.int32, "output_bytes": np.int64,
    "temp_bytes": np.int64, "regular": bool, "spans": bool, "on_cores": bool, "edge_src": np.int32,
    "edge_dst": np.int32, "edge_bytes": np.int64, "edge_reshard": np.int8,
}  # fmt: skip
GANG_COLUMNS = tuple(COLUMNS)[2:13]
MOST_GANGS = 10_000_000
MOST_S = 1e9


@dataclass(frozen=True)
class Client:
    """Who sends calls.

    Args:
        name: for people.
        weight: its share of the machine beside the others', where a policy heeds it; at least 0.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative(f"client {self.name!r}: weight", self.weight)


@dataclass(frozen=True)
class Slice:
    """A virtual slice: cores that work as one.

    Args:
        name: for people.
        cores: how many.
        resident_bytes: what each core holds all the time, such as parameters and optimiser state.
    """

    name: str
    cores: int
    resident_bytes: int = 0

    def __post_init__(self) -> None:
        count(f"slice {self.name!r}: cores", self.cores, MAX_CORES)
        byte_count(f"slice {self.name!r}: resident_bytes", self.resident_bytes)


@dataclass(frozen=True, eq=False)
class ShardedProgram:
    """Gangs and the edges between them. G gangs, E edges, V slices, K calls, C clients. Made by :class:`Builder`.

    Raises:
        InputError: a cycle (its gangs are named), an entry out of its range, weights that are all zero.
    """

    name: str
    clients: tuple[Client, ...]
    slices: tuple[Slice, ...]
    names: tuple[str, ...]  # [G]
    call_client: np.ndarray  # int32 [K]
    arrival_s: np.ndarray  # float64 [K]: no call is sent before
    call: np.ndarray  # int32 [G]
    slice: np.ndarray  # int32 [G]
    time_s: np.ndarray  # float64 [G]: of a shard, without the collective
    collective: np.ndarray  # int8 [G], an index of COLLECTIVE_KINDS
    collective_bytes: np.ndarray  # int64 [G]: of each core
    repeats: np.ndarray  # int32 [G]: times that time and collective come one after the other in one computation
    output_bytes: np.ndarray  # int64 [G]: of each core
    temp_bytes: np.ndarray  # int64 [G]: of each core
    regular: np.ndarray  # bool [G]: its shapes are known beforehand
    spans: np.ndarray  # bool [G]: it may run over several islands
    on_cores: np.ndarray  # bool [G]: False: a collective alone, which takes links and no core
    edge_src: np.ndarray  # int32 [E]
    edge_dst: np.ndarray  # int32 [E]
    edge_bytes: np.ndarray  # int64 [E]: of the whole tensor
    edge_reshard: np.ndarray  # int8 [E], an index of RESHARDS

    def __post_init__(self) -> None:
        where = f"program {self.name!r}"
        if not self.names:
            raise InputError(f"{where} has zero gangs; give at least one")
        if not any(one.weight > 0 for one in self.clients):
            raise InputError(f"{where}: weights of clients are all zero; give at least one above 0")
        limits = {"call": len(self.call_client), "slice": len(self.slices), "edge_src": self.num_gangs}
        for name, limit in {**limits, "edge_dst": self.num_gangs, "call_client": len(self.clients)}.items():
            column = getattr(self, name)
            if len(column) and not 0 <= column.min() <= column.max() < limit:
                bad = column[(column < 0) | (column >= limit)][0]
                raise InputError(f"{where}: {name} has {bad}; allowed: 0 to {limit - 1}")
        for one in fields(self):
            if isinstance(getattr(self, one.name), np.ndarray):
                getattr(self, one.name).flags.writeable = False
        if len(self.sequence) < self.num_gangs:
            around = " -> ".join(self.names[gang] for gang in _cycle(self))
            raise InputError(f"{where} has a cycle: {around}; a gang cannot wait for itself")

    @property
    def num_gangs(self) -> int:
        return len(self.names)

    @property
    def num_edges(self) -> int:
        return len(self.edge_src)

    @property
    def num_slices(self) -> int:
        return len(self.slices)

    @cached_property
    def client(self) -> np.ndarray:
        """int32 [G]"""
        return self.call_client[self.call]

    @cached_property
    def slice_cores(self) -> np.ndarray:
        """int64 [V]"""
        return np.array([one.cores for one in self.slices], np.int64)

    @cached_property
    def weights(self) -> np.ndarray:
        """float64 [C]"""
        return np.array([one.weight for one in self.clients], np.float64)

    @cached_property
    def successors(self) -> tuple[np.ndarray, np.ndarray]:
        """(pointers int64 [G + 1], int32 [E]): who reads each gang."""
        order = np.argsort(self.edge_src, kind="stable")
        pointers = np.zeros(self.num_gangs + 1, np.int64)
        np.cumsum(np.bincount(self.edge_src, minlength=self.num_gangs), out=pointers[1:])
        return pointers, self.edge_dst[order]

    @cached_property
    def sequence(self) -> np.ndarray:
        """int32 [G]: the gangs, each after those that it reads; fewer where there is a cycle."""
        return _topological(*self.successors, np.bincount(self.edge_dst, minlength=self.num_gangs))

    @cached_property
    def remaining_s(self) -> np.ndarray:
        """float64 [G]: the longest way from the start of each gang to the end of the program, in seconds of shards."""
        return _longest(*self.successors, self.sequence, self.time_s * self.repeats)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a run depends on (not the names)."""
        facts = [[one.weight for one in self.clients], [[one.cores, one.resident_bytes] for one in self.slices]]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name in COLUMNS:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The whole of it in JSON's types."""
        return {
            "name": self.name,
            "clients": [[one.name, float(one.weight)] for one in self.clients],
            "slices": [[one.name, one.cores, int(one.resident_bytes)] for one in self.slices],
            "names": list(self.names),
            **{name: plain(getattr(self, name)) for name in COLUMNS},
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> ShardedProgram:
        """A program from what :meth:`to_json` gives.

        Raises:
            InputError: something else, or of a release that knows more.
        """
        with stored_whole("program"):
            columns: dict[str, Any] = {name: np.array(given[name], kind) for name, kind in COLUMNS.items()}
            return cls(
                str(given["name"]),
                tuple(Client(*one) for one in given["clients"]),
                tuple(Slice(*one) for one in given["slices"]),
                tuple(map(str, given["names"])),
                **columns,
            )

    def __repr__(self) -> str:
        return (
            f"ShardedProgram({self.name!r}, gangs={self.num_gangs}, edges={self.num_edges}, slices={self.num_slices})"
        )


@kernel
def _topological(pointers, successors, indegree):
    waiting = indegree.copy()
    found = np.empty(len(waiting), np.int32)
    end = 0
    for gang in range(len(waiting)):
        if waiting[gang] == 0:
            found[end] = gang
            end += 1
    at = 0
    while at < end:
        for index in range(pointers[found[at]], pointers[found[at] + 1]):
            waiting[successors[index]] -= 1
            if waiting[successors[index]] == 0:
                found[end] = successors[index]
                end += 1
        at += 1
    return found[:end]


@kernel
def _longest(pointers, successors, sequence, time_s):
    found = np.zeros(len(time_s))
    for position in range(len(sequence) - 1, -1, -1):
        gang = sequence[position]
        longest = 0.0
        for index in range(pointers[gang], pointers[gang + 1]):
            longest = max(longest, found[successors[index]])
        found[gang] = time_s[gang] + longest
    return found


def _cycle(program: ShardedProgram) -> list[int]:
    """The gangs around one cycle, the first again at the end."""
    stuck = np.ones(program.num_gangs, bool)
    stuck[program.sequence] = False
    before: dict[int, int] = {}  # of each stuck gang, one stuck gang that it waits for
    for source, target in zip(program.edge_src.tolist(), program.edge_dst.tolist(), strict=True):
        if stuck[source] and stuck[target]:
            before.setdefault(target, source)
    gang, way = next(iter(before)), [next(iter(before))]
    while (gang := before[gang]) not in way:
        way.append(gang)
    around = way[way.index(gang) :][::-1]
    first = around.index(min(around))
    around = around[first:] + around[:first]
    return [*around, around[0]]


class Builder:
    """Makes a :class:`ShardedProgram`, part by part.

    >>> build = Builder("two stages")
    >>> first, second = build.slice("first", cores=4), build.slice("second", cores=4)
    >>> f = build.gang("forward", first, time_s=1e-3, output_bytes=2**20)
    >>> b = build.gang("backward", second, time_s=2e-3)
    >>> build.edge(f, b, bytes=2**22)
    >>> build.program()
    ShardedProgram('two stages', gangs=2, edges=1, slices=2)
    """

    def __init__(self, name: str = "program") -> None:
        self.name = name
        self._clients: list[Client] = []
        self._slices: list[Slice] = []
        self._calls: list[tuple[int, float]] = []
        self._gangs: list[tuple[Any, ...]] = []
        self._edges: list[tuple[int, int, int, int]] = []

    def client(self, name: str, weight: float = 1.0) -> int:
        """Adds a client. Returns its number. The first is there, under the name ``client``, where none is added."""
        self._clients.append(Client(name, weight))
        return len(self._clients) - 1

    def slice(self, name: str, cores: int, resident_bytes: int = 0) -> int:
        """Adds a virtual slice. Returns its number."""
        self._slices.append(Slice(name, cores, resident_bytes))
        return len(self._slices) - 1

    def call(self, client: int = 0, arrival_s: float = 0.0) -> int:
        """Begins a call, which the gangs that follow are of. Returns its number.

        Raises:
            InputError: no such client, no such time.
        """
        if not self._clients:
            self.client("client")
        whole("call: client", client, 0, len(self._clients) - 1)
        self._calls.append((client, _seconds("call: arrival_s", arrival_s)))
        return len(self._calls) - 1

    def gang(
        self,
        name: str,
        slice: int,
        time_s: float,
        *,
        collective: str = "none",
        collective_bytes: int = 0,
        repeats: int = 1,
        output_bytes: int = 0,
        temp_bytes: int = 0,
        regular: bool = True,
        spans: bool = False,
        on_cores: bool = True,
    ) -> int:
        """Adds a computation of the current call (of a first one, at time 0, where none has begun). Returns its number.

        Args:
            name: for people.
            slice: its number.
            time_s: of a shard, without the collective.
            collective: one of :data:`COLLECTIVE_KINDS`; it follows the computing, and holds all cores.
            collective_bytes: of each core: what it reduces, what it has to give away (``all_to_all``), or what it holds
                in the end (``all_gather``) or the beginning (``reduce_scatter``).
            repeats: how often time and collective come, one after the other, in the one computation.
            output_bytes, temp_bytes: of each core; see the module's text.
            regular: whether its shapes are known beforehand, so that it can be prepared ahead of its inputs.
            spans: whether its slice may lie on several islands.
            on_cores: False for a collective alone, which takes links and no core (and no ``time_s``).

        Raises:
            InputError: one line naming the field, the value and the fix.
        """
        where = f"gang {name!r}"
        if not self._slices:
            raise InputError(f"{where}: there are no slices yet; add one with slice(name, cores)")
        whole(f"{where}: slice", slice, 0, len(self._slices) - 1)
        kind = COLLECTIVE_KINDS.index(choice(f"{where}: collective", collective, COLLECTIVE_KINDS))
        if not flag(f"{where}: on_cores", on_cores) and (kind == 0 or time_s):
            raise InputError(f"{where}: on_cores is False, of a collective alone; give a collective, and time_s = 0")
        if not self._calls:
            self.call()
        self._gangs.append(
            (name, len(self._calls) - 1, slice, _seconds(f"{where}: time_s", time_s), kind,
             byte_count(f"{where}: collective_bytes", collective_bytes), whole(f"{where}: repeats", repeats, 1, 10**6),
             byte_count(f"{where}: output_bytes", output_bytes), byte_count(f"{where}: temp_bytes", temp_bytes),
             flag(f"{where}: regular", regular), flag(f"{where}: spans", spans), on_cores)
        )  # fmt: skip
        if len(self._gangs) > MOST_GANGS:
            raise InputError(f"program {self.name!r} has more than {MOST_GANGS} gangs; give fewer")
        return len(self._gangs) - 1

    def edge(self, src: int, dst: int, bytes: int = 0, reshard: str = "keep") -> None:
        """Adds an edge: ``dst`` reads ``bytes`` of ``src``, all shards together; 0: it comes after it, no more.

        Raises:
            InputError: no such gang, no such way to reshard.
        """
        for field, gang in (("src", src), ("dst", dst)):
            whole(f"edge: {field}", gang, 0, len(self._gangs) - 1)
        kind = RESHARDS.index(choice("edge: reshard", reshard, RESHARDS))
        self._edges.append((src, dst, byte_count("edge: bytes", bytes), kind))

    def program(self) -> ShardedProgram:
        """What was built.

        Raises:
            InputError: as :class:`ShardedProgram`.
        """
        gangs = list(zip(*self._gangs, strict=True)) or [()] * 12
        columns = {name: np.array(gangs[1 + index], COLUMNS[name]) for index, name in enumerate(GANG_COLUMNS)}
        calls = np.array(self._calls, np.float64).reshape(-1, 2)
        edges = np.array(self._edges, np.int64).reshape(-1, 4)
        return ShardedProgram(
            self.name,
            tuple(self._clients),
            tuple(self._slices),
            tuple(gangs[0]),
            call_client=calls[:, 0].astype(np.int32),
            arrival_s=calls[:, 1].copy(),
            **columns,
            edge_src=edges[:, 0].astype(np.int32),
            edge_dst=edges[:, 1].astype(np.int32),
            edge_bytes=edges[:, 2].copy(),
            edge_reshard=edges[:, 3].astype(np.int8),
        )


def _seconds(name: str, value: Any) -> float:
    given = not_negative(name, value)
    if given > MOST_S:
        raise InputError(f"{name} is {quoted(value, 80)}; give at most {MOST_S:g} seconds")
    return given


def together(
    programs: Sequence[ShardedProgram], weights: Sequence[float] | None = None, name: str = "tenants"
) -> ShardedProgram:
    """Several programs as one, each with its own clients, slices and calls.

    Args:
        programs: at least one.
        weights: of the programs, in place of those of their clients.
        name: of what is made.

    Raises:
        InputError: no programs; another number of weights; weights that are negative or all zero.
    """
    if not programs:
        raise InputError("together: zero programs; give at least one")
    if weights is not None and len(weights) != len(programs):
        raise InputError(f"weights has {len(weights)} entries for {len(programs)} programs; give one a program")
    clients: list[Client] = []
    for index, one in enumerate(programs):
        tag = f"{one.name} {index}" if len(programs) > 1 else one.name
        for client in one.clients:
            label = tag if len(one.clients) == 1 else f"{tag}: {client.name}"
            clients.append(Client(label, client.weight if weights is None else weights[index]))
    offsets = {
        "call_client": np.cumsum([0, *(len(one.clients) for one in programs)]),
        "call": np.cumsum([0, *(len(one.call_client) for one in programs)]),
        "slice": np.cumsum([0, *(one.num_slices for one in programs)]),
        "edge_src": np.cumsum([0, *(one.num_gangs for one in programs)]),
    }
    offsets["edge_dst"] = offsets["edge_src"]
    columns = {
        one.name: np.concatenate([
            getattr(program, one.name) + (np.int32(offsets[one.name][index]) if one.name in offsets else 0)
            if getattr(program, one.name).dtype != bool else getattr(program, one.name)
            for index, program in enumerate(programs)
        ])
        for one in fields(ShardedProgram) if isinstance(getattr(programs[0], one.name), np.ndarray)
    }  # fmt: skip
    return ShardedProgram(
        name,
        tuple(clients),
        tuple(one for program in programs for one in program.slices),
        tuple(f"{index}.{gang}" for index, program in enumerate(programs) for gang in program.names),
        **columns,
    )
