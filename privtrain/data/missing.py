"""Missing values of a table: what stands in their place, by a rule that looks at no other row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from privtrain.core.errors import DataError
from privtrain.data.files import ABSENT, parse
from privtrain.data.spelling import is_missing

DROP, INDICATOR = "drop", "indicator"

STATISTICS = (
    *("mean", "average", "median", "mode", "most_frequent"),
    *("ffill", "bfill", "interpolate", "knn"),
)
"""What other tools put in the place: figures of other rows."""

Rule = str | float | None
"""`DROP`, `INDICATOR`, a number or a word that stands in the place, or None to refuse."""

Missing = Rule | Mapping[str, Rule]
"""One rule for all columns, or one for each of some columns."""

Listed = Mapping[str, Sequence[str]]

WAY_OUT = "state missing='drop', 'indicator' or a value, for all columns or by name"


@dataclass(frozen=True)
class Rules:
    """What is done about missing values, column by column.

    Args:
        given: What the user stated.
    """

    given: Missing = None

    def __post_init__(self) -> None:
        if isinstance(self.given, Mapping):
            rules = {f"missing[{name!r}]": rule for name, rule in self.given.items()}
        else:
            rules = {"missing": self.given}
        for argument, rule in rules.items():
            if isinstance(rule, str) and rule.lower() in STATISTICS:
                raise ValueError(
                    f"Expected {argument}={rule!r} to be 'drop', 'indicator' or a value: there is "
                    "no rule of that name, as it would follow from other rows, which nothing "
                    "protects. Give a public value, such as 0."
                )
            number = isinstance(rule, Real) and not isinstance(rule, bool)
            if rule is None or isinstance(rule, str) or (number and not is_missing(str(rule))):
                continue
            raise ValueError(
                f"Expected {argument}={rule!r} to be 'drop', 'indicator', a finite number or a "
                "word."
            )

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that have a rule of their own."""
        return tuple(self.given) if isinstance(self.given, Mapping) else ()

    @property
    def indicates(self) -> bool:
        """Whether some column gets a further one."""
        rules = self.given.values() if isinstance(self.given, Mapping) else (self.given,)
        return INDICATOR in rules

    def of(self, column: str) -> Rule:
        """The rule of one column."""
        return self.given.get(column) if isinstance(self.given, Mapping) else self.given

    def stand_in(self, column: str, *, words: bool, low: float | None) -> str | None:
        """What stands in the place of a missing value; None where such values stay and are refused.

        Args:
            column: Its name.
            words: Whether it is a column of words.
            low: Its public lowest value, where one is stated.
        """
        rule = self.of(column)
        if rule is None or rule == DROP:
            return None
        if rule == INDICATOR:
            # The further column says that it was missing; the value itself says nothing.
            return ABSENT if words else repr(float(low or 0))
        text = str(rule)
        # A number for all columns says nothing of words, and a word nothing of numbers.
        number = not math.isnan(parse(text))
        meant = number != words or (words and isinstance(self.given, Mapping))
        return text if meant else None

    def kept(self, columns: Mapping[str, Sequence[str]], listed: Listed) -> list[int]:
        """The rows that no rule leaves out, each by its own values alone.

        Args:
            columns: Name to values, of all columns that are used.
            listed: Name to the words that may stand in a column, none of which is missing there.

        Raises:
            DataError: If no row is left.
        """
        dropping = [name for name in columns if self.of(name) == DROP]
        rows = range(len(next(iter(columns.values()))))
        if not dropping:
            return list(rows)
        absent = [absent_in(columns[name], listed.get(name)) for name in dropping]
        kept = [row for row in rows if not any(column[row] for column in absent)]
        if not kept:
            raise DataError(
                f"Expected missing={self.given!r} to leave a row; each lacks a value in one of "
                f"{', '.join(map(repr, dropping))}. Give missing= by column, or leave columns out "
                "with drop=."
            )
        return kept


def absent_in(values: Sequence[str], listed: Sequence[str] | None) -> list[bool]:
    """Which values are missing; a word that is listed is none of them, though it is 'NA'."""
    return [is_missing(value) and value not in (listed or ()) for value in values]
