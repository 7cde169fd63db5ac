"""Checks of arguments and of fields in files."""

from dataclasses import dataclass

import numpy as np
import pytest

from graphopt_gym import fields
from graphopt_gym.errors import InputError

NAN, INF, HUGE = float("nan"), float("inf"), 10**400


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (fields.number, (-2, 0.5, np.float32(1), np.int64(3)), (NAN, INF, -INF, HUGE, True, "1", None, [1])),
        (fields.positive, (1e-9, 7), (0, -1, NAN, HUGE, False, "x")),
        (fields.not_negative, (0, 7.5), (-1e-9, NAN, INF, None)),
        (fields.share, (0, 1, 0.25), (-0.1, 1.1, NAN, INF, True, "0")),
        (fields.whole, (0, 12, np.int32(4)), (-1, 1.0, NAN, True, "1", None, -HUGE)),
        (fields.flag, (True, False, np.bool_(True)), (0, 1, "False", "true", None, NAN)),
    ],
)
def test_field__good_values_pass_and_all_others_are_refused_in_one_line(check, good, bad):
    for value in good:
        assert check("field", value) == value
    for value in bad:
        with pytest.raises(InputError, match=r"^field is .*; give ") as caught:
            check("field", value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_texts__refuse_what_is_no_text():
    fields.texts("a.toml", {"name": "a", "size": 3}, ("name", "about"))
    for value in (3, None, ["a"]):
        with pytest.raises(InputError, match=r"^a.toml: about is .*; give a text in quotes$"):
            fields.texts("a.toml", {"about": value}, ("name", "about"))


def test_choice__names_the_nearest_known():
    assert fields.choice("reward", "rank", ("rank", "priced")) == "rank"
    for value in ("rnk", None, 3, ["rank"]):
        with pytest.raises(InputError, match=r"unknown reward .*(did you mean .rank|known: priced, rank)"):
            fields.choice("reward", value, ("rank", "priced"))


def test_names__lists_and_text_with_commas_between():
    assert fields.names("graphs", "a, b,") == fields.names("graphs", ["a", "b"]) == ("a", "b")
    with pytest.raises(InputError, match="graphs is 3; give names with commas between them"):
        fields.names("graphs", 3)


def test_check_fields__refuses_the_first_bad_field_of_a_dataclass():
    @dataclass
    class Args:
        size: int = 1
        rate: float = 0.1
        weight: float = 0.0
        part: float = 0.5
        on: bool = True

    def check(**given):
        fields.check_fields(Args(**given), {"size": 1}, above=("rate",), at_least=("weight",), shares=("part",))

    check()
    for given in ({"size": 0}, {"rate": NAN}, {"weight": -1}, {"part": 5}, {"on": "no"}):
        with pytest.raises(InputError, match=f"^{next(iter(given))} is "):
            check(**given)
