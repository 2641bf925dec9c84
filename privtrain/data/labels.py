"""Classes as numbers: by a public list where there is one, else as they occur in the rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import DataError
from privtrain.data.constants import Category
from privtrain.data.files import Place, one_hot, parse
from privtrain.data.spelling import MISSING, is_code, whole_number

MOST_WORDS = 256
"""The most different words of a column that is not taken for an identifier."""


@dataclass(frozen=True)
class ReadFromRows:
    """What nobody stated and was read from private rows: one row can bring an output or a column.

    Args:
        what: What was read, as a clause.
        way_out: Which argument states it.
    """

    what: str
    way_out: str

    @property
    def note(self) -> str:
        """For the reader of the data."""
        return f"unprotected: {self.what}; {self.way_out}"

    @property
    def assumption(self) -> str:
        """For every guarantee: the shape of the model tells of it."""
        return f"public knowledge: {self.what}; {self.way_out}"


CLASSES_READ = ReadFromRows(
    "the number of classes was counted in the targets", "give classes= to state it"
)
CLASSES_COUNTED = CLASSES_READ.note


def numbered_classes(
    values: Sequence[str],
    label: str,
    place: Place,
    classes: tuple[str, ...] | None,
    read: list[ReadFromRows],
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of each row as a number.

    Args:
        values: What stands there, one text a row.
        label: What messages call the column.
        place: Where the values come from.
        classes: What may stand there, in the order of the numbers; None to take what occurs,
            sorted.
        read: Told of what was read from the rows.

    Returns:
        Numbers from 0, shape `(rows,)`, and the names of the classes in their order.

    Raises:
        DataError: If a row has no class or one that is not listed, or there are fewer than two.
    """
    if classes is not None:
        spelled = _spelled_as(classes, values)
        return one_hot(spelled, Category(label, classes), place).argmax(axis=1), classes
    parsed = np.array([parse(value) for value in values])
    if np.isnan(parsed).all():
        # Words name the classes here, but an empty field names none: it is no class of its own.
        absent = [row for row, value in enumerate(values) if value.lower() in MISSING]
        if absent:
            expected = "a word that names a class (remove rows without one, or list classes=)"
            raise place.error(absent[0], label, values[absent[0]], expected)
        names = sorted(set(values))
        position = {value: number for number, value in enumerate(names)}
    else:
        position, names = _by_number(values, label, place)
    codes = np.array([position[value] for value in values], dtype=np.int64)
    if len(names) < 2:
        raise DataError(
            f"{place.path}, column {label!r}, holds one class only, {names[0]!r}. There is "
            "nothing to learn."
        )
    if len(names) > MOST_WORDS:
        raise DataError(
            f"{place.path}, column {label!r}, holds {len(names)} different values, too many "
            "for classes. Name the label column with label=, or list its classes with classes=."
        )
    if names == [str(number) for number in range(len(names))]:
        read.append(CLASSES_READ)
    else:
        order = ", ".join(f"{value} is {number}" for number, value in enumerate(names))
        read.append(
            ReadFromRows(
                f"the classes were read from column {label!r} ({order})",
                "give classes= to state them",
            )
        )
    return codes, tuple(names)


def _by_number(values: Sequence[str], label: str, place: Place) -> tuple[dict[str, int], list[str]]:
    """The class number of each text of a label column of numbers, and the names of the classes."""
    # Exact: a float holds 53 bits, and a code of 18 digits has 60.
    exact = {value: whole_number(value) for value in values}
    texts: dict[int, str] = {}
    for row, value in enumerate(values):
        whole = exact[value]
        if whole is None:
            expected = "a whole number that names a class (remove rows without one)"
            raise place.error(row, label, value, expected)
        before = texts.setdefault(whole, value)
        if before != value and any(map(is_code, (before, value))):
            expected = (
                f"one way to write a class, since {before!r} stands there, too (write all alike, "
                "or list classes= where these are two)"
            )
            raise place.error(row, label, value, expected)
    # In the order of numbers: as text, 10 would stand before 9.
    order = {whole: number for number, whole in enumerate(sorted(texts))}
    names = [texts[whole] if is_code(texts[whole]) else str(whole) for whole in order]
    return {value: order[whole] for value, whole in exact.items() if whole is not None}, names


def _spelled_as(classes: tuple[str, ...], values: Sequence[str]) -> list[str]:
    """Labels as the list has them: 1.0 is the class 1, as it is where none are listed."""
    numbers = Counter(whole_number(text) for text in classes)
    # Two ways to write one number are two classes where both are listed.
    plain = {whole_number(text): text for text in classes if not is_code(text)}
    same = {
        value: plain.get(whole_number(value), value)
        for value in set(values).difference(classes)
        if numbers[whole_number(value)] == 1 and not is_code(value)
    }
    same = {value: text for value, text in same.items() if whole_number(value) is not None}
    return [same.get(value, value) for value in values]
