"""Parties that watch each other: who is missing, there twice, or expects others is named."""

import socket
import threading
import time

import pytest

from privtrain.core.errors import PrivtrainError
from privtrain.runtimes.peers import Peers


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def alone(port: int) -> Peers:
    return Peers(
        rank=0, names=("party-0",), host="127.0.0.1", port=port, hosts_store=True, timeout=20
    )


def test_no_thread_outlives_the_run(free_port: int) -> None:
    # One inside the store while the interpreter ends would abort the process with SIGABRT.
    before = set(threading.enumerate())
    with alone(free_port) as peers:
        assert len(set(threading.enumerate()) - before) == 2
        assert peers.run(lambda: 7) == 7
    assert set(threading.enumerate()) <= before


def met(
    places: list[tuple[int, int]], port: int, timeout: float = 10.0
) -> tuple[list[str], list[list[str]]]:
    """What came of parties that meet at once, each by its rank and its number of parties.

    Returns:
        Of each what it raised, or that it trained; and the lines that it was told.
    """
    came, told = ["nothing"] * len(places), [list[str]() for _ in places]

    def meet(number: int) -> None:
        rank, count = places[number]
        names = tuple(f"party-{each}" for each in range(count))
        hosts = rank == 0 and places.index((rank, count)) == number
        peers = Peers(rank, names, "127.0.0.1", port, hosts, timeout, tell=told[number].append)
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


def test_each_says_for_whom_it_waits(free_port: int) -> None:
    came, told = met([(0, 2), (1, 2)], free_port)
    assert came == ["trained", "trained"]
    where = f"tcp://127.0.0.1:{free_port}"
    assert told[0] == [
        f"waits for party-1 at {where}, 10 s at most",
        "is there with party-1; training begins",
    ]
    assert told[1][0] == f"waits for party-0 at {where}, 10 s at most"


def test_two_parties_of_one_rank_are_named_everywhere_before_the_timeout(free_port: int) -> None:
    start = time.monotonic()
    came, _ = met([(0, 3), (1, 3), (1, 3)], free_port)
    assert time.monotonic() - start < 8
    wanted = "ProtocolError: party-1 is there already: two parties were started as party-1."
    assert [said.startswith(wanted) for said in came] == [True] * 3, came


@pytest.mark.parametrize("counts", [(2, 3), (3, 2)])
def test_parties_that_expect_others_are_named_everywhere(
    counts: tuple[int, int], free_port: int
) -> None:
    came, _ = met([(0, counts[0]), (1, counts[1])], free_port)
    for said in came:
        assert said.startswith("ProtocolError: party-"), came
        for rank, count in enumerate(counts):
            assert f"party-{rank} was started for {count} parties (party-0, party-1" in said
        assert "--world-size" in said


def test_whoever_was_launched_is_not_asked_for_its_place(free_port: int) -> None:
    """A launcher starts a run again with the same store, where the places are taken."""
    names, peers = ("party-0", "party-1"), []
    first = Peers(0, names, "127.0.0.1", free_port, True, 10.0, launched=True)
    first._claim_place = lambda: pytest.fail("it was asked")  # type: ignore[method-assign]
    second = Peers(1, names, "127.0.0.1", free_port, False, 10.0, launched=True)
    thread = threading.Thread(target=lambda: peers.append(second.__enter__()))
    thread.start()
    with first:
        thread.join()
        peers[0].__exit__(None, None, None)
