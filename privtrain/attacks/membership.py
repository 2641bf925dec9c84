"""Membership inference: was this row trained on?"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from privtrain.attacks.attack import check_target
from privtrain.attacks.scores import Scores
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Predictor, Target
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Rows, Task
from privtrain.core.validate import check_count


@dataclass(frozen=True, kw_only=True)
class LossThreshold:
    """A membership attack that calls a row a member where its loss is small.

    It is simple and weak: it asks the published predictor alone, with the true label of each row,
    and uses no shadow models.

    Args:
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own rows are no candidates.

    Source: Yeom et al. 2018, section 3.3 (arXiv:1709.01604).
    """

    limit: int = 10_000
    batch_size: int = 1_024
    name: str = field(default="loss threshold", init=False)
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.OUTPUTS,
        zero="the weakest attack in use, without shadow models: a stronger one may find members",
    )

    def __post_init__(self) -> None:
        check_count(limit=self.limit, batch_size=self.batch_size)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """Minus the loss of the published predictor; the seed plays no part.

        Raises:
            ValueError: If the view is another observer's, or the loss does not give one value a
                row.
        """
        check_target(target, self.observer)
        losses = row_losses(target.predictor, target.task, candidates, self.batch_size)
        # Yeom et al. 2018: members have smaller losses.
        scores: Scores = (-losses).numpy()
        return scores


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
        loss = wide_loss(task, logits, rows.labels[start : start + batch_size].clone())
        check_losses(loss, len(logits))
        losses.append(loss.double().cpu())
    return torch.cat(losses)


def check_losses(losses: Tensor, rows: int) -> None:
    """Raises `ValueError` unless there is one loss for each row."""
    if losses.shape != (rows,):
        raise ValueError(
            f"Expected task.loss to give one value a row, shape ({rows},); "
            f'it gave {tuple(losses.shape)}. Use reduction="none".'
        )


def classes_of(rows: Rows) -> Tensor:
    """The class of each row, whole numbers from 0, shape `(rows,)`, on the CPU.

    Raises:
        NotApplicableError: If the targets are no class numbers.
    """
    targets = rows.labels.detach().cpu()
    column = targets.reshape(-1) if targets.numel() == len(rows) else targets
    if column.ndim != 1 or bool(((column != column.floor()) | (column < 0)).any()):
        raise NotApplicableError(
            f"Expected targets of shape {tuple(targets.shape)} and type {targets.dtype} to be "
            "class numbers from 0, which this attack reads. Use LossThreshold.",
            Reason.NO_CLASSES,
        )
    return column.long()


def wide_loss(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss in float64: in float32 that of a confident prediction is 0, and members tie."""
    wide = targets.double() if targets.is_floating_point() else targets
    try:
        return task.loss(logits.double(), wide)
    except RuntimeError:
        # A loss that holds float32 tensors of its own, such as class weights.
        return task.loss(logits, targets)
