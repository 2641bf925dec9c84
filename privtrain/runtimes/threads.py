"""A mesh in threads of this process, one for each party, over the links that processes have.

For trying a program, and for looking into all its parties in one debugger. Parties share the
interpreter's lock: what is written in Python runs at one party at a time, and only what torch
computes runs side by side. Times and memory are those of one process and say little about a mesh.
"""

import importlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from privtrain.core.cost import peak_memory
from privtrain.core.errors import PartyLostError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.runtime import MeshReply, Party, Payload, Program, check_inputs
from privtrain.core.seeding import Seeds, SystemEntropy
from privtrain.core.transcript import Entry
from privtrain.core.validate import check_positive
from privtrain.runtimes.board import Entries, LocalBoard
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.peers import heartbeat
from privtrain.runtimes.processes.children import verdict
from privtrain.runtimes.processes.mesh import LOOPBACK
from privtrain.runtimes.processes.worker import Failure, failure_of

Report = Callable[[int, int], None]
Events = queue.Queue[tuple[int, int] | None]
"""Progress `(done, total)` of rank 0, or None where a party has ended."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Runs each party of a mesh in a thread of this process, over sockets on loopback.

    A program runs as in `Processes`: on copies of its own, over the same links, with secrets from
    the operating system. An error at one party ends the others within the timeout, and is raised
    with its name. No thread can be ended from outside, though: of one that computes on or sleeps,
    the error says that it still runs. Whoever runs the process can read the secrets of all parties.

    An engine that keeps one connection for its whole process, as `CrypTen` does, refuses it.

    Args:
        timeout: Seconds within which a lost party ends the run.
    """

    timeout: float = 60.0
    real: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_positive(timeout=self.timeout)

    @property
    def name(self) -> str:
        return "threads"

    def import_parts(self) -> None:
        importlib.import_module("cloudpickle")

    def run(
        self,
        programs: Mapping[str, Program],
        inputs: Mapping[str, Payload],
        *,
        seeds: Seeds = Seeds(0),
        report: Report | None = None,
    ) -> dict[str, MeshReply]:
        """Runs programs, which have to pickle with cloudpickle, each in a thread of its own."""
        check_inputs(programs, inputs)
        # Parties share neither a model in their program nor what they bring: each has a copy, as
        # it would in a process of its own.
        jobs = {name: _copy((programs[name], inputs.get(name, {}), seeds)) for name in programs}
        run = _Run(self.timeout, Entries(tuple(programs)), tuple(programs))
        roles = [_Role(name, run, *job) for name, job in jobs.items()]
        try:
            for role in roles:
                role.thread.start()
            _watch(roles, run, report)
        finally:  # on every way out, an interrupt included
            run.ended.set()
            for role in roles:
                role.wake()
            left = _join(roles, self.timeout)
        failed = [role for role in run.settled if role.failure is not None]
        if failed:
            error = verdict(roles, failed)
            for name in left:
                error.add_note(
                    f"The thread of {name} still runs: nothing ends a thread but its own program. "
                    "Processes() ends all of them."
                )
            raise error
        return {role.name: role.reply for role in roles if role.reply is not None}


@dataclass
class _Run:
    """What the threads of a run share.

    Args:
        timeout: Seconds after which a silent party counts as lost.
        entries: Of the board where the parties meet.
        names: All parties, by rank.
        settled: Those that ended, in the order in which they did.
        ended: Whether nobody is to wait any more.
        events: What the thread that started them is told.
    """

    timeout: float
    entries: Entries
    names: tuple[str, ...]
    settled: list["_Role"] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    events: Events = field(default_factory=queue.Queue)


@dataclass(eq=False)
class _Role:
    """One party's thread."""

    name: str
    run: _Run
    program: Program
    inputs: Payload
    seeds: Seeds
    reply: MeshReply | None = None
    failure: Failure | None = None
    cause: BaseException | None = None
    link: SocketLink | None = None
    thread: threading.Thread = field(init=False)
    # A thread dies and freezes with its process only.
    died: ClassVar[None] = None
    frozen: ClassVar[None] = None
    last_words: ClassVar[str] = ""

    def __post_init__(self) -> None:
        name = f"party {self.name}"
        # Of a daemon, the interpreter's end does not wait for a program that never ends.
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def settled(self) -> bool:
        return self.reply is not None or self.failure is not None

    def wake(self) -> None:
        """Ends its waiting; where the run went well, it waits no more."""
        if self.link is not None and self.thread.is_alive():
            self.link.interrupt()

    def _work(self) -> None:
        try:
            self.reply = self._reply()
        except OWN_ERRORS as error:
            self.failure, self.cause = failure_of(error), error
        self.run.settled.append(self)
        self.run.events.put(None)

    def _reply(self) -> MeshReply:
        run = self.run
        rank = run.names.index(self.name)

        def watch(done: int, total: int) -> None:
            if rank == 0 and total > 0:
                run.events.put((done, total))

        board = LocalBoard(run.entries, self.name, LOOPBACK)
        link = SocketLink(run.names, rank, board, run.timeout, watch)
        with link:
            self.link = link
            party = Party(
                name=self.name,
                round=0,
                train={},
                state={},
                seeds=self.seeds,
                entropy=SystemEntropy(),
                sent=self.inputs,
                link=ThreadLink(link, run.ended),
            )
            payload = self.program(self.inputs, party)
        return MeshReply(
            payload=payload,
            entries=tuple(link.entries),
            setups=tuple(link.setups),
            peak_memory_bytes=peak_memory(),
        )


@dataclass(frozen=True)
class ThreadLink:
    """A party's link beside those of the others in one process, which share what belongs to it.

    Args:
        inner: The link.
        ended: Set where nobody is to wait any more.
    """

    inner: SocketLink
    ended: threading.Event

    @property
    def timeout(self) -> float:
        return self.inner.timeout

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def entries(self) -> list[Entry]:
        return self.inner.entries

    @property
    def meeting(self) -> tuple[str, int]:
        # What meets there belongs to the process, such as torch's process group: parties in one
        # process would take each other's.
        raise UnsupportedError(
            f"{self.names[self.rank]} runs in a thread, and this engine opens channels of its own, "
            "of which a process has one: give runtimes=Runtimes(mesh=Processes())."
        )

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        self._check(to)
        self.inner.send(to, kind, tensor)

    def receive(
        self,
        sender: str,
        kind: str,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        self._check(sender)
        return self.inner.receive(sender, kind, dtype=dtype, shape=shape)

    def read_ahead(self, sender: str) -> None:
        self.inner.read_ahead(sender)

    def knows(self, what: str) -> None:
        self.inner.knows(what)

    def report(self, done: int, total: int) -> None:
        self.inner.report(done, total)

    def _check(self, other: str) -> None:
        if self.ended.is_set():
            raise PartyLostError(f"{other} is not waited for: the run was ended.", other)


def _copy(job: tuple[Program, Payload, Seeds]) -> tuple[Program, Payload, Seeds]:
    import cloudpickle  # heavy, and needed only where a mesh is started

    copied: tuple[Program, Payload, Seeds] = cloudpickle.loads(cloudpickle.dumps(job))
    return copied


def _watch(roles: Sequence[_Role], run: _Run, report: Report | None) -> None:
    """Waits until all have ended, or one failed and the others had time to say what they saw."""
    deadline: float | None = None
    while not all(role.settled for role in roles):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return
        try:
            progress = run.events.get(timeout=heartbeat(run.timeout) if left is None else left)
        except queue.Empty:
            continue
        if progress is not None and report is not None:
            report(*progress)
        if deadline is None and any(role.failure is not None for role in roles):
            # Who is heard of first is often not who failed first, as among processes.
            deadline = time.monotonic() + min(2.0, 0.2 * run.timeout)


def _join(roles: Sequence[_Role], timeout: float) -> list[str]:
    """Waits for the threads; returns the names of those that do not end."""
    end = time.monotonic() + timeout
    for role in roles:
        if role.thread.ident is not None:
            role.thread.join(max(0.0, end - time.monotonic()))
    return [role.name for role in roles if role.thread.is_alive()]
