"""The metrics of a task as columns, in every rendering."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.core.result import Comparison, Failure, Measurement, Row
from privtrain.report import summary
from privtrain.report.files import RENDERINGS
from privtrain.report.html import comparison_fragment
from privtrain.report.measured import Column, commonest_note, metric_columns
from privtrain.report.table import comparison_text
from tests.report import examples

RMSE = Measurement(value=0.5, interval=(0.4, 0.61), method="bootstrap, 500 rounds", best="low")
HITS = Measurement(value=0.9, interval=(0.85, 0.95), percent=True, commonest=0.7)
METRICS = {"hits": HITS, "rmse": RMSE, "r2": Measurement(value=-0.25, interval=(-0.4, 0.1))}


def row(made: Row, rmse: float = 0.5, main: str = "rmse") -> Row:
    return replace(
        made,
        accuracy=None,
        accuracy_interval=None,
        metrics={**METRICS, "rmse": replace(RMSE, value=rmse)},
        main=main,
    )


def compared(*rows: Row) -> Comparison:
    return replace(examples.realistic(), rows=rows)


BOTH = compared(row(examples.sgd(0)), row(examples.fedavg(0), rmse=0.7))


def test_the_main_metric_leads() -> None:
    assert [column.name for column in metric_columns(BOTH.rows)] == ["rmse", "hits", "r2"]
    assert list(row(examples.sgd(0), main="r2").measurements) == ["r2", "hits", "rmse"]


def test_earlier_rows_have_their_accuracy_alone() -> None:
    (column,) = metric_columns([examples.sgd(0)])
    assert (column.name, column.percent, column.best) == ("accuracy", True, "high")
    assert column.run_text(examples.sgd(0)) == "97.2%"
    failed = Row(trainer="sgd", label="sgd", seed=0, error="DataError: no rows")
    assert failed.measurements == {} and failed.leading is None
    assert [column.name for column in metric_columns([failed])] == ["accuracy"]


@pytest.mark.parametrize(("rmse", "text"), [(0.7, "−0.2"), (0.3, "+0.2"), (0.5, "0")])
def test_a_gap_below_zero_is_worse_whichever_way_is_better(rmse: float, text: str) -> None:
    found = summary.groups(compared(row(examples.sgd(0)), row(examples.fedavg(0), rmse=rmse)))
    assert Column("rmse", "low").gap(found[1].gap) == text
    assert found[1].gap == pytest.approx(0.5 - rmse)


def test_no_gap_between_metrics() -> None:
    other = row(examples.fedavg(0), main="hits")
    assert summary.groups(compared(row(examples.sgd(0)), other))[1].gap is None


def test_numbers_have_the_decimals_of_the_largest_and_intervals_go_outwards() -> None:
    column = Column("r2")
    assert [column.value(v) for v in (0.0, -0.9, 12345.6, 0.00001, 0.103)] == [
        *("0", "−0.9000", "12,346", "1e-5", "0.1030"),
    ]
    assert column.interval((0.08524, 0.12001)) == "0.0852–0.1201"
    assert column.interval((-0.95, 0.1)) == "−0.9500 to 0.1000"
    assert column.interval((1234.4, 99999.4)) == "1,234–100,000"
    assert column.interval(None) == "" and column.value(None) == "–"
    assert Column("accuracy", percent=True).interval((0.85, 0.9)) == "85.0–90.0"


def test_a_metric_that_failed_says_so_and_the_others_stand() -> None:
    broken = Measurement(failure=Failure(error="ZeroDivisionError: in r2"), best="high")
    made = row(examples.sgd(0))
    made = replace(made, metrics={**made.metrics, "r2": broken})
    (group,) = summary.groups(compared(made))
    texts = {column.name: column.text(group) for column in metric_columns([made])}
    assert texts == {"rmse": "0.5000", "hits": "90.0%", "r2": "failed"}
    assert ("r2", broken.failure) in made.failures
    for render in (comparison_text, RENDERINGS["table.csv"], RENDERINGS["table.tex"]):
        assert "ZeroDivisionError: in r2" in render(compared(made))


def test_a_mean_over_chosen_seeds_is_none() -> None:
    one = row(examples.sgd(0))
    other = replace(row(examples.sgd(1)), metrics={"rmse": RMSE})
    (group,) = summary.groups(compared(one, other))
    assert [column.text(group) for column in metric_columns(group.rows)] == ["0.5000", "–", "–"]


@pytest.mark.slow
def test_every_metric_stands_in_every_rendering(tmp_path: Path) -> None:
    texts = {name: render(BOTH) for name, render in RENDERINGS.items()}
    texts["text"] = comparison_text(BOTH)
    for name in ("text", "table.tex"):
        for part in ("rmse", "low is best", "hits", "r2", "90.0"):
            assert part in texts[name], (name, part)
    assert "accuracy" not in texts["text"].split("Metrics")[0]
    page = texts["report.html"]
    assert page.index("<th>rmse<") < page.index("<th>Gap") < page.index("<th>hits")
    assert "Always answering with the commonest class of the test rows: hits 70.0%." in page
    assert "low is best" in page and "rmse against the formal ε" in page
    first, second = csv.DictReader(io.StringIO(texts["table.csv"]))
    assert (first["metric[rmse]"], first["metric_low[rmse]"]) == ("0.5", "0.4")
    assert first["metric_interval[rmse]"] == "bootstrap, 500 rounds"
    assert float(second["gap"]) == pytest.approx(-0.2)
    assert first["metric_commonest_class[hits]"] == "0.7" and "accuracy" not in first
    pt.save(BOTH, tmp_path)
    assert pt.load(tmp_path).rows == BOTH.rows


def test_a_metric_called_like_another_column_replaces_none() -> None:
    metrics = {name: replace(RMSE, value=0.25) for name in ("seed", "error", "label", "notes")}
    made = replace(row(examples.sgd(7)), metrics=metrics, main="seed")
    (line,) = csv.DictReader(io.StringIO(RENDERINGS["table.csv"](compared(made))))
    assert (line["seed"], line["metric[seed]"], line["label"]) == ("7", "0.25", "pooled")


def test_many_metrics_leave_room_for_the_trainers() -> None:
    many = {f"metric number {n}": replace(RMSE, value=n / 10) for n in range(9)}
    made = replace(row(examples.sgd(0)), metrics=many, main="metric number 0")
    text = comparison_text(compared(made))
    assert all(name in " ".join(text.split()) for name in many)
    assert text.count("Metrics (unprotected)") == 3
    tables = text.split("Metrics (unprotected)")[1:]
    assert all("pooled" in table for table in tables)


def test_what_the_commonest_class_reaches_is_said() -> None:
    note = "Always answering with the commonest class of the test rows: hits 70.0%."
    assert commonest_note(metric_columns(BOTH.rows)) == note
    assert commonest_note(metric_columns([examples.sgd(0)])) == ""
    alone = Column("accuracy", percent=True, commonest=0.958)
    assert commonest_note([alone]).endswith("of the test rows: 95.8%.")
    for render in (comparison_text, RENDERINGS["table.tex"]):
        assert note in " ".join(render(BOTH).replace("\\%", "%").split())


def test_names_are_escaped() -> None:
    bad = "<b>&_$\\"
    made = replace(row(examples.sgd(0)), metrics={bad: RMSE, "other": HITS}, main=bad)
    page = comparison_fragment(compared(made))
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page
    tex = RENDERINGS["table.tex"](compared(made))
    assert bad not in tex and r"\&" in tex and r"\$" in tex
