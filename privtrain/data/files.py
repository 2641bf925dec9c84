"""Files of known data sets: finding them, and reading the formats of MNIST and Adult."""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.data.constants import ADULT_COLUMNS, ADULT_LABELS, Category, Number

VARIABLE = "PRIVTRAIN_DATA"
"""Environment variable with the directory of data files."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a data set, and where to look for them.

    Args:
        name: What the data set is called.
        folders: Folders below the directory, in the order in which they are tried.
        files: Names of the files; each may also end in `.gz`.
        origin: How to get them.
    """

    name: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    origin: str


MNIST = Source(
    name="MNIST",
    folders=("mnist", "", "MNIST/raw"),
    files=(
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ),
    origin="https://ossci-datasets.s3.amazonaws.com/mnist/ (the four .gz files)",
)

ADULT = Source(
    name="Adult",
    folders=("adult", ""),
    files=("adult.data", "adult.test"),
    origin="https://archive.ics.uci.edu/dataset/2/adult (unpack the archive)",
)


def locate(source: Source, directory: str | Path | None) -> tuple[Path, ...]:
    """The paths of the files of a data set.

    Args:
        source: What is looked for.
        directory: Where; else the directory that `PRIVTRAIN_DATA` names.

    Returns:
        One path for each of the source's files, in their order, all in the same folder.

    Raises:
        DataError: If no directory is known, or a file is missing; the message says which, where
            it was looked for, and how to get it.
    """
    given = directory if directory is not None else os.environ.get(VARIABLE)
    wanted = ", ".join(source.files)
    if not given:
        raise DataError(
            f"{source.name} is read from files, and no directory is known. Give directory=... or "
            f"set {VARIABLE}. It should hold {wanted}, gzipped or not, directly or in a folder "
            f"{source.folders[0]!r}. Get them from {source.origin}."
        )
    root = Path(given).expanduser()
    best: list[Path] = []
    # All files come from one folder: images of one download beside labels of another would fit in
    # number and be wrong.
    for folder in source.folders:
        candidates = [_existing(root / folder / file) for file in source.files]
        paths = [path for path in candidates if path is not None]
        if len(paths) == len(source.files):
            return tuple(paths)
        # The fullest folder is the one that was meant: the message names what it lacks.
        best = max(best, paths, key=len)
    present = {path.name.removesuffix(".gz") for path in best}
    missing = ", ".join(file for file in source.files if file not in present)
    looked = ", ".join(str(root / folder) for folder in source.folders)
    raise DataError(
        f"{source.name} lacks {missing} (also not with .gz). Looked in {looked}. Get the files "
        f"from {source.origin} and name their directory with directory=... or {VARIABLE}."
    )


def _existing(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, gzipped) if candidate.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """The contents of a file, unpacked where its name ends in `.gz`.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, or the archive is damaged.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Could not read {path}: {error or 'it ends too early'}. Get the file again."
        ) from error


_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """The values of an IDX file of bytes.

    Args:
        path: The file, gzipped or not.

    Returns:
        Type uint8, in the shape that the file's header states.

    Raises:
        DataError: If the file is no such file, or its size does not fit its header.

    Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    data = read_bytes(path)
    # The header: two zero bytes, the type of the values, the number of dimensions, then the length
    # of each dimension as a big-endian integer of four bytes.
    if len(data) < 4 or data[:2] != b"\x00\x00" or data[2] != _UNSIGNED_BYTE or data[3] == 0:
        raise DataError(
            f"{path} is no IDX file of bytes: it begins with {data[:4].hex() or 'nothing'}, not "
            "with 000008 and the number of dimensions. Get the file again."
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    # Exactly: a shorter file was cut off while it was copied, a longer one has another header.
    if len(data) != start + math.prod(shape):
        raise DataError(
            f"{path} holds {len(data)} bytes; its header states the shape {tuple(shape)}, which "
            f"takes {start + math.prod(shape)}. The file is damaged: get it again."
        )
    values = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    # A copy: an array over bytes is read-only, and torch has no tensors that are.
    return torch.from_numpy(values.copy())


def read_mnist(directory: str | Path | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The images and labels of the four files of MNIST.

    Args:
        directory: Where they lie; else the directory that `PRIVTRAIN_DATA` names.

    Returns:
        For "train" and "test" the images, uint8 of shape `(rows, 28, 28)`, and the labels, int64
        of shape `(rows,)`.

    Raises:
        DataError: If a file is missing or damaged.
    """
    paths = locate(MNIST, directory)
    images: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    pairs = (("train", paths[0], paths[1]), ("test", paths[2], paths[3]))
    for part, pictures, answers in pairs:
        images[part], labels[part] = read_idx(pictures), read_idx(answers).long()
        if images[part].shape[1:] != (28, 28):
            raise DataError(
                f"{pictures} holds the shape {tuple(images[part].shape)}, not (rows, 28, 28)."
            )
        if labels[part].shape != images[part].shape[:1] or len(labels[part]) == 0:
            raise DataError(
                f"{answers} holds the shape {tuple(labels[part].shape)}; {pictures.name} holds "
                f"{len(images[part])} images. The files do not belong together."
            )
        if int(labels[part].max()) > 9:
            raise DataError(f"{answers} holds the label {int(labels[part].max())}, above 9.")
    return images, labels


Table = tuple[NDArray[np.float64], NDArray[np.int64]]


def read_adult(directory: str | Path | None) -> tuple[Table, Table]:
    """The training and test rows of the two files of Adult.

    Args:
        directory: Where they lie; else the directory that `PRIVTRAIN_DATA` names.

    Returns:
        Training and test rows: features of shape `(rows, 108)` in [0, 1], classes `(rows,)`.

    Raises:
        DataError: If a file is missing or damaged.
    """
    train, test = locate(ADULT, directory)
    return _adult_table(train), _adult_table(test)


def _adult_table(path: Path) -> Table:
    lines, records = [], []
    # A byte that is no UTF-8 becomes a word that is in no list, and is reported with its line.
    text = read_bytes(path).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        # The test file begins with a comment; both end with an empty line.
        if not line.strip() or line.startswith("|"):
            continue
        record = [field.strip() for field in line.split(",")]
        if len(record) != len(ADULT_COLUMNS) + 1:
            raise DataError(
                f"{path}, line {number}: expected {len(ADULT_COLUMNS) + 1} fields, not "
                f"{len(record)}. The file is damaged: get it again."
            )
        lines.append(number)
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no records. Get the file again.")
    *columns, labels = zip(*records, strict=True)
    place = Place(path, lines)
    blocks = [
        one_hot(values, column, place)
        if isinstance(column, Category)
        else in_range(values, column, place)
        for column, values in zip(ADULT_COLUMNS, columns, strict=True)
    ]
    # Labels of the test file end in a full stop.
    words = [label.removesuffix(".") for label in labels]
    targets = one_hot(words, Category("label", ADULT_LABELS), place).argmax(axis=1)
    return np.concatenate(blocks, axis=1), targets


@dataclass(frozen=True)
class Place:
    """The file and the lines that a column's values come from, for messages.

    Args:
        path: The file, or what messages call a table that is none.
        lines: The line of each row, from 1, or its number.
        word: What the numbers count.
    """

    path: Path | str
    lines: Sequence[int]
    word: str = "line"

    def error(self, row: int, column: str, value: str, expected: str) -> DataError:
        """The error for a value that is not as expected."""
        return DataError(
            f"{self.path}, {self.word} {self.lines[row]}, column {column!r}: expected {expected}, "
            f"not {value!r}."
        )


ABSENT = "\0"
"""Stands for a missing value in a column of words that has a further column for it."""


def one_hot(values: Sequence[str], column: Category, place: Place) -> NDArray[np.float64]:
    """One column of zeros and ones for each word.

    Args:
        values: The words, one a row.
        column: Which words there are.
        place: Where the words come from.

    Returns:
        Shape `(rows, words)`.

    Raises:
        DataError: If a word is not in the list.
    """
    # By the public list alone: which words occur, and how many, follows from no row.
    position = {word: number for number, word in enumerate(column.values)}
    codes = np.array([position.get(value, -1) for value in values], dtype=np.int64)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        words = [word for word in column.values if word != ABSENT]
        listed = ", ".join(map(repr, words[:8]))
        raise place.error(row, column.name, values[row], f"one of {listed}")
    return np.eye(len(column.values))[codes]


def in_range(values: Sequence[str], column: Number, place: Place) -> NDArray[np.float64]:
    """Numbers clamped to their public range and mapped to [0, 1].

    Args:
        values: The numbers as text, one a row.
        column: Their range.
        place: Where the numbers come from.

    Returns:
        Shape `(rows, 1)`.

    Raises:
        DataError: If a text is no finite number.
    """
    parsed = np.array([parse(value) for value in values])
    if not np.isfinite(parsed).all():
        row = int(np.argmin(np.isfinite(parsed)))
        raise place.error(row, column.name, values[row], "a finite number")
    # Clamped rather than refused: whether a value lies beyond a public range is private.
    clamped = np.clip(parsed, column.low, column.high)
    return np.asarray((clamped - column.low) / (column.high - column.low))[:, None]


def parse(text: str) -> float:
    """The number that a text stands for, or NaN."""
    try:
        # Python reads 1_0 as ten, and no table means that by it.
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan
