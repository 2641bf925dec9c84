"""Each block of a store is used once, for what it was made for, or not at all."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtrain.core.errors import (
    DataError,
    PartyLostError,
    PrivtrainError,
    ProtocolError,
    TamperedShareError,
)
from privtrain.mpc.material.sealing import Sealer
from privtrain.mpc.material.segments import JOURNAL, numbers, place
from privtrain.mpc.material.store import Store
from privtrain.mpc.material.writer import StoreWriter
from tests.disk import little_space
from tests.mpc.material.folders import (
    KEY,
    RECEIVER,
    STEPS,
    STUDY,
    a_store,
    content,
    fill,
    take,
    uses,
)


@pytest.mark.parametrize("segment", [1, 200, 10_000])
def test_blocks_come_in_order_and_are_gone(segment: int, tmp_path: Path) -> None:
    fill(tmp_path, segment=segment)
    with a_store(tmp_path) as store:
        for use in uses():
            assert take(store, *use) == content(*use)
        with pytest.raises(ProtocolError, match=r"no more material .* 8 blocks are spent"):
            take(store, STEPS, "matmul")
    assert numbers(tmp_path) == []
    with a_store(tmp_path) as store:
        assert store.whole_step is None
        with pytest.raises(ProtocolError, match="no more material"):
            take(store, 0, "matmul")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.lists(st.integers(0, 3), max_size=12))
def test_nothing_is_used_twice_across_restarts(
    tmp_path_factory: pytest.TempPathFactory, segment: int, counts: list[int]
) -> None:
    """Sessions that take a few blocks each, of whatever step is whole then."""
    folder = tmp_path_factory.mktemp("store")
    fill(folder, segment=segment)
    used: list[bytes] = []
    for count in counts:
        with a_store(folder) as store:
            step = store.whole_step
            if step is None:
                break
            store.skip(step)
            used += [take(store, *use) for use in uses(range(step, STEPS))[:count]]
    assert len(set(used)) == len(used)


def test_what_was_reserved_and_not_used_stays_spent(tmp_path: Path) -> None:
    fill(tmp_path, segment=380)  # two blocks of step 0 and one of step 1
    with a_store(tmp_path) as store:
        assert store.whole_step == 0
        take(store, 0, "matmul")
        assert store.whole_step == 1
    with a_store(tmp_path) as store:
        assert store.whole_step == 2
        with pytest.raises(ProtocolError, match="to be 58 bytes for step 1, 'matmul'; it is 54"):
            take(store, 1, "matmul")
        store.skip(2)
        assert take(store, 2, "matmul") == content(2, "matmul")
        assert store.whole_step == 3


def test_skipping_spends_what_comes_before(tmp_path: Path) -> None:
    fill(tmp_path)
    with a_store(tmp_path) as store:
        store.skip(0)
        assert numbers(tmp_path) == list(range(8))
        store.skip(2)
        assert numbers(tmp_path) == [4, 5, 6, 7]
        assert take(store, 2, "matmul") == content(2, "matmul")
        store.skip(STEPS)
    assert numbers(tmp_path) == []


def test_another_use_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    fill(tmp_path)
    with a_store(tmp_path) as store:
        for step, operation, size in [(1, "matmul", 29), (0, "relu", 29), (0, "matmul", 28)]:
            with pytest.raises(ProtocolError, match="do not run the same program"):
                store.take(step, operation, size)
        assert take(store, 0, "matmul") == content(0, "matmul")


def test_another_study_or_party_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    for study, receiver in [("60" * 32, RECEIVER), (STUDY, "computing-1")]:
        with pytest.raises(DataError, match="deal anew"):
            Store(tmp_path, study=study, receiver=receiver).__enter__()
    # Nor does it help to write the own study into the journal.
    journal = tmp_path / JOURNAL
    journal.write_text(journal.read_text().replace(STUDY, "60" * 32))
    with (
        Store(tmp_path, study="60" * 32, receiver=RECEIVER) as store,
        pytest.raises(TamperedShareError, match="another study"),
    ):
        take(store, 0, "matmul")
    with pytest.raises(DataError, match=r"holds? material.*missing"):
        a_store(tmp_path / "nothing").__enter__()


def test_a_changed_byte_anywhere_is_rejected(tmp_path: Path) -> None:
    fill(tmp_path / "whole", segment=10_000)
    size = place(tmp_path / "whole", 0).stat().st_size
    for at in [*range(110), *range(110, size, 37)]:
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "whole", folder)
        path = place(folder, 0)
        changed = bytearray(path.read_bytes())
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with a_store(folder) as store, pytest.raises(ProtocolError):
            for use in uses():
                assert take(store, *use) == content(*use)


def swap(folder: Path) -> None:
    one, other = place(folder, 2), place(folder, 3)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def swap_inside(folder: Path) -> None:
    place(folder, 2).write_bytes(place(folder, 3).read_bytes() + place(folder, 2).read_bytes())


def repeat(folder: Path) -> None:
    shutil.copy(place(folder, 1), place(folder, 2))


def take_from_another_session(folder: Path) -> None:
    fill(folder / "other")
    shutil.copy(place(folder / "other", 2), place(folder, 2))


def empty(folder: Path) -> None:
    place(folder, 2).write_bytes(b"")


def cut(folder: Path) -> None:
    place(folder, 2).write_bytes(place(folder, 2).read_bytes()[:-1])


@pytest.mark.parametrize("deed", [swap, swap_inside, repeat, take_from_another_session, empty, cut])
def test_files_that_were_exchanged_are_rejected(
    deed: Callable[[Path], None], tmp_path: Path
) -> None:
    fill(tmp_path)
    deed(tmp_path)
    for _ in range(2):  # in the next process, too
        with a_store(tmp_path) as store, pytest.raises(TamperedShareError):
            store.skip(1)
            take(store, 1, "matmul")


def test_an_older_journal_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path)
    older = (tmp_path / JOURNAL).read_bytes()
    with a_store(tmp_path) as store:
        take(store, 0, "matmul")
        newer = (tmp_path / JOURNAL).read_bytes()
        (tmp_path / JOURNAL).write_bytes(older)
        with pytest.raises(ProtocolError, match="changed by somebody else"):
            take(store, 0, "relu")
    with pytest.raises(ProtocolError, match="older journal was brought back"):
        a_store(tmp_path).__enter__()
    (tmp_path / JOURNAL).write_bytes(newer)
    with a_store(tmp_path) as store:
        assert take(store, 0, "relu") == content(0, "relu")


def test_older_segments_beside_a_newer_journal_are_not_used_again(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with a_store(tmp_path / "store") as store:
        for use in uses(range(2)):
            take(store, *use)
    for number in range(4):
        shutil.copy(place(tmp_path / "copy", number), tmp_path / "store")
    with a_store(tmp_path / "store") as store:
        assert numbers(tmp_path / "store") == [4, 5, 6, 7]
        assert store.whole_step == 2


def test_a_segment_that_was_removed_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path)
    with a_store(tmp_path) as store:
        place(tmp_path, 0).unlink()
        with pytest.raises(ProtocolError, match=r"Segment 0 .* not there"):
            take(store, 0, "matmul")


def test_a_full_disk_uses_nothing_and_names_the_folder(tmp_path: Path) -> None:
    fill(tmp_path)
    with a_store(tmp_path) as store:
        full = pytest.raises(PrivtrainError, match=rf"{tmp_path} is full.*Free some space")
        with little_space((tmp_path / JOURNAL).stat().st_size + 5), full:
            take(store, 0, "matmul")
        assert place(tmp_path, 0).exists()
        assert take(store, 0, "matmul") == content(0, "matmul")


def test_one_store_at_a_time(tmp_path: Path) -> None:
    fill(tmp_path)
    with a_store(tmp_path), pytest.raises(ProtocolError, match="has a reader already"):
        a_store(tmp_path).__enter__()
    with a_store(tmp_path) as store:
        take(store, 0, "matmul")
    for deed in (lambda: take(store, 0, "relu"), lambda: store.skip(1), lambda: store.whole_step):
        with pytest.raises(RuntimeError, match="within `with`"):
            deed()


def test_what_comes_next_is_told_without_spending(tmp_path: Path) -> None:
    fill(tmp_path, segment=380)
    with a_store(tmp_path) as store:
        label = store.next_label
        assert label is not None and (label.number, label.step, label.operation) == (0, 0, "matmul")
        assert store.spent.blocks == 0 and numbers(tmp_path)[0] == 0
        # Of any size, where its user cannot know it.
        assert store.take(0, "matmul") == content(0, "matmul")
        assert store.spent.blocks == 3 and store.spent.session == label.session.hex()
        store.skip(STEPS)
        assert store.next_label is None


def test_a_store_waits_for_its_writer_and_no_longer(tmp_path: Path) -> None:
    sealer = Sealer(KEY, study=STUDY, receiver=RECEIVER)
    sealed = [sealer.seal(b"content", step=0, operation="x") for _ in range(2)]
    waits = Store(tmp_path, study=STUDY, receiver=RECEIVER, patience=5)
    with StoreWriter(tmp_path, KEY, study=STUDY, receiver=RECEIVER) as writer:
        writer.add(sealed[0])
        timer = threading.Timer(0.2, writer.flush)
        timer.start()
        with waits as store:
            assert store.next_label is not None and store.take(0, "x") == b"content"
        timer.join()
        hasty = Store(tmp_path, study=STUDY, receiver=RECEIVER, patience=0.1)
        with hasty as store, pytest.raises(PartyLostError, match=r"dealt into .* for 0\.1 s"):
            store.take(0, "x")
        writer.add(sealed[1])
    with hasty as store:
        assert store.take(0, "x") == b"content"
        started = time.monotonic()
        with pytest.raises(ProtocolError, match="no more material"):
            store.take(0, "x")
        assert time.monotonic() - started < 0.1


def test_a_fork_uses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, segment=10_000)
    with a_store(tmp_path) as store:
        take(store, 0, "matmul")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with pytest.raises(RuntimeError, match="process that opened it"):
                take(store, 0, "relu")
        assert take(store, 0, "relu") == content(0, "relu")


def test_no_block_lies_there_in_the_clear(tmp_path: Path) -> None:
    fill(tmp_path)
    texts = [path.read_bytes() for path in tmp_path.rglob("*.sealed")]
    assert len(texts) == 8 and not any(b"material of" in text for text in texts)
    assert (tmp_path / "private" / "material.key").read_bytes() == KEY
