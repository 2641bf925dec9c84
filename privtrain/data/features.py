"""Columns of text as inputs: numbers as they are or in their range, words as zeros and ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from privtrain.core import recipe
from privtrain.core.errors import DataError
from privtrain.data.constants import Category, Number
from privtrain.data.files import ABSENT, in_range, one_hot, parse
from privtrain.data.labels import MOST_WORDS, ReadFromRows
from privtrain.data.missing import INDICATOR, WAY_OUT, Rules, absent_in
from privtrain.data.numbers import first_merged
from privtrain.data.spelling import (
    FEW,
    MOST,
    OTHER_SPELLING,
    is_code,
    is_missing,
    whole_number,
)
from privtrain.data.tables import Table

EXACT = 2**24
"""Up to here all whole numbers are apart in every floating-point type that inputs may have."""

LARGEST_TOKEN = 2**53
"""Up to here whole numbers keep all of their digits on the way."""


@dataclass(frozen=True, kw_only=True)
class ColumnRule:
    """What is known of a column without its rows.

    Args:
        name: Its name.
        range: Its public lowest and highest value, where they are stated.
        words: What may stand in it, where that is stated.
        missing: What is done about missing values.
    """

    name: str
    range: tuple[float, float] | None
    words: tuple[str, ...] | None
    missing: Rules


def numbers_of(table: Table, column: ColumnRule, read: list[ReadFromRows]) -> NDArray[np.float64]:
    """The columns of zeros and ones, or the numbers, that one column of text becomes.

    Args:
        table: The table.
        column: Which column, and what is stated of it.
        read: Told of what was read from the rows.

    Returns:
        Shape `(rows, columns)`.

    Raises:
        DataError: If a value is missing or no number where others are; with its place.
    """
    name, limits, listed = column.name, column.range, column.words
    values: Sequence[str] = table.columns[name]
    parsed = None if listed is not None else np.array([parse(value) for value in values])
    # One number makes a column of numbers: a word in it is a mistake to be named. Were it taken for
    # a category, every number would quietly become one, too.
    words = parsed is None or (limits is None and not bool(np.isfinite(parsed).any()))
    low = None if limits is None else limits[0]
    stand_in = column.missing.stand_in(name, words=words, low=low)
    absent: list[bool] = []
    if stand_in is not None:
        absent = absent_in(values, listed)
        values = [stand_in if gone else value for gone, value in zip(absent, values, strict=True)]
    # Whether a further column says so follows from the rule alone, never from the rows.
    indicates = column.missing.of(name) == INDICATOR
    if parsed is None or words:
        found = _words_of(table, name, values, read) if listed is None else listed
        return one_hot(
            values, Category(name, (*found, *((ABSENT,) if indicates else ()))), table.place
        )
    if stand_in is not None:
        parsed[absent] = parse(stand_in)
    block = _measured(table, column, values, parsed)
    return np.column_stack([block, np.array(absent, dtype=np.float64)]) if indicates else block


def encoded_column(values: Sequence[str], column: ColumnRule) -> recipe.Column:
    """What `numbers_of` made of a column, so that new rows can be treated alike.

    Args:
        values: The values that it was made of, as text.
        column: What was stated of it.
    """
    name, limits, listed = column.name, column.range, column.words
    numbers = limits is not None or bool(np.isfinite([parse(value) for value in values]).any())
    words = listed is not None or not numbers
    low = None if limits is None else limits[0]
    stand_in = column.missing.stand_in(name, words=words, low=low)
    absent = absent_in(values, listed)
    kept = {
        v if stand_in is None or not gone else stand_in
        for v, gone in zip(values, absent, strict=True)
    }
    known = tuple(sorted(kept - {ABSENT})) if words and listed is None else listed
    return recipe.Column(
        name=name,
        range=None if limits is None else (float(limits[0]), float(limits[1])),
        words=known,
        read=words and listed is None,
        stand_in=stand_in,
        indicator=column.missing.of(name) == INDICATOR,
    )


def _measured(
    table: Table, column: ColumnRule, values: Sequence[str], parsed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A column of numbers, clamped to its public range and mapped to [0, 1] if it has one."""
    broken = ~np.isfinite(parsed)
    if broken.any():
        row = int(np.argmax(broken))
        rule = f"{WAY_OUT}, " if is_missing(values[row]) else ""
        expected = (
            f"a finite number, as in other rows (remove or impute the row, {rule}or list the "
            f"column's words with categories={{{column.name!r}: [...]}})"
        )
        raise table.place.error(row, column.name, values[row], expected)
    if column.range is None:
        return parsed[:, None]
    return _in_range(table, column.name, values, column.range)


def _words_of(
    table: Table, name: str, values: Sequence[str], read: list[ReadFromRows]
) -> tuple[str, ...]:
    """The words that occur in a column, sorted: nobody stated them."""
    # Sorted: the order of rows must not decide which column a word becomes.
    present = sorted(set(values) - {ABSENT})
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
    return tuple(present)


def _in_range(
    table: Table, name: str, values: Sequence[str], limits: tuple[float, float]
) -> NDArray[np.float64]:
    low, high = limits
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            f"Expected ranges={{{name!r}: {limits}}} to hold a lowest value below a highest one."
        )
    return in_range(values, Number(name, low, high), table.place)


def check_digits(table: Table, name: str, dtype: torch.dtype) -> None:
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


def whole_numbers(
    table: Table, names: Sequence[str], blocks: Sequence[NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Inputs that stay whole numbers, such as tokens.

    Args:
        table: The table.
        names: The column that each block was made of, for messages.
        blocks: Each of shape `(rows, columns)`.

    Returns:
        Shape `(rows, columns of all blocks)`.

    Raises:
        DataError: If a value is no whole number, or has too many digits; with its place.
    """
    for name, block in zip(names, blocks, strict=True):
        wrong = ((block % 1 != 0) | (abs(block) > LARGEST_TOKEN)).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            expected = "a whole number of at most 15 digits, as dtype=torch.int64 says"
            raise table.place.error(row, name, table.columns[name][row], expected)
    return np.concatenate(blocks, axis=1).astype(np.int64)
