"""The chiplet problem: ops, costs, reasons."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from graphopt_gym.envs.chiplet.checker import RULES, violations
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.hardware.package import Chip, Package, load_package

PACKAGES = ("mcm4", "mcm9", "mcm16_mixed", "mesh6x6")


def plain_measure(problem, chip_of):
    """Seconds a chip and bytes a link, from the words of the class alone, and the checker's memory."""
    ops, package = problem.ops, problem.package
    seconds, carried = defaultdict(float), defaultdict(int)
    for op, chip in enumerate(chip_of):
        seconds[chip] += problem.op_seconds[chip, op]
    for tensor, producer in enumerate(ops.tensor_op.tolist()):
        if producer < 0:
            continue
        readers = ops.reader[ops.reader_ptr[tensor] : ops.reader_ptr[tensor + 1]].tolist()
        passed = set()
        for target in {chip_of[reader] for reader in readers}:
            passed |= set(package.route(chip_of[producer], target))
        for link in passed:
            carried[link] += int(ops.tensor_bytes[tensor])
    return seconds, carried


def decisions(problem, rng, count):
    """Valid ones, and ones that break rules."""
    made = [problem.sample(rng) for _ in range(count)]
    for decision in list(made):
        changed = decision.copy()
        changed[rng.integers(problem.num_ops, size=2)] = rng.integers(problem.num_chips)
        made.append(changed)
    made.append(rng.integers(0, problem.num_chips, problem.num_ops).astype(np.int32))
    return np.stack(made)


def test_costs__agree_with_evaluate_and_with_the_plain_reading():
    rng = np.random.default_rng(0)
    seen = set()
    for seed, name in enumerate(PACKAGES * 3):
        package = load_package(name)
        if seed % 3:  # these graphs' tensors are large
            package = replace(package, chips=tuple(replace(one, sram_bytes=2**40) for one in package.chips))
        problem = ChipletProblem(layered_dag(int(rng.integers(20, 60)), seed=seed), package)
        batch = decisions(problem, rng, 4)
        costs, valid = problem.costs(batch)
        assert np.isfinite(costs).all()
        for decision, cost, fine in zip(batch, costs.tolist(), valid.tolist()):
            outcome = problem.evaluate(decision)
            assert outcome.valid == fine == (not outcome.reasons)
            seen |= {rule for rule in RULES for reason in outcome.reasons if reason.startswith(rule)}
            chip_of = decision.tolist()
            seconds, carried = plain_measure(problem, chip_of)
            assert outcome.metrics["compute_s"] == [pytest.approx(seconds[c]) for c in range(problem.num_chips)]
            speed = problem.package.link_bytes_per_s
            links = range(problem.package.num_links)
            assert outcome.metrics["link_s"] == [pytest.approx(carried[link] / speed) for link in links]
            period = max(max(outcome.metrics["compute_s"]), max(outcome.metrics["link_s"]))
            if fine:
                assert outcome.cost == cost == period
                assert outcome.metrics["throughput_per_s"] == 1 / period
                seen.add("valid")
            else:
                assert outcome.cost == float("inf")
                assert cost > problem.serial_s
    assert seen == {*RULES, "valid"}


def test_memory__of_the_kernel_is_the_checkers():
    rng = np.random.default_rng(1)
    for seed in range(12):
        problem = ChipletProblem(layered_dag(40, seed=seed), "mcm9")
        decision = problem.sample(rng)
        held = problem.measure(decision)[2]
        edges = [tuple(edge) for edge in problem.ops.edges.tolist()]
        used = set(decision.tolist())
        for spare in (0, -1):
            facts = problem.holdings.__class__(
                problem.holdings.tensors, problem.holdings.params, (held + spare).tolist()
            )
            over = {one.chips[0] for one in violations(decision.tolist(), edges, facts) if one.rule == RULES[3]}
            assert over == (set() if spare == 0 else used)


def test_cost__of_a_chain_spread_evenly_is_one_ops_time():
    graph = chain(4, flops=4 * 10**9, output_bytes=10**6)
    package = Package("toy", (Chip("toy", 1e12, 1e12, 2**30),) * 4, "ring", 1e9)
    problem = ChipletProblem(graph, package)
    assert problem.num_ops == 4
    outcome = problem.evaluate([0, 1, 2, 3])
    assert outcome.valid
    assert outcome.cost == pytest.approx(4e-3)
    assert outcome.metrics["bottleneck"] == "chip 0"
    assert problem.evaluate([0, 0, 1, 1]).cost == pytest.approx(8e-3)
    slow = ChipletProblem(graph, Package("slow", package.chips, "ring", 1e8)).evaluate([0, 1, 2, 3])
    assert slow.cost == pytest.approx(1e-2)
    assert slow.metrics["bottleneck"] == "link 0 -> 1"


def test_ops__are_the_forward_part_without_sources_and_preprocessing():
    problem = ChipletProblem("bert_base", "mcm36")
    graph, ops = problem.graph, problem.ops
    first = ops.tasks.first_op[ops.task]
    assert set(graph.phase[first].tolist()) == {0}
    assert not ops.tasks.is_source[ops.task].any()
    labels = [ops.label(op) for op in range(ops.num_ops)]
    assert not any(label.startswith("rsub") for label in labels)  # the mask is made of the input alone
    assert any("layers.11" in label for label in labels)
    assert (ops.edges[:, 0] < ops.edges[:, 1]).all()
    # the word table is also the output layer's matrix, so it lies on a chip; that of positions does not
    assert int(graph.param_bytes.max()) in ops.param_bytes.tolist()


def test_evaluate__names_the_ops_and_chips_of_every_broken_rule():
    problem = ChipletProblem(chain(4, output_bytes=10), "mcm4")
    reasons = problem.evaluate([1, 0, 3, 3]).reasons
    assert len(reasons) == 2
    assert reasons[0].startswith("acyclic dataflow: ")
    assert "on chip 1 feeds" in reasons[0]
    assert problem.ops.label(0) in reasons[0]
    assert reasons[1].startswith("no skipped chip: chip 2 holds no op")


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ([0, 0, 0], r"shape \(3,\), expected \(4,\)"),
        ([0, 0, 0, 4], r"decision\[3\] is 4, allowed: 0 to 3 \(chip\)"),
        ([0, 0, 0, -1], r"decision\[3\] is -1"),
        ([0.0, 0.0, 0.0, 1.0], "expected integers"),
    ],
)
def test_check__bad_decisions_give_one_line(decision, message):
    with pytest.raises(InputError, match=message):
        ChipletProblem(chain(4), "mcm4").evaluate(decision)


def test_sample_and_neighbour__keep_to_the_rules():
    rng = np.random.default_rng(2)
    problem = ChipletProblem("resnet50", "mcm36")
    decision = problem.sample(rng)
    moved = 0
    for _ in range(30):
        nearby = problem.neighbour(decision, rng)
        broken = {one.rule for one in problem.violations(nearby)}
        assert broken <= {RULES[3]}
        moved += (nearby != decision).any()
        decision = nearby
    assert moved > 20


def test_memory_rule__the_corrector_keeps_to_it_or_says_that_it_cannot():
    graph = layered_dag(40, seed=3, width=2)
    free = ChipletProblem(graph, "mcm9")
    rng = np.random.default_rng(3)
    most = max(
        int(free.measure(free.corrector.fix(np.arange(free.num_ops) * 9 // free.num_ops, rng).decision)[2].max()), 1
    )
    kept = 0
    for share in (1.5, 1.0, 0.02):
        package = Package("tight", (Chip("tight", 4e12, 4e11, int(most * share)),) * 9, "ring", 1e10)
        problem = ChipletProblem(graph, package, memory_rule=True)
        for _ in range(3):
            correction = problem.corrector.sample(None, rng)
            outcome = problem.evaluate(correction.decision)
            assert correction.valid == outcome.valid
            assert correction.valid == (correction.reason == "")
            kept += correction.valid
            if share == 0.02:
                assert "memory" in correction.reason
    assert kept >= 3
