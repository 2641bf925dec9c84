"""Clipped sums of per-example gradients by Opacus."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import to_vector, trainable
from privtrain.core.task import Loss, Rows
from privtrain.core.validate import check_member
from privtrain.gradients.gradients import (
    ClippedSum,
    GradientEngine,
    check_precision,
    counted,
    empty_sum,
    one_loss_each,
)
from privtrain.gradients.opacus_checks import (
    check_booked,
    check_examples,
    check_measured,
    check_modes,
    check_single_uses,
)
from privtrain.gradients.refusals import check_model
from privtrain.mechanisms.clipping import clip_factors


@dataclass(frozen=True)
class Opacus:
    """Per-example gradients by Opacus.

    Args:
        mode: "hooks" materialises every example's gradient, by a formula for each kind of
            layer; "functorch" does so by torch.func; "ghost" computes norms first and
            the clipped sum in a second backward pass, with less memory for wide layers. It
            refuses linear layers over sequences, whose norms it would underestimate.
    """

    mode: str = "hooks"

    def __post_init__(self) -> None:
        check_member(("hooks", "ghost", "functorch"), mode=self.mode)

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
        check_precision(model)
        check_model(model)
        check_modes(model, self.mode)
        model.train()
        if self.mode == "ghost":
            return Ghost(model, loss)
        return Hooks(model, loss, functorch=self.mode == "functorch")

    def engine_once(self, model: nn.Module, loss: Loss) -> GradientEngine:
        """The engine of a model that may have been prepared before; hooks are not added twice."""
        prepared = getattr(model, "_privtrain_engine", None)
        if prepared is None or prepared[0] != self.mode:
            prepared = (self.mode, self.engine(model, loss))
            object.__setattr__(model, "_privtrain_engine", prepared)
        engine: GradientEngine = prepared[1]
        return engine


def _attach(kind: str, model: nn.Module) -> Any:
    """Opacus's hooks on a model, its refusals in our words."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleHooksFastGradientClipping,
    )

    try:
        if kind == "ghost":
            return GradSampleHooksFastGradientClipping(model, loss_reduction="sum")
        functorch = kind == "functorch"
        return GradSampleHooks(model, loss_reduction="sum", force_functorch=functorch)
    except NotImplementedError as error:
        raise UnsupportedError(f"Opacus cannot take this model: {error}") from error


def _detach(hooks: Any, model: nn.Module) -> None:
    """Takes Opacus off a model: with its hooks, a copy of the model cannot be trained."""
    hooks.remove_hooks()
    for parameter in model.parameters():
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample"):
            if hasattr(parameter, name):
                delattr(parameter, name)
    for layer in model.modules():
        for name in ("activations", "max_batch_len", "ft_compute_sample_grad"):
            if name in layer.__dict__:
                delattr(layer, name)


def _refuse_sequences(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
    if given[0].dim() != 2:
        raise UnsupportedError(
            f"A linear layer was given inputs of shape {tuple(given[0].shape)}: ghost clipping "
            "finds the norms of sequences by differences that cancel, so that contributions "
            "could exceed the clipping norm many times. Use Opacus(mode='hooks')."
        )


class _Quiet:
    """Hides the one warning that torch gives for hooks on a first layer's inputs."""

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.filterwarnings("ignore", message="Full backward hook is firing")

    def __exit__(self, *error: object) -> None:
        self._catch.__exit__(None, None, None)


@dataclass
class Hooks:
    """Materialises every example's gradient.

    Args:
        model: The model.
        loss: Loss of each example.
        functorch: Whether every layer's gradients are computed by torch.func.
    """

    model: nn.Module
    loss: Loss
    functorch: bool = False
    notes: tuple[str, ...] = field(default=(), init=False)
    _hooks: Any = field(init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self._hooks = _attach("functorch" if self.functorch else "hooks", self.model)

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm.

        Args:
            rows: The batch, on the model's device; may be empty.
            clipping_norm: Upper bound on each gradient's L2 norm; positive.

        Returns:
            The sum; an example without a finite loss and gradient counts as zero.
        """
        if len(rows) == 0:
            return empty_sum(self.model)
        parameters = trainable(self.model)
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        with _Quiet():
            self._tried = self._tried or _tried(self._hooks, self.model, self.loss, rows)
            losses = one_loss_each(self.model, self.loss, rows)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [_per_example(parameter, len(rows)) for parameter in parameters]
        squares = torch.stack([g.double().pow(2).sum(dim=1) for g in gradients])
        norms = counted(squares.sum(dim=0).sqrt(), losses)
        self._check_once(parameters, gradients, norms)
        factors = _factors(norms, clipping_norm, gradients[0].dtype)
        sums = [_weighted(gradient, factors) for gradient in gradients]
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        return ClippedSum(torch.cat(sums), norms, losses.detach())

    def close(self) -> None:
        """Takes the hooks off the model."""
        _detach(self._hooks, self.model)

    def _check_once(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], norms: Tensor
    ) -> None:
        """Compares with autograd once each parameter has a gradient, and everything is finite."""
        if len(self._checked) == len(parameters) or not bool(torch.isfinite(norms).all()):
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None or id(parameter) in self._checked:
                continue
            check_booked(parameter.grad.reshape(-1), gradient.sum(dim=0), float(norms.sum()))
            if bool(gradient.any()):  # a gradient of zero says nothing yet
                self._checked.add(id(parameter))


def _per_example(parameter: nn.Parameter, rows: int) -> Tensor:
    """Gradients of each example, `(batch, values)`; several uses of a parameter are added."""
    sample = parameter.grad_sample  # type: ignore[attr-defined]
    if sample is None:
        return torch.zeros(rows, parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    uses = sample if isinstance(sample, list) else [sample]
    flat: Tensor = torch.stack(uses).sum(dim=0) if len(uses) > 1 else uses[0]
    return flat.reshape(rows, -1)


def _factors(norms: Tensor, clipping_norm: float, dtype: torch.dtype) -> Tensor:
    """Clipping factors, with room for the rounding of gradients that are multiplied by them."""
    return clip_factors(norms * (1 + 4 * torch.finfo(dtype).eps), clipping_norm)


def _weighted(gradient: Tensor, factors: Tensor) -> Tensor:
    """Weighted sum over examples, in which a factor of zero also silences infinities."""
    if bool((factors == 0).any()):
        gradient = torch.where((factors == 0).unsqueeze(1), 0.0, gradient)
    return factors.to(gradient.dtype) @ gradient


def _tried(hooks: Any, model: nn.Module, loss: Loss, rows: Rows) -> bool:
    """Tries a model without Opacus's hooks; see `check_examples`."""
    hooks.disable_hooks()
    try:
        return check_examples(model, loss, rows)
    finally:
        hooks.enable_hooks()


RandomState = tuple[Tensor, Tensor | None]


def _random_state(device: torch.device) -> RandomState:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed(state: RandomState, device: torch.device) -> Iterator[None]:
    """Lets the model draw as it did from a state, and puts the generators back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


@dataclass
class Ghost:
    """Computes norms without gradients, then the clipped sum in a second backward pass.

    Args:
        model: The model.
        loss: Loss of each example.
    """

    model: nn.Module
    loss: Loss
    notes: tuple[str, ...] = field(default=(), init=False)
    _hooks: Any = field(init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _checked: bool = field(default=False, init=False, repr=False)
    _guards: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._hooks = _attach("ghost", self.model)
        self._guards = [
            layer.register_forward_pre_hook(_refuse_sequences)
            for layer in self.model.modules()
            if isinstance(layer, nn.Linear)
        ]

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm; see `Hooks`."""
        if len(rows) == 0:
            return empty_sum(self.model)
        parameters = trainable(self.model)
        start = _random_state(rows.inputs.device)
        with _Quiet():
            self._tried = self._tried or _tried(self._hooks, self.model, self.loss, rows)
            losses, norms = self._norms(rows)
            self._clear()
            finite = torch.isfinite(norms)
            self._check_once(rows, finite, start)
            factors = _factors(norms, clipping_norm, parameters[0].dtype).to(losses.dtype)
            self._hooks.disable_hooks()
            try:
                self._second_pass(rows, losses, factors, finite, start)
            finally:
                self._hooks.enable_hooks()
        value = to_vector(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        self._clear()
        return ClippedSum(value, norms, losses.detach())

    def close(self) -> None:
        """Takes the hooks off the model."""
        _detach(self._hooks, self.model)
        for guard in self._guards:
            guard.remove()

    def _clear(self) -> None:
        for parameter in trainable(self.model):
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]

    def _norms(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Losses and gradient norms of each example; leaves the summed gradient behind."""
        self._clear()
        # A parameter that this batch does not reach has no norm, not that of an earlier one.
        unmeasured = {
            id(parameter): rows.inputs.new_zeros(len(rows), dtype=parameter.dtype)
            for parameter in trainable(self.model)
        }
        for parameter in trainable(self.model):
            parameter._norm_sample = unmeasured[id(parameter)]  # type: ignore[attr-defined]
        try:
            losses = one_loss_each(self.model, self.loss, rows)
        except NotImplementedError as error:
            raise UnsupportedError(f"{error}; use Opacus(mode='hooks').") from error
        parameters = check_single_uses(self.model, losses)
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        check_measured(parameters, unmeasured)
        return losses, counted(self._hooks.get_norm_sample().detach().double(), losses)

    def _check_once(self, rows: Rows, finite: Tensor, start: RandomState) -> None:
        """Compares with autograd once, on one example, whose gradient has one norm."""
        if self._checked or not bool(finite[0]):
            return
        with _replayed(start, rows.inputs.device):
            _, norm = self._norms(rows.take(torch.zeros_like(finite[:1], dtype=torch.long)))
        whole = to_vector(p.grad for p in trainable(self.model) if p.grad is not None)
        self._clear()
        exact = torch.linalg.vector_norm(whole, dtype=torch.float64)
        # Squares of a gradient that is as good as zero vanish: it says nothing yet.
        if float(exact) > 1e4 * math.sqrt(torch.finfo(whole.dtype).tiny):
            check_booked(exact, norm[0], float(exact))
            self._checked = True

    def _second_pass(
        self, rows: Rows, losses: Tensor, factors: Tensor, finite: Tensor, start: RandomState
    ) -> None:
        if bool(finite.all()):
            (factors * losses).sum().backward()  # type: ignore[no-untyped-call]
            return
        good = finite.nonzero().squeeze(1)
        if len(good) == 0:
            return
        # Zero times infinity is not zero: a copy of a good example takes the place of each bad
        # one. The factors belong to the units that were dropped in the first pass, so that the
        # model has to draw the same again.
        index = torch.where(finite, torch.arange(len(rows), device=good.device), good[0])
        with _replayed(start, rows.inputs.device):
            again = one_loss_each(self.model, self.loss, rows.take(index))
            (factors * again).sum().backward()  # type: ignore[no-untyped-call]
