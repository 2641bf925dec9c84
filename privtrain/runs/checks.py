"""What is refused before a run: data, devices, and deltas that would promise nothing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import READS_ROWS, DataError, UnsoundReleaseError
from privtrain.core.observers import check_observer
from privtrain.core.parties import check_party_names
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.statement import Unit
from privtrain.core.task import (
    COLUMNS,
    FederatedData,
    Rows,
    Task,
    check_party_rows,
    check_values,
    cross_entropy,
)
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_delta
from privtrain.ledgers.run import check_one_plan, epsilon_of
from privtrain.runs.checkpoint import LOADED_BEFOREHAND
from privtrain.sampling.sampling import check_delta_below


def check_data(data: FederatedData) -> None:
    """Refuses data that cannot be trained on.

    Raises:
        DataError: If a party is empty or named like a role, there are no parties or test rows, or
            rows of any part cannot be computed with, as where a value is NaN.
    """
    if not data.parties:
        raise DataError("Expected data.train to hold at least one party; it is empty.")
    check_party_names(data.parties)
    if len(data.test) == 0:
        raise DataError("Expected data.test to hold rows; there are none to measure accuracy on.")
    # One NaN spreads over a whole sum of gradients, and where clipping sets it to zero, the row is
    # silently left out.
    parts = {"data.test": data.test, "data.validation": data.validation, "data.public": data.public}
    for name, rows in parts.items():
        if rows is not None:
            check_values(name, rows)
    # More parties than this are loaded one by one when they are sampled, and checked then.
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            check_party_rows(party, data.train[party])


TRAINED_ON = "data.train"
_OF_TORCH = (RuntimeError, IndexError, ValueError)
"""What torch raises about shapes, types and labels that do not fit."""


def check_fits(task: Task, data: FederatedData, model: nn.Module) -> None:
    """Refuses rows that the model or the loss cannot take, before anything is trained or spent.

    Args:
        task: What is learned.
        data: What will be trained on.
        model: A model of the task on the CPU that nobody will use afterwards.

    Raises:
        DataError: If the model cannot take inputs of such a shape or type, or the loss its outputs
            beside the labels, as where a label lies beyond the outputs.
    """
    outputs: dict[Any, Any] = {}
    for name, rows in _parts(data):
        kind = (rows.inputs.shape[1:], rows.inputs.dtype)
        # Of columns nobody but the curator holds whole rows, which are like those for testing.
        if data.split is COLUMNS:
            kind = (data.test.inputs.shape[1:], data.test.inputs.dtype)
        if kind not in outputs:
            outputs[kind] = _outputs(model, name, rows.inputs)
        if rows.targets is not None and isinstance(outputs[kind], Tensor):
            _check_labels(task, outputs[kind], name, rows.targets)


def _parts(data: FederatedData) -> Iterator[tuple[str, Rows]]:
    """The rows that a model is asked about or trained on, those for testing first."""
    yield "data.test", data.test
    if data.validation is not None and len(data.validation):
        yield "data.validation", data.validation
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            yield f"{TRAINED_ON}[{party!r}]", data.train[party]


@torch.no_grad()
def _outputs(model: nn.Module, name: str, inputs: Tensor) -> Any:
    """What a model answers to two rows that are like some inputs."""
    training = model.training
    # Copies, since a model may write to what it is given; of private rows the shape alone is used.
    few = inputs[:2].cpu().clone()
    few = torch.zeros_like(few) if name.startswith(TRAINED_ON) else few
    try:
        # In evaluation mode dropout draws nothing, and no statistics are kept.
        with global_generator(Seeds(0)["rows trial", 0, ""]):
            return model.eval()(few)
    except _OF_TORCH as error:
        raise DataError(
            f"Expected the model to take {name}.inputs of shape {_shape(inputs)} and type "
            f"{inputs.dtype}; it raised {_said(error)}. Convert the rows, or the model, as by "
            "model.double()."
        ) from error
    except Exception:  # an own error is the user's to see, where it comes from
        return None
    finally:
        model.train(training)


@torch.no_grad()
def _check_labels(task: Task, outputs: Tensor, name: str, targets: Tensor) -> None:
    told = f" {READS_ROWS}" if name.startswith(TRAINED_ON) else ""
    if task.loss is cross_entropy and targets.shape[1:] == outputs.shape[2:]:
        if targets.dtype not in (torch.int64, torch.uint8):
            raise DataError(
                f"Expected {name}.targets of type {targets.dtype} to be class numbers of type "
                "torch.int64. Use targets.long() where they are whole numbers, or another loss."
            )
        wrong = (targets < 0) | (targets >= outputs.shape[1])
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0][0])
            raise DataError(
                f"Expected {name}.targets in 0..{outputs.shape[1] - 1}, as the model has "
                f"{outputs.shape[1]} outputs; row {row} holds {int(targets[wrong][0])}. Map the "
                f"classes to 0, 1, ..., or give the model more outputs.{told}"
            )
        return
    # Of values that are no class numbers, the shape and type alone are tried.
    classes = targets.ndim == 1 and not targets.is_floating_point()
    labels = torch.unique(targets.cpu()) if classes else torch.zeros_like(targets[:2]).cpu()
    try:
        task.loss(outputs.new_zeros(len(labels), *outputs.shape[1:]), labels)
    except _OF_TORCH as error:
        raise DataError(
            f"Expected {name}.targets of shape {_shape(targets)} and type {targets.dtype} to be "
            f"what the loss takes beside outputs of shape {_shape(outputs)}; it raised "
            f"{_said(error)}. Map classes to 0, 1, ... of type torch.int64, or give the model more "
            f"outputs.{told}"
        ) from error
    except Exception:  # as above
        return


def _shape(values: Tensor) -> str:
    return f"({', '.join(['rows', *map(str, values.shape[1:])])}{',' if values.ndim == 1 else ''})"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"


def _population(plan: PrivacyPlan, data: FederatedData) -> int:
    """How many units a plan protects."""
    if plan.unit is Unit.CLIENT:
        return len(data.parties)
    if plan.unit is Unit.USER:
        users = data.pooled().users
        return 1 if users is None else len(set(users.tolist()))
    # The true number of rows may itself be private; then the stated one is all that may be used.
    if data.public_rows is not None:
        return data.public_rows
    # Every party holds a row at least: a bound from below, without loading them all.
    return len(data.pooled()) if len(data.parties) <= LOADED_BEFOREHAND else len(data.parties)


def check_plans(plans: tuple[PrivacyPlan, ...], data: FederatedData, delta: float) -> bool:
    """Refuses plans that promise what nobody could keep, and a delta that empties a guarantee.

    Returns:
        Whether anything is promised to anybody.

    Raises:
        UnsoundReleaseError: If delta is at least one over the number of protected units, or an
            observer has two plans about one unit.
        ValueError: If a plan is about a coalition with a party that is not there.
    """
    check_delta(delta)
    check_one_plan(plans)
    for plan in plans:
        if plan.observer.corrupted:
            check_observer(plan.observer, data.parties)
    # Infinite after one release is infinite after all of them; such a plan needs no delta.
    promising = [plan for plan in plans if epsilon_of(plan, 1, delta) < float("inf")]
    # Who publishes one of n units, chosen at random, is (0, 1/n)-DP: such a delta hides nothing.
    for plan in promising:
        try:
            check_delta_below(delta, _population(plan, data), str(plan.unit))
        except UnsoundReleaseError as error:
            public = plan.unit is Unit.CLIENT or (
                plan.unit is Unit.EXAMPLE and data.public_rows is not None
            )
            # Whether a counted number is reached tells of it; there is no public one to ask.
            raise error if public else UnsoundReleaseError(f"{error} {READS_ROWS}") from None
    return bool(promising)


def check_device(device: str) -> None:
    """Raises `ValueError` if a device is unknown or not there."""
    # torch has no question for "is it there": a tensor has to be made. A build without CUDA raises
    # an AssertionError.
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device={device!r} to be available here; use 'cpu'. ({error})"
        ) from error
