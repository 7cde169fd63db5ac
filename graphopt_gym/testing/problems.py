"""The contract of problems."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.problem import Outcome, Problem, Solution
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import solve
from graphopt_gym.solutions import load_solution, validate
from graphopt_gym.testing.contract import (
    ContractError,
    difference,
    form,
    refuses,
    require,
    run_rules,
    said,
    wrong_forms,
)


@dataclass
class _ProblemCase:
    """A problem, what the checks may spend, and the decisions that they met."""

    problem: Problem
    methods: tuple[str | Method, ...]
    invalid: list[Any]
    samples: int
    budget: int
    seed: int
    stand_ins: dict[str, Any]  # arguments that config only names
    sampled: list[Any] = field(default_factory=list)
    neighbours: list[Any] = field(default_factory=list)
    crossed: list[tuple[Any, Any, Any]] = field(default_factory=list)  # two parents, and their child

    @property
    def arrays(self) -> bool:
        """Whether decisions are arrays; otherwise objects that cannot be changed."""
        return self.problem.decision_shape != ()

    @property
    def children(self) -> list[Any]:
        return [child for _, _, child in self.crossed]

    def batch(self, decisions: Sequence[Any]) -> np.ndarray:
        if self.arrays:
            return np.stack(decisions)
        out = np.empty(len(decisions), object)
        out[:] = decisions
        return out

    def costs(self, decisions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        return self.problem.costs(self.batch(decisions))

    def text(self, decision: Any) -> str:
        """A decision as it is stored: what two decisions are compared by."""
        return json.dumps(self.problem.encode(decision), allow_nan=False)

    def _permuted_by_choices(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The samples with entries that have the same choices in other orders."""
        if self.sampled[0].ndim != 1:
            return []
        problem: Any = self.problem
        kinds = np.unique(problem.choices_allowed, axis=0, return_inverse=True)[1].ravel()
        changed = [one.copy() for one in self.sampled]
        for one in changed:
            for kind in range(int(kinds.max()) + 1):
                one[kinds == kind] = rng.permutation(one[kinds == kind])
        return changed

    def _is_taken(self, decision: np.ndarray) -> bool:
        try:
            self.problem.check(decision)
        except InputError:
            return False
        return True

    def all_decisions(self) -> list[Any]:
        """Those met, those given as invalid, and, of arrays, the samples' entries in other orders and all alike.

        Of several rows, which may decide on different things, each is put into another order, or alike, by itself; so
        are entries of one row that have other choices (``choices_allowed``), where what ``check`` refuses is left out.
        """
        found = [*self.sampled, *self.neighbours, *self.children, *self.invalid]
        if self.arrays:
            rng = np.random.default_rng(self.seed)
            more = [rng.permuted(one, axis=-1).astype(np.int32) for one in self.sampled]
            first = self.sampled[0]
            alike = (first.min(axis=-1, keepdims=True), first.max(axis=-1, keepdims=True))
            more += [np.broadcast_to(entry, first.shape).copy() for entry in alike]
            if getattr(self.problem, "choices_allowed", None) is None:
                return found + more
            found += [one for one in more if self._is_taken(one)] + self._permuted_by_choices(rng)
        return found


def check_problem(
    problem: Problem,
    methods: Iterable[str | Method] = (),
    *,
    invalid: Iterable[Any] = (),
    graph: Any = None,
    cluster: Any = None,
    samples: int = 8,
    budget: int = 24,
    seed: int = 0,
) -> None:
    """Check that a problem keeps the contract; seconds on a small graph.

    Args:
        problem: any, registered or not.
        methods: methods to run on it, each twice.
        invalid: decisions that break a rule, each by more than the one before.
        graph, cluster: stand in for the stored names where the problem was made from objects, as in ``validate``.
        samples: random decisions to look at, and as many neighbours and crossovers.
        budget: evaluations that a method may spend.
        seed: of all random choices.

    Raises:
        ContractError: a rule does not hold; one line with its name, what was found, and how to mend it.
    """
    stand_ins = {name: one for name, one in {"graph": graph, "cluster": cluster}.items() if one is not None}
    run_rules(PROBLEM_RULES, _ProblemCase(problem, tuple(methods), list(invalid), samples, budget, seed, stand_ins))


def facts_are_there(case: _ProblemCase) -> None:
    problem = case.problem
    words = {f"words.{name}": word for name, word in vars(problem.words).items()}
    for name, value in {"env_id": problem.env_id, "unit": problem.unit, "title": problem.title, **words}.items():
        require(isinstance(value, str) and value, f"{name} is {value!r}", "set it to a text")
    shape = problem.decision_shape
    require(
        isinstance(shape, tuple) and all(isinstance(size, int) and size > 0 for size in shape),
        f"decision_shape is {shape!r}",
        "give a tuple of ints, () for objects",
    )
    prints = problem.fingerprints()
    require(
        (prints or not {"graph", "cluster"} & vars(problem).keys())
        and all(isinstance(one, str) for pair in prints.items() for one in pair),
        f"fingerprints() gives {prints!r}",
        "name what a cost depends on, a text each",
    )


def decisions_can_be_drawn(case: _ProblemCase) -> None:
    problem, rng = case.problem, np.random.default_rng(case.seed)
    case.sampled = [problem.sample(rng) for _ in range(case.samples)]
    case.neighbours = [problem.neighbour(one, rng) for one in case.sampled]
    pairs = zip(case.sampled, case.sampled[1:] + case.sampled[:1], strict=True)
    case.crossed = [(first, second, problem.crossover(first, second, rng)) for first, second in pairs]
    case.invalid = [problem.check(one) for one in case.invalid]


def decisions_are_in_the_space(case: _ProblemCase) -> None:
    kinds = {"sample": case.sampled, "neighbour": case.neighbours, "crossover": case.children}
    for kind, decisions in kinds.items():
        for decision in decisions:
            if case.arrays:
                require(
                    isinstance(decision, np.ndarray)
                    and decision.shape == case.problem.decision_shape
                    and decision.dtype == np.int32,
                    f"{kind}() gives {form(decision)}",
                    f"give an int32 array of shape {case.problem.decision_shape}",
                )
            try:
                checked = case.problem.check(decision)
            except InputError as error:
                raise ContractError(f"{kind}() leaves the space: {error}; give what check() takes") from error
            require(
                case.text(checked) == case.text(decision),
                f"check() changes what {kind}() gives",
                "give it back as it is",
            )


def samples_follow_the_generator(case: _ProblemCase) -> None:
    rng = np.random.default_rng(case.seed)
    again = [case.problem.sample(rng) for _ in range(case.samples)]
    require(
        list(map(case.text, again)) == list(map(case.text, case.sampled)),
        "sample() gives other decisions for a generator of the same seed",
        "draw from the given generator alone",
    )


def moves_leave_their_arguments_alone(case: _ProblemCase) -> None:
    problem, rng = case.problem, np.random.default_rng(case.seed + 1)
    moves: dict[str, Callable[[Any, Any], Any]] = {
        "neighbour": lambda one, _: problem.neighbour(one, rng),
        "crossover": lambda one, other: problem.crossover(one, other, rng),
    }
    for kind, move in moves.items():
        for first, second, _ in case.crossed:
            before = case.text(first), case.text(second)
            moved = move(first, second)
            changed = (case.text(first), case.text(second)) != before
            require(not changed, f"{kind}() changes the decision that it is given", "change a copy")
            shared = case.arrays and (np.shares_memory(moved, first) or np.shares_memory(moved, second))
            require(not shared, f"{kind}() gives an array that shares memory with its argument", "give a copy")


def moves_go_somewhere(case: _ProblemCase) -> None:
    """Neighbours differ, crossovers are not always the first parent, and keep to the rules where the others do."""
    if len(set(map(case.text, case.sampled))) == 1:
        return  # there may be one decision only
    moved = [case.text(one) != case.text(other) for one, other in zip(case.sampled, case.neighbours, strict=True)]
    require(any(moved), f"none of {len(moved)} neighbours differs from its decision", "change something")
    mixed = [
        case.text(child) != case.text(first)
        for first, second, child in case.crossed
        if case.text(first) != case.text(second)
    ]
    require(any(mixed), f"all of {len(mixed)} crossovers are their first parent", "take something of the second")
    _, valid = case.costs([*case.sampled, *case.neighbours])
    _, kept = case.costs(case.children)
    if len(kept) != len(case.children):
        return  # the next rule says so
    require(
        not valid.all() or kept.mean() >= 0.5,
        f"all samples and neighbours are valid, but only {int(kept.sum())} of {len(kept)} crossovers of them",
        "give the problem a crossover() that keeps to its rules",
    )


def costs_equal_evaluate(case: _ProblemCase) -> None:
    decisions = case.all_decisions()
    costs, valid = case.costs(decisions)
    for name, array, dtype in (("cost", costs, np.float64), ("valid", valid, np.bool_)):
        require(
            isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == (len(decisions),),
            f"costs() gives {name} as {form(array)}",
            f"give {np.dtype(dtype)} of shape ({len(decisions)},)",
        )
    for decision, cost, fits in zip(decisions, costs.tolist(), valid.tolist(), strict=True):
        outcome = case.problem.evaluate(decision)
        require(
            outcome.valid == fits, f"evaluate() says valid={outcome.valid}, costs() {fits}", "let both ask the same"
        )
        require(
            not fits or outcome.cost == cost,
            f"evaluate() says {outcome.cost!r} {outcome.unit}, costs() {cost!r}",
            "let both compute by the same arithmetic",
        )


def outcomes_are_complete(case: _ProblemCase) -> None:
    for decision in case.all_decisions():
        outcome = case.problem.evaluate(decision)
        require(isinstance(outcome, Outcome), f"evaluate() gives a {type(outcome).__name__}", "give an Outcome")
        require(type(outcome.valid) is bool, f"valid is a {type(outcome.valid).__name__}", "give a bool")
        require(type(outcome.cost) is float, f"cost is a {type(outcome.cost).__name__}", "give a float")
        require(
            math.isfinite(outcome.cost) if outcome.valid else outcome.cost == math.inf,
            f"cost is {outcome.cost} where valid is {outcome.valid}",
            "give a finite cost where valid, inf where not",
        )
        require(
            bool(outcome.reasons) != outcome.valid and all(one and "\n" not in one for one in outcome.reasons),
            f"reasons are {outcome.reasons!r} where valid is {outcome.valid}",
            "give one line a broken rule, none where valid",
        )
        require(outcome.unit == case.problem.unit, f"unit is {outcome.unit!r}", f"give {case.problem.unit!r}")


def invalid_decisions_are_priced_above_valid_ones(case: _ProblemCase) -> None:
    costs, valid = case.costs(case.all_decisions())
    require(np.isfinite(costs).all(), "costs() prices a decision with inf or NaN", "price a violation by a number")
    if valid.any() and not valid.all():
        worst, least = float(costs[valid].max()), float(costs[~valid].min())
        require(least > worst, f"an invalid decision costs {least!r}, a valid one {worst!r}", "price it above")
    if case.invalid:
        costs, valid = case.costs(case.invalid)
        require(not valid.any(), "a decision given as invalid is valid", "give others")
        require((np.diff(costs) > 0).all(), f"ever worse violations cost {costs.tolist()}", "price more by more")


def a_batch_costs_what_its_decisions_cost(case: _ProblemCase) -> None:
    decisions = case.all_decisions()
    before = list(map(case.text, decisions))
    batch = case.batch(decisions)
    together = case.problem.costs(batch)
    require(list(map(case.text, batch)) == before, "costs() changes its decisions", "change nothing")
    for row, decision in enumerate(decisions):
        alone = case.costs([decision])
        require(
            not difference(alone, tuple(part[row : row + 1] for part in together)),
            f"decision {row} costs {alone[0][0]!r} alone, {together[0][row]!r} among {len(decisions)}",
            "let a row depend on its decision alone",
        )
    sizes = [len(part) for part in case.problem.costs(batch[:0])]
    require(sizes == [0, 0], f"costs() of no decision gives {sizes} rows", "give two empty arrays")


def evaluate_is_a_function(case: _ProblemCase) -> None:
    for decision in case.all_decisions():
        before = case.text(decision)
        first, again = case.problem.evaluate(decision), case.problem.evaluate(decision)
        require(case.text(decision) == before, "evaluate() changes the decision", "change nothing")
        require(
            (first.valid, first.cost, first.reasons) == (again.valid, again.cost, again.reasons)
            and not difference(dict(first.metrics), dict(again.metrics)),
            f"evaluate() says {first.cost!r}, and {again.cost!r} when asked again",
            "let the outcome depend on the decision alone",
        )


def metrics_are_json(case: _ProblemCase) -> None:
    for decision in case.all_decisions():
        metrics = dict(case.problem.evaluate(decision).metrics)
        try:
            again = json.loads(json.dumps(metrics, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ContractError(f"{said(error)}; give numbers, texts and lists of them") from error
        require(not difference(again, metrics), f"JSON makes {again!r} of {metrics!r}", "give lists, and texts as keys")


def decisions_are_stored_as_json(case: _ProblemCase) -> None:
    for decision in case.all_decisions():
        again = case.problem.check(json.loads(case.text(decision)))
        require(case.text(again) == case.text(decision), "encode() and check() change a decision", "store all of it")
        costs = [case.problem.evaluate(one).cost for one in (decision, again)]
        require(costs[0] == costs[1], f"a stored decision costs {costs[1]!r}, it cost {costs[0]!r}", "store all of it")


def config_rebuilds_the_problem(case: _ProblemCase) -> None:
    problem = case.problem
    config = json.loads(json.dumps(dict(problem.config), allow_nan=False))
    again = type(problem)(**{**config, **case.stand_ins})
    for name, ours, theirs in (
        ("config", dict(again.config), config),
        ("fingerprints", again.fingerprints(), problem.fingerprints()),
    ):
        require(
            not difference(ours, theirs) or case.stand_ins,
            f"{name} is {ours!r} of the problem built from {config!r}, {theirs!r} of this one",
            "keep all arguments in config, in JSON's types",
        )
    for decision in case.all_decisions():
        rebuilt, here = again.evaluate(problem.encode(decision)), problem.evaluate(decision)
        require(
            (rebuilt.valid, rebuilt.cost) == (here.valid, here.cost),
            f"a decision costs {rebuilt.cost!r} on the problem built from config, {here.cost!r} on this one",
            "keep all arguments in config",
        )


def solutions_validate(case: _ProblemCase) -> None:
    for decision in (case.sampled[0], *case.invalid[:1]):
        outcome = case.problem.evaluate(decision)
        solution = Solution(case.problem, "contract", case.seed, case.problem.check(decision), outcome, 1, 0.0)
        with tempfile.TemporaryDirectory() as folder:
            path = solution.save(Path(folder) / "solution.json")
            stored = load_solution(path)
            checked = validate(path, **case.stand_ins)
        require(
            case.text(case.problem.check(stored.decision)) == case.text(decision),
            "a file gives back another decision than was saved",
            "let check() take what encode() gave",
        )
        require(
            set(checked.mismatches) == set(outcome.reasons),
            f"validate() finds {list(checked.mismatches)!r}",
            "let fingerprints, cost and metrics be the same each time",
        )


def wrong_decisions_are_refused(case: _ProblemCase) -> None:
    decision = case.sampled[0]
    before = case.problem.evaluate(decision)
    wrong_decisions = wrong_forms(decision)
    if case.arrays:
        wrong_decisions += [
            ("a number", 3),
            ("-1 everywhere", np.full_like(decision, -1)),
            ("an unknown choice everywhere", np.full_like(decision, 2**31 - 1)),
        ]
    else:
        wrong_decisions += [("a list of numbers", [0, 1]), ("an array of numbers", np.zeros(3, np.int32))]
    for what, wrong in wrong_decisions:
        for name in ("check", "evaluate"):
            call = getattr(case.problem, name)
            refuses(lambda: call(wrong), f"{name}() of {what}", "raise an InputError")  # noqa: B023
    after = case.problem.evaluate(decision)
    require(before.cost == after.cost, "a refused decision changes what others cost", "check before anything else")


def methods_keep_to_budget_and_seed(case: _ProblemCase) -> None:
    for method in case.methods:
        first, again = (_counted(case, method) for _ in range(2))
        name = first.method
        runs = [
            (case.text(run.decision), run.outcome.cost, run.evaluations, [(row[0], row[2]) for row in run.history])
            for run in (first, again)
        ]
        require(
            runs[0] == runs[1],
            f"method {name!r} gives {runs[0][1:]} and {runs[1][1:]} with the same seed",
            "draw from the given generator alone",
        )
        require(
            1 <= first.evaluations <= case.budget,
            f"method {name!r} evaluates {first.evaluations} times with a budget of {case.budget}",
            "evaluate by the evaluator alone",
        )
        require(
            first.outcome.cost == case.problem.evaluate(first.decision).cost,
            f"method {name!r} states the cost {first.outcome.cost!r} of another decision",
            "keep decision and outcome together",
        )
        json.dumps(first.row(), allow_nan=False)


def _counted(case: _ProblemCase, method: str | Method) -> Solution:
    """A run of a method, whose calls of costs() may not be more than it says."""
    problem, asked = copy.copy(case.problem), 0

    def costs(decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal asked
        asked += len(decisions)
        return case.problem.costs(decisions)

    problem.costs = costs  # type: ignore[method-assign]
    problem.evaluate = case.problem.evaluate  # type: ignore[method-assign]  # which may ask costs() itself
    solution = solve(problem, method, budget=case.budget, seed=case.seed)
    require(
        asked <= solution.evaluations,
        f"method {solution.method!r} asks for {asked} costs and counts {solution.evaluations}",
        "evaluate by the evaluator alone",
    )
    return solution


PROBLEM_RULES: tuple[Callable[[_ProblemCase], None], ...] = (
    facts_are_there,
    decisions_can_be_drawn,
    decisions_are_in_the_space,
    moves_leave_their_arguments_alone,
    samples_follow_the_generator,
    moves_go_somewhere,
    costs_equal_evaluate,
    outcomes_are_complete,
    invalid_decisions_are_priced_above_valid_ones,
    a_batch_costs_what_its_decisions_cost,
    evaluate_is_a_function,
    metrics_are_json,
    decisions_are_stored_as_json,
    config_rebuilds_the_problem,
    solutions_validate,
    wrong_decisions_are_refused,
    methods_keep_to_budget_and_seed,
)
