"""The sum on secret shares: nobody who follows the protocol reads a single message.

Each party splits its contribution into one share for each computing party. A computing party adds
the shares it received, and only what is released is opened: the sum, its largest entry, or whether
it reaches a threshold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.core.errors import DataError, ProtocolError, UnsupportedError
from privtrain.core.observers import Exposure, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, party_names
from privtrain.core.runtime import NO_MESH, Party, Payload, Reply, Runtimes, link_of
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.core.trainer import Run
from privtrain.core.validate import check_follows
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mpc.engine import Engine, Session, check_parties, with_helpers
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.streamed import check_streamed
from privtrain.mpc.sharing import LARGEST, PRECISION_BITS, encode, reveal, share
from privtrain.release.aggregation import Gathering, Total
from privtrain.release.exposure import sum_exposure
from privtrain.release.finish import Argmax, Finish, Identity, Threshold
from privtrain.release.placement import Placement

SUM_BITS = 32
"""Bits after the binary point: more than products allow, since sums need no bits for products."""


@dataclass(frozen=True)
class SharedSum:
    """Adds contributions on secret shares and opens only what is released.

    Exact so far: noise that nobody knows has to be drawn on shares, which needs another engine.
    Every opening starts new processes for the computing parties.

    Args:
        engine: Computes on shares and opens them.
        computing_parties: Number of parties that hold shares: 2 to 5, with CrypTen 2 or 3.
    """

    engine: Engine = field(default_factory=Ring64)
    computing_parties: int = 2

    def __post_init__(self) -> None:
        check_follows(Engine, "Ring64()", engine=self.engine)
        check_parties(self.engine, self.computing_parties)

    @property
    def computing_names(self) -> tuple[str, ...]:
        """Names of the computing parties, by rank."""
        return party_names("computing", self.computing_parties)

    @property
    def caveats(self) -> tuple[str, ...]:
        """Caveats of the engine, for the statement."""
        return self.engine.caveats

    @property
    def others(self) -> tuple[str, ...]:
        # Who computes on shares is a process of the mesh, which no star addresses.
        return ()

    def refusal(self, mechanism: Mechanism, noise_at: Placement) -> UnsupportedError | None:
        if not mechanism.about.noisy:
            return None
        # Noise that is rounded to fixed point afterwards is not what was proved.
        return UnsupportedError(
            f"{mechanism} cannot be combined with {self}: sums on shares are "
            "exact so far, and noise on shares needs another engine. Use Exact() or PlainSum()."
        )

    def check(
        self, finish: Finish, runtimes: Runtimes, *, parties: int, largest: float | None
    ) -> None:
        _on_shares(finish)
        check_streamed(self.engine)
        self.engine.check(self.computing_parties)
        if runtimes.mesh is None:
            raise UnsupportedError(NO_MESH)
        if largest is not None and largest >= LARGEST:
            raise UnsupportedError(
                f"Contributions up to {largest:g} may not fit into fixed point, which ends at "
                f"{LARGEST:g}, so {self} could fail in the middle. Choose a smaller bound or fewer "
                "teachers a party, or PlainSum()."
            )
        _check_overflow(parties)

    def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
        return Gathering(cohort=cohort, round=round, kind=kind)

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        """At the party: mail to each computing party, one share of fixed-point numbers.

        Raises:
            DataError: If a contribution is not finite or too large for fixed point.
        """
        try:
            integers = encode(contribution, name=f"the {kind} of {party.name}", bits=SUM_BITS)
        except ValueError as error:
            raise DataError(str(error)) from error
        # Keys of the operating system, never of the seed: who knows the seed would read shares.
        shares = share(integers, self.computing_parties, Keystream())
        named = zip(self.computing_names, shares, strict=True)
        return Reply({}, {name: {_share_of(kind): one} for name, one in named})

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        """The sum, still on shares; weights stay on them, too.

        Raises:
            ProtocolError: If a message is missing, has another shape than the first, or went to a
                party that does not compute here.
        """
        kind = gathering.kind
        if not replies:
            raise ProtocolError(f"Expected at least one message {kind!r}, got none.")
        _check_overflow(len(replies))
        for party, reply in replies.items():
            for name in sorted(set(reply.mail) - set(self.computing_names)):
                raise ProtocolError(
                    f"{party} mails {sorted(reply.mail[name])} to {name}, and {kind!r} is computed "
                    f"by {', '.join(self.computing_names)}."
                )
        held: dict[str, Payload] = {}
        for name in self.computing_names:
            shares = [_mailed(reply, kind, name) for reply in replies.values()]
            for other in shares:
                if other.shape != shares[0].shape:
                    raise ProtocolError(
                        f"A message {kind!r} has shape {tuple(other.shape)}, the first one "
                        f"{tuple(shares[0].shape)}."
                    )
            # Numbered, since a payload has names; six digits keep the order when they are sorted.
            held[name] = {f"{number:06d}": one_share for number, one_share in enumerate(shares)}
        return Total(SharedTotal(self.engine, held, run), parties=tuple(replies))

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        # Noise drawn on shares is known to nobody. The shares of all computing parties add up to
        # every message, so a coalition of all of them reads single messages; each of them sees who
        # sends shares, and so knows the sample, as an aggregator does.
        inside = observer.corrupted & set(self.computing_names)
        others = observer.corrupted - inside
        return sum_exposure(
            coalition(others | {AGGREGATOR_NAME}) if inside else observer,
            noise_at,
            parties=parties,
            reads_messages=len(inside) == self.computing_parties,
            knows_noise=False,
            # A computing party may deal the triples, from which it can read a sum (`readers`).
            sealed=not inside,
        )

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        names = self.computing_names
        # Who deals the triples is one of the computing parties, unless the engine has a dealer.
        helpers = self.engine.helper_names
        dealer = (*helpers, *names)[0]
        everyone = f"every {sender}'s {kind}"
        honest = f"one of {', '.join(names)}"
        reads = dict.fromkeys(names, f"shares of {everyone}, and what is opened")
        # It knows what triples mask: where a maximum is found on shares, it can read the sum.
        if not helpers:
            reads[dealer] = (
                f"shares of {everyone}; their sum where a winner is found, as it deals triples"
            )
        for helper in helpers:
            reads[helper] = (
                f"nothing of {everyone}; with a computing party, or as a listener between "
                "them, their sum where a winner is found or a threshold is compared"
            )
        each = (
            InputPrivacy(
                reader=name,
                reads=what,
                adversary=Adversary.SEMI_HONEST,
                security=Security.COMPUTATIONAL,
                dealer=dealer,
                honest=honest,
            )
            for name, what in reads.items()
        )
        all_of_them = InputPrivacy(
            reader="all computing parties together", reads=everyone, honest=honest
        )
        relay = InputPrivacy(
            reader="the process that relays the shares in a simulation",
            reads=f"{everyone}, since all shares pass through it",
            honest="that process",
        )
        return (*each, all_of_them, relay)


def _on_shares(finish: Finish) -> Identity | Argmax | Threshold:
    """The finish itself, if it can be computed on shares."""
    if not isinstance(finish, (Identity, Argmax, Threshold)):
        raise UnsupportedError(f"{finish} cannot be computed on shares.")
    if isinstance(finish, Threshold) and not abs(finish.threshold) < LARGEST:
        raise UnsupportedError(f"{finish} cannot be computed on shares: use one below {LARGEST:g}.")
    return finish


def _check_overflow(parties: int) -> None:
    """Refuses so many messages that a sum on shares could wrap around, which nobody would see."""
    most = int(2.0**63 / (LARGEST * 2.0**SUM_BITS)) - 1
    if parties > most:
        raise UnsupportedError(
            f"Sums on shares hold up to {most} contributions, and there are {parties}. Sample "
            "fewer parties a round, or use PlainSum()."
        )


def _share_of(kind: str) -> str:
    return f"{kind} share"


def _mailed(reply: Reply, kind: str, receiver: str) -> Tensor:
    """The share that a party mailed to a computing party."""
    mail = reply.mail.get(receiver, {})
    if _share_of(kind) not in mail:
        raise ProtocolError(
            f"A message lacks its {_share_of(kind)!r} for {receiver}; it holds {sorted(mail)}."
        )
    return mail[_share_of(kind)]


@dataclass(frozen=True)
class SharedTotal:
    """A sum on shares that nobody has read.

    Args:
        engine: Computes on shares and opens them.
        held: Computing party to the shares it holds, one for each message.
        run: The run, with a mesh.
    """

    engine: Engine
    held: dict[str, Payload] = field(repr=False)
    run: Run = field(repr=False)

    def open(self, finish: Finish, mechanism: Mechanism) -> Tensor:
        """Applies the finish on shares and opens only its result.

        Raises:
            UnsupportedError: If the finish or noise cannot be computed on shares, or there is no
                mesh.
            PartyLostError: If a computing party dies or freezes.
            ProtocolError: If the computing parties opened different values.
        """
        known = _on_shares(finish)
        if mechanism.about.noisy:
            raise UnsupportedError(
                f"{mechanism} cannot be drawn on the shares of {self.engine.name}."
            )
        self.engine.check(len(self.held))
        if self.run.mesh is None:
            raise UnsupportedError(NO_MESH)
        programs = dict.fromkeys(self.held, SumAndOpen(self.engine, known))
        replies = self.run.mesh.run(with_helpers(self.engine, programs), self.held)
        opened = [replies[name]["opened"] for name in self.held]
        # Every computing party opens for itself, so that a fault of one of them shows here.
        if not all(torch.equal(value, opened[0]) for value in opened):
            raise ProtocolError(f"The computing parties {list(self.held)} opened different values.")
        return opened[0]


@dataclass(frozen=True)
class SumAndOpen:
    """The program of a computing party: add the shares, finish, open.

    Args:
        engine: Computes on shares and opens them.
        finish: The function of the sum that is released.
    """

    engine: Engine
    finish: Identity | Argmax | Threshold

    def __call__(self, shares: Payload, party: Party) -> Payload:
        """The opened result, the same at every computing party."""
        # `reveal` adds in the ring; the sum of one party's shares is its share of the sum.
        total = reveal([shares[key] for key in sorted(shares)])
        with self.engine.open(party) as session:
            return {"opened": self._opened(session, total, link_of(party).rank)}

    def _opened(self, session: Session, total: Tensor, rank: int) -> Tensor:
        if isinstance(self.finish, Argmax):
            winners = session.largest(session.take(total))
            return session.reveal([winners], kind="winner share")[0].argmax(dim=-1)
        if isinstance(self.finish, Threshold):
            limit = encode(torch.tensor(self.finish.threshold), name="threshold", bits=SUM_BITS)
            # total >= limit as total - (limit - 1) > 0, which the engine can decide. One party only
            # subtracts the public number, or it would be subtracted once a party.
            above = total - (limit - 1) if rank == 0 else total
            reached = session.positive(session.take(above))
            return session.reveal([reached], kind="reached share")[0] > 0.5
        opened = session.reveal([session.take(total)], kind="sum share")[0]
        # The engine divides by its own precision, which has fewer bits than sums have.
        return opened * 2.0 ** (PRECISION_BITS - SUM_BITS)
