"""The sum on secret shares: nobody who follows the protocol reads a single message.

Each party splits its contribution into one share for each computing party. A computing party adds
the shares it received, and only what is released is opened: the sum, its largest entry, or whether
it reaches a threshold.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from privtrain.core.errors import DataError, ProtocolError, UnsupportedError
from privtrain.core.observers import Exposure, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, party_names
from privtrain.core.runtime import NO_MESH, Party, Payload, Reply, Runtimes
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.core.trainer import Run
from privtrain.core.validate import check_follows
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mpc.engine import Engine, Session, Shared, check_parties, with_helpers
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.proofs import PROOF, prove
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.streamed import check_streamed
from privtrain.mpc.sharing import LARGEST, decode, encode, reveal, share
from privtrain.release.aggregation import Gathering, Total
from privtrain.release.door import Release
from privtrain.release.exposure import sum_exposure
from privtrain.release.finish import Argmax, Finish, Identity, Threshold
from privtrain.release.placement import Placement
from privtrain.release.plain import PlainSum


@dataclass(frozen=True)
class SharedSum:
    """Adds contributions on secret shares and opens only what is released.

    Exact so far: noise that nobody knows has to be drawn on shares, which needs another engine.
    Every opening starts new processes for the computing parties.

    Args:
        engine: Computes on shares and opens them.
        computing_parties: Number of parties that hold shares: 2 to 5, with CrypTen 2 or 3, with
            SPDZ2k 2.
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
        # It is subtracted from a public value, which may have more bits after the point.
        lifted = max(0, self.engine.weight_bits - self.engine.row_bits)
        # Two sums are compared by their difference, which has one bit more than they have.
        longer = lifted if isinstance(finish, Threshold) else isinstance(finish, Argmax)
        self._check_overflow(parties, lifted=int(longer))

    def _check_overflow(self, parties: int, *, lifted: int = 0) -> None:
        """Refuses so many messages that a sum could wrap around, which nobody would see.

        Args:
            parties: How many there are.
            lifted: Bits by which the sum becomes longer before it is compared.
        """
        # A sum is not truncated, and so has one bit more than values that are.
        bits = self.engine.range_bits + 1 - self.engine.sum_bits - lifted
        most = int(2.0**bits / LARGEST) - 1
        if parties > most:
            raise UnsupportedError(
                f"Sums on shares of {self.engine.name} hold up to {most} contributions, and there "
                f"are {parties}. Sample fewer parties a round, or use PlainSum()."
            )

    def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
        return Gathering(cohort=cohort, round=round, kind=kind)

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        """At the party: mail to each computing party, one share of fixed-point numbers.

        Raises:
            DataError: If a contribution is not finite or too large for fixed point.
        """
        try:
            name, bits = f"the {kind} of {party.name}", self.engine.sum_bits
            integers = encode(contribution, name=name, bits=bits)
        except ValueError as error:
            raise DataError(str(error)) from error
        # Keys of the operating system, never of the seed: who knows the seed would read shares.
        shares = share(integers, self.computing_parties, Keystream())
        named = zip(self.computing_names, shares, strict=True)
        mail = {name: {_share_of(kind): one} for name, one in named}
        if self.engine.authenticated:
            proofs = prove(integers, Keystream())
            for name, proof in zip(self.computing_names, proofs, strict=True):
                mail[name][_proof_of(kind)] = proof
        return Reply({}, mail)

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        """The sum, still on shares; weights stay on them, too.

        Raises:
            ProtocolError: If a message is missing, has another shape than the first, or went to a
                party that does not compute here.
        """
        kind = gathering.kind
        if not replies:
            raise ProtocolError(f"Expected at least one message {kind!r}, got none.")
        self._check_overflow(len(replies))
        for party, reply in replies.items():
            for name in sorted(set(reply.mail) - set(self.computing_names)):
                raise ProtocolError(
                    f"{party} mails {sorted(reply.mail[name])} to {name}, and {kind!r} is computed "
                    f"by {', '.join(self.computing_names)}."
                )
        held: dict[str, Payload] = {}
        for name in self.computing_names:
            # Numbered, since a payload has names; six digits keep the order when they are sorted.
            held[name] = dict(_numbered(replies.values(), _share_of(kind), name))
            if self.engine.authenticated:
                proofs = _numbered(replies.values(), _proof_of(kind), name)
                held[name] |= {f"{PROOF} {number}": proof for number, proof in proofs}
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
        # Shares that are proved are each opened under masks, and not their sum alone.
        masked = everyone
        if not self.engine.authenticated:
            masked = "their sum where a winner is found or a threshold is compared"
        for helper in helpers:
            reads[helper] = (
                f"nothing of {everyone}; with a computing party, or as a listener between "
                f"them, {masked}"
            )
        each = (
            InputPrivacy(
                reader=name,
                reads=what,
                # Who helps follows the protocol, whatever the computing parties do.
                adversary=Adversary.SEMI_HONEST if name in helpers else self.engine.adversary,
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


def _share_of(kind: str) -> str:
    return f"{kind} share"


def _proof_of(kind: str) -> str:
    return f"{kind} proof"


def _numbered(replies: Iterable[Reply], name: str, receiver: str) -> Iterator[tuple[str, Tensor]]:
    """What each party mailed to a computing party by a name, which has to be of one shape."""
    shape: torch.Size | None = None
    for number, reply in enumerate(replies):
        mail = reply.mail.get(receiver, {})
        if name not in mail:
            raise ProtocolError(
                f"A message lacks its {name!r} for {receiver}; it holds {sorted(mail)}."
            )
        shape = mail[name].shape if shape is None else shape
        if mail[name].shape != shape:
            raise ProtocolError(
                f"A message {name!r} has shape {tuple(mail[name].shape)}, the first one "
                f"{tuple(shape)}."
            )
        yield f"{number:06d}", mail[name]


def with_plain_sum(release: Release) -> Release | None:
    """A release that adds up in plaintext what it adds up on shares; None if it adds up nothing so.

    Args:
        release: How contributions leave, and how they become one.
    """
    if not isinstance(release.aggregation, SharedSum):
        return None
    return replace(release, aggregation=PlainSum())


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
            ProtocolError: If the computing parties opened different values, or the shares came with
                proofs and were opened before.
        """
        known = _on_shares(finish)
        if mechanism.about.noisy:
            raise UnsupportedError(
                f"{mechanism} cannot be drawn on the shares of {self.engine.name}."
            )
        self.engine.check(len(self.held))
        if self.run.mesh is None:
            raise UnsupportedError(NO_MESH)
        if not self.held:
            raise ProtocolError(
                f"This sum was given to the computing parties of {self.engine.name} before, and "
                "its proofs serve once. Have every party send its contribution again."
            )
        names, held = list(self.held), dict(self.held)
        if self.engine.authenticated:
            # Also where it fails: who saw the other's seeds could change shares unnoticed.
            self.held.clear()
        programs = dict.fromkeys(names, SumAndOpen(self.engine, known))
        replies = self.run.mesh.run(with_helpers(self.engine, programs), held)
        opened = [replies[name]["opened"] for name in names]
        # Every computing party opens for itself, so that a fault of one of them shows here.
        if not all(torch.equal(value, opened[0]) for value in opened):
            raise ProtocolError(f"The computing parties {names} opened different values.")
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
        keys = sorted(key for key in shares if not key.startswith(PROOF))
        contributions = [shares[key] for key in keys]
        proven = self.engine.authenticated
        proofs = [shares[f"{PROOF} {key}"] if proven else None for key in keys]
        with self.engine.open(party) as session:
            if self.engine.authenticated:
                first, *others = session.take_all(contributions, proofs=proofs)
                total = reduce(add, others, first)
            else:
                # `reveal` adds in the ring: the sum of a party's shares is its share of the sum.
                total = session.take(reveal(contributions))
            return {"opened": self._opened(session, total, contributions[0].shape)}

    def _opened(self, session: Session, total: Shared, shape: torch.Size) -> Tensor:
        if isinstance(self.finish, Argmax):
            winners = session.largest(total)
            return session.reveal([winners], kind="winner share")[0].argmax(dim=-1)
        if isinstance(self.finish, Threshold):
            limit = self._limit(session, self.finish.threshold, shape)
            below = session.positive(limit - total)
            return session.reveal([below], kind="reached share")[0] < 0.5
        opened = session.reveal([total], kind="sum share")[0]
        # The engine divides by the precision of rows, which have fewer bits than sums have.
        return opened * 2.0 ** (self.engine.row_bits - self.engine.sum_bits)

    def _limit(self, session: Session, threshold: float, shape: torch.Size) -> Shared:
        """The threshold with the bits of sums: in two parts, since rows reach `LARGEST` only."""
        row_bits, sum_bits = self.engine.row_bits, self.engine.sum_bits
        values = torch.full(shape, threshold, dtype=torch.float64)
        limit = encode(values, name="threshold", bits=sum_bits)
        more = sum_bits - row_bits
        high = limit.div(1 << more, rounding_mode="trunc")
        low = limit - (high << more)
        parts = [session.public(decode(part, bits=row_bits)) for part in (high, low)]
        return parts[0] * (1 << more) + parts[1]
