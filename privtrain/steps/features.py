"""Features: fixed, public maps of inputs, which teachers and the student read in their place.

A map is applied to the rows of one teacher at a time, and to public rows. Whatever it does with the
rows that it is given together, one row more or less changes the features of one teacher alone.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.models import Model, new_module
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Rows, Task
from privtrain.core.validate import brief, check_count
from privtrain.data.scattering import scattering_features

Features = Callable[[Tensor], Tensor]
"""Inputs `(rows, ...)` to features `(rows, ...)`, row by row: fixed, and learned from no private
row. An `nn.Module` is used as a frozen copy in evaluation mode."""

_AT_ONCE, _NUMBERS = 500, 2**22
"""How many rows, and how many numbers of them, are mapped in one go at most."""


@dataclass(frozen=True, kw_only=True)
class Scattering:
    """Scattering coefficients of images, normalised image by image; no filter was learned.

    Args:
        groups: See `scattering_features`.
        shape: Channels, height and width of an image where rows are flat; None where they are not.

    Source: Oyallon and Mallat 2015 (arXiv:1412.8659); Tramer and Boneh 2021, Section 2.2
    (arXiv:2011.11660).
    """

    groups: int | None = 27
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.groups is not None:
            check_count(groups=self.groups)
        if self.shape is not None:
            if len(self.shape) != 3:
                raise ValueError(f"Expected shape={self.shape} to be (channels, height, width).")
            for length in self.shape:
                check_count(shape=length)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features, shape `(rows, 81 x channels x height x width / 16)`."""
        images = inputs if self.shape is None else inputs.reshape(len(inputs), *self.shape)
        if images.dim() == 3:
            images = images.unsqueeze(1)
        if not images.is_floating_point():
            images = images.float()
        return scattering_features(images, groups=self.groups).flatten(1)


def check_kind(features: object) -> None:
    """Refuses what cannot map inputs.

    Raises:
        ValueError: If it is not callable, or a class.
    """
    if not callable(features) or isinstance(features, type):
        raise ValueError(
            f"Expected features={brief(features)} to be a map of inputs to features, such as "
            "Scattering(), a frozen nn.Module or a function; or None."
        )


def frozen(features: Features | None, device: str = "cpu") -> Features | None:
    """The map as it is used: of a module a copy that is not trained, on a device."""
    if not isinstance(features, nn.Module):
        return features
    return copy.deepcopy(features).eval().requires_grad_(False).to(device)


def mapped(features: Features | None, inputs: Tensor) -> Tensor:
    """Features of inputs, in chunks.

    Args:
        features: The map, see `frozen`; None for the inputs as they are.
        inputs: Shape `(rows, ...)`; rows of one teacher, or public ones.

    Returns:
        Shape `(rows, ...)`, on the inputs' device, detached.

    Raises:
        DataError: If the map does not give one tensor with a row for each row.
    """
    if features is None:
        return inputs
    if len(inputs) == 0:
        # A map need not take no rows at all; of how many numbers a feature is, zeros tell.
        return mapped(features, inputs.new_zeros(1, *inputs.shape[1:]))[:0]
    # By the shape of a row alone, and never by how many there are.
    chunk = max(1, min(_AT_ONCE, _NUMBERS // max(1, inputs[0].numel())))
    parts = [_called(features, part) for part in torch.split(inputs, chunk)]
    return torch.cat(parts).to(inputs.device)


def features_of(features: Features | None, rows: Rows) -> Rows:
    """The same rows with features in place of inputs."""
    return rows if features is None else replace(rows, inputs=mapped(features, rows.inputs))


@torch.no_grad()
def _called(features: Features, part: Tensor) -> Tensor:
    where = "cpu"
    if isinstance(features, nn.Module):
        tensors = (*features.parameters(), *features.buffers())
        where = str(tensors[0].device) if tensors else str(part.device)
    # A copy: a map may write into what it is given.
    made = features(part.detach().to(where, copy=True))
    if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(part):
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise DataError(
            f"Expected features={brief(features)} to return a tensor of shape (rows, ...) with "
            f"{len(part)} rows for {len(part)} rows; it returned {got}."
        )
    return made.detach()


def check_features(features: Features, inputs: Tensor) -> None:
    """Tries on public rows whether features of a row are fixed, and depend on that row alone.

    Args:
        features: The map.
        inputs: Public rows, at least one, shape `(rows, ...)`.

    Raises:
        DataError: If the map raises an error, mixes rows, draws, remembers, or gives features
            that are no finite real numbers.
    """
    used = frozen(features)
    rows = inputs[torch.arange(_TRIED, device=inputs.device) % len(inputs)].cpu()
    try:
        first = _tried(used, rows, 0)
        others = list(_again(used, rows))
    except DataError:
        raise
    except OWN_ERRORS as error:  # a user's own code may raise anything
        raise DataError(
            f"Expected features={brief(features)} to map inputs of shape "
            f"{('rows', *inputs.shape[1:])} and type {inputs.dtype}; it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not first.is_floating_point() or not bool(torch.isfinite(first).all()):
        raise DataError(
            f"Expected features={brief(features)} to return finite real numbers of a floating "
            f"type; of public rows it returned type {first.dtype}, finite "
            f"{bool(torch.isfinite(first).all()) if first.is_floating_point() else 'or not'}."
        )
    # What rounding does where a batch is larger or smaller; a mean over rows does far more.
    most = 1e-3 if first.dtype in (torch.float16, torch.bfloat16) else 1e-4
    scale = float(first.abs().max().clamp(min=1e-30))
    for how, place, other in others:
        if other.shape != first[place].shape or other.dtype != first.dtype:
            far = True
        else:
            far = float((other - first[place]).abs().max()) > most * scale
        if far:
            raise DataError(
                f"Expected features={brief(features)} to be fixed and to map each row by itself: "
                f"features of public rows differ {how}. Use no statistic of a batch, draw nothing "
                "and keep nothing from call to call; of an nn.Module, give the module itself, "
                "which is used in evaluation mode."
            )


_TRIED = 6


def _tried(features: Features | None, rows: Tensor, number: int) -> Tensor:
    with global_generator(Seeds(0)["features trial", number, ""]):
        return mapped(features, rows)


def _again(features: Features | None, rows: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """How, of which rows, and their features once more."""
    everyone = torch.arange(len(rows))
    for row in range(len(rows)):
        alone = everyone[row : row + 1]
        yield "where a row is alone", alone, _tried(features, rows[alone], 1 + row)
    yield "in another order", everyone.flip(0), _tried(features, rows.flip(0), 20)
    # Rows that are much unlike those of the first call, as far as their type allows.
    # Whole numbers may be looked up, so that others would be no rows.
    others = rows[2:] * 3 if rows.is_floating_point() else rows[2:].flip(0)
    beside = torch.cat([rows[:2], others, torch.zeros_like(rows[:1])])
    yield "beside other rows", everyone[:2], _tried(features, beside, 21)[:2]
    yield "from call to call", everyone, _tried(features, rows, 22)


class OnFeatures(nn.Module):
    """A model that reads features, as one that takes the rows themselves.

    Args:
        features: The map; a copy is used.
        model: Takes features.
    """

    features: Features

    def __init__(self, features: Features, model: nn.Module) -> None:
        super().__init__()
        # A copy: two models share nothing.
        used = frozen(features)
        # Of a function, too: `frozen` leaves it as it is.
        self.features = (
            used if used is not None and used is not features else copy.deepcopy(features)
        )
        self.model = model

    def train(self, mode: bool = True) -> "OnFeatures":
        super().train(mode)
        if isinstance(self.features, nn.Module):
            self.features.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model says of the features of inputs, `(rows, ...)`."""
        made = mapped(self.features, inputs)
        try:
            outputs: Tensor = self.model(made)
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f"Expected the task's model to read what features= makes, of shape "
                f"{('rows', *made.shape[1:])} and type {made.dtype}; it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        return outputs


@dataclass(frozen=True)
class ModelOnFeatures:
    """Makes models that take rows, of a map and of models that read features.

    Args:
        features: The map.
        model: Makes the models, or is one that is copied.
    """

    features: Features
    model: Model

    def __call__(self) -> OnFeatures:
        return OnFeatures(self.features, new_module(self.model))


def on_features(task: Task, features: Features | None) -> Task:
    """The task whose model takes rows and reads their features; the task itself without a map."""
    return task if features is None else replace(task, model=ModelOnFeatures(features, task.model))


def of_features(task: Task) -> Task:
    """The task whose model reads features as they are; the inverse of `on_features`."""
    kept = task.model
    return replace(task, model=kept.model) if isinstance(kept, ModelOnFeatures) else task
