"""No share, mask, key or value is printed: not by any part of the engines, in an error or a log."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

import privtrain.mpc

SECRET = ("Tensor", "Shared", "ndarray", "bytes", "bytearray", "memoryview", "Keystream")
"""Types, by name, of fields that may hold a secret."""

PUBLIC = {
    # Initial weights, which everybody knows.
    ("Linear", "weight"),
    ("Linear", "bias"),
    ("Conv2d", "weight"),
    ("Conv2d", "bias"),
}


def parts() -> Iterator[type]:
    for found in pkgutil.walk_packages(privtrain.mpc.__path__, "privtrain.mpc."):
        if ".crypten" in found.name:
            continue  # needs an extra, and its values are CrypTen's
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name:
                yield value


PARTS = sorted(
    {part for part in parts() if dataclasses.is_dataclass(part)}, key=lambda p: p.__name__
)


def printed_secrets(part: type) -> list[str]:
    """Fields of a part that its `repr` shows and that may hold a secret."""
    shown = []
    for each in dataclasses.fields(part):
        words = str(each.type).replace("|", " ").replace("[", " ").replace("]", " ").split()
        names = {word.rpartition(".")[2].strip("'>,") for word in words}
        if (
            each.repr
            and "Callable" not in names
            and names & set(SECRET)
            and (part.__name__, each.name) not in PUBLIC
        ):
            shown.append(each.name)
    return shown


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_no_part_prints_what_it_holds(part: type) -> None:
    assert printed_secrets(part) == []


def test_a_part_that_prints_is_seen() -> None:
    @dataclasses.dataclass
    class Careless:
        key: bytes
        masks: Sequence[Tensor] | None
        bits: NDArray[np.uint8]
        size: int

    assert printed_secrets(Careless) == ["key", "masks", "bits"]
    assert len(PARTS) > 15
