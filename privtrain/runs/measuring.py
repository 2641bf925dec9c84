"""Measuring a predictor: the value of each metric of a task, with an interval that fits it."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.attacks.scores import clopper_pearson
from privtrain.core.errors import DataError, NotApplicableError, PrivtrainError
from privtrain.core.failures import OWN_ERRORS, text_of, traceback_of
from privtrain.core.measures import ACCURACY, HIGH, Metric
from privtrain.core.metrics import accuracy, auc, balanced_accuracy, decisions
from privtrain.core.result import EXACT, Failure, Measurement, Predictor
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.settings import kept_settings
from privtrain.core.task import Rows, Task

KEEP, RAISE = "keep", "raise"
"""What `compare` does with an error: it goes into the row, or stops the comparison."""

ROUNDS, ROUNDS_OF_MANY, MANY = 500, 200, 2_000
"""Rounds of a bootstrap, and of one of more than so many rows."""

DRAWN = 10_000
"""Rows of a resample at most: of more of them the spread is that of so many, scaled."""

MOST_SECONDS = 120.0
"""An interval that would take longer is left out, and the reason stands in its place."""

_TIMED = 5
"""After so many rounds it is known how long all of them take."""

_ORDERS = 6

MOST_UNDEFINED = 0.05
"""The fraction of resamples on which a metric may have no value."""


def failure_of(error: BaseException) -> Failure:
    """Why a part failed; where the error is not one of ours, also where it came from."""
    ours = isinstance(error, PrivtrainError) and error.__cause__ is None
    return Failure(
        error=f"{type(error).__name__}: {text_of(error)}",
        traceback=None if ours else traceback_of(error),
        reason=error.reason if isinstance(error, NotApplicableError) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a predictor is worth on some rows.

    Args:
        metrics: Name to measurement, the main metric first.
        classes_predicted: How many different classes it answers; None where it answers none.
    """

    metrics: dict[str, Measurement]
    classes_predicted: int | None = None


def measured(predictor: Predictor, task: Task, rows: Rows, *, errors: str = KEEP) -> Measured:
    """Every metric of a task on rows, each with its 95% interval.

    The interval of a metric that counts rows is the exact one of Clopper and Pearson; that of any
    other is a percentile bootstrap, whose resamples are drawn by one public seed, so that all
    predictors are measured on the same ones.

    Args:
        predictor: What is measured.
        task: Whose metrics are taken.
        rows: Test rows, with labels.
        errors: `KEEP` or `RAISE`: whether what fails goes into its measurement, or is raised.

    Returns:
        The measurements.
    """
    measures = task.measures
    try:
        outputs = outputs_of(predictor, rows)
    except OWN_ERRORS as error:  # a user's model may raise anything
        if errors == RAISE:
            raise
        return Measured(metrics={name: _failed(name, measures[name], error) for name in measures})
    made = {}
    for name, metric in measures.items():
        try:
            made[name] = _measured(name, metric, outputs, rows.labels)
        except OWN_ERRORS as error:  # so may a metric
            if errors == RAISE:
                raise
            made[name] = _failed(name, metric, error)
    return Measured(metrics=made, classes_predicted=_classes_predicted(outputs, rows.labels))


def _failed(name: str, metric: Metric, error: BaseException) -> Measurement:
    percent = _is_percent(name, metric)
    return Measurement(best=metric.best, percent=percent, failure=failure_of(error))


def check_metrics(task: Task, rows: Rows) -> None:
    """Refuses metrics that could not be measured, before anything is trained.

    Args:
        task: Whose metrics will be taken.
        rows: Test rows, with labels.

    Raises:
        DataError: If there is no metric, or one that takes classes and the labels are none.
    """
    if not task.metrics:
        raise DataError(
            "Expected task.metrics to hold one metric at least, by which models are compared; it "
            "is empty. Give such as Task(metrics={'accuracy': pt.accuracy}), or train by fit."
        )
    real = rows.labels != rows.labels.double().round()
    for name, metric in task.measures.items():
        of_classes = any(metric.compute is each for each in (accuracy, balanced_accuracy, auc))
        if of_classes and bool(real.any()):
            raise DataError(
                f"Expected data.test.targets to be class numbers, as task.metrics[{name!r}] takes "
                f"them; they are real values, such as {float(rows.labels[real][0]):g}. Of such "
                "values use Task(metrics={'rmse': pt.rmse, 'r2': pt.r2})."
            )


def outputs_of(predictor: Predictor, rows: Rows, purpose: str = "evaluation") -> Tensor:
    """What a predictor answers on rows.

    Args:
        predictor: What is asked.
        rows: What it is asked about.
        purpose: Names the public seed of what a model draws while it answers.

    Returns:
        Outputs, shape `(rows, ...)`.
    """
    # What a model draws must not move the generators of other threads, nor follow from them.
    with (
        kept_settings(),
        torch.no_grad(),
        global_generator(Seeds(0)[purpose, 0, ""]),
    ):
        return predictor(rows.inputs)


def value_of(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    """The value of a metric, as a plain number.

    Args:
        name: What the task calls it, for messages.
        metric: The metric.
        outputs: Shape `(rows, ...)`.
        targets: Shape `(rows, ...)`.

    Returns:
        A finite number; of a metric that counts, and of one that is called "accuracy", in 0..1.

    Raises:
        DataError: If the metric returns something else, or combines each output with all targets.
    """
    value = _number_of(name, metric, outputs, targets)
    if _pairs_all(name, metric, outputs, targets, value):
        raise DataError(
            f"Expected task.metrics[{name!r}] to compare each output with its own target; outputs "
            f"of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} are "
            "combined each with all others (broadcasting). Give both one shape in the metric, as "
            "by targets.reshape(outputs.shape)."
        )
    return value


def _pairs_all(name: str, metric: Metric, outputs: Tensor, targets: Tensor, value: float) -> bool:
    """Whether whose target is whose plays no part, as in (rows, 1) minus (rows,)."""
    if outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return False
    if len(outputs) != len(targets) or len(targets) < 3:
        return False
    generator = Seeds(0)["pairs", 0, ""].torch()
    # The best and the worst order, and some others: by chance one gives the same accuracy.
    upwards = targets[targets.reshape(len(targets), -1)[:, 0].argsort()]
    places = outputs.reshape(len(outputs), -1)[:, 0].argsort().argsort()
    orders = [upwards[places], upwards.flip(0)[places]]
    for _ in range(_ORDERS):
        chosen = torch.randperm(len(targets), generator=generator)
        orders.append(targets[chosen.to(targets.device)])
    with suppress(*OWN_ERRORS):  # a metric may take targets of the one shape alone
        own = _number_of(name, metric, outputs, targets.reshape(outputs.shape))
        if math.isclose(own, value, rel_tol=1e-3):
            return False
        others = (_number_of(name, metric, outputs, order) for order in orders)
        return all(math.isclose(other, value, rel_tol=1e-5) for other in others)
    return False


def _number_of(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    # Copies: a metric may write into what it is given, and another one follows. Nor does what it
    # sets of torch reach what is computed next.
    with kept_settings():
        given: Any = metric(outputs.clone(), targets.clone())
    if isinstance(given, Tensor) and given.numel() != 1:
        raise DataError(
            f"Expected task.metrics[{name!r}] to return one number; it returned a tensor of shape "
            f"{tuple(given.shape)}. Average it over the rows, as by .mean()."
        )
    plain = given.item() if isinstance(given, (Tensor, np.generic)) else given
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise DataError(f"Expected task.metrics[{name!r}] to return a number, not {plain!r}.")
    value = float(plain)
    if (metric.counts or name == ACCURACY) and not 0 <= value <= 1:
        raise DataError(
            f"Expected task.metrics[{name!r}] to be in 0..1, not {value:g}: it is a fraction of "
            "rows."
        )
    if not math.isfinite(value):
        raise DataError(f"Expected task.metrics[{name!r}] to be a finite number, not {value}.")
    return value


def _is_percent(name: str, metric: Metric) -> bool:
    return metric.counts or name == ACCURACY or metric.compute is balanced_accuracy


def _measured(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> Measurement:
    value = value_of(name, metric, outputs, targets)
    count = round(value * len(targets))
    # In float32 a fraction is whole to seven digits.
    if metric.counts and abs(value * len(targets) - count) <= max(1e-3, 1e-6 * len(targets)):
        interval: tuple[float, float] | None = clopper_pearson(count, len(targets))
        method = EXACT
    else:
        interval, method = _bootstrapped(name, metric, outputs, targets, value)
    return Measurement(
        value=value,
        interval=interval,
        method=method,
        best=metric.best,
        percent=_is_percent(name, metric),
        commonest=commonest_alone(name, metric, outputs, targets, value),
    )


def _bootstrapped(
    name: str, metric: Metric, outputs: Tensor, targets: Tensor, value: float
) -> tuple[tuple[float, float] | None, str]:
    """The 95% percentile interval over resampled rows, and what it is.

    Source: Efron and Tibshirani 1993, section 13.3; with fewer rows in a resample than there are,
        Bickel, Goetze and van Zwet 1997, for a spread that falls as the root of their number.
    """
    rows = len(targets)
    if rows < 2:
        return None, "no interval: there is one row"
    rounds, drawn = ROUNDS if rows <= MANY else ROUNDS_OF_MANY, min(rows, DRAWN)
    generator, start = Seeds(0)["bootstrap", 0, ""].torch(), time.perf_counter()
    values: list[float] = []
    for done in range(rounds):
        if done == _TIMED and (time.perf_counter() - start) / done * rounds > MOST_SECONDS:
            return None, f"no interval: {rounds} rounds of a bootstrap would take too long"
        chosen = torch.randint(rows, (drawn,), generator=generator).to(outputs.device)
        with suppress(*OWN_ERRORS):  # as of an AUC where all rows that were drawn are of one class
            values.append(_number_of(name, metric, outputs[chosen], targets[chosen]))
    undefined = rounds - len(values)
    if undefined > MOST_UNDEFINED * rounds:
        return None, f"no interval: of {rounds} resamples {undefined} give no value"
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    scale = math.sqrt(drawn / rows)
    method = f"bootstrap, {rounds} rounds"
    method += f" of {drawn:,} rows" if drawn < rows else ""
    method += f", {undefined} without a value" if undefined else ""
    return (value + scale * (low - value), value + scale * (high - value)), method


def commonest_alone(
    name: str, metric: Metric, outputs: Tensor, targets: Tensor, value: float
) -> float | None:
    """What whoever always answers the commonest class of the targets would reach.

    Args:
        name: What the task calls the metric.
        metric: The metric.
        outputs: What the model answers, shape `(rows, ...)`.
        targets: Shape `(rows, ...)`.
        value: The value of the metric on them.

    Returns:
        That value; None where targets are no classes, or where the metric reads more than which
        class is answered, such as how sure the model is.
    """
    if metric.best != HIGH or outputs.ndim > 2:
        return None
    try:
        decided = decisions(outputs, targets)
        # The metric reads classes alone if it is the same for outputs that say nothing else.
        hard = [_as_logits(said, outputs) for said in _said(decided.predicted, outputs)]
        if metric.compute is not auc and not any(
            _number_of(name, metric, each, targets) == value for each in hard
        ):
            return None
        commonest = decided.truth.mode(dim=0).values.expand_as(decided.truth)
        return _number_of(name, metric, _as_logits(commonest, outputs), targets)
    except OWN_ERRORS:  # the figure is an extra: the value stands without it
        return None


def _said(predicted: Tensor, outputs: Tensor) -> list[Tensor]:
    """What is answered, by logits; and by probabilities, where single outputs may be such."""
    if outputs.shape == predicted.shape or outputs.numel() == len(outputs):
        return [predicted, (outputs > 0.5).long().reshape(predicted.shape)]
    return [predicted]


def _as_logits(answers: Tensor, like: Tensor) -> Tensor:
    """Logits -1 and 1 that say given classes, in the shape of others."""
    if like.numel() == answers.numel():
        return (2 * answers - 1).to(like.dtype).reshape(like.shape)
    return (2 * torch.nn.functional.one_hot(answers, like.shape[1]) - 1).to(like.dtype)


def _classes_predicted(outputs: Tensor, targets: Tensor) -> int | None:
    """How many different classes are answered; None where targets are no classes of one kind."""
    try:
        decided = decisions(outputs, targets)
    except DataError:
        return None
    return None if decided.labels else len(torch.unique(decided.predicted))


ONE_CLASS = (
    "the model answers all test rows with one class: what it shows is how common that class is"
)


def one_class(predicted: int | None, rows: Rows) -> tuple[str, ...]:
    """A note where a model answers rows of several classes with one; else nothing.

    Args:
        predicted: How many classes it answers; None where it answers none.
        rows: The test rows, with labels.
    """
    return (ONE_CLASS,) if predicted == 1 and len(torch.unique(rows.labels)) > 1 else ()
