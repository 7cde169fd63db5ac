"""Checks rules by running both sides on random shapes and values in float64.

A trial draws shapes for a rule's tensor variables and values for its parameters until the source fits. Where the
condition holds, the matcher must find the rule there, and the program that :meth:`Matcher.apply` makes must give the
same outputs; where it does not hold, the matcher must not find it. So what is checked is what optimisers use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt_gym.envs.rewrite.rules.matching import CompiledRule, Match, Matcher
from graphopt_gym.envs.rewrite.rules.patterns import FUNCTIONS, Expr, Pattern, Rule, Var
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program.execute import execute, random_values
from graphopt_gym.graphs.tensor_program.ops import ACTIVATIONS, OPS, PADDINGS, Shape
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram
from graphopt_gym.graphs.tensor_program.text import program_text

RELATIVE_ERROR = 1e-10  # float64 on tensors of some hundred elements; a wrong rule is off by about 1


@dataclass
class RuleReport:
    """What the trials of one rule found.

    Attributes:
        held: trials in which the condition held and both sides were compared.
        refused: trials in which the source fitted but the condition did not hold, and the rule did not match.
        worst: the largest difference of two outputs, relative to the largest absolute value.
        failure: the first trial that went wrong, in words with the program; empty: none did.
    """

    rule: Rule
    held: int = 0
    refused: int = 0
    worst: float = 0.0
    failure: str = ""
    drawn: int = field(default=0, repr=False)

    @property
    def conditional(self) -> bool:
        """Whether the rule can be refused where its source fits: it has a condition or a computed parameter."""
        parts = [value for source in self.rule.source for part in source.ops() for value in part.params]
        return self.rule.condition is not None or any(value.kind == "computed" for value in parts)


def verify_rule(rule: Rule, trials: int = 40, seed: int = 0, draws: int = 20_000) -> RuleReport:
    """Runs trials until the rule held in ``trials`` of them and, if it is conditional, was refused in a fifth as many.

    Args:
        draws: how many random instances to draw at most.
    """
    report = RuleReport(rule)
    matcher = Matcher([rule])
    chance = random.Random(f"{rule.name} {seed}")
    refusals = trials // 5 if report.conditional else 0
    while (report.held < trials or report.refused < refusals) and report.drawn < draws and not report.failure:
        report.drawn += 1
        perturb = report.conditional and report.refused < refusals and chance.random() < 0.5
        instance = draw_instance(rule, matcher.compiled[0], chance, perturb)
        if instance is not None:
            _try(report, matcher, *instance, compare=report.held < trials)
    return report


def verify_rules(rules: Iterable[Rule], trials: int = 40, seed: int = 0) -> list[RuleReport]:
    """A report for each rule."""
    return [verify_rule(rule, trials, seed) for rule in rules]


def _try(report: RuleReport, matcher: Matcher, program: TensorProgram, match: Match, compare: bool) -> None:
    holds = matcher.compiled[0].holds(program.nodes, match.roots, *match.binding)
    if matcher.rules[0].symmetric and match.roots[0] > match.roots[1]:
        return
    found = match in matcher.find(program).matches
    if not holds:
        report.refused += 1
        if found:
            report.failure = f"it matches where its condition does not hold:\n{program_text(program)}"
        return
    if not compare or matcher.cyclic(program, match):
        return
    if not found:
        report.failure = f"it does not match where its condition holds:\n{program_text(program)}"
        return
    try:
        rewritten, _ = matcher.apply(program, match)
    except (InputError, IndexError, ValueError) as error:
        report.failure = f"its target does not fit where its condition holds: {error}\n{program_text(program)}"
        return
    report.held += 1
    apart = outputs_apart(program, rewritten, seed=report.drawn)
    report.worst = max(report.worst, apart)
    if not apart <= RELATIVE_ERROR:  # so that a NaN fails
        texts = f"{program_text(program)}\n{program_text(rewritten)}"
        report.failure = f"both sides differ by {apart:.3g} of the largest value:\n{texts}"


def outputs_apart(program: TensorProgram, rewritten: TensorProgram, seed: int = 0) -> float:
    """How far the outputs of two programs are apart on random values, relative to the largest; NaN if one has a NaN."""
    values = random_values(program, seed=seed)
    pairs = zip(execute(program, values), execute(rewritten, values), strict=True)
    apart = [np.abs(before - after).max() / max(np.abs(before).max(), 1e-3) for before, after in pairs]
    return float(np.max(apart))


# -- drawing instances -------------------------------------------------------------------------------------------------

_OPERAND_ROLES = {
    "conv2d": ("image", "kernel"),
    "maxpool": ("image",),
    "avgpool": ("image",),
    "smul": ("", "scalar"),
    "matmul": ("matrix", "matrix"),
    "enlarge": ("kernel",),
    "merge": ("kernel",),
    "layernorm": ("", "suffix", "suffix"),
}
BESIDE = ("channels", "suffix")  # roles of what is added or multiplied with another tensor
_SAID = {
    "channels": r"scales_channels\(shape\((\w+)\)",
    "suffix": r"rank\((\w+)\) < rank|elements\((\w+)\)",
}  # by a condition


def _roles(rule: Rule) -> dict[str, str]:
    """What each tensor variable is used as: image, kernel, matrix, scalar, a number for each channel (channels), what
    broadcasts along the last axes (suffix), or anything ("")."""
    roles = dict.fromkeys(rule.tensors, "")

    def visit(part: Pattern | Var, role: str) -> None:
        if isinstance(part, Var):
            roles[part.name] = roles[part.name] or role
            return
        below = _OPERAND_ROLES.get(part.op, ())
        for index, operand in enumerate(part.operands):
            own = below[index] if index < len(below) else ""
            visit(operand, own or ("" if part.op in ("transpose", "reshape") and role != "matrix" else role))

    for side in (rule.source, rule.target):  # a target may say more: relu(x) under a pool
        for part in side:
            visit(part, "")
    for role, said in _SAID.items():
        for found in re.finditer(said, str(rule.condition or "")):
            roles[str(found[found.lastindex or 1])] = role
    return roles


def draw_instance(
    rule: Rule, compiled: CompiledRule, chance: random.Random, perturb: bool = False
) -> tuple[TensorProgram, Match] | None:
    """A program that is the rule's source on random leaves, and the match there; None where the draw does not fit."""
    rank = chance.choice((2, 2, 2, 3, 3, 4))
    sizes = chance.sample((1, 2, 3, 4, 5), chance.choice((1, 2, 2, 3)))
    builder = ProgramBuilder(rule.name)
    ids: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    roles = _roles(rule)
    for name in sorted(rule.tensors, key=lambda name: roles[name] in BESIDE):  # these last: they follow the others
        if roles[name] in BESIDE:
            shapes[name] = _beside(roles[name], shapes, roles, chance)
            ids[name] = builder.input(name, shapes[name])
            continue
        shapes[name] = _shape(roles[name], rank, sizes, [shapes[n] for n in shapes if roles[n] == roles[name]], chance)
        if "channels" in roles.values() and roles[name] == "image" and chance.random() < 0.5:
            shapes[name] = (1, 2, *shapes[name][2:])
        if "channels" in roles.values() and roles[name] == "kernel" and chance.random() < 0.8:
            images = [shapes[n][1] for n in shapes if roles[n] == "image"]  # as wide as the image, as a skip needs
            shapes[name] = (images[0], images[0], *shapes[name][2:]) if images else shapes[name]
        same = [other for other in ids if shapes[other] == shapes[name]]
        if same and chance.random() < 0.05:
            ids[name] = ids[chance.choice(same)]  # one tensor for two variables
        else:
            ids[name] = builder.input(name, shapes[name])
    if any(roles[name] in ("image", "kernel") for name in roles):
        rank = 4
    kinds = _parameter_kinds(rule)
    params = {name: _value(kinds[name], rank, shapes, chance) for name in rule.params}
    try:
        roots = tuple(
            _build(builder, source, ids, params, shapes, chance if perturb else None) for source in rule.source
        )
        if len(set(roots)) < len(roots):
            return None
        program = builder.finish(roots)
    except (InputError, IndexError, ValueError, ZeroDivisionError):
        return None
    # what is stored may be the parameter in another form: read the binding back
    found: dict[str, Any] = {}
    for search, names, root in zip(compiled.sources, compiled.names, roots, strict=True):
        binding = search(program.nodes, root)
        if binding is None or any(found.setdefault(n, v) != v for n, v in zip(names, binding, strict=True)):
            return None
    try:
        values = tuple(found[name] for name in (*rule.tensors, *rule.params))
        compiled.holds(program.nodes, roots, *values)
    except (IndexError, ValueError):
        return None
    return program, Match(0, roots, values)


def _beside(role: str, shapes: Mapping[str, Shape], roles: Mapping[str, str], chance: random.Random) -> Shape:
    """The shape of what is added to, or multiplied with, a tensor that was drawn before."""
    same = [shape for name, shape in shapes.items() if roles[name] == role]
    if same and chance.random() < 0.9:
        return same[0]
    if role == "suffix":
        others = [shape for shape in shapes.values() if shape]
        like = chance.choice(others) if others else (2, 3)
        return like[-1 if chance.random() < 0.5 else -chance.randint(1, len(like)) :]
    counts = [shape[0 if roles[name] == "kernel" else 1] for name, shape in shapes.items() if len(shape) == 4]
    count = chance.choice(counts) if counts and chance.random() < 0.9 else chance.choice((1, 2, 4))
    shape = (count, 1, 1) if chance.random() < 0.95 else (count, 1, 2)
    return shape if chance.random() < 0.8 else (1, *shape)


def _shape(role: str, rank: int, sizes: list[int], like: list[Shape], chance: random.Random) -> Shape:
    if role == "scalar":
        return ()
    if like and chance.random() < 0.75:
        shape = list(chance.choice(like))
        if shape and chance.random() < 0.4:
            axis = chance.randrange(len(shape))
            spatial = role == "kernel" and axis >= 2
            shape[axis] = chance.choice((1, 3)) if spatial else chance.choice((1, 2, 3, 4, 6))
        if role == "kernel" and chance.random() < 0.2:
            shape[2:] = shape[3], shape[2]
        return tuple(shape)
    if role == "image":
        return (chance.choice((1, 2)), chance.choice((1, 2, 4)), chance.randint(3, 6), chance.randint(3, 6))
    if role == "kernel":
        return (chance.choice((1, 2, 4)), chance.choice((1, 2, 4)), chance.choice((1, 3)), chance.choice((1, 3)))
    if role == "matrix":
        rank = min(max(2, rank if chance.random() < 0.8 else chance.choice((2, 3))), 3)
    elif chance.random() < 0.1:
        rank = chance.randint(1, 4)
    return tuple(chance.choice(sizes) for _ in range(rank))


def _parameter_kinds(rule: Rule) -> dict[str, tuple[str, str]]:
    """Parameter variable -> (operator, parameter) where it is bound."""
    kinds: dict[str, tuple[str, str]] = {}
    for source in rule.source:
        for part in source.ops():
            for name, value in zip(OPS[part.op].params, part.params, strict=True):
                if value.kind == "name":
                    kinds.setdefault(value.text, (part.op, name))
    return kinds


def _value(kind: tuple[str, str], rank: int, shapes: Mapping[str, Shape], chance: random.Random) -> Any:
    op, name = kind
    if name == "act":
        return chance.choice(ACTIVATIONS)
    if name == "padding":
        return chance.choice(PADDINGS)
    if name == "perm":
        return tuple(chance.sample(range(rank), rank))
    if name == "stride":
        return chance.choice(((1, 1), (1, 1), (2, 2), (1, 2), (2, 1)))
    if name in ("kernel", "size"):
        sizes = (1, 2, 3) if name == "kernel" else (1, 3, 5)
        return chance.choice(sizes), chance.choice(sizes)
    if OPS[op].params[name][0] == "float":
        return chance.choice((0.5, 1.0, 2.0, 3.0))
    if name == "axes":
        return tuple(sorted(chance.sample(range(rank), chance.randint(1, rank))))
    if name == "axis":
        return chance.randrange(rank)
    if name == "shape":
        shape = list(chance.choice(list(shapes.values()) or [()]))
        if op == "identity_kernel":
            return chance.choice((1, 2, 4)), chance.choice((1, 2, 4)), chance.choice((1, 3)), chance.choice((1, 3))
        if shape and chance.random() < 0.3:  # of a part
            axis = chance.randrange(len(shape))
            shape[axis] = chance.randint(1, shape[axis])
        if chance.random() < 0.5:
            chance.shuffle(shape)
        if len(shape) < 4 and chance.random() < 0.3:  # an axis in two
            axis = chance.randrange(len(shape) + 1)
            even = axis < len(shape) and shape[axis] % 2 == 0
            shape[axis : axis + 1] = [2, shape[axis] // 2] if even else [1, *shape[axis : axis + 1]]
        while len(shape) > 1 and chance.random() < 0.4:
            shape[:2] = [shape[0] * shape[1]]
        return tuple(shape)
    return chance.choice((1, 2, 3, 4))


def _build(
    builder: ProgramBuilder,
    part: Pattern | Var,
    ids: Mapping[str, int],
    params: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    perturb: random.Random | None,
) -> int:
    """Adds a source pattern; with ``perturb``, a computed parameter may get another value than it should."""
    if isinstance(part, Var):
        return ids[part.name]
    inputs = [_build(builder, operand, ids, params, shapes, perturb) for operand in part.operands]
    values = []
    for name, value in zip(OPS[part.op].params, part.params, strict=True):
        if value.kind == "computed" and perturb is not None and perturb.random() < 0.5:
            values.append(_value((part.op, name), len(builder.shape(inputs[0])) if inputs else 2, shapes, perturb))
        else:
            values.append(_evaluate(value, params, shapes))
    return builder.add(part.op, tuple(values), inputs)


def _evaluate(value: Expr, params: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Any:
    if value.kind == "literal":
        return value.value
    if value.kind == "name":
        return params[value.text]
    return eval(value.text, dict(FUNCTIONS), {**shapes, **params})


def _main() -> None:
    """Verifies the whole table, with as many trials a rule as the first argument says."""
    import sys

    from graphopt_gym.envs.rewrite.rules.table import rules

    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    reports = [verify_rule(rule, trials, seed=1, draws=400 * trials) for rule in rules()]
    for report in reports:
        if report.failure:
            print(f"{report.rule.name}: {report.failure}")
        elif report.held < trials:
            print(f"{report.rule.name}: held in {report.held} trials only")
    held, refused = sum(report.held for report in reports), sum(report.refused for report in reports)
    worst = max(report.worst for report in reports)
    print(f"{len(reports)} rules, {held} trials held, {refused} refused, largest relative difference {worst:.2g}")
    raise SystemExit(1 if any(report.failure for report in reports) else 0)


if __name__ == "__main__":
    _main()
