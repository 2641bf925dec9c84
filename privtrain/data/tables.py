"""Tables of text, and how a CSV file becomes one."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privtrain.core.errors import DataError
from privtrain.data.files import Place
from privtrain.data.spelling import MISSING


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: Name to values, one a row.
        place: Where the values come from.
    """

    columns: Mapping[str, Sequence[str]]
    place: Place

    def rows(self, index: Sequence[int]) -> "Table":
        """Some of the rows, by their numbers."""
        if len(index) == len(self.place.lines):
            return self
        columns = {name: [values[row] for row in index] for name, values in self.columns.items()}
        lines = [self.place.lines[row] for row in index]
        return Table(columns, replace(self.place, lines=lines))

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
                        f"columns are {', '.join(self.columns)}.{guessed(list(self.columns))}"
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
                f"not {len(record)}.{guessed(header)}"
            )
    values = ([value.strip() for value in column] for column in zip(*records, strict=True))
    return Table(dict(zip(header, values, strict=True)), Place(path, lines))


def guessed(header: Sequence[str]) -> str:
    """What else may stand between two values, where it seems to be something else."""
    if len(header) != 1:
        return ""
    for sign in ";\t|,":
        if sign in header[0]:
            return f" Is the file separated by {sign!r}? Give delimiter={sign!r}."
    return ""
