"""Clipped sums of per-example gradients by Opacus."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from privtrain.core.errors import UnsupportedError
from privtrain.core.extras import check_installed
from privtrain.core.parameters import SUMMED, check_no_autocast, check_types, trainable, wide_type
from privtrain.core.task import Loss, Rows
from privtrain.gradients.alone import RowTrial
from privtrain.gradients.gradients import (
    ClippedSum,
    GradientEngine,
    empty_sum,
    nan_where_not_finite,
    one_loss_each,
    rounding_of,
    sum_type,
)
from privtrain.gradients.refusals import (
    TRIAL,
    check_apart,
    check_model,
    conclusive,
    decided_on_rows,
    first_rows,
    refuse_statistics,
    tried,
)
from privtrain.mechanisms.clipping import clip_factors


@dataclass(frozen=True)
class Opacus:
    """Per-example gradients by Opacus's hooks, which materialise every example's gradient.

    Raises:
        UnsupportedError: If Opacus is not installed.
    """

    def __post_init__(self) -> None:
        check_installed("Opacus()", "opacus")

    def engine(self, model: nn.Module, loss: Loss) -> GradientEngine:
        """Prepares a model.

        Args:
            model: The model; it gets hooks and is put into training mode.
            loss: Loss of each example, `(batch,)`.

        Returns:
            The engine for this model.

        Raises:
            UnsupportedError: If a layer has no per-example gradients.
        """
        check_types(model, SUMMED)
        model.train()
        refuse_statistics(model)
        check_model(model)
        _check_formulas(model)
        return Hooks(model, loss)


def _check_formulas(model: nn.Module) -> None:
    """Refuses layers that Opacus's hooks get wrong.

    Raises:
        UnsupportedError: With the layer, and the way out.
    """
    from opacus.layers import DPMultiheadAttention

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            raise UnsupportedError(
                f"Opacus's formula for the layer {name!r} (nn.Embedding) overlooks "
                f"padding_idx={layer.padding_idx}. Use BookKeeping()."
            )
        if isinstance(layer, nn.EmbeddingBag):
            raise UnsupportedError(
                f"Opacus's formula for the layer {name!r} (nn.EmbeddingBag) wants offsets, and no "
                "rows of indices. Use BookKeeping(), or nn.Embedding and a mean."
            )
        if isinstance(layer, DPMultiheadAttention) and not layer.batch_first:
            raise UnsupportedError(
                f"The layer {name!r} (DPMultiheadAttention) has batch_first=False: Opacus would "
                "take steps in time for examples. Use batch_first=True with one head, or attention "
                "built of nn.Linear."
            )


def _attach(model: nn.Module) -> Any:
    """Opacus's hooks on a model, its refusals in our words."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    try:
        return GradSampleHooks(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise UnsupportedError(f"Opacus cannot take this model: {error}") from error


def _detach(hooks: Any, model: nn.Module) -> None:
    """Takes Opacus off a model: with its hooks, a copy of the model cannot be trained."""
    hooks.remove_hooks()
    for parameter in model.parameters():
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(parameter, name):
                delattr(parameter, name)
    for layer in model.modules():
        for name in ("activations", "max_batch_len", "ft_compute_sample_grad"):
            if name in layer.__dict__:
                delattr(layer, name)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides what torch warns of where nothing is wrong.

    It does for hooks on a first layer's inputs, and where Opacus, given parameters of a coarser
    type than a layer's inputs, asks for an autocast to float32 or float64, which changes nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype")
        yield


@dataclass
class Hooks:
    """The engine of one model.

    Args:
        model: The model.
        loss: Loss of each example.
    """

    model: nn.Module
    loss: Loss
    notes: tuple[str, ...] = field(default=(), init=False)
    _hooks: Any = field(init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _alone: RowTrial = field(init=False, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self._hooks = _attach(self.model)
        self._alone = RowTrial(self.model, self.loss)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the sensitivity of the sums assumes, as far as it is known by now."""
        return (self._alone.assumption,)

    def try_on(self, rows: Rows) -> None:
        """Tries the model on rows that are not private: see `GradientEngine`."""
        if len(rows):
            self._prepare(rows, public=True)

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm.

        Args:
            rows: The batch, on the model's device; may be empty.
            clipping_norm: Upper bound on each gradient's L2 norm; positive.

        Returns:
            The sum; an example without a finite loss and gradient counts as zero.
        """
        check_no_autocast()
        if len(rows) == 0:
            return empty_sum(self.model)
        if not (self._tried and self._alone.done):
            self._prepare(rows, public=False)
        parameters = trainable(self.model)
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        with _without_warnings():
            # Abadi et al. 2016, Algorithm 1, "Compute gradient".
            losses = self._losses(rows)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [_per_example(parameter, len(rows)) for parameter in parameters]
        # In float64: squares of float32 gradients overflow or vanish where their norm does not.
        squares = torch.stack([g.double().pow(2).sum(dim=1) for g in gradients])
        norms = nan_where_not_finite(squares.sum(dim=0).sqrt(), losses)
        self._check_once(parameters, gradients, norms)
        # Algorithm 1, "Clip gradient", and the sum of "Add noise".
        dtype = sum_type(parameters, len(rows))
        factors = _factors(norms, clipping_norm, wide_type(parameters))
        # One parameter at a time: a copy in a wider type is gone before the next one is made.
        sums = [_weighted(gradient.to(dtype), factors) for gradient in gradients]
        # The optimizer must never see the gradient that was not clipped.
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        return ClippedSum(torch.cat(sums), norms, losses.detach())

    def close(self) -> None:
        """Takes the hooks off the model."""
        _detach(self._hooks, self.model)

    def _prepare(self, rows: Rows, *, public: bool) -> None:
        """Tries what has not been settled yet."""
        check_no_autocast()
        # Opacus's own hooks would take a trial's backward passes for those of the batch.
        self._hooks.disable_hooks()
        try:
            with _without_warnings(), decided_on_rows(public=public):
                self._tried = self._tried or self._try(rows)
                self._alone.on(rows, public=public)
        finally:
            self._hooks.enable_hooks()

    def _try(self, rows: Rows) -> bool:
        """Tries a model on a few rows: layers see one row an example, and examples are apart.

        Where time comes first and is as long as the batch, Opacus takes steps for examples.

        Returns:
            Whether the rows could tell.

        Raises:
            UnsupportedError: If a layer is given something else, examples are mixed, or a buffer
                is written to.
        """
        few = first_rows(rows, TRIAL)
        outputs: list[Any] = []
        watchers = [
            layer.register_forward_hook(_watcher(name, len(few), outputs))
            for name, layer in self.model.named_modules()
            if any(p is not None and p.requires_grad for p in layer._parameters.values())
        ]
        try:
            losses, inputs = tried(self.model, few, self._losses)
            check_apart(losses, inputs + outputs)
        finally:
            for watcher in watchers:
                watcher.remove()
        return conclusive(losses)

    def _losses(self, rows: Rows) -> Tensor:
        """Losses under Opacus's hooks, `(batch,)`."""
        try:
            return one_loss_each(self.model, self.loss, rows)
        except RuntimeError as error:
            # torch has no type for it. The hooks make each layer's output a view.
            if "view and is being modified inplace" not in str(error):
                raise
            raise UnsupportedError(
                "Opacus's hooks cannot take a model that writes in place to what a layer returned, "
                "as nn.ReLU(inplace=True) and x += 1 do. Use inplace=False, or BookKeeping()."
            ) from error

    def _check_once(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], norms: Tensor
    ) -> None:
        """Compares with autograd once each parameter has a gradient, and everything is finite."""
        if len(self._checked) == len(parameters) or not bool(torch.isfinite(norms).all()):
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None or id(parameter) in self._checked:
                continue
            _check_whole(parameter.grad.reshape(-1), gradient, norms)
            if bool(gradient.any()):  # a gradient of zero says nothing yet
                self._checked.add(id(parameter))


def _check_whole(whole: Tensor, gradient: Tensor, norms: Tensor) -> None:
    """Refuses a model of which the layers' hooks see another gradient than autograd does.

    Args:
        whole: What autograd found, shape `(values,)`.
        gradient: What the hooks found for each example, shape `(batch, values)`.
        norms: Norms of the examples' gradients, shape `(batch,)`.

    Raises:
        UnsupportedError: If the two differ by more than rounding.
    """
    # Sums of many float32 numbers round more.
    rounding = max(
        rounding_of(whole.dtype, gradient.dtype), len(norms) * torch.finfo(torch.float32).eps
    )
    distance = whole.double() - gradient.sum(dim=0, dtype=torch.float64)
    # A bound on half of a gradient bounds nothing.
    if float(torch.linalg.vector_norm(distance)) > rounding * float(norms.sum()):
        raise UnsupportedError(
            "The layers of this model account for another gradient than the whole model has: a "
            "weight is used outside its own layer, as in F.linear(x, layer.weight). Call the "
            "layer itself, as often as needed, or use BookKeeping()."
        )


def _watcher(name: str, rows: int, outputs: list[Any]) -> Any:
    def watch(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        if sum(isinstance(value, Tensor) for value in given) > 1:
            raise UnsupportedError(
                f"The layer {name!r} ({type(layer).__name__}) is given several inputs, and "
                "Opacus's formulas know one. Use BookKeeping()."
            )
        if output.dim() == 0 or len(output) != rows:
            raise UnsupportedError(
                f"The layer {name!r} returned shape {tuple(output.shape)} for a batch of {rows}: "
                "the first dimension must count the examples. Give layers inputs of shape "
                "(batch, time, features)."
            )
        outputs.append(get_gradient_edge(output))

    return watch


def _per_example(parameter: nn.Parameter, rows: int) -> Tensor:
    """Gradients of each example, `(batch, values)`; several calls of a layer are added."""
    sample = parameter.grad_sample  # type: ignore[attr-defined]
    if sample is None:
        # This batch did not reach the parameter, as it happens in models with branches.
        return torch.zeros(rows, parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    calls = sample if isinstance(sample, list) else [sample]
    flat: Tensor = torch.stack(calls).sum(dim=0) if len(calls) > 1 else calls[0]
    return flat.reshape(rows, -1)


def _factors(norms: Tensor, clipping_norm: float, dtype: torch.dtype) -> Tensor:
    """Clipping factors, with room for the rounding of gradients that are multiplied by them."""
    return clip_factors(norms * (1 + 4 * torch.finfo(dtype).eps), clipping_norm)


def _weighted(gradient: Tensor, factors: Tensor) -> Tensor:
    """Weighted sum over examples, in which a factor of zero also silences infinities.

    Args:
        gradient: Shape `(batch, values)`.
        factors: Shape `(batch,)`, float64.
    """
    if bool((factors == 0).any()):
        gradient = torch.where((factors == 0).unsqueeze(1), 0.0, gradient)
    return factors.to(gradient.dtype) @ gradient
