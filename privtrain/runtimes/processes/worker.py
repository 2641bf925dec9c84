"""The child's side of `Processes`: one party in a process of its own.

Standard input brings the program and the party's inputs, and stays open: when it closes, the
parent is gone and the child ends. Standard output carries frames only; what programs print goes to
standard error. A thread sends heartbeats, since the program may compute for long; a process that is
frozen or gone sends none, which is what they are there to tell. Heavy packages are imported after
the first heartbeat: importing torch takes seconds, in which the parent would hear nothing.
"""

import ctypes
import io
import os
import pickle
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from privtrain.runtimes.processes.frames import FrameWriter, Kind, pack_beat, read_frame

if TYPE_CHECKING:
    from privtrain.core.errors import PrivtrainError
    from privtrain.runtimes.certificates import Credentials

CHILD_FLAG = "--child"
_PR_SET_PDEATHSIG = 1
# gloo raises RuntimeError for everything; that a neighbour is gone stands in the text alone.
_LOST_CONTACT = re.compile(
    r"gloo|connection (was likely )?(closed|reset|refused)|broken pipe|timed out|socket|store",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child is asked to do.

    Args:
        program: What it runs.
        inputs: What the party brings.
        names: Names of all parties, by rank.
        rank: Number of its party.
        seeds: Public streams.
        meeting: Host and port of the board where the parties meet.
        parent: Role of who hosts it.
        timeout: Seconds after which a silent party counts as lost.
        credentials: What the party proves itself to the others with, for this run alone.
    """

    program: Any
    inputs: Any = field(repr=False)
    names: tuple[str, ...]
    rank: int
    seeds: Any
    meeting: tuple[str, int]
    parent: str
    timeout: float
    credentials: "Credentials" = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a child's program failed.

    Args:
        text: The error in one line.
        lost_contact: Whether it only says that somebody else is gone.
        error: The error itself where it is one of privtrain's, else None.
        trace: The traceback.
    """

    text: str
    lost_contact: bool
    error: "PrivtrainError | None"
    trace: str


def main(beat: str) -> int:
    """Runs one party and ends the process.

    Args:
        beat: Seconds between heartbeats.

    Returns:
        Nothing: the process ends by itself, since gloo's threads may abort a slow teardown.
    """
    _die_with_parent()
    source, out = sys.stdin.buffer, _private_output()
    progress = [0, 0]
    _start(_beat, out, float(beat), progress)
    try:
        body = _run(source, progress)
        kind = Kind.RESULT
    # Whatever a program raises has to reach the parent, named; sys.exit would leave without a word.
    except (Exception, SystemExit) as error:
        kind, body = Kind.FAILURE, pickle.dumps(failure_of(error))
    # No `return`: threads of gloo and torch may abort the interpreter while it is torn down, and
    # would print a crash behind a run that went well.
    out.write(kind, body)
    sys.stderr.flush()
    os._exit(0)


def _die_with_parent() -> None:
    """Asks Linux for SIGKILL when the parent dies: it reaches a frozen process, too."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def _private_output() -> FrameWriter:
    """Keeps standard output for frames and sends everybody else's prints to standard error."""
    # At the level of descriptors: libraries in C print, too, and one line among the frames would
    # make the rest unreadable.
    stream: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return FrameWriter(stream)


def _start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _beat(out: FrameWriter, seconds: float, progress: list[int]) -> None:
    # A broken pipe means that the parent is gone: systems without the death signal have only this.
    while True:
        try:
            out.write(Kind.BEAT, pack_beat(*progress))
        except OSError:
            os._exit(1)
        time.sleep(seconds)


def _end_with(source: BinaryIO) -> None:
    # Returns when the other end is closed, which the parent's death does as well.
    source.read()
    os._exit(1)


def _run(source: BinaryIO, progress: list[int]) -> bytes:
    sys.path[:] = pickle.loads(_expect(source, Kind.PATHS))
    body = _expect(source, Kind.JOB)
    _start(_end_with, source)

    import cloudpickle
    import torch

    from privtrain.core.cost import peak_memory
    from privtrain.core.errors import PartyLostError
    from privtrain.core.runtime import MeshReply, Party
    from privtrain.core.seeding import SystemEntropy
    from privtrain.runtimes.links import SocketLink
    from privtrain.runtimes.rendezvous import join
    from privtrain.runtimes.sockets import TLS

    torch.set_num_threads(1)
    # Unpickled after `sys.path` is the parent's: the program may be a class of the user's script.
    job: Job = pickle.loads(body)

    def watch(done: int, total: int) -> None:
        progress[:] = done, total

    name, transport = job.names[job.rank], TLS(job.credentials)
    try:
        board = join(job.meeting, job.parent, name, transport, job.timeout)
    except OSError as error:
        raise PartyLostError(f"{job.parent} cannot be reached: {error}") from error
    with SocketLink(
        names=job.names,
        rank=job.rank,
        board=board,
        timeout=job.timeout,
        watch=watch,
        transport=transport,
    ) as link:
        party = Party(
            name=name,
            round=0,
            train={},
            state={},
            seeds=job.seeds,
            # A process draws for itself: nothing that another one knows leads to its secrets.
            entropy=SystemEntropy(),
            sent=job.inputs,
            link=link,
        )
        payload = job.program(job.inputs, party)
    reply = MeshReply(
        payload=payload,
        entries=tuple(link.entries),
        setups=tuple(link.setups),
        peak_memory_bytes=peak_memory(),
    )
    packed = io.BytesIO()
    cloudpickle.dump(reply, packed)
    return packed.getvalue()


def _expect(source: BinaryIO, kind: Kind) -> bytes:
    frame = read_frame(source)
    if frame is None or frame[0] is not kind:
        os._exit(1)  # the parent died before it had sent everything
    return frame[1]


def failure_of(error: Exception | SystemExit) -> Failure:
    """What a program's error says about who is at fault."""
    from privtrain.core.errors import PartyLostError, PrivtrainError
    from privtrain.core.failures import text_of, traceback_of

    text = f"{type(error).__name__}: {text_of(error)}".splitlines()[0]
    gloo = isinstance(error, RuntimeError) and bool(_LOST_CONTACT.search(text_of(error)))
    return Failure(
        text=text,
        lost_contact=gloo or isinstance(error, PartyLostError),
        error=error if isinstance(error, PrivtrainError) else None,
        trace=traceback_of(error),
    )
