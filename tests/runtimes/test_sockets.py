"""Mutual TLS 1.3 between roles: both ends are known, and nothing else is spoken."""

import os
import socket
import threading
from dataclasses import replace

import pytest

from privtrain.core.errors import ProtocolError
from privtrain.runtimes.sockets import TLS, Plain, Transport
from tests.runtimes.meshes import KEYS, OTHER_STUDY


def met(client: Transport, server: Transport, peer: str = "left") -> tuple[str | None, bytes, str]:
    """Who the server sees, what it reads, and the version; an error of either end is raised."""
    here, there = socket.socketpair()
    here.settimeout(5)
    there.settimeout(5)
    seen: list[tuple[str | None, bytes, str]] = []
    failed: list[Exception] = []

    def serve() -> None:
        try:
            end, name = server.accepted(there)
            with end:
                version = getattr(end, "version", lambda: "")()
                seen.append((name, end.recv(100), version))
        except (OSError, ProtocolError) as error:
            failed.append(error)
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.connected(here, peer) as end:
            end.sendall(b"a share")
            thread.join()
    finally:
        here.close()
        thread.join()
    if failed:
        raise failed[0]
    return seen[0]


def test_both_ends_are_known_by_their_certificates() -> None:
    assert met(KEYS["right"], KEYS["left"]) == ("right", b"a share", "TLSv1.3")
    assert met(KEYS["dealer"], KEYS["left"]) == ("dealer", b"a share", "TLSv1.3")
    assert met(Plain(), Plain()) == (None, b"a share", "")
    assert (KEYS["left"].encrypted, Plain().encrypted) == (True, False)


def test_what_travels_is_not_what_is_said() -> None:
    secret = b"a share that is long enough to be found"
    here, there = socket.socketpair()
    (outside, tapped), record = socket.socketpair(), bytearray()

    def relay(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(2**16):
            record.extend(data)
            target.sendall(data)

    for pair in ((outside, here), (here, outside)):
        threading.Thread(target=relay, args=pair, daemon=True).start()
    for one in (there, tapped):
        one.settimeout(5)
    heard: list[bytes] = []

    def serve() -> None:
        with KEYS["left"].accepted(there)[0] as end:
            heard.append(end.recv(100))

    thread = threading.Thread(target=serve)
    thread.start()
    with KEYS["right"].connected(tapped, "left") as end:
        end.sendall(secret)
        thread.join()
    assert heard == [secret]
    assert len(record) > len(secret) and secret not in record
    outside.close()
    here.close()


@pytest.mark.parametrize(
    ("client", "server", "words"),
    [
        (KEYS["right"], OTHER_STUDY["left"], "left could not be authenticated"),
        (KEYS["right"], KEYS["dealer"], "its certificate names 'dealer'"),
        (OTHER_STUDY["right"], KEYS["left"], "left could not be authenticated"),
    ],
    ids=["other study", "other role", "own study is another"],
)
def test_a_client_speaks_to_nobody_else(client: TLS, server: Transport, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        met(client, server)


def test_who_ends_meanwhile_is_lost_and_no_stranger() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(5)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="before it had proven who it is; it ended, or"):
            KEYS["right"].connected(here, "left")


def test_credentials_that_do_not_belong_together_are_refused() -> None:
    own, other = KEYS["left"].credentials, KEYS["right"].credentials
    for wrong in (replace(own, key=other.key), replace(own, authority="none")):
        with pytest.raises(ValueError, match="the credentials of left"):
            TLS(wrong)


def test_keys_leave_no_file_open() -> None:
    # Each context would leave four; other threads of the process open and close some, too.
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        TLS(KEYS["left"].credentials)
    assert len(os.listdir("/dev/fd")) < before + 10
