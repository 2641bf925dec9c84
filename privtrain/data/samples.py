"""Inputs and targets from what other libraries have: Datasets of pairs, and named columns."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from privtrain.core.errors import DataError
from privtrain.data.numbers import Array, to_numbers


class Samples(Protocol):
    """A map-style Dataset, or columns with names; none of their packages need be installed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@runtime_checkable
class _Frame(Protocol):
    """A frame of pandas or polars."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


@runtime_checkable
class _Columns(Protocol):
    """A data set of Hugging Face, or a table of Arrow."""

    @property
    def column_names(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


@runtime_checkable
class _Listed(Protocol):
    """A column that gives its values as Python objects."""

    def to_list(self) -> list[Any]: ...


@runtime_checkable
class _ArrowListed(Protocol):
    """A column of Arrow that gives its values as Python objects."""

    def to_pylist(self) -> list[Any]: ...


def pair_of(source: Any, targets: Any, name: str) -> tuple[Array, Array]:
    """Inputs and targets of whatever holds both.

    Args:
        source: Inputs, a Dataset of pairs, or named columns.
        targets: Targets, the name of a column, or None where the source is a Dataset.
        name: What messages call the source.

    Returns:
        Inputs and targets, which are yet to be checked.

    Raises:
        DataError: If there are no targets, or the source is of another kind.
    """
    if isinstance(targets, str):
        return _by_column(columns_of(source, name), targets, name)
    if targets is None:
        return _pairs(source, name)
    if isinstance(source, Mapping):
        raise DataError(
            f"Expected {name} to be an array beside an array of targets, not a dict. Give one of "
            f"its values, or the name of a column as the targets: {', '.join(map(str, source))}."
        )
    return source, targets


def columns_of(source: Any, name: str) -> dict[str, Any]:
    """The columns of a table, by name.

    Args:
        source: A frame, a data set of Hugging Face, a table of Arrow, a dict of columns, or a
            Dataset whose rows are dicts.
        name: What messages call it.

    Raises:
        DataError: If it is something else, or two columns have one name.
    """
    if isinstance(source, Mapping):
        parts = [key for key, value in source.items() if isinstance(value, (_Frame, _Columns))]
        if parts and len(parts) == len(source):
            raise DataError(
                f"Expected {name} to be one data set, not several ({', '.join(map(str, parts))}). "
                f"Give one of them, as {name}[{parts[0]!r}], and another by test=."
            )
        names, found = list(source), dict(source)
    elif type(source).__name__ == "LazyFrame":
        raise DataError(f"Expected {name} to hold its rows, not to be lazy. Give {name}.collect().")
    elif isinstance(source, _Columns) and isinstance(source.column_names, list):
        # Before frames: Arrow has the columns themselves where frames have their names.
        names, found = list(source.column_names), {}
    elif isinstance(source, _Frame):
        names, found = list(source.columns), {}
    else:
        rows = _rows_of(source, name)
        if not all(isinstance(row, Mapping) for row in rows):
            raise DataError(
                f"Expected {name} to have columns with names; its rows are of type "
                f"{type(rows[0]).__name__}. Leave the name of a column out for a Dataset of pairs."
            )
        names, found = list(rows[0]), {key: [row[key] for row in rows] for key in rows[0]}
    texts = [str(each) for each in names]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise DataError(f"{name} names the column {twice!r} twice. Rename one of them.")
    return {str(each): found[each] if each in found else source[each] for each in names}


def values_of(column: Any) -> Any:
    """A column as an array of numbers, or as a list of Python objects where it is none."""
    plain = isinstance(column, np.ndarray) and column.dtype != object
    if plain or isinstance(column, (Tensor, _Frame)):
        return column
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    if kind in "biuf" and hasattr(column, "__array__"):
        array = np.asarray(column)
        # Whole numbers beside a missing one become floats, which lose digits.
        if array.dtype.kind == kind:
            return array
    if isinstance(column, _Listed):
        return column.to_list()
    if isinstance(column, _ArrowListed):
        return column.to_pylist()
    return [
        np.asarray(item)
        if hasattr(item, "__array_interface__") and not isinstance(item, np.generic)
        else item
        for item in column
    ]


def _by_column(columns: dict[str, Any], label: str, name: str) -> tuple[Array, Array]:
    if label not in columns:
        raise DataError(
            f"{name} has no column {label!r}, which targets= names. Its columns are "
            f"{', '.join(columns)}."
        )
    rest = [each for each in columns if each != label]
    if not rest:
        raise DataError(f"{name} holds no column beside {label!r} that could be learned from.")
    targets = values_of(columns[label])
    if len(rest) == 1:
        inputs = to_numbers(values_of(columns[rest[0]]), f"{name}[{rest[0]!r}]")
        return inputs.reshape(-1, 1) if inputs.ndim == 1 else inputs, targets
    arrays = {each: to_numbers(values_of(columns[each]), f"{name}[{each!r}]") for each in rest}
    for each, array in arrays.items():
        if array.ndim != 1 or len(array) != len(arrays[rest[0]]):
            raise DataError(
                f"Expected the columns of {name} to hold one number a row each, equally many; "
                f"{each!r} has the shape {array.shape}. Give one column of arrays and the targets, "
                f"as {{{each!r}: ..., {label!r}: ...}}."
            )
    return np.column_stack(list(arrays.values())), targets


def _rows_of(source: Any, name: str) -> Sequence[Any]:
    """All rows of a map-style Dataset."""
    if isinstance(source, DataLoader):
        raise DataError(f"Expected {name} to be a Dataset, not a DataLoader. Give loader.dataset.")
    whole = not isinstance(source, IterableDataset)
    if not (whole and hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataError(
            f"Expected {name}, a {type(source).__name__}, to be arrays, named columns, or a "
            "map-style Dataset, which has a length and gives each row by its number. Collect the "
            "rows first."
        )
    if len(source) == 0:
        raise DataError(f"Expected {name} to hold rows; it holds none.")
    return [source[number] for number in range(len(source))]


def _pairs(source: Any, name: str) -> tuple[Array, Array]:
    if isinstance(source, (Tensor, np.ndarray, Mapping, _Frame, _Columns)):
        raise DataError(
            f"Expected targets beside {name}, a {type(source).__name__}: give the class of each "
            "row, as from_arrays(inputs, targets), or the name of the column that holds it."
        )
    rows = _rows_of(source, name)
    # A list of lists is a table whose targets were forgotten.
    kinds = tuple if isinstance(source, (list, tuple)) else (tuple, list)
    for number, row in enumerate(rows):
        if not isinstance(row, kinds) or len(row) != 2:
            named = f" with {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
            raise DataError(
                f"Expected {name} to give a pair of inputs and a target for each row; row {number} "
                f"is a {type(row).__name__}{named}. Give arrays of inputs and of targets, or name "
                "the column of the targets where rows are dicts."
            )
    given, answers = zip(*rows, strict=True)
    arrays = [np.asarray(_plain(item)) for item in given]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"Expected {name} to give inputs of one shape; row 0 has {arrays[0].shape}, row "
                f"{number} has {array.shape}. Pad or cut rows of different lengths."
            )
    inputs = np.stack(arrays)
    return inputs.reshape(-1, 1) if inputs.ndim == 1 else inputs, _answers(answers)


def _answers(answers: Sequence[Any]) -> Array:
    plain = [_plain(answer) for answer in answers]
    single = all(np.ndim(answer) == 0 or np.size(answer) == 1 for answer in plain)
    return [np.asarray(answer).reshape(-1)[0].item() for answer in plain] if single else plain


def _plain(item: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    plain = item.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
