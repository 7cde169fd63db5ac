"""The checker against the plainest reading of the rules: enumerate all paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym.envs.chiplet.checker import RULES, Holdings, summary, violations
from tests.envs.chiplet.cases import random_edges


def all_paths(edges, start, end):
    """Every simple path between two chips, as lists of chips."""
    found, open_paths = [], [[start]]
    while open_paths:
        path = open_paths.pop()
        if path[-1] == end:
            found.append(path)
            continue
        open_paths += [[*path, b] for a, b in edges if a == path[-1] and b not in path]
    return found


def broken_rules(chip_of, edges):
    """The names of the first three rules that a partition breaks, by the words of the paper."""
    broken = set()
    if any(chip_of[u] > chip_of[v] for u, v in edges):
        broken.add(RULES[0])
    if sorted(set(chip_of)) != list(range(max(chip_of) + 1)):
        broken.add(RULES[1])
    chip_edges = {(chip_of[u], chip_of[v]) for u, v in edges if chip_of[u] != chip_of[v]}
    if any(max(len(path) - 1 for path in all_paths(chip_edges, a, b)) > 1 for a, b in chip_edges):
        broken.add(RULES[2])
    return broken


def test_checker__agrees_with_enumerating_all_paths():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        num_ops = int(rng.integers(2, 6))
        edges = [tuple(edge) for edge in random_edges(rng, num_ops).tolist()]
        for chip_of in itertools.product(range(3 if num_ops == 5 else 4), repeat=num_ops):
            expected = broken_rules(chip_of, edges)
            assert {one.rule for one in violations(chip_of, edges)} == expected
            seen.add(frozenset(expected))
    for _ in range(300):  # more chips than can be enumerated
        num_ops = int(rng.integers(5, 11))
        edges = [tuple(edge) for edge in random_edges(rng, num_ops).tolist()]
        chip_of = np.sort(rng.integers(0, 6, num_ops)).tolist()
        expected = broken_rules(chip_of, edges)
        assert {one.rule for one in violations(chip_of, edges)} == expected
        seen.add(frozenset(expected))
    assert frozenset() in seen
    assert frozenset({RULES[2]}) in seen
    assert frozenset({RULES[1]}) in seen
    assert frozenset({RULES[0]}) in seen


def test_checker__names_every_violation_with_ops_and_chips():
    edges = [(0, 1), (1, 2), (0, 2), (2, 3)]
    found = violations([0, 1, 4, 3], edges)
    assert [(one.rule, one.ops, one.chips) for one in found] == [
        (RULES[0], (2, 3), (4, 3)),
        (RULES[1], (2,), (2, 4)),
        (RULES[2], (0, 2), (0, 1, 4)),
    ]
    assert found[0].text == "op 2 on chip 4 feeds op 3 on chip 3, which comes before it"
    assert found[2].text == "op 0 on chip 0 feeds op 2 on chip 4, and chips 0 -> 1 -> 4 lead there too"


def test_summary__says_how_many_more():
    found = violations([3, 2, 1, 0], list(itertools.combinations(range(4), 2)))
    assert sum(one.rule == RULES[0] for one in found) == 6
    assert f"{RULES[0]}: 4 more" in summary(found, most=2)


@pytest.mark.parametrize(
    ("chip_of", "most"),
    [
        # when op 2 runs: the parameter, its input and its output
        ([0, 0, 0], 7 + 20 + 30),
        # chip 1, when op 2 runs: the parameter, two buffers for what arrives, and its own two tensors
        ([0, 1, 1], 7 + 2 * 10 + 20 + 30),
        # chip 0 sends what it makes: that, and the last sample's
        ([0, 0, 1], 7 + 10 + 2 * 20),
    ],
)
def test_memory__is_what_the_rule_says(chip_of, most):
    # op 0 makes 10 bytes for op 1, which makes 20 for op 2, which makes 30 that nobody but itself reads
    tensors = [(0, 10, [1]), (1, 20, [2]), (2, 30, [2])]
    params = [(7, [0, 1])]
    if chip_of == [0, 0, 1]:
        most = max(most, 2 * 20 + 30)
    for spare in (0, -1):
        found = violations(chip_of, [(0, 1), (1, 2)], Holdings(tensors, params, [most + spare] * 2))
        assert [one.rule for one in found] == ([] if spare == 0 else [RULES[3]])
