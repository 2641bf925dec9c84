"""What an attack says of each single record: as text, and as lines of a file.

A figure over all records hides the few whose membership is plain. This names private rows, and is
as private as they are: nothing writes it unless it is asked to.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.failures import printable
from privtrain.core.statement import ADD_REMOVE, Relation, Unit
from privtrain.core.validate import check_count
from privtrain.report import cells

Floats = NDArray[np.float64]

PRIVATE = (
    "PRIVATE: this names rows of the data and says who was trained on. Keep it as you keep the "
    "rows, and never publish it."
)
"""Stands on everything that is made of it."""

HIGH_SEPARATION = 2.0
"""The d' above which records are counted."""


@dataclass(frozen=True, kw_only=True)
class RiskGroup:
    """Records that have something in common.

    Args:
        name: What they have in common, such as "class 3"; "all" for all of them.
        records: How many there are.
        members: How many of them are members.
        auc: Of the attack among them; None where one side has fewer than ten.
        interval: Its 95% interval; None likewise.
        median: The median of d'.
        above: How many have a d' above 2.
        by_chance: How many would have one if membership changed nothing.
    """

    name: str
    records: int
    members: int
    auc: float | None
    interval: tuple[float, float] | None
    median: float
    above: int
    by_chance: float


@dataclass(frozen=True, kw_only=True)
class Accused:
    """Who is called a member at a false positive rate, and how often that is right.

    Args:
        rate: The false positive rate that was asked for.
        fpr: The realised one; None where so low a rate is not resolvable with so few records.
        tpr: The fraction of members that are called members.
        tpr_interval: Its 95% interval.
        precision: The fraction of members among those that are called members, at the prior.
        precision_interval: What the interval of the true positive rate makes of it.
    """

    rate: float
    fpr: float | None = None
    tpr: float | None = None
    tpr_interval: tuple[float, float] | None = None
    precision: float | None = None
    precision_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordRisks:
    """The risk of each record under one trained model. Private, as the records are.

    Every array has one value for each record, shape `(records,)`.

    Args:
        attack: Name of the attack.
        observer: Who attacks.
        shadows: How many shadow models there were.
        prior: The declared fraction of members among those whom an attacker wonders about.
        holder: The party that holds each record, or "test".
        number: Its number among the rows of that holder, from 0.
        member: Whether the run used it.
        label: Its class or value; None where the task has no single one.
        user: Whose row it is; None where that is not known.
        score: The attack's; larger means "more likely a member".
        rank: 1 for the highest score.
        seen: How many shadow models were trained on it.
        separation: d', by how many deviations the models that saw it differ from those that did
            not: how much the trainer leaks of this record.
        null_deviation: The standard deviation of d' where membership changes nothing.
        p_value: How often a model that did not see the record looks as this one does, or more so;
            at least 1 / (1 + models that did not).
        p_value_interval: Its exact 95% interval, shape `(records, 2)`.
        groups: All records, then each class, then each user with enough records.
        accused: What the scores find at low false positive rates.
        inputs: The records themselves, to show the riskiest of them.
        notes: What limits the figures.
    """

    attack: str
    observer: str
    shadows: int
    prior: float
    holder: tuple[str, ...]
    number: NDArray[np.int64]
    member: NDArray[np.bool_]
    label: Floats | None
    user: NDArray[np.int64] | None
    score: Floats
    rank: NDArray[np.int64]
    seen: NDArray[np.int64]
    separation: Floats
    null_deviation: Floats
    p_value: Floats
    p_value_interval: Floats
    groups: tuple[RiskGroup, ...]
    accused: tuple[Accused, ...]
    inputs: Tensor = field(repr=False)
    notes: tuple[str, ...] = ()
    unit: Unit = Unit.EXAMPLE
    relation: Relation = ADD_REMOVE

    def __len__(self) -> int:
        return len(self.score)

    def riskiest(self, count: int = 10) -> NDArray[np.int64]:
        """Places of the records with the largest d', the largest first, shape `(count,)`."""
        check_count(count=count)
        # Records of which d' is not known stand last.
        known = np.nan_to_num(self.separation, nan=-np.inf)
        return np.lexsort((-self.score, -known))[:count]

    def __str__(self) -> str:
        return as_text(self)

    def to_csv(self) -> str:
        """A line for each record, the riskiest first, in full precision; NaN is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(self._line(int(place)) for place in self.riskiest(len(self)))
        return printable(text.getvalue())

    def _line(self, place: int) -> list[object]:
        low, high = self.p_value_interval[place]
        values = (
            *(self.score[place], self.rank[place], self.seen[place], self.shadows),
            *(self.separation[place], self.null_deviation[place]),
            *(self.p_value[place], low, high),
        )
        known = [None if np.isnan(value) else value.item() for value in map(np.asarray, values)]
        return [
            *(self.holder[place], self.number[place], int(self.member[place])),
            *(None if part is None else part[place].item() for part in (self.label, self.user)),
            *known,
        ]


_COLUMNS = (
    *("holder", "number", "member", "label", "user", "score", "rank", "seen", "shadows"),
    *("separation", "separation_null_deviation", "p_value", "p_value_low", "p_value_high"),
)


def explained(risks: RecordRisks) -> tuple[str, ...]:
    """What the figures mean, a sentence or two each."""
    least = 1 / (1 + risks.shadows // 2)
    return (
        "d' is by how many deviations models that saw the record differ from models that did not: "
        "how much the trainer tells of it, whoever was in this run. A figure over all records "
        "hides those with a large one.",
        f"By chance: how many records would have a d' above {HIGH_SEPARATION:g} if membership "
        f"changed nothing. With {risks.shadows} shadow models the p-value of a record is at least "
        f"{least:.2g}; of many records some are small by chance.",
        f"Precision: of the records that are called members, how many are, where "
        f"{cells.percent(risks.prior)} of those whom an attacker wonders about are members.",
    )


def group_lines(risks: RecordRisks) -> list[tuple[str, ...]]:
    """The groups as texts, under `GROUP_HEADER`."""
    return [
        (
            *(group.name, f"{group.records:,}", f"{group.members:,}"),
            cells.metric(group.auc, group.interval),
            cells.rate_interval(group.interval) or cells.MISSING,
            cells.rate(group.median, 2),
            f"{group.above:,} ({cells.percent(group.above / group.records)})",
            cells.number(group.by_chance, 2),
        )
        for group in risks.groups
    ]


GROUP_HEADER = (
    *("records of", "records", "members", "AUC", "95%", "median d'", "d' > 2", "by chance"),
)


def accused_lines(risks: RecordRisks) -> list[tuple[str, ...]]:
    """At each low rate: asked rate, true positive rate and precision, each with its interval."""
    lines: list[tuple[str, ...]] = []
    for point in risks.accused:
        found = (cells.NOT_RESOLVABLE,) * 2
        if point.tpr is not None:
            said = cells.percent_interval(point.precision_interval)
            found = (
                f"{cells.percent(point.tpr)} ({cells.percent_interval(point.tpr_interval)})",
                f"{cells.percent(point.precision)} ({said})" if said else cells.MISSING,
            )
        lines.append((f"{100 * point.rate:g}%", *found))
    return lines


ACCUSED_HEADER = ("false positive rate", "members found", "precision")

RECORD_HEADER = ("record", "member", "label", "rank", "seen by", "d'", "p-value", "95%")


def record_line(risks: RecordRisks, place: int) -> tuple[str, ...]:
    """One record as texts, under `RECORD_HEADER`."""
    label = cells.MISSING if risks.label is None else f"{risks.label[place]:g}"
    low, high = risks.p_value_interval[place]
    return (
        f"{risks.holder[place]} {risks.number[place]}",
        "yes" if risks.member[place] else "no",
        label,
        f"{risks.rank[place]:,}",
        f"{risks.seen[place]} of {risks.shadows}",
        cells.rate(float(risks.separation[place]), 2),
        cells.number(float(risks.p_value[place]), 2),
        f"{low:.2f}–{high:.2f}",
    )


def title(risks: RecordRisks) -> str:
    """What it is, in a line."""
    return (
        f"Risk of each record: {risks.attack} from {risks.observer}, {risks.shadows} shadow "
        f"models, unit: {risks.unit}, relation: {risks.relation.replace('_', '-')}"
    )


def as_text(risks: RecordRisks, count: int = 10) -> str:
    """The report for a terminal, with the riskiest records by their numbers."""
    places = [int(place) for place in risks.riskiest(count)]
    parts = [
        title(risks),
        PRIVATE,
        _table(GROUP_HEADER, group_lines(risks)),
        _table(ACCUSED_HEADER, accused_lines(risks)),
        f"The {len(places)} records with the largest d'",
        _table(RECORD_HEADER, [record_line(risks, place) for place in places]),
        *explained(risks),
        *risks.notes,
    ]
    return "\n\n".join(parts)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *lines)
    )
