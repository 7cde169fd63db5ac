"""A worker: a process that is one device, and runs its part of a plan, one op at a time.

The main thread runs ops. A thread for each other worker copies tensors into the buffer of that pair and tells the other
end; what has arrived is told by a pipe, which the main thread looks into between two ops. Where memory is shared, the
main thread sends by itself what is small, and everything where no core is left for other threads: waking a thread takes
longer than copying some 100 KiB, and a thread without a core of its own stops the ops that it should not stop.

On CPUs a buffer lies in memory that both processes share. On GPUs (and on CPUs with ``transport="gloo"``) each end has
its own, and ``torch.distributed`` carries what is in it.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import io
import mmap
import os
import queue
import select
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt_gym.execution.plan import DevicePlan, Ghost, Node, Slot, Transfer
from graphopt_gym.graphs.capture import flat

if TYPE_CHECKING:
    import numpy as np
    import torch

RECORD = struct.Struct("<qq")  # what a pipe carries: a transfer, and what became of it
ARRIVED, SENT, FAILED = range(3)
INLINE_BYTES = 2**18  # up to so many a worker sends by itself
KEPT_BYTES = 31 << 20  # just below glibc's largest dynamic threshold
LEARNING_RATE, MOMENTUM, BETAS, EPSILON = 1e-3, 0.9, (0.9, 0.999), 1e-8  # torch.optim's defaults; momentum: usual


@dataclass(frozen=True)
class Setting:
    """What a worker is told when it is started."""

    rank: int
    count: int
    device: str  # "cpu" or "cuda:1"
    transport: str  # "shared", "gloo" or "nccl"
    folder: str  # of the session
    parent: int  # the process that started it
    modules: tuple[str, ...] = ()  # that define operators
    inline_bytes: int | None = None  # see Workers


@dataclass(frozen=True)
class Part:
    """A plan, as a worker gets it."""

    plan: DevicePlan
    transfers: tuple[Transfer, ...]  # all
    values: str  # the file of the sources' values
    order: str
    priorities: np.ndarray | None = None  # float64 [N] of ops, where the order goes by them


def serve(setting: Setting, pipe: Any, inbox: Any, others: dict[int, Any]) -> None:
    """What a worker's process does until it is told to stop, or the other end of ``pipe`` is gone.

    Args:
        pipe: to the first process: commands and answers.
        inbox: this end of the pipe that carries records.
        others: the ends of those of the other workers, and of its own, by rank.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the first process ends us
    if setting.folder:
        sys.setswitchinterval(1e-4)
    try:
        worker = Worker(setting, inbox, others)
        pipe.send(("ready",))
        while True:
            name, *arguments = pipe.recv()
            if name == "stop":
                worker.stop()
                break
            pipe.send((name, getattr(worker, name)(*arguments)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({Path(last.filename).name}:{last.lineno})" if not isinstance(error, Failure) else ""
            pipe.send(("failed", f"{error}{where}" if isinstance(error, Failure) else f"{error!r}{where}"))
    finally:
        with contextlib.suppress(OSError):
            pipe.close()
        os._exit(0)  # threads may wait for tensors that never come


class Failure(Exception):
    """Something that is said in one line to the first process."""


class Worker:
    """One device. Its methods are the commands."""

    def __init__(self, setting: Setting, inbox: Any, others: dict[int, Any]) -> None:
        import importlib

        import torch

        self.setting = setting
        for module in setting.modules:
            importlib.import_module(module)
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.empty(KEPT_BYTES, dtype=torch.uint8)  # freed once, glibc keeps what is freed: no page faults
        self.device = torch.device(setting.device)
        self.cuda = self.device.type == "cuda"
        if self.cuda:
            torch.cuda.set_device(self.device)
        self.inbox = inbox.fileno()
        self._pipes = inbox, others
        os.set_blocking(self.inbox, False)
        self.outboxes = {rank: one.fileno() for rank, one in others.items()}
        for outbox in self.outboxes.values():
            os.set_blocking(outbox, False)  # who waits for room there may be waited for
        self.poll = select.poll()
        self.poll.register(self.inbox, select.POLLIN)
        self.channel = _Channel(self) if setting.transport != "shared" else None
        spare = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = INLINE_BYTES if spare >= 2 * setting.count else sys.maxsize
        if setting.inline_bytes is not None:
            most = setting.inline_bytes
        self.inline_bytes = -1 if self.channel else most
        self.queues: dict[int, queue.SimpleQueue[Any]] = {}
        for target in range(setting.count):
            if target != setting.rank:
                self.queues[target] = queue.SimpleQueue()
                threading.Thread(target=self._send_all, args=(target,), daemon=True).start()
        self.buffers: dict[int, torch.Tensor] = {}  # transfer -> its bytes
        self.placed: dict[int, torch.Tensor] = {}  # transfer -> the tensor in its buffer
        self.sending: list[tuple[int, int, int, int]] = []  # transfer, request, start, finish (ns)
        self.queued = 0  # what threads have to send yet

    def stop(self) -> None:
        for one in self.queues.values():
            one.put(None)
        if self.channel:
            self.channel.stop()

    # -- a plan --------------------------------------------------------------------------------------------------

    def load(self, part: Part) -> None:
        """Take a plan in place of the one before."""
        import torch

        plan = self.plan = part.plan
        self.nodes = plan.nodes
        self.order, self.priorities = part.order, part.priorities
        self.values: list[Any] = []
        self._make_buffers(part.transfers)
        stored = torch.load(part.values, mmap=True, weights_only=True)
        self.given: dict[int, torch.Tensor] = {}  # node -> value
        for number, node in enumerate(self.nodes):
            if node.kind == "source" and node.source >= 0:
                self.given[number] = self._own(stored[node.source])
        del stored
        self.operators: list[Any] = [_operator(node.func) if node.func else None for node in self.nodes]
        self.calls = [self._compiled(node) for node in self.nodes]
        self.waits = [node.waits for node in self.nodes]
        self.uses = [0] * plan.slots
        for node in self.nodes:
            for slot in node.reads:
                self.uses[slot] += 1
        for slot, _ in plan.settle_out:
            self.uses[slot] += 1
        self.kept = {slot for slot, _ in plan.kept}
        for slot in self.kept:
            self.uses[slot] += 1  # never falls to 0
        self.arrival_of = {node.number: number for number, node in enumerate(self.nodes) if node.kind == "arrival"}
        self.send_of = {node.number: number for number, node in enumerate(self.nodes) if node.kind == "send"}
        self.run_nodes = [n for n, node in enumerate(self.nodes) if node.kind in ("op", "update")]
        self.sources = [n for n, node in enumerate(self.nodes) if node.kind == "source"]
        self.sources.sort(key=lambda n: self.nodes[n].op)
        self.state: dict[int, Any] = {}  # of the optimiser, by update
        self.step_count = 0
        self.collected: dict[str, Any] = {}
        gc.collect()
        gc.freeze()  # plans are many objects; looking through them in a step would count

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on this device, in the same layout, in a storage of its own."""
        import torch

        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        if all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return copy.copy_(tensor)
        stored = tuple(slice(None) if stride else slice(1) for stride in tensor.stride())
        copy[stored].copy_(tensor[stored])  # an expanded one: what is stored of it
        return copy

    def _make_buffers(self, transfers: tuple[Transfer, ...]) -> None:
        """Room for what is sent and what comes: each transfer's tensor in a storage of its own."""
        import torch

        self.transfers, self.buffers, self.placed = transfers, {}, {}
        maps: dict[tuple[int, int], mmap.mmap] = {}
        for one in transfers:
            pair = one.source, one.target
            if self.setting.rank not in pair:
                continue
            if self.setting.transport != "shared":
                flat = torch.zeros(one.bytes, dtype=torch.uint8, device=self.device)
            elif one.bytes:
                if pair not in maps:
                    with open(buffer_path(self.setting.folder, *pair), "r+b") as file:
                        maps[pair] = mmap.mmap(file.fileno(), 0)
                flat = torch.frombuffer(maps[pair], dtype=torch.uint8, count=one.bytes, offset=one.offset)
            else:
                flat = torch.zeros(0, dtype=torch.uint8)
            self.buffers[one.number] = flat
            shaped = flat.view(getattr(torch, one.dtype)).as_strided(one.size, one.stride, 0) if one.dtype else flat
            self.placed[one.number] = shaped

    def _compiled(self, node: Node) -> tuple[list[Any], list[tuple[int, int]], list[tuple[int, Any]], dict[str, Any]]:
        """(arguments, (position, slot) of tensors, (position, template) of lists with tensors, keyword arguments)."""
        if node.kind not in ("op", "view", "source") or not node.func:
            return [], [], [], {}
        args = [self._constant(value) for value in node.args]
        flat = [(position, value.number) for position, value in enumerate(args) if isinstance(value, Slot)]
        nested = [
            (position, value) for position, value in enumerate(args) if isinstance(value, list | tuple) and
            not isinstance(value, Slot) and _has_slot(value)
        ]  # fmt: skip
        kwargs = {key: self._constant(value) for key, value in node.kwargs.items()}
        if "device" in kwargs and kwargs["device"] is None:
            kwargs["device"] = self.device
        if any(isinstance(value, Ghost) for value in _flat(node.args)) and "device" in _argument_names(node.func):
            kwargs["device"] = self.device
        return args, flat, nested, kwargs

    def _constant(self, value: Any) -> Any:
        import torch

        if isinstance(value, Slot):
            return value
        if isinstance(value, Ghost):
            return torch.empty_strided(value.size, value.stride, dtype=getattr(torch, value.dtype), device="meta")
        if isinstance(value, torch.device):
            return self.device
        if isinstance(value, list | tuple):
            return type(value)(self._constant(item) for item in value)
        return value

    # -- a step --------------------------------------------------------------------------------------------------

    def prepare(self, seed: int | None = None) -> None:
        """What is there when a step begins. ``seed``: of each random op, so that it gives the same on any device."""
        self.seed = seed
        self.values = [None] * self.plan.slots
        self.left = list(self.waits)
        self.using = list(self.uses)
        self.sending = []
        for number in self.sources:
            node = self.nodes[number]
            if node.source >= 0:
                value = self.given[number]
                self.values[node.out] = self._own(value) if node.fresh else value
            else:
                self.values[node.out] = self._call(number)
        self.collected = {}
        if self.cuda:
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def go(self, start_ns: int, record: bool = False) -> dict[str, Any]:
        """Run a step that begins at ``start_ns`` of the machine's monotonic clock.

        Returns:
            ``late_ns``: how long after ``start_ns`` this worker came; ``finish_ns``: after ``start_ns``, when its last
            op was done; ``waited_ns``: how long other threads had the core that it could have run on (0: not known
            here); ``busy_ns``: its ops' times, added up; with ``record`` also ``ops``, rows of (op, start,
            finish), and ``transfers``, rows of (transfer, request, start, finish), nanoseconds after ``start_ns``.
        """
        now = time.monotonic_ns
        late = now() - start_ns
        while now() < start_ns:
            pass
        timer = _CudaTimer(self.device) if self.cuda else None
        waited = _waited_ns()
        nodes = self.nodes
        ready: list[tuple[float, int, int]] = []
        priorities = self.priorities
        if priorities is not None:
            key = lambda n: -priorities[nodes[n].op]  # noqa: E731
        else:
            key = (lambda n: 0) if self.order == "fifo" else lambda n: nodes[n].op
        in_order = sorted(self.run_nodes, key=lambda n: nodes[n].op) if self.order == "stream" else []
        in_order.reverse()
        counter = 0
        starting: list[int] = []

        def push(found: list[int]) -> None:
            nonlocal counter
            for number in sorted(found, key=lambda n: nodes[n].op):
                counter += 1
                heapq.heappush(ready, (key(number), counter, number))

        for number in self.sources:
            starting += self._complete(number)
        starting += [n for n in self.run_nodes if not nodes[n].waits]
        push(starting)
        todo = len(self.run_nodes)
        busy, finish, rows = 0, now(), []
        while todo or self.queued:
            for number, what in self._messages():
                if what == FAILED:
                    raise Failure("a transfer to another worker failed: it has ended")
                self.queued -= what == SENT
                push(self._complete((self.arrival_of if what == ARRIVED else self.send_of)[number]))
            if not ready or (in_order and ready[0][2] != in_order[-1]):
                if todo or self.queued:
                    self._wait()
                continue
            number = heapq.heappop(ready)[2]
            if in_order:
                in_order.pop()
            begin = now()
            if timer:
                timer.start()
            self._run(number)
            if timer:
                timer.stop()
            finish = now()
            busy += finish - begin
            todo -= 1
            if record:
                rows.append((nodes[number].op, begin - start_ns, finish - start_ns))
            push(self._complete(number))
        waited = _waited_ns() - waited
        answer: dict[str, Any] = {"waited_ns": waited, "late_ns": late, "finish_ns": finish - start_ns, "busy_ns": busy}
        if timer:
            import torch

            torch.cuda.synchronize(self.device)
            answer |= timer.times(start_ns)
            answer["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        if record:
            answer["ops"] = rows
            answer["transfers"] = [(one[0], *(at - start_ns for at in one[1:])) for one in self.sending]
        return answer

    def settle(self) -> None:
        """Bring home what was changed elsewhere than it is kept."""
        for slot, transfer in self.plan.settle_out:
            self._send(transfer, self.values[slot])
        missing = dict(self.plan.settle_in)
        while missing or self.queued:
            for number, what in self._messages():
                if what == FAILED:
                    raise Failure("a transfer to another worker failed: it has ended")
                if what == SENT:
                    self.queued -= 1
                else:
                    _as_bytes(self.values[missing.pop(number)]).copy_(self.buffers[number])
            if missing or self.queued:
                self._wait()
        self.values = []

    def collect(self) -> bytes:
        """The results that are here, by name, as ``torch.save`` writes them."""
        return _saved({name: value.cpu() for name, value in self.collected.items()})

    def parameters(self) -> bytes:
        """The parameters and buffers that are kept here, by call."""
        where = {node.out: number for number, node in enumerate(self.nodes) if node.kind == "source"}
        return _saved({call: self.given[where[slot]].cpu() for slot, call in self.plan.kept})

    def bounce(self, size: int, count: int, other: int, begins: bool) -> list[int]:
        """Send a tensor of ``size`` bytes to a worker and back, ``count`` times: nanoseconds of each round."""
        import torch

        first, second = (self.setting.rank, other) if begins else (other, self.setting.rank)
        facts = (size, "uint8", (size,), (1,))
        self._make_buffers((Transfer(0, first, second, 0, *facts), Transfer(1, second, first, 0, *facts)))
        mine = 0 if begins else 1
        value, rounds = torch.zeros(size, dtype=torch.uint8, device=self.device), []
        arrived = 0
        begin = time.monotonic_ns()
        if begins:
            self._send(mine, value)
        while arrived < count or self.queued:
            for _, what in self._messages():
                if what == FAILED:
                    raise Failure("a transfer to another worker failed: it has ended")
                self.queued -= what == SENT
                if what == ARRIVED:
                    arrived += 1
                    rounds.append(time.monotonic_ns() - begin)
                    begin = time.monotonic_ns()
                    if not begins or arrived < count:
                        self._send(mine, value)
            if arrived < count or self.queued:
                self._wait()
        return rounds

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _call(self, number: int) -> Any:
        import torch

        args, flat, nested, kwargs = self.calls[number]
        values = self.values
        given = args.copy()
        for position, slot in flat:
            given[position] = values[slot]
        for position, template in nested:
            given[position] = _filled(template, values)
        if kwargs:
            kwargs = {key: _filled(value, values) for key, value in kwargs.items()}
        node = self.nodes[number]
        if node.random >= 0 and self.seed is not None:
            torch.manual_seed(self.seed + node.random)
        try:
            return self.operators[number](*given, **kwargs)
        except Exception as error:
            raise self._failure(node, error) from error

    def _failure(self, node: Node, error: Exception) -> Failure:
        kind = "gpu" if self.cuda else "cpu"
        if isinstance(error, NotImplementedError):
            return Failure(
                f"{node.label} has no kernel here: capture the model with --target {kind} and solve it again"
            )
        line = " ".join(str(error).split())[:300]
        return Failure(f"{node.label} fails: {type(error).__name__}: {line}")

    def _run(self, number: int) -> None:
        """An op or an update."""
        node = self.nodes[number]
        if node.kind == "update":
            self._update(node)
            return
        self.values[node.out] = _normal(self._call(number), node)

    def _update(self, node: Node) -> None:
        import torch

        param, grad = (self.values[slot] for slot in node.reads)
        if grad.stride() != param.stride():
            grad = torch.empty_like(param).copy_(grad)
        state = self.state.get(node.number)
        first = state is None
        if self.plan.optimizer == "adam":
            if state is None:
                state = torch.zeros_like(param), torch.zeros_like(param), torch.zeros((), device=param.device)
            mean, square, count = state
            count += 1
            torch._fused_adam_(
                [param], [grad], [mean], [square], [], [count], lr=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=0.0, eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip
        else:
            momentum = MOMENTUM if self.plan.optimizer == "momentum" else 0.0
            if state is None:
                state = (torch.zeros_like(param),) if momentum else ()
            torch._fused_sgd_(
                [param], [grad], list(state), weight_decay=0.0, momentum=momentum, lr=LEARNING_RATE, dampening=0.0,
                nesterov=False, maximize=False, is_first_step=first,
            )  # fmt: skip
        self.state[node.number] = state

    def _complete(self, number: int) -> list[int]:
        """What follows when a node is done: views are made, tensors sent; gives the nodes that may run now."""
        found = []
        stack = [number]
        nodes, left, values = self.nodes, self.left, self.values
        while stack:
            node = nodes[stack.pop()]
            if node.kind == "arrival":
                values[node.out] = self.placed[node.number]
            for slot in node.reads:
                if node.kind not in ("send",):  # its own, when it was begun
                    self._release(slot)
            if node.out >= 0 and not self.using[node.out]:
                values[node.out] = None
            for after in node.then:
                left[after] -= 1
                if left[after]:
                    continue
                one = nodes[after]
                if one.kind in ("op", "update"):
                    found.append(after)
                elif one.kind == "send":
                    if self._send(one.number, values[one.reads[0]]):
                        stack.append(after)
                    self._release(one.reads[0])
                else:
                    self._at_once(after, one)
                    stack.append(after)
        return found

    def _release(self, slot: int) -> None:
        self.using[slot] -= 1
        if not self.using[slot]:
            self.values[slot] = None

    def _at_once(self, number: int, node: Node) -> None:
        import torch

        values = self.values
        if node.kind == "view":
            values[node.out] = self._call(number)
        elif node.kind == "item":
            values[node.out] = _normal(flat(values[node.reads[0]])[node.number], node)
        elif node.kind == "strided":
            dtype, size, stride, offset = node.args
            base = values[node.reads[0]]
            kind = getattr(torch, dtype)
            if base.dtype != kind:
                base = base.view(kind)
            values[node.out] = torch.as_strided(base, size, stride, offset)
        elif node.kind == "collect":
            value = values[node.reads[0]]
            self.collected[node.name] = value.clone() if self.seed is not None else None

    # -- messages ------------------------------------------------------------------------------------------------

    def _messages(self) -> list[tuple[int, int]]:
        """(transfer, what became of it), of all that there is to know by now."""
        try:
            data = os.read(self.inbox, 4096 * RECORD.size)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        return list(RECORD.iter_unpack(data))

    def _wait(self) -> None:
        while not self.poll.poll(1000):
            if os.getppid() != self.setting.parent:
                raise EOFError  # nobody is there to tell

    def tell(self, rank: int, number: int, what: int) -> None:
        """A record for a worker, from a thread that may wait until there is room for it."""
        while True:
            try:
                os.write(self.outboxes[rank], RECORD.pack(number, what))
                return
            except BlockingIOError:
                full = select.poll()
                full.register(self.outboxes[rank], select.POLLOUT)
                full.poll(1000)

    def _send(self, number: int, value: torch.Tensor) -> bool:
        """Whether a tensor is sent; else a thread sends it, and a record will say so."""
        one = self.transfers[number]
        if one.bytes <= self.inline_bytes:
            start = time.monotonic_ns()
            self.placed[number].copy_(value if one.dtype else _as_bytes(value))
            try:
                os.write(self.outboxes[one.target], RECORD.pack(number, ARRIVED))
            except BlockingIOError:
                pass  # the thread waits for room, and copies again
            else:
                self.sending.append((number, start, start, time.monotonic_ns()))
                return True
        self.queued += 1
        event = None
        if self.cuda:
            import torch

            event = torch.cuda.Event()
            event.record()
        self.queues[one.target].put((number, value, time.monotonic_ns(), event))
        return False

    def _send_all(self, target: int) -> None:
        """The thread that sends to another worker, one tensor at a time, in the order of request."""
        import torch

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        own = self.setting.rank
        with contextlib.suppress(OSError), contextlib.ExitStack() as during:
            stream = None
            if self.cuda:
                torch.cuda.set_device(self.device)
                stream = torch.cuda.Stream(self.device)
                during.enter_context(torch.cuda.stream(stream))
            while (job := self.queues[target].get()) is not None:
                number, value, request, event = job
                start = time.monotonic_ns()
                try:
                    where = self.placed[number]
                    if stream is not None:
                        stream.wait_event(event)
                        value.record_stream(stream)
                    where.copy_(value if self.transfers[number].dtype else _as_bytes(value))
                    if self.channel:
                        self.channel.send(target, number)
                    else:
                        self.tell(target, number, ARRIVED)
                    self.sending.append((number, request, start, time.monotonic_ns()))
                    del value, job
                    self.tell(own, number, SENT)
                except Exception:
                    self.tell(own, number, FAILED)
                    return


class _Channel:
    """Tensors by torch.distributed: for each ordered pair a group of its own, in which a header says which comes."""

    def __init__(self, worker: Worker) -> None:
        import datetime

        import torch
        import torch.distributed as dist

        self.worker, setting = worker, worker.setting
        backend = "cpu:gloo,cuda:nccl" if setting.transport == "nccl" else "gloo"
        dist.init_process_group(
            backend,
            init_method=Path(setting.folder, "store").as_uri(),
            rank=setting.rank,
            world_size=setting.count,
            timeout=datetime.timedelta(hours=1),
        )
        self.groups: dict[tuple[int, int], Any] = {}
        for source in range(setting.count):
            for target in range(setting.count):
                if source != target:
                    self.groups[source, target] = dist.new_group([source, target], backend=backend)
        self.header = {target: torch.zeros(1, dtype=torch.int64) for target in range(setting.count)}
        self.threads = [
            threading.Thread(target=self._receive_all, args=(source,), daemon=True)
            for source in range(setting.count)
            if source != setting.rank
        ]
        for thread in self.threads:
            thread.start()

    def send(self, target: int, number: int) -> None:
        own = self.worker.setting.rank
        group, rank = self.groups[own, target], int(target > own)
        self.header[target][0] = number
        group.send([self.header[target]], rank, 0).wait()
        if number >= 0 and self.worker.transfers[number].bytes:
            group.send([self._bytes(number)], rank, 0).wait()
            if self.worker.cuda:
                import torch

                torch.cuda.current_stream().synchronize()

    def _bytes(self, number: int) -> torch.Tensor:
        return self.worker.buffers[number]

    def _receive_all(self, source: int) -> None:
        import torch

        own = self.worker.setting.rank
        group, rank, header = self.groups[source, own], int(source > own), torch.zeros(1, dtype=torch.int64)
        try:
            if self.worker.cuda:
                torch.cuda.set_device(self.worker.device)
                torch.cuda.set_stream(torch.cuda.Stream(self.worker.device))
            while True:
                group.recv([header], rank, 0).wait()
                number = int(header[0])
                if number < 0:
                    return
                if self.worker.transfers[number].bytes:
                    group.recv([self._bytes(number)], rank, 0).wait()
                if self.worker.cuda:
                    torch.cuda.current_stream().synchronize()
                self.worker.tell(own, number, ARRIVED)
        except Exception:
            with contextlib.suppress(OSError):
                self.worker.tell(own, 0, FAILED)

    def stop(self) -> None:
        for source, target in self.groups:
            if source == self.worker.setting.rank:
                with contextlib.suppress(Exception):
                    self.send(target, -1)
        for thread in self.threads:
            thread.join(2.0)


class _CudaTimer:
    """Times of ops on a GPU, which runs them after they were begun."""

    def __init__(self, device: torch.device) -> None:
        import torch

        torch.cuda.synchronize(device)
        self.base_ns = time.monotonic_ns()
        self.event = lambda: torch.cuda.Event(enable_timing=True)
        self.base = self.event()
        self.base.record()
        self.events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        begin = self.event()
        begin.record()
        self.events.append((begin, self.event()))

    def stop(self) -> None:
        self.events[-1][1].record()

    def times(self, start_ns: int) -> dict[str, int]:
        """As of :meth:`Worker.go`, from the device's own clock."""
        offset = self.base_ns - start_ns
        busy = sum(begin.elapsed_time(end) for begin, end in self.events) * 1e6
        last = max((self.base.elapsed_time(end) for _, end in self.events), default=0.0) * 1e6
        return {"busy_ns": round(busy), "finish_ns": round(last) + offset}


def _normal(value: Any, node: Node) -> Any:
    """A kernel's output in the layout that was recorded, in which it nearly always is."""
    import torch

    if node.normal is None or value.stride() == node.normal[1]:
        return value
    size, stride = node.normal
    if all(a == b for a, b, n in zip(value.stride(), stride, size, strict=True) if n > 1):
        return value
    return torch.empty_strided(size, stride, dtype=value.dtype, device=value.device).copy_(value)


def _operator(name: str) -> Any:
    import torch

    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _waited_ns() -> int:
    """How long this thread has waited for a core since it began; Linux alone says."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _argument_names(name: str) -> set[str]:
    return {argument.name for argument in _operator(name)._schema.arguments}


def buffer_path(folder: str, source: int, target: int) -> str:
    """The file in which the tensors from one worker to another lie, where memory is shared."""
    return os.path.join(folder, f"buffer_{source}_{target}")


def _as_bytes(value: torch.Tensor) -> torch.Tensor:
    """The whole storage that a tensor lies in."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=value.device).set_(value.untyped_storage())


def _saved(values: dict[Any, Any]) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def _has_slot(value: Any) -> bool:
    return any(isinstance(one, Slot) for one in _flat(value))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple) and not isinstance(value, Slot | Ghost):
        return [one for item in value for one in _flat(item)]
    return [value]


def _filled(value: Any, values: list[Any]) -> Any:
    if isinstance(value, Slot):
        return values[value.number]
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, values) for item in value)
    return value
