"""Federated data from arrays in memory: checked, scaled by public constants, split and shared."""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.validate import check_count
from privtrain.data.coins import digests
from privtrain.data.columns import encoded_by
from privtrain.data.federation import EVENLY, Layout, federate
from privtrain.data.files import Place
from privtrain.data.labels import CLASSES_COUNTED as CLASSES_COUNTED
from privtrain.data.labels import CLASSES_READ, ReadFromRows, numbered_classes
from privtrain.data.models import Model, chosen_model, input_type
from privtrain.data.numbers import (
    Array,
    to_inputs,
    to_numbers,
    to_targets,
    to_words_of,
)
from privtrain.data.options import to_words
from privtrain.data.owners import to_names, to_users
from privtrain.data.partition import Partition
from privtrain.data.samples import Samples, pair_of

Scale = tuple[ArrayLike, ArrayLike]
"""Public lowest and highest values: one number each, or one a column."""


def from_arrays(
    inputs: Array | Samples,
    targets: Array | str | None = None,
    *,
    parties: int | tuple[str, ...] = 10,
    partition: Partition = EVENLY,
    seed: int = 0,
    test: tuple[Array, Array] | Samples | None = None,
    public: Array | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    public_fraction: float = 0.0,
    scale: Scale | None = None,
    classes: int | Iterable[str] | None = None,
    model: Model | None = None,
    public_rows: int | None = None,
    users: ArrayLike | None = None,
    row_ids: ArrayLike | None = None,
    dtype: torch.dtype | None = None,
    name: str = "arrays",
) -> tuple[Task, FederatedData]:
    """Makes a classification task of own arrays.

    Test, validation and public rows are the same for every seed: a coin decides for each row, which
    follows from its ID or, without one, from its contents; users have one coin for all their rows.
    Nothing is measured on the rows: features are scaled by the constants given, or not at all.

    Args:
        inputs: Features, shape `(rows, ...)`; finite numbers. Or a torch Dataset of pairs, and no
            targets; or named columns (a frame of pandas or polars, a data set of Hugging Face, a
            dict), and the name of one as the targets.
        targets: Class numbers 0, 1, ... or words, shape `(rows,)`; or the name of a column.
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition.
        test: Inputs and targets for testing, or a Dataset or columns like those of the inputs,
            where they are known beforehand.
        public: Unlabelled inputs that anybody may read, where there are some.
        test_fraction: Fraction of the rows for testing; without effect where `test` is given.
        validation_fraction: Fraction of the rows for choosing settings.
        public_fraction: Fraction of the rows that become public, without labels.
        scale: Public lowest and highest values: one number each, or one a column. Inputs are
            clamped to them and mapped to [0, 1].
        classes: How many classes there are, as a public figure, or their names in the order of
            their numbers; else all that occur count.
        model: Makes the model; else one is chosen by the shapes.
        public_rows: A public figure of how many training rows there are, for sampling rates.
            Without it the number counts as private.
        users: Whose row each is, numbers or words, shape `(rows,)`, where users are protected.
        row_ids: What each row is called, numbers or words, shape `(rows,)`, each once: with it, a
            row stays in its part when its contents change. Without effect where users are given.
        dtype: `torch.float32` or `torch.float64`, or `torch.int64` for whole numbers that are
            looked up, such as tokens, and not scaled. None for float32, or for whole numbers where
            these are given and the model takes no others.
        name: What the data set is called.

    Returns:
        The task and the data.

    Raises:
        DataError: If the arrays cannot be used; the message says where and why.
        ValueError: If options contradict one another.
    """
    layout = Layout(
        parties=parties,
        partition=partition,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        public_fraction=public_fraction,
    )
    if public_rows is not None:
        check_count(public_rows=public_rows)
    column = targets if isinstance(targets, str) else None
    inputs, targets = pair_of(inputs, targets, "inputs")
    inputs = to_numbers(inputs, "inputs")
    whole = scale is None and inputs.dtype.kind in "iu"
    dtype = input_type(model, inputs.shape[1:], dtype, whole)
    if dtype == torch.int64 and scale is not None:
        raise ValueError(
            f"Expected scale={scale!r} to be left out with dtype=torch.int64: whole numbers such "
            "as tokens are not scaled."
        )
    named = _Named.of(targets, classes)
    rows = _rows(inputs, named.numbers(targets, "targets"), scale, dtype, ("inputs", "targets"))
    if users is not None:
        rows = replace(rows, users=to_users(users))
    test_rows = None
    # Test and public rows pass the same checks and are scaled by the same constants: a feature has
    # to mean the same where it is learned and where it is tested.
    if test is not None:
        answers = pair_of(*_tested(test, column), "test")
        answers = answers[0], named.numbers(answers[1], "test[1]")
        test_rows = _rows(*answers, scale, dtype, ("test[0]", "test[1]"))
        _check_width(rows.inputs, **{"test[0]": test_rows.inputs})
    public_inputs = None
    if public is not None:
        public_inputs = scaled(to_inputs(public, dtype, "public"), scale)
        _check_width(rows.inputs, public=public_inputs)
    count = count_classes(rows.labels, None if test_rows is None else test_rows.labels, named.count)
    told = named.read or ((CLASSES_READ,) if classes is None else ())
    if row_ids is None and named.read and users is None:
        row_ids = names_by_text(rows, named.texts)
    data = federate(
        rows,
        layout,
        name=name,
        names=None if row_ids is None else to_names(row_ids, len(rows)),
        test=test_rows,
        public=None if public_inputs is None else Rows(public_inputs),
        public_rows=public_rows,
        notes=tuple(item.note for item in told),
        assumptions=tuple(item.assumption for item in told),
    )
    data = encoded_by(data, scale=scale, classes=named.names, classes_read=bool(named.read))
    return Task(model=chosen_model(model, rows.inputs, count), name=name), data


@dataclass(frozen=True)
class _Named:
    """Classes that have names: stated in their order, or read from the targets.

    Args:
        names: The names, in the order of the class numbers; None where classes are numbers.
        count: How many classes there are, as far as it is known.
        read: What was read from the rows.
        texts: The targets as text, where names were read.
    """

    names: tuple[str, ...] | None = None
    count: int | None = None
    read: tuple[ReadFromRows, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, targets: Array, classes: int | Iterable[str] | None) -> "_Named":
        """The names of the classes of some targets."""
        if classes is not None and not isinstance(classes, Iterable):
            check_count(2, classes=classes)
            if to_words_of(targets, "targets") is None:
                return cls(count=classes)
            raise DataError(
                f"Expected classes={classes} to list the names of the classes in their order where "
                "targets are words, as classes=['no', 'yes'] does."
            )
        if classes is not None:
            stated = to_words("classes", classes, 2)
            return cls(stated, len(stated))
        texts = to_words_of(targets, "targets")
        if texts is None:
            return cls()
        read: list[ReadFromRows] = []
        place = Place("targets", range(len(texts)), "row")
        _, names = numbered_classes(texts, "targets", place, None, read)
        return cls(names, len(names), tuple(read), tuple(texts))

    def numbers(self, targets: Array, name: str) -> Array:
        """Targets as class numbers."""
        if self.names is None:
            return targets
        texts = to_words_of(targets, name)
        if texts is None:
            texts = [str(number) for number in to_targets(targets, name).tolist()]
        place = Place(name, range(len(texts)), "row")
        return numbered_classes(texts, name, place, self.names, [])[0]


def names_by_text(rows: Rows, texts: Sequence[str]) -> list[str]:
    """What each row is called by its inputs, the word of its class, and which copy of them it is.

    The number of a class that was read from the rows follows from all of them: a word more would
    give other rows other coins.
    """
    marks = digests(Rows(rows.inputs), "privtrain/names")
    seen: Counter[str] = Counter()
    names = []
    for mark, text in zip(marks, texts, strict=True):
        name = f"{mark.hex()} {text}"
        names.append(f"{name} {seen[name]}")
        seen[name] += 1
    return names


def _tested(test: Any, column: str | None) -> tuple[Any, Any]:
    """Inputs and targets for testing, or what has both, and the column of the targets."""
    pair = isinstance(test, (tuple, list))
    if isinstance(test, (Tensor, np.ndarray)) or (pair and len(test) != 2):
        raise DataError("Expected test to be a pair: (inputs, targets).")
    return (test[0], test[1]) if pair else (test, column)


def from_npz(
    path: str | Path,
    *,
    inputs: str = "x",
    targets: str = "y",
    row_ids: str | None = None,
    **options: Any,
) -> tuple[Task, FederatedData]:
    """Makes a classification task of a file that `numpy.savez` wrote.

    Args:
        path: The file.
        inputs: Name of the array with the features.
        targets: Name of the array with the class numbers, or with words.
        row_ids: Name of the array that says what each row is called, where there is one.
        options: What else `from_arrays` takes.

    Returns:
        The task and the data.

    Raises:
        DataError: If the file cannot be read, an array is missing, or the arrays cannot be used.
    """
    path = Path(path)
    keys = (inputs, targets) if row_ids is None else (inputs, targets, row_ids)
    arrays = npz_arrays(path, keys)
    named = {} if row_ids is None else {"row_ids": arrays[2]}
    return from_arrays(*arrays[:2], **{"name": path.stem, **named, **options})


def npz_arrays(path: Path, keys: tuple[str, ...]) -> list[NDArray[Any]]:
    """Arrays of a file that `numpy.savez` wrote; nothing in it is unpickled.

    Args:
        path: The file.
        keys: The names of the arrays.

    Raises:
        DataError: If the file cannot be read, or an array is missing.
    """
    try:
        # Opened by us, hence closed by us: numpy leaves files open that turn out to be damaged.
        with path.open("rb") as file:
            return _arrays(file, path, keys)
    except DataError:
        raise
    # For what is missing, cut off, no archive or pickled; numpy's advice is to unpickle it anyway.
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged or something else"
        raise DataError(
            f"Could not read data={str(path)!r} as an .npz file: {why}. Give the path of a file "
            "that numpy.savez wrote, with arrays of numbers."
        ) from error


def _arrays(file: BinaryIO, path: Path, keys: tuple[str, ...]) -> list[NDArray[Any]]:
    # Unpickling an array runs whatever code its file holds.
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise DataError(
            f"Could not read {path}: it holds a single array. Write both with numpy.savez."
        )
    missing = [key for key in keys if key not in loaded.files]
    if missing:
        raise DataError(
            f"Expected {path} to hold an array {missing[0]!r}; it holds "
            f"{', '.join(loaded.files) or 'none'}. Name them with inputs=, targets=, row_ids=."
        )
    return [_array(loaded, path, key) for key in keys]


def _array(loaded: NpzFile, path: Path, key: str) -> NDArray[Any]:
    try:
        return np.asarray(loaded[key])
    # numpy's advice is to unpickle it, which would run what the file says.
    except ValueError as error:
        raise DataError(
            f"Could not read the array {key!r} of {path}: it holds Python objects (dtype=object), "
            "which are pickled and never read, or is damaged. Save numbers instead, as "
            f"{key}.astype(int) makes them, or words as {key}.astype(str)."
        ) from error


def _rows(
    inputs: Array, targets: Array, scale: Scale | None, dtype: torch.dtype, names: tuple[str, str]
) -> Rows:
    features, labels = to_inputs(inputs, dtype, names[0]), to_targets(targets, names[1])
    if len(features) != len(labels):
        raise DataError(
            f"Expected {names[0]} with {len(features)} rows and {names[1]} with {len(labels)} "
            "rows to have equally many."
        )
    return Rows(scaled(features, scale), labels)


def scaled(inputs: Tensor, scale: Scale | None) -> Tensor:
    """Inputs clamped to a public range and mapped to [0, 1].

    Args:
        inputs: Shape `(rows, ...)`.
        scale: Lowest and highest values, one number each or one a column; None leaves the inputs
            as they are.

    Returns:
        Same shape.

    Raises:
        ValueError: If a lowest value is not below its highest, or the shapes do not fit.
    """
    if scale is None:
        return inputs
    # Constants that are known without the rows. Their own minimum, maximum or standard deviation
    # would be queries on private rows that no budget pays for.
    low, high = _ends(scale)
    if not bool((low < high).all()) or not bool(torch.isfinite(high - low).all()):
        raise ValueError(f"Expected scale={scale} to hold lowest values below highest ones.")
    if any(end.ndim and end.shape != inputs.shape[1:] for end in (low, high)):
        raise ValueError(
            f"Expected scale with shapes {tuple(low.shape)} and {tuple(high.shape)} to hold "
            f"numbers or to have the shape of one input, {tuple(inputs.shape[1:])}."
        )
    # Clamped, so that the features of any row, also of one that nobody has seen yet, are bounded.
    # In float64, as the constants are: the difference from the lowest value then loses no digits.
    return ((inputs.double() - low) / (high - low)).clamp(0.0, 1.0).to(inputs.dtype)


def _ends(scale: Scale) -> tuple[Tensor, Tensor]:
    try:
        low, high = (torch.from_numpy(np.array(end, dtype=np.float64)) for end in scale)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected scale={scale!r} to be a pair of lowest and highest values, one number each "
            "or one a column, such as [0, 255]."
        ) from error
    return low, high


def _check_width(inputs: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape[1:] != inputs.shape[1:]:
            raise DataError(
                f"Expected {name} with rows of shape {tuple(other.shape[1:])} to have rows of "
                f"shape {tuple(inputs.shape[1:])}, as inputs have."
            )


def count_classes(targets: Tensor, test_targets: Tensor | None, classes: int | None) -> int:
    """The number of classes, stated or counted.

    Args:
        targets: Class numbers, shape `(rows,)`.
        test_targets: Those of test rows that were given apart.
        classes: The number as a public figure, or None.

    Returns:
        The number of classes, at least 2.

    Raises:
        DataError: If only one class occurs, one is skipped, or one lies beyond `classes`.
    """
    present = torch.unique(targets).tolist()
    if len(present) < 2:
        raise DataError(
            f"Expected targets to hold two or more classes; all {len(targets)} rows are of class "
            f"{present[0]}. There is nothing to learn."
        )
    count = present[-1] + 1 if classes is None else classes
    check_count(2, classes=count)
    # A stated class may be absent from these rows; a counted one that is skipped is a mistake.
    if classes is None and len(present) != count:
        absent = next(label for label in range(count) if label not in present)
        raise DataError(
            f"Expected targets to hold every class from 0 to {count - 1}; class {absent} is "
            f"absent. Map the classes to 0, 1, ..., or give classes={count}."
        )
    highest = max(present[-1], 0 if test_targets is None else int(test_targets.max()))
    if highest >= count:
        raise DataError(f"Expected targets below classes={count}; class {highest} occurs.")
    return int(count)
