"""Texts of tables: which numbers they stand for."""

import pytest

from privtrain.data.spelling import OTHER_SPELLING, is_code, is_missing, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("7.0", 7), ("1e3", 1000), ("9" * 30, int("9" * 30)), ("7.5", None), ("1_0", None)],
)
def test_whole_numbers_keep_their_digits(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def test_codes_and_what_is_missing() -> None:
    assert [is_code(text) for text in ("007", "-07", "00", "0", "0.5", "70")] == [True] * 3 + [
        False
    ] * 3
    assert all(map(is_missing, ("", "NA", "?", "inf", "nan"))) and not is_missing("none")


def test_numbers_in_another_spelling() -> None:
    assert all(map(OTHER_SPELLING.fullmatch, ("1,5", "1'234", "5%", "$5", "20 EUR", "1 234,5")))
    assert not any(
        map(OTHER_SPELLING.fullmatch, ("", "a", "2020-01-05", "5th", "A5", "x1", "12:30"))
    )
