"""The package as a whole: what importing it costs, which room may import which, what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import graphopt_gym as gg
from graphopt_gym.registration import env_ids, tasks

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, AGENTS = ROOT / "graphopt_gym", ROOT / "agents" / "graphopt_agents"
HEAVY = (
    "torch",
    "pandas",
    "matplotlib",
    "networkx",
    "scipy",
    "onnx",
    "stable_baselines3",
    "rich",
    "jinja2",
    "perfetto",
)

# the rooms from the top of the house down; a module imports its own room and those above, never one below
ROOMS = (
    ("errors", "extras", "data", "fields", "files", "task", "units", "compiled", "catalog", "generator", "agent"),
    ("registration",),
    ("graphs",),
    ("hardware",),
    ("simulator",),
    ("execution",),
    ("problem",),
    ("search", "solutions", "benchmarks"),
    ("envs", "wrappers"),
    ("report", "testing"),
    ("cli", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# imports against the order, each inside a function and for a reason
ALLOWED = {
    ("envs", "report"): "rendering draws the Gantt chart",
    ("hardware", "simulator"): "the validation report prices whole models",
}


def modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def runtime_imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at the top level) of every import that runs; those under TYPE_CHECKING do not."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                module = child.module or ""
                if module == "graphopt_gym":
                    found.extend((f"graphopt_gym.{alias.name}", top) for alias in child.names)
                else:
                    found.append((module, top))
            else:
                visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module__lies_in_a_known_room():
    assert {room_of(path) for path in modules(PACKAGE)} - {"__init__"} <= set(RANK)


def test_rooms__import_only_upward():
    wrong = []
    for path in modules(PACKAGE):
        room = room_of(path)
        if room == "__init__":
            continue
        for module, top in runtime_imports(path):
            parts = module.split(".")
            if parts[0] != "graphopt_gym" or len(parts) < 2 or parts[1] not in RANK:
                continue
            if RANK[parts[1]] > RANK[room] and (top or (room, parts[1]) not in ALLOWED):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


# rooms that serve all tasks, and what only single tasks are called and made of
SERVING = ("cli", "report", "wrappers", "search")
OF_TASKS = (
    r"placements?\b|chip(let)?s?\b|rewrit|partition(?!\()|corrector|e-?graph|saturat|colocation|operands?\b|"
    r"\bmatch(es)?\b|graphopt_gym\.envs\.(?!core)"
)


def test_rooms_that_serve_all_tasks__know_none_by_name():
    known = [
        *tasks(),
        *env_ids(),
        *(env_id.partition("-v")[0] for env_id in env_ids()),
        r"graphopt_gym\.envs\.(?!core)",
    ]
    pattern = re.compile("|".join([OF_TASKS, *known]), re.IGNORECASE)
    files = [path for room in SERVING for path in sorted((PACKAGE / room).rglob("*")) if path.suffix in (".py", ".j2")]
    assert len(files) > 15
    found = {str(path.relative_to(PACKAGE)): pattern.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {name: words for name, words in found.items() if words} == {}


def test_package__never_imports_the_agents():
    for path in modules(PACKAGE):
        assert not [module for module, _ in runtime_imports(path) if module.split(".")[0] == "graphopt_agents"], path


# what unpickles nothing but what this program pickled a moment ago
PICKLES = {
    "compiled.py": "kernels that were compiled here, as Numba keeps them, with their checksum",
    "envs/architecture/nasbench.py": "a table of another package, by an unpickler that makes no class but one of ours",
    "search/workers.py": "functions go to its own processes",
    "testing/tasks.py": "an environment that is pickled must go on as it would have",
}


def test_no_pickle__of_anything_from_outside():
    for path in [*modules(PACKAGE), *modules(AGENTS)]:
        if path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).as_posix() in PICKLES:
            continue
        imported = {module.split(".")[0] for module, _ in runtime_imports(path)}
        assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


def test_import__loads_nothing_heavy():
    code = f"import sys, graphopt_gym; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_cli__lists_and_solves_without_torch():
    code = (
        "import sys\nsys.modules['torch'] = None\n"  # any import of it raises
        "from graphopt_gym.cli import main\n"
        "for arguments in (['list', 'graphs'], ['list', 'clusters'], ['solve', 'Placement-v0', '-m', 'expert']):\n"
        "    sys.argv = ['graphopt', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code, stop.code\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "extra"), [(["train", "ppo"], "agents"), (["evaluate", "."], "agents"), (["capture", "a:b"], "torch")]
)
def test_cli__without_torch__names_the_fix(arguments, extra):
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom graphopt_gym.cli import main\n"
        f"sys.path.insert(0, {str(AGENTS.parent)!r})\nsys.argv = ['graphopt', *{arguments!r}]\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: this needs 'torch', which is not installed: pip install \"graphopt-gym[{extra}]\"\n"


def test_public_names__all_exist():
    for name in gg.__all__:
        assert getattr(gg, name) is not None
    assert set(gg.__all__) <= set(dir(gg))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        gg.nothing  # noqa: B018


def test_wheel__holds_code_data_licence_and_types(tmp_path):
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    wanted = {
        "graphopt_gym/py.typed",
        "graphopt_agents/py.typed",
        "graphopt_agents/__init__.py",
        "graphopt_gym/report/report.html.j2",
        "graphopt_gym/hardware/catalog/devices.toml",
        "graphopt_gym/benchmarks/peer.c",
        *(f"graphopt_gym/envs_data/graphs/{name}.npz" for name in gg.graph_names()),
    }
    assert wanted <= names
    assert {Path(name).name for name in names} >= {"LICENSE", "NOTICE", "METADATA", "entry_points.txt"}
    stray = [name for name in names if name.split("/")[0] in ("tests", "scripts", "docs") or name.endswith(".pyc")]
    assert stray == []
