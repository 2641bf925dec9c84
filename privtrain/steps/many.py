"""Many models of one kind trained at the same time, each on batches of its own.

The batches of all models lie in one table, so that what treats rows or numbers one by one (layers
without weights, losses, an optimizer) is one operation for all models. Products with weights are
taken model by model, by the calls that a model makes alone: where a batched product rounds in
another order, each model here has the bits that it has alone.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import initial_model, to_vector, trainable
from privtrain.core.runtime import Draws
from privtrain.core.seeding import Stream, global_generator
from privtrain.core.task import Loss, Rows, Task, cross_entropy
from privtrain.gradients.gradients import check_losses
from privtrain.report.progress import Report
from privtrain.steps.grouped import ELEMENTWISE, chained_layers, is_known
from privtrain.steps.optimizers import OptimizerFactory, advance, make_optimizer
from privtrain.steps.plain import normalises_batches
from privtrain.steps.tables import Products, Table, Weight
from privtrain.steps.together import is_elementwise

MEMORY, OF_INPUTS = 2**28, 4
"""Bytes of the batches of models that are trained at the same time, each of which takes its inputs
so many times: themselves, and what layers make of them."""

_TABLES = 16
"""Kinds of steps that are remembered."""

_BY_ROWS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Identity),
    *(nn.Flatten, nn.MaxPool2d, nn.AvgPool2d),
)
"""Layers without weights that treat each row by itself, to the same bits wherever it lies: the last
values of a tensor get their exponential from another function than those before."""


def initial_models(task: Task, included: Tensor, draws: Sequence[Draws]) -> list[nn.Module]:
    """The models of many fits before their first step, in training mode.

    Args:
        task: What is learned.
        included: Which rows each model trains on, boolean, shape `(models, rows)`.
        draws: The streams of each.

    Raises:
        DataError: If one has no row.
    """
    for number, own in enumerate(included):
        if not bool(own.any()):
            raise DataError(f"Expected included[{number}] to mark rows; there are none.")
    streams = [each.seeds["initialisation", 0, ""] for each in draws]
    return [initial_model(task, stream).to(draws[0].device).train() for stream in streams]


def in_parts(
    count: int, rows: Rows, batch: int, progress: Report
) -> Iterator[tuple[slice, Report]]:
    """Cuts models into parts whose batches fit into memory at the same time.

    Args:
        count: How many models there are.
        rows: The rows of all models.
        batch: Rows that a model takes at a time, at most or as expected.
        progress: Called as `progress(done, total)`, of all parts.

    Yields:
        The models of each part, and its own progress, whose total is that of each part.
    """
    size = batch * rows.inputs[:1].numel() * rows.inputs.element_size()
    at_once = max(1, MEMORY // max(1, OF_INPUTS * size))
    starts = range(0, count, at_once)

    def told(before: int) -> Report:
        return lambda done, total: progress(before * total + done, len(starts) * total)

    for number, start in enumerate(starts):
        yield slice(start, start + at_once), told(number)


class Models:
    """Models of one kind, whose trained weights lie side by side.

    Args:
        models: At least one, in training mode, on one device.
        loss: Loss of each example.

    Raises:
        UnsupportedError: If they normalise by their batch, or a layer stands twice in them.
    """

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        layers = [layer for _, layer in models[0].named_modules(remove_duplicate=False)]
        # `functional_call` puts one weight in two places and back, and leaves it there.
        if normalises_batches(models[0]) or len(set(map(id, layers))) < len(layers):
            raise UnsupportedError(
                "The model normalises by its batch (nn.BatchNorm), or uses a layer under two names,"
                " so that many cannot be trained at once. Train them one by one."
            )
        self._models, self._loss = models, loss
        self._tables: dict[tuple[int, ...], Table] = {}
        self.weights = {
            name: Weight([model.get_parameter(name).detach() for model in models])
            for name, first in models[0].named_parameters()
            if first.requires_grad
        }
        every = list(models[0].named_parameters(remove_duplicate=False))
        # A weight that two layers share has one name: the whole model is one layer.
        alone = len(every) == len(list(models[0].parameters()))
        self._layers = list(chained_layers(models[0])) if alone else [("", models[0])]

    @property
    def is_linear_chain(self) -> bool:
        """Whether each layer is trained and linear, or treats each row by itself."""
        return all(
            self._is_linear(prefix, layer)
            or (is_known(layer) and type(layer) in (*_BY_ROWS, *ELEMENTWISE))
            for prefix, layer in self._layers
        )

    def vector(self, number: int) -> Tensor:
        """The weights that a model has by now, in their order, shape `(parameters,)`."""
        return to_vector(weight.each[number] for weight in self.weights.values())

    @torch.no_grad()
    def take(self, number: int) -> None:
        """Puts the weights that a model has by now into it."""
        for name, weight in self.weights.items():
            self._models[number].get_parameter(name).copy_(weight.each[number])

    def outputs(
        self, table: Table, inputs: Tensor, calls: dict[str, tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """What each model makes of its batch.

        Args:
            table: Whose rows are whose.
            inputs: Shape `(table, ...)`.
            calls: Where inputs and outputs of each linear layer are left, by what the names of its
                weights begin with; gradients then reach these outputs, and no weight.

        Returns:
            Shape `(table, ...)`.
        """
        value = inputs
        for prefix, layer in self._layers:
            if type(layer) in _BY_ROWS and is_known(layer):
                value = layer(value)
            elif value.dim() == 2 and self._is_linear(prefix, layer):
                value = self._products(prefix, table, value, calls)
            else:
                value = self._one_by_one(prefix, table, value)
        return value

    def _is_linear(self, prefix: str, layer: nn.Module) -> bool:
        """Whether it is a linear layer and nothing else, all of which is trained."""
        if type(layer) is not nn.Linear or not is_known(layer):
            return False
        return all(f"{prefix}{name}" in self.weights for name, _ in layer.named_parameters())

    def _products(
        self,
        prefix: str,
        table: Table,
        value: Tensor,
        calls: dict[str, tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        weight, bias = self.weights[f"{prefix}weight"], self.weights.get(f"{prefix}bias")
        store = weight.store if calls is None else weight.store.detach()
        made: Tensor = Products.apply(value, store, weight, bias, table)  # type: ignore[no-untyped-call]
        if calls is not None:
            calls[prefix] = (value.detach(), made if made.requires_grad else made.requires_grad_())
        return made

    def _one_by_one(self, prefix: str, table: Table, value: Tensor) -> Tensor:
        """What each model's own layer, or the whole model, makes of its part of the table."""
        inner = {
            name.removeprefix(prefix): weight.views()
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }
        parts: list[Tensor | None] = []
        for number, (model, part) in enumerate(zip(self._models, table.split(value), strict=True)):
            # The model's own layer: buffers, and what else it has, are its own.
            layer = model.get_submodule(prefix.removesuffix("."))
            own = {name: views[number] for name, views in inner.items()}
            parts.append(functional_call(layer, own, (part.clone(),)) if len(part) else None)
        empty = next(part for part in parts if part is not None)[:0]
        return table.joined([empty if part is None else part for part in parts])

    def step(self, optimizer: Optimizer, batches: Sequence[Tensor | None], rows: Rows) -> None:
        """One step of each model on the mean loss of its batch.

        Args:
            optimizer: Steps the stores.
            batches: Numbers of the rows of each model, shape `(batch,)`. A model without a batch
                may be moved, too: its weights are taken before.
            rows: The rows of all models.
        """
        for weight in self.weights.values():
            weight.store.grad = None
        table, inputs, targets = self.batch(batches, rows)
        losses = self.losses(table, self.outputs(table, inputs), targets)
        # The gradients of all means: each model's weights are in its own alone.
        losses.backward(table.shares(losses))  # type: ignore[no-untyped-call]
        advance(optimizer)

    def batch(self, batches: Sequence[Tensor | None], rows: Rows) -> tuple[Table, Tensor, Tensor]:
        """The table of batches, and its inputs and targets, `(table, ...)`."""
        sizes = tuple(0 if batch is None else batch.numel() for batch in batches)
        if sizes not in self._tables:
            # Few at a time: random batches have other sizes in each step.
            if len(self._tables) > _TABLES:
                self._tables.clear()
            self._tables[sizes] = Table(sizes)
        table = self._tables[sizes]
        index = table.index([batch for batch in batches if batch is not None and batch.numel()])
        return table, rows.inputs.index_select(0, index), rows.labels.index_select(0, index)

    def losses(self, table: Table, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, shape `(table,)`; zero for what fills batches up, or any value."""
        # Wherever its rows lie, their bits are the same.
        if self._loss is cross_entropy:
            return check_losses(self._loss(outputs, targets), outputs)
        pairs = zip(table.split(outputs), table.split(targets), strict=True)
        parts = [
            check_losses(self._loss(one, other), one) if len(one) else outputs.new_zeros(0)
            for one, other in pairs
        ]
        return table.joined(parts)


def optimizer_of_all(
    models: Models, one: nn.Module, optimizer: str | OptimizerFactory, learning_rate: float
) -> Optimizer:
    """One optimizer that steps each model as its own would.

    Args:
        models: What it steps.
        one: One of the models.
        optimizer: Name of a class in `torch.optim`, or a factory.
        learning_rate: Learning rate; positive.

    Raises:
        UnsupportedError: If what it does to a number may depend on others, or on whose it is.
    """
    alone = make_optimizer(optimizer, trainable(one), learning_rate)
    stores = [weight.store for weight in models.weights.values()]
    made = make_optimizer(optimizer, stores, learning_rate)
    settings = [
        [{k: v for k, v in group.items() if k != "params"} for group in each.param_groups]
        for each in (alone, made)
    ]
    if not is_elementwise(made) or len(settings[0]) != 1 or settings[0] != settings[1]:
        raise UnsupportedError(
            f"optimizer={optimizer!r} cannot step many models at once: it is none of torch's SGD, "
            "Adam and AdamW with the same settings for all parameters. Train them one by one."
        )
    return made


def train_together(
    batches: Sequence[Iterator[Tensor]],
    step: Callable[[int, list[Tensor | None]], None],
    take: Callable[[int], None],
    stream: Stream,
) -> None:
    """Lets each model take the steps of its own batches.

    Args:
        batches: Numbers of the rows of each step of each model, `(batch,)`; perhaps none.
        step: Called with the number of the step and the batches, None for who is through.
        take: Called once with the number of each model, when it has taken its last step: what
            later steps, of others, do to it is no part of it.
        stream: What a model would draw from that draws.

    Raises:
        UnsupportedError: If a model draws: draws of one would be another's.
    """
    through = [False] * len(batches)
    with global_generator(stream):
        before = generators()
        for number in itertools.count():
            taken = [next(each, None) for each in batches]
            for model, batch in enumerate(taken):
                if batch is None and not through[model]:
                    take(model)
                    through[model] = True
            if all(through):
                break
            step(number, taken)
            if number == 0:
                check_draws_nothing(before)
        check_draws_nothing(before)


def check_draws_nothing(before: Any) -> None:
    """Refuses models that drew from global generators: those of one model would be another's.

    Args:
        before: What `generators` said before they were run.

    Raises:
        UnsupportedError: If a generator moved.
    """
    now = generators()
    if not all(same(*pair) for same, *pair in zip(_SAME, before, now, strict=True)):
        raise UnsupportedError(
            "The model draws while it trains, as dropout does, so that many models cannot be "
            "trained at once: each has draws of its own. Train them one by one."
        )


_SAME: tuple[Callable[[Any, Any], bool], ...] = (
    lambda one, other: all(map(torch.equal, one, other)),
    lambda one, other: one[2] == other[2] and bool(np.array_equal(one[1], other[1])),
    lambda one, other: one == other,
)


def generators() -> tuple[Any, Any, Any]:
    """The states of torch's, numpy's and Python's global generators."""
    # Each device has one of its own.
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices], np.random.get_state(), random.getstate()
