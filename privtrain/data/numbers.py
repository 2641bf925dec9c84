"""Arrays of other libraries as tensors: what is no table of real numbers is refused by name."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.validate import check_ordinary

Array = Tensor | ArrayLike
"""A numpy array, a torch tensor, or nested sequences of numbers."""


@runtime_checkable
class _Pandas(Protocol):
    """A table of pandas, which need not be installed."""

    @property
    def iloc(self) -> Any: ...

    def to_numpy(self, dtype: Any) -> NDArray[Any]: ...


_MISSING = ("NAType", "NaTType")
"""Types of what stands for no value in tables of pandas, which need not be installed."""

_KINDS = {"c": "complex numbers", "m": "durations", "M": "dates", "V": "records"}


def to_inputs(array: Array, dtype: torch.dtype, name: str) -> Tensor:
    """Features as a tensor, checked.

    Args:
        array: Numbers, shape `(rows, ...)`.
        dtype: `torch.float32` or `torch.float64`; `torch.int64` for whole numbers that stay as
            they are, such as tokens.
        name: What messages call the array.

    Returns:
        Shape `(rows, ...)`.

    Raises:
        DataError: If there are no rows or columns, a number is not finite, or two different whole
            numbers of a column become one; with `torch.int64`, if a number is not whole.
    """
    values = to_numbers(array, name)
    if values.ndim < 2 or values.size == 0:
        raise DataError(
            f"Expected {name} of shape {values.shape} to have the shape (rows, columns) or "
            "more dimensions, and to hold something. Use reshape(-1, 1) for a single column."
        )
    if dtype == torch.int64:
        return _to_whole(values, name)
    result = torch.from_numpy(_wide(values)).to(dtype)
    # Tested after the conversion: 1e300 is finite in float64 and infinite in float32. One value
    # that is not finite makes a loss NaN, and then the gradient of every row of its batch.
    finite = torch.isfinite(result)
    if not bool(finite.all()):
        row, *place = (int(number) for number in (~finite).nonzero()[0])
        column = place[0] if len(place) == 1 else tuple(place)
        given = values[(row, *place)]
        if np.isfinite(given):
            raise DataError(
                f"Expected {name} to hold numbers that fit {dtype}; row {row}, column {column} is "
                f"{given:g}, above {torch.finfo(dtype).max:.3g}. Use dtype=torch.float64, or "
                "divide the column by a public constant."
            )
        raise DataError(
            f"Expected {name} to hold finite numbers; row {row}, column {column} is "
            f"{float(given)}. Remove or impute such rows before training."
        )
    _check_digits(values, result, name)
    return result


def _to_whole(values: NDArray[Any], name: str) -> Tensor:
    """Whole numbers as they are, such as tokens."""
    right = np.ones(values.shape, dtype=bool)
    if values.dtype.kind == "f":
        # Up to 2^53 floats have kept all digits of whole numbers.
        right = (values == np.floor(values)) & (abs(values) <= 2**53)
    elif values.dtype.kind == "u":
        right = values < 2**63
    if not right.all():
        row, *place = (int(number) for number in np.argwhere(~right)[0])
        column = place[0] if len(place) == 1 else tuple(place)
        raise DataError(
            f"Expected {name} to hold whole numbers, as dtype=torch.int64 says; row {row}, column "
            f"{column} is {values[(row, *place)].item()}. Leave dtype= out for quantities."
        )
    return torch.from_numpy(np.array(values, dtype=np.int64, order="C"))


def to_words_of(array: Any, name: str) -> list[str] | None:
    """Words, such as names of classes, or None where an array holds something else.

    Args:
        array: What may hold words, shape `(rows,)` or `(rows, 1)`.
        name: What messages call it.

    Returns:
        One text a row, without surrounding white space.

    Raises:
        DataError: If words stand beside missing values or numbers.
    """
    if isinstance(array, Tensor):
        return None
    try:
        values = np.asarray(array)
    except Exception:  # told where numbers are made of it
        return None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    # "T": texts of any length, as numpy 2 has them.
    items = values.tolist() if values.ndim == 1 and values.dtype.kind in "USOT" else []
    if not any(isinstance(item, (str, bytes)) for item in items):
        return None
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in items]
    for row, item in enumerate(texts):
        if not isinstance(item, str):
            what = "a missing value" if is_no_value(item) else f"of type {type(item).__name__}"
            raise DataError(
                f"Expected {name} to hold words or numbers, not both; row {row} is {item!r}, "
                f"{what}. Make words of all of them, and remove rows without one."
            )
    return [text.strip() for text in texts]


def is_no_value(item: object) -> bool:
    """Whether something stands for no value: None, NaN, or what pandas has for it."""
    return item is None or type(item).__name__ in _MISSING or (_is_number(item) and item != item)


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
        if np.isnan(values[row]):
            raise DataError(
                f"Expected {name} to hold class numbers 0, 1, ...; row {row} is nan, a "
                "missing value. Remove rows without a class."
            )
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
    # A list of long whole numbers and others becomes one of floats, and so does a table of pandas.
    long = values.dtype.kind == "f" and not isinstance(array, np.ndarray)
    if long and bool((np.abs(values) >= 2**53).any()):
        exact = array.to_numpy(dtype=object) if isinstance(array, _Pandas) else array
        values = np.asarray(exact, dtype=object)
    if values.dtype.kind == "O" and values.ndim and all(map(_is_number, values.flat)):
        values = _of_objects(values, name)
    if values.dtype.kind in "biuf":
        return values
    raise DataError(f"Expected {name} to hold numbers, {_instead(array, values)}.")


def _is_number(item: object) -> bool:
    return isinstance(item, (bool, int, float, np.bool_, np.integer, np.floating))


def _of_objects(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Numbers that stand as Python objects, such as columns of several types, in one type."""
    if all(isinstance(item, (bool, np.bool_)) for item in values.flat):
        return values.astype(bool)
    if not any(isinstance(item, (float, np.floating)) for item in values.flat):
        numbers = [int(item) for item in values.flat]
        for kind in (np.int64, np.uint64):
            if np.iinfo(kind).min <= min(numbers) and max(numbers) <= np.iinfo(kind).max:
                return np.array(numbers, dtype=kind).reshape(values.shape)
    try:
        result = values.astype(np.float64)
    except OverflowError as error:
        raise DataError(
            f"Expected {name} to hold numbers that fit torch.float64; one has more than 308 "
            "digits. Leave the column out, or make columns of zeros and ones of codes."
        ) from error
    for column, kept in zip(
        values.reshape(len(values), -1).T, result.reshape(len(values), -1).T, strict=True
    ):
        if len(set(column.tolist())) > len(set(kept.tolist())):
            raise DataError(
                f"Expected {name} to hold numbers that torch.float64 tells apart; of those like "
                f"{column[0]!r} two become one. Make columns of zeros and ones of codes, or leave "
                "the column out."
            )
    return result


def _instead(array: Array, values: NDArray[Any]) -> str:
    """What an array holds in the place of numbers, and what to do about it."""
    if values.dtype.kind in _KINDS:
        return f"not {_KINDS[values.dtype.kind]} ({values.dtype}). Make numbers of them first"
    if values.dtype.kind != "O":
        return (
            f"not values of type {values.dtype}. Map words to numbers first, or use from_csv or "
            "from_frame, which do"
        )
    if values.ndim == 0:
        return (
            f"in one array, not in a {type(array).__name__}. Make a sparse matrix dense by "
            "toarray(), and stack the columns of a table"
        )
    for place, item in zip(np.ndindex(values.shape), values.flat, strict=True):
        if item is None or type(item).__name__ in _MISSING:
            return (
                f"not {item!r}, a missing value, as in row {place[0]}. Remove or impute such rows"
            )
        if not _is_number(item):
            return (
                f"not {item!r:.40} (of type {type(item).__name__}), as in row {place[0]}. Map "
                "words to numbers first, or use from_csv or from_frame, which do; remove or impute "
                "what is missing"
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
    some = np.s_[:: max(1, len(given) // _SAMPLE)]
    fine = given.dtype.itemsize > columns.element_size() and given.dtype.kind == "f"
    fine = fine and columns.shape[1] <= _SAMPLE  # a table and no images
    for column in range(columns.shape[1]):
        # Below, fractions may merge: seen in some rows, since all of all columns take seconds.
        rows = np.s_[:] if bool(beyond[column]) else some
        if not (fine or bool(beyond[column])):
            continue
        values = np.unique(given.reshape(len(given), -1)[rows, column])
        merged = first_merged(values, kept.dtype)
        if merged is not None:
            place = np.unravel_index(column, given.shape[1:])
            where = int(place[0]) if len(place) == 1 else tuple(map(int, place))
            raise DataError(
                f"Expected {name} to hold numbers that {kept.dtype} tells apart; in column {where} "
                f"{merged[0]} and {merged[1]} become one. Use dtype=torch.float64 where it holds "
                "them, or subtract a public constant; make columns of zeros and ones of codes, or "
                "leave the column out."
            )


_SAMPLE = 1000
_NOISE = 2.0**-48
"""Numbers that differ by less, relatively, differ by the rounding of sums: 0.1 + 0.2 and 0.3."""
_ENOUGH = 2**16
"""So many different values are a measurement, however many of them were rounded to others."""


def first_merged(values: NDArray[Any], dtype: torch.dtype) -> tuple[Any, Any] | None:
    """The first two of several numbers that become one in a floating-point type and should not.

    Whole numbers, such as codes, never should. Measurements are rounded; where half of them merge
    with others, such as seconds since 1970 with fractions, the column says nothing any more.

    Args:
        values: Different numbers, rising, shape `(values,)`; floats, or exact as Python objects.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The two; None where all that should stay apart do.
    """
    whole = values[(values % 1 == 0).astype(bool)]
    merged = _merged(whole, dtype)
    if len(merged):
        first, second = whole[merged[0] : merged[0] + 2].tolist()
        return int(first), int(second)
    merged = _merged(values, dtype)
    noise = _NOISE if dtype == torch.float32 else 0.0
    apart = [place for place in merged.tolist() if _differ(values[place], values[place + 1], noise)]
    left = len(values) - len(merged)
    if len(apart) < 2 or 2 * len(apart) < len(values) or left > _ENOUGH:
        return None
    first, second = (float(value) for value in values[apart[0] : apart[0] + 2])
    return first, second


def _merged(values: NDArray[Any], dtype: torch.dtype) -> NDArray[np.int64]:
    """Places of numbers that the next one is the same as, in a floating-point type."""
    with np.errstate(over="ignore"):  # what is infinite is refused elsewhere
        kept = values.astype(np.float64)
        kept = kept.astype(np.float32) if dtype == torch.float32 else kept
    return np.flatnonzero(kept[1:] == kept[:-1])


def _differ(one: Any, other: Any, noise: float) -> bool:
    return bool(float(other - one) > noise * abs(float(other)))
