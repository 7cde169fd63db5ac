"""The documentation builds without a warning, its links lead somewhere, and its pages hold what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt_gym.registration import env_ids
from tests.test_package import RANK

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "agents"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_site__has_a_page_an_environment_with_its_tables_and_methods(site):
    assert {path.stem for path in (site / "environments").glob("*.html")} == {"index", *env_ids()}
    for env_id in env_ids():
        page = (site / "environments" / f"{env_id}.html").read_text(encoding="utf-8")
        assert "action_mask" in page
        assert not re.search(r"\{[A-Z_]+\}", page)
        for title in ("Description", "Action Space", "Observation Space", "Rewards", "Episode End", "Arguments"):
            assert re.search(rf"<h2 [^>]*>{title}<", page), (env_id, title)


def test_site__api_has_signatures_and_no_raw_markup(site):
    page = (site / "api" / "problems_and_solutions.html").read_text(encoding="utf-8")
    assert 'id="graphopt_gym.problem.Problem.evaluate"' in page
    assert 'id="graphopt_gym.search.solve.solve"' in page
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r":(?:class|func|meth):", text), page
        assert "<autoref" not in text


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/results.md"])
def test_links_to_files__lead_somewhere(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert len(links) >= 2
    for link in links:
        assert link.startswith("https://") or (page.parent / link).is_file(), link


def test_contributing__names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [name for row in re.findall(r"^\| (`[^|]*) \|", text, flags=re.M) for name in re.findall(r"`(\w+)`", row)]
    assert {*rooms, "__main__"} == set(RANK)
    assert [RANK[name] for name in rooms] == sorted(RANK[name] for name in rooms)
