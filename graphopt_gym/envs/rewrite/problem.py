"""Program rewriting: a program in, a program that computes the same in less time out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.catalog import check_dims, stored_name
from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.cost import LAUNCH, ProgramCosts
from graphopt_gym.envs.rewrite.rules.matching import Match, Matcher, MatchSet
from graphopt_gym.envs.rewrite.rules.table import load_rules
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import choice
from graphopt_gym.graphs.tensor_program import (
    TensorProgram,
    execute,
    parse_program,
    program_text,
    to_computation_graph,
)
from graphopt_gym.graphs.tensor_program.execute import RandomValues
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder
from graphopt_gym.hardware.cluster import DEVICES, Cluster, Device, load_one_device
from graphopt_gym.hardware.cost_model import CostModel, run_of
from graphopt_gym.problem import Outcome, Problem, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = ("sum", "simulated", "published")
CPU = "cpu"  # this machine's processor by ``graphopt calibrate --device onnxruntime``, else the one that is shipped
RELATIVE_ERROR = 1e-8  # of float64 outputs, to the largest; room for rounding through hundreds of operators
TORCH_FLOPS = 1e8  # programs with more work are executed by torch, where it is installed
MOST_WALK = 20  # rewrites in a random decision

ProgramLike = str | os.PathLike[str] | TensorProgram


class Step(NamedTuple):
    """A rewrite that was applied, and how it came to that."""

    before: Step | None
    rule: str
    roots: tuple[int, ...]  # places in the order of the program that it was applied to, the same in equal programs
    cost_s: float  # of the program that came out


@dataclass(eq=False)
class Rewritten:
    """A program with what rewriting it takes; made by :class:`RewriteProblem` and :meth:`apply`, not changed.

    ``valid`` says whether it computes what the original does; ``traced``, whether rewrites led to it from there.
    Matches are searched when first asked for, and then only where the last rewrite changed something.
    """

    problem: RewriteProblem = field(repr=False)
    program: TensorProgram
    node_costs: Mapping[int, float] = field(repr=False)
    cost: float
    valid: bool = True
    traced: bool = True
    last: Step | None = field(default=None, repr=False)
    _pending: tuple[MatchSet, Any] | None = field(default=None, repr=False)
    kinds: dict[int, bytes] = field(default_factory=dict, repr=False)  # features of nodes that no rewrite changes

    @cached_property
    def match_set(self) -> MatchSet:
        if self._pending is None:
            return self.problem.matcher.find(self.program)
        before, change = self._pending
        self._pending = None
        return self.problem.matcher.update(before, self.program, change)

    @property
    def matches(self) -> tuple[Match, ...]:
        """In order of rule, then roots."""
        return self.match_set.matches

    def apply(self, match: Match) -> Rewritten:
        """What a match of this program makes of it."""
        problem, position = self.problem, self.program.position
        program, change = problem.matcher.apply(self.program, match)
        node_costs = problem.program_costs.update(self.node_costs, program, change, self.program)
        cost = problem.total(program, node_costs)
        roots = tuple([position[root] for root in match.roots])
        last = Step(self.last, problem.matcher.rules[match.rule].name, roots, cost)
        kinds = {node: kind for node, kind in self.kinds.items() if node not in change.removed}
        pending = self.match_set, change
        return Rewritten(problem, program, node_costs, cost, self.valid, self.traced, last, pending, kinds)

    @property
    def trace(self) -> Trace:
        """(rule, places of its roots, seconds after it) of each rewrite, in order."""
        steps = []
        step = self.last
        while step is not None:
            steps.append((step.rule, list(step.roots), step.cost_s))
            step = step.before
        return tuple(reversed(steps))


class RewriteProblem(Problem):
    """Rewrite a tensor program so that one inference of it takes less time on one device.

    A decision is a :class:`TensorProgram`, stored as its text. It is valid where it has the original's leaves and the
    shapes of its outputs, and gives the same outputs when both are executed in float64 on random values of all leaves
    (normal, at the program's full size; largest difference at most :data:`RELATIVE_ERROR` of the largest output).
    Programs that came from the original by rewrite rules alone are not executed while a search runs, since each rule
    is verified by itself; :meth:`evaluate` always executes.

    Args:
        graph: a program: a zoo name, the path of a text or ONNX file, or a ``TensorProgram``.
        cluster: the device, or a cluster with one device: by name, as a TOML file or as an object. ``"cpu"``: a
            processor that is priced as onnxruntime uses it, yours (``graphopt calibrate --device onnxruntime``) or
            else the shipped one.
        cost: ``"sum"``: the sum of operator times, as in TENSAT. ``"simulated"``: the simulator's step time. With one
            device the two differ by rounding alone, unless the simulator learns more about a device. ``"published"``:
            by TENSAT's own accounting (transposes free, work on weights counted, launches hidden), to compare with its
            table. Extraction from an e-graph does not see work on weights; what comes out is priced with it.
        rules: names of rules or families, ``"all"``, or ``"deployed"`` (for a processor, with ``"cpu"``); those of
            TENSAT's and TASO's families where left out.
        cost_model: prices the operators: an object with ``op_times``, or how a program is run (``"eager"``,
            ``"back_to_back"``, ``"graph"``, or with TF32, ``"graph, tf32 all"``); back to back where left out.
        dims: sizes of symbolic dimensions, where the program is an ONNX file: ``{"batch": 1}``.

    Raises:
        InputError: an unknown name, a file that is no program, or a cluster of several devices.
    """

    env_id = "RewriteOrder-v0"
    unit = "s"
    page_name = "Before and after"
    page_draws = True
    decision_shape = ()

    def __init__(
        self,
        graph: ProgramLike = "squeezenet",
        cluster: str | os.PathLike[str] | Device | Cluster = "t4",
        cost: str = "sum",
        rules: str | Iterable[str] | None = None,
        dims: Mapping[str, int] | None = None,
        cost_model: str | CostModel | None = None,
    ) -> None:
        from graphopt_gym.graphs.zoo.programs import load_program

        choice("cost", cost, COSTS)
        check_dims(dims)
        self.program = load_program(graph, dims)
        self.cluster = load_target(cluster)
        self.device = self.cluster.devices[0]
        self.cost_kind = cost
        self.matcher = Matcher(_rules_of(rules))
        self.program_costs = ProgramCosts(
            self.device, cost_model, published=cost == "published", dtype=self.program.dtype
        )
        self.graph = to_computation_graph(self.program)
        self.config = {
            "graph": stored_name(graph, self.program),
            "cluster": stored_name(cluster, self.cluster),
            "cost": cost,
            "rules": None if rules is None else [rules] if isinstance(rules, str) else list(rules),
            **({"dims": dict(dims)} if dims else {}),
            **({"cost_model": run} if (run := run_of(self.program_costs.model)) not in (None, LAUNCH) else {}),
        }
        self._expected: list[np.ndarray] | None = None  # outputs of the original
        self._checked: dict[str, tuple[str, ...]] = {}  # fingerprint -> what is wrong with a program from elsewhere

    # -- pricing ---------------------------------------------------------------------------------------------------

    @cached_property
    def original(self) -> Rewritten:
        """The program as it was given."""
        node_costs = self.program_costs.node_costs(self.program)
        return Rewritten(self, self.program, node_costs, self.total(self.program, node_costs))

    @property
    def original_s(self) -> float:
        """Seconds of one inference of the original."""
        return self.original.cost

    def total(self, program: TensorProgram, node_costs: Mapping[int, float]) -> float:
        """Seconds of a program whose nodes take these."""
        if self.cost_kind != "simulated":
            return math.fsum(node_costs.values())
        from graphopt_gym.simulator.lowering import one_device_s

        return one_device_s(to_computation_graph(program), self.cluster, self.program_costs.model)

    def program_cost(self, program: TensorProgram) -> float:
        """Seconds of one inference, whatever the program computes."""
        return self.total(program, self.program_costs.node_costs(program))

    def rewritten(self, decision: Any) -> Rewritten:
        """A decision as something to apply rewrites to."""
        if isinstance(decision, Rewritten) and decision.problem is self:
            return decision
        program = self.check(decision)
        if program == self.program:
            return self.original
        node_costs = self.program_costs.node_costs(program)
        valid = not self.reasons(program)
        return Rewritten(self, program, node_costs, self.total(program, node_costs), valid, traced=False)

    def check(self, decision: Any) -> TensorProgram:
        """The program that a decision is: a program, a text form, or a :class:`Rewritten`.

        Raises:
            InputError: something else, or a text with an error (line, column).
        """
        if isinstance(decision, np.ndarray) and decision.dtype == object and decision.ndim == 0:
            decision = decision.item()
        if isinstance(decision, Rewritten):
            return decision.program
        if isinstance(decision, TensorProgram):
            return decision
        if isinstance(decision, str):
            return parse_program(decision, "decision")
        raise InputError(f"decision is a {type(decision).__name__}; give a TensorProgram or its text form")

    def encode(self, decision: Any) -> str:
        return program_text(self.check(decision))

    def costs(self, decisions: Any) -> tuple[np.ndarray, np.ndarray]:
        """(seconds float64 [B], valid bool [B]); a program that is not the original's equal is priced above it."""
        costs, valid = np.empty(len(decisions)), np.ones(len(decisions), np.bool_)
        for row, decision in enumerate(decisions):
            state = self.rewritten(decision)
            costs[row] = state.cost if state.valid else 2 * self.original_s + state.cost
            valid[row] = state.valid
        return costs, valid

    def evaluate(self, decision: Any) -> Outcome:
        program = self.check(decision)
        reasons = self.reasons(program)
        cost = self.program_cost(program)
        before, after = self.program.statistics(), program.statistics()
        metrics = {
            "original_s": self.original_s,
            "rewritten_s": cost,
            "saved_percent": 100 * (1 - cost / self.original_s) if self.original_s else 0.0,
            "original_ops": before["computed"],
            "ops": after["computed"],
            "original_nodes": before["nodes"],
            "nodes": after["nodes"],
            "same_outputs_when_executed": not reasons,
        }
        return Outcome(not reasons, math.inf if reasons else cost, self.unit, reasons, metrics)

    def summary_lines(self, outcome: Outcome, details: Mapping[str, Any]) -> tuple[str, ...]:
        """What the e-graph was like, where a method grew one."""
        growth = details.get("growth_nodes")
        if not growth:
            return ()
        counts = " ".join(f"{count:,}" for count in growth)
        return (
            f"e-graph: {details['nodes']:,} nodes in {details['classes']:,} classes after {len(growth)} iterations "
            f"({counts}), stopped by: {details['saturation_stopped_by']}",
        )

    # -- equality --------------------------------------------------------------------------------------------------

    def reasons(self, program: TensorProgram) -> tuple[str, ...]:
        """Why a program does not compute what the original does; empty where it does. By execution, once a program."""
        if program == self.program:
            return ()
        if program.fingerprint not in self._checked:
            try:
                self._checked[program.fingerprint] = self._interface(program) or self._difference(program)
            except InputError as error:
                self._checked[program.fingerprint] = (str(error),)
        return self._checked[program.fingerprint]

    def _interface(self, program: TensorProgram) -> tuple[str, ...]:
        found = []
        for op in ("input", "weight"):
            known = self.program.leaves(op)
            for name, shape in program.leaves(op).items():
                if known.get(name) != shape:
                    had = f"has {known[name]}" if name in known else "has none of that name"
                    found.append(f"{op} {name!r} of shape {shape}: the original {had}")
        shapes = [[one.shape(output) for output in one.outputs] for one in (self.program, program)]
        if shapes[0] != shapes[1]:
            found.append(f"its outputs have shapes {shapes[1]}, the original's {shapes[0]}")
        return tuple(found)

    def _execute(self, program: TensorProgram) -> list[np.ndarray]:
        """Raises InputError where the program is too large for this machine."""
        sizes = {node: math.prod(program.shape(node)) for node in program.order}
        together = max(sizes[node] + sum(sizes[source] for source in program.nodes[node].inputs) for node in sizes)
        needed, there = 8 * together, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there:
            raise InputError(
                f"program {self.program.name!r} is too large to be executed here: one operator takes "
                f"{needed / 2**30:,.0f} GiB, this machine has {there / 2**30:,.0f} GiB"
            )
        backend = "numpy"
        if int(self.graph.flops.sum()) > TORCH_FLOPS:
            try:
                import torch  # noqa: F401

                backend = "torch"
            except ImportError:  # numpy gives the same, more slowly
                pass
        return execute(program, RandomValues(program, seed=1), dtype="float64", backend=backend)

    def _difference(self, program: TensorProgram) -> tuple[str, ...]:
        outputs = len(self.program.outputs)
        if self._expected is None:  # both at once: a weight is drawn once, and what both compute is computed once
            results = self._execute(_joined(self.program, program))
            self._expected = results[:outputs]
        else:
            results = [*self._expected, *self._execute(program)]
        found = []
        for index, (before, after) in enumerate(zip(results[:outputs], results[outputs:], strict=True)):
            largest = float(np.abs(before).max(initial=0.0))
            apart = float(np.abs(before - after).max(initial=0.0))
            if not apart <= RELATIVE_ERROR * largest:  # so that a NaN fails
                found.append(f"output {index} differs by {apart:.3g} where the original's largest is {largest:.3g}")
        return tuple(found)

    # -- moves -----------------------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> Rewritten:
        """The original after 1 to :data:`MOST_WALK` random rewrites."""
        state = self.original
        for _ in range(int(rng.integers(1, MOST_WALK + 1))):
            state = self.neighbour(state, rng)
        return state

    def neighbour(self, decision: Any, rng: np.random.Generator) -> Rewritten:
        """A decision after one rewrite: a random one of the rules that match, at a random place of its matches."""
        state = self.rewritten(decision)
        by_rule: dict[int, list[Match]] = {}
        for match in state.matches:
            by_rule.setdefault(match.rule, []).append(match)
        if not by_rule:
            return state
        matches = by_rule[list(by_rule)[int(rng.integers(len(by_rule)))]]
        return state.apply(matches[int(rng.integers(len(matches)))])

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        """One of the two: programs have no entries to exchange."""
        return first if rng.random() < 0.5 else second

    # -- traces and pictures ---------------------------------------------------------------------------------------

    def trace(self, decision: Any) -> Trace | None:
        """(rule, places of its roots in the program's order, seconds after it), a row a rewrite."""
        return decision.trace if isinstance(decision, Rewritten) and decision.traced else None

    def replay(self, trace: Trace) -> Rewritten:
        """What a trace makes of the original.

        Raises:
            InputError: a step that is not of the documented form, or whose rule does not match there.
        """
        state = self.original
        names = [rule.name for rule in self.matcher.rules]
        for number, step in enumerate(trace):
            where = f"step {number + 1} of the trace"
            try:
                rule, places, _ = step
                roots = tuple(state.program.order[place] for place in places)
            except (TypeError, ValueError, IndexError):
                raise InputError(f"{where} is {step!r}; expected (rule, places of its roots, seconds)") from None
            if rule not in names:
                raise unknown_name(f"{where}: rule", rule, names)
            index = names.index(rule)
            match = next((one for one in state.matches if one.rule == index and one.roots == roots), None)
            if match is None:
                raise InputError(f"{where}: rule {rule!r} does not match at places {list(places)}")
            state = state.apply(match)
        return state

    def check_trace(self, decision: Any, trace: Trace) -> str:
        try:
            state = self.replay(trace)
        except InputError as error:
            return str(error)
        if state.program != self.check(decision):
            return "its rewrites do not lead from the original to the decision"
        for number, (mine, stored) in enumerate(zip(state.trace, trace, strict=True)):
            if not (isinstance(stored[2], int | float) and math.isclose(mine[2], stored[2], rel_tol=1e-12)):
                return f"step {number + 1} says {stored[2]!r} s, here {mine[2]!r} s"
        return ""

    def figure(self, decision: Any) -> Figure:
        from graphopt_gym.envs.rewrite.rendering import comparison_figure

        return comparison_figure(self, self.check(decision))

    def page(self, decision: Any, trace: Trace | None, details: Mapping[str, Any]) -> str:
        from graphopt_gym.envs.rewrite.rendering import comparison_page

        return comparison_page(self, self.check(decision), trace, details)

    @property
    def pricing(self) -> tuple[CostModel, Sequence[Device]]:
        return self.program_costs.model, [self.device]

    def fingerprints(self) -> dict[str, str]:
        rules = "\n".join(map(str, self.matcher.rules))
        times = self.program_costs.model.op_times(self.graph, self.device)
        return {
            "graph": self.program.fingerprint,
            "cluster": self.cluster.fingerprint,
            "op_times": hashlib.sha256(times.tobytes()).hexdigest(),
            "rules": hashlib.sha256(rules.encode()).hexdigest(),
        }


def load_target(cluster: str | os.PathLike[str] | Device | Cluster) -> Cluster:
    """A cluster of one device: a device alone, or a cluster that has one.

    Raises:
        InputError: an unknown name, or several devices.
    """
    if cluster == CPU and CPU not in DEVICES:
        cluster = data_path("calibration", "cpu.toml")
    return load_one_device(cluster, "a program is rewritten")


def _rules_of(rules: str | Iterable[str] | None) -> Any:
    if rules is not None and not isinstance(rules, str):
        if not isinstance(rules, Iterable):
            raise InputError(f"rules is {rules!r}; give a list of names of rules or families")
        rules = list(rules)
        if not rules:
            raise InputError("rules is an empty list; give at least one name, or leave it out for all")
    return load_rules(rules)


def _joined(*programs: TensorProgram) -> TensorProgram:
    """One program with the outputs of all, in order; leaves of the same name and shape are the same."""
    builder = ProgramBuilder(programs[0].name)
    outputs = []
    for program in programs:
        ids: dict[int, int] = {}
        for node in program.order:
            op, params, inputs, _ = program.nodes[node]
            ids[node] = builder.add(op, params, [ids[source] for source in inputs])
        outputs += [ids[output] for output in program.outputs]
    return builder.finish(outputs)
