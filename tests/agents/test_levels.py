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
    assert (up | down).all()
    assert up.any()
    assert down.any()
    counts = np.stack([np.bincount(row, minlength=LEVELS) for row in rows])
    assert counts.min() >= OPS // LEVELS - 1
    assert counts.max() <= OPS // LEVELS + 1


def test_draw_in_order__gives_each_op_what_its_own_policy_gives() -> None:
    """An op whose policy is sure gets that level, and one that has two levels gets either as often as it says."""
    rng = np.random.default_rng(1)
    logits = torch.full((OPS, LEVELS), -1e9)
    logits[:, 3] = 0.0
    logits[: OPS // 2, 5] = float(np.log(3.0))
    rows = draw_in_order(logits, rng.random((OPS, 6)).astype(np.float32), 2000, rng)
    assert (rows[:, OPS // 2 :] == 3).all()
    share = (rows[:, : OPS // 2] == 5).mean()
    assert abs(share - 0.75) < 0.02
    assert set(np.unique(rows)) == {3, 5}


def test_draw_in_order__of_ops_that_are_all_alike_is_still_drawn() -> None:
    rng = np.random.default_rng(2)
    rows = draw_in_order(torch.zeros(OPS, LEVELS), np.ones((OPS, 3), np.float32), 5, rng)
    assert [len(np.unique(row)) for row in rows] == [LEVELS] * 5


def test_draw_levels__are_in_order_or_the_likeliest_but_for_a_stretch() -> None:
    rng = np.random.default_rng(3)
    features = features_of(rng)
    order = np.argsort(features[:, 0])
    logits = torch.zeros(OPS, LEVELS)
    logits[:, 2] = 1e-3  # the likeliest, by a hair
    for ordered, least, most in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.05), (0.5, 0.4, 0.6)):
        rows = draw_levels(logits, features, 300, rng, ordered)
        steps = np.diff(rows[:, order], axis=1)
        whole = (np.bincount(row, minlength=LEVELS).min() > 0 for row in rows)
        in_order = ((steps >= 0).all(axis=1) | (steps <= 0).all(axis=1)) & np.fromiter(whole, bool)
        assert least <= in_order.mean() <= most
        for row in rows[~in_order]:
            other = np.flatnonzero(row != 2)
            inside = row[other.min(initial=OPS) : other.max(initial=-1) + 1]
            assert (inside != 2).mean() > 0.5 if len(inside) > 8 else True
