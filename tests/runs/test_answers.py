"""What models say is kept whole, or counts as not kept."""

import os
from pathlib import Path

import numpy as np
import pytest

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.runs.answers import AnswerFiles, Answers
from privtrain.runs.checkpoint import Identity
from tests.disk import little_space

SAID = Answers(np.array([0.5, np.inf, 0.1]), np.array([-0.5, -np.inf, -0.1]), ("one", "two"))
ALONE = Answers(np.array([0.25, 1.0, 3.0]), None)


def same(one: Answers, other: Answers) -> bool:
    logs = (one.log_probabilities, other.log_probabilities)
    return (
        np.array_equal(one.losses, other.losses)
        and one.notes == other.notes
        and all(log is None for log in logs) | (None not in map(type, logs))
        and np.array_equal(*map(np.asarray, logs))
    )


def test_answers_come_back_as_they_were_for_their_owner_alone(tmp_path: Path) -> None:
    files = AnswerFiles.of(Identity({"seed": "1"}), tmp_path)
    files.save(0, SAID)
    files.save(3, ALONE)
    found = files.load(range(5))
    assert sorted(found) == [0, 3]
    assert same(found[0], SAID) and same(found[3], ALONE)
    assert not same(found[0], found[3])
    (one, *_) = tmp_path.glob("shadows-*/*")
    assert one.stat().st_mode & 0o077 == 0


def test_other_models_lie_beside_them(tmp_path: Path) -> None:
    AnswerFiles.of(Identity({"seed": "1"}), tmp_path).save(0, SAID)
    assert AnswerFiles.of(Identity({"seed": "2"}), tmp_path).load(range(5)) == {}
    assert same(AnswerFiles.of(Identity({"seed": "1"}), tmp_path).load([0])[0], SAID)
    assert AnswerFiles(None).load(range(5)) == {}


def test_names_of_folders_tell_nothing_without_the_key(tmp_path: Path) -> None:
    private, published = (Identity({"data": "1"}, published) for published in (False, True))
    names = set()
    for place in ("a", "b"):
        for identity in (private, published):
            made = AnswerFiles.of(identity, tmp_path / place).folder
            assert made is not None
            names.add(made.name)
    # The rows of a published data set are everybody's: there is no key.
    assert len(names) == 3


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"x" + raw])
def test_a_torn_file_counts_as_none(damage: object, tmp_path: Path) -> None:
    files = AnswerFiles.of(Identity({}), tmp_path)
    files.save(0, SAID)
    files.save(1, ALONE)
    (path,) = tmp_path.glob("shadows-*/model-0000*")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert sorted(files.load(range(2))) == [1]
    files.save(0, SAID)
    assert sorted(files.load(range(2))) == [0, 1]


def test_a_full_disk_leaves_what_was_kept(tmp_path: Path) -> None:
    files = AnswerFiles.of(Identity({}), tmp_path)
    files.save(0, SAID)
    with little_space(100), pytest.raises(PrivtrainError, match="full"):
        files.save(1, SAID)
    assert sorted(files.load(range(2))) == [0]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_what_cannot_be_opened_or_made_is_named(tmp_path: Path) -> None:
    files = AnswerFiles.of(Identity({}), tmp_path)
    assert files.folder is not None
    os.mkdir(files.folder / "model-0000.answers")
    with pytest.raises(DataError, match="model-0000"):
        files.load([0])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        AnswerFiles.of(Identity({}), tmp_path / "file")
