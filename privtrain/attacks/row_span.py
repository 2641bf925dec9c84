"""Row span: does a row lie in the span of a client's update of the first layer?"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from privtrain.attacks.attack import check_target
from privtrain.attacks.messages import Update, own_module, updates_of
from privtrain.attacks.scores import Scores
from privtrain.attacks.taxonomy import COALITION, About, Capability, Goal
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import AGGREGATOR, Observer
from privtrain.core.parameters import ModelPredictor, trainable
from privtrain.core.result import Target
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_fraction, check_positive


@dataclass(frozen=True, kw_only=True)
class RowSpan:
    """Calls a row a member where it lies in the row space of a client's first-layer update.

    The gradient of a linear layer on a row is a multiple of the layer's input. Whatever a client
    does by plain SGD, with momentum or without, in any number of steps and batches, the change of
    its first weight matrix stays in the span of its rows; clipping scales it. A client with fewer
    rows than the layer has features and outputs gives itself away. Updates whose span holds all
    candidates, such as those of clients with many rows or of noised ones, say nothing and are left
    out.

    Args:
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        tolerance: Singular values up to this fraction of the largest one count as zero; in (0, 1).
        observer: Who attacks: the aggregator, or a coalition with it.

    Source: a linear layer's gradient is a multiple of its input, Phong et al. 2018, Section III
        (eprint 2017/715).
    """

    limit: int = 1_000
    tolerance: float = 1e-3
    name: str = field(default="row span", init=False)
    observer: Observer = AGGREGATOR
    needs_messages: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("model", "update")
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.MESSAGES,
        observers=(AGGREGATOR.name, COALITION),
        zero="clients hold more rows than the first layer has features or outputs, or step by "
        "something else than plain SGD, such as Adam: updates may still hold the rows",
    )

    def __post_init__(self) -> None:
        check_count(limit=self.limit)
        check_positive(tolerance=self.tolerance)
        check_fraction(tolerance=self.tolerance)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """Minus the smallest fraction of each row that lies outside a span, in [-1, 0].

        Raises:
            ValueError: If the view is another observer's.
            NotApplicableError: If no single update can be read, or the model does not start with a
                linear layer.
        """
        check_target(target, self.observer)
        module = own_module(target)
        updates = updates_of(target, module)
        layer, inputs = first_layer(module, candidates.inputs)
        there = self._basis(inputs)
        rows = nn.functional.normalize(inputs)
        outside = torch.full((len(rows),), torch.inf, dtype=torch.float64)
        for update in updates:
            basis = self._basis(_change_of(layer, module, update))
            if 0 < len(basis) < len(there):
                covered = (rows @ basis.T).square().sum(dim=1)
                outside = outside.minimum(1.0 - covered)
        # Where no span tells rows apart, nothing does.
        scores: Scores = np.asarray(-outside.nan_to_num(posinf=0.0))
        return scores

    def _basis(self, matrix: Tensor) -> Tensor:
        """An orthonormal basis of the span of rows, `(rank, features)`; empty if not finite."""
        if not bool(matrix.isfinite().all()):
            return matrix[:0]
        _, sizes, directions = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((sizes > self.tolerance * sizes[0]).sum())
        basis: Tensor = directions[:rank]
        return basis


def first_layer(module: nn.Module, inputs: Tensor) -> tuple[nn.Linear, Tensor]:
    """The layer with parameters that a row reaches first, where it is a linear one.

    Args:
        module: The model.
        inputs: Rows, shape `(rows, ...)`.

    Returns:
        The layer and what it is given for these rows, on the CPU in float64, `(rows, features)`.

    Raises:
        NotApplicableError: If another layer comes first, or it is used more than once, or not on
            one vector a row.
    """
    calls: list[tuple[nn.Module, Tensor | None]] = []

    def note(layer: nn.Module, given: tuple[object, ...]) -> None:
        first = given[0] if given else None
        calls.append((layer, first.detach().clone() if isinstance(first, Tensor) else None))

    holders = [
        layer
        for layer in module.modules()
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    ]
    hooks = [layer.register_forward_pre_hook(note) for layer in holders]
    try:
        with global_generator(Seeds(0)["first layer", 0, ""]):
            ModelPredictor(module)(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    layer, given = calls[0] if calls else (module, None)
    once = [called for called, _ in calls].count(layer) == 1
    linear = type(layer) is nn.Linear and layer.weight.requires_grad
    if isinstance(layer, nn.Linear) and linear and once and given is not None and given.ndim == 2:
        return layer, given.cpu().double()
    raise NotApplicableError(
        "This attack needs a model whose first layer with parameters is linear, on one vector a "
        f"row; that of this {type(module).__name__} is a {type(layer).__name__}. Use LossGain.",
        Reason.OTHER_MODEL,
    )


def _change_of(layer: nn.Linear, module: nn.Module, update: Update) -> Tensor:
    """What a client changed of a layer's weight, `(outputs, features)`."""
    start = 0
    for parameter in trainable(module):
        if parameter is layer.weight:
            break
        start += parameter.numel()
    return update.change[start : start + layer.weight.numel()].view_as(layer.weight)
