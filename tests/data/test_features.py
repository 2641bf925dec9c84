"""Columns of text as inputs."""

from typing import Any

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.data.features import ColumnRule, check_digits, numbers_of, whole_numbers
from privtrain.data.files import Place
from privtrain.data.labels import ReadFromRows
from privtrain.data.missing import Missing, Rules
from privtrain.data.tables import Table


def table(*values: str) -> Table:
    return Table({"a": values}, Place("t.csv", range(2, 2 + len(values))))


def made(*values: str, missing: Missing = None, **known: Any) -> tuple[list[Any], int]:
    read: list[ReadFromRows] = []
    rule = ColumnRule(
        name="a",
        range=known.get("range"),
        words=known.get("words"),
        missing=Rules(missing),
    )
    return numbers_of(table(*values), rule, read).tolist(), len(read)


def test_numbers_and_words() -> None:
    assert made("1", "2.5") == ([[1.0], [2.5]], 0)
    assert made("0", "20", range=(0, 10)) == ([[0.0], [1.0]], 0)
    assert made("b", "a") == ([[0.0, 1.0], [1.0, 0.0]], 1)
    assert made("b", "a", words=("b", "c", "a"))[0] == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("lacks", [True, False])
def test_a_further_column_follows_from_the_rule_and_never_from_the_rows(lacks: bool) -> None:
    third = "NA" if lacks else "3"
    block, _ = made("1", "2", third, missing="indicator")
    assert block == [[1, 0], [2, 0], [0, 1] if lacks else [3, 0]]
    block, _ = made("20", "30", "?" if lacks else "40", missing="indicator", range=(20, 40))
    assert block == [[0, 0], [0.5, 0], [0, 1] if lacks else [1, 0]]
    block, _ = made("a", "b", "" if lacks else "b", missing="indicator", words=("a", "b"))
    assert block == [[1, 0, 0], [0, 1, 0], [0, 0, 1] if lacks else [0, 1, 0]]
    block, _ = made("a", "b", "" if lacks else "b", missing="indicator")
    assert block == [[1, 0, 0], [0, 1, 0], [0, 0, 1] if lacks else [0, 1, 0]]


def test_values_in_the_place() -> None:
    assert made("1", "", missing=-1)[0] == [[1], [-1]]
    assert made("1", "", missing=50, range=(0, 10))[0] == [[0.1], [1.0]]
    assert made("a", "?", missing="b", words=("a", "b"))[0] == [[1, 0], [0, 1]]
    assert made("a", "?", missing={"a": "b"})[0] == [[1, 0], [0, 1]]
    # Without a rule a question mark is a word among others, as it always was.
    assert made("a", "?")[0] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("values", "known", "message"),
    [
        (("1", ""), {}, r"line 3, column 'a'.*missing='drop', 'indicator' or a value"),
        (("1", "x"), {"missing": 0}, r"line 3.*finite number.*not 'x'"),
        (("a", ""), {"missing": 0, "words": ("a",)}, "line 3.*one of 'a'"),
        (("a", ""), {"missing": "z", "words": ("a",)}, "not 'z'"),
        (("", "?"), {"missing": "indicator"}, "holds no value"),
    ],
)
def test_what_has_no_rule_is_named(values: Any, known: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        made(*values, **known)
    assert ("state missing=" in str(error.value)) == (values == ("1", ""))


def test_digits() -> None:
    check_digits(table("16777217", "16777219"), "a", torch.float64)
    with pytest.raises(DataError, match="does not tell apart"):
        check_digits(table("16777219", "16777220"), "a", torch.float32)


def test_whole_numbers_stay_whole() -> None:
    blocks = [np.array([[2.0], [3.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])]
    whole = whole_numbers(table("2", "3"), ["a", "a"], blocks)
    assert whole.dtype == np.int64 and whole.tolist() == [[2, 0, 1], [3, 1, 0]]
    for wrong in (0.5, 2.0**54):
        with pytest.raises(DataError, match=r"line 3, column 'a': expected a whole number"):
            whole_numbers(table("2", "3"), ["a"], [np.array([[2.0], [wrong]])])
