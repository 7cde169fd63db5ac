"""The training script: it learns, repeats with its seed, resumes, and refuses what it cannot do."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from graphopt_agents.train_sb3 import Args, evaluate, train

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.graphs.io import save_graph


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A graph of 20 groups, by path."""
    path = tmp_path_factory.mktemp("graphs") / "small.npz"
    save_graph(layered_dag(60, seed=4, colocated=0.9, phases=True), path)
    return str(path)


def arguments(graph, **changes):
    return Args(
        **({"graph": graph, "cluster": "v100x2", "steps": 1000, "num_envs": 4, "epochs": 2, "width": 16} | changes)
    )


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_train__beats_random_placements(tmp_path, algorithm):
    path = tmp_path / "chain.npz"
    save_graph(chain(16, flops=10**8, output_bytes=10**9), path)
    args = Args(
        algorithm, str(path), "v100x2", "op", max_devices=4, steps=6000, num_envs=16, minibatches=4, learning_rate=3e-3
    )
    result = train(args)
    rng = np.random.default_rng(0)
    random_costs, _ = result.problem.costs(np.stack([result.problem.sample(rng) for _ in range(500)]))
    assert random_costs.mean() > random_costs.min() > result.history[-1]["mean_cost"]
    assert result.outcome.cost == result.problem.costs(np.zeros((1, 16), int))[0][0]  # a chain belongs on one device
    assert result.outcome.cost == result.problem.evaluate(result.decision).cost
    assert result.outcome.cost <= min(row["best_cost"] for row in result.history)


def test_train__repeats_with_its_seed(small):
    def costs(seed):
        return [row["mean_cost"] for row in train(arguments(small, seed=seed)).history]

    assert costs(1) == costs(1) != costs(2)


def test_train__writes_and_resumes(small, tmp_path):
    out = tmp_path / "run"
    first = train(arguments(small), out)
    rows = []
    again = train(arguments(small, steps=2 * first.steps), out, resume=True, progress=rows.append)
    assert again.steps == 2 * first.steps
    assert again.history[: len(first.history)] == first.history
    assert rows[0]["steps"] > first.history[-1]["steps"]
    assert again.history[-1]["best_cost"] <= first.history[-1]["best_cost"]
    saved = json.loads((out / "solution.json").read_text())
    assert saved["cost"] == again.outcome.cost
    assert saved["decision"] == again.decision.tolist()
    assert saved["problem"]["graph"] == small
    done = train(arguments(small, steps=2 * first.steps), out, resume=True)
    assert done.history == again.history
    assert done.policy_decision.tolist() == again.policy_decision.tolist()
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "solution.json"}
    assert evaluate(out).decision.tolist() == again.policy_decision.tolist()


def test_evaluate__places_another_graph_on_a_smaller_cluster(small, tmp_path):
    out = tmp_path / "run"
    train(arguments(small, cluster="v100x4", algorithm="maskable_ppo"), out)
    solution = evaluate(out, graph="rnnlm_2layer", cluster="p100x2")
    assert solution.problem.graph.name == "rnnlm_2layer"
    assert set(solution.decision.tolist()) <= {0, 1}
    with pytest.raises(InputError, match="max_devices is 4; give a whole number of at least 8"):
        evaluate(out, cluster="v100x8")


def test_train__keeps_the_best_when_interrupted(small, tmp_path):
    def interrupt(row):
        if row["steps"] > 200:
            raise KeyboardInterrupt

    result = train(arguments(small), tmp_path / "run", progress=interrupt)
    assert 200 < result.steps < 1000
    assert result.outcome.cost <= min(row["best_cost"] for row in result.history)
    assert train(arguments(small), tmp_path / "run", resume=True).steps >= 1000


def test_train__refuses_bad_input(small, tmp_path):
    for changes, message in (
        ({"algorithm": "pop"}, "unknown algorithm 'pop'; did you mean 'ppo'"),
        ({"steps": 0}, "steps is 0; give a whole number, at least 1"),
        ({"graph": "bert_bsae"}, "unknown graph 'bert_bsae'; did you mean 'bert_base'"),
    ):
        with pytest.raises(InputError, match=message):
            train(arguments(**({"graph": small} | changes)))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(arguments(small), tmp_path / "file" / "run")
    out = tmp_path / "run"
    train(arguments(small, steps=100), out)
    with pytest.raises(InputError, match="already holds a run"):
        train(arguments(small), out)
    with pytest.raises(InputError, match="already holds another run, with width=16, not 8"):
        train(arguments(small, width=8), out, resume=True)
    (out / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        train(arguments(small), out, resume=True)
