"""Texts of programs for tests."""

EVERY_OP = """"every op"
x = input(name="x", shape=(2, 4, 7, 7))
w = weight(name="w", shape=(8, 2, 1, 3))
s = weight(name="s", shape=())
c = conv2d(x, enlarge(smul(w, s), size=(3, 3)), stride=(2, 1), act=sigmoid)
m = conv2d(x, merge(w, groups=2, count=2), stride=(2, 1), padding=valid, act=tanh)
i = conv2d(c, identity_kernel(shape=(8, 4, 3, 3)))
p = conv2d(i, pool_kernel(channels=8, kernel=(3, 3)))
q = add(maxpool(p, kernel=(3, 3)), avgpool(p, kernel=(3, 3), stride=(1, 1)))
f = reshape(maxpool(q, kernel=(2, 2), stride=(2, 2), padding=valid), shape=(2, 8, -1))
t = transpose(f, perm=(0, 2, 1))
g = matmul(f, t, act=relu)
e = matmul(g, eye(n=8))
n = layernorm(e, weight(name="scale", shape=(8,)), weight(name="bias", shape=(8,)))
h = softmax(gelu(mul(n, tanh(sigmoid(n)))))
u = clip(hardsigmoid(sub(h, n)), low=0.25, high=1.0)
r = div(exp(erf(leakyrelu(hardswish(n)))), sqrt(u))
z = reducesum(mul(abs(r), power(log(u), exponent=3.0)), axes=(0, 2), keepdims=0)
o = avgpool(conv2d(x, w, padding=(0, 1, 1, 2)), kernel=(2, 3), padding=(1, 0, 0, 2))
y = add(layernorm(reducemean(reciprocal(u), axes=(1,)), weight(name="scale", shape=(8,)), z, epsilon=0.5), z)
return concat(split1(h, axis=2, at=3), relu(split0(h, axis=2, at=3)), h, axis=-1), m, y, o
"""
TEXTS = {
    "opaque": """
x = input(name="x", shape=(2, 3))
y = opaque(relu(x), x, kind="LSTM", name="n", shape=(4, 1), dtype="int64", op_class="matmul", flops=9, bytes_read=4)
z = getitem(y, index=1, shape=(5,))
c = opaque(kind="A", name="c", shape=(2,))
return add(z, z), opaque(y, kind="Cast", name="b", shape=(2, 0), op_class="view"), c
""",
    "two outputs": """
x = input(name="x", shape=(1, 6))
y = input(name="y", shape=(6,))
a = add(x, y)
return mul(a, a), x
""",
    "constant": """
w = weight(name="w", shape=(3, 2))
x = input(name="x", shape=(2, 3))
return matmul(x, w), transpose(w, perm=(1, 0))
""",
}
