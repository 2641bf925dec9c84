"""What is refused before a run: data, devices, and deltas that would promise nothing."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import READS_ROWS, DataError, UnsoundReleaseError
from privtrain.core.observers import check_observer
from privtrain.core.parameters import trainable
from privtrain.core.parties import check_party_names
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.statement import Budget, Unit
from privtrain.core.task import (
    COLUMNS,
    FederatedData,
    Loss,
    Rows,
    Task,
    check_party_rows,
    check_values,
    cross_entropy,
)
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import brief, check_delta, check_is, check_offers
from privtrain.ledgers.run import check_one_plan, promises
from privtrain.runs.checkpoint import LOADED_BEFOREHAND
from privtrain.sampling.sampling import check_delta_below

_BOTH = "those of task, data = pt.data.digits()"


def check_kinds(
    task: object,
    data: object,
    *,
    runtimes: object = None,
    budget: object = None,
    study_ledger: object = None,
    folder: object = None,
    progress: object = None,
) -> None:
    """Refuses arguments of `fit` and `compare` that are of another kind, before they are used.

    Raises:
        ValueError: Naming the argument, its value, and what it should be.
    """
    check_is(Task, _BOTH, task=task)
    check_is(FederatedData, _BOTH, data=data)
    if runtimes is not None:
        check_is(Runtimes, "pt.Runtimes(star=pt.InProcess())", runtimes=runtimes)
    if budget is not None:
        check_is(Budget, "pt.Budget(3.0, 1e-5)", budget=budget)
    if study_ledger is not None:
        check_offers("spend_run", "pt.StudyLedger(...)", study_ledger=study_ledger)
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"Expected folder={folder!r} to be a path, such as 'runs/first'.")
    if progress is not None and not callable(progress):
        raise ValueError(
            f"Expected progress={progress!r} to be a function that is called as "
            "progress(done, total), or None for a bar on a terminal."
        )


def check_mapping(trainers: object) -> None:
    """Refuses trainers that have no labels.

    Raises:
        ValueError: Naming what stands there instead of a mapping.
    """
    if not isinstance(trainers, Mapping):
        raise ValueError(
            f"Expected trainers={brief(trainers)} to be a mapping from label to trainer, such as "
            "{'sgd': pt.SGD()}."
        )


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
    """Refuses rows, a model or a loss that do not fit, before anything is trained or spent.

    What a model or a loss raises of its own, such as a `KeyError`, is raised as it is.

    Args:
        task: What is learned.
        data: What will be trained on.
        model: A model of the task on the CPU that nobody will use afterwards.

    Raises:
        DataError: If training rows have no labels, if the model cannot take inputs of such a shape
            or type or gives no tensor, or if the loss cannot take its outputs beside the labels,
            as where a label lies beyond the outputs, or is not one of each row that can be trained
            on.
    """
    outputs: dict[Any, Tensor] = {}
    tried: set[Any] = set()
    for name, rows in _parts(data):
        inputs = rows.inputs
        # Of columns nobody but the curator holds whole rows, which are like those for testing.
        if data.split is COLUMNS:
            inputs = data.test.inputs
        elif rows.targets is None and name.startswith(TRAINED_ON):
            raise DataError(
                f"Expected {name} to have targets, as training needs them; they are None. Give "
                "Rows(inputs, targets), or leave this party out; rows without labels may be "
                "data.public."
            )
        kind = _kind(inputs)
        if kind not in outputs:
            few = _few(inputs)
            # Of private rows the shape alone is used.
            few = torch.zeros_like(few) if name.startswith(TRAINED_ON) else few
            outputs[kind] = _outputs(model, name, few)
        # A number that is looked up, as by nn.Embedding, may lie beyond what the model has.
        if not (inputs.is_floating_point() or inputs.dtype == torch.bool):
            _outputs(model, name, _extreme_rows(inputs))
        if rows.targets is None:
            continue
        _check_labels(task, outputs[kind], name, rows.targets)
        like = (kind, rows.targets.shape[1:], rows.targets.dtype)
        if like not in tried:
            tried.add(like)
            _check_loss(task, model, name, _trial_rows(name, inputs, rows.targets))


def _parts(data: FederatedData) -> Iterator[tuple[str, Rows]]:
    """The rows that a model is asked about or trained on, those for testing first."""
    yield "data.test", data.test
    if data.validation is not None and len(data.validation):
        yield "data.validation", data.validation
    # Public rows of another kind may be meant for nothing here; their targets are never used.
    public, test = data.public, data.test.inputs
    if public is not None and len(public) and _kind(public.inputs) == _kind(test):
        yield "data.public", Rows(public.inputs)
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            yield f"{TRAINED_ON}[{party!r}]", data.train[party]


def _kind(inputs: Tensor) -> Any:
    return inputs.shape[1:], inputs.dtype


def _few(inputs: Tensor) -> Tensor:
    """A copy of two rows on the CPU: a model may write to what it is given."""
    return inputs[:2].detach().cpu().clone()


_COLUMNS_LOOKED_AT = 64


def _extreme_rows(inputs: Tensor) -> Tensor:
    """The rows that hold the smallest and largest number: of each column, or of all if many."""
    flat = inputs.detach().reshape(len(inputs), -1)
    if flat.shape[1] == 0:
        return _few(inputs)
    if flat.shape[1] > _COLUMNS_LOOKED_AT:
        places = torch.stack([flat.argmin(), flat.argmax()]) // flat.shape[1]
    else:
        places = torch.cat([flat.argmin(dim=0), flat.argmax(dim=0)])
    return inputs[torch.unique(places)].detach().cpu().clone()


def _trial_rows(name: str, inputs: Tensor, targets: Tensor) -> Rows:
    """Three rows to try a loss on: of private ones the shape and type alone are used."""
    rows = torch.arange(3) % len(targets)
    if name.startswith(TRAINED_ON):
        zeros = torch.zeros(1, *inputs.shape[1:], dtype=inputs.dtype)
        made_up = zeros.expand(3, *inputs.shape[1:]).clone()
        if inputs.is_floating_point():
            # No two alike, or what one row does to another would not show.
            made_up += torch.linspace(0.1, 1, 3).to(made_up).view(-1, *[1] * (made_up.ndim - 1))
        return Rows(made_up, targets.new_zeros((3, *targets.shape[1:]), device="cpu"))
    # Two targets that differ, if any do: among equal ones it does not show whose is taken.
    flat = targets.reshape(len(targets), -1)
    rows[1] = max(int(rows[1]), int((flat != flat[:1]).any(dim=1).int().argmax()))
    rows[2] = len(targets) - 1
    return Rows(inputs[rows].detach().cpu().clone(), targets[rows].detach().cpu().clone())


@torch.no_grad()
def _outputs(model: nn.Module, name: str, few: Tensor) -> Tensor:
    """What a model answers to a few rows."""
    told = f" {READS_ROWS}" if name.startswith(TRAINED_ON) and bool(few.any()) else ""
    try:
        # In evaluation mode dropout draws nothing, and no statistics are kept.
        with global_generator(Seeds(0)["rows trial", 0, ""]):
            outputs = model.eval()(few)
    except _OF_TORCH as error:
        raise DataError(
            f"Expected the model to take {name}.inputs of shape {_shape(few)} and type "
            f"{few.dtype}; it raised {_said(error)}. Convert the rows, or the model, as by "
            f"model.double(); numbers that are looked up must lie within nn.Embedding.{told}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise DataError(
            f"Expected the model to return a tensor of logits in evaluation mode; it returned a "
            f"{type(outputs).__name__}. Let forward return the logits alone."
        )
    return outputs


@torch.no_grad()
def _check_labels(task: Task, outputs: Tensor, name: str, targets: Tensor) -> None:
    told = f" {READS_ROWS}" if name.startswith(TRAINED_ON) else ""
    if task.loss is cross_entropy and outputs.ndim < 2:
        raise DataError(
            f"Expected the model to return logits of shape (rows, classes), as the default loss "
            f"takes them; it returned shape {_shape(outputs)}. Give the model one output for each "
            "class, or the task a loss of its own."
        )
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
        with global_generator(Seeds(0)["labels trial", 0, ""]):
            task.loss(outputs.new_zeros(len(labels), *outputs.shape[1:]), labels)
    except _OF_TORCH as error:
        raise DataError(
            f"Expected {name}.targets of shape {_shape(targets)} and type {targets.dtype} to be "
            f"what the loss takes beside outputs of shape {_shape(outputs)}; it raised "
            f"{_said(error)}. Map classes to 0, 1, ... of type torch.int64, or give the model more "
            f"outputs.{told}"
        ) from error
    except Exception:
        # Of a target that is made up, what a loss says of its own means nothing.
        if classes:
            raise


def _check_loss(task: Task, model: nn.Module, name: str, rows: Rows) -> None:
    """Refuses a loss that is not one of each row, or that no gradient descends."""
    targets = rows.labels
    with torch.enable_grad(), global_generator(Seeds(0)["loss trial", 0, ""]):
        outputs = model.train()(rows.inputs.clone())
        held = outputs.detach().clone() if isinstance(outputs, Tensor) else None
        losses = task.loss(outputs, targets.clone())
    if not isinstance(losses, Tensor):
        raise DataError(
            f"Expected the task's loss to return a tensor, one value for each example; it returned "
            f"a {type(losses).__name__}. Return the losses alone, as with reduction='none'."
        )
    if losses.shape != (len(rows),):
        way_out = "Do not average over examples: use reduction='none'."
        if losses.dim() > 1:
            way_out = (
                "Give outputs and targets one shape, and average over what belongs to one example: "
                "losses.flatten(1).mean(dim=1)."
            )
        raise DataError(
            f"Expected the task's loss to return one value for each example, of shape "
            f"({len(rows)},); it returned shape {tuple(losses.shape)} for {name}. {way_out}"
        )
    if not losses.is_floating_point():
        raise DataError(
            f"Expected the task's loss to return floating point values; it returned "
            f"{losses.dtype}. Use a loss that a gradient descends, such as cross-entropy."
        )
    parameters = trainable(model)
    if parameters and not (losses.requires_grad and _reaches(losses, parameters)):
        raise DataError(
            "Expected the task's loss to have a gradient by the model's parameters; it has none, "
            "so that nothing would be learned. Do not detach outputs, and use a loss that is not "
            "counted, as by argmax."
        )
    if bool(losses.isnan().all()) and not name.startswith(TRAINED_ON):
        raise DataError(
            f"Expected the task's loss to be a number; of {len(rows)} rows of {name} it is NaN "
            "under the initial model. Look at the loss, or scale the inputs."
        )
    if held is not None and _broadcasts(task.loss, held, targets, losses.detach()):
        raise DataError(
            f"Expected the task's loss of a row to depend on its own target; outputs of shape "
            f"{_shape(held)} and targets of shape {_shape(targets)} of {name} are combined each "
            "with all others (broadcasting). Give outputs and targets one shape in the loss, as "
            "by outputs.squeeze(1)."
        )


def _reaches(losses: Tensor, parameters: list[nn.Parameter]) -> bool:
    with global_generator(Seeds(0)["loss trial", 1, ""]):
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


@torch.no_grad()
def _broadcasts(loss: Loss, outputs: Tensor, targets: Tensor, losses: Tensor) -> bool:
    """Whether each row's loss is summed over the targets, or the outputs, of all rows.

    Other losses that look at their batch, such as those of pairs, are for each trainer to judge.
    """
    count = len(losses)
    if outputs.ndim == 0 or len(outputs) != count:
        return False

    def computed(given: Tensor, beside: Tensor) -> Tensor | None:
        try:
            with global_generator(Seeds(0)["loss trial", 2, ""]):
                value = loss(given.clone(), beside.clone())
        except Exception:  # of a batch that nobody gave a loss may say what it likes
            return None
        return value if isinstance(value, Tensor) else None

    def far(value: Tensor, other: Tensor) -> bool:
        return not torch.allclose(value.double(), other.double(), 1e-3, 1e-6, equal_nan=True)

    pairs = torch.zeros(count, count, dtype=torch.float64)
    for row in range(count):
        for other in range(count):
            value = computed(outputs[row : row + 1], targets[other : other + 1])
            if value is None or value.shape != (1,):
                return False
            pairs[row, other] = value[0]
    if not far(pairs.diagonal(), losses):
        return False
    tables = (pairs.mean(1), pairs.mean(0), pairs.sum(1), pairs.sum(0))
    if not all(far(table, losses) for table in tables):
        return True
    if outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return False
    alike = (
        computed(outputs, targets.reshape(outputs.shape)),
        computed(outputs.reshape(targets.shape), targets),
    )
    return any(each is not None and each.shape == (count,) and far(each, losses) for each in alike)


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
    promising = [plan for plan in plans if promises(plan, delta)]
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
    if not isinstance(device, (str, torch.device)):
        raise ValueError(f"Expected device={device!r} to be a name, such as 'cpu' or 'cuda:1'.")
    # torch has no question for "is it there": a tensor has to be made. A build without CUDA raises
    # an AssertionError.
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device={device!r} to be available here; use 'cpu'. ({error})"
        ) from error
