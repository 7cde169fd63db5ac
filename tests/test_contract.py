"""The contract, on every registered problem and environment; and each of its rules catches who breaks it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import warnings

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import graphopt_gym as gg
from graphopt_gym.envs.chiplet.episodes import StepEpisodes as ChipletStepEpisodes
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.core import actions as core_actions
from graphopt_gym.envs.core import env as core_env
from graphopt_gym.envs.core import rendering as core_rendering
from graphopt_gym.envs.core import vector as core_vector
from graphopt_gym.envs.core.env import EpisodeEnv
from graphopt_gym.envs.core.episodes import Episodes
from graphopt_gym.envs.core.roster import Roster
from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.envs.placement.env import PlacementEnv
from graphopt_gym.envs.placement.episodes import PlacementEpisodes, StepEpisodes
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.tensor_program import program_text
from graphopt_gym.hardware.package import Chip, Package
from graphopt_gym.problem import Outcome, Problem, check_integers
from graphopt_gym.registration import env_ids, tasks
from graphopt_gym.search.evaluator import Method
from graphopt_gym.search.solve import method_table
from graphopt_gym.task import Benchmark, Words
from graphopt_gym.testing import ContractError, check_problem, check_task
from tests.envs.placement.cases import cluster
from tests.envs.rewrite.programs import attention

# a problem of every kind that the arguments of a task's problem make
PROBLEMS = [
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2"}),
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "grouping": "op"}),
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "grouping": "phase", "order": "stream"}),
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "order": "priority"}),
    ("PlacementOneShot-v0", {"graph": "rnnlm_2layer", "cluster": "v100x4"}),
    ("Fusion-v0", {"graph": "transformer_xl_2layer", "cluster": "v100x2"}),
    ("FusionOneShot-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "placement": "metis", "order": "rank"}),
    ("Scheduling-v0", {"graph": "transformer_xl_2layer", "cluster": "v100x2"}),
    ("SchedulingOneShot-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2", "objective": "memory", "ties": "rank"}),
    ("Scheduling-v0", {"graph": "rnnlm_2layer", "objective": "memory", "within": 1.0, "ties": "fifo", "levels": 9}),
    ("Scheduling-v0", {"graph": "rnnlm_2layer", "memory_cap_bytes": 2**32}),
    ("ChipletPartition-v0", {"graph": "bert_tiny_b16", "cluster": "mcm4"}),
    ("ChipletPartition-v0", {"graph": "bert_tiny_b16", "cluster": "mcm4", "memory_rule": True}),
    ("GraphOptimization-v0", {"graph": "transformer_xl_2layer", "cluster": "v100x2"}),
    ("GraphOptimizationOneShot-v0", {"graph": "transformer_xl_2layer", "tasks": "placement+schedule", "levels": 5}),
    ("RewriteOrder-v0", {"graph": "squeezenet", "cluster": "t4"}),
    ("RewriteOrder-v0", {"graph": "small_chain", "cluster": "t4", "cost": "simulated", "rules": ["fused activation"]}),
    ("GangScheduling-v0", {"graph": "toy_pipeline", "cluster": "toy_islands"}),
    ("GangScheduling-v0", {"graph": "toy_tenants", "cluster": "toy_islands", "objective": "fairness"}),
    ("GangScheduling-v0", {"graph": "toy_pipeline", "cluster": "toy_islands", "safe": False}),
    ("GangScheduling-v0", {"graph": "toy_crowd", "cluster": "toy_islands", "back_pressure": False}),
    ("GangSchedulingOneShot-v0", {"graph": "toy_crowd", "cluster": "toy_islands", "controllers": "none"}),
    ("ArchitectureSearch-v0", {"graph": "cnn_8"}),
    ("ArchitectureSearch-v0", {"graph": "cnn_8", "cluster": "v100_sxm2_32gb", "objective": "time", "proxy": "naswot"}),
    ("ArchitectureSearch-v0", {"graph": "cnn_8", "track": "trained", "recipe": {"epochs": 1}, "tolerance": 0.05}),
    ("ArchitectureSearch-v0", {"graph": "nasbench201", "track": "table", "objective": "flops"}),
    ("ArchitectureSearch-v0", {"graph": "nasbench201", "track": "table", "objective": "error"}),
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
    "Fusion-v0": PROBLEMS[5][1],
    "Scheduling-v0": PROBLEMS[7][1],
    "ChipletPartition-v0": PROBLEMS[11][1],
    "GraphOptimization-v0": PROBLEMS[13][1],
    "RewriteOrder-v0": {"graph": "small_chain"},
    "GangScheduling-v0": {"graph": "toy_pipeline", "cluster": "toy_islands"},
    "ArchitectureSearch-v0": {"graph": "cnn_8"},
}


@pytest.mark.parametrize("env_id", QUICK)
def test_methods__keep_to_budget_and_seed(env_id):
    problem = gg.make_problem(env_id, **QUICK[env_id])
    names = [name for name in gg.methods(problem) if not method_table(env_id)[name].small]
    check_problem(problem, names, samples=2, budget=6)


def test_problem__with_the_objective_throughput_keeps_the_contract():
    problem = gg.make_problem("Placement-v0", **PROBLEMS[0][1], objective="throughput", overlap=False)
    names = [name for name in gg.methods(problem) if name != "cp_sat"]  # takes as long as it is told
    check_problem(problem, names, samples=2, budget=6)


class Steps(Problem):
    """Of no task, without graph and cluster: two numbers whose sum should be small, and even."""

    unit = "steps"

    def __init__(self, most=9):
        self.most, self.config, self.decision_shape = most, {"most": most}, (2,)

    def check(self, decision):
        return check_integers(decision, self.decision_shape, self.most, "step")

    def costs(self, decisions):
        totals = decisions.sum(axis=1).astype(np.float64)
        return np.where(totals % 2, 2 * self.most + totals, totals), totals % 2 == 0

    def evaluate(self, decision):
        (cost,), (valid,) = self.costs(self.check(decision)[None])
        reasons = () if valid else ("the sum is odd",)
        return Outcome(bool(valid), float(cost) if valid else float("inf"), self.unit, reasons)

    def sample(self, rng):
        return rng.integers(0, self.most, 2, dtype=np.int32)

    def neighbour(self, decision, rng):
        return self.sample(rng)


def test_check_problem__of_no_task():
    check_problem(Steps(7), ["random", "annealing", "evolution"], invalid=[[0, 1], [2, 3]])


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


def test_check_problem__of_partitions_that_break_rules_and_memory():
    problem = gg.make_problem("ChipletPartition-v0", **PACKAGED)
    kept = greedy_decision(problem)
    one_back = kept.copy()
    one_back[-1] = 0
    check_problem(problem, invalid=[one_back, kept.max() - kept])
    package = Package("tight", (Chip("chip", 1e12, 1e11, 10**7),) * 4, "ring", 1e9)
    problem = ChipletProblem(GRAPH, package)
    ops = np.arange(problem.num_ops)
    check_problem(
        problem, ["random"], invalid=[ops * chips // len(ops) for chips in (2, 1)], graph=GRAPH, cluster=package
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
        "no unit": {"unit": None},
        "a shape that is a list": {"decision_shape": property(lambda self: [3], lambda self, _: None)},
        "no fingerprints": {"fingerprints": lambda self: None},
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


# ----------------------------------------------------------------------------------------------------- environments

SMALL, LARGER = GRAPH, layered_dag(60, seed=2, colocated=0.6)
OF_SEVERAL = {"graph": [SMALL, LARGER], "cluster": [cluster(2), cluster(3)]}
TIGHT = {"graph": [SMALL, LARGER], "cluster": [cluster(2, 8 * 10**7), cluster(3, 8 * 10**7)]}
PACKAGED = {"graph": "bert_tiny_b16", "cluster": "mcm4"}
ROOMY, NARROW = (
    Package(f"ring{chips}", (Chip("chip", 1e12, 1e11, sram_bytes),) * chips, "ring", 1e9)
    for chips, sram_bytes in ((4, 10**12), (5, 3 * 10**7))
)
# an environment of every mode, start, reward and observation, on several sizes and with invalid ends among them
ENVIRONMENTS = [
    ("Placement-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2"}),
    ("Placement-v0", OF_SEVERAL),
    ("Placement-v0", {**TIGHT, "start": "random", "observation": "graph", "max_groups": 70}),
    ("Placement-v0", {**TIGHT, "start": "expert", "reward": "terminal", "grouping": "op", "max_devices": 5}),
    ("Placement-v0", {"graph": SMALL, "cluster": cluster(2), "start": [0, 1] * 10, "reward": "terminal"}),
    ("PlacementOneShot-v0", {"graph": "rnnlm_2layer", "cluster": "v100x2"}),
    ("PlacementOneShot-v0", {**TIGHT, "max_groups": 70, "max_devices": 5}),
    ("Fusion-v0", {"graph": ["transformer_xl_2layer", SMALL], "cluster": cluster(2), "placement": "single"}),
    ("Fusion-v0", {"graph": "transformer_xl_2layer", "reward": "terminal", "start": "greedy", "levels": 3}),
    ("FusionOneShot-v0", {"graph": "transformer_xl_2layer", "max_ops": 120, "max_edges": 400}),
    ("GraphOptimization-v0", {"graph": ["transformer_xl_2layer", SMALL], "cluster": cluster(2), "placement": "single"}),
    ("GraphOptimization-v0", {"graph": "transformer_xl_2layer", "reward": "terminal", "start": "plain", "levels": 3}),
    ("GraphOptimization-v0", {"graph": SMALL, "cluster": cluster(3), "tasks": "fusion+schedule", "max_devices": 5}),
    ("GraphOptimizationOneShot-v0", {"graph": "transformer_xl_2layer", "max_ops": 260, "max_groups": 60}),
    ("Scheduling-v0", {"graph": ["transformer_xl_2layer", SMALL], "cluster": cluster(2), "placement": "single"}),
    ("Scheduling-v0", {"graph": SMALL, "cluster": cluster(2), "objective": "memory", "within": 1.0, "levels": 3}),
    ("Scheduling-v0", {**TIGHT, "placement": [0, 1] * 20, "reward": "terminal", "start": "liu"} | {"graph": SMALL}),
    ("SchedulingOneShot-v0", {"graph": SMALL, "cluster": cluster(2), "max_ops": 120, "max_edges": 400}),
    ("ChipletPartition-v0", PACKAGED),
    *(
        (
            "ChipletPartition-v0",
            {"graph": [SMALL, LARGER], "cluster": [ROOMY, NARROW], "mode": mode, "memory_rule": rule},
        )
        for mode in ("fix", "sample", "step")
        for rule in (False, True)
    ),
    ("ChipletPartition-v0", {"graph": SMALL, "cluster": NARROW, "max_ops": 60, "max_chips": 6}),
    ("RewriteOrder-v0", {"graph": "squeezenet", "max_steps": 6}),
    ("RewriteOrder-v0", {"graph": ["small_fire", "small_chain"], "cluster": ["t4", "v100_sxm2_32gb"], "max_steps": 7}),
    ("RewriteOrder-v0", {"graph": attention(), "cost": "simulated", "max_matches": 4, "max_nodes": 40, "max_steps": 5}),
    ("GangScheduling-v0", {"graph": ["toy_pipeline", "toy_tenants"], "cluster": "toy_islands", "max_gangs": 40}),
    ("GangScheduling-v0", {"graph": "toy_crowd", "cluster": "toy_islands", "reward": "terminal", "wait": False}),
    ("GangScheduling-v0", {"graph": "toy_tenants", "cluster": "toy_islands", "objective": "fairness", "window": 2}),
    ("GangSchedulingOneShot-v0", {"graph": ["toy_pipeline", "toy_tenants"], "cluster": "toy_islands", "levels": 5}),
    ("GangSchedulingOneShot-v0", {"graph": "toy_crowd", "cluster": "toy_islands", "safe": False, "max_gangs": 30}),
    ("ArchitectureSearch-v0", {"graph": ["cnn_8", "resnet_8"], "cluster": ["t4", "v100_sxm2_32gb"], "max_steps": 5}),
    ("ArchitectureSearch-v0", {"graph": "nasbench201", "track": "table", "objective": "flops", "start": "random"}),
    ("ArchitectureSearch-v0", {"graph": "vit_8", "reward": "hypervolume", "max_blocks": 9, "max_steps": 4}),
]


@pytest.mark.parametrize(("env_id", "arguments"), ENVIRONMENTS)
def test_environment__keeps_the_contract(env_id, arguments):
    check_task(env_id, arguments)


def test_environments__are_all_checked():
    assert {env_id for env_id, _ in ENVIRONMENTS} == set(env_ids())


TASKS = {
    "placement": {"graph": SMALL, "cluster": cluster(2)},
    "fusion": {"graph": "transformer_xl_2layer"},
    "joint": {"graph": "transformer_xl_2layer"},
    "scheduling": {"graph": "transformer_xl_2layer"},
    "chiplet": PACKAGED,
    "rewrite": {"graph": "small_chain", "max_steps": 3},
    "gang": {"graph": "toy_tenants", "cluster": "toy_islands"},
    "architecture": {"graph": "nasbench201", "track": "table", "max_steps": 4},
}


@pytest.mark.parametrize("name", sorted(tasks()))
def test_task__keeps_the_contract(name):
    check_task(tasks()[name], TASKS[name])


def changed(owner, name, change):
    """(owner, name, the method whose result goes through ``change(self, result, *arguments)``)."""
    plain = getattr(owner, name)

    def method(self, *arguments, **named):
        return change(self, plain(self, *arguments, **named), *arguments)

    return owner, name, method


def before(owner, name, change):
    """(owner, name, the method that begins with ``change(self, *arguments)``)."""
    plain = getattr(owner, name)

    def method(self, *arguments, **named):
        change(self, *arguments, **named)
        return plain(self, *arguments, **named)

    return owner, name, method


def told(owner=EpisodeEnv, first=None, last=None, every=None, observed=None, earned=None):
    """step() and reset() whose observation, reward or info go through a function."""

    def through(function, value):
        return value if function is None else function(value)

    def of_reset(self, found, *_):
        return through(observed, found[0]), through(every, through(first, found[1]))

    def of_step(self, found, *_):
        observation, reward, terminated, truncated, info = found
        info = through(every, through(last, info) if terminated else info)
        return through(observed, observation), through(earned, reward), terminated, truncated, info

    return [changed(owner, "reset", of_reset), changed(owner, "step", of_step)]


def smaller_space(self, *_, **__):
    """A reset that changes the space."""
    self.observation_space = spaces.Dict({"group": self.observation_space["group"]})


def stays(function):
    return property(lambda self: function, lambda self, _: None)


def unchecked(make):
    """Both forms' checks of actions replaced: ``make(plain check)(space, action)``."""
    return [
        (core_env, "checked_action", make(core_actions.checked_action)),
        (core_vector, "checked_actions", make(core_actions.checked_actions)),
    ]


def rounding(plain):
    """Makes a number of everything."""

    def check(space, action, *count):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            action = np.nan_to_num(np.asarray(action, np.float64)).astype(np.int64)
        return plain(space, action, *count)

    return check


def drawing_first(self, action):
    """A generator that moves before the action is looked at."""
    if self._running:
        self.np_random.random()


def first_rows_only(space, actions, count):
    """The last action is not looked at."""
    checked = core_actions.checked_actions(space, list(actions)[:-1], count - 1)
    return np.concatenate([checked, checked[:1]])


def moving_on(self, actions, plain=EpisodeVectorEnv.step):
    try:
        return plain(self, actions)
    except InputError:
        self.episodes.state.cost[:] += 1
        raise


def no_zeros(self, action):
    if isinstance(action, np.ndarray) and action.dtype.kind == "f" and not action.any():
        raise InputError("a row of zeros")


def no_highest(self, actions):
    if self._ended is not None and np.max(actions) == self.single_action_space.n - 1:
        raise ValueError(actions)


def silent(space, action):
    try:
        return core_actions.checked_action(space, action)
    except InputError:
        raise InputError from None


def the_very_constants(self, found, rows, out):
    if len(rows) == 1:
        out.update({name: array[None] for name, array in self._static[int(self.instance_of[rows[0]])].items()})


class Buffer:
    """An array that is filled again and again."""

    kept: dict = {}  # noqa: RUF012

    def __call__(self, self_, found, *_):
        for name, array in found.items():
            kept = self.kept.setdefault((id(self_), name, array.shape), array)
            kept[:] = array
            found[name] = kept
        return found


def forgetful(self):
    """What is pickled: without the generators."""
    state = dict(self.__dict__)
    state["generators"] = {row: np.random.default_rng(count()) for row in self.generators}
    return state


KEPT = {}


def kept_here(self):
    """What is pickled: the name of what this process keeps."""
    KEPT[id(self)] = copy.deepcopy(dict(self.__dict__))
    return {"kept": id(self)}


def swapped(self, found, *_):
    observation, rewards, *rest = found
    return observation, rewards[::-1], *rest


def wide_by_episode(episodes, row, render_mode):
    frame = core_rendering.render_frame(episodes, row, render_mode)
    return frame[:, : 1000 + int(episodes.instance_of[row])] if isinstance(frame, np.ndarray) else frame


def late_final(self, found, *_):
    found[-1].pop("final_obs", None)
    return found


PLACEMENT, ONE_SHOT = ("Placement-v0", OF_SEVERAL), ("PlacementOneShot-v0", OF_SEVERAL)
CHIPLET = ("ChipletPartition-v0", {"graph": SMALL, "cluster": ROOMY})
STEPWISE = ("ChipletPartition-v0", {"graph": SMALL, "cluster": ROOMY, "mode": "step"})
REWRITE = ("RewriteOrder-v0", {"graph": "small_fire", "max_steps": 4})


def without(*names):
    return lambda info: {name: value for name, value in info.items() if name not in names}


ENV_MUTANTS = {
    "spaces are valid": {
        "a space that changes in reset": (PLACEMENT, [before(EpisodeEnv, "reset", smaller_space)]),
        "a vector form without a batch": (
            PLACEMENT,
            [(EpisodeVectorEnv, "observation_space", stays(spaces.Discrete(2)))],
        ),
    },
    "nothing works before a reset": {
        "an empty AssertionError": (PLACEMENT, [(EpisodeEnv, "_begun", lambda self: [][0])]),
        "an outcome of nothing": (PLACEMENT, [(EpisodeEnv, "outcome", lambda self: None)]),
        "masks of nothing": (PLACEMENT, [(EpisodeVectorEnv, "action_masks", lambda self: np.ones((3, 3), bool))]),
    },
    "only a reset follows an end": {
        "an episode that goes on": (
            ONE_SHOT,
            [(EpisodeEnv, "_running", property(lambda self: self._started, lambda self, _: None))],
        ),
    },
    "calls return what the spaces say": {
        "float64": (PLACEMENT, told(observed=lambda seen: {**seen, "group": seen["group"].astype(np.float64)})),
        "out of bounds": (PLACEMENT, told(observed=lambda seen: {**seen, "group": seen["group"] + 1})),
        "a part that is missing": (PLACEMENT, told(observed=lambda seen: {"group": seen["group"]})),
        "a part too many": (PLACEMENT, told(observed=lambda seen: {**seen, "more": seen["group"]})),
        "a shape": (PLACEMENT, told(observed=lambda seen: {**seen, "group": seen["group"][None]})),
        "a NumPy reward": (PLACEMENT, told(earned=np.float64)),
        "a reward that is no number": (PLACEMENT, told(earned=lambda reward: float("nan"))),
        "no info": (PLACEMENT, told(first=lambda info: None)),
    },
    "seeds reproduce": {
        "a seed that is ignored": (
            (PLACEMENT[0], {**OF_SEVERAL, "start": "random"}),
            [
                (
                    EpisodeEnv,
                    "reset",
                    lambda self, seed=None, options=None, plain=EpisodeEnv.reset: plain(self, options=options),
                )
            ],
        ),
        "a counter": (PLACEMENT, told(earned=lambda reward: reward + count())),
    },
    "every action steps": {
        "zeros": ((CHIPLET[0], {**CHIPLET[1], "mode": "sample"}), [before(EpisodeEnv, "step", no_zeros)]),
        "the highest": (PLACEMENT, [before(EpisodeVectorEnv, "step", no_highest)]),
    },
    "wrong actions are refused": {
        "a NaN that is taken": (PLACEMENT, unchecked(rounding)[:1]),
        "a NaN that is taken for chances": (
            (CHIPLET[0], {**CHIPLET[1], "mode": "sample"}),
            [
                (
                    core_env,
                    "checked_action",
                    lambda space, action: core_actions.checked_action(
                        space,
                        np.nan_to_num(action)
                        if isinstance(action, np.ndarray) and action.dtype.kind == "f"
                        else action,
                    ),
                )
            ],
        ),
        "another error": (
            ONE_SHOT,
            [(core_env, "checked_action", lambda space, action: np.asarray(action, np.int64)[None])],
        ),
        "an empty line": (PLACEMENT, [(core_env, "checked_action", silent)]),
        "a generator that moves": (CHIPLET, [before(EpisodeEnv, "step", drawing_first)]),
    },
    "wrong batches are refused": {
        "a NaN that is taken": (PLACEMENT, unchecked(rounding)[1:]),
        "a last action that is not looked at": (ONE_SHOT, [(core_vector, "checked_actions", first_rows_only)]),
        "a state that moves": (PLACEMENT, [(EpisodeVectorEnv, "step", moving_on)]),
    },
    "masks tell the truth": {
        "all allowed": (
            STEPWISE,
            [changed(ChipletStepEpisodes, "masks", lambda self, found, rows: np.ones_like(found))],
        ),
        "other than observed": (
            PLACEMENT,
            [
                changed(
                    PlacementEpisodes,
                    "_device_mask",
                    lambda self, found, rows: np.arange(found.shape[1]) < 2 + found * 0,
                )
            ],
        ),
        "int8": (PLACEMENT, [changed(EpisodeEnv, "action_masks", lambda self, found: found.astype(np.int8))]),
        "half": (ONE_SHOT, [changed(EpisodeEnv, "action_masks", lambda self, found: found[: len(found) // 2])]),
        "never illegal": (PLACEMENT, told(every=lambda info: {**info, "illegal_action": False})),
        "always illegal": (PLACEMENT, told(every=lambda info: {**info, "illegal_action": True})),
    },
    "infos tell the story": {
        "no cluster": (PLACEMENT, told(first=without("cluster"))),
        "no reasons": (PLACEMENT, told(last=without("reasons"))),
        "no decision": (PLACEMENT, told(last=without("decision"))),
        "no name": (PLACEMENT, told(first=lambda info: {**info, "graph": 3})),
        "now this, now that": (PLACEMENT, told(last=lambda info: {**info, f"at_{info['decision'].sum()}": 1})),
        "reasons of a valid end": (PLACEMENT, told(last=lambda info: {**info, "reasons": ("slow",)})),
        "a NumPy cost": (PLACEMENT, told(last=lambda info: {**info, "cost": np.float64(info["cost"])})),
    },
    "the last info is what the problem says": {
        "costs halved": (PLACEMENT, told(last=lambda info: {**info, "cost": info["cost"] / 2})),
        "another decision": (PLACEMENT, told(last=lambda info: {**info, "decision": 1 - info["decision"]})),
        "a decision padded with 0": (
            PLACEMENT,
            told(last=lambda info: {**info, "decision": np.maximum(info["decision"], 0)}),
        ),
        "a program that is not the last": (
            REWRITE,
            told(last=lambda info: {**info, "decision": program_text(gg.load_program("small_fire"))}),
        ),
    },
    "what was returned belongs to the caller": {
        "an observation that is filled again": (PLACEMENT, [changed(StepEpisodes, "observe", Buffer())]),
        "masks that are the state": (
            STEPWISE,
            [(ChipletStepEpisodes, "masks", lambda self, rows: self.allowed[: len(rows)])],
        ),
        "a decision that is the state": (
            PLACEMENT,
            [(PlacementEpisodes, "decision", lambda self, row: self.state.decision[row, : self.groups_of[row]])],
        ),
        "constants that are the instance's": (ONE_SHOT, [changed(Episodes, "_fill_static", the_very_constants)]),
        "a batch that is filled again": (
            PLACEMENT,
            [
                changed(
                    EpisodeVectorEnv,
                    "step",
                    lambda self, found, *_: (self.__dict__.setdefault("kept", found)[0], *found[1:]),
                )
            ],
        ),
    },
    "light infos hold numbers only": {
        "a name": (PLACEMENT, [(Episodes, "told", lambda self, info: info)]),
        "no cost": (
            PLACEMENT,
            [changed(Episodes, "told", lambda self, found, _: without("cost")(found) if self.light else found)],
        ),
        "a decision that is cut": (
            PLACEMENT,
            [
                changed(
                    Episodes,
                    "end_info",
                    lambda self, found, row: {**found, "decision": found["decision"][found["decision"] >= 0]},
                )
            ],
        ),
    },
    "resets are checked": {
        "an option that is ignored": (PLACEMENT, [(Roster, "check", lambda self, options: None)]),
        "a name that is ignored": (
            PLACEMENT,
            [(Roster, "draw", lambda self, generator, *_, plain=Roster.draw: plain(self, generator, None))],
        ),
        "a generator that moves": (
            (CHIPLET[0], {**CHIPLET[1], "graph": [SMALL, LARGER]}),
            [before(EpisodeEnv, "reset", lambda self, seed=None, options=None: options and self.np_random.random())],
        ),
    },
    "the vector form equals the sync one": {
        "rows swapped": (PLACEMENT, [changed(EpisodeVectorEnv, "step", swapped)]),
        "one seed for all": (
            (PLACEMENT[0], {**OF_SEVERAL, "start": "random"}),
            [
                (
                    EpisodeVectorEnv,
                    "_generator",
                    lambda self, row, seed=None, plain=EpisodeVectorEnv._generator: plain(self, row, seed and 1),
                )
            ],
        ),
        "no last observation": (PLACEMENT, [changed(EpisodeVectorEnv, "step", late_final)]),
        "a mode that is another": (
            ONE_SHOT,
            [
                (
                    EpisodeVectorEnv,
                    "autoreset_mode",
                    property(lambda self: AutoresetMode.NEXT_STEP, lambda self, _: None),
                )
            ],
        ),
    },
    "copies have the same future": {
        "a pickle that forgets the generators": (CHIPLET, [(Episodes, "__getstate__", forgetful)]),
        "a copy that is the same": (CHIPLET, [(Episodes, "__deepcopy__", lambda self, memo: self)]),
        "what cannot be pickled": (
            PLACEMENT,
            [before(EpisodeEnv, "__init__", lambda self, *_, **__: vars(self).update(made=lambda: 0))],
        ),
        "what this process alone has": (
            PLACEMENT,
            [
                (Episodes, "__getstate__", kept_here),
                (Episodes, "__setstate__", lambda self, state: vars(self).update(KEPT[state["kept"]])),
            ],
        ),
    },
    "every render mode works": {
        "text that is printed": (PLACEMENT, [before(EpisodeEnv, "render", lambda self: print("drawing"))]),
        "a human who gets text": (PLACEMENT, [changed(EpisodeEnv, "render", lambda self, found: found or "drawn")]),
        "a mode that is not known": (PLACEMENT, [(core_env, "check_render_mode", lambda mode: mode)]),
    },
    "frames have one size": {
        "frames as large as the graph": (PLACEMENT, [(core_env, "render_frame", wide_by_episode)]),
        "floats": (
            ONE_SHOT,
            [
                changed(
                    EpisodeEnv,
                    "render",
                    lambda self, found: found if isinstance(found, str) or found is None else found / 255,
                )
            ],
        ),
    },
    "unknown arguments are refused": {
        "Python's own error": (PLACEMENT, [(EpisodeEnv, "__new__", lambda cls, *_, **__: object.__new__(cls))]),
        "nothing": (
            PLACEMENT,
            [
                (EpisodeEnv, "__new__", lambda cls, *_, **__: object.__new__(cls)),
                (
                    PlacementEnv,
                    "__init__",
                    lambda self, graph=None, cluster=None, plain=PlacementEnv.__init__, graphh=0, **more: plain(
                        self, graph, cluster, **more
                    ),
                ),
            ],
        ),
    },
    "checkers of other libraries pass": {
        "a warning": (PLACEMENT, [before(EpisodeEnv, "reset", lambda self, **_: warnings.warn("slow", stacklevel=2))]),
    },
}


@pytest.mark.parametrize(
    ("rule", "env_id", "arguments", "changes"),
    [
        pytest.param(rule, *of, changes, id=f"{rule}: {name}")
        for rule, mutants in ENV_MUTANTS.items()
        for name, (of, changes) in mutants.items()
    ],
)
def test_check_task__catches_a_mutant_by_name(rule, env_id, arguments, changes, monkeypatch):
    for owner, name, value in changes:
        monkeypatch.setattr(owner, name, value, raising=False)
    with pytest.raises(ContractError, match=f"^{env_id}: {rule}: .+; .+$") as caught:
        check_task(env_id, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"summary": ""}, "summary is ''; set it to one line"),
        ({"words": Words("step\ntime")}, "cost is 'step\\ntime'; set it to one line"),
        ({"problem": "builtins:dict"}, "problem is <class 'dict'>; name a subclass of Problem"),
        ({"methods": {"best": 3}, "starts": (), "references": ()}, "method 'best' is a int; give a Method"),
        ({"starts": ("no_such",)}, "starts names 'no_such'; name some of single, "),
        ({"references": ("no_such",)}, "references names 'no_such'; name some of single, "),
        ({"catalogs": {"chips": "graphs"}}, "catalogs names 'chips'; name arguments of the problem: graph, "),
        ({"catalogs": {"graph": "chips"}}, "catalogs has 'chips'; name one of graphs, "),
        ({"benchmarks": {"env": Benchmark(3, "")}}, "3 is no function; name one"),
        ({"commands": {"export": "graphopt_gym.errors:no_such"}}, "AttributeError: "),
    ],
)
def test_check_task__catches_a_record_by_name(fields, message):
    with pytest.raises(ContractError, match=f"^record is complete: {re.escape(message)}"):
        check_task(dataclasses.replace(tasks()["placement"], **fields))
