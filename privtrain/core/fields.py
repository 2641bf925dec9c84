"""Fields that settings gained later, which are left out while they stand at their default.

Noise roots, folders, study files and cards hold settings by value. A new field would change all of
them for settings that compute what they always did.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

LATER = {"later": True}
"""Metadata of such a field: `field(default=..., metadata=LATER)`."""


def told_unless(left_out: Callable[[Any], bool]) -> dict[str, Callable[[Any], bool]]:
    """Metadata of a later field that is left out by another rule than that of its default.

    Args:
        left_out: The value that has the field to whether it is left out.
    """
    return {"later": left_out}


NEVER = told_unless(lambda value: True)
"""Metadata of a field that changes nothing of what is computed, such as a number of processes."""


def told_fields(value: Any) -> tuple[Field[Any], ...]:
    """The fields of a dataclass's value that identify and print it, in order."""
    return tuple(each for each in fields(value) if not _left_out(value, each))


def told(value: Any) -> str:
    """A dataclass's value as `repr` prints it, without what is left out."""
    shown = [
        f"{each.name}={getattr(value, each.name)!r}" for each in told_fields(value) if each.repr
    ]
    return f"{type(value).__qualname__}({', '.join(shown)})"


def _left_out(value: Any, each: Field[Any]) -> bool:
    later = each.metadata.get("later")
    if not later:
        return False
    if callable(later):
        return bool(later(value))
    if each.default is MISSING:
        raise TypeError(f"Expected {each.name!r} of {type(value).__name__} to have a default.")
    return bool(getattr(value, each.name) == each.default)
