"""Passes over rows in a public order, for training without noise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from privtrain.core.task import Rows


def batches(
    rows: int,
    batch_size: int | None,
    epochs: int,
    generator: torch.Generator,
    *,
    alone: bool = True,
) -> Iterator[Tensor | None]:
    """Indices of the batches of all epochs, each epoch in a random order of its own.

    Args:
        rows: Number of rows.
        batch_size: Rows in a batch; None, or at least `rows`, for all in their own order.
        epochs: Number of epochs.
        generator: Where the orders come from.
        alone: Whether the last batch may hold one row, where the others hold more. Else that row
            joins the batch before it.

    Yields:
        Indices, shape `(batch,)`; None stands for all rows as they are.
    """
    left = 0 if alone or batch_size is None or batch_size == 1 else 1
    for _ in range(epochs):
        if batch_size is None or batch_size >= rows:
            # All rows as they are: no index has to be drawn, sent or looked up.
            yield None
        else:
            cuts = tuple(range(batch_size, rows - left, batch_size))
            yield from torch.randperm(rows, generator=generator).tensor_split(cuts)


def row_batches(
    rows: Rows,
    batch_size: int | None,
    epochs: int,
    generator: torch.Generator,
    *,
    alone: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of the batches of all epochs; see `batches`.

    Yields:
        Copies of inputs `(batch, ...)` and targets `(batch, ...)`, on the rows' device.
    """
    # Copies: a model may write into what it is given, and the next epoch takes the rows again.
    for index in batches(len(rows), batch_size, epochs, generator, alone=alone):
        if index is None:
            yield rows.inputs.clone(), rows.labels.clone()
        else:
            yield rows.inputs.index_select(0, index), rows.labels.index_select(0, index)
