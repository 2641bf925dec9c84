"""Membership inference: was this row trained on?"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.attacks.attack import check_target
from privtrain.attacks.scores import (
    FALSE_POSITIVES_NEEDED,
    Scores,
    advantage,
    auc,
    auc_interval,
    tpr_at_fpr,
)
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Leakage, Predictor, Target
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Rows, Task
from privtrain.core.validate import check_count

LOW_RATES = (("1%", 0.01), ("0.1%", 0.001))
"""The false positive rates at which true positive rates are reported."""


@dataclass(frozen=True, kw_only=True)
class LossThreshold:
    """A membership attack that calls a row a member where its loss is small.

    It is simple and weak: it asks the published predictor alone, with the true label of each row,
    and uses no shadow models.

    Args:
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.

    Source: Yeom et al. 2018, section 3.3 (arXiv:1709.01604).
    """

    limit: int = 10_000
    batch_size: int = 1_024
    name: str = field(default="loss threshold", init=False)
    observer: Observer = field(default=PUBLIC, init=False)

    def __post_init__(self) -> None:
        check_count(limit=self.limit, batch_size=self.batch_size)

    def run(self, target: Target, *, seed: int) -> Leakage:
        """Attacks equally many members and non-members, drawn by a seed.

        Args:
            target: Holds the public view; only the predictor, the loss and the rows are used.
            seed: Public seed of the draw.

        Returns:
            `auc`, `advantage`, `tpr_at_1%_fpr` and `tpr_at_0.1%_fpr` with 95% intervals, and
            the realised false positive rates. None where there are too few rows.

        Raises:
            ValueError: If the view is another observer's or one side has no rows.
        """
        check_target(target, self.observer)
        # Equally many on both sides, as by the fair coin of Yeom et al.'s membership experiment.
        count = min(len(target.members), len(target.non_members), self.limit)
        losses = [
            row_losses(
                target.predictor, target.task, _draw(rows, count, seed, side), self.batch_size
            )
            for side, rows in (("members", target.members), ("non_members", target.non_members))
        ]
        unscored = sum(int(torch.isnan(loss).sum()) for loss in losses)
        inside, outside = (to_scores(loss) for loss in losses)
        metrics, intervals = _metrics(inside, outside)
        return Leakage(
            attack=self.name,
            observer=self.observer.name,
            metrics=metrics,
            intervals=intervals,
            members=count,
            non_members=count,
            notes=_notes(unscored, metrics),
        )


def _draw(rows: Rows, count: int, seed: int, side: str) -> Rows:
    """Rows drawn without replacement, in random order."""
    stream = Seeds(seed)[f"loss threshold/{side}", 0, ""]
    return rows.take(torch.randperm(len(rows), generator=stream.torch())[:count])


@torch.no_grad()
def row_losses(predictor: Predictor, task: Task, rows: Rows, batch_size: int) -> Tensor:
    """The loss of a predictor on each row.

    Args:
        predictor: The attacked predictor.
        task: The task, which names the loss.
        rows: Inputs and targets.
        batch_size: The number of rows in one call of the predictor.

    Returns:
        Losses in float64, shape `(rows,)`.

    Raises:
        ValueError: If the loss does not give one value a row.
    """
    losses = []
    stream = Seeds(0)["row losses", 0, ""]
    for start in range(0, len(rows), batch_size):
        # What a model draws must not move the generators of other threads, nor follow from them.
        with global_generator(stream):
            logits = predictor(rows.inputs[start : start + batch_size])
        # A copy: a loss may write into its targets, which are those of the data set.
        loss = _loss(task, logits, rows.labels[start : start + batch_size].clone())
        if loss.shape != (len(logits),):
            raise ValueError(
                f"Expected task.loss to give one value a row, shape ({len(logits)},); "
                f'it gave {tuple(loss.shape)}. Use reduction="none".'
            )
        losses.append(loss.double().cpu())
    return torch.cat(losses)


def _loss(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss in float64: in float32 that of a confident prediction is 0, and members tie."""
    wide = targets.double() if targets.is_floating_point() else targets
    try:
        return task.loss(logits.double(), wide)
    except RuntimeError:
        # A loss that holds float32 tensors of its own, such as class weights.
        return task.loss(logits, targets)


def to_scores(losses: Tensor) -> Scores:
    """Minus the losses, as scores; a loss that is not a number gets the worst score."""
    # Yeom et al. 2018: members have smaller losses. A loss of -inf is capped at the largest float,
    # so that a threshold lies above all scores.
    largest = torch.finfo(losses.dtype).max
    scores: Scores = (-losses).nan_to_num(nan=-torch.inf, posinf=largest, neginf=-torch.inf).numpy()
    return scores


def _metrics(
    inside: Scores, outside: Scores
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    """The metrics of the two groups of scores, and the intervals of those that have one."""
    metrics: dict[str, float | None] = {"auc": auc(inside, outside)}
    intervals = {"auc": auc_interval(inside, outside)}
    gain = advantage(inside, outside)
    metrics["advantage"] = None if gain is None else gain.value
    if gain is not None:
        intervals["advantage"] = gain.interval
    for name, rate in LOW_RATES:
        point = tpr_at_fpr(inside, outside, rate)
        metrics[f"tpr_at_{name}_fpr"] = None if point is None else point.tpr
        metrics[f"realised_fpr_at_{name}"] = None if point is None else point.fpr
        if point is not None:
            intervals[f"tpr_at_{name}_fpr"] = point.tpr_interval
    return metrics, intervals


def _notes(unscored: int, metrics: dict[str, float | None]) -> tuple[str, ...]:
    notes = ["this attack only, not evidence of safety"]
    for name, rate in LOW_RATES:
        if metrics[f"tpr_at_{name}_fpr"] is None:
            needed = round(FALSE_POSITIVES_NEEDED / rate)
            notes.append(
                f"TPR at {name} FPR is not resolvable: {needed:,} non-members are needed, more "
                "than were attacked"
            )
    if unscored:
        notes.append(f"{unscored} losses were not a number and got the worst score")
    return tuple(notes)
