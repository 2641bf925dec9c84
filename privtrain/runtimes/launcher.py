"""The store that torchrun hosts, as a board: in clear, and whoever reaches it can write into it."""

import os
import socket
from datetime import timedelta
from typing import Any


class LaunchedBoard:
    """The board in a launcher's store.

    Args:
        host: Host of the store.
        port: Port of the store.
        timeout: Seconds within which it has to be there, and to answer each time.

    Raises:
        ConnectionError: If it cannot be reached.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        # torch.distributed does not list its stores among its names.
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        self._store: Any
        try:
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
        except RuntimeError as error:
            raise _gone(error) from error
        # A launcher may start a run again with the same store; what ended then is not to end now.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"privtrain/{attempt}", store)
        self.own_address = _own_address(host, port)

    def set(self, key: str, value: str) -> None:
        try:
            self._store.set(key, value)
        except RuntimeError as error:
            raise _gone(error) from error

    def get(self, key: str) -> str | None:
        try:
            # `get` of a key that nobody has set would wait for it until the timeout.
            if not self._store.check([key]):
                return None
            value: bytes = self._store.get(key)
        except RuntimeError as error:
            raise _gone(error) from error
        return value.decode()

    def claim(self, key: str, value: str) -> str:
        try:
            said: bytes = self._store.compare_set(key, "", value)
        except RuntimeError as error:
            raise _gone(error) from error
        return said.decode()


def _gone(error: RuntimeError) -> ConnectionError:
    return ConnectionError(str(error).splitlines()[0])


def _own_address(host: str, port: int) -> str:
    family, kind, proto, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    # Of UDP, connecting sends nothing: it asks the system for the way.
    with socket.socket(family, kind, proto) as probe:
        probe.connect(there)
        own: str = probe.getsockname()[0]
    return own
