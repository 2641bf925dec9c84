"""White-box membership inference: training drives the gradients of members towards zero."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import check_losses
from privtrain.attacks.scores import Scores
from privtrain.attacks.taxonomy import EVERYBODY, About, Capability, Goal
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, QUERIER, Observer
from privtrain.core.parameters import module_of, trainable
from privtrain.core.result import Target
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.settings import recorded_gradients
from privtrain.core.task import Loss, Rows
from privtrain.core.validate import check_count

_VALUES = 2**22
"""Values of gradients that are held at a time: 32 MB in float64."""

OfRows = Callable[[nn.Module, Loss, Rows], Tensor]
"""From a model, a loss and a few rows: the norm of each, `(rows,)`."""

_REFUSED = (RuntimeError, TypeError)
"""What torch raises where it does not take a model in this way."""


@dataclass(frozen=True, kw_only=True)
class GradientNorm:
    """A membership attack that calls a row a member where its own gradient is small.

    It reads the published weights, and asks nothing: the gradient of the task's loss on the row,
    by all trained weights, is computed on a copy.

    Args:
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        observer: Who attacks; its own rows are no candidates. A querier has no weights.

    Source: Nasr, Shokri and Houmansadr 2019, section III (arXiv:1812.00910).
    """

    limit: int = 10_000
    name: str = field(default="gradient norm", init=False)
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.WEIGHTS,
        observers=tuple(name for name in EVERYBODY if name != QUERIER.name),
        zero="easy and hard rows are treated alike, as by the loss threshold",
    )

    def __post_init__(self) -> None:
        check_count(limit=self.limit)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """Minus the L2 norm of the gradient of each row; the seed plays no part.

        Raises:
            ValueError: If the view is another observer's, or the loss does not give one value a
                row.
            NotApplicableError: If the predictor is no model, or has no weights.
        """
        check_target(target, self.observer)
        module = module_of(target.predictor)
        if module is None or not any(p.is_floating_point() for p in module.parameters()):
            raise NotApplicableError(
                "Expected the predictor to be a module with weights, whose gradients are read. Use "
                "LabelOnly or LossThreshold, which ask it.",
                Reason.NO_WEIGHTS,
            )
        scores: Scores = (-gradient_norms(module, target.task.loss, candidates)).numpy()
        return scores


def gradient_norms(module: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """The L2 norm of the gradient of each row's own loss, by all trained weights.

    The model is in evaluation mode and in float64, where in float32 gradients of confident
    predictions are rounded to zero; in its own types where it cannot be computed so.

    Args:
        module: The model; it stays as it is.
        loss: Loss of each example.
        rows: Inputs and targets.

    Returns:
        Norms in float64, shape `(rows,)`.

    Raises:
        ValueError: If the loss does not give one value a row.
    """
    own = copy.deepcopy(module).eval()
    if not trainable(own):  # published frozen
        for parameter in own.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    try:
        wide = copy.deepcopy(own).double()
        return _norms(wide, loss, _wide(rows))
    except _REFUSED:
        # A model or a loss that holds float32 tensors of its own, such as class weights.
        return _norms(own, loss, rows)


def _wide(rows: Rows) -> Rows:
    inputs, targets = (
        part.double() if part.is_floating_point() else part for part in (rows.inputs, rows.labels)
    )
    return Rows(inputs, targets)


def _norms(module: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """Norms, of many rows at once where `torch.func` takes the model, else row by row."""
    try:
        return _in_parts(_together, module, loss, rows)
    except _REFUSED:
        return _in_parts(_one_by_one, module, loss, rows)


def _in_parts(of_rows: OfRows, module: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """Norms of as many rows at a time as gradients may be held of, float64, on the CPU."""
    device = next(module.parameters()).device
    size = max(1, _VALUES // sum(parameter.numel() for parameter in trainable(module)))
    stream, norms = Seeds(0)["gradient norms", 0, ""], []
    for part in torch.split(torch.arange(len(rows), device=rows.inputs.device), size):
        # What a model draws must not move the generators of other threads, nor follow from them.
        with global_generator(stream), recorded_gradients():
            norms.append(of_rows(module, loss, rows.take(part).to(str(device))))
    return torch.cat(norms).double().cpu()


def _together(module: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """The norms of a few rows by `torch.func`, `(rows,)`."""
    given = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}

    def loss_of_row(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(module, weights, (row.unsqueeze(0),))
        losses = loss(outputs, label.unsqueeze(0))
        check_losses(losses, 1)
        return losses.sum()

    of_rows: Callable[..., dict[str, Tensor]] = vmap(
        grad(loss_of_row), in_dims=(None, 0, 0), randomness="same"
    )
    with warnings.catch_warnings():
        # Attention has kernels that are called once for each row: slower, and as right.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        gradients = of_rows(given, rows.inputs, rows.labels)
    flat = [values.reshape(len(rows), -1) for values in gradients.values()]
    return torch.stack([values.square().sum(dim=1) for values in flat]).sum(dim=0).sqrt()


def _one_by_one(module: nn.Module, loss: Loss, rows: Rows) -> Tensor:
    """The same by one backward pass for each row, `(rows,)`."""
    norms = []
    for inputs, label in zip(torch.split(rows.inputs, 1), torch.split(rows.labels, 1), strict=True):
        # Copies: a model or a loss may write into them.
        losses = loss(module(inputs.clone()), label.clone())
        check_losses(losses, 1)
        gradients = torch.autograd.grad(
            losses.sum(), trainable(module), allow_unused=True, materialize_grads=True
        )
        norms.append(torch.stack([values.square().sum() for values in gradients]).sum().sqrt())
    return torch.stack(norms)
