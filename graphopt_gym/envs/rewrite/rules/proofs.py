"""Proves rules for all values at small shapes: both sides as polynomials over symbolic entries, compared by z3.

A rule's source is built on leaves whose entries are real variables, at a few small random shapes where its condition
holds; the program that :meth:`Matcher.apply` makes of it must have the same entries. Sums of monomials decide
element-wise operators, products and convolutions; ``relu`` and ``maxpool`` are cases on reals, and what is left of
them goes to the solver; ``tanh``, ``sigmoid``, quotients and the like may be any function, ``softmax`` and
``layernorm`` any function of a row (and of scale and bias). What is proved holds for all values at these
shapes; other shapes are left to :mod:`graphopt_gym.envs.rewrite.rules.verification`.

    python -m graphopt_gym.envs.rewrite.rules.proofs      # the table: each rule, whether proved, at which shapes
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt_gym.envs.rewrite.rules.matching import Match, Matcher
from graphopt_gym.envs.rewrite.rules.patterns import Pattern, Rule
from graphopt_gym.envs.rewrite.rules.verification import RELATIVE_ERROR, draw_instance, outputs_apart
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.graphs.tensor_program.execute import NUMPY_OPS, windows
from graphopt_gym.graphs.tensor_program.ops import PARAMETRIC, PLAIN
from graphopt_gym.graphs.tensor_program.program import TensorProgram

OPAQUE = frozenset(("opaque", "getitem"))
STATUSES = ("proved", "refuted", "undecided", "not attempted")
MOST_WORK = 500  # multiplications that an instance may take
INSTANCES = 40  # random instances that are executed
DRAWS = 6_000


@dataclass(frozen=True)
class Proof:
    """What became of proving a rule.

    Attributes:
        status: one of :data:`STATUSES`.
        shapes: of the tensor variables, for each instance that both sides were proved equal at.
        reason: a counterexample; what was not decided; why nothing was attempted. Empty where proved.
    """

    rule: Rule
    status: str
    shapes: tuple[str, ...] = ()
    reason: str = ""


def prove_rule(rule: Rule, instances: int = 2, seed: int = 0, timeout_s: float = 2.0) -> Proof:
    """Proves both sides equal for all values at ``instances`` small shapes, and at a wrong one if execution finds it.

    A counterexample to a rule with ``tanh`` or ``sigmoid`` may need another function in their place.

    Args:
        timeout_s: for the solver, for each entry that sums of monomials do not decide.

    Raises:
        InputError: z3 is not installed.
    """
    need("z3", what="a proof of a rule")
    used = {part.op for side in (rule.source, rule.target) for p in side if isinstance(p, Pattern) for part in p.ops()}
    if used & OPAQUE:
        return Proof(rule, "not attempted", reason=f"{', '.join(sorted(used & OPAQUE))} is opaque")
    matcher = Matcher([rule])
    found = []
    for program, match in _instances(rule, matcher, seed):
        at = ", ".join(f"{name} {program.shape(node)}" for name, node in zip(rule.tensors, match.binding, strict=False))
        try:
            rewritten, _ = matcher.apply(program, match)
        except (InputError, IndexError, ValueError) as error:
            return Proof(rule, "refuted", reason=f"at {at} the target does not fit: {error}")
        work = max(_work(program), _work(rewritten))
        if not outputs_apart(program, rewritten) <= RELATIVE_ERROR:  # so look there
            found = [(work, at, program, rewritten)] * instances
            break
        if work <= MOST_WORK:
            found.append((work, at, program, rewritten))
    if len(found) < instances:
        return Proof(rule, "not attempted", reason=f"{len(found)} small instances found, of {instances}")
    found.sort(key=lambda entry: entry[:2])
    shapes: list[str] = []
    for place in np.linspace(0, len(found) - 1, instances).astype(int):  # from the least work to the most
        _, at, program, rewritten = found[place]
        status, reason = _compare(program, rewritten, timeout_s)
        if status != "proved":
            return Proof(rule, status, tuple(shapes), f"at {at}: {reason}")
        shapes.append(at)
    return Proof(rule, "proved", tuple(shapes))


def _instances(rule: Rule, matcher: Matcher, seed: int) -> Iterator[tuple[TensorProgram, Match]]:
    """Different random instances where the rule matches, no tensor twice and none of one entry but for factors."""
    chance = random.Random(f"{rule.name} {seed}")
    seen: set[str] = set()
    for _ in range(DRAWS):
        instance = draw_instance(rule, matcher.compiled[0], chance)
        if instance is None:
            continue
        program, match = instance
        tensors = match.binding[: len(rule.tensors)]
        if len(set(tensors)) < len(tensors) or not matcher.matches_at(program, match):
            continue
        if any(math.prod(program.shape(node)) == 1 and program.shape(node) != () for node in tensors):
            continue
        if program.fingerprint not in seen:
            seen.add(program.fingerprint)
            yield program, match
            if len(seen) == INSTANCES:
                return


def _work(program: TensorProgram) -> int:
    total = 0
    for op, _, inputs, shape in program.nodes.values():
        each = 1
        if op == "conv2d":
            each = math.prod(program.shape(inputs[1])[1:])
        elif op == "matmul":
            each = program.shape(inputs[0])[-1]
        total += math.prod(shape) * each
    return total


def _compare(program: TensorProgram, rewritten: TensorProgram, timeout_s: float) -> tuple[str, str]:
    """(status, reason) of two programs with the same leaves."""
    import z3

    leaves = {name: _symbols(name, shape) for op in ("input", "weight") for name, shape in program.leaves(op).items()}
    pairs = zip(_execute(program, leaves), _execute(rewritten, leaves), strict=True)
    for output, (left, right) in enumerate(pairs):
        if left.shape != right.shape:
            return "refuted", f"output {output} has shape {left.shape} on one side and {right.shape} on the other"
        for index in np.ndindex(left.shape):
            one, other = (_polynomial(side[index]) for side in (left, right))
            if one.eq(other) or z3.is_true(z3.simplify(one - other == 0, som=True)):
                continue
            solver = z3.Solver()
            solver.set("timeout", int(1000 * timeout_s))
            solver.add(one != other)
            answer = solver.check()
            if answer == z3.sat:
                model = solver.model()
                values = ", ".join(f"{entry} = {model[entry]}" for entry in sorted(model.decls(), key=str))
                sides = " and ".join(str(model.eval(side, model_completion=True)) for side in (one, other))
                return "refuted", f"entry {list(index)} of output {output} is {sides} with {values}"
            if answer != z3.unsat:
                return "undecided", f"entry {list(index)} of output {output}: the solver gave up"
    return "proved", ""


def _symbols(name: str, shape: tuple[int, ...]) -> np.ndarray:
    import z3

    entries = np.empty(shape, object)
    for index in np.ndindex(shape):
        entries[index] = z3.Real(f"{name}[{', '.join(map(str, index))}]" if index else name)
    return entries


def _polynomial(value: Any) -> Any:
    import z3

    return z3.simplify(value if z3.is_expr(value) else z3.RealVal(value), som=True)


def _execute(program: TensorProgram, leaves: dict[str, np.ndarray]) -> list[np.ndarray]:
    run = _operators()
    results: dict[int, np.ndarray] = {}
    for node in program.order:
        op, params, inputs, _ = program.nodes[node]
        if op in ("input", "weight"):
            results[node] = leaves[params[0]]
        else:
            results[node] = np.asarray(run(op, *[results[source] for source in inputs], *params), dtype=object)
    return [results[output] for output in program.outputs]


def _operators() -> Callable[..., Any]:
    """A function (op, *operands, *parameters) -> array of z3 terms."""
    import z3

    def each(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
        return np.frompyfunc(lambda value: function(_polynomial(value)), 1, 1)

    def any_function(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return each(z3.Function(name, z3.RealSort(), z3.RealSort()))

    def largest(x: np.ndarray, kernel: Any, stride: Any, padding: str) -> np.ndarray:
        seen = windows(x, kernel, stride, padding, None)
        result = np.empty(seen.shape[:4], object)
        for index in np.ndindex(result.shape):
            first, *others = [_polynomial(value) for value in seen[index].flat if value is not None]
            for other in others:
                first = z3.If(other > first, other, first)
            result[index] = first
        return result

    def mean(x: np.ndarray, kernel: Any, stride: Any, padding: str) -> np.ndarray:
        return windows(x, kernel, stride, padding, 0).sum(axis=(4, 5)) * z3.Q(1, math.prod(kernel))

    def any_function_of_rows(name: str, x: np.ndarray, axis: int, *others: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(x, axis, -1)
        length, result = rows.shape[-1], np.empty(rows.shape, object)
        more = [_polynomial(value) for other in others for value in other.flat]
        sorts = [z3.RealSort()] * (length + len(more) + 1)
        for index in np.ndindex(rows.shape):
            row = [_polynomial(value) for value in rows[index[:-1]]]
            result[index] = z3.Function(f"{name}_{length}_{index[-1]}", *sorts)(*row, *more)
        return np.moveaxis(result, -1, axis)

    quotient = z3.Function("quotient", z3.RealSort(), z3.RealSort(), z3.RealSort())

    def summed(x: np.ndarray, axes: tuple[int, ...], keepdims: int) -> np.ndarray:
        return np.asarray(np.sum(x, axis=axes, keepdims=bool(keepdims)), object)

    activations: dict[str, Callable[..., Any]] = {
        "none": lambda x: x,
        "relu": each(lambda x: z3.If(x > 0, x, z3.RealVal(0))),
        "sigmoid": any_function("sigmoid"),
        "tanh": any_function("tanh"),
    }
    table: dict[str, Callable[..., Any]] = {
        **NUMPY_OPS,
        **activations,
        "matmul": lambda x, y, act: activations[act](x @ y),
        "conv2d": lambda x, w, stride, padding, act: activations[act](
            NUMPY_OPS["conv2d"](x, w, stride, padding, "none")
        ),
        "maxpool": largest,
        "avgpool": mean,
        "gelu": any_function("gelu"),
        "softmax": lambda x, axis: any_function_of_rows("softmax", x, axis),
        "layernorm": lambda x, scale, bias, epsilon: any_function_of_rows(f"ln{epsilon}", x, -1, scale, bias),
        **{op: any_function(op) for op in PLAIN},
        **{op: lambda x, *params, op=op: any_function(f"{op}{params}")(x) for op in PARAMETRIC},
        "div": np.frompyfunc(lambda x, y: quotient(_polynomial(x), _polynomial(y)), 2, 1),
        "reducesum": summed,
        "reducemean": lambda x, axes, keepdims: (
            summed(x, axes, keepdims) * z3.Q(1, math.prod(x.shape[axis] for axis in axes))
        ),
        "eye": lambda n: NUMPY_OPS["eye"](n).astype(int).astype(object),
        "identity_kernel": lambda shape: NUMPY_OPS["identity_kernel"](shape).astype(int).astype(object),
        "pool_kernel": lambda channels, kernel: np.full((channels, 1, *kernel), z3.Q(1, math.prod(kernel)), object),
    }
    return lambda op, *arguments: table[op](*arguments)


def _main() -> None:
    from graphopt_gym.envs.rewrite.rules.table import rules

    proofs = [prove_rule(rule) for rule in rules()]
    for proof in proofs:
        print(f"{proof.rule.name}: {proof.status}{': ' * bool(proof.reason)}{proof.reason}")
        for at in proof.shapes:
            print(f"    {at}")
    print(", ".join(f"{sum(proof.status == status for proof in proofs)} {status}" for status in STATUSES))
    raise SystemExit(1 if any(proof.status == "refuted" for proof in proofs) else 0)


if __name__ == "__main__":
    _main()
