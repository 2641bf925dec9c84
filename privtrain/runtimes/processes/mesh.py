"""A mesh of real processes on one machine, one a party, that ends as a whole."""

import importlib
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from privtrain.core.runtime import MeshReply, Payload, Program, check_inputs
from privtrain.core.seeding import Seeds
from privtrain.core.validate import check_positive
from privtrain.runtimes.board import Entries
from privtrain.runtimes.certificates import make_credentials
from privtrain.runtimes.peers import SILENCE, heartbeat
from privtrain.runtimes.processes.children import Child, Event, verdict
from privtrain.runtimes.processes.worker import CHILD_FLAG, Job
from privtrain.runtimes.rendezvous import BoardServer, listening
from privtrain.runtimes.sockets import TLS

LOOPBACK = "127.0.0.1"
PARENT = "privtrain parent"
"""By which the parties know who started them, and hosts the board."""
_DAYS = 30
"""For how long the keys of one run are valid."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Runs each party of a mesh in a process of its own, on this machine.

    Whatever happens to one party (it dies, raises, freezes, sends another shape), the run ends
    everywhere within the timeout, with an error that names it, and no process is left behind.
    Parties meet on loopback; programs, inputs and the keys of this one run reach them over standard
    input, and their connections are encrypted and authenticated by mutual TLS 1.3.

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
        return "processes"

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats of a party."""
        return heartbeat(self.timeout)

    def run(
        self,
        programs: Mapping[str, Program],
        inputs: Mapping[str, Payload],
        *,
        seeds: Seeds = Seeds(0),
        report: Callable[[int, int], None] | None = None,
    ) -> dict[str, MeshReply]:
        """Runs programs, which have to pickle with cloudpickle, each in a process of its own."""
        check_inputs(programs, inputs)
        names = tuple(programs)
        credentials = make_credentials((*names, PARENT), days=_DAYS)
        events: queue.Queue[Event] = queue.Queue()
        listener = listening(LOOPBACK, 0)
        port: int = listener.getsockname()[1]
        own = TLS(credentials[PARENT])
        with BoardServer(Entries(names), listener, own), self._children(names) as children:
            for rank, child in enumerate(children):
                job = Job(
                    program=programs[child.name],
                    inputs=inputs.get(child.name, {}),
                    names=names,
                    rank=rank,
                    seeds=seeds,
                    meeting=(LOOPBACK, port),
                    parent=PARENT,
                    timeout=self.timeout,
                    credentials=credentials[child.name],
                )
                child.start(job, events, echo=self.echo)
            self._watch(children, events, report or (lambda done, total: None))
            return {child.name: child.reply for child in children if child.reply is not None}

    def import_parts(self) -> None:
        # The parties import for themselves, in every run alike.
        importlib.import_module("cloudpickle")
        importlib.import_module("cryptography.x509")

    @contextmanager
    def _children(self, names: tuple[str, ...]) -> Iterator[list[Child]]:
        children: list[Child] = []
        try:
            children.extend(Child(name, _start(_environment(), self.beat)) for name in names)
            yield children
        # On every way out, an interrupt included: no process may outlive the call.
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
                # This process was stopped itself (Ctrl-Z, a laptop's lid) and could hear nobody:
                # the silence is its own.
                _forgive(children)
            failed += [child for child in children if child.failed and child not in failed]
            if failed and deadline is None:
                # Who is heard of first is often not who failed first: when a party dies, those that
                # wait for it report a lost contact. A little later the cause is known, too.
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
        # Silence counts only when everything that was said is read: a parent that is busy is late.
        if events.empty():
            now = time.monotonic()
            for child in children:
                if not child.settled and now - child.seen > SILENCE * self.timeout:
                    child.frozen = now - child.seen


def _forgive(children: list[Child]) -> None:
    for child in children:
        child.seen, child.frozen = time.monotonic(), None


def _start(environment: dict[str, str], beat: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "privtrain", "party", CHILD_FLAG, str(beat)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # so that Ctrl-C reaches the parent only, which ends the group
    )


def _environment() -> dict[str, str]:
    # Children must find a checkout that is not installed, too.
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        # Otherwise gloo takes the interface of the host's name, which may be open to others.
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        # Read when torch is imported; parties would take the cores from each other.
        "OMP_NUM_THREADS": "1",
        # Of glibc: large arrays come from memory that the process keeps. Otherwise each of them is
        # fetched from the system page by page, which takes longer than computing what is in it.
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    }
