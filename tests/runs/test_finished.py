"""A finished comparison is attacked as it would have been while it ran."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import privtrain as pt
from privtrain.core.errors import DataError, Reason
from privtrain.core.result import Comparison, Leakage
from privtrain.core.trainer import Trainer
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.runs.evidence import EVIDENCE, INDEX, RECORD
from privtrain.runs.finished import audit_comparison
from tests.runs.test_evidence import Reading
from tests.trainers.federations import STAR, TASK, a_federation, module

DATA = a_federation(20, 16, 12)
TRAINERS: dict[str, Trainer] = {
    "pooled": pt.SGD(epochs=1),
    "private": pt.DPSGD(epochs=1.0, expected_batch=16),
    "FedAvg": pt.FedAvg(rounds=2),
}
ATTACKS = (pt.LossThreshold(), pt.LiRA(shadows=4), Reading())
HOW: dict[str, Any] = {"runtimes": STAR, "delta": 1e-3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def bare(home: Path) -> Comparison:
    """A comparison without attacks, that was kept for audits, as it is read from a file."""
    kept = {"folder": home, "keep_for_audit": True, "keep_messages": True}
    made = pt.compare(TRAINERS, TASK, DATA, epsilons=[3.0], **kept, **HOW)
    return read_comparison(json.loads(json.dumps(plain_comparison(made))))


@pytest.fixture
def own_home(bare: Comparison, home: Path, tmp_path: Path) -> Path:
    """The same folder, in which a test may break what it likes."""
    return Path(shutil.copytree(home, tmp_path / "home"))


def audited(comparison: Comparison, folder: Path, **options: Any) -> Comparison:
    given = {"attacks": ATTACKS, "trainers": TRAINERS, "data": DATA, **options}
    trainers, data = given.pop("trainers"), given.pop("data")
    return audit_comparison(comparison, trainers, TASK, data, folder=folder, **{**HOW, **given})


def evidence_of(home: Path, label: str) -> Path:
    (found,) = (path for path in home.glob(f"{label}-*/{EVIDENCE}"))
    return found


def reasons(leakage: tuple[Leakage, ...]) -> list[Reason | None]:
    return [None if one.failure is None else one.failure.reason for one in leakage]


def test_attacks_find_what_they_find_within_compare(bare: Comparison, home: Path) -> None:
    within = pt.compare(TRAINERS, TASK, DATA, attacks=ATTACKS, epsilons=[3.0], **HOW)
    later = audited(bare, home)
    assert [row.leakage for row in later.rows] == [row.leakage for row in within.rows]
    figures = [one.metrics.get("auc") for row in later.rows for one in row.leakage]
    assert None not in figures and len(figures) == 9
    assert [replace(row, leakage=()) for row in later.rows] == list(bare.rows), "nothing else"
    # Once more, figures take the place of what they were.
    assert audited(later, home, attacks=ATTACKS[:1]).rows == later.rows


def test_one_rows_failure_leaves_the_others(bare: Comparison, own_home: Path) -> None:
    shutil.rmtree(evidence_of(own_home, "pooled"))
    (evidence_of(own_home, "private") / RECORD).write_bytes(b"torn")
    gone, torn, whole = audited(bare, own_home).rows
    assert reasons(gone.leakage) == [Reason.NOT_KEPT] * 3
    assert gone.leakage[0].failure is not None
    assert "keep_for_audit=True" in gone.leakage[0].failure.error
    assert [one.failure is not None and "is torn" in one.failure.error for one in torn.leakage] == [
        True
    ] * 3
    assert reasons(whole.leakage) == [None] * 3
    assert all(one.metrics["auc"] is not None for one in whole.leakage)
    with pytest.raises(DataError, match="torn"):
        audited(bare, own_home, errors="raise")


def test_another_trainer_or_none_is_named(bare: Comparison, home: Path) -> None:
    changed = {**TRAINERS, "pooled": pt.SGD(epochs=2)}
    del changed["FedAvg"]
    pooled, private, fedavg = audited(bare, home, trainers=changed).rows
    for row, said in ((pooled, "other settings"), (fedavg, "'FedAvg', a label")):
        assert reasons(row.leakage) == [Reason.NOT_KEPT] * 3
        assert row.leakage[0].failure is not None and said in row.leakage[0].failure.error
    assert reasons(private.leakage) == [None] * 3


def test_other_data_are_refused_in_each_cell(bare: Comparison, home: Path) -> None:
    # The same rows in other hands: nothing but what was kept tells.
    train = dict(zip(DATA.parties, reversed([DATA.train[p] for p in DATA.parties]), strict=True))
    pooled = replace(bare, rows=bare.rows[:1])
    for leakage in audited(pooled, home, data=replace(DATA, train=train)).rows[0].leakage:
        assert leakage.failure is not None and "another run: other data" in leakage.failure.error


def test_without_key_or_folder_nothing_is_tried(bare: Comparison, own_home: Path) -> None:
    shutil.rmtree(own_home / "private")
    with pytest.raises(DataError, match="key in the private folder"):
        audited(bare, own_home, errors="raise")
    with pytest.raises(DataError, match="There is no folder="):
        audited(bare, own_home / "none")
    with pytest.raises(ValueError, match=r"comparison=.*pt\.load"):
        audited("runs/digits", own_home)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="coalition to name parties"):
        audited(bare, own_home, attacks=[Reading(observer=pt.coalition({"nobody"}))])


def test_a_failed_row_and_a_model_from_elsewhere(home: Path, bare: Comparison) -> None:
    model = module(pt.fit(pt.SGD(epochs=1), TASK, DATA, **HOW))
    trainers = {"elsewhere": pt.External(model)}
    made = pt.compare(trainers, TASK, DATA, keep_for_audit=True, folder=home / "other", **HOW)
    broken = replace(bare.rows[0], error="lost")
    both = audited(replace(made, rows=(*made.rows, broken)), home / "other", trainers=trainers)
    elsewhere, failed = both.rows
    assert reasons(elsewhere.leakage) == [None, Reason.NO_SHADOWS, Reason.NOBODY]
    assert failed == broken


def test_evidence_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    one = {"pooled": pt.SGD(epochs=1)}
    made = pt.compare(one, TASK, DATA, folder=tmp_path, **HOW)
    assert list(tmp_path.glob(f"*/{EVIDENCE}")) == []
    again = pt.compare(one, TASK, DATA, folder=tmp_path, keep_for_audit=True, **HOW)
    assert again.rows[0].metrics == made.rows[0].metrics
    assert reasons(audited(again, tmp_path, attacks=ATTACKS[:1]).rows[0].leakage) == [None]
    # It stays with the run that it is of, and goes with one that did not end.
    pt.compare(one, TASK, DATA, folder=tmp_path, keep_models=True, **HOW)
    (row_file,) = tmp_path.glob("*/row.json")
    assert evidence_of(tmp_path, "pooled").exists()
    row_file.unlink()
    pt.compare(one, TASK, DATA, folder=tmp_path, **HOW)
    assert list(tmp_path.glob(f"*/{EVIDENCE}")) == []
    with pytest.raises(ValueError, match="folder=None"):
        pt.compare(one, TASK, DATA, keep_for_audit=True)
    with pytest.raises(ValueError, match="keep_for_audit=True"):
        pt.compare(one, TASK, DATA, folder=tmp_path, keep_messages=True)
    with pytest.raises(pt.UnsupportedError, match="keep_messages=True records secrets"):
        pt.compare(
            *(one, TASK, DATA),
            folder=tmp_path,
            keep_for_audit=True,
            keep_messages=True,
            entropy=pt.SYSTEM,
        )


def test_a_row_kept_without_messages_is_trained_again_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    one = {"pooled": pt.SGD(epochs=1)}

    def sent(**asked: Any) -> tuple[int, int]:
        pt.compare(one, TASK, DATA, folder=tmp_path, keep_for_audit=True, **asked, **HOW)
        kept = evidence_of(tmp_path, "pooled")
        return (kept / "payloads.bin").stat().st_size, (kept / INDEX).stat().st_ino

    none, _ = sent()
    assert none == 0
    some, first = sent(keep_messages=True)
    assert some > 0
    assert sent(keep_messages=True) == (some, first), "taken up"
    assert sent() == (some, first), "more than is asked for is kept"


def test_the_key_of_a_comparison_is_the_only_one(bare: Comparison, home: Path) -> None:
    assert evidence_of(home, "pooled").exists()
    assert list(home.rglob("digest.key")) == [home / "private" / "digest.key"]
