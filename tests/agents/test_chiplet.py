"""The agent of chiplet partition: its network, what it is trained by, the trainer, the Stable-Baselines3 policy."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents import chiplet as agent
from graphopt_agents.core import checkpoints
from graphopt_agents.core.one_shot import ppo_loss
from graphopt_agents.core.sb3 import GraphBaseline
from graphopt_agents.networks import chiplet as network_module
from graphopt_agents.networks.chiplet import ChipletConfig, ChipletInput, ChipletNetwork, relaxed_strain
from graphopt_agents.policies import ChipletPolicy
from stable_baselines3 import PPO

from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, fork_join
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve
from graphopt_gym.wrappers import SB3VecEnv
from tests.agents.test_gdp import assert_same

SMALL: dict[str, Any] = {"width": 16, "layers": 2, "passes": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_envs(num_envs: int, **arguments: Any) -> SB3VecEnv:
    envs = gym.make_vec("ChipletPartition-v0", num_envs=num_envs, autoreset_mode="SameStep", **arguments)
    return SB3VecEnv(envs)


def network(seed: int = 0, **config: Any) -> ChipletNetwork:
    torch.manual_seed(seed)
    made = ChipletNetwork(ChipletConfig(**{**SMALL, **config}))
    for layer in (made.place, made.query):  # zero at first
        torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def test_network__fits_any_graph_and_package() -> None:
    made = network()
    for graph, package in (("bert_tiny_b16", "mcm4"), ("vgg11_b1", "mcm36"), ("resnet18_b1", "mcm16_mixed")):
        problem = ChipletProblem(graph, package)
        with torch.no_grad():
            logits = made(ChipletInput.from_problem(problem))
        assert logits.shape == (problem.num_ops, problem.num_chips)
        assert torch.isfinite(logits).all()
        assert logits.abs().max() <= network_module.LIMIT


def test_network__starts_where_an_ops_share_of_the_work_lies() -> None:
    problem = ChipletProblem(chain(20), "mcm4")
    with torch.no_grad():
        logits = ChipletNetwork(ChipletConfig(**SMALL))(ChipletInput.from_problem(problem))
    assert logits.argmax(1).tolist() == np.repeat(np.arange(4), 5).tolist()
    plain = ChipletNetwork(ChipletConfig(**SMALL, anchored=False))(ChipletInput.from_problem(problem))
    assert torch.equal(plain, plain[:1].expand_as(plain))  # no op differs from another yet


def test_input__of_an_observation_is_that_of_the_problem() -> None:
    envs = make_envs(2, graph=["vgg11_b1", "bert_tiny_b16"], cluster=["mcm4", "mcm9"])
    envs.seed(1)
    observations = envs.reset()
    for row, info in enumerate(envs.reset_infos):
        seen = ChipletInput.from_observation({name: torch.from_numpy(one[row]) for name, one in observations.items()})
        own = ChipletInput.from_problem(ChipletProblem(info["graph"], info["cluster"]))
        for field in dataclasses.fields(ChipletInput):
            assert torch.equal(getattr(seen, field.name), getattr(own, field.name)), field.name
    envs.close()


def test_input__gives_back_shares_of_work_and_memory() -> None:
    problem = ChipletProblem("bert_mini_b4", "mcm16_mixed")
    graph = ChipletInput.from_problem(problem)
    work = problem.op_seconds.mean(axis=0)
    np.testing.assert_allclose(graph.work().numpy(), work / work.sum(), rtol=1e-3, atol=1e-7)
    held = graph.held().numpy().sum() * problem.package.sram_bytes.mean()
    assert held == pytest.approx(problem.ops.param_bytes.sum(), rel=1e-3)


def test_relaxed_strain__is_the_expectation_over_all_partitions() -> None:
    problem = ChipletProblem(fork_join(2, 2, output_bytes=10**6), "mcm4")
    graph = ChipletInput.from_problem(problem)
    torch.manual_seed(0)
    logits = torch.randn(problem.num_ops, problem.num_chips)
    chances = logits.softmax(1).numpy()
    n, chips = chances.shape
    edges = problem.ops.edges
    ratio = graph.edge_bytes.numpy() / (1 - graph.edge_bytes.numpy())
    carried = float(graph.chips[0, network_module.CARRIED])
    speed = graph.chips[:, network_module.SPEED].numpy()
    load, links, memory, broken = np.zeros(chips), np.zeros(chips - 1), np.zeros(chips), 0.0
    for partition in itertools.product(range(chips), repeat=n):
        chance = float(np.prod([chances[op, chip] for op, chip in enumerate(partition)]))
        for op, chip in enumerate(partition):
            load[chip] += chance * float(graph.work()[op]) / (speed[chip] / speed.sum())
            memory[chip] += chance * float(graph.held()[op])
        for (u, v), time in zip(edges.tolist(), ratio.tolist(), strict=True):
            a, b = partition[u], partition[v]
            links[a:b] += chance * time
            broken += chance * (a > b or b >= a + 2) / len(edges)
            if a != b:
                memory[a] += chance * time * carried / (1 - carried)
                memory[b] += chance * 2 * time * carried / (1 - carried)
    strain = (np.concatenate([load, links]) ** network_module.STRAIN_POWER).sum() ** (1 / network_module.STRAIN_POWER)
    over = np.maximum(memory - network_module.FULL, 0).sum()
    expected = np.log(strain) + over + network_module.BROKEN_WEIGHT * broken
    assert float(relaxed_strain(logits, graph)) == pytest.approx(expected, rel=1e-3)


def test_relaxed_strain__descends_to_balance_without_an_evaluation() -> None:
    task = agent.make_task(chain(24), "mcm4")
    torch.manual_seed(0)
    made = ChipletNetwork(ChipletConfig(**SMALL, anchored=False))
    before = agent.place(made, agent.make_task(chain(24), "mcm4")).outcome.cost
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        relaxed_strain(made(task.graph), task.graph).backward()
        optimizer.step()
    after = agent.place(made, task).outcome.cost
    assert before > 2 * task.least_s
    assert after < 0.6 * before


def test_strain__is_what_plain_python_says() -> None:
    task = agent.make_task("resnet18_b1", "mcm9")
    problem = task.problem
    rng = np.random.default_rng(0)
    decisions = np.stack([problem.sample(rng) for _ in range(20)])
    whole, felt = agent.strain(task, decisions)
    for row, decision in enumerate(decisions):
        seconds, link_bytes, memory, _ = problem.measure(decision)
        links = link_bytes / problem.package.link_bytes_per_s / task.least_s
        chips = seconds / task.least_s
        over = [max(0.0, used / room - 1) for used, room in zip(memory, problem.package.sram_bytes, strict=True)]
        times = [*chips, *links]
        mean = (sum(time**8 for time in times) / len(times)) ** (1 / 8)
        assert whole[row] == pytest.approx(mean + 4 * sum(over))
        for op, chip in enumerate(decision.tolist()):
            most = chips[chip] if not over[chip] else max(chips) + over[chip]
            for u, v in problem.ops.edges.tolist():
                if decision[u] == decision[v] or op not in (u, v):
                    continue
                near = [links[i] for i, pair in enumerate(problem.package.links) if pair[op == v] == chip]
                most = max(most, *near)
            assert felt[row, op] == pytest.approx(most)


def test_choices__have_the_probability_among_the_chips_that_were_left() -> None:
    task = agent.make_task("bert_tiny_b16", "mcm9")
    torch.manual_seed(0)
    logits = torch.randn(task.problem.num_ops, 9)
    decisions, drawn_from = agent.sample(task.problem, logits, 6, np.random.default_rng(0))
    choices = agent.Choices.of(decisions, drawn_from, task.problem)
    log_probs = choices.log_probs(logits)
    chances = logits.softmax(1)
    assert len(log_probs) > 20
    for index in range(len(log_probs)):
        row, op = int(choices.row[index]), int(choices.op[index])
        left = [chip for chip in range(9) if drawn_from[row, op] >> chip & 1]
        assert len(left) > 1
        chip = int(decisions[row, op])
        expected = float((chances[op, chip] / chances[op, left].sum()).log())
        assert float(log_probs[index]) == pytest.approx(expected, abs=1e-5)


def test_elites__are_scored_as_if_drawn_in_the_order_of_the_ops() -> None:
    task = agent.make_task("bert_tiny_b16", "mcm4")
    decision = task.problem.sample(np.random.default_rng(0))
    drawn_from = task.problem.corrector.choices_of(decision)
    drawn = drawn_from > 0
    assert drawn.any()
    assert (drawn_from[drawn] >> decision[drawn].astype(np.int64) & 1).all()
    broken = decision[::-1].copy()  # data flows back
    assert task.problem.violations(broken)
    assert not task.problem.corrector.choices_of(broken).any()


def test_ppo_loss__raises_what_was_better() -> None:
    task = agent.make_task("vgg11_b1", "mcm4")
    logits = torch.zeros(task.problem.num_ops, 4, requires_grad=True)
    drawn = agent.sample(task.problem, logits.detach(), 8, np.random.default_rng(0))
    choices = agent.Choices.of(*drawn, task.problem)
    gains = torch.zeros(8, task.problem.num_ops)
    gains[0], gains[1] = 1.0, -1.0
    gains = gains[choices.row, choices.op]
    loss, measures = ppo_loss(logits, choices, gains, choices.log_probs(logits).detach(), 0.2, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    moved = agent.Choices.log_probs(choices, (logits - 5 * logits.grad).detach())
    change = moved - choices.log_probs(logits.detach())
    assert change[choices.row == 0].mean() > 0 > change[choices.row == 1].mean()
    assert measures["clipped_share"] == 0


def test_training__beats_random_search_at_equal_evaluations() -> None:
    problem = ChipletProblem("bert_tiny_b16", "mcm9")
    ours, theirs = [], []
    for seed in range(3):
        run = agent.method_run(**SMALL)
        ours.append(solve(problem, Method("rl", run, "", "", random=True), budget=120, seed=seed))
        theirs.append(solve(problem, "random", budget=120, seed=seed))
    assert all(solution.evaluations == 120 for solution in ours)
    assert all(solution.outcome.valid for solution in ours)
    assert all(not problem.violations(solution.decision) for solution in ours)
    costs = [np.mean([one.outcome.cost if one.outcome.valid else 1.0 for one in side]) for side in (ours, theirs)]
    assert costs[0] < costs[1]


@pytest.mark.parametrize("extra", [{}, agent.paper_arguments(), {"solver": False, "mutants": 0.0, "elites": 0}])
def test_training__that_was_stopped_goes_on_exactly(tmp_path: Path, extra: dict[str, Any]) -> None:
    given = {**SMALL, "graphs": "vgg11_b1,bert_tiny_b16", "clusters": "mcm4", "samples": 6, "graphs_per_update": 1}
    whole = agent.train(agent.Args(**given | extra, updates=4), tmp_path / "whole")
    agent.train(agent.Args(**given | extra, updates=2), tmp_path / "parts")
    parts = agent.train(agent.Args(**given | extra, updates=4), tmp_path / "parts", resume=True)
    assert whole.evaluations == parts.evaluations == 24
    states = []
    for name in ("whole", "parts"):
        state = checkpoints.load_checkpoint(tmp_path / name, "chiplet").state
        curve = [{key: row[key] for key in row if key != "wall_s"} for row in json.loads(state.pop("curve"))]
        state.pop("wall_s")
        for task in state["tasks"].values():
            task["improved"] = [(row[0], row[2]) for row in task["improved"]]
        states.append((state, curve))
    assert_same(*states)
    for solution in whole.solutions():
        assert solution.outcome.valid == (not solution.problem.violations(solution.decision))  # type: ignore[attr-defined]


def test_without_the_solver__hardly_anything_is_valid() -> None:
    task = agent.make_task("bert_base_b1", "mcm36")
    torch.manual_seed(0)
    with torch.no_grad():
        logits = ChipletNetwork(ChipletConfig(anchored=False))(task.graph)
    decisions, _ = agent.sample(task.problem, logits, 200, np.random.default_rng(0), solver=False)
    _, valid = task.problem.costs(decisions)
    assert not valid.any()


def test_place__counts_its_evaluations_and_repeats(tmp_path: Path) -> None:
    made = network()
    solutions = [agent.place(made, agent.make_task("vgg11_b1", "mcm4"), 13, seed=5) for _ in range(2)]
    assert solutions[0].evaluations == 13
    assert solutions[0].decision.tolist() == solutions[1].decision.tolist()
    one = agent.place(made, agent.make_task("vgg11_b1", "mcm4"), 1)
    assert one.evaluations == 1
    assert solutions[0].outcome.cost <= one.outcome.cost
    with pytest.raises(InputError, match="samples is 0"):
        agent.place(made, agent.make_task("vgg11_b1", "mcm4"), 0)


def test_evaluate__zero_shot_and_fine_tuned(tmp_path: Path) -> None:
    args = agent.Args(**SMALL, graphs="vgg11_b1", clusters="mcm4", updates=2, samples=4)
    agent.train(args, tmp_path / "run")
    own = agent.evaluate(tmp_path / "run")
    assert (own.problem.graph.name, own.problem.cluster.name) == ("vgg11_b1", "mcm4")
    other = agent.evaluate(tmp_path / "run", "bert_tiny_b16", "mcm9", samples=10)
    assert other.evaluations == 10
    tuned = agent.evaluate(tmp_path / "run", "bert_tiny_b16", "mcm9", updates=3)
    assert tuned.evaluations == 1 + 3 * 4
    started = agent.train(agent.Args(**SMALL, graphs="vgg11_b1", updates=1), start_from=tmp_path / "run")
    assert started.updates == 1
    with pytest.raises(InputError, match="other sizes"):
        agent.train(agent.Args(graphs="vgg11_b1", updates=1), start_from=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"graphs": ""}, "graphs is an empty list"),
        ({"clusters": "mcm4,mcm9,mcm16"}, "clusters has 3 entries for 1 graphs"),
        ({"samples": 1}, "samples is 1; give a whole number, at least 2"),
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"relaxed": -1.0}, "relaxed is -1.0; give a number, at least 0"),
        ({"mutants": 0.99}, "leaves none of 20 samples to the policy"),
        ({"elites": 0}, "mutants change elites"),
        ({"advantage": "ranks"}, "unknown advantage 'ranks'; did you mean 'rank'?"),
        ({"anchored": 1}, "anchored is 1; give true or false"),
        ({"width": 2}, "width is 2; give a whole number, at least 4"),
        ({"upadtes": 2}, "unknown argument of chiplet 'upadtes'; did you mean 'updates'?"),
    ],
)
def test_arguments__bad_ones_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        agent.Trainer.args_from(given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# the same network as a policy of Stable-Baselines3


def test_policy__trains_with_sb3_and_improves(tmp_path: Path) -> None:
    envs = make_envs(16, graph="bert_tiny_b16", cluster="mcm4")
    model = PPO(
        ChipletPolicy, envs, n_steps=2, batch_size=32, n_epochs=4, learning_rate=3e-3, seed=0, device="cpu",
        policy_kwargs={"network": {**SMALL, "anchored": False}},
    )  # fmt: skip
    rewards: list[float] = []

    class Track(GraphBaseline):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            rewards.append(float(self.model.rollout_buffer.rewards.mean()))  # type: ignore[attr-defined]

    model.learn(32 * 30, callback=Track())
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5])
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=envs)
    observations = envs.reset()
    first, second = (one.predict(observations, deterministic=True)[0] for one in (model, loaded))
    assert np.array_equal(first, second)
    envs.close()


def test_policy__takes_the_shipped_weights_and_larger_padding() -> None:
    kept = agent.load_network("chiplet")
    envs = make_envs(1, graph="bert_mini_b4", cluster="mcm36", max_ops=120, max_chips=40)
    config = dataclasses.asdict(kept.config)
    model = PPO(ChipletPolicy, envs, n_steps=2, device="cpu", policy_kwargs={"network": config})
    policy: Any = model.policy
    policy.network.load_state_dict(kept.state_dict())
    action, _ = model.predict(envs.reset(), deterministic=True)
    task = agent.make_task("bert_mini_b4", "mcm36")
    with torch.no_grad():
        expected = kept(task.graph).argmax(1)
    assert action[0, : task.problem.num_ops].tolist() == expected.tolist()
    envs.close()


def test_policy__refuses_other_modes() -> None:
    for mode in ("sample", "step"):
        envs = make_envs(1, graph="vgg11_b1", cluster="mcm4", mode=mode)
        with pytest.raises(InputError, match="mode='fix'"):
            PPO(ChipletPolicy, envs)
        envs.close()


def test_shipped_policy__is_no_worse_than_random_search_with_far_fewer_evaluations() -> None:
    problem = ChipletProblem("bert_base_b1", "mcm36")
    shipped = agent.evaluate("chiplet", "bert_base_b1", "mcm36", samples=20)
    random = solve(problem, "random", budget=200)
    assert shipped.outcome.valid
    assert not random.outcome.valid or shipped.outcome.cost < random.outcome.cost
