"""GDP: drawing placements, the Stable-Baselines3 policy, the trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents import gdp
from graphopt_agents.blocks import Blocks, draw_placements, mutate_placements
from graphopt_agents.core import checkpoints
from graphopt_agents.core.one_shot import EveryEntry, ppo_loss, rank_advantages
from graphopt_agents.core.sb3 import GraphBaseline
from graphopt_agents.gdp import Args, Trainer, make_task, module_mean, place, train
from graphopt_agents.networks import NetworkConfig, PlacementNetwork
from graphopt_agents.policies import GDPPolicy
from stable_baselines3 import PPO

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_gym.envs.placement.instances import load_instance
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import fork_join, known_optimum_s, layered_dag
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve
from graphopt_gym.wrappers import SB3VecEnv

SMALL = {"width": 16, "sage_layers": 2, "blocks": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def graph_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two graphs of about 40 groups with several branches to spread."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = []
    for graph in (fork_join(4, 9, flops=10**11), layered_dag(45, width=6, seed=3)):
        paths.append(str(folder / f"{graph.name}.npz"))
        save_graph(graph, paths[-1])
    return paths[0], paths[1]


# drawing


def test_draws__follow_the_policy_also_in_blocks() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]).log()
    for independent in (1.0, 0.0):
        drawn = draw_placements(log_probs, 8000, torch.Generator().manual_seed(0), Blocks(3), independent)
        for group in range(3):
            shares = torch.bincount(drawn[:, group], minlength=3) / len(drawn)
            # four standard deviations of a share from 8,000 draws
            assert (shares - log_probs[group].exp()).abs().max() < 4 * (0.25 / 8000) ** 0.5


def test_draws__blocks_have_fewer_cuts_and_follow_the_order_given() -> None:
    log_probs = torch.zeros(60, 4).log_softmax(1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))

    def cuts(placements: torch.Tensor) -> float:
        return float((placements[:, 1:] != placements[:, :-1]).float().mean())

    alone = draw_placements(log_probs, 200, torch.Generator().manual_seed(0), Blocks(60), 1.0)
    blocks = draw_placements(log_probs, 200, torch.Generator().manual_seed(0), Blocks(60), 0.0)
    ordered = draw_placements(log_probs, 200, torch.Generator().manual_seed(0), Blocks(60, (order,)), 0.0)
    assert cuts(alone) > 0.7
    assert cuts(blocks) < 0.4
    assert cuts(ordered[:, order]) < 0.4
    assert cuts(ordered) > 0.5


def test_blocks__are_intervals_of_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.tensor([3, 1, 4, 0, 2])
    for _ in range(50):
        steps = Blocks(5, (order,)).draw(generator)[order].diff()
        assert set(steps.tolist()) <= {0, 1}


def test_blocks__of_a_model_are_its_modules_and_layers_too() -> None:
    instance = load_instance("transformer_xl_2layer", "p100x2", "colocation", None)
    blocks = Blocks.of(instance)
    first = np.unique(instance.problem.group_of_op, return_index=True)[1]
    paths = [instance.problem.graph.modules[code] for code in instance.problem.graph.module[first]]
    layer = blocks.partitions[-1]
    for one, path in enumerate(paths):
        for other, second in enumerate(paths):
            numbers = [[name for name in text.split(".") if name.isdigit()][:1] for text in (path, second)]
            if all(numbers):
                assert (layer[one] == layer[other]) == (numbers[0] == numbers[1])
    generator = torch.Generator().manual_seed(0)
    drawn = [blocks.draw(generator) for _ in range(200)]
    for part in blocks.partitions:
        assert any(torch.equal(one, part) for one in drawn)
    assert any(all(not torch.equal(one, part) for part in blocks.partitions) for one in drawn)


def test_mutants__change_one_block_to_one_device() -> None:
    generator = torch.Generator().manual_seed(0)
    best = torch.zeros(1, 30, dtype=torch.long)
    mutants = mutate_placements(best, torch.zeros(30, 4).log_softmax(1), 100, generator, Blocks(30))
    for row in mutants:
        changed = row.nonzero().flatten()
        assert len(row[changed].unique()) <= 1
        assert len(changed) == 0 or int(changed[-1] - changed[0]) + 1 == len(changed)
    assert (mutants != 0).any(1).float().mean() > 0.5


# the Stable-Baselines3 policy


def make_envs(graph_files: tuple[str, ...], clusters: Any = "toyx2", num_envs: int = 8) -> SB3VecEnv:
    envs = gym.make_vec(
        "PlacementOneShot-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        graph=list(graph_files),
        cluster=clusters,
        autoreset_mode="SameStep",
    )
    return SB3VecEnv(envs)


def make_ppo(envs: Any, **given: Any) -> PPO:
    policy = {"network": SMALL} | given.pop("policy_kwargs", {})
    return PPO(
        GDPPolicy, envs, **{"n_steps": 2, "batch_size": 16, "n_epochs": 2, "seed": 0, **given}, policy_kwargs=policy
    )


def test_policy__log_probs_and_entropies_are_over_real_groups(graph_files: tuple[str, str]) -> None:
    envs = make_envs(graph_files, ["toyx2", "toy_mixedx3"], num_envs=12)
    envs.seed(0)
    observations = envs.reset()
    groups = observations["node_mask"].sum(1)
    assert len(set(groups.tolist())) == 2  # both graphs were drawn
    for ratio, scale in (("joint", 1.0), ("mean", groups)):
        model = make_ppo(envs, policy_kwargs={"ratio": ratio})
        policy: Any = model.policy
        torch.nn.init.normal_(policy.network.head.query.weight)
        tensors, _ = policy.obs_to_tensor(observations)
        with torch.no_grad():
            actions, values, scores = policy.forward(tensors)
            again, scores_again, entropies = policy.evaluate_actions(tensors, actions)
        assert values.shape == again.shape == (12, 1)
        torch.testing.assert_close(scores, scores_again)
        for row in range(12):
            from graphopt_agents.networks import GraphInput

            graph = GraphInput.from_observation({name: value[row] for name, value in tensors.items()})
            categorical = torch.distributions.Categorical(logits=policy.network(graph))
            real = int(groups[row])
            size = real if ratio == "mean" else 1
            expected = categorical.log_prob(actions[row, :real]).sum() / size
            torch.testing.assert_close(scores[row], expected.detach(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                entropies[row], (categorical.entropy().sum() / size).detach(), rtol=1e-4, atol=1e-4
            )
            assert (actions[row, real:] == 0).all()
            assert (actions[row] < graph.num_devices).all()
        assert np.all(scale)
    envs.close()


def test_policy__trains_with_sb3_and_improves(graph_files: tuple[str, str]) -> None:
    envs = make_envs(graph_files[1:], "toyx2", num_envs=16)
    model = make_ppo(envs, n_steps=4, batch_size=64, n_epochs=4, learning_rate=1e-3, ent_coef=0.003)
    rewards: list[float] = []

    class Track(GraphBaseline):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            rewards.append(float(self.model.rollout_buffer.rewards.mean()))  # type: ignore[attr-defined]

    callback = Track()
    model.learn(64 * 40, callback=callback)
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5])
    ((count, mean),) = callback.means.values()
    assert count == 64 * 40
    assert mean == pytest.approx(np.mean(rewards), rel=1e-5)
    problem = envs.get_attr("episodes")[0].instances[0].problem
    decision, _ = model.predict(envs.reset(), deterministic=True)
    rng = np.random.default_rng(0)
    costs, _ = problem.costs(np.stack([problem.sample(rng) for _ in range(200)]))
    assert problem.evaluate(decision[0, : problem.num_groups]).cost < np.median(costs)
    envs.close()


def test_policy__saves_loads_and_moves_to_larger_padding(graph_files: tuple[str, str], tmp_path: Path) -> None:
    envs = make_envs(graph_files, num_envs=4)
    model = make_ppo(envs)
    model.learn(8)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=envs)
    observations = envs.reset()
    assert np.array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    wide = make_ppo(
        gym.make("PlacementOneShot-v0", graph=graph_files[0], cluster="toy_mixedx3", max_groups=70, max_devices=5)
    )
    wide.policy.load_state_dict(model.policy.state_dict())
    observation, info = wide.get_env().envs[0].reset()  # type: ignore[union-attr]
    action, _ = wide.predict(observation, deterministic=False)
    assert action.shape == (70,)
    assert (action[: info["groups"]] < 3).all()
    envs.close()


def test_policy__refuses_other_environments_and_arguments(graph_files: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="PlacementOneShot-v0"):
        PPO(GDPPolicy, "CartPole-v1")
    envs = make_envs(graph_files, num_envs=1)
    with pytest.raises(InputError, match="ratio"):
        make_ppo(envs, policy_kwargs={"ratio": "meen"})
    with pytest.raises(InputError, match="width"):
        make_ppo(envs, policy_kwargs={"network": {"widht": 3}})
    with pytest.raises(InputError, match="independent"):
        make_ppo(envs, policy_kwargs={"independent": 2})
    envs.close()


# the trainer's parts


def test_rank_advantages__are_centred_bounded_and_shared_by_equals() -> None:
    advantages = rank_advantages(np.array([-3.0, -1.0, -1.0, -100.0]))
    assert advantages.mean() == pytest.approx(0)
    assert advantages[1] == advantages[2] > advantages[0] > advantages[3]
    assert abs(rank_advantages(np.arange(9.0))[[0, 8]]) == pytest.approx(3**0.5)
    assert (rank_advantages(np.full(5, -2.0)) == 0).all()


def test_ppo_loss__clips_each_group_by_itself() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]], requires_grad=True)
    actions, advantages = EveryEntry(torch.tensor([[0], [0]])), torch.tensor([1.0])
    before = torch.full((2, 1), 0.5).log()
    loss, measures = ppo_loss(logits, actions, advantages, before, clip=0.2, entropy=0.0)
    probability = 1 / (1 + np.exp(-2.0))
    assert float(loss.detach()) == pytest.approx(-(1 + 1.2) / 2)  # ratios 1 and 2 p, the second clipped
    assert measures["clipped_share"] == 0.5
    assert probability / 0.5 > 1.2
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0  # towards more of it
    assert (logits.grad[1] == 0).all()


# whole runs


def run_args(graph_files: tuple[str, ...], **given: Any) -> Args:
    return Args(
        **{
            **SMALL, "graphs": graph_files, "clusters": ("toyx2",), "samples": 16, "epochs": 2,
            "updates": 10, "checkpoint_every": 100, **given,
        }
    )  # fmt: skip


def comparable(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state = checkpoints.load_checkpoint(folder, "gdp").state
    curve = json.loads(state.pop("curve"))
    for row in curve:
        del row["wall_s"]
    del state["wall_s"]
    for task in state["tasks"].values():
        task["improved"] = [(row[0], row[2]) for row in task["improved"]]  # without seconds
    return state, curve


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_train__ten_updates_are_five_and_five_resumed_bit_for_bit(graph_files: tuple[str, str], tmp_path: Path) -> None:
    args = run_args(graph_files, graphs_per_update=1, advantage="baseline")
    train(args, tmp_path / "whole")
    train(dataclasses.replace(args, updates=5), tmp_path / "parts")
    torch.rand(3), np.random.rand(3)  # what others draw in between does not matter
    result = train(args, tmp_path / "parts", resume=True)
    assert result.updates == 10
    assert_same(comparable(tmp_path / "whole"), comparable(tmp_path / "parts"))
    names = sorted(path.name for path in (tmp_path / "parts").glob("*.*"))
    assert [name for name in names if not name.startswith("solution")] == ["checkpoint.pt", "curve.csv", "curve.json"]
    assert len(names) == 5
    rows = json.loads((tmp_path / "parts" / "curve.json").read_text())["rows"]
    assert [row["update"] for row in rows] == list(range(1, 11))
    lines = (tmp_path / "parts" / "curve.csv").read_text().splitlines()
    assert len(lines) == 11
    assert {"evaluations", "wall_s", "best_cost", "mean_reward", "entropy"} <= set(lines[0].split(","))


def test_train__ctrl_c_ends_after_the_update_and_loses_nothing(graph_files: tuple[str, str], tmp_path: Path) -> None:
    args = run_args(graph_files[:1])
    train(args, tmp_path / "whole")

    def interrupt(row: dict[str, Any]) -> None:
        if row["update"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    stopped = train(args, tmp_path / "parts", progress=interrupt)
    assert stopped.interrupted
    assert stopped.updates == 4
    assert signal.getsignal(signal.SIGINT) is handler
    assert not train(args, tmp_path / "parts", resume=True).interrupted
    assert_same(comparable(tmp_path / "whole"), comparable(tmp_path / "parts"))


def test_train__counts_every_evaluation_and_keeps_the_best(graph_files: tuple[str, str]) -> None:
    result = train(run_args(graph_files, updates=6, graphs_per_update=1))
    starts = 5  # one device, expert, METIS, HEFT and m-ETF, all of which fit at once here
    assert [task.trials for task in result.tasks] == [48 + starts] * 2
    assert result.evaluations == 2 * (48 + starts)
    for task, solution in zip(result.tasks, result.solutions(), strict=True):
        assert solution.outcome.cost == task.best_cost == solution.history[-1][2]
        assert solution.evaluations == 48 + starts
        costs = [row["mean_cost"] for row in result.curve if row["graph"] == task.instance.problem.graph.name]
        assert len(costs) == 3
        assert task.best_cost <= min(costs)


def test_train__starts_no_worse_than_the_heuristics(graph_files: tuple[str, str]) -> None:
    result = train(run_args(graph_files[:1], updates=1))
    problem = result.tasks[0].instance.problem
    known = min(solve(problem, name).outcome.cost for name in ("single", "expert", "heft", "m_etf"))
    assert result.tasks[0].best_cost <= known
    without = train(run_args(graph_files[:1], updates=1, starts=False))
    assert without.evaluations == result.evaluations - 5


@pytest.mark.parametrize("cluster", ["p100x4", "p100x2_v100x2", "p100x4x2"])
def test_canonical__keeps_the_cost_and_is_the_same_for_all_names(cluster: str) -> None:
    task = make_task(layered_dag(60, seed=2), cluster)
    problem = task.instance.problem
    rng = np.random.default_rng(0)
    kinds = problem.cluster.interchangeable
    decisions = np.stack([problem.sample(rng) for _ in range(20)])
    renamed = []
    for decision in decisions:
        names = np.arange(problem.num_devices)
        for kind in set(kinds.tolist()):
            names[kinds == kind] = rng.permutation(names[kinds == kind])
        renamed.append(names[decision])
    canonical = task.canonical(decisions)
    assert np.array_equal(canonical, task.canonical(np.stack(renamed)))
    assert np.array_equal(canonical, task.canonical(canonical))
    assert (canonical != decisions).any()
    for one, other in zip(canonical, decisions, strict=True):
        ours, theirs = problem.evaluate(one), problem.evaluate(other)
        for measure in ("busy_s", "ops_per_device"):
            assert np.sort(ours.metrics[measure]) == pytest.approx(np.sort(theirs.metrics[measure]))
    # and the step times are equal but for ties, which the simulator settles by the device's number
    ratios = problem.costs(canonical)[0] / problem.costs(decisions)[0]
    assert np.median(np.abs(ratios - 1)) < 0.005


def test_imitation__makes_the_best_so_far_likelier(graph_files: tuple[str, str]) -> None:
    def likelihood(imitation: float) -> float:
        result = train(run_args(graph_files[:1], updates=12, imitation=imitation))
        task = result.tasks[0]
        with torch.no_grad():
            log_probs = result.network(task.graph).log_softmax(1)
        return float(log_probs.gather(1, torch.from_numpy(task.elites[0][2]).long()[:, None]).mean())

    assert likelihood(2.0) > likelihood(0.0)


def test_within_memory__fits_where_the_policy_would_not() -> None:
    task = make_task("transformer_xl_2layer", "p100x2")  # one device cannot hold it
    tables = task.instance.tables
    held = torch.from_numpy(tables.persistent_bytes + tables.activation_bytes)[:-1]
    capacity = torch.from_numpy(tables.capacity_bytes)
    all_on_first = torch.tensor([5.0, 0.0]).expand(task.instance.num_groups, 2).log_softmax(1)
    changed = gdp.within_memory(all_on_first, task)
    limit = capacity * max(1.0, 1.1 * float(held.sum() / capacity.sum()))
    assert ((held @ all_on_first.double().exp()) > limit).any()
    assert ((held @ changed.double().exp()) <= 1.02 * limit).all()
    roomy = make_task(layered_dag(40, seed=0), "p100x2")
    policy = torch.randn(roomy.instance.num_groups, 2).log_softmax(1)
    assert torch.equal(gdp.within_memory(policy, roomy), policy)


def test_train__nears_the_known_optimum_of_a_fork_join(graph_files: tuple[str, str]) -> None:
    result = train(run_args(graph_files[:1], updates=40, samples=32, epochs=4, learning_rate=2e-3))
    problem = result.tasks[0].instance.problem
    op_s = float(problem.simulator.durations_s.max())
    # four branches of nine on two devices, and nothing to transfer: 20 rounds; 38 on one device
    optimum_s, serial_s = known_optimum_s(problem.graph, 2, op_s), problem.num_groups * op_s

    assert result.tasks[0].best_cost < optimum_s + 0.1 * (serial_s - optimum_s)


def test_train__beats_random_search_and_the_human_expert_on_bert() -> None:
    problem = PlacementProblem("bert_base", "v100x4")
    method = Method("gdp", gdp.method_run(**SMALL, seed=0, starts=False), "", "", random=True)
    solution = solve(problem, method, budget=2000)
    assert solution.evaluations == 2000
    rng = np.random.default_rng(0)
    costs, valid = problem.costs(np.stack([problem.sample(rng) for _ in range(2000)]))
    assert solution.outcome.valid
    assert solution.outcome.cost < costs[valid].min()
    assert solution.outcome.cost < solve(problem, "expert").outcome.cost


def test_paper_arguments__run(graph_files: tuple[str, str]) -> None:
    result = train(run_args(graph_files, updates=2, **gdp.paper_arguments()))
    assert result.updates == 2
    assert all(np.isfinite(row["entropy"]) for row in result.curve)


def test_transfer__zero_shot_and_fine_tuned_on_another_cluster(graph_files: tuple[str, str], tmp_path: Path) -> None:
    train(run_args(graph_files[:1], updates=3), tmp_path / "run")
    zero = gdp.evaluate(tmp_path / "run", graph_files[1], "toy_mixedx3")
    assert zero.evaluations == 1
    several = gdp.evaluate(tmp_path / "run", graph_files[1], "toy_mixedx3", samples=20)
    assert several.evaluations == 20
    assert several.outcome.cost <= zero.outcome.cost
    tuned = gdp.evaluate(tmp_path / "run", graph_files[1], "toy_mixedx3", updates=3)
    assert tuned.evaluations == 1 + 3 * 16
    assert tuned.outcome.cost <= zero.outcome.cost
    again = gdp.evaluate(tmp_path / "run", graph_files[1], "toy_mixedx3", updates=3)
    assert np.array_equal(tuned.decision, again.decision)
    args = run_args(graph_files[1:], updates=1)
    result = train(args, tmp_path / "tuned", start_from=tmp_path / "run")
    assert result.updates == 1
    with pytest.raises(InputError, match="other sizes"):
        train(dataclasses.replace(args, width=8), start_from=tmp_path / "run")


def test_refusals__one_line_each(graph_files: tuple[str, str], tmp_path: Path) -> None:
    args = run_args(graph_files[:1], updates=1)
    train(args, tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        train(args, tmp_path / "run")
    with pytest.raises(InputError, match=r"already holds another run, with seed=0, not 1"):
        train(dataclasses.replace(args, seed=1), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="holds no checkpoint"):
        train(args, tmp_path / "none", resume=True)
    with pytest.raises(InputError, match="give --out"):
        train(args, resume=True)
    with pytest.raises(InputError, match="seventeen"):
        make_task(graph_files[0], big_cluster())
    for bad, says in (
        ({"graphs": ()}, "graphs is an empty list"),
        ({"graphs": ""}, "graphs is an empty list"),
        ({"graphs": ("a", "b", "c"), "clusters": ("x", "y")}, "clusters has 2 entries for 3 graphs"),
        ({"updates": 0}, "updates is 0"),
        ({"samples": 1}, "samples is 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"independent": 1.5}, "independent is 1.5"),
        ({"reward": "prized"}, "did you mean 'priced'"),
        ({"width": -1}, "width is -1"),
    ):
        with pytest.raises(InputError, match=says):
            Args(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'updates'"):
        Trainer.args_from({"update": 3})
    with pytest.raises(InputError, match="name each graph on a cluster once"):
        train(run_args((graph_files[0], graph_files[0])))
    with pytest.raises(InputError, match="empty list"):
        Trainer(args, [])


def big_cluster() -> Any:
    from graphopt_gym.hardware.cluster import Cluster, Device

    device = Device("d", "gpu", 10**9, 1e11, {"float32": 1e12})
    from graphopt_gym.hardware.cluster import Link

    link_of = np.where(np.eye(17, dtype=bool), -1, 0)
    return Cluster("seventeen", (device,) * 17, (Link("l", 0.0, 1e9),), link_of, (0,) * 17)


def test_resume__refuses_a_run_on_other_op_times(graph_files: tuple[str, str], tmp_path: Path) -> None:
    graph = tmp_path / "graph.npz"
    save_graph(layered_dag(20, seed=1).replace(name="mine"), graph)
    args = run_args((str(graph),), updates=1)
    train(args, tmp_path / "run")
    save_graph(layered_dag(20, seed=2).replace(name="mine"), graph)
    with pytest.raises(InputError, match="trained on other graphs"):
        train(dataclasses.replace(args, updates=2), tmp_path / "run", resume=True)


# zero-shot


def test_module_mean__is_the_mean_of_each_modules_groups() -> None:
    log_probs = torch.tensor([[0.0, -2.0], [-1.0, -1.0], [-4.0, 0.0], [-3.0, -1.0]])
    got = module_mean(log_probs, torch.tensor([0, 1, 0, 1]))
    assert got.tolist() == [[-2.0, -1.0], [-2.0, -1.0]] * 2


def test_place__prices_exactly_the_samples_and_more_never_hurt() -> None:
    network = PlacementNetwork(NetworkConfig(**SMALL))  # type: ignore[arg-type]
    torch.manual_seed(0)
    torch.nn.init.normal_(network.head.query.weight)
    costs = []
    for samples in (1, 2, 3, 13, 40):
        priced: list[np.ndarray] = []
        task = make_task(layered_dag(45, width=6, seed=3), "toyx2")
        price = task.price

        def record(decisions: np.ndarray, priced: list[np.ndarray] = priced, price: Any = price) -> Any:
            priced.append(decisions)
            return price(decisions)

        task.price = record
        solution = place(network, task, samples)
        assert sum(len(one) for one in priced) == solution.evaluations == samples
        best = min(float(price(one)[0].min()) for one in priced)
        assert solution.outcome.cost == best
        with torch.no_grad():
            log_probs = network(task.graph).log_softmax(1)
        assert np.array_equal(priced[0][0], module_mean(log_probs, task.modules).argmax(1).numpy())
        if samples > 1:
            assert np.array_equal(priced[1][0], log_probs.argmax(1).numpy())
        costs.append(solution.outcome.cost)
    assert costs[0] >= costs[1]  # the same first evaluations
    assert costs[4] < costs[1]
