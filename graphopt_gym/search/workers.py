"""Jobs side by side: in processes of this machine, or as tasks of a Ray cluster, with the same results."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from graphopt_gym.errors import InputError
from graphopt_gym.extras import need

Job = TypeVar("Job")
Result = TypeVar("Result")
Answers = Iterator[tuple[int, Any]]  # (the job's number, its result), in the order in which they are done

POLL_S = 0.5  # how often a signal is looked for while jobs run elsewhere


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the jobs early. ``results``: in the order of the jobs, None where there is none."""

    def __init__(self, results: list[Any]) -> None:
        super().__init__("interrupted")
        self.results = results


def run_side_by_side(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | str = 1,
    progress: Callable[[int, Result], Any] | None = None,
) -> list[Result]:
    """``[function(job) for job in jobs]``, several at a time.

    Args:
        function: a module's own, or a ``functools.partial`` of one; it and the jobs are pickled.
        jobs: what it is called with. They are begun in this order.
        workers: processes of this machine, which are spawned (1: this one); ``"ray"``: a task a CPU of the Ray cluster
            that ``RAY_ADDRESS`` names, or else of one that is started here for the time; ``"auto"`` (the one that runs
            here), ``"ray://host:port"`` or ``"host:port"``: of one that is there already. Its machines need this
            package too.
        progress: called in this process with (the job's number, its result) when a job is done.

    Returns:
        The results, in the order of the jobs. Workers compute with one thread each, where ``OMP_NUM_THREADS`` says
        nothing else.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM. The jobs that run are interrupted too (KeyboardInterrupt), and one that
            returns all the same has its result taken; a second signal does not wait for them.
        InputError: bad workers; no Ray, or none at the address; a worker that died.
        Exception: the first that a job raised; the others are stopped.
    """
    where = check_workers(workers)
    results: list[Any] = [None] * len(jobs)
    if isinstance(where, str):
        answers = _on_ray(function, jobs, where)
    elif where > 1 and len(jobs) > 1:
        answers = _in_processes(function, jobs, where)
    else:
        answers = _here(function, jobs)
    try:
        with contextlib.closing(answers):  # type: ignore[type-var]
            for number, result in answers:
                results[number] = result
                if progress:
                    progress(number, result)
    except KeyboardInterrupt:
        raise Interrupted(results) from None
    return results


def check_workers(workers: int | str) -> int | str:
    """A number of processes, or where Ray is. Raises InputError for what is neither."""
    if isinstance(workers, str) and (workers in ("ray", "auto") or ":" in workers):
        return workers
    try:
        count = 0 if isinstance(workers, bool | float) else int(workers)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise InputError(
            f"workers is {workers!r}; give a number of processes, at least 1, or 'ray', 'auto' or 'ray://host:port'"
        )
    return count


@contextlib.contextmanager
def stop_signals(at_once: bool, say: str = "") -> Iterator[list[int]]:
    """The stop signals that have come; the first, where ``at_once``, and every later one raises KeyboardInterrupt.

    ``say``: to standard error at the first.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        if not noted and say:
            os.write(2, say.encode())  # print is not reentrant
        noted.append(number)
        if at_once or len(noted) > 1:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # handlers are its alone
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _here(function: Callable[[Any], Any], jobs: Sequence[Any]) -> Answers:
    with stop_signals(at_once=True) as noted:
        for number, job in enumerate(jobs):
            yield number, function(job)
            if noted:  # the job took it as its end, and returned
                raise KeyboardInterrupt


def _answer(function: Callable[[Any], Any], job: Any) -> tuple[bool, Any]:
    """(True, the result) or (False, what was raised), with the worker's traceback in its notes."""
    try:
        return True, function(job)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        return False, error


def _value(answer: tuple[bool, Any]) -> Any:
    done, value = answer
    if not done:
        raise value
    return value


def _serve(pickled: bytes, pipe: Any) -> None:
    """A worker: takes jobs and gives answers until it is told to stop, or the other end of the pipe is gone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the function imports a library that reads it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the first process sends SIGTERM on
    ended = contextlib.suppress(KeyboardInterrupt)  # SIGTERM may come while the end of the pipe is taken in
    with ended, stop_signals(at_once=True) as noted, contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        function = None
        while not noted:
            job = pipe.recv()
            function = function or pickle.loads(pickled)
            pipe.send(_answer(function, job))


def _in_processes(function: Callable[[Any], Any], jobs: Sequence[Any], count: int) -> Answers:
    context = multiprocessing.get_context("spawn")
    pickled, todo = pickle.dumps(function), iter(range(len(jobs)))
    processes: dict[Any, Any] = {}  # by this end of its pipe
    busy: dict[Any, int] = {}  # the job's number

    def give(pipe: Any) -> None:
        number = next(todo, None)
        if number is not None:
            busy[pipe] = number
            pipe.send(jobs[number])

    with stop_signals(at_once=False) as noted:
        try:
            for _ in range(min(count, len(jobs))):
                pipe, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(pickled, theirs))
                process.start()
                processes[pipe] = process
                theirs.close()
                give(pipe)
            told = False
            while busy:
                answered: list[Any] = multiprocessing.connection.wait(list(busy), POLL_S)
                for ready in answered:
                    number = busy.pop(ready)
                    try:
                        answer = ready.recv()
                    except EOFError:
                        if noted:
                            continue
                        process = processes[ready]
                        process.join()
                        raise InputError(
                            f"a worker ended with status {process.exitcode} in its job (-9: often for want of memory); "
                            "give fewer workers"
                        ) from None
                    yield number, _value(answer)
                    if not noted:
                        give(ready)
                if noted and not told:
                    told = True
                    for process in processes.values():
                        process.terminate()
            if noted:
                raise KeyboardInterrupt
        finally:
            for pipe, process in processes.items():
                pipe.close()
                process.terminate()
            for process in processes.values():
                process.join()


def _environment() -> dict[str, str]:
    """What workers on Ray need to import what this process can: its path without what Python itself brings."""
    own = [path for path in sys.path if not path.startswith((sys.prefix, sys.base_prefix))]
    return {"PYTHONPATH": os.pathsep.join(own), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _on_ray(function: Callable[[Any], Any], jobs: Sequence[Any], address: str) -> Answers:
    need("ray", what=f"workers {address!r}")
    import ray

    own = not ray.is_initialized()
    if own:
        try:
            where = os.environ.get("RAY_ADDRESS", "local") if address == "ray" else address
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            why = str(error).strip().partition("\n")[0]
            raise InputError(f"workers is {address!r}; no Ray answers there: {why}") from None
    numbers: dict[Any, int] = {}  # of the tasks that run
    try:
        task, shared = ray.remote(_answer).options(runtime_env={"env_vars": _environment()}), ray.put(function)
        with stop_signals(at_once=False) as noted:  # after ray.init, which takes SIGTERM for itself
            todo, told = iter(range(len(jobs))), False
            while True:
                # no more than run at once: Ray may lose the cancelling of a task that is just about to begin
                room = 0 if noted else max(1, int(ray.cluster_resources().get("CPU", 1))) - len(numbers)
                for number in itertools.islice(todo, max(0, room)):
                    numbers[task.remote(shared, jobs[number])] = number
                if not numbers:
                    break
                if noted and not told:
                    told = True
                    for one in numbers:
                        ray.cancel(one)
                for one in ray.wait(list(numbers), timeout=POLL_S)[0]:
                    number = numbers.pop(one)
                    try:
                        answer = ray.get(one)
                    except ray.exceptions.RayError as error:
                        if noted:
                            continue
                        why = str(error).strip().rpartition("\n")[2]
                        raise InputError(f"a job on Ray was lost ({why}); run it again") from None
                    yield number, _value(answer)
            if noted:
                raise KeyboardInterrupt
    finally:
        for one in numbers:
            ray.cancel(one, force=True)
        if own:
            ray.shutdown()
