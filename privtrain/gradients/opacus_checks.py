"""What must hold for Opacus's per-example gradients to be those of the model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import trainable
from privtrain.core.task import Loss, Rows
from privtrain.gradients.gradients import one_loss_each

_TRIAL = 16
"""Rows of the first batch on which a model is tried."""


def check_booked(whole: Tensor, booked: Tensor, scale: float) -> None:
    """Refuses a model of which the layers' hooks see another gradient than autograd does.

    A bound on half of a gradient bounds nothing.

    Raises:
        UnsupportedError: If the two differ by more than rounding.
    """
    if float(torch.linalg.vector_norm(whole - booked)) > 1e-3 * scale:
        raise _used_outside()


def _used_outside() -> UnsupportedError:
    return UnsupportedError(
        "The layers of this model account for another gradient than the whole model has: a "
        "weight is used outside its own layer, as in F.linear(x, layer.weight). Call the "
        "layer itself, as often as needed, with Opacus(mode='hooks')."
    )


def check_modes(model: nn.Module, mode: str) -> None:
    """Refuses layers that one way to compute gradients gets wrong.

    Raises:
        UnsupportedError: With the layer, and the way out.
    """
    from opacus.layers import DPMultiheadAttention

    for name, layer in model.named_modules():
        padded = isinstance(layer, nn.Embedding) and layer.padding_idx is not None
        if padded and mode != "functorch":
            raise UnsupportedError(
                f"Opacus's formula for the layer {name!r} (nn.Embedding) overlooks "
                f"padding_idx={layer.padding_idx}. Use Opacus(mode='functorch'), or "
                "BookKeeping()."
            )
        if isinstance(layer, DPMultiheadAttention) and not layer.batch_first:
            raise UnsupportedError(
                f"The layer {name!r} (DPMultiheadAttention) has batch_first=False: Opacus would "
                "take steps in time for examples. Use batch_first=True with one head, or attention "
                "built of nn.Linear."
            )


def check_examples(model: nn.Module, loss: Loss, rows: Rows) -> bool:
    """Tries a model on a few rows: layers see one row for each example, and examples are apart.

    Where time comes first and is as long as the batch, Opacus takes steps for examples.

    Args:
        model: The model; Opacus's hooks must be disabled.
        loss: Loss of each example.
        rows: At least one.

    Returns:
        Whether the rows could tell: there was more than one, and all losses were finite.

    Raises:
        UnsupportedError: If a layer is given something else, examples are mixed, or a buffer is
            written to.
    """
    # They import the refusals of this room's opacus module.
    from privtrain.gradients.refusals import buffers_of, check_apart, check_buffers

    few = rows.take(torch.arange(min(len(rows), _TRIAL), device=rows.inputs.device))
    inputs = few.inputs.detach()
    inputs.requires_grad_(inputs.is_floating_point())
    ends: list[Any] = [inputs] if inputs.requires_grad else []
    hooks = [
        layer.register_forward_hook(_watcher(name, len(few), ends))
        for name, layer in model.named_modules()
        if any(p is not None and p.requires_grad for p in layer._parameters.values())
    ]
    before = buffers_of(model)
    devices = [few.inputs.device] if few.inputs.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            # A copy, since a model may write to what it is given.
            losses = one_loss_each(model, loss, Rows(inputs.clone(), few.labels))
    finally:
        for hook in hooks:
            hook.remove()
    check_buffers(before, model)
    if ends and losses.requires_grad:
        check_apart(losses, ends)
    return len(few) > 1 and bool(torch.isfinite(losses).all())


def _watcher(name: str, rows: int, ends: list[Any]) -> Any:
    def watch(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        if output.dim() == 0 or len(output) != rows:
            raise UnsupportedError(
                f"The layer {name!r} returned shape {tuple(output.shape)} for a batch of {rows}: "
                "the first dimension must count the examples. Give layers inputs of shape "
                "(batch, time, features)."
            )
        ends.append(get_gradient_edge(output))

    return watch


def check_single_uses(model: nn.Module, losses: Tensor) -> list[nn.Parameter]:
    """Refuses a parameter of torch's own layers that the losses depend on in two ways.

    Ghost clipping weights the whole gradient by what hooks measure of it, so that every way to a
    parameter must have been seen by them.

    Args:
        model: The model.
        losses: Shape `(batch,)`, with their graph.

    Returns:
        The parameters that the losses depend on.

    Raises:
        UnsupportedError: If there is one.
    """
    from privtrain.gradients.refusals import reached

    if not losses.requires_grad:
        return []
    _, uses = reached(losses)
    for layer in model.modules():
        own = type(layer).__module__.startswith("torch.nn.")
        if own and any(uses[id(p)] > 1 for p in layer._parameters.values() if p is not None):
            raise _used_outside()
    return [parameter for parameter in trainable(model) if uses[id(parameter)] > 0]


def check_measured(parameters: list[nn.Parameter], unmeasured: dict[int, Tensor]) -> None:
    """Refuses a parameter that the losses depend on and that no hook has measured.

    Args:
        parameters: Parameters that the losses depend on.
        unmeasured: By a parameter's `id`, what stands for a norm that was not measured.

    Raises:
        UnsupportedError: If there is one.
    """
    for parameter in parameters:
        if parameter._norm_sample is unmeasured[id(parameter)]:  # type: ignore[attr-defined]
            raise _used_outside()
