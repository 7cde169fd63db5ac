"""The agent of program rewriting: its network, the sb3-contrib policy, the trainer, the methods."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents.networks.rewrite import (
    RewriteConfig,
    RewriteInput,
    RewriteNetwork,
    all_rules,
    root_gain,
    rule_numbers,
)
from graphopt_agents.rewrite import RewritePolicy
from sb3_contrib import MaskablePPO

from graphopt_gym.errors import InputError
from graphopt_gym.wrappers import SB3VecEnv
from tests.envs.rewrite.programs import attention, inception, recurrent

SMALL: dict[str, Any] = {"width": 16, "layers": 2}
RULES = torch.from_numpy(rule_numbers(all_rules(), all_rules()))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_envs(num_envs: int, **arguments: Any) -> SB3VecEnv:
    return SB3VecEnv(gym.make_vec("RewriteOrder-v0", num_envs=num_envs, autoreset_mode="SameStep", **arguments))


def network(seed: int = 0, **config: Any) -> RewriteNetwork:
    torch.manual_seed(seed)
    made = RewriteNetwork(RewriteConfig(**{**SMALL, **config}))
    for layer in (made.query, made.stop, made.value[-1]):  # zero at first
        torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def observed(envs: SB3VecEnv, steps: int = 3) -> dict[str, torch.Tensor]:
    """Observations after a few rewrites, different ones in each environment."""
    envs.seed(3)
    observations = envs.reset()
    for step in range(steps):
        actions = [1 + (step + row) % int(mask.sum() - 1) for row, mask in enumerate(observations["action_mask"])]
        observations = envs.step(np.array(actions))[0]
    return {name: torch.from_numpy(one) for name, one in observations.items()}


def test_network__does_not_depend_on_padding_or_on_the_rest_of_the_batch() -> None:
    programs = [attention(), recurrent(), inception()]
    arguments = {"graph": programs, "max_matches": 300}
    tight = observed(make_envs(5, **arguments))
    wide = observed(make_envs(5, **arguments, max_nodes=400, max_edges=900))
    made = network()
    with torch.no_grad():
        batch = RewriteInput.from_observations(tight, RULES)
        out = made(batch)
        logits = out.logits(batch, 300)
        padded = RewriteInput.from_observations(wide, RULES)
        for one in dataclasses.fields(RewriteInput):
            assert torch.equal(getattr(batch, one.name), getattr(padded, one.name)), one.name
        parts = []
        for row in range(5):
            single = RewriteInput.from_observations({name: one[row : row + 1] for name, one in tight.items()}, RULES)
            alone = made(single)
            torch.testing.assert_close(alone.logits(single, 300)[0], logits[row], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(alone.values[0], out.values[row], atol=1e-5, rtol=1e-4)
            parts.append(single)
        joined = RewriteInput.join(parts)
    for one in dataclasses.fields(RewriteInput):
        assert torch.equal(getattr(batch, one.name), getattr(joined, one.name)), one.name
    assert logits[0].unique().numel() > 5
    assert not torch.equal(out.values[0], out.values[1])


def test_network__goes_with_the_order_of_nodes_and_matches() -> None:
    observations = observed(make_envs(1, graph=inception()))
    batch = RewriteInput.from_observations(observations, RULES)
    rng = np.random.default_rng(0)
    nodes = torch.from_numpy(rng.permutation(len(batch.nodes)))
    edges = torch.from_numpy(rng.permutation(len(batch.edge_operand)))
    matches = torch.from_numpy(rng.permutation(len(batch.matches)))
    to = torch.empty(len(nodes) + 1, dtype=torch.int64)  # where a node goes to; what is not there stays
    to[nodes], to[-1] = torch.arange(len(nodes)), len(nodes)
    moved = dataclasses.replace(
        batch,
        nodes=batch.nodes[nodes],
        edge_index=to[batch.edge_index[:, edges]],
        edge_operand=batch.edge_operand[edges],
        matches=batch.matches[matches],
        match_rule=batch.match_rule[matches],
        match_roots=to[batch.match_roots[matches]],
    )
    made = network()
    with torch.no_grad():
        before, after = made(batch), made(moved)
    torch.testing.assert_close(after.match_scores, before.match_scores[matches], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.values, before.values, atol=1e-5, rtol=1e-4)
    assert before.match_scores.unique().numel() > 5


def test_network__tells_rules_operands_and_places_apart() -> None:
    batch = RewriteInput.from_observations(observed(make_envs(1, graph=recurrent())), RULES)
    made = network()
    two = (batch.match_roots[:, 1] < len(batch.nodes)).nonzero()[:1, 0]
    for changed in (
        {"match_rule": (batch.match_rule + 1) % len(RULES)},
        {"edge_operand": 1 - batch.edge_operand},
        {"match_roots": batch.match_roots.index_put((two,), batch.match_roots[two].flip(1))},
        {"edge_index": batch.edge_index.flip(0)},
    ):
        with torch.no_grad():
            assert not torch.allclose(
                made(batch).match_scores, made(dataclasses.replace(batch, **changed)).match_scores
            ), changed


def test_network__gradients_reach_every_weight() -> None:
    made = network()
    batch = RewriteInput.from_observations(observed(make_envs(3, graph=[attention(), inception()])), RULES)
    out = made(batch)
    loss = out.logits(batch).log_softmax(1)[:, :3].sum() + out.values.sum() + out.gains.sum()
    loss.backward()
    for name, weight in made.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


def test_rules__that_a_network_does_not_know_share_a_number() -> None:
    assert rule_numbers(("a", "b"), ("b", "new", "a", "newer")).tolist() == [1, 2, 0, 2]
    assert RewriteConfig(rules=["relu-twice"]).rules == ("relu-twice",)  # type: ignore[arg-type]
    for given, says in (({"width": 0}, "width is 0"), ({"layers": -1}, "layers is -1"), ({"rules": "x"}, "rules is")):
        with pytest.raises(InputError, match=says):
            RewriteConfig(**given)


def test_root_gain__keeps_the_sign() -> None:
    assert root_gain(np.array([0.25, -0.25, 0.0])).tolist() == [0.5, -0.5, 0.0]
    assert root_gain(torch.tensor([-0.04])).tolist() == pytest.approx([-0.2])


def test_policy__never_acts_beyond_the_matches_with_or_without_masks() -> None:
    envs = make_envs(6, graph=[attention(), recurrent(), inception()], max_matches=40)
    observations = observed(envs)
    policy = RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, network=SMALL)
    torch.manual_seed(0)
    legal = observations["action_mask"].bool()
    for masks in (None, observations["action_mask"].numpy()):
        distribution = policy.get_distribution(observations, masks)
        chances = distribution.distribution.probs  # type: ignore[union-attr]
        assert float(chances[~legal].detach().abs().max()) == 0
        assert (chances[legal] > 0).all()
        for _ in range(20):
            actions, values, log_probs = policy(observations, action_masks=masks)
            assert legal.gather(1, actions[:, None]).all()
    assert values.shape == (6, 1)
    again, entropy = policy.evaluate_actions(observations, actions)[1:]
    torch.testing.assert_close(again, log_probs)
    assert (entropy > 0).all()
    only = np.zeros(legal.shape, bool)
    only[:, 0] = True
    assert policy(observations, action_masks=only)[0].tolist() == [0] * 6


def test_policy__trains_with_maskable_ppo_and_improves(tmp_path: Path) -> None:
    program = inception()
    envs = make_envs(8, graph=program, max_steps=12, max_matches=64)
    model = MaskablePPO(
        RewritePolicy,  # type: ignore[arg-type]
        envs,
        n_steps=24,
        batch_size=64,
        n_epochs=4,
        learning_rate=3e-3,
        gamma=1.0,
        ent_coef=0.003,
        policy_kwargs={"network": SMALL},
        seed=0,
        device="cpu",
    )

    def saved() -> float:
        """Mean share saved by eight episodes."""
        envs.seed(7)
        torch.manual_seed(0)
        observations, found = envs.reset(), []
        while len(found) < 8:
            masks = np.stack(envs.env_method("action_masks"))
            actions, _ = model.predict(observations, action_masks=masks)
            observations, _, _, infos = envs.step(actions)
            assert not any(info["illegal_action"] for info in infos)
            found += [info["saved"] for info in infos if "saved" in info]
        return float(np.mean(found))

    before = saved()
    model.learn(8 * 24 * 8)
    after = saved()
    assert after > before + 0.05
    model.save(tmp_path / "model.zip")
    loaded = MaskablePPO.load(tmp_path / "model.zip", device="cpu")
    observations = observed(envs)
    with torch.no_grad():
        torch.testing.assert_close(
            model.policy.predict_values(observations), loaded.policy.predict_values(observations)
        )


def test_policy__refuses_other_environments_and_rules() -> None:
    envs = make_envs(1, graph=attention(), rules=["fused activation"])
    with pytest.raises(InputError, match="environment_rules"):
        RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3)
    rules = [rule.name for rule in envs.env_method("problem", indices=0)[0].matcher.rules]
    RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, environment_rules=tuple(rules))
    with pytest.raises(InputError, match="argument of the network"):
        RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, network={"with": 8})
    other = gym.make("ChipletPartition-v0", graph="vgg11_b1", mode="fix")
    with pytest.raises(InputError, match="give it an environment of RewriteOrder-v0"):
        RewritePolicy(other.observation_space, other.action_space, lambda _: 1e-3)
