"""The price of epsilon: what the scenario prints follows from its table."""

from pathlib import Path

import pytest

import privtrain as pt
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


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRIVTRAIN_DATA", raising=False)
    with pytest.raises(pt.DataError, match=r"adult\.data"):
        census.compare(census.Args(directory=tmp_path))
