"""Checkpoints: what they keep, and what is refused with one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from graphopt_agents import gdp
from graphopt_agents.core import checkpoints
from graphopt_agents.core.checkpoints import (
    held_folder,
    load_checkpoint,
    load_weights,
    run_folder,
    same_arguments,
    save_checkpoint,
)

from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = {"network": {"weight": torch.arange(3.0)}, "rows": [(1.5, torch.ones(2, dtype=torch.int32))], "none": None}
    return save_checkpoint(tmp_path / "checkpoint.pt", "gdp", {"seed": 3}, state, {"fact": [1]})


def test_checkpoint__comes_back_as_it_went(saved: Path) -> None:
    for where in (saved, saved.parent):
        kept = load_checkpoint(where, "gdp")
        assert (kept.agent, kept.args, kept.facts) == ("gdp", {"seed": 3}, {"fact": [1]})
        assert torch.equal(kept.state["network"]["weight"], torch.arange(3.0))
        assert kept.state["rows"][0][0] == 1.5
        assert kept.libraries["torch"] == str(torch.__version__)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_load__refuses_a_damaged_file(saved: Path, keep: int) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[:keep])
    with pytest.raises(InputError) as error:
        load_checkpoint(saved)
    assert "damaged" in one_line(error)


def test_load__refuses_a_changed_weight(saved: Path) -> None:
    whole = saved.read_bytes()
    weight = torch.arange(3.0).numpy().tobytes()
    assert whole.count(weight) == 1
    saved.write_bytes(whole.replace(weight, torch.tensor([0.0, 1.0, 3.0]).numpy().tobytes()))
    with pytest.raises(InputError) as error:
        load_checkpoint(saved)
    assert "damaged" in one_line(error)


def test_load__refuses_text_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    with pytest.raises(InputError) as error:
        load_checkpoint(tmp_path / "notes.txt")
    assert "damaged, or no checkpoint" in one_line(error)
    with pytest.raises(InputError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="no checkpoint at"):
        load_checkpoint(tmp_path)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_load__never_runs_code_of_the_file(tmp_path: Path, by: str) -> None:
    trap = tmp_path / "sprung"
    content = {"header": "{}", "state": Trap(trap)}
    if by == "torch":
        torch.save(content, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError):
        load_checkpoint(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 99}, "checkpoint version 99, this package reads 1"),
        ({"format": "other"}, "no checkpoint of this package"),
        ({"agent": "hdp"}, "agent 'hdp', not 'gdp'"),
        ({"args": None}, "incomplete"),
    ],
)
def test_load__refuses_another_version_agent_or_format(saved: Path, change: dict[str, object], says: str) -> None:
    content = torch.load(saved, weights_only=True)
    content["header"] = json.dumps(json.loads(content["header"]) | change)
    torch.save(content, saved)
    with pytest.raises(InputError) as error:
        load_checkpoint(saved, "gdp")
    assert says in one_line(error)


def test_load__refuses_a_foreign_torch_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="no checkpoint of this package"):
        load_checkpoint(tmp_path / "model.pt")


def test_save__leaves_the_old_file_when_it_fails(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphopt_gym.files.os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(saved, "gdp", {}, {})
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_save__refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "none" / "checkpoint.pt", "gdp", {}, {})


def test_load_weights__refuses_another_network_and_what_is_not_finite() -> None:
    module = torch.nn.Linear(2, 1)
    good = {name: value.clone() for name, value in module.state_dict().items()}
    load_weights(module, good, "here")
    for bad in ({}, {**good, "weight": torch.ones(3, 3)}, {**good, "weight": "text"}):
        with pytest.raises(InputError, match="another network"):
            load_weights(module, bad, "here")
    with pytest.raises(InputError, match="not finite"):
        load_weights(module, {**good, "bias": torch.tensor([float("nan")])}, "here")


def test_run_folder__holds_one_run(saved: Path, tmp_path: Path) -> None:
    assert run_folder(tmp_path / "new" / "run", resume=False).is_dir()
    with pytest.raises(InputError, match="already holds a run"):
        run_folder(saved.parent, resume=False)
    assert run_folder(saved.parent, resume=True) == saved.parent
    with pytest.raises(InputError, match="to resume"):
        run_folder(tmp_path / "new", resume=True)
    with pytest.raises(InputError, match="cannot write"):
        run_folder(saved / "below_a_file", resume=False)


def test_same_arguments__names_the_first_that_differs() -> None:
    same_arguments({"a": 1, "free": 2}, {"a": 1, "free": 3}, "runs/x", ("free",))
    with pytest.raises(InputError, match="'runs/x' already holds another run, with a=2, not 1"):
        same_arguments({"a": 1}, {"a": 2}, "runs/x")


def test_held_folder__is_one_runs_at_a_time(tmp_path: Path) -> None:
    with held_folder(tmp_path / "run", resume=False) as folder:
        assert folder == tmp_path / "run"
        with pytest.raises(InputError, match="another process is training into") as error, held_folder(folder, False):
            pass
        one_line(error)
        with held_folder(tmp_path / "other", resume=False):
            pass
        save_checkpoint(folder / "checkpoint.pt", "gdp", {}, {})
    with held_folder(folder, resume=True):
        pass
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_held_folder__of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom graphopt_agents.core.checkpoints import held_folder\n"
        f"with held_folder({str(tmp_path / 'run')!r}, False):\n    print('held', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is training into"), held_folder(tmp_path / "run", False):
            pass
    finally:
        process.kill()
        process.wait()
    with held_folder(tmp_path / "run", resume=False):
        pass


SHIPPED = data_path("checkpoints", "gdp.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"args": {"width": 10**9}},
        {"args": {"sage_layers": 10**9}},
        {"args": {"heads": 0}},
        {"args": {"width": "x"}},
        {"args": {"width": None}},
        {"args": {"seed": 10**400}},
        {"args": {"learning_rate": float("nan")}},
        {"args": {"graphs": [["x"]]}},
        {"args": {"surprise": 1}},
        {"args": 3},
        {"version": "1"},
        {"agent": {}},
        {"state": 3},
        {"state": {"network": 3}},
        {"state": {"network": {"x": torch.ones(3)}}},
        {"state": {}},
        {"header": 3},
        {"header": "[" * 100_000},
        {"header": "{}"},
    ],
    ids=str,
)
def test_evaluate__refuses_whatever_a_checkpoint_may_hold_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    content = torch.load(SHIPPED, weights_only=True)
    header = json.loads(content["header"])
    for name, value in change.items():
        if name in content:
            content[name] = value
        else:
            header[name] = {**header[name], **value} if isinstance(value, dict) and name == "args" else value
    content.setdefault("header", "")
    if "header" not in change:
        content["header"] = json.dumps(header)
    path = tmp_path / "changed.pt"
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        gdp.Trainer.evaluate(path, graph=layered_dag(12, seed=1), cluster="toyx2")
    assert "changed.pt" in one_line(error)


def test_load__refuses_what_inflates_past_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**22))
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("it was inflated"))
    with pytest.raises(InputError, match="damaged, or no checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("path", ["a" * 5000, "nul\0byte", "a/" * 2500 + "b", "\ud800", ""])
def test_load__refuses_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    assert len(one_line(error)) < 600
