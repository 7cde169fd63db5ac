"""Rules proved for all values at small shapes; wrong ones have a counterexample."""

import re
from fractions import Fraction

import pytest

from graphopt_gym.envs.rewrite.rules.patterns import make_rule
from graphopt_gym.envs.rewrite.rules.proofs import prove_rule
from graphopt_gym.envs.rewrite.rules.table import rules
from tests.envs.rewrite.test_rules import WRONG

pytest.importorskip("z3")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_prove_rule__proves_every_rule_of_the_table(rule):
    proof = prove_rule(rule)
    assert proof.status == "proved", f"{proof.status}: {proof.reason}"
    assert len(proof.shapes) == 2


@pytest.mark.parametrize("name", WRONG)
def test_prove_rule__refutes_a_wrong_rule(name):
    source, target, condition = WRONG[name]
    proof = prove_rule(make_rule(name, "wrong", source, target, condition))
    assert proof.status == "refuted"
    assert proof.reason.startswith("at ")
    assert "does not fit" in proof.reason or "entry [" in proof.reason


@pytest.mark.parametrize(
    ("source", "target", "status"),
    [
        ("relu(mul(x, x))", "mul(x, x)", "proved"),  # only the solver knows that squares are not negative
        ("relu(smul(x, s))", "smul(relu(x), s)", "refuted"),
        ("maxpool(maxpool(x, kernel=(1, 3)), kernel=(3, 1))", "maxpool(x, kernel=(3, 3))", "proved"),
        ("maxpool(avgpool(x, kernel=k), kernel=k)", "avgpool(maxpool(x, kernel=k), kernel=k)", "refuted"),
        ("sigmoid(add(x, y))", "sigmoid(add(y, x))", "proved"),
        ("tanh(tanh(x))", "tanh(x)", "refuted"),
        ("softmax(x, axis=k)", "x", "refuted"),
        ("add(gelu(softmax(x, axis=k)), y)", "add(y, gelu(softmax(x, axis=k)))", "proved"),
        ("getitem(x, index=i, shape=s, dtype=d)", "x", "not attempted"),
    ],
)
def test_prove_rule__decides_what_polynomials_do_not(source, target, status):
    assert prove_rule(make_rule("mine", "mine", source, target)).status == status


def test_prove_rule__a_counterexample_is_one():
    proof = prove_rule(make_rule("mine", "mine", "relu(add(x, y))", "add(relu(x), relu(y))"))
    entry, _, values = proof.reason.partition(" with ")
    left, right = entry.rpartition(" is ")[2].split(" and ")
    x, y = (Fraction(value) for value in re.findall(r"= ([-/\d]+)", values))  # in order of names
    assert max(x + y, 0) == Fraction(left)
    assert max(x, 0) + max(y, 0) == Fraction(right)
