"""Where rules match a program, kept up to date from one rewrite to the next, and applying a match.

A program's node is one op, so a pattern matches at a root in one way or not at all; each pattern becomes a Python
function. Of a multi-pattern rule each source pattern is searched by itself and filed under the variables that both
share; only those filed under the same are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from graphopt_gym.envs.rewrite.rules.patterns import FUNCTIONS, Expr, Pattern, Rule, Var
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program.program import Change, Node, TensorProgram

Binding = tuple[Any, ...]
MatchPattern = Callable[[Mapping[int, Node], int], Binding | None]  # one source pattern at a root


class Match(NamedTuple):
    """A rule at a place: ``binding`` holds the nodes of ``rule.tensors``, then the values of ``rule.params``."""

    rule: int  # index into the matcher's rules
    roots: tuple[int, ...]  # the nodes to be replaced, one a source pattern
    binding: Binding


@dataclass(frozen=True)
class CompiledRule:
    """A rule as functions.

    Attributes:
        sources: for each source pattern: (nodes, root) -> values of ``names`` of that pattern, or None.
        names: for each source pattern, the variables that it binds, tensors first.
        holds: (nodes, roots, *binding) -> whether the condition holds, the source's computed parameters are right, and
            the targets are not the roots themselves (x + x commuted), which would change nothing.
        build: (builder, *binding) -> (ids of the targets, ids of all ops of the targets).
        build_source: the same for the source, computed parameters computed.
    """

    rule: Rule
    sources: tuple[MatchPattern, ...]
    names: tuple[tuple[str, ...], ...]
    holds: Callable[..., bool]
    build: Callable[..., tuple[tuple[int, ...], list[int]]]
    build_source: Callable[..., tuple[tuple[int, ...], list[int]]]


def compile_rule(rule: Rule) -> CompiledRule:
    """The functions of a rule."""
    variables = (*rule.tensors, *rule.params)
    names = tuple((*source.tensors, *source.bound) for source in rule.source)
    return CompiledRule(
        rule,
        tuple(_compile_source(source, bound) for source, bound in zip(rule.source, names, strict=True)),
        names,
        _compile_condition(rule),
        _compile_build(rule.tensors, variables, rule.target),
        _compile_build(rule.tensors, variables, rule.source),
    )


def compile_lines(lines: Sequence[str]) -> Callable[..., Any]:
    """The function ``function`` that lines of Python define; they may call FUNCTIONS."""
    scope: dict[str, Any] = dict(FUNCTIONS)
    exec("\n".join(lines), scope)
    return scope["function"]


def _compile_source(source: Pattern, bound: Sequence[str]) -> MatchPattern:
    """Structure and plain parameters; computed ones are left to the condition, which knows all variables."""
    lines = ["def function(nodes, root):", " n0 = nodes[root]"]
    seen: set[str] = set()
    counter = 0

    def visit(pattern: Pattern, node: str) -> None:
        nonlocal counter
        lines.append(f" if {node}[0] != {pattern.op!r}: return None")
        for index, value in enumerate(pattern.params):
            place = f"{node}[1][{index}]"
            if value.kind == "literal":
                lines.append(f" if {place} != {value.value!r}: return None")
            elif value.kind == "name":
                bind(value.text, place)
        if pattern.op == "concat":
            lines.append(f" if len({node}[2]) != {len(pattern.operands)}: return None")
        for index, operand in enumerate(pattern.operands):
            place = f"{node}[2][{index}]"
            if isinstance(operand, Var):
                bind(operand.name, place)
            else:
                counter += 1
                below = f"n{counter}"
                lines.append(f" {below} = nodes[{place}]")
                visit(operand, below)

    def bind(name: str, place: str) -> None:
        if name in seen:
            lines.append(f" if v_{name} != {place}: return None")
        else:
            seen.add(name)
            lines.append(f" v_{name} = {place}")

    visit(source, "n0")
    lines.append(f" return ({''.join(f'v_{name}, ' for name in bound)})")
    return compile_lines(lines)


def _computed(patterns: Iterable[Pattern | Var]) -> Iterator[tuple[list[tuple[int, int]], Expr]]:
    """Computed parameters of patterns, each with the way to it: (operand index, ...) ending in the parameter's."""
    for pattern in patterns:
        if isinstance(pattern, Pattern):
            yield from _computed_below(pattern, [])


def _computed_below(pattern: Pattern, way: list[tuple[int, int]]) -> Iterator[tuple[list[tuple[int, int]], Expr]]:
    for index, value in enumerate(pattern.params):
        if value.kind == "computed":
            yield [*way, (1, index)], value
    for index, operand in enumerate(pattern.operands):
        if isinstance(operand, Pattern):
            yield from _computed_below(operand, [*way, (2, index)])


def _compile_condition(rule: Rule) -> Callable[..., bool]:
    variables = ", ".join(f"v_{name}" for name in (*rule.tensors, *rule.params))
    names = {name: f"s_{name}" for name in rule.tensors} | {name: f"v_{name}" for name in rule.params}
    lines = [f"def function(nodes, roots, {variables}):"]
    read: set[str] = set()
    tests = []
    for index, source in enumerate(rule.source):
        for way, value in _computed([source]):
            node = f"nodes[roots[{index}]]"
            for where, place in way[:-1]:
                node = f"nodes[{node}[{where}][{place}]]"
            tests.append(f"{node}[1][{way[-1][1]}] == {value.source(names)}")
            read.update(value.names)
    if rule.condition is not None:
        tests.insert(0, f"({rule.condition.source(names)})")
        read.update(rule.condition.names)
    unchanged = _unchanged_tests(rule, names)
    if all(found is not None for found in unchanged):
        same = [test for found in unchanged for test in found or ()]
        tests.append(f"not ({' and '.join(same) or 'True'})")
        read.update(name for name in rule.tensors if f"s_{name}" in tests[-1])
    lines.extend(f" s_{name} = nodes[v_{name}][3]" for name in rule.tensors if name in read)
    lines.append(f" return {' and '.join(tests) or 'True'}")
    return compile_lines(lines)


def _unchanged_tests(rule: Rule, names: Mapping[str, str]) -> list[list[str] | None]:
    return [
        _unchanged(target, source, f"roots[{index}]", names)
        for index, (source, target) in enumerate(zip(rule.source, rule.target, strict=True))
    ]


def may_be_unchanged(rule: Rule) -> bool:
    """Whether a rule's targets may be its roots themselves; then its condition reads nodes below what it matches."""
    names = {name: name for name in (*rule.tensors, *rule.params)}
    return all(found is not None for found in _unchanged_tests(rule, names))


def _unchanged(
    target: Pattern | Var, source: Pattern | Var | None, place: str, names: Mapping[str, str]
) -> list[str] | None:
    """What must hold for a target to be what stands at a place already; None: it never is.

    Args:
        source: what of the source pattern stands there; None: nothing, it is below a variable.
    """
    if isinstance(target, Var):
        return (
            None if isinstance(source, Pattern) and target.name in source.tensors else [f"v_{target.name} == {place}"]
        )
    tests = []
    if isinstance(source, Pattern):
        if source.op != target.op or len(source.operands) != len(target.operands):
            return None
    elif source is not None and source.name in target.tensors:
        return None
    else:
        tests = [f"nodes[{place}][0] == {target.op!r}", f"len(nodes[{place}][2]) == {len(target.operands)}"]
    for index, value in enumerate(target.params):
        known = source.params[index] if isinstance(source, Pattern) else None
        if known is not None and known.kind == value.kind == "literal" and known.value != value.value:
            return None
        if known is None or str(known) != str(value):
            tests.append(f"nodes[{place}][1][{index}] == {value.source(names)}")
    for index, operand in enumerate(target.operands):
        below = source.operands[index] if isinstance(source, Pattern) else None
        if isinstance(operand, Var) and operand == below:
            continue
        found = _unchanged(operand, below, f"nodes[{place}][2][{index}]", names)
        if found is None:
            return None
        tests.extend(found)
    return tests


def _compile_build(
    tensors: Sequence[str], variables: Sequence[str], patterns: Sequence[Pattern | Var]
) -> Callable[..., tuple[tuple[int, ...], list[int]]]:
    lines = [f"def function(builder, {', '.join(f'v_{name}' for name in variables)}):", " add = builder.add"]
    lines.extend(f" s_{name} = builder.shape(v_{name})" for name in tensors)
    names = {name: f"s_{name}" if name in tensors else f"v_{name}" for name in variables}
    made: dict[Pattern, str] = {}

    def visit(pattern: Pattern | Var) -> str:
        if isinstance(pattern, Var):
            return f"v_{pattern.name}"
        if pattern not in made:
            inputs = "".join(f"{visit(operand)}, " for operand in pattern.operands)
            params = "".join(f"{value.source(names)}, " for value in pattern.params)
            made[pattern] = f"n{len(made)}"
            lines.append(f" {made[pattern]} = add({pattern.op!r}, ({params}), ({inputs}))")
        return made[pattern]

    roots = "".join(f"{visit(pattern)}, " for pattern in patterns)
    lines.append(f" return ({roots}), [{', '.join(made.values())}]")
    return compile_lines(lines)


@dataclass(frozen=True)
class _Half:
    """One source pattern of a multi-pattern rule: how it is searched, and which of its variables are shared."""

    match: MatchPattern
    shared: tuple[int, ...]  # where the shared variables stand in what `match` gives
    operator: str


class _Pair(NamedTuple):
    rule: int
    halves: tuple[int, int]
    take: tuple[tuple[int, int], ...]  # for each variable of the rule: which half, and where in it
    symmetric: bool


class MatchSet:
    """All matches in one program. Made by :meth:`Matcher.find` and :meth:`Matcher.update`."""

    def __init__(
        self,
        matcher: Matcher,
        program: TensorProgram,
        single: dict[int, tuple[Match, ...]],
        filed: dict[int, tuple[tuple[int, Binding, Binding], ...]],
        files: dict[tuple[int, Binding], dict[int, Binding]],
        paired: dict[tuple[int, Binding], tuple[Match, ...]],
    ) -> None:
        self.matcher, self.program = matcher, program
        self._single = single  # root -> matches of single-pattern rules
        self._filed = filed  # root -> (half, shared, binding) of each half that matches there
        self._files = files  # (half, shared) -> root -> binding
        self._paired = paired  # (first half, shared) -> its pairs, cycles or not, where they have been asked for

    @cached_property
    def matches(self) -> tuple[Match, ...]:
        """In order of rule, then roots. Pairs that would make the program cyclic are left out."""
        found = [match for matches in self._single.values() for match in matches]
        found.extend(self._pairs())
        return tuple(sorted(found))

    def _pairs(self) -> Iterator[Match]:
        pairs_of, position, tensors_of = self.matcher.pairs_of, self.program.position, self.matcher.tensors_of
        for key, first in self._files.items():
            if key[0] not in pairs_of:
                continue
            found = self._paired.get(key)
            if found is None:
                found = self._paired[key] = tuple(self._paired_at(key, first))
            for match in found:
                rule, (root, other), binding = match
                least = min(position[root], position[other])
                for tensor in binding[: tensors_of[rule]]:
                    if position[tensor] >= least and self.matcher.cyclic(self.program, match):
                        break
                else:
                    yield match

    def _paired_at(self, key: tuple[int, Binding], first: dict[int, Binding]) -> Iterator[Match]:
        """The pairs of the first halves filed under a key, whether or not they would make the program cyclic."""
        nodes, (half, shared) = self.program.nodes, key
        for pair in self.matcher.pairs_of[half]:
            second = first if pair.halves[1] == half else self._files.get((pair.halves[1], shared))
            if second is None:
                continue
            holds = self.matcher.compiled[pair.rule].holds
            for root, binding in first.items():
                for other, other_binding in second.items():
                    if root == other or (pair.symmetric and root > other):
                        continue
                    halves = (binding, other_binding)
                    joined = tuple([halves[half_][place] for half_, place in pair.take])
                    if holds(nodes, (root, other), *joined):
                        yield Match(pair.rule, (root, other), joined)

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)


class Matcher:
    """Finds and applies a set of rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.compiled = tuple(compile_rule(rule) for rule in self.rules)
        self.reach = max((source.depth for rule in self.rules for source in rule.source), default=1) - 1
        self._singles: dict[str, list[tuple[int, MatchPattern, Callable[..., bool]]]] = {}
        self._halves: list[_Half] = []
        self._halves_of: dict[str, list[int]] = {}
        self.pairs_of: dict[int, list[_Pair]] = {}
        self.tensors_of = tuple(len(rule.tensors) for rule in self.rules)
        self._firsts_of: dict[int, set[int]] = {}  # the first halves that a second one is paired with
        self._lasting = True  # whether pairs stay while their halves do: conditions read no more than halves match
        known: dict[str, int] = {}
        for index, compiled in enumerate(self.compiled):
            if compiled.rule.multi:
                self._add_pair(index, compiled, known)
            else:
                (pattern,) = compiled.rule.source
                entry = (index, compiled.sources[0], compiled.holds)
                self._singles.setdefault(pattern.op, []).append(entry)

    def __reduce__(self) -> tuple[Any, ...]:
        return Matcher, (self.rules,)  # what it compiled are functions, which are compiled again

    def __deepcopy__(self, memo: dict[int, Any]) -> Matcher:
        return self  # it does not change

    def _add_pair(self, index: int, compiled: CompiledRule, known: dict[str, int]) -> None:
        rule = compiled.rule
        first, second = compiled.names
        shared = [name for name in first if name in second]
        halves = []
        for source, names, match in zip(rule.source, compiled.names, compiled.sources, strict=True):
            key = canonical(source, shared)
            if key not in known:  # halves that search for the same are searched for once
                known[key] = len(self._halves)
                self._halves_of.setdefault(source.op, []).append(known[key])
                places = tuple(names.index(name) for name in shared)
                self._halves.append(_Half(match, places, source.op))
            halves.append(known[key])
        if rule.symmetric and halves[0] != halves[1]:
            raise InputError(f"rule {rule.name!r} says that it is symmetric, but its source patterns differ")
        take = tuple(
            (0, first.index(name)) if name in first else (1, second.index(name))
            for name in (*rule.tensors, *rule.params)
        )
        pair = _Pair(index, (halves[0], halves[1]), take, rule.symmetric)
        self.pairs_of.setdefault(halves[0], []).append(pair)
        self._firsts_of.setdefault(halves[1], set()).add(halves[0])
        self._lasting &= not may_be_unchanged(rule)

    def find(self, program: TensorProgram) -> MatchSet:
        """All matches in a program, searched from nothing."""
        return self._search(MatchSet(self, program, {}, {}, {}, {}), program, program.nodes, ())

    def update(self, before: MatchSet, program: TensorProgram, change: Change) -> MatchSet:
        """All matches in a program that an edit made, searching only where it changed, and what reads that.

        Args:
            before: the matches in the program that was edited.
            change: what the edit changed, as :meth:`apply` and ``finish_change`` give it.
        """
        near = change.added | change.rewired
        fringe = near
        for _ in range(self.reach):
            fringe = frozenset(user for node in fringe for user in program.users(node)) - near
            near |= fringe
        return self._search(before, program, near, change.removed)

    def _search(
        self, before: MatchSet, program: TensorProgram, places: Iterable[int], removed: Iterable[int]
    ) -> MatchSet:
        single, filed, files = dict(before._single), dict(before._filed), dict(before._files)
        own: set[tuple[int, Binding]] = set()  # files that are this set's own, not shared with `before`

        def file(key: tuple[int, Binding]) -> dict[int, Binding]:
            if key not in own:
                files[key] = dict(files.get(key, ()))
                own.add(key)
            return files[key]

        def forget(root: int) -> None:
            single.pop(root, None)
            for half, shared, _ in filed.pop(root, ()):
                entries = file((half, shared))
                del entries[root]

        for root in removed:
            forget(root)
        nodes = program.nodes
        for root in places:
            forget(root)
            op = nodes[root].op
            found = []
            for index, match, holds in self._singles.get(op, ()):
                binding = match(nodes, root)
                if binding is not None and holds(nodes, (root,), *binding):
                    found.append(Match(index, (root,), binding))
            if found:
                single[root] = tuple(found)
            entries = []
            for half in self._halves_of.get(op, ()):
                search = self._halves[half]
                binding = search.match(nodes, root)
                if binding is not None:
                    shared = tuple([binding[place] for place in search.shared])
                    file((half, shared))[root] = binding
                    entries.append((half, shared, binding))
            if entries:
                filed[root] = tuple(entries)
        paired = dict(before._paired) if self._lasting else {}
        for key in own:
            if not files[key]:
                del files[key]
            paired.pop(key, None)
            for half in self._firsts_of.get(key[0], ()):
                paired.pop((half, key[1]), None)
        return MatchSet(self, program, single, filed, files, paired)

    def cyclic(self, program: TensorProgram, match: Match) -> bool:
        """Whether something that a match reads depends on a node that it replaces."""
        if len(match.roots) < 2:
            return False
        position = program.position
        tensors = match.binding[: len(self.rules[match.rule].tensors)]
        return any(
            position[tensor] >= position[root] and program.depends_on(tensor, root)
            for tensor in tensors
            for root in match.roots
        )

    def matches_at(self, program: TensorProgram, match: Match) -> bool:
        """Whether a match is one of the program: the same nodes and parameters, the condition holds, and no cycle."""
        compiled, nodes = self.compiled[match.rule], program.nodes
        if any(root not in nodes for root in match.roots) or len(set(match.roots)) < len(match.roots):
            return False
        found: dict[str, Any] = {}
        for search, names, root in zip(compiled.sources, compiled.names, match.roots, strict=True):
            binding = search(nodes, root)
            if binding is None:
                return False
            for name, value in zip(names, binding, strict=True):
                if found.setdefault(name, value) != value:
                    return False
        values = tuple(found[name] for name in (*compiled.rule.tensors, *compiled.rule.params))
        return (
            values == match.binding and compiled.holds(nodes, match.roots, *values) and not self.cyclic(program, match)
        )

    def apply(self, program: TensorProgram, match: Match) -> tuple[TensorProgram, Change]:
        """The program with a match's roots replaced by its targets; nodes that nothing needs any more are gone.

        A rewrite whose target is there already, as the root itself, changes nothing.

        Raises:
            InputError: the match is not one of this program, or would make it cyclic.
        """
        if not 0 <= match.rule < len(self.rules):
            raise InputError(f"match of rule {match.rule}; rules are 0 to {len(self.rules) - 1}")
        if not self.matches_at(program, match):
            raise InputError(f"rule {self.rules[match.rule].name!r} does not match at nodes {match.roots}")
        edit = program.edit()
        targets, made = self.compiled[match.rule].build(edit, *match.binding)
        by = dict(zip(match.roots, targets, strict=True))
        if any(node in by and by[node] != node for node in made):
            raise InputError(
                f"rule {self.rules[match.rule].name!r} at nodes {match.roots}: its target reads what it replaces"
            )
        edit.replace(by)
        return edit.finish_change()


def canonical(pattern: Pattern, shared: Sequence[str]) -> str:
    """The pattern's text, with shared variables named by their order, and others by where they first occur."""
    names = {name: f"shared{index}" for index, name in enumerate(shared)}
    for name in (*pattern.tensors, *pattern.bound):
        names.setdefault(name, f"own{len(names)}")

    def text(part: Pattern | Var) -> str:
        if isinstance(part, Var):
            return names[part.name]
        params = [value.source(names) if value.kind != "computed" else "computed" for value in part.params]
        return f"{part.op}({', '.join([*map(text, part.operands), *params])})"

    return text(pattern)
