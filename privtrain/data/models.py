"""Model factories: values that say which model a task starts from, and that pickle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtrain.core.failures import OWN_ERRORS
from privtrain.core.models import Model as Model
from privtrain.core.models import check_values, new_module
from privtrain.core.seeding import Seeds, global_generator


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
        layers: list[nn.Module] = [nn.Flatten()] if self.flatten else []
        for width, following in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(width, following, dtype=self.dtype), nn.ReLU()]
        # No ReLU behind the last layer: the loss takes logits, which may be negative.
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
        return MLP((self.features, self.classes), self.dtype, self.flatten)()


@dataclass(frozen=True)
class CNN:
    """Makes the small convolutional network of the DP-SGD literature: 26,010 parameters.

    It takes images of shape `(batch, 1, 28, 28)`.

    Args:
        classes: How many classes there are.
        dtype: Type of the parameters.

    Source: Tramer and Boneh 2021, appendix (arXiv:2011.11660).
    """

    classes: int = 10
    dtype: torch.dtype = torch.float32

    def __call__(self) -> nn.Sequential:
        # The appendix's network for MNIST. Images have sides of 28, 14 (convolution), 13 (pooling),
        # 5 and 4: 32 channels of 4 x 4 are the 512 inputs of the first linear layer. Tanh, not
        # ReLU, since bounded activations keep per-example gradients small, and less of them is
        # clipped away (Papernot et al. 2021, arXiv:2007.14191).
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
"""The largest number of features for which the default model is linear."""


def default_model(
    shape: tuple[int, ...], classes: int, dtype: torch.dtype
) -> MLP | LogisticRegression:
    """The model for own data: linear for few features, else with one hidden layer of 64.

    Args:
        shape: Shape of one input, without the rows.
        classes: How many classes there are.
        dtype: Type of the parameters.

    Returns:
        A factory.
    """
    # Chosen by shapes, which are public: a choice that looks at values would have to be paid for.
    features, flatten = math.prod(shape), len(shape) != 1
    if features <= LINEAR_UP_TO:
        return LogisticRegression(features, classes, dtype, flatten)
    return MLP((features, 64, classes), dtype, flatten)


FLOATS = (torch.float32, torch.float64)


def input_type(
    model: Model | None, shape: tuple[int, ...], dtype: torch.dtype | None, whole: bool
) -> torch.dtype:
    """The type of the inputs: the one that is stated, else the one that the model takes.

    Args:
        model: The user's factory or module, or None.
        shape: Shape of one input, without the rows.
        dtype: What the user stated, or None.
        whole: Whether the inputs are whole numbers that nothing scales.

    Returns:
        `torch.int64` for whole numbers before a model that looks them up and takes no other ones,
        as one that begins with `nn.Embedding`; else `torch.float32`.

    Raises:
        ValueError: If a type is stated that inputs cannot have.
    """
    if dtype is not None:
        if dtype not in (*FLOATS, torch.int64):
            raise ValueError(
                f"Expected dtype={dtype} to be torch.float32, torch.float64, or torch.int64 for "
                "whole numbers that are looked up, such as tokens."
            )
        return dtype
    # Tried on made-up rows: what the model takes is public, and so is the type of the inputs.
    looked_up = model is not None and whole and not _takes(model, shape, torch.float32)
    return torch.int64 if looked_up and _takes(model, shape, torch.int64) else torch.float32


def _takes(model: Model | None, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    try:
        return model is not None and _answer(model, shape, dtype) is not None
    # A user's own code may raise anything; what it raises is told where the type is settled.
    except OWN_ERRORS:
        return False


def _answer(model: Model, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...] | None:
    """The shape of a model's answer to two made-up rows; None where it makes no module."""
    # Initial weights come from torch's global generator, which is the caller's: it is put back.
    with global_generator(Seeds(0)["model check", 0, ""]), torch.no_grad():
        made = new_module(model)
        if not isinstance(made, nn.Module):
            return None
        # Before it runs: a lazy layer takes its widths from the first batch.
        check_values(model, made)
        # In eval mode dropout draws nothing, and batch statistics of zeros go nowhere.
        made.eval()
        try:
            return tuple(made(torch.zeros(2, *shape, dtype=dtype)).shape)
        except OWN_ERRORS:
            if dtype in FLOATS:
                raise
            # Zero often stands for padding, and a row of nothing else is none to torch's encoder.
            return tuple(made(torch.ones(2, *shape, dtype=dtype)).shape)


def chosen_model(model: Model | None, inputs: Tensor, classes: int) -> Model:
    """The model of a task: the user's, tried on two made-up rows, or the default one.

    Args:
        model: The user's factory or module, or None.
        inputs: Shape `(rows, ...)`.
        classes: How many classes there are.

    Returns:
        A factory, or the user's module.

    Raises:
        ValueError: If the user's model does not map inputs to one logit a class, or there is none
            for whole numbers.
    """
    shape = tuple(inputs.shape[1:])
    if model is None:
        if inputs.dtype not in FLOATS:
            raise ValueError(
                f"Expected model= to be given with dtype={inputs.dtype}: the default models take "
                "quantities. Give one that begins with nn.Embedding."
            )
        return default_model(shape, classes, inputs.dtype)
    probe = (2, *shape)
    try:
        got = _answer(model, shape, inputs.dtype)
    # A user's own code may raise anything; the message has to say which argument it was.
    except OWN_ERRORS as error:
        raise ValueError(
            f"Expected model={model!r}, called without arguments, to make a module that can "
            f"take inputs of shape {probe} and type {inputs.dtype}; it raised "
            f"{type(error).__name__}: {error}"
            f"{_LOOKED_UP if inputs.dtype in FLOATS and _takes(model, shape, torch.int64) else ''}"
        ) from error
    if got is None:
        raise ValueError(
            f"Expected model={model!r} to return an nn.Module, not {new_module(model)!r}."
        )
    if got != (2, classes):
        raise ValueError(
            f"Expected model={model!r} to map inputs of shape {probe} to logits of "
            f"shape {(2, classes)}, not {got}."
        )
    return model


_LOOKED_UP = " It takes whole numbers, such as tokens: give dtype=torch.int64, without a scale."
