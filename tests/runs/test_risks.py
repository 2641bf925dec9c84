"""The risk of each record: against the referee's own figures, and on a leak that is planted."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.attacks.scores import auc
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.result import TrainResult
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.report.risks import RecordRisks

TASK = Task(model=lambda: nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2)))


def noisy(count: int, seed: int) -> Rows:
    """Rows whose class is that of their sign, but for a fifth: those must be learned by heart."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 12, generator=draw)
    labels = (inputs[:, 0] > 0).long()
    labels[: count // 5] = 1 - labels[: count // 5]
    return Rows(inputs, labels, torch.arange(count) // 30)


PARTS = {"bank": noisy(120, 1), "shop": noisy(80, 2)}
DATA = FederatedData(train=PARTS, test=noisy(200, 3), public_rows=200)


@pytest.fixture(scope="module")
def result() -> TrainResult:
    return pt.fit(pt.SGD(epochs=30, learning_rate=0.5), TASK, DATA)


@pytest.fixture(scope="module")
def risks(result: TrainResult) -> RecordRisks:
    return pt.record_risks(result, TASK, DATA, prior=0.1)


def test_scores_are_those_of_the_audit(result: TrainResult, risks: RecordRisks) -> None:
    leakage = pt.audit(result, pt.RMIA(), TASK, DATA)
    assert auc(risks.score[risks.member], risks.score[~risks.member]) == leakage.metrics["auc"]
    assert risks.groups[0].auc == leakage.metrics["auc"]
    assert risks.groups[0].interval == leakage.intervals["auc"]


def test_each_record_is_named_by_its_place(risks: RecordRisks) -> None:
    held = {**DATA.train, "test": DATA.test}
    places = list(zip(risks.holder, risks.number.tolist(), strict=True))
    assert len(set(places)) == len(places) == 400
    for row, (holder, number) in zip(risks.inputs, places, strict=True):
        assert torch.equal(row, held[holder].inputs[number])
    assert [holder != "test" for holder in risks.holder] == risks.member.tolist()
    assert risks.user is not None and risks.label is not None
    assert risks.user.tolist() == [number // 30 for _, number in places]


def test_rows_that_must_be_learned_by_heart_are_at_risk(risks: RecordRisks) -> None:
    turned = np.array(
        [
            number < len({**DATA.train, "test": DATA.test}[holder]) // 5
            for holder, number in zip(risks.holder, risks.number.tolist(), strict=True)
        ]
    )
    assert np.nanmedian(risks.separation[turned]) > 2 * np.nanmedian(risks.separation[~turned]) > 0
    assert turned[risks.riskiest(20)].mean() > 0.5
    # Of models that never saw a row, few look as the target does on members.
    assert (
        risks.p_value[risks.member & turned].mean() < risks.p_value[~risks.member & turned].mean()
    )
    whole = risks.groups[0]
    assert whole.above > 10 * whole.by_chance


def test_groups_add_up(risks: RecordRisks) -> None:
    whole, *parts = risks.groups
    classes = [part for part in parts if part.name.startswith("class")]
    users = [part for part in parts if part.name.startswith("user")]
    for groups in (classes, users):
        assert sum(group.records for group in groups) == whole.records
        assert sum(group.above for group in groups) == whole.above
        assert sum(group.by_chance for group in groups) == pytest.approx(whole.by_chance)


def test_nothing_stands_out_where_membership_changes_nothing() -> None:
    # A learning rate of almost nothing: all models are alike but for rounding.
    still = pt.fit(pt.SGD(epochs=1, learning_rate=1e-9), TASK, DATA)
    quiet = pt.record_risks(still, TASK, DATA, shadows=8)
    whole = quiet.groups[0]
    assert whole.auc is not None and abs(whole.auc - 0.5) < 0.12
    assert quiet.accused[0].tpr is None, "200 non-members resolve no rate of 1%"


def test_precision_follows_from_the_prior(result: TrainResult) -> None:
    many = replace(DATA, test=noisy(1_200, 3), train={"all": noisy(1_000, 1)}, public_rows=1_000)
    trained = pt.fit(pt.SGD(epochs=20, learning_rate=0.5), TASK, many)
    loss = pt.LossThreshold()
    rare, even = (
        pt.record_risks(trained, TASK, many, attack=loss, shadows=4, prior=prior)
        for prior in (0.01, 0.5)
    )
    point, half = rare.accused[0], even.accused[0]
    assert point.tpr is not None and point.precision is not None and half.precision is not None
    assert point.tpr == half.tpr and point.precision < half.precision
    assert point.precision == pytest.approx(0.01 * point.tpr / (0.01 * point.tpr + 0.99 * 0.01))


def test_what_cannot_be_told_is_refused(result: TrainResult) -> None:
    with pytest.raises(NotApplicableError) as error:
        pt.record_risks(replace(result, trainer=None), TASK, DATA)
    assert error.value.reason is Reason.NO_SHADOWS
    for wrong in ({"shadows": 5}, {"prior": 0.0}, {"prior": 1.5}, {"attack": pt.OneRun()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            pt.record_risks(result, TASK, DATA, **wrong)


def test_a_task_without_classes_has_none(risks: RecordRisks) -> None:
    targets = {name: Rows(rows.inputs, rows.inputs[:, :1]) for name, rows in DATA.train.items()}
    values = replace(DATA, train=targets, test=Rows(DATA.test.inputs, DATA.test.inputs[:, :1]))
    task = Task(
        model=lambda: nn.Linear(12, 1),
        loss=lambda outputs, targets: (outputs - targets).square().mean(dim=1),
    )
    trained = pt.fit(pt.SGD(epochs=1), task, values)
    found = pt.record_risks(trained, task, values, shadows=4)
    assert found.label is None and [group.name for group in found.groups] == ["all"]
    assert next(csv.DictReader(found.to_csv().splitlines()))["label"] == ""
