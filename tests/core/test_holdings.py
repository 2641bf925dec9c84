"""Who holds what: counted for a few parties, never loaded for a million."""

import builtins
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.holdings import COUNTED, SHOWN, Holdings
from privtrain.core.task import Rows


def rows(*labels: int, columns: int = 2) -> Rows:
    return Rows(torch.zeros(len(labels), columns), torch.tensor(labels, dtype=torch.int64))


def held(train: Mapping[str, Rows], by_columns: bool = False) -> Holdings:
    parts = {"test": rows(0, 1), "validation": None, "public": rows(1)}
    return Holdings.of("mine", train, parts, by_columns=by_columns, lines=("one <line>",))


def test_rows_and_classes() -> None:
    holdings = held({"a": rows(0, 2, 2), "b": rows(0)})
    assert list(holdings.table()) == [
        ("party", "rows", "class 0", "class 1", "class 2"),
        ("a", "3", "1", "0", "2"),
        ("b", "1", "1", "0", "0"),
    ]
    assert holdings.title == (
        "mine: 2 parties, 4 training rows of shape (2,) and type float32; test 2, public 1"
    )
    assert holdings.text().splitlines()[2] == "a         3        1        0        2"
    assert "one &lt;line&gt;" in holdings.html()


def test_columns_and_targets_that_are_no_classes() -> None:
    holdings = held({"a": rows(0, 1, columns=3), "b": rows(0, 1)}, by_columns=True)
    assert list(holdings.table())[1:] == [("a", "2", "3"), ("b", "2", "2")]
    assert "2 training rows" in holdings.title
    values = Rows(torch.zeros(2, 2), torch.rand(2))
    for other in (values, Rows(torch.zeros(2, 2)), rows(0, -1), rows(0, 10**6), rows(*range(40))):
        assert held({"a": other}).classes == 0
        assert next(held({"a": other}).table()) == ("party", "rows")


class Counting(Mapping[str, Rows]):
    def __init__(self, count: int) -> None:
        self.count, self.loaded = count, 0

    def __getitem__(self, party: str) -> Rows:
        self.loaded += 1
        return rows(0, 1)

    def __iter__(self) -> Iterator[str]:
        return (f"party-{n}" for n in range(self.count))

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize(("count", "loaded"), [(COUNTED, COUNTED), (10**6, SHOWN)])
def test_many_parties_are_not_loaded(count: int, loaded: int) -> None:
    train = Counting(count)
    text = held(train).text()
    assert train.loaded == loaded
    assert f"... and {count - SHOWN:,} more" in text
    assert ("training rows" in text) == (count == loaded)


def test_pictures() -> None:
    stacked = held({"a": rows(0, 2, 2), "b": rows(0)}).plot().axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in stacked.containers]
    assert heights == [[1, 1], [0, 0], [2, 0]]
    assert [bar.get_y() for bar in stacked.containers[2]] == [1, 1]
    plain = held({"a": Rows(torch.zeros(5, 2))}).plot().axes[0]
    assert [bar.get_height() for bar in plain.patches] == [5]
    columns = held({"a": rows(0, 1, columns=3)}, by_columns=True).plot().axes[0]
    assert [bar.get_height() for bar in columns.patches] == [3]
    assert columns.get_ylabel() == "columns"
    assert len(held(Counting(60)).plot().axes[0].get_xticks()) == 0


def test_without_matplotlib_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return usual(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedError, match=r'pip install "privtrain\[plots\]"'):
        held({"a": rows(0)}).plot()
