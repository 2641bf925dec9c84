"""Checks of arguments by keyword, so that the name and the value reach the message."""

import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.nearest import nearest


def _check(description: str, holds: Callable[[float], bool], values: dict[str, float]) -> None:
    for name, value in values.items():
        # `not (x > 0)` and not `x <= 0`: a NaN must fail too. True is a number to Python, but
        # nobody means one by it.
        if isinstance(value, bool) or not isinstance(value, Real) or not _holds(holds, value):
            raise ValueError(f"Expected {name}={value!r} {description}.")


def _holds(holds: Callable[[float], bool], value: float) -> bool:
    try:
        return holds(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def check_positive(**values: float) -> None:
    """Raises `ValueError` unless every value is a finite number above zero."""
    _check("> 0", lambda value: math.isfinite(value) and value > 0, values)


def check_non_negative(**values: float) -> None:
    """Raises `ValueError` unless every value is a finite number that is at least zero."""
    _check(">= 0", lambda value: math.isfinite(value) and value >= 0, values)


def check_number(**values: float) -> None:
    """Raises `ValueError` unless every value is a number, whichever."""
    _check("to be a number", lambda value: True, values)


def check_count(minimum: int = 1, /, **values: int) -> None:
    """Raises `ValueError` unless every value is a whole number that is at least `minimum`."""
    _check(
        f"to be a whole number >= {minimum}",
        lambda value: isinstance(value, Integral) and value >= minimum,
        dict(values),
    )


def check_probability(**values: float) -> None:
    """Raises `ValueError` unless every value lies in (0, 1]."""
    _check("in (0, 1]", lambda value: 0 < value <= 1, values)


def check_fraction(**values: float) -> None:
    """Raises `ValueError` unless every value lies in [0, 1)."""
    _check("in [0, 1)", lambda value: 0 <= value < 1, values)


def check_delta(delta: float) -> None:
    """Raises `ValueError` unless delta lies in (0, 1)."""
    # At 1 anything is private, and at 0 no Gaussian noise is.
    _check("in (0, 1)", lambda value: 0 < value < 1, {"delta": delta})


def check_seed(seed: int) -> None:
    """Raises `ValueError` unless a seed is a whole number, of either sign."""
    # 1 and 1.0 are equal but print differently, and a stream's key is made from the print.
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"Expected seed={seed!r} to be a whole number.")


def check_flag(**values: bool) -> None:
    """Raises `ValueError` unless every value is True or False: "no" would count as yes."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"Expected {name}={value!r} to be True or False.")


def brief(value: object) -> str:
    """A value as messages show it; of one that is long, which may hold rows, only its type."""
    text = repr(value)
    short = len(text) <= _LONGEST_SHOWN and "\n" not in text
    return text if short else f"<{type(value).__name__}>"


_LONGEST_SHOWN = 160


def check_is(kind: type, example: str, /, **values: object) -> None:
    """Raises `ValueError` unless every value is of a kind; the message shows how to get one."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(
                f"Expected {name}={brief(value)} to be a {kind.__name__}, such as {example}."
            )


def check_list(example: str, /, **values: object) -> None:
    """Raises `ValueError` unless every value is a list or another collection, and no text."""
    for name, value in values.items():
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ValueError(f"Expected {name}={brief(value)} to be a list, such as {example}.")


def check_offers(method: str, example: str, /, **values: object) -> None:
    """Raises `ValueError` unless every value has the method that its protocol asks for."""
    for name, value in values.items():
        # A class has the method too: `Gaussian` in the place of `Gaussian(1.0, 1.0)`.
        if isinstance(value, type) or not callable(getattr(value, method, None)):
            raise ValueError(f"Expected {name}={brief(value)} to be a value such as {example}.")


def check_follows(protocol: type, example: str, /, **values: object) -> None:
    """Raises `ValueError` unless every value has all members that a protocol asks for."""
    asked = [name for name in dir(protocol) if not name.startswith("_")]
    for name, value in values.items():
        # A class has the methods too, and reads none of its fields.
        missing = [] if isinstance(value, type) else [m for m in asked if m not in dir(value)]
        if isinstance(value, type) or missing:
            lacks = f"; it has no {', '.join(missing)}" if missing else ", and no class"
            raise ValueError(
                f"Expected {name}={brief(value)} to be a value such as {example}{lacks}."
            )


def check_distinct(**collections: Collection[float]) -> None:
    """Raises `ValueError` if a collection holds a value twice."""
    for name, values in collections.items():
        if len(set(values)) < len(values):
            raise ValueError(f"Expected {name}={list(values)} to hold each value once.")


def check_member(allowed: Collection[str], also: str = "", /, **values: str) -> None:
    """Raises `ValueError` unless every value is one of the allowed names; it names the nearest.

    What is `also` allowed beside the names is said in words.
    """
    for name, value in values.items():
        if value not in allowed:
            beside = f", or {also}" if also else ""
            raise ValueError(
                f"Expected {name}={value!r} to be one of {', '.join(sorted(allowed))}{beside}."
                f"{nearest(value, allowed)}"
            )


def all_finite(values: "Tensor") -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    import torch

    # No sum with such a term is finite, and it is had ten times faster. Finite terms may overflow.
    if values.is_floating_point() and math.isfinite(values.sum().item()):
        return True
    return bool(torch.isfinite(values).all())


def check_finite(**tensors: "Tensor") -> None:
    """Raises `ValueError` if a tensor holds NaN or infinity, with the first place where."""
    import torch  # here and below: the command line checks its words without it

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            # With a place, so that whoever owns the table finds the row.
            where = tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
            raise ValueError(
                f"Expected {name} to be finite; {name}{list(where)} is {float(tensor[where])}. "
                "Remove or impute such rows before training."
            )


def check_ordinary(**tensors: "Tensor") -> None:
    """Raises `DataError` unless every tensor is dense, in memory, and of real numbers."""
    import torch

    for name, tensor in tensors.items():
        # Nested first: such a tensor has no shape and no length.
        if tensor.is_nested:
            what = "with rows of different lengths. Pad or cut them, as by torch.nn.utils.rnn"
        elif tensor.layout is not torch.strided:
            what = f"of the layout {tensor.layout}. Use {name}.to_dense()"
        elif tensor.is_quantized:
            what = f"of quantized numbers ({tensor.dtype}). Use {name}.dequantize()"
        elif tensor.is_complex():
            what = "of complex ones. Use torch.view_as_real, or its real part"
        elif isinstance(tensor, torch.masked.MaskedTensor):
            what = "with masked entries. Remove such rows, and use get_data()"
        elif tensor.is_meta:
            what = "without values, on the device 'meta'. Load the values first"
        else:
            continue
        raise DataError(f"Expected {name} to be a dense tensor of real numbers, not one {what}.")


def check_computable(**tensors: "Tensor") -> None:
    """Raises `DataError` unless every tensor is ordinary, and of a type that torch computes with.

    A tensor that requires a gradient is refused, too: training would write into it.
    """
    import torch

    check_ordinary(**tensors)
    unsigned = (torch.uint16, torch.uint32, torch.uint64)
    for name, tensor in tensors.items():
        if tensor.dtype in unsigned:
            raise DataError(
                f"Expected {name} of type {tensor.dtype} to be of a type that torch computes with. "
                f"Use {name}.long(), or pt.data.from_arrays, which does."
            )
        if tensor.requires_grad:
            raise DataError(
                f"Expected {name} to require no gradient: rows are not trained. Use "
                f"{name}.detach()."
            )


def made_folder(folder: str | os.PathLike[str], name: str = "folder") -> Path:
    """Makes a folder where there is none, before anything is computed that would be written there.

    Args:
        folder: The folder.
        name: The argument that names it.

    Returns:
        The folder, into which a file was written for a moment.

    Raises:
        DataError: If it cannot be made or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell: root ignores them, and a file system may be read-only.
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise DataError(
            f"Cannot write to {name}={str(path)!r}: {error.strerror}. Choose a folder that you "
            "may write to."
        ) from error
    return path
