"""The transcript: every message of a run. Cost and every observer's view are read from it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

from torch import Tensor

from privtrain.core.observers import Observer
from privtrain.core.parties import AGGREGATOR_NAME, CURATOR_NAME, PUBLIC_NAME, is_role
from privtrain.core.payloads import Kept, PayloadStore, Wanted


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor that was sent.

    Args:
        sender: Name of the party that sent it.
        receiver: Name of the party that received it.
        kind: What it is: "model", "update", "share", ...
        shape: Shape of the tensor.
        bytes: Size of the tensor in bytes; protocol headers are not counted.
        round: Communication round, from 0, as the channel counts its exchanges.
        kept: Where the tensor itself lies, where the run was asked to keep payloads, else None.
    """

    sender: str
    receiver: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    round: int
    # Not compared, since == of tensors is a tensor; not printed, since it may be a secret.
    kept: Kept | None = field(default=None, compare=False, repr=False)

    @property
    def payload(self) -> Tensor | None:
        """The tensor itself, a new copy at each reading; None where it was not kept."""
        # A copy: who writes into it, as an attack may, changes nothing for the next reader.
        return None if self.kept is None else self.kept.clone()


@dataclass(frozen=True, slots=True)
class Setup:
    """Something a party knows without being sent a message, such as the triples it dealt.

    Args:
        party: Who knows it.
        what: What it is, in words.
    """

    party: str
    what: str


@dataclass(frozen=True)
class View:
    """What one observer saw: its own inputs and randomness, setup material, its messages.

    Args:
        observer: Whose view it is.
        own: In words, what the observer brought itself.
        setup: What it was dealt, or dealt.
        messages: What it sent and received, and what was published, in order.
        names: The parties whose place the observer takes, sorted; none for the public.
    """

    observer: Observer
    own: tuple[str, ...]
    setup: tuple[Setup, ...]
    messages: tuple[Entry, ...]
    names: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of messages sent and received, sorted, each once."""
        return tuple(sorted({entry.kind for entry in self.messages}))


# A run has one of them, and whoever asks for the view of either gets that of the one it has.
_COORDINATORS = (AGGREGATOR_NAME, CURATOR_NAME)


@dataclass
class Transcript:
    """The record of every message of a run, in the order in which they were sent.

    Only channels (the runtimes, and `publish` at the end of a run) write entries.

    Args:
        keep_payloads: Whether tensors are kept with their entries; for simulation only.
        store: Which of them are kept, and where; None for all of them, in memory.
        entries: The messages.
        setups: What parties know without a message.
        exchanges: How many exchanges were numbered.
        others: Names of the parties that hold no rows: none of them is a participant.
    """

    keep_payloads: bool = False
    store: PayloadStore | None = field(default=None, compare=False, repr=False)
    entries: list[Entry] = field(default_factory=list)
    setups: list[Setup] = field(default_factory=list)
    exchanges: int = field(default=0, compare=False)
    others: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        figures = f"{self.bytes_sent:,} bytes in {self.rounds:,} rounds"
        kept = ", payloads kept" if self.keep_payloads else ""
        return f"Transcript({len(self.entries):,} messages, {figures}{kept})"

    def exchange(self) -> int:
        """The number of an exchange that a channel begins."""
        # By the channel: a trainer's rounds may hold several exchanges each.
        self.exchanges += 1
        return self.exchanges - 1

    def send(self, sender: str, receiver: str, kind: str, tensor: Tensor, *, round: int) -> None:
        """Records one sent tensor."""
        size = tensor.element_size() * tensor.nelement()
        self._add(Entry(sender, receiver, kind, tuple(tensor.shape), size, round), tensor)

    def extend(self, entries: Iterable[Entry], *, start: int = 0) -> None:
        """Records messages that were counted elsewhere, as in another process.

        Args:
            entries: The messages; their rounds are counted from `start`.
            start: Number of their round 0.
        """
        for entry in entries:
            self.entries.append(replace(entry, round=entry.round + start) if start else entry)
            self.exchanges = max(self.exchanges, entry.round + start + 1)

    def knows(self, party: str, what: str) -> None:
        """Records setup material: something that a party knows without receiving it."""
        self.setups.append(Setup(party, what))

    def publish(self, kind: str, tensor: Tensor, *, sender: str, round: int) -> None:
        """Records what everybody may read in the end. Publishing costs no bytes between parties."""
        # No bytes: cost is what parties send each other, and publishing is no part of the protocol.
        self._add(Entry(sender, PUBLIC_NAME, kind, tuple(tensor.shape), 0, round), tensor)

    def _add(self, entry: Entry, tensor: Tensor) -> None:
        self.entries.append(entry)
        if not self.keep_payloads:
            return
        # A copy: the entry holds what was sent, not what training made of the tensor since.
        if self.store is None:
            self.entries[-1] = replace(entry, kept=tensor.detach().clone())
        elif any(self._wants(wanted, entry) for wanted in self.store.wanted):
            self.entries[-1] = replace(entry, kept=self.store.keep(tensor))

    def _wants(self, wanted: Wanted, entry: Entry) -> bool:
        """Whether a message that was just recorded is to be kept."""
        if wanted.kinds and entry.kind not in wanted.kinds:
            return False
        observer, ends = wanted.observer, {entry.sender, entry.receiver}
        if observer is None or entry.receiver == PUBLIC_NAME:
            return True
        for role in observer.corrupted or (observer.name,):
            # Whichever of them the run has: without a look at all messages so far.
            played = set(_COORDINATORS) if role in _COORDINATORS else self._played_by(role)
            if not ends.isdisjoint(played or ({role} if observer.corrupted else ())):
                return True
        return False

    def view(self, observer: Observer) -> View:
        """What an observer saw of the run.

        A coalition sees what its members see; everybody sees what was published. A participant
        sees what the first party with rows saw that received something, of a coordinator where
        there is one; the aggregator and the curator what the coordinator of a star or who pooled
        the rows saw, whichever the run had; the dealer what those saw who have setup material. Who
        sent a message knows it as well as who received it.
        """
        # The same entries that cost is read from: what was not recorded was neither sent nor seen.
        places = (self._played_by(name) or {name} for name in observer.corrupted)
        names = set().union(*places) if observer.corrupted else self._played_by(observer.name)
        messages = tuple(
            e
            for e in self.entries
            if e.receiver == PUBLIC_NAME or e.receiver in names or e.sender in names
        )
        setup = tuple(s for s in self.setups if s.party in names)
        own = tuple(f"the inputs and random choices of {name}" for name in sorted(names))
        return View(observer, own, setup, messages, tuple(sorted(names)))

    def _played_by(self, role: str) -> set[str]:
        """Names of the parties whose place an observer takes."""
        if role == "participant":
            # One of them stands for all: a guarantee to participants is to each of them alone, and
            # several that pool what they saw are a coalition.
            asked = (e.receiver for e in self.entries if e.sender in _COORDINATORS)
            received = chain(asked, (e.receiver for e in self.entries))
            found = next((n for n in received if not is_role(n) and n not in self.others), None)
            return set() if found is None else {found}
        if role in _COORDINATORS:
            seen = {name for e in self.entries for name in (e.sender, e.receiver)}
            return seen.intersection(_COORDINATORS) or {AGGREGATOR_NAME}
        if role == "dealer":
            # Nothing is sent to whoever deals; that they know the triples is recorded as setup.
            return {s.party for s in self.setups} or {"dealer"}
        return {"querier"} if role == "querier" else set()

    @property
    def bytes_sent(self) -> int:
        """Bytes of tensors sent between parties, over the whole run."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def bytes_sent_by_party(self) -> dict[str, int]:
        """Bytes of tensors that each party sent, by name, sorted."""
        totals: Counter[str] = Counter()
        for entry in self.entries:
            totals[entry.sender] += entry.bytes
        # Who only published has sent nothing to a party.
        return {name: totals[name] for name in sorted(totals) if totals[name]}

    @property
    def rounds(self) -> int:
        """Number of communication rounds: distinct rounds in which something was sent."""
        return len({entry.round for entry in self.entries if entry.receiver != PUBLIC_NAME})

    def kinds_received_by(self, party: str) -> tuple[str, ...]:
        """Kinds of messages a party received, sorted, each once."""
        return tuple(sorted({e.kind for e in self.entries if e.receiver == party}))
