"""Parties that watch each other: who is missing, there twice, or expects others is named."""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from privtrain.core.errors import (
    PartyLostError,
    PrivtrainError,
    ProtocolError,
    TamperedShareError,
)
from privtrain.runtimes.board import Board, Entries
from privtrain.runtimes.certificates import make_credentials
from privtrain.runtimes.launcher import LaunchedBoard
from privtrain.runtimes.peers import Peers
from privtrain.runtimes.rendezvous import BoardClient, BoardServer, join, listening
from privtrain.runtimes.sockets import TLS, Plain, Transport

Keys = Mapping[str, Transport]
ROLES = ("party-0", "party-1", "party-2")
SECURED: Keys = {name: TLS(own) for name, own in make_credentials(ROLES).items()}
OTHER_STUDY: Keys = {name: TLS(own) for name, own in make_credentials(ROLES).items()}
CLEAR: Keys = dict.fromkeys(ROLES, Plain())


@pytest.fixture(params=[CLEAR, SECURED], ids=["TCP", "TLS"])
def keys(request: pytest.FixtureRequest) -> Keys:
    given: Keys = request.param
    return given


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def alone(port: int) -> Peers:
    return Peers(rank=0, names=("party-0",), host="127.0.0.1", port=port, timeout=20)


def test_no_thread_outlives_the_run(free_port: int) -> None:
    # One inside torch's store while the interpreter ends would abort the process with SIGABRT.
    before = set(threading.enumerate())
    with alone(free_port) as peers:
        # Beats, watches, hosts the board.
        assert len(set(threading.enumerate()) - before) == 3
        assert peers.run(lambda: 7) == 7
    assert set(threading.enumerate()) <= before


def met(
    places: list[tuple[int, int]], port: int, keys: Keys, timeout: float = 10.0
) -> tuple[list[str], list[list[str]]]:
    """What came of parties that meet at once, each by its rank and its number of parties.

    Returns:
        Of each what it raised, or that it trained; and the lines that it was told.
    """
    came, told = ["nothing"] * len(places), [list[str]() for _ in places]

    def meet(number: int) -> None:
        rank, count = places[number]
        names = tuple(f"party-{each}" for each in range(count))
        own, tell = keys[names[rank]], told[number].append
        peers = Peers(rank, names, "127.0.0.1", port, timeout, own, tell=tell)
        try:
            with peers:
                came[number] = "trained"
        except PrivtrainError as error:
            came[number] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return came, told


def test_each_says_for_whom_it_waits(free_port: int, keys: Keys) -> None:
    came, told = met([(0, 2), (1, 2)], free_port, keys)
    assert came == ["trained", "trained"]
    where = f"tcp://127.0.0.1:{free_port}"
    assert told[0] == [
        f"waits for party-1 at {where}, 10 s at most",
        "is there with party-1; training begins",
    ]
    assert told[1][0] == f"waits for party-0 at {where}, 10 s at most"


def test_two_parties_of_one_rank_are_named_everywhere_before_the_timeout(
    free_port: int, keys: Keys
) -> None:
    start = time.monotonic()
    came, _ = met([(0, 3), (1, 3), (1, 3)], free_port, keys)
    assert time.monotonic() - start < 8
    wanted = "ProtocolError: party-1 is there already: two parties were started as party-1."
    assert [said.startswith(wanted) for said in came] == [True] * 3, came


@pytest.mark.parametrize("counts", [(2, 3), (3, 2)])
def test_parties_that_expect_others_are_named_everywhere(
    counts: tuple[int, int], free_port: int, keys: Keys
) -> None:
    came, _ = met([(0, counts[0]), (1, counts[1])], free_port, keys)
    for said in came:
        assert said.startswith("ProtocolError: party-"), came
        for rank, count in enumerate(counts):
            assert f"party-{rank} was started for {count} parties (party-0, party-1" in said
        assert "--world-size" in said


def test_whoever_was_launched_meets_in_the_launchers_store_and_keeps_its_place() -> None:
    """A launcher starts a run again with the same store, where the places are taken."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names, entered = ("party-0", "party-1"), list[Peers]()
    first, second = (
        Peers(rank, names, "127.0.0.1", store.port, 10.0, launched=True) for rank in range(2)
    )
    first._claim_place = lambda: pytest.fail("it was asked")  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: entered.append(second.__enter__()))
    thread.start()
    with first:
        thread.join()
        entered[0].__exit__(None, None, None)
        assert isinstance(first.board, LaunchedBoard)


@contextmanager
def three(port: int, keys: Keys) -> Iterator[tuple[Peers, Board, Board]]:
    """Party 0, and the boards of two others that do what a test likes."""
    names = ("party-0", "party-1", "party-2")
    boards: list[BoardClient] = []

    def come() -> None:
        for name in names[1:]:
            board = join(("127.0.0.1", port), names[0], name, keys[name], 10.0)
            boards.append(board)
            board.set(f"here/{names.index(name)}", "")

    thread = threading.Thread(target=come)
    thread.start()
    with Peers(0, names, "127.0.0.1", port, 2.0, keys[names[0]]) as peers:
        thread.join()
        yield peers, boards[0], boards[1]
        for rank, board in enumerate(boards, 1):
            board.set(f"done/{rank}", "")
    for board in boards:
        board.close()


def lost(peers: Peers) -> PartyLostError:
    """Whom they say is lost, soon."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        error = peers._lost(5.0)
        if error is not None:
            peers._failures.clear()
            assert isinstance(error, PartyLostError)
            return error
        time.sleep(0.01)
    pytest.fail("nobody is lost")


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would end this process.
    monkeypatch.setattr(Peers, "_keep_watch", lambda peers: None)


@pytest.mark.usefixtures("unwatched")
def test_who_is_done_and_then_freezes_is_missed_by_who_still_needs_it(
    free_port: int,
) -> None:
    with three(free_port, SECURED) as (peers, one, two):
        one.set("done/1", "")
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            two.set("beat/2", str(time.monotonic()))
            # For longer than another one may be silent.
            assert (missed := peers._lost(0.8)) is None, missed
            time.sleep(0.02)

        def needs_it() -> None:
            raise PartyLostError("party-1 sent no 'share' for 2 s.", "party-1")

        two.set("done/2", "")
        start = time.monotonic()
        with pytest.raises(PartyLostError, match="party-1 sent no 'share'") as caught:
            peers.run(needs_it)
        assert caught.value.party == "party-1"
        assert time.monotonic() - start < 2 * peers.timeout


@pytest.mark.usefixtures("unwatched")
def test_a_host_that_is_done_and_then_freezes_ends_the_run_of_who_is_not(
    free_port: int,
) -> None:
    entries = Entries(ROLES)
    for rank, name in enumerate(ROLES):
        entries.put(name, f"here/{rank}", "")
    with (
        BoardServer(entries, listening("127.0.0.1", free_port), SECURED["party-0"]),
        Peers(1, ROLES, "127.0.0.1", free_port, 1.0, SECURED["party-1"]) as peers,
    ):
        entries.put("party-0", "done/0", "")
        while peers._done != {0}:
            entries.put("party-2", "beat/2", str(time.monotonic()))
            time.sleep(0.01)
        start = time.monotonic()
        with entries._lock:  # nobody is answered any more, and nobody's beat is heard
            while (error := peers._lost(0.5)) is None and time.monotonic() < start + 5:
                time.sleep(0.01)
            assert 0.4 < time.monotonic() - start < 2 * peers.timeout
            peers.__exit__(None, None, None)
            assert time.monotonic() - start < 4 * peers.timeout
    assert isinstance(error, PartyLostError) and error.party == "party-0"
    assert "hosts the rendezvous" in str(error)


@pytest.mark.usefixtures("unwatched")
def test_who_accuses_another_one_is_seen_to_do_so(free_port: int, keys: Keys) -> None:
    with three(free_port, keys) as (peers, one, _):
        one.set("failure/1", "2 PartyLostError: it sent nothing")
        error = lost(peers)
        assert error.party == "party-2"
        said = "party-2 failed, as party-1 says: PartyLostError: it sent nothing"
        assert str(error) == said


@pytest.mark.usefixtures("unwatched")
def test_that_a_share_was_altered_is_told_whatever_else_is_said(free_port: int, keys: Keys) -> None:
    said = "step 7, masked value: it does not fit its MACs"
    with three(free_port, keys) as (peers, one, two):
        # Whoever altered it says that somebody else failed, or that it did itself.
        one.set("failure/1", "1 ValueError; why is said at that party alone")
        assert isinstance(lost(peers), PartyLostError)
        two.set("failure/2", f"2 TamperedShareError: {said}")
        peers._look_at(2)
        assert isinstance(peers._lost(5.0), TamperedShareError)

        def loses() -> None:
            raise PartyLostError("party-1 has left", "party-1")

        with pytest.raises(TamperedShareError, match=f"^party-2 says: {said}$"):
            peers.run(loses)
        # Who heard of it passes it on; whoever noticed it is quoted.
        one.set("failure/1", f"1 TamperedShareError: party-2 says: {said}")
        peers._look_at(1)
        assert str(peers._lost(5.0)) == f"party-2 says: {said}"


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("said", ["0 it is gone", "x it is gone", "3 it is gone", "", "01 gone"])
def test_who_accuses_this_party_or_nobody_is_itself_gone(
    said: str, free_port: int, keys: Keys
) -> None:
    with three(free_port, keys) as (peers, one, _):
        one.set("failure/1", said)
        assert lost(peers).party == "party-1"


@pytest.mark.usefixtures("unwatched")
def test_the_party_that_failed_knows_best_why(free_port: int, keys: Keys) -> None:
    with three(free_port, keys) as (peers, one, two):
        two.set("failure/2", "2 DataError: two classes")
        one.set("failure/1", "2 PartyLostError: it closed the connection")
        end = time.monotonic() + 5
        while len(peers._failures) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert str(lost(peers)) == "party-2 failed: DataError: two classes"


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("key", ["failure/2", "done/2", "done/0", "beat/2", "heard/2/0", "link/2"])
def test_nobody_writes_in_anothers_name(key: str, free_port: int, keys: Keys) -> None:
    with three(free_port, keys) as (peers, one, _):
        with pytest.raises(ProtocolError, match="party-1 may not write"):
            one.set(key, "2 it lies")
        assert peers.board.get(key) in (None, *map(str, range(100)))
        assert peers._failures == {} and peers._done == set()


@pytest.mark.usefixtures("unwatched")
def test_without_keys_nobody_ends_a_run_that_has_them(free_port: int) -> None:
    with three(free_port, SECURED) as (peers, _, _):
        for own in (Plain(), OTHER_STUDY["party-1"]):
            with pytest.raises((ProtocolError, ConnectionError)):
                join(("127.0.0.1", free_port), "party-0", "party-1", own, 0.2)
        with socket.create_connection(("127.0.0.1", free_port)) as stranger, suppress(OSError):
            name = b"party-1"
            stranger.sendall(struct.pack(">16sH", b"privtrain board1", len(name)) + name)
            stranger.sendall(struct.pack(">BHH", 0, 9, 1) + b"failure/12")
            stranger.settimeout(5)
            while stranger.recv(64):
                pass
        assert peers.board.get("failure/1") is None
        assert peers._lost(5.0) is None


@pytest.mark.usefixtures("unwatched")
def test_a_reason_is_told_to_others_in_one_printable_line(free_port: int, keys: Keys) -> None:
    with three(free_port, keys) as (peers, one, _):
        peers._accuse(PartyLostError("party-2 \x1b[2J is gone " + 5000 * "x", "party-2"))
        said = one.get("failure/0") or ""
        assert said.startswith("2 PartyLostError: party-2  [2J is gone xx")
        assert len(said) == 1002


def test_a_party_without_keys_does_not_meet_those_with_keys(free_port: int) -> None:
    keys = {"party-0": SECURED["party-0"], "party-1": Plain()}
    came, _ = met([(0, 2), (1, 2)], free_port, keys, timeout=0.6)
    assert came[0].startswith("PartyLostError: party-1 did not come within 0.6 s")
    assert came[1].startswith(("ProtocolError: party-0 refused", "PartyLostError: party-0 cannot"))
