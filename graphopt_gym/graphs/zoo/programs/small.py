"""Ten small programs, each with something for other rules to do; their best is known by exhaustive search."""

from __future__ import annotations

from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram


def _transposed(b: ProgramBuilder, x: int) -> int:
    return b.op("transpose", x, perm=(1, 0))


def recurrent(width: int = 512) -> TensorProgram:
    """A gate on two inputs and one on the first alone: a sum of products, products that share an operand, fusion."""
    b = ProgramBuilder("small_recurrent")
    x, h = (b.input(name, (1, width)) for name in "xh")
    w, u, v = (b.weight(name, (width, width)) for name in "wuv")
    gate = b.op("sigmoid", b.op("add", b.op("matmul", x, w), b.op("matmul", h, u)))
    return b.finish([b.op("mul", gate, b.op("tanh", b.op("matmul", x, v)))])


def scores(rows: int = 64, width: int = 1024, heads: int = 16) -> TensorProgram:
    """Scores of attention: transposes that meet, a factor that can move into a weight, products of one input."""
    b = ProgramBuilder("small_scores")
    x, factor = b.input("x", (rows, width)), b.weight("factor", ())
    parts = []
    for name in "qk":
        part = b.op("matmul", x, b.weight(name, (width, width)))
        part = b.op("reshape", part, shape=(rows, heads, width // heads))
        parts.append(b.op("transpose", part, perm=(1, 0, 2)))
    keys = b.op("transpose", parts[1], perm=(0, 2, 1))
    return b.finish([b.op("smul", b.op("matmul", parts[0], keys), factor)])


def chain(rows: int = 64, width: int = 512) -> TensorProgram:
    """Three matrices in a row, which are one that can be computed beforehand."""
    b = ProgramBuilder("small_chain")
    x = b.input("x", (rows, width))
    for name, size in (("up", (width, 4 * width)), ("mix", (4 * width, 4 * width)), ("down", (4 * width, width // 8))):
        x = b.op("matmul", x, b.weight(name, size))
    return b.finish([b.op("relu", x)])


def transposed(rows: int = 256, width: int = 512) -> TensorProgram:
    """Two linear layers computed on the transposed input, and transposed back."""
    b = ProgramBuilder("small_transposed")
    x = b.input("x", (rows, width))
    w, v = (b.weight(name, (width, width)) for name in "wv")
    gate = _transposed(b, b.op("relu", b.op("matmul", w, _transposed(b, x))))
    return b.finish([b.op("add", _transposed(b, b.op("matmul", v, _transposed(b, x))), gate)])


def factored(channels: int = 256, size: int = 56) -> TensorProgram:
    """A factor common to three summands."""
    b = ProgramBuilder("small_factored")
    x, y, z, factor = (b.input(name, (1, channels, size, size)) for name in ("x", "y", "z", "factor"))
    left = b.op("add", b.op("mul", x, factor), b.op("mul", y, factor))
    return b.finish([b.op("add", left, b.op("mul", z, factor))])


def halves(channels: int = 64, size: int = 28) -> TensorProgram:
    """The same done to both parts of a split, before a pooling that could come first."""
    b = ProgramBuilder("small_halves")
    x = b.input("x", (1, channels, size, size))
    parts = [b.op("relu", b.op(part, x, axis=1, at=channels // 2)) for part in ("split0", "split1")]
    return b.finish([b.op("maxpool", b.op("concat", *parts, axis=1), kernel=(3, 3), stride=(2, 2))])


def fire(channels: int = 128, size: int = 28) -> TensorProgram:
    """A block of SqueezeNet: kernels of two sizes on one input, concatenated."""
    b = ProgramBuilder("small_fire")
    x, c = b.input("x", (1, channels, size, size)), channels // 8
    squeezed = b.op("relu", b.op("conv2d", x, b.weight("squeeze", (c, channels, 1, 1))))
    sides = [
        b.op("relu", b.op("conv2d", squeezed, b.weight(f"expand{kernel}", (4 * c, c, kernel, kernel))))
        for kernel in (1, 3)
    ]
    return b.finish([b.op("concat", *sides, axis=1)])


def separable(channels: int = 64, size: int = 28) -> TensorProgram:
    """Part of a cell of NASNet: two separable convolutions of one input and two averages, added."""
    b = ProgramBuilder("small_separable")
    x = b.input("x", (1, channels, size, size))
    sides = [
        b.op(
            "conv2d",
            b.op("conv2d", x, b.weight(f"depthwise{i}", (channels, 1, 3, 3))),
            b.weight(f"pointwise{i}", (channels, channels, 1, 1)),
        )
        for i in range(2)
    ]
    average = b.op("avgpool", x, kernel=(3, 3))
    return b.finish([b.op("add", b.op("add", *sides), b.op("add", average, average))])


def grouped(channels: int = 32, size: int = 14) -> TensorProgram:
    """A grouped convolution and a plain one on one input, added: one convolution, once the groups are merged."""
    b = ProgramBuilder("small_grouped")
    x = b.input("x", (1, channels, size, size))
    y = b.op("conv2d", x, b.weight("grouped", (2 * channels, channels // 2, 3, 3)))
    z = b.op("conv2d", x, b.weight("plain", (2 * channels, channels, 3, 3)))
    return b.finish([b.op("relu", b.op("add", y, z))])


def siamese(channels: int = 256, size: int = 7) -> TensorProgram:
    """Two images through the same two convolutions."""
    b = ProgramBuilder("small_siamese")
    w, v = b.weight("w", (channels, channels, 3, 3)), b.weight("v", (channels // 4, channels, 1, 1))
    images = (b.input(name, (1, channels, size, size)) for name in "xy")
    return b.finish([b.op("conv2d", b.op("conv2d", image, w, act="relu"), v) for image in images])


SMALL = (recurrent, scores, chain, transposed, factored, halves, fire, separable, grouped, siamese)
