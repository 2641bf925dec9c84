"""Kept votes: private, whole or not there, and never asked without a charge."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core import writing
from privtrain.core.errors import DataError, PrivacyError, PrivtrainError, UnsupportedError
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.steps.ridge import Ridge
from privtrain.steps.vote_cache import VoteCache
from tests.trainers.federations import STAR, TASK, a_federation, vector
from tests.trainers.test_teachers import a_pate, with_public


def rows(seed: int = 0) -> FederatedData:
    return replace(with_public(a_federation(30, 30 + seed)), digest=f"{seed:064x}")


def cached(folder: Path, **options: Any) -> Any:
    given = {"votes": VoteCache(folder / "votes"), "queries": 20, "release": SOME}
    return a_pate(**given | options)


SOME = Release(GNMax(2.0), finish=ARGMAX)


def a_study(folder: Path, data: FederatedData, **options: Any) -> StudyLedger:
    return StudyLedger(data, journal=folder / "study.jsonl", **options)


def asked(
    folder: Path, trainer: Any, data: FederatedData | None = None, **options: Any
) -> TrainResult:
    data = data or rows()
    study = options.pop("study", None) or a_study(folder, data)
    return fit(trainer, TASK, data, runtimes=STAR, study_ledger=study, **options)


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "votes").glob("*.votes"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many teachers were trained, group by group."""
    seen: list[int] = []
    teach = Ridge.teach

    def noted(steps: Ridge, task: Any, group: Any, *rest: Any) -> list[Tensor]:
        seen.append(len(group))
        return teach(steps, task, group, *rest)

    monkeypatch.setattr(Ridge, "teach", noted)
    return seen


def test_mechanisms_and_students_are_studied_without_training_again(
    tmp_path: Path, trained: list[int]
) -> None:
    first = asked(tmp_path, cached(tmp_path))
    assert sum(trained) == 6 and len(kept(tmp_path)) == 2  # two parties
    quieter = Release(GNMax(8.0), finish=ARGMAX)
    for changed in (
        {"release": quieter},
        {"student": PlainSteps(epochs=3)},
        {"release": SOME},
    ):
        asked(tmp_path, cached(tmp_path, **changed))
    assert sum(trained) == 6 and len(kept(tmp_path)) == 2
    # And they are the votes of a run without a cache.
    plain = fit(a_pate(queries=20, release=SOME), TASK, rows(), runtimes=STAR)
    assert repr(cached(tmp_path)) == repr(a_pate(queries=20, release=SOME))
    assert torch.equal(vector(plain.predictor.module), vector(first.predictor.module))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": Ridge(strength=2.0)},
        {"teachers": 7},
        {"queries": 21},
        {"features": lambda inputs: inputs * 2},
        {"seed": 1},
        {"data": 1},
    ],
)
def test_whatever_scores_follow_from_makes_other_scores(
    tmp_path: Path, trained: list[int], changed: dict[str, Any]
) -> None:
    study = a_study(tmp_path, rows())
    asked(tmp_path, cached(tmp_path), study=study)
    before, changed = sum(trained), dict(changed)
    seed, data = changed.pop("seed", 0), rows(changed.pop("data", 0))
    # Other rows of the same digest: what a user changed by hand is told from what was there.
    data = replace(data, digest=rows().digest)
    asked(tmp_path, cached(tmp_path, **changed), data, seed=seed, study=study)
    assert sum(trained) > before


def test_every_mechanism_is_a_charge_and_the_sum_stands_beside_its_figure(tmp_path: Path) -> None:
    data = rows()
    study = a_study(tmp_path, data)
    alone = []
    for sigma in (2.0, 3.0, 4.0):
        release = Release(GNMax(sigma), finish=ARGMAX)
        result = asked(tmp_path, cached(tmp_path, release=release), data, study=study)
        alone.append(result.statement.epsilon())
        assert len(study.charges) == len(alone)
        (said,) = [note for note in result.notes if "kept and asked again" in note]
        assert f"fits of the study so far, {len(alone)} in all" in said
        assert f"{study.epsilon:.3g}"[:3] in said
    assert study.epsilon > max(alone)
    # Two runs of one mechanism on the same votes draw their noise anew: one is no copy of another.
    again = [asked(tmp_path, cached(tmp_path), data, study=study, keep_payloads=True) for _ in "ab"]
    labels = [e.payload for r in again for e in r.transcript.entries if e.kind == "labels"]
    assert labels[0] is not None and labels[1] is not None
    assert not torch.equal(labels[0], labels[1])


def test_a_budget_of_the_study_ends_it(tmp_path: Path) -> None:
    data = rows()
    cost = fit(a_pate(queries=20, release=SOME), TASK, data, runtimes=STAR).statement.epsilon()
    study = a_study(tmp_path, data, budget=Budget(1.2 * cost, 1e-5))
    asked(tmp_path, cached(tmp_path), data, study=study)
    with pytest.raises(PrivtrainError, match="beyond its budget"):
        asked(tmp_path, cached(tmp_path), data, study=study)


def test_a_run_that_nobody_adds_up_is_refused_beforehand(tmp_path: Path) -> None:
    data = rows()
    with pytest.raises(PrivacyError, match="study_ledger=None"):
        fit(cached(tmp_path), TASK, data, runtimes=STAR)
    with pytest.raises(PrivacyError, match="journal=None"):
        asked(tmp_path, cached(tmp_path), data, study=StudyLedger(data))
    assert not kept(tmp_path)


def test_two_studies_have_no_common_sum_and_lost_charges_are_found(tmp_path: Path) -> None:
    data = rows()
    study = a_study(tmp_path, data)
    for _ in range(2):
        asked(tmp_path, cached(tmp_path), data, study=study)
    other = StudyLedger(data, journal=tmp_path / "other.jsonl")
    with pytest.raises(PrivacyError, match="belong to the study of"):
        asked(tmp_path, cached(tmp_path), data, study=other)
    (tmp_path / "study.jsonl").unlink()
    with pytest.raises(PrivacyError, match="entries were lost"):
        asked(tmp_path, cached(tmp_path), data)


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    class Elsewhere:
        name, real = "elsewhere", False

        def open(self, setting: Any) -> Any: ...

    study = a_study(tmp_path, rows())
    with pytest.raises(UnsupportedError, match="elsewhere"):
        VoteCache(tmp_path).check(Runtimes(star=Elsewhere()), study)  # type: ignore[arg-type]


def test_only_the_owner_reads_them_and_no_name_tells_of_a_row(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        asked(tmp_path / place, cached(tmp_path / place))
    for place in ("a", "b"):
        home = tmp_path / place / "votes"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for path in (*kept(tmp_path / place), home / "study.json", home / "private" / "digest.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # The same rows, teachers and queries under another key: other names.
    names = [{path.name for path in kept(tmp_path / place)} for place in ("a", "b")]
    assert not names[0] & names[1]


BROKEN = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: b"PK\x03\x04" + content,
    "changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "other shape": lambda content: content.replace(b'"shape": [3', b'"shape": [9'),
    "other type": lambda content: content.replace(b"float64", b"complex"),
}


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, how: str) -> None:
    asked(tmp_path, cached(tmp_path))
    path = kept(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(BROKEN[how](content))
    assert path.read_bytes() != content
    with pytest.raises(DataError, match="torn or not privtrain"):
        asked(tmp_path, cached(tmp_path))


def test_a_renamed_file_and_a_link_are_not_taken(tmp_path: Path) -> None:
    asked(tmp_path, cached(tmp_path))
    one, other = kept(tmp_path)
    one.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="SHA-256"):
        asked(tmp_path, cached(tmp_path))
    one.unlink()
    one.symlink_to(other)
    with pytest.raises(DataError, match="no plain file"):
        asked(tmp_path, cached(tmp_path))


def test_a_full_disk_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = writing._write

    def full(path: Path, content: bytes | str, mode: int = 0o666) -> None:
        whole = ".votes" not in path.name
        write(path, content if whole else content[: len(content) // 2], mode)
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_write", full)
    with pytest.raises(PrivtrainError, match="full"):
        asked(tmp_path, cached(tmp_path))
    assert not kept(tmp_path)
    assert {path.name for path in (tmp_path / "votes").iterdir()} == {"private", "study.json"}


@pytest.mark.parametrize("content", ["", "{}", '{"journal": 3, "charges": 0}', "[]"])
def test_a_cache_that_forgot_its_study_is_refused(tmp_path: Path, content: str) -> None:
    asked(tmp_path, cached(tmp_path))
    (tmp_path / "votes" / "study.json").write_text(content)
    with pytest.raises(PrivacyError, match="nobody can tell to"):
        asked(tmp_path, cached(tmp_path))


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="votes="):
        a_pate(votes="votes")


def test_a_journal_that_lost_its_last_charge_is_noticed(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    asked(tmp_path, cached(tmp_path))
    before = journal.read_bytes()
    asked(tmp_path, cached(tmp_path, release=Release(GNMax(8.0), finish=ARGMAX)))
    journal.write_bytes(before)
    with pytest.raises(PrivacyError, match="knows of 1 fits, and 2 were charged"):
        asked(tmp_path, cached(tmp_path))
