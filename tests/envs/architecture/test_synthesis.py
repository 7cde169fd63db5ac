from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from graphopt_gym.envs.architecture import benchmarks, checker, synthesis
from graphopt_gym.envs.architecture.ops import OPS
from graphopt_gym.envs.architecture.primitives import (
    EACH,
    MOST_NUMBERS,
    Class,
    Primitive,
    classes,
    classes_by_kind,
    primitives,
    singles,
)
from graphopt_gym.envs.architecture.properties import NO_OP, Requirement, identity, infer, mixing_of_text
from graphopt_gym.envs.architecture.seeds import load_seed
from graphopt_gym.envs.architecture.subgraph import (
    Piece,
    as_architecture,
    cut,
    equal_pieces,
    free_sizes,
    pick_subgraph,
    replace,
    sequence,
    steps_of,
)
from graphopt_gym.envs.architecture.synthesis import (
    BEYOND,
    enumerative,
    mutate_subgraph,
    progressive,
    realise,
    requirement_of,
    verified,
)
from graphopt_gym.errors import InputError
from tests.envs.architecture.cases import CASES, one_op, random_architecture

BLOCK = [
    ("conv", {"features": 16, "kernel": 3}),
    ("batch_norm", {}),
    ("relu", {}),
    ("conv", {"features": 16, "kernel": 3}),
]


def chain(shape, ops):
    from graphopt_gym.envs.architecture.program import ArchitectureBuilder

    b = ArchitectureBuilder()
    index = b.input("x", shape)
    for kind, params in ops:
        index = b.op(kind, index, **params)
    return b.finish(index)


def rng(seed=0):
    return np.random.default_rng(seed)


# -- primitives --------------------------------------------------------------------------------------------------------


def test_primitives__many_fall_into_few_classes():
    shape = (64, 240, 240)  # on which every kernel and window fits
    fitting = [one for one in primitives(3) if one.on(shape, 64)]
    assert len(primitives(3)) == len(set(primitives(3))) == 690
    found = classes(shape, 64)
    assert sum(len(one.members) for one in found) == len(fitting) == len(singles(shape, 64)) == 546
    assert len(found) < 90
    assert len(classes_by_kind(shape, 64)) < 150


@pytest.mark.parametrize("shape", [(16, 12, 12), (3, 16, 16), (1, 8, 8), (5, 12), (7,), (64, 1, 1)])
def test_classes__members_are_equal_in_the_space_of_properties(shape):
    for one in classes(shape, 24):
        for member in one.members:
            params, out = member.on(shape, 24)
            found = infer(sequence(shape, [(member.kind, params)]))
            assert np.array_equal(found.mixing[0], one.mixing)
            assert OPS[member.kind].segment == one.segment
            assert found.shape == out == one.shape


def test_primitives__the_stated_tables_are_the_measured_ones():
    pytest.importorskip("torch")
    from graphopt_gym.envs.architecture.measure import UNKNOWN, measure_mixing

    seen = set()
    for shape in ((8, 15, 15), (8, 16, 16), (6, 5)):
        for primitive in primitives(len(shape)):
            settings = dict(primitive.settings)
            settings.pop("bias", None)
            key = (primitive.kind, tuple(settings.items()), primitive.groups)
            if primitive.features not in (None, 1, 2) or (key, primitive.features) in seen:
                continue
            if primitive.features == 2 and primitive.groups not in (None, EACH):
                continue
            fits = primitive.on(shape)
            if fits is None or (len(shape) == 2 and key in {k for k, _ in seen}):
                continue
            seen.add((key, primitive.features))
            one = sequence(shape, [(primitive.kind, fits[0])])
            draws = 60 if primitive.kind == "max_pool" else 3
            (found,) = measure_mixing(one, draws=draws, points=2)
            known = found != UNKNOWN
            assert np.array_equal(found[known], infer(one).mixing[0][known]), primitive
    assert len(seen) > 70


def test_primitives__do_not_fit_where_they_would_be_others_or_leave_positions_out():
    def conv(groups=1, **settings):
        given = {"kernel": 3, "stride": 1, "dilation": 1, "bias": True} | settings
        return Primitive("conv", tuple(given.items()), features=Fraction(1), groups=groups)

    assert conv().on((8, 8, 8))
    assert conv(groups=4).on((4, 8, 8)) is None  # that is one group for each channel
    assert conv(groups=EACH).on((4, 8, 8))[0][5] == 4
    assert conv(kernel=3, stride=3, padding=0).on((8, 8, 8)) is None  # two rows left over
    assert conv().on((8, 1, 1)) is None
    assert Primitive("dense", (), features=Fraction(4)).on((2**13,)) is None  # 2**28 weights: too many
    assert MOST_NUMBERS < 2**28
    assert all(one.on((3, 5, 5)) is None for one in primitives(3) if one.features == Fraction(1, 2))


# -- the checker -------------------------------------------------------------------------------------------------------


def assert_agrees(architecture):
    """The checker finds what is inferred: all of it, and not one step more."""
    found = infer(architecture)
    asked = Requirement.of(found)
    assert checker.check_properties(architecture, asked) == [], architecture.text()
    for number, matrix in enumerate(found.mixing):
        for i, j in itertools.product(*map(range, matrix.shape)):
            if matrix[i, j] < 3:
                more = matrix.copy()
                more[i, j] += 1
                mixing = tuple(more if n == number else None for n in range(len(found.mixing)))
                reasons = checker.check_properties(architecture, Requirement(mixing, (0,) * len(mixing), asked.shape))
                assert len(reasons) == 1, (architecture.text(), number, i, j)
                assert f"output dimension {i} and input {number}'s {j}" in reasons[0]
    deeper = tuple(depth + 1 for depth in found.depth)
    reasons = checker.check_properties(architecture, Requirement((None,) * len(deeper), deeper, asked.shape))
    assert len(reasons) == len(deeper)


@pytest.mark.parametrize(("kind", "params", "shapes"), CASES)
def test_checker__agrees_with_what_is_inferred_of_each_op(kind, params, shapes):
    assert_agrees(one_op(kind, params, shapes))


def test_checker__agrees_on_networks():
    for seed in range(40):
        assert_agrees(random_architecture(seed, ops=8))
    for name in ("resnet_8", "vit_8", "efficientnet_8", "cnn_8"):
        assert_agrees(load_seed(name))


def test_checker__names_what_is_missing():
    block = chain((16, 8, 8), BLOCK)
    asked = Requirement.of(infer(block))
    assert checker.check_properties(chain((16, 8, 8), BLOCK[:1]), asked) == ["depth from input 0 is 1, needs 3"]
    smaller = chain((16, 8, 8), [*BLOCK[:3], ("conv", {"features": 8, "kernel": 1})])
    assert checker.check_properties(smaller, asked) == ["shape is (8, 8, 8), needs (16, 8, 8)"]
    assert checker.check_properties(smaller, Requirement(asked.mixing, asked.depth, (None, 8, None))) == []
    wrong = Requirement((np.zeros((2, 2), np.uint8),), (0,), (16, 8, 8))
    assert checker.check_properties(block, wrong)[0].startswith("mixing of input 0 is (4, 4), asked for (2, 2)")
    flat = chain((16, 8, 8), [("reshape", {"shape": (-1,)})])
    assert checker.check_properties(flat, Requirement((None,), (0,), (None,) * 3)) != []


def test_checker__runs_what_it_is_given(monkeypatch):
    pytest.importorskip("torch")
    from graphopt_gym.envs.architecture import torch_module

    block = chain((16, 8, 8), BLOCK)
    assert checker.check_runs(block) == []
    monkeypatch.setitem(torch_module.RUN, "relu", lambda layer, xs: xs[0][:, :1])
    assert checker.check_runs(chain((16, 8, 8), BLOCK[:3]))[0].startswith("it gives (1, 8, 8), stated (16, 8, 8)")
    assert checker.check_runs(block)[0].startswith("it does not run: RuntimeError")
    monkeypatch.setitem(torch_module.RUN, "relu", lambda layer, xs: xs[0] / 0)
    assert "its output is not finite" in checker.check_runs(chain((16, 8, 8), BLOCK[:3]))


# -- synthesis of a sequence -------------------------------------------------------------------------------------------


def test_distances__of_all_options_at_once_are_those_of_each_program():
    """The fast path against its plain twin: the whole program inferred anew."""
    generator = rng(3)
    for trial in range(12):
        shape = [(16, 8, 8), (8, 12, 12), (6, 8)][trial % 3]
        original = chain(
            shape, BLOCK[: 1 + trial % 4] if len(shape) == 3 else [("dense", {"features": 8}), ("gelu", {})]
        )
        asked = Requirement.of(infer(original)).mutated(generator)
        task = synthesis._task(shape, asked, classes_by_kind)
        state, done = synthesis._State(identity(len(shape)), NO_OP, shape), []
        for _ in range(3):
            options = task.options(state)
            found = task.distances(state, options)
            for option, distance in zip(options, found, strict=True):
                params, _ = option.members[0].on(state.shape, task.target)
                program = sequence(shape, [*done, (option.members[0].kind, params)])
                assert distance == asked.distance(infer(program))
            at = int(generator.choice(np.flatnonzero(np.isfinite(found))))
            params, _ = options[at].members[0].on(state.shape, task.target)
            done.append((options[at].members[0].kind, params))
            state = state.append(options[at])


def test_draw__the_operator_by_its_best_class_then_the_class():
    def option(kind):
        return Class(identity(1), "linear", (4,), (Primitive(kind),))

    options = [option("dense"), option("dense"), option("relu")]
    generator = rng()
    drawn = [synthesis._draw(options, np.array([1.0, 0.5, 0.5]), generator) for _ in range(6000)]
    shares = np.bincount(drawn, minlength=3) / 6000
    np.testing.assert_allclose(shares, [4 / 9, 2 / 9, 1 / 3], atol=0.03)


def test_progressive__what_is_found_satisfies_all_and_is_short_enough():
    pytest.importorskip("torch")
    asked = Requirement.of(infer(chain((16, 8, 8), BLOCK)))
    results = [progressive((16, 8, 8), asked, len(BLOCK), rng(seed)) for seed in range(40)]
    found = [one for one in results if one.found]
    assert len(found) >= 10
    for one in found:
        program = sequence((16, 8, 8), one.steps)
        assert asked.distance(infer(program)) == 0
        assert checker.check_properties(program, asked) == []
        assert 1 <= len(one.steps) <= len(BLOCK) + BEYOND
        assert realise(one.primitives, (16, 8, 8), 16) == one.steps
        assert not one.reason
    failed = [one for one in results if not one.found]
    assert all(f"after {len(BLOCK) + BEYOND} ops, 2 more than the original" in one.reason for one in failed)
    assert len({one.steps for one in found}) > len(found) // 2  # and different ones
    again = progressive((16, 8, 8), asked, len(BLOCK), rng(7), attempts=50)
    assert again.found
    assert again.steps == progressive((16, 8, 8), asked, len(BLOCK), rng(7), attempts=50).steps


def test_progressive__beyond_the_original_it_is_greedy():
    asked = Requirement((mixing_of_text("oaaa xaxx xxmx xxxm"),), (2,), (16, 8, 8))
    for seed in range(30):
        result = progressive((16, 8, 8), asked, 0, rng(seed), run=False)
        assert result.found is False or len(result.steps) <= BEYOND
    depth = Requirement((None,), (2,), (16, 8, 8))
    assert all(progressive((16, 8, 8), depth, 0, rng(seed), run=False).found for seed in range(30))


def test_progressive__says_why_it_fails():
    deep = Requirement((None,), (9,), (16, 8, 8))
    result = progressive((16, 8, 8), deep, 1, rng())
    assert result.steps is None
    assert result.reason.startswith("at distance 6 after 3 ops")
    larger = Requirement((None,), (0,), (16, 16, 16))
    assert progressive((16, 8, 8), larger, 3, rng()).reason == "no op can follow on (16, 8, 8)"
    easy = Requirement((None,), (1,), (16, 8, 8))
    refused = progressive((16, 8, 8), easy, 2, rng(), verify=lambda program, asked: ["because"], run=False)
    assert refused.reason == "not verified: because"


def test_verified__catches_what_is_wrong():
    asked = Requirement.of(infer(chain((16, 8, 8), BLOCK)))
    steps = [op[:2] for op in chain((16, 8, 8), BLOCK).ops[1:]]
    assert verified((16, 8, 8), steps, asked, run=False) == []
    assert verified((16, 8, 8), steps[:1], asked, run=False) == ["distance 2", "depth from input 0 is 1, needs 3"]
    lied = verified((16, 8, 8), steps, asked, verify=lambda *_: ["a reason"], run=False)
    assert lied == ["a reason"]


def test_undirected__any_ops_of_any_number_that_give_the_shape():
    asked = Requirement.of(infer(chain((16, 8, 8), BLOCK)))
    results = [synthesis.undirected((16, 8, 8), asked, 4, rng(seed), run=False, attempts=5) for seed in range(60)]
    found = [one for one in results if one.found]
    assert len(found) > 50
    assert {len(one.steps) for one in found} == set(range(1, 4 + BEYOND + 1))
    assert all(sequence((16, 8, 8), one.steps).ops[-1].shape == (16, 8, 8) for one in found)
    assert not all(asked.distance(infer(sequence((16, 8, 8), one.steps))) == 0 for one in found)
    larger = Requirement((None,), (0,), (16, 16, 16))
    assert synthesis.undirected((16, 8, 8), larger, 3, rng()).reason == "no op can follow on (16, 8, 8)"


@pytest.mark.parametrize("over", ["classes", "primitives"])
def test_enumerative__finds_the_shortest(over):
    asked = Requirement((None,), (3,), (16, 8, 8))
    result = enumerative((16, 8, 8), asked, 3, rng(), over=over, run=False, seconds=60)
    assert len(result.steps) == 3  # three segments need three ops
    assert verified((16, 8, 8), result.steps, asked, run=False) == []
    half = Requirement((None,), (1,), (8, 4, 4))
    assert len(enumerative((16, 8, 8), half, 3, rng(), over=over, run=False).steps) == 2  # no kernel has both


def test_enumerative__agrees_with_a_plain_search_on_what_is_possible():
    shape = (7,)
    for depth, size in ((0, 7), (1, 14), (2, 7), (2, 14), (4, 7), (4, 28)):
        asked = Requirement((None,), (depth,), (size,))
        result = enumerative(shape, asked, 1, rng(), run=False)
        plain = benchmarks.enumerate_plainly(shape, asked, 1, rng(), 60)
        assert result.found == plain.found
        if result.found:
            assert len(result.steps) == len(plain.steps)
        else:
            assert result.reason == plain.reason == "no sequence of up to 3 ops"


def test_enumerative__gives_up():
    asked = Requirement((None,), (9,), (16, 8, 8))
    result = enumerative((16, 8, 8), asked, 9, rng(), seconds=0.05)
    assert result.reason == "gave up after 0.05 s"
    assert benchmarks.enumerate_plainly((16, 8, 8), asked, 9, rng(), 0.05).reason == "gave up after 0.05 s"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: progressive((16, 8, 8), Requirement((None, None), (0, 0), (1,)), 1, rng()), "has 2 inputs"),
        (lambda a: progressive((16, 8), a, 1, rng()), "mixing is asked as"),
        (lambda a: progressive((16, 8, 8), a, -1, rng()), "length is -1"),
        (lambda a: progressive((16, 8, 8), a, 1, rng(), attempts=0), "attempts is 0"),
        (
            lambda a: enumerative((16, 8, 8), a, 1, rng(), over="clases"),
            "unknown over 'clases'; did you mean 'classes'",
        ),
        (lambda a: enumerative((16, 8, 8), a, 1, rng(), seconds=0), "seconds is 0"),
        (lambda a: mutate_subgraph(load_seed("cnn_8"), [99], rng()), "subgraph has op 99; give 0 to 11"),
        (lambda a: mutate_subgraph(load_seed("cnn_8"), [1], rng(), method="magic"), "unknown method 'magic'"),
        (lambda a: mutate_subgraph(load_seed("cnn_8"), [1], rng(), properties=["size"]), "give mixing, depth or shape"),
        (lambda a: pick_subgraph(load_seed("cnn_8"), rng(), 0), "most is 0"),
        (lambda a: pick_subgraph(chain((4, 4, 4), [("reshape", {"shape": (64,)})]), rng()), "has no primitive"),
    ],
)
def test_synthesis__bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call(Requirement.of(infer(chain((16, 8, 8), BLOCK))))
    assert "\n" not in str(caught.value)


# -- subgraphs ---------------------------------------------------------------------------------------------------------


def test_pick_subgraph__is_connected_and_of_all_sizes():
    network = load_seed("resnet_28")
    generator, sizes = rng(), set()
    for _ in range(200):
        ops = pick_subgraph(network, generator, 6)
        sizes.add(len(ops))
        seen, waiting = set(), [ops[0]]
        while waiting:
            index = waiting.pop()
            if index in ops and index not in seen:
                seen.add(index)
                waiting += [*network.ops[index].inputs, *network.readers[index]]
        assert seen == set(ops)
        assert 0 not in ops
    assert sizes == {1, 2, 3, 4, 5, 6}


def test_cut__gives_sequences_that_cover_all_primitives_once():
    for network in [load_seed("resnet_8"), load_seed("vit_8"), *(random_architecture(seed, 20) for seed in range(20))]:
        pieces = cut(network, range(len(network)))
        ops = [index for piece in pieces for index in piece.ops]
        assert sorted(ops) == [i for i, op in enumerate(network.ops) if OPS[op.kind].role == "primitive"]
        for piece in pieces:
            before = piece.source
            for index in piece.ops:
                assert network.ops[index].inputs == (before,)
                assert index == piece.ops[0] or network.readers[before] == (index,)
                before = index
            readers = network.readers[before]  # it could not be longer
            assert len(readers) != 1 or OPS[network.ops[readers[0]].kind].role != "primitive"
        same = replace(network, {piece: steps_of(network, piece) for piece in pieces})
        assert same == network
        assert [op.block for op in same.ops] == [op.block for op in network.ops] or same == network


def test_replace__pieces_that_overlap_are_refused():
    network = load_seed("cnn_8")
    with pytest.raises(InputError, match="pieces overlap at op 2"):
        replace(network, {Piece(0, (1, 2)): [], Piece(1, (2, 3)): []})


@pytest.mark.parametrize("name", ["resnet_8", "vit_8", "efficientnet_8", "cnn_8"])
def test_free_sizes__are_those_that_the_network_takes(name):
    """By trying: another number of features, a smaller image."""
    network = load_seed(name)
    for whole in cut(network, range(len(network))):
        for end in range(1, len(whole.ops) + 1):
            piece = Piece(whole.source, whole.ops[:end])
            shape = network.ops[piece.ops[-1]].shape
            free = free_sizes(network, piece)
            for axis, size in enumerate(shape):
                other = [*steps_of(network, piece)]
                if axis == (0 if len(shape) == 3 else len(shape) - 1):
                    other.append(("dense", (2 * size, True, axis)))
                elif len(shape) == 3 and size % 2 == 0:
                    window = tuple(2 if axis == a else 1 for a in (1, 2))
                    other.append(("avg_pool", (window, window, (0, 0))))
                else:
                    continue
                try:
                    fits = replace(network, {piece: other}).ops[-1].shape == network.ops[-1].shape
                except InputError:
                    fits = False
                assert fits == free[axis], (piece, axis)


def test_equal_pieces__are_the_same_layers_whatever_their_width():
    network = load_seed("resnet34_cifar")
    assert len(network.blocks) == 18
    block = network.blocks["stage1.block2"]
    piece = cut(network, block)[0]
    assert [network.ops[index].kind for index in piece.ops] == ["conv", "batch_norm", "relu", "conv", "batch_norm"]
    found = equal_pieces(network, piece)
    assert found[0] == piece
    assert len(found) == 3 + 3 + 5 + 2  # all blocks but the first of the three later stages
    ops = [index for one in found for index in one.ops]
    assert len(ops) == len(set(ops))


@pytest.mark.parametrize("name", ["resnet_8", "vit_8", "efficientnet_8", "cnn_8", "resnet_28"])
def test_mutate_subgraph__children_run_learn_and_have_the_properties(name):
    torch = pytest.importorskip("torch")
    parent, generator, children = load_seed(name), rng(1), 0
    for trial in range(25):
        mutation = mutate_subgraph(parent, pick_subgraph(parent, generator, 6), generator, attempts=3)
        for piece, asked, result in mutation.pieces:
            if result.found:
                program = sequence(parent.ops[piece.source].shape, result.steps)
                assert checker.check_properties(program, asked) == []
                assert len(result.steps) <= len(piece.ops) + BEYOND
        child = mutation.architecture
        if child is None:
            assert mutation.reason
            continue
        children += 1
        assert child != parent
        assert child.ops[-1].shape == (10,)
        assert not mutation.reason
        if trial < 8:
            module = child.to_module()
            output = module(torch.randn(4, *child.input_shapes[0]))
            output.log_softmax(-1)[:, 0].sum().backward()
            assert torch.isfinite(output).all()
    assert children >= 18


def test_mutate_subgraph__equal_pieces_change_together():
    parent = load_seed("resnet34_cifar")
    block = parent.blocks["stage1.block2"]
    for seed in range(20):
        mutation = mutate_subgraph(parent, block, rng(seed), run=False, attempts=20)
        if mutation.architecture is not None and len(mutation.applied) > 10:
            _first, *_others = mutation.applied
            (_, _asked, result), *_ = mutation.pieces
            kinds = [step[0] for step in result.steps]
            child_blocks = mutation.architecture.blocks
            for block_name in ("stage1.block2", "stage3.block1"):
                ops = [mutation.architecture.ops[index].kind for index in child_blocks[block_name]]
                assert ops[: len(kinds)] == kinds
            alone = mutate_subgraph(parent, block, rng(seed), run=False, attempts=20, everywhere=False)
            assert len(alone.applied) == len(mutation.pieces)
            return
    pytest.fail("no mutation was applied to equal pieces")


def test_requirement_of__keeps_what_the_network_fixes_and_single_properties():
    network = load_seed("resnet_8")
    before_add = next(
        p for p in cut(network, range(len(network))) if network.ops[network.readers[p.ops[-1]][0]].kind == "add"
    )
    shape = network.ops[before_add.ops[-1]].shape
    for seed in range(20):
        assert requirement_of(network, before_add, rng(seed)).shape == shape
        only = requirement_of(network, before_add, rng(seed), ["shape"])
        assert only.mixing == (None,)
        assert only.depth == (0,)
    original = Requirement.of(infer(as_architecture(network, before_add)))
    assert original.shape == shape


def test_benchmark__a_row_for_each_method(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmarks, "MOST_OPS", 2)
    report = benchmarks.synthesis_report("resnet_8", subgraphs=3, limit_s=0.3, chains=(1,), repeats=2)
    tables = list(report.values())
    assert [len(table["rows"]) for table in tables] == [5, 5]
    for table in tables:
        assert all(set(row) == set(table["columns"]) for row in table["rows"])
        assert all(0 <= row["found"] <= 1 and row["mean_s"] > 0 for row in table["rows"])
