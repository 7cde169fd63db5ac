"""Random training steps that look like captured ones.

Each is a network of one of the :data:`FAMILIES`, of random depth, widths, batch and connections, written down with its
backward pass and updates by a :class:`~graphopt_gym.graphs.tape.Tape`: so op classes, FLOPs, bytes, parameters and
colocation groups hang together as they do in the zoo, and costs are as uneven. Widths, batches, images and lengths are
drawn log-uniformly from the sizes that the zoo has; a block's width differs from its graph's by a log-normal factor.
``tests/graphs/test_random_graphs.py`` holds them against the zoo.

==============  ======================================================================================================
``chain``       residual blocks of convolutions one after the other, as ResNet
``branches``    blocks of several convolutional branches side by side, joined, as Inception
``recurrent``   a grid of LSTM cells, steps by layers; the cells of a layer share their parameters, as RNNLM
``transformer`` blocks of attention and two linear layers with residual connections, as GPT-2
``layered``     linear layers that each read one to three of the layers before, at random
==============  ======================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.generator import YES_OR_NO, Generator, Key, some_of, whole_range
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.tape import OPTIMIZERS, Tape

LEAST_OPS, MOST_OPS = 64, 1_000_000
_FILL = 5  # ops that are left to fill up, so that any number can be met by activations of one, two or three


class _Network:
    """A network that grows block by block. ``x`` is what the next block reads."""

    least: ClassVar[int] = LEAST_OPS  # of a step
    spread: ClassVar[float] = 0.35  # of the logarithms of the widths of blocks

    def __init__(self, tape: Tape, rng: np.random.Generator) -> None:
        self.tape, self.rng = tape, rng
        self.blocks = 0
        self.classes = self.log_uniform(100, 4000, 4)
        self.x = self.start()

    def log_uniform(self, low: int, high: int, step: int = 1) -> int:
        """A multiple of ``step``."""
        return max(step, round(math.exp(self.rng.uniform(math.log(low), math.log(high))) / step) * step)

    def wide(self, width: int, step: int) -> int:
        """About a width: times a log-normal factor."""
        factor = np.clip(self.rng.lognormal(0.0, self.spread), 0.25, 4.0)
        return max(step, round(width * factor / step) * step)

    def activate(self, x: int, kind: str = "relu") -> int:
        return self.tape.unary(kind, x)

    def start(self) -> int:
        """What comes before the blocks."""
        raise NotImplementedError

    def block(self, path: str) -> None:
        """One more block."""
        raise NotImplementedError

    def join(self) -> int:
        """One tensor of all that nothing reads yet."""
        return self.x

    def rows(self, x: int) -> int:
        """[rows, width], for the classifier."""
        return x

    def state(self) -> Any:
        """What a block changes, for :meth:`restore`."""
        return self.x

    def restore(self, state: Any) -> None:
        self.x = state

    def fill(self, x: int, path: str) -> int:
        """A small block."""
        self.tape.module(path)
        x = self.tape.linear(x, self.tape.shapes[x][-1])
        self.tape.module(f"{path}.act")
        return self.activate(x)


class _Images(_Network):
    """Networks over images [batch, channels, size, size]."""

    def conv_unit(self, path: str, x: int, channels: int, kernel: int, stride: int = 1, last: bool = False) -> int:
        """Convolution, normalisation, activation (``last``: none)."""
        tape = self.tape
        tape.module(f"{path}.conv")
        x = tape.conv(x, channels, kernel, stride)
        tape.module(f"{path}.norm")
        x = tape.norm(x, "batch")
        if last:
            return x
        tape.module(f"{path}.act")
        return self.activate(x)

    def start(self) -> int:
        size, batch = self.log_uniform(28, 112, 4), self.log_uniform(8, 64)
        self.channels = self.log_uniform(64, 256, 16)
        self.tape.module("stem")
        return self.conv_unit("stem", self.tape.constant("input", (batch, 3, size, size)), self.channels, 3)

    def rows(self, x: int) -> int:
        self.tape.module("head.mean")
        return self.tape.mean(x)

    def fill(self, x: int, path: str) -> int:
        return self.conv_unit(path, x, self.tape.shapes[x][1], 1)

    def shrink(self) -> int:
        """The stride of the next block: now and then 2, with more channels."""
        if self.tape.shapes[self.x][2] >= 8 and self.rng.random() < 0.25:
            self.channels = min(2 * self.channels, 2048)
            return 2
        return 1


class _Chain(_Images):
    def block(self, path: str) -> None:
        tape, x = self.tape, self.x
        stride, inner = self.shrink(), self.wide(self.channels // 2, 8)
        skip = x
        if self.rng.random() < 0.6:
            units = [(inner, 1, 1), (inner, 3, stride), (self.channels, 1, 1)]
        else:
            units = [(inner, 3, stride), (self.channels, 3, 1)]
        for number, (channels, kernel, by) in enumerate(units):
            x = self.conv_unit(f"{path}.{number}", x, channels, kernel, by, last=number == len(units) - 1)
        if tape.shapes[skip] != tape.shapes[x]:
            skip = self.conv_unit(f"{path}.skip", skip, self.channels, 1, stride, last=True)
        tape.module(path)
        self.x = self.activate(tape.add(x, skip))

    def state(self) -> Any:
        return self.x, self.channels

    def restore(self, state: Any) -> None:
        self.x, self.channels = state


class _Branches(_Chain):
    def block(self, path: str) -> None:
        tape, rng = self.tape, self.rng
        stride, count = self.shrink(), int(rng.integers(2, 5))
        found = []
        for branch in range(count):
            at, x = f"{path}.{branch}", self.x
            if branch == count - 1 and rng.random() < 0.7:
                tape.module(f"{at}.pool")
                x = tape.pool(x, stride)
                found.append(self.conv_unit(f"{at}.0", x, self.wide(self.channels // count, 8), 1))
                continue
            units = int(rng.integers(1, 4))
            for number in range(units):
                kernel = 1 if number == 0 and units > 1 else int(rng.choice([1, 3, 3, 5]))
                by = stride if number == units - 1 else 1
                x = self.conv_unit(f"{at}.{number}", x, self.wide(self.channels // count, 8), kernel, by)
            found.append(x)
        tape.module(path)
        self.x = tape.cat(found, 1)


class _Recurrent(_Network):
    least = 128  # one cell

    def start(self) -> int:
        tape = self.tape
        self.layers, self.width = int(self.rng.integers(1, 5)), self.log_uniform(512, 2048, 64)
        batch = self.log_uniform(64, 256)
        self.classes = self.log_uniform(10000, 40000, 8)  # words
        self.shape = (batch, self.width)
        self.parameters: list[tuple[int, int, int, int]] = []
        tape.module("zeros")
        self.zeros = tape.constant("input", self.shape)
        self.hidden, self.cells = [self.zeros] * self.layers, [self.zeros] * self.layers
        self.tops: list[int] = []
        self.layer = 0
        return self.zeros

    def block(self, path: str) -> None:
        """A cell: of the next layer, or of the first at the next step."""
        tape, layer = self.tape, self.layer
        if layer == 0:
            tape.module("embedding")
            self.x = tape.embedding(self.shape[:1], self.classes, self.width)
        tape.module(f"cells.{layer}")
        if len(self.parameters) == layer:
            square, bias = (4 * self.width, self.width), (4 * self.width,)
            self.parameters.append(
                (tape.parameter(square), tape.parameter(bias), tape.parameter(square), tape.parameter(bias))
            )
        own = self.parameters[layer]
        gates = tape.add(
            tape.linear(self.x, 4 * self.width, own[:2]), tape.linear(self.hidden[layer], 4 * self.width, own[2:])
        )
        keep, take, out, new = tape.split(gates, 4)
        taken = tape.mul(self.activate(take, "sigmoid"), self.activate(new, "tanh"))
        keep = self.activate(keep, "sigmoid")
        cell = tape.add(tape.mul(keep, self.cells[layer]), taken)
        self.x = tape.mul(self.activate(out, "sigmoid"), self.activate(cell, "tanh"))
        self.hidden = [*self.hidden[:layer], self.x, *self.hidden[layer + 1 :]]
        self.cells = [*self.cells[:layer], cell, *self.cells[layer + 1 :]]
        self.layer = (layer + 1) % self.layers
        if self.layer == 0:
            self.tops = [*self.tops, self.x]

    def join(self) -> int:
        """The states of the top layer at all steps, and those that no cell reads yet."""
        loose = [one for one in self.hidden if one != self.zeros and one not in self.tops]
        self.tape.module("join")
        return self.tape.cat([*self.tops, *loose], 0)

    def state(self) -> Any:
        return self.x, self.hidden, self.cells, self.tops, self.layer, list(self.parameters)

    def restore(self, state: Any) -> None:
        self.x, self.hidden, self.cells, self.tops, self.layer, self.parameters = state


class _Transformer(_Network):
    least = 80

    def start(self) -> int:
        tape = self.tape
        self.head, self.heads = int(self.rng.choice([32, 64])), int(self.rng.integers(4, 17))
        self.width = self.head * self.heads
        self.batch, self.length = self.log_uniform(4, 32), self.log_uniform(64, 512, 32)
        self.inner = self.wide(4 * self.width, 64)
        self.classes = self.log_uniform(8000, 50000, 8)  # words
        tape.module("embedding")
        return tape.embedding((self.batch, self.length), self.classes, self.width)

    def heads_of(self, x: int, across: bool) -> int:
        """[batch, length, width] to [batch x heads, length, head], or turned across."""
        tape, both = self.tape, self.batch * self.heads
        x = tape.view("view", x, (self.batch, self.length, self.heads, self.head))
        if across:
            return tape.clone(
                tape.view("permute", x, (self.batch, self.heads, self.head, self.length)),
                (both, self.head, self.length),
            )
        return tape.clone(
            tape.view("permute", x, (self.batch, self.heads, self.length, self.head)), (both, self.length, self.head)
        )

    def block(self, path: str) -> None:
        tape = self.tape
        tape.module(f"{path}.norm1")
        x = tape.norm(self.x, "layer")
        tape.module(f"{path}.qkv")
        query, key, value = tape.split(tape.linear(x, 3 * self.width), 3)
        tape.module(f"{path}.scores")
        scores = tape.bmm(self.heads_of(query, False), self.heads_of(key, True))
        chances = tape.unary("_softmax", scores, 5, "softmax")
        tape.module(f"{path}.mix")
        mixed = tape.bmm(chances, self.heads_of(value, False))
        mixed = tape.view("view", mixed, (self.batch, self.heads, self.length, self.head))
        mixed = tape.clone(mixed, (self.batch, self.length, self.width))
        tape.module(f"{path}.out")
        x = tape.linear(mixed, self.width)
        tape.module(f"{path}.drop1")
        x = tape.dropout(x)
        tape.module(f"{path}.add1")
        self.x = tape.add(self.x, x)
        self.mlp(path)

    def mlp(self, path: str) -> None:
        """The second half of a block."""
        tape = self.tape
        tape.module(f"{path}.norm2")
        x = tape.norm(self.x, "layer")
        tape.module(f"{path}.up")
        x = tape.linear(x, self.inner)
        tape.module(f"{path}.act")
        x = tape.unary("gelu", x, 8, views=0)
        tape.module(f"{path}.down")
        x = tape.linear(x, self.width)
        tape.module(f"{path}.drop2")
        x = tape.dropout(x)
        tape.module(f"{path}.add2")
        self.x = tape.add(self.x, x)

    def rows(self, x: int) -> int:
        self.tape.module("head.norm")
        return self.tape.view("view", self.tape.norm(x, "layer"), (self.batch * self.length, self.width))


class _Layered(_Network):
    spread = 0.8  # as nothing else makes its blocks differ

    def start(self) -> int:
        self.width, self.batch = self.log_uniform(512, 4096, 64), self.log_uniform(64, 1024, 8)
        self.tape.module("stem")
        first = self.tape.linear(self.tape.constant("input", (self.batch, self.width)), self.width)
        self.layer, self.found, self.unread = [first], [first], [first]
        return first

    def block(self, path: str) -> None:
        """A layer of nodes."""
        tape, rng, made = self.tape, self.rng, []
        unread = list(self.unread)
        for number in range(int(rng.integers(1, 5))):
            at, near = f"{path}.{number}", list(dict.fromkeys([*unread, *self.layer]))
            reads = [near[int(rng.integers(len(near)))]]
            for _ in range(int(rng.integers(0, 3))):
                pool = near if rng.random() < 0.75 else self.found
                reads.append(pool[int(rng.integers(len(pool)))])
            reads = list(dict.fromkeys(reads))
            tape.module(f"{at}.in")
            x = reads[0]
            if len(reads) > 1 and rng.random() < 0.5:
                x = tape.cat(reads, 1)
            else:
                for other in reads[1:]:
                    x = tape.add(x, other)
            tape.module(f"{at}.linear")
            x = tape.linear(x, self.wide(self.width, 32))
            tape.module(f"{at}.act")
            x = self.activate(x)
            if tape.shapes[x][1] != self.width:  # back to one width, so that any two can be added
                tape.module(f"{at}.out")
                x = tape.linear(x, self.width)
            made.append(x)
            unread = [one for one in unread if one not in reads]
        self.unread = [*unread, *made]
        self.layer, self.found = made, [*self.found, *made]

    def join(self) -> int:
        if len(self.unread) == 1:
            return self.unread[0]
        self.tape.module("join")
        return self.tape.cat(self.unread, 1)

    def state(self) -> Any:
        return self.layer, self.found, self.unread

    def restore(self, state: Any) -> None:
        self.layer, self.found, self.unread = state


FAMILIES: dict[str, type[_Network]] = {
    "chain": _Chain,
    "branches": _Branches,
    "recurrent": _Recurrent,
    "transformer": _Transformer,
    "layered": _Layered,
}
ALL = tuple(FAMILIES)


@dataclass(frozen=True, kw_only=True)
class RandomGraphs(Generator[ComputationGraph]):
    """Random training steps, each of exactly as many ops as are drawn for it.

    Args:
        num_ops: from how many to how many, views and parameters among them; drawn log-uniformly.
        families: some of :data:`FAMILIES`, each as likely; a step of an LSTM cell has at least 128 ops, so where fewer
            are drawn, the others are.
        train: whether there are a backward pass and updates, or a forward pass alone.
        optimizer: some of ``adam`` and ``momentum``.
        seed: see :class:`~graphopt_gym.generator.Generator`.
    """

    word: ClassVar[str] = "random"
    keys: ClassVar[Mapping[str, Key]] = {
        "num_ops": whole_range(LEAST_OPS, MOST_OPS),
        "families": some_of(lambda: FAMILIES),
        "train": YES_OR_NO,
        "optimizer": some_of(lambda: OPTIMIZERS),
    }

    num_ops: Any = (256, 1024)
    families: Any = ALL
    train: Any = True
    optimizer: Any = ("adam", "momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(FAMILIES[family].least for family in self.families)
        if self.num_ops[0] < least:
            raise InputError(
                f"random: num_ops is from {self.num_ops[0]}; give at least {least} for {'+'.join(self.families)}"
            )

    @property
    def most(self) -> Mapping[str, int]:
        """Not proven, but more than any of thousands has; the tests hold it to that."""
        high = self.num_ops[1]
        groups = high // 3 if self.train else high // 2
        return {"ops": high, "groups": groups, "edges": 2 * high, "group_edges": 2 * high // 3}

    def _make(self, rng: np.random.Generator, name: str) -> ComputationGraph:
        low, high = self.num_ops
        count = int(np.clip(math.floor(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), low, high))
        fitting = [family for family in self.families if FAMILIES[family].least <= count]
        family = fitting[int(rng.integers(len(fitting)))]
        optimizer = self.optimizer[int(rng.integers(len(self.optimizer)))]
        tape = Tape(self.train, optimizer)
        network = FAMILIES[family](tape, rng)

        def end(x: int) -> None:
            x = network.rows(x)
            tape.module("head.linear")
            x = tape.linear(x, network.classes)
            tape.module("head.loss")
            tape.loss(x)

        def left(x: int) -> int:
            """Ops that are left where ``x`` goes to the head."""
            before = tape.mark()
            end(x)
            found = count - tape.planned
            tape.back_to(before)
            return found

        def tried(block: Any, keep: int) -> bool:
            """Add a block where it leaves ``keep`` ops or more."""
            before, state = tape.mark(), network.state()
            block()
            after = tape.mark()
            fits = left(network.join()) >= keep
            tape.back_to(after if fits else before)
            if not fits:
                network.restore(state)
            return fits

        while tried(lambda: network.block(f"blocks.{network.blocks}"), _FILL):
            network.blocks += 1
        x = network.join()
        assert left(x) >= _FILL, (name, family, count)
        number = 0
        while True:  # small blocks, then single activations
            before = tape.mark()
            filled = network.fill(x, f"fill.{number}")
            if left(filled) < _FILL:
                tape.back_to(before)
                break
            x, number = filled, number + 1
        while rest := left(x):
            tape.module(f"fill.{number}")
            x = tape.unary("relu", x, views=rest % 2 if self.train else 0)  # three ops with the view, two without
            number += 1
        end(x)
        stages = [{"name": f"block {number}", "part": "", "modules": [f"blocks.{number}"]}
                  for number in range(network.blocks)]  # fmt: skip
        metadata = {"source": "graphopt_gym.graphs.random_graphs", "family": family, "train": self.train,
                    "optimizer": optimizer if self.train else None, "stages": stages}  # fmt: skip
        return tape.finish(name, metadata)
