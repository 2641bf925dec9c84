"""Metrics: equal to scikit-learn's for every shape of outputs, refused where they mean nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.metrics import accuracy, auc, balanced_accuracy, decisions, r2, rmse


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS, CLASSES = drawn(60, 4), torch.arange(60) % 3  # the fourth class is nobody's
YES = (drawn(60, seed=1) > 0.8).float()
LABELS = (drawn(60, 3, seed=2) > 0.3).float()


def test_of_several_classes_they_are_those_of_scikit_learn() -> None:
    said, true = LOGITS.argmax(1).numpy(), CLASSES.numpy()
    assert accuracy(LOGITS, CLASSES) == oracle.accuracy_score(true, said)
    expected = oracle.recall_score(true, said, labels=[0, 1, 2], average="macro")
    assert balanced_accuracy(LOGITS, CLASSES) == pytest.approx(expected)
    chances = LOGITS.double().softmax(1).numpy()
    areas = [oracle.roc_auc_score(true == each, chances[:, each]) for each in range(3)]
    assert auc(LOGITS, CLASSES) == pytest.approx(np.mean(areas))
    three = LOGITS[:, :3].double().softmax(1).numpy()
    expected = oracle.roc_auc_score(true, three, multi_class="ovr")
    assert auc(LOGITS[:, :3], CLASSES) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("target_shape", [(60,), (60, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_of_a_single_logit(shape: Any, target_shape: Any, kind: torch.dtype) -> None:
    # Rounded, so that scores tie.
    logits = (drawn(60, seed=3) * 2).round().reshape(shape)
    targets = YES.to(kind).reshape(target_shape)
    said, true = (logits.reshape(-1) > 0).numpy(), YES.numpy()
    assert accuracy(logits, targets) == oracle.accuracy_score(true, said)
    expected = oracle.balanced_accuracy_score(true, said)
    assert balanced_accuracy(logits, targets) == pytest.approx(expected)
    assert auc(logits, targets) == pytest.approx(oracle.roc_auc_score(true, logits.reshape(-1)))


def test_of_two_classes_the_margin_ranks() -> None:
    logits = drawn(60, 2)
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    assert auc(logits, YES.long()) == pytest.approx(oracle.roc_auc_score(YES.numpy(), margin))
    # Probabilities of both would round to 1 and tie.
    far = torch.stack([torch.zeros(4), torch.tensor([100.0, 200.0, 300.0, 400.0])], dim=1)
    assert auc(far, torch.tensor([0, 0, 1, 1])) == 1.0


def test_of_several_labels_a_row() -> None:
    logits = drawn(60, 3, seed=4)
    said, true = (logits > 0).numpy(), LABELS.numpy()
    assert accuracy(logits, LABELS) == oracle.accuracy_score(true, said)
    each = [oracle.balanced_accuracy_score(true[:, k], said[:, k]) for k in range(3)]
    assert balanced_accuracy(logits, LABELS) == pytest.approx(np.mean(each))
    expected = oracle.roc_auc_score(true, logits.numpy(), average="macro")
    assert auc(logits, LABELS) == pytest.approx(expected)


def test_one_hot_targets_are_a_class() -> None:
    hot = torch.nn.functional.one_hot(CLASSES, 4)
    for metric in (accuracy, balanced_accuracy, auc):
        assert metric(LOGITS, hot) == metric(LOGITS, CLASSES)
        assert metric(LOGITS, hot.float()) == metric(LOGITS, CLASSES)
        assert metric(LOGITS, CLASSES.reshape(60, 1)) == metric(LOGITS, CLASSES)


def test_of_many_places_a_row_all_places_count() -> None:
    logits, truth = drawn(5, 3, 4, 2), torch.arange(40).reshape(5, 4, 2) % 3
    flat = logits.movedim(1, -1).reshape(-1, 3)
    for metric in (accuracy, balanced_accuracy, auc):
        assert metric(logits, truth) == pytest.approx(metric(flat, truth.reshape(-1)))


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy, auc])
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (drawn(9, 1), drawn(9, 1)),  # real values
        (drawn(9), drawn(9)),
        (drawn(9, 3), drawn(9, 3)),
        (drawn(3, 3), drawn(3)),  # would be compared each with all
        (drawn(9, 1), torch.arange(9.0)),  # counts, beside one output
        (drawn(9, 1), torch.arange(9)),
        (drawn(9, 3), torch.zeros(8, dtype=torch.int64)),
    ],
)
def test_what_is_no_class_is_refused(metric: Any, outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"class numbers beside outputs.*pt\.rmse"):
        metric(outputs, targets)


def test_an_auc_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all 9 are of one"):
        auc(drawn(9), torch.ones(9))


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy, auc])
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [(LOGITS, CLASSES), (drawn(60), YES), (drawn(60, 1), YES), (drawn(60, 3), LABELS)],
)
def test_a_model_that_answers_nan_has_no_figure(
    metric: Any, outputs: Tensor, targets: Tensor
) -> None:
    broken = outputs.clone()
    broken[7] = math.nan
    with pytest.raises(DataError, match=r"outputs to be numbers; of \d+ of them \d are not"):
        metric(broken, targets)
    # A class that is ruled out by a logit of minus infinity is ruled out, and no error.
    assert 0 <= accuracy(outputs.where(outputs > -1, -math.inf), targets) <= 1


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_of_real_values(shape: tuple[int, ...]) -> None:
    outputs, targets = drawn(*shape), drawn(*shape, seed=1)
    predicted, true = outputs.double().numpy(), targets.double().numpy()
    assert rmse(outputs, targets) == pytest.approx(oracle.root_mean_squared_error(true, predicted))
    assert r2(outputs, targets) == pytest.approx(oracle.r2_score(true, predicted))
    assert rmse(targets, targets) == 0 and r2(targets, targets) == 1
    alike = torch.ones(shape)
    for said in (alike, outputs):
        expected = oracle.r2_score(alike.numpy(), said.numpy())
        assert r2(said, alike) == expected


def test_a_dimension_of_one_pairs_nothing() -> None:
    outputs, targets = drawn(40, 1), drawn(40, seed=1)
    assert (
        rmse(outputs, targets)
        == rmse(outputs, targets.reshape(40, 1))
        == rmse(outputs.reshape(40), targets.reshape(40, 1))
    )
    with pytest.raises(DataError, match=r"\(40, 1\).*\(40, 2\)"):
        rmse(outputs, drawn(40, 2))
    with pytest.raises(DataError, match="two at least"):
        r2(outputs[:1], targets[:1])


def test_decisions_say_what_is_compared() -> None:
    decided = decisions(torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    assert decided.predicted.tolist() == [0, 1] and decided.truth.tolist() == [0, 0]
    assert not decided.labels
    assert decisions(drawn(60, 3), LABELS).labels
