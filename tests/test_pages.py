"""Pages of ``docs`` that are to be followed command by command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.commands import run_command, steps

DOCS = Path(__file__).resolve().parents[1] / "docs"


def serve(command):
    """Start a TensorBoard, fetch the names of its scalars, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+?:\d+/", line)))
        until = time.monotonic() + 30
        while time.monotonic() < until:  # it reads the logs after it has started
            with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=10) as answer:
                tags = answer.read().decode()
            if "mean_cost_s" in tags:
                return tags
            time.sleep(0.2)
        raise AssertionError(f"no scalars at {address}: {tags}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_train_your_own__runs_as_written(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = []
    try:
        for kind, text in steps((DOCS / "train_your_own.md").read_text(encoding="utf-8")):
            name = re.match(r"# (\w+\.py)\n", text)
            command = shlex.split(text) if kind == "command" else []
            if name:
                Path(name[1]).write_text(text, encoding="utf-8")
            elif kind == "python":
                exec(compile(text, "train_your_own.md", "exec"), {})
                assert capsys.readouterr().out
            elif command[0] == "graphopt":
                code, out, err = run_command(command[1:], monkeypatch, capsys)
                assert code == 0, f"{text}\n{out}\n{err}"
            elif command[0] == "tensorboard":
                tags = serve(command)
                assert all(f"{graph}@v100x4/mean_cost_s" in tags for graph in ("mixer", "transformer", "towers"))
            else:
                assert text == 'pip install ".[agents]"'  # done before the tests
            done.append(command[0] if command else kind)
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("my_models", None)
    assert done.count("graphopt") >= 12
    assert done.count("python") == 3
    assert {"pip", "tensorboard"} <= set(done)
    assert {path.name for path in Path("runs/two_readers").glob("*.html")} == {"report.html", "fine_tuned.html"}
    assert Path("runs/two_readers/fine_tuned.png").stat().st_size > 10_000
    assert Path("runs/tuned/checkpoint.pt").stat().st_size
