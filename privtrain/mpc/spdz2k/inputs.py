"""How shares that data parties made become authenticated values, and that nobody changed one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.mpc.proofs import Proof, coefficients, fits, flattened
from privtrain.mpc.spdz2k.forms import Form, times
from privtrain.mpc.spdz2k.wires import INPUT, Wires

SEEDS, PROOF = "proof seeds", "proof"


@dataclass(frozen=True)
class PutIn:
    """A value that both parties hold a share of, under a mask that no party knows.

    Args:
        masked: x + r, public.
        mask: r.
    """

    masked: Tensor = field(repr=False)
    mask: Form = field(repr=False)

    @property
    def form(self) -> Form:
        """The value."""
        return (-self.mask).shifted(self.masked)


def put_in(wires: Wires, rank: int | None, share: Tensor) -> PutIn:
    """Both parties open their shares, each under a mask that it knows.

    Args:
        wires: This role's.
        rank: Its number; None for the dealer.
        share: At a party its share.
    """
    masks = [wires.known(tuple(share.shape), owner) for owner in (0, 1)]
    own = share if rank is None else share + masks[rank].share
    other = wires.swap(own, kind=INPUT)
    return PutIn(own + other, masks[0] + masks[1])


def take_all(
    wires: Wires,
    rank: int | None,
    shares: Sequence[Tensor],
    proofs: Sequence[Tensor | None],
    shown: set[bytes],
) -> list[PutIn]:
    """Shares of values, proved to be those that were made where there are proofs.

    Args:
        wires: This role's.
        rank: Its number; None for the dealer.
        shares: Any shapes.
        proofs: This party's part of each, see `privtrain.mpc.proofs`.
        shown: Seeds that this party has revealed; those of these proofs are added.

    Raises:
        ProtocolError: If a proof is of another shape, or was used before.
        TamperedShareError: If a party put in something else.
    """
    proven = [
        (number, Proof.read(proof, flattened(share).shape[1]))
        for number, (share, proof) in enumerate(zip(shares, proofs, strict=True))
        if proof is not None
    ]
    if rank is not None and any(proof.seed.numpy().tobytes() in shown for _, proof in proven):
        raise ProtocolError(
            "A proof of an input share serves once: the other computing party has seen its seed, "
            "and could change the share now. Share the values again."
        )
    values = [put_in(wires, rank, share) for share in shares]
    # Not before both parties have put in all of it: who knows coefficients changes what they miss.
    answers = [put_in(wires, rank, proof.answers) for _, proof in proven]
    if not proven:
        return values
    seeds = torch.stack([proof.seed for _, proof in proven])
    shown.update(seed.numpy().tobytes() for seed in seeds)
    others = wires.swap(seeds, kind=SEEDS)
    zeros = []
    for (number, proof), answer, other in zip(proven, answers, others, strict=True):
        if rank is not None and not fits(other, proof.digest, 1 - rank):
            raise _tampered(number, "proved with another seed than it was given")
        first, second = (proof.seed, other) if rank == 0 else (other, proof.seed)
        value = values[number]
        rows = value.form.reshape(*flattened(value.masked).shape)
        zeros.append(times(coefficients(first, second, rows.shape[0]), rows) - answer.form)
    for (number, _), opened in zip(proven, wires.open(zeros, kind=PROOF), strict=True):
        if bool(opened.any()):
            raise _tampered(number, "not the one that was made")
    return values


def _tampered(number: int, what: str) -> TamperedShareError:
    return TamperedShareError(
        f"The share of the input number {number} that the other computing party put in (step "
        f"{PROOF!r}) is {what}: it changed rows that are not its own. This party read nothing of "
        "it. Find out why; a new run has new keys, new material and new shares."
    )
