"""Data sets by name or path, as the command line names them."""

import os
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from privtrain.core.task import FederatedData, Task
from privtrain.core.validate import check_member
from privtrain.data.arrays import from_arrays, from_npz
from privtrain.data.datasets import adult, breast_cancer, digits, mnist
from privtrain.data.frames import from_frame
from privtrain.data.partition import parse_partition
from privtrain.data.reading import from_csv

Loader = Callable[..., tuple[Task, FederatedData]]

_KNOWN: dict[str, Loader] = {
    "adult": adult,
    "breast_cancer": breast_cancer,
    "digits": digits,
    "mnist": mnist,
}
_FILES: dict[str, Loader] = {".csv": from_csv, ".tsv": from_csv, ".npz": from_npz}
_TYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


def names() -> tuple[str, ...]:
    """Names of the known data sets, sorted."""
    return tuple(sorted(_KNOWN))


def load(name: Any, /, **options: Any) -> tuple[Task, FederatedData]:
    """Loads a known data set by its name, or own data by the path of a file or from memory.

    Args:
        name: One of `names()`, the path of a `.csv`, `.tsv` or `.npz` file, or a table in memory
            for `from_frame`.
        options: What the loader takes. A `partition` may also be text for `parse_partition`, a
            `dtype` "float32", "float64" or "int64".

    Returns:
        The task and the data.

    Raises:
        ValueError: If the name is neither known nor such a path, or an option is not known.
        DataError: If the data cannot be used.
    """
    if not isinstance(name, (str, os.PathLike)):
        loader: Loader | None = from_frame
    else:
        loader = _KNOWN.get(str(name)) or _FILES.get(Path(name).suffix.lower())
    if loader is None:
        raise ValueError(
            f"Expected data={str(name)!r} to be one of {', '.join(names())}, or the path of a "
            ".csv, .tsv or .npz file."
        )
    if isinstance(partition := options.get("partition"), str):
        options["partition"] = parse_partition(partition)
    if isinstance(dtype := options.get("dtype"), str):
        check_member(_TYPES, dtype=dtype)
        options["dtype"] = _TYPES[dtype]
    _check_options(loader, options)
    try:
        # Loaders of files take the path first; a known set is found by its name alone.
        known = isinstance(name, (str, os.PathLike)) and str(name) in _KNOWN
        return loader(**options) if known else loader(name, **options)
    # What a loader trips over when an option is of another type than it expects.
    except (TypeError, AttributeError, OverflowError) as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(
            f"{loader.__name__} cannot use its options {given}: {error}. Give each of them in the "
            "form that its documentation states."
        ) from error


def _check_options(loader: Loader, options: dict[str, Any]) -> None:
    # Checked here, since `options` comes from a study file: Python's own TypeError would name
    # neither the loader's options nor the value that was given.
    parameters = signature(loader).parameters
    allowed = set(parameters) - {"path", "frame", "options"}
    # Loaders of files pass their other options on to `from_arrays`.
    if "options" in parameters:
        allowed |= set(signature(from_arrays).parameters) - {"inputs", "targets"}
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(
                f"{loader.__name__} takes no option {option}={value!r}; it takes "
                f"{', '.join(sorted(allowed))}."
            )
