"""Whether a torch model computes what its layers on shares do, tried on made-up rows."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.parameters import trainable
from privtrain.mpc.dense import Addition, Linear
from privtrain.mpc.layers import Node, evaluated, pictures_at, takes_pictures
from privtrain.mpc.pictures import Conv2d

ROWS = 8
"""Made-up rows on which a model is compared with its layers."""


def check_translation(
    model: nn.Module,
    nodes: Sequence[Node],
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> None:
    """Compares a model and its gradient with its layers', on a few made-up rows.

    Whatever else the model does would be left out on shares.

    Args:
        model: The torch model.
        nodes: What `translate` makes of it.
        shape: The shape of a row.
        dtype: The type of the rows that the trained model will be asked about, where it is known.

    Raises:
        DataError: If the model does not take such rows.
        UnsupportedError: If outputs or gradients differ, as where a layer writes into what another
            one reads, a hook changes a gradient, or a part runs without gradients.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, *shape, dtype=torch.float64, generator=generator)
    pictures = takes_pictures(nodes)
    linear = next(node.layer for node in nodes if isinstance(node.layer, Linear))
    if not pictures and rows[0].numel() != linear.weight.shape[1]:
        return  # the number of features is checked where shares meet
    # torch would take rows without channels for one picture without a batch.
    if pictures and len(shape) != 3:
        raise DataError(
            f"Expected rows of shape {shape} to be pictures (channels, height, width), as "
            f"{pictures_at(nodes)} takes them. Use inputs.unsqueeze(1) where there is one channel."
        )
    try:
        # Whole numbers are refused by name where rows are encoded.
        if dtype is not None and dtype.is_floating_point:
            with torch.no_grad():
                copy.deepcopy(model)(rows.to(dtype))
        twin = copy.deepcopy(model).double().train()
        own = _with_gradient(twin(rows.clone()), trainable(twin))
        layers, weights = _differentiable(nodes)
        values = list(evaluated(layers, rows if pictures else rows.flatten(1)))
        found = _with_gradient(values[-1][2], weights)
    except OWN_ERRORS as error:  # a module's own code may raise anything
        of_type = "" if dtype is None else f" and type {dtype}"
        raise DataError(
            f"Expected the {type(model).__name__} to take rows of shape {shape}{of_type}: "
            f"{str(error).rstrip('.')}."
        ) from error
    for node, inputs, _ in values:
        if isinstance(node.layer, Addition) and inputs[0].shape != inputs[1].shape:
            shapes = " and ".join(str(tuple(each.shape[1:])) for each in inputs)
            raise UnsupportedError(
                f"The addition in {node.name!r} is of rows of shapes {shapes}; on shares, values "
                "of one shape are added."
            )
    alike = all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-6)
        for one, other in zip(own, found, strict=True)
    )
    # A copy of a parameter has none of its hooks.
    hooks = any(each._backward_hooks for each in trainable(model))
    late = any(each._post_accumulate_grad_hooks for each in trainable(model))
    if not alike or hooks or late:
        raise UnsupportedError(
            f"The {type(model).__name__} computes something else than its layers do one by one, so "
            "it cannot be trained on shares. Let no layer or addition write into what another one "
            "reads (inplace=False), use no hooks and no torch.no_grad, let a layer's weight come "
            "before its bias, and return shape (rows, outputs)."
        )


def _with_gradient(outputs: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradient by weights of a sum of them with factors of their own."""
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(outputs.shape, dtype=torch.float64, generator=generator)
    if not weights or not outputs.requires_grad:
        return [outputs.detach(), *map(torch.zeros_like, weights)]
    total = (outputs * factors).sum()
    gradients = torch.autograd.grad(total, list(weights), materialize_grads=True)
    return [outputs.detach(), *gradients]


def _differentiable(nodes: Sequence[Node]) -> tuple[list[Node], list[Tensor]]:
    """The same layers with trained weights of which torch records gradients, and these in order."""
    layers: list[Node] = []
    placed: list[tuple[int, list[Tensor]]] = []
    for node in nodes:
        layer = node.layer
        if isinstance(layer, Linear | Conv2d):
            values = {"weight": layer.weight.double().cpu().clone()}
            if layer.bias is not None:
                values["bias"] = layer.bias.double().cpu().clone()
            pairs = zip(("weight", "bias"), layer.learned, strict=True)
            learned = [values[name].requires_grad_() for name, learns in pairs if learns]
            placed.append((node.place, learned))
            layer = replace(layer, **values)  # type: ignore[arg-type]  # both have these fields
        layers.append(replace(node, layer=layer))
    placed.sort(key=lambda each: each[0])
    return layers, [weight for _, weights in placed for weight in weights]
