"""Three hospitals: what the scenario prints is what its statements promise."""

import math
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.core.result import Row
from scenarios import hospitals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hospitals") / "run"


@pytest.fixture(scope="module")
def comparison(folder: Path) -> pt.Comparison:
    return hospitals.main(hospitals.Args(epochs=10, mpc_epochs=1, epsilon=2.0, out=folder))


def by_label(comparison: pt.Comparison) -> dict[str, Row]:
    return {row.label: row for row in comparison.rows}


@pytest.mark.slow
def test_every_way_is_in_the_table(comparison: pt.Comparison) -> None:
    rows = by_label(comparison)
    assert [row.error for row in rows.values()] == [None] * 8
    assert list(rows) == [
        "pooled",
        "north alone",
        "south alone",
        "west alone",
        "federated",
        "federated, DP in silos",
        "under MPC",
        "under MPC, in plaintext",
    ]
    baselines = {label: row.baseline for label, row in rows.items()}
    assert baselines.pop("under MPC") == "under MPC, in plaintext"
    assert set(baselines.values()) == {"pooled"}


@pytest.mark.slow
def test_only_noise_promises_anything(comparison: pt.Comparison) -> None:
    for label, row in by_label(comparison).items():
        assert row.statement is not None
        formal = {g.observer.name: g.epsilon for g in row.statement.guarantees}
        if label == hospitals.NOISED:
            assert set(formal) == {"public", "participant", "aggregator"}
            assert all(1.9 < epsilon <= 2.0 for epsilon in formal.values())
            assert row.met is True
        else:
            assert all(math.isinf(epsilon) for epsilon in formal.values())


@pytest.mark.slow
def test_what_is_sent(comparison: pt.Comparison) -> None:
    rows = by_label(comparison)
    sent = {label: row.cost.bytes_sent for label, row in rows.items() if row.cost}
    assert [sent[f"{name} alone"] for name in hospitals.HOSPITALS] == [0, 0, 0]
    # Ten rounds, three hospitals, 62 parameters of four bytes, there and back.
    assert sent[hospitals.FEDERATED] == 10 * 3 * 62 * 4 * 2
    # Each of 398 rows, its 30 features and two one-hot labels, in 64-bit shares, to three parties.
    assert sent[hospitals.SHARED] > 398 * 32 * 8 * 3


@pytest.mark.slow
def test_the_first_row_is_the_yardstick_and_training_learned(comparison: pt.Comparison) -> None:
    rows = by_label(comparison)
    assert comparison.rows[0].label == "pooled"
    # 65% of the test rows are of one class: less would be no learning at all.
    assert all((rows[label].accuracy or 0) > 0.8 for label in ("pooled", hospitals.FEDERATED))


@pytest.mark.slow
def test_the_reading_has_the_figures_of_the_table(comparison: pt.Comparison) -> None:
    lines = hospitals.reading(comparison, hospitals.Args(epsilon=2.0)).splitlines()
    assert len(lines) == 2
    rows = by_label(comparison)
    assert f"federated {rows[hospitals.FEDERATED].accuracy:.1%}" in lines[0]
    assert "epsilon 2.00" in lines[1] or "epsilon 1.9" in lines[1]


@pytest.mark.slow
def test_the_report_is_written(comparison: pt.Comparison, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"comparison.json", "report.html"}
    loaded = pt.load(folder)
    assert [row.label for row in loaded.rows] == [row.label for row in comparison.rows]
