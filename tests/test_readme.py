"""What the README tells people to type works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from graphopt_gym.cli import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_python_blocks__run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(compile(block.replace("20_000", "64").replace("verbose=1", "n_steps=64"), "README.md", "exec"), {})
    assert (tmp_path / "heft.json").stat().st_size
    assert float(re.findall(r"^(\S+) s a step$", capsys.readouterr().out, flags=re.M)[0]) > 0


def test_commands__are_known(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.findall(r"^    graphopt (.*?)(?:  +#.*)?$", README, flags=re.M)
    assert len(shown) >= 8
    for command in shown:
        name, *arguments = command.split()
        monkeypatch.setattr(sys, "argv", ["graphopt", name, "--help"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        help_text = capsys.readouterr().out
        assert all(argument in help_text for argument in arguments if argument.startswith("--")), command
