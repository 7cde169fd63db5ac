"""What the engine runs of a program on a machine: gangs, transfers, and the tasks of the control plane.

**Control plane.** With a single controller (``single``) a call takes its client, then the client's controller; then
each of its gangs takes the scheduler of every island that it lies on, then the executors of its hosts, whose launches
reach the cores over PCIe. Messages from one to the next take the latency of the DCN. Where every host is a controller
(``multi``) a host runs each call of the clients itself, in their order, and launches its gangs right after. With
``none`` gangs wait for their calls to arrive and for their inputs alone.

With ``parallel`` dispatch the hosts prepare a gang as soon as the message is there, ahead of its inputs. With
``sequential`` they do after the hosts of the gangs that it reads did. An irregular gang is prepared when what it reads
has finished, since no shape is known before.

**Transfers.** Between slices on one island a tensor takes the ICI ports of the sending and of the receiving cores,
``latency + bytes of a core / rate``. Else it takes PCIe from the cores, the DCN cards of their hosts, those of the
receiving hosts, and PCIe to the cores, all at once: the latencies add up, and the slowest sets the rate. A tensor is
sent once to the same cores. ``gather`` is the same and then an all-gather among the receiving cores; ``transpose``
takes what ``keep`` takes. On the same cores ``gather`` is an all-gather, ``transpose`` an all-to-all.

**Collectives** run by the machine's algorithm inside an island. Over several islands they reduce or gather inside, and
ring over the islands between (its hosts' cards carry what their cores have).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt_gym.hardware.collectives import COLLECTIVE_KINDS, collective_s
from graphopt_gym.hardware.machine import Machine
from graphopt_gym.simulator.gang.engine import Tables
from graphopt_gym.simulator.gang.program import GATHER, KEEP, TRANSPOSE, ShardedProgram
from graphopt_gym.simulator.gang.slices import Classes

CONTROLLERS = ("single", "multi", "none")
DISPATCH = ("parallel", "sequential")
# kinds of tasks, and of resources
TASK_KINDS = ("gang", "transfer", "client", "controller", "scheduler", "launch", "python")
RESOURCES = ("core", "ici out", "ici in", "pcie up", "pcie down", "dcn out", "dcn in", "executor", "scheduler",
             "client", "controller")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Lowered:
    """Tables for the engine, and what their entries mean. T tasks (the G gangs first), R resources, X transfers."""

    tables: Tables
    num_resources: int
    offsets: dict[str, int]  # of each kind of resource, its first
    kind: np.ndarray  # int8 [T], an index of TASK_KINDS
    owner: np.ndarray  # int32 [T]: the gang; of a transfer its producer; of client, controller and python the call
    place: np.ndarray  # int32 [T]: host class or island of launch, python, scheduler; target slice of a transfer; or -1
    collective_s: np.ndarray  # float64 [G]: of each repeat
    transfer_bytes: np.ndarray  # int64 [X]


class Rows:
    """Rows of numbers, one after the other: pointers and values."""

    def __init__(self, ptr: np.ndarray, values: np.ndarray) -> None:
        self.ptr, self.values = ptr, values

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray]) -> Rows:
        ptr = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
        return cls(ptr, np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, np.int64)]))

    def take(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row of each value as a position in ``which``, positions of the values) of these rows."""
        sizes = np.diff(self.ptr)[which]
        row = np.repeat(np.arange(len(which)), sizes)
        ends = np.cumsum(sizes)
        return row, np.arange(len(row)) - np.repeat(ends - sizes, sizes) + np.repeat(self.ptr[which], sizes)


def lower(
    program: ShardedProgram,
    machine: Machine,
    classes: Classes,
    controllers: str = "single",
    dispatch: str = "parallel",
) -> Lowered:
    """The tasks of a program whose slices lie as ``classes`` says. See the module's text."""
    clients, islands = len(program.clients), machine.num_islands
    p, q = classes.num_classes, classes.num_hosts
    sizes = (p, p, p, p, p, q, q, q, islands, clients, clients)
    starts = np.cumsum([0, *sizes])
    offsets = {name: int(start) for name, start in zip(RESOURCES, starts, strict=False)}
    slice_classes = Rows(classes.slice_ptr, classes.slice_class)
    slice_hosts = Rows(classes.host_ptr, classes.slice_host)
    costs = SliceCosts(machine, program, classes)

    gangs, home = program.num_gangs, program.slice.astype(np.int64)
    inside_s = np.zeros(gangs)
    used = np.flatnonzero(program.collective)
    keys, inverse = np.unique(
        np.stack([program.collective[used], home[used], program.collective_bytes[used]], axis=1),
        axis=0, return_inverse=True,
    )  # fmt: skip
    times = np.array([costs.collective(int(kind), int(at), int(size)) for kind, at, size in keys.tolist()])
    if len(used):
        inside_s[used] = times[inverse.reshape(-1)]

    # ---- transfers: one for each producer, cores that receive, and way to reshard
    source, target = program.edge_src.astype(np.int64), program.edge_dst.astype(np.int64)
    ranges = np.stack([classes.first_core, program.slice_cores], axis=1)
    _, cores_of = np.unique(ranges, axis=0, return_inverse=True)
    cores_of = cores_of.reshape(-1).astype(np.int64)
    same = cores_of[home[source]] == cores_of[home[target]]
    single = program.slice_cores[home[source]] == 1
    carries = program.edge_bytes > 0
    moved = carries & ~(same & ((program.edge_reshard == KEEP) | single))
    edges = np.flatnonzero(moved)
    keys = np.stack([source[edges], cores_of[home[target[edges]]], program.edge_reshard[edges]], axis=1)
    _, at, transfer_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    transfer_of = transfer_of.reshape(-1)
    count = len(at)
    tensor_bytes = np.zeros(count, np.int64)
    np.maximum.at(tensor_bytes, transfer_of, program.edge_bytes[edges])
    producer, receiver = source[edges[at]], home[target[edges[at]]]
    kinds = np.stack([home[producer], receiver, program.edge_reshard[edges[at]].astype(np.int64), tensor_bytes], axis=1)
    forms, form_of = np.unique(kinds, axis=0, return_inverse=True)
    form_of = form_of.reshape(-1)
    made = [costs.transfer(a, b, kind, size, offsets) for a, b, kind, size in forms.tolist()]
    transfer_s = np.array([one[0] for one in made])[form_of] if count else np.zeros(0)
    form_rows = Rows.of([one[1] for one in made])
    copy_bytes = np.array([one[2] for one in made], np.int64)[form_of] if count else np.zeros(0, np.int64)

    parts = _Parts()
    gang_row, gang_at = slice_classes.take(home)
    on_cores = program.on_cores[gang_row]
    port = np.where(on_cores, 0, offsets["ici out"])
    duration = program.repeats * (program.time_s + inside_s)
    parts.add(gangs, "gang", duration, np.arange(gangs), -1)
    parts.resources(gang_row, slice_classes.values[gang_at] + port)
    alone = ~on_cores
    parts.resources(gang_row[alone], slice_classes.values[gang_at[alone]] + offsets["ici in"])
    if islands > 1 and not program.on_cores.all():  # a collective alone over several islands takes cards as well
        spread = np.flatnonzero(~program.on_cores & (np.diff(classes.island_ptr)[home] > 1))
        row, found = slice_hosts.take(home[spread])
        for kind in ("dcn out", "dcn in"):
            parts.resources(spread[row], slice_hosts.values[found] + offsets[kind])
    first_transfer = parts.add(count, "transfer", transfer_s, producer, receiver)
    row, found = form_rows.take(form_of)
    parts.resources(first_transfer + row, form_rows.values[found])

    # ---- what comes after what
    parts.after(source[~moved], target[~moved], 0.0)
    parts.after(producer, first_transfer + np.arange(count), 0.0)
    parts.after(first_transfer + transfer_of, target[edges], 0.0)
    in_place = carries & ~moved
    parts.reads(source[in_place], target[in_place])
    parts.reads(producer, first_transfer + np.arange(count))
    parts.reads(first_transfer + transfer_of, target[edges])

    # ---- memory
    needs = (program.output_bytes > 0) | (program.temp_bytes > 0)
    kept = needs[gang_row]
    parts.memory(gang_row[kept], slice_classes.values[gang_at[kept]],
                 program.output_bytes[gang_row[kept]], program.temp_bytes[gang_row[kept]])  # fmt: skip
    row, found = slice_classes.take(receiver)
    parts.memory(first_transfer + row, slice_classes.values[found], copy_bytes[row], np.zeros(len(row), np.int64))

    # ---- collectives inside gangs hold their links
    holds = np.flatnonzero((inside_s > 0) & program.on_cores)
    row, found = slice_classes.take(home[holds])
    for name in ("ici out", "ici in"):
        parts.holds(holds[row], slice_classes.values[found] + offsets[name])
    if islands > 1:
        wide = holds[np.diff(classes.island_ptr)[home[holds]] > 1]
        row, found = slice_hosts.take(home[wide])
        for name in ("dcn out", "dcn in"):
            parts.holds(wide[row], slice_hosts.values[found] + offsets[name])

    if controllers == "none":
        parts.arrives(0, program.call)
    else:
        _control(parts, program, machine, classes, offsets, controllers, dispatch, slice_hosts)

    resident = np.zeros(p, np.int64)
    row, found = slice_classes.take(np.arange(program.num_slices))
    np.add.at(resident, slice_classes.values[found],
              np.array([one.resident_bytes for one in program.slices], np.int64)[row])  # fmt: skip
    tables = parts.tables(
        group=program.client,
        cores=(program.slice_cores[home] * program.on_cores).astype(np.float64),
        arrival_s=program.arrival_s,
        hold_after_s=program.time_s,
        capacity=np.full(p, machine.hbm_bytes, np.int64),
        resident=resident,
        weight=program.weights,
    )
    return Lowered(tables, int(starts[-1]), offsets, *parts.meaning(), inside_s, tensor_bytes)


def _control(
    parts: _Parts,
    program: ShardedProgram,
    machine: Machine,
    classes: Classes,
    offsets: dict[str, int],
    controllers: str,
    dispatch: str,
    slice_hosts: Rows,
) -> None:
    control = machine.control
    message_s = machine.dcn.latency_s if machine.dcn is not None else 0.0
    launch_s = machine.pcie.latency_s
    home, calls = program.slice.astype(np.int64), len(program.call_client)
    row, found = slice_hosts.take(home)
    host = slice_hosts.values[found].astype(np.int64)
    prepare_s = control.host_s + control.enqueue_s * classes.slice_host_cores[found]
    if controllers == "single":
        client = parts.add(calls, "client", np.full(calls, control.client_call_s), np.arange(calls), -1)
        parts.resources(client + np.arange(calls), program.call_client + offsets["client"])
        parts.arrives(client)
        nodes = np.bincount(program.call, minlength=calls)
        call_s = (
            control.controller_call_s
            + control.controller_core_s * _cores_of_calls(program, classes)
            + control.controller_node_s * nodes
        )
        controller = parts.add(calls, "controller", call_s, np.arange(calls), -1)
        parts.resources(controller + np.arange(calls), program.call_client + offsets["controller"])
        parts.after(client + np.arange(calls), controller + np.arange(calls), message_s)
        islands = Rows(classes.island_ptr, classes.slice_island)
        island_row, island_at = islands.take(home)
        island = islands.values[island_at].astype(np.int64)
        scheduler = parts.add(
            len(island_row), "scheduler", np.full(len(island_row), control.scheduler_s), island_row, island
        )
        each = scheduler + np.arange(len(island_row))
        parts.resources(each, island + offsets["scheduler"])
        parts.after(controller + program.call[island_row], each, message_s)
        launch = parts.add(len(row), "launch", prepare_s, row, host)
        parts.resources(launch + np.arange(len(row)), host + offsets["executor"])
        at = np.searchsorted(
            island_row * machine.num_islands + island, row * machine.num_islands + classes.host_island[host]
        )
        parts.after(each[at], launch + np.arange(len(row)), message_s)
    else:
        pairs = np.unique(np.stack([program.call[row], host], axis=1), axis=0)
        python = parts.add(len(pairs), "python", np.full(len(pairs), control.python_call_s), pairs[:, 0], pairs[:, 1])
        parts.resources(python + np.arange(len(pairs)), pairs[:, 1] + offsets["executor"])
        parts.arrives(python, pairs[:, 0])
        launch = parts.add(len(row), "launch", prepare_s, row, host)
        parts.resources(launch + np.arange(len(row)), host + offsets["executor"])
        hosts = classes.num_hosts
        at = np.searchsorted(pairs[:, 0] * hosts + pairs[:, 1], program.call[row] * np.int64(hosts) + host)
        parts.after(python + at, launch + np.arange(len(row)), 0.0)
        # a host goes through its calls in their order: no call before the launches of the one before
        order = np.argsort(program.call_client, kind="stable")
        begins = np.r_[True, np.diff(program.call_client[order]) != 0]
        rank = np.empty(calls)
        run = np.arange(calls)
        rank[order] = run - np.maximum.accumulate(np.where(begins, run, 0))
        parts.levels(python + np.arange(len(pairs)), rank[pairs[:, 0]])
        parts.levels(launch + np.arange(len(row)), rank[program.call[row]])
    parts.after(launch + np.arange(len(row)), row, launch_s)

    # what the hosts cannot prepare ahead
    ptr = np.zeros(program.num_gangs + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=program.num_gangs), out=ptr[1:])
    launches = Rows(ptr, host)
    source, target = program.edge_src.astype(np.int64), program.edge_dst.astype(np.int64)
    late = ~program.regular[target]
    edge, of_target = launches.take(target[late])
    parts.after(source[late][edge], launch + of_target, launch_s + message_s)
    if dispatch == "sequential":
        edge, of_target = launches.take(target[~late])
        again, of_source = launches.take(source[~late][edge])
        a, b = of_source, of_target[again]
        alike = (host[a] == host[b]) & (classes.host_size[host[a]] == 1)
        parts.after(launch + a, launch + b, np.where(alike, 0.0, message_s))


def _cores_of_calls(program: ShardedProgram, classes: Classes) -> np.ndarray:
    """int64 [K]: different cores that the gangs of each call run on."""
    found = np.zeros(len(program.call_client), np.int64)
    pairs = np.unique(np.stack([program.call.astype(np.int64), program.slice.astype(np.int64)], axis=1), axis=0)
    row, at = Rows(classes.slice_ptr, classes.slice_class).take(pairs[:, 1])
    seen = np.unique(np.stack([pairs[row, 0], classes.slice_class[at].astype(np.int64)], axis=1), axis=0)
    np.add.at(found, seen[:, 0], classes.class_size[seen[:, 1]])
    return found


class SliceCosts:
    """Seconds of collectives and transfers of a program's slices on a machine."""

    def __init__(self, machine: Machine, program: ShardedProgram, classes: Classes) -> None:
        self.machine, self.classes = machine, classes
        self.cores = program.slice_cores.tolist()

    def _of(self, ptr: np.ndarray, values: np.ndarray, slice_: int) -> np.ndarray:
        return values[ptr[slice_] : ptr[slice_ + 1]].astype(np.int64)

    def islands(self, slice_: int) -> np.ndarray:
        return self._of(self.classes.island_ptr, self.classes.slice_island, slice_)

    def on_a_host(self, slice_: int) -> int:
        """The most cores of a slice on one host."""
        return int(self._of(self.classes.host_ptr, self.classes.slice_host_cores, slice_).max())

    def collective(self, kind: int, slice_: int, size: float) -> float:
        """Seconds of a collective of ``size`` bytes a core."""
        name, machine, cores = COLLECTIVE_KINDS[kind], self.machine, self.cores[slice_]
        count = len(self.islands(slice_))
        inside = -(-cores // count)

        def run(what: str, devices: int, size: float) -> float:
            if devices <= 1 or machine.ici is None:
                return 0.0
            link = machine.ici
            return collective_s(what, machine.collective, devices, size, link.bytes_per_s, link.latency_s)

        if count == 1:
            return run(name, cores, size)
        assert machine.dcn is not None
        share = size / inside  # of each core, after it was reduced inside
        if name == "all_to_all":
            share = size
        here = self.on_a_host(slice_)
        piece_s = max(share / count * here / machine.dcn.bytes_per_s, share / count / machine.pcie.bytes_per_s)
        step_s = piece_s + machine.dcn.latency_s + 2 * machine.pcie.latency_s
        between = (count - 1) * step_s
        if name == "all_reduce":
            return run("reduce_scatter", inside, size) + 2 * between + run("all_gather", inside, size)
        return run(name, inside, size) + between

    def transfer(
        self, source: int, target: int, reshard: int, size: int, offsets: dict[str, int]
    ) -> tuple[float, list[int], int]:
        """(seconds, resources, bytes of the copy on each receiving core) of a tensor from one slice to another."""
        machine, classes = self.machine, self.classes
        sends, receives = self.cores[source], self.cores[target]
        copy = size if reshard == GATHER else -(-size // receives)
        out = self._of(classes.slice_ptr, classes.slice_class, source)
        into = self._of(classes.slice_ptr, classes.slice_class, target)
        if sends == receives and classes.first_core[source] == classes.first_core[target]:
            kind = COLLECTIVE_KINDS.index("all_to_all" if reshard == TRANSPOSE else "all_gather")
            seconds = self.collective(kind, source, size / sends if reshard == TRANSPOSE else size)
            rows = [*(out + offsets["ici out"]), *(out + offsets["ici in"])]
            if len(self.islands(source)) > 1:
                rows += self._cards(source, offsets, ("dcn out", "dcn in"))
            return seconds, sorted(map(int, rows)), copy
        islands = {*self.islands(source).tolist(), *self.islands(target).tolist()}
        gather_s = self.collective(COLLECTIVE_KINDS.index("all_gather"), target, size) if reshard == GATHER else 0.0
        if len(islands) == 1 and machine.ici is not None:
            seconds = machine.ici.latency_s + max(size / sends, size / receives) / machine.ici.bytes_per_s
            rows = [*(out + offsets["ici out"]), *(into + offsets["ici in"])]
            if gather_s:
                rows += [*(into + offsets["ici out"])]
            return seconds + gather_s, sorted({*map(int, rows)}), copy
        assert machine.dcn is not None
        slowest = max(
            max(size / sends, size / receives) / machine.pcie.bytes_per_s,
            max(size / sends * self.on_a_host(source), size / receives * self.on_a_host(target))
            / machine.dcn.bytes_per_s,
        )
        seconds = 2 * machine.pcie.latency_s + machine.dcn.latency_s + slowest
        rows = [*(out + offsets["pcie up"]), *(into + offsets["pcie down"])]
        rows += self._cards(source, offsets, ("dcn out",)) + self._cards(target, offsets, ("dcn in",))
        if gather_s:
            rows += [*(into + offsets["ici out"]), *(into + offsets["ici in"])]
        return seconds + gather_s, sorted({*map(int, rows)}), copy

    def _cards(self, slice_: int, offsets: dict[str, int], kinds: Sequence[str]) -> list[int]:
        hosts = self._of(self.classes.host_ptr, self.classes.slice_host, slice_)
        return [int(host) + offsets[kind] for kind in kinds for host in hosts]


class _Parts:
    """Collects tasks and what belongs to them."""

    def __init__(self) -> None:
        self.count = 0
        self._tasks: list[tuple[np.ndarray, ...]] = []
        self._arrives: list[tuple[int, np.ndarray | None]] = []
        self._lists: dict[str, list[tuple[np.ndarray, ...]]] = {
            "resource": [], "after": [], "read": [], "memory": [], "hold": [], "level": []
        }  # fmt: skip

    def add(self, count: int, kind: str, duration_s: np.ndarray, owner: np.ndarray, place: np.ndarray | int) -> int:
        """Adds tasks. Returns the number of the first."""
        first, self.count = self.count, self.count + count
        code = np.full(count, TASK_KINDS.index(kind), np.int8)
        self._tasks.append(
            (code, np.asarray(duration_s, np.float64), np.asarray(owner, np.int32),
             np.broadcast_to(np.asarray(place, np.int32), (count,)))
        )  # fmt: skip
        return first

    def arrives(self, first: int, calls: np.ndarray | None = None) -> None:
        """Tasks from ``first`` on, one a call (or one for each entry of ``calls``), arrive when their calls do."""
        self._arrives.append((first, calls))

    def resources(self, task: np.ndarray, resource: np.ndarray) -> None:
        self._lists["resource"].append((task, resource))

    def after(self, before: np.ndarray, task: np.ndarray, delay_s: float | np.ndarray) -> None:
        self._lists["after"].append((before, task, np.broadcast_to(np.asarray(delay_s, np.float64), (len(task),))))

    def reads(self, source: np.ndarray, task: np.ndarray) -> None:
        self._lists["read"].append((source, task))

    def memory(self, task: np.ndarray, at: np.ndarray, keep: np.ndarray, temp: np.ndarray) -> None:
        self._lists["memory"].append((task, at, keep, temp))

    def holds(self, task: np.ndarray, resource: np.ndarray) -> None:
        self._lists["hold"].append((task, resource))

    def levels(self, task: np.ndarray, level: np.ndarray) -> None:
        self._lists["level"].append((task, level))

    def meaning(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kind, _, owner, place = (np.concatenate(column) for column in zip(*self._tasks, strict=True))
        return kind, owner, place

    def _column(self, name: str, index: int, kind: type) -> np.ndarray:
        parts: list[np.ndarray] = [np.asarray(row[index], kind) for row in self._lists[name]]
        return np.concatenate(parts) if parts else np.zeros(0, kind)

    def tables(
        self,
        group: np.ndarray,
        cores: np.ndarray,
        arrival_s: np.ndarray,
        hold_after_s: np.ndarray,
        capacity: np.ndarray,
        resident: np.ndarray,
        weight: np.ndarray,
    ) -> Tables:
        total = self.count
        arrival, level = np.zeros(total), np.zeros(total)
        for first, calls in self._arrives:
            times = arrival_s if calls is None else arrival_s[calls]
            arrival[first : first + len(times)] = times
        for task, value in self._lists["level"]:
            level[task] = value

        def wide(column: np.ndarray, kind: type) -> np.ndarray:
            return np.concatenate([np.asarray(column, kind), np.zeros(total - len(column), kind)])

        def rows(name: str, key: int) -> tuple[np.ndarray, np.ndarray]:
            at = self._column(name, key, np.int64)
            ptr = np.zeros(total + 1, np.int64)
            np.cumsum(np.bincount(at, minlength=total), out=ptr[1:])
            return ptr, np.argsort(at, kind="stable")

        task, resource = self._column("resource", 0, np.int64), self._column("resource", 1, np.int64)
        order = np.lexsort((resource, task))
        resource_ptr = np.zeros(total + 1, np.int64)
        np.cumsum(np.bincount(task, minlength=total), out=resource_ptr[1:])
        after_ptr, after_order = rows("after", 0)
        read_ptr, read_order = rows("read", 1)
        memory_ptr, memory_order = rows("memory", 0)
        hold_ptr, hold_order = rows("hold", 0)
        duration = np.concatenate([one[1] for one in self._tasks])
        return Tables(
            duration_s=duration,
            level=level,
            arrival_s=arrival,
            group=wide(group, np.int32),
            cores=wide(cores, np.float64),
            resource_ptr=resource_ptr,
            resource=resource[order].astype(np.int32),
            before=np.bincount(self._column("after", 1, np.int64), minlength=total).astype(np.int32),
            after_ptr=after_ptr,
            after=self._column("after", 1, np.int32)[after_order],
            delay_s=self._column("after", 2, np.float64)[after_order],
            read_ptr=read_ptr,
            read=self._column("read", 0, np.int32)[read_order],
            readers=np.bincount(self._column("read", 0, np.int64), minlength=total).astype(np.int32),
            memory_ptr=memory_ptr,
            memory_class=self._column("memory", 1, np.int32)[memory_order],
            keep_bytes=self._column("memory", 2, np.int64)[memory_order],
            temp_bytes=self._column("memory", 3, np.int64)[memory_order],
            hold_ptr=hold_ptr,
            hold=self._column("hold", 1, np.int32)[hold_order],
            hold_after_s=wide(hold_after_s, np.float64),
            capacity_bytes=capacity,
            resident_bytes=resident,
            weight=weight,
        )
