"""Sides that are timed against each other: `ring64` with its dealer, and the CrypTen engine."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from on_shares.works import Work
from torch import Tensor

from privtrain.core.links import Link
from privtrain.core.runtime import Party, link_of
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.engine import Session
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.streamed import DEALER
from privtrain.mpc.sharing import LARGEST_ENCODED, encode

GO, DEALT = "go", "dealt"
OURS, BESIDE = "ring64", "ring64, 2 parties"


@dataclass(frozen=True)
class Cost:
    """What one run of a work takes, as rank 0 knows it.

    Args:
        rounds: Messages in sequence, counted at rank 0.
        sent: Bytes that rank 0 sends to computing parties.
        material: Bytes that a dealer sends to the party that gets most of them.
        all_material: Bytes that it sends to all parties.
    """

    rounds: int = 0
    sent: int = 0
    material: int = 0
    all_material: int = 0


class Side(Protocol):
    """One way of doing all works, at one party of a mesh."""

    @property
    def name(self) -> str:
        """What it is called in the table."""
        ...

    @property
    def error(self) -> float:
        """How far a result may be from float64."""
        ...

    def prepare(self, work: Work) -> Work:
        """Shares the operands of what is done from now on, and says what this side does for it."""
        ...

    def run(self) -> tuple[float, float]:
        """Does it once: seconds with and without what precedes the operation, at rank 0."""
        ...

    def opened(self) -> list[Tensor]:
        """The last result; called at all parties, the dealer included."""
        ...

    def cost(self) -> Cost:
        """What a run takes; called at all parties, the dealer included."""
        ...


class Opponent(Protocol):
    """What opens sides at a party. Configuration: pickles."""

    def open(self, party: Party) -> AbstractContextManager[Sequence[Side]]:
        """The sides that this party takes part in."""
        ...


@dataclass
class Among:
    """A link to some of the parties of a mesh.

    Args:
        link: The link to all of them.
        names: Those parties, in the order of their ranks.
    """

    link: Link
    names: tuple[str, ...]

    @property
    def rank(self) -> int:
        """Own rank among them."""
        return self.names.index(self.link.names[self.link.rank])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)


def within(party: Party, names: tuple[str, ...]) -> Party:
    """The same party of a smaller mesh."""
    among: Any = Among(link_of(party), names)
    return replace(party, link=among)


def computing_parties(link: Link) -> tuple[str, ...]:
    """All but the dealer."""
    return tuple(name for name in link.names if name != DEALER)


@dataclass(frozen=True)
class Prepared:
    """A work and this party's shares of its operands.

    Args:
        work: What is done.
        shares: The encoded operands at the first party, zeros at the others.
    """

    work: Work
    shares: tuple[Tensor, ...]

    def taken(self, session: Session) -> list[Any]:
        """The operands, as a training takes rows and labels."""
        operands = [session.take(share, largest=LARGEST_ENCODED) for share in self.shares]
        if self.work.weights:
            operands[1] = session.take(self.shares[1], largest=1)
        return operands

    def run(self, session: Session) -> list[Any]:
        """The work on values that nobody opened before."""
        return list(self.work.run(session, self.taken(session)))


def prepared(work: Work, *, first: bool) -> Prepared:
    """Operands, shared as they are at the first party."""
    integers = [encode(values, name="an operand") for values in work.operands()]
    return Prepared(work, tuple(one if first else torch.zeros_like(one) for one in integers))


def together(link: Link, computing: Sequence[str]) -> None:
    """Lets computing parties start when the first of them does."""
    if link.rank == 0:
        for name in computing[1:]:
            link.send(name, GO, torch.zeros(0))
    else:
        link.receive(computing[0], GO)


@dataclass
class Ring64Side:
    """`ring64`: dealing, then computing.

    Args:
        session: The open session.
        link: To its computing parties and its dealer.
        name: What it is called in the table.
    """

    session: Ring64Session
    link: Link
    name: str = OURS
    error: float = field(default=1e-3, init=False)
    _prepared: Prepared = field(init=False)
    _result: list[Any] = field(default_factory=list, init=False)
    _sent: tuple[int, int] = field(default=(0, 0), init=False)

    def prepare(self, work: Work) -> Work:
        self._prepared = prepared(work, first=self.session.leader)
        return work

    def run(self) -> tuple[float, float]:
        session, link, computing = self.session, self.link, computing_parties(self.link)
        started = time.perf_counter()
        if session.deals:
            link.receive(computing[0], GO)
        else:
            if link.rank == 0:
                link.send(DEALER, GO, torch.zeros(0))
            self._arrive()
            together(link, computing)
        before = len(link.entries)
        dealt = time.perf_counter()
        self._compute()
        ended = time.perf_counter()
        if session.deals:
            self._deliver()
        self._sent = before, len(link.entries)
        return ended - started, ended - dealt

    def _compute(self) -> None:
        # What waits for its truncation belongs to the operation.
        self._result = self.session.settled(self._prepared.run(self.session))
        self.session.finish()

    def _arrive(self) -> None:
        """Waits for all that is dealt."""
        if self.link.rank == 0:
            # Sent after all material; who reads material hears of it from the first party.
            self.link.receive(DEALER, DEALT)

    def _deliver(self) -> None:
        """Sends all that is dealt."""
        self.session.wires.material.flush()  # type: ignore[attr-defined]  # the dealer's wires
        self.link.send(computing_parties(self.link)[0], DEALT, torch.zeros(0))

    def opened(self) -> list[Tensor]:
        return self.session.reveal(self._result, kind="result share")

    def cost(self) -> Cost:
        """Material is counted by the dealer, which tells the first party."""
        own = self.link.entries[slice(*self._sent)]
        first, second, *_ = computing_parties(self.link)
        if self.session.deals:
            dealt = Counter[str]()
            for entry in own:
                dealt[entry.receiver] += entry.bytes
            sizes = torch.tensor([max(dealt.values()), dealt.total()])
            self.link.send(first, DEALT, sizes)
            return Cost()
        rounds = sum(entry.receiver == second for entry in own)
        sent = sum(entry.bytes for entry in own if entry.receiver != DEALER)
        sizes = self.link.receive(DEALER, DEALT) if self.link.rank == 0 else torch.zeros(2)
        return Cost(rounds, sent, *map(int, sizes))


@dataclass(frozen=True)
class TwoParties:
    """`ring64` among the first two parties of a larger mesh: what further parties cost."""

    @contextmanager
    def open(self, party: Party) -> Iterator[Sequence[Side]]:
        """A session of its own at the first two parties and the dealer."""
        link = link_of(party)
        names = (*computing_parties(link)[:2], DEALER)
        if link.names[link.rank] not in names:
            yield []
            return
        inner = within(party, names)
        with Ring64().open(inner) as session:
            yield [Ring64Side(session, link_of(inner), BESIDE)]


@dataclass
class EngineSide:
    """The CrypTen engine of this project, which has no sigmoid and deals while it computes.

    Args:
        session: The open session.
        link: To its parties.
    """

    session: Session
    link: Link
    name: str = field(default="crypten", init=False)
    error: float = field(default=5e-3, init=False)
    _prepared: Prepared = field(init=False)
    _result: list[Any] = field(default_factory=list, init=False)
    _sent: tuple[int, int] = field(default=(0, 0), init=False)

    def prepare(self, work: Work) -> Work:
        self._prepared = prepared(work.two_classes or work, first=self.link.rank == 0)
        return self._prepared.work

    def run(self) -> tuple[float, float]:
        together(self.link, self.link.names)
        before = len(self.link.entries)
        started = time.perf_counter()
        self._result = self._prepared.run(self.session)
        seconds = time.perf_counter() - started
        self._sent = before, len(self.link.entries)
        return seconds, seconds

    def opened(self) -> list[Tensor]:
        return self.session.reveal(self._result, kind="result share")

    def cost(self) -> Cost:
        own = self.link.entries[slice(*self._sent)]
        return Cost(len({entry.round for entry in own}), sum(entry.bytes for entry in own))


@dataclass(frozen=True)
class CrypTenEngine:
    """Opens the CrypTen engine among all computing parties, checks on."""

    @contextmanager
    def open(self, party: Party) -> Iterator[Sequence[Side]]:
        link = link_of(party)
        if link.names[link.rank] == DEALER:
            yield []
            return
        inner = within(party, computing_parties(link))
        with CrypTen().open(inner) as session:
            yield [EngineSide(session, link_of(inner))]
