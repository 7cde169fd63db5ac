"""The table of rules: every rule by running both sides; wrong ones are caught; bad ones refused in a line.

More trials: ``python -m graphopt_gym.envs.rewrite.rules.verification 1000``.
"""

import pytest

from graphopt_gym.envs.rewrite.rules.patterns import make_rule
from graphopt_gym.envs.rewrite.rules.table import BESIDE, load_rules, rules
from graphopt_gym.envs.rewrite.rules.verification import verify_rule
from graphopt_gym.errors import InputError

TRIALS = 50


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_rule__both_sides_are_equal_where_it_holds_and_it_is_refused_elsewhere(rule):
    report = verify_rule(rule, TRIALS)
    assert not report.failure, report.failure
    assert report.held >= TRIALS
    if report.conditional:
        assert report.refused >= TRIALS // 5


POOL = "maxpool({}, kernel=z, stride=s, padding=p)"
MERGED = "split{}(matmul(x, concat(v, w, axis=1)), axis=1, at=dim({}, 1))"
WRONG = {
    "values": ("relu(add(x, y))", "add(relu(x), relu(y))", ""),
    "shapes": ("matmul(x, add(y, z))", "add(matmul(x, y), matmul(x, z))", ""),
    "factor twice": ("smul(mul(x, y), s)", "mul(smul(x, s), smul(y, s))", ""),
    "operands swapped": ("matmul(x, y)", "matmul(y, x)", "shape(x) == shape(y) and dim(x, -1) == dim(x, -2)"),
    "permutation": ("transpose(transpose(x, perm=p), perm=q)", "transpose(x, perm=compose(q, p))", ""),
    "pooling sizes": (
        f"concat({POOL.format('x')}, {POOL.format('y')}, axis=k)",
        POOL.format("concat(x, y, axis=k)"),
        "k < 2",
    ),
    "padding": (
        "conv2d(x, w, stride=s, padding=p)",
        "conv2d(x, enlarge(w, size=(3, 3)), stride=s, padding=p)",
        "dim(w, 2) <= 3 and dim(w, 3) <= 3",
    ),
    "groups": (
        "concat(conv2d(x, v, stride=s, padding=p), conv2d(x, w, stride=s, padding=p), axis=1)",
        "conv2d(x, concat(v, w, axis=0), stride=s, padding=p)",
        "same_except(v, w, 0)",
    ),
    "parts swapped": (
        ["matmul(x, v)", "matmul(x, w)"],
        [MERGED.format(1, "w"), MERGED.format(0, "w")],
        "rank(x) == 2 and rank(v) == 2 and same_except(v, w, 1)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_rule__catches_a_wrong_rule(name):
    source, target, condition = WRONG[name]
    assert verify_rule(make_rule(name, "wrong", source, target, condition), 200).failure


@pytest.mark.parametrize(
    ("source", "target", "condition", "message"),
    [
        ("matmul(x, y)", "matmul(x, z)", "", "variable 'z' of the target is not bound by the source"),
        ("matmul(x, y)", "matmul(x, y, act=q)", "", r"variable 'q' of the target \(matmul\) is not bound"),
        ("relu(x)", "x", "rank(q) > 1", "variable 'q' of the condition is not bound by the source"),
        ("split0(x, axis=k, at=dim(y, k))", "x", "", r"variable 'y' of the source \(split0\) is not bound"),
        ("relu(x)", "x", "open('f')", "line 1, column 1: unknown function 'open'"),
        ("relu(x)", "x", "x.shape", "Attribute is not allowed"),
        ("matmul(x, y", "x", "", "line 1, column 7"),
        ("rely(x)", "x", "", "line 1, column 1: unknown operator 'rely'; did you mean 'relu'"),
        ("add(relu(x))", "x", "", "add takes 2 operands, got 1"),
        ("transpose(x)", "x", "", "'perm' is missing"),
        ("x", "relu(x)", "", "bare variable"),
        ("transpose(p, perm=p)", "p", "", "both a tensor and a parameter"),
        (["relu(x)", "relu(y)"], ["x", "y"], "", "share no tensor variable"),
        (["relu(x)", "tanh(x)"], "x", "", "2 sources and 1 targets"),
    ],
)
def test_make_rule__refuses_in_one_line(source, target, condition, message):
    with pytest.raises(InputError, match=message) as caught:
        make_rule("mine", "wrong", source, target, condition)
    assert str(caught.value).startswith("rule 'mine'")
    assert "\n" not in str(caught.value)


def test_load_rules__by_name_and_family():
    assert load_rules("all") == rules()
    assert load_rules() == load_rules("published") == tuple(rule for rule in rules() if rule.family not in BESIDE)
    assert len(load_rules()) == 159
    deployed = load_rules("deployed")
    assert {rule.family for rule in deployed} >= {*BESIDE, "split", "reshape", "transposes"}
    assert not any(rule.merges or "commutes" in rule.name for rule in deployed)
    assert {rule.family for rule in load_rules(["parts", "relu-twice"])} == {"parts", "fused activation"}
    assert [rule.name for rule in load_rules(["relu-twice"])] == ["relu-twice"]
    assert {rule.family for rule in load_rules(["split"])} == {"split"}
    with pytest.raises(InputError, match="did you mean 'relu-twice'"):
        load_rules(["relu-twic"])


def test_rules__cover_the_families_and_both_kinds():
    assert len({rule.family for rule in rules()}) >= 14
    assert sum(rule.multi for rule in rules()) >= 5
    for rule in rules():
        text = str(rule).partition("  if ")[0]
        source, target = (side.split(" | ") for side in text.split(" => "))
        again = make_rule(rule.name, rule.family, source, target, str(rule.condition or ""), origin=rule.origin)
        assert (again.source, again.target) == (rule.source, rule.target)
