"""How a model and its inputs were made: what a model that is kept needs to be used again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table, and what became of it.

    Args:
        name: Its name.
        range: Its public lowest and highest value, to which numbers are clamped before they are
            mapped to [0, 1]; None for numbers that stay as they are.
        words: What may stand in it, each of which becomes a column of zeros and ones; None for a
            column of numbers.
        read: Whether the words were read from the rows, and not stated.
        stand_in: What stands in the place of a missing value; None where none may be missing.
        indicator: Whether a further column of zeros and ones says where a value is missing.
    """

    name: str
    range: tuple[float, float] | None = None
    words: tuple[str, ...] | None = None
    read: bool = False
    stand_in: str | None = None
    indicator: bool = False

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return (1 if self.words is None else len(self.words)) + self.indicator


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How a row of the user's became an input of the model. It holds no row.

    Args:
        shape: Shape of one input, without the rows.
        dtype: Type of the inputs, such as "float32".
        columns: The columns of a table that are features, in their order; None where the inputs
            were arrays.
        scale: Public lowest and highest values of arrays, one each or one for each number of an
            input, flat; None where they stay as they are.
        order: The place, in the user's order, of each column of the inputs; None for the same.
        classes: The names of the classes, by their numbers; None where they have numbers alone.
        classes_read: Whether the names were read from the rows, and not stated.
        values: Whether the targets were real values, or several to a row, so that outputs name no
            class by themselves.
        label: The column of a table that held the class; empty where there was none.
        delimiter: What stands between two values of the table.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    columns: tuple[Column, ...] | None = None
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    order: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    classes_read: bool = False
    values: bool = False
    label: str = ""
    delimiter: str = ","

    @property
    def read(self) -> tuple[str, ...]:
        """What was read from the rows rather than stated, in words."""
        named = [f"the words of column {c.name!r}" for c in self.columns or () if c.read]
        return (*named, *(("the names of the classes",) if self.classes_read else ()))


def encoder_of(inputs: Tensor, targets: Tensor | None, known: Encoder | None) -> Encoder:
    """The encoder of inputs; one that knows their shape and type alone where nothing is known.

    Args:
        inputs: Shape `(rows, ...)`; looked at for their shape and type alone.
        targets: Looked at for their shape and type alone; None where there are none.
        known: What a loader says of how they were made. It is not believed where its shape is
            another one: the inputs were changed since.
    """
    shape, dtype = tuple(inputs.shape[1:]), str(inputs.dtype).removeprefix("torch.")
    several = targets is not None and targets.numel() > len(targets)
    values = targets is not None and (targets.is_floating_point() or several)
    if known is None or known.shape != shape:
        return Encoder(shape=shape, dtype=dtype, values=values)
    return replace(known, dtype=dtype, values=values)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is made again, in plain values that a file can hold.

    Args:
        factory: What made the model: name and arguments where it is one of `pt.data`, else how it
            prints, as `data.factories` writes it.
        seed: The public seed from which its initial values came.
        encoder: How its inputs were made.
    """

    factory: Mapping[str, Any]
    seed: int
    encoder: Encoder
