"""GO: its network, its trainer, its policy in Stable-Baselines3, and annealing after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents import gdp_search, go
from graphopt_agents.networks.joint import BASIS, JointConfig, JointInput, JointNetwork, level_basis
from graphopt_agents.policies import GOPolicy
from stable_baselines3 import PPO

import graphopt_gym as gg
from graphopt_gym.envs.joint.instances import Instance
from graphopt_gym.envs.joint.problem import TASKS, GraphOptimizationProblem
from graphopt_gym.errors import InputError
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve
from graphopt_gym.wrappers import SB3VecEnv

SMALL: dict[str, Any] = {"width": 16, "sage_layers": 2}
GRAPH = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}


pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(**changes: Any) -> go.Args:
    given = {"graphs": "transformer_xl_2layer", "clusters": "v100x2", "updates": 4, "samples": 16, **SMALL, **changes}
    return go.Trainer.args_from(given)


def network_of(**changes: Any) -> JointNetwork:
    """One whose heads are not 0, so that its inputs matter."""
    torch.manual_seed(0)
    network = JointNetwork(JointConfig(**{**SMALL, **changes}))
    for name, weight in network.named_parameters():
        if name.startswith(("place.query.weight", "level.")) and name.endswith("weight"):
            torch.nn.init.normal_(weight, std=0.3)
    return network


@pytest.fixture(scope="module")
def instance() -> Instance:
    return Instance(GraphOptimizationProblem(**GRAPH))


def test_network__gives_logits_of_every_entry_and_begins_uniform(instance: Instance) -> None:
    problem = instance.problem
    graph = JointInput.from_instance(instance)
    with torch.no_grad():
        logits = JointNetwork(JointConfig(**SMALL))(graph)
    assert logits.shape == (problem.decision_shape[0], 16)
    chances = logits.softmax(1)
    for task, part in problem.slices.items():
        choices = problem.num_devices if task == "placement" else problem.levels
        torch.testing.assert_close(
            chances[part, :choices], torch.full_like(chances[part, :choices], 1 / choices), atol=1e-6, rtol=1e-6
        )
        assert (chances[part, choices:] == 0).all()


@pytest.mark.parametrize("tasks", ["placement", "fusion", "schedule", "fusion+schedule"])
def test_network__serves_some_of_the_tasks(tasks: str) -> None:
    part = Instance(GraphOptimizationProblem(**GRAPH, tasks=tasks))
    with torch.no_grad():
        logits = network_of()(JointInput.from_instance(part))
    assert logits.shape == (part.length, 2 if tasks == "placement" else 16)
    assert torch.isfinite(logits.log_softmax(1)).all()


def test_network__each_switch_changes_what_it_gives(instance: Instance) -> None:
    graph = JointInput.from_instance(instance)
    with torch.no_grad():
        plain = network_of()(graph)
        for off in (
            {"passes": 1}, {"passes": 3}, {"joint": False}, {"shared": False}, {"recurrence": False, "segment": 32},
            {"superposition": False}, {"sage_layers": 0}, {"use_times": False},
        ):  # fmt: skip
            assert not torch.allclose(network_of(**off)(graph), plain), off


def test_network__without_joint_layers_no_task_sees_another_but_by_the_pass_before(instance: Instance) -> None:
    """What the placement's layer adds reaches fusion only where the layers pass on to each other."""
    graph = JointInput.from_instance(instance)
    part = instance.problem.slices["fusion"]
    with torch.no_grad():
        for joint in (True, False):
            network = network_of(passes=1, joint=joint)
            before = network(graph)[part]
            network.task[0] += 1.0  # placement's
            assert torch.allclose(network(graph)[part], before) != joint


def test_network__passes_are_conditioned_on_the_decision_before(instance: Instance) -> None:
    graph = JointInput.from_instance(instance)
    fusion, schedule = instance.problem.slices["fusion"], instance.problem.slices["schedule"]
    with torch.no_grad():
        for passes, moves in ((1, False), (2, True)):
            network = network_of(passes=passes, joint=False)
            before = network(graph)
            network.level["schedule"].weight += 0.5
            after = network(graph)
            assert not torch.allclose(after[schedule], before[schedule])
            assert torch.allclose(after[fusion], before[fusion]) != moves


def test_network__is_told_of_a_simulated_decision(instance: Instance) -> None:
    network = network_of(timeline=True)
    graph = JointInput.from_instance(instance)
    problem = instance.problem
    told = graph.after(instance, problem.decision_of(problem.default))
    assert told.before is not None
    assert ((told.before >= 0) & (told.before <= 1)).all()
    timeline = problem.evaluate(problem.decision_of(problem.default)).timeline
    assert timeline is not None
    assert float(told.before[:, -1].max()) == 1.0
    with torch.no_grad():
        assert not torch.allclose(network(graph), network(told))
        assert torch.allclose(network_of()(graph), network_of()(told))


def test_level_basis__tells_all_levels_apart() -> None:
    assert int(torch.linalg.matrix_rank(level_basis(16))) == BASIS
    assert len(torch.unique(level_basis(16), dim=0)) == 16


def test_network__of_an_observation_is_that_of_the_instance(instance: Instance) -> None:
    env = gym.make("GraphOptimizationOneShot-v0", **GRAPH, max_ops=240, max_groups=50, max_devices=3, max_edges=400)
    observation, _ = env.reset(seed=0)
    tensors = {name: torch.from_numpy(value) for name, value in observation.items()}
    mine = JointInput.from_observation(tensors, TASKS, 16)
    network = network_of()
    with torch.no_grad():
        torch.testing.assert_close(network(mine), network(JointInput.from_instance(instance)), atol=1e-5, rtol=1e-5)


def test_network__is_the_same_with_less_memory(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt_agents.networks import joint

    graph, network = JointInput.from_instance(instance), network_of(segment=64)

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        network(graph).log_softmax(1)[:, 0].clamp(min=-20).mean().backward()
        return [one.grad.clone() for one in network.parameters() if one.grad is not None]

    plain = gradients()
    monkeypatch.setattr(joint, "SAVE_MEMORY_ABOVE", 10)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


# training


def test_train__repeats_with_its_seed_counts_and_keeps_the_best() -> None:
    results = [go.train(arguments(seed=seed)) for seed in (1, 1, 2)]
    curves = [[row["mean_cost"] for row in result.curve] for result in results]
    assert curves[0] == curves[1] != curves[2]
    (task,), solution = results[0].tasks, results[0].solution()
    heuristics = gg.solve(GraphOptimizationProblem(**GRAPH), "heuristics")
    assert task.trials == 4 * 16 + heuristics.evaluations + 1  # and the default stack
    assert solution.outcome.cost <= heuristics.outcome.cost
    assert solution.outcome.cost == GraphOptimizationProblem(**GRAPH).evaluate(solution.decision).cost


def test_train__resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = go.train(arguments(timeline=True, updates=4, checkpoint_every=2), tmp_path / "whole")
    go.train(arguments(timeline=True, updates=2, checkpoint_every=2), tmp_path / "parts")
    parts = go.train(arguments(timeline=True, updates=4, checkpoint_every=2), tmp_path / "parts", resume=True)
    for one, other in zip(whole.network.state_dict().values(), parts.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert whole.solution().outcome.cost == parts.solution().outcome.cost


def test_train__learns_from_nothing() -> None:
    """Without heuristics, elites or mutants the mean of what is drawn falls far below that of random decisions."""
    result = go.train(arguments(updates=60, samples=32, starts=False, elites=0, mutants=0.0))
    control = go.train(arguments(updates=10, samples=32, starts=False, elites=0, mutants=0.0, learning_rate=1e-12))
    drawn = np.mean([row["mean_cost"] for row in control.curve])
    assert np.mean([row["mean_cost"] for row in result.curve[-5:]]) < 0.75 * drawn


def test_named__keeps_the_cost_and_names_like_devices_as_the_policy_would() -> None:
    problem = GraphOptimizationProblem(**GRAPH)
    task = go.task_of(problem)
    decision = problem.sample(np.random.default_rng(0))
    parts = problem.parts(decision)
    other = problem.decision_of(parts._replace(placement=1 - parts.placement))
    both = np.stack([decision, other])
    logits = torch.zeros(len(decision), problem.levels)
    named = task.named(both, logits)
    assert named[0].tolist() == named[1].tolist()
    assert problem.costs(named)[0].tolist() == problem.costs(decision[None])[0].tolist() * 2
    for favourite in (0, 1):  # everything on one device is what the policy likes, by whatever name it came
        logits[problem.slices["placement"], favourite] = 1.0
        alone = np.stack([problem.decision_of(parts._replace(placement=parts.placement * 0 + d)) for d in (0, 1)])
        assert (task.named(alone, logits)[:, problem.slices["placement"]] == favourite).all()
        logits.zero_()


def test_named__keeps_unlike_devices_apart() -> None:
    """Of a cluster of two kinds, two devices of each."""
    problem = GraphOptimizationProblem("transformer_xl_2layer", "p100x2_v100x2")
    task, rng = go.task_of(problem), np.random.default_rng(1)
    decisions = np.stack([problem.sample(rng) for _ in range(4)])
    named = task.named(decisions, torch.randn(decisions.shape[1], problem.levels))
    part = problem.slices["placement"]
    kinds = problem.placing.interchangeable
    assert (kinds[named[:, part]] == kinds[decisions[:, part]]).all()
    assert (named != decisions).any()
    for row, old in zip(named[:, part], decisions[:, part], strict=True):
        assert len(set(zip(row.tolist(), old.tolist(), strict=True))) == 4  # a new name for each


def test_transfer__zero_shot_and_fine_tuned(tmp_path: Path) -> None:
    go.train(arguments(graphs="transformer_xl_2layer", updates=2, checkpoint_every=2), tmp_path / "run")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint*")
    zero = go.evaluate(checkpoint, graph="transformer_xl_4layer", cluster="p100x4", samples=4)
    assert zero.evaluations == 4
    tuned = go.evaluate(checkpoint, graph="transformer_xl_4layer", cluster="p100x4", updates=1, seed=0)
    assert tuned.outcome.valid


def test_refusals__one_line_each() -> None:
    for changes, said in (
        ({"tasks": "placment"}, "did you mean 'placement'"),
        ({"levels": 1}, "levels is 1"),
        ({"width": 15}, "which 4 heads cannot share"),
        ({"moved": 2.0}, "moved is 2"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            go.train(arguments(**changes))
        assert "\n" not in str(caught.value)


# as methods


def test_methods__keep_to_budget_and_seed() -> None:
    problem = GraphOptimizationProblem(**GRAPH)
    for make in (go.method_run, go.search_run):
        method = Method("go", make(**SMALL, samples=16), "", "", random=True)
        costs = [solve(problem, method, budget=120, seed=seed).outcome.cost for seed in (0, 0, 1)]
        assert costs[0] == costs[1]
        assert max(costs) <= gg.solve(problem, "heuristics").outcome.cost


def test_policy_moves__draw_from_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdp_search, "OWN_MOVES", 0.0)
    problem = GraphOptimizationProblem(**GRAPH)
    probs = np.zeros((problem.decision_shape[0], problem.num_choices))
    probs[:, 1] = 1e9  # so much that the even half does not matter
    moves = go.PolicyMoves(problem, probs)
    rng = np.random.default_rng(0)
    decision = np.zeros(problem.decision_shape, np.int32)
    changed = np.stack([moves.neighbour(decision, rng) for _ in range(200)])
    assert set(np.unique(changed)) == {0, 1}
    for part in problem.slices.values():
        assert changed[:, part].any()
    assert not decision.any()


# Stable-Baselines3


def make_ppo(env: Any, **policy: Any) -> PPO:
    return PPO(GOPolicy, env, n_steps=2, batch_size=8, n_epochs=1, seed=0, policy_kwargs={"network": SMALL, **policy})


def test_policy__scores_real_entries_and_trains(tmp_path: Path) -> None:
    arguments = {"graph": ["transformer_xl_2layer", "bert_tiny_b16"], "cluster": "v100x2"}
    envs = SB3VecEnv(gym.make_vec("GraphOptimizationOneShot-v0", num_envs=6, autoreset_mode="SameStep", **arguments))
    model = make_ppo(envs)
    policy: Any = model.policy
    observations = envs.reset()
    tensors, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        for head in policy.network.level.values():
            torch.nn.init.normal_(head.weight, std=0.2)
        actions, values, scores = policy.forward(tensors)
        again, scores_again, entropies = policy.evaluate_actions(tensors, actions)
    torch.testing.assert_close(scores, scores_again)
    assert values.shape == again.shape == (6, 1)
    for row in range(6):
        graph = JointInput.from_observation({name: value[row] for name, value in tensors.items()}, TASKS, 16)
        categorical = torch.distributions.Categorical(logits=policy.network(graph))
        sizes = [graph.num_groups, graph.num_ops, graph.num_ops]
        own, begin = [], 0
        for (size, _), count in zip(policy.blocks, sizes, strict=True):
            own.append(actions[row, begin : begin + count])
            assert (actions[row, begin + count : begin + size] == 0).all()
            begin += size
        expected = categorical.log_prob(torch.cat(own)).mean().detach()
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entropies[row], categorical.entropy().mean().detach(), rtol=1e-4, atol=1e-4)
    model.learn(24)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=envs)
    assert np.array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    envs.close()


def test_policy__refuses_other_environments_tasks_and_arguments() -> None:
    with pytest.raises(InputError, match="GraphOptimizationOneShot-v0"):
        make_ppo("CartPole-v1")
    env = gym.make("GraphOptimizationOneShot-v0", **GRAPH, tasks="fusion+schedule")
    with pytest.raises(InputError, match="tasks"):
        make_ppo(env)
    make_ppo(env, tasks="fusion+schedule")
    with pytest.raises(InputError, match="timeline"):
        make_ppo(gym.make("GraphOptimizationOneShot-v0", **GRAPH), network={**SMALL, "timeline": True})


def test_input__is_of_one_graph(instance: Instance) -> None:
    graph = JointInput.from_instance(instance)
    assert graph.num_ops == instance.num_tasks
    assert graph.num_groups == instance.num_groups
    assert replace(graph, before=None) == graph
