"""Scores by which tuning chooses, and what each of them releases."""

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from privtrain.accounting.event import Event, no_event
from privtrain.core.errors import DataError, UnsoundReleaseError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.fields import LATER
from privtrain.core.measures import ACCURACY, Metric
from privtrain.core.metrics import accuracy
from privtrain.core.observers import Exposure
from privtrain.core.parameters import ModelPredictor
from privtrain.core.result import Predictor
from privtrain.core.seeding import Stream
from privtrain.core.statement import Relation, Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.runs.checkpoint import LOADED_BEFOREHAND
from privtrain.runs.measuring import outputs_of, value_of

_ACCURACY = Metric(accuracy, counts=True)


class Score(Protocol):
    """How good a trained model is, so that the best one can be chosen."""

    @property
    def rows(self) -> Rows:
        """What it is measured on."""
        ...

    @property
    def assumption(self) -> str:
        """What has to hold for its cost."""
        ...

    def event(self, unit: Unit, relation: Relation) -> Event:
        """What measuring one model releases."""
        ...

    @property
    def metric(self) -> Metric:
        """What is measured, and which scores are the good ones."""
        ...

    def by(self, metric: Metric) -> "Score":
        """The same score by another metric."""
        ...

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """The score; not a number where there is none."""
        ...


def leading(task: Task) -> tuple[str, Metric]:
    """The name of the metric by which models of a task are chosen, and the metric."""
    return next(iter(task.measures.items()), (ACCURACY, _ACCURACY))


@dataclass(frozen=True)
class PublicRows:
    """Scores a model by the task's main metric on rows that are declared public, at no cost.

    Args:
        rows: Rows with labels that anybody may read and nobody is protected in.
        metric: What is measured; `tune` puts the task's main metric in its place.
    """

    rows: Rows
    metric: Metric = field(default=_ACCURACY, kw_only=True, metadata=LATER)

    @property
    def assumption(self) -> str:
        return "the rows that scores were measured on are public, as the user declared"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """Nothing: it is computed from what is released and what is public."""
        return no_event()

    def by(self, metric: Metric) -> "PublicRows":
        return replace(self, metric=metric)

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """The metric on the rows."""
        # A trial whose model gives no value is no reason to lose the others, which were paid for.
        with suppress(*OWN_ERRORS):
            outputs = outputs_of(predictor, self.rows, "score")
            return value_of("main", self.metric, outputs, self.rows.labels)
        return math.nan


@dataclass(frozen=True)
class PrivateRows:
    """Scores a model by a noisy number of private rows that it answers correctly.

    One row changes that number by at most 1, under every relation: the task's main metric counts
    rows, and is asked about each row by itself.

    Args:
        rows: Private rows with labels, such as `data.validation`.
        mechanism: The noise, `Gaussian(1.0, noise_multiplier)` or `Laplace(1.0, ...)`: a row
            contributes at most 1.
        metric: What is counted; `tune` puts the task's main metric in its place.

    Raises:
        UnsoundReleaseError: If there is no noise.
        UnsupportedError: If the noise is secure.
        ValueError: If the clipping norm is not 1.
    """

    rows: Rows
    mechanism: Gaussian | Laplace
    metric: Metric = field(default=_ACCURACY, kw_only=True, metadata=LATER)

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, (Gaussian, Laplace)) or not self.mechanism.about.noisy:
            raise UnsoundReleaseError(
                f"A score on private rows needs noise, and mechanism={self.mechanism!r} draws "
                "none: choosing by it is a release. Use Gaussian(1.0, noise_multiplier) or "
                "PublicRows."
            )
        if self.mechanism.about.grid is not None:
            raise UnsupportedError(
                f"{self.mechanism} has no theorem under a selection yet. Use secure=False."
            )
        if self.mechanism.clipping_norm != 1.0:
            raise ValueError(
                f"Expected mechanism.clipping_norm={self.mechanism.clipping_norm!r} to be 1.0: a "
                "row is answered correctly or not."
            )

    @property
    def assumption(self) -> str:
        return "scores are noisy counts of correctly answered private rows, paid for in each trial"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """One noised count.

        Raises:
            UnsoundReleaseError: If the unit may hold many rows.
        """
        if unit is not Unit.EXAMPLE:
            raise UnsoundReleaseError(
                f"The score hides one row, and the trainer promises something per {unit}, who may "
                "hold many of the scored rows. Score on PublicRows instead."
            )
        # Whoever reads the noised count knows none of its noise.
        seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
        return self.mechanism.event(seen, relation)

    def by(self, metric: Metric) -> "PrivateRows":
        return replace(self, metric=metric)

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """The number of rows that the metric counts, plus noise; it may be negative."""
        # Of a count, not of a rate: a row moves it by 1, which is the mechanism's clipping norm.
        answered = _counted(predictor, self.rows, self.metric)
        count = torch.tensor([answered], dtype=torch.float64)
        noised, _ = self.mechanism.add(count, None, stream)
        return float(noised)


def _counted(predictor: Predictor, rows: Rows, metric: Metric) -> int:
    """How many rows a metric counts, each asked about by itself and worth at most 1."""
    outputs, targets = outputs_of(predictor, rows, "score"), rows.labels
    if metric.compute is accuracy and outputs.ndim == 2 and outputs.shape[1] > 1 == targets.ndim:
        # Of NaN the largest is "the first one"; below, too, such a row counts as wrong.
        broken = outputs.isnan().any(dim=1)
        return int(((outputs.argmax(dim=1) == targets) & ~broken).sum())
    # What a metric says of all rows could follow from one of them, whatever it is said to count.
    counted = 0
    for row in range(len(rows)):
        with suppress(*OWN_ERRORS):
            one = slice(row, row + 1)
            counted += value_of("main", metric, outputs[one], targets[one]) > 0.5
    return counted


def check_score(score: Score, data: FederatedData, task: Task) -> None:
    """Refuses scores that would leak, or make the reported figures too good.

    Raises:
        UnsoundReleaseError: If private rows are scored without noise, or by a metric that one row
            may change by more than 1.
        DataError: If there are no rows or labels, or they are the test rows.
    """
    # Not any `Score`: an own one could look at private rows and charge nothing for it.
    if not isinstance(score, (PublicRows, PrivateRows)):
        raise UnsoundReleaseError(
            f"Expected score={type(score).__name__} to say whose rows it looks at: rows are "
            "private unless they are declared. Use PublicRows(rows) where anybody may read them, "
            "or PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )
    rows = score.rows
    if not isinstance(rows, Rows) or rows.targets is None or len(rows) == 0:
        raise DataError("Expected score.rows to hold rows with labels; there are none.")
    name, metric = leading(task)
    if isinstance(score, PrivateRows) and not metric.counts:
        raise UnsoundReleaseError(
            f"PrivateRows counts rows that are answered correctly, and the task's main metric "
            f"{name!r} is no count: nobody knows how far one row moves it. Name one that counts, "
            "as by Task(metrics={'accuracy': pt.accuracy}) or Metric(..., counts=True), or score "
            "on PublicRows."
        )
    if rows.inputs is data.test.inputs:
        raise DataError(
            "Expected score.rows to be other rows than data.test: a model that was chosen on the "
            "test rows looks better there than it is. Use validation or public rows."
        )
    # By identity: the honest mistake is to hand in the training rows themselves. Of very many
    # parties the first ones only, for the others are loaded when they are sampled.
    private = [data.train[party].inputs for party in data.parties[:LOADED_BEFOREHAND]]
    if isinstance(score, PublicRows) and any(rows.inputs is inputs for inputs in private):
        raise UnsoundReleaseError(
            "PublicRows holds rows of data.train, which the statement protects. Score on other "
            "rows, or use PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )


def try_score(score: Score, data: FederatedData, task: Task, model: nn.Module) -> None:
    """Refuses a score that is no number, before anything is trained or spent.

    Private rows are not looked at: what is asked about each of them is tried on a test row.

    Args:
        score: How models will be compared.
        data: Whose test rows are tried.
        task: Whose main metric is taken.
        model: A model of the task that nobody will use afterwards.

    Raises:
        DataError: If the main metric gives no number for it.
    """
    public = isinstance(score, PublicRows)
    rows = score.rows if public else data.test.take(torch.arange(1))
    if rows.targets is None:
        return
    name, metric = leading(task)
    predictor = ModelPredictor(model)
    try:
        value_of(name, metric, outputs_of(predictor, rows, "score"), rows.labels)
    except OWN_ERRORS as error:
        where = "score.rows" if public else "a single row, as PrivateRows asks about each"
        raise DataError(
            f"Expected the task's main metric {name!r}, by which trials are compared, to give a "
            f"number for the initial model on {where}; it raised {type(error).__name__}: "
            f"{text_of(error)} Name another one by Task(main=...)."
        ) from error
