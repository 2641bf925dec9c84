"""How good a trained model is, by all metrics of a task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from privtrain.core import shown
from privtrain.core.errors import DataError
from privtrain.core.parameters import apart
from privtrain.core.result import Predictor, Row, TrainResult
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.runs.measuring import RAISE, measured


@dataclass(frozen=True, kw_only=True)
class Evaluation(Mapping[str, float]):
    """What was measured, by the names of the metrics. No guarantee covers it.

    Args:
        metrics: Name to value.
        intervals: Name to its 95% interval, of those that have one.
        rows: On how many rows it was measured.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: int = 0

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def shown(self) -> Iterator[tuple[str, str]]:
        """Name of each metric, and its value with its interval."""
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            interval = "" if low is None else f" (95% interval {low:.4f} to {high:.4f})"
            yield name, f"{value:.4f}{interval}"

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {text}" for name, text in self.shown())
        return f"Evaluation({figures}; {self.rows} rows, unprotected)"

    def _repr_html_(self) -> str:
        """The figures as a table for notebooks."""
        title = f"Measured on {self.rows} rows (unprotected)"
        return shown.table(("metric", "value"), self.shown(), title)


def evaluate(
    result: TrainResult | Row | Predictor | nn.Module, task: Task, data: FederatedData | Rows
) -> Evaluation:
    """Measures a trained model on test rows by all metrics of the task.

    Args:
        result: What `fit` returned, a row of a comparison that kept its models, or any predictor;
            of a module a copy is asked, in eval mode.
        task: Whose metrics are taken.
        data: Whose test rows it is measured on, or rows with targets.

    Returns:
        The figures by name, the main metric first, each with its 95% interval: exact where the
        metric counts rows, else a bootstrap. They are computed from these rows without noise: no
        guarantee covers them.

    Raises:
        DataError: If there are no rows, they have no targets, a metric gives no number, or the row
            of a comparison has no model.
        ValueError: If the result or the task is something else.
    """
    predictor = _predictor_of(result)
    if not isinstance(task, Task):
        raise ValueError(f"Expected task={task!r:.80} to be a Task: evaluate(result, task, data).")
    rows = data.test if isinstance(data, FederatedData) else data
    if not isinstance(rows, Rows) or rows.targets is None or len(rows) == 0:
        raise DataError("Expected data to hold test rows with targets; there are none.")
    found = measured(predictor, task, rows, errors=RAISE).metrics
    return Evaluation(
        metrics={name: each.value for name, each in found.items() if each.value is not None},
        intervals={name: each.interval for name, each in found.items() if each.interval},
        rows=len(rows),
    )


def _predictor_of(result: TrainResult | Row | Predictor | nn.Module) -> Predictor:
    if isinstance(result, Row):
        if result.predictor is None:
            raise DataError(
                f"The row {result.label!r} of the comparison has no model. Measure it as "
                "row.metrics, or keep models by compare(..., keep_models=True)."
            )
        return result.predictor
    if isinstance(result, TrainResult):
        return result.predictor
    if isinstance(result, nn.Module):
        return apart(result)
    if isinstance(result, type) or not callable(result):
        raise ValueError(
            f"Expected result={result!r:.80} to be what pt.fit returned, a row of a comparison, a "
            "module or a function from inputs to outputs: evaluate(result, task, data)."
        )
    return result
