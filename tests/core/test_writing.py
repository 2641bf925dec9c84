"""Files and folders are there as a whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.writing import fill, is_full, new_folder, write_file
from tests import disk


@pytest.fixture
def little_space() -> Iterator[None]:
    """Files of at most 1,000 bytes."""
    with disk.little_space(1_000):
        yield


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.usefixtures("little_space")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_file(path, b"before")
    with pytest.raises(PrivtrainError, match="full") as raised:
        write_file(path, b"x" * 5_000)
    assert is_full(raised.value.__cause__)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.usefixtures("little_space")
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_no_part_of_a_folder(tmp_path: Path, before: bool) -> None:
    folder = tmp_path / "kept"
    if before:
        with new_folder(folder, ours="ab") as fresh:
            fill(fresh, "a", "old")
    with (
        pytest.raises(PrivtrainError, match="full"),
        new_folder(folder, ours="ab", force=True) as fresh,
    ):
        fill(fresh, "a", "new")
        fill(fresh, "b", b"x" * 5_000)
    assert os.listdir(tmp_path) == (["kept"] if before else [])
    if before:
        assert (folder / "a").read_text() == "old"


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "kept", ours="ab") as fresh:
        fill(fresh, "a", "text")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with (
            pytest.raises(DataError, match=r"thesis\.tex"),
            new_folder(folder, ours=["model.json"], force=force),
        ):
            raise AssertionError
    assert os.listdir(tmp_path) == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder"), new_folder(tmp_path / "file", ours="ab"):
        raise AssertionError


def test_an_own_folder_is_replaced_by_force_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kept"
    with new_folder(folder, ours="ab") as fresh:
        fill(fresh, "a", "one")
        fill(fresh, "b", "one")
    with pytest.raises(DataError, match="--force"), new_folder(folder, ours="ab"):
        raise AssertionError
    with new_folder(folder, ours="ab", force=True) as fresh:
        fill(fresh, "a", "two")
    assert [path.read_text() for path in folder.iterdir()] == ["two"]
    assert os.listdir(folder.parent) == ["kept"]


def test_what_somebody_put_beside_our_files_is_not_lost(tmp_path: Path) -> None:
    with new_folder(tmp_path / "kept", ours="ab") as fresh:
        fill(fresh, "a", "one")
    (tmp_path / "kept/thesis.tex").write_text("years of work")
    with (
        pytest.raises(DataError, match=r"thesis\.tex\. Choose another folder\."),
        new_folder(tmp_path / "kept", ours="ab", force=True),
    ):
        raise AssertionError
    assert (tmp_path / "kept/thesis.tex").exists()


def test_an_empty_folder_is_filled_and_readable(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        (tmp_path / "kept").mkdir()
        with new_folder(tmp_path / "kept", ours="ab") as fresh:
            fill(fresh, "a", "text")
    finally:
        os.umask(mask)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o755
