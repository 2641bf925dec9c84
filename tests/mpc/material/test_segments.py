"""A segment's file is read whole, or refused at the place where it was cut."""

from pathlib import Path

import pytest

from privtrain.core.errors import DataError, ProtocolError, TamperedShareError
from privtrain.mpc.material.segments import alone, blocks, is_held, numbers, place, size_in
from tests.mpc.material.folders import fill, uses


def test_a_segment_gives_its_blocks(tmp_path: Path) -> None:
    sealed = fill(tmp_path / "store", segment=10_000)
    (number,) = numbers(tmp_path / "store")
    held = list(blocks(place(tmp_path / "store", number)))
    assert [block for _, block in held] == sealed
    assert [(label.step, label.operation) for label, _ in held] == uses()
    assert size_in(tmp_path / "store") == sum(8 + len(block) for block in sealed)


def test_a_cut_file_is_refused_at_every_length_between_blocks(tmp_path: Path) -> None:
    sealed = fill(tmp_path / "store", segment=10_000)
    path = place(tmp_path / "store", 0)
    whole = path.read_bytes()
    for length in range(len(sealed[0]) + 8):
        path.write_bytes(whole[:length])
        with pytest.raises(TamperedShareError, match=rf"{path} was cut"):
            list(blocks(path))
    path.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(TamperedShareError, match="at byte 8"):
        list(blocks(path))


def test_what_is_missing_is_an_error_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        list(blocks(place(tmp_path, 0)))
    assert numbers(tmp_path) == [] and size_in(tmp_path) == 0
    (tmp_path / "notes.sealed").touch()
    assert numbers(tmp_path) == []


def test_one_of_a_kind_is_let_in(tmp_path: Path) -> None:
    with alone(tmp_path, "reader"):
        with pytest.raises(ProtocolError, match="has a reader already"), alone(tmp_path, "reader"):
            pass
        with alone(tmp_path, "writer"):
            pass
    with alone(tmp_path, "reader"):
        assert (tmp_path / "reader.lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="Cannot write"), alone(tmp_path / "missing", "reader"):
        pass


def test_who_is_at_a_folder_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "writer")
    with alone(tmp_path, "writer"):
        assert is_held(tmp_path, "writer") and not is_held(tmp_path, "reader")
    assert not is_held(tmp_path, "writer")
    with alone(tmp_path, "writer"):
        pass
