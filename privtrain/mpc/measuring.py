"""The ranges that a training on shares needs, by a run in plaintext on rows without secrets."""

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from privtrain.core.parameters import initial_model
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Split, Task
from privtrain.core.validate import check_offers, check_seed
from privtrain.mpc.dense import Descent
from privtrain.mpc.descent import LABELS, SecureDescent, encoded
from privtrain.mpc.measured import Batch, MeasuredRanges, measure
from privtrain.mpc.sharing import decode

ROWS_NAME = "the rows that are measured"


class OnShares(Protocol):
    """A trainer whose steps run on shares, such as `MPCSGD`."""

    def program(
        self, task: Task, model: nn.Module, split: Split, row_shape: tuple[int, ...]
    ) -> SecureDescent:
        """What every computing party runs."""
        ...


def measured_ranges(
    trainer: OnShares, task: Task, data: FederatedData, *, seed: int = 0
) -> MeasuredRanges:
    """What each operation of a training on shares would reach on rows that are public or synthetic.

    The steps are those of the trainer's plaintext twin, with the same initial weights and the same
    order of rows, in float64. What comes out follows from the rows, is not protected, and proves
    nothing for others.

    Args:
        trainer: The training, `MPCSGD`.
        task: What is learned.
        data: Public or synthetic rows; never those that shares are to protect. `trainer.batch_size`
            and the number of these rows decide how many a gradient is summed over.
        seed: That of `fit`.

    Returns:
        The operations with the bits that they took, as a table to print, and as `Bounds`.

    Raises:
        DataError: If rows cannot be shared, or training diverges on them.
        UnsupportedError: If the model or the loss cannot be trained on shares.
    """
    check_offers("program", "pt.MPCSGD()", trainer=trainer)
    check_seed(seed)
    seeds = Seeds(seed)
    model = initial_model(task, seeds["initialisation", 0, ""])
    program = trainer.program(task, model, data.split, tuple(data.pooled().inputs.shape[1:]))
    batches = _batches(program, data, seeds)
    return measure(program.layers, program.engine, batches, program.probabilities)


def _batches(program: SecureDescent, data: FederatedData, seeds: Seeds) -> Iterator[Batch]:
    rows = data.pooled()
    labels = decode(dict(encoded(rows, ROWS_NAME, program.classes, labels=True))[LABELS])
    inputs = rows.inputs.detach().cpu().double()
    if not program.pictures:
        inputs = inputs.flatten(1)
    for index in program.order(len(rows), seeds):
        descent = Descent(program.learning_rate / len(index), program.momentum)
        yield inputs[index], labels[index], descent
