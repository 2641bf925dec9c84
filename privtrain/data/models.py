"""Model factories: values that say which model a task starts from, and that pickle."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class MLP:
    """Makes a perceptron with ReLU between its layers.

    Args:
        sizes: Widths from input to logits; `(64, 64, 10)` has one hidden layer.
        dtype: Type of the parameters.
        flatten: Whether inputs have more than one dimension and are flattened first.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    flatten: bool = False

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(
                f"Expected sizes={self.sizes} to hold two or more positive widths, "
                "from the input to the logits."
            )

    def __call__(self) -> nn.Sequential:
        """A new model."""
        layers: list[nn.Module] = [nn.Flatten()] if self.flatten else []
        for width, following in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(width, following, dtype=self.dtype), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class LogisticRegression:
    """Makes multinomial logistic regression: one linear layer, one logit a class.

    Args:
        features: Width of the input.
        classes: How many classes there are.
        dtype: Type of the parameters.
        flatten: Whether inputs have more than one dimension and are flattened first.
    """

    features: int
    classes: int
    dtype: torch.dtype = torch.float32
    flatten: bool = False

    def __call__(self) -> nn.Sequential:
        """A new model."""
        return MLP((self.features, self.classes), self.dtype, self.flatten)()


@dataclass(frozen=True)
class CNN:
    """Makes the small convolutional network of the DP-SGD literature: 26,010 parameters.

    It takes images of shape `(batch, 1, 28, 28)` and has tanh, which suits clipped gradients.

    Args:
        classes: How many classes there are.
        dtype: Type of the parameters.

    Source: Tramer and Boneh 2021, appendix (arXiv:2011.11660).
    """

    classes: int = 10
    dtype: torch.dtype = torch.float32

    def __call__(self) -> nn.Sequential:
        """A new model."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=2, padding=3, dtype=self.dtype),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Conv2d(16, 32, 4, stride=2, dtype=self.dtype),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Flatten(),
            nn.Linear(512, 32, dtype=self.dtype),
            nn.Tanh(),
            nn.Linear(32, self.classes, dtype=self.dtype),
        )


LINEAR_UP_TO = 40
"""Up to so many features the default model is linear."""


def default_model(
    shape: tuple[int, ...], classes: int, dtype: torch.dtype
) -> MLP | LogisticRegression:
    """The model for own data: linear for few features, else one hidden layer of 64.

    It is chosen by shapes, which are public, never by values.

    Args:
        shape: Shape of one input, without the rows.
        classes: How many classes there are.
        dtype: Type of the parameters.

    Returns:
        A factory.
    """
    features, flatten = math.prod(shape), len(shape) != 1
    if features <= LINEAR_UP_TO:
        return LogisticRegression(features, classes, dtype, flatten)
    return MLP((features, 64, classes), dtype, flatten)
