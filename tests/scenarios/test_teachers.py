"""Teachers and their student: what the scenario prints is what its statements promise."""

from pathlib import Path

import pytest

import privtrain as pt
from scenarios import teachers
from tests.data.conftest import real_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers") / "run"


@pytest.fixture(scope="module")
def comparison(folder: Path) -> pt.Comparison:
    return teachers.main(teachers.Args(teachers=30, queries=40, epsilon=30.0, out=folder))


@pytest.mark.slow
def test_every_row_is_there(comparison: pt.Comparison) -> None:
    assert [row.error for row in comparison.rows] == [None] * 3
    assert [row.label for row in comparison.rows] == ["pooled", "DP-SGD", "PATE"]


@pytest.mark.slow
def test_the_formal_epsilon_is_what_was_asked(comparison: pt.Comparison) -> None:
    pooled, dp_sgd, pate = comparison.rows
    for row, trusted in ((dp_sgd, pt.CURATOR), (pate, pt.AGGREGATOR)):
        assert row.statement is not None
        assert 28.0 < row.statement.epsilon() <= 30.0
        assert row.statement.epsilon(trusted) == float("inf")
        assert trusted in {g.observer for g in row.statement.guarantees}
        assert row.met is True
    assert pooled.statement is not None
    assert pooled.statement.epsilon() == float("inf")


@pytest.mark.slow
def test_the_data_dependent_epsilon_is_smaller_and_called_private(
    comparison: pt.Comparison,
) -> None:
    statement = comparison.rows[2].statement
    assert statement is not None
    found = [g for g in statement.guarantees if g.data_dependent]
    assert len(found) == 1
    assert found[0].epsilon < statement.epsilon()
    assert any("private" in assumption for assumption in found[0].assumptions)
    lines = teachers.reading(comparison).splitlines()
    assert len(lines) == 2
    assert f"PRIVATE, not to be published: {found[0].epsilon:.2f}" in lines[1]
    assert f"Formal epsilon to the public: {statement.epsilon():.2f}" in lines[1]


@pytest.mark.slow
def test_the_student_learned(comparison: pt.Comparison) -> None:
    assert (comparison.rows[2].accuracy or 0) > 0.8  # a guess is right once in ten


@pytest.mark.slow
def test_the_report_is_written(comparison: pt.Comparison, folder: Path) -> None:
    assert [row.label for row in pt.load(folder).rows] == [row.label for row in comparison.rows]


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRIVTRAIN_DATA", raising=False)
    with pytest.raises(pt.DataError, match="train-images"):
        teachers.load(teachers.Args(data="mnist", directory=tmp_path), 100)


@pytest.mark.slow
def test_mnist_where_the_files_are() -> None:
    directory = real_data()
    if directory is None:
        pytest.skip("no data files: set PRIVTRAIN_DATA to the folder that holds mnist/")
    task, data = teachers.load(teachers.Args(data="mnist", directory=directory), 100)
    assert data.public is not None
    # By a coin for each row.
    assert len(data.public) == pytest.approx(10_000, abs=500)
    train = sum(len(data.train[party]) for party in data.parties)
    assert train == pytest.approx(60_000 - 6_000 - 10_000, abs=500)
    assert pt.calibrate(teachers.MNIST, data, epsilon=2.0).token == "pate"
    assert sum(p.numel() for p in task.model().parameters()) == 26_010


def test_what_is_missing_for_features_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: pt.Scattering, inputs: object) -> None:
        raise pt.UnsupportedError('pip install "privtrain[scattering]"')

    monkeypatch.setattr(pt.Scattering, "__call__", missing)
    with pytest.raises(pt.UnsupportedError, match="scattering"):
        teachers.load(teachers.Args(data="mnist"), 100)
