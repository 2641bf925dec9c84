"""Comparisons: one honest row a run, whatever happens in it."""

import dataclasses
import json
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import privtrain as pt
from privtrain.core.result import Predictor, Target
from privtrain.core.statement import to_plain
from privtrain.core.trainer import Run, Trainer
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.runs.comparing import compare, failed
from privtrain.runs.marks import identity_of
from privtrain.runs.roots import data_digest, rows_digest
from privtrain.runs.rows import cells, load_row
from tests.runs.folders import contents

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
    caveats = property(lambda self: self.inner.caveats)
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
    (place,) = kept.others(tmp_path)
    assert load_row(place) is not None
    again = compare(
        {**trainers, "bad": pt.SGD(epochs=2)}, TASK, DATA, runtimes=HERE, folder=tmp_path
    )
    assert again.rows[0].error is None
    assert again.rows[1] == dataclasses.replace(
        first.rows[1], history=again.rows[1].history, cost=again.rows[1].cost
    )
    assert again.rows[1].cost is not None and first.rows[1].cost is not None
    assert again.rows[1].cost.seconds == first.rows[1].cost.seconds


def test_another_main_metric_leads_and_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    task = dataclasses.replace(TASK, metrics={"accuracy": pt.accuracy, "auc": pt.auc})
    (first,) = compare(trainers, task, DATA, runtimes=HERE, folder=tmp_path).rows
    monkeypatch.setattr("privtrain.runs.rows.fit", lambda *given, **named: pytest.fail("trained"))
    other = dataclasses.replace(task, main="auc")
    (again,) = compare(trainers, other, DATA, runtimes=HERE, folder=tmp_path).rows
    assert (list(first.measurements), first.main) == (["accuracy", "auc"], "accuracy")
    assert list(again.measurements) == ["auc", "accuracy"]
    assert dataclasses.replace(again, main="accuracy") == first
    with pytest.raises(pt.DataError, match="task's metrics"):
        compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)


def test_rows_of_an_earlier_version_are_taken_up_with_their_accuracy(tmp_path: Path) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    (first,) = compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path).rows
    (path,) = tmp_path.glob("*/row.json")
    document = json.loads(path.read_text())
    for name in ("metrics", "main", "classes_predicted"):
        del document["rows"][0][name]
    path.write_text(json.dumps(document))
    (again,) = compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path).rows
    assert again.metrics == {} and again.accuracy == first.accuracy
    old, new = again.measurements["accuracy"], first.measurements["accuracy"]
    assert (old.value, old.interval, old.method) == (new.value, new.interval, new.method)


def test_a_task_without_metrics_is_refused_before_training() -> None:
    task = dataclasses.replace(TASK, metrics={})
    with pytest.raises(pt.DataError, match=r"task\.metrics to hold one metric at least"):
        compare({"bad": Failing()}, task, DATA, runtimes=HERE, errors="raise")  # type: ignore[dict-item]


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


CLIENTS = 20
DRAWN = pt.FedAvg(
    rounds=2,
    sampling=pt.Poisson(0.1, 2.0),
    local=pt.PlainSteps(epochs=1),
    release=pt.Release(pt.Gaussian(1.0, 1.0)),
)


def own_rows(count: int = 400) -> tuple[pt.Task, pt.FederatedData]:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(count, 5)), rng.integers(0, 2, count)
    return pt.data.from_arrays(inputs, labels, parties=CLIENTS, classes=2)


def published(comparison: pt.Comparison, folder: Path) -> dict[str, str]:
    """All that is published of a comparison, by name."""
    pt.save(comparison, folder)
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    return {**texts, "text": str(comparison), "notebook": comparison._repr_html_() or ""}


def test_no_published_file_tells_who_was_drawn(tmp_path: Path) -> None:
    task, data = own_rows()
    seen = []
    for number in range(2):
        made = compare({"f": DRAWN}, task, data, delta=1e-3, entropy=pt.SYSTEM, runtimes=HERE)
        (row,) = made.rows
        assert row.error is None and row.statement is not None and row.cost is not None
        assert row.statement.guarantees[0].relation is pt.ADD_REMOVE
        for name, text in published(made, tmp_path / str(number)).items():
            assert not any(re.search(rf"\b{party}\b", text) for party in data.parties), name
        seen.append(dataclasses.replace(row.cost, seconds=0.0, peak_memory_bytes=0))
        assert made.card["data"]["parties"] == "not public"
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_run_without_promise_tells_no_number_that_another_one_hides(tmp_path: Path) -> None:
    task, data = own_rows(4027)
    private = pt.DPSGD(epochs=1, sampling_rate=0.1, expected_batch=28)
    trainers = {"pooled": pt.SGD(epochs=1), "FedAvg": pt.FedAvg(rounds=1), "DP-SGD": private}
    attacks = [pt.LossThreshold()]
    made = compare(trainers, task, data, attacks=attacks, delta=1e-4, runtimes=HERE)
    pooled, plain, noised = made.rows
    assert noised.statement is not None
    assert noised.statement.guarantees[0].relation is pt.ADD_REMOVE
    for row in (pooled, noised):
        assert row.cost is not None and row.cost.bytes_sent is None
        assert row.cost.bytes_sent_by_party == {}
    # Messages of federated rounds are models, whatever the number of rows.
    assert plain.cost is not None and plain.cost.bytes_sent is not None
    assert all(
        leak.members is leak.non_members is None for row in made.rows for leak in row.leakage
    )
    assert made.card["data"]["test_rows"] == "not public"
    rows = sum(len(data.train[party]) for party in data.parties)
    for name, file in published(made, tmp_path).items():
        text = re.sub(r"(?s)<(svg|style).*?</\1>", "", file)
        for count in (rows, rows * 28, len(data.test)):
            assert not re.search(rf"\b{count}\b", text), (name, count)
    alone = compare({"pooled": pt.SGD(epochs=1)}, task, data, delta=1e-4, runtimes=HERE)
    assert alone.rows[0].cost is not None and alone.rows[0].cost.bytes_sent == rows * 28


@pytest.mark.slow
def test_no_file_below_the_folder_holds_a_hash_of_the_rows_that_can_be_tried(
    tmp_path: Path,
) -> None:
    task, data = own_rows()
    run = tmp_path / "run"
    made = compare(FAST, task, data, delta=1e-3, runtimes=HERE, folder=run)
    pt.save(made, run)
    # All that could be hashed: the rows, all parts, and both with the settings.
    parts = identity_of(task, data, pt.SEEDED, attacks=(), delta=1e-3)
    marks = [data.digest, rows_digest(data).hex(), data_digest(data).hex(), *parts.parts.values()]
    marks.append(parts.whole)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "state.pt"]) == 3
    for path in files:
        content = path.read_bytes()
        assert not any(mark.encode() in content for mark in marks), path
    keys = [path for path in files if path.name == "digest.key"]
    assert [path.relative_to(run) for path in keys] == [Path("private/digest.key")]
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    assert made.card["data"]["keyed_digest"] in (run / "comparison.json").read_text()
    # Saved elsewhere, the key does not come along.
    pt.save(made, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "private").exists()


def test_without_its_key_a_folder_is_not_taken_up(tmp_path: Path) -> None:
    task, data = own_rows()
    trainers: dict[str, Trainer] = {"pooled": pt.SGD(epochs=1)}
    compare(trainers, task, data, runtimes=HERE, folder=tmp_path)
    (tmp_path / "private" / "digest.key").unlink()
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match="the key in its private folder is gone"):
        compare(trainers, task, data, runtimes=HERE, folder=tmp_path)
    assert contents(tmp_path) == before


@dataclass(frozen=True)
class Watching:
    """An attack by a coalition with a party that is not there."""

    observer: pt.Observer = pt.coalition({"client-0", "nobody"})
    name: str = "watching"
    needs_messages: bool = False

    def score(self, target: Target, candidates: pt.Rows, *, seed: int) -> list[float]:
        raise AssertionError("attacked")


def test_an_attack_by_a_party_that_is_not_there_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"'(client-0|nobody)' does not\. Known are"):
        compare({"never": Failing()}, TASK, DATA, attacks=[Watching()], runtimes=HERE)


class NoNoise:
    """A trainer of a user's own whose noise cannot be asked for."""

    token, caveats = "own", ()

    def plan(self, data: object, runtimes: object) -> tuple[()]:
        return ()

    input_privacy = plan
    train = plan

    def with_noise(self, scale: float) -> None:
        raise KeyError("mine")


class Named:
    """What has the members of an attack."""

    def __init__(self, name: object, observer: object) -> None:
        self.name, self.observer, self.needs_messages = name, observer, False

    def score(self, target: Target, candidates: pt.Rows, *, seed: int) -> list[float]:
        raise AssertionError("nothing is attacked")


@pytest.mark.parametrize(
    ("trainers", "attacks", "message"),
    [
        ({"x": pt.SGD}, (), r"trainers\['x'\]=.*no class"),
        ({"x": None}, (), r"trainers\['x'\]=None.*no .*train"),
        ({"x": pt.SGD(), "y": "sgd"}, (), r"trainers\['y'\]='sgd'"),
        ({"x": NoNoise()}, (), r"trainers\['x'\].*raised KeyError: 'mine'"),
        ({1: pt.SGD()}, (), "labels"),
        ([pt.SGD()], (), "trainers=.*mapping"),
        (pt.SGD(), (), "trainers=.*mapping"),
        ({"x": pt.SGD()}, pt.LossThreshold(), "attacks=.*list"),
        ({"x": pt.SGD()}, "loss", "attacks='loss'.*list"),
        ({"x": pt.SGD()}, None, "attacks=None.*list"),
        ({"x": pt.SGD()}, [pt.LossThreshold], r"attacks\[0\].*no class"),
        (
            {"x": pt.SGD()},
            [pt.LossThreshold(), object()],
            r"\[1\].*name, needs_messages, observer, score",
        ),
        ({"x": pt.SGD()}, [Named("a", "public")], r"attacks\[0\]\.observer='public'"),
        ({"x": pt.SGD()}, [Named(3, pt.PUBLIC)], r"attacks\[0\]\.name=3"),
    ],
)
def test_what_is_no_trainer_or_attack_is_refused_before_training(
    trainers: Any, attacks: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(trainers, TASK, DATA, attacks=attacks, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_attacks_may_come_from_an_iterator() -> None:
    attacks = (attack for attack in [pt.LossThreshold()])
    made = compare({"x": pt.SGD(epochs=1)}, TASK, DATA, attacks=attacks)
    assert [leakage.attack for leakage in made.rows[0].leakage] == ["loss threshold"]


def test_test_rows_without_targets_are_refused_by_who_needs_them() -> None:
    data = dataclasses.replace(DATA, test=pt.Rows(DATA.test.inputs))
    with pytest.raises(pt.DataError, match=r"data\.test\.targets.*accuracy"):
        compare({"x": pt.SGD(epochs=1)}, TASK, data)
    assert pt.fit(pt.SGD(epochs=1), TASK, data).statement.epsilon() == math.inf


SMALL = pt.data.breast_cancer(parties=3)
TWO = {"sgd": pt.SGD(epochs=1), "DP-SGD": pt.DPSGD(epochs=1.0)}


def outputs_of(made: pt.Comparison) -> list[list[list[float]]]:
    predictors = [row.predictor for row in made.rows]
    return [p(SMALL[1].test.inputs).tolist() for p in predictors if p is not None]


def test_models_are_kept_where_that_is_asked(tmp_path: Path) -> None:
    home = tmp_path / "rows"
    options: dict[str, Any] = {"runtimes": HERE, "folder": home, "keep_models": True}
    first = compare(TWO, *SMALL, **options)
    again = compare(TWO, *SMALL, seeds=(0, 1), **options)
    assert outputs_of(again)[::2] == outputs_of(first)
    assert len(outputs_of(again)) == 4
    # Each lies in its row's folder, and no file of the comparison holds it.
    assert len(list(home.glob("*/model/model.safetensors"))) == 4
    loaded = read_comparison(json.loads(json.dumps(to_plain(plain_comparison(first)))))
    assert loaded == first and loaded.rows[0].predictor is None
    # Who does not ask for them has none.
    without = compare(TWO, *SMALL, runtimes=HERE)
    assert outputs_of(without) == [] and without.rows[0].accuracy == first.rows[0].accuracy


def test_a_kept_student_that_reads_features_is_found_again(tmp_path: Path) -> None:
    task = dataclasses.replace(SMALL[0], model=pt.data.MLP((3, 2)))
    features = torch.nn.Linear(SMALL[1].test.inputs.shape[1], 3)
    release = pt.Release(pt.GNMax(1.0), finish=pt.ARGMAX)
    student = {"student": pt.PlainSteps(epochs=1), "features": features}
    trainer = pt.PATE(teachers=4, queries=5, release=release, **student)
    given: dict[str, Any] = {"runtimes": HERE, "folder": tmp_path, "keep_models": True}
    first, again = (compare({"PATE": trainer}, task, SMALL[1], **given) for _ in "ab")
    assert outputs_of(again) == outputs_of(first) != []


def test_models_are_kept_in_memory_without_a_folder() -> None:
    kept = compare({"sgd": pt.SGD(epochs=1)}, *SMALL, runtimes=HERE, keep_models=True)
    trained = pt.fit(pt.SGD(epochs=1), *SMALL)
    assert outputs_of(kept) == [trained.predictor(SMALL[1].test.inputs).tolist()]
    with pytest.raises(ValueError, match="keep_models='yes'"):
        compare(TWO, *SMALL, keep_models="yes")  # type: ignore[arg-type]


def test_a_model_that_was_not_kept_is_trained_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"runtimes": HERE, "folder": tmp_path}
    first = compare(TWO, *SMALL, **options)
    again = compare(TWO, *SMALL, keep_models=True, **options)
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in first.rows]
    assert [row.statement for row in again.rows] == [row.statement for row in first.rows]
    assert len(outputs_of(again)) == 2


def test_a_model_of_a_row_that_was_changed_is_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"runtimes": HERE, "folder": tmp_path, "keep_models": True}
    compare(TWO, *SMALL, **options)
    path = next(tmp_path.glob("*/model/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(pt.DataError, match=r"model\.safetensors is torn"):
        compare(TWO, *SMALL, **options)


def test_a_kept_model_tells_no_number_that_another_row_hides(tmp_path: Path) -> None:
    own = dataclasses.replace(SMALL[1], published=False, public_rows=None)
    options: dict[str, Any] = {"runtimes": HERE, "folder": tmp_path, "keep_models": True}
    compare({"sgd": pt.SGD(epochs=1)}, SMALL[0], own, **options)
    (card,) = tmp_path.glob("*/model/card.json")
    data = json.loads(card.read_text())["data"]
    assert {data[name] for name in ("parties", "test_rows", "validation_rows")} == {"not public"}
    assert len(own.test) not in json.loads(card.read_text())["data"].values()


@dataclass(frozen=True)
class Meaning:
    """A trainer whose predictor is no torch model."""

    inner: pt.SGD = pt.SGD(epochs=1)
    token: ClassVar[str] = "meaning"

    plan = property(lambda self: self.inner.plan)
    input_privacy = property(lambda self: self.inner.input_privacy)
    caveats = property(lambda self: self.inner.caveats)
    with_noise = property(lambda self: self.inner.with_noise)

    def train(self, task: pt.Task, data: pt.FederatedData, run: Run) -> Predictor:
        return lambda inputs: inputs[:, :2]


def test_a_predictor_that_cannot_be_kept_is_said_and_not_trained_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"runtimes": HERE, "folder": tmp_path, "keep_models": True}
    first = compare({"own": Meaning()}, *SMALL, **options)
    assert first.rows[0].predictor is not None
    again = compare({"own": Meaning()}, *SMALL, **options)
    for row in (first.rows[0], again.rows[0]):
        assert row.error is None and any("not kept" in note for note in row.notes)
    assert again.rows[0].predictor is None
