"""Clipped sums of per-example gradients at nearly the price of one gradient.

Bu et al. 2023 (arXiv:2210.00038): one forward pass; one backward pass for the gradients of the
layers' outputs alone; each example's norm from activations and output gradients; then the sum of
clipped gradients from the same tensors. No gradient of a parameter is formed before it is weighted.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import trainable
from privtrain.core.task import Loss, Rows
from privtrain.core.validate import check_count
from privtrain.gradients.bookkeeping.layers import formula_of
from privtrain.gradients.bookkeeping.lstm import Unrolled, taken_over, unrolled
from privtrain.gradients.bookkeeping.one_by_one import PerExample
from privtrain.gradients.bookkeeping.parts import Part, together
from privtrain.gradients.bookkeeping.sum import Slot, Weigh, slots_of, total, weighted_sum
from privtrain.gradients.bookkeeping.workspace import Workspace
from privtrain.gradients.gradients import (
    ClippedSum,
    GradientEngine,
    check_precision,
    empty_sum,
    one_loss_each,
)
from privtrain.gradients.refusals import (
    UnbookedError,
    Use,
    buffers_of,
    check_apart,
    check_buffers,
    check_inputs,
    check_kept,
    check_uses,
    one_row_each,
    reached,
    refuse_layers,
)
from privtrain.mechanisms.clipping import Clipping, FlatClipping

_TRIAL = 16
"""Examples of the first batch on which the books are held against autograd."""


@dataclass(frozen=True)
class BookKeeping:
    """Per-example gradients from the books of the layers, without forming them.

    Linear, Conv1d, Conv2d, Embedding, LayerNorm, GroupNorm, InstanceNorm, RMSNorm and, step by
    step, LSTM are booked. A model with a parameter that is used anywhere else is trained by
    `torch.func`, and the result says so.

    Args:
        micro_batch: Examples to work on at a time, which bounds the memory and changes no sum;
            None for the whole batch.
        clipping: How the clipping norm is shared out among layers: `FlatClipping()`,
            `PerLayerClipping()` or `AutomaticClipping()`. The bound on the whole is the same.

    Source: Bu et al. 2023 (arXiv:2210.00038).
    """

    micro_batch: int | None = None
    clipping: Clipping = FlatClipping()

    def __post_init__(self) -> None:
        if self.micro_batch is not None:
            check_count(micro_batch=self.micro_batch)

    def engine(self, model: nn.Module, loss: Loss) -> GradientEngine:
        """Prepares a model.

        Args:
            model: The model; it is put into training mode. Hooks are on it only within a sum.
            loss: Loss of each example, `(batch,)`.

        Returns:
            The engine for this model.

        Raises:
            UnsupportedError: If a layer mixes examples, or keeps what it saw.
        """
        check_precision(model)
        refuse_layers(model)
        model.train()
        return Books(model, loss, self.micro_batch, self.clipping)

    def engine_once(self, model: nn.Module, loss: Loss) -> GradientEngine:
        """The engine of a model that may have been prepared before, so that it is tried once."""
        prepared = getattr(model, "_privtrain_engine", None)
        if prepared is None or prepared[0] != self:
            prepared = (self, self.engine(model, loss))
            object.__setattr__(model, "_privtrain_engine", prepared)
        engine: GradientEngine = prepared[1]
        return engine


@dataclass
class Books:
    """The engine of one model.

    Args:
        model: The model.
        loss: Loss of each example.
        micro_batch: Examples to work on at a time, or None.
        clipping: How the clipping norm is shared out among layers.
    """

    model: nn.Module
    loss: Loss
    micro_batch: int | None = None
    clipping: Clipping = FlatClipping()
    notes: tuple[str, ...] = field(default=(), init=False)
    _layers: list[tuple[str, nn.Module, int]] = field(init=False, repr=False)
    _unrolled: list[Unrolled] = field(init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _workspace: Workspace = field(default_factory=Workspace, init=False, repr=False)
    _other: PerExample | None = field(default=None, init=False, repr=False)
    _slots: list[Slot] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._unrolled = list(unrolled(self.model))
        self._layers = _bookable(self.model)
        self._layers += [(*part, 0) for one in self._unrolled for part in one.parts]
        self._slots = slots_of(self.model, self.clipping)  # wrong settings show at once

    def clipped_sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        """The sum over a batch of gradients, each clipped to an L2 norm.

        Args:
            rows: The batch, on the model's device; may be empty.
            clipping_norm: Upper bound on each gradient's L2 norm; positive.

        Returns:
            The sum; an example without a finite gradient counts as zero. Its norms are upper
            bounds, with room for rounding.

        Raises:
            UnsupportedError: If examples are mixed, or the model cannot be taken one by one.
        """
        if len(rows) == 0:
            return empty_sum(self.model)
        if self._other is None:
            try:
                self._try_out(rows)
                return self._in_pieces(rows, clipping_norm)
            except UnbookedError as reason:
                self._other = PerExample(self.model, self.loss, self.clipping, self._unrolled)
                self.notes = (f"gradients by torch.func, which is slower: {reason}",)
        return self._other.clipped_sum(rows, clipping_norm)

    def close(self) -> None:
        """Lets memory go; nothing is left on the model between sums."""
        self._workspace = Workspace()

    def _in_pieces(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        size = self.micro_batch or len(rows)
        if size >= len(rows):
            return self._sum(rows, clipping_norm)
        index = torch.arange(len(rows), device=rows.inputs.device)
        pieces = [self._sum(rows.take(piece), clipping_norm) for piece in torch.split(index, size)]
        return ClippedSum(
            torch.stack([piece.value for piece in pieces]).sum(dim=0),
            torch.cat([piece.norms for piece in pieces]),
            torch.cat([piece.losses for piece in pieces]),
        )

    def _sum(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        losses, uses = self._forward(rows)
        parts = self._backward(losses, uses)
        value, norms = self._weighted(
            parts, losses, lambda norms: self.clipping.factors(norms, clipping_norm)
        )
        scale = self.clipping.scale(clipping_norm)
        value = value if scale == 1 else value.mul_(scale)
        return ClippedSum(value, total(norms), losses.detach())

    @property
    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(slot.name, slot.parameter) for slot in self._slots]

    def _weighted(
        self, parts: dict[int, Part], losses: Tensor, weigh: Weigh
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum, and norms of each group, `(groups, batch)`, float64."""
        if not self._slots:
            return empty_sum(self.model).value, torch.zeros(1, len(losses), dtype=torch.float64)
        return weighted_sum(self._slots, parts, losses, weigh, self._workspace)

    def _forward(self, rows: Rows) -> tuple[Tensor, list[Use]]:
        """Losses, and the uses of layers that they depend on."""
        self._slots = slots_of(self.model, self.clipping)  # parameters may have been replaced
        losses, uses, found = self._watch(rows)
        check_uses(self._trained, uses, found)
        check_inputs(uses, len(rows))
        return losses, uses

    def _watch(self, rows: Rows) -> tuple[Tensor, list[Use], Counter[int]]:
        """Losses, the uses they depend on, and how often they depend on each parameter."""
        with _books(self._layers, self._unrolled) as uses:
            losses = one_loss_each(self.model, self.loss, rows)
        if not losses.requires_grad:
            return losses, [], Counter()
        seen, found = reached(losses)
        return losses, [use for use in uses if use.edge.node in seen], found

    def _backward(
        self, losses: Tensor, uses: list[Use], keep_graph: bool = False
    ) -> dict[int, Part]:
        """Parts of the gradients by the `id` of their parameter."""
        if not uses:
            return {}
        edges = [use.edge for use in uses]
        gradients = torch.autograd.grad(losses.sum(), edges, retain_graph=keep_graph)
        parameters = {id(slot.parameter): slot.parameter for slot in self._slots}
        found: dict[int, list[Part]] = {}
        with torch.no_grad():
            for use, gradient in zip(uses, gradients, strict=True):
                for name, part in _parts(use, gradient).items():
                    parameter = use.layer._parameters.get(name)
                    if id(parameter) in parameters:
                        found.setdefault(id(parameter), []).append(part)
            rows = len(losses)
            return {key: together(parts, rows, parameters[key]) for key, parts in found.items()}

    def _try_out(self, rows: Rows) -> None:
        """Holds the books against autograd, on a few rows of the first batch.

        Raises:
            UnbookedError: If the sums of gradients differ.
            UnsupportedError: If examples are mixed, or a buffer is written to.
        """
        if self._tried:
            return
        count = min(len(rows), _TRIAL)
        few = rows.take(torch.arange(count, device=rows.inputs.device))
        try:
            losses = self._try(few)
        except UnsupportedError:
            if count > 2:
                # Where something else is as long as the batch, it is not with a row less.
                self._try(few.take(torch.arange(count - 1, device=rows.inputs.device)))
            raise
        self._tried = count > 1 and bool(torch.isfinite(losses).all())

    def _try(self, few: Rows) -> Tensor:
        inputs = few.inputs.detach()
        inputs.requires_grad_(inputs.is_floating_point())
        before = buffers_of(self.model)
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # A copy, since a model may write to what it is given.
            losses, uses, found = self._watch(Rows(inputs.clone(), few.targets))
        check_buffers(before, self.model)
        check_kept(uses)
        ends = [inputs] if inputs.requires_grad else []
        if all(one_row_each(use, len(few)) for use in uses):
            ends += [use.edge for use in uses]
        # Before the books are checked: what cannot be booked must be apart, too.
        if losses.requires_grad and ends:
            check_apart(losses, ends)
        check_uses(self._trained, uses, found)
        check_inputs(uses, len(few))
        if uses:
            self._compare(losses, uses)
        return losses

    def _compare(self, losses: Tensor, uses: list[Use]) -> None:
        parameters = trainable(self.model)
        whole = torch.autograd.grad(
            losses.sum(), parameters, retain_graph=True, materialize_grads=True
        )
        parts = self._backward(losses, uses, keep_graph=True)
        booked, norms = self._weighted(parts, losses, torch.ones_like)
        distance = booked - torch.cat([gradient.reshape(-1) for gradient in whole])
        if float(torch.linalg.vector_norm(distance)) > 1e-3 * float(norms.sum()):
            raise UnbookedError("the layers account for another gradient than the whole model has")


def _parts(use: Use, gradient: Tensor) -> dict[str, Part]:
    formula = formula_of(use.layer)
    if formula is None:
        raise UnbookedError(f"the layer {use.name!r} changed while it was used")
    return formula[0](use.layer, use.inputs, gradient)


def _bookable(model: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """Layers with parameters of their own, and how many dimensions their inputs must have."""
    found = []
    for name, layer in model.named_modules():
        formula = formula_of(layer)
        if formula is not None and any(p is not None for p in layer._parameters.values()):
            found.append((name, layer, formula[1]))
    return found


@contextmanager
def _books(layers: list[tuple[str, nn.Module, int]], lstms: list[Unrolled]) -> Iterator[list[Use]]:
    """Books the calls of layers while a model runs forward; its hooks are gone afterwards."""
    uses: list[Use] = []
    hooks = []
    for name, layer, dimensions in layers:
        # First of all hooks: another one may put something else in the place of the output.
        book = _booker(uses, name, dimensions)
        hooks.append(layer.register_forward_hook(book, prepend=True))
    try:
        with taken_over(lstms):
            yield uses
    finally:
        for hook in hooks:
            hook.remove()


def _booker(uses: list[Use], name: str, dimensions: int) -> Any:
    def book(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        trained = any(p is not None and p.requires_grad for p in layer._parameters.values())
        if not trained or len(given) != 1 or not output.requires_grad:
            return
        inputs = given[0].detach()
        if dimensions in (0, inputs.dim()):
            edge = get_gradient_edge(output)
            uses.append(Use(name, layer, inputs, inputs._version, edge))

    return book
