"""Federated data from a table in memory: a frame, a data set with columns, or a dict of columns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Task
from privtrain.data.files import Place
from privtrain.data.missing import Missing
from privtrain.data.numbers import is_no_value
from privtrain.data.reading import Reading, from_table
from privtrain.data.samples import columns_of, values_of
from privtrain.data.tables import Table

_NAME = "frame"


def from_frame(
    frame: Any,
    *,
    label: str = "y",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    categories: Mapping[str, Iterable[str]] | None = None,
    classes: Iterable[str] | None = None,
    drop: str | Iterable[str] = (),
    missing: Missing = None,
    user: str | None = None,
    row_id: str | None = None,
    **options: Any,
) -> tuple[Task, FederatedData]:
    """Makes a classification task of a table in memory, as `from_csv` does of a file.

    Columns are read as text would be, so that both give the same rows: numbers stay or are put
    into their range, words become zeros and ones, None, NaN and NaT are missing. Truth values are
    0 and 1. What pandas calls a category is a word: its list may have been read from the rows.

    Args:
        frame: A frame of pandas or polars, a data set of Hugging Face, a table of Arrow, a dict of
            columns, or a map-style Dataset whose rows are dicts. Its index is not used.
        label: As in `from_csv`, like all that follow.
        ranges: Column to its public lowest and highest value.
        categories: Column to the words that may stand in it.
        classes: What may stand in the label column.
        drop: Columns to leave out.
        missing: What is done about missing values.
        user: Name of the column that says whose row it is.
        row_id: Name of the column that says what each row is called.
        options: What `from_arrays` takes.

    Returns:
        The task and the data.

    Raises:
        DataError: If the table cannot be used; the message says in which row and column.
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
    return from_table(table_of(frame, reading), reading, **{"name": _NAME, **options})


def table_of(frame: Any, reading: Reading) -> Table:
    """The columns of a table in memory as text.

    Args:
        frame: What has columns with names.
        reading: Which columns are left out, and which words are listed.

    Raises:
        DataError: If a column holds what is neither a number nor a word, or has another length.
    """
    columns: dict[str, Sequence[str]] = {}
    for name, column in columns_of(frame, _NAME).items():
        # What is left out may hold anything.
        if name in reading.drop:
            columns[name] = ()
            continue
        listed = reading.listed.get(name, ())
        columns[name] = texts_of(name, values_of(column), truths=not {"True", "False"} & {*listed})
    lengths = {name: len(values) for name, values in columns.items() if name not in reading.drop}
    rows = next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length != rows:
            raise DataError(
                f"Expected the columns of the {_NAME} to have equally many rows; {name!r} has "
                f"{length}, {next(iter(lengths))!r} has {rows}."
            )
    if rows == 0:
        raise DataError(f"The {_NAME} holds no rows. Give one with rows below its names.")
    columns |= {name: [""] * rows for name in columns if name not in lengths}
    return Table(columns, Place(f"the {_NAME}", range(rows), "row"))


def texts_of(name: str, values: Any, truths: bool) -> list[str]:
    """The values of a column as text; truth values as 1 and 0 if that is asked for."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = values if isinstance(values, np.ndarray) else None
    if array is not None and array.ndim == 1 and array.dtype.kind in "iu":
        return list(map(str, array.tolist()))
    items = list(values) if array is None or array.ndim > 1 else array.tolist()
    if array is not None and array.dtype.kind in "mM":
        items = list(array)
    return [_text(name, row, item, truths) for row, item in enumerate(items)]


def _text(name: str, row: int, item: Any, truths: bool) -> str:
    if isinstance(item, str):
        return item.strip()
    if is_no_value(item):
        return ""
    plain = item.item() if isinstance(item, np.generic) else item
    if isinstance(plain, bool):
        return str(int(plain)) if truths else str(plain)
    if isinstance(plain, float):
        return "" if math.isnan(plain) else repr(plain)
    if isinstance(plain, (int, Decimal)):
        return str(plain)
    if hasattr(item, "isoformat") or hasattr(item, "total_seconds") or _is_time(item):
        what = "a date or a duration"
        way_out = "Make a number of it, as days since a public date"
    else:
        what = f"of type {type(item).__name__}"
        way_out = "Make numbers or words of it; arrays and lists are for pt.data.from_arrays"
    raise DataError(
        f"the {_NAME}, row {row}, column {name!r}: expected a number or a word, not {item!r:.40}, "
        f"{what}. {way_out}, or leave the column out with drop=[{name!r}]."
    )


def _is_time(item: Any) -> bool:
    return isinstance(item, (np.datetime64, np.timedelta64))
