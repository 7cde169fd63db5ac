"""HDP: its constants, its parts, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphopt_agents import hdp
from graphopt_agents.hdp import HDPTrainer
from graphopt_agents.networks import GraphInput
from graphopt_agents.networks.hdp import HDP, AdditiveScores, HDPArgs, Placer

from graphopt_gym.envs.placement.instances import load_instance
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.search.evaluator import Evaluator

SMALL = {"hidden": 16, "groups_per_device": 4, "children": 8}


def test_constants__are_those_of_the_release() -> None:
    args = HDPArgs()
    assert [args.groups(devices) for devices in (1, 2, 4, 8, 16)] == [20, 40, 80, 160, 256]
    assert (args.grouper_hidden, args.hidden) == (64, 512)
    assert [args.rate(at) for at in (0, 399, 449)] == [0.1, 0.1, 0.1]
    assert args.rate(450) == pytest.approx(0.095)
    assert args.rate(1400) == pytest.approx(0.1 * 0.95**20)
    assert np.sqrt(args.failing_signal_s) == 10


def test_group_features__means_sizes_and_adjacency() -> None:
    graph = GraphInput.from_instance(load_instance(layered_dag(12, seed=0), "toyx2", "op", None))
    ops = graph.num_groups
    network = HDP(ops, 2, HDPArgs(**SMALL))
    group = torch.arange(ops)[None] % 3
    features = network.group_features(graph, group)[0]
    width = graph.nodes.shape[1]
    for one in range(3):
        torch.testing.assert_close(features[one, :width], graph.nodes[group[0] == one].mean(0))
        assert float(features[one, width]) == pytest.approx(int((group == one).sum()) / ops)
    sends = {(int(source) % 3, int(target) % 3) for source, target in graph.edge_index.t()}
    adjacency = features[:, width + 1 :]
    assert {(int(row), int(column)) for row, column in adjacency.nonzero()} == sends
    assert (features[3:] == 0).all()


def test_placer__scores_what_it_sampled() -> None:
    torch.manual_seed(0)
    placer = Placer(5, 3, HDPArgs(**SMALL))
    groups = torch.randn(4, 6, 5)
    devices, score = placer(groups, 0.0, torch.Generator().manual_seed(0))
    again, same = placer(groups, 0.0, None, chosen=devices)
    assert torch.equal(devices, again)
    torch.testing.assert_close(score, same)
    assert devices.shape == (4, 6)
    assert set(devices.flatten().tolist()) <= {0, 1, 2}


def test_additive_scores__equal_the_plain_formula() -> None:
    torch.manual_seed(0)
    # so wide that a batch is cut into several blocks
    query, key, mix = torch.randn(2, 70, 512), torch.randn(2, 50, 512), torch.randn(512)
    weight = torch.randn(2, 70, 50)
    results = []
    for score in (AdditiveScores.apply, lambda q, k, m: (k[:, None] + q[:, :, None]).tanh() @ m):
        inputs = [one.clone().requires_grad_() for one in (query, key, mix)]
        out = score(*inputs)
        (out * weight).sum().backward()
        results.append([out, *(one.grad for one in inputs)])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_placer__scores_with_the_noise_it_sampled_with() -> None:
    torch.manual_seed(0)
    placer = Placer(5, 3, HDPArgs(**SMALL))
    groups = torch.randn(4, 6, 5)
    devices, score = placer(groups, 0.5, torch.Generator().manual_seed(0))
    _, noised = placer(groups, 0.5, torch.Generator().manual_seed(0), chosen=devices)
    _, plain = placer(groups, 0.0, None, chosen=devices)
    torch.testing.assert_close(score, noised)
    assert not torch.allclose(score, plain)


def test_trainer__learns_and_is_seeded() -> None:
    instance = load_instance(chain(16, flops=10**9, output_bytes=10**8), "toyx2", "op", None)

    def run() -> list[float]:
        trainer = HDPTrainer(instance, instance.problem.costs, HDPArgs(**SMALL, learning_rate=0.01), seed=1)
        return [trainer.step()["mean_cost_s"] for _ in range(60)]

    means = run()
    assert np.mean(means[-10:]) < 0.8 * np.mean(means[:10])  # fewer transfers
    assert run() == means


def test_run__spends_the_budget_and_no_more() -> None:
    problem = PlacementProblem(layered_dag(30, seed=1), "toyx2")
    evaluator = Evaluator(problem, 20)
    method = hdp.method_run(**SMALL)
    method(evaluator, np.random.default_rng(0))  # batches of 8: the third is cut to 4
    assert evaluator.evaluations == 20
    assert evaluator.best is not None


def test_run__tells_what_does_not_fit() -> None:
    problem = PlacementProblem("transformer_xl_2layer", "v100x2")
    seen: list[np.ndarray] = []

    class Watch(HDPTrainer):
        def step(self) -> dict[str, float]:
            row = super().step()
            seen.append(np.array([row["valid_share"]]))
            return row

    evaluator = Evaluator(problem, 24)
    batches: list[np.ndarray] = []
    price = evaluator.costs_and_valid

    def record(decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches.append(decisions)
        return price(decisions)

    evaluator.costs_and_valid = record  # type: ignore[method-assign]
    before = hdp.HDPTrainer
    hdp.HDPTrainer = Watch  # type: ignore[misc]
    try:
        hdp.method_run(hidden=16, groups_per_device=4, children=8)(evaluator, np.random.default_rng(0))
    finally:
        hdp.HDPTrainer = before  # type: ignore[misc]
    shares = [problem.costs(batch)[1].mean() for batch in batches]
    assert np.allclose(np.concatenate(seen), shares)
    assert min(shares) < 1  # some placements did not fit


def test_arguments__are_refused_by_name() -> None:
    with pytest.raises(InputError, match="did you mean 'hidden'"):
        hdp.method_run(hiden=3)
    with pytest.raises(InputError, match="hidden is 0"):
        HDPArgs(hidden=0)
    with pytest.raises(InputError, match="learning_rate is 0"):
        HDPArgs(learning_rate=0)
