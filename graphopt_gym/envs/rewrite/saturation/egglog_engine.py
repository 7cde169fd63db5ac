"""Equality saturation on egglog: a second engine beside :mod:`.explore`, from the same table of rules.

egglog (Zhang et al., "Better Together: Unifying Datalog and Equality Saturation", PLDI 2023) keeps the e-graph as
relations and searches rules by joins, each time only what is new. The translation:

- an operator is a constructor of its operands' classes and its parameters (a concat of each length is its own);
  parameters and shapes are interned, so that egglog sees whole numbers;
- a class's shape is a function of the class that refuses two values, so an unsound rule would end in an error;
- a rule's condition, its computed parameters, and the shapes of what it makes depend on the shapes and parameters that
  it matched and on nothing else, so they are a finite table. One rule *asks* (writes down what it matched), Python
  answers what it has not answered yet, and a second rule joins the match with the answer and applies it.

An iteration asks for all rules, answers, and applies all rules at once, so that it finds what an iteration of the
native engine finds. Multi-pattern rules are left out of it after the first ``k_multi``.

What egglog cannot do: nothing stops inside a run, so limits hold between runs. Where what was found might add more
nodes than are left, rules run in parts, those with fewest matches first, each part as large as fits for certain, or one
rule, until the limit is reached, or the next rule might take the e-graph past twice the limit. So the last rule may
overshoot, and the e-graph may stay below. And no single match can be vetoed: cycles are filtered once, at the end, in
the native e-graph that everything is loaded into.
"""

from __future__ import annotations

import ast
import tempfile
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from graphopt_gym.envs.rewrite.rules.matching import compile_lines, compile_rule
from graphopt_gym.envs.rewrite.rules.patterns import Pattern, Rule, Var
from graphopt_gym.envs.rewrite.saturation.egraph import EGraph
from graphopt_gym.envs.rewrite.saturation.limits import Iteration, LimitHit, Limits
from graphopt_gym.extras import need
from graphopt_gym.graphs.tensor_program.ops import OPS, Params, Shape, infer
from graphopt_gym.graphs.tensor_program.program import TensorProgram

ROOM = 2  # times the node limit that no rule is run beyond, by what its matches may add


def bindings() -> ModuleType:
    """egglog's own interface.

    Raises:
        InputError: it is not installed.
    """
    need("egglog", what="engine 'egglog'")
    from egglog import bindings

    return bindings


class _Translated(NamedTuple):
    """A rule in egglog's terms; in a text ``{rule}`` stands for its number, ``{lit[0]}`` for its first literal.

    Attributes:
        asks, ask: body and action of the rule that asks.
        applies, apply: body and actions of the rule that applies it.
        key: how many columns a question has: shapes of the tensors, parameters, computed parameters.
        answer: how many columns an answer adds: for each op of the target its parameters and its shape.
        adds: ops of the target.
        solve: a question as values -> an answer as values; None where the rule does not apply.
        literals: parameters that its source names.
        operators: (operator, number of operands) on either side.
    """

    asks: str
    ask: str
    applies: str
    apply: str
    key: int
    answer: int
    adds: int
    solve: Callable[[Sequence[Any]], tuple[Any, ...] | None]
    literals: tuple[Any, ...]
    operators: frozenset[tuple[str, int]]


class _Shapes:
    """What a target is built in to learn its parameters in normal form, and its shapes."""

    def __init__(self, shapes: Iterable[Shape]) -> None:
        self.shapes = list(shapes)
        self.columns: list[Any] = []

    def shape(self, tensor: int) -> Shape:
        return self.shapes[tensor]

    def add(self, op: str, params: Params, inputs: Sequence[int]) -> int:
        params, shape = infer(op, [self.shapes[tensor] for tensor in inputs], params)
        self.columns.extend((*params, shape))
        self.shapes.append(shape)
        return len(self.shapes) - 1


class _Row(NamedTuple):
    """An e-node as egglog has it; classes are its values."""

    op: str
    params: Params
    children: list[Any]
    cls: Any


def _constructor(op: str, operands: int) -> str:
    return f"op-{op}-{operands}"


def _below(patterns: Iterable[Pattern | Var]) -> Iterator[Pattern]:
    """Ops of patterns, operands first, in the order in which compiled rules build them."""
    for pattern in patterns:
        if isinstance(pattern, Pattern):
            yield from _below(pattern.operands)
            yield pattern


def _same_shapes(rule: Rule) -> dict[str, str]:
    """For each tensor variable one that the condition says has its shape, perhaps itself: a test of the search."""
    first = {name: name for name in rule.tensors}
    tree = rule.condition.tree if rule.condition is not None else None
    for part in tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]:
        match part:
            case ast.Compare(
                left=ast.Call(func=ast.Name("shape"), args=[ast.Name(a)]),
                ops=[ast.Eq()],
                comparators=[ast.Call(func=ast.Name("shape"), args=[ast.Name(b)])],
            ) if a in first and b in first:
                old = first[b]
                first = {name: first[a] if known == old else known for name, known in first.items()}
    return first


@cache
def _translate(rule: Rule) -> _Translated:
    computed: list[tuple[str, str]] = []  # variable, expression
    literals: list[Any] = []
    shaped = _same_shapes(rule)
    spelled = {name: f"s_{shaped[name]}" for name in rule.tensors} | {name: f"p_{name}" for name in rule.params}

    def source(pattern: Pattern | Var) -> str:
        if isinstance(pattern, Var):
            return f"t_{pattern.name}"
        parts = [source(operand) for operand in pattern.operands]
        for value in pattern.params:
            if value.kind == "name":
                parts.append(f"p_{value.text}")
            elif value.kind == "literal":
                parts.append(f"{{lit[{len(literals)}]}}")
                literals.append(value.value)
            else:
                computed.append((f"c_{len(computed)}", value.source(spelled)))
                parts.append(computed[-1][0])
        return f"({_constructor(pattern.op, len(pattern.operands))} {' '.join(parts)})"

    body = [f"(= root{index} {source(pattern)})" for index, pattern in enumerate(rule.source)]
    for name in rule.tensors:
        body.append(f"(= s_{name} (shape t_{name}))")
        if shaped[name] != name:  # as a test; were it one variable, the join would go through all classes of that shape
            body.append(f"(= 0 (- s_{shaped[name]} s_{name}))")
    if rule.multi:
        body.append("(!= root0 root1)")
        if rule.symmetric:  # each pair once
            body.append("(= root0 (ordering-min root0 root1))")

    key = list(dict.fromkeys(spelled.values()))
    test = " and ".join(f"{name} == {text}" for name, text in computed) or "True"
    if rule.condition is not None:
        test = f"({rule.condition.source(spelled)}) and {test}"
    holds = compile_lines([f"def function({', '.join([*key, *(name for name, _ in computed)])}):", f" return {test}"])
    build = compile_rule(rule).build
    tensors = len(rule.tensors)
    columns_of = [key.index(spelled[name]) for name in (*rule.tensors, *rule.params)]

    def solve(question: Sequence[Any]) -> tuple[Any, ...] | None:
        if not holds(*question):
            return None
        binding = [question[column] for column in columns_of]
        shapes = _Shapes(binding[:tensors])
        build(shapes, *range(tensors), *binding[tensors:])
        return tuple(shapes.columns)

    names: dict[Pattern, str] = {}
    actions: list[str] = []
    columns: list[str] = []

    def target(pattern: Pattern | Var) -> str:
        return f"t_{pattern.name}" if isinstance(pattern, Var) else names[pattern]

    for pattern in dict.fromkeys(_below(rule.target)):
        name = names[pattern] = f"n{len(names)}"
        own = [f"a{len(columns) + index}" for index in range(len(pattern.params) + 1)]
        columns.extend(own)
        parts = " ".join([*(target(operand) for operand in pattern.operands), *own[:-1]])
        actions.append(f"(let {name} ({_constructor(pattern.op, len(pattern.operands))} {parts}))")
        actions.append(f"(set (shape {name}) {own[-1]})")
    actions.extend(f"(union root{index} {target(pattern)})" for index, pattern in enumerate(rule.target))

    key.extend(name for name, _ in computed)
    facts = " ".join(body)
    return _Translated(
        facts,
        f"(set (asked-{{rule}} {' '.join(key)}) ())",
        f"{facts} (answer-{{rule}} {' '.join([*key, *columns])})",
        " ".join(actions),
        len(key),
        len(columns),
        len(names),
        solve,
        tuple(literals),
        frozenset((pattern.op, len(pattern.operands)) for pattern in _below((*rule.source, *rule.target))),
    )


class EgglogExplorer:
    """An e-graph of one program in egglog that rules are applied to, iteration by iteration.

    Args:
        filter_cycles: whether :attr:`graph` is made acyclic; the e-graph in egglog never is.

    Attributes:
        nodes, classes: of the e-graph after the last iteration.
        entered: rule -> how often it was applied.

    Raises:
        InputError: egglog is not installed.
    """

    def __init__(self, program: TensorProgram, rules: Sequence[Rule], filter_cycles: bool = True) -> None:
        self.program = program
        self.filter_cycles = filter_cycles
        self.entered: dict[str, int] = {}
        self._loaded: EGraph | None = None
        self.rules = tuple(rules)
        self._bindings = bindings()
        self._egglog = self._bindings.EGraph()
        self._translated = [_translate(rule) for rule in rules]
        self._ids: dict[Any, int] = {}
        self._values: list[Any] = []
        self._asked: list[set[tuple[int, ...]]] = [set() for _ in rules]
        self._counted: set[int] = set()
        self._combined: dict[tuple[int, ...], int] = {}
        self._operators: dict[str, tuple[str, int]] = {}  # constructor -> operator, number of operands
        self._declare()
        self.nodes = self.classes = 0
        self._measure()

    def _intern(self, value: Any) -> int:
        key = (type(value), value)  # 2 and 2.0 are equal, and parameters of different kinds
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = len(self._values)
            self._values.append(value)
        return known

    def _text(self, index: int, text: str) -> str:
        return text.format(rule=index, lit=[self._intern(value) for value in self._translated[index].literals])

    def _run(self, *commands: str) -> list[Any]:
        egglog = self._egglog  # every part of what it parses keeps a copy of the text: short texts, or it takes seconds
        return [output for text in commands for output in egglog.run_program(*egglog.parse_program(text))]

    def _declare(self) -> None:
        nodes = self.program.nodes
        used = {(node.op, len(node.inputs)) for node in nodes.values()}
        used.update(*(translated.operators for translated in self._translated))
        lines = ["(sort T)", "(function shape (T) i64 :no-merge)", "(function counted () Unit :no-merge)"]
        lines.append("(ruleset start)")
        for op, operands in sorted(used):
            name = _constructor(op, operands)
            self._operators[name] = (op, operands)
            lines.append(f"(constructor {name} ({'T ' * operands}{'i64 ' * len(OPS[op].params)}) T)")
        for index, rule in enumerate(self._translated):
            lines.append(f"(function asked-{index} ({'i64 ' * rule.key}) Unit :no-merge)")
            lines.append(f"(function answer-{index} ({'i64 ' * (rule.key + rule.answer)}) Unit :no-merge)")
            lines.extend((f"(ruleset ask-{index})", f"(ruleset apply-{index})"))
            for kind, body, act in (("ask", rule.asks, rule.ask), ("apply", rule.applies, rule.apply)):
                lines.append(
                    f"(rule ({self._text(index, body)}) ({self._text(index, act)}) "
                    f':ruleset {kind}-{index} :name "{kind}-{index}")'
                )
        actions = []
        for node in self.program.order:
            op, params, inputs, shape = nodes[node]
            parts = [*(f"n{source}" for source in inputs), *(str(self._intern(value)) for value in params)]
            actions.append(f"(let n{node} ({_constructor(op, len(inputs))} {' '.join(parts)}))")
            actions.append(f"(set (shape n{node}) {self._intern(shape)})")
        lines.append(f'(rule () ({" ".join(actions)}) :ruleset start :name "start")')
        lines.append("(run start 1)")
        self._run(*lines)

    def _measure(self) -> dict[str, int]:
        sizes = dict(self._run("(print-size)")[0].sizes)
        self.nodes = sum(sizes[name] for name in self._operators)
        self.classes = sizes["shape"]
        return sizes

    def iterate(self, chosen: Sequence[int], limits: Limits) -> tuple[Iteration, str]:
        """One iteration of the chosen rules, by index; what it did, and the limit that ended it early (empty: none).

        Of the iteration, ``matches`` counts those that were searched for anew, conditions aside, and ``applied`` those
        whose condition holds; it is 0 where they changed nothing.
        """
        started = time.perf_counter()
        self._loaded = None
        matches: Counter[int] = Counter()
        applied = 0
        stopped = ""
        try:
            self._check(limits)
            for name, count in self._search(chosen):
                matches[int(name.removeprefix("ask-"))] += count
            limits.check_time()
            adds = {index: matches[index] * self._translated[index].adds for index in chosen}
            left = sorted(chosen, key=adds.__getitem__)
            while left:  # together as far as all that they may add fits, else one
                most = list(accumulate(adds[index] for index in left))
                count = max(1, bisect_right(most, limits.nodes - self.nodes))
                room = ROOM * limits.nodes - self.nodes
                if most[count - 1] > room and self._count(left[0]) * self._translated[left[0]].adds > room:
                    raise LimitHit("node limit")
                applied += self._apply(sorted(left[:count]))
                del left[:count]
                if left:
                    self._check(limits)
        except LimitHit as limit:
            stopped = str(limit)
        seconds = time.perf_counter() - started
        return Iteration(self.nodes, self.classes, sum(matches.values()), applied, 0, 0, seconds), stopped

    def _check(self, limits: Limits) -> None:
        if self.nodes >= limits.nodes:
            raise LimitHit("node limit")
        limits.check_time()

    def _combine(self, chosen: Sequence[int]) -> int:
        """The number of the ruleset of these rules."""
        known = self._combined.get(tuple(chosen))
        if known is None:
            known = self._combined[tuple(chosen)] = len(self._combined)
            for kind in ("ask", "apply"):
                parts = " ".join(f"{kind}-{index}" for index in chosen)
                self._run(f"(unstable-combined-ruleset {kind}-all-{known} {parts})")
        return known

    def _search(self, chosen: Sequence[int]) -> list[tuple[str, int]]:
        """Asks for all rules and answers what is new; matches of each."""
        report = self._run(f"(run ask-all-{self._combine(chosen)} 1)")[0].report
        sizes = self._measure()
        with tempfile.TemporaryDirectory() as folder:
            for index in chosen:
                if sizes[f"asked-{index}"] > len(self._asked[index]):
                    lines = list(self._answers(index, sizes[f"asked-{index}"]))
                    file = Path(folder) / f"{index}.tsv"
                    file.write_text("".join(lines), encoding="utf-8")
                    self._run(f'(input answer-{index} "{file}")')
        return list(report.num_matches_per_rule.items())

    def _answers(self, index: int, size: int) -> Iterator[str]:
        """The new answers of a rule that has ``size`` questions now, as lines of a file for egglog to read."""
        asked, rule = self._asked[index], self._translated[index]
        for question in self._rows(f"asked-{index}", size):
            if question in asked:
                continue
            asked.add(question)
            answer = rule.solve([self._values[value] for value in question])
            if answer is not None:
                yield "".join(f"{value}\t" for value in (*question, *map(self._intern, answer))) + "\n"

    def _rows(self, relation: str, size: int) -> Iterator[tuple[int, ...]]:
        output = self._run(f"(print-function {relation} {size})")[0]
        term = output.termdag.get
        numbers: dict[int, int] = {}
        for row, _ in output.terms:
            parts = term(row).args
            for part in parts:
                if part not in numbers:
                    numbers[part] = term(part).value.value
            yield tuple([numbers[part] for part in parts])

    def _count(self, index: int) -> int:
        """In how many matches of a rule its condition holds; those that were applied before may be among them."""
        if index not in self._counted:
            self._counted.add(index)
            body = self._text(index, self._translated[index].applies)
            self._run(f"(ruleset count-{index})", f"(rule ({body}) ((set (counted) ())) :ruleset count-{index})")
        return sum(self._run(f"(run count-{index} 1)")[0].report.num_matches_per_rule.values())

    def _apply(self, chosen: Sequence[int]) -> int:
        """Applies what the rules match and what is answered; how many matches, 0 where they changed nothing."""
        report = self._run(f"(run apply-all-{self._combine(chosen)} 1)")[0].report
        self._measure()
        for name, count in report.num_matches_per_rule.items():
            if count:
                rule = self.rules[int(name.removeprefix("apply-"))].name
                self.entered[rule] = self.entered.get(rule, 0) + count
        return sum(report.num_matches_per_rule.values()) if report.updated else 0

    @property
    def graph(self) -> EGraph:
        """The same e-graph as a native one; without cycles where they are to be filtered."""
        if self._loaded is None:
            self._loaded = self._load()
            if self.filter_cycles:
                self._loaded.clean_up()
        return self._loaded

    @property
    def roots(self) -> tuple[int, ...]:
        """The classes of the program's outputs in :attr:`graph`."""
        graph = self.graph
        return tuple(graph.find(root) for root in graph.add_program(self.program))

    def _load(self) -> EGraph:
        graph = EGraph()
        graph.add_program(self.program)  # first, so that these are its oldest nodes
        frozen, number = self._egglog.freeze(), self._egglog.value_to_i64
        values: dict[Any, Any] = {}
        made: dict[Any, int] = {}  # egglog's class -> the native one
        waiting: dict[Any, list[_Row]] = {}
        ready: deque[_Row] = deque()
        for name, (op, operands) in self._operators.items():
            for row in frozen.functions[name].rows:
                for value in row.inputs[operands:]:
                    if value not in values:
                        values[value] = self._values[number(value)]
                params = tuple([values[value] for value in row.inputs[operands:]])
                ready.append(_Row(op, params, row.inputs[:operands], row.output))
        while ready:  # a node once the classes that it reads are there; some node of each class needs older ones only
            node = ready.popleft()
            missing = next((child for child in node.children if child not in made), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(node)
                continue
            cls = graph.add(node.op, node.params, [made[child] for child in node.children])
            known = made.setdefault(node.cls, cls)
            if known == cls:
                ready.extend(waiting.pop(node.cls, ()))
            else:
                graph.union(known, cls)
        assert not waiting, "a class that no program computes"
        graph.rebuild()
        return graph
