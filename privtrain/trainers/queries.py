"""Queries: whether public rows can be asked about, tried before anything is trained or spent."""

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.parameters import ModelPredictor
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import FederatedData

_OF_TORCH = (RuntimeError, IndexError, ValueError)
"""What torch raises about shapes and types that do not fit."""


def tried(data: FederatedData, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Three public rows, and what a model makes of them.

    Rows for testing stand in where training rows are given up to the public: they are of the kind
    that the model was tried on.

    Args:
        data: Who holds which rows, and which are public.
        model: A model of the task, of which nothing is kept.

    Returns:
        Inputs, shape `(3, ...)`, and logits, shape `(3, classes)`; both empty where there are
        neither public rows nor rows for testing.

    Raises:
        DataError: If there is an empty public part, or the model cannot take its rows, or answers
            with anything but two logits at least for each.
    """
    name, rows = ("test", data.test) if data.public is None else ("public", data.public)
    if len(rows) == 0:
        if data.public is not None:
            raise DataError(
                "Expected data.public to hold rows that a student may ask about; it holds 0. Give "
                "public rows, or public=None, so that training rows are given up for it."
            )
        return rows.inputs, rows.inputs
    inputs = rows.inputs[torch.arange(3, device=rows.inputs.device) % len(rows)]
    told = f"data.{name}.inputs of shape {tuple(rows.inputs.shape)} and type {inputs.dtype}"
    try:
        with global_generator(Seeds(0)["queries trial", 0, ""]):
            scores = ModelPredictor(model)(inputs)
    except _OF_TORCH as error:
        raise DataError(
            f"Expected the model, which teachers train, to take {told}; it raised "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Convert them to rows like those "
            f"for testing, of shape {tuple(data.test.inputs.shape)} and type "
            f"{data.test.inputs.dtype}."
        ) from error
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise DataError(
            f"Expected the model to return logits of shape (rows, classes) with two classes at "
            f"least, for one of which a teacher votes; of three rows of {told} it returned shape "
            f"{tuple(scores.shape)}. Give the model one output for each class; PATE trains neither "
            "single logits nor real values, as SGD, DPSGD and FedAvg do."
        )
    return inputs, scores
