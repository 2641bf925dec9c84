"""Measuring: exact intervals of counts, else bootstraps, and what stands where one fails."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.attacks.scores import clopper_pearson
from privtrain.core.errors import DataError
from privtrain.core.measures import Metric
from privtrain.core.result import EXACT, Measurement
from privtrain.core.task import Rows, Task
from privtrain.runs import measuring
from privtrain.runs.measuring import Measured, check_metrics, measured, value_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def itself(inputs: Tensor) -> Tensor:
    return inputs


def on(outputs: Tensor, targets: Tensor, **metrics: Any) -> dict[str, Measurement]:
    task = Task(model=nn.Identity, metrics=metrics)
    return measured(itself, task, Rows(outputs, targets)).metrics


def signs(outputs: Tensor, targets: Tensor) -> float:
    return float(((outputs > 0) == (targets > 0.5)).double().mean())


def mean(outputs: Tensor, targets: Tensor) -> float:
    return float(outputs.double().mean())


OUTPUTS = drawn(200)
YES = ((OUTPUTS + drawn(200, seed=1)) > 0.8).float()


def test_what_counts_has_the_exact_interval_and_a_plain_function_a_bootstrap() -> None:
    made = on(OUTPUTS, YES, accuracy=pt.accuracy, hits=Metric(signs, counts=True), own=signs)
    right = round(200 * signs(OUTPUTS, YES))
    for name in ("accuracy", "hits"):
        assert made[name].interval == clopper_pearson(right, 200)
        assert (made[name].method, made[name].percent) == (EXACT, True)
    own = made["own"]
    assert own.value == made["hits"].value and own.method == "bootstrap, 500 rounds"
    assert own.interval is not None and own.interval[0] < own.interval[1]
    assert own.interval != made["hits"].interval and not own.percent


def test_a_count_that_is_no_whole_number_of_rows_is_resampled() -> None:
    labels = (drawn(200, 3, seed=2) > 0).float()
    made = on(drawn(200, 3), labels, share=Metric(signs, counts=True))["share"]
    assert made.value is not None and made.method.startswith("bootstrap")
    # In float32 a fraction is none either, but for rounding.
    single = Metric(lambda o, t: ((o > 0) == (t > 0.5)).float().mean(), counts=True)
    assert on(OUTPUTS, YES, share=single)["share"].method == EXACT


@pytest.mark.parametrize("factor", [2 / 3, 1.0, 3 / 2])
def test_the_interval_of_a_mean_has_the_width_of_its_law(factor: float) -> None:
    """Of 500 rounds; 10% is six standard deviations of a quantile's width away from 2/3 and 3/2."""
    low, high = on(OUTPUTS, YES, mean=mean)["mean"].interval or (math.nan, math.nan)
    expected = factor * 2 * 1.96 * float(OUTPUTS.std()) / math.sqrt(200)
    assert (abs((high - low) / expected - 1) < 0.15) == (factor == 1.0)


@pytest.mark.parametrize("factor", [2 / 3, 1.0, 3 / 2])
def test_resamples_of_fewer_rows_are_scaled(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(measuring, "DRAWN", 50)
    made = on(OUTPUTS, YES, mean=mean)["mean"]
    low, high = made.interval or (math.nan, math.nan)
    assert made.method == "bootstrap, 500 rounds of 50 rows"
    expected = factor * 2 * 1.96 * float(OUTPUTS.std()) / math.sqrt(200)
    assert (abs((high - low) / expected - 1) < 0.15) == (factor == 1.0)


def test_many_rows_take_fewer_rounds_and_no_more_rows() -> None:
    calls: list[int] = []

    def counting(outputs: Tensor, targets: Tensor) -> float:
        calls.append(len(outputs))
        return float(outputs.mean())

    made = on(drawn(30_000), torch.zeros(30_000), own=counting)["own"]
    assert made.method == "bootstrap, 200 rounds of 10,000 rows"
    assert calls.count(10_000) == 200 and len(calls) < 210


def test_resamples_are_the_same_each_time_and_for_every_predictor() -> None:
    one, other = (on(OUTPUTS, YES, auc=pt.auc)["auc"] for _ in range(2))
    assert one == other
    shifted = on(OUTPUTS + 1, YES, auc=pt.auc)["auc"]
    assert shifted.interval == pytest.approx(one.interval)


def test_a_metric_that_is_slow_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_SECONDS", 0.0)
    made = on(OUTPUTS, YES, auc=pt.auc)["auc"]
    assert made.value is not None and made.interval is None and "too long" in made.method


def test_resamples_without_a_value_are_counted_or_too_many() -> None:
    few = torch.zeros(200)
    few[:4] = 1
    made = on(OUTPUTS, few, auc=pt.auc)["auc"]
    assert made.interval is not None and "without a value" in made.method
    few[1:] = 0
    made = on(OUTPUTS, few, auc=pt.auc)["auc"]
    assert made.value is not None and made.interval is None and "give no value" in made.method
    assert on(OUTPUTS[:1], YES[:1], own=mean)["own"].interval is None


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (math.nan, "a finite number, not nan"),
        (math.inf, "a finite number, not inf"),
        (True, "a number, not True"),
        (torch.tensor(True), "a number, not True"),
        (None, "a number, not None"),
        ("0.5", "a number, not '0.5'"),
        (1j, "a number, not 1j"),
        (torch.zeros(200), r"one number; it returned a tensor of shape \(200,\)"),
    ],
)
def test_what_is_no_number_fails_alone(returned: Any, said: str) -> None:
    made = on(OUTPUTS, YES, odd=lambda o, t: returned, accuracy=pt.accuracy)
    assert made["accuracy"].value == signs(OUTPUTS, YES)
    failure = made["odd"].failure
    assert made["odd"].value is None and failure is not None and failure.traceback is None
    with pytest.raises(ValueError, match=said):
        raise ValueError(failure.error)


@pytest.mark.parametrize(
    "returned", [0.25, torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25), 1, np.int64(1)]
)
def test_one_number_of_any_kind_is_taken(returned: Any) -> None:
    assert on(OUTPUTS, YES, own=lambda o, t: returned)["own"].value == float(returned)


def test_a_fraction_lies_between_zero_and_one() -> None:
    for name, metric in (
        ("accuracy", lambda o, t: 93.0),
        ("hits", Metric(lambda o, t: 2.0, counts=True)),
    ):
        failure = on(OUTPUTS, YES, **{name: metric})[name].failure
        assert failure is not None and "to be in 0..1, not" in failure.error


def test_a_predictor_that_fails_fails_every_metric() -> None:
    def broken(inputs: Tensor) -> Tensor:
        raise RuntimeError("no outputs")

    task = Task(model=nn.Identity, metrics={"rmse": pt.rmse, "r2": pt.r2})
    made = measured(broken, task, Rows(OUTPUTS, YES))
    assert made.classes_predicted is None
    assert [(m.best, m.failure is not None) for m in made.metrics.values()] == [
        ("low", True),
        ("high", True),
    ]
    with pytest.raises(RuntimeError, match="no outputs"):
        measured(broken, task, Rows(OUTPUTS, YES), errors="raise")


def test_metrics_may_write_into_what_they_are_given() -> None:
    def writing(outputs: Tensor, targets: Tensor) -> float:
        outputs.zero_()
        targets.zero_()
        return 0.0

    rows = Rows(OUTPUTS.clone(), YES.clone())
    task = Task(model=nn.Identity, metrics={"first": writing, "accuracy": pt.accuracy})
    made = measured(itself, task, rows).metrics
    assert made["accuracy"].value == signs(OUTPUTS, YES)
    assert torch.equal(rows.inputs, OUTPUTS) and torch.equal(rows.labels, YES)


def square(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).square().mean())


def test_a_metric_that_pairs_all_rows_is_refused() -> None:
    metric = Metric(square)
    column = YES.reshape(200, 1)
    right = value_of("mse", metric, OUTPUTS, YES)
    assert value_of("mse", metric, OUTPUTS.reshape(200, 1), column) == right
    for outputs, targets in ((OUTPUTS.reshape(200, 1), YES), (OUTPUTS, column)):
        with pytest.raises(DataError, match="broadcasting"):
            value_of("mse", metric, outputs, targets)
        # One that takes care of shapes itself is right.
        assert value_of("rmse", Metric(pt.rmse), outputs, targets) == pytest.approx(right**0.5)


@pytest.mark.parametrize("rows", [4, 6, 30])
def test_a_metric_of_columns_that_is_right_is_taken(rows: int) -> None:
    """What another order of the targets gives by chance, as of few rows, is no broadcasting."""

    def of_columns(outputs: Tensor, targets: Tensor) -> float:
        return float(((outputs[:, 0] > 0) == (targets > 0.5)).double().mean())

    def of_vectors(outputs: Tensor, targets: Tensor) -> float:
        if targets.ndim != 1:
            raise IndexError("targets of one dimension alone")
        return of_columns(outputs, targets)

    for seed in range(40):
        outputs, targets = drawn(rows, 1, seed=seed), (drawn(rows, seed=seed + 100) > 0).float()
        right = signs(outputs[:, 0], targets)
        for metric in (of_columns, of_vectors):
            assert value_of("own", Metric(metric), outputs, targets) == right


# The commonest class


def test_the_commonest_class_alone_reaches_its_share() -> None:
    logits, classes = drawn(60, 3), torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    for targets in (classes, classes.reshape(60, 1)):
        made = on(logits, targets, accuracy=pt.accuracy, even=pt.balanced_accuracy, auc=pt.auc)
        assert made["accuracy"].commonest == 40 / 60
        assert made["even"].commonest == pytest.approx(1 / 3) and made["auc"].commonest == 0.5
    for shape in ((200,), (200, 1)):
        single = on(OUTPUTS.reshape(shape), YES, own=signs if shape == (200,) else pt.accuracy)
        assert next(iter(single.values())).commonest == float((YES == 0).double().mean())
    # Of several labels a row each has a commonest answer.
    labels = torch.tensor([[0.0, 1.0]] * 40 + [[1.0, 1.0]] * 20)
    assert on(drawn(60, 2), labels, accuracy=pt.accuracy)["accuracy"].commonest == 40 / 60


def test_probabilities_are_classes_too() -> None:
    def own(outputs: Tensor, targets: Tensor) -> float:
        return float(((outputs > 0.5) == (targets > 0.5)).double().mean())

    made = on(OUTPUTS.sigmoid(), YES, own=own)["own"]
    assert made.commonest == float((YES == 0).double().mean())


def test_where_classes_are_not_all_the_commonest_says_nothing() -> None:
    def sure(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.abs().mean())

    made = on(OUTPUTS, YES, sure=sure, brier=square, error=lambda o, t: 1 - signs(o, t))
    assert [one.commonest for one in made.values()] == [None] * 3
    made = on(OUTPUTS, drawn(200, seed=3), rmse=pt.rmse, r2=pt.r2)
    assert [one.commonest for one in made.values()] == [None] * 2


def test_how_many_classes_are_answered() -> None:
    def counted(outputs: Tensor, targets: Tensor) -> int | None:
        task = Task(model=nn.Identity, metrics={"own": mean})
        made: Measured = measured(itself, task, Rows(outputs, targets))
        return made.classes_predicted

    assert counted(OUTPUTS, YES) == 2 and counted(-OUTPUTS.abs(), YES) == 1
    assert counted(drawn(60, 3), torch.arange(60) % 3) == 3
    assert counted(OUTPUTS, drawn(200, seed=3)) is None
    assert counted(drawn(200, 2), (drawn(200, 2, seed=3) > 0).float()) is None


# Before anything is trained


def test_metrics_that_could_mean_nothing_are_refused_beforehand() -> None:
    real = Rows(drawn(9, 1), drawn(9, 1))
    for metric in (pt.accuracy, pt.balanced_accuracy, pt.auc, Metric(pt.accuracy, counts=True)):
        with pytest.raises(DataError, match=r"metrics\['own'\].*real values.*'rmse'"):
            check_metrics(Task(model=nn.Identity, metrics={"own": metric}), real)
    with pytest.raises(DataError, match="one metric at least"):
        check_metrics(Task(model=nn.Identity, metrics={}), real)
    check_metrics(Task(model=nn.Identity, metrics={"rmse": pt.rmse}), real)
    check_metrics(Task(model=nn.Identity), Rows(drawn(9, 1), torch.ones(9)))
    check_metrics(Task(model=nn.Identity), Rows(drawn(9, 1), torch.arange(9)))


def test_a_model_that_answers_nan_fails_by_every_metric_and_predicts_no_class() -> None:
    broken = torch.full((30, 2), math.nan)
    found = measured(
        itself,
        Task(model=nn.Identity, metrics={"accuracy": pt.accuracy, "auc": pt.auc}),
        Rows(broken, torch.arange(30) % 2),
    )
    assert found.classes_predicted is None
    for made in found.metrics.values():
        assert made.value is None and made.failure is not None
        assert "Expected outputs to be numbers" in made.failure.error
