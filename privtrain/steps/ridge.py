"""Teachers in closed form: ridge regression on fixed features, one solve each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, Task
from privtrain.core.validate import check_positive
from privtrain.steps.teaching import Teacher

_GROUP = 32
"""Teachers whose scores are one product: queries are read once for all of them."""


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Least squares on one-hot labels with a bias and a penalty: one-vs-rest, no iterations.

    A teacher is a function of its own rows. No constant is taken from rows of several teachers, so
    that features are neither centred nor scaled here: the bias does the one, and a map of features
    the other (`PATE(features=...)`).

    Args:
        strength: Penalty on the squared weights; positive, in units of squared features. The bias
            is not penalised.

    Source: Hoerl and Kennard 1970, "Ridge Regression"; dual form of Saunders, Gammerman and Vovk
    1998, Section 2.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_positive(strength=self.strength)

    @property
    def trains_model(self) -> bool:
        return False

    def check(self, task: Task, model: nn.Module) -> None:
        # Any model does: no teacher is one.
        return

    def fewest_rows(self, model: nn.Module) -> int:
        return 1

    @property
    def at_once(self) -> int:
        return _GROUP

    def prepared(self, task: Task, queries: Tensor, classes: int) -> "Ridge":
        return self

    def teach(
        self, task: Task, group: Sequence[Teacher], queries: Tensor, classes: int
    ) -> list[Tensor]:
        asked = queries.flatten(1)
        asked = asked if asked.is_floating_point() else asked.double()
        if asked.dtype in (torch.float16, torch.bfloat16):
            asked = asked.float()
        solved = [self._solved(teacher, asked, classes) for teacher in group]
        weights = torch.cat([weight for weight, _ in solved], dim=1).to(asked)
        biases = torch.cat([bias for _, bias in solved]).to(asked)
        scores = (asked @ weights + biases).cpu()
        return [part.contiguous() for part in torch.split(scores, classes, dim=1)]

    def _solved(self, teacher: Teacher, asked: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Weights `(features, classes)` and bias `(classes,)` of one teacher, float64."""
        rows, draws = teacher.rows, teacher.draws
        if len(rows) == 0:
            # A vote by chance, always the same one, which tells nothing: as an initial model has.
            chosen = torch.randint(
                classes, (), generator=draws.seeds["votes", 0, draws.name].torch()
            )
            bias = functional.one_hot(chosen, classes).double().to(asked.device)
            return bias.new_zeros(asked.shape[1], classes), bias
        return fitted(rows.to(str(asked.device)), self.strength, classes)


def fitted(rows: Rows, strength: float, classes: int) -> tuple[Tensor, Tensor]:
    """The minimum of `|X W + 1 b - Y|^2 + strength |W|^2` over weights and bias.

    Args:
        rows: At least one; inputs `(rows, ...)` are flattened, targets are class numbers.
        strength: Penalty on the weights.
        classes: How many classes there are; a class without rows is one that never was.

    Returns:
        Weights `(features, classes)` and bias `(classes,)`, float64. NaN where an input is not
        finite: such a teacher has no vote.

    Raises:
        UnsupportedError: If targets are no class numbers.
    """
    if rows.labels.ndim != 1 or rows.labels.is_floating_point():
        raise UnsupportedError(
            f"Expected class numbers, shape (rows,), not targets of shape "
            f"{tuple(rows.labels.shape)} and type {rows.labels.dtype}: Ridge() teaches classes."
        )
    inputs = rows.inputs.flatten(1).double()
    wanted = functional.one_hot(rows.labels.long(), classes).double()
    if not bool(torch.isfinite(inputs).all()):
        return inputs.new_full((inputs.shape[1], classes), torch.nan), wanted.mean(dim=0)
    # A bias without a penalty takes up the means of these rows, and leaves weights of what is left.
    middle, share = inputs.mean(dim=0), wanted.mean(dim=0)
    inputs, wanted = inputs - middle, wanted - share
    count, width = inputs.shape
    # Whichever system is smaller; both have the same solution (Saunders et al. 1998, Section 2).
    if width <= count:
        weights = _solve(inputs.T @ inputs, strength, inputs.T @ wanted)
    else:
        weights = inputs.T @ _solve(inputs @ inputs.T, strength, wanted)
    return weights, share - middle @ weights


def _solve(gram: Tensor, strength: float, right: Tensor) -> Tensor:
    """`(gram + strength I)^-1 right`, in place of the Gram matrix."""
    gram.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) == 0:
        return torch.cholesky_solve(right, factor)
    # Rounding made it indefinite: the penalty is far below the rounding of the products.
    solution: Tensor = torch.linalg.lstsq(gram, right).solution
    return solution
