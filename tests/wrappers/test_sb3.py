"""The adapter to Stable-Baselines3: as its own DummyVecEnv over scalar environments, step by step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.envs.placement.env import PlacementEnv, PlacementOneShotEnv
from graphopt_gym.errors import InputError
from graphopt_gym.wrappers import SB3VecEnv
from tests.envs.placement.cases import LARGER, SMALL, assert_same, cluster

PlacementVectorEnv = partial(EpisodeVectorEnv, "Placement-v0")
PlacementOneShotVectorEnv = partial(EpisodeVectorEnv, "PlacementOneShot-v0")

DummyVecEnv = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv

ARGUMENTS = {"graph": [SMALL, LARGER], "cluster": [cluster(2), cluster(3)]}


def adapted(count=3, **arguments):
    return SB3VecEnv(PlacementVectorEnv(count, autoreset_mode="SameStep", **(ARGUMENTS | arguments)))


@pytest.mark.parametrize(
    ("scalar", "vector", "steps"),
    [(PlacementEnv, PlacementVectorEnv, 130), (PlacementOneShotEnv, PlacementOneShotVectorEnv, 6)],
)
def test_adapter__agrees_with_dummy_vec_env(scalar, vector, steps):
    dummy = DummyVecEnv([lambda: scalar(**ARGUMENTS)] * 3)
    ours = SB3VecEnv(vector(3, **ARGUMENTS, autoreset_mode="SameStep"))
    assert ours.observation_space == dummy.observation_space
    assert ours.action_space == dummy.action_space
    for envs in (ours, dummy):
        envs.seed(5)
    assert_same(ours.reset(), dict(dummy.reset()))
    assert_same(ours.reset_infos[0], dummy.reset_infos[0])
    ours.action_space.seed(0)
    ended = 0
    for step in range(steps):
        actions = np.stack([ours.action_space.sample() for _ in range(3)])
        observations, rewards, done, infos = ours.step(actions)
        expected, their_rewards, their_done, their_infos = dummy.step(actions)
        assert_same(observations, dict(expected), f"step {step}")
        assert_same(rewards, their_rewards)
        assert_same(done, their_done)
        for row in range(3):
            mine, theirs = dict(infos[row]), dict(their_infos[row])
            assert mine.pop("TimeLimit.truncated", False) == theirs.pop("TimeLimit.truncated", False)
            if done[row]:
                ended += 1
                assert_same(mine.pop("terminal_observation"), dict(theirs.pop("terminal_observation")))
                assert_same(ours.reset_infos[row], dummy.reset_infos[row])
            assert_same(mine, theirs)
        for mine, theirs in zip(ours.env_method("action_masks"), dummy.env_method("action_masks")):
            assert_same(mine, theirs)
    assert ended >= 3


def test_adapter__passes_options_and_indices():
    envs = adapted(cluster=cluster(2))
    envs.set_options({"graph": LARGER.name})
    envs.reset()
    assert {info["graph"] for info in envs.reset_infos} == {LARGER.name}
    assert len(envs.env_method("action_masks", indices=[0, 2])) == 2
    assert envs.env_method("problem", indices=1)[0].graph.name == LARGER.name
    assert envs.has_attr("action_masks")
    assert not envs.has_attr("nothing")
    assert envs.env_is_wrapped(type(envs)) == [False] * 3
    envs.set_options([{"graph": LARGER.name}, {}, {}])
    with pytest.raises(InputError, match="give one dict for all"):
        envs.reset()
    with pytest.raises(InputError, match="cannot set 'num_envs'"):
        envs.set_attr("num_envs", 3)
    envs.close()


def test_adapter__refuses_next_step_reset():
    with pytest.raises(InputError, match="autoreset_mode='SameStep'"):
        SB3VecEnv(PlacementVectorEnv(2, SMALL, cluster(2), autoreset_mode=AutoresetMode.NEXT_STEP))


def test_adapter__renders():
    envs = adapted(2, graph=SMALL, cluster=cluster(2), render_mode="rgb_array")
    envs.reset()
    assert envs.render_mode == "rgb_array"
    tiled = envs.render()
    assert (tiled.ndim, tiled.dtype) == (3, np.uint8)


def test_policies__train_on_the_adapter():
    """PPO and MaskablePPO take a few updates; a masked policy never acts illegally on padded devices."""
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import PPO

    arguments = {"graph": SMALL, "cluster": [cluster(2), cluster(4)], "max_devices": 6}
    settings = {"n_steps": 16, "batch_size": 48, "n_epochs": 1, "device": "cpu", "seed": 0}
    PPO("MultiInputPolicy", adapted(**arguments), **settings).learn(96)
    model = MaskablePPO("MultiInputPolicy", adapted(**arguments), **settings).learn(96)
    env = PlacementEnv(**arguments)
    observation, _ = env.reset(seed=0)
    done = False
    while not done:
        action, _ = model.predict(observation, action_masks=env.action_masks())
        observation, _, done, _, info = env.step(action)
        assert not info["illegal_action"]
