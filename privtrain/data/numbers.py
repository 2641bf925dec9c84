"""Arrays of other libraries as tensors: what is no table of real numbers is refused by name."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.validate import check_ordinary

Array = Tensor | ArrayLike
"""A numpy array, a torch tensor, or nested sequences of numbers."""

_KINDS = {"c": "complex numbers", "m": "durations", "M": "dates", "V": "records"}


def to_inputs(array: Array, dtype: torch.dtype, name: str) -> Tensor:
    """Features as a tensor, checked.

    Args:
        array: Numbers, shape `(rows, ...)`.
        dtype: Floating-point type of the result.
        name: What messages call the array.

    Returns:
        Shape `(rows, ...)`.

    Raises:
        DataError: If there are no rows or columns, a number is not finite, or two different whole
            numbers of a column become one.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Expected dtype={dtype} to be torch.float32 or torch.float64.")
    values = to_numbers(array, name)
    if values.ndim < 2 or values.size == 0:
        raise DataError(
            f"Expected {name} of shape {values.shape} to have the shape (rows, columns) or "
            "more dimensions, and to hold something. Use reshape(-1, 1) for a single column."
        )
    result = torch.from_numpy(_wide(values)).to(dtype)
    # Tested after the conversion: 1e300 is finite in float64 and infinite in float32. One value
    # that is not finite makes a loss NaN, and then the gradient of every row of its batch.
    finite = torch.isfinite(result)
    if not bool(finite.all()):
        row, *place = (int(number) for number in (~finite).nonzero()[0])
        column = place[0] if len(place) == 1 else tuple(place)
        raise DataError(
            f"Expected {name} to hold finite numbers; row {row}, column {column} is "
            f"{float(result[(row, *place)])}. Remove or impute such rows before training."
        )
    _check_digits(values, result, name)
    return result


def to_targets(array: Array, name: str) -> Tensor:
    """Class numbers as a tensor, checked.

    Args:
        array: Whole numbers from 0, shape `(rows,)` or `(rows, 1)`.
        name: What messages call the array.

    Returns:
        Type int64, shape `(rows,)`.

    Raises:
        DataError: If the shape is another, or a number is not a whole number from 0.
    """
    values = to_numbers(array, name)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"Expected {name} of shape {values.shape} to have the shape (rows,). Of columns of "
            f"zeros and ones take numpy.argmax({name}, axis=1)."
        )
    if values.dtype.kind in "bf":
        values = values.astype(np.int64 if values.dtype.kind == "b" else np.float64)
    # NaN is neither; what is at least 2^63 has no place in int64.
    right = (values >= 0) & (values < 2**63) & (values == np.floor(values))
    if not right.all():
        row = int(np.argmin(right))
        raise DataError(
            f"Expected {name} to hold class numbers 0, 1, ...; row {row} is {values[row].item()}. "
            f"Map the classes first: numpy.unique({name}, return_inverse=True)[1]."
        )
    return torch.from_numpy(values.astype(np.int64))


def to_numbers(array: Array, name: str) -> NDArray[Any]:
    """An array of real numbers or truth values, as it was given.

    Args:
        array: What should be one.
        name: What messages call it.

    Returns:
        Whole, real or boolean numbers in any shape; a view where there is one.

    Raises:
        DataError: If it is sparse, ragged, masked, complex, or holds something else than numbers.
    """
    if isinstance(array, Tensor):
        check_ordinary(**{name: array})
        plain = array.detach().cpu()
        # numpy has no bfloat16; float32 holds all of its values.
        short = plain.is_floating_point() and plain.dtype.itemsize < 4
        return (plain.float() if short else plain).numpy()
    _check_masks(array, name)
    try:
        values = np.asarray(array)
    except Exception as error:  # objects of other libraries may raise anything
        raise DataError(
            f"Expected {name} to be one array of numbers; {str(error) or type(error).__name__} "
            "Pad or cut rows of different lengths, and make sparse ones dense."
        ) from error
    if values.dtype.kind in "biuf":
        return values
    raise DataError(f"Expected {name} to hold numbers, {_instead(array, values)}.")


def _instead(array: Array, values: NDArray[Any]) -> str:
    """What an array holds in the place of numbers, and what to do about it."""
    if values.dtype.kind in _KINDS:
        return f"not {_KINDS[values.dtype.kind]} ({values.dtype}). Make numbers of them first"
    if values.dtype.kind != "O":
        return (
            f"not values of type {values.dtype}. Map words to numbers first, or use from_csv, "
            "which does"
        )
    if values.ndim == 0:
        return (
            f"in one array, not in a {type(array).__name__}. Make a sparse matrix dense by "
            "toarray(), and stack the columns of a table"
        )
    for place, item in zip(np.ndindex(values.shape), values.flat, strict=True):
        if not isinstance(item, (bool, int, float, np.number)):
            return (
                f"not {item!r:.40} (of type {type(item).__name__}), as in row {place[0]}. Map "
                "words to numbers first, or use from_csv, which does; remove or impute what is "
                "missing"
            )
    return "not Python objects. Give a number format: numpy.asarray(values, dtype=float)"


def _check_masks(array: Array, name: str) -> None:
    # numpy drops the masks of an array, and what lies behind them would be learned from.
    if isinstance(array, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(array)).any():
        raise DataError(
            f"Expected {name} without masked entries; {int(masked.sum())} are, the first of them "
            f"in row {int(np.argwhere(masked)[0][0])}. Remove or impute such rows before training."
        )


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """A copy in a type that torch computes with."""
    # A copy: later writes into the caller's array must not change the data set.
    wide = np.float64 if values.dtype.kind == "f" or values.dtype == np.uint64 else np.int64
    return np.array(values, dtype=values.dtype if values.dtype.kind == "b" else wide, order="C")


def _check_digits(given: NDArray[Any], kept: Tensor, name: str) -> None:
    """Refuses whole numbers, such as codes, of which two become one floating-point number."""
    largest = 2 / torch.finfo(kept.dtype).eps  # up to here all whole numbers are apart
    columns = kept.reshape(len(kept), -1)
    # Without a copy of all values: images have many.
    beyond = torch.maximum(columns.amax(dim=0), -columns.amin(dim=0)) > largest
    for column in beyond.nonzero().flatten().tolist():
        values = np.unique(given.reshape(len(given), -1)[:, column])
        merged = first_merged(values, kept.dtype)
        if merged is not None:
            place = np.unravel_index(column, given.shape[1:])
            where = int(place[0]) if len(place) == 1 else tuple(map(int, place))
            raise DataError(
                f"Expected {name} to hold numbers that {kept.dtype} tells apart; in column {where} "
                f"{merged[0]} and {merged[1]} become one. Use dtype=torch.float64 where it holds "
                "them; make columns of zeros and ones of codes, or leave the column out."
            )


def first_merged(values: NDArray[Any], dtype: torch.dtype) -> tuple[int, int] | None:
    """The first two of several whole numbers that become one in a floating-point type.

    Args:
        values: Different numbers, rising, shape `(values,)`.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The two; None where all stay apart, or some are no whole numbers: those are measurements.
    """
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return None
    with np.errstate(over="ignore"):  # what is infinite is refused elsewhere
        kept = values.astype(np.float32 if dtype == torch.float32 else np.float64)
    same = np.flatnonzero(kept[1:] == kept[:-1])
    one, other = values[same[:1]].tolist(), values[same[:1] + 1].tolist()
    return (int(one[0]), int(other[0])) if one else None
