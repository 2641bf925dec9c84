"""Keyed digests tell the rows to nobody who lacks the key."""

import stat
from pathlib import Path

import pytest

from privtrain.core.errors import DataError
from privtrain.core.keys import PRIVATE, keyed_digest


def test_the_same_folder_gives_the_same_digest_and_another_folder_another(tmp_path: Path) -> None:
    first = keyed_digest("abc", tmp_path / "one")
    assert first == keyed_digest("abc", tmp_path / "one")
    assert first != keyed_digest("abd", tmp_path / "one")
    assert first != keyed_digest("abc", tmp_path / "two")
    assert len(first) == 64


def test_the_key_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    keyed_digest("abc", tmp_path)
    key = tmp_path / PRIVATE / "digest.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


def test_a_key_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    keyed_digest("abc", tmp_path)
    (tmp_path / PRIVATE / "digest.key").write_bytes(b"short")
    with pytest.raises(DataError, match="has 5 bytes, 32 expected"):
        keyed_digest("abc", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose a folder"):
        keyed_digest("abc", tmp_path / "file")
