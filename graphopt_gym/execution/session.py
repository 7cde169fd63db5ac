"""Workers of this machine, and the first process's side of what they do."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.execution.plan import Plan, make_plan
from graphopt_gym.execution.program import Program, check_placement
from graphopt_gym.execution.worker import Part, Setting, buffer_path, serve
from graphopt_gym.extras import need
from graphopt_gym.fields import choice, count
from graphopt_gym.simulator.orders import ORDERS

if TYPE_CHECKING:
    import torch

TRANSPORTS = ("auto", "shared", "gloo", "nccl")
MAX_WORKERS = 64
MARGIN_NS = 3_000_000  # from the word to begin until all begin


@dataclass(frozen=True)
class Run:
    """A step that was run on D workers."""

    step_s: float  # from the common start to the last finish of an op
    busy_s: tuple[float, ...]  # each worker's ops, added up
    waited_s: tuple[float, ...]  # how long each worker waited for a core; 0 where that cannot be known
    late_s: float  # how long after the common start the last worker came: another program had its core
    sent: int  # transfers in the step, without what is brought home after it
    ops: tuple[np.ndarray, ...] = ()  # float64 [n, 3] a worker: op, start, finish, in seconds; where they were recorded
    transfers: np.ndarray | None = None  # float64 [X, 4]: transfer, request, start, finish
    peak_bytes: tuple[int, ...] = ()  # of GPUs


class Workers:
    """Worker processes, a device each, that run steps of programs; to be used in a ``with`` statement.

    Args:
        count: workers.
        devices: ``"cpu"`` or ``"cuda"`` (a GPU a worker); ``"auto"``: GPUs where there are enough of them.
        transport: how tensors go from one to another: ``"shared"`` memory, or ``torch.distributed`` with ``"gloo"``
            (sockets) or ``"nccl"``; ``"auto"``: shared on CPUs, nccl on GPUs.
        timeout_s: longest that a command (the start, a plan, a step) may take.
        modules: Python modules that workers import, which define operators.
        inline_bytes: tensors of so many bytes or less a worker sends by itself where memory is shared, larger ones a
            thread of it; if left out, 256 KiB where there are two cores a worker, else all.

    Raises:
        InputError: torch is not installed, fewer GPUs than workers, a worker that died, failed or did not answer.
    """

    def __init__(
        self,
        count_: int,
        *,
        devices: str = "auto",
        transport: str = "auto",
        timeout_s: float = 300.0,
        modules: Sequence[str] = (),
        inline_bytes: int | None = None,
    ) -> None:
        need("torch", what="execute")
        if os.name != "posix":
            raise InputError("execute: workers need Linux or macOS")
        self.count = count("workers", count_, MAX_WORKERS)
        self.kind = which_devices(choice("devices", devices, ("auto", "cpu", "cuda")), self.count)
        choice("transport", transport, TRANSPORTS)
        fitting = ("nccl",) if self.kind == "cuda" else ("shared", "gloo")
        self.transport = fitting[0] if transport == "auto" else transport
        if self.transport not in fitting:
            raise InputError(f"transport is {transport!r}; on {self.kind} give {' or '.join(map(repr, fitting))}")
        self.timeout_s = timeout_s
        self.modules = tuple(modules)
        self.inline_bytes = inline_bytes
        self.plan: Plan | None = None
        self._closing = contextlib.ExitStack()
        self._broken = True  # until all have answered what they were told
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def __enter__(self) -> Workers:
        import torch.multiprocessing as multiprocessing

        with contextlib.ExitStack() as closing:
            self.folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-", dir=_shared_folder()))
            closing.callback(self._end)
            context = multiprocessing.get_context("spawn")
            inboxes = [context.Pipe(duplex=False) for _ in range(self.count)]  # (to read, to write)
            with _environment(), contextlib.ExitStack() as ours:
                for pair in inboxes:
                    for end in pair:
                        ours.callback(end.close)
                for rank in range(self.count):
                    device = "cpu" if self.kind == "cpu" else f"cuda:{rank}"
                    setting = Setting(
                        rank,
                        self.count,
                        device,
                        self.transport,
                        self.folder,
                        os.getpid(),
                        self.modules,
                        self.inline_bytes,
                    )
                    pipe, theirs = context.Pipe()
                    self._pipes.append(pipe)
                    others = {number: pair[1] for number, pair in enumerate(inboxes)}
                    process = context.Process(
                        target=serve, args=(setting, theirs, inboxes[rank][0], others), daemon=True,
                        name=f"graphopt-worker-{rank}",
                    )  # fmt: skip
                    process.start()
                    self._processes.append(process)
                    theirs.close()
            self._answers("ready")
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _end(self) -> None:
        """No worker is left, whatever state it is in."""
        until = time.monotonic()
        if not self._broken:  # else they may wait for each other
            until += 3.0
            for pipe in self._pipes:
                with contextlib.suppress(OSError, ValueError):
                    pipe.send(("stop",))
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    # -- commands ------------------------------------------------------------------------------------------------

    def _tell(self, *message: Any, ranks: Sequence[int] | None = None) -> None:
        self._broken = True
        for rank in range(self.count) if ranks is None else ranks:
            try:
                self._pipes[rank].send(message)
            except OSError:
                raise self._died(rank) from None

    def _answers(self, name: str, ranks: Sequence[int] | None = None) -> list[Any]:
        """What each worker answers to the command of that name."""
        import multiprocessing.connection as connection

        self._broken = True
        until = time.monotonic() + self.timeout_s
        missing = set(range(self.count) if ranks is None else ranks)
        found: dict[int, Any] = {}
        while missing:
            of = {self._pipes[rank]: rank for rank in range(self.count)}
            ready: list[Any] = connection.wait(list(of), max(0.0, until - time.monotonic()))
            if not ready:
                raise InputError(
                    f"execute: worker {min(missing)} did not answer in {self.timeout_s:g} s; give a longer --timeout, "
                    "or a smaller model"
                )
            failed = []
            for pipe in ready:
                rank = of[pipe]
                try:
                    kind, *values = pipe.recv()
                except (EOFError, OSError):
                    raise self._died(rank) from None
                if kind == "failed":
                    failed.append((rank, values[0]))
                    continue
                found[rank] = values[0] if values else None
                missing.discard(rank)
            if failed:  # what another worker says of it comes second
                rank, text = next((one for one in failed if "it has ended" not in one[1]), failed[0])
                raise InputError(f"execute: worker {rank}: {text}")
        self._broken = False
        return [found[rank] for rank in sorted(found)]

    def _died(self, rank: int) -> InputError:
        process = self._processes[rank]
        process.join(1.0)
        return InputError(
            f"execute: worker {rank} ended with status {process.exitcode} (-9: often for want of memory); give a "
            "smaller model"
        )

    def _command(self, name: str, *arguments: Any) -> list[Any]:
        self._tell(name, *arguments)
        return self._answers(name)

    # -- what they do --------------------------------------------------------------------------------------------

    def load(self, program: Program, placement: Any, order: str = "fifo", priorities: np.ndarray | None = None) -> None:
        """Give each worker its part of a step, whose op n runs on worker ``placement[n]``, int [N]; values are the
        program's own again, and the optimiser's state is none.

        ``order``: what a worker takes of the ops that may run, see ``graphopt_gym.simulator.orders``; where it goes by
        priorities (``rank``, ``priority``), these are ``priorities``, float64 [N].

        Raises:
            InputError: a placement of another shape, or with a device that is not there; too little shared memory.
        """
        choice("order", order, ORDERS)
        if order in ("rank", "priority") and priorities is None:
            raise InputError(f"order {order!r} goes by priorities; give those of the ops")
        self.plan = plan = make_plan(program, check_placement(placement, program.graph, self.count), self.count)
        values = self._stored(program)
        if self.transport == "shared":
            self._make_room(plan.buffer_bytes)
        for device in range(self.count):
            part = Part(plan.devices[device], tuple(plan.transfers), values, order, priorities)
            self._tell("load", part, ranks=[device])
        self._answers("load")

    def _make_room(self, sizes: Mapping[tuple[int, int], int]) -> None:
        """Files that the workers' shared memory is."""
        for file in Path(self.folder).glob("buffer_*"):
            file.unlink()
        total, free = sum(sizes.values()), shutil.disk_usage(self.folder).free
        if total > free:
            raise InputError(
                f"execute: tensors between workers take {total / 2**20:.0f} MiB of shared memory and {self.folder!r} "
                f"has {free / 2**20:.0f} MiB; give --transport gloo, or a smaller model"
            )
        for (source, target), size in sizes.items():
            with open(buffer_path(self.folder, source, target), "wb") as buffer:
                buffer.truncate(size)

    def _stored(self, program: Program) -> str:
        """The file of a program's values, written once."""
        import torch

        path = Path(self.folder, f"values_{id(program)}")
        if not path.exists():
            for old in Path(self.folder).glob("values_*"):
                old.unlink()
            torch.save({call: tensor.detach().cpu() for call, tensor in program.sources.items()}, path)
            self._program = program  # it stays what its id says
        return str(path)

    def step(self, seed: int | None = None, record: bool = False) -> Run:
        """Run the loaded step once. ``seed``: results are kept, for :meth:`results`, and random ops are seeded, so that
        they give the same wherever they run."""
        plan = self.plan
        assert plan is not None, "load a program first"
        self._command("prepare", seed)
        start = time.monotonic_ns() + MARGIN_NS
        rows = self._command("go", start, record)
        if any(one.settle_out for one in plan.devices):
            self._command("settle")
        return Run(
            max(row["finish_ns"] for row in rows) / 1e9,
            tuple(row["busy_ns"] / 1e9 for row in rows),
            tuple(row["waited_ns"] / 1e9 for row in rows),
            max(0, *(row["late_ns"] for row in rows)) / 1e9,
            len(plan.transfers) - sum(len(one.settle_out) for one in plan.devices),
            tuple(np.array(row["ops"], float).reshape(-1, 3) * (1, 1e-9, 1e-9) for row in rows) if record else (),
            np.array([one for row in rows for one in row["transfers"]], float).reshape(-1, 4) * (1, 1e-9, 1e-9, 1e-9)
            if record
            else None,
            tuple(row["peak_bytes"] for row in rows) if "peak_bytes" in rows[0] else (),
        )

    def results(self) -> dict[str, torch.Tensor]:
        """What the last step with a seed computed: outputs (the loss) and gradients, by name."""
        return self._gathered("collect")

    def parameters(self, program: Program) -> dict[str, torch.Tensor]:
        """Parameters and buffers as they are now, by name."""
        found = self._gathered("parameters")
        return {name: found[call] for name, call in program.names.items() if call in found}

    def _gathered(self, command: str) -> dict[Any, torch.Tensor]:
        import torch

        found: dict[Any, torch.Tensor] = {}
        for part in self._command(command):
            found |= torch.load(io.BytesIO(part), weights_only=True)
        return found

    def bounce(self, size: int, rounds: int, first: int = 0, second: int = 1) -> np.ndarray:
        """float64 [rounds]: seconds in which a tensor of ``size`` bytes goes from one worker to another and back."""
        if self.transport == "shared":
            self._make_room({(first, second): max(size, 1), (second, first): max(size, 1)})
        self.plan = None
        self._tell("bounce", size, rounds, first, False, ranks=[second])
        self._tell("bounce", size, rounds, second, True, ranks=[first])
        return np.array(self._answers("bounce", [first, second])[0 if first < second else 1], float) / 1e9


def which_devices(given: str, workers: int) -> str:
    """``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: GPUs are asked for and are fewer than workers.
    """
    import torch

    gpus = torch.cuda.device_count() if given != "cpu" and torch.cuda.is_available() else 0
    if given == "cuda" and gpus < workers:
        raise InputError(f"devices is 'cuda'; {workers} workers need a GPU each, and there are {gpus}; give 'cpu'")
    return "cuda" if given != "cpu" and gpus >= workers else "cpu"


def _shared_folder() -> str | None:
    """Where files are memory, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def _environment() -> Any:
    """What workers must find in the environment before they import torch: a thread each, and this machine's network."""
    local = "lo0" if sys.platform == "darwin" else "lo"
    wanted = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": local}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
