"""The rules of a partition over partial assignments, compiled: which chips are still possible for each op.

Everything that is concluded follows from the rules, so no chip is ever taken from an op that a valid partition
could give it (sound); not every chip left can be completed (not complete), so a search on top may have to backtrack.

What is known of a partial partition, for ops u, v and chips a, b:

- the domain of each op, a set of chips;
- which chips hold fixed ancestors and fixed descendants of each op, so which chips certainly lead to which (``beyond``:
  if an op on a has a descendant on b, chips lead from a to b, whatever the ops between get);
- which chips certainly feed which directly (``direct``).

What follows:

- *acyclic dataflow*: the bounds of a domain pass along edges.
- *no skipped chip*: chips below a used one must stay possible for some op, each for another one, and are given to the
  last op that can take them. Before any assignment: for an edge u -> v, a chip strictly between theirs is used by some
  op w, which is no ancestor of u, no descendant of v, and not on a way from u to v (that would break the triangle
  rule). So ``f(v) - f(u)`` is at most one more than the number of such ops: 1 along residual connections.
- *triangle dependency*: a chip that certainly lies between u and v of an edge (leads from u, leads to v) is the chip of
  u or of v; where a certainly feeds b directly, no op may get a chip that makes a longer way.
- *memory*, where asked for: parameters, and buffers of tensors that certainly cross, of the ops fixed on a chip fit.

The search stands in this file too: a compiled function is cached by the date of its own file alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from graphopt_gym.compiled import kernel
from graphopt_gym.errors import InputError

# What runs for every assignment creates no array, so it need not count references to those that it is given; counting
# took two thirds of the time.
_inner = kernel(inner=True, allocates=False)
_outer = kernel(allocates=False)

SPANS_AT_ONCE = 4096  # edges, so that what they need fits in memory on large graphs
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)  # bits set in a byte

# rows of the table of chips
BEYOND, BEFORE, DIRECT, DIRECT_IN, FORBIDDEN, FORBIDDEN_IN, ON_WAY, ON_WAY_IN, POSSIBLE, HELD = range(10)
NEW_BEYOND, NEW_BEFORE, NUM_ROWS = 10, 11, 12  # what the first two gained since the ops last heard of it
# single words kept at the end of the store
HIGHEST, USED, NUM_WORDS = 0, 1, 2


# A compiled function takes what it is given apart into all its arrays, which takes time to compile. So each is given
# little: the graph where memory does not matter, and tables of several rows in place of several arrays.


class Graph(NamedTuple):
    """What does not change, of the ops and edges. N ops, E edges, C chips."""

    num_chips: int
    cover: bool  # whether skipped chips are refused
    first_domain: np.ndarray  # int64 [N]
    succ_ptr: np.ndarray  # int32 [N+1]
    succ: np.ndarray  # int32 [E, 2] consumer, the most by which its chip is higher
    pred_ptr: np.ndarray  # int32 [N+1]
    pred: np.ndarray  # int32 [E, 2] producer, the most by which its chip is lower


class Memory(NamedTuple):
    """What does not change, of what chips hold. P parameters, T tensors."""

    asked: bool  # whether memory is a rule; the arrays are empty where not
    capacity: np.ndarray  # int64 [C]
    op_param_ptr: np.ndarray  # int32 [N+1] parameters that each op reads
    op_param: np.ndarray
    param_bytes: np.ndarray  # int64 [P]
    input_ptr: np.ndarray  # int32 [N+1] tensors that each op reads
    input_tensor: np.ndarray
    made_ptr: np.ndarray  # int32 [N+1] tensors that each op makes
    made_tensor: np.ndarray
    tensor_op: np.ndarray  # int32 [T] or -1
    tensor_bytes: np.ndarray  # int64 [T]
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray


class Rules(NamedTuple):
    graph: Graph
    memory: Memory


class State(NamedTuple):
    """What does. ``store`` holds, one after the other: domains [N], chips of fixed ancestors [N], of fixed descendants
    [N], whether fixed [N], chips with each parameter [P], chips with each tensor's buffer [T], chips that send it [T],
    words [NUM_WORDS]."""

    store: np.ndarray  # int64
    chips: np.ndarray  # int64 [NUM_ROWS, C]
    trail: np.ndarray  # int64 [2, .] where the store was changed, and what stood there
    ops: np.ndarray  # int64 [NUM_OP_ROWS, N+1]
    stack: np.ndarray  # int64
    ends: np.ndarray  # int64 [C+1, C]
    # length of the trail, head of the queue, its length, dirty ops, whether the chips' table changed, propagations, and
    # the number of the last review of ops
    counts: np.ndarray  # int64 [NUM_COUNTS]


# rows of the table of ops: those whose domain changed, a ring, and whether an op is in it; those whose fixed relatives
# changed, and whether an op is one; the chips beyond an op, and before it, as of a review, and its number
QUEUE, IN_QUEUE, TOUCHED, IS_TOUCHED, PAST, AHEAD, REVIEWED, NUM_OP_ROWS = range(8)
TRAIL, HEAD, QUEUED, DIRTY, CHANGED, NODES, REVIEW, NUM_COUNTS = range(8)
DONE, GAVE_UP, EXHAUSTED = range(3)  # how a search ends


def check_graph(num_ops: int, num_chips: int, edges: np.ndarray) -> np.ndarray:
    """Edges as int32 [E, 2], or InputError."""
    edges = np.asarray(edges)
    if num_ops < 1 or not 1 <= num_chips <= 62:
        raise InputError(f"{num_ops} ops on {num_chips} chips; give at least 1 op and 1 to 62 chips")
    edges = edges.reshape(-1, 2).astype(np.int32)
    if len(edges) and (edges.min() < 0 or edges.max() >= num_ops or (edges[:, 0] >= edges[:, 1]).any()):
        raise InputError(f"edges must go from lower to higher ops, all from 0 to {num_ops - 1}")
    return edges


def make_rules(
    num_ops: int, num_chips: int, edges: np.ndarray, *, chain: bool = False, memory: tuple | None = None
) -> Rules:
    """The rules for a graph.

    Args:
        num_ops: N, in topological order.
        num_chips: C, at most 62.
        edges: int [E, 2], producer < consumer, distinct.
        chain: the simpler rules of a chain: an edge leads to the same or the next chip. Whatever keeps to them keeps
            to rules 1 and 3, and there is never a dead end.
        memory: (capacity, param_bytes, param_ptr, param_reader, tensor_op, tensor_bytes, reader_ptr, reader), or None.
    """
    edges = check_graph(num_ops, num_chips, edges)
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    if chain:
        span = np.ones(len(edges), np.int32)
        highest = np.full(num_ops, num_chips - 1)
    else:
        span, descendants = _spans(num_ops, num_chips, edges)
        highest = np.minimum(num_chips - 1, num_ops - 1 - descendants)
    if memory is None:
        none32, none64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
        held = Memory(False, none64, none32, none32, none64, *(none32,) * 5, none64, none32, none32)
    else:
        capacity, param_bytes, param_ptr, param_reader, tensor_op, tensor_bytes, reader_ptr, reader = memory
        op_param_ptr, op_param = _transpose(param_ptr, param_reader, num_ops)
        input_ptr, input_tensor = _transpose(reader_ptr, reader, num_ops)
        by_host = int((tensor_op < 0).sum())
        made = np.argsort(tensor_op, kind="stable")[by_host:].astype(np.int32)
        held = Memory(
            True,
            np.asarray(capacity, np.int64),
            op_param_ptr,
            op_param,
            np.asarray(param_bytes, np.int64),
            input_ptr,
            input_tensor,
            _pointers(tensor_op[made], num_ops),
            made,
            np.asarray(tensor_op, np.int32),
            np.asarray(tensor_bytes, np.int64),
            np.asarray(reader_ptr, np.int32),
            np.asarray(reader, np.int32),
        )
    by_consumer = np.lexsort((edges[:, 0], edges[:, 1]))
    graph = Graph(
        num_chips,
        not chain,
        (np.int64(1) << (highest.astype(np.int64) + 1)) - 1,
        _pointers(edges[:, 0], num_ops),
        np.stack([edges[:, 1], span], axis=1),
        _pointers(edges[:, 1], num_ops),
        np.stack([edges[by_consumer, 0], span[by_consumer]], axis=1),
    )
    return Rules(graph, held)


def make_state(rules: Rules) -> State:
    """Room for the state; :func:`begin` fills it."""
    return State(*(array[0] for array in make_states(rules, 1)))


def make_states(rules: Rules, count: int) -> State:
    """Room for ``count`` states: every array of :class:`State` with one more axis, the first."""
    graph, memory = rules
    n, chips = len(graph.first_domain), graph.num_chips
    size = 4 * n + len(memory.param_bytes) + 2 * len(memory.tensor_bytes) + NUM_WORDS
    return State(
        store=np.empty((count, size), np.int64),
        chips=np.empty((count, NUM_ROWS, chips), np.int64),
        trail=np.empty((count, 2, size * (chips + 1)), np.int64),  # a set of chips only shrinks or only grows
        ops=np.zeros((count, NUM_OP_ROWS, n + 1), np.int64),
        stack=np.empty((count, len(graph.succ) + n + 1), np.int64),
        ends=np.empty((count, chips + 1, chips), np.int64),
        counts=np.zeros((count, NUM_COUNTS), np.int64),
    )


def _pointers(rows: np.ndarray, n: int) -> np.ndarray:
    pointers = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=pointers[1:])
    return pointers


def _transpose(pointers: np.ndarray, values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(len(pointers) - 1, dtype=np.int32), np.diff(pointers))
    return _pointers(values, n), rows[np.argsort(values, kind="stable")]


@intrinsic
def _zeros_below(typing_context, word):
    """The zeros below the lowest set bit of an int64; 64 of 0. One machine instruction."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.int64), code


@intrinsic
def _zeros_above(typing_context, word):
    """The zeros above the highest set bit of an int64; 64 of 0."""

    def code(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.int64), code


@_inner
def _lowest(bits):
    """The number of the lowest set bit."""
    return _zeros_below(bits)  # type: ignore[call-arg]


@_inner
def _highest(bits):
    """The number of the highest set bit."""
    return 63 - _zeros_above(bits)  # type: ignore[call-arg]


def _spans(num_ops: int, num_chips: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [E] the most by which each edge's consumer's chip is higher, int64 [N] how many descendants).

    Edges ascend by producer. Sets of ops are rows of bits.
    """
    own = np.packbits(np.eye(num_ops, dtype=bool), axis=1, bitorder="little")
    above, below = np.zeros_like(own), np.zeros_like(own)  # ancestors, descendants
    for u, v in edges[np.argsort(edges[:, 1], kind="stable")].tolist():
        above[v] |= above[u] | own[u]
    for u, v in edges[::-1].tolist():
        below[u] |= below[v] | own[v]
    descendants = _ones(below)
    span = np.empty(len(edges), np.int32)
    for low in range(0, len(edges), SPANS_AT_ONCE):
        u, v = edges[low : low + SPANS_AT_ONCE].T
        outside = above[u] | below[v] | (below[u] & above[v]) | own[u] | own[v]  # u and v are in no chip between
        span[low : low + SPANS_AT_ONCE] = np.minimum(num_chips, 1 + num_ops - _ones(outside))
    return span, descendants


def _ones(sets: np.ndarray) -> np.ndarray:
    """int64 [.]: how many bits of each row of uint8 are set."""
    return ONES[sets].sum(axis=1, dtype=np.int64)


@_inner
def _write(state, at, new):
    """Change a word of the store; :func:`undo` puts it back."""
    top = state.counts[TRAIL]
    state.trail[0, top] = at
    state.trail[1, top] = state.store[at]
    state.counts[TRAIL] = top + 1
    state.store[at] = new


@_inner
def narrow(state, op, mask):
    """Keep of an op's domain what is in the mask. False where nothing is left."""
    store, count = state.store, state.counts
    old = store[op]
    new = old & mask
    if new == old:
        return True
    _write(state, op, new)
    removed = old ^ new
    possible = state.chips[POSSIBLE]
    while removed:
        possible[_lowest(removed)] -= 1
        removed &= removed - 1
    if new == 0:
        return False
    low = _lowest(new)
    words = store.shape[0] - NUM_WORDS
    if low > store[words + HIGHEST]:
        _write(state, words + HIGHEST, low)
    if not state.ops[IN_QUEUE, op]:
        state.ops[IN_QUEUE, op] = 1
        size = state.ops.shape[1]
        state.ops[QUEUE, (count[HEAD] + count[QUEUED]) % size] = op
        count[QUEUED] += 1
    return True


@_inner
def _copy(source, target):
    """A table into another; an assignment of slices takes seconds to compile, for the message of its error."""
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@_outer
def undo(state, trail, snapshot):
    """Back to an earlier length of the trail and the chips' table of that time; nothing is pending then."""
    store, count = state.store, state.counts
    for at in range(count[TRAIL] - 1, trail - 1, -1):
        store[state.trail[0, at]] = state.trail[1, at]
    count[TRAIL] = trail
    _copy(snapshot, state.chips)
    _forget(state)


@_inner
def _forget(state):
    """Drop what is pending."""
    count, ops = state.counts, state.ops
    size = ops.shape[1]
    for k in range(count[QUEUED]):
        ops[IN_QUEUE, ops[QUEUE, (count[HEAD] + k) % size]] = 0
    for k in range(count[DIRTY]):
        ops[IS_TOUCHED, ops[TOUCHED, k]] = 0
    count[QUEUED] = 0
    count[DIRTY] = 0
    count[CHANGED] = 0


@_inner
def _touch(state, op):
    if not state.ops[IS_TOUCHED, op]:
        state.ops[IS_TOUCHED, op] = 1
        state.ops[TOUCHED, state.counts[DIRTY]] = op
        state.counts[DIRTY] += 1


@_inner
def _lead(state, a, b):
    """Chip a certainly leads to chip b."""
    chips = state.chips
    if chips[BEYOND, a] >> b & 1:
        return
    one = np.int64(1)
    sources = chips[BEFORE, a] | one << a
    targets = chips[BEYOND, b] | one << b
    bits = sources
    while bits:
        chip = _lowest(bits)
        bits &= bits - 1
        chips[NEW_BEYOND, chip] |= targets & ~chips[BEYOND, chip]
        chips[BEYOND, chip] |= targets
    bits = targets
    while bits:
        chip = _lowest(bits)
        bits &= bits - 1
        chips[NEW_BEFORE, chip] |= sources & ~chips[BEFORE, chip]
        chips[BEFORE, chip] |= sources
    state.counts[CHANGED] = 1


@_inner
def _hold(rules, state, op, chip):
    """Account for what an op fixed on a chip certainly holds there. False where it does not fit."""
    n, memory = rules.graph.first_domain.shape[0], rules.memory
    store, held = state.store, state.chips[HELD]
    one = np.int64(1)
    bit = one << chip
    params = 4 * n
    buffers = params + memory.param_bytes.shape[0]
    sends = buffers + memory.tensor_bytes.shape[0]
    for k in range(memory.op_param_ptr[op], memory.op_param_ptr[op + 1]):
        param = memory.op_param[k]
        if not store[params + param] & bit:
            _write(state, params + param, store[params + param] | bit)
            held[chip] += memory.param_bytes[param]
    for k in range(memory.input_ptr[op], memory.input_ptr[op + 1]):
        tensor = memory.input_tensor[k]
        producer = memory.tensor_op[tensor]
        home = -1
        if producer >= 0:
            if not store[3 * n + producer]:
                continue
            home = _lowest(store[producer])
        if home == chip:
            continue
        if not store[buffers + tensor] & bit:
            _write(state, buffers + tensor, store[buffers + tensor] | bit)
            held[chip] += 2 * memory.tensor_bytes[tensor]
        if home >= 0 and not store[sends + tensor]:
            _write(state, sends + tensor, one)
            held[home] += 2 * memory.tensor_bytes[tensor]
            if held[home] > memory.capacity[home]:
                return False
    for k in range(memory.made_ptr[op], memory.made_ptr[op + 1]):
        tensor = memory.made_tensor[k]
        for position in range(memory.reader_ptr[tensor], memory.reader_ptr[tensor + 1]):
            reader = memory.reader[position]
            if not store[3 * n + reader]:
                continue
            target = _lowest(store[reader])
            if target == chip:
                continue
            if not store[sends + tensor]:
                _write(state, sends + tensor, one)
                held[chip] += 2 * memory.tensor_bytes[tensor]
            if not store[buffers + tensor] >> target & 1:
                _write(state, buffers + tensor, store[buffers + tensor] | one << target)
                held[target] += 2 * memory.tensor_bytes[tensor]
                if held[target] > memory.capacity[target]:
                    return False
    return held[chip] <= memory.capacity[chip]


@_inner
def _settle(rules, state, op):
    """An op's domain came down to one chip: tell its relatives, and what it says about the chips."""
    graph = rules.graph
    n = graph.first_domain.shape[0]
    store, stack = state.store, state.stack
    one = np.int64(1)
    chip = _lowest(store[op])
    bit = one << chip
    words = store.shape[0] - NUM_WORDS
    _write(state, 3 * n + op, one)
    if not store[words + USED] & bit:
        _write(state, words + USED, store[words + USED] | bit)
    # unfixed descendants, up to the fixed ones, which stand for what is beyond them
    top = 0
    for k in range(graph.succ_ptr[op], graph.succ_ptr[op + 1]):
        stack[top] = graph.succ[k, 0]
        top += 1
    while top:
        top -= 1
        w = stack[top]
        if store[3 * n + w] or store[n + w] & bit:
            continue
        _write(state, n + w, store[n + w] | bit)
        _touch(state, w)
        for k in range(graph.succ_ptr[w], graph.succ_ptr[w + 1]):
            x = graph.succ[k, 0]
            if not (store[3 * n + x] or store[n + x] & bit):
                stack[top] = x
                top += 1
    for k in range(graph.pred_ptr[op], graph.pred_ptr[op + 1]):
        stack[top] = graph.pred[k, 0]
        top += 1
    while top:
        top -= 1
        w = stack[top]
        if store[3 * n + w] or store[2 * n + w] & bit:
            continue
        _write(state, 2 * n + w, store[2 * n + w] | bit)
        _touch(state, w)
        for k in range(graph.pred_ptr[w], graph.pred_ptr[w + 1]):
            x = graph.pred[k, 0]
            if not (store[3 * n + x] or store[2 * n + x] & bit):
                stack[top] = x
                top += 1
    _touch(state, op)
    bits = store[n + op] & ~bit
    while bits:
        _lead(state, _lowest(bits), chip)
        bits &= bits - 1
    bits = store[2 * n + op] & ~bit
    while bits:
        _lead(state, chip, _lowest(bits))
        bits &= bits - 1
    # direct edges
    for k in range(graph.pred_ptr[op], graph.pred_ptr[op + 1]):
        u = graph.pred[k, 0]
        if store[3 * n + u] and store[u] != bit:
            _feed(state, _lowest(store[u]), chip)
    for k in range(graph.succ_ptr[op], graph.succ_ptr[op + 1]):
        v = graph.succ[k, 0]
        if store[3 * n + v] and store[v] != bit:
            _feed(state, chip, _lowest(store[v]))
    if rules.memory.asked:
        return _hold(rules, state, op, chip)
    return True


@_inner
def _feed(state, a, b):
    """Chip a certainly feeds chip b directly."""
    chips = state.chips
    _lead(state, a, b)
    if chips[DIRECT, a] >> b & 1:
        return
    one = np.int64(1)
    chips[DIRECT, a] |= one << b
    chips[DIRECT_IN, b] |= one << a
    both = one << a | one << b
    for chip in (a, b):
        chips[NEW_BEYOND, chip] |= both
        chips[NEW_BEFORE, chip] |= both
    state.counts[CHANGED] = 1


@_inner
def _review_chips(graph, state):
    """Work out again what the chips' table forbids. False where a direct edge has a longer way beside it."""
    chips = state.chips
    one = np.int64(1)
    for a in range(graph.num_chips):
        bits = chips[DIRECT, a]
        on_way = np.int64(0)
        while bits:
            b = _lowest(bits)
            bits &= bits - 1
            if chips[BEYOND, a] & chips[BEFORE, b]:
                return False
            on_way |= chips[BEFORE, b]
        chips[ON_WAY, a] = on_way & ~(one << a)
        bits = chips[DIRECT_IN, a]
        on_way = np.int64(0)
        while bits:
            on_way |= chips[BEYOND, _lowest(bits)]
            bits &= bits - 1
        chips[ON_WAY_IN, a] = on_way & ~(one << a)
        bits = chips[BEYOND, a]
        far = np.int64(0)
        while bits:
            far |= chips[BEYOND, _lowest(bits)]
            bits &= bits - 1
        chips[FORBIDDEN, a] = far
        bits = chips[BEFORE, a]
        far = np.int64(0)
        while bits:
            far |= chips[BEFORE, _lowest(bits)]
            bits &= bits - 1
        chips[FORBIDDEN_IN, a] = far
    return True


@_inner
def _closed(relation, bits):
    """A set of chips with all that they lead to (or come from)."""
    closed = bits
    while bits:
        closed |= relation[_lowest(bits)]
        bits &= bits - 1
    return closed


@_inner
def _close(state, op):
    """The chips that certainly lie beyond and before an op, its own not among them; once a review."""
    ops, review = state.ops, state.counts[REVIEW]
    if ops[REVIEWED, op] == review:
        return
    ops[REVIEWED, op] = review
    n = ops.shape[1] - 1
    store, chips = state.store, state.chips
    if store[3 * n + op]:
        chip = _lowest(store[op])
        ops[PAST, op], ops[AHEAD, op] = chips[BEYOND, chip], chips[BEFORE, chip]
    else:
        ops[PAST, op] = _closed(chips[BEYOND], store[2 * n + op])
        ops[AHEAD, op] = _closed(chips[BEFORE], store[n + op])


@_inner
def _review_edge(graph, state, u, v):
    """Narrow both ends of an edge by the triangle rule."""
    n = graph.first_domain.shape[0]
    store, chips = state.store, state.chips
    u_fixed, v_fixed = store[3 * n + u] != 0, store[3 * n + v] != 0
    if u_fixed and v_fixed:
        return True  # then the edge is in the chips' table
    if u_fixed and not narrow(state, v, ~chips[FORBIDDEN, _lowest(store[u])]):
        return False
    if v_fixed and not narrow(state, u, ~chips[FORBIDDEN_IN, _lowest(store[v])]):
        return False
    _close(state, u)
    _close(state, v)
    beyond, before = state.ops[PAST, u], state.ops[AHEAD, v]
    between = beyond & before
    if between == 0:
        return True
    low = between & -between
    rest = between ^ low
    if rest == 0:
        if not store[u] & low or u_fixed:
            return narrow(state, v, low)
        if not store[v] & low or v_fixed:
            return narrow(state, u, low)
        return True
    if rest & (rest - 1) or u_fixed or v_fixed:
        return False
    return narrow(state, u, low) and narrow(state, v, rest)


@_inner
def _review_op(graph, state, w):
    """Narrow an unfixed op, and the ends of its edges, by the triangle rule."""
    n = graph.first_domain.shape[0]
    store, chips = state.store, state.chips
    one = np.int64(1)
    if not store[3 * n + w]:
        _close(state, w)
        beyond, before = state.ops[PAST, w], state.ops[AHEAD, w]
        mask = np.int64(-1)
        bits = before
        while bits:
            x = _lowest(bits)
            bits &= bits - 1
            mask &= ~chips[ON_WAY, x]
            hits = chips[DIRECT, x] & beyond
            while hits:
                mask &= one << x | (hits & -hits)
                hits &= hits - 1
        bits = beyond
        while bits:
            mask &= ~chips[ON_WAY_IN, _lowest(bits)]
            bits &= bits - 1
        if not narrow(state, w, mask):
            return False
    for k in range(graph.succ_ptr[w], graph.succ_ptr[w + 1]):
        if not _review_edge(graph, state, w, np.int64(graph.succ[k, 0])):
            return False
    for k in range(graph.pred_ptr[w], graph.pred_ptr[w + 1]):
        if not _review_edge(graph, state, np.int64(graph.pred[k, 0]), w):
            return False
    return True


@_inner
def _review_cover(graph, state):
    """Every chip below the highest must stay possible for an op."""
    store = state.store
    words = store.shape[0] - NUM_WORDS
    possible = state.chips[POSSIBLE]
    one = np.int64(1)
    missing = ((one << store[words + HIGHEST] + 1) - 1) & ~store[words + USED]
    several = missing & (missing - 1) != 0
    bits = missing
    while bits:
        bit = bits & -bits
        bits &= bits - 1
        left = possible[_lowest(bit)]
        if left == 0:
            return False
        if left == 1:
            for op in range(graph.first_domain.shape[0]):
                if store[op] & bit:
                    if not narrow(state, op, bit):
                        return False
                    break
    if several and state.counts[QUEUED] == 0:
        return _match(graph, state, missing)
    return True


@_inner
def _match(graph, state, missing):
    """Whether there is a different op for each missing chip, of domains taken as intervals (Glover 1967)."""
    n = graph.first_domain.shape[0]
    store, ends = state.store, state.ends
    for chip in range(graph.num_chips + 1):
        for end in range(graph.num_chips):
            ends[chip, end] = 0
    for op in range(n):
        if not store[3 * n + op] and store[op] & missing:
            ends[_lowest(store[op]), _highest(store[op])] += 1
    at_hand = ends[graph.num_chips]  # how many begin at the chip or before, by where they end
    for chip in range(graph.num_chips):
        for end in range(chip, graph.num_chips):
            at_hand[end] += ends[chip, end]
        if missing >> chip & 1:
            end = chip
            while end < graph.num_chips and at_hand[end] == 0:
                end += 1
            if end == graph.num_chips:
                return False
            at_hand[end] -= 1
    return True


@_inner
def _tell_ops(graph, state):
    """Mark the unfixed ops for which what the chips' table gained matters: near their domains (farther off it seldom
    does, and to look only there takes nothing from an op that it may keep)."""
    n = graph.first_domain.shape[0]
    store, chips = state.store, state.chips
    before = beyond = np.int64(0)  # the chips that gained something
    for chip in range(graph.num_chips):
        before |= np.int64(chips[NEW_BEFORE, chip] != 0) << chip
        beyond |= np.int64(chips[NEW_BEYOND, chip] != 0) << chip
    for op in range(n):
        if store[3 * n + op] or state.ops[IS_TOUCHED, op]:
            continue
        gained = np.int64(0)
        bits = store[n + op] & before
        while bits:
            gained |= chips[NEW_BEFORE, _lowest(bits)]
            bits &= bits - 1
        bits = store[2 * n + op] & beyond
        while bits:
            gained |= chips[NEW_BEYOND, _lowest(bits)]
            bits &= bits - 1
        if gained:
            near = store[op]
            near |= near << 1 | near >> 1
            near |= near << 2 | near >> 2
            if gained & near:
                _touch(state, op)
    for chip in range(graph.num_chips):
        chips[NEW_BEYOND, chip] = chips[NEW_BEFORE, chip] = 0


@_outer
def conclude(rules, state, op, mask):
    """Keep of an op's domain (of none where ``op`` is -1) what is in the mask, and draw all conclusions.

    False where there is a contradiction; then :func:`undo`.
    """
    if op >= 0 and not narrow(state, op, mask):
        return False
    graph, ops = rules.graph, state.ops
    n = graph.first_domain.shape[0]
    store, count = state.store, state.counts
    size = ops.shape[1]
    one = np.int64(1)
    count[NODES] += 1
    while True:
        while count[QUEUED]:
            op = ops[QUEUE, count[HEAD]]
            count[HEAD] = (count[HEAD] + 1) % size
            count[QUEUED] -= 1
            ops[IN_QUEUE, op] = 0
            low, high = _lowest(store[op]), _highest(store[op])
            at_least = ~((one << low) - 1)
            for k in range(graph.succ_ptr[op], graph.succ_ptr[op + 1]):
                mask = at_least
                most = high + graph.succ[k, 1]
                if most < graph.num_chips:
                    mask &= (one << most + 1) - 1
                v = np.int64(graph.succ[k, 0])
                if store[v] & ~mask and not narrow(state, v, mask):
                    return False
            at_most = (one << high + 1) - 1
            for k in range(graph.pred_ptr[op], graph.pred_ptr[op + 1]):
                mask = at_most
                least = low - graph.pred[k, 1]
                if least > 0:
                    mask &= ~((one << least) - 1)
                u = np.int64(graph.pred[k, 0])
                if store[u] & ~mask and not narrow(state, u, mask):
                    return False
            if low == high and not store[3 * n + op] and not _settle(rules, state, op):
                return False
        if count[CHANGED]:
            count[CHANGED] = 0
            if not _review_chips(graph, state):
                return False
            _tell_ops(graph, state)
        if count[DIRTY]:
            count[REVIEW] += 1  # settled ops and the chips' table stay as they are meanwhile
            for k in range(count[DIRTY]):
                if not _review_op(graph, state, ops[TOUCHED, k]):
                    return False
            for k in range(count[DIRTY]):
                ops[IS_TOUCHED, ops[TOUCHED, k]] = 0
            count[DIRTY] = 0
        if count[QUEUED]:
            continue
        if graph.cover and not _review_cover(graph, state):
            return False
        if count[QUEUED] == 0:
            return True


def begin(rules: Rules, state: State) -> bool:
    """Nothing assigned: all domains as wide as the graph allows. False where there is no valid partition."""
    domains = rules.graph.first_domain
    n = len(domains)
    store, chips = np.zeros_like(state.store), np.zeros_like(state.chips)
    store[:n] = domains
    chips[POSSIBLE] = (domains[:, None] >> np.arange(rules.graph.num_chips) & 1).sum(axis=0)
    restore(state, store, chips)
    state.ops[QUEUE, :n] = np.arange(n)
    state.ops[IN_QUEUE, :n] = 1
    state.counts[QUEUED] = n
    return bool(conclude(rules, state, -1, 0))


@_outer
def restore(state, store, chips):
    """The state that was begun and copied, with nothing on the trail, and nothing pending."""
    for k in range(REVIEW):  # reviews are counted on, so that what is kept of old ones is out of date
        state.counts[k] = 0
    for k in range(state.ops.shape[1]):
        state.ops[IN_QUEUE, k] = 0
        state.ops[IS_TOUCHED, k] = 0
    for k in range(store.shape[0]):
        state.store[k] = store[k]
    _copy(chips, state.chips)


@_inner
def state_at(states, at):
    """One of the states that :func:`make_states` made room for."""
    return State(
        states.store[at],
        states.chips[at],
        states.trail[at],
        states.ops[at],
        states.stack[at],
        states.ends[at],
        states.counts[at],
    )


def assign(rules: Rules, state: State, op: int, chip: int) -> bool:
    """Give an op a chip and draw all conclusions. False where that is a contradiction; then :func:`undo`."""
    return bool(conclude(rules, state, int(op), 1 << int(chip)))


@_inner
def _draw(weights, domain, num_chips, rng):
    """A chip of the domain by weight; evenly where none has any."""
    total = 0.0
    count = 0
    for chip in range(num_chips):
        if domain >> chip & 1:
            total += weights[chip]
            count += 1
    even = not total > 0.0
    at = rng.random() * (count if even else total)
    last = -1
    for chip in range(num_chips):
        if domain >> chip & 1:
            weight = 1.0 if even else weights[chip]
            if weight > 0.0:
                last = chip
                at -= weight
                if at < 0.0:
                    return chip
    return last


@_inner
def _nearest(chip, domain, num_chips):
    """The chip of the domain next to a given one, the lower of two."""
    for distance in range(num_chips):
        if chip - distance >= 0 and domain >> chip - distance & 1:
            return chip - distance
        if chip + distance < num_chips and domain >> chip + distance & 1:
            return chip + distance
    return -1


@_outer
def search(rules, state, weights, candidate, order, rng, levels, snapshots, most_backtracks, most_failures):
    """Assign op after op from a begun state. Returns (status, times that choices were taken back, levels).

    A level is (trail, position, round, op, the domain that its chip was taken from). Where an op has no chip left,
    choices are taken back until it has, twice as many each time, and it goes before them: what made it fail is mostly
    far back, among its relatives.
    """
    n = order.shape[0]
    store, count = state.store, state.counts
    one = np.int64(1)
    fixing = candidate.shape[0] > 0
    first_round = fixing
    depth = 0
    position = 0
    backtracks = 0
    failures = 0
    urgent = np.int64(-1)
    steps = 1
    while True:
        while position < n and store[3 * n + order[position]]:
            position += 1
        if position == n:
            if not first_round:
                return DONE, backtracks, depth
            first_round = False
            position = 0
            continue
        op = np.int64(order[position])
        if urgent >= 0:
            if store[3 * n + urgent]:
                urgent, steps = np.int64(-1), 1
            else:
                op = urgent
        domain = store[op]
        if fixing:
            chip = np.int64(candidate[op])
            if not domain >> chip & 1:
                if first_round and op != urgent:
                    position += 1
                    continue
                chip = np.int64(_nearest(chip, domain, rules.graph.num_chips))
        else:
            chip = np.int64(_draw(weights[op], domain, rules.graph.num_chips, rng))
        trail = count[TRAIL]
        _copy(state.chips, snapshots[depth])
        if conclude(rules, state, op, one << chip):
            levels[depth, 0] = trail
            levels[depth, 1] = position
            levels[depth, 2] = first_round
            levels[depth, 3] = op
            levels[depth, 4] = domain
            depth += 1
            if op == urgent:
                urgent, steps = np.int64(-1), 1
            continue
        failures += 1
        undo(state, trail, snapshots[depth])
        if not conclude(rules, state, op, ~(one << chip)):
            if depth == 0:
                return EXHAUSTED, backtracks, depth
            backtracks += 1
            depth = max(0, depth - steps)
            steps *= 2
            urgent = op
            undo(state, levels[depth, 0], snapshots[depth])
            position = levels[depth, 1]
            first_round = levels[depth, 2] != 0
        if backtracks > most_backtracks or failures > most_failures:
            return GAVE_UP, backtracks, depth


@_inner
def probe(rules, state, op, snapshot, allowed):
    """Fill ``allowed``, bool [C]: the chips of an op's domain whose assignment is no contradiction at once.

    The state stays as it is; ``snapshot``, like ``state.chips``, is room for it.
    """
    trail = state.counts[TRAIL]
    _copy(state.chips, snapshot)
    domain = state.store[op]
    for chip in range(rules.graph.num_chips):
        allowed[chip] = False
        if domain >> chip & 1:
            allowed[chip] = conclude(rules, state, op, np.int64(1) << chip)
            undo(state, trail, snapshot)


class Propagator:
    """A partial partition that can be extended and taken back, for step-by-step use.

    ``domains`` is a bool array [N, C]: what is left for each op.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.state = make_state(rules)
        self.feasible = True
        self.reset()

    def reset(self) -> None:
        """Nothing assigned."""
        self.feasible = bool(begin(self.rules, self.state))
        self._levels: list[tuple[int, np.ndarray]] = []

    @property
    def domains(self) -> np.ndarray:
        """bool [N, C]"""
        words = self.state.store[: len(self.rules.graph.first_domain)]
        return (words[:, None] >> np.arange(self.rules.graph.num_chips) & 1).astype(bool)

    @property
    def depth(self) -> int:
        """Assignments that :meth:`undo` can take back."""
        return len(self._levels)

    def assign(self, op: int, chip: int) -> bool:
        """Give an op a chip and draw all conclusions. False, and nothing changed, where that is a contradiction."""
        trail, snapshot = int(self.state.counts[TRAIL]), self.state.chips.copy()
        if assign(self.rules, self.state, op, chip):
            self._levels.append((trail, snapshot))
            return True
        undo(self.state, trail, snapshot)
        return False

    def undo(self) -> None:
        """Take back the last assignment."""
        undo(self.state, *self._levels.pop())

    def allowed(self, op: int) -> np.ndarray:
        """bool [C]: the chips of an op's domain whose assignment is no contradiction at once."""
        allowed = self.domains[op]
        for chip in np.flatnonzero(allowed).tolist():
            allowed[chip] = self.assign(op, chip)
            if allowed[chip]:
                self.undo()
        return allowed
