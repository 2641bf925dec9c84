"""Comparisons: one honest row a run, whatever happens in it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import privtrain as pt
from privtrain.core.result import Predictor
from privtrain.core.trainer import Run
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.runs.card import run_card
from privtrain.runs.comparing import compare, failed, unmet
from privtrain.runs.rows import cells, load_row

TASK, DATA = pt.data.digits(parties=4, seed=0)
FAST = {
    "pooled": pt.SGD(epochs=3),
    "FedAvg": pt.FedAvg(rounds=3),
    "DP-SGD": pt.DPSGD(epochs=2.0),
}
HERE = pt.Runtimes(star=pt.InProcess())


@dataclass(frozen=True)
class Failing:
    """A trainer whose training fails."""

    inner: pt.SGD = pt.SGD(epochs=1)
    error: Exception = RuntimeError("the disk is on fire")
    token: ClassVar[str] = "sgd"

    plan = property(lambda self: self.inner.plan)
    input_privacy = property(lambda self: self.inner.input_privacy)
    with_noise = property(lambda self: self.inner.with_noise)

    def train(self, task: pt.Task, data: pt.FederatedData, run: Run) -> Predictor:
        raise self.error


def test_epsilon_applies_only_to_trainers_that_draw_noise() -> None:
    rows = list(cells(FAST, range(2), (1.0, 8.0)))
    assert [(c.label, c.epsilon, c.seed) for c in rows] == [
        ("pooled", None, 0),
        ("pooled", None, 1),
        ("FedAvg", None, 0),
        ("FedAvg", None, 1),
        ("DP-SGD", 1.0, 0),
        ("DP-SGD", 1.0, 1),
        ("DP-SGD", 8.0, 0),
        ("DP-SGD", 8.0, 1),
    ]
    assert len({c.folder_name for c in rows}) == len(rows)


def test_a_run_is_not_counted_twice() -> None:
    with pytest.raises(ValueError, match=r"Expected epsilons=\[3\.0, 3\.0\] to hold each"):
        compare(FAST, TASK, DATA, epsilons=(3.0, 3.0), runtimes=HERE)
    with pytest.raises(ValueError, match=r"Expected seeds=\[1, 1\] to hold each"):
        compare(FAST, TASK, DATA, seeds=(1, 1), runtimes=HERE)
    with pytest.raises(ValueError, match=r"Expected seeds=\[\]"):
        compare(FAST, TASK, DATA, seeds=(), runtimes=HERE)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(pt.DataError, match=r"Cannot write to folder="):
        compare(FAST, TASK, DATA, folder=tmp_path / "file", runtimes=HERE)
    with pytest.raises(pt.DataError, match=r"Cannot write to folder="):
        pt.fit(pt.SGD(epochs=1), TASK, DATA, folder=tmp_path / "file" / "below")


@pytest.mark.slow
def test_rows_hold_what_was_measured() -> None:
    comparison = compare(
        FAST, TASK, DATA, attacks=[pt.LossThreshold()], epsilons=(4.0,), runtimes=HERE
    )
    assert failed(comparison) == ()
    by_label = {row.label: row for row in comparison.rows}
    for row in comparison.rows:
        assert row.accuracy is not None and row.accuracy_interval is not None
        low, high = row.accuracy_interval
        assert low < row.accuracy < high
        assert row.cost is not None and row.cost.seconds > 0
        assert row.cost.peak_memory_bytes > 10_000_000
        assert [leak.attack for leak in row.leakage] == ["loss threshold"]
    private = by_label["DP-SGD"]
    assert private.statement is not None
    assert 0 < private.statement.epsilon("public") <= 4.0
    assert private.met is True
    assert by_label["pooled"].met is None
    assert by_label["pooled"].statement is not None
    assert math.isinf(by_label["pooled"].statement.epsilon("public"))


def test_a_failed_trainer_shows_its_error_and_the_others_finish() -> None:
    comparison = compare({"bad": Failing(), "good": pt.SGD(epochs=1)}, TASK, DATA, runtimes=HERE)
    bad, good = comparison.rows
    assert bad.error == "RuntimeError: the disk is on fire"
    assert (bad.accuracy, bad.statement, bad.cost, bad.leakage) == (None, None, None, ())
    assert good.error is None and good.accuracy is not None
    assert failed(comparison) == (bad,)
    assert "the disk is on fire" in str(comparison)
    assert "the disk is on fire" in (comparison._repr_html_() or "")


def test_a_trainer_whose_canaries_cannot_be_audited_keeps_its_other_figures() -> None:
    planted = pt.data.with_canaries(DATA, pt.data.mislabelled_rows(DATA, 40), seed=0)
    few = pt.PATE(teachers=4, queries=10, release=pt.Release(pt.GNMax(1.0), finish=pt.ARGMAX))
    attacks = [pt.LossThreshold(), pt.OneRun(guesses=20)]
    trainers = {"PATE": few, "pooled": pt.SGD(epochs=1)}
    votes, pooled = compare(trainers, TASK, planted, attacks=attacks, runtimes=HERE).rows
    assert votes.error is None and votes.accuracy is not None
    assert [leak.attack for leak in votes.leakage] == ["loss threshold"]
    assert "one-run audit was not run: Expected data with canaries" in votes.notes[-1]
    assert [leak.attack for leak in pooled.leakage] == ["loss threshold", "one-run audit"]
    (none,) = compare({"p": pt.SGD(epochs=1)}, TASK, DATA, attacks=attacks, runtimes=HERE).rows
    assert none.error is not None and "Expected data with canaries" in none.error


def test_two_attacks_of_one_name_are_refused() -> None:
    twice = [pt.OneRun(guesses=10), pt.LossThreshold(), pt.OneRun(guesses=20)]
    with pytest.raises(ValueError, match=r"attacks=OneRun\(guesses=20.*'one-run audit'"):
        compare({"pooled": pt.SGD(epochs=1)}, TASK, DATA, attacks=twice, runtimes=HERE)


def test_an_interrupt_is_no_row() -> None:
    with pytest.raises(KeyboardInterrupt):
        compare({"bad": Failing(error=KeyboardInterrupt())}, TASK, DATA, runtimes=HERE)  # type: ignore[arg-type]


def test_a_trainer_that_cannot_meet_the_epsilon_shows_what_it_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **named: object) -> pt.DPSGD:
        raise pt.UnsupportedError("no such noise")

    monkeypatch.setattr("privtrain.runs.rows.calibrate", refuse)
    comparison = compare(
        {"DP-SGD": pt.DPSGD(epochs=1.0)}, TASK, DATA, epsilons=(0.1,), runtimes=HERE
    )
    (row,) = comparison.rows
    assert row.error is None and row.met is False and unmet(comparison) == (row,)
    assert row.statement is not None and 0.1 < row.statement.epsilon("public") < math.inf
    assert any("no such noise" in note for note in row.notes)


def test_finished_rows_are_not_repeated(tmp_path: Path) -> None:
    trainers = {"bad": Failing(), "good": pt.SGD(epochs=1)}
    first = compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
    (kept,) = [c for c in cells(trainers, (0,), ()) if c.label == "good"]
    assert load_row(tmp_path / kept.folder_name) is not None
    again = compare(
        {**trainers, "bad": pt.SGD(epochs=2)}, TASK, DATA, runtimes=HERE, folder=tmp_path
    )
    assert again.rows[0].error is None
    assert again.rows[1] == dataclasses.replace(
        first.rows[1], history=again.rows[1].history, cost=again.rows[1].cost
    )
    assert again.rows[1].cost is not None and first.rows[1].cost is not None
    assert again.rows[1].cost.seconds == first.rows[1].cost.seconds


def test_json_has_the_promised_shape_and_comes_back() -> None:
    comparison = compare({"pooled": pt.SGD(epochs=1), "bad": Failing()}, TASK, DATA, runtimes=HERE)
    plain = json.loads(json.dumps(plain_comparison(comparison), allow_nan=False))
    assert set(plain) >= {"rows", "card"}
    good, bad = plain["rows"]
    assert set(good) >= {
        *("trainer", "label", "seed", "epsilon_asked", "accuracy", "error"),
        *("statement", "cost", "leakage"),
    }
    assert good["trainer"] == "sgd" and good["epsilon_asked"] is None and good["error"] is None
    assert 0 <= good["accuracy"] <= 1
    assert good["statement"]["guarantees"][0]["epsilon"] == "inf"
    assert set(good["cost"]) >= {"bytes_sent", "rounds", "seconds", "peak_memory_bytes"}
    assert bad["statement"] is None and bad["cost"] is None and "on fire" in bad["error"]
    assert read_comparison(plain).rows[0] == comparison.rows[0]


def test_the_card_names_versions_data_and_public_seeds_only() -> None:
    card = run_card(FAST, TASK, DATA, HERE, [0, 1], [3.0], 1e-5, "cpu")
    assert card["data"]["sha256"] == DATA.digest and len(DATA.digest) == 64
    assert card["public_seeds"] == [0, 1]
    assert card["versions"]["torch"] and card["versions"]["dp-accounting"]
    text = json.dumps(card)
    assert "entropy" not in text and "key" not in text


def test_no_trainers_and_bad_epsilons_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one trainer"):
        compare({}, TASK, DATA)
    with pytest.raises(ValueError, match="epsilon=-1"):
        compare(FAST, TASK, DATA, epsilons=(-1.0,))
