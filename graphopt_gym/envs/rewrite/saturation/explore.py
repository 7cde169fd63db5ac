"""Equality saturation of tensor programs, after TENSAT (Yang et al., MLSys 2021, sections 4 and 5).

Each iteration searches all rules in the e-graph and then applies what it found, one match of each rule in turn, so that
no family of rules takes all room when a limit is near. Multi-pattern rules take part in the first ``k_multi``
iterations: each of their source patterns is searched by itself, and those that agree on the shared variables are
paired. A match that would close a cycle is left out (by a map of descendants, made once an iteration); cycles that two
matches close together are cleaned up afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from graphopt_gym.envs.rewrite.cost import ProgramCosts
from graphopt_gym.envs.rewrite.rules.matching import canonical, compile_lines, compile_rule
from graphopt_gym.envs.rewrite.rules.patterns import Expr, Pattern, Rule, Var, tensors_of
from graphopt_gym.envs.rewrite.rules.table import load_rules
from graphopt_gym.envs.rewrite.saturation.egraph import Descendants, EGraph
from graphopt_gym.envs.rewrite.saturation.limits import Iteration, LimitHit, Limits, check_limit, resident_bytes
from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.graphs.tensor_program.program import TensorProgram

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.saturation.egglog_engine import EgglogExplorer

CYCLES = ("filter", "ilp")
SCHEDULES = ("first", "need")
SATURATED = "saturated"
ENGINES = ("native", "egglog")
CHECK_EVERY = 256  # matches between looks at the clock and the memory

Binding = tuple[Any, ...]


class _Half(NamedTuple):
    """One source pattern of a multi-pattern rule."""

    match: Callable[..., None]
    op: str
    shared: tuple[int, ...]  # where the shared variables stand in its bindings


class _Compiled(NamedTuple):
    rule: Rule
    match: Callable[..., None]  # of a single-pattern rule: (graph, class, found) appends bindings
    halves: tuple[_Half, ...]  # of a multi-pattern rule
    keys: tuple[str, ...]  # what each half searches for, so that equal ones are searched once
    take: tuple[tuple[int, int], ...]
    holds: Callable[..., bool]
    build: Callable[..., tuple[tuple[int, ...], list[int]]]
    reads: tuple[tuple[int, ...], ...]  # for each target, where the tensors that it reads stand in the binding


def _compile_match(
    source: Pattern, names: Sequence[str], tensors: Sequence[str], condition: Expr | None
) -> Callable[..., None]:
    """A function (by_op, shapes, root, found): appends the values of ``names`` for every way the source matches."""
    lines = ["def function(by_op, shapes, root, found):"]
    indent = 1
    counter = 0
    bound: set[str] = set()
    computed: list[tuple[str, Expr]] = []

    def put(text: str) -> None:
        lines.append(" " * indent + text)

    def bind(name: str, place: str) -> None:
        if name in bound:
            put(f"if v_{name} != {place}: continue")
        else:
            bound.add(name)
            put(f"v_{name} = {place}")

    waiting: list[tuple[Pattern, str]] = [(source, "root")]
    while waiting:
        pattern, cls = waiting.pop(0)
        node = f"n{counter}"
        counter += 1
        put(f"for {node} in by_op[{cls}].get({pattern.op!r}, ()):")
        indent += 1
        if pattern.op == "concat":
            put(f"if len({node}.children) != {len(pattern.operands)}: continue")
        for index, value in enumerate(pattern.params):
            place = f"{node}.params[{index}]"
            if value.kind == "literal":
                put(f"if {place} != {value.value!r}: continue")
            elif value.kind == "name":
                bind(value.text, place)
            else:
                computed.append((place, value))
        for index, operand in enumerate(pattern.operands):
            place = f"{node}.children[{index}]"
            if isinstance(operand, Var):
                bind(operand.name, place)
            else:
                waiting.append((operand, place))
    known = {name: f"shapes[v_{name}]" if name in tensors else f"v_{name}" for name in names}
    if condition is not None:
        put(f"if not ({condition.source(known)}): continue")
    for place, value in computed:
        put(f"if {place} != {value.source(known)}: continue")
    put(f"found.append(({''.join(f'v_{name}, ' for name in names)}))")
    return compile_lines(lines)


def _compile_holds(rule: Rule) -> Callable[..., bool]:
    names = (*rule.tensors, *rule.params)
    known = {name: f"shapes[v_{name}]" if name in rule.tensors else f"v_{name}" for name in names}
    test = rule.condition.source(known) if rule.condition is not None else "True"
    return compile_lines([f"def function(shapes, {', '.join(f'v_{name}' for name in names)}):", f" return {test}"])


@cache
def _compile(rule: Rule) -> _Compiled:
    names = (*rule.tensors, *rule.params)
    reads = tuple(tuple(names.index(name) for name in tensors_of(target)) for target in rule.target)
    build = compile_rule(rule).build
    if not rule.multi:
        match = _compile_match(rule.source[0], names, rule.tensors, rule.condition)
        return _Compiled(rule, match, (), (), (), _compile_holds(rule), build, reads)
    own = [(*source.tensors, *source.bound) for source in rule.source]
    shared = [name for name in own[0] if name in own[1]]
    halves = []
    for source, bound in zip(rule.source, own, strict=True):
        if any(value.kind == "computed" for part in source.ops() for value in part.params):
            raise InputError(f"rule {rule.name!r}: a source of a multi-pattern rule has a computed parameter")
        match = _compile_match(source, bound, rule.tensors, None)
        halves.append(_Half(match, source.op, tuple(bound.index(name) for name in shared)))
    take = tuple((0, own[0].index(name)) if name in own[0] else (1, own[1].index(name)) for name in names)
    keys = tuple(canonical(source, shared) for source in rule.source)
    return _Compiled(rule, halves[0].match, tuple(halves), keys, take, _compile_holds(rule), build, reads)


class Explorer:
    """An e-graph of one program that rules are applied to, iteration by iteration.

    Args:
        filter_cycles: keep the classes acyclic.
    """

    def __init__(self, program: TensorProgram, rules: Sequence[Rule], filter_cycles: bool = True) -> None:
        self.program = program
        self.graph = EGraph()
        self.roots = self.graph.add_program(program)
        self.filter_cycles = filter_cycles
        self.rules = tuple(rules)
        self._compiled = [_compile(rule) for rule in rules]
        self._reach = max((source.depth for rule in rules for source in rule.source), default=1) - 1
        self._seen: set[tuple[int, tuple[int, ...], Binding]] = set()
        self._near: dict[int, int] = {}  # class -> iteration in which it, or something that patterns see, last changed
        self._searched = [-1] * len(self._compiled)  # rule -> iteration in which it was searched last
        self.entered: dict[str, int] = {}  # rule -> how often applying it changed the e-graph
        self._clock = 0
        self._mark(self.graph.rebuild())
        if filter_cycles:
            self.graph.clean_up()

    def copy(self) -> Explorer:
        """A copy that can be explored further without changing this one."""
        other = Explorer.__new__(Explorer)
        other.__dict__.update(self.__dict__)
        other.graph = self.graph.copy()
        other.entered = dict(self.entered)
        other._seen, other._near, other._searched = set(self._seen), dict(self._near), list(self._searched)
        return other

    def _mark(self, changed: Iterable[int]) -> None:
        find, near = self.graph.find, self._near
        fringe = set(changed)
        seen = set(fringe)
        for _ in range(self._reach):
            fringe = {find(user.owner) for cls in fringe for user in self.graph.users_of(cls) if user.alive} - seen
            seen |= fringe
        for cls in seen:
            near[cls] = self._clock

    def iterate(self, chosen: Sequence[int], limits: Limits) -> tuple[Iteration, str]:
        """One iteration of the chosen rules, by index; what it did, and the limit that ended it early (empty: none)."""
        started = time.perf_counter()
        graph = self.graph
        counts = {"matches": 0, "applied": 0, "refused": 0}
        stopped = ""
        try:
            limits.check(graph)
            queues = self._search(chosen, limits)
            below = graph.descendants() if self.filter_cycles else None
            self._clock += 1
            self._apply(queues, below, limits, counts)
        except LimitHit as limit:
            stopped = str(limit)
            self._clock += 1
        self._mark(graph.rebuild())
        filtered = graph.clean_up() if self.filter_cycles else 0
        seconds = time.perf_counter() - started
        return Iteration(graph.nodes, graph.num_classes, **counts, filtered=filtered, seconds=seconds), stopped

    def _search(
        self, chosen: Sequence[int], limits: Limits
    ) -> list[tuple[int, Iterator[tuple[tuple[int, ...], Binding]]]]:
        graph = self.graph
        by_op, shapes, near, searched = graph.by_op, graph.shapes, self._near, self._searched
        singles: dict[str, list[tuple[int, Callable[..., None], list[Any]]]] = {}
        halves: dict[str, tuple[_Half, dict[Binding, list[tuple[int, Binding]]]]] = {}
        halves_by_op: dict[str, list[str]] = {}
        queues: list[tuple[int, Iterator[tuple[tuple[int, ...], Binding]]]] = []
        for index in chosen:
            compiled = self._compiled[index]
            if compiled.rule.multi:
                for key, half in zip(compiled.keys, compiled.halves, strict=True):
                    if key not in halves:
                        halves[key] = (half, {})
                        halves_by_op.setdefault(half.op, []).append(key)
                files = [halves[key][1] for key in compiled.keys]
                queues.append((index, self._pairs(compiled, files)))
            else:
                found: list[Any] = []
                singles.setdefault(compiled.rule.source[0].op, []).append((searched[index], compiled.match, found))
                queues.append((index, iter(found)))
        bindings: list[Binding] = []
        for count, cls in enumerate(graph.classes()):
            if count % CHECK_EVERY == 0:
                limits.check_time()
            changed = near.get(cls, 0)
            for op in by_op[cls]:  # type: ignore[union-attr]
                for since, match, found in singles.get(op, ()):
                    if changed > since:
                        match(by_op, shapes, cls, bindings)
                        if bindings:
                            found.extend([((cls,), binding) for binding in bindings])
                            bindings.clear()
                for key in halves_by_op.get(op, ()):
                    half, filed = halves[key]
                    half.match(by_op, shapes, cls, bindings)
                    for binding in bindings:
                        shared = tuple([binding[place] for place in half.shared])
                        filed.setdefault(shared, []).append((cls, binding))
                    bindings.clear()
        for index in chosen:
            searched[index] = self._clock
        return queues

    def _pairs(
        self, compiled: _Compiled, files: Sequence[dict[Binding, list[tuple[int, Binding]]]]
    ) -> Iterator[tuple[tuple[int, ...], Binding]]:
        shapes, holds, take, symmetric = self.graph.shapes, compiled.holds, compiled.take, compiled.rule.symmetric
        for shared, first in files[0].items():
            second = files[1].get(shared, ())
            for root, binding in first:
                for other, other_binding in second:
                    if root == other or (symmetric and root > other):
                        continue
                    halves = (binding, other_binding)
                    joined = tuple([halves[half][place] for half, place in take])
                    if holds(shapes, *joined):
                        yield (root, other), joined

    def _apply(
        self,
        queues: list[tuple[int, Iterator[tuple[tuple[int, ...], Binding]]]],
        below: Descendants | None,
        limits: Limits,
        counts: dict[str, int],
    ) -> None:
        graph, seen = self.graph, self._seen
        looked = 0
        while queues:
            left = []
            for index, queue in queues:
                match = next(queue, None)
                if match is None:
                    continue
                left.append((index, queue))
                roots, binding = match
                looked += 1
                if looked % CHECK_EVERY == 0:
                    limits.check_time()
                mark = (index, roots, binding)
                if mark in seen:
                    continue
                seen.add(mark)
                counts["matches"] += 1
                compiled = self._compiled[index]
                if below is not None and any(
                    below.reaches(binding[place], root)
                    for root, places in zip(roots, compiled.reads, strict=True)
                    for place in places
                ):
                    counts["refused"] += 1
                    continue
                nodes = graph.nodes
                targets, _ = compiled.build(graph, *binding)
                changed = graph.nodes > nodes
                for root, target in zip(roots, targets, strict=True):
                    changed |= graph.union(root, target)
                if changed:
                    counts["applied"] += 1
                    self.entered[compiled.rule.name] = self.entered.get(compiled.rule.name, 0) + 1
                if graph.nodes >= limits.nodes:
                    raise LimitHit("node limit")
            queues = left


@dataclass(frozen=True)
class Saturation:
    """An explored e-graph.

    Attributes:
        roots: the classes of the program's outputs.
        stopped_by: ``saturated`` (no rule adds anything, multi-pattern ones neither); ``saturated for k=1`` (no rule
            that is still applied does: another ``k_multi`` may find more, and so may a bound on its e-graph); or the
            limit that was hit: ``node limit``, ``iteration limit``, ``time limit``, ``memory limit``.
        iterations: what each iteration did.
        memory_bytes: by how much the process grew.
        acyclic: whether cycles were filtered.
        entered: rule -> how often applying it changed the e-graph; by egglog, how often it was applied.
    """

    program: TensorProgram
    graph: EGraph
    roots: tuple[int, ...]
    costs: ProgramCosts
    stopped_by: str
    iterations: tuple[Iteration, ...]
    seconds: float
    memory_bytes: int
    acyclic: bool
    entered: Mapping[str, int] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        return self.graph.nodes

    @property
    def classes(self) -> int:
        return self.graph.num_classes


def saturate(
    program: TensorProgram,
    rules: Iterable[Rule | str] | None,
    costs: ProgramCosts,
    *,
    k_multi: int = 1,
    node_limit: int = 50_000,
    iteration_limit: int = 15,
    seconds: float = 60.0,
    memory_bytes: int = 4 << 30,
    cycles: str = "filter",
    engine: str = "native",
    schedule: str = "first",
) -> Saturation:
    """Applies all rules at once, until nothing new comes or a limit is hit; extraction may always follow.

    Args:
        rules: rules, or names of rules or families; None for all.
        costs: what programs are priced by when they are extracted.
        k_multi: in how many iterations multi-pattern rules are applied; those on the two parts of a split, which
            multiply nothing, are applied in all.
        schedule: which iterations these are: ``first``, the first ones, as in TENSAT; or by ``need``: each time that
            the other rules add nothing any more, so that they see operands that rules made.
        node_limit: most e-nodes.
        seconds: most time, cleaning up not counted.
        memory_bytes: by how much the process may grow.
        cycles: ``filter`` keeps the e-graph acyclic; ``ilp`` leaves cycles to the extraction's constraints.
        engine: ``native``, this one; or ``egglog``, see :mod:`.egglog_engine` for where its limits are looser.

    Raises:
        InputError: an unknown rule, engine or way with cycles; a limit below 1 (``k_multi``: below 0); egglog is not
            installed.
    """
    check_limit("k_multi", k_multi, least=0)
    check_limit("node_limit", node_limit)
    check_limit("iteration_limit", iteration_limit)
    check_limit("seconds", seconds, whole=False)
    check_limit("memory_bytes", memory_bytes)
    choice("cycles", cycles, CYCLES)
    choice("engine", engine, ENGINES)
    choice("schedule", schedule, SCHEDULES)
    chosen = resolve_rules(rules)
    limits = Limits(node_limit, seconds, memory_bytes)
    explorer: Explorer | EgglogExplorer
    if engine == "egglog":
        from graphopt_gym.envs.rewrite.saturation.egglog_engine import EgglogExplorer

        explorer = EgglogExplorer(program, chosen, cycles == "filter")
    else:
        explorer = Explorer(program, chosen, cycles == "filter")
    always = [index for index, rule in enumerate(chosen) if not rule.merges]
    first = [index for index, rule in enumerate(chosen) if rule.merges]
    done: list[Iteration] = []
    stopped = "iteration limit"
    left, quiet = (k_multi if first else 0), False  # rounds of multi-pattern rules; whether the others add nothing
    for _ in range(iteration_limit):
        merging = left > 0 and (schedule == "first" or quiet)
        left -= merging
        iteration, limit = explorer.iterate(first + always if merging else always, limits)
        done.append(iteration)
        if limit:
            stopped = limit
            break
        quiet = not iteration.applied
        if quiet and (merging or not first):
            stopped = SATURATED
            break
        if quiet and not left:
            stopped = f"{SATURATED} for k={k_multi}"
            break
    return Saturation(
        program,
        explorer.graph,
        explorer.roots,
        costs,
        stopped,
        tuple(done),
        time.perf_counter() - limits.started,
        max(0, resident_bytes() - limits.memory_before),
        cycles == "filter",
        explorer.entered,
    )


def resolve_rules(rules: Iterable[Rule | str] | None) -> tuple[Rule, ...]:
    """Rules as they are; names (of rules or families) as the rules that they name.

    Raises:
        InputError: an unknown name.
    """
    if rules is None:
        return load_rules()
    if isinstance(rules, str):
        return load_rules([rules])
    found: dict[str, Rule] = {}
    for entry in rules:
        for rule in load_rules([entry]) if isinstance(entry, str) else (entry,):
            found.setdefault(rule.name, rule)
    return tuple(found.values())
