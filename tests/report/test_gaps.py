"""Every gap is one to a named baseline, or a dash."""

from dataclasses import replace

import pytest

from privtrain.core.result import Comparison, Row
from privtrain.report.gaps import baseline_of, gap, gap_note, main_baseline
from privtrain.report.html import comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.summary import groups
from privtrain.report.table import comparison_text


def row(
    trainer: str,
    label: str,
    seed: int,
    accuracy: float | None = None,
    baseline: str | None = None,
    epsilon: float | None = None,
) -> Row:
    return Row(
        trainer=trainer,
        label=label,
        seed=seed,
        accuracy=accuracy,
        error="E" if accuracy is None else None,
        baseline=baseline,
        epsilon_asked=epsilon,
    )


def gaps(*rows: Row) -> dict[str, float | None]:
    return {group.name: group.gap for group in groups(Comparison(rows=rows, card={}))}


def test_two_baselines_are_never_averaged() -> None:
    # Before, seed 1 was measured from "one epoch": +17.5 points for a trainer that loses 5.
    found = gaps(
        row("sgd", "pooled", 0, 0.95),
        row("sgd", "pooled", 1),
        row("sgd", "one epoch", 0, 0.5),
        row("sgd", "one epoch", 1, 0.5),
        row("dp_sgd", "DP", 0, 0.9),
        row("dp_sgd", "DP", 1, 0.9),
    )
    assert found["DP"] is None and found["one epoch"] is None
    assert found["pooled"] == 0.0


def test_the_named_baseline_counts_and_not_the_first() -> None:
    rows = (
        row("sgd", "one epoch", 0, 0.5, "pooled"),
        row("sgd", "pooled", 0, 0.95, "pooled"),
        row("dp_sgd", "DP", 0, 0.93, "pooled"),
    )
    assert gaps(*rows)["DP"] == pytest.approx(-0.02)
    for text in (comparison_text, to_latex, comparison_html):
        assert "“pooled”" in text(Comparison(rows=rows, card={})).replace("``", "“").replace(
            "''", "”"
        )


def test_a_twin_is_measured_from_the_baseline_and_its_trainer_from_the_twin() -> None:
    rows = (
        row("sgd", "sgd", 0, 0.97, "sgd"),
        row("mpc_sgd", "MPC", 0, 0.89, "MPC, in plaintext"),
        row("plaintext", "MPC, in plaintext", 0, 0.89, "sgd"),
    )
    found = gaps(*rows)
    assert found["MPC"] == 0.0
    assert found["MPC, in plaintext"] == pytest.approx(-0.08)
    text = " ".join(comparison_text(Comparison(rows=rows, card={})).split())
    assert "“MPC” is measured from “MPC, in plaintext”, the same steps in plaintext" in text


def test_a_baseline_of_several_epsilons_is_that_of_its_own() -> None:
    found = gaps(
        row("dp_sgd", "DP", 0, 0.8, "DP", 1.0),
        row("dp_sgd", "DP", 0, 0.9, "DP", 8.0),
        row("pate", "PATE", 0, 0.7, "DP", 1.0),
        row("pate", "PATE", 0, 0.7, "DP", 8.0),
        row("fedavg", "FedAvg", 0, 0.9, "DP"),
    )
    assert found["PATE, ε 1"] == pytest.approx(-0.1)
    assert found["PATE, ε 8"] == pytest.approx(-0.2)
    assert found["FedAvg"] is None


def test_files_that_name_no_baseline_have_the_first_pooled_one_even_if_it_failed() -> None:
    rows = (row("sgd", "first", 0), row("sgd", "second", 0, 0.5), row("dp_sgd", "DP", 0, 0.9))
    comparison = Comparison(rows=rows, card={})
    assert baseline_of(rows[2], comparison) == "first"
    assert gap(rows[2], comparison) is None
    assert gap(replace(rows[2], baseline="second"), comparison) == pytest.approx(0.4)


def test_without_a_baseline_nothing_is_said_of_one() -> None:
    assert main_baseline({"a": None}) is None
    assert gap_note({"a": None}, "accuracy", percent=True) == ""
    assert "Gap" not in comparison_text(Comparison(rows=(row("dp_sgd", "DP", 0, 0.9),), card={}))
