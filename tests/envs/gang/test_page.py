"""The page on gang scheduling: its code runs as it stands, and bad input is refused in its words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.machine import Island, load_machine
from graphopt_gym.simulator.gang import Builder, GangSimulator, together
from graphopt_gym.simulator.gang.pathways import decoder_pipeline
from tests.commands import steps

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "gang_scheduling.md").read_text(encoding="utf-8")


def program(cores=4, cycle=False):
    build = Builder("x")
    at = build.slice("all", cores)
    a, b = build.gang("a", at, 1e-3), build.gang("b", at, 1e-3)
    build.edge(a, b)
    if cycle:
        build.edge(b, a)
    return build.program()


BAD = [
    lambda: GangSimulator(program(64), "pathways_b_4hosts"),
    lambda: GangSimulator(program(16), "pathways_b_4hosts", [24]),
    lambda: Builder("x").client("a", -1),
    lambda: together([program(), program()], [0, 0]),
    lambda: decoder_pipeline(64, 256, 128),
    lambda: decoder_pipeline(4, 24, 128),
    lambda: program(cycle=True),
    lambda: replace(load_machine("toy_islands"), name="x", islands=(Island(1, 2),) * 2, dcn=None),
]


def test_code__runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [text for kind, text in steps(PAGE) if kind == "python"]
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, "gang_scheduling.md", "exec"), names)
    assert (tmp_path / "tenants.png").stat().st_size > 5000
    assert (tmp_path / "tenants.pftrace").stat().st_size > 5000
    assert 0 < float(capsys.readouterr().out.splitlines()[0]) <= 1  # Jain's index


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input__is_refused_as_the_page_says(number):
    said = re.findall(r"^\| [^|]+ \| `(.+)` \|$", PAGE, flags=re.M)
    assert len(said) == len(BAD)
    with pytest.raises(InputError) as caught:
        BAD[number]()
    assert str(caught.value) == said[number]
