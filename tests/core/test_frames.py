"""Results as frames of pandas."""

import sys

import pytest

from privtrain.core.errors import UnsupportedError
from privtrain.core.result import Comparison, History, Row


def test_a_history_has_a_row_for_each_round() -> None:
    pytest.importorskip("pandas")
    history = History(unprotected={"loss": [(1, 0.5), (3, 0.25)]}, epsilon=[(2, 1.0), (3, 2.0)])
    frame = history.to_frame()
    assert list(frame.columns) == ["round", "epsilon", "unprotected_loss"]
    assert frame["round"].tolist() == [1, 2, 3]
    assert frame["unprotected_loss"].isna().tolist() == [False, True, False]
    assert frame["epsilon"].tolist()[1:] == [1.0, 2.0]
    assert History().to_frame().empty


def test_a_comparison_made_by_hand_has_its_main_columns() -> None:
    pytest.importorskip("pandas")
    rows = (
        Row(trainer="sgd", label="a", seed=0, accuracy=0.5),
        Row(trainer="sgd", label="b", seed=1),
    )
    frame = Comparison(rows=rows, card={}).to_frame()
    assert frame["label"].tolist() == ["a", "b"]
    assert frame["accuracy"].isna().tolist() == [False, True]


def test_without_pandas_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for made in (History(), Comparison(rows=(), card={})):
        with pytest.raises(UnsupportedError, match="pip install pandas"):
            made.to_frame()
