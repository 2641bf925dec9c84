"""A pipe keeps the order, never holds more than its bound, and leaves nobody waiting."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtrain.core.errors import PartyLostError
from privtrain.mpc.material.pipe import Pipe


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(20, 60))
def test_blocks_come_in_order_within_the_bound(blocks: list[bytes], bound: int) -> None:
    pipe = Pipe(bound=bound, timeout=10)
    most = 0

    def deal() -> None:
        nonlocal most
        for block in blocks:
            pipe.put(block)
            most = max(most, pipe._size)
        pipe.close()

    dealer = threading.Thread(target=deal)
    dealer.start()
    taken = []
    while (block := pipe.get()) is not None:
        taken.append(block)
    dealer.join(10)
    assert taken == blocks and most <= bound
    assert pipe.get() is None


def test_a_full_pipe_makes_the_dealer_wait() -> None:
    pipe = Pipe(bound=10, timeout=10)
    pipe.put(bytes(6))
    dealer = threading.Thread(target=pipe.put, args=(bytes(5),))
    dealer.start()
    dealer.join(0.05)
    assert dealer.is_alive()
    assert pipe.get() == bytes(6)
    dealer.join(10)
    assert not dealer.is_alive() and pipe.get() == bytes(5)


def test_nobody_waits_for_ever() -> None:
    pipe = Pipe(bound=10, timeout=0.1)
    started = time.monotonic()
    with pytest.raises(PartyLostError, match=r"dealt no material for 0\.1 s"):
        pipe.get()
    pipe.put(bytes(10))
    with pytest.raises(PartyLostError, match=r"took none of 10 bytes of material for 0\.1 s"):
        pipe.put(bytes(1))
    assert 0.2 <= time.monotonic() - started < 5


def test_the_end_reaches_both_sides() -> None:
    pipe = Pipe(bound=10, timeout=10)
    pipe.put(b"dealt")
    failed = ZeroDivisionError("one over nothing")
    pipe.close(failed)
    pipe.close()
    assert pipe.get() == b"dealt"
    with pytest.raises(PartyLostError, match="ZeroDivisionError: one over nothing") as caught:
        pipe.get()
    assert caught.value.__cause__ is failed
    with pytest.raises(PartyLostError, match="closed"):
        pipe.put(b"more")


@pytest.mark.parametrize("waits", ["put", "get"])
def test_closing_wakes_who_waits(waits: str) -> None:
    pipe = Pipe(bound=4, timeout=30)
    outcomes: list[object] = []

    def wait() -> None:
        try:
            outcomes.append(pipe.get() if waits == "get" else pipe.put(b"1234"))
        except PartyLostError as error:
            outcomes.append(type(error))

    if waits == "put":
        pipe.put(b"1234")
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    pipe.close()
    thread.join(5)
    assert outcomes == [PartyLostError if waits == "put" else None]


def test_a_block_larger_than_the_bound_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="5 bytes to fit bound=4"):
        Pipe(bound=4, timeout=10).put(b"12345")
    with pytest.raises(ValueError, match="bound=0"):
        Pipe(bound=0, timeout=10)
    with pytest.raises(ValueError, match="timeout=0"):
        Pipe(bound=1, timeout=0)
