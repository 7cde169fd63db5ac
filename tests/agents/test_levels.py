"""How levels are drawn from a policy."""

from __future__ import annotations

import numpy as np
import torch
from graphopt_agents.levels import draw_in_order, draw_levels

OPS, LEVELS = 160, 8


def features_of(rng: np.random.Generator) -> np.ndarray:
    return np.column_stack([rng.random(OPS), np.full(OPS, 0.5)]).astype(np.float32)


def test_draw_in_order__a_uniform_policy_tries_whole_rules() -> None:
    """With one feature that differs, every row rises or falls with it, and gives each level to as many ops."""
    rng = np.random.default_rng(0)
    features = features_of(rng)
    rows = draw_in_order(torch.zeros(OPS, LEVELS), features, 40, rng)
    by_feature = rows[:, np.argsort(features[:, 0])]
    steps = np.diff(by_feature, axis=1)
    up, down = (steps >= 0).all(axis=1), (steps <= 0).all(axis=1)
    assert (up | down).all() and up.any() and down.any()
    counts = np.stack([np.bincount(row, minlength=LEVELS) for row in rows])
    assert counts.min() >= OPS // LEVELS - 1 and counts.max() <= OPS // LEVELS + 1


def test_draw_in_order__gives_each_op_what_its_own_policy_gives() -> None:
    """An op whose policy is sure gets that level, and one that has two levels gets either as often as it says."""
    rng = np.random.default_rng(1)
    logits = torch.full((OPS, LEVELS), -1e9)
    logits[:, 3] = 0.0
    logits[: OPS // 2, 5] = float(np.log(3.0))
    rows = draw_in_order(logits, rng.random((OPS, 6)).astype(np.float32), 2000, rng)
    assert (rows[:, OPS // 2 :] == 3).all()
    share = (rows[:, : OPS // 2] == 5).mean()
    assert abs(share - 0.75) < 0.02 and set(np.unique(rows)) == {3, 5}


def test_draw_in_order__of_ops_that_are_all_alike_is_still_drawn() -> None:
    rng = np.random.default_rng(2)
    rows = draw_in_order(torch.zeros(OPS, LEVELS), np.ones((OPS, 3), np.float32), 5, rng)
    assert [len(np.unique(row)) for row in rows] == [LEVELS] * 5


def test_draw_levels__shares_are_kept_to() -> None:
    """Rows that are in order, that are drawn op by op, and that have the likeliest levels but for a stretch."""
    rng = np.random.default_rng(3)
    features = features_of(rng)
    order = np.argsort(features[:, 0])
    logits = torch.zeros(OPS, LEVELS)
    logits[:, 2] = 1e-3  # the likeliest, by a hair

    def kinds(independent: float, ordered: float) -> tuple[float, float]:
        rows = draw_levels(logits, features, 300, rng, independent, ordered)
        steps = np.diff(rows[:, order], axis=1)
        in_order = ((steps >= 0).all(axis=1) | (steps <= 0).all(axis=1)) & (rows != 2).any(axis=1)
        changed = np.diff((rows != 2).astype(int), axis=1, prepend=0, append=0)
        outside = (rows == 2).mean(axis=1) > 0.3  # levels drawn op by op leave an eighth
        assert (changed.sum(axis=1) == 0).all()
        return float(in_order.mean()), float((outside & ~in_order).mean())

    assert kinds(0.0, 1.0) == (1.0, 0.0)
    drawn, stretches = kinds(1.0, 1.0)
    assert (drawn, stretches) == (0.0, 0.0)
    in_order, stretches = kinds(0.0, 0.0)
    assert stretches > 0.7 and in_order < 0.2
    in_order, _ = kinds(0.2, 0.5)
    assert 0.28 < in_order < 0.6
