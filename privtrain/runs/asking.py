"""Asking a kept model about new rows: a row that it cannot take is named."""

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.parameters import ModelPredictor

AT_ONCE = 4_096
"""So many rows are put through a model at once."""


def asked(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of a model for new rows.

    Args:
        module: The model.
        inputs: Shape `(rows, ...)`.

    Returns:
        Shape `(rows, ...)`.

    Raises:
        DataError: If the model raises anything, as an embedding does that has no such token.
    """
    made = []
    for start in range(0, max(len(inputs), 1), AT_ONCE):
        part = inputs[start : start + AT_ONCE]
        try:
            made.append(ModelPredictor(module)(part))
        except OWN_ERRORS as error:  # a model's own code may raise anything
            row = _first_wrong(module, part)
            unknown = _unknown(module, part[row : row + 1])
            raise DataError(
                f"The model cannot take row {start + row}, counted from 0{unknown}: it raised "
                f"{type(error).__name__}: {error}"
            ) from error
    return torch.cat(made)


def _first_wrong(module: nn.Module, inputs: Tensor) -> int:
    """The first row that a model does not take, by halving."""
    low, high = 0, len(inputs)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            ModelPredictor(module)(inputs[low:middle])
        except OWN_ERRORS:
            high = middle
        else:
            low = middle
    return low


def _unknown(module: nn.Module, row: Tensor) -> str:
    """The token that no embedding has, in words; empty where there is none or nobody knows."""
    layers = (nn.Embedding, nn.EmbeddingBag)
    sizes = [each.num_embeddings for each in module.modules() if isinstance(each, layers)]
    wrong = row[(row < 0) | (row >= max(sizes, default=0))]
    if not sizes or row.is_floating_point() or len(wrong) == 0:
        return ""
    return f", which holds {wrong[0].item()}; its embedding knows 0 to {max(sizes) - 1}"
