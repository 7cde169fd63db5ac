"""Kernels are kept on disk, and nothing that happens to what is kept stops or changes a program."""

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from graphopt_gym import compiled, make_problem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.registration import env_ids
from graphopt_gym.search.solve import methods, solve
from tests.search.test_methods import Knapsack

SOURCE = """
from typing import NamedTuple
import numpy as np
from graphopt_gym.compiled import kernel

FACTOR = 3

@kernel(inner=True, allocates=False)
def times(number):
    return number * FACTOR

@kernel
def total(numbers):
    result = 0
    for number in numbers:
        result += times(number)
    return result
"""
RUN = """
import sys
import numpy as np
from graphopt_gym.compiled import Tally
from toy import total
print(total(np.arange(5)), Tally.compiled, Tally.loaded)
"""


@pytest.fixture
def toy(tmp_path):
    """A module of two kernels in a folder of its own, and a way to run it in a new process."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "toy.py").write_text(SOURCE)
    return Toy(folder, tmp_path / "kept")


class Toy:
    def __init__(self, folder, kept):
        self.folder, self.kept = folder, kept

    def command(self, program=RUN, **environment):
        path = os.pathsep.join([str(self.folder), *sys.path])
        settings = {**os.environ, "NUMBA_CACHE_DIR": str(self.kept), "PYTHONPATH": path, **environment}
        return {"args": [sys.executable, "-c", textwrap.dedent(program)], "env": settings}

    def run(self, program=RUN, **environment):
        """(what it printed, as integers; what it said on standard error)."""
        done = subprocess.run(
            **self.command(program, **environment), capture_output=True, text=True, timeout=300, check=True
        )
        return [int(word) for word in done.stdout.split()], done.stderr

    def files(self, name=""):
        return sorted(path for path in self.kept.rglob(f"*{compiled.SUFFIX}") if name in path.name)


def test_kernel__is_compiled_once(toy):
    assert toy.run() == ([30, 2, 0], "")
    assert len(toy.files("toy.total")) == len(toy.files("toy.times")) == 1
    assert toy.run() == ([30, 0, 1], "")  # the inner one is in the outer one
    assert toy.files()[0].stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_load__kernel_that_hashes__links(toy):
    use = "@kernel\ndef total(numbers):\n    return len({numbers[0], numbers[1]}) + (hash(numbers[0]) != -1)\n"
    (toy.folder / "toy.py").write_text(SOURCE.split("FACTOR")[0] + use)
    run = RUN.replace("np.arange(5)", "('one', 'two')")
    assert toy.run(run)[0] == [3, 1, 0]
    assert toy.run(run)[0] == [3, 0, 1]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage", "another's", "a folder"])
def test_load__damaged_file__compiles_anew(toy, damage):
    toy.run()
    total, times = toy.files("toy.total")[0], toy.files("toy.times")[0]
    content = total.read_bytes()
    if damage == "a folder":
        total.unlink()
        total.mkdir()
        numbers, said = toy.run()
        assert numbers == [30, 1, 1]
        assert said.count("\n") == 1
        return
    total.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "flipped": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
            "garbage": os.urandom(5000),
            "another's": times.read_bytes(),
        }[damage]
    )
    assert toy.run() == ([30, 1, 1], "")
    assert toy.run() == ([30, 0, 1], "")  # it was written anew


def test_load__content_that_cannot_be_rebuilt__compiles_anew(toy):
    toy.run()
    program = """
        from graphopt_gym import compiled
        def rebuild(*_):
            raise AttributeError("from another version")
        compiled.CompileResult._rebuild = rebuild
        """
    assert toy.run(textwrap.dedent(program) + RUN) == ([30, 2, 0], "")


def test_load__other_version_of_numba__is_not_taken(toy):
    toy.run()
    program = "import numba\nnumba.__version__ = '0.0.1'\n"
    assert toy.run(program + RUN) == ([30, 2, 0], "")
    assert toy.run() == ([30, 0, 1], "")  # that of this version is still there


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("FACTOR = 3", "FACTOR = 4", [40, 2, 0]),  # a constant of the kernel that is called
        ("number * FACTOR", "number * FACTOR + 1", [35, 2, 0]),
        ("result = 0", "result = 1", [31, 1, 1]),
        ("FACTOR = 3", "# a remark\nFACTOR = 3", [30, 0, 1]),
    ],
)
def test_load__source_changed__compiles_what_depends_on_it(toy, old, new, expected):
    toy.run()
    files = len(toy.files())
    (toy.folder / "toy.py").write_text(SOURCE.replace(old, new))
    assert toy.run() == (expected, "")
    assert len(toy.files()) == files  # what was of the code before is gone


def test_load__fields_of_a_named_tuple_swapped__compiles_anew(toy):
    pair = "class Pair(NamedTuple):\n    first: int\n    second: int\n"
    use = "@kernel\ndef total(numbers):\n    return numbers.first * 10 + numbers.second\n"
    head = SOURCE.split("FACTOR")[0]
    run = RUN.replace("np.arange(5)", "toy.Pair(first=1, second=2)").replace("from toy", "import toy\nfrom toy")
    (toy.folder / "toy.py").write_text(head + pair + use)
    assert toy.run(run)[0] == [12, 1, 0]
    assert toy.run(run)[0] == [12, 0, 1]
    swapped = pair.replace("first", "x").replace("second", "first").replace("x", "second")
    (toy.folder / "toy.py").write_text(head + swapped + use)
    assert toy.run(run)[0] == [12, 1, 0]


def test_save__no_folder_can_be_written__compiles_and_says_so_once(toy, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    (toy.folder / "__pycache__").write_text("")
    nowhere = {"NUMBA_CACHE_DIR": str(file / "x"), "HOME": str(file / "y"), "XDG_CACHE_HOME": str(file / "z")}
    numbers, said = toy.run(**nowhere)
    assert numbers == [30, 2, 0]
    assert said.count("\n") == 1
    assert "NUMBA_CACHE_DIR" in said


def test_save__beside_the_source_else_in_the_users_folder(toy, tmp_path):
    unset = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "user")}
    assert toy.run(**unset) == ([30, 2, 0], "")
    assert len(list((toy.folder / "__pycache__").glob(f"*{compiled.SUFFIX}"))) == 2
    assert not (tmp_path / "user").exists()
    other = Toy(tmp_path / "other", toy.kept)
    other.folder.mkdir()
    (other.folder / "toy.py").write_text(SOURCE)
    (other.folder / "__pycache__").write_text("")  # nothing can be written there
    assert other.run(**unset) == ([30, 2, 0], "")
    assert len(list((tmp_path / "user").rglob(f"*{compiled.SUFFIX}"))) == 2
    assert other.run(**unset) == ([30, 0, 1], "")


def test_load__folder_that_can_only_be_read__is_read(toy, tmp_path):
    """As an image's user finds what was compiled when the image was built."""
    unset = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "user")}
    toy.run(**unset)
    program = (
        "from graphopt_gym import compiled\ncompiled._writable = lambda folder: '__pycache__' not in folder.parts\n"
    )
    assert toy.run(program + RUN, **unset) == ([30, 0, 1], "")


def test_save__disk_full__compiles_and_says_so_once(toy):
    program = """
        import errno
        from graphopt_gym import compiled
        from graphopt_gym.errors import InputError
        def write_file(path, content):
            raise InputError("cannot write: no space left on device")
        compiled.write_file = write_file
        """
    numbers, said = toy.run(textwrap.dedent(program) + RUN)
    assert numbers == [30, 2, 0]
    assert said.count("\n") == 1
    assert "no space left" in said


def test_save__two_processes_at_once__both_answer(toy):
    running = [
        subprocess.Popen(**toy.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in running:
        out, said = process.communicate(timeout=300)
        assert (out.split()[0], said, process.returncode) == ("30", "", 0)
    assert toy.run() == ([30, 0, 1], "")


def test_kernel__without_jit__is_the_function(toy):
    numbers, _ = toy.run(NUMBA_DISABLE_JIT="1")
    assert numbers == [30, 0, 0]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_fingerprint__of_every_kernel__is_reproducible():
    import graphopt_gym.envs.chiplet.episodes
    import graphopt_gym.envs.placement.episodes
    import graphopt_gym.envs.placement.methods  # noqa: F401

    program = (
        "import graphopt_gym.envs.chiplet.episodes, graphopt_gym.envs.placement.episodes\n"
        "import graphopt_gym.envs.placement.methods\n"
        "from graphopt_gym.compiled import KERNELS, fingerprint\n"
        "print(*sorted(fingerprint(one) for one in KERNELS))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    here = {compiled.fingerprint(one) for one in compiled.KERNELS}
    assert set(done.stdout.split()) <= here
    assert len(done.stdout.split()) > 40


def test_explained__long_compilation__is_said_once(capfd, monkeypatch):
    monkeypatch.setattr(compiled, "SLOW_S", 0.0)
    monkeypatch.setattr(compiled._Notes, "slow", False)

    @compiled.kernel
    def double(numbers):
        return numbers * 2

    made = [compiled.kernel(double.py_func) for _ in range(2)]
    for one in made:
        one._cache.disable()
    with compiled.explained():
        for one in made:
            assert one(np.ones(2)).tolist() == [2.0, 2.0]
    made[0](np.ones((2, 2)))
    assert capfd.readouterr().err.count("compiling") == 1


def test_solve__compiling_is_not_charged(monkeypatch, capfd):
    """Neither to the seconds that a method may take nor to those that it took; a wait is explained."""
    monkeypatch.setattr(compiled, "SLOW_S", 0.0)
    monkeypatch.setattr(compiled._Notes, "slow", False)

    @compiled.kernel
    def weigh(decisions, weights):
        return (decisions * weights).sum(axis=1).astype(np.float64)

    weigh._cache.disable()

    class Weighed(Knapsack):
        env_id = "Weighed"

        def costs(self, decisions):
            return weigh(decisions.reshape(len(decisions), -1), self.worth), np.ones(len(decisions), bool)

    started, spent = time.perf_counter(), compiled._compiling.duration if compiled._compiling.done else 0.0
    solution = solve(Weighed(), "random", budget=3, seconds=10.0)
    compiling = compiled._compiling.duration - spent
    assert compiling > 0
    assert solution.wall_s < time.perf_counter() - started - compiling
    assert solution.evaluations == 3
    assert capfd.readouterr().err.count("compiling") == 1


def test_warmup__compiles_all_kernels__each_in_one_form():
    """In a process of its own, so that what other tests call does not count."""
    program = """
        import sys
        from graphopt_gym.cli import main
        sys.argv = ["graphopt", "warmup", "--json"]
        try:
            main()
        finally:
            from graphopt_gym.compiled import KERNELS
            outer = [one for one in KERNELS if not one.targetoptions["no_cpython_wrapper"]]
            print(*[len(one.signatures) for one in outer], [one.__name__ for one in outer if len(one.signatures) != 1])
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=600, check=True
    )
    table, forms = done.stdout.splitlines()
    assert {row["environment"] for row in json.loads(table)["rows"]} == set(env_ids())
    assert set(forms.split()) == {"1", "[]"}
    assert len(forms.split()) > 15


def test_warmup__an_environment__only_its_kernels(graphopt):
    code, out, _ = graphopt("warmup", "--env", "RewriteOrder-v0", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == [
        {"environment": "RewriteOrder-v0", "compiled": 0, "kept before": 0, "seconds": pytest.approx(0.0, abs=1.0)}
    ]
    code, _, err = graphopt("warmup", "--env", "RewriteOrder-v1")
    assert code == 2
    assert "RewriteOrder-v0" in err


def test_forms__other_instances_than_the_toys__are_the_same():
    """What is compiled ahead serves every graph and cluster: no method needs another form of a kernel."""
    problems = [
        make_problem("Placement-v0", graph=layered_dag(60, seed=3, colocated=0.3), cluster="toy_mixedx3"),
        make_problem("ChipletPartition-v0", graph=layered_dag(40, seed=1), cluster="mcm9", memory_rule=True),
    ]
    ours = [one for one in compiled.KERNELS if one.__module__.startswith("graphopt_gym.")]
    before = {one: max(1, len(one.signatures)) for one in ours}  # other tests of this process may have asked for more
    for problem in problems:
        for name in methods(problem):
            try:
                solve(problem, name, budget=20)
            except InputError:  # exact refuses what is large
                assert name == "exact"
    assert {one.__name__: len(one.signatures) for one in ours if len(one.signatures) > before[one]} == {}


def test_form__is_the_kernel_for_those_types():
    @compiled.kernel
    def scaled(table, factor):
        return table[0].sum() * factor

    table = (np.arange(4.0), np.arange(3))
    made = compiled.form(scaled, table, 2)
    assert made(table, 2) == scaled(table, 2) == 12.0
    assert made((np.ones(9), np.zeros(0, np.int64)), 3) == 27.0
    assert len(scaled.signatures) == 1
    assert compiled.form(scaled.py_func, table, 2)(table, 5) == 30.0  # as where nothing is compiled
