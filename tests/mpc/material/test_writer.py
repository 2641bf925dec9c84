"""A store is written for its owner alone, whole or not at all, and never beyond its bound."""

from pathlib import Path

import pytest

from privtrain.core.errors import DataError, PrivtrainError, ProtocolError, TamperedShareError
from privtrain.mpc.material.sealing import Sealer
from privtrain.mpc.material.segments import alone, numbers, size_in
from privtrain.mpc.material.writer import StoreWriter
from tests.disk import little_space
from tests.mpc.material.folders import KEY, RECEIVER, STUDY, a_store, content, fill, take


def a_writer(folder: Path, bound: int = 1000, segment: int = 1) -> StoreWriter:
    return StoreWriter(folder, KEY, study=STUDY, receiver=RECEIVER, bound=bound, segment=segment)


def blocks(count: int, size: int = 100) -> list[bytes]:
    """Blocks of so many bytes, all told; in a file each has 8 more."""
    sealer = Sealer(KEY, study=STUDY, receiver=RECEIVER)
    rest = len(sealer.seal(b"", step=0, operation="x"))
    sealer = Sealer(KEY, study=STUDY, receiver=RECEIVER)
    return [sealer.seal(bytes(size - rest), step=0, operation="x") for _ in range(count)]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    folders = [tmp_path / "store", tmp_path / "store" / "private"]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_a_full_store_takes_no_more_until_its_party_used_some(tmp_path: Path) -> None:
    sealed = blocks(10)
    with a_writer(tmp_path, bound=1000) as writer:
        for block in sealed[:9]:  # of 108 bytes each
            writer.add(block)
        with pytest.raises(PrivtrainError, match=r"keeps 972 bytes, and 108 more .* bound=1000"):
            writer.add(sealed[9])
        with a_store(tmp_path) as store:
            store.take(0, "x", 25)
        writer.add(sealed[9])
    assert size_in(tmp_path) == 9 * 108
    with a_store(tmp_path) as store:
        for _ in range(9):
            store.take(0, "x", 25)


def test_a_party_may_use_what_was_written_while_more_is_dealt(tmp_path: Path) -> None:
    sealed = blocks(3)
    with a_writer(tmp_path, bound=220, segment=1000) as writer:
        writer.add(sealed[0])
        assert numbers(tmp_path) == [] and writer.kept == 108
        writer.flush()
        assert numbers(tmp_path) == [0] and writer.has_room(sealed[1])
        writer.add(sealed[1])
        assert writer.kept == 216 and not writer.has_room(sealed[2])
        with a_store(tmp_path) as store:
            store.take(0, "x", 25)
        assert writer.has_room(sealed[2])
        writer.add(sealed[2])
        with pytest.raises(ValueError, match="to fit bound=220"):
            writer.has_room(blocks(1, size=300)[0])


def test_a_block_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    (block,) = blocks(1)
    refused = pytest.raises(ValueError, match="108 bytes to fit bound=107")
    with a_writer(tmp_path / "a", bound=107) as writer, refused:
        writer.add(block)
    with a_writer(tmp_path / "b", bound=108) as writer:
        writer.add(block)
    assert size_in(tmp_path / "a") == 0 and size_in(tmp_path / "b") == 108


def test_blocks_share_a_segment_up_to_its_size(tmp_path: Path) -> None:
    with a_writer(tmp_path, segment=216) as writer:
        for block in blocks(5):
            writer.add(block)
    assert numbers(tmp_path) == [0, 1, 2]


def test_a_full_disk_leaves_whole_segments_only(tmp_path: Path) -> None:
    small, large = blocks(1)[0], blocks(1, size=3000)[0]
    full = pytest.raises(PrivtrainError, match="full")
    with little_space(1000), full, a_writer(tmp_path, bound=10_000) as writer:
        writer.add(small)
        writer.add(large)
    assert numbers(tmp_path) == [0] and size_in(tmp_path) == 108
    assert not list(tmp_path.glob(".*"))


def test_what_failed_writes_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), a_writer(tmp_path, segment=1000) as writer:
        writer.add(blocks(1)[0])
        raise ZeroDivisionError
    assert numbers(tmp_path) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(DataError, match=r"new or empty; it holds .*another folder"):
        a_writer(tmp_path).__enter__()
    with a_store(tmp_path) as store:
        assert take(store, 0, "matmul") == content(0, "matmul")


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with alone(tmp_path, "writer"), pytest.raises((DataError, ProtocolError)):
        a_writer(tmp_path).__enter__()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bound=0"):
        a_writer(tmp_path, bound=0)
    with pytest.raises(ValueError, match="segment=0"):
        a_writer(tmp_path, segment=0)
    with pytest.raises(ValueError, match=r"len\(key\)=3"):
        StoreWriter(tmp_path, b"key", study=STUDY, receiver=RECEIVER)
    with a_writer(tmp_path) as writer, pytest.raises(TamperedShareError):
        writer.add(b"no block")
