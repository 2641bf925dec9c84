"""The price of epsilon: what the scenario prints follows from its table."""

from pathlib import Path

import pytest

import privtrain as pt
from privtrain.core.result import Row
from scenarios import census
from tests.data.conftest import real_data


@pytest.mark.slow
def test_the_price_of_epsilon(tmp_path: Path) -> None:
    directory = real_data()
    if directory is None:
        pytest.skip("no data files: set PRIVTRAIN_DATA to the folder that holds adult/")
    out = tmp_path / "run"
    comparison = census.main(
        census.Args(directory=directory, epsilons=(0.1, 3.0), seeds=1, out=out)
    )
    pooled, little, much = comparison.rows
    assert [row.error for row in comparison.rows] == [None] * 3
    assert (pooled.accuracy or 0) > 0.84
    assert 0.76 < (little.accuracy or 0) < (much.accuracy or 0) + 0.01
    for row, epsilon in ((little, 0.1), (much, 3.0)):
        assert row.statement is not None
        assert 0.97 * epsilon < row.statement.epsilon() <= epsilon
    lines = census.reading(comparison).splitlines()
    assert len(lines) == 3 and lines[1].startswith("epsilon 0.1: ")
    assert "<svg" in (out / "report.html").read_text()


def test_each_epsilon_has_its_own_line() -> None:
    rows = [
        Row(trainer=label, label=label, seed=0, epsilon_asked=asked, accuracy=accuracy)
        for label, asked, accuracy in (
            ("pooled", None, 0.85),
            ("DP", 0.011, 0.7),
            ("DP", 0.012, 0.8),
        )
    ]
    lines = census.reading(pt.Comparison(rows=tuple(rows), card={})).splitlines()
    assert lines[1:] == [
        "epsilon 0.011: 70.0%, the price is 15.0 points.",
        "epsilon 0.012: 80.0%, the price is 5.0 points.",
    ]


def test_a_finished_census_is_not_trained_again_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(pt.DataError, match="--force"):
        census.main(census.Args(directory=tmp_path, out=tmp_path))


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRIVTRAIN_DATA", raising=False)
    with pytest.raises(pt.DataError, match=r"adult\.data"):
        census.compare(census.Args(directory=tmp_path))
