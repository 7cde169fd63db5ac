"""The corrector and its propagator, against the checker and against z3."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.envs.chiplet.benchmarks import corrector_report
from graphopt_gym.envs.chiplet.checker import violations
from graphopt_gym.envs.chiplet.corrector import Corrector, _close_gaps
from graphopt_gym.envs.chiplet.exact import Exact
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.chiplet.propagator import NODES, Propagator, make_rules
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.zoo.registry import SPLITS
from tests.envs.chiplet.cases import random_edges, transformer_edges


def is_valid(decision, edges):
    return not violations(decision.tolist(), edges.tolist())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_ops=st.integers(1, 40), num_chips=st.integers(1, 12))
def test_corrector__whatever_is_proposed_the_result_is_valid(seed, num_ops, num_chips):
    rng = np.random.default_rng(seed)
    edges = random_edges(rng, num_ops, fan_in=int(rng.integers(1, 4)), reach=int(rng.integers(1, 12)))
    corrector = Corrector(num_ops, num_chips, edges)
    for proposal in (
        corrector.sample(None, rng),
        corrector.sample(rng.dirichlet(np.full(num_chips, 0.1), num_ops) + 1e-30, rng),
        corrector.fix(rng.integers(0, num_chips, num_ops), rng),
        corrector.fix(np.sort(rng.integers(0, num_chips, num_ops)), rng),
    ):
        assert proposal.valid
        assert proposal.decision.dtype == np.int32
        assert proposal.decision.min() >= 0
        assert proposal.decision.max() < num_chips
        assert is_valid(proposal.decision, edges)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_fix__leaves_a_valid_candidate_untouched(seed):
    rng = np.random.default_rng(seed)
    num_ops = int(rng.integers(1, 30))
    edges = random_edges(rng, num_ops)
    corrector = Corrector(num_ops, 6, edges)
    candidates = [np.sort(rng.integers(0, 6, num_ops)) for _ in range(20)]
    valid = [one for one in map(_close_gaps, candidates) if is_valid(one, edges)]
    for candidate in [*valid, corrector.sample(None, rng).decision]:
        correction = corrector.fix(candidate, rng)
        assert correction.decision.tolist() == candidate.tolist()
        assert len(correction.changed) == 0
        assert not correction.chain


def hold_against_z3(num_ops, num_chips, edges, rng, probed=6):
    """Assign ops at random; ask z3 about every value that is gone, for ``probed`` steps about what is left of the next
    op, and about the whole. Returns how many (removed, left that can be completed, left that cannot)."""
    exact = Exact(num_ops, num_chips, edges)
    propagator = Propagator(make_rules(num_ops, num_chips, edges))
    assert propagator.feasible
    partial = np.full(num_ops, -1)
    removed, left, asked = 0, [0, 0], set()
    while True:
        domains = propagator.domains
        for op, chip in np.argwhere(~domains).tolist():
            # what was gone before and is known not to be completable cannot be with more given
            if partial[op] < 0 and (op, chip) not in asked:
                trial = partial.copy()
                trial[op] = chip
                assert not exact.is_completable(trial), (edges.tolist(), partial.tolist(), op, chip)
                removed += 1
                asked.add((op, chip))
        free = np.flatnonzero(partial < 0)
        if not len(free):
            assert exact.is_completable(partial)
            assert is_valid(partial, edges)
            return removed, *left
        op = int(rng.choice(free))
        for chip in np.flatnonzero(domains[op]).tolist() if probed else ():
            trial = partial.copy()
            trial[op] = chip
            left[not exact.is_completable(trial)] += 1
        probed -= probed > 0
        for chip in rng.permutation(np.flatnonzero(domains[op])).tolist():
            partial[op] = chip
            if propagator.assign(op, chip):
                break
            assert not exact.is_completable(partial)
            partial[op] = -1
        else:
            partial[op] = -1
            assert not exact.is_completable(partial)
            return removed, *left


def real_slices(names, length, rng):
    """(ops, edges) of one slice of each graph's order, with ways around it as edges no more."""
    for name in names:
        problem = ChipletProblem(name, "mcm36")
        begin = int(rng.integers(0, problem.num_ops - length))
        edges = problem.ops.edges - begin
        yield length, edges[((edges >= 0) & (edges < length)).all(axis=1)]


def test_propagator__never_removes_what_z3_can_complete():
    rng = np.random.default_rng(1)
    cases = []
    for _ in range(110):
        num_ops = int(rng.integers(4, 13))
        cases.append((num_ops, random_edges(rng, num_ops, int(rng.integers(1, 4)), int(rng.integers(2, 9)))))
    cases += real_slices(("bert_base_b1", "lstm_l2_w200_t10_b4", "googlenet_b1", "unet_w32_b1"), 14, rng)
    counts = np.zeros(3, int)
    for num_ops, edges in cases:
        counts += hold_against_z3(num_ops, int(rng.integers(3, 7)), edges, rng)
    assert len(cases) > 110
    assert counts[0] > 1500
    assert counts[1] > 1000
    assert 0 < counts[2] < 0.2 * counts[1]  # it is not complete: about a tenth of what is left here is a dead end


def test_propagator__what_it_accepts_whole_z3_accepts_and_the_other_way_round():
    rng = np.random.default_rng(2)
    answers = {True: 0, False: 0}
    for case in range(150):
        num_ops, num_chips = int(rng.integers(2, 12)), 5
        edges = random_edges(rng, num_ops)
        decision = np.sort(rng.integers(0, num_chips, num_ops))
        if case % 2:  # or no more than one op away from valid
            decision = Corrector(num_ops, num_chips, edges).sample(None, rng).decision
            decision[rng.integers(num_ops)] = rng.integers(num_chips)
        propagator = Propagator(make_rules(num_ops, num_chips, edges))
        accepted = all(propagator.assign(op, int(decision[op])) for op in rng.permutation(num_ops).tolist())
        assert accepted == is_valid(decision, edges)
        assert accepted == Exact(num_ops, num_chips, edges).is_completable(decision)
        answers[accepted] += 1
    assert min(answers.values()) > 30


def test_propagator__takes_back_exactly_what_was_assigned():
    rng = np.random.default_rng(3)
    num_ops, edges = transformer_edges(3)
    propagator = Propagator(make_rules(num_ops, 8, edges))
    seen = []
    for _ in range(200):
        if propagator.depth and rng.random() < 0.4:
            propagator.undo()
            domains, chips = seen.pop()
            assert (propagator.domains == domains).all()
            assert (propagator.state.chips == chips).all()
            continue
        op = int(rng.integers(num_ops))
        before = propagator.domains, propagator.state.chips.copy()
        if propagator.assign(op, int(rng.choice(np.flatnonzero(before[0][op])))):
            seen.append(before)
        else:
            assert (propagator.domains == before[0]).all()


def test_allowed__is_narrower_than_the_domain_and_never_empty_on_a_chain():
    propagator = Propagator(make_rules(6, 4, np.asarray([[i, i + 1] for i in range(5)])))
    assert propagator.allowed(0).tolist() == [True, False, False, False]
    assert propagator.assign(5, 3)
    assert propagator.allowed(2).tolist() == [True, True, True, False]
    assert propagator.depth == 1


def test_residual__connections_leave_two_chips_a_block():
    num_ops, edges = transformer_edges(4)
    rules = make_rules(num_ops, 36, edges)
    propagator = Propagator(rules)
    assert propagator.domains[-1].sum() == 5  # at most one chip further a block
    assert propagator.assign(num_ops - 1, 4)
    decision = Corrector(num_ops, 36, edges).fix(np.full(num_ops, 35), np.random.default_rng(0)).decision
    assert decision.max() == 4


def test_fix__changes_are_counted_against_the_fewest_possible():
    rng = np.random.default_rng(4)
    made = several = fewest = 0
    for _ in range(12):
        num_ops, num_chips = int(rng.integers(6, 20)), 4
        edges = random_edges(rng, num_ops)
        candidate = np.sort(rng.integers(0, num_chips, num_ops))
        exact = Exact(num_ops, num_chips, edges).repair(candidate)
        assert exact.proved
        assert is_valid(exact.decision, edges)
        least = int((exact.decision != candidate).sum())
        corrector = Corrector(num_ops, num_chips, edges)
        once, best = corrector.fix(candidate, rng), corrector.fix(candidate, rng, tries=16)
        for correction in (once, best):
            assert correction.changed.tolist() == np.flatnonzero(correction.decision != candidate).tolist()
            assert len(correction.changed) >= least
        made, several, fewest = made + len(once.changed), several + len(best.changed), fewest + least
    assert fewest > 0
    assert made <= 1.5 * fewest
    assert several <= 1.1 * fewest


@pytest.mark.parametrize("kind", ["random", "real"])
def test_fix__on_20_to_60_ops_the_best_of_many_orders_comes_near_the_fewest_possible(kind):
    """Candidates drawn evenly and sorted, and valid ones with five ops moved. (On 40 such instances, against z3's
    proof: one order made 21 % more changes than needed, the best of 16 orders 0.8 %, the best of 64 none.)"""
    rng = np.random.default_rng(5)
    names = ("bert_base_b1", "lstm_l2_w200_t10_b4", "googlenet_b1", "unet_w32_b1", "gnmt_l2_t5_b8", "t5_tiny_b8")
    made = several = fewest = 0
    for case, name in enumerate(names):
        num_ops, num_chips = int(rng.integers(20, 61)), int(rng.choice([4, 6]))
        if kind == "real":
            num_ops, edges = next(real_slices([name], num_ops, rng))
        else:
            edges = random_edges(rng, num_ops)
        corrector = Corrector(num_ops, num_chips, edges)
        candidate = np.sort(rng.integers(0, num_chips, num_ops))
        if case % 2:
            candidate = corrector.sample(None, rng).decision
            candidate[rng.integers(0, num_ops, 5)] = rng.integers(0, num_chips, 5)
        exact = Exact(num_ops, num_chips, edges).repair(candidate)
        assert exact.proved
        assert is_valid(exact.decision, edges)
        fewest += int((exact.decision != candidate).sum())
        made += len(corrector.fix(candidate, rng).changed)
        several += len(corrector.fix(candidate, rng, tries=16).changed)
    assert 0 < fewest <= several <= made
    assert made <= 2 * fewest
    assert several <= 1.1 * fewest


def test_corrector__out_of_time_it_answers_by_the_rules_of_a_chain():
    rng = np.random.default_rng(9)
    num_ops = 300
    edges = random_edges(rng, num_ops, fan_in=3, reach=30)
    hurried = Corrector(num_ops, 36, edges, seconds=0.0)
    attempts, chains = set(), 0
    for _ in range(20):
        correction = hurried.fix(rng.integers(0, 36, num_ops), rng)
        assert correction.valid
        assert is_valid(correction.decision, edges)
        attempts.add(correction.attempts)
        chains += correction.chain
    assert attempts <= {1, 2}
    assert chains > 0


def test_sample__follows_the_probabilities_where_the_rules_leave_a_choice():
    edges = np.asarray([[0, 1]])
    corrector = Corrector(2, 2, edges)
    rng = np.random.default_rng(5)
    probabilities = np.asarray([[1.0, 0.0], [0.8, 0.2]])
    drawn = np.stack([corrector.sample(probabilities, rng).decision for _ in range(4000)])
    assert (drawn[:, 0] == 0).all()
    assert abs(drawn[:, 1].mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)


def test_sample__the_same_seed_gives_the_same_partition():
    num_ops, edges = transformer_edges(6)
    corrector = Corrector(num_ops, 9, edges)
    first, second = (corrector.sample(None, np.random.default_rng(6)).decision for _ in range(2))
    other = corrector.sample(None, np.random.default_rng(7)).decision
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], "probabilities have shape (4, 3), expected (5, 3): ops x chips"),
        (lambda p: p.T, "probabilities have shape (3, 5), expected (5, 3)"),
        (lambda p: "none", "probabilities must be numbers of shape (5, 3)"),
        (lambda p: [[1.0], [1.0, 2.0]], "probabilities must be numbers of shape (5, 3)"),
        (lambda p: np.where(np.arange(15).reshape(5, 3) == 7, -0.5, p), "probabilities[2, 1] is -0.5; give finite"),
        (lambda p: np.where(np.arange(15).reshape(5, 3) == 7, np.nan, p), "probabilities[2, 1] is nan; give finite"),
        (lambda p: np.where(np.arange(15).reshape(5, 3) == 7, np.inf, p), "probabilities[2, 1] is inf; give finite"),
        (lambda p: np.full((5, 3), 1.7e308), "sum to infinity"),
    ],
)
def test_sample__bad_probabilities_give_one_line(change, message):
    corrector = Corrector(5, 3, np.asarray([[0, 1], [1, 2], [2, 3], [3, 4]]))
    with pytest.raises(InputError) as caught:
        corrector.sample(change(np.full((5, 3), 1 / 3)), np.random.default_rng(0))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fix__bad_candidates_give_one_line():
    corrector = Corrector(3, 3, np.asarray([[0, 1], [1, 2]]))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"shape \(2,\), expected \(3,\)"):
        corrector.fix([0, 1], rng)
    with pytest.raises(InputError, match=r"decision\[2\] is 3, allowed: 0 to 2"):
        corrector.fix([0, 1, 3], rng)
    with pytest.raises(InputError, match="expected integers"):
        corrector.fix([0.0, 1.0, 2.0], rng)


def test_corrector__impossible_graphs_give_one_line():
    with pytest.raises(InputError, match="edges must go from lower to higher"):
        Corrector(3, 3, np.asarray([[1, 0]]))
    with pytest.raises(InputError, match="1 to 62 chips"):
        Corrector(3, 63, np.asarray([[0, 1]]))


def test_corrector__corrects_a_large_transformer():
    num_ops, edges = transformer_edges(48, branch=3, length=12)
    assert num_ops > 1000
    corrector = Corrector(num_ops, 36, edges)
    rng = np.random.default_rng(8)
    for _ in range(5):
        correction = corrector.sample(None, rng)
        assert is_valid(correction.decision, edges)
        assert not correction.chain
    candidate = np.arange(num_ops) * 36 // num_ops
    fixed = corrector.fix(candidate, rng)
    assert is_valid(fixed.decision, edges)
    assert 0 < len(fixed.changed) < num_ops


def test_sample__tells_what_each_chip_was_drawn_from():
    rng = np.random.default_rng(3)
    edges = random_edges(rng, 40, fan_in=2, reach=6)
    corrector = Corrector(40, 6, edges)
    propagator = Propagator(make_rules(40, 6, edges))
    begun = int(propagator.state.counts[NODES])
    chosen = 0
    for _ in range(200):
        correction = corrector.sample(None, rng)
        if correction.chain or correction.backtracks:
            continue
        propagator.reset()
        bits = (correction.drawn_from[:, None] >> np.arange(6) & 1).astype(bool)
        drawn = bits.any(axis=1)
        assert bits[drawn, correction.decision[drawn]].all()  # the chip is of the set
        assert not (bits & ~propagator.domains)[drawn].any()  # no set is larger than the one at the start
        if correction.nodes - begun > drawn.sum():
            continue  # chips that failed were excluded, too
        # the chips that were drawn imply all the others
        for op in np.flatnonzero(drawn).tolist():
            assert propagator.assign(op, int(correction.decision[op]))
        words = propagator.domains
        assert (words.sum(axis=1) == 1).all()
        assert words.argmax(axis=1).tolist() == correction.decision.tolist()
        chosen += int(drawn.sum())
    assert chosen > 100


def test_benchmark__counts_corrections_and_says_where_z3_ran_out_of_time():
    pytest.importorskip("z3")
    report = corrector_report(("vgg11_b1",), "mcm4", seconds=0.03, limit_s=20.0)
    assert [row["mode"] for row in report["rows"]] == ["SAMPLE", "FIX far", "FIX near"]
    for row in report["rows"]:
        assert set(row) == set(report["columns"])
        assert row["corrections_per_s"] > 0
        assert row["z3_ratio"] == pytest.approx(row["z3_s"] * row["corrections_per_s"])
        assert (row["changed_share"] is None) == (row["mode"] == "SAMPLE")
    hurried = corrector_report(("vgg11_b1",), "mcm4", seconds=0.03, limit_s=0.001)
    assert {row["z3_s"] for row in hurried["rows"]} == {None}
    assert "no answer within 0.001 s" in hurried["notes"][-1]


@pytest.mark.parametrize("name", [*SPLITS["inference"], "bert_primitive"])
def test_corrector__on_every_inference_graph_the_result_is_valid(name):
    problem = ChipletProblem(name, "mcm36")
    rng = np.random.default_rng(0)
    drawn = problem.corrector.sample(rng.random((problem.num_ops, 36)) + 1e-9, rng)
    fixed = problem.corrector.fix(rng.integers(0, 36, problem.num_ops), rng)
    edges = problem.ops.edges
    for correction in (drawn, fixed):
        assert correction.valid
        assert is_valid(correction.decision, edges)
    again = problem.corrector.fix(drawn.decision, rng)
    assert len(again.changed) == 0
