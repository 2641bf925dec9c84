"""Whether the values of a model fit into fixed point, as who holds rows can tell beforehand.

Nothing is sent or opened for it: initial weights are public, final ones are opened anyway, and
everybody looks at own rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.task import SCALE_COLUMNS, Rows, widest_column
from privtrain.mpc.dense import Addition, Linear
from privtrain.mpc.engine import Engine
from privtrain.mpc.layers import evaluated, takes_pictures, translate
from privtrain.mpc.pictures import Conv2d
from privtrain.mpc.ring64.sigmoid import REACH
from privtrain.mpc.sharing import PRECISION_BITS, encode

LARGEST_OUTPUT = 2.0**20
"""What layers compute stays below it. A product's integer is then below 2^52, and a truncation goes
wrong with a probability below 2^-12; at 2^31 it wraps around. Where an engine has fewer bits, see
`largest_product`."""

CHUNK = 1024
"""Rows that are computed at a time."""

LIKELY = 1e-3
"""As many wrong truncations are expected at most before a note tells of them."""


def largest_product(engine: Engine) -> float:
    """What the outputs of layers stay below on shares: with the bits of two factors they fit."""
    bits = max(engine.row_bits, engine.weight_bits)
    return min(LARGEST_OUTPUT, 2.0 ** (engine.range_bits - 2 * bits))


def check_weights(model: nn.Module, bits: int = PRECISION_BITS) -> None:
    """Refuses initial weights that fixed point cannot hold.

    Args:
        model: The model.
        bits: Bits after the point that weights have.

    Raises:
        DataError: With the parameter's name.
    """
    for name, parameter in model.named_parameters():
        try:
            encode(parameter, name=f"the initial values of the parameter {name!r}", bits=bits)
        except ValueError as error:
            raise DataError(f"{error} Make the model with smaller ones.") from error


def wrong_truncations(
    model: nn.Module, rows: Rows, *, weights: str, limit: float = LARGEST_OUTPUT
) -> float:
    """How many truncations of one pass over the rows go wrong on average.

    Args:
        model: What can be trained on shares, with weights that are public.
        rows: Own rows; what is said of them is unprotected.
        weights: Which weights these are, for errors.
        limit: What outputs have to stay below, see `largest_product`.

    Returns:
        Their expected number.

    Raises:
        DataError: If a layer leaves the range of fixed point.
    """
    expected = 0.0
    for layer, outputs in _outputs(model, rows.inputs):
        highest = float(outputs.abs().max())
        # CrypTen truncates locally: wrong with probability |integer| / 2^64.
        expected += float(outputs.abs().sum()) * 2.0 ** (2 * PRECISION_BITS - 64)
        if not highest < limit:
            raise DataError(
                f"The outputs (logits, if it is the last one) of {layer} reach "
                f"{highest:g} for these rows under the {weights} weights; on shares, values from "
                f"{limit:g} on are cut wrongly or wrap around. "
                f"{widest_column(rows.inputs)}. {SCALE_COLUMNS}, or lower the learning rate."
            )
    return expected


def check_logits(model: nn.Module, rows: Rows) -> None:
    """Refuses initial weights whose logits the logistic function on shares does not reach.

    Args:
        model: What can be trained on shares, with one output.
        rows: Own rows; what is said of them is unprotected.

    Raises:
        DataError: With the largest logit.
    """
    highest = largest_output(model, rows)
    if not highest <= REACH:
        raise DataError(
            f"Logits reach {highest:g} for these rows under the initial weights; on shares, the "
            f"logistic function falls back beyond {REACH:g}. {widest_column(rows.inputs)}. "
            f"{SCALE_COLUMNS}, or use cross_entropy of two classes, which takes any logit."
        )


@torch.no_grad()
def largest_output(model: nn.Module, rows: Rows) -> float:
    """The largest output of a model in magnitude for any of the rows."""
    nodes = translate(model)
    pictures = takes_pictures(nodes)
    highest = 0.0
    for chunk in torch.split(rows.inputs.detach().cpu(), CHUNK):
        values = chunk.double() if pictures else chunk.double().flatten(1)
        *_, (_, _, outputs) = evaluated(nodes, values)
        highest = max(highest, float(outputs.abs().max()))
    return highest


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each layer with weights, or addition, computes of some rows at a time, and its name."""
    nodes = translate(model)
    pictures = takes_pictures(nodes)
    for chunk in torch.split(inputs.detach().cpu(), CHUNK):
        values, number = chunk.double(), 0
        for node, taken, outputs in evaluated(nodes, values if pictures else values.flatten(1)):
            if isinstance(node.layer, Linear):
                # Without the bias: the product is what is truncated.
                yield f"linear layer {number}", node.layer.product(*taken)
                number += 1
            elif isinstance(node.layer, Conv2d):
                yield f"the convolution {node.name!r}", node.layer.product(*taken)
            elif isinstance(node.layer, Addition):
                yield f"the addition in {node.name!r}", outputs
