"""A mesh of real processes on one machine, one a party, that ends as a whole."""

import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from privtrain.core.runtime import MeshReply, Payload, Program
from privtrain.core.validate import check_positive
from privtrain.runtimes.processes.children import Child, Event, verdict
from privtrain.runtimes.processes.worker import CHILD_FLAG, Job

_LOOPBACK = "127.0.0.1"
_SILENCE = 0.7
"""Fraction of the timeout after which a silent party counts as frozen; the rest is for ending."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Runs each party of a mesh in a process of its own, on this machine.

    Whatever happens to one party (it dies, raises, freezes, sends another shape), the run ends
    everywhere within the timeout, with an error that names it, and no process is left behind.
    Parties meet on loopback; programs and inputs reach them over standard input.

    Args:
        timeout: Seconds within which a lost party ends the run.
        echo: Whether what parties print is passed on to standard error.
    """

    timeout: float = 60.0
    echo: bool = False
    real: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_positive(timeout=self.timeout)

    @property
    def name(self) -> str:
        """What the runtime is called."""
        return "processes"

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats of a party."""
        return min(0.5, self.timeout / 20)

    def spmd(
        self,
        program: Program,
        inputs: Mapping[str, Payload],
        *,
        report: Callable[[int, int], None] | None = None,
    ) -> dict[str, MeshReply]:
        """Runs a program at every party.

        Args:
            program: What every party runs; pickles with cloudpickle.
            inputs: Party to what it brings, in the order of ranks.
            report: Called as `report(done, total)` while rank 0 makes progress.

        Returns:
            Party to reply.

        Raises:
            PartyLostError: If a party dies, freezes or raises; its name is in the error.
            ProtocolError: If a party breaks the protocol.
        """
        names = tuple(inputs)
        events: queue.Queue[Event] = queue.Queue()
        with _rendezvous(self.timeout) as port, self._children(names, port) as children:
            for rank, child in enumerate(children):
                own = inputs[child.name]
                job = Job(program=program, name=child.name, rank=rank, names=names, inputs=own)
                child.start(job, events, echo=self.echo)
            self._watch(children, events, report or (lambda done, total: None))
            return {child.name: child.reply for child in children if child.reply is not None}

    @contextmanager
    def _children(self, names: tuple[str, ...], port: int) -> Iterator[list[Child]]:
        children: list[Child] = []
        try:
            for rank, name in enumerate(names):
                environment = _environment(rank, len(names), port, self.timeout)
                children.append(Child(name, _start(environment, self.beat)))
            yield children
        finally:
            for child in children:
                child.end()

    def _watch(
        self,
        children: list[Child],
        events: "queue.Queue[Event]",
        report: Callable[[int, int], None],
    ) -> None:
        failed: list[Child] = []
        deadline: float | None = None
        while not all(child.settled for child in children):
            before = time.monotonic()
            if deadline is not None and before > deadline:
                break
            self._listen(children, events, report)
            if time.monotonic() - before > 4 * self.beat:
                _forgive(children)  # this process was stopped itself and heard nobody
            failed += [child for child in children if child.failed and child not in failed]
            if failed and deadline is None:
                # Who failed first may only have lost contact: wait a little for the cause.
                deadline = time.monotonic() + min(2.0, 0.2 * self.timeout)
        if failed:
            raise verdict(children, failed)

    def _listen(
        self,
        children: list[Child],
        events: "queue.Queue[Event]",
        report: Callable[[int, int], None],
    ) -> None:
        try:
            child, kind, body = events.get(timeout=self.beat)
        except queue.Empty:
            pass
        else:
            progress = child.take(kind, body)
            if progress is not None and progress[1] > 0 and child is children[0]:
                report(*progress)
        if events.empty():
            now = time.monotonic()
            for child in children:
                if not child.settled and now - child.seen > _SILENCE * self.timeout:
                    child.frozen = now - child.seen


def _forgive(children: list[Child]) -> None:
    for child in children:
        child.seen, child.frozen = time.monotonic(), None


@contextmanager
def _rendezvous(timeout: float) -> Iterator[int]:
    """Where the parties meet: a key-value store in this process, on a free port of loopback."""
    # torch.distributed does not list the store among its names.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        store = TCPStore(
            _LOOPBACK,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            # The listening socket itself: nobody can take the port in between, and the store
            # cannot be reached from other machines.
            master_listen_fd=listener.detach(),
        )
    yield port
    del store


def _start(environment: dict[str, str], beat: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "privtrain", "party", CHILD_FLAG, str(beat)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # so that Ctrl-C reaches the parent only, which ends the group
    )


def _environment(rank: int, count: int, port: int, timeout: float) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
        "RENDEZVOUS": "env://",
        "DISTRIBUTED_BACKEND": "gloo",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent hosts the store, no child does
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "PRIVTRAIN_TIMEOUT": str(timeout),
        "OMP_NUM_THREADS": "1",
    }
