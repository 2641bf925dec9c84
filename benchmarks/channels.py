"""What a round between two processes costs over our links, and over bare sockets: TCP and TLS.

    python benchmarks/channels.py [--quick] [--json]

In a round both processes send and then receive. Rounds of all kinds are measured in turn, in the
same two processes, on loopback. The target for TLS is 3 times raw TCP for 8 bytes.
"""

import multiprocessing
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from harness import Row, from_seconds, main

from privtrain.runtimes.board import Entries
from privtrain.runtimes.certificates import Credentials, make_credentials
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.rendezvous import BoardServer, join, listening
from privtrain.runtimes.sockets import TLS, Plain, Transport

LOOPBACK = "127.0.0.1"
NAMES = ("party-0", "party-1")
LINK, LINK_IN_CLEAR, BARE_TLS, BARE_TCP = "link over TLS", "link over TCP", "TLS", "TCP"
SIDES = (LINK, LINK_IN_CLEAR, BARE_TLS, BARE_TCP)
PAIRS = ((LINK, BARE_TCP), (BARE_TLS, BARE_TCP), (LINK, BARE_TLS), (LINK, LINK_IN_CLEAR))
ROUNDS = {8: 100, 2**15: 30, 2**20: 5}
"""Rounds in one timing, by bytes."""

TIMEOUT = 60.0


def bare(rank: int, port: int, transport: Transport) -> socket.socket:
    """A connection to the other process; rank 0 accepts it."""
    if rank == 0:
        with socket.create_server(("127.0.0.1", port)) as listener:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return transport.accepted(connection)[0]
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return transport.connected(connection, NAMES[0])


def small_round(connection: socket.socket, data: bytes, place: memoryview) -> None:
    """Sends what the network takes at once, then receives as much."""
    connection.sendall(data)
    have = 0
    while have < len(place):
        have += connection.recv_into(place[have:])


def large_round(connection: socket.socket, data: bytes, place: memoryview) -> None:
    """Sends and receives as either is possible: neither end may wait for the other to read."""
    rest, have = memoryview(data), 0
    while rest or have < len(place):
        before = len(rest), have
        if rest:
            with suppress(BlockingIOError, ssl.SSLWantWriteError):
                rest = rest[connection.send(rest[: 2**18]) :]
        if have < len(place):
            with suppress(BlockingIOError, ssl.SSLWantReadError):
                have += connection.recv_into(place[have:])
        if before == (len(rest), have):
            select.select([connection], [connection] if rest else [], [])


def over_socket(connection: socket.socket) -> Callable[[int, int], None]:
    """Does so many rounds of so many bytes."""

    def rounds(size: int, count: int) -> None:
        data, place = bytes(size), memoryview(bytearray(size))
        large = size > 2**16
        connection.setblocking(not large)
        for _ in range(count):
            (large_round if large else small_round)(connection, data, place)

    return rounds


def over_link(link: SocketLink, other: str) -> Callable[[int, int], None]:
    """Does so many rounds of so many bytes."""

    def rounds(size: int, count: int) -> None:
        tensor = torch.zeros(size // 8, dtype=torch.int64)
        for _ in range(count):
            link.send(other, "masked share", tensor)
            link.receive(other, "masked share")
        link.entries.clear()

    return rounds


def measured(
    rank: int, meetings: list[int], ports: list[int], own: Credentials, plan: list[tuple[int, int]]
) -> dict[tuple[str, int], list[float]]:
    """Seconds of a round, by kind and bytes: one process of the two."""
    torch.set_num_threads(1)
    seconds: dict[tuple[str, int], list[float]] = {}
    transports: list[Transport] = [TLS(own), Plain()]
    with ExitStack() as stack:
        ways = {}
        for name, meeting, transport in zip(SIDES[:2], meetings, transports, strict=True):
            board = join((LOOPBACK, meeting), NAMES[0], NAMES[rank], Plain(), TIMEOUT)
            stack.callback(board.close)
            link = SocketLink(NAMES, rank, board, TIMEOUT, transport=transport)
            ways[name] = over_link(stack.enter_context(link), NAMES[1 - rank])
        for name, port, transport in zip(SIDES[2:], ports, transports, strict=True):
            ways[name] = over_socket(stack.enter_context(bare(rank, port, transport)))
        for size, repeats in plan:
            for repeat in range(repeats + 1):
                # Their order alternates; the first time is a warm-up.
                for name in SIDES if repeat % 2 else reversed(SIDES):
                    start = time.perf_counter()
                    ways[name](size, ROUNDS[size])
                    took = (time.perf_counter() - start) / ROUNDS[size]
                    if repeat:
                        seconds.setdefault((name, size), []).append(took)
    return seconds


def other_process(pipe: Connection, *arguments: Any) -> None:
    """The process of rank 1."""
    measured(1, *arguments)
    pipe.send("done")


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def rows(quick: bool) -> list[Row]:
    """Rounds of three sizes, each kind beside those that it is compared with."""
    plan = [(8, 15), (2**15, 5)] if quick else [(size, 31) for size in ROUNDS]
    listeners = [listening(LOOPBACK, 0) for _ in "ab"]
    keys = make_credentials(NAMES, days=1)
    meetings = [listener.getsockname()[1] for listener in listeners]
    shared = (meetings, [free_port(), free_port()])
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=other_process, args=(there, *shared, keys[NAMES[1]], plan), daemon=True
    )
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(BoardServer(Entries(NAMES), listener))
        process.start()
        seconds = measured(0, *shared, keys[NAMES[0]], plan)
        here.recv()
        process.join()
    return [
        from_seconds(
            f"round of {size} bytes",
            seconds[ours, size],
            seconds[against, size],
            ours_name=ours,
            against_name=against,
        )
        | {"ours_us_min": round(1e6 * min(seconds[ours, size]), 1)}
        | {"against_us_min": round(1e6 * min(seconds[against, size]), 1)}
        for size, _ in plan
        for ours, against in PAIRS
    ]


if __name__ == "__main__":
    main(rows)
