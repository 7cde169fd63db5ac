"""Program properties of architectures as an abstract interpretation: mixing, depth, shape.

Jin, Phothilimthana, Roy: "Neural Architecture Search using Property Guided Synthesis", OOPSLA 2022 (arXiv:2205.03960).
A property is a set of values with a partial order, and a function from programs to values; a program satisfies a value
where its own is at least that.

- **Mixing**: for each input, a matrix (output dimensions x input dimensions, the batch first) over
  ``x < o < m < a``: unpaired, one-to-one, many-to-one, all-to-one. ``a``: every element of the output depends on all
  positions along the input's dimension. Else two dimensions are paired where the positions that an element depends on
  change as one walks along the output's dimension: one position (``o``) or several (``m``). The matrix of a path is the
  product of those of its ops in the semiring with + = max and y * z = x if either is x, else max(y, z); zero is x, one
  is o. So "all of what depends on nothing" is nothing. Paths that meet add up.
- **Depth**: for each input, the most alternating linear and nonlinear segments on any path to the output. Norms and
  pooling count as linear, as in the paper's release (google-research, abstract_nas/abstract/depth.py): they do not
  replace an activation. Ops that pass values as they are (reshape, transpose, slice, concat, dropout) count as neither.
- **Shape**: of the output.

What is inferred op by op is exact for one op, and for a network a lower bound of how it mixes (ten 3x3 convolutions of
an image of 4x4 are still ``m``), but that positions which a slice or a wide stride leaves out count as read: "all" of
half a tensor is ``a``. Appending a primitive that keeps the rank never lowers mixing or depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from graphopt_gym.envs.architecture.ops import OPS, feature_axis
from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.errors import InputError

UNPAIRED, ONE, MANY, ALL = range(4)
LETTERS = "xoma"
_NO_PATH = -(10**6)
Depth = tuple[int, int]  # most segments on a path that ends linear, and on one that ends nonlinear
NO_OP: Depth = (0, 0)  # of the path without ops
UNDEFINED = math.inf  # distance of a shape that no primitive can mend


def identity(rank: int) -> np.ndarray:
    """Mixing of what leaves a tensor as it is: uint8 [rank + 1, rank + 1]; the one of the semiring."""
    return np.eye(rank + 1, dtype=np.uint8)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Mixing of ``outer`` after ``inner``: uint8 [i, k] by [k, j] gives [i, j]. Leading dimensions broadcast."""
    left, right = outer[..., :, :, None], inner[..., None, :, :]
    return np.where((left > 0) & (right > 0), np.maximum(left, right), np.uint8(0)).max(axis=-2)


def join(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mixing of two paths that meet; the least upper bound."""
    return np.maximum(one, other)


def mixing_text(matrix: np.ndarray) -> str:
    """Rows of letters, an output dimension each: ``"oxxa xmxa xxma xxxa"``."""
    return " ".join("".join(LETTERS[value] for value in row) for row in matrix)


def mixing_of_text(text: str) -> np.ndarray:
    """The inverse of :func:`mixing_text`.

    Raises:
        InputError: other letters, or rows of unequal length.
    """
    rows = text.split()
    if not rows or len({len(row) for row in rows}) > 1 or set("".join(rows)) - set(LETTERS):
        raise InputError(f"mixing is {text!r}; give rows of equal length of the letters {LETTERS}")
    return np.array([[LETTERS.index(letter) for letter in row] for row in rows], np.uint8)


# -- one op ------------------------------------------------------------------------------------------------------------


class _Table:
    """A mixing matrix in the making; axes are those of one sample."""

    def __init__(self, output: int, operand: int) -> None:
        self.matrix = np.zeros((output + 1, operand + 1), np.uint8)
        self.matrix[0, 0] = ONE  # no op touches the batch

    def pair(self, output: int, operand: int, how: int = ONE) -> None:
        self.matrix[output + 1, operand + 1] = how

    def all(self, operand: int) -> None:
        self.matrix[:, operand + 1] = ALL

    def same(self, but: Sequence[int] = ()) -> _Table:
        for axis in range(len(self.matrix) - 1):
            if axis not in but:
                self.pair(axis, axis)
        return self


@lru_cache(maxsize=100_000)
def op_mixing(
    kind: str, params: tuple[object, ...], shapes: tuple[tuple[int, ...], ...], shape: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """Mixing of one op, for each operand: uint8 [output rank + 1, operand rank + 1], read-only.

    Args:
        kind: the operator; ``params`` its parameters in normal form.
        shapes: of the operands; ``shape`` that of the output.
    """
    tables = [_Table(len(shape), len(operand)) for operand in shapes]
    if kind in ("add", "mul", "concat"):
        for table, operand in zip(tables, shapes, strict=True):
            before = len(shape) - len(operand)
            for axis, size in enumerate(operand):
                if kind == "concat" or size == shape[before + axis]:  # else it is repeated
                    table.pair(before + axis, axis)
    elif kind == "matmul":
        for position, (table, operand) in enumerate(zip(tables, shapes, strict=True)):
            before, last = len(shape) - len(operand), len(operand) - 1
            for axis, size in enumerate(operand[:-2]):
                if size == shape[before + axis]:
                    table.pair(before + axis, axis)
            if position == 0:
                table.pair(len(shape) - 2, last - 1)
                table.all(last)
            else:
                table.pair(len(shape) - 1, last)
                table.all(last - 1)
    elif shapes:
        _unary(kind, params, shapes[0], shape, tables[0])
    for table in tables:
        table.matrix.flags.writeable = False
    return tuple(table.matrix for table in tables)


def _unary(kind: str, params: tuple, x: tuple[int, ...], shape: tuple[int, ...], table: _Table) -> None:
    if kind in ("dense", "softmax", "layer_norm"):
        axis = params[2] if kind == "dense" else params[0]
        table.same(but=[axis]).all(axis)
    elif kind == "conv":
        _, kernel, stride, padding, dilation, groups, _ = params
        for along in (0, 1):
            _window(table, along + 1, x[along + 1], shape[along + 1], kernel[along], stride[along], padding[along],
                    dilation[along])  # fmt: skip
        if groups == 1:
            table.all(0)
        else:
            table.pair(0, 0, ONE if x[0] == groups else MANY)
    elif kind in ("avg_pool", "max_pool"):
        kernel, stride, padding = params
        for along in (0, 1):
            _window(table, along + 1, x[along + 1], shape[along + 1], kernel[along], stride[along], padding[along], 1)
        table.pair(0, 0)
    elif kind == "group_norm":
        table.all(1)
        table.all(2)
        if params[0] == 1:
            table.all(0)
        else:
            table.pair(0, 0, ONE if x[0] == params[0] else MANY)
    elif kind == "mean":
        axes, keep = params
        after = 0
        for axis in range(len(x)):
            if axis in axes:
                table.all(axis)
            else:
                table.pair(after, axis)
            after += keep or axis not in axes
    elif kind == "reshape":
        _reshape(table, x, shape)
    elif kind == "transpose":
        for to, axis in enumerate(params[0]):
            table.pair(to, axis)
    elif kind == "smul" and params[0] == 0:
        table.matrix[:] = UNPAIRED
    else:
        table.same()


def _window(
    table: _Table, axis: int, size: int, places: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    """Along one dimension of an image. A window that sees all positions from every place mixes all."""

    def seen(place: int) -> int:
        first = place * stride - padding
        skipped = max(0, -(-max(-first, 0) // dilation))  # taps before the image
        past = max(0, (size - 1 - first) // dilation + 1) if size - 1 >= first else 0
        return max(0, min(kernel, past) - skipped)

    most = seen(min(places - 1, (padding + stride - 1) // stride))  # a place inside
    if size > 1 and kernel >= size and all(seen(place) == size for place in (0, places - 1)):
        table.all(axis)
    else:
        if most < kernel:  # a wide kernel on a small image
            most = max(seen(place) for place in range(places))
        table.pair(axis, axis, MANY if most > 1 else ONE)


def _reshape(table: _Table, x: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Two dimensions are paired where the index along the one changes with that along the other."""
    i = j = 0
    while i < len(x) or j < len(shape):  # groups of dimensions of equal product
        first_i, first_j = i, j
        left = right = 1
        while True:
            if left <= right and i < len(x):
                left, i = left * x[i], i + 1
            elif j < len(shape):
                right, j = right * shape[j], j + 1
            else:
                left, i = left * x[i], i + 1
            if left == right and (j > first_j or j == len(shape)) and (i > first_i or i == len(x)):
                break
        rows, columns = range(first_j, j), range(first_i, i)
        big = [axis for axis in columns if x[axis] > 1]
        if len(big) == 1 or sum(shape[axis] > 1 for axis in rows) == 1:  # one dimension on either side: all change it
            for row in rows:
                for axis in big:
                    if shape[row] > 1:
                        table.pair(row, axis)
        elif big:
            index = np.unravel_index(np.arange(left), x[first_i:i])
            for row in rows:
                for axis in columns:
                    along = index[axis - first_i].reshape(shape[first_j:j])
                    if (np.diff(along, axis=row - first_j) != 0).any():
                        table.pair(row, axis)


def append_depth(depth: Depth, segment: str) -> Depth:
    """Depth after one more op."""
    linear, nonlinear = depth
    if segment == "linear":
        return max(linear, nonlinear + 1), _NO_PATH
    if segment == "nonlinear":
        return _NO_PATH, max(nonlinear, linear + 1)
    return depth


def join_depth(one: Depth, other: Depth) -> Depth:
    """Of paths that meet."""
    return max(one[0], other[0]), max(one[1], other[1])


# -- a network ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Properties:
    """What an architecture is in the space of properties.

    Attributes:
        mixing: for each input, uint8 [output rank + 1, input rank + 1] of x, o, m, a as 0 to 3.
        depth: for each input; 0 where the output does not depend on it, or no op counts.
        shape: of one sample of the output.
    """

    mixing: tuple[np.ndarray, ...]
    depth: tuple[int, ...]
    shape: tuple[int, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Properties) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple:
        return tuple((matrix.shape, matrix.tobytes()) for matrix in self.mixing), self.depth, self.shape

    def __repr__(self) -> str:
        mixing = ", ".join(map(mixing_text, self.mixing))
        return f"Properties(mixing=({mixing}), depth={self.depth}, shape={self.shape})"


def op_mixing_of(architecture: Architecture, index: int) -> tuple[np.ndarray, ...]:
    """As :func:`op_mixing`, of an op of an architecture."""
    op = architecture.ops[index]
    return op_mixing(op.kind, op.params, tuple(architecture.operand_shapes(index)), op.shape)


def infer(architecture: Architecture) -> Properties:
    """The properties of an architecture, op by op."""
    states: list[dict[int, tuple[np.ndarray, Depth]]] = []  # for each op, of each input that it depends on
    for index, op in enumerate(architecture.ops):
        state: dict[int, tuple[np.ndarray, Depth]] = {}
        if op.kind == "input":
            state[index] = identity(len(op.shape)), NO_OP
        segment = OPS[op.kind].segment
        for source, table in zip(op.inputs, op_mixing_of(architecture, index), strict=True):
            for start, (matrix, depth) in states[source].items():
                matrix, depth = compose(table, matrix), append_depth(depth, segment)
                if start in state:
                    matrix, depth = join(state[start][0], matrix), join_depth(state[start][1], depth)
                state[start] = matrix, depth
        states.append(state)
    mixing, depths = [], []
    output = architecture.ops[-1].shape
    for start in architecture.inputs:
        nothing = np.zeros((len(output) + 1, len(architecture.ops[start].shape) + 1), np.uint8), (0, 0)
        matrix, depth = states[-1].get(start, nothing)
        mixing.append(matrix)
        depths.append(max(0, *depth))
    return Properties(tuple(mixing), tuple(depths), output)


# -- what is asked for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Requirement:
    """Properties that a program is to have at least.

    Attributes:
        mixing: for each input, a matrix as in :class:`Properties`, or None where nothing is asked.
        depth: for each input.
        shape: of the output; a size is None where any will do that primitives can reach.
    """

    mixing: tuple[np.ndarray | None, ...]
    depth: tuple[int, ...]
    shape: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @classmethod
    def of(cls, properties: Properties) -> Requirement:
        """All that a program is."""
        return cls(properties.mixing, properties.depth, properties.shape)

    def mixing_distance(self, properties: Properties) -> int:
        """Entries of the matrices where more is asked."""
        asked = zip(self.mixing, properties.mixing, strict=True)
        return sum(int((target > given).sum()) for target, given in asked if target is not None)

    def depth_distance(self, properties: Properties) -> int:
        """Segments that are missing, over the inputs."""
        return sum(max(0, target - given) for target, given in zip(self.depth, properties.depth, strict=True))

    def shape_distance(self, properties: Properties) -> float:
        """Dimensions that differ; :data:`UNDEFINED` where no primitive can mend it (:func:`shape_distance`)."""
        return shape_distance(self.shape, properties.shape)

    def distance(self, properties: Properties) -> float:
        """The sum of the three; 0 exactly where the program satisfies all (Jin et al.)."""
        return self.mixing_distance(properties) + self.depth_distance(properties) + self.shape_distance(properties)

    def mutated(self, rng: np.random.Generator) -> Requirement:
        """A mutation (Jin et al.): each depth is kept with probability one half, else moved by 1 or 2 up or
        down, not below 0; the shape is dropped with probability one half, and so is the matrix of each input."""
        depth = tuple(
            value if rng.random() < 0.5 else max(0, value + int(rng.choice((-2, -1, 1, 2)))) for value in self.depth
        )
        shape = (None,) * self.rank if rng.random() < 0.5 else self.shape
        mixing = tuple(None if rng.random() < 0.5 else matrix for matrix in self.mixing)
        return Requirement(mixing, depth, shape)

    def only(self, *names: str) -> Requirement:
        """With some of ``mixing``, ``depth`` and ``shape`` alone, for ablations.

        Raises:
            InputError: another name.
        """
        for name in names:
            if name not in ("mixing", "depth", "shape"):
                raise InputError(f"property is {name!r}; give mixing, depth or shape")
        return Requirement(
            self.mixing if "mixing" in names else (None,) * len(self.mixing),
            self.depth if "depth" in names else (0,) * len(self.depth),
            self.shape if "shape" in names else (None,) * self.rank,
        )

    def __repr__(self) -> str:
        mixing = ", ".join("-" if matrix is None else mixing_text(matrix) for matrix in self.mixing)
        return f"Requirement(mixing=({mixing}), depth={self.depth}, shape={self.shape})"


def shape_distance(target: tuple[int | None, ...], shape: tuple[int, ...]) -> float:
    """Dimensions that differ from the target's; those where the target is None do not.

    :data:`UNDEFINED` where the rank differs, or the height or width of an image is no multiple of the target's:
    features change freely, spatial sizes only shrink, by whole factors. Dimensions of tokens other than features cannot
    change at all.
    """
    if len(shape) != len(target):
        return UNDEFINED
    free, image = feature_axis(shape), len(shape) == 3
    distance = 0
    for axis, (size, wanted) in enumerate(zip(shape, target, strict=True)):
        if wanted is not None and size != wanted:
            if axis != free and (not image or size % wanted):
                return UNDEFINED
            distance += 1
    return distance
