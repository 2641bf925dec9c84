"""Comparisons: one honest row a run, whatever happens in it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import privtrain as pt
from privtrain.core.result import Predictor, Target
from privtrain.core.trainer import Run
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.runs.comparing import compare, failed
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


def test_two_attacks_of_one_name_are_refused() -> None:
    twice = [pt.OneRun(guesses=10), pt.LossThreshold(), pt.OneRun(guesses=20)]
    with pytest.raises(ValueError, match=r"attacks=OneRun\(guesses=20.*'one-run audit'"):
        compare({"pooled": pt.SGD(epochs=1)}, TASK, DATA, attacks=twice, runtimes=HERE)


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


def test_no_trainers_and_bad_epsilons_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one trainer"):
        compare({}, TASK, DATA)
    with pytest.raises(ValueError, match="epsilon=-1"):
        compare(FAST, TASK, DATA, epsilons=(-1.0,))


@dataclass(frozen=True)
class Watching:
    """An attack by a coalition with a party that is not there."""

    observer: pt.Observer = pt.coalition({"client-0", "nobody"})
    name: str = "watching"

    def run(self, target: Target, *, seed: int) -> pt.Leakage:
        raise AssertionError("attacked")


def test_an_attack_by_a_party_that_is_not_there_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"'(client-0|nobody)' does not\. Known are"):
        compare({"never": Failing()}, TASK, DATA, attacks=[Watching()], runtimes=HERE)
