"""Federated data from a CSV file: numbers as they are, words as columns of zeros and ones."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Task
from privtrain.data.arrays import CLASSES_READ, ReadFromRows, from_arrays
from privtrain.data.constants import Category, Number
from privtrain.data.files import Place, in_range, one_hot, parse
from privtrain.data.numbers import first_merged
from privtrain.data.options import (
    check_delimiter,
    to_categories,
    to_name,
    to_names,
    to_ranges,
    to_words,
)
from privtrain.data.spelling import (
    FEW,
    MISSING,
    MOST,
    OTHER_SPELLING,
    is_code,
    is_missing,
    whole_number,
)

MOST_WORDS = 256
"""The most different words of a column that is not taken for an identifier."""

EXACT = 2**24
"""Up to here all whole numbers are apart in every floating-point type that inputs may have."""


def from_csv(
    path: str | Path,
    *,
    label: str = "y",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    categories: Mapping[str, Iterable[str]] | None = None,
    classes: Iterable[str] | None = None,
    drop: str | Iterable[str] = (),
    user: str | None = None,
    row_id: str | None = None,
    delimiter: str = ",",
    **options: Any,
) -> tuple[Task, FederatedData]:
    """Makes a classification task of a CSV file whose first line names the columns.

    Columns of numbers stay as they are, or are clamped to a public range and mapped to [0, 1].
    Columns of words become zeros and ones. Words and classes that are not listed are read from
    the file, which nothing protects; `data.notes` and every guarantee then say so.

    Args:
        path: The file, in UTF-8.
        label: Name of the column with the class.
        ranges: Column to its public lowest and highest value.
        categories: Column to the words that may stand in it, as public knowledge.
        classes: What may stand in the label column, in the order of the class numbers, as public
            knowledge; else what occurs, sorted.
        drop: Columns to leave out; one or several names.
        user: Name of the column that says whose row it is, where users are protected; it is no
            feature.
        row_id: Name of the column that says what each row is called; it is no feature. By it a
            coin decides whether the row is trained on; without it, by the row's text.
        delimiter: What stands between two values.
        options: What `from_arrays` takes; `scale` is for all columns, and fits numbers alone.

    Returns:
        The task and the data.

    Raises:
        DataError: If the file cannot be used; the message says in which line and column.
        ValueError: If an option is of another kind, has no order, or holds a word twice.
    """
    path = Path(path)
    check_delimiter(delimiter)
    label, drop = to_name("label", label), to_names("drop", drop)
    ranges, words = to_ranges(ranges), to_categories(categories)
    listed = None if classes is None else to_words("classes", classes, 2)
    table = read_table(path, delimiter)
    # Misspelt names are refused: a range that fits no column would leave one unscaled, unnoticed.
    owner = [] if user is None else [to_name("user", user)]
    key = [] if row_id is None else [to_name("row_id", row_id)]
    table.check_names(
        label=[label], ranges=ranges, categories=words, drop=drop, user=owner, row_id=key
    )
    used = [name for name in table.columns if name not in (label, *owner, *key, *drop)]
    if not used:
        raise DataError(f"{path} holds no column beside {label!r} that could be learned from.")
    if "" in used:
        raise DataError(
            f"{path} holds a column without a name, as pandas writes the number of a row: to learn "
            "from it would be to learn the order of the rows. Name it, or leave it out with "
            "drop=['']."
        )
    read: list[ReadFromRows] = []
    blocks = [_block(table, name, ranges.get(name), words.get(name), read) for name in used]
    if options.get("scale") is not None and (ranges or words or read):
        raise ValueError(
            f"Expected scale={options['scale']!r} without columns of words and without ranges=, "
            "which it would scale again. Give ranges= for the columns of numbers instead."
        )
    for name in used:
        if name not in ranges and name not in words:
            _check_digits(table, name, options.get("dtype", torch.float32))
    targets, count = _targets(table, label, listed, read)
    # The count is passed on, and so is not counted again; the notes say where it comes from.
    given = {"name": path.stem, **options, "classes": count}
    if user is not None:
        given["users"] = table.names_of_users(user)
    else:
        given["row_ids"] = table.columns[row_id] if row_id else table.names_of_rows((*used, label))
    task, data = from_arrays(np.concatenate(blocks, axis=1), targets, **given)
    return task, replace(
        data,
        notes=(*(item.note for item in read), *data.notes),
        assumptions=(*(item.assumption for item in read), *data.assumptions),
    )


@dataclass(frozen=True)
class Table:
    """A CSV file as text.

    Args:
        columns: Name to values, one a row.
        place: Where the values come from.
    """

    columns: Mapping[str, Sequence[str]]
    place: Place

    def names_of_rows(self, columns: Sequence[str]) -> list[str]:
        """What each row is called that has no ID: its own text, and which copy of it it is."""
        # Not its encoded values: where words and classes are read from the rows, a word of another
        # row would give every row a further column, and so another coin.
        seen: Counter[tuple[str, ...]] = Counter()
        names = []
        for record in zip(*(self.columns[name] for name in columns), strict=True):
            names.append(f"{record!r} {seen[record]}")
            seen[record] += 1
        return names

    def names_of_users(self, column: str) -> list[str]:
        """Whose row each is; whose nobody knows would be taken for one more user's."""
        for row, name in enumerate(self.columns[column]):
            if name.lower() in MISSING:
                raise self.place.error(row, column, name, "the name of a user")
        return list(self.columns[column])

    def check_names(self, **arguments: Sequence[str] | Mapping[str, Any]) -> None:
        """Raises `DataError` where an argument names a column that does not exist."""
        for argument, wanted in arguments.items():
            for name in wanted:
                if name not in self.columns:
                    raise DataError(
                        f"{self.place.path} has no column {name!r}, which {argument}= names. Its "
                        f"columns are {', '.join(self.columns)}."
                    )


def read_table(path: Path, delimiter: str) -> Table:
    """A CSV file as a table of text.

    Args:
        path: The file.
        delimiter: What stands between two values.

    Returns:
        Its columns as text without surrounding white space.

    Raises:
        DataError: If the file cannot be read, is empty or ragged, or names a column twice.
    """
    lines, records = [], []
    try:
        # "-sig": spreadsheets write a byte order mark, which would become part of the first name.
        # newline="": a field in quotes may hold line breaks, which are the reader's business.
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Strict: a quote that is never closed would swallow all rows behind it.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for record in reader:
                # Numbered by the reader, since a record may take several lines of the file.
                if record:
                    lines.append(reader.line_num)
                    records.append(record)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"Could not read data={str(path)!r} as a CSV file in UTF-8: {why}. Give the path of a "
            "text file whose first line names the columns."
        ) from error
    if not records:
        what = "only a line of names" if header else "nothing"
        raise DataError(f"{path} holds {what}. Give a file with a line of names and rows below.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} names the column {twice[0]!r} twice. Rename one of them.")
    for line, record in zip(lines, records, strict=True):
        if len(record) != len(header):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} values separated by {delimiter!r}, "
                f"not {len(record)}."
            )
    values = ([value.strip() for value in column] for column in zip(*records, strict=True))
    return Table(dict(zip(header, values, strict=True)), Place(path, lines))


def _block(
    table: Table,
    name: str,
    limits: tuple[float, float] | None,
    words: tuple[str, ...] | None,
    read: list[ReadFromRows],
) -> NDArray[np.float64]:
    values = table.columns[name]
    if words is not None:
        return one_hot(values, Category(name, words), table.place)
    parsed = np.array([parse(value) for value in values])
    broken = ~np.isfinite(parsed)
    # One number makes a column of numbers: a word in it is a mistake to be named. Were it taken for
    # a category, every number would quietly become one, too.
    if limits is not None or not broken.all():
        if broken.any():
            row = int(np.argmax(broken))
            expected = (
                "a finite number, as in other rows (remove or impute the row, or list the "
                f"column's words with categories={{{name!r}: [...]}})"
            )
            raise table.place.error(row, name, values[row], expected)
        return parsed[:, None] if limits is None else _in_range(table, name, limits)
    # Sorted: the order of rows must not decide which column a word becomes.
    present = sorted(set(values))
    if all(map(is_missing, present)):
        raise DataError(
            f"{table.place.path}, column {name!r}, holds no value, only "
            f"{', '.join(map(repr, present))}. Remove it, or leave it out with drop=[{name!r}]."
        )
    if len(present) > MOST_WORDS:
        raise DataError(
            f"{table.place.path}, column {name!r}, holds {len(present)} different words, more than "
            f"{MOST_WORDS}. Leave it out with drop=[{name!r}], or list its words with categories=."
        )
    odd = [word for word in present if OTHER_SPELLING.fullmatch(word)]
    spelled = len(odd) >= MOST * len(present)
    if spelled and len(present) > max(FEW, len(values) // 10):
        row = values.index(odd[0])
        expected = (
            "a number as 1234.5, since nearly every value looks like one in another spelling "
            "(rewrite the column without signs and with a full stop, or list its words with "
            f"categories={{{name!r}: [...]}})"
        )
        raise table.place.error(row, name, odd[0], expected)
    like = f" (words, though they look like numbers, such as {odd[0]!r})" if spelled else ""
    # Which words occur tells about the rows, and nothing was paid for it: the statement says so.
    read.append(
        ReadFromRows(
            f"the {len(present)} categories of column {name!r} were read from the rows{like}",
            "give categories= to state them",
        )
    )
    return one_hot(values, Category(name, tuple(present)), table.place)


def _in_range(table: Table, name: str, limits: tuple[float, float]) -> NDArray[np.float64]:
    low, high = limits
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            f"Expected ranges={{{name!r}: {limits}}} to hold a lowest value below a highest one."
        )
    return in_range(table.columns[name], Number(name, low, high), table.place)


def _check_digits(table: Table, name: str, dtype: torch.dtype) -> None:
    """Refuses a column of numbers of which two would become one, or that hold codes twice."""
    texts = sorted(set(table.columns[name]))
    ways = (
        f"ranges= where it is a quantity, or list the words of a code with "
        f"categories={{{name!r}: [...]}}; or leave it out with drop=[{name!r}]."
    )
    first: dict[float, str] = {}
    for text in texts:
        before = first.setdefault(parse(text), text)
        if before != text and (is_code(before) or is_code(text)):
            raise DataError(
                f"{table.place.path}, column {name!r}, holds {before!r} and {text!r}, which are "
                f"one number. Write all alike, give {ways}"
            )
    large = next((text for text in texts if abs(parse(text)) > torch.finfo(dtype).max), None)
    if large is not None:
        row = table.columns[name].index(large)
        raise table.place.error(
            row, name, large, f"a number that fits {dtype} (give dtype=torch.float64, or ranges=)"
        )
    long = {text: abs(parse(text)) > EXACT for text in texts}
    # With all digits: a float has lost some of them already.
    exact = {whole_number(text) or Fraction(Decimal(text)) for text, big in long.items() if big}
    merged = first_merged(np.array(sorted(exact), dtype=object), dtype)
    if merged is not None:
        raise DataError(
            f"{table.place.path}, column {name!r}, holds numbers that {dtype} does not tell apart: "
            f"{merged[0]} and {merged[1]} become one. Give dtype=torch.float64 where it holds "
            f"them, {ways}"
        )


def _numbered(
    table: Table, label: str, parsed: NDArray[np.float64]
) -> tuple[dict[str, int], list[str]]:
    """The class number of each text of a label column of numbers, and the names of the classes."""
    values = table.columns[label]
    # Exact: a float holds 53 bits, and a code of 18 digits has 60.
    exact = {value: whole_number(value) for value in values}
    texts: dict[int, str] = {}
    for row, value in enumerate(values):
        whole = exact[value]
        if whole is None:
            expected = "a whole number that names a class (remove rows without one)"
            raise table.place.error(row, label, value, expected)
        before = texts.setdefault(whole, value)
        if before != value and any(map(is_code, (before, value))):
            expected = (
                f"one way to write a class, since {before!r} stands there, too (write all alike, "
                "or list classes= where these are two)"
            )
            raise table.place.error(row, label, value, expected)
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


def _targets(
    table: Table, label: str, classes: tuple[str, ...] | None, read: list[ReadFromRows]
) -> tuple[NDArray[np.int64], int]:
    values = table.columns[label]
    if classes is not None:
        spelled = _spelled_as(classes, values)
        return one_hot(spelled, Category(label, classes), table.place).argmax(axis=1), len(classes)
    parsed = np.array([parse(value) for value in values])
    if np.isnan(parsed).all():
        # Words name the classes here, but an empty field names none: it is no class of its own.
        absent = [row for row, value in enumerate(values) if value.lower() in MISSING]
        if absent:
            expected = "a word that names a class (remove rows without one, or list classes=)"
            raise table.place.error(absent[0], label, values[absent[0]], expected)
        names = sorted(set(values))
        position = {value: number for number, value in enumerate(names)}
    else:
        position, names = _numbered(table, label, parsed)
    codes = np.array([position[value] for value in values], dtype=np.int64)
    if len(names) < 2:
        raise DataError(
            f"{table.place.path}, column {label!r}, holds one class only, {names[0]!r}. There is "
            "nothing to learn."
        )
    if len(names) > MOST_WORDS:
        raise DataError(
            f"{table.place.path}, column {label!r}, holds {len(names)} different values, too many "
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
    return codes, len(names)
