"""A launcher's store serves as a board."""

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from privtrain.runtimes.launcher import LaunchedBoard
from privtrain.runtimes.rendezvous import listening


def test_a_launchers_store_is_a_board_for_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    left, right = (LaunchedBoard("127.0.0.1", store.port, 5.0) for _ in range(2))
    assert left.own_address == "127.0.0.1"
    assert left.get("key") is None
    left.set("key", "value")
    assert right.get("key") == "value"
    assert left.claim("claim", "first") == "first"
    assert right.claim("claim", "second") == "first"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert LaunchedBoard("127.0.0.1", store.port, 5.0).get("key") is None


def test_a_store_that_is_not_there_is_missed() -> None:
    with listening("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
    with pytest.raises(ConnectionError):
        LaunchedBoard("127.0.0.1", port, 0.2)
