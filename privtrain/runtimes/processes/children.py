"""The processes of a mesh as their parent sees them, and which of them is at fault."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from privtrain.core.errors import (
    PartyLostError,
    PrivtrainError,
    ProtocolError,
    TamperedShareError,
)
from privtrain.core.failures import RaisedElsewhereError
from privtrain.core.runtime import MeshReply
from privtrain.runtimes.processes.frames import FrameWriter, Kind, frames, unpack_beat
from privtrain.runtimes.processes.worker import Failure, Job

Event = tuple["Child", Kind | None, bytes]
"""What a child did: a frame, or the end of its output (kind None)."""


@dataclass(eq=False)
class Child:
    """One party's process.

    Args:
        name: Name of the party.
        process: Its process, a group of its own, with three pipes.
        seen: When it was last heard, on the monotonic clock.
        reply: What its program returned.
        failure: What its program raised.
        died: How it ended, where it did before it had replied.
        frozen: For how many seconds it has been silent, where that was too long.
        said: The last lines of its standard error.
    """

    name: str
    process: subprocess.Popen[bytes]
    seen: float = field(default_factory=time.monotonic)
    reply: MeshReply | None = None
    failure: Failure | None = None
    died: str | None = None
    frozen: float | None = None
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.reply is not None or self.failed

    @property
    def failed(self) -> bool:
        """Whether it will not deliver."""
        return self.failure is not None or self.died is not None or self.frozen is not None

    @property
    def cause(self) -> Exception | None:
        """What its program raised, to be shown as the cause of the error that names it."""
        return None if self.failure is None else RaisedElsewhereError(self.failure.trace)

    @property
    def last_words(self) -> str:
        """What it printed last, for an error message; empty where it printed nothing."""
        return "" if not self.said else "\nIts last words:\n  " + "\n  ".join(self.said)

    def start(self, job: Job, events: "queue.Queue[Event]", *, echo: bool) -> None:
        """Starts the threads that send it its job and read what it says."""
        stdin, stdout, stderr = _pipes(self.process)
        self._spawn(self._feed, stdin, job)
        self._spawn(self._listen, stdout, events)
        self._spawn(self._overhear, stderr, echo)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _feed(self, stdin: BinaryIO, job: Job) -> None:
        import cloudpickle  # heavy, and needed only where processes are started

        # First where modules are found, then what is pickled: the job names modules of the user.
        writer = FrameWriter(stdin)
        with suppress(OSError, ValueError):  # it died meanwhile; the end of its output says so
            writer.write(Kind.PATHS, pickle.dumps(sys.path))
            writer.write(Kind.JOB, cloudpickle.dumps(job))

    def _listen(self, stdout: BinaryIO, events: "queue.Queue[Event]") -> None:
        with suppress(ValueError):  # the parent closed the pipe
            for kind, body in frames(stdout):
                events.put((self, kind, body))
        events.put((self, None, b""))

    def _overhear(self, stderr: BinaryIO, echo: bool) -> None:
        # Read to the end, also where nobody wants it: a child whose pipe is full would block.
        with suppress(ValueError):
            for line in stderr:
                text = line.decode(errors="replace").rstrip()
                self.said.append(text)
                if echo:
                    print(f"[{self.name}] {text}", file=sys.stderr)

    def take(self, kind: Kind | None, body: bytes) -> tuple[int, int] | None:
        """Records an event; returns progress where it was a heartbeat."""
        # Anything it says is a sign of life, not heartbeats alone.
        self.seen = time.monotonic()
        if kind is Kind.BEAT:
            return unpack_beat(body)
        if kind is Kind.RESULT:
            self.reply = pickle.loads(body)
        elif kind is Kind.FAILURE:
            self.failure = pickle.loads(body)
        elif kind is None and not self.settled:
            self.died = _manner_of_death(self.process.wait())
        return None

    def end(self) -> None:
        """Kills the process and whatever it started, frozen or not, and waits for its end."""
        # SIGKILL, which a frozen process cannot put off; the group, since a program may start
        # processes of its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(OSError):  # what was buffered for a dead process
                    pipe.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[BinaryIO, BinaryIO, BinaryIO]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("A party's process must be started with three pipes.")
    # Popen of bytes gives buffered binary files, typed as the wider IO.
    return process.stdin, process.stdout, process.stderr  # type: ignore[return-value]


def _manner_of_death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} before it had replied"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Ended(Protocol):
    """What is known of a party's end; see `Child`."""

    @property
    def name(self) -> str:
        """Name of the party."""
        ...

    @property
    def reply(self) -> MeshReply | None:
        """What its program returned."""
        ...

    @property
    def failure(self) -> Failure | None:
        """What its program raised."""
        ...

    @property
    def cause(self) -> BaseException | None:
        """The same, to be shown as the cause of the error that names it."""
        ...

    @property
    def died(self) -> str | None:
        """How its process ended, where it did before it had replied."""
        ...

    @property
    def frozen(self) -> float | None:
        """For how many seconds it has been silent, where that was too long."""
        ...

    @property
    def settled(self) -> bool:
        """Whether nothing more is expected of it."""
        ...

    @property
    def last_words(self) -> str:
        """What it printed last."""
        ...


def verdict(children: Sequence[Ended], failed: Sequence[Ended]) -> PrivtrainError:
    """The error to raise: the root cause, not the parties that only lost contact with it.

    Args:
        children: All parties, by rank.
        failed: Those that failed, in the order in which they did.

    Returns:
        An error that names the party at fault.
    """
    # Whoever alters what others read may die or raise anything besides, to be taken for the cause.
    for child in failed:
        if child.failure is not None and isinstance(child.failure.error, TamperedShareError):
            return child.failure.error
    # The surest cause first. A death and an error are facts; a party that is silent may only be
    # waiting; a party that lost contact is a witness, never the cause.
    for child in failed:
        if child.died is not None:
            text = f"{child.name} {child.died}; the run was ended everywhere.{child.last_words}"
            return PartyLostError(text, child.name)
        if child.failure is not None and not child.failure.lost_contact:
            return _raised(child, child.failure)
    for child in failed:
        if child.frozen is not None:
            text = f"{child.name} froze: no sign of life for {child.frozen:.1f} s."
            return PartyLostError(text, child.name)
    return _everybody_lost_contact(children)


def _raised(child: Ended, failure: Failure) -> PrivtrainError:
    # Errors of our own keep their type, so that callers can catch it; they must name the party.
    error = failure.error
    if isinstance(error, ProtocolError) or (error is not None and child.name in str(error)):
        return error
    if error is not None:
        error.args = (f"{child.name}: {error}", *error.args[1:])
        return error
    lost = PartyLostError(f"{child.name} failed: {failure.text}", child.name)
    lost.__cause__ = child.cause
    return lost


def _everybody_lost_contact(children: Sequence[Ended]) -> PrivtrainError:
    # Nobody died, raised or fell silent: whoever the others waited for either ended too early or
    # hangs in its program while its thread still beats.
    waiting = [child for child in children if child.failure is not None]
    said = waiting[0].failure.text if waiting and waiting[0].failure is not None else ""
    left = [child for child in children if child.reply is not None]
    if left:
        return ProtocolError(
            f"{left[0].name} ended while {waiting[0].name} still waited for it: {said}"
        )
    silent = [child for child in children if not child.settled] or waiting
    return PartyLostError(f"{silent[0].name} did not answer the others: {said}", silent[0].name)
