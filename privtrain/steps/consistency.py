"""Consistency: what a model says of an image that was moved a little holds for one moved much."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtrain.core.parameters import ModelPredictor
from privtrain.core.validate import check_count, check_positive
from privtrain.steps.augmentation import Affine


@dataclass(frozen=True)
class Examples:
    """Rows of a batch that have no label of their own.

    Args:
        inputs: Moved much, shape `(rows, ...)`.
        labels: What the model says of them moved a little, shape `(rows,)`.
        weights: How much each counts, shape `(rows,)`; zero where the model is not sure.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor

    def beside(
        self, inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels and weights of a batch, with these rows behind them."""
        return (
            torch.cat([inputs, self.inputs]),
            torch.cat([labels, self.labels]),
            torch.cat([weights, self.weights]),
        )


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """In each step, some public rows count with the label that the model gives them itself.

    It multiplies the work of a step by `2 + rows per row`, and pays with many steps: for a GPU.

    Args:
        threshold: How likely the model has to take a class, in (0, 1), for a row to count.
        weight: How much such rows count beside the others; positive.
        share: How many of them there are for each other row of a batch.
        stronger: How many times as far they are moved before they are learned.
        erased: Side of the square of each image that is set to zero, as a fraction of its sides.

    Source: Sohn et al. 2020, FixMatch (arXiv:2001.07685), Section 2.2, equations 3 and 4; DeVries
        and Taylor 2017, Cutout (arXiv:1708.04552).
    """

    threshold: float = 0.95
    weight: float = 1.0
    share: int = 2
    stronger: float = 2.0
    erased: float = 0.3

    def __post_init__(self) -> None:
        check_count(share=self.share)
        check_positive(weight=self.weight, stronger=self.stronger)
        for name in ("threshold", "erased"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"Expected {name}={value} to be in [0, 1).")

    def more(
        self, model: nn.Module, inputs: Tensor, count: int, weak: Affine, draws: torch.Generator
    ) -> Examples:
        """Rows that the model labels itself; it is in training mode behind.

        Args:
            model: The model.
            inputs: All public rows, shape `(rows, ...)`.
            count: How many other rows the batch has.
            weak: How rows are moved before the model labels them.
            draws: Where rows and moves come from.
        """
        index = torch.randint(len(inputs), (self.share * count,), generator=draws)
        rows = inputs[index.to(inputs.device)]
        # Equation 4: q_b of a weakly moved row; its largest class counts where max(q_b) >= tau.
        likely = torch.softmax(ModelPredictor(model)(weak(rows, draws)).float(), dim=1)
        model.train()
        sure, labels = likely.max(dim=1)
        # The mean runs over all rows of the batch, sure or not, as in the paper.
        weights = self.weight * (sure >= self.threshold).float()
        moved = weak.times(self.stronger)(rows, draws)
        return Examples(weak.erased(moved, self.erased, draws), labels, weights)
