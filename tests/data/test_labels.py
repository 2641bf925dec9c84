"""Classes as numbers, with their names."""

import pytest

from privtrain.core.errors import DataError
from privtrain.data.files import Place
from privtrain.data.labels import CLASSES_READ, ReadFromRows, numbered_classes

PLACE = Place("t.csv", range(100), "row")


def numbered(
    values: list[str], classes: tuple[str, ...] | None = None
) -> tuple[list[int], tuple[str, ...], list[ReadFromRows]]:
    read: list[ReadFromRows] = []
    codes, names = numbered_classes(values, "y", PLACE, classes, read)
    return codes.tolist(), names, read


def test_words_and_numbers_in_their_order() -> None:
    assert numbered(["b", "a", "b"])[:2] == ([1, 0, 1], ("a", "b"))
    assert numbered(["10", "9", "9.0"])[:2] == ([1, 0, 0], ("9", "10"))
    assert numbered(["1", "0"])[2] == [CLASSES_READ]
    assert "(a is 0, b is 1)" in numbered(["a", "b"])[2][0].note
    assert numbered(["b", "a"], ("b", "c", "a")) == ([0, 2], ("b", "c", "a"), [])
    assert numbered(["1.0", "0"], ("1", "0"))[0] == [0, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "a"], "one class only, 'a'"),
        (["a", "b", ""], "row 2, column 'y'.*names a class"),
        (["1", "0", "a"], "row 2.*a whole number"),
        (["7", "007"], "one way to write a class"),
        ([f"w{n}" for n in range(300)], "300 different values"),
    ],
)
def test_what_names_no_class_is_refused(values: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        numbered(values)
