"""Jobs side by side: the same results whatever the workers are, and what stops them."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.search.workers import Interrupted, check_workers, run_side_by_side


@pytest.fixture(params=[1, 2, "ray"])
def workers(request):
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


def square(job, by=2):
    return job**by, os.environ.get("OMP_NUM_THREADS")


def fail(job):
    if job == 1:
        raise InputError("job is 1; give another")
    return job


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def wait(job, folder):
    """Job 0 is done when job 1 has begun, which never ends by itself."""
    folder = Path(folder)
    try:
        (folder / str(job)).touch()
        while job != 0 or not (folder / "1").exists():
            time.sleep(0.01)
    except KeyboardInterrupt:
        return "early"
    return "done"


def test_run_side_by_side__gives_the_results_in_order(workers):
    seen = {}
    results = run_side_by_side(functools.partial(square, by=3), range(7), workers, seen.__setitem__)
    assert [result for result, _ in results] == [job**3 for job in range(7)]
    assert seen == dict(enumerate(results))
    if workers != 1:
        assert {threads for _, threads in results} == {os.environ.get("OMP_NUM_THREADS", "1")}
    assert run_side_by_side(square, [], workers) == []


def test_run_side_by_side__raises_what_a_job_raised(workers):
    with pytest.raises(InputError) as raised:
        run_side_by_side(fail, range(4), workers)
    assert str(raised.value) == "job is 1; give another"
    if workers != 1:
        assert "in fail" in "".join(raised.value.__notes__)  # the worker's traceback


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_side_by_side__interrupted__keeps_what_is_done(workers, number, tmp_path):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    if workers == 1:  # its jobs run one after the other: the first is there when the signal comes to the second
        (tmp_path / "1").touch()

    def stop(job, result):
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stopped:
        run_side_by_side(functools.partial(wait, folder=str(tmp_path)), range(4), workers, stop)
    assert stopped.value.results == ["done", None if workers == 1 else "early", None, None]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_run_side_by_side__a_job_that_ends_early_by_the_signal__is_kept():
    with pytest.raises(Interrupted) as stopped:
        run_side_by_side(interrupt_itself, range(3))
    assert stopped.value.results == ["early", None, None]


def interrupt_itself(job):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        return "early"


def test_run_side_by_side__a_worker_dies__says_so():
    with pytest.raises(InputError, match=r"a worker ended with status -9 .* give fewer workers"):
        run_side_by_side(die, range(3), 2)


def test_run_side_by_side__no_ray__says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'which is not installed: pip install "graphopt-gym\[ray\]"'):
        run_side_by_side(square, [1], "ray")


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "two", "", None, float("nan")])
def test_check_workers__refuses_what_is_no_number_and_no_address(given):
    with pytest.raises(InputError, match=r"workers is .*; give a number of processes"):
        check_workers(given)


@pytest.mark.parametrize(("given", "taken"), [(3, 3), ("3", 3), ("ray", "ray"), ("auto", "auto"), ("h:1", "h:1")])
def test_check_workers__takes_numbers_and_addresses(given, taken):
    assert check_workers(given) == taken
