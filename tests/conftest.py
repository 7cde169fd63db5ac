from __future__ import annotations

import os
import tempfile

import pytest

from tests.commands import run_command

_HOME = tempfile.TemporaryDirectory()  # so that no test finds what a developer keeps in ~/.graphopt
os.environ["GRAPHOPT_HOME"] = _HOME.name
os.environ["GRAPHOPT_TRAINED"] = os.path.join(_HOME.name, "trained")


@pytest.fixture
def graphopt(monkeypatch, capsys):
    """Runs the command in this process: (exit status, standard output, standard error)."""
    return lambda *arguments: run_command(arguments, monkeypatch, capsys)


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray that is there already: two workers on this machine."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
