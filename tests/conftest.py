from __future__ import annotations

import pytest

from tests.commands import run_command


@pytest.fixture
def graphopt(monkeypatch, capsys):
    """Runs the command in this process: (exit status, standard output, standard error)."""
    return lambda *arguments: run_command(arguments, monkeypatch, capsys)
