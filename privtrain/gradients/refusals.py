"""What a model must be, so that per-example gradients are those of its examples."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows
from privtrain.gradients.bookkeeping.recurrent import can_be_unrolled

TRIAL = 16
"""Rows of the first batch on which a model is tried."""

T = TypeVar("T")


def refuse_statistics(model: nn.Module) -> None:
    """Refuses layers that mix examples or keep statistics of what they saw.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        # One that stays in evaluation mode, as in a frozen backbone, uses what it has and keeps it.
        if not layer.training:
            continue
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


def refuse_layers(model: nn.Module) -> None:
    """Refuses layers that mix examples, that keep what they saw, or that no formula covers.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    refuse_statistics(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
            raise UnsupportedError(
                f"The layer {name!r} ({type(layer).__name__}) rewrites its rows for every batch "
                "that it sees, which no noise protects. Use max_norm=None."
            )
        if isinstance(layer, nn.RNNBase) and not can_be_unrolled(layer):
            raise UnsupportedError(
                f"The layer {name!r} ({type(layer).__name__}) hides its steps from autograd, and "
                "with proj_size= or as a class of your own they are not known here, so no example "
                "has a gradient of its own. Use nn.LSTM, nn.GRU or nn.RNN without proj_size=, or "
                "nn.Linear layers that are called once a step."
            )
        if type(layer).__module__.startswith("opacus."):
            # Only then: importing Opacus takes longer than everything else here.
            check_twins(model)


def check_model(model: nn.Module) -> None:
    """Refuses layers for which Opacus has no right per-example gradients.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
            twin = f"DP{type(layer).__name__.replace('Head', 'head')}"
            if isinstance(layer, nn.MultiheadAttention):
                twin += " with one head"
            raise UnsupportedError(
                f"Opacus has no per-example gradients for the layer {name!r} "
                f"(nn.{type(layer).__name__}). Use gradients=BookKeeping(), which has, or its twin "
                f"in opacus.layers, {twin}."
            )
    check_twins(model)


def check_twins(model: nn.Module) -> None:
    """Refuses layers of Opacus that compute something else than torch's.

    Raises:
        UnsupportedError: With the layer, and what to use in its place.
    """
    for name, layer in model.named_modules():
        heads = getattr(layer, "num_heads", 1)
        # By name: whoever has no such layer need not have Opacus.
        attends = any(kind.__name__ == "DPMultiheadAttention" for kind in type(layer).__mro__)
        if attends and getattr(layer, "batch_first", False) and heads > 1:
            raise UnsupportedError(
                f"The layer {name!r} computes a wrong forward pass in Opacus 1.6 with "
                f"batch_first=True and {heads} heads. Use one head, or gradients=BookKeeping() "
                "with nn.MultiheadAttention."
            )


@contextmanager
def decided_on_rows(*, public: bool) -> Iterator[None]:
    """Marks refusals within it as unprotected where they were decided on private rows."""
    try:
        yield
    except UnsupportedError as error:
        if public:
            raise
        raise UnsupportedError(
            f"{error} (unprotected: this was decided on private rows, and may tell something of "
            "them. With data that have public rows it is decided on those.)"
        ) from error


def first_rows(rows: Rows, count: int) -> Rows:
    """At most so many rows, from the first on."""
    return rows.take(torch.arange(min(len(rows), count), device=rows.inputs.device))


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Puts the attributes of a model's modules back behind it, such as what they keep of a batch.

    Args:
        model: The model.

    Yields:
        What puts them back at once.
    """
    held = [(module, dict(module.__dict__)) for module in model.modules()]

    def put_back() -> None:
        for module, attributes in held:
            module.__dict__.clear()
            module.__dict__.update(attributes)

    try:
        yield put_back
    finally:
        put_back()


def tried(model: nn.Module, rows: Rows, forward: Callable[[Rows], T]) -> tuple[T, list[Any]]:
    """Runs a model forward on a few rows, without moving torch's global generators.

    Args:
        model: The model.
        rows: What it is tried on.
        forward: Runs it.

    Returns:
        What `forward` returned, and the inputs if they can have gradients: see `check_apart`.

    Raises:
        UnsupportedError: If a buffer or a parameter is written to.
    """
    inputs = rows.inputs.detach()
    inputs.requires_grad_(inputs.is_floating_point())
    before, values = _buffers(model), _values(model)
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    # Whether a model is tried, which depends on the worker, must not change what dropout draws.
    with torch.random.fork_rng(devices=devices), as_it_was(model):
        # A copy, since a model may write to what it is given.
        outcome = forward(Rows(inputs.clone(), rows.targets))
    _check_buffers(before, model)
    _check_values(values, model)
    return outcome, [inputs] if inputs.requires_grad else []


def conclusive(losses: Tensor) -> bool:
    """Whether a trial could tell: there was more than one row, and all losses were finite."""
    return len(losses) > 1 and bool(torch.isfinite(losses).all())


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
    if not (ends and losses.requires_grad):
        return
    place = torch.arange(len(losses), device=losses.device)
    halves = [(place >> bit) % 2 == 0 for bit in range((len(losses) - 1).bit_length())]
    # Both ways: example 3 may look at 5 although 5 does not look at 3.
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


def _buffers(model: nn.Module) -> list[tuple[str, int, int]]:
    """Buffers, and how often each was written to."""
    return [(name, id(buffer), buffer._version) for name, buffer in model.named_buffers()]


def _check_buffers(before: list[tuple[str, int, int]], model: nn.Module) -> None:
    after = _buffers(model)
    known = {name for name, _, _ in before}
    for name, _, _ in after:
        if name not in known:
            raise UnsupportedError(
                f"The model makes its buffer {name!r} while it is trained, which no noise "
                "protects. Register it with its values when the model is made."
            )
    for old, new in zip(before, after, strict=True):
        if old != new:
            raise UnsupportedError(
                f"The model writes to its buffer {new[0]!r} while it is trained, which no noise "
                "protects. Keep no statistics of inputs; nn.GroupNorm needs none."
            )


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _check_values(before: dict[str, Tensor], model: nn.Module) -> None:
    """Refuses what `_version` does not count: values written through `data`."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # Not a number is no change.
        if bool(((tensor != before[name]) & ~(tensor.isnan() & before[name].isnan())).any()):
            raise UnsupportedError(
                f"The model writes to its tensor {name!r} while it runs forward, which no noise "
                "protects, as when it is scaled by the first batch. Set it before training, from "
                "public rows."
            )
