"""Datasets of pairs, and named columns of other libraries, by what they can do."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from privtrain.core.errors import DataError
from privtrain.data.samples import columns_of, pair_of, values_of

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
PAIRS = TensorDataset(X, Y)


class Hub:
    """What a data set of Hugging Face can do."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._columns[key]
        return {name: column[key] for name, column in self._columns.items()}


class Arrow:
    """What a table of Arrow can do: `columns` are the columns, which have no hash."""

    column_names: ClassVar = ["a", "y"]
    columns: ClassVar = [[1, 2], [0, 1]]

    def __getitem__(self, name: str) -> "ArrowColumn":
        return ArrowColumn(self.columns[self.column_names.index(name)])


class ArrowColumn:
    def __init__(self, values: list[int]) -> None:
        self._values = values

    def to_pylist(self) -> list[int]:
        return self._values


class Dicts:
    """A Dataset whose rows are dicts."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"ids": [row, row + 1], "label": "ab"[row % 2]}


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield 1


def same(found: tuple[Any, Any], inputs: Any, targets: Any) -> None:
    assert np.array_equal(np.asarray(found[0]), np.asarray(inputs))
    assert list(found[1]) == list(targets)


def test_datasets_of_pairs() -> None:
    same(pair_of(PAIRS, None, "inputs"), X, Y.tolist())
    same(pair_of(Subset(PAIRS, [1, 2]), None, "inputs"), X[1:3], [1, 2])
    same(pair_of(ConcatDataset([PAIRS, PAIRS]), None, "inputs"), torch.cat([X, X]), [*Y, *Y])
    words = [(np.ones(3), "ab"[n % 2]) for n in range(4)]
    same(pair_of(words, None, "inputs"), np.ones((4, 3)), ["a", "b", "a", "b"])
    tokens = [(torch.tensor([n, 2]), torch.tensor([1])) for n in range(3)]
    found, _ = pair_of(tokens, None, "inputs")
    assert np.asarray(found).dtype == np.int64


def test_named_columns() -> None:
    hub = Hub(ids=[[1, 2], [3, 4]], label=["a", "b"])
    same(pair_of(hub, "label", "inputs"), [[1, 2], [3, 4]], ["a", "b"])
    same(pair_of({"x": X, "y": Y}, "y", "inputs"), X, Y)
    same(pair_of({"a": [1, 2], "y": [0, 1], "b": [3.5, 4]}, "y", "i"), [[1, 3.5], [2, 4]], [0, 1])
    same(pair_of(Dicts(), "label", "inputs"), [[n, n + 1] for n in range(6)], "ababab")
    same(pair_of({"a": [1, 2], "y": [0, 1]}, "y", "inputs"), [[1], [2]], [0, 1])
    same(pair_of(Arrow(), "y", "inputs"), [[1], [2]], [0, 1])


def test_arrays_stay_what_they_are() -> None:
    assert pair_of(X, Y, "inputs") == (X, Y)
    assert values_of(X) is X
    assert values_of(np.array([1, None], dtype=object)) == [1, None]


@pytest.mark.parametrize(
    ("source", "targets", "message"),
    [
        (X, None, r"Expected targets beside inputs"),
        ([[1.0, 2.0], [3.0, 4.0]], None, "row 0 is a list"),
        (DataLoader(PAIRS), None, r"loader\.dataset"),
        (Endless(), None, "map-style"),
        (iter([1]), None, "map-style"),
        (3, None, "map-style"),
        (TensorDataset(X), None, "row 0 is a tuple"),
        (TensorDataset(X, X, Y), None, "a pair of inputs and a target"),
        (Subset(PAIRS, []), None, "holds none"),
        ([(np.ones(2), 0), (np.ones(3), 1)], None, r"row 0 has \(2,\), row 1 has \(3,\)"),
        (Dicts(), None, "with ids, label"),
        (Dicts(), "absent", "no column 'absent'.*ids, label"),
        ({"y": Y}, "y", "no column beside 'y'"),
        ({"x": X, "z": X, "y": Y}, "y", "Give one column of arrays"),
        ({"x": [1, 2], "z": [1], "y": [0, 1]}, "y", "equally many"),
        ({"x": X}, Y, "Give one of its values"),
        (PAIRS, "y", "its rows are of type tuple"),
        ({"train": Hub(a=[1]), "test": Hub(a=[1])}, "a", r"not several \(train, test\)"),
        ({1: [1], "1": [2], "y": [0]}, "y", "column '1' twice"),
        ({"a": ["x"], "b": [1], "y": [0]}, "y", r"inputs\['a'\].*from_frame"),
    ],
)
def test_what_has_no_pairs_is_refused_by_name(source: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair_of(source, targets, "inputs")


def test_columns_keep_their_order() -> None:
    assert list(columns_of(Hub(b=[1], a=[2]), "frame")) == ["b", "a"]
