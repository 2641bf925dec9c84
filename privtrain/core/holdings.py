"""Who holds what, for the eyes of whoever has the data: as text, as a table, as a picture.

The counts are those of private rows. They go nowhere but to the screen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Any, Protocol

from torch import Tensor

from privtrain.core.extras import missing

COUNTED = 1000
"""Parties whose rows are counted at most: those of more may be loaded when they are asked for."""

SHOWN = 10
"""Parties that are printed at most."""

MOST_CLASSES = 12
"""Classes that are told apart at most."""


class _Rows(Protocol):
    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor | None: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Holding:
    """What one party holds.

    Args:
        party: Its name.
        rows: How many rows.
        classes: How many of each class, from 0 on; empty where targets are no class numbers.
        columns: How many columns, where parties hold columns.
    """

    party: str
    rows: int
    classes: tuple[int, ...] = ()
    columns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What data consist of.

    Args:
        name: What the data set is called.
        parties: What the first parties hold, as many as are counted.
        count: How many parties there are.
        shape: Shape of one input.
        kind: Type of the inputs.
        parts: Name to number of rows of what is not trained on; None where there is no such part.
        lines: What else the reader should know.
    """

    name: str
    parties: tuple[Holding, ...]
    count: int
    shape: tuple[int, ...]
    kind: str
    parts: Mapping[str, int | None]
    lines: tuple[str, ...]

    @classmethod
    def of(
        cls,
        name: str,
        train: Mapping[str, _Rows],
        parts: Mapping[str, _Rows | None],
        *,
        by_columns: bool,
        lines: Sequence[str],
    ) -> "Holdings":
        """Counts what parties hold; of more than `COUNTED`, what the first `SHOWN` hold.

        Args:
            name: What the data set is called.
            train: Party to rows.
            parts: Test, validation and public rows, in this order.
            by_columns: Whether parties hold columns.
            lines: What else the reader should know.
        """
        many = len(train) > COUNTED
        held = islice(train, SHOWN) if many else iter(train)
        like = next(rows for rows in parts.values() if rows is not None)
        return cls(
            name=name,
            parties=tuple(_holding(party, train[party], by_columns) for party in held),
            count=len(train),
            shape=tuple(like.inputs.shape[1:]),
            kind=str(like.inputs.dtype).removeprefix("torch."),
            parts={part: None if rows is None else len(rows) for part, rows in parts.items()},
            lines=tuple(lines),
        )

    @property
    def title(self) -> str:
        """One line: what is there."""
        count = f"{self.count:,} {'party' if self.count == 1 else 'parties'}"
        rows = max(each.rows for each in self.parties) if self.by_columns else self.rows
        counted = "" if len(self.parties) < self.count else f", {rows:,} training rows"
        parts = ", ".join(f"{part} {n:,}" for part, n in self.parts.items() if n is not None)
        return f"{self.name}: {count}{counted} of shape {self.shape} and type {self.kind}; {parts}"

    @property
    def rows(self) -> int:
        """Rows of all parties that are counted."""
        return sum(each.rows for each in self.parties)

    @property
    def by_columns(self) -> bool:
        """Whether parties hold columns."""
        return any(each.columns is not None for each in self.parties)

    @property
    def classes(self) -> int:
        """How many classes are told apart; 0 where there are none, or too many."""
        most = max((len(each.classes) for each in self.parties), default=0)
        return most if most <= MOST_CLASSES else 0

    def table(self) -> Iterator[tuple[str, ...]]:
        """A line of names, and one for each of the first parties."""
        further = ("columns",) if self.by_columns else ()
        yield ("party", "rows", *further, *(f"class {n}" for n in range(self.classes)))
        for each in self.parties[:SHOWN]:
            counts = (*each.classes, *[0] * self.classes)[: self.classes]
            held = () if each.columns is None else (each.columns,)
            yield (each.party, *(f"{number:,}" for number in (each.rows, *held, *counts)))

    @property
    def left_out(self) -> str:
        """Says how many parties are not in the table."""
        more = self.count - min(len(self.parties), SHOWN)
        return f"... and {more:,} more" if more > 0 else ""

    def text(self) -> str:
        """The whole, for a terminal."""
        rows = list(self.table())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        left_out = [self.left_out] if self.left_out else []
        return "\n".join([self.title, *lines, *left_out, *self.lines])

    def html(self) -> str:
        """The whole, for a notebook."""
        head, *rows = self.table()
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        lines = "".join(f"<li>{escape(line)}</li>" for line in (self.left_out, *self.lines) if line)
        table = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self.title)}</p>{table}" + (f"<ul>{lines}</ul>" if lines else "")

    def plot(self) -> Any:
        """A bar for each party, its classes stacked: a figure of matplotlib.

        Raises:
            UnsupportedError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing("data.plot()", "matplotlib") from error
        names = [each.party for each in self.parties]
        figure = Figure(figsize=(max(5.5, min(16.0, 0.3 * len(names))), 3.2), layout="constrained")
        axes = figure.subplots()
        bottom = [0] * len(names)
        for number in range(self.classes):
            counts = [(*each.classes, *[0] * self.classes)[number] for each in self.parties]
            axes.bar(names, counts, bottom=bottom, label=str(number))
            bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
        if self.by_columns:
            axes.bar(names, [each.columns or 0 for each in self.parties])
        elif not self.classes:
            axes.bar(names, [each.rows for each in self.parties])
        if self.classes and not self.by_columns:
            figure.legend(title="class", fontsize="small", loc="outside right upper")
        axes.set_ylabel("columns" if self.by_columns else "rows")
        axes.set_title(f"{self.name}: who holds what (unprotected)", fontsize="medium")
        axes.tick_params(axis="x", rotation=90)
        if len(names) > 50:
            axes.set_xticks([])
            axes.set_xlabel(f"{len(names):,} of {self.count:,} parties")
        return figure


def _holding(party: str, rows: _Rows, by_columns: bool) -> Holding:
    columns = rows.inputs.shape[1] if by_columns else None
    targets = rows.targets
    if by_columns or targets is None or targets.ndim != 1 or targets.is_floating_point():
        return Holding(party, len(rows), (), columns)
    whole = targets.long().cpu()
    if len(whole) == 0 or int(whole.min()) < 0 or int(whole.max()) >= COUNTED:
        return Holding(party, len(rows), (), columns)
    return Holding(party, len(rows), tuple(whole.bincount().tolist()), columns)
