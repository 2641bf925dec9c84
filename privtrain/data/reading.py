"""Federated data from a table of text: a CSV file, or what has columns with names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Task
from privtrain.data.arrays import from_arrays
from privtrain.data.columns import encoded_by
from privtrain.data.features import (
    ColumnRule,
    check_digits,
    encoded_column,
    numbers_of,
    whole_numbers,
)
from privtrain.data.labels import ReadFromRows, numbered_classes
from privtrain.data.missing import DROP, Missing, Rules
from privtrain.data.models import input_type
from privtrain.data.options import (
    check_delimiter,
    to_categories,
    to_name,
    to_names,
    to_ranges,
    to_words,
)
from privtrain.data.tables import Table, read_table


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a table of text becomes inputs and classes: what `from_csv` and `from_frame` take.

    Args:
        label: Name of the column with the class.
        ranges: Column to its public lowest and highest value.
        categories: Column to the words that may stand in it.
        classes: What may stand in the label column; None to take what occurs.
        drop: Columns to leave out.
        user: Name of the column that says whose row it is, or None.
        row_id: Name of the column that says what each row is called, or None.
        missing: What is done about missing values.
    """

    label: str
    ranges: Mapping[str, tuple[float, float]]
    categories: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...] | None
    drop: tuple[str, ...]
    user: str | None
    row_id: str | None
    missing: Rules

    @classmethod
    def of(
        cls,
        *,
        label: str,
        ranges: Mapping[str, tuple[float, float]] | None,
        categories: Mapping[str, Iterable[str]] | None,
        classes: Iterable[str] | None,
        drop: str | Iterable[str],
        user: str | None,
        row_id: str | None,
        missing: Missing,
    ) -> "Reading":
        """Options as a user or a study file gives them.

        Raises:
            ValueError: If one is of another kind, has no order, or holds a word twice.
        """
        return cls(
            label=to_name("label", label),
            ranges=to_ranges(ranges),
            categories=to_categories(categories),
            classes=None if classes is None else to_words("classes", classes, 2),
            drop=to_names("drop", drop),
            user=None if user is None else to_name("user", user),
            row_id=None if row_id is None else to_name("row_id", row_id),
            missing=Rules(missing),
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns that are no features."""
        named = (self.label, self.user, self.row_id)
        return tuple(name for name in named if name is not None)

    @property
    def listed(self) -> dict[str, tuple[str, ...]]:
        """Column to the words that may stand in it, the classes among them."""
        return {**self.categories, **({} if self.classes is None else {self.label: self.classes})}

    def column(self, name: str) -> ColumnRule:
        """What is known of a feature column."""
        limits, words = self.ranges.get(name), self.categories.get(name)
        return ColumnRule(name=name, range=limits, words=words, missing=self.missing)


def from_csv(
    path: str | Path,
    *,
    label: str = "y",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    categories: Mapping[str, Iterable[str]] | None = None,
    classes: Iterable[str] | None = None,
    drop: str | Iterable[str] = (),
    missing: Missing = None,
    user: str | None = None,
    row_id: str | None = None,
    delimiter: str | None = None,
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
        missing: What is done about missing values (an empty field, ?, NA, N/A, NaN, null), in all
            columns or by the name of each: "drop" leaves the row out; "indicator" puts the lowest
            value of the range, else 0, in the place and says so in a further column of zeros and
            ones, which every such column gets whether it lacks a value or not; a number or a word
            stands in the place. None: they are refused in columns of numbers, and are a word among
            others in columns of words. Each row is treated by itself.
        user: Name of the column that says whose row it is, where users are protected; it is no
            feature.
        row_id: Name of the column that says what each row is called; it is no feature. By it a
            coin decides whether the row is trained on; without it, by the row's text.
        delimiter: What stands between two values; by default a tab in a `.tsv` file, else a comma.
        options: What `from_arrays` takes; `scale` is for all columns, and fits numbers alone. With
            `dtype=torch.int64`, columns stay whole numbers, such as tokens, and are not scaled.

    Returns:
        The task and the data.

    Raises:
        DataError: If the file cannot be used; the message says in which line and column.
        ValueError: If an option is of another kind, has no order, or holds a word twice.
    """
    reading = Reading.of(
        label=label,
        ranges=ranges,
        categories=categories,
        classes=classes,
        drop=drop,
        user=user,
        row_id=row_id,
        missing=missing,
    )
    if not isinstance(path, (str, os.PathLike)):
        raise DataError(
            f"Expected path to be that of a file, not a {type(path).__name__}. Use "
            "pt.data.from_frame for a table in memory, pt.data.from_arrays for arrays."
        )
    path = Path(path)
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    check_delimiter(delimiter)
    given = {"name": path.stem, **options}
    task, data = from_table(read_table(path, delimiter), reading, **given)
    return task, encoded_by(data, delimiter=delimiter)


def from_table(table: Table, reading: Reading, **options: Any) -> tuple[Task, FederatedData]:
    """Makes a classification task of a table of text.

    Args:
        table: The columns.
        reading: How they are read.
        options: What `from_arrays` takes.

    Returns:
        The task and the data.

    Raises:
        DataError: If the table cannot be used; the message says in which row and column.
        ValueError: If options contradict one another.
    """
    # Misspelt names are refused: a range that fits no column would leave one unscaled, unnoticed.
    table.check_names(
        label=[reading.label],
        ranges=reading.ranges,
        categories=reading.categories,
        drop=reading.drop,
        user=() if reading.user is None else (reading.user,),
        row_id=() if reading.row_id is None else (reading.row_id,),
        missing=reading.missing.named,
    )
    label = reading.label
    used = [name for name in table.columns if name not in (*reading.roles, *reading.drop)]
    _check_used(table, used, reading)
    read_from = {name: table.columns[name] for name in (*used, *reading.roles)}
    table = table.rows(reading.missing.kept(read_from, reading.listed))
    read: list[ReadFromRows] = []
    blocks = [numbers_of(table, reading.column(name), read) for name in used]
    _check_scale(reading, read, options)
    inputs: NDArray[Any] = np.concatenate(blocks, axis=1)
    scaled = bool(reading.ranges) or options.get("scale") is not None
    whole = not scaled and bool((inputs % 1 == 0).all())
    dtype = input_type(options.get("model"), inputs.shape[1:], options.get("dtype"), whole)
    if dtype == torch.int64:
        inputs = whole_numbers(table, used, blocks)
    else:
        for name in used:
            if name not in reading.ranges and name not in reading.categories:
                check_digits(table, name, dtype)
    targets, names = numbered_classes(
        table.columns[label], label, table.place, reading.classes, read
    )
    # The count is passed on, and so is not counted again; the notes say where it comes from.
    given = {**options, "dtype": dtype, "classes": len(names)}
    if reading.user is not None:
        given["users"] = table.names_of_users(reading.user)
    elif reading.row_id is not None:
        given["row_ids"] = table.columns[reading.row_id]
    else:
        given["row_ids"] = table.names_of_rows((*used, label))
    task, data = from_arrays(inputs, targets, **given)
    data = encoded_by(
        data,
        columns=[encoded_column(table.columns[name], reading.column(name)) for name in used],
        classes=names,
        classes_read=reading.classes is None,
        label=label,
    )
    return task, replace(
        data,
        notes=(*(item.note for item in read), *data.notes),
        assumptions=(*(item.assumption for item in read), *data.assumptions),
    )


def _check_used(table: Table, used: Sequence[str], reading: Reading) -> None:
    """Refuses a table without features, and rules that would make up a class."""
    where = table.place.path
    if not used:
        raise DataError(
            f"{where} holds no column beside {reading.label!r} that could be learned from."
        )
    if "" in used:
        raise DataError(
            f"{where} holds a column without a name, as pandas writes the number of a row: to "
            "learn from it would be to learn the order of the rows. Name it, or leave it out with "
            "drop=['']."
        )
    for name in reading.roles:
        rule = reading.missing.of(name) if name in reading.missing.named else DROP
        if rule != DROP:
            raise ValueError(
                f"Expected missing[{name!r}]={rule!r} to be 'drop': the class, the user and the "
                "name of a row are not made up. List classes= where a missing one is a class of "
                "its own."
            )


def _check_scale(reading: Reading, read: list[ReadFromRows], options: Mapping[str, Any]) -> None:
    made = reading.ranges or reading.categories or read or reading.missing.indicates
    if options.get("scale") is not None and made:
        raise ValueError(
            f"Expected scale={options['scale']!r} without columns of words, without ranges= and "
            "without missing='indicator', which it would scale again. Give ranges= for the columns "
            "of numbers instead."
        )
    if options.get("dtype") == torch.int64 and reading.ranges:
        raise ValueError(
            f"Expected ranges={dict(reading.ranges)!r} to be left out with dtype=torch.int64: "
            "whole numbers such as tokens are not scaled."
        )
