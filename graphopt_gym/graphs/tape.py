"""A training step written down op by op: forward calls, and from them backward pass and updates, as captures have.

:class:`Tape` is to :mod:`graphopt_gym.graphs.random_graphs` what PyTorch's autograd is to a capture. Each call adds
the ops that PyTorch dispatches for it (views and parts of an op's output among them), with FLOPs, bytes and colocation
groups as :mod:`graphopt_gym.graphs.capture` counts them; :meth:`Tape.finish` adds the gradients, sums where a tensor is
read several times, and an update a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.graphs.graph import COLUMNS, DTYPES, MAX_RANK, OP_CLASSES, PHASES, ComputationGraph

ITEM = 4  # bytes of an element: float32
Shape = tuple[int, ...]
# update: FLOPs an element, tensors of the parameter's size that are read, written, and held as state
OPTIMIZERS = {"adam": (13, 4, 3, 2), "momentum": (4, 3, 2, 1)}
_CLASS = {name: code for code, name in enumerate(OP_CLASSES)}
_SOURCE, _VIEW = _CLASS["source"], _CLASS["view"]


class _Call(NamedTuple):
    """A forward call that gradients go back through."""

    inputs: tuple[int, ...]  # those that take a gradient
    outputs: tuple[int, ...]
    group: int
    module: int
    backward: Callable[[list[int | None]], Sequence[int]]  # gradients of outputs -> of inputs


class Mark(NamedTuple):
    """How far a tape is, see :meth:`Tape.back_to`."""

    ops: int
    edges: int
    calls: int
    updates: int
    modules: int
    groups: int
    later: int
    taken: int


class Tape:
    """Ops of a step in the order of their calls. A tensor is the index of the op that makes it.

    Args:
        train: whether there are gradients and updates; otherwise a forward pass alone.
        optimizer: one of :data:`OPTIMIZERS`.
    """

    def __init__(self, train: bool = True, optimizer: str = "adam") -> None:
        self.train, self.optimizer = train, optimizer
        self.rows: list[tuple[Any, ...]] = []
        self.shapes: list[Shape] = []
        self.edges: list[tuple[int, int]] = []
        self.modules: list[str] = [""]
        self.groups = 0
        self.later = 0  # ops that gradients and updates of what is there will add
        self._calls: list[_Call] = []
        self._parameters: list[int] = []
        self._taken: list[int] = []  # tensors that a call passes a gradient to, once a call
        self._contributions: Counter[int] = Counter()
        self._needs: set[int] = set()
        self._phase, self._module, self._group = 0, 0, -1

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def planned(self) -> int:
        """Ops that there will be when it is finished."""
        return len(self.rows) + self.later

    def mark(self) -> Mark:
        """Where the tape is now."""
        return Mark(
            len(self.rows), len(self.edges), len(self._calls), len(self._parameters), len(self.modules), self.groups,
            self.later, len(self._taken),
        )  # fmt: skip

    def back_to(self, mark: Mark) -> None:
        """Forget what came after a mark."""
        for tensor in self._taken[mark.taken :]:
            self._contributions[tensor] -= 1
        del self.rows[mark.ops :], self.shapes[mark.ops :], self.edges[mark.edges :], self._calls[mark.calls :]
        del self._parameters[mark.updates :], self.modules[mark.modules :], self._taken[mark.taken :]
        self._needs = {tensor for tensor in self._needs if tensor < mark.ops}
        self.groups, self.later = mark.groups, mark.later

    def module(self, path: str) -> None:
        """What follows belongs to a call of a module, a colocation group of its own."""
        if self.modules[-1] != path:
            self.modules.append(path)
        self._module, self._group = len(self.modules) - 1, self.groups
        self.groups += 1

    # -- ops -----------------------------------------------------------------------------------------------------------

    def _op(
        self, kind: str, op_class: str, shape: Shape, inputs: Sequence[int] = (), flops: float = 0,
        read: int | None = None, written: int | None = None, params: int = 0, state: int = 0, group: int | None = None,
    ) -> int:  # fmt: skip
        """One op. Bytes are those of inputs and output, none of sources and views; a view is in its input's group."""
        op, code, size = len(self.rows), _CLASS[op_class], ITEM * prod(shape)
        if code == _VIEW:
            group = self.rows[inputs[0]][-1]
        if code in (_SOURCE, _VIEW):
            moved = (0, 0)
        else:
            reads = sum(ITEM * prod(self.shapes[one]) for one in inputs) if read is None else read
            moved = (reads, size if written is None else written)
        held = 0 if op_class == "optimizer" else size if written is None else written
        self.rows.append(
            (kind, code, self._phase, int(flops), *moved, held, params, state, self._module,
             self._group if group is None else group)
        )  # fmt: skip
        self.shapes.append(shape)
        self.edges.extend((one, op) for one in dict.fromkeys(inputs))
        return op

    def _view(self, kind: str, shape: Shape, source: int) -> int:
        return self._op(kind, "view", shape, [source])

    def _call(
        self, inputs: Sequence[int], outputs: Sequence[int], ops: int,
        backward: Callable[[list[int | None]], Sequence[int]],
    ) -> None:  # fmt: skip
        """Remember a call whose backward pass adds ``ops`` ops; ``backward`` gives as many gradients as ``inputs``."""
        if not self.train or not inputs:
            return
        self._needs.update(outputs)
        for tensor in inputs:
            self._taken.append(tensor)
            self._contributions[tensor] += 1
            self.later += self._contributions[tensor] > 1  # the sum
        self.later += ops
        self._calls.append(_Call(tuple(inputs), tuple(outputs), self._group, self._module, backward))

    def parameter(self, shape: Shape) -> int:
        """A parameter, with an update at the end."""
        op = self._op("parameter", "source", shape, params=ITEM * prod(shape))
        if self.train:
            self._parameters.append(op)
            self._needs.add(op)
            self.later += 1
        return op

    def constant(self, kind: str, shape: Shape) -> int:
        """An input, or a buffer."""
        return self._op(kind, "source", shape)

    def _takes(self, tensor: int) -> bool:
        return tensor in self._needs

    # -- calls of modules and functions: each says what PyTorch dispatches forward and backward ------------------------

    def view(self, kind: str, x: int, shape: Shape) -> int:
        """The same elements in another shape."""
        before = self.shapes[x]
        y = self._view(kind, shape, x)
        if self._takes(x):
            self._call([x], [y], 1, lambda g: [self._view(kind, before, _one(g))])
        return y

    def linear(self, x: int, width: int, parameters: tuple[int, int] | None = None) -> int:
        """``x`` [..., in] to [..., width], with a bias; ``parameters`` where another call has made them."""
        shape = self.shapes[x]
        flat = x if len(shape) == 2 else self.view("view", x, (prod(shape[:-1]), shape[-1]))
        rows, inner = self.shapes[flat]
        weight, bias = parameters or (self.parameter((width, inner)), self.parameter((width,)))
        turned = self._view("t", (inner, width), weight)
        flops = 2 * rows * inner * width
        y = self._op("addmm", "matmul", (rows, width), [flat, turned, bias], flops)
        takes = self._takes(flat)

        def backward(grads: list[int | None]) -> list[int]:
            g = _one(grads)
            found = []
            if takes:
                back = self._view("t", (width, inner), turned)
                found.append(self._op("mm", "matmul", (rows, inner), [g, back], flops))
            across = self._view("t", (width, rows), g)
            of_weight = self._op("mm", "matmul", (width, inner), [across, flat], flops)
            summed = self._op("sum", "reduction", (1, width), [g], rows * width)
            return [*found, of_weight, self._view("view", (width,), summed)]

        self._call([*([flat] if takes else []), weight, bias], [y], 6 if takes else 4, backward)
        return y if len(shape) == 2 else self.view("view", y, (*shape[:-1], width))

    def conv(self, x: int, channels: int, kernel: int = 3, stride: int = 1) -> int:
        """``x`` [batch, in, size, size], padded."""
        batch, inner, size, _ = self.shapes[x]
        weight = self.parameter((channels, inner, kernel, kernel))
        out = -(-size // stride)
        flops = 2 * batch * out * out * channels * inner * kernel * kernel
        y = self._op("convolution", "conv", (batch, channels, out, out), [x, weight], flops)
        takes = self._takes(x)
        made = ITEM * (prod(self.shapes[weight]) + takes * prod(self.shapes[x]))

        def backward(grads: list[int | None]) -> list[int]:
            shapes = [*([self.shapes[x]] if takes else []), self.shapes[weight]]
            both = self._op(
                "convolution_backward", "conv", shapes[0], [_one(grads), x, weight], flops * len(shapes), written=made
            )
            return [self._view("getitem", shape, both) for shape in shapes]

        self._call([*([x] if takes else []), weight], [y], 3 if takes else 2, backward)
        return y

    def norm(self, x: int, kind: str) -> int:
        """``kind``: ``"batch"`` of [batch, channels, ...], ``"layer"`` of the last dimension."""
        shape = self.shapes[x]
        batch = kind == "batch"
        width, size = shape[1] if batch else shape[-1], prod(shape)
        parameters = [self.parameter((width,)), self.parameter((width,))]
        buffers = [self.constant("buffer", (width,)) for _ in range(2 * batch)]
        once = ITEM * size
        whole = self._op(
            f"native_{kind}_norm", "norm", shape, [x, *parameters, *buffers], 8 * size, read=once, written=once
        )
        kept = (width,) if batch else (*shape[:-1], 1)
        y, mean, deviation = (self._view("getitem", one, whole) for one in (shape, kept, kept))
        takes = self._takes(x)

        def backward(grads: list[int | None]) -> list[int]:
            saved = [_one(grads), x, parameters[0], mean, deviation, *buffers]
            both = self._op(
                f"native_{kind}_norm_backward", "norm", shape, saved, (12 if batch else 14) * size,
                read=2 * once, written=once,
            )  # fmt: skip
            shapes = [*([shape] if takes else []), (width,), (width,)]
            return [self._view("getitem", one, both) for one in shapes]

        self._call([*([x] if takes else []), *parameters], [y], 4 if takes else 3, backward)
        return y

    def unary(self, kind: str, x: int, flops: int = 1, op_class: str = "elementwise", views: int = 2) -> int:
        """An activation, softmax and the like; ``views`` of its output are kept for the backward pass, one in each
        pass, or one, or none where the backward pass reads the input."""
        shape = self.shapes[x]
        y = self._op(kind, op_class, shape, [x], flops * prod(shape))
        saved = self._view("detach", shape, y) if views and self.train else x
        if self._takes(x):

            def backward(grads: list[int | None]) -> list[int]:
                held = self._view("detach", shape, saved) if views == 2 else saved
                return [self._op(f"{kind}_backward", op_class, shape, [_one(grads), held], flops * prod(shape))]

            self._call([x], [y], 1 + (views == 2), backward)
        return y

    def dropout(self, x: int) -> int:
        """With the mask as a second output."""
        shape = self.shapes[x]
        size = prod(shape)
        both = self._op("native_dropout", "elementwise", shape, [x], 2 * size, written=(ITEM + 1) * size)
        y, mask = self._view("getitem", shape, both), self._view("getitem", shape, both)
        if self._takes(x):
            self._call(
                [x], [y], 1,
                lambda g: [self._op("native_dropout_backward", "elementwise", shape, [_one(g), mask], size,
                                    read=(ITEM + 1) * size)],
            )  # fmt: skip
        return y

    def add(self, a: int, b: int) -> int:
        """The gradient passes through."""
        y = self._op("add", "elementwise", self.shapes[a], [a, b], prod(self.shapes[a]))
        taking = [one for one in (a, b) if self._takes(one)]
        self._call(taking, [y], 0, lambda g: [_one(g)] * len(taking))
        return y

    def mul(self, a: int, b: int) -> int:
        """Elementwise."""
        shape = self.shapes[a]
        y = self._op("mul", "elementwise", shape, [a, b], prod(shape))
        others = [(one, other) for one, other in ((a, b), (b, a)) if self._takes(one)]
        self._call(
            [one for one, _ in others], [y], len(others),
            lambda g: [self._op("mul", "elementwise", shape, [_one(g), other], prod(shape)) for _, other in others],
        )  # fmt: skip
        return y

    def bmm(self, a: int, b: int) -> int:
        """[batch, m, k] x [batch, k, n]."""
        (batch, m, k), n = self.shapes[a], self.shapes[b][2]
        flops = 2 * batch * m * k * n
        y = self._op("bmm", "matmul", (batch, m, n), [a, b], flops)

        def backward(grads: list[int | None]) -> list[int]:
            g = _one(grads)
            of_a = self._op("bmm", "matmul", (batch, m, k), [g, self._view("transpose", (batch, n, k), b)], flops)
            of_b = self._op("bmm", "matmul", (batch, k, n), [self._view("transpose", (batch, k, m), a), g], flops)
            return [of_a, of_b]

        if self._takes(a) and self._takes(b):
            self._call([a, b], [y], 4, backward)
        return y

    def clone(self, x: int, shape: Shape) -> int:
        """A copy in another layout."""
        before = self.shapes[x]
        y = self._op("clone", "copy", shape, [x])
        if self._takes(x):
            self._call([x], [y], 1, lambda g: [self._view("view", before, _one(g))])
        return y

    def pool(self, x: int, stride: int) -> int:
        """The largest of 3 x 3."""
        batch, channels, size, _ = self.shapes[x]
        out = -(-size // stride)
        whole = self._op("max_pool2d", "pool", (batch, channels, out, out), [x], 9 * batch * channels * out * out)
        y = self._view("getitem", self.shapes[whole], whole)
        if self._takes(x):
            self._call(
                [x], [y], 1,
                lambda g: [self._op("max_pool2d_backward", "pool", self.shapes[x], [_one(g), x], prod(self.shapes[x]))],
            )  # fmt: skip
        return y

    def mean(self, x: int) -> int:
        """[batch, channels, ...] to [batch, channels]."""
        shape = self.shapes[x]
        y = self._op("mean", "reduction", shape[:2], [x], prod(shape))
        if self._takes(x):

            def backward(grads: list[int | None]) -> list[int]:
                spread = self._view("expand", shape, _one(grads))
                return [self._op("div", "elementwise", shape, [spread], prod(shape), read=ITEM * prod(shape[:2]))]

            self._call([x], [y], 2, backward)
        return y

    def split(self, x: int, parts: int) -> list[int]:
        """Equal parts of the last dimension."""
        shape = self.shapes[x]
        whole = self._view("split", shape, x)
        found = [self._view("getitem", (*shape[:-1], shape[-1] // parts), whole) for _ in range(parts)]
        if self._takes(x):
            self._call([x], found, 1, lambda g: [self._op("cat", "copy", shape, [one for one in g if one is not None])])
        return found

    def cat(self, tensors: Sequence[int], axis: int) -> int:
        """Tensors side by side."""
        shape = list(self.shapes[tensors[0]])
        shape[axis] = sum(self.shapes[one][axis] for one in tensors)
        y = self._op("cat", "copy", tuple(shape), tensors)
        taking = [one for one in tensors if self._takes(one)]
        self._call(
            taking, [y], len(taking), lambda g: [self._view("slice", self.shapes[one], _one(g)) for one in taking]
        )
        return y

    def embedding(self, shape: Shape, words: int, width: int) -> int:
        """``shape``: of the numbers of words, an input."""
        table, numbers = self.parameter((words, width)), self.constant("input", shape)
        size = prod(shape) * width
        y = self._op("embedding", "gather", (*shape, width), [table, numbers], read=ITEM * size)
        self._call(
            [table], [y], 1,
            lambda g: [self._op("embedding_dense_backward", "gather", (words, width), [_one(g), numbers], size)],
        )  # fmt: skip
        return y

    def loss(self, logits: int) -> int:
        """Cross-entropy of [rows, classes]; gradients start here."""
        shape = self.shapes[logits]
        chances = self.unary("_log_softmax", logits, 5, "softmax")
        labels = self.constant("input", shape[:1])
        both = self._op("nll_loss_forward", "gather", (), [chances, labels], shape[0], written=2 * ITEM)
        y, weight = self._view("getitem", (), both), self._view("getitem", (), both)

        def backward(grads: list[int | None]) -> list[int]:
            one = self._op("ones_like", "source", ())
            inputs = [one, chances, labels, weight]
            return [self._op("nll_loss_backward", "gather", shape, inputs, shape[0])]

        self._call([chances], [y], 2, backward)
        return y

    # -- the whole -----------------------------------------------------------------------------------------------------

    def finish(self, name: str, metadata: dict[str, Any]) -> ComputationGraph:
        """The graph: with gradients and updates where it trains. Each output of a call is read, or is a loss."""
        planned = self.planned
        if self.train:
            self._backward()
        assert len(self.rows) == planned, (len(self.rows), planned)
        count = len(self.rows)
        columns = list(zip(*self.rows, strict=True))
        kinds = tuple(dict.fromkeys(columns[0]))
        names = ("op_class", "phase", "flops", "bytes_read", "bytes_written", "output_bytes", "param_bytes",
                 "state_bytes", "module", "colocation")  # fmt: skip
        arrays = {column: np.array(values, np.int64) for column, values in zip(names, columns[1:], strict=True)}
        index = {kind: code for code, kind in enumerate(kinds)}
        arrays["kind"] = np.array([index[kind] for kind in columns[0]])
        arrays["dtype"] = np.full(count, DTYPES.index("float32"))
        arrays["output_shape"] = np.array([(*shape, *[-1] * (MAX_RANK - len(shape))) for shape in self.shapes])
        return ComputationGraph(
            name, kinds=kinds, modules=self.modules, columns={column: arrays[column] for column in COLUMNS},
            edges=np.array(self.edges, np.int64), metadata=metadata,
        )  # fmt: skip

    def _backward(self) -> None:
        """Gradients in the reverse order of the calls, then the updates."""
        grads: dict[int, int] = {}
        self._phase = PHASES.index("backward")
        for call in reversed(self._calls):
            given = [grads.get(one) for one in call.outputs]
            self._group, self._module = call.group, call.module
            for tensor, found in zip(call.inputs, call.backward(given), strict=True):
                if tensor in grads:
                    group, shape = self.rows[tensor][-1], self.shapes[tensor]
                    both = [grads[tensor], found]
                    found = self._op("add", "elementwise", shape, both, prod(shape), group=group,
                                     read=2 * ITEM * prod(shape))  # fmt: skip
                grads[tensor] = found
        self._phase = PHASES.index("optimizer")
        flops, read, written, state = OPTIMIZERS[self.optimizer]
        for parameter in self._parameters:
            size, (*_, module, group) = prod(self.shapes[parameter]), self.rows[parameter]
            self._module = module
            self._op(self.optimizer, "optimizer", self.shapes[parameter], [parameter, grads[parameter]], flops * size,
                     read=read * ITEM * size, written=written * ITEM * size, state=state * ITEM * size,
                     group=group)  # fmt: skip


def _one(grads: list[int | None]) -> int:
    """The gradient of a call's one output (of the loss, there is none: it starts there)."""
    found = grads[0]
    assert found is not None
    return found
