"""Keyed digests tell the rows to nobody who lacks the key."""

import stat
from pathlib import Path

import pytest

from privtrain.core.errors import DataError
from privtrain.core.keys import PRIVATE, home_of_key, keyed_digest, make_key


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


def test_the_private_folder_says_never_to_publish_it_and_only_its_owner_enters(
    tmp_path: Path,
) -> None:
    make_key(tmp_path)
    private = tmp_path / PRIVATE
    assert "Never publish" in (private / "README").read_text()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    before = (private / "digest.key").read_bytes()
    make_key(tmp_path)
    assert (private / "digest.key").read_bytes() == before


def test_a_run_s_folders_share_its_key(tmp_path: Path) -> None:
    row = tmp_path / "run" / "rows" / "one"
    assert home_of_key(row) == row
    make_key(tmp_path / "run")
    assert home_of_key(row) == home_of_key(row.parent) == home_of_key(row.parents[1])
    assert home_of_key(row) == tmp_path / "run"
    # A key of the folder itself comes first, and one further up is another run's.
    assert home_of_key(row / "deeper") == row / "deeper"
    make_key(row)
    assert home_of_key(row) == row


def test_a_key_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    keyed_digest("abc", tmp_path)
    (tmp_path / PRIVATE / "digest.key").write_bytes(b"short")
    with pytest.raises(DataError, match="has 5 bytes, 32 expected"):
        keyed_digest("abc", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose a folder"):
        keyed_digest("abc", tmp_path / "file")
