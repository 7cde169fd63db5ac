"""The contract, on every registered problem; and each of its rules catches who breaks it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.registration import env_ids
from graphopt_gym.search.solve import Method, method_table
from graphopt_gym.testing import ContractError, check_problem
from tests.envs.placement.cases import cluster
from tests.envs.rewrite.programs import attention

# a problem of every kind that the arguments of a task's problem make
PROBLEMS = [
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2"}),
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "grouping": "op"}),
    ("PlacementOneShot-v0", {"graph": "rnnlm_2layer", "cluster": "v100x4"}),
    ("ChipletPartition-v0", {"graph": "bert_tiny_b16", "cluster": "mcm4"}),
    ("ChipletPartition-v0", {"graph": "bert_tiny_b16", "cluster": "mcm4", "memory_rule": True}),
    ("RewriteOrder-v0", {"graph": "squeezenet", "cluster": "t4"}),
    ("RewriteOrder-v0", {"graph": "small_chain", "cluster": "t4", "cost": "simulated", "rules": ["fused activation"]}),
]


def case_name(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values())) if isinstance(value, dict) else None


@pytest.mark.parametrize(("env_id", "arguments"), PROBLEMS, ids=case_name)
def test_problem__keeps_the_contract(env_id, arguments):
    check_problem(gg.make_problem(env_id, **arguments))


def test_problems__are_all_checked():
    assert {env_id for env_id, _ in PROBLEMS} == set(env_ids())


QUICK = {
    "Placement-v0": PROBLEMS[0][1],
    "ChipletPartition-v0": PROBLEMS[3][1],
    "RewriteOrder-v0": {"graph": "small_chain"},
}


@pytest.mark.parametrize("env_id", QUICK)
def test_methods__keep_to_budget_and_seed(env_id):
    names = [name for name in gg.methods(env_id) if not method_table(env_id)[name].small]
    check_problem(gg.make_problem(env_id, **QUICK[env_id]), names, samples=2, budget=6)


# --------------------------------------------------------------------------------------------------- what is caught

GRAPH, CLUSTER = layered_dag(40, seed=1, colocated=0.6, phases=True), cluster(3)
OBJECTS = {"graph": GRAPH, "cluster": CLUSTER}


def tight():
    """(a problem whose devices hold two thirds of the graph, placements on one device that break that ever more)."""
    roomy = PlacementProblem(GRAPH, CLUSTER, grouping="op")
    single = np.zeros(roomy.num_groups, np.int32)
    peak = int(roomy.evaluate(single).metrics["peak_bytes"][0])
    part = single.copy()
    part[: roomy.num_groups // 6] = 1
    return PlacementProblem(GRAPH, cluster(3, 2 * peak // 3), grouping="op"), [part, single]


def test_check_problem__of_objects_needs_them_to_rebuild():
    check_problem(PlacementProblem(**OBJECTS), ["random"], **OBJECTS)
    with pytest.raises(ContractError, match=r"^config rebuilds the problem: InputError: unknown graph"):
        check_problem(PlacementProblem(**OBJECTS))


def test_check_problem__takes_decisions_that_are_invalid():
    problem, worse = tight()
    check_problem(problem, invalid=worse, graph=GRAPH, cluster=problem.cluster)
    with pytest.raises(
        ContractError, match=r"^invalid decisions .*: ever worse violations cost .*; price more by more$"
    ):
        check_problem(problem, invalid=worse[::-1], graph=GRAPH, cluster=problem.cluster)
    with pytest.raises(ContractError, match=r"^invalid decisions .*: a decision given as invalid is valid"):
        check_problem(
            PlacementProblem(**OBJECTS), invalid=[np.zeros(PlacementProblem(**OBJECTS).num_groups, np.int32)], **OBJECTS
        )


def test_check_problem__of_programs_that_compute_something_else():
    problem = gg.make_problem("RewriteOrder-v0", graph=attention())
    check_problem(problem, invalid=[attention(heads=4)], graph=attention())


class Counting:
    """Numbers that rise from call to call: what nobody can reproduce."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls


def altered(method, change):
    """``method`` of a placement problem whose result goes through ``change(problem, result, *arguments)``."""
    plain = getattr(PlacementProblem, method)
    return lambda self, *arguments: change(self, plain(self, *arguments), *arguments)


def priced(change):
    """costs() whose costs go through ``change(costs, valid)``."""
    return {"costs": altered("costs", lambda problem, found, _: (change(*found), found[1]))}


def judged(**change):
    """evaluate() whose outcome has other fields, each a function of the outcome."""
    return {
        "evaluate": altered(
            "evaluate",
            lambda problem, found, _: dataclasses.replace(found, **{name: one(found) for name, one in change.items()}),
        )
    }


def in_place(self, decision, *_):
    decision[0] = (decision[0] + 1) % self.num_devices
    return decision.copy()


def evaluate_in_place(self, decision):
    outcome = PlacementProblem.evaluate(self, decision)
    in_place(self, decision)
    return outcome


def costs_in_place(self, decisions):
    costs = PlacementProblem.costs(self, decisions)
    decisions[:, 0] = 0
    return costs


def lenient(take):
    """check() that makes something of everything."""
    return {"check": lambda self, decision: take(self, np.asarray(decision))}


def complaining(text):
    def check(self, decision):
        try:
            return PlacementProblem.check(self, decision)
        except InputError:
            raise text from None

    return {"check": check}


count = Counting()
MUTANTS = {
    "facts are there": {
        "no unit": {"unit": ""},
        "a shape that is a list": {"decision_shape": property(lambda self: [3], lambda self, _: None)},
        "no fingerprints": {"fingerprints": lambda self: {}},
    },
    "decisions can be drawn": {
        "a sample that fails": {"sample": lambda self, rng: np.zeros(2)[3]},
        "a crossover that is not there": {"crossover": None},
    },
    "decisions are in the space": {
        "a sample out of range": {"sample": altered("sample", lambda problem, found, _: found + problem.num_devices)},
        "a sample of int64": {"sample": altered("sample", lambda problem, found, _: found.astype(np.int64))},
        "a neighbour out of range": {"neighbour": altered("neighbour", lambda problem, found, *_: found - 1)},
        "a crossover out of range": {"crossover": altered("crossover", lambda problem, found, *_: found + 1)},
        "a crossover that is too long": {"crossover": lambda self, first, second, rng: np.append(first, second)},
        "a check that clips": lenient(lambda problem, given: np.zeros(problem.decision_shape, np.int32)),
    },
    "moves leave their arguments alone": {
        "a neighbour in place": {"neighbour": in_place},
        "a neighbour that is its argument": {"neighbour": lambda self, decision, rng: decision},
        "a crossover in place": {"crossover": lambda self, first, second, rng: in_place(self, second)},
        "a crossover that is a view": {"crossover": lambda self, first, second, rng: second[:]},
    },
    "samples follow the generator": {
        "a sample by another generator": {
            "sample": lambda self, rng: np.random.default_rng(count()).integers(0, 3, self.decision_shape, np.int32)
        },
    },
    "moves go somewhere": {
        "a neighbour that stays": {"neighbour": lambda self, decision, rng: decision.copy()},
        "a crossover that is dropped": {"crossover": lambda self, first, second, rng: first.copy()},
    },
    "costs equal evaluate": {
        "costs halved": priced(lambda costs, valid: costs / 2),
        "costs off by the last bit": priced(lambda costs, valid: np.nextafter(costs, 0)),
        "costs of float32": priced(lambda costs, valid: costs.astype(np.float32)),
        "all valid": {"costs": altered("costs", lambda problem, found, _: (found[0], np.ones_like(found[1])))},
        "one row": {"costs": altered("costs", lambda problem, found, _: (found[0][:1], found[1][:1]))},
        "an outcome that costs more": judged(cost=lambda outcome: 2 * outcome.cost),
    },
    "outcomes are complete": {
        "a price in an invalid outcome": judged(cost=lambda outcome: outcome.cost if outcome.valid else 1.0),
        "no reasons": judged(reasons=lambda outcome: ()),
        "another unit": judged(unit=lambda outcome: "ms"),
        "a NumPy float": judged(cost=lambda outcome: np.float64(outcome.cost)),
    },
    "invalid decisions are priced above valid ones": {
        "no price": priced(lambda costs, valid: np.where(valid, costs, np.inf)),
        "not a number": priced(lambda costs, valid: np.where(valid, costs, np.nan)),
        "a low price": priced(lambda costs, valid: np.where(valid, costs, 0.0)),
        "one price": priced(lambda costs, valid: np.where(valid, costs, 1e9)),
        "the less the dearer": priced(lambda costs, valid: np.where(valid, costs, 1e9 - costs)),
    },
    "a batch costs what its decisions cost": {
        "a row that depends on the rows before": priced(lambda costs, valid: np.where(valid, costs, np.cumsum(costs))),
        "a batch that is changed": {"costs": costs_in_place},
    },
    "evaluate is a function": {
        "a decision that is changed": {"evaluate": evaluate_in_place},
        "a metric that counts": judged(metrics=lambda outcome: {**outcome.metrics, "calls": count()}),
    },
    "metrics are json": {
        "an array": judged(metrics=lambda outcome: {"peak": np.zeros(2)}),
        "infinity": judged(metrics=lambda outcome: {"throughput": float("inf")}),
        "a number as a key": judged(metrics=lambda outcome: {0: 1.0}),
    },
    "decisions are stored as json": {
        "entries that are left out": {
            "encode": lambda self, decision: decision.tolist(),
            "check": lambda self, decision: (
                np.zeros_like(decision) if isinstance(decision, list) else PlacementProblem.check(self, decision)
            ),
        },
    },
    "config rebuilds the problem": {
        "an argument that is left out": {"config": property(lambda self: {}, lambda self, _: None)},
        "a value that is not JSON": {
            "config": property(lambda self: {"grouping": np.str_("op"), "n": np.int64(1)}, lambda self, _: None)
        },
    },
    "solutions validate": {
        "a fingerprint that counts": {"fingerprints": lambda self: {"graph": str(count())}},
    },
    "wrong decisions are refused": {
        "a check that rounds": lenient(lambda problem, given: PlacementProblem.check(problem, given.astype(np.int32))),
        "a check that raises something else": complaining(ValueError("no")),
        "a check that raises nothing": lenient(lambda problem, given: given),
    },
}


@pytest.mark.parametrize(
    ("rule", "members"),
    [
        pytest.param(rule, members, id=f"{rule}: {name}")
        for rule, mutants in MUTANTS.items()
        for name, members in mutants.items()
    ],
)
def test_check_problem__catches_a_mutant_by_name(rule, members):
    problem, worse = tight()
    mutant = type("Mutant", (PlacementProblem,), members)(GRAPH, problem.cluster, grouping="op")
    with pytest.raises(ContractError, match=f"^{rule}: .+; .+$") as caught:
        check_problem(mutant, invalid=worse, graph=GRAPH, cluster=problem.cluster)
    assert "\n" not in str(caught.value)


def test_check_problem__catches_a_dropped_crossover_where_the_common_one_breaks_rules(monkeypatch):
    """Entry by entry from two valid partitions is no valid partition."""
    monkeypatch.delattr(ChipletProblem, "crossover")
    with pytest.raises(
        ContractError, match=r"^moves go somewhere: all samples and neighbours are valid, but only 1 of 8"
    ):
        check_problem(gg.make_problem("ChipletPartition-v0", graph="bert_tiny_b16", cluster="mcm4"))


def spend_all(evaluator, rng):
    evaluator.problem.costs(np.stack([evaluator.problem.sample(rng) for _ in range(99)]))
    evaluator.cost(evaluator.problem.sample(rng))


def draw_elsewhere(evaluator, rng):
    evaluator.cost(evaluator.problem.sample(np.random.default_rng(count())))


def fail(evaluator, rng):
    evaluator.cost(None)


@pytest.mark.parametrize("run", [spend_all, draw_elsewhere, fail])
def test_check_problem__catches_a_method(run):
    problem = PlacementProblem(**OBJECTS)
    with pytest.raises(ContractError, match=r"^methods keep to budget and seed: "):
        check_problem(problem, [Method("mutant", run, "", "")], **OBJECTS)
