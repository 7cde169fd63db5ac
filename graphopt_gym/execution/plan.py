"""What each worker does in a step, and what it sends to whom: from a program and the device of each op.

As in the simulator, views go with what they view and are made anew by each reader; a tensor is sent once to each other
device that reads it, as soon as it is there. What the simulator does not need to know is settled here: a write in place
waits for the readers of what was there before; who reads a storage that another device wrote in place gets the whole of
it; and a parameter that is updated elsewhere than it is kept is brought home after the step, which is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.execution.program import Layout, Program
from graphopt_gym.graphs.capture import Ref, replaced

ALIGNMENT = 64  # bytes, of a tensor in a buffer


class Slot(NamedTuple):
    """Stands for a value of the worker in a call's arguments."""

    number: int


class Ghost(NamedTuple):
    """Stands for a tensor of which only shape and type matter."""

    dtype: str
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True)
class Node:
    """Something that a worker does in a step.

    ``kind``: ``source`` (a value that is there when the step begins; with ``func``: made just before), ``op`` (runs
    when the device is free), ``update`` (likewise, of the optimiser), and those that are done at once: ``view``,
    ``item`` (an output of a call with several), ``strided`` (a tensor of a storage that was written in place),
    ``arrival``, ``send``, ``collect``.
    """

    kind: str
    op: int = -1
    label: str = ""
    func: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    out: int = -1  # the slot of what it makes
    waits: int = 0
    then: list[int] = field(default_factory=list)
    reads: tuple[int, ...] = ()  # slots
    source: int = -1  # the call whose value it is
    fresh: bool = False  # a source that is written in place and begins each step as it was
    normal: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # size and stride that its result must have
    random: int = -1
    number: int = -1  # of a transfer; of an item; of an update
    name: str = ""  # of a result


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor's way from one worker to another, through the buffer of that pair."""

    number: int
    source: int
    target: int
    offset: int
    bytes: int
    dtype: str  # empty: a storage, byte by byte
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()


@dataclass(slots=True)
class DevicePlan:
    """A worker's part of a step."""

    device: int
    nodes: list[Node]
    slots: int
    kept: list[tuple[int, int]]  # (slot, call) of parameters and buffers that live here
    settle_out: list[tuple[int, int]]  # (slot, transfer) of what goes home after the step
    settle_in: list[tuple[int, int]]  # (transfer, slot)
    optimizer: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A step on D workers."""

    devices: list[DevicePlan]
    transfers: list[Transfer]
    buffer_bytes: dict[tuple[int, int], int]  # by (source, target)
    num_ops: int


def make_plan(program: Program, placement: np.ndarray, devices: int) -> Plan:
    """The plan of a step whose op n runs on worker ``placement[n]``, int [N]; see :func:`check_placement`."""
    return _Planner(program, placement, devices).plan()


class _Planner:
    def __init__(self, program: Program, placement: np.ndarray, devices: int) -> None:
        self.program = program
        self.home = placement.tolist()
        self.count = devices
        self.nodes: list[list[Node]] = [[] for _ in range(devices)]
        self.slots = [0] * devices
        self.made: list[dict[Any, tuple[int, int]]] = [{} for _ in range(devices)]  # key -> (slot, node)
        self.sent: dict[Any, int] = {}  # (item, target) -> its arrival there
        self.transfers: list[Transfer] = []
        self.buffers: dict[tuple[int, int], int] = {}
        self.readers: list[dict[int, list[tuple[float, int]]]] = [{} for _ in range(devices)]
        self.writing: list[dict[int, list[tuple[int, int]]]] = [{} for _ in range(devices)]
        self.written: dict[tuple[int, int], tuple[int, int]] = {}  # (storage, position) -> (slot, node) at its device
        self.device_of_position: dict[int, int] = {}

    # -- nodes ---------------------------------------------------------------------------------------------------

    def add(self, device: int, node: Node, after: list[int]) -> int:
        number = len(self.nodes[device])
        self.nodes[device].append(node)
        for one in dict.fromkeys(after):
            self.nodes[device][one].then.append(number)
            node.waits += 1
        return number

    def slot(self, device: int) -> int:
        self.slots[device] += 1
        return self.slots[device] - 1

    def note_read(self, device: int, ref: Ref, at: int, node: int) -> None:
        storage = self.program.layouts[ref].storage
        if storage in self.program.writers:
            self.readers[device].setdefault(storage, []).append((at, node))

    def last_write(self, storage: int, at: int) -> int:
        """The position of the last writer of a storage before ``at``; -1: none."""
        return max((one for one in self.program.writers.get(storage, ()) if one < at), default=-1)

    def home_of_call(self, call: int) -> int:
        return self.home[self.program.op_of_call[call]]

    # -- values --------------------------------------------------------------------------------------------------

    def need(self, device: int, ref: Ref, at: int, whole: bool = False) -> tuple[int, int]:
        """(slot, node that makes it) of a tensor on a device, as a reader at a position finds it.

        ``whole``: with all of its storage behind it, to be written in place.
        """
        program, layout = self.program, self.program.layouts[ref]
        storage = layout.storage
        last = self.last_write(storage, at)
        if last >= ref.call:
            if last == ref.call and self.device_of_position[last] == device:
                return self.local(device, ref)
            return self.strided(device, ref, last)
        step = program.steps[ref.call]
        if step.view and step.reads:
            base = step.reads[0]
            if self.home[step.op] == device:
                return self.local(device, ref)
            if whole or "as_strided" in str(step.func):
                return self.strided(device, ref, last)
            if step.several or self.bytes_of(ref) < self.alias_bytes(base, ref.call):
                return self.arrival(device, ("tensor", ref), self.home[step.op], ref.call)
            return self.local(device, ref)  # of the same data: made here from what it views
        if self.home_of_call(ref.call) == device:
            return self.local(device, ref)
        if whole and not self.dense(ref):
            return self.strided(device, ref, last)
        return self.arrival(device, ("tensor", ref), self.home_of_call(ref.call), ref.call)

    def bytes_of(self, ref: Ref) -> int:
        return _bytes(self.program.layouts[ref])

    def alias_bytes(self, ref: Ref, at: int) -> int:
        """Bytes of the tensor that is sent where a view of ``ref`` is needed that is no smaller."""
        storage, step = self.program.layouts[ref].storage, self.program.steps[ref.call]
        if self.last_write(storage, at) >= ref.call:
            return self.program.storage_bytes[storage]
        if not (step.view and step.reads) or step.several:
            return self.bytes_of(ref)
        return min(self.alias_bytes(step.reads[0], ref.call), self.bytes_of(ref))

    def dense(self, ref: Ref) -> bool:
        """Whether a tensor is the whole of its storage, each byte once."""
        layout = self.program.layouts[ref]
        return (
            layout.offset == 0
            and _bytes(layout) == self.program.storage_bytes[layout.storage]
            and layout.stride == dense_stride(layout)
        )

    def local(self, device: int, ref: Ref) -> tuple[int, int]:
        """A tensor that is made on the device itself: by a call that runs there, or a view of what is there."""
        made = self.made[device]
        if (key := ("output", ref)) in made:
            return made[key]
        step = self.program.steps[ref.call]
        whole = ("call", ref.call)
        if whole not in made:
            if self.is_source(step.op):
                made[whole] = self.source(device, ref.call)
            else:
                assert step.view, f"{self.label(step.op)} is read before it runs"
                self.call_node(device, ref.call, "view")
        if not step.several:
            made[key] = made[whole]
        else:
            slot, node = made[whole]
            item = Node("item", out=self.slot(device), reads=(slot,), number=ref.output, normal=self.normal(ref))
            made[key] = item.out, self.add(device, item, [node])
        return made[key]

    def is_source(self, op: int) -> bool:
        return int(self.program.graph.op_class[op]) == 0

    def label(self, op: int) -> str:
        return self.program.graph.label(op)

    def source(self, device: int, call: int) -> tuple[int, int]:
        step, program = self.program.steps[call], self.program
        node = Node("source", step.op, self.label(step.op), out=self.slot(device), source=call, random=step.random)
        if step.func is not None:
            node.func, node.source = str(step.func), -1
            node.args, node.kwargs = self.arguments(device, call, [], [])
        else:
            storage = program.layouts[Ref(call, 0)].storage
            node.fresh = storage in program.writers and call not in program.kept
        return node.out, self.add(device, node, [])

    def arguments(
        self, device: int, call: int, reads: list[int], after: list[int]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments with slots for tensors; adds what is read, and what it waits for, to the lists."""
        step = self.program.steps[call]

        def by(ref: Ref) -> Any:
            if step.ghost:
                layout = self.program.layouts[ref]
                return Ghost(layout.dtype, layout.size, layout.stride)
            slot, node = self.need(device, ref, call, ref in step.writes)
            reads.append(slot)
            after.append(node)
            return Slot(slot)

        return replaced(step.args, Ref, by), {key: replaced(value, Ref, by) for key, value in step.kwargs.items()}

    def call_node(self, device: int, call: int, kind: str) -> int:
        step = self.program.steps[call]
        reads: list[int] = []
        after: list[int] = []
        args, kwargs = self.arguments(device, call, reads, after)
        node = Node(kind, step.op, self.label(step.op), str(step.func), args, kwargs, self.slot(device))
        node.reads, node.random = tuple(reads), step.random
        if kind == "op" and not step.several:
            node.normal = self.normal(Ref(call, 0))
        number = self.add(device, node, after)
        self.made[device]["call", call] = node.out, number
        if kind == "op":
            for ref in step.reads:
                self.note_read(device, ref, call, number)
            for ref in step.writes:
                slot, _ = self.need(device, ref, call, True)
                self.note_write(device, ref, call, slot, number)
        return number

    def normal(self, ref: Ref) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Size and stride that a kernel's output must have for what follows; fake tensors' and real ones' differ."""
        layout = self.program.layouts.get(ref)
        if layout is None or self.program.root[layout.storage] != ref:
            return None
        return layout.size, layout.stride

    def note_write(self, device: int, ref: Ref, at: int, slot: int, node: int) -> None:
        storage = self.program.layouts[ref].storage
        self.written[storage, at] = slot, node
        self.device_of_position[at] = device
        self.writing[device].setdefault(storage, []).append((at, node))

    def storage(self, device: int, storage: int, last: int) -> tuple[int, int]:
        """(slot, node) of a tensor that lies in a storage as its writer at ``last`` (-1: as it was made) left it."""
        root = self.program.root[storage]
        if last < 0:
            home = self.home_of_call(root.call)
            if home == device or self.dense(root):
                return self.need(device, root, root.call)
            return self.arrival(device, ("storage", storage, last), home, root.call)
        home = self.device_of_position[last]
        if home == device:
            return self.written[storage, last]
        return self.arrival(device, ("storage", storage, last), home, last)

    def strided(self, device: int, ref: Ref, last: int) -> tuple[int, int]:
        made = self.made[device]
        key = ("strided", ref, last)
        if key not in made:
            layout = self.program.layouts[ref]
            slot, node = self.storage(device, layout.storage, last)
            args = (layout.dtype, layout.size, layout.stride, layout.offset)
            one = Node("strided", args=args, out=self.slot(device), reads=(slot,))
            made[key] = one.out, self.add(device, one, [node])
        return made[key]

    def arrival(self, device: int, item: tuple[Any, ...], home: int, at: int) -> tuple[int, int]:
        made = self.made[device]
        key = ("arrival", item)
        if key not in made:
            transfer, slot, node = self.transfer(item, home, device)
            send = Node("send", reads=(slot,), number=transfer)
            sending = self.add(home, send, [node])
            self.note_read(home, item[1] if item[0] == "tensor" else self.program.root[item[1]], at, sending)
            one = Node("arrival", out=self.slot(device), number=transfer, waits=1)
            number = len(self.nodes[device])
            self.nodes[device].append(one)
            made[key] = one.out, number
        return made[key]

    def transfer(self, item: tuple[Any, ...], home: int, target: int) -> tuple[int, int, int]:
        """(its number, slot and node at its home) of a new transfer."""
        if item[0] == "tensor":
            layout = self.program.layouts[item[1]]
            slot, node = self.need(home, item[1], item[1].call)
            size = _bytes(layout)
            facts: tuple[Any, ...] = (layout.dtype, layout.size, dense_stride(layout))
        else:
            slot, node = self.storage(home, item[1], item[2])
            size, facts = self.program.storage_bytes[item[1]], ("", (), ())
        offset = self.buffers.get((home, target), 0)
        self.buffers[home, target] = offset + -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        self.transfers.append(Transfer(len(self.transfers), home, target, offset, size, *facts))
        return len(self.transfers) - 1, slot, node

    # -- the whole -----------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        program = self.program
        for call, step in program.steps.items():
            if step.view or self.is_source(step.op):
                continue
            self.device_of_position[call] = self.home[step.op]
            self.call_node(self.home[step.op], call, "op")
        for name, ref in program.results.items():
            device = self.home_of(ref)
            slot, node = self.need(device, ref, program.end)
            number = self.add(device, Node("collect", reads=(slot,), name=name), [node])
            self.note_read(device, ref, program.end, number)
        for k, update in enumerate(program.updates):
            device, at = self.home[update.op], program.end + 1 + k
            param, made = self.need(device, update.param, at, True)
            grad, after = self.need(device, update.grad, at)
            one = Node("update", update.op, self.label(update.op), reads=(param, grad), number=k)
            number = self.add(device, one, [made, after])
            self.note_read(device, update.grad, at, number)
            self.note_write(device, update.param, at, param, number)
        kept: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        settle_out: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        settle_in: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        for call in sorted(program.kept):
            home = self.home_of_call(call)
            slot, _ = self.local(home, Ref(call, 0))
            kept[home].append((slot, call))
            storage = program.layouts[Ref(call, 0)].storage
            last = self.last_write(storage, math.inf)  # type: ignore[arg-type]
            if last >= 0 and (target := self.device_of_position[last]) != home:
                number, other, _ = self.transfer(("storage", storage, last), target, home)
                settle_out[target].append((other, number))
                settle_in[home].append((number, slot))
        for device in range(self.count):
            self.order_writes(device)
        plans = [
            DevicePlan(
                device,
                self.nodes[device],
                self.slots[device],
                kept[device],
                settle_out[device],
                settle_in[device],
                program.optimizer or "",
            )
            for device in range(self.count)
        ]
        return Plan(plans, self.transfers, self.buffers, program.graph.num_ops)

    def home_of(self, ref: Ref) -> int:
        """Where a result is when the step ends."""
        last = self.last_write(self.program.layouts[ref].storage, self.program.end)
        return self.device_of_position[last] if last >= ref.call else self.home_of_call(ref.call)

    def order_writes(self, device: int) -> None:
        """A writer waits for the readers of what it overwrites; those before an earlier writer have run by then."""
        nodes = self.nodes[device]
        for storage, writers in self.writing[device].items():
            readers = self.readers[device].get(storage, [])
            before = -1
            for at, writer in sorted(writers):
                for position, reader in readers:
                    if before <= position < at and reader != writer and writer not in nodes[reader].then:
                        nodes[reader].then.append(writer)
                        nodes[writer].waits += 1
                before = at


def _bytes(layout: Layout) -> int:
    from graphopt_gym.graphs.graph import DTYPE_BYTES

    return math.prod(layout.size) * DTYPE_BYTES[layout.dtype]


def dense_stride(layout: Layout) -> tuple[int, ...]:
    """Strides without gaps whose dimensions lie in the order of the layout's: what kernels give for such an operand."""
    order = sorted(range(len(layout.size)), key=lambda d: (-layout.stride[d], d))
    stride, step = [0] * len(layout.size), 1
    for dimension in reversed(order):
        stride[dimension] = step
        step *= max(layout.size[dimension], 1)
    return tuple(stride)
