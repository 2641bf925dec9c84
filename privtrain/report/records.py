"""A comparison as CSV: one line for each run, in full precision."""

import csv
import io
import json

from privtrain.core.failures import printable
from privtrain.core.measures import ACCURACY
from privtrain.core.result import Comparison, Leakage, Measurement, Row
from privtrain.core.statement import STATED, Guarantee
from privtrain.report import cells
from privtrain.report.gaps import baseline_of, gap
from privtrain.report.measured import Column, metric_columns

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
    lines = records(comparison)
    # The union of all columns: trainers differ in their guarantees and attacks in their metrics.
    header = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_value(value) for name, value in line.items()} for line in lines)
    return printable(text.getvalue())


def records(comparison: Comparison) -> list[dict[str, Value]]:
    """Column to value for each row, as `to_csv` has them: what is missing is None or left out."""
    return [_columns(row, comparison) for row in comparison.rows]


def _csv_value(value: Value) -> Value:
    return "" if value is None else value


def _columns(row: Row, comparison: Comparison) -> dict[str, Value]:
    statement = row.statement
    columns: dict[str, Value] = {
        "trainer": row.trainer,
        "label": row.label,
        "seed": row.seed,
        "epsilon_asked": row.epsilon_asked,
        "met": row.met,
        "error": row.error,
        "halted": row.halted,
        "classes_predicted": row.classes_predicted,
    }
    main, *others = metric_columns(comparison.rows)
    columns.update(_metric_columns(row, main))
    columns |= {"gap": gap(row, comparison), "gap_to": baseline_of(row, comparison)}
    for column in others:
        columns.update(_metric_columns(row, column))
    columns.update(_cost_columns(row))
    if statement is not None:
        # All of them and no headline: which one a reader needs depends on the observer.
        for number, guarantee in enumerate(statement.guarantees):
            columns.update(_guarantee_columns(guarantee, number, columns))
        for cost in statement.exact:
            # In its name, since a table has no other place for a warning.
            name = f"{cost.observer.name}/{cost.unit}/{cost.relation}"
            columns[f"exact_private_epsilon[{name}]"] = cost.epsilon
            columns[f"exact_private_delta[{name}]"] = cost.delta
        columns["input_privacy"] = "; ".join(map(str, statement.input_privacy))
        columns["caveats"] = "; ".join(statement.caveats)
    for leakage in row.leakage:
        columns.update(_leakage_columns(leakage))
    columns["notes"] = "; ".join(row.notes)
    return columns


def _metric_columns(row: Row, column: Column) -> dict[str, Value]:
    # In brackets, but for the accuracy: a metric may be called as another column is.
    name = column.name if column.name == ACCURACY else f"metric[{column.name}]"
    found = column.of(row) or Measurement()
    low, high = found.interval or (None, None)
    columns: dict[str, Value] = {name: found.value}
    parts: dict[str, Value] = {"low": low, "high": high}
    if row.metrics:
        parts |= {"interval": found.method, "commonest_class": found.commonest}
    if found.failure is not None:
        parts["error"] = found.failure.error
    for part, value in parts.items():
        columns[f"{name}_{part}" if name == ACCURACY else f"metric_{part}[{column.name}]"] = value
    return columns


def _cost_columns(row: Row) -> dict[str, Value]:
    cost = row.cost
    if cost is None:
        return dict.fromkeys(
            (
                *("bytes_sent", "bytes_sent_by_party", "rounds", "cost_basis"),
                *("seconds", "cpu_seconds", "peak_memory_bytes"),
            )
        )
    return {
        "bytes_sent": cost.bytes_sent,
        "bytes_sent_by_party": json.dumps(dict(cost.bytes_sent_by_party)),
        "rounds": cost.rounds,
        "cost_basis": cost.basis,
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
    }


def _guarantee_columns(
    guarantee: Guarantee, number: int, taken: dict[str, Value]
) -> dict[str, Value]:
    # Unit and relation stand in the column's name, so that no column mixes epsilons that cannot be
    # compared; a data-dependent one has a column of its own.
    words = [guarantee.observer.name, guarantee.unit, guarantee.relation]
    words += ["data_dependent", "one_sided"] if guarantee.data_dependent else []
    words += [STATED.replace(" ", "_")] if guarantee.stated else []
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
