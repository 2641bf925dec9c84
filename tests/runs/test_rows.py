"""Rows: what one trainer, seed and epsilon becomes, whatever happens in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import privtrain as pt
from privtrain.attacks.attack import Target
from privtrain.core.metrics import accuracy
from privtrain.core.result import Predictor
from privtrain.core.trainer import Run
from privtrain.runs.checkpoint import Identity
from privtrain.runs.comparing import compare
from privtrain.runs.rows import cells

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


def test_epsilon_applies_only_to_trainers_that_draw_noise(tmp_path: Path) -> None:
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
    assert len({c.place(tmp_path, Identity({})) for c in rows}) == len(rows)


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
    assert none.error is None and none.accuracy is not None
    failure = none.leakage[1].failure
    assert failure is not None and "Expected data with canaries" in failure.error


def test_how_many_rows_were_drawn_is_published_only_where_it_is_counted_in_public() -> None:
    """The number of attacked members follows the sample, as messages do."""
    attacks = [pt.LossThreshold()]
    noised = pt.FedAvg(rounds=1, sampling=pt.FixedSize(1), release=pt.Release(pt.Gaussian(1, 1)))
    plain = pt.FedAvg(rounds=1, sampling=pt.FixedSize(1))
    trainers = {"pooled": FAST["pooled"], "plain": plain, "noised": noised}
    made = compare(trainers, TASK, DATA, attacks=attacks, runtimes=HERE).rows
    members = {row.label: [leak.members for leak in row.leakage] for row in made}
    assert members == {"pooled": [338], "plain": [318], "noised": [None]}
    assert all(leak.metrics["auc"] is not None for row in made for leak in row.leakage)


CHANGES: dict[str, Callable[[], object]] = {
    "type": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference": lambda: torch.inference_mode().__enter__(),
    "numpy": lambda: np.seterr(all="raise"),
}


@dataclass(frozen=True)
class Changing:
    """Sets something of the process, as a metric or as an attack."""

    change: str
    name: str = "changing"
    observer: pt.Observer = pt.PUBLIC
    needs_messages: bool = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        value = accuracy(outputs, targets)
        CHANGES[self.change]()
        return value

    def score(self, target: Target, candidates: pt.Rows, *, seed: int) -> Tensor:
        CHANGES[self.change]()
        return torch.zeros(len(candidates), device="cpu")


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_metric_or_attack_sets_does_not_reach_what_follows(change: str) -> None:
    trainers = {"pooled": pt.SGD(epochs=1), "DP-SGD": pt.DPSGD(epochs=0.5)}
    given: dict[str, Any] = {"seeds": range(2), "runtimes": HERE}
    right = compare(trainers, TASK, DATA, attacks=[pt.LossThreshold()], **given).rows
    task = replace(TASK, metrics={"accuracy": Changing(change)})
    attacks = [Changing(change), pt.LossThreshold()]
    made = compare(trainers, task, DATA, attacks=attacks, **given).rows
    assert [row.error for row in made] == [None] * 4
    assert [row.accuracy for row in made] == [row.accuracy for row in right]
    assert [row.leakage[1] for row in made] == [row.leakage[0] for row in right]
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()


def test_an_interrupt_is_no_row() -> None:
    with pytest.raises(KeyboardInterrupt):
        compare({"bad": Failing(error=KeyboardInterrupt())}, TASK, DATA, runtimes=HERE)  # type: ignore[arg-type]


@pytest.mark.slow
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
    assert row.error is None and row.met is False
    assert row.statement is not None and 0.1 < row.statement.epsilon("public") < math.inf
    assert any("no such noise" in note for note in row.notes)
