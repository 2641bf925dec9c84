"""What must hold for booked gradients to be those of the model."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.gradients.bookkeeping.lstm import can_be_unrolled


class UnbookedError(Exception):
    """A parameter is used where no layer books it; raised and caught within this room."""


@dataclass
class Use:
    """One call of a booked layer.

    Args:
        name: The layer's name in the model.
        layer: The layer.
        inputs: What it was given, detached, shape `(batch, ...)`.
        version: How often the inputs had been written to by then.
        edge: The place of its output in autograd's graph.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    version: int
    edge: Any


def refuse_layers(model: nn.Module) -> None:
    """Refuses layers that mix examples, that keep what they saw, or that nothing can book.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)):
            raise UnsupportedError(
                f"The layer {name!r} ({kind}) mixes the examples of a batch, so "
                "no example has a gradient of its own. Use nn.GroupNorm in its place."
            )
        if getattr(layer, "track_running_stats", False):
            raise UnsupportedError(
                f"The layer {name!r} ({kind}) keeps running statistics of its "
                "inputs, which no noise protects. Use track_running_stats=False."
            )
        if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
            raise UnsupportedError(
                f"The layer {name!r} ({kind}) rewrites its rows for every batch that it sees, "
                "which no noise protects. Use max_norm=None."
            )
        foreign = type(layer).__module__.startswith("opacus.")
        recurrent = isinstance(layer, nn.RNNBase) and not can_be_unrolled(layer)
        if foreign or recurrent or isinstance(layer, nn.MultiheadAttention):
            check_model(model)


def reached(losses: Tensor) -> tuple[set[Any], Counter[int]]:
    """Walks autograd's graph.

    Args:
        losses: Shape `(batch,)`.

    Returns:
        The nodes that the losses depend on, and how often each parameter is used, by `id`.
    """
    start = losses.grad_fn
    seen: set[Any] = {start}
    uses: Counter[int] = Counter()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        for following, _ in getattr(node, "next_functions", ()):
            if following is None:
                continue
            if type(following).__name__ == "AccumulateGrad":
                uses[id(following.variable)] += 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return seen, uses


def check_uses(
    trained: Iterable[tuple[str, nn.Parameter]], uses: list[Use], found: Counter[int]
) -> None:
    """Compares the uses of parameters that autograd knows with those that layers booked.

    Raises:
        UnbookedError: If a parameter is used elsewhere.
    """
    booked = Counter(
        id(parameter)
        for use in uses
        for parameter in map(use.layer._parameters.get, ("weight", "bias"))
        if parameter is not None and parameter.requires_grad
    )
    for name, parameter in trained:
        if found[id(parameter)] != booked[id(parameter)]:
            raise UnbookedError(f"{name!r} is used outside of the layers that can be booked")


def check_kept(uses: list[Use]) -> None:
    """Checks that what layers were given is still there.

    Raises:
        UnsupportedError: If it was written to.
    """
    for use in uses:
        if use.inputs._version != use.version:
            raise UnsupportedError(
                f"What the layer {use.name!r} was given was written to afterwards, so that its "
                "gradient can no longer be found. Use no in-place operation there."
            )


def check_inputs(uses: list[Use], rows: int) -> None:
    """Checks that what layers were given has one row for each example, and is still there.

    Raises:
        UnbookedError: If its first dimension counts something else.
        UnsupportedError: If it was written to.
    """
    check_kept(uses)
    for use in uses:
        if not one_row_each(use, rows):
            raise UnbookedError(
                f"the layer {use.name!r} was given inputs of shape {tuple(use.inputs.shape)} for a "
                f"batch of {rows}, whose first dimension does not count the examples"
            )


def one_row_each(use: Use, rows: int) -> bool:
    """Whether a layer was given one row for each example."""
    return use.inputs.dim() > 0 and len(use.inputs) == rows


def check_apart(losses: Tensor, ends: list[Any]) -> None:
    """Looks whether the loss of one example depends on another example.

    The batch is cut into halves by each bit of the place, so that every pair is cut apart: the
    losses of one half must have no gradient at the other.

    Args:
        losses: Shape `(batch,)`; their graph is kept.
        ends: Tensors or places in the graph, whose first dimension counts the examples.

    Raises:
        UnsupportedError: If examples are mixed.
    """
    place = torch.arange(len(losses), device=losses.device)
    halves = [(place >> bit) % 2 == 0 for bit in range((len(losses) - 1).bit_length())]
    for chosen in [*halves, *(~half for half in halves)]:
        gradients = torch.autograd.grad(
            losses[chosen].sum(), ends, retain_graph=True, allow_unused=True
        )
        for gradient in gradients:
            # A product of zero and infinity is no sign of mixing.
            if gradient is not None and bool(gradient[~chosen].nan_to_num(0, 0, 0).any()):
                raise UnsupportedError(
                    "The loss of one example depends on other examples of its batch, so that no "
                    "example has a gradient of its own. Use a model and a loss that treat each "
                    "example alone, such as nn.GroupNorm in place of normalising over the batch."
                )


def buffers_of(model: nn.Module) -> list[tuple[str, int, int]]:
    """Buffers, and how often each was written to."""
    return [(name, id(buffer), buffer._version) for name, buffer in model.named_buffers()]


def check_buffers(before: list[tuple[str, int, int]], model: nn.Module) -> None:
    """Checks that a forward pass wrote to no buffer.

    Raises:
        UnsupportedError: If it did.
    """
    for old, new in zip(before, buffers_of(model), strict=True):
        if old != new:
            raise UnsupportedError(
                f"The model writes to its buffer {new[0]!r} while it is trained, which no noise "
                "protects. Keep no statistics of inputs; nn.GroupNorm needs none."
            )


def check_model(model: nn.Module) -> None:
    """Refuses layers whose per-example gradients would be wrong, or that leak what they saw.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    from opacus.layers import DPMultiheadAttention

    for name, layer in model.named_modules():
        if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)):
            raise UnsupportedError(
                f"The layer {name!r} ({type(layer).__name__}) mixes the examples of a batch, so "
                "no example has a gradient of its own. Use nn.GroupNorm in its place."
            )
        if getattr(layer, "track_running_stats", False):
            raise UnsupportedError(
                f"The layer {name!r} ({type(layer).__name__}) keeps running statistics of its "
                "inputs, which no noise protects. Use track_running_stats=False."
            )
        if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
            twin = f"DP{type(layer).__name__.replace('Head', 'head')}"
            if isinstance(layer, nn.MultiheadAttention):
                twin += " with one head, or attention built of nn.Linear"
            raise UnsupportedError(
                f"Opacus has no per-example gradients for the layer {name!r} "
                f"(nn.{type(layer).__name__}). Use its twin in opacus.layers, {twin}."
            )
        heads = getattr(layer, "num_heads", 1)
        if isinstance(layer, DPMultiheadAttention) and layer.batch_first and heads > 1:
            raise UnsupportedError(
                f"The layer {name!r} computes a wrong forward pass in Opacus 1.6 with "
                f"batch_first=True and {heads} heads. Use one head, or attention built of "
                "nn.Linear."
            )
