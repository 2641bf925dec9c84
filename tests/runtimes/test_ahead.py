"""What is read ahead arrives whole and in order, as without a thread in between."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from privtrain.runtimes import ahead
from privtrain.runtimes.ahead import Ahead


@contextmanager
def reading(timeout: float = 5.0) -> Iterator[tuple[Ahead, socket.socket]]:
    here, there = socket.socketpair()
    reader = Ahead(here.recv_into, timeout)
    try:
        yield reader, there
    finally:
        there.close()
        here.shutdown(socket.SHUT_RDWR)
        reader.close()
        here.close()


def taken(reader: Ahead, size: int) -> bytes:
    data, have = bytearray(size), 0
    while have < size:
        count = reader.take(memoryview(data)[have:])
        assert count > 0
        have += count
    return bytes(data)


def test_bytes_come_in_order_however_they_are_cut() -> None:
    sent = bytes(number * number % 251 for number in range(2**20))
    with reading() as (reader, there):
        thread = threading.Thread(target=there.sendall, args=(sent,))
        thread.start()
        cuts = (1, 2**18 - 2, 2, 2**19, 2**18 - 1)
        assert b"".join(taken(reader, cut) for cut in cuts) == sent
        thread.join()


def test_they_are_there_before_they_are_asked_for() -> None:
    sent = bytes(2**22)  # more than a pair of sockets holds
    with reading() as (reader, there):
        there.settimeout(5.0)
        there.sendall(sent)
        assert taken(reader, len(sent)) == sent


def test_no_more_is_read_than_may_lie_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LIMIT", 2**12)
    with reading() as (reader, there):
        there.settimeout(0.1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 2**24:
                sent += there.send(bytes(2**16))
        # Once some of it is taken, more is read.
        taken(reader, sent)


def test_who_waits_gives_up_in_time_and_may_ask_again() -> None:
    with reading(timeout=0.05) as (reader, there):
        with pytest.raises(TimeoutError):
            reader.take(memoryview(bytearray(1)))
        there.sendall(b"late")
        time.sleep(0.01)
        assert taken(reader, 4) == b"late"


def test_a_silence_that_the_connection_notices_is_none_of_who_did_not_ask() -> None:
    here, there = socket.socketpair()
    here.settimeout(0.01)
    reader = Ahead(here.recv_into, 5.0)
    time.sleep(0.05)
    there.sendall(b"late")
    assert taken(reader, 4) == b"late"
    there.close()
    reader.close()
    here.close()


def test_an_end_comes_after_what_was_sent_before() -> None:
    with reading() as (reader, there):
        there.sendall(b"last")
        there.close()
        assert taken(reader, 4) == b"last"
        assert reader.take(memoryview(bytearray(1))) == 0


def test_an_error_comes_after_what_was_sent_before() -> None:
    pieces = [b"last"]

    def receive(view: memoryview) -> int:
        if not pieces:
            raise ConnectionResetError("reset")
        view[:4] = pieces.pop()
        return 4

    reader = Ahead(receive, 5.0)
    assert taken(reader, 4) == b"last"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            reader.take(memoryview(bytearray(1)))
    reader.close()
