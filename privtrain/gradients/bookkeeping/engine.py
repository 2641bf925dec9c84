"""Clipped sums of per-example gradients at nearly the price of one gradient.

Bu et al. 2023 (arXiv:2210.00038): one forward pass; one backward pass for the gradients of the
layers' outputs alone; each example's norm from activations and output gradients; then the sum of
clipped gradients from the same tensors. Large gradients of single examples are formed only where
that is cheaper, and then for a few examples at a time.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import SUMMED, check_no_autocast, check_types, trainable, wide_type
from privtrain.core.task import Loss, Rows
from privtrain.core.validate import check_count, check_follows
from privtrain.gradients.alone import RowTrial
from privtrain.gradients.bookkeeping.calls import (
    LayerCall,
    NotCoveredError,
    WatchedLayer,
    check_covered,
    check_inputs,
    check_unchanged,
    one_row_each,
    reached,
    watch_calls,
    watched_layers,
)
from privtrain.gradients.bookkeeping.example_gradients import ExampleGradients, merged
from privtrain.gradients.bookkeeping.layers import formula_of
from privtrain.gradients.bookkeeping.recurrent import Unrolled, unrolled_layers
from privtrain.gradients.bookkeeping.sum import (
    TrainedParameter,
    Weigh,
    total,
    trained_parameters,
    weighted_sum,
)
from privtrain.gradients.bookkeeping.torch_func import TorchFuncEngine
from privtrain.gradients.bookkeeping.workspace import Workspace
from privtrain.gradients.gradients import (
    ClippedSum,
    GradientEngine,
    empty_sum,
    one_loss_each,
    rounding_of,
    sum_type,
)
from privtrain.gradients.refusals import (
    TRIAL,
    check_apart,
    conclusive,
    decided_on_rows,
    first_rows,
    refuse_layers,
    tried,
)
from privtrain.mechanisms.clipping import Clipping, FlatClipping


@dataclass(frozen=True)
class BookKeeping:
    """Clipped sums from activations and output gradients; forms few per-example gradients.

    Linear, Conv1d, Conv2d, Embedding, LayerNorm, GroupNorm, InstanceNorm, RMSNorm and, step by
    step, LSTM, GRU and RNN have a formula. A model with a parameter that is used anywhere else, as
    in nn.MultiheadAttention and transformers, is trained by `torch.func`, and the result says so.

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
        check_follows(Clipping, "FlatClipping()", clipping=self.clipping)

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
        check_types(model, SUMMED)
        model.train()
        refuse_layers(model)
        return BookKeepingEngine(model, loss, self.micro_batch, self.clipping)


@dataclass
class BookKeepingEngine:
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
    _layers: list[WatchedLayer] = field(init=False, repr=False)
    _recurrent: list[Unrolled] = field(init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _alone: RowTrial = field(init=False, repr=False)
    _workspace: Workspace = field(default_factory=Workspace, init=False, repr=False)
    _fallback: TorchFuncEngine | None = field(default=None, init=False, repr=False)
    _trained: list[TrainedParameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._alone = RowTrial(self.model, self.loss)
        self._recurrent = list(unrolled_layers(self.model))
        self._layers = watched_layers(self.model)
        self._layers += [(*layer, 0) for each in self._recurrent for layer in each.linear_layers]
        # Here already, so that wrong settings show before training starts.
        self._trained = trained_parameters(self.model, self.clipping)

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
            The sum; an example without a finite gradient counts as zero. Its norms are upper
            bounds, with room for rounding.

        Raises:
            UnsupportedError: If examples are mixed, or the model cannot be taken one by one.
        """
        check_no_autocast()
        if len(rows) == 0:
            return empty_sum(self.model)
        if not (self._tried and self._alone.done):
            self._prepare(rows, public=False)
        if self._fallback is None:
            try:
                return self._in_pieces(rows, clipping_norm)
            except NotCoveredError as reason:
                self._fallback = self._by_torch_func(reason)
        return self._fallback.clipped_sum(rows, clipping_norm)

    def close(self) -> None:
        """Lets memory go; nothing is left on the model between sums."""
        self._workspace = Workspace()

    def _prepare(self, rows: Rows, *, public: bool) -> None:
        """Tries what has not been settled yet."""
        check_no_autocast()
        with decided_on_rows(public=public):
            fallback: TorchFuncEngine | None = None
            if not self._tried:
                try:
                    self._try_out(rows)
                except NotCoveredError as reason:
                    fallback = self._fallback = self._by_torch_func(reason)
            # As many as the model sees at once. `torch.func` sees one, and so trains another
            # function without a word if they are not alone.
            at_once = first_rows(rows, self.micro_batch or len(rows))
            self._alone.on(at_once, public=public)
            if fallback is not None:
                # Before anything is spent: two rows show whether it can be computed. After the
                # other trial, which names what makes it impossible.
                tried(
                    self.model, first_rows(rows, 2), partial(fallback.clipped_sum, clipping_norm=1)
                )
                self._tried = True

    def _by_torch_func(self, reason: NotCoveredError) -> TorchFuncEngine:
        """What computes the sums from here on, as the note says of the whole result."""
        self.notes = (f"gradients by torch.func, which is slower: {reason}",)
        reasons = self._recurrent, str(reason)
        return TorchFuncEngine(self.model, self.loss, self.clipping, *reasons)

    def _in_pieces(self, rows: Rows, clipping_norm: float) -> ClippedSum:
        # Of the whole batch, of which pieces are a part.
        dtype = sum_type(trainable(self.model), len(rows))
        size = self.micro_batch or len(rows)
        if size >= len(rows):
            return self._sum(rows, clipping_norm, dtype)
        index = torch.arange(len(rows), device=rows.inputs.device)
        split = torch.split(index, size)
        pieces = [self._sum(rows.take(piece), clipping_norm, dtype) for piece in split]
        return ClippedSum(
            torch.stack([piece.value for piece in pieces]).sum(dim=0),
            torch.cat([piece.norms for piece in pieces]),
            torch.cat([piece.losses for piece in pieces]),
        )

    def _sum(self, rows: Rows, clipping_norm: float, dtype: torch.dtype) -> ClippedSum:
        """Abadi et al. 2016, Algorithm 1: "Compute gradient", "Clip gradient", and their sum."""
        losses, calls = self._forward(rows)
        gradients = self._backward(losses, calls)
        # The book-keeping trick of Bu et al. 2023: activations and output gradients of this one
        # pass give the norms first and the weighted sum then, without a second backward pass.
        value, norms = self._weighted(
            *(gradients, losses, lambda norms: self.clipping.factors(norms, clipping_norm), dtype)
        )
        scale = self.clipping.scale(clipping_norm)
        value = value if scale == 1 else value.mul_(scale)
        return ClippedSum(value, total(norms), losses.detach())

    def _weighted(
        self,
        gradients: dict[int, ExampleGradients],
        losses: Tensor,
        weigh: Weigh,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum, and norms of each group, `(groups, batch)`, float64."""
        if not self._trained:
            return empty_sum(self.model).value, torch.zeros(1, len(losses), dtype=torch.float64)
        return weighted_sum(self._trained, gradients, losses, weigh, self._workspace, dtype)

    def _forward(self, rows: Rows) -> tuple[Tensor, list[LayerCall]]:
        """Losses, and the calls of layers that they depend on."""
        # In every batch: parameters may have been replaced or frozen since the last one.
        self._trained = trained_parameters(self.model, self.clipping)
        losses, calls, uses = self._watch(rows)
        # In every batch, too: a model with branches may use a weight elsewhere only now and then.
        self._check(calls, uses, len(rows))
        return losses, calls

    def _check(self, calls: list[LayerCall], uses: Counter[int], rows: int) -> None:
        check_covered(((p.name, p.parameter) for p in self._trained), calls, uses)
        check_inputs(calls, rows)

    def _watch(self, rows: Rows) -> tuple[Tensor, list[LayerCall], Counter[int]]:
        """Losses, the calls they depend on, and how often they depend on each parameter."""
        with watch_calls(self._layers, self._recurrent) as calls:
            losses = one_loss_each(self.model, self.loss, rows)
        if not losses.requires_grad:
            return losses, [], Counter()
        # A call whose output leads nowhere has no gradient, and must not stand for another use.
        seen, uses = reached(losses)
        return losses, [call for call in calls if call.edge.node in seen], uses

    def _backward(
        self, losses: Tensor, calls: list[LayerCall], keep_graph: bool = False
    ) -> dict[int, ExampleGradients]:
        """Per-example gradients by the `id` of their parameter, in float32 or wider."""
        if not calls:
            return {}
        edges = [call.edge for call in calls]
        # The ghost differentiation trick of Bu et al. 2023: only output gradients are asked for,
        # so that autograd leaves out the products for the gradients of parameters.
        output_gradients = torch.autograd.grad(losses.sum(), edges, retain_graph=keep_graph)
        parameters = {id(p.parameter): p.parameter for p in self._trained}
        dtype = wide_type(parameters.values())
        by_call: dict[int, list[ExampleGradients]] = {}
        with torch.no_grad():
            for call, output_gradient in zip(calls, output_gradients, strict=True):
                for name, gradients in _of_call(call, output_gradient, dtype).items():
                    parameter = call.layer._parameters.get(name)
                    if id(parameter) in parameters:
                        by_call.setdefault(id(parameter), []).append(gradients)
            # A norm is that of the sum over all calls, never the sum of their norms.
            rows = len(losses)
            return {key: merged(each, rows, parameters[key]) for key, each in by_call.items()}

    def _try_out(self, rows: Rows) -> None:
        """Compares with autograd on a few rows of the first batch.

        Raises:
            NotCoveredError: If the sums of gradients differ.
            UnsupportedError: If examples are mixed, or a buffer is written to.
        """
        few = first_rows(rows, TRIAL)
        try:
            losses = self._try(few)
        except UnsupportedError:
            if len(few) > 2:
                # Where something else is as long as the batch, it is not with a row less.
                self._try(first_rows(few, len(few) - 1))
            raise
        self._tried = conclusive(losses)

    def _try(self, few: Rows) -> Tensor:
        (losses, calls, uses), ends = tried(self.model, few, self._watch)
        check_unchanged(calls)
        if all(one_row_each(call, len(few)) for call in calls):
            ends += [call.edge for call in calls]
        # Before calls are checked: what has no formula must be apart, too. `torch.func` takes
        # examples one by one, so that it would train another function without a word.
        check_apart(losses, ends)
        self._check(calls, uses, len(few))
        if calls:
            self._compare(losses, calls)
        return losses

    def _compare(self, losses: Tensor, calls: list[LayerCall]) -> None:
        parameters = trainable(self.model)
        whole = torch.autograd.grad(
            losses.sum(), parameters, retain_graph=True, materialize_grads=True
        )
        dtype = sum_type(parameters, len(losses))
        gradients = self._backward(losses, calls, keep_graph=True)
        value, norms = self._weighted(gradients, losses, torch.ones_like, dtype)
        distance = value - torch.cat([gradient.reshape(-1) for gradient in whole])
        # A layer may compute in a coarser type than its parameters have, as in `torch.autocast`.
        rounding = rounding_of(*(each.dtype for each in (losses, *whole)), *_types(calls))
        # Relative to the sum of the norms: gradients of opposite examples may cancel.
        if float(torch.linalg.vector_norm(distance)) > rounding * float(norms.sum()):
            raise NotCoveredError(
                "the layers account for another gradient than the whole model has"
            )


def _of_call(
    call: LayerCall, output_gradient: Tensor, dtype: torch.dtype
) -> dict[str, ExampleGradients]:
    formula = formula_of(call.layer)
    if formula is None:
        raise NotCoveredError(f"the layer {call.name!r} changed while it was used")
    # Before anything is added up or measured: sums and squares of bfloat16 are off by their size.
    inputs, gradient = _in_type(call.inputs, dtype), _in_type(output_gradient, dtype)
    return formula[0](call.layer, inputs, gradient)


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating-point values in a type; whole numbers, such as tokens, as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _types(calls: list[LayerCall]) -> Iterator[torch.dtype]:
    """The floating-point types that layers were given."""
    return (call.inputs.dtype for call in calls if call.inputs.is_floating_point())
