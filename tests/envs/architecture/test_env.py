from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_gym.envs.architecture.features import BLOCK_FEATURES, PROGRESS_FEATURES
from graphopt_gym.envs.architecture.moves import MUTATIONS, can_delete
from graphopt_gym.envs.architecture.nasbench import OPERATIONS, RESNET_CELL
from graphopt_gym.envs.architecture.program import parse_architecture
from graphopt_gym.errors import InputError

ENV = "ArchitectureSearch-v0"


def play(env, seed=0, end=False):
    """(rewards, last info) of an episode of random legal actions."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    rewards = []
    while True:
        mask = env.action_masks()
        mask[0] &= end
        _, reward, done, _, info = env.step(int(rng.choice(np.flatnonzero(mask))))
        rewards.append(reward)
        if done:
            return rewards, info


CASES = [
    {"graph": "cnn_8", "tolerance": 0.4},
    {"graph": "cnn_8", "track": "trained", "recipe": {"epochs": 1}, "tolerance": 0.3, "max_steps": 4},
    {"graph": "nasbench201", "track": "table", "objective": "flops", "tolerance": 0.02},
    {"graph": "nasbench201", "track": "table", "objective": "error"},
]


@pytest.mark.parametrize("arguments", CASES, ids=lambda case: f"{case['graph']}-{case.get('track', 'proxy')}")
def test_episode__rewards_sum_to_what_is_saved(arguments):
    env = gym.make(ENV, **arguments).unwrapped
    for seed in range(3):
        rewards, info = play(env, seed)
        assert min(rewards) >= 0
        assert sum(rewards) == pytest.approx(1 - info["cost"])
        assert info["valid"]
        outcome = env.problem.evaluate(info["decision"])
        assert outcome.cost == info["cost"]
        assert (outcome.metrics["parameters"], outcome.metrics["flops"]) == (info["parameters"], info["flops"])


def test_episode__hypervolume_grows_to_that_of_all_that_was_met():
    env = gym.make(ENV, graph="cnn_8", reward="hypervolume").unwrapped
    rewards, _ = play(env)
    assert min(rewards) >= 0
    first = (4 - 1) / 4 * 0.5  # the seed alone: cost 1, quality 0.5
    assert first + sum(rewards) == pytest.approx(env.episodes.covered[0])
    assert len(env.episodes.met[0]) > 3


def test_action__mutates_the_block_that_it_names():
    env = gym.make(ENV, graph="resnet_28").unwrapped
    observation, info = env.reset(seed=0)
    seed = env.problem.seed
    blocks = list(seed.blocks)
    block = blocks.index("stage1.block1")
    assert can_delete(seed, blocks[block])
    action = 1 + block * len(MUTATIONS) + MUTATIONS.index("delete")
    assert observation["action_mask"][action] == 1
    observation, _, _, _, info = env.step(action)
    assert not info["illegal_action"]
    assert "stage1.block1" not in env.episodes.current(0).blocks
    shown = env.unflatten(observation)
    assert shown["blocks"][:, 0].sum() == len(blocks) - 1
    assert shown["progress"].shape == (len(PROGRESS_FEATURES),)


def test_action__that_is_illegal_changes_nothing():
    env = gym.make(ENV, graph="resnet_8").unwrapped
    env.reset(seed=0)
    head = list(env.problem.seed.blocks).index("head")
    for action in (1 + head * len(MUTATIONS) + MUTATIONS.index("delete"), env.action_space.n - 1):
        assert not env.action_masks()[action]
        _, reward, done, _, info = env.step(int(action))
        assert (reward, done, info["illegal_action"]) == (0.0, False, True)
        assert env.episodes.current(0) == env.problem.seed


def test_table__an_action_gives_an_edge_an_operation():
    env = gym.make(ENV, graph="nasbench201", track="table").unwrapped
    observation, _ = env.reset(seed=0)
    mask = env.action_masks()[1:].reshape(6, len(OPERATIONS))
    assert (mask == (np.arange(5) != np.array(RESNET_CELL)[:, None])).all()
    env.step(1 + 3 * len(OPERATIONS) + 4)
    assert env.episodes.network[0].tolist() == [*RESNET_CELL[:3], 4, *RESNET_CELL[4:]]
    shown = env.unflatten(observation)["blocks"]
    assert shown.shape == (6, len(BLOCK_FEATURES))


def test_done__ends_and_gives_the_best_as_text():
    env = gym.make(ENV, graph="cnn_8").unwrapped
    env.reset(seed=0)
    _, _, done, _, info = env.step(0)
    assert done
    assert parse_architecture(info["decision"]) == env.problem.seed
    assert (info["cost"], info["steps"], info["quality"]) == (1.0, 1, 0.5)


def test_learned__a_policy_beats_random_cells_on_the_table():
    pytest.importorskip("sb3_contrib")
    from graphopt_agents.ppo import Args, MaskableTrainer

    given = {"track": "table", "objective": "error", "start": "random", "max_steps": 8}
    args = Args(
        env=ENV, graph="nasbench201", cluster="t4", environment=given, steps=8000, num_envs=16, minibatches=4,
        learning_rate=3e-3, width=32,
    )  # fmt: skip
    curve = [row["mean_cost"] for row in MaskableTrainer.train(args).curve]
    untrained, trained, best = (
        np.mean(curve[:2]),
        np.mean(curve[-3:]),
        0.905,
    )  # the error of the best cell, see the table
    assert trained - best < 0.5 * (untrained - best)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"reward": "gain"}, "unknown reward 'gain'"),
        ({"start": "seeds"}, "unknown start 'seeds'; did you mean 'seed'"),
        ({"max_blocks": 2}, "max_blocks is 2; give a whole number of at least 5"),
        ({"tolerence": 0.1}, "unknown argument 'tolerence'|tolerance"),
    ],
)
def test_env__bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        gym.make(ENV, **arguments)
