"""The corrector: makes any proposal a valid partition (Xie et al., MLSys 2022), by search over the propagator.

Two modes. SAMPLE visits the ops in a random order and draws each one's chip from the proposal's probabilities,
restricted to the chips that its domain still allows. FIX visits them in a random order and keeps the candidate's chip
where the domain allows it; a second round gives the others the nearest chip that is left. At a dead end choices
are taken back until the op that failed has a chip, and it goes first; the propagator's ``search`` tells how. After too
many dead ends it starts again with another order: roughly along the graph, roughly against it (there dead ends are
rarer, above all on unrolled recurrences, but what comes first has more of a say), and at random again. In the end it
goes under the rules of a chain (see ``propagator.make_rules``), which know no dead ends: there is always an answer,
unless memory is a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.compiled import clock
from graphopt_gym.envs.chiplet.propagator import (
    DONE,
    EXHAUSTED,
    NODES,
    begin,
    make_rules,
    make_state,
    restore,
    search,
)
from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.problem import ChipletProblem

ORDERS = ("random", "along", "against")  # one an attempt, in turn
JITTER = 0.05  # of the number of ops: how far the last two are shuffled
ATTEMPTS = 6  # orders under the full rules
MEMORY_ATTEMPTS = 21  # where memory is a rule, too: more of them, since nothing else guarantees an answer
# Dead ends an attempt may meet: choices taken back, and failed values in all, per op and at least. The first attempts,
# one an order, have fewer: another order mostly helps sooner than persistence.
MOST_BACKTRACKS = 60
FAILURES_PER_OP = 1
LEAST_FAILURES = 100
FIRST_SHARE = 0.25


@dataclass(frozen=True)
class Correction:
    """What a proposal became.

    Attributes:
        decision: int32 [N].
        valid: whether every rule holds that the corrector was told; False only where memory is one.
        reason: empty where valid.
        changed: int [K] the ops whose chip is not the candidate's (FIX), ascending; empty for SAMPLE.
        backtracks: choices taken back.
        nodes: propagations.
        attempts: orders tried.
        chain: whether the answer was found under the rules of a chain.
        drawn_from: int64 [N] the set of chips, as bits, that each op's chip was chosen from; 0 where there was no
            choice: the choices before it left one chip, or the answer is of the rules of a chain.
    """

    decision: np.ndarray
    valid: bool
    reason: str
    changed: np.ndarray
    backtracks: int
    nodes: int
    attempts: int
    chain: bool
    drawn_from: np.ndarray


class Corrector:
    """Corrects proposals for one graph and one number of chips.

    Args:
        num_ops: N, in topological order.
        num_chips: C, at most 62.
        edges: int [E, 2], producer < consumer, distinct.
        memory: makes memory a rule, see :func:`make_rules`; with ``measure``, the exact bytes int64 [C] of a decision.
        seconds: most time for one correction, checked between attempts; then the rules of a chain, or giving up where
            memory is a rule.
    """

    def __init__(
        self,
        num_ops: int,
        num_chips: int,
        edges: np.ndarray,
        *,
        memory: tuple | None = None,
        measure: Any = None,
        seconds: float = 10.0,
    ) -> None:
        self.num_ops, self.num_chips = num_ops, num_chips
        self.rules = make_rules(num_ops, num_chips, edges, memory=memory)
        self.chain_rules = make_rules(num_ops, num_chips, edges, chain=True, memory=memory)
        self.seconds = seconds
        self._measure = measure
        self._state = make_state(self.rules)
        self._levels = np.empty((num_ops + 1, 5), np.int64)
        self._snapshots = np.empty((num_ops + 1, *self._state.chips.shape), np.int64)
        self._even = np.full((num_ops, num_chips), 1.0 / num_chips)
        self._begun = {}
        for rules in (self.rules, self.chain_rules):
            feasible = begin(rules, self._state)
            self._begun[rules.graph.cover] = (bool(feasible), self._state.store.copy(), self._state.chips.copy())

    @classmethod
    def of(cls, problem: ChipletProblem) -> Corrector:
        """The corrector of a problem."""
        if not problem.memory_rule:
            return cls(problem.num_ops, problem.num_chips, problem.ops.edges)
        return cls(
            problem.num_ops,
            problem.num_chips,
            problem.ops.edges,
            memory=memory_facts(problem, 1.0),
            measure=problem.memory_bytes,
        )

    def sample(self, probabilities: Any, rng: np.random.Generator) -> Correction:
        """SAMPLE: a partition drawn from probabilities [N, C] (rows need not sum to 1; None: all the same).

        Where a row has no weight on the chips left for its op, one of them is drawn evenly.

        Raises:
            InputError: wrong shape, negative or not finite.
        """
        weights = (
            self._even if probabilities is None else check_probabilities(probabilities, self.num_ops, self.num_chips)
        )
        return self._run(weights, None, rng, None)

    def choices_of(self, decision: np.ndarray) -> np.ndarray:
        """int64 [N]: what ``drawn_from`` would be had a valid decision been drawn in the order of the ops.

        All 0 where the propagator refuses it (it does so rightly: the decision is invalid).
        """
        order = np.arange(self.num_ops, dtype=np.int32)
        restore(self._state, *self._begun[True][1:])
        _, _, depth = search(
            self.rules, self._state, self._even[:0], decision, order, np.random.default_rng(0), self._levels,
            self._snapshots, 0, 0,
        )  # fmt: skip
        drawn_from = np.zeros(self.num_ops, np.int64)
        if (_chips_of(self._state.store[: self.num_ops]) == decision).all():
            drawn_from[self._levels[:depth, 3]] = self._levels[:depth, 4]
        return drawn_from

    def fix(
        self, candidate: Any, rng: np.random.Generator, *, first: np.ndarray | None = None, tries: int = 1
    ) -> Correction:
        """FIX: the candidate partition [N], with as few changes as the random order finds.

        A valid candidate comes back as it is. ``first``: ops to visit before the others, so that they keep their chips
        if they can. ``tries``: so many orders, and of what they give that with the fewest changes.

        Raises:
            InputError: wrong shape or type, or a chip out of range.
        """
        from graphopt_gym.fields import check_integers

        given = check_integers(candidate, (self.num_ops,), self.num_chips, "chip")
        best = self._run(self._even[:0], given, rng, first)
        for _ in range(tries - 1):
            if best.valid and len(best.changed) == 0:
                break
            other = self._run(self._even[:0], given, rng, first)
            if (not other.valid, len(other.changed)) < (not best.valid, len(best.changed)):
                best = other
        return best

    def _run(
        self, weights: np.ndarray, candidate: np.ndarray | None, rng: np.random.Generator, first: np.ndarray | None
    ) -> Correction:
        started = clock()
        has_memory = self.rules.memory.asked
        plan = [self.rules] * ATTEMPTS + [self.chain_rules]
        if has_memory:
            plan = [self.rules] * MEMORY_ATTEMPTS + [self.chain_rules] * MEMORY_ATTEMPTS
        given = np.zeros(0, np.int32) if candidate is None else candidate
        backtracks = nodes = attempts = 0
        reason = ""
        decision = None
        late = False
        for rules in plan:
            if late and not has_memory and rules.graph.cover:
                continue  # on to what is certain
            if late and has_memory:
                reason += f" and {self.seconds} s"
                break
            attempts += 1
            order = self._order(ORDERS[(attempts - 1) % len(ORDERS)], rng)
            if first is not None:
                order = order[np.argsort(~np.isin(order, first), kind="stable")]
            feasible, store, chips = self._begun[rules.graph.cover]
            if not feasible:
                reason = "no partition fits the chips' memory: an op fits on none"
                break
            restore(self._state, store, chips)
            patience = FIRST_SHARE if attempts <= len(ORDERS) and rules.graph.cover else 1.0
            status, taken_back, depth = search(
                rules, self._state, weights, given, order, rng, self._levels, self._snapshots,
                int(patience * MOST_BACKTRACKS), int(patience * (FAILURES_PER_OP * self.num_ops + LEAST_FAILURES)),
            )  # fmt: skip
            backtracks += int(taken_back)
            nodes += int(self._state.counts[NODES])
            if status == DONE:
                found = _chips_of(self._state.store[: self.num_ops])
                if not rules.graph.cover:
                    found = _close_gaps(found)
                if not has_memory or (self._measure(found) <= self.rules.memory.capacity).all():
                    return self._correction(
                        found, candidate, backtracks, nodes, attempts, not rules.graph.cover, self._levels[:depth]
                    )
                decision = found if decision is None else decision
            elif status == EXHAUSTED and rules.graph.cover:
                reason = "no partition fits the chips' memory: every one was excluded"
                break
            reason = f"no partition found that fits the chips' memory in {attempts} attempts"
            late = clock() - started > self.seconds
        if decision is None:
            decision = np.zeros(self.num_ops, np.int32)
        failed = self._correction(decision, candidate, backtracks, nodes, attempts, False)
        return Correction(**{**failed.__dict__, "valid": False, "reason": reason})

    def _order(self, kind: str, rng: np.random.Generator) -> np.ndarray:
        """int32 [N]: the ops in an order of ORDERS."""
        if kind == "random":
            return rng.permutation(self.num_ops).astype(np.int32)
        along = np.argsort(np.arange(self.num_ops) + rng.normal(0.0, JITTER * self.num_ops, self.num_ops))
        return (along if kind == "along" else along[::-1]).astype(np.int32)

    def _correction(
        self,
        decision: np.ndarray,
        candidate: np.ndarray | None,
        backtracks: int,
        nodes: int,
        attempts: int,
        chain: bool,
        levels: np.ndarray | None = None,
    ) -> Correction:
        changed = np.zeros(0, np.int64) if candidate is None else np.flatnonzero(decision != candidate)
        drawn_from = np.zeros(self.num_ops, np.int64)
        if levels is not None and not chain:
            drawn_from[levels[:, 3]] = levels[:, 4]
        return Correction(decision, True, "", changed, backtracks, nodes, attempts, chain, drawn_from)


def memory_facts(problem: ChipletProblem, share: float) -> tuple:
    """What :func:`make_rules` takes as memory, with a share of each chip's capacity."""
    ops = problem.ops
    return (
        (problem.package.sram_bytes * share).astype(np.int64),
        ops.param_bytes,
        ops.param_ptr,
        ops.param_reader,
        ops.tensor_op,
        ops.tensor_bytes,
        ops.reader_ptr,
        ops.reader,
    )


def check_probabilities(probabilities: Any, num_ops: int, num_chips: int) -> np.ndarray:
    """Probabilities as float64 [N, C], or an InputError that names the first bad entry."""
    try:
        given = np.array(probabilities, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"probabilities must be numbers of shape ({num_ops}, {num_chips}), ops x chips") from None
    if given.shape != (num_ops, num_chips):
        raise InputError(f"probabilities have shape {given.shape}, expected ({num_ops}, {num_chips}): ops x chips")
    bad = ~np.isfinite(given) | (given < 0)
    if bad.any():
        op, chip = (int(index) for index in np.argwhere(bad)[0])
        raise InputError(f"probabilities[{op}, {chip}] is {given[op, chip]}; give finite numbers, at least 0")
    with np.errstate(over="ignore"):
        sums = given.sum(axis=1)
    given[sums == 0] = 1.0  # nothing is preferred
    if np.isinf(sums).any():
        raise InputError(f"probabilities[{int(np.argmax(sums))}] sum to infinity; give smaller numbers")
    return np.ascontiguousarray(given)


def _chips_of(words: np.ndarray) -> np.ndarray:
    return np.log2(words.astype(np.float64)).astype(np.int32)  # powers of two, exactly


def _close_gaps(decision: np.ndarray) -> np.ndarray:
    """The same partition with the chips in use renumbered 0, 1, …: rules 1 and 3 do not see the difference."""
    return np.unique(decision, return_inverse=True)[1].astype(np.int32)
