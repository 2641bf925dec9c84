import socket
import threading

from privtrain.runtimes.peers import Peers


def alone(port: int) -> Peers:
    return Peers(
        rank=0, names=("party-0",), host="127.0.0.1", port=port, hosts_store=True, timeout=20
    )


def test_no_thread_outlives_the_run() -> None:
    # One inside the store while the interpreter ends would abort the process with SIGABRT.
    before = set(threading.enumerate())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    with alone(port) as peers:
        assert len(set(threading.enumerate()) - before) == 2
        assert peers.run(lambda: 7) == 7
    assert set(threading.enumerate()) <= before
