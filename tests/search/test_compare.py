"""``compare``: side by side, kept as soon as done, and gone on with."""

from __future__ import annotations

import json
import signal

import pytest

import graphopt_gym as gg
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.solutions import validate
from tests.envs.rewrite.programs import inception

GRAPH = layered_dag(40, 3, seed=5, phases=True)
CASES = {
    "placement": (lambda: gg.make_problem("Placement-v0", graph=GRAPH, cluster="toyx2"), ["single", "annealing"]),
    "chiplet": (lambda: gg.make_problem("ChipletPartition-v0", graph=GRAPH, cluster="mcm4"), ["greedy", "annealing"]),
    "rewrite": (lambda: gg.make_problem("RewriteOrder-v0", graph=inception()), ["greedy", "random_walk"]),
}


@pytest.fixture
def problem():
    return CASES["placement"][0]()


def plain(solutions):
    """Rows without the times."""
    rows = []
    for solution in solutions:
        row = solution.row()
        del row["wall_s"]
        history = [(evaluations, cost) for evaluations, _, cost in solution.history]
        rows.append({**row, "history": history, "decision": solution.problem.encode(solution.decision)})
    return rows


@pytest.mark.parametrize("case", CASES)
def test_compare__several_workers_give_the_rows_of_one(case, tmp_path):
    make, names = CASES[case]
    problem = make()
    told = []
    alone = gg.compare(problem, names, budget=40, seeds=2)
    together = gg.compare(
        problem, names, budget=40, seeds=2, workers=2, out=tmp_path, progress=lambda *row: told.append(row)
    )
    assert [(row.method, row.seed) for row in together] == [(names[0], 0), (names[1], 0), (names[1], 1)]
    assert plain(together) == plain(alone)
    assert all(row.problem is problem for row in together)
    assert [row.outcome.timeline is None for row in together] == [row.outcome.timeline is None for row in alone]
    assert sorted(told) == sorted((row.method, row.seed, row.evaluations, row.outcome.cost) for row in alone)
    assert len(list(tmp_path.iterdir())) == 3


def test_compare__on_ray__gives_the_rows_of_one(problem, ray_cluster):
    names = ["single", "random"]
    assert plain(gg.compare(problem, names, budget=20, seeds=2, workers="ray")) == plain(
        gg.compare(problem, names, budget=20, seeds=2)
    )


def test_compare__what_is_there_is_not_repeated(problem, tmp_path):
    def run(**more):
        said = []
        arguments = {"budget": 20, "seeds": 2, **more}
        rows = gg.compare(problem, ["single", "random"], out=tmp_path, say=said.append, **arguments)
        return rows, [line.partition(":")[0].rpartition("/")[2] for line in said]

    first, said = run()
    assert said == []
    again, said = run()
    assert said == ["single-0.json", "random-0.json", "random-1.json"]
    assert plain(again) == plain(first)
    assert [row.wall_s for row in again] == [row.wall_s for row in first]  # as they were
    assert run(again=True)[1] == []
    assert run(seeds=3)[1] == ["single-0.json", "random-0.json", "random-1.json"]
    assert run(budget=21)[1] == []
    assert run(budget=21, seconds=100)[1] == []
    assert run(budget=21, seconds=100.0)[1] == ["single-0.json", "random-0.json", "random-1.json"]
    (tmp_path / "random-0.json").write_text("damaged")
    stored = json.loads((tmp_path / "random-1.json").read_text())
    (tmp_path / "random-1.json").write_text(json.dumps({**stored, "stopped_by": "interrupt"}))
    assert run(budget=21, seconds=100)[1] == ["single-0.json"]
    other = gg.make_problem("Placement-v0", graph=GRAPH, cluster="toyx2", grouping="op")
    said = []
    gg.compare(other, ["single"], budget=21, seconds=100, out=tmp_path, say=said.append)
    assert said == []
    assert all(validate(path, graph=GRAPH).ok for path in tmp_path.iterdir())


def test_compare__options_are_part_of_a_run(tmp_path):
    problem = CASES["rewrite"][0]()
    said = []
    for options in ({"node_limit": 200}, {"node_limit": 300}, {"node_limit": 300}):
        gg.compare(problem, ["saturation_greedy"], options=options, out=tmp_path, say=said.append)
    assert len(said) == 1


def test_compare__interrupted__keeps_each_run_and_goes_on_from_there(problem, tmp_path):
    def interrupt(method, seed, evaluations, best):
        if (method, seed) == ("random", 1):
            signal.raise_signal(signal.SIGTERM)

    said = []
    names = ["single", "random", "annealing"]
    rows = gg.compare(problem, names, budget=200, seeds=2, out=tmp_path, progress=interrupt, say=said.append)
    assert [(row.method, row.seed, row.stopped_by) for row in rows[-2:]] == [
        ("random", 0, "budget"),
        ("random", 1, "interrupt"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random-0.json", "random-1.json", "single-0.json"]
    rows = gg.compare(problem, names, budget=200, seeds=2, out=tmp_path, say=said.append)
    assert [line.partition(":")[0].rpartition("/")[2] for line in said[-2:]] == ["single-0.json", "random-0.json"]
    assert plain(rows) == plain(gg.compare(problem, names, budget=200, seeds=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": "some"}, "workers is 'some'"),
        ({"workers": 0}, "workers is 0"),
        ({"seeds": True}, "seeds is True"),
        ({"budget": 0, "workers": 2}, "budget is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"out": "/dev/null/x"}, "cannot write '/dev/null/x'"),
    ],
)
def test_compare__refuses_before_anything_runs(problem, arguments, message):
    def fail(*row):
        raise AssertionError("it runs")

    with pytest.raises(InputError, match=message):
        gg.compare(problem, ["single"], progress=fail, **arguments)
