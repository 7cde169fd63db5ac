"""What the README and the page of commands tell people to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import run_command, steps

ROOT = Path(__file__).resolve().parents[1]
README = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/commands.md"))


def test_python_blocks__run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    text = README + (ROOT / "docs/other_libraries.md").read_text(encoding="utf-8")
    blocks = [block for kind, block in steps(text) if kind == "python"]
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block.replace("20_000", "64").replace("verbose=1", "n_steps=64"), "README.md", "exec"), {})
    assert (tmp_path / "heft.json").stat().st_size
    assert float(re.findall(r"^(\S+) s a step$", capsys.readouterr().out, flags=re.M)[0]) > 0


def test_commands__are_known(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    shown = [text.split()[1:] for kind, text in steps(README) if kind == "command" and text.startswith("graphopt ")]
    assert len(shown) >= 8
    for name, *arguments in shown:
        code, help_text, _ = run_command([name, "--help"], monkeypatch, capsys)
        assert code == 0
        assert all(argument in help_text for argument in arguments if argument.startswith("--")), (name, arguments)


def test_readme__begins_with_the_two_commands_and_fits_a_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("#")[0].strip() == "./scripts/demo"
    assert lines[1].split("#")[0].strip() == "./scripts/test"
    assert len(lines) <= 90
