"""What a task measures: its metrics, which of them leads, and which way is better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from privtrain.core.metrics import accuracy, auc, balanced_accuracy, r2, rmse
from privtrain.core.nearest import nearest
from privtrain.core.validate import check_flag

Compute = Callable[[Tensor, Tensor], float]
"""Outputs `(rows, ...)` and targets `(rows, ...)` to a number."""

Best = Literal["high", "low"]
"""Which values of a metric are the good ones."""

HIGH: Best = "high"
LOW: Best = "low"

ACCURACY = "accuracy"
"""The name of the metric that leads where none is named."""

LOW_NAMES = frozenset(
    {
        *("mse", "rmse", "mae", "mape", "msle", "rmsle"),
        *("mean_squared_error", "root_mean_squared_error", "mean_absolute_error"),
        *("loss", "log_loss", "cross_entropy", "nll", "perplexity", "brier", "brier_score"),
        *("error", "error_rate", "max_error", "hamming_loss"),
    }
)
"""Names of metrics of which less is better, in small letters."""

_HIGH: tuple[Compute, ...] = (accuracy, balanced_accuracy, auc, r2)


@dataclass(frozen=True)
class Metric:
    """A number that says how good outputs are.

    Args:
        compute: Outputs `(rows, ...)` and targets `(rows, ...)` to a number.
        counts: Whether the number is the fraction of rows that are answered rightly, each row by
            itself. Its interval is then the exact one of a count; else it is a bootstrap.
        best: "high" or "low": which values are the good ones.

    Raises:
        ValueError: If `compute` cannot be called, `counts` is no truth value, or `best` is another
            word.
    """

    compute: Compute
    counts: bool = field(default=False, kw_only=True)
    best: Best = field(default=HIGH, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.compute, type) or not callable(self.compute):
            raise ValueError(
                f"Expected compute={self.compute!r} to be a function of outputs and targets."
            )
        check_flag(counts=self.counts)
        if self.best not in (HIGH, LOW):
            raise ValueError(
                f"Expected best={self.best!r} to be 'high' or 'low'."
                + nearest(self.best, (HIGH, LOW))
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The number; see `compute`."""
        return self.compute(outputs, targets)


def metric_of(name: str, given: Metric | Compute) -> Metric:
    """What a task's entry stands for.

    Args:
        name: What the task calls it. Of a known one, such as "rmse", less is better.
        given: A metric as it is; or a function, which counts only where it is `accuracy`.

    Returns:
        The metric.
    """
    if isinstance(given, Metric):
        return given
    plain = name.lower().replace(" ", "_").replace("-", "_")
    low = given is rmse or (plain in LOW_NAMES and not any(given is each for each in _HIGH))
    return Metric(given, counts=given is accuracy, best=LOW if low else HIGH)


class _Unnamed(str):
    """The main metric where nobody named one: `replace` with other metrics chooses again."""

    __slots__ = ()


def main_of(metrics: Mapping[str, Metric | Compute], named: str) -> str:
    """The metric of a task that leads.

    Args:
        metrics: The task's.
        named: Which one the user named; empty, or what this function chose, where none was.

    Returns:
        The named one; else "accuracy" where there is one, else the first, else "".

    Raises:
        ValueError: If `metrics` is no mapping from names to metrics, or the name is none of them.
    """
    _check_metrics(metrics)
    if not named or isinstance(named, _Unnamed):
        return _Unnamed(ACCURACY if ACCURACY in metrics else next(iter(metrics), ""))
    if named not in metrics:
        raise ValueError(
            f"Expected main={named!r} to be one of task.metrics: "
            f"{', '.join(metrics) or 'there is none'}." + nearest(named, metrics)
        )
    return named


def _check_metrics(metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"Expected metrics={metrics!r} to be a mapping from name to function, such as "
            "{'rmse': pt.rmse}."
        )
    for name, given in metrics.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"Expected metrics to have names in quotes, not {name!r}.")
        if isinstance(given, type) or not callable(given):
            raise ValueError(
                f"Expected metrics[{name!r}]={given!r} to be a function of outputs and targets, "
                "or a pt.Metric of one."
            )


def better_by(value: float, other: float, best: Best) -> float:
    """By how much a value is better than another one, in the unit of both; below zero if worse.

    Args:
        value: A value of a metric.
        other: Another value, such as that of a baseline.
        best: Which values of the metric are the good ones.
    """
    return value - other if best == HIGH else other - value
