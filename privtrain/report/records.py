"""A comparison as CSV: one line for each run, in full precision."""

import csv
import io
import json

from privtrain.core.failures import printable
from privtrain.core.result import Comparison, Leakage, Row
from privtrain.core.statement import Guarantee
from privtrain.report import cells
from privtrain.report.summary import gap

Value = str | int | float | bool | None


def to_csv(comparison: Comparison) -> str:
    """One line for each trainer, seed and asked epsilon, with a header.

    What is missing is empty, what is not resolvable "n/r", infinity "inf". Each guarantee has
    columns named after its observer, unit and relation, its theorem and its assumptions among
    them; each metric of an attack has columns named after attack, observer and metric, and called
    unprotected, since no guarantee covers it.

    Args:
        comparison: What was compared.

    Returns:
        CSV text with numbers in full precision.
    """
    lines = [_columns(row, comparison) for row in comparison.rows]
    # The union of all columns: trainers differ in their guarantees and attacks in their metrics.
    header = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_value(value) for name, value in line.items()} for line in lines)
    return printable(text.getvalue())


def _csv_value(value: Value) -> Value:
    return "" if value is None else value


def _columns(row: Row, comparison: Comparison) -> dict[str, Value]:
    low, high = row.accuracy_interval or (None, None)
    statement = row.statement
    columns: dict[str, Value] = {
        "trainer": row.trainer,
        "label": row.label,
        "seed": row.seed,
        "epsilon_asked": row.epsilon_asked,
        "met": row.met,
        "error": row.error,
        "halted": row.halted,
        "accuracy": row.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "gap_to_pooled": gap(row, comparison),
    }
    if row.accuracy_failure is not None:
        columns["accuracy_error"] = row.accuracy_failure.error
    columns.update(_cost_columns(row))
    if statement is not None:
        # All of them and no headline: which one a reader needs depends on the observer.
        for number, guarantee in enumerate(statement.guarantees):
            columns.update(_guarantee_columns(guarantee, number, columns))
        columns["input_privacy"] = "; ".join(map(str, statement.input_privacy))
        columns["caveats"] = "; ".join(statement.caveats)
    for leakage in row.leakage:
        columns.update(_leakage_columns(leakage))
    columns["notes"] = "; ".join(row.notes)
    return columns


def _cost_columns(row: Row) -> dict[str, Value]:
    cost = row.cost
    if cost is None:
        return dict.fromkeys(
            (
                *("bytes_sent", "bytes_sent_by_party", "rounds", "cost_basis"),
                *("seconds", "peak_memory_bytes"),
            )
        )
    return {
        "bytes_sent": cost.bytes_sent,
        "bytes_sent_by_party": json.dumps(dict(cost.bytes_sent_by_party)),
        "rounds": cost.rounds,
        "cost_basis": cost.basis,
        "seconds": cost.seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
    }


def _guarantee_columns(
    guarantee: Guarantee, number: int, taken: dict[str, Value]
) -> dict[str, Value]:
    # Unit and relation stand in the column's name, so that no column mixes epsilons that cannot be
    # compared; a data-dependent one has a column of its own.
    words = [guarantee.observer.name, guarantee.unit, guarantee.relation]
    words += ["data_dependent", "one_sided"] if guarantee.data_dependent else []
    name = "/".join(words)
    # Two guarantees of one kind, by different theorems: both are kept.
    name = f"{name}/{number}" if f"epsilon[{name}]" in taken else name
    return {
        f"epsilon[{name}]": guarantee.epsilon,
        f"delta[{name}]": guarantee.delta,
        f"accountant[{name}]": guarantee.accountant,
        f"cross_check[{name}]": guarantee.cross_check,
        f"releases[{name}]": guarantee.releases,
        f"theorem[{name}]": guarantee.theorem,
        f"assumptions[{name}]": "; ".join(guarantee.assumptions),
    }


def _leakage_columns(leakage: Leakage) -> dict[str, Value]:
    columns: dict[str, Value] = {}
    if leakage.failure is not None:
        name = f"{leakage.attack}/{leakage.observer}"
        columns[f"unprotected_leakage_error[{name}]"] = leakage.failure.error
    for metric, value in leakage.metrics.items():
        name = f"{leakage.attack}/{leakage.observer}/{metric}"
        # Empty would read as "not measured".
        columns[f"unprotected_leakage[{name}]"] = cells.NOT_RESOLVABLE if value is None else value
        low, high = leakage.intervals.get(metric, (None, None))
        columns[f"unprotected_leakage_low[{name}]"] = low
        columns[f"unprotected_leakage_high[{name}]"] = high
    return columns
