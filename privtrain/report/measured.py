"""The metrics of a task as columns: the main one leads, and gaps are taken of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privtrain.core.measures import ACCURACY, HIGH, LOW, Best
from privtrain.core.result import Measurement, Row
from privtrain.report import cells
from privtrain.report.cells import Interval
from privtrain.report.over_seeds import Spread, hull
from privtrain.report.summary import Group

SHORT = 4
"""Letters of a name that abbreviates others."""


@dataclass(frozen=True)
class Column:
    """A metric of the rows of a comparison.

    Args:
        name: What the task calls it.
        best: Which values are the good ones.
        percent: Whether it is a fraction of rows, and printed in percent.
        commonest: What the commonest class of the test rows alone would reach, where that is known.
    """

    name: str
    best: Best = HIGH
    percent: bool = False
    commonest: float | None = None

    @property
    def header(self) -> str:
        """Its name, and which way is better where that is down."""
        return cells.shortened(self.name, 24) + ("\n(low is best)" if self.best == LOW else "")

    @property
    def title(self) -> str:
        """Its name as the header of a page; short ones, such as rmse, stay as they are."""
        if len(self.name) <= SHORT:
            return self.name
        return self.name[:1].upper() + self.name[1:].replace("_", " ")

    def value(self, value: float | None) -> str:
        """A value in a cell."""
        return cells.percent(value) if self.percent or value is None else _numbers(value)[0]

    def interval(self, interval: Interval | None) -> str:
        """An interval in a cell; empty where there is none."""
        if interval is None or self.percent:
            return cells.percent_interval(interval)
        # A dash beside a minus sign cannot be read.
        return ("–" if interval[0] >= 0 else " to ").join(_numbers(*interval))

    def gap(self, gap: float | None) -> str:
        """By how much a value is better than another one: points of percent, or its own unit."""
        if gap is None or self.percent:
            return cells.points(gap)
        text = cells.number(gap, 3)
        return _signed(text if gap <= 0 or text == "0" else f"+{text}")

    def of(self, row: Row) -> Measurement | None:
        """What a row says of it."""
        return row.measurements.get(self.name)

    def spread(self, group: Group) -> Spread | None:
        """It over the seeds; None where a finished row has none."""
        return group.spread(lambda row: None if (found := self.of(row)) is None else found.value)

    def text(self, group: Group) -> str:
        """The mean over the seeds, or that it could not be measured."""
        # A mean over the seeds that could be measured would be one over chosen seeds.
        over_seeds = self.spread(group)
        if over_seeds is None:
            found = [self.of(row) for row in group.done]
            failed = any(one is not None and one.failure is not None for one in found)
            return cells.FAILED if failed else cells.MISSING
        return self.value(over_seeds.mean)

    def interval_text(self, group: Group) -> str:
        """The smallest interval that holds the 95% intervals of all seeds."""
        if self.spread(group) is None:
            return ""
        found = [self.of(row) for row in group.done]
        return self.interval(hull([None if one is None else one.interval for one in found]))

    def run_text(self, row: Row) -> str:
        """The value of one run."""
        found = self.of(row)
        return self.value(None if found is None else found.value)

    def run_interval(self, row: Row) -> str:
        """The interval of one run."""
        found = self.of(row)
        return self.interval(None if found is None else found.interval)


def _numbers(*values: float) -> list[str]:
    """Numbers with equally many decimals: four digits of the largest; an interval goes outwards."""
    largest = max(map(abs, values))
    if not math.isfinite(largest) or 0 < largest < 1e-3:
        return [_signed(cells.number(value, 4)) for value in values]
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0
    unit = 10.0**-decimals
    if len(values) == 2:
        low, high = values
        values = (math.floor(round(low / unit, 6)) * unit, math.ceil(round(high / unit, 6)) * unit)
    # Zero has no sign: adding it turns -0.0 into 0.0.
    return [_signed(f"{round(value, decimals) + 0.0:,.{decimals}f}") for value in values]


def _signed(text: str) -> str:
    """With the sign U+2212, which is as wide as a plus; an exponent keeps its own."""
    return f"−{text[1:]}" if text.startswith("-") else text


def metric_columns(rows: Iterable[Row]) -> tuple[Column, ...]:
    """The metrics of all rows, the main one first; the accuracy alone where no run has any."""
    made: dict[str, Column] = {}
    for row in rows:
        for name, found in row.measurements.items():
            known = made.get(name, Column(name))
            commonest = found.commonest if known.commonest is None else known.commonest
            made[name] = Column(name, found.best, found.percent, commonest)
    return tuple(made.values()) or (Column(ACCURACY, percent=True),)


def commonest_note(shown: Sequence[Column]) -> str:
    """What whoever always answers the commonest class would reach; empty where nobody knows."""
    known = [column for column in shown if column.commonest is not None]
    figures = [column.value(column.commonest) for column in known]
    # Beside one column it is known of which it speaks.
    if len(shown) > 1:
        figures = [f"{column.name} {text}" for column, text in zip(known, figures, strict=True)]
    said = "Always answering with the commonest class of the test rows"
    return f"{said}: {', '.join(figures)}." if known else ""
