"""One model as an audit attacks it: kept by privtrain, or weights that came from elsewhere.

Nothing in a file is unpickled beyond plain tensors, and nothing is run but the user's own factory.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.attacks.attack import Attack
from privtrain.command.arguments import RowsArgs
from privtrain.command.user_code import import_named
from privtrain.core.errors import DataError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.models import made_anew
from privtrain.core.parameters import apart
from privtrain.core.recipe import Encoder
from privtrain.core.result import Comparison
from privtrain.core.seeding import Seeds
from privtrain.core.statement import Guarantee
from privtrain.core.task import FederatedData, Rows, Task, binary_cross_entropy, concatenate
from privtrain.data.arrays import npz_arrays
from privtrain.data.encoding import encode
from privtrain.data.loading import load
from privtrain.data.tables import read_table
from privtrain.runs.comparing import compare
from privtrain.runs.external import External
from privtrain.runs.keeping import KeptModel, UnmadeModelError, load_model
from privtrain.runs.refereeing import row_keys

NOT_SAID = (
    "shadow models are not there without the trainer: attacks that need them do not apply, and a "
    "stronger attack than these may find members"
)
CLAIMED = "which rows the model was trained on is what the user says: {}"
SPLIT = "the training rows of {data} are members, its test rows are not"
NAMED = "all rows of {data} are members, those of {others} are not"
UNSTATED = "no formal epsilon: nobody computed one from the training"
AS_FOLDER_SAYS = "guarantees are those that the folder states; they are not computed here"


def audited_model(
    path: Path,
    where: RowsArgs,
    attacks: Sequence[Attack],
    *,
    factory: str | None = None,
    non_members: Path | None = None,
) -> Comparison:
    """What attacks learn from a model alone: a comparison of one row.

    Args:
        path: A folder of `save_model`, or a file of weights.
        where: The rows that it was trained on, and others.
        attacks: What is tried.
        factory: Reference of a function that makes the model, where the path does not say it.
        non_members: Rows of another file, so that all rows of the first were trained on; None where
            its test rows were not.

    Raises:
        ValueError: If the factory is missing or no reference.
        DataError: If the model or the rows cannot be read, or do not fit each other.
    """
    model: KeptModel | nn.Module
    model = _kept(path, factory) if path.is_dir() else _foreign(path, factory)
    task, data = load(where.data, **where.options())
    guarantees: tuple[Guarantee, ...] = ()
    if isinstance(model, KeptModel):
        guarantees = model.statement.guarantees
        _check_inputs(model, data, path)
    # Its module, whose weights attacks may read, in place of what answers rows of the world.
    asked = model.module if isinstance(model, KeptModel) else model
    task = _fitting(task, asked, data, path)
    data = data if non_members is None else _told_apart(data, non_members)
    named = SPLIT if non_members is None else NAMED
    external = External(asked, guarantees=guarantees)
    made = compare({path.name: external}, task, data, attacks=attacks)
    (row,) = made.rows
    if row.error is not None:
        raise DataError(f"The model {path} does not take the rows of {where.data}: {row.error}")
    notes = (
        CLAIMED.format(named.format(data=where.data, others=non_members)),
        AS_FOLDER_SAYS if guarantees else UNSTATED,
        NOT_SAID,
    )
    return replace(made, rows=(replace(row, notes=(*row.notes, *notes)),))


def _factory(reference: str | None) -> Any:
    return None if reference is None else import_named(reference, "factory")


def _kept(folder: Path, factory: str | None) -> KeptModel:
    """The model of a folder of `save_model`; its errors name arguments of this command."""
    try:
        return load_model(folder, model=_factory(factory))
    except UnmadeModelError as error:
        raise DataError(
            f"The model in {folder} was made by code that no file can hold. Give what makes it: "
            "--factory FILE:NAME."
        ) from error


def _foreign(path: Path, factory: str | None) -> nn.Module:
    """A model with weights that `torch.save(model.state_dict(), ...)` wrote."""
    if factory is None:
        raise ValueError(
            f"Expected --factory FILE:NAME with model={str(path)!r}: weights do not say what model "
            "they are of. A folder of privtrain fit does."
        )
    weights = state_dict(path)
    module = made_anew(_factory(factory), Seeds(0)["initialisation", 0, ""])
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"The weights in {path} are not those of the model that factory={factory!r} makes: "
            f"{' '.join(str(error).split())}"
        ) from error
    return module.eval()


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
        DataError: If the file cannot be read, holds code, or is no dict of tensors.
    """
    way_out = "Write it with torch.save(model.state_dict(), path)."
    try:
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"Cannot read model={str(path)!r}: {error.strerror}.") from error
    except UnpicklingError as error:
        raise DataError(
            f"Expected model={str(path)!r} to hold plain tensors; it holds pickled code or is no "
            f"file of torch.save, and was not opened. {way_out}"
        ) from error
    except OWN_ERRORS as error:  # whatever a torn file runs into while it is read
        raise DataError(
            f"Cannot read model={str(path)!r} as weights ({type(error).__name__}). {way_out}"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise DataError(
            f"Expected model={str(path)!r} to be a dict of name to tensor; it is a "
            f"{type(found).__name__} with other things. {way_out}"
        )
    return dict(found)


def _check_inputs(model: KeptModel, data: FederatedData, folder: Path) -> None:
    """Refuses rows that were made into inputs in another way than those of the training."""
    known, mine = model.encoder, data.encoder
    if known is None or mine is None:
        return
    for name in ("shape", "columns", "scale", "order", "classes"):
        was, now = getattr(known, name), getattr(mine, name)
        if was != now:
            raise DataError(
                f"Expected the inputs to be made as for the model in {folder}; there, {name} were "
                f"{was!s:.200}, and here {now!s:.200}. Give the same file with the --label, "
                "--ranges, --missing and --drop of the training."
            )


def _fitting(task: Task, model: nn.Module, data: FederatedData, path: Path) -> Task:
    """The task with the loss of the model's outputs, told by its answers to two test rows.

    Raises:
        DataError: If it does not give a logit for each class, or one for two classes.
    """
    few = data.test.inputs[:2]
    own = made_anew(task.model, Seeds(0)["initialisation", 0, ""])
    try:
        given: object = apart(model)(few)
    except OWN_ERRORS:  # why it does not take them is said where it is attacked
        return task
    if not isinstance(given, Tensor):
        return task
    width, classes = tuple(given.shape[1:]), tuple(apart(own)(few).shape[1:])
    if width == classes:
        return task
    if width in ((), (1,)) and classes == (2,):
        return replace(task, loss=binary_cross_entropy)
    raise DataError(
        f"Expected the model {path} to give {classes[0]} logits a row, one for each class of the "
        f"rows, not outputs of shape {width}. Give a --factory that makes such a model, or the "
        "rows whose classes it tells apart; for two classes one logit does, too."
    )


def _told_apart(data: FederatedData, path: Path) -> FederatedData:
    """All rows of the data as those of one party, and the rows of a file as the others."""
    if data.encoder is None:
        raise DataError(
            f"Expected --data to be a file, as non-members={str(path)!r} is: nobody knows how rows "
            "of a known data set were made."
        )
    parts = [data.pooled(), data.test] + ([] if data.validation is None else [data.validation])
    inputs = encode(data.encoder, path)
    others = Rows(inputs, _targets(data.encoder, path, data.test))
    whole = concatenate(parts)
    known = set(row_keys(whole.inputs, whole.targets))
    if known.issuperset(row_keys(others.inputs, others.targets)):
        raise DataError(
            f"Expected non-members={str(path)!r} to have rows that --data lacks: each of its rows "
            "is a member. Give rows that the model was not trained on."
        )
    return FederatedData(train={data.parties[0]: whole}, test=others, encoder=data.encoder)


def _targets(encoder: Encoder, path: Path, like: Rows) -> Tensor:
    """The classes of a file's rows, by their numbers."""
    if path.suffix.lower() == ".npz":
        words = [str(value) for value in npz_arrays(path, ("y",))[0].tolist()]
    else:
        table = read_table(path, "\t" if path.suffix.lower() == ".tsv" else encoder.delimiter)
        if encoder.label not in table.columns:
            raise DataError(f"{path} lacks the column {encoder.label!r}, which has the class.")
        words = list(table.columns[encoder.label])
    if encoder.classes is not None:
        unknown = next((word for word in words if word not in encoder.classes), None)
        if unknown is not None:
            raise DataError(
                f"{path} has the class {unknown!r}; --data has {', '.join(encoder.classes)}."
            )
        numbers = [encoder.classes.index(word) for word in words]
    else:
        numbers = [int(float(word)) for word in words]
    return torch.tensor(numbers, dtype=like.labels.dtype)
