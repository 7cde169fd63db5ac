"""Levels of ops: how they are drawn from a policy, and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from graphopt_agents.core.one_shot import draw_each

if TYPE_CHECKING:
    from graphopt_gym.envs.core.level_moves import LevelMoves


def draw_levels(
    logits: torch.Tensor,
    features: np.ndarray,
    count: int,
    rng: np.random.Generator,
    ordered: float,
) -> np.ndarray:
    """int32 [count, K] of logits float32 [K, P] of K ops with ``features`` float32 [K, F].

    Of the share ``ordered`` all ops share their noise (:func:`draw_in_order`); the others have the likeliest levels but
    for a stretch of ops, each of which draws its own.
    """
    together = np.flatnonzero(rng.random(count) < ordered)
    inside = _stretches(count, len(features), rng)
    rows = np.where(inside, draw_each(logits, count, rng), logits.argmax(1).numpy().astype(np.int32))
    rows[together] = draw_in_order(logits, features, len(together), rng)
    return rows


def draw_in_order(logits: torch.Tensor, features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [count, K]: levels of logits float32 [K, P], where all ops share the noise of a row.

    A row puts the ops in the order of one of their ``features`` float32 [K, F], up or down, or of a random sum of them;
    the first takes the lowest of the levels that the policy gives it, the last the highest. So a uniform policy tries
    whole rules, such as "what has the longest way to go first", where levels that each op draws by itself are noise
    that no op can be told apart in.
    """
    upto = np.cumsum(logits.double().softmax(1).numpy(), axis=1)[:, :-1]
    number = len(features)
    spread = features.std(axis=0)
    differ = np.flatnonzero(spread > 1e-6)
    scaled = (features[:, differ] - features[:, differ].mean(axis=0)) / spread[differ]
    rows = np.empty((count, number), np.int32)
    for row in rows:
        if len(differ) and rng.random() < 0.5:
            key = scaled[:, int(rng.integers(len(differ)))] * rng.choice([-1.0, 1.0])
        else:
            key = scaled @ rng.standard_normal(len(differ))
        place = np.empty(number)
        place[np.lexsort((rng.random(number), key))] = (np.arange(number) + rng.random()) / number
        row[:] = (place[:, None] > upto).sum(axis=1)
    return rows


def _stretches(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """bool [count, length]: a stretch each, of any order of magnitude."""
    size = np.exp(rng.random(count) * np.log(length)).astype(int)
    begin = (rng.random(count) * (length - size + 1)).astype(int)[:, None]
    place = np.arange(length)
    return (place >= begin) & (place < begin + size[:, None])  # type: ignore[no-any-return]


def redraw(row: np.ndarray, moves: LevelMoves, chances: np.ndarray, rng: np.random.Generator) -> None:
    """Some levels of ``row`` int32 [K], chosen as a local search does, get one that the policy draws, in place.

    It is drawn from the mean of their ``chances`` float64 [K, P], mixed half and half with the uniform distribution.
    """
    chosen = moves.choose(rng)
    if len(chosen):
        weights = np.cumsum(chances[chosen].mean(axis=0) + 1 / moves.levels)
        row[chosen] = int(np.searchsorted(weights, rng.random() * weights[-1]))
