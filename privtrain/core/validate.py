"""Checks of arguments by keyword, so that the name and the value reach the message."""

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real

import torch
from torch import Tensor


def _check(description: str, holds: Callable[[float], bool], values: dict[str, float]) -> None:
    for name, value in values.items():
        # `not (x > 0)` and not `x <= 0`: a NaN must fail too.
        if isinstance(value, bool) or not isinstance(value, Real) or not holds(value):
            raise ValueError(f"Expected {name}={value!r} {description}.")


def check_positive(**values: float) -> None:
    """Raises `ValueError` unless every value is a finite number above zero."""
    _check("> 0", lambda value: math.isfinite(value) and value > 0, values)


def check_non_negative(**values: float) -> None:
    """Raises `ValueError` unless every value is a finite number that is at least zero."""
    _check(">= 0", lambda value: math.isfinite(value) and value >= 0, values)


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
    _check("in (0, 1)", lambda value: 0 < value < 1, {"delta": delta})


def check_member(allowed: Collection[str], /, **values: str) -> None:
    """Raises `ValueError` unless every value is one of the allowed names."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(
                f"Expected {name}={value!r} to be one of {', '.join(sorted(allowed))}."
            )


def check_finite(**tensors: Tensor) -> None:
    """Raises `ValueError` if a tensor holds NaN or infinity, with the first place where."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            where = tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
            raise ValueError(
                f"Expected {name} to be finite; {name}{list(where)} is {float(tensor[where])}. "
                "Remove or impute such rows before training."
            )
