"""Running the ``graphopt`` command in the process of a test."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from graphopt_gym.cli import main
from graphopt_gym.registration import register_all


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
    """What a page tells people to do, in order: ("python", code), ("toml", text) of its blocks, and ("command", line)
    of indented lines.

    A command is an indented line outside of blocks; what follows two spaces and a ``#`` is left out.
    """
    for kind, block, line in re.findall(r"^```(python|toml)\n(.*?)^```|^    (\S[^\n]*)$", text, flags=re.M | re.S):
        yield (kind, block) if block else ("command", re.sub(r"  +#.*", "", line))


def follow(page, folder):
    """Do in ``folder``, in this process, what a page tells people to do, in order; print what each step is.

    A block that begins with a comment that names a file is written there; other Python blocks run, commands as well.
    A ``pip install .`` makes the entry points of the ``pyproject.toml`` found, and nothing else.
    """
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for kind, text in steps(Path(page).read_text(encoding="utf-8")):
        print(f"## {kind}: {text.splitlines()[0]}", flush=True)
        named = re.match(r"# ([\w/]+\.(?:py|toml))\n", text)
        if named:
            Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(named[1]).write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, Path(page).name, "exec"), {"__name__": "page"})
        elif text == "pip install .":
            _install(folder)
        else:
            program, *sys.argv[1:] = shlex.split(text)
            assert program == "graphopt", text
            try:
                main()
            except SystemExit as stop:
                if stop.code:
                    raise


def _install(folder):
    """What an editable installation leaves of a project's entry points, and what a new Python finds of them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distribution = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    distribution.mkdir()
    facts = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (distribution / "METADATA").write_text(facts, encoding="utf-8")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (distribution / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__path__", ""))]:
        del sys.modules[name]
    importlib.invalidate_caches()
    register_all()
