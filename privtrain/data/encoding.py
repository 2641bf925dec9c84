"""New rows as inputs of a model that was kept: by the columns and constants it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.recipe import Column, Encoder
from privtrain.data.arrays import npz_arrays, scaled
from privtrain.data.constants import Category, Number
from privtrain.data.files import Place, in_range, one_hot, parse
from privtrain.data.frames import texts_of
from privtrain.data.numbers import Array, to_inputs, to_numbers
from privtrain.data.samples import columns_of, values_of
from privtrain.data.spelling import is_missing
from privtrain.data.tables import Table, read_table

_WHOLE = {
    name: getattr(torch, name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")
}
_REAL = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
_TYPES: Mapping[str, torch.dtype] = {**_REAL, **_WHOLE}


def encode(encoder: Encoder, rows: Any) -> Tensor:
    """New rows as inputs of a model.

    Args:
        encoder: How the inputs of the model were made.
        rows: The path of a `.csv` or `.tsv` file whose first line names the columns, in any order,
            or of an `.npz` file with an array `x`; a frame or mapping with columns by name; or an
            array, shape `(rows, ...)`. Values as they are in the world, not scaled.

    Returns:
        Shape `(rows, ...)`.

    Raises:
        DataError: If a column is missing, a word is not known, a value is missing, or the shape is
            another one. The message says where.
    """
    if isinstance(rows, (str, Path)):
        path = Path(rows)
        if path.suffix.lower() == ".npz":
            return _of_npz(encoder, path)
        if path.suffix.lower() not in (".csv", ".tsv"):
            raise DataError(f"Expected data={str(path)!r} to be the path of a .csv or .npz file.")
        columns = _columns(encoder, str(path))
        sign = "\t" if path.suffix.lower() == ".tsv" else encoder.delimiter
        return _of_table(encoder, columns, read_table(path, sign))
    # Lists of lists are arrays, as they are to `from_arrays`.
    if encoder.columns is not None and not isinstance(rows, (Tensor, np.ndarray, list, tuple)):
        return _of_table(encoder, encoder.columns, _in_memory(rows, encoder.columns))
    if isinstance(rows, Mapping):
        _columns(encoder, "rows")
    return _of_array(encoder, rows, "rows")


def _in_memory(rows: Any, columns: tuple[Column, ...]) -> Table:
    """A table in memory as text, as `from_frame` reads it; further columns may hold anything."""
    found, texts = columns_of(rows, "rows"), {}
    for column in columns:
        if column.name in found:
            stated = () if column.words is None or column.read else column.words
            truths = not {"True", "False"} & {*stated}
            texts[column.name] = texts_of(column.name, values_of(found[column.name]), truths)
    lengths = {name: len(values) for name, values in texts.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise DataError(f"Expected rows to have columns of one length, and rows; not {lengths}.")
    rows_there = next(iter(lengths.values()), 0)
    columns_there = {name: texts.get(name, ()) for name in found}
    missing = [c.name for c in columns if c.name not in found]
    return Table(columns_there if missing else texts, Place("rows", range(rows_there), "row"))


def _columns(encoder: Encoder, what: str) -> tuple[Column, ...]:
    if encoder.columns is None:
        raise DataError(
            f"The model was trained on arrays with rows of shape {encoder.shape}, whose columns "
            f"have no names by which {what} could be read. Give an array, or an .npz file with an "
            "array x."
        )
    return encoder.columns


def _of_table(encoder: Encoder, columns: tuple[Column, ...], table: Table) -> Tensor:
    what = str(table.place.path)
    missing = [column.name for column in columns if column.name not in table.columns]
    if missing:
        raise DataError(
            f"{what} lacks {len(missing)} of the {len(columns)} columns that the model was "
            f"trained on: {', '.join(map(repr, missing))}. It has {', '.join(table.columns)}."
        )
    blocks = [_block(table, column, encoder.dtype in _WHOLE) for column in columns]
    return _finished(encoder, torch.from_numpy(np.concatenate(blocks, axis=1)), what)


def _block(table: Table, column: Column, whole: bool) -> NDArray[np.float64]:
    values = table.columns[column.name]
    stated = () if column.words is None or column.read else column.words
    absent = [is_missing(value) and value not in stated for value in values]
    if column.stand_in is not None:
        pairs = zip(absent, values, strict=True)
        values = [column.stand_in if gone else value for gone, value in pairs]
    if column.words is not None:
        # A word that no row had when the model was trained has no place in its inputs.
        further = (column.stand_in,) if column.indicator and column.stand_in is not None else ()
        return one_hot(values, Category(column.name, (*column.words, *further)), table.place)
    parsed = np.array([parse(value) for value in values])
    if not np.isfinite(parsed).all():
        row = int(np.argmin(np.isfinite(parsed)))
        raise table.place.error(row, column.name, values[row], "a finite number")
    # Up to 2^53 floats have kept all digits of whole numbers.
    right = (parsed == np.floor(parsed)) & (abs(parsed) <= 2**53)
    if whole and not right.all():
        row = int(np.argmin(right))
        raise table.place.error(row, column.name, values[row], "a whole number")
    block = parsed[:, None]
    if column.range is not None:
        block = in_range(values, Number(column.name, *column.range), table.place)
    return (
        np.column_stack([block, np.array(absent, dtype=np.float64)]) if column.indicator else block
    )


def _of_npz(encoder: Encoder, path: Path) -> Tensor:
    (array,) = npz_arrays(path, ("x",))
    return _of_array(encoder, array, f"x of {path}")


def _of_array(encoder: Encoder, rows: Array, name: str) -> Tensor:
    if encoder.columns is not None:
        names = ", ".join(column.name for column in encoder.columns[:4])
        raise DataError(
            f"The model was trained on a table with columns by name ({names}, ...), and an array "
            "has none. Give the path of a .csv file with these columns."
        )
    if encoder.dtype in _WHOLE:
        return _finished(encoder, torch.from_numpy(np.array(to_numbers(rows, name))), name)
    wide = torch.float64 if encoder.dtype == "float64" else torch.float32
    return _finished(encoder, to_inputs(rows, wide, name), name)


def _finished(encoder: Encoder, values: Tensor, name: str) -> Tensor:
    """Values as the model takes them: of its type, scaled, columns in the order of the parties."""
    if tuple(values.shape[1:]) != encoder.shape:
        raise DataError(
            f"Expected {name} with rows of shape {tuple(values.shape[1:])} to have rows of shape "
            f"{encoder.shape}, as the model was trained on."
        )
    # In the type of the inputs before they are scaled, as they were for training: the same bits.
    inputs = values.to(_TYPES[encoder.dtype])
    if encoder.dtype in _WHOLE:
        _check_whole(values, inputs, name)
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"Expected {name} to hold numbers that fit {encoder.dtype}; one does not.")
    if encoder.scale is not None:
        low, high = (
            np.reshape(end, encoder.shape if len(end) > 1 else ()) for end in encoder.scale
        )
        inputs = scaled(inputs, (low, high))
    return inputs if encoder.order is None else inputs[:, list(encoder.order)]


def _check_whole(values: Tensor, inputs: Tensor, name: str) -> None:
    """Refuses numbers that became others, such as 1.5 or, of uint8, 300."""
    changed = (inputs.to(values.dtype) != values).nonzero()
    if len(changed):
        row, *place = changed[0].tolist()
        raise DataError(
            f"Expected {name} to hold whole numbers that fit {inputs.dtype}, as the model was "
            f"trained on; row {row}, column {place[0] if len(place) == 1 else tuple(place)} is "
            f"{values[(row, *place)].item()}."
        )


def encoder_to_plain(encoder: Encoder) -> dict[str, Any]:
    """The encoder as what JSON can hold."""
    columns = encoder.columns
    return {
        "shape": list(encoder.shape),
        "dtype": encoder.dtype,
        "columns": None if columns is None else [_column_to_plain(each) for each in columns],
        "scale": None if encoder.scale is None else [list(end) for end in encoder.scale],
        "order": None if encoder.order is None else list(encoder.order),
        "classes": None if encoder.classes is None else list(encoder.classes),
        "classes_read": encoder.classes_read,
        "values": encoder.values,
        "label": encoder.label,
        "delimiter": encoder.delimiter,
    }


def _column_to_plain(column: Column) -> dict[str, Any]:
    made: dict[str, Any] = {"name": column.name}
    if column.stand_in is not None:
        made |= {"missing": column.stand_in, "indicator": column.indicator}
    if column.range is not None:
        made["range"] = list(column.range)
    if column.words is not None:
        made |= {"words": list(column.words), "read_from_rows": column.read}
    return made


def encoder_from_plain(plain: Mapping[str, Any]) -> Encoder:
    """The encoder that plain values stand for; the inverse of `encoder_to_plain`.

    Raises:
        ValueError: If a value is of another kind, or the parts do not fit together.
        KeyError: If one is missing.
    """
    columns, scale, order = plain["columns"], plain["scale"], plain["order"]
    shape = tuple(_whole(length) for length in plain["shape"])
    made = Encoder(
        shape=shape,
        dtype=_one_of(_TYPES, plain["dtype"]),
        columns=None if columns is None else tuple(_column(each) for each in columns),
        scale=None if scale is None else _scale(scale, shape),
        order=None if order is None else tuple(_whole(place) for place in order),
        classes=None if plain["classes"] is None else tuple(map(_text, plain["classes"])),
        classes_read=plain["classes_read"] is True,
        # Folders of earlier versions say nothing of it.
        values=plain.get("values") is True,
        label=_text(plain["label"]),
        delimiter=_text(plain["delimiter"]),
    )
    width = sum(column.width for column in made.columns or ())
    if made.columns is not None and shape != (width,):
        raise ValueError(f"its columns make {width} inputs, and their shape is {shape}")
    if made.order is not None and (len(shape) != 1 or sorted(made.order) != list(range(shape[0]))):
        raise ValueError("its order of columns is none")
    if len(made.delimiter) != 1:
        raise ValueError(f"its delimiter is {made.delimiter!r}")
    return made


def _column(plain: Mapping[str, Any]) -> Column:
    limits, words = plain.get("range"), plain.get("words")
    return Column(
        name=_text(plain["name"]),
        range=None if limits is None else _limits(limits),
        words=None if words is None else tuple(map(_text, words)),
        read=plain.get("read_from_rows") is True,
        stand_in=None if "missing" not in plain else _text(plain["missing"]),
        indicator=plain.get("indicator") is True,
    )


def _limits(plain: Any) -> tuple[float, float]:
    low, high = map(_number, plain)
    if not low < high:
        raise ValueError(f"its range {plain!r} has no lowest value below a highest one")
    return low, high


def _scale(plain: Any, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = (tuple(map(_number, end)) for end in plain)
    if any(len(end) not in (1, int(np.prod(shape))) for end in (low, high)):
        raise ValueError(f"its scale does not fit inputs of shape {shape}")
    return low, high


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _one_of(known: Mapping[str, Any], value: Any) -> str:
    if _text(value) not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is no text")
    return value
