"""A mesh of threads over queues, with the links' transcript: starting processes takes seconds."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.runtime import Party, Payload, Program
from privtrain.core.seeding import Seeds, SystemEntropy
from privtrain.core.task import Rows
from privtrain.core.transcript import Entry, Setup
from privtrain.mpc.engine import Engine, with_helpers
from privtrain.mpc.ring64.engine import Ring64

Change = Callable[[str, str, str, Tensor], Tensor]
"""What somebody on the way makes of a tensor: sender, receiver, kind, tensor."""

_GONE = object()


def unchanged(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass
class QueueLink:
    """A link over queues in one process; counts rounds as `SocketLink` does."""

    names: tuple[str, ...]
    rank: int
    queues: Mapping[tuple[str, str], "queue.Queue[object]"]
    change: Change = unchanged
    timeout: float = 20.0
    meeting: tuple[str, int] = ("nowhere", 0)
    entries: list[Entry] = field(default_factory=list)
    setups: list[Setup] = field(default_factory=list)
    sent: list[tuple[str, Tensor]] = field(default_factory=list)
    round: int = 0

    @property
    def name(self) -> str:
        return self.names[self.rank]

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        size = tensor.element_size() * tensor.nelement()
        self.entries.append(Entry(self.name, to, kind, tuple(tensor.shape), size, self.round))
        # A copy, as over a socket: neither side sees what the other makes of it.
        copy = tensor.detach().clone()
        self.sent.append((kind, copy))
        changed = self.change(self.name, to, kind, copy.clone())
        self.queues[self.name, to].put((kind, changed, self.round))

    def receive(
        self,
        sender: str,
        kind: str,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        try:
            message = self.queues[sender, self.name].get(timeout=self.timeout)
        except queue.Empty:
            raise PartyLostError(f"{sender} sent no {kind!r}", sender) from None
        if message is _GONE:
            self.queues[sender, self.name].put(_GONE)
            raise PartyLostError(f"{sender} is gone", sender)
        found, tensor, number = message  # type: ignore[misc]  # of a queue of objects
        if found != kind:
            raise ProtocolError(f"{sender} sent {found!r} where {self.name} expects {kind!r}.")
        if dtype not in (None, tensor.dtype) or shape not in (None, tuple(tensor.shape)):
            raise ProtocolError(
                f"{sender} sent {kind!r} as {tensor.dtype} of {tuple(tensor.shape)} where "
                f"{self.name} expects {dtype} of {shape}."
            )
        self.round = max(self.round, number + 1)
        return tensor  # type: ignore[no-any-return]

    def read_ahead(self, sender: str) -> None:
        assert sender in self.names

    def knows(self, what: str) -> None:
        self.setups.append(Setup(self.name, what))

    def report(self, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        for other in self.names:
            if other != self.name:
                self.queues[self.name, other].put(_GONE)


@dataclass
class Ran:
    """What came of a run: payloads, links and errors by party."""

    payloads: dict[str, Payload]
    links: dict[str, QueueLink]
    errors: dict[str, Exception] = field(default_factory=dict)

    def entries(self, kind: str) -> list[Entry]:
        return [
            entry for link in self.links.values() for entry in link.entries if entry.kind == kind
        ]

    def rounds(self, kind: str = "masked share") -> int:
        """Different rounds of one kind between computing parties."""
        return len({entry.round for entry in self.entries(kind)})

    def bytes(self, kind: str = "masked share", sender: str = "computing-0") -> int:
        return sum(entry.bytes for entry in self.entries(kind) if entry.sender == sender)


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"computing-{rank}" for rank in range(count))


def attempt(
    program: Program,
    count: int = 2,
    inputs: Mapping[str, Payload] | None = None,
    *,
    rows: Mapping[str, Rows] | None = None,
    change: Change = unchanged,
    programs: Mapping[str, Program] | None = None,
    engine: Engine = Ring64(),
    timeout: float = 20.0,
    link: Callable[..., QueueLink] = QueueLink,
) -> Ran:
    """Runs a program at so many computing parties and the dealer, each in a thread.

    Returns:
        What each party gave out, or the error that it raised.
    """
    known = programs or dict.fromkeys(names_of(count), program)
    everybody = with_helpers(engine, known)
    names = tuple(everybody)
    queues: dict[tuple[str, str], queue.Queue[object]] = {
        (one, other): queue.Queue() for one in names for other in names if one != other
    }
    links = {name: link(names, rank, queues, change, timeout) for rank, name in enumerate(names)}
    ran = Ran({}, links)

    def one(name: str) -> None:
        own = dict((inputs or {}).get(name, {}))
        party = Party(
            name=name,
            round=0,
            train={name: rows[name]} if rows and name in rows else {},
            state={},
            seeds=Seeds(3),
            entropy=SystemEntropy(),
            sent=own,
            link=links[name],
        )
        try:
            ran.payloads[name] = everybody[name](own, party)
        except Exception as error:
            ran.errors[name] = error
        finally:
            links[name].close()

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ran


def run(program: Program, *arguments: Any, **options: Any) -> Ran:
    """As `attempt`.

    Raises:
        Exception: What the first party raised, before what others raised for its absence.
    """
    ran = attempt(program, *arguments, **options)
    if ran.errors:
        raise min(ran.errors.values(), key=lambda error: isinstance(error, PartyLostError))
    return ran
