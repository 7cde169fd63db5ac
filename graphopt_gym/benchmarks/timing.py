"""The clock of the benchmarks, and steps a second of environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

SECONDS, ROUNDS = 2.0, 3  # of a rate: so long in so many rounds, the best counts
VECTOR_ENVS = 64


def seconds(function: Callable[..., object], *arguments: Any) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def least_ms(run: Callable[[], object], rounds: int = 20) -> float:
    """Milliseconds of this process that a call takes, the least of so many after one that does not count."""
    run()
    found = []
    for _ in range(rounds):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return 1e3 * min(found)


def best_rate(work: Callable[[], int]) -> float:
    """How much is done a second: the best rate over the rounds; ``work`` says how much it did."""
    work()
    rates = []
    for _ in range(ROUNDS):
        done, spent = 0, 0.0
        while spent < SECONDS / ROUNDS or not done:
            started = time.perf_counter()
            done += work()
            spent += time.perf_counter() - started
        rates.append(done / spent)
    return max(rates)


def step_rates(
    env_id: str, steps: int, choose: Callable[[int], Callable[[Any], Any]], counts: Sequence[int], **arguments: Any
) -> list[dict[str, Any]]:
    """A row for each number of environments: ``envs`` and ``steps_per_s``, resets counted.

    Args:
        env_id: of the environment: the scalar one where the number is 1, else the vector one.
        steps: most steps of an episode.
        choose: given a number of environments, what gives the action for their observation.
        counts: the numbers.
        arguments: of the environment.
    """
    rows = []
    for count in counts:
        env: Any = (
            gym.make(env_id, **arguments)
            if count == 1
            else gym.make_vec(env_id, count, vectorization_mode="vector_entry_point", **arguments)
        )
        act, one = choose(count), count == 1
        env.reset(seed=0)

        def episode(env: Any = env, act: Any = act, one: bool = one, count: int = count) -> int:
            observation, _ = env.reset()
            taken, done = 0, False
            while taken < steps and not (one and done):
                observation, _, done, *_ = env.step(act(observation))
                taken += 1
            return taken * count

        rows.append({"envs": count, "steps_per_s": best_rate(episode)})
        env.close()
    return rows


def draw_legal(mask: np.ndarray, rng: np.random.Generator, least: int = 0) -> np.ndarray:
    """A legal action in each row of a mask [..., actions]; those below ``least`` only where there is no other."""
    chances = rng.random(mask.shape) * (mask > 0)
    chances[..., :least] *= 1e-9
    return chances.argmax(axis=-1)
