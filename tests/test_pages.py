"""Pages of ``docs`` that are to be followed command by command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.commands import run_command, steps

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def followed(page, folder):
    """What a Python of its own prints that does what a page tells people to do, in ``folder``."""
    code = "import sys; from pathlib import Path; from tests.commands import follow; follow(*map(Path, sys.argv[1:]))"
    environment = {
        **os.environ,
        "COLUMNS": "160",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "agents"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(DOCS / page), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
            if "mean_cost" in tags:
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
                assert all(f"{graph}@v100x4/mean_cost" in tags for graph in ("mixer", "transformer", "towers"))
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


def test_own_costs__runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = []
    for kind, text in steps((DOCS / "own_costs.md").read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(text, "own_costs.md", "exec"), {})
            printed.append(capsys.readouterr().out)
            continue
        command, _, file = text.partition(" > ")
        program, *arguments = shlex.split(command)
        assert program == "graphopt", text
        code, out, err = run_command(arguments, monkeypatch, capsys)
        assert code == 0, f"{text}\n{out}\n{err}"
        if file:
            Path(file).write_text(out, encoding="utf-8")
        printed.append(out)
    assert float(printed[0]) > 0
    assert Path("times.csv").read_text().startswith("op,label,v100_pcie_16gb\n0,")
    assert any("heft.json: ok: " in out for out in printed)
    assert Path("heft.html").stat().st_size


def test_add_an_environment__runs_as_written(tmp_path):
    printed = followed("add_an_environment.md", tmp_path)
    assert {path.name for path in (tmp_path / "graphopt_jobs").glob("*.py")} == {
        "__init__.py",
        "env.py",
        "episodes.py",
        "methods.py",
        "problem.py",
    }
    assert re.search(r"^ +Jobs-v0 +jobs on machines, one job a step", printed, flags=re.M)
    assert re.search(r"^ +longest_first +the longest job next", printed, flags=re.M)
    assert re.search(r"^ +cross_entropy +", printed, flags=re.M)
    assert printed.count(": ok: ") == 2
    assert re.search(r"^ +method +finish time +vs blocks +evaluations", printed, flags=re.M)
    before, costs = (
        {name: float(cost) for name, cost in re.findall(r"^ +(\w+) +([\d.]+) ms ", part, flags=re.M)}
        for part in printed.split("pip install .")
    )
    assert max(before["annealing"], before["evolution"]) < before["random"]
    assert set(costs) == {"blocks", "longest_first", "annealing", "evolution"}
    kept = {path.stem: json.loads(path.read_text())["cost"] for path in (tmp_path / "runs" / "jobs").glob("*.json")}
    costs = {name.rpartition("-")[0]: cost for name, cost in kept.items()}  # printed, two are 1.2 ms
    assert costs["annealing"] <= costs["blocks"] < costs["longest_first"]
    assert costs["evolution"] < costs["blocks"]
    assert (tmp_path / "longest.html").stat().st_size


def test_add_an_agent__runs_as_written(tmp_path):
    pytest.importorskip("torch")
    printed = followed("add_an_agent.md", tmp_path)
    assert re.search(r"^ +pairs +Placement-v0", printed, flags=re.M)
    updates = [line.split(",")[0] for line in (tmp_path / "runs/pairs/curve.csv").read_text().splitlines()[1:]]
    assert updates == [str(update) for update in range(1, 9) for _ in range(2)]
    assert printed.count(": ok: ") == 4
    costs = [float(cost) for cost in re.findall(r"^ +(?:expert|pairs) +(\d+) ms ", printed, flags=re.M)]
    assert len(costs) == 2
    assert costs[1] <= costs[0]  # it starts from what heuristics decide
    assert re.search(r"^0\.3\d+ s a step after 135 evaluations\n0\.\d+$", printed, flags=re.M)
