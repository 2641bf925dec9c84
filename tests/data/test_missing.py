"""Rules for missing values look at one row at a time."""

from typing import Any

import pytest

from privtrain.core.errors import DataError
from privtrain.data.files import ABSENT
from privtrain.data.missing import DROP, INDICATOR, Rules, absent_in


def test_what_is_missing_and_what_is_a_listed_word() -> None:
    values = ["1", "", "NA", "?", "nan", "inf", "0"]
    assert absent_in(values, None) == [False, True, True, True, True, True, False]
    assert absent_in(["NA", "DE", ""], ("NA", "DE")) == [False, False, True]


@pytest.mark.parametrize(
    ("given", "words", "stand_in"),
    [
        (None, False, None),
        (DROP, True, None),
        (INDICATOR, True, ABSENT),
        (INDICATOR, False, "18.0"),
        (0, False, "0"),
        (-1.5, False, "-1.5"),
        ("7", False, "7"),
        ("none", True, "none"),
        # For all columns, a number is none of a column's words, and a word is no number.
        (0, True, None),
        ("none", False, None),
        ({"a": 0}, True, "0"),
        ({"a": "none"}, False, None),
        ({"b": 0}, False, None),
    ],
)
def test_what_stands_in_the_place(given: Any, words: bool, stand_in: str | None) -> None:
    assert Rules(given).stand_in("a", words=words, low=18) == stand_in


def test_rows_are_left_out_by_their_own_values() -> None:
    columns = {"a": ["1", "", "3", "NA"], "b": ["x", "y", "", "NA"]}
    assert Rules(DROP).kept(columns, {}) == [0]
    assert Rules(DROP).kept(columns, {"b": ("NA", "x")}) == [0]
    assert Rules({"a": DROP}).kept(columns, {}) == [0, 2]
    assert Rules({"b": DROP}).kept(columns, {"b": ("NA", "x")}) == [0, 1, 3]
    assert Rules(INDICATOR).kept(columns, {}) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"leave a row.*'a'"):
        Rules(DROP).kept({"a": ["", "?"]}, {})


@pytest.mark.parametrize(
    "given", [True, float("nan"), float("inf"), ["drop"], {"a": True}, {"a": ["drop"]}]
)
def test_other_rules_are_refused_by_name(given: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected missing.*'drop', 'indicator'"):
        Rules(given)


@pytest.mark.parametrize("given", ["mean", "Median", {"a": "mode"}])
def test_a_figure_of_other_rows_is_no_rule(given: Any) -> None:
    with pytest.raises(ValueError, match=r"would follow from other rows.*such as 0"):
        Rules(given)
    assert Rules({"a": "meanwhile"}).stand_in("a", words=True, low=None) == "meanwhile"
