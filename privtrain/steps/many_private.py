"""Many models trained at the same time by clipped and noised sums of per-example gradients."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import wide_type
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.task import Loss, Rows
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.bookkeeping.example_gradients import (
    ExampleGradients,
    Formed,
    OuterProduct,
)
from privtrain.gradients.bookkeeping.sum import (
    OfParameters,
    bounds,
    group_squares,
    trained_parameters,
)
from privtrain.gradients.gradients import Gradients, nan_where_not_finite, sum_type
from privtrain.mechanisms.mechanism import Mechanism, State, l2_bound_of
from privtrain.steps.many import Models
from privtrain.steps.tables import Table


class NoisedSums:
    """The noised sums of clipped gradients of many models, of which each has its own noise.

    Norms are bounded for all rows of the table by one call of what bounds them for one model, so
    that a sum is that of the model's own engine but for the order in which it is added up.

    Args:
        models: The models.
        one: One of them.
        loss: Loss of each example.
        gradients: What one model's gradients would be computed by.
        mechanism: Clips and noises.
        expected: The public number by which sums are divided.

    Raises:
        UnsupportedError: If a model is no chain of linear layers and layers without weights, or
            `gradients` works on parts of a batch or is another engine.
    """

    def __init__(
        self,
        models: Models,
        one: nn.Module,
        loss: Loss,
        gradients: Gradients,
        mechanism: Mechanism,
        expected: float,
    ) -> None:
        if type(gradients) is not BookKeeping or gradients.micro_batch is not None:
            raise UnsupportedError(f"gradients={gradients} computes those of one model at a time.")
        if not models.is_linear_chain:
            raise UnsupportedError(
                "The clipped gradients of many models are computed at once for chains of nn.Linear "
                "and layers without weights. Train them one by one."
            )
        # Called for its refusals: of layers, and of types of parameters.
        gradients.engine(one, loss).close()
        self._models, self._clipping = models, gradients.clipping
        self._mechanism, self._bound = mechanism, l2_bound_of(mechanism)
        self._expected = expected
        self._trained = trained_parameters(one, gradients.clipping)
        self._groups = 1 + max(each.group for each in self._trained)
        self._states: dict[int, State] = {}

    def write(
        self,
        step: int,
        batches: Sequence[Tensor | None],
        rows: Rows,
        draws: Sequence[Draws],
    ) -> None:
        """Leaves the gradient of each model, noised and divided, where an optimizer finds it.

        Args:
            step: The number of the step.
            batches: Numbers of the rows of each model, `(batch,)`; None for who takes no step.
            rows: The rows of all models.
            draws: The streams of each model.
        """
        sums = list(self._sums(batches, rows))
        for number, (batch, value) in enumerate(zip(batches, sums, strict=True)):
            if batch is None:
                continue
            stream = draws[number].entropy["noise/gradient", step, AGGREGATOR_NAME]
            state = self._states.get(number)
            noised, self._states[number] = self._mechanism.add(value, state, stream)
            pieces = torch.split(noised, [w.shape.numel() for w in self._models.weights.values()])
            for piece, weight in zip(pieces, self._models.weights.values(), strict=True):
                torch.div(piece.view(weight.shape), self._expected, out=weight.gradients[number])
        for weight in self._models.weights.values():
            weight.store.grad = weight.gradient

    def _sums(self, batches: Sequence[Tensor | None], rows: Rows) -> Iterator[Tensor]:
        """The clipped sum of each model, shape `(parameters,)`."""
        weights = [weight.store for weight in self._models.weights.values()]
        sizes = [weight.shape.numel() for weight in self._models.weights.values()]
        counts = [0 if batch is None else batch.numel() for batch in batches]
        weighted: list[tuple[Sequence[Tensor], Sequence[Tensor] | None]] = []
        if any(counts):
            weighted = self._weighted(batches, rows)
        for number, count in enumerate(counts):
            value = weights[0].new_zeros(
                sum(sizes), dtype=sum_type(weights, count), requires_grad=False
            )
            pieces = torch.split(value, sizes)
            for (outputs, inputs), piece in zip(weighted if count else (), pieces, strict=False):
                own = outputs[number].to(value.dtype)
                if inputs is None:
                    torch.sum(own, 0, out=piece)
                else:
                    given = inputs[number].to(value.dtype)
                    torch.mm(own.t(), given, out=piece.view(own.shape[1], -1))
            yield value

    def _weighted(
        self, batches: Sequence[Tensor | None], rows: Rows
    ) -> list[tuple[Sequence[Tensor], Sequence[Tensor] | None]]:
        """Clipped output gradients and inputs of each parameter, by model; of a bias no inputs."""
        table, inputs, targets = self._models.batch(batches, rows)
        calls: dict[str, tuple[Tensor, Tensor]] = {}
        losses = self._models.losses(table, self._models.outputs(table, inputs, calls), targets)
        if calls.keys() != {_prefix(trained.name) for trained in self._trained}:
            raise UnsupportedError(
                "A linear layer sees more than one vector of a row. Train these models one by one."
            )
        made = torch.autograd.grad(losses.sum(), [out for _, out in calls.values()])
        of_layers = {
            prefix: (value, gradient)
            for (prefix, (value, _)), gradient in zip(calls.items(), made, strict=True)
        }
        pairs: OfParameters = []
        for trained in self._trained:
            value, gradient = of_layers[_prefix(trained.name)]
            is_bias = trained.name.endswith("bias")
            each: ExampleGradients = Formed(gradient) if is_bias else OuterProduct(value, gradient)
            pairs.append((trained, each))
        factors = self._factors(pairs, losses.detach())
        return [self._split(table, each, factors[trained.group]) for trained, each in pairs]

    def _factors(self, pairs: OfParameters, losses: Tensor) -> Tensor:
        """Abadi et al. 2016, Algorithm 1, "Clip gradient": `(groups, table)`."""
        values = sum(weight.shape.numel() for weight in self._models.weights.values())
        own = wide_type([weight.store for weight in self._models.weights.values()])
        squares = nan_where_not_finite(group_squares(pairs, self._groups, values), losses)
        factors = self._clipping.factors(bounds(squares, own), self._bound).to(own)
        # What is left out of one group is left out of all.
        factors = factors * (factors != 0).all(dim=0)
        return factors * self._clipping.scale(self._bound)

    def _split(
        self, table: Table, each: ExampleGradients, factors: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        left_out = (factors == 0).unsqueeze(1)
        some = bool(left_out.any())
        if isinstance(each, OuterProduct):
            outputs, inputs = each.outputs * factors.unsqueeze(1), each.inputs
            if some:
                # Zero times infinity is not zero.
                outputs, inputs = outputs.masked_fill(left_out, 0), inputs.masked_fill(left_out, 0)
            return table.split(outputs), table.split(inputs)
        assert isinstance(each, Formed)
        outputs = each.gradients * factors.unsqueeze(1)
        return table.split(outputs.masked_fill(left_out, 0) if some else outputs), None


def _prefix(name: str) -> str:
    """What the names of the weights of a layer begin with."""
    return name.removesuffix("weight").removesuffix("bias")
