"""The ranges that a training on shares needs, by a run in plaintext on rows without secrets."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.parameters import initial_model
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Rows, Split, Task, widest_column
from privtrain.core.validate import check_offers, check_seed
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.dense import Descent
from privtrain.mpc.descent import LABELS, SecureDescent, encoded
from privtrain.mpc.measured import Batch, MeasuredRanges, measure
from privtrain.mpc.ranges import CHUNK
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


def check_gradients(bounds: Bounds, program: SecureDescent, rows: Rows) -> None:
    """Refuses bounds that gradients of own rows exceed in the first step.

    Args:
        bounds: The bounds.
        program: The training, with its initial weights.
        rows: Own rows with labels; what is said of them is unprotected.

    Raises:
        DataError: With the layer and both magnitudes.
    """
    if not bounds.gradients:
        return
    inputs, labels = _values(program, rows)
    # What a layer hands back of a row depends on no other row: any step size will do.
    for index in torch.split(torch.arange(len(rows)), CHUNK):
        batch = inputs[index], labels[index], Descent(2.0**-30, 0.0)
        found = measure(program.layers, program.engine, [batch], program.probabilities)
        for name, largest in found.gradients:
            if largest > bounds.of_gradient(name):
                raise DataError(
                    f"Bounds are false already in the first step: the layer {name!r} hands back "
                    f"{largest:g}, beyond the stated gradients {bounds.of_gradient(name)!r}. State "
                    f"a larger one. {widest_column(rows.inputs)}."
                )


def _values(program: SecureDescent, rows: Rows) -> tuple[Tensor, Tensor]:
    """Inputs and targets as a step takes them, float64."""
    labels = decode(dict(encoded(rows, ROWS_NAME, program.classes, labels=True))[LABELS])
    inputs = rows.inputs.detach().cpu().double()
    return inputs if program.pictures else inputs.flatten(1), labels


def _batches(program: SecureDescent, data: FederatedData, seeds: Seeds) -> Iterator[Batch]:
    rows = data.pooled()
    inputs, labels = _values(program, rows)
    for index in program.order(len(rows), seeds):
        descent = Descent(program.learning_rate / len(index), program.momentum)
        yield inputs[index], labels[index], descent
