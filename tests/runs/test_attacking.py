"""A part that fails leaves the others standing, and its cell says why."""

import csv
import io
import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

import privtrain as pt
from privtrain.attacks.attack import Attack
from privtrain.core.errors import Reason
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.payloads import PayloadStore, Wanted
from privtrain.core.result import Comparison, Leakage, Row, Target
from privtrain.core.task import Rows, Task
from privtrain.report.files import RENDERINGS, load
from privtrain.runs import auditing
from privtrain.runs.attacking import with_leakage
from privtrain.runs.comparing import compare

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4))
TASK, DATA = pt.data.from_arrays(X, (X[:, 0] > 0).astype(int), parties=2, classes=2)
HERE = pt.Runtimes(star=pt.InProcess())
FAST = {"pooled": pt.SGD(epochs=1)}


@dataclass(frozen=True, kw_only=True)
class Own:
    """An attack of a user's own: it returns this for scores, or raises what it is."""

    outcome: Any = None
    name: str = "own"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return cast("ArrayLike", self.outcome)


def compared(*attacks: Attack) -> Comparison:
    return compare(FAST, TASK, DATA, attacks=attacks, runtimes=HERE)


def row_of(*attacks: Attack, task: pt.Task = TASK, **options: Any) -> Row:
    (row,) = compare(FAST, task, DATA, attacks=attacks, runtimes=HERE, **options).rows
    return row


@pytest.mark.parametrize(
    ("outcome", "error", "traced"),
    [
        (RuntimeError("no shadow model"), "RuntimeError: no shadow model", True),
        (pt.UnsupportedError("no messages"), "UnsupportedError: no messages", False),
        (None, "ValueError: Expected the scores of 'own' to be real numbers, one for each", True),
        ([0.5], r"shape \(1,\)", True),
        (["high"] * 20, "type <U4", True),
        ([1j] * 20, "type complex128", True),
        (torch.zeros(20, 1), r"shape \(20, 1\)", True),
        ([[1.0], [1.0, 2.0]], "inhomogeneous", True),
    ],
)
def test_an_attack_that_fails_leaves_the_row_standing(
    outcome: object, error: str, traced: bool
) -> None:
    row = row_of(Own(outcome=outcome), pt.LossThreshold())
    assert row.error is None and row.accuracy is not None and row.statement is not None
    own, other = row.leakage
    assert (own.attack, own.metrics, own.intervals) == ("own", {}, {})
    assert own.failure is not None and pytest.approx(0.5, abs=0.5) == other.metrics["auc"]
    with pytest.raises(ValueError, match=error):
        raise ValueError(own.failure.error)
    assert (own.failure.traceback is not None) is traced


def test_scores_may_be_of_any_real_type() -> None:
    for scores in ([1] * 20, torch.ones(20, requires_grad=True), np.ones(20, dtype=np.float16)):
        (own,) = row_of(Own(outcome=scores)).leakage
        assert own.failure is None and own.metrics["auc"] == 0.5


def broken(outputs: Tensor, targets: Tensor) -> float:
    raise ZeroDivisionError("in the metric")


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"accuracy": broken}, "ZeroDivisionError: in the metric"),
        ({"accuracy": lambda o, t: math.nan}, "0..1, not nan"),
        ({"accuracy": lambda o, t: 93.0}, "0..1, not 93"),
        ({"accuracy": lambda o, t: o}, "return one number; it returned a tensor"),
        ({"accuracy": lambda o, t: True}, "return a number, not True"),
    ],
)
def test_a_metric_that_fails_leaves_the_row_standing(metrics: Any, error: str) -> None:
    row = row_of(pt.LossThreshold(), task=replace(TASK, metrics=metrics))
    assert (row.error, row.accuracy, row.accuracy_interval) == (None, None, None)
    assert row.statement is not None and row.leakage[0].metrics["auc"] is not None
    assert row.accuracy_failure is not None and error in row.accuracy_failure.error
    with pytest.raises((ZeroDivisionError, ValueError)):
        row_of(task=replace(TASK, metrics=metrics), errors="raise")


def everything(comparison: Comparison) -> dict[str, str]:
    return {"text": str(comparison)} | {
        name: render(comparison) for name, render in RENDERINGS.items()
    }


def test_every_rendering_says_what_failed_and_why(tmp_path: Path) -> None:
    attacks = [Own(outcome=KeyError("no <view>")), pt.LossThreshold()]
    made = compare(
        FAST, replace(TASK, metrics={"accuracy": broken}), DATA, attacks=attacks, runtimes=HERE
    )
    texts = everything(made)
    for name, text in texts.items():
        assert "in the metric" in text and "KeyError" in text, name
    assert texts["text"].count("failed") >= 3 and "Failed (unprotected)" in texts["text"]
    (line,) = csv.DictReader(io.StringIO(texts["table.csv"]))
    assert line["accuracy_error"] == "ZeroDivisionError: in the metric"
    assert "KeyError" in line["unprotected_leakage_error[own/public]"]
    assert "& failed &" in texts["table.tex"] and "Failed (unprotected)" in texts["table.tex"]
    page = texts["report.html"]
    assert "no &lt;view&gt;" in page and "no <view>" not in page
    assert "Where an error came from (unprotected)" in page and "in broken" in page
    pt.save(made, tmp_path)
    plain = json.loads((tmp_path / "comparison.json").read_text())
    assert "in broken" in plain["rows"][0]["accuracy_failure"]["traceback"]
    assert {"traceback", "accuracy_failure"} <= set(plain["unprotected"])
    assert load(tmp_path).rows == made.rows


def test_an_attack_that_fails_on_one_seed_is_flagged() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sometimes(Own):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
            if seed == 0:
                raise RuntimeError("seed 0")
            return [0.0] * len(candidates)

    attacks = [Sometimes()]
    made = compare(FAST, TASK, DATA, attacks=attacks, seeds=(0, 1), runtimes=HERE)
    text = str(made)
    assert "own (public) failed in 1 of 2" in " ".join(text.split()) and "0.500" in text
    assert "pooled, seed 0: own (public): RuntimeError: seed 0" in text


@dataclass(frozen=True)
class Undefined:
    """Makes a model whose forward pass holds a mistake."""

    def __call__(self) -> nn.Module:
        class Mistaken(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return undefined_name  # type: ignore[name-defined, no-any-return]  # noqa: F821

        return Mistaken(4, 2)


def test_an_own_error_keeps_its_traceback(tmp_path: Path) -> None:
    task = pt.Task(model=Undefined())
    made = compare(FAST, task, DATA, runtimes=HERE, folder=tmp_path)
    (row,) = made.rows
    assert row.error is not None and "undefined_name" in row.error
    assert row.traceback is not None and "in forward" in row.traceback
    (kept,) = tmp_path.glob("*/row.json")
    assert "in forward" in kept.read_text()
    texts = everything(made)
    assert "in forward" in texts["report.html"] and "in forward" not in texts["text"]
    with pytest.raises(NameError, match="undefined_name"):
        compare(FAST, task, DATA, runtimes=HERE, errors="raise")


def test_what_is_refused_on_purpose_needs_no_traceback() -> None:
    task = pt.Task(model=lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    (row,) = compare({"dp": pt.DPSGD(epochs=1)}, task, DATA, runtimes=HERE).rows
    assert row.error is not None and row.traceback is None


def test_errors_are_kept_or_raised_and_nothing_else() -> None:
    for word in ("ignore", "RAISE", True, None):
        with pytest.raises(ValueError, match=f"errors={word!r} to be one of keep, raise"):
            compare(FAST, TASK, DATA, runtimes=HERE, errors=word)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no view"):
        row_of(Own(outcome=RuntimeError("no view")), errors="raise")


def test_a_row_whose_attack_failed_is_not_trained_again(tmp_path: Path) -> None:
    attacks = [Own(outcome=None)]
    first = compare(FAST, TASK, DATA, attacks=attacks, runtimes=HERE, folder=tmp_path)
    again = compare(FAST, TASK, DATA, attacks=attacks, runtimes=HERE, folder=tmp_path)
    assert first.rows == again.rows


def test_an_attack_that_changes_the_model_does_not_change_the_accuracy() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Vandal(Own):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
            for parameter in target.predictor.module.parameters():  # type: ignore[union-attr]
                parameter.data.zero_()
            raise RuntimeError("gone")

    assert row_of(Vandal(outcome=None)).accuracy == row_of().accuracy


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    # On zeros and in trials it answers: what fails is the training of a party.
    if len(outputs) > 4:
        raise KeyError("mine")
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_an_own_error_at_a_party_keeps_its_traceback() -> None:
    task = replace(TASK, loss=own_loss)
    (row,) = compare({"fedavg": pt.FedAvg(rounds=1)}, task, DATA).rows
    assert row.error is not None and "KeyError('mine')" in row.error
    assert row.traceback is not None and "in own_loss" in row.traceback


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "outcome", [MuteError(), SystemExit(3), ValueError("cannot read /data/\udcff.npy")]
)
def test_whatever_an_attack_raises_is_the_failure_of_its_part(
    outcome: BaseException, tmp_path: Path
) -> None:
    class Raising(Own):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
            raise outcome

    comparison = compared(Raising(outcome=None), pt.LossThreshold())
    own, other = comparison.rows[0].leakage
    assert own.failure is not None and type(outcome).__name__ in own.failure.error
    assert other.failure is None and other.metrics
    pt.save(comparison, tmp_path)
    assert load(tmp_path / "comparison.json").rows[0].leakage[0].failure == own.failure


def test_ctrl_c_is_no_failure_of_a_part() -> None:
    class Interrupted(Own):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row_of(Interrupted(outcome=None))


def test_an_attack_that_writes_into_what_it_is_given_changes_nothing() -> None:
    class Writing(Own):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
            for rows in (candidates, *target.own.values()):
                rows.inputs.zero_()
                rows.labels.zero_()
            module: Any = target.predictor
            for parameter in module.module.parameters():
                parameter.data.zero_()
            torch.set_default_dtype(torch.float64)
            raise ValueError("gone")

    before = DATA.test.inputs.clone(), DATA.pooled().inputs.clone()
    seeds, trainers = (0, 1), {"sgd": pt.SGD(epochs=2)}
    rows = [
        compare(trainers, TASK, DATA, attacks=attacks, seeds=seeds).rows
        for attacks in ([Writing(outcome=None), pt.LossThreshold()], [pt.LossThreshold()])
    ]
    for spoilt, plain in zip(*rows, strict=True):
        assert spoilt.accuracy == plain.accuracy
        assert spoilt.leakage[1].metrics == plain.leakage[0].metrics
    assert torch.equal(DATA.test.inputs, before[0])
    assert torch.equal(DATA.pooled().inputs, before[1])
    assert torch.get_default_dtype() is torch.float32


@dataclass(frozen=True, kw_only=True)
class Reading(Own):
    """An attack on updates."""

    name: str = "reading"
    observer: Observer = pt.AGGREGATOR
    needs_messages: bool = True
    kinds: tuple[str, ...] = ("update",)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
        updates = [m.payload for m in target.view.messages if m.kind == "update"]
        weights = sum(u[:4] for u in updates if u is not None)
        return cast("ArrayLike", candidates.inputs @ weights)


FEDERATED = {"FedAvg": pt.FedAvg(rounds=2)}


def federated(*attacks: Attack, **options: Any) -> Row:
    (row,) = compare(FEDERATED, TASK, DATA, attacks=attacks, runtimes=HERE, **options).rows
    return row


def test_messages_are_kept_for_attacks_that_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pt.fit(FEDERATED["FedAvg"], TASK, DATA, runtimes=HERE, keep_payloads=True)
    expected = pt.audit(result, Reading(), TASK, DATA)
    alone, row = federated(), federated(Reading())
    assert row.leakage == (expected,)
    # Nothing else of the row is another one for it.
    for name in ("metrics", "statement", "history", "notes"):
        assert getattr(row, name) == getattr(alone, name)
    assert alone.cost is not None and row.cost is not None
    assert row.cost.bytes_sent == alone.cost.bytes_sent
    # On disk, with no memory for them; and nothing of it is left or published.
    stores: list[PayloadStore] = []
    monkeypatch.setattr(auditing, "PayloadStore", partial(small, stores))
    home = tmp_path / "home"
    on_disk = federated(Reading(), folder=home)
    assert on_disk.leakage == row.leakage
    # The run's, and what the attack is handed of it.
    store, handed = stores
    updates = [e.bytes for e in result.transcript.entries if e.kind == "update"]
    assert (store.used, store.on_disk) == (0, sum(updates)) == (handed.used, handed.on_disk)
    names = sorted(path.name for path in home.glob("*/*"))
    assert names == sorted(["run.id", "row.json", "state.pt", "digest.key", "README"])
    stores.clear()
    federated(Own(outcome=np.zeros(40)))
    assert [one.on_disk for one in stores] == [0], "nothing is kept for who reads nothing"


def small(stores: list[PayloadStore], wanted: tuple[Wanted, ...], **options: Any) -> PayloadStore:
    stores.append(PayloadStore(wanted, 0, **options))
    return stores[-1]


def test_messages_of_a_run_with_fresh_noise_are_not_kept() -> None:
    row = federated(Reading(), pt.LossThreshold(), entropy=pt.SYSTEM)
    reading, loss = row.leakage
    assert row.error is None and loss.failure is None
    assert reading.failure is not None
    assert reading.failure.reason is Reason.NO_TENSORS


@dataclass(frozen=True, kw_only=True)
class Interrupted(pt.PlainSteps):
    """Local steps that are interrupted in the second round, while a file is there."""

    bomb: str = ""

    def __call__(self, model: Any, task: Any, rows: Any, draws: Any) -> Any:
        if draws.round == 1 and Path(self.bomb).exists():
            raise KeyboardInterrupt
        return super().__call__(model, task, rows, draws)


def test_a_run_that_goes_on_has_lost_what_was_sent_before(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.touch()
    trainers = {"FedAvg": pt.FedAvg(rounds=2, local=Interrupted(bomb=str(bomb)))}
    given = {"attacks": [Reading()], "runtimes": HERE, "folder": tmp_path / "home"}
    with pytest.raises(KeyboardInterrupt):
        compare(trainers, TASK, DATA, **given)  # type: ignore[arg-type]
    bomb.unlink()
    (row,) = compare(trainers, TASK, DATA, **given).rows  # type: ignore[arg-type]
    (reading,) = row.leakage
    assert row.error is None and reading.failure is not None
    assert reading.failure.reason is Reason.NO_TENSORS
    assert "checkpoint" in reading.failure.error


def test_figures_take_the_place_of_earlier_ones() -> None:
    def leak(attack: str, auc: float, observer: str = "public") -> Leakage:
        return Leakage(attack=attack, observer=observer, metrics={"auc": auc})

    row = Row(trainer="sgd", label="a", seed=0, leakage=(leak("x", 0.5), leak("y", 0.5)))
    fresh = (leak("y", 0.7), leak("y", 0.6, "aggregator"))
    made = with_leakage(replace(row, notes=("old",)), fresh, ["old", "new"])
    assert made.leakage == (leak("x", 0.5), *fresh)
    assert made.notes == ("old", "new")


@dataclass
class Remembering:
    """Counts how often it saw a row, over all rows of a comparison: members recur less often."""

    observer: Observer = PUBLIC
    name: str = "remembering"
    needs_messages: bool = False
    known: dict[bytes, int] = field(default_factory=dict)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> list[float]:
        keys = [row.numpy().tobytes() for row in candidates.inputs]
        for key in keys:
            self.known[key] = self.known.get(key, 0) + 1
        return [-float(self.known[key]) for key in keys]


@dataclass
class Training:
    """Trains the task's own model on the candidates, as a surrogate."""

    observer: Observer = PUBLIC
    name: str = "training"
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> list[float]:
        model, loss = target.task.model, target.task.loss
        assert isinstance(model, nn.Module) and isinstance(loss, nn.CrossEntropyLoss)
        with torch.no_grad():
            for tensor in (*model.parameters(), loss.weight):
                assert tensor is not None
                tensor.add_(1.0)
        return [0.0] * len(candidates)


def test_an_attack_remembers_nothing_of_other_rows() -> None:
    attack = Remembering()
    compared = compare({"SGD": pt.SGD(epochs=1)}, TASK, DATA, attacks=[attack], seeds=range(3))
    assert [row.leakage[0].metrics["auc"] for row in compared.rows] == [0.5] * 3
    assert attack.known == {}


def test_an_attack_does_not_train_the_model_that_runs_start_from() -> None:
    net = nn.Linear(4, 2)
    before = net.weight.detach().clone()
    loss = nn.CrossEntropyLoss(torch.ones(2), reduction="none")
    task = Task(model=net, loss=loss)
    result = pt.fit(pt.SGD(epochs=1), task, DATA)
    pt.audit(result, Training(), task, DATA)
    compare({"SGD": pt.SGD(epochs=1)}, task, DATA, attacks=[Training()])
    assert torch.equal(net.weight, before) and torch.equal(loss.weight, torch.ones(2))
