"""``graphopt train gdp`` and ``graphopt evaluate`` as people run them: several graphs, resuming, Ctrl-C, bad input."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from graphopt_agents import gdp
from graphopt_agents.core import checkpoints
from graphopt_agents.core import run as spine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import fork_join, layered_dag
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.graphs.zoo import SPLITS, held_out
from graphopt_gym.search.solve import find_method, installed_methods, methods
from tests.agents.test_gdp import assert_same, comparable
from tests.commands import only_json

SMALL = [f"--set={setting}" for setting in ("width=16", "sage_layers=2", "blocks=1", "samples=8")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def three(tmp_path, monkeypatch):
    """The arguments that name three graphs, and two clusters for them; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, graph in (
        ("a", fork_join(3, 6, flops=10**11)),
        ("b", layered_dag(30, width=4, seed=3)),
        ("c", layered_dag(25, width=3, seed=4)),
    ):
        save_graph(graph.replace(name=name), f"{name}.npz")
    return ["--graphs", "a.npz,b.npz", "--graph", "c.npz", "--clusters", "toyx2,toy_mixedx3,toyx2"]


@pytest.fixture
def run(graphopt, three):
    """A run of two updates in the folder ``run``."""
    code, _, err = graphopt("train", "gdp", *three, *SMALL, "--updates", 2, "--out", "run")
    assert code == 0, err
    return "run"


def curve_steps(folder):
    """{tag: [steps]} by the curve."""
    steps = {}
    with open(f"{folder}/curve.csv") as file:
        for row in csv.DictReader(file):
            steps.setdefault(f"{row['graph']}@{row['cluster']}/mean_cost", []).append(int(row["update"]))
    return steps


def board_scalars(folder):
    """{tag: [(step, value)]} as TensorBoard reads them."""
    board = EventAccumulator(f"{folder}/tensorboard").Reload()
    return {tag: [(one.step, one.value) for one in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


# which graphs, on which clusters


def test_graphs__splits_become_their_graphs_each_on_its_own_cluster():
    args = gdp.Args(graphs="rnnlm_8layer,train,mine.npz")
    assert args.graphs[0] == "rnnlm_8layer"
    assert args.graphs[-1] == "mine.npz"
    assert sorted(args.graphs[:-1]) == sorted(SPLITS["train"])  # what was named already is there once
    on = dict(zip(args.graphs, args.each_cluster(), strict=True))
    assert (on["rnnlm_8layer"], on["inception_v3_b32"]) == ("p100x8", "p100x2")
    assert on["bert_base"] == on["mine.npz"] == "v100x4"
    assert set(gdp.Args(graphs="train", clusters="v100x2").each_cluster()) == {"v100x2"}
    twice = gdp.Args(graphs=("bert_base", "bert_base"), clusters=("v100x2", "v100x4"))
    assert twice.graphs == ("bert_base", "bert_base")  # one graph on two clusters


def test_train__names_of_the_command_reach_the_run(graphopt, run, monkeypatch):
    asked = []

    def train(args, out, **options):
        asked.append((args, options.get("start_from")))
        raise InputError("seen")

    monkeypatch.setattr(gdp.Trainer, "train", train)
    for arguments in (
        ["--held-out", "gnmt", "--clusters", "v100x4", "--seed", 5],
        ["--start-from", run, "-g", "test", "--set", "samples=6"],
        [],
    ):
        code, _, err = graphopt("train", "gdp", *arguments)
        assert (code, err) == (2, "error: seen\n")
    (without, _), (tuned, start), (default, _) = asked
    assert without.graphs == held_out("gnmt")[0]
    assert (without.seed, set(without.each_cluster())) == (5, {"v100x4"})
    assert (tuned.graphs, tuned.width, tuned.samples, str(start)) == (SPLITS["test"], 16, 6, run)
    assert (default.graphs, default.clusters) == (("bert_base",), ("v100x4",))


def test_train__on_the_split_of_the_zoo(graphopt, tmp_path):
    code, out, err = graphopt("train", "gdp", "--graphs", "train", *SMALL, "--updates", 1, "--out", tmp_path, "--json")
    assert code in (0, 1), err  # after one update not all need fit
    graphs = [row["graph"] for row in only_json(out)["rows"]]
    assert len(graphs) == 4  # graphs_per_update: of the others nothing is known yet
    assert set(graphs) <= set(SPLITS["train"])


# going on


def test_resume__four_updates_are_two_and_two_bit_for_bit(graphopt, run, three, tmp_path):
    code, out, err = graphopt("train", "gdp", *three, *SMALL, "--updates", 4, "--out", "whole", "--json")
    assert code == 0, err
    whole = only_json(out)["rows"]
    assert [(row["graph"], row["cluster"]) for row in whole] == [("a", "toyx2"), ("b", "toy_mixedx3"), ("c", "toyx2")]
    code, out, err = graphopt("train", "gdp", "--updates", 4, "--out", run, "--resume", "--json")  # its own arguments
    assert code == 0, err
    assert "2 of 4" not in err
    assert_same(comparable(tmp_path / "whole"), comparable(tmp_path / run))
    parts = only_json(out)["rows"]
    assert [row["cost"] for row in parts] == [row["cost"] for row in whole]
    solutions = sorted(path.name for path in (tmp_path / run).glob("solution_*.json"))
    assert solutions == ["solution_a_toyx2.json", "solution_b_toy_mixedx3.json", "solution_c_toyx2.json"]
    assert graphopt("validate", *(f"{run}/{name}" for name in solutions))[0] == 0


def test_tensorboard__a_resumed_run_has_every_update_once(graphopt, run):
    assert {tag: [step for step, _ in rows] for tag, rows in board_scalars(run).items() if "mean_cost" in tag} == (
        curve_steps(run)
    )
    graphopt("train", "gdp", "--updates", 3, "--out", run, "--resume")
    kept = f"{run}/{checkpoints.CHECKPOINT_NAME}"
    shutil.copy(kept, "kept.pt")
    graphopt("train", "gdp", "--updates", 5, "--out", run, "--resume")
    shutil.copy("kept.pt", kept)  # as if it had been killed after update 5, its last checkpoint of update 3
    graphopt("train", "gdp", "--updates", 4, "--out", run, "--resume")
    graphopt("train", "gdp", "--updates", 6, "--out", run, "--resume")
    scalars = board_scalars(run)
    wanted = curve_steps(run)
    assert sorted(wanted) == ["a@toyx2/mean_cost", "b@toy_mixedx3/mean_cost", "c@toyx2/mean_cost"]
    assert wanted["a@toyx2/mean_cost"] == [1, 2, 3, 4, 5, 6]
    for tag, steps in wanted.items():
        assert [step for step, _ in scalars[tag]] == steps
        assert {tag.replace("mean_cost", name) for name in spine.SCALARS} <= set(scalars)
    with open(f"{run}/curve.json") as file:
        rows = json.load(file)["rows"]
    costs = [row["mean_cost"] for row in rows if row["graph"] == "b"]
    assert [value for _, value in scalars["b@toy_mixedx3/mean_cost"]] == pytest.approx(costs, rel=1e-6)


def test_ctrl_c__ends_after_the_update_and_says_how_to_go_on(graphopt, three, tmp_path):
    start = "from graphopt_gym.cli import main; main()"
    command = [sys.executable, "-c", start, "train", "gdp", *three, *SMALL, "--out", "my run"]
    process = subprocess.Popen(
        [*command, "--updates", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("2 of 100,000 updates: mean "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    last = err.splitlines()[-1]
    state = checkpoints.load_checkpoint(tmp_path / "my run", "gdp").state
    assert last == (
        f"stopped after {state['updates']:,} of 100,000 updates; go on: graphopt train gdp --out 'my run' --resume"
    )
    assert "stopping after this update" in err
    assert "solutions: my run" in out
    total = state["updates"] + 1
    graphopt("train", "gdp", "--out", "my run", "--resume", "--updates", total)
    graphopt("train", "gdp", *three, *SMALL, "--out", "whole", "--updates", total)
    assert_same(comparable(tmp_path / "whole"), comparable(tmp_path / "my run"))


def test_progress__is_a_bar_on_a_terminal(graphopt, three, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    code, _, err = graphopt("train", "gdp", *three, *SMALL, "--updates", 3)
    assert code == 0
    assert "━" in err
    assert "/3" in err
    assert "mean " in err
    assert "of 3 updates" not in err


# evaluating


def test_evaluate__zero_shot_and_fine_tuned_on_another_graph(graphopt, run):
    save_graph(layered_dag(28, width=4, seed=9).replace(name="d"), "d.npz")
    rows = {}
    for name, options in (
        ("zero", []),
        ("several", ["--samples", 6]),
        ("tuned", ["--updates", 2, "--seed", 1, "--out", "d.json"]),
    ):
        code, out, err = graphopt("evaluate", run, "--graph", "d.npz", "--cluster", "toyx2", *options, "--json")
        assert code == 0, err
        rows[name] = only_json(out)
    assert "2 of 2 updates: mean " in err
    assert [rows[name]["evaluations"] for name in ("zero", "several")] == [1, 6]
    assert (rows["tuned"]["seed"], rows["tuned"]["graph"]) == (1, "d")
    assert rows["several"]["cost"] <= rows["zero"]["cost"]
    assert graphopt("validate", "d.json")[0] == 0


def test_evaluate__finds_the_cluster_of_a_graph(run):
    def cluster(*given):
        return gdp.evaluate(run, *given).problem.cluster.name

    assert cluster() == cluster("a.npz") == "toyx2"
    assert cluster("b.npz") == "toy_mixedx3"  # where it was trained
    assert cluster("inception_v3_b32") == "p100x2"  # where the paper places it
    assert cluster(layered_dag(20, seed=0)) == "toyx2"  # the run's first
    assert cluster("b.npz", "toyx2") == "toyx2"


# bad input

ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a folder that no one can write to")
BIG = '[[hosts]]\ndevice = "p100_pcie_16gb"\ncount = 17\ninterconnect = "pcie3_x16"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--graphs", ""], "graphs is an empty list; name at least one"),
        (["--graphs", ","], "graphs is an empty list; name at least one"),
        (["--graphs", "trian"], "unknown graph 'trian'; did you mean 'train'?"),
        (["--graphs", "a.npz,none.npz"], "graph file 'none.npz' does not exist"),
        (["--graphs", "a.npz,a.npz"], "name each graph on a cluster once"),
        (["--graphs", "a.npz,b.npz,c.npz", "--clusters", "toyx2,toyx2"], "clusters has 2 entries for 3 graphs"),
        (["--graphs", "a.npz", "--clusters", ""], "clusters is an empty list"),
        (["--graphs", "a.npz", "--clusters", "toyx3"], "unknown cluster 'toyx3'; did you mean 'toyx2'?"),
        (["--graphs", "a.npz", "--clusters", "big.toml"], "has 17 devices, the network serves 1 to 16"),
        (["--held-out", "gmnt"], "unknown family 'gmnt'; did you mean 'gnmt'?"),
        (["--held-out", "gnmt", "--graphs", "a.npz"], "leave out --graphs"),
        (["--set", "sampels=3"], "unknown argument of gdp 'sampels'; did you mean 'samples'?"),
        (["--set", "canonical=maybe"], "canonical is 'maybe'; give true or false"),
        (["--set", "graphs=5"], "graphs is 5; give names"),
        (["--graphs", "big.toml"], "graph file 'big.toml' is not a zip archive"),
        (["--set", "samples=2"], "mutants is 0.75, which leaves none of 2 samples to the policy"),
        (["--updates", "0"], "updates is 0"),
        pytest.param(["--out", "/proc"], "cannot write '/proc'", marks=ONLY_LINUX),
        (["--seed", "-1"], "seed is -1"),
        (["--out", "a.npz"], "cannot write 'a.npz'"),
        (["--out", "a.npz/run"], "cannot write 'a.npz/run'"),
        (["--out", "run"], "'run' already holds a run; give another folder, or resume it with --resume"),
        (["--out", "run", "--resume", "--seed", "1"], "'run' already holds another run, with seed=0, not 1"),
        (["--out", "run", "--resume", "--graphs", "a.npz"], "'run' already holds another run, with "),
        (["--out", "nothing", "--resume"], "'nothing' holds no checkpoint.pt to resume"),
        (["--resume"], "--resume needs --out"),
        (["--start-from", "run", "--out", "run", "--resume"], "leave out --start-from"),
        (["--start-from", "nothing"], "no checkpoint at 'nothing'"),
        (["--start-from", "run", "--graphs", "a.npz", "--set", "width=32"], "network of other sizes"),
    ],
)
def test_train__bad_input__one_line_and_exit_status_2(graphopt, run, arguments, message):
    with open("big.toml", "w") as file:
        file.write(BIG)
    code, out, err = graphopt("train", "gdp", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, whole: whole[: len(whole) // 2], "is damaged"),
        (lambda content, whole: b"", "is damaged"),
        (lambda content, whole: changed(content, version=99), "checkpoint version 99, this package reads 1"),
        (lambda content, whole: changed(content, agent="hdp"), "agent 'hdp'"),
        (lambda content, whole: reshaped(content), "weights of another network"),
        (lambda content, whole: changed(content, args={"graphs": ["a.npz"], "colour": 3}), "colour"),
    ],
)
@pytest.mark.parametrize("use", ["evaluate", "resume", "start"])
def test_checkpoint__that_cannot_be_used__one_line_and_exit_status_2(graphopt, run, damage, message, use):
    path = f"{run}/{checkpoints.CHECKPOINT_NAME}"
    with open(path, "rb") as file:
        whole = file.read()
    bad = damage(torch.load(path, weights_only=True), whole)
    if isinstance(bad, bytes):
        with open(path, "wb") as file:
            file.write(bad)
    else:
        torch.save(bad, path)
    command = {
        "evaluate": ["evaluate", run],
        "resume": ["train", "gdp", "--out", run, "--resume", "--updates", 3],
        "start": ["train", "gdp", "--graphs", "a.npz", "--clusters", "toyx2", "--start-from", run],
    }[use]
    code, out, err = graphopt(*command)
    assert (code, out) == (2, "")
    assert message in err or (use == "start" and "arguments are incomplete" in err)
    assert err.count("\n") == 1


def changed(content, **facts):
    return {**content, "header": json.dumps(json.loads(content["header"]) | facts)}


def reshaped(content):
    network = {name: value.repeat(2, *[1] * (value.dim() - 1)) if value.dim() else value
               for name, value in content["state"]["network"].items()}  # fmt: skip
    return {**content, "state": {**content["state"], "network": network}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "run", "--graph", "none.npz"], "graph file 'none.npz' does not exist"),
        (["evaluate", "run", "--graph", "train"], "'train', a split of several graphs; give one of them"),
        (["evaluate", "run", "--cluster", "big.toml"], "has 17 devices"),
        (["evaluate", "run", "--samples", "0"], "samples is 0"),
        (["evaluate", "run", "--updates", "-1"], "updates is -1"),
        (["evaluate", "run", "--seed", "-1"], "seed is -1"),
        (["evaluate", "run", "--samples", "2", "--updates", "2"], "give one of them"),
        (["evaluate", "a.npz"], "'a.npz' "),
        (
            ["train", "ppo", "--graphs", "a.npz,b.npz"],
            "ppo trains on one graph, not 2; agents for several: chiplet, gang, gdp, go, placer, rewrite",
        ),
        (
            ["train", "ppo", "--start-from", "run"],
            "ppo takes no --start-from; agents that do: chiplet, gang, gdp, go, placer, rewrite",
        ),
        (["train", "ppo", "--out", "run", "--resume"], "is of agent 'gdp', not 'ppo'"),
    ],
)
def test_other_commands__bad_input__one_line_and_exit_status_2(graphopt, run, arguments, message):
    with open("big.toml", "w") as file:
        file.write(BIG)
    code, out, err = graphopt(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# in solve and compare


def test_methods__of_the_agents_are_found_by_name_and_not_among_the_classical(graphopt, three):
    assert set(installed_methods("Placement-v0")) == {"gdp", "gdp_search", "hdp", "placer", "placer_search"}
    assert not set(installed_methods("Placement-v0")) & set(methods("Placement-v0"))
    for name in installed_methods("Placement-v0"):
        method = find_method("Placement-v0", name)
        assert (method.name, method.random) == (name, True)
    with pytest.raises(InputError, match="unknown method 'gpd'; did you mean 'gdp'"):
        find_method("Placement-v0", "gpd")
    code, out, err = graphopt(
        "compare", "Placement-v0", "-g", "b.npz", "-c", "toyx2", "--methods", "expert,gdp,gdp_search,hdp",
        "--budget", 40, "--seeds", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    rows = only_json(out)["rows"]
    assert [(row["method"], row["evaluations"]) for row in rows][1:] == [("gdp", 40), ("gdp_search", 40), ("hdp", 40)]
    assert np.isfinite([row["cost"] for row in rows]).all()


def test_methods__of_the_agents_load_torch_only_when_they_run():
    code = (
        "import sys\n"
        "from graphopt_gym import make_problem\n"
        "from graphopt_gym.search.solve import find_method, solve\n"
        "solve(make_problem('Placement-v0', graph='bert_base', cluster='v100x4'), 'expert')\n"
        "assert 'graphopt_agents' not in sys.modules\n"
        "find_method('Placement-v0', 'gdp')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
