"""Tables in memory give the rows that the same table in a file gives."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData
from privtrain.data import from_csv, from_frame, load
from tests.data.test_samples import Dicts, Hub

CITIES, COUNT = ("Rome", "Oslo", "Bern"), 60


def people() -> dict[str, list[Any]]:
    return {
        "age": [20 + n % 50 for n in range(COUNT)],
        "income": [None if n % 7 == 0 else 1000.5 + n for n in range(COUNT)],
        "city": [CITIES[n % 3] for n in range(COUNT)],
        "y": ["yes" if n % 4 else "no" for n in range(COUNT)],
    }


def everything(data: FederatedData) -> torch.Tensor:
    return torch.cat([data.pooled().inputs, data.test.inputs])


class Series:
    """What a column of polars can do."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def to_list(self) -> list[Any]:
        return self._values


class Frame:
    """What a frame of pandas or polars can do."""

    def __init__(self, columns: Mapping[Any, list[Any]]) -> None:
        self._columns = columns

    @property
    def columns(self) -> list[Any]:
        return list(self._columns)

    def __getitem__(self, name: Any) -> Series:
        return Series(self._columns[name])


@pytest.mark.parametrize("missing", ["drop", "indicator", 0, {"income": -1}])
@pytest.mark.parametrize("kind", [dict, Frame, lambda columns: Hub(**columns)])
def test_it_is_the_file_in_memory(tmp_path: Path, missing: Any, kind: Any) -> None:
    columns = people()
    rows = zip(*columns.values(), strict=True)
    text = ["" if item is None else item for row in rows for item in row]
    lines = [",".join(map(str, text[n : n + 4])) for n in range(0, len(text), 4)]
    path = tmp_path / "people.csv"
    path.write_text("\n".join([",".join(columns), *lines]))
    options: dict[str, Any] = {"parties": 2, "missing": missing, "ranges": {"age": (0, 100)}}
    task, data = from_frame(kind(columns), **options)
    _, same = from_csv(path, **options)
    assert data.digest == same.digest and data.notes == same.notes
    assert torch.equal(everything(data), everything(same))
    assert task.name == "frame"


def test_truth_values_and_numbers_of_other_kinds() -> None:
    columns = {
        "b": [n % 3 == 0 for n in range(COUNT)],
        "c": [np.float32(0.5) if n % 2 else Decimal("2") for n in range(COUNT)],
        "d": np.arange(COUNT) % 5,
        "e": torch.arange(COUNT) / 4,
        "y": [bool(n % 2) for n in range(COUNT)],
    }
    _, data = from_frame(columns, parties=2)
    assert everything(data)[:, 0].unique().tolist() == [0.0, 1.0]
    assert everything(data)[:, 1].unique().tolist() == [0.5, 2.0]
    assert everything(data).shape[1] == 4
    _, listed = from_frame(columns, parties=2, categories={"b": ("False", "True")})
    assert everything(listed).shape[1] == 5
    assert not any("category" in note or "categories" in note for note in listed.notes)


def test_by_name_and_of_rows_that_are_dicts() -> None:
    assert load(people(), parties=2, drop="income")[1].name == "frame"
    with pytest.raises(DataError, match="list"):
        load(Dicts(), label="label")
    with pytest.raises(ValueError, match=r"from_frame takes no option labels"):
        load(people(), labels="y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"when": [date(2020, 1, 1)] * COUNT}, r"row 0, column 'when'.*date.*days since"),
        ({"when": np.full(COUNT, np.datetime64("2020-01-01"))}, "'when'.*a date or a duration"),
        ({"took": np.full(COUNT, np.timedelta64(3, "s"))}, "'took'.*a date or a duration"),
        ({"x": [[1, 2]] * COUNT}, r"'x'.*of type list.*from_arrays"),
        ({"x": np.ones((COUNT, 2))}, r"'x'.*of type ndarray"),
        ({"x": [1j] * COUNT}, "'x'.*of type complex"),
        ({"x": [b"a"] * COUNT}, "'x'.*of type bytes"),
        ({"x": [1, 2]}, r"'x' has 2, 'age' has 60"),
        ({"x": [1 if n % 2 else "a" for n in range(COUNT)]}, "row 0, column 'x'.*finite number"),
        ({"y": [None, *["a", "b"] * (COUNT // 2 - 1), "a"]}, "row 0, column 'y'"),
        ({"": list(range(COUNT))}, "column without a name"),
    ],
)
def test_what_is_neither_number_nor_word_is_named(changes: Any, message: str) -> None:
    columns = people() | {"income": [1.0] * COUNT} | changes
    with pytest.raises(DataError, match=message):
        from_frame(columns, parties=2)
    # What is left out may hold anything.
    if "y" not in changes:
        from_frame(columns, parties=2, drop=list(changes))


def test_frames_without_rows_and_with_a_name_twice() -> None:
    with pytest.raises(DataError, match="holds no rows"):
        from_frame({"a": [], "y": []})
    with pytest.raises(DataError, match="'1' twice"):
        from_frame(Frame({1: [1], "1": [2], "y": [0]}))
    with pytest.raises(DataError, match=r"no column 'z', which label= names.*age, income"):
        from_frame(people(), label="z")


def test_frames_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(people())
    frame["whole"] = pandas.array([None if n % 9 == 0 else n % 4 for n in range(COUNT)], "Int64")
    frame["kind"] = pandas.Categorical(["u" if n % 2 else "v" for n in range(COUNT)])
    path = tmp_path / "people.csv"
    frame.to_csv(path, index=False)
    options: dict[str, Any] = {"parties": 2, "missing": "indicator"}
    _, data = from_frame(frame, **options)
    _, same = from_csv(path, **options)
    assert torch.equal(everything(data), everything(same))
    assert any("'kind'" in note for note in data.notes), "a category may be read from the rows"
    with pytest.raises(DataError, match="'when'"):
        from_frame(frame.assign(when=pandas.Timestamp("2020-01-01")), **options)
    with pytest.raises(DataError, match="'age' twice"):
        from_frame(pandas.concat([frame, frame[["age"]]], axis=1))


def test_frames_of_polars() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(people())
    _, data = from_frame(frame, parties=2, missing="drop")
    _, same = from_frame(people(), parties=2, missing="drop")
    assert data.digest == same.digest
    with pytest.raises(DataError, match=r"collect\(\)"):
        from_frame(frame.lazy())
