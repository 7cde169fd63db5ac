"""Synthesis of sequences of ops that satisfy given properties: progressive, and enumerative as the baseline.

Jin, Phothilimthana, Roy: "Neural Architecture Search using Property Guided Synthesis", OOPSLA 2022. Both
search over classes of primitives that are equal in the space of properties; members are drawn afterwards, and what
results is verified again: its properties as inferred, those that an independent checker finds, and that it runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt_gym.envs.architecture import checker
from graphopt_gym.envs.architecture.ops import Params, Shape, feature_axis
from graphopt_gym.envs.architecture.primitives import Class, Primitive, classes, classes_by_kind, singles, stacked
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.properties import (
    NO_OP,
    Depth,
    Requirement,
    append_depth,
    compose,
    identity,
    infer,
    shape_distance,
)
from graphopt_gym.envs.architecture.subgraph import (
    Piece,
    Steps,
    as_architecture,
    cut,
    equal_pieces,
    free_sizes,
    replace,
    sequence,
)
from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.fields import positive, whole

BEYOND = 2  # ops that a sequence may have more than the original
REDRAWS = 8  # of the members of its classes, until what results is verified
_Known = dict[tuple[Any, ...], Steps | None]
Verify = Callable[[Architecture, Requirement], list[str]]
Mutate = Callable[[Requirement, np.random.Generator], Requirement]


@dataclass(frozen=True)
class Synthesis:
    """What a synthesis came to.

    Attributes:
        primitives: the ops, relative to whatever they read; None where it failed.
        steps: the same on the shape that was asked for.
        reason: why it failed; "" where it did not.
        tried: candidate ops whose distance was taken.
        seconds: wall time, verification included.
    """

    primitives: tuple[Primitive, ...] | None
    steps: tuple[tuple[str, Params], ...] | None
    reason: str
    tried: int
    seconds: float

    @property
    def found(self) -> bool:
        return self.steps is not None


@dataclass(frozen=True)
class _State:
    """A sequence so far, as the search sees it."""

    mixing: np.ndarray
    depth: Depth
    shape: Shape
    chosen: tuple[Class, ...] = ()

    def append(self, one: Class) -> _State:
        depth = append_depth(self.depth, one.segment)
        return _State(compose(one.mixing, self.mixing), depth, one.shape, (*self.chosen, one))


@dataclass
class _Task:
    """What is asked for, and how many candidates were looked at."""

    requirement: Requirement
    options_of: Callable[[Shape, int | None], tuple[Class, ...]]
    tried: int = 0
    stacks: dict[tuple[Shape, int | None], np.ndarray] = field(default_factory=dict)

    @property
    def target(self) -> int | None:
        return features_of(self.requirement.shape)

    def options(self, state: _State) -> tuple[Class, ...]:
        return self.options_of(state.shape, self.target)

    def distances(self, state: _State, options: Sequence[Class]) -> np.ndarray:
        """float64 [options]: of the requirement after each option; infinite where no op can mend the shape."""
        self.tried += len(options)
        asked = self.requirement
        key = (state.shape, self.target)
        if key not in self.stacks:
            self.stacks[key] = stacked(options)
        found = np.zeros(len(options))
        if asked.mixing[0] is not None:
            mixed = compose(self.stacks[key], state.mixing)
            found += (asked.mixing[0] > mixed).sum(axis=(1, 2))
        short = {
            segment: max(0, asked.depth[0] - max(append_depth(state.depth, segment)))
            for segment in ("linear", "nonlinear", "neither")
        }
        found += [short[one.segment] + shape_distance(asked.shape, one.shape) for one in options]
        return found


def progressive(
    shape: Shape,
    requirement: Requirement,
    length: int,
    rng: np.random.Generator,
    *,
    attempts: int = 1,
    verify: Verify | None = None,
    run: bool = True,
) -> Synthesis:
    """A sequence of ops that satisfies a requirement, one op at a time, without going back.

    From the identity, the next op is drawn with weight 1 / (1 + distance after it), the operator first (with the weight
    of its best class) and then one of its classes, as in the paper's release; else convolutions, of which there are
    most, crowd out the rest. Once the sequence is as long as the original, only ops of least distance are drawn; it
    fails beyond the original's length + 2. The first sequence of an op or more at distance 0 is the result. Time is
    linear in the length times the number of classes. Ops after which no other op can mend the shape are
    not drawn.

    Args:
        shape: of the tensor that the first op reads.
        requirement: of one input.
        length: of the original sequence, in ops.
        rng: draws classes, and then members.
        attempts: how often it starts anew where it fails; the paper has one.
        verify: what is wrong with a result, in lines; by default :func:`.checker.check_properties`.
        run: whether to run the result, too (:func:`.checker.check_runs`), which needs torch.

    Raises:
        InputError: a requirement of several inputs, a negative length, fewer than one attempt.
    """
    started = time.perf_counter()
    task = _task(shape, requirement, classes_by_kind)
    length = whole("length", length)
    reason = ""
    for _ in range(whole("attempts", attempts, 1)):
        chosen, reason = _attempt(task, tuple(shape), length, rng)
        if chosen is not None:
            result = _concrete(task, shape, chosen, rng, verify, run, started)
            if result.found:
                return result
            reason = result.reason
    return Synthesis(None, None, reason, task.tried, time.perf_counter() - started)


def _attempt(task: _Task, shape: Shape, length: int, rng: np.random.Generator) -> tuple[tuple[Class, ...] | None, str]:
    """The classes of a sequence at distance 0, or why there is none."""
    state, distance = _State(identity(len(shape)), NO_OP, shape), math.inf
    while distance > 0:
        if len(state.chosen) >= length + BEYOND:
            return None, f"at distance {distance:g} after {len(state.chosen)} ops, {BEYOND} more than the original"
        options = task.options(state)
        found = task.distances(state, options) if options else np.zeros(0)
        if not np.isfinite(found).any():
            return None, f"no op can follow on {state.shape}"
        greedy = len(state.chosen) >= length
        weights = (found == found.min()).astype(float) if greedy else 1 / (1 + found)
        at = _draw(options, weights, rng)
        distance, state = float(found[at]), state.append(options[at])
    return state.chosen, ""


def _draw(options: Sequence[Class], weights: np.ndarray, rng: np.random.Generator) -> int:
    """An operator by the weight of its best class, then one of its classes by weight."""
    kinds = [one.members[0].kind for one in options]
    best: dict[str, float] = {}
    for kind, weight in zip(kinds, weights.tolist(), strict=True):
        best[kind] = max(weight, best.get(kind, 0.0))
    chances = np.array(list(best.values()))
    kind = list(best)[int(rng.choice(len(best), p=chances / chances.sum()))]
    of_kind = weights * [one == kind for one in kinds]
    return int(rng.choice(len(options), p=of_kind / of_kind.sum()))


def enumerative(
    shape: Shape,
    requirement: Requirement,
    length: int,
    rng: np.random.Generator,
    *,
    seconds: float = 10.0,
    over: str = "classes",
    verify: Verify | None = None,
    run: bool = True,
) -> Synthesis:
    """The baseline: all sequences by length, up to the original's + 2, until one satisfies the requirement.

    Options come in an order that is drawn once. Sequences that cannot be mended (see :func:`progressive`) are not
    continued. Time is exponential in the length.

    Args:
        seconds: after which it gives up.
        over: ``classes``, or ``primitives``: every primitive with every parameter by itself.
        others: as for :func:`progressive`.

    Raises:
        InputError: a requirement of several inputs, a negative length, seconds that are no time, another ``over``.
    """
    started = time.perf_counter()
    if over not in ("classes", "primitives"):
        raise unknown_name("over", over, ("classes", "primitives"))
    task = _task(shape, requirement, classes if over == "classes" else singles)
    length, seconds = whole("length", length), positive("seconds", seconds)
    orders: dict[Shape, np.ndarray] = {}
    first = _State(identity(len(shape)), NO_OP, tuple(shape))

    def search(state: _State, left: int) -> _State | None:
        """A sequence of ``left`` more ops at distance 0."""
        if time.perf_counter() - started > seconds:
            raise TimeoutError
        options = task.options(state)
        if not options:
            return None
        if state.shape not in orders:
            orders[state.shape] = rng.permutation(len(options))
        found = task.distances(state, options)
        for at in orders[state.shape]:
            if left == 1 and found[at] == 0:
                return state.append(options[at])
            if left > 1 and found[at] < math.inf:
                result = search(state.append(options[at]), left - 1)
                if result is not None:
                    return result
        return None

    result = None
    try:
        for longest in range(1, length + BEYOND + 1):
            result = search(first, longest)
            if result is not None:
                break
    except TimeoutError:
        return Synthesis(None, None, f"gave up after {seconds:g} s", task.tried, time.perf_counter() - started)
    if result is None:
        reason = f"no sequence of up to {length + BEYOND} ops"
        return Synthesis(None, None, reason, task.tried, time.perf_counter() - started)
    return _concrete(task, shape, result.chosen, rng, verify, run, started)


def undirected(
    shape: Shape,
    requirement: Requirement,
    length: int,
    rng: np.random.Generator,
    *,
    attempts: int = 1,
    verify: Verify | None = None,
    run: bool = True,
) -> Synthesis:
    """Random ops that no property directs, for ablations: of a requirement the shape alone counts.

    A number of ops is drawn evenly from 1 to the original's + 2, then each operator evenly, and one of its classes. It
    fails where the shape is another one in the end. Arguments and errors as of :func:`progressive`.
    """
    started = time.perf_counter()
    task = _task(shape, requirement.only("shape"), classes_by_kind)
    length, reason = whole("length", length), ""
    for _ in range(whole("attempts", attempts, 1)):
        state = _State(identity(len(shape)), NO_OP, tuple(shape))
        for left in range(int(rng.integers(1, length + BEYOND + 1)), 0, -1):
            options = task.options(state)
            found = task.distances(state, options) if options else np.full(1, math.inf)
            fitting = np.isfinite(found) if left > 1 else found == 0
            if not fitting.any():
                reason = f"no op can follow on {state.shape}"
                break
            state = state.append(options[_draw(options, fitting.astype(float), rng)])
        else:
            result = _concrete(task, shape, state.chosen, rng, verify, run, started)
            if result.found:
                return result
            reason = result.reason
    return Synthesis(None, None, reason, task.tried, time.perf_counter() - started)


METHODS: dict[str, Callable[..., Synthesis]] = {
    "progressive": progressive,
    "enumerative": enumerative,
    "undirected": undirected,
}


def _task(shape: Shape, requirement: Requirement, options_of: Callable[..., tuple[Class, ...]]) -> _Task:
    if len(requirement.mixing) != 1 or len(requirement.depth) != 1:
        raise InputError(f"requirement has {len(requirement.mixing)} inputs; a sequence has one, cut the subgraph")
    target = requirement.mixing[0]
    if target is not None and target.shape != (requirement.rank + 1, len(shape) + 1):
        raise InputError(
            f"mixing is asked as {target.shape}; give {(requirement.rank + 1, len(shape) + 1)} for a tensor {shape}"
        )
    return _Task(requirement, options_of)


def realise(primitives: Sequence[Primitive], shape: Shape, target: int | None) -> tuple[tuple[str, Params], ...] | None:
    """Primitives with their parameters on a tensor; None where one does not fit.

    Args:
        target: features that those to the target's have.
    """
    steps = []
    for primitive in primitives:
        fits = primitive.on(shape, target)
        if fits is None:
            return None
        steps.append((primitive.kind, fits[0]))
        shape = fits[1]
    return tuple(steps)


def verified(
    shape: Shape, steps: Steps, requirement: Requirement, verify: Verify | None = None, run: bool = True
) -> list[str]:
    """What is wrong with a sequence: by its inferred properties, by an independent checker, and by running it."""
    architecture = sequence(shape, steps)
    distance = requirement.distance(infer(architecture))
    reasons = [f"distance {distance:g}"] if distance else []
    reasons += (verify or checker.check_properties)(architecture, requirement)
    return reasons + (checker.check_runs(architecture) if run and not reasons else [])


def _concrete(
    task: _Task,
    shape: Shape,
    chosen: Sequence[Class],
    rng: np.random.Generator,
    verify: Verify | None,
    run: bool,
    started: float,
) -> Synthesis:
    """Members of classes, drawn until the sequence is verified."""
    reason = ""
    for _ in range(REDRAWS):
        members = tuple(one.draw(rng) for one in chosen)
        steps = realise(members, shape, task.target)
        wrong = ["it does not fit"] if steps is None else verified(shape, steps, task.requirement, verify, run)
        if not wrong:
            return Synthesis(members, steps, "", task.tried, time.perf_counter() - started)
        reason = f"not verified: {wrong[0]}"
    return Synthesis(None, None, reason, task.tried, time.perf_counter() - started)


# -- whole architectures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """What the mutation of a subgraph came to.

    Attributes:
        architecture: the child; None where it failed.
        reason: why it failed; "" where it did not.
        pieces: each piece that was synthesised, with what was asked for and what came of it.
        applied: all pieces that were replaced, equal ones included.
        seconds: wall time of all syntheses.
    """

    architecture: Architecture | None
    reason: str
    pieces: tuple[tuple[Piece, Requirement, Synthesis], ...]
    applied: tuple[Piece, ...]
    seconds: float


def requirement_of(
    architecture: Architecture,
    piece: Piece,
    rng: np.random.Generator,
    properties: Sequence[str] | None = None,
    mutate: Mutate = Requirement.mutated,
) -> Requirement:
    """The mutated properties of a piece. Of a shape that is dropped, the sizes stay that the architecture fixes.

    Args:
        properties: of ``mixing``, ``depth``, ``shape``: those that are asked for at all; all by default.
        mutate: (all that the piece is, rng) -> what is asked for.
    """
    asked = mutate(Requirement.of(infer(as_architecture(architecture, piece))), rng)
    if properties is not None:
        asked = asked.only(*properties)
    return _with_fixed_sizes(architecture, piece, asked)


def _with_fixed_sizes(architecture: Architecture, piece: Piece, asked: Requirement) -> Requirement:
    if None not in asked.shape:
        return asked
    last = architecture.ops[piece.ops[-1]].shape
    sizes = zip(asked.shape, free_sizes(architecture, piece), last, strict=True)
    shape = tuple(size if wanted is None and not free else wanted for wanted, free, size in sizes)
    return Requirement(asked.mixing, asked.depth, shape)


def mutate_subgraph(
    architecture: Architecture,
    ops: Sequence[int],
    rng: np.random.Generator,
    *,
    method: str = "progressive",
    properties: Sequence[str] | None = None,
    mutate: Mutate = Requirement.mutated,
    everywhere: bool = True,
    run: bool = True,
    **options: Any,
) -> Mutation:
    """A child: the properties of a subgraph are mutated, a subgraph that has them is synthesised and put in its place.

    The subgraph is cut into sequences, each of which is synthesised by itself; one that fails fails all. With
    ``everywhere`` the same sequence is put in the place of all pieces that are equal to it relative to their inputs and
    to which it fits (its properties are verified there, too).

    Args:
        ops: the subgraph, such as :func:`.subgraph.pick_subgraph` gives.
        method: ``progressive``, ``enumerative`` or ``undirected``; ``options`` are its further arguments.
        properties, mutate: as for :func:`requirement_of`.

    Raises:
        InputError: an op that is not there, an unknown method or property.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    done: list[tuple[Piece, Requirement, Synthesis]] = []
    by: dict[Piece, Steps] = {}
    taken: set[int] = set()

    def result(child: Architecture | None, reason: str) -> Mutation:
        seconds = sum(synthesis.seconds for _, _, synthesis in done)
        return Mutation(child, reason, tuple(done), tuple(by), seconds)

    pieces = cut(architecture, ops)
    if not pieces:
        return result(None, "the subgraph has no primitive")
    own = {index for piece in pieces for index in piece.ops}
    for piece in pieces:
        requirement = requirement_of(architecture, piece, rng, properties, mutate)
        shape = architecture.ops[piece.source].shape
        synthesis = METHODS[method](shape, requirement, len(piece.ops), rng, run=run, **options)
        done.append((piece, requirement, synthesis))
        if synthesis.steps is None:
            return result(None, synthesis.reason)
        by[piece] = synthesis.steps
        taken |= set(piece.ops)
        assert synthesis.primitives is not None
        known: _Known = {}
        for other in equal_pieces(architecture, piece)[1:] if everywhere else []:
            if (taken | own) & set(other.ops):
                continue
            steps = _elsewhere(architecture, other, requirement, synthesis.primitives, known)
            if steps is not None:
                by[other] = steps
                taken |= set(other.ops)
    try:
        child = replace(architecture, by)
    except InputError as error:
        return result(None, f"does not fit in: {error}")
    return result(None, "equal to its parent") if child == architecture else result(child, "")


def _elsewhere(
    architecture: Architecture, other: Piece, requirement: Requirement, primitives: Sequence[Primitive], known: _Known
) -> Steps | None:
    """Primitives that were synthesised for an equal piece, on another's tensor; None where they do not fit or satisfy.

    Args:
        known: what came out for equal demands on equal tensors.
    """
    shape = architecture.ops[other.source].shape
    last = architecture.ops[other.ops[-1]].shape
    sizes = tuple(None if one is None else of for one, of in zip(requirement.shape, last, strict=True))
    sizes = _with_fixed_sizes(architecture, other, Requirement((None,), (0,), sizes)).shape
    key = (shape, last, sizes)
    if key not in known:
        original = infer(as_architecture(architecture, other))
        mixing = tuple(None if one is None else of for one, of in zip(requirement.mixing, original.mixing, strict=True))
        asked = Requirement(mixing, requirement.depth, sizes)
        steps = realise(primitives, shape, features_of(last))
        known[key] = None if steps is None or verified(shape, steps, asked, run=False) else steps
    return known[key]


def features_of(shape: tuple[int | None, ...]) -> int | None:
    """What :data:`.primitives.TO_TARGET` stands for where a shape is asked for; None where its features are free."""
    return shape[feature_axis(shape)] if shape else None  # type: ignore[arg-type]
