"""A board holds what its parties write, and lets nobody write in another's name."""

import threading
import time

import pytest

from privtrain.core.errors import ProtocolError
from privtrain.runtimes.board import MOST_KEY, MOST_VALUE, Entries, LocalBoard, wait_for

NAMES = ("party-0", "party-1", "dealer")


def board(entries: Entries, rank: int) -> LocalBoard:
    return LocalBoard(entries, NAMES[rank], "127.0.0.1")


def test_what_one_writes_all_read_until_it_is_written_over() -> None:
    entries = Entries(NAMES)
    assert board(entries, 0).get("beat/1") is None
    for count in ("0", "1"):
        board(entries, 1).set("beat/1", count)
        assert board(entries, 0).get("beat/1") == board(entries, 2).get("beat/1") == count


def test_what_is_claimed_stays() -> None:
    entries = Entries(NAMES)
    assert board(entries, 1).claim("claim/1", "first") == "first"
    assert board(entries, 1).claim("claim/1", "second") == "first"
    assert board(entries, 0).claim("parties", "party-0 was started") == "party-0 was started"
    assert board(entries, 1).claim("parties", "party-1 was started") == "party-0 was started"


def test_a_role_writes_all_of_its_own_keys() -> None:
    for rank in range(3):
        entries = Entries(NAMES)
        own = {f"{kind}/{rank}" for kind in ("here", "beat", "done", "failure", "link")}
        for key in own | {f"heard/{rank}/{other}" for other in range(3)}:
            board(entries, rank).set(key, "said")
            assert entries.get(key) == "said"
    board(Entries(NAMES), 0).set("store", "127.0.0.1 5")


@pytest.mark.parametrize(
    "key",
    [
        *(f"{kind}/0" for kind in ("here", "beat", "done", "failure", "link", "claim")),
        *("heard/0/1", "heard/1/3", "store", "parties", "refused", "claim/1"),
        *("here/3", "here/01", "here/1/0", "here", "", "other"),
    ],
)
def test_nobody_sets_what_is_not_its_own(key: str) -> None:
    entries = Entries(NAMES)
    with pytest.raises(ProtocolError, match="party-1 may not write"):
        board(entries, 1).set(key, "party-1 lies")
    assert entries.get(key) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("claim/0", "mine"),
        ("parties", "party-0 was started"),
        ("refused", "party-1x was started"),
        ("here/1", "party-1 is there"),
        ("other", "party-1 is there"),
    ],
)
def test_nobody_claims_in_anothers_name(key: str, value: str) -> None:
    entries = Entries(NAMES)
    with pytest.raises(ProtocolError, match="party-1 may not claim"):
        board(entries, 1).claim(key, value)
    assert entries.get(key) is None


def test_a_role_of_another_mesh_says_what_it_expects_and_no_more() -> None:
    entries = Entries(NAMES)
    stranger = LocalBoard(entries, "party-2", "127.0.0.1")
    stranger.claim("refused", "party-2 was started for 4 parties")
    for key in ("here/2", "claim/2", "failure/2"):
        with pytest.raises(ProtocolError, match="party-2 may not write"):
            stranger.set(key, "0")


def test_what_is_too_long_or_cannot_be_printed_is_refused() -> None:
    own = board(Entries(NAMES), 1)
    own.set("beat/1", "x" * MOST_VALUE)
    for key, value in (
        ("beat/1", "x" * (MOST_VALUE + 1)),
        ("beat/1", "ä" * (MOST_VALUE // 2 + 1)),
        ("x" * (MOST_KEY + 1), "1"),
        ("beat/1", "\x1b[2J"),
        ("beat/1", "two\nlines"),
    ):
        with pytest.raises(ProtocolError, match="Expected a key of 64 bytes and a printable"):
            own.set(key, value)
        with pytest.raises(ProtocolError, match="Expected a key of 64 bytes and a printable"):
            own.claim(key, value)


def test_a_key_is_waited_for_and_no_longer_than_asked() -> None:
    entries = Entries(NAMES)
    waits = threading.Thread(
        target=lambda: board(entries, 1).set("link/1", wait_for(board(entries, 1), "link/0", 10))
    )
    waits.start()
    board(entries, 0).set("link/0", "there")
    waits.join(10)
    assert entries.get("link/1") == "there"
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wait_for(board(entries, 1), "link/2", 0.05)
    assert time.monotonic() - start >= 0.05
