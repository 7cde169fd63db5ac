"""Small programs for tests, with something for most rules to do."""

from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram


def attention(heads: int = 2, width: int = 8, rows: int = 4, layers: int = 1) -> TensorProgram:
    b = ProgramBuilder("attention")
    x = b.input("x", (rows, width))
    scale = b.weight("scale", ())
    for layer in range(layers):
        parts = []
        for name in "qkv":
            part = b.op("matmul", x, b.weight(f"{name}{layer}", (width, width)))
            part = b.op("reshape", part, shape=(rows, heads, width // heads))
            parts.append(b.op("transpose", part, perm=(1, 0, 2)))
        q, k, v = parts
        scores = b.op("smul", b.op("matmul", q, b.op("transpose", k, perm=(0, 2, 1))), scale)
        mixed = b.op("matmul", b.op("softmax", scores), v)
        mixed = b.op("reshape", b.op("transpose", mixed, perm=(1, 0, 2)), shape=(rows, width))
        x = b.op("add", x, b.op("matmul", mixed, b.weight(f"o{layer}", (width, width))))
        hidden = b.op("relu", b.op("matmul", x, b.weight(f"up{layer}", (width, 2 * width))))
        x = b.op("add", x, b.op("matmul", hidden, b.weight(f"down{layer}", (2 * width, width))))
    return b.finish([x])


def recurrent(width: int = 4, steps: int = 2, layers: int = 1) -> TensorProgram:
    b = ProgramBuilder("recurrent")
    states = [b.input(f"h{layer}", (1, width)) for layer in range(layers)]
    for step in range(steps):
        x = b.input(f"x{step}", (1, width))
        for layer in range(layers):
            gates = []
            for gate in ("tanh", "sigmoid", "relu", "relu"):
                name = f"{layer}{gate}{len(gates)}"
                own = b.op("matmul", states[layer], b.weight(f"u{name}", (width, width)))
                gates.append(b.op(gate, b.op("add", b.op("matmul", x, b.weight(f"w{name}", (width, width))), own)))
            x = b.op("add", b.op("mul", gates[0], gates[1]), b.op("mul", gates[2], gates[3]))
            states[layer] = x
    return b.finish(states)


def inception(channels: int = 4, size: int = 6) -> TensorProgram:
    b = ProgramBuilder("inception")
    x = b.input("x", (1, channels, size, size))
    for block in range(2):
        branches = []
        for kernel in (1, 3, 1):
            w = b.weight(f"w{block}{len(branches)}", (channels, channels, kernel, kernel))
            branches.append(b.op("relu", b.op("conv2d", x, w)))
        pooled = b.op("avgpool", x, kernel=(3, 3))
        branches.append(b.op("conv2d", pooled, b.weight(f"p{block}", (channels, channels, 1, 1)), act="relu"))
        grouped = b.op("conv2d", branches[0], b.weight(f"g{block}", (channels, channels // 2, 3, 3)))
        x = b.op("concat", *branches, grouped, axis=1)
        channels *= 5
    return b.finish([b.op("maxpool", x, kernel=(3, 3), stride=(2, 2))])


def all_programs() -> list[TensorProgram]:
    return [attention(), recurrent(), inception()]
