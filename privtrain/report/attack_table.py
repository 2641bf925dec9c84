"""The one table of attacks: attack x trainer x observer, beside what is promised to that observer.

Every cell says something: a figure, "n/r" where so few rows resolve none, why an attack does not
apply, or that it failed.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from privtrain.core.failures import printable
from privtrain.core.result import Comparison, Leakage, Row
from privtrain.core.statement import ADD_REMOVE, Guarantee, Unit, to_plain
from privtrain.report import cells
from privtrain.report.audits import AT_LEAST, CEILING
from privtrain.report.over_seeds import Measured
from privtrain.report.summary import Group, groups

RATES = ("1%", "0.1%")
"""False positive rates at which true positive rates stand in the table."""

NOT_APPLICABLE = "not applicable: {}"
NONE_STATED = "none stated"
AS_STATED = "{}, as stated"
NOT_PUBLIC = "not public"

LEAKS, COIN, BELOW = "leaks", "a coin", "below a coin"
"""What an interval says of an AUC; a lower bound above zero leaks, too."""

HEADER = (
    *("trainer", "attack", "observer", "figure", "95%", "found", "TPR at 1%", "TPR at 0.1%"),
    *("formal ε", "unit", "time", "queries"),
)


@dataclass(frozen=True)
class Line:
    """One line of the table, as texts: no cell is empty.

    Args:
        group: Which runs it is about.
        attack: Name of the attack.
        observer: Who attacks.
        figure: The AUC, or the lower bound; or why there is none.
        interval: The 95% interval; of a lower bound the most that it could have been.
        found: Whether that is a leak.
        tpr: True positive rates at 1% and 0.1%.
        epsilon: The formal epsilon to this observer.
        unit: Whose membership is guessed.
        seconds: How long it took, as a mean over seeds.
        queries: How many rows the predictor was asked about, likewise.
    """

    group: Group
    attack: str
    observer: str
    figure: str
    interval: str
    found: str
    tpr: tuple[str, str]
    epsilon: str
    unit: str
    seconds: str
    queries: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `HEADER`."""
        return (
            *(self.group.name, self.attack, self.observer, self.figure, self.interval, self.found),
            *(*self.tpr, self.epsilon, self.unit, self.seconds, self.queries),
        )


def several(comparison: Comparison) -> bool:
    """Whether there is more to show than one attack from one place that always worked."""
    tried = {(leak.attack, leak.observer) for row in comparison.rows for leak in row.leakage}
    return len(tried) > 1


def lines(comparison: Comparison) -> tuple[Line, ...]:
    """A line for each trainer, asked epsilon, attack and observer, gathered over seeds."""
    return tuple(_line(group, leakage) for group in groups(comparison) for leakage in group.attacks)


def _line(group: Group, leakage: Leakage) -> Line:
    figure, interval, found = _figure(group, leakage)
    return Line(
        group=group,
        attack=leakage.attack,
        observer=leakage.observer,
        figure=figure,
        interval=interval,
        found=found,
        tpr=(_rate(group, leakage, RATES[0]), _rate(group, leakage, RATES[1])),
        epsilon=_epsilon_text(group.guarantees, leakage),
        unit=cells.MISSING if leakage.unit is None else str(leakage.unit),
        seconds=cells.duration(_mean(group, leakage, "seconds")),
        queries=_queries(group, leakage),
    )


def _figure(group: Group, leakage: Leakage) -> tuple[str, str, str]:
    """The leading figure, its interval, and what it says."""
    if not leakage.metrics:
        failure = leakage.failure
        reason = None if failure is None else failure.reason
        said = cells.FAILED if reason is None else NOT_APPLICABLE.format(reason)
        return said, cells.MISSING, cells.MISSING
    bound, auc = group.measured(leakage, AT_LEAST), group.measured(leakage, "auc")
    if bound is not None:
        most = group.measured(leakage, CEILING)
        ceiling = cells.MISSING if most is None else f"of at most {cells.number(most.value)}"
        proves = bound.value is not None and bound.value > 0
        found = LEAKS if proves else "nothing"
        return f"ε ≥ {cells.proved(bound.value)}", ceiling, found
    if auc is None or auc.value is None:
        return cells.NOT_RESOLVABLE, cells.MISSING, cells.MISSING
    had, tried = len(group.having(leakage, "auc")), len(_of_seeds(group, leakage))
    # A mean of the seeds on which it did not fail is one of chosen seeds.
    figure = auc.text if had == tried else f"{auc.text} ({had} of {tried} seeds)"
    found = _verdict(auc)
    if found != LEAKS:
        found = next(
            (f"{LEAKS} at {rate}" for rate in RATES if _leaks(group, leakage, rate)), found
        )
    return figure, auc.interval_text or cells.MISSING, found


def _verdict(auc: Measured) -> str:
    if auc.interval is None:
        return cells.MISSING
    low, high = auc.interval
    # Of several seeds the interval holds those of all: each of them leaks, or it is not said.
    return LEAKS if low > 0.5 else BELOW if high < 0.5 else COIN


def _leaks(group: Group, leakage: Leakage, rate: str) -> bool:
    """Whether more members are found at a rate than others: few records, which an AUC hides."""
    name, nominal = f"tpr_at_{rate}_fpr", float(rate.removesuffix("%")) / 100
    found = group.measured(leakage, name)
    if found is None or found.interval is None:
        return False
    everywhere = len(group.having(leakage, name)) == len(_of_seeds(group, leakage))
    return everywhere and found.interval[0] > nominal


def _rate(group: Group, leakage: Leakage, rate: str) -> str:
    found = group.measured(leakage, f"tpr_at_{rate}_fpr")
    if found is None:
        return cells.MISSING
    if found.value is None:
        return cells.NOT_RESOLVABLE
    return f"{cells.percent(found.value)} ({cells.percent_interval(found.interval)})"


def _of_seeds(group: Group, leakage: Leakage) -> list[Leakage]:
    name = (leakage.attack, leakage.observer)
    return [one for row in group.done for one in row.leakage if (one.attack, one.observer) == name]


def _mean(group: Group, leakage: Leakage, name: str) -> float | None:
    values = [getattr(one, name) for one in _of_seeds(group, leakage)]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _queries(group: Group, leakage: Leakage) -> str:
    mean = _mean(group, leakage, "queries")
    if mean is None:
        return NOT_PUBLIC if leakage.metrics and leakage.members is None else cells.MISSING
    return cells.count(mean)


def epsilon_to(guarantees: Iterable[Guarantee], leakage: Leakage) -> float | None:
    """The formal epsilon to an attack's observer, for the unit that it attacks.

    Args:
        guarantees: What a run promises.
        leakage: Whose observer and unit count.

    Returns:
        The least of that unit, under add/remove where that is promised; infinity where the
        statement says that nothing is promised; None where it says nothing, or speaks of another
        unit only.
    """
    mine = _formal(guarantees, leakage.observer)
    unit = leakage.unit or Unit.EXAMPLE
    of_unit = [one for one in mine if one.unit is unit]
    same = [one for one in of_unit if one.relation is ADD_REMOVE] or of_unit
    if same:
        return min(one.epsilon for one in same)
    # That nothing is promised holds for every unit; a promise for another one is no promise here.
    return math.inf if mine and all(math.isinf(one.epsilon) for one in mine) else None


def _formal(guarantees: Iterable[Guarantee], observer: str) -> list[Guarantee]:
    """What is promised to an observer, without what was computed from the rows, or is stated."""
    return [
        one
        for one in guarantees
        if one.observer.name == observer and not one.data_dependent and not one.stated
    ]


def _epsilon_text(guarantees: Iterable[Guarantee], leakage: Leakage) -> str:
    given = tuple(guarantees)
    value = epsilon_to(given, leakage)
    if value is not None:
        return cells.promised(value)
    said = _per_unit(_formal(given, leakage.observer))
    if said:
        return said
    # What nobody here computed: in the text alone, and called so.
    stated = [replace(one, stated=False) for one in given if one.stated]
    value = epsilon_to(stated, leakage)
    said = _per_unit(_formal(stated, leakage.observer)) if value is None else cells.promised(value)
    return AS_STATED.format(said) if said else NONE_STATED


def _per_unit(guarantees: Iterable[Guarantee]) -> str:
    """The least epsilon of each unit, as a text; empty where there is none."""
    units = {one.unit: one.epsilon for one in sorted(guarantees, key=lambda one: -one.epsilon)}
    return "; ".join(f"{cells.promised(epsilon)} per {unit}" for unit, epsilon in units.items())


def attack_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A mapping for each run and attack, as `privtrain audit --json` prints them.

    Args:
        comparison: What was compared.

    Returns:
        `trainer`, `label`, `seed`, `attack`, `observer`, `auc`, `interval`, `tpr` (rate to value),
        `epsilon` (see `epsilon_to`) and `error`; None where there is no such figure, infinity as
        "inf". Where the run itself failed, there is one mapping with its error.
    """
    found = []
    for row in comparison.rows:
        if row.error is not None:
            found.append(_record(row, None, row.error))
        for leakage in row.leakage:
            error = None if leakage.failure is None else leakage.failure.error
            if leakage.failure is not None and leakage.failure.reason is not None:
                error = NOT_APPLICABLE.format(leakage.failure.reason)
            found.append(_record(row, leakage, error))
    return found


def _record(row: Row, leakage: Leakage | None, error: str | None) -> dict[str, Any]:
    metrics = {} if leakage is None else leakage.metrics
    guarantees = () if row.statement is None else row.statement.guarantees
    record = {
        "trainer": row.trainer,
        "label": row.label,
        "seed": row.seed,
        "attack": None if leakage is None else leakage.attack,
        "observer": None if leakage is None else leakage.observer,
        "auc": metrics.get("auc"),
        "interval": None if leakage is None else leakage.intervals.get("auc"),
        "tpr": {rate: metrics.get(f"tpr_at_{rate}_fpr") for rate in RATES},
        "epsilon": None if leakage is None else epsilon_to(guarantees, leakage),
        "error": error,
    }
    return {name: to_plain(value) for name, value in record.items()}


def attacks_csv(comparison: Comparison) -> str:
    """A line for each run and attack, in full precision, with every figure that an attack has.

    Figures are called unprotected: no guarantee covers them. What is not resolvable is "n/r", what
    does not exist is empty.
    """
    found = [
        {**_head(row, leakage), **_figures(leakage)}
        for row in comparison.rows
        for leakage in row.leakage
    ]
    text = io.StringIO()
    header = list(dict.fromkeys(name for line in found for name in line))
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: "" if value is None else value for name, value in line.items()} for line in found
    )
    return printable(text.getvalue())


def _head(row: Row, leakage: Leakage) -> dict[str, object]:
    failure = leakage.failure
    reason = None if failure is None else failure.reason
    guarantees = () if row.statement is None else row.statement.guarantees
    return {
        "trainer": row.trainer,
        "label": row.label,
        "seed": row.seed,
        "epsilon_asked": row.epsilon_asked,
        "attack": leakage.attack,
        "observer": leakage.observer,
        "unit": leakage.unit,
        "relation": leakage.relation,
        "epsilon": epsilon_to(guarantees, leakage),
        "not_applicable": reason,
        "error": failure.error if failure is not None and reason is None else None,
        "members": leakage.members,
        "non_members": leakage.non_members,
        "seconds": leakage.seconds,
        "queries": leakage.queries,
        "notes": "; ".join(leakage.notes),
    }


def _figures(leakage: Leakage) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, value in leakage.metrics.items():
        low, high = leakage.intervals.get(name, (None, None))
        columns[f"unprotected_{name}"] = cells.NOT_RESOLVABLE if value is None else value
        columns[f"unprotected_{name}_low"], columns[f"unprotected_{name}_high"] = low, high
    return columns
