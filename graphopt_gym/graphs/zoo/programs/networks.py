"""Networks as tensor programs: inference, built layer by layer from their papers' configurations.

As in TASO's and TENSAT's own benchmarks, convolutions and linear layers stand without biases unless ``biases`` is set:
a bias between a convolution and its activation would keep the two from being one operator. Batch norms count as folded
into the convolution before them, which leaves a bias at most.

Activations are fused where TENSAT's own programs have them fused. SqueezeNet and VGG-19 come to TENSAT from ONNX files,
where each stands by itself; so they do here.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram


class Net:
    """Layers on a :class:`ProgramBuilder`; with ``fused``, activations are part of layers that have no bias."""

    def __init__(self, name: str, biases: bool = False, fused: bool = True) -> None:
        self.builder = ProgramBuilder(name)
        self.biases, self.fused = biases, fused and not biases
        self.op = self.builder.op
        self.input = self.builder.input
        self.weight = self.builder.weight

    def channels(self, x: int) -> int:
        return self.builder.shape(x)[1]

    def conv(
        self,
        x: int,
        name: str,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: str = "same",
        act: str = "relu",
        groups: int = 1,
    ) -> int:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        w = self.weight(f"{name}.weight", (outputs, self.channels(x) // groups, *size))
        place = {"stride": (stride, stride), "padding": padding}
        if self.fused:
            return self.op("conv2d", x, w, act=act, **place)
        y = self.op("conv2d", x, w, **place)
        if self.biases:
            y = self.op("add", y, self.weight(f"{name}.bias", (1, outputs, 1, 1)))
        return y if act == "none" else self.op(act, y)

    def linear(self, x: int, name: str, outputs: int, act: str = "none") -> int:
        """``act`` may be ``gelu``, which is never fused. The weight is [inputs, outputs]."""
        w = self.weight(f"{name}.weight", (self.builder.shape(x)[-1], outputs))
        fused = act if act != "gelu" and self.fused else "none"
        y = self.op("matmul", x, w, act=fused)
        if self.biases:
            y = self.op("add", y, self.weight(f"{name}.bias", (outputs,)))
        return y if act in ("none", fused) else self.op(act, y)

    def maxpool(self, x: int, kernel: int, stride: int, padding: str = "valid") -> int:
        return self.op("maxpool", x, kernel=(kernel, kernel), stride=(stride, stride), padding=padding)

    def avgpool(self, x: int, kernel: int, stride: int = 1, padding: str = "same") -> int:
        return self.op("avgpool", x, kernel=(kernel, kernel), stride=(stride, stride), padding=padding)

    def pooled(self, x: int) -> int:
        """Average over all places: [N, C, H, W] -> [N, C]."""
        n, channels, height, width = self.builder.shape(x)
        y = self.op("avgpool", x, kernel=(height, width), padding="valid")
        return self.op("reshape", y, shape=(n, channels))

    def finish(self, *outputs: int) -> TensorProgram:
        return self.builder.finish(outputs)


# -- language ----------------------------------------------------------------------------------------------------------


def _heads(net: Net, x: int, heads: int) -> int:
    """[rows, width] -> [heads, rows, width / heads]"""
    rows, width = net.builder.shape(x)
    return net.op("transpose", net.op("reshape", x, shape=(rows, heads, width // heads)), perm=(1, 0, 2))


def _joined(net: Net, x: int) -> int:
    """[heads, rows, part] -> [rows, heads * part]"""
    heads, rows, part = net.builder.shape(x)
    return net.op("reshape", net.op("transpose", x, perm=(1, 0, 2)), shape=(rows, heads * part))


def _norm(net: Net, x: int, name: str) -> int:
    width = net.builder.shape(x)[-1:]
    return net.op("layernorm", x, net.weight(f"{name}.scale", width), net.weight(f"{name}.shift", width))


def bert(
    layers: int = 8, width: int = 1024, heads: int = 16, inner: int = 4096, sequence: int = 64, biases: bool = False
) -> TensorProgram:
    """Encoder layers of BERT (Devlin et al. 2019) on embedded tokens [sequence, width]: attention, then two linear
    layers around a GELU, each with a residual and a layer norm after it.

    Width, heads and inner width are BERT-large's; 8 layers and 64 tokens are those of TASO's and TENSAT's benchmark.
    The scores' factor 1 / sqrt(width / heads) is the weight ``scale``.
    """
    net = Net("bert", biases)
    x = net.input("tokens", (sequence, width))
    scale = net.weight("scale", ())
    for layer in range(layers):
        q, k, v = (_heads(net, net.linear(x, f"{layer}.{part}", width), heads) for part in ("query", "key", "value"))
        scores = net.op("smul", net.op("matmul", q, net.op("transpose", k, perm=(0, 2, 1))), scale)
        mixed = _joined(net, net.op("matmul", net.op("softmax", scores), v))
        x = _norm(net, net.op("add", x, net.linear(mixed, f"{layer}.output", width)), f"{layer}.attention_norm")
        y = net.linear(net.linear(x, f"{layer}.up", inner, "gelu"), f"{layer}.down", width)
        x = _norm(net, net.op("add", x, y), f"{layer}.norm")
    return net.finish(x)


def bert_tensat(layers: int = 8, width: int = 1024, heads: int = 16, sequence: int = 64) -> TensorProgram:
    """The program that TENSAT's evaluation calls BERT (uwplse/tensat, src/bert.rs, MIT; after TASO's examples/bert.py).

    It is not BERT: softmax, residuals and feed-forward layers are missing, queries meet keys that are not transposed
    (which needs ``sequence == width / heads``), and the output projection reads the layer's input in place of what
    the heads computed; so the heads' results are outputs by themselves, and the projections form a chain of matrices.
    """
    net = Net("bert_tensat")
    x = net.op("relu", net.input("tokens", (sequence, width)))
    outputs = []
    for layer in range(layers):
        q, k, v = (_heads(net, net.linear(x, f"{layer}.{part}", width), heads) for part in ("query", "key", "value"))
        outputs.append(_joined(net, net.op("matmul", net.op("matmul", q, k), v)))
        x = net.linear(x, f"{layer}.output", width)
    return net.finish(*outputs, x)


def _nas_cell(net: Net, x: int, h: int, name: str, width: int) -> int:
    """The tree that TASO's benchmark takes from Zoph and Le 2017: eight sums of two products, combined in pairs."""
    w = [(net.weight(f"{name}.w{i}", (net.channels(x), width)), net.weight(f"{name}.u{i}", (width, width)))
         for i in range(8)]  # fmt: skip
    t = [net.op("add", net.op("matmul", x, own), net.op("matmul", h, other)) for own, other in w]

    def join(op: str, a: str, left: int, b: str, right: int) -> int:
        return net.op(op, net.op(a, left), net.op(b, right))

    m0 = join("add", "relu", t[0], "sigmoid", t[3])
    m1 = join("add", "sigmoid", t[1], "tanh", t[2])
    m2 = join("mul", "sigmoid", t[4], "tanh", t[5])
    m3 = join("mul", "sigmoid", t[6], "relu", t[7])
    m4 = join("add", "sigmoid", m1, "tanh", m2)
    m5 = join("mul", "tanh", m0, "tanh", m3)
    return net.op("tanh", join("mul", "tanh", m4, "tanh", m5))


def nasrnn(steps: int = 5, width: int = 512, shared: bool = True) -> TensorProgram:
    """The recurrent cell found by Zoph and Le 2017, unrolled, with TASO's and TENSAT's sizes (uwplse/tensat,
    src/nasrnn.rs, MIT).

    The state that it starts from is an input. ``shared``: all steps have the same weights, as recurrent networks do;
    in TASO's and TENSAT's own program each step has its own.
    """
    net = Net("nasrnn" if shared else "nasrnn_tensat")
    inputs = [net.input(f"x{step}", (1, width)) for step in range(steps)]
    state = net.input("state", (1, width))
    for step, x in enumerate(inputs):
        state = _nas_cell(net, x, state, "cell" if shared else f"cell{step}", width)
    return net.finish(state)


# -- images ------------------------------------------------------------------------------------------------------------


def _separable(net: Net, x: int, name: str, channels: int, kernel: int, stride: int = 1) -> int:
    x = net.conv(x, f"{name}.depthwise", channels, kernel, stride, act="none", groups=channels)
    return net.conv(x, f"{name}.pointwise", channels, act="none")


def _fit(net: Net, previous: int, current: int, name: str, channels: int) -> tuple[int, int]:
    """The two inputs of a cell, brought to one number of channels and one size."""
    squeezed = net.conv(current, f"{name}.current", channels)
    halve = net.builder.shape(previous)[2] != net.builder.shape(squeezed)[2]
    return net.conv(previous, f"{name}.previous", channels, *((3, 2) if halve else (1, 1))), squeezed


def _normal_cell(net: Net, previous: int, current: int, name: str, channels: int) -> int:
    p, c = _fit(net, previous, current, name, channels)
    sums = [
        (_separable(net, c, f"{name}.a", channels, 3), c),
        (_separable(net, p, f"{name}.b", channels, 3), _separable(net, c, f"{name}.c", channels, 3)),
        (net.avgpool(c, 3), p),
        (net.avgpool(p, 3), net.avgpool(p, 3)),
        (_separable(net, p, f"{name}.d", channels, 3), _separable(net, p, f"{name}.e", channels, 3)),
    ]
    return net.op("concat", *[net.op("add", left, right) for left, right in sums], axis=1)


def _reduction_cell(net: Net, previous: int, current: int, name: str, channels: int) -> int:
    p, c = _fit(net, previous, current, name, channels)
    first = net.op(
        "add", _separable(net, p, f"{name}.a", channels, 7, 2), _separable(net, c, f"{name}.b", channels, 5, 2)
    )
    pooled = net.maxpool(c, 3, 2, "same")
    second = net.op("add", pooled, _separable(net, p, f"{name}.c", channels, 7, 2))
    third = net.op("add", net.avgpool(c, 3, 2), _separable(net, p, f"{name}.d", channels, 5, 2))
    fourth = net.op("add", pooled, _separable(net, first, f"{name}.e", channels, 3))
    fifth = net.op("add", net.avgpool(first, 3), second)
    return net.op("concat", first, second, third, fourth, fifth, axis=1)


def nasnet_a(
    channels: int = 128, cells: int = 5, stages: int = 3, stem: int = 64, size: int = 224, biases: bool = False
) -> TensorProgram:
    """Cells of NASNet-A (Zoph et al. 2018) in the stack of TASO's and TENSAT's benchmark (uwplse/tensat,
    src/nasneta.rs, MIT): ``stages`` times ``cells`` normal cells and one that halves the size and doubles the channels.

    As there, separable convolutions are applied once, all those of the normal cell are 3 x 3 (two are 5 x 5 in the
    paper), and there is no classifier.
    """
    net = Net("nasnet_a", biases)
    x = net.conv(net.input("image", (1, 3, size, size)), "stem", stem, 7, 2)
    x = net.maxpool(x, 3, 2, "same")
    for stage in range(stages):
        previous = current = x
        for cell in range(cells):
            following = _normal_cell(net, previous, current, f"{stage}.{cell}", channels)
            previous, current = current, following
        channels *= 2
        x = _reduction_cell(net, previous, current, f"{stage}.reduce", channels)
    return net.finish(x)


def resnext50(
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    groups: int = 32,
    size: int = 224,
    classes: int = 1000,
    biases: bool = False,
) -> TensorProgram:
    """ResNeXt-50 (32 x 4d) of Xie et al. 2017, table 1; the stride sits on the 3 x 3."""
    net = Net("resnext50", biases)
    x = net.conv(net.input("image", (1, 3, size, size)), "stem", width, 7, 2)
    x = net.maxpool(x, 3, 2, "same")
    for stage, count in enumerate(blocks):
        inner, outer = 2 * width << stage, 4 * width << stage
        for block in range(count):
            name, stride = f"{stage}.{block}", 2 if stage and not block else 1
            y = net.conv(x, f"{name}.reduce", inner)
            y = net.conv(y, f"{name}.grouped", inner, 3, stride, groups=groups)
            y = net.conv(y, f"{name}.expand", outer, act="none")
            if stride > 1 or net.channels(x) != outer:
                x = net.conv(x, f"{name}.project", outer, stride=stride, act="none")
            x = net.op("relu", net.op("add", y, x))
    return net.finish(net.linear(net.pooled(x), "classifier", classes))


def squeezenet(size: int = 224, classes: int = 1000, width: int = 16, biases: bool = False) -> TensorProgram:
    """SqueezeNet (Iandola et al. 2016), version 1.1 of its release, which TENSAT takes too; ``width`` 16 is its own."""
    net = Net("squeezenet", biases, fused=False)
    x = net.conv(net.input("image", (1, 3, size, size)), "stem", 4 * width, 3, 2, "valid")
    x = net.maxpool(x, 3, 2)
    for index, factor in enumerate((1, 1, 2, 2, 3, 3, 4, 4)):
        if index in (2, 4):
            x = net.maxpool(x, 3, 2)
        squeezed = net.conv(x, f"fire{index}.squeeze", factor * width)
        x = net.op(
            "concat",
            net.conv(squeezed, f"fire{index}.expand1", 4 * factor * width),
            net.conv(squeezed, f"fire{index}.expand3", 4 * factor * width, 3),
            axis=1,
        )
    return net.finish(net.pooled(net.conv(x, "classifier", classes)))


def vgg19(
    stages: Sequence[int] = (2, 2, 4, 4, 4),
    width: int = 64,
    inner: int = 4096,
    size: int = 224,
    classes: int = 1000,
    biases: bool = False,
) -> TensorProgram:
    """VGG-19 (Simonyan and Zisserman 2015, table 1, E)."""
    net = Net("vgg19", biases, fused=False)
    x = net.input("image", (1, 3, size, size))
    for stage, count in enumerate(stages):
        for layer in range(count):
            x = net.conv(x, f"{stage}.{layer}", width << min(stage, 3), 3)
        x = net.maxpool(x, 2, 2)
    _, channels, height, across = net.builder.shape(x)
    x = net.op("reshape", x, shape=(1, channels * height * across))
    x = net.linear(net.linear(x, "fc0", inner, "relu"), "fc1", inner, "relu")
    return net.finish(net.linear(x, "fc2", classes))


class _Inception(Net):
    """Blocks of Inception-v3 by the size of their grid; ``width`` 16 is the paper's network."""

    def __init__(self, width: int, biases: bool) -> None:
        super().__init__("inception_v3", biases)
        self.width = width

    def chain(self, x: int, name: str, *layers: tuple[int, int | tuple[int, int]]) -> int:
        """Convolutions of the given (outputs, kernel), one after the other."""
        for index, (outputs, kernel) in enumerate(layers):
            x = self.conv(x, f"{name}{index}", outputs, kernel)
        return x

    def join(self, *branches: int) -> int:
        return self.op("concat", *branches, axis=1)

    def grid35(self, x: int, name: str, pool: int) -> int:
        w = self.width
        return self.join(
            self.chain(x, f"{name}.one", (4 * w, 1)),
            self.chain(x, f"{name}.five", (3 * w, 1), (4 * w, 5)),
            self.chain(x, f"{name}.double", (4 * w, 1), (6 * w, 3), (6 * w, 3)),
            self.chain(self.avgpool(x, 3), f"{name}.pool", (pool, 1)),
        )

    def reduce35(self, x: int, name: str) -> int:
        w = self.width
        double = self.chain(x, f"{name}.double", (4 * w, 1), (6 * w, 3))
        return self.join(
            self.conv(x, f"{name}.three", 24 * w, 3, 2, "valid"),
            self.conv(double, f"{name}.double2", 6 * w, 3, 2, "valid"),
            self.maxpool(x, 3, 2),
        )

    def grid17(self, x: int, name: str, c: int) -> int:
        outputs, row, column = 12 * self.width, (1, 7), (7, 1)
        return self.join(
            self.chain(x, f"{name}.one", (outputs, 1)),
            self.chain(x, f"{name}.seven", (c, 1), (c, row), (outputs, column)),
            self.chain(x, f"{name}.double", (c, 1), (c, column), (c, row), (c, column), (outputs, row)),
            self.chain(self.avgpool(x, 3), f"{name}.pool", (outputs, 1)),
        )

    def reduce17(self, x: int, name: str) -> int:
        c = 12 * self.width
        return self.join(
            self.conv(self.chain(x, f"{name}.three", (c, 1)), f"{name}.three1", 20 * self.width, 3, 2, "valid"),
            self.conv(
                self.chain(x, f"{name}.seven", (c, 1), (c, (1, 7)), (c, (7, 1))), f"{name}.seven3", c, 3, 2, "valid"
            ),
            self.maxpool(x, 3, 2),
        )

    def grid8(self, x: int, name: str) -> int:
        w, c = self.width, 24 * self.width
        three = self.chain(x, f"{name}.three", (c, 1))
        double = self.chain(x, f"{name}.double", (28 * w, 1), (c, 3))
        sides = [
            self.conv(source, f"{name}.{branch}.{side}", c, kernel)
            for branch, source in (("three", three), ("double", double))
            for side, kernel in (("row", (1, 3)), ("column", (3, 1)))
        ]
        pool = self.chain(self.avgpool(x, 3), f"{name}.pool", (12 * w, 1))
        return self.join(self.chain(x, f"{name}.one", (20 * w, 1)), *sides, pool)


def inception_v3(width: int = 16, size: int = 299, classes: int = 1000, biases: bool = False) -> TensorProgram:
    """Inception-v3 (Szegedy et al. 2016, table 1), without the auxiliary classifier; ``width`` 16 is the paper's."""
    net, w = _Inception(width, biases), width
    x = net.conv(net.input("image", (1, 3, size, size)), "stem0", 2 * w, 3, 2, "valid")
    x = net.conv(x, "stem1", 2 * w, 3, padding="valid")
    x = net.maxpool(net.conv(x, "stem2", 4 * w, 3), 3, 2)
    x = net.conv(x, "stem3", 5 * w)
    x = net.maxpool(net.conv(x, "stem4", 12 * w, 3, padding="valid"), 3, 2)
    for index, pool in enumerate((2 * w, 4 * w, 4 * w)):
        x = net.grid35(x, f"a{index}", pool)
    x = net.reduce35(x, "b")
    for index, channels in enumerate((8 * w, 10 * w, 10 * w, 12 * w)):
        x = net.grid17(x, f"c{index}", channels)
    x = net.reduce17(x, "d")
    for index in range(2):
        x = net.grid8(x, f"e{index}")
    return net.finish(net.linear(net.pooled(x), "classifier", classes))
