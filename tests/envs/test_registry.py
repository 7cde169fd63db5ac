"""Every registered environment passes the checkers of Gymnasium and Stable-Baselines3, with warnings as errors.

``scripts/test`` runs them on Gymnasium 1.2.2 too.
"""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import graphopt_gym as gg
from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.errors import InputError
from graphopt_gym.registration import env_ids, task_of

ALL = sorted(env_ids())


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("env_id", ALL)
def test_check_env__of_gymnasium_passes(env_id):
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", ALL)
def test_check_env__of_stable_baselines3_passes(env_id):
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    check_for_sb3(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", ALL)
def test_make__works_with_and_without_the_import(env_id):
    env, named = gym.make(env_id), gym.make(f"graphopt_gym:{env_id}")
    assert type(env.unwrapped) is type(named.unwrapped) is task_of(env_id).env_class(env_id)
    assert env.action_space == named.action_space


@pytest.mark.parametrize("env_id", ALL)
def test_make_vec__native_agrees_with_sync(env_id):
    native = gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point")
    sync = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    assert type(native) is EpisodeVectorEnv
    assert isinstance(native.metadata["autoreset_mode"], gym.vector.AutoresetMode)
    ours, theirs = native.reset(seed=3)[0], sync.reset(seed=3)[0]
    sync.action_space.seed(0)
    for _ in range(4):
        for key, array in ours.items():
            assert np.array_equal(array, theirs[key]), key
        actions = sync.action_space.sample()
        (ours, rewards, *_), (theirs, expected, *_) = native.step(actions), sync.step(actions)
        assert rewards.tolist() == expected.tolist()
    native.close()
    sync.close()


@pytest.mark.parametrize("env_id", ALL)
def test_make__refuses_an_unknown_argument_by_name(env_id):
    for make in (gym.make, gym.make_vec, gg.make_problem):
        with pytest.raises(InputError, match=r"unknown argument of .* 'clusterr'; did you mean 'cluster'"):
            make(env_id, clusterr="v100x4")


@pytest.mark.parametrize("env_id", ALL)
def test_documentation__is_the_class_docstring(env_id):
    text = task_of(env_id).env_class(env_id).__doc__
    for part in ("Description", "Action Space", "Observation Space", "Rewards", "Episode End", "Arguments"):
        assert f"## {part}" in text
    assert f'gym.make("{env_id}"' in text


@pytest.mark.parametrize("env_id", ALL)
def test_make_vec__more_than_memory_holds_is_refused(env_id):
    with pytest.raises(InputError, match=r"do not fit in memory: .*; give fewer"):
        gym.make_vec(env_id, num_envs=10**15, vectorization_mode="vector_entry_point")
