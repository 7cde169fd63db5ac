"""Running the ``graphopt`` command in the process of a test."""

from __future__ import annotations

import json
import re
import sys

import pytest

from graphopt_gym.cli import main


def run_command(arguments, monkeypatch, capsys):
    """(exit status, standard output, standard error) of ``graphopt`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def only_json(out):
    """The one object that standard output holds."""
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def steps(text):
    """What a page tells people to do, in order: ("python", code) of its blocks and ("command", line) of indented lines.

    A command is an indented line outside of blocks; what follows two spaces and a ``#`` is left out.
    """
    for block, line in re.findall(r"^```python\n(.*?)^```|^    (\S[^\n]*)$", text, flags=re.M | re.S):
        yield ("python", block) if block else ("command", re.sub(r"  +#.*", "", line))
