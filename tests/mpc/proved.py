"""Ring64 with proofs of input shares, checked in the open: for tests of what goes around it.

Nothing is secret here, and nothing but input shares is checked.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from privtrain.core.errors import TamperedShareError
from privtrain.core.runtime import Party, link_of
from privtrain.core.statement import Adversary
from privtrain.mpc.proofs import Proof, coefficients, fits, flattened
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.sharing import reveal

SAID = "step 0, input share: the opened value is not what its proof says"


@dataclass(frozen=True)
class Proved(Ring64):
    """Two computing parties, of which one may change its input shares.

    Args:
        changes: The rank that changes its shares, as a digit; empty for nobody.
        notices: The ranks that notice it; the other ones go on, and lose contact.
        late: Whether they notice nothing before something is opened.
    """

    changes: str = ""
    notices: str = "01"
    late: bool = False
    authenticated: ClassVar[bool] = True
    keeps_shares: ClassVar[bool] = False
    adversary: ClassVar[Adversary] = Adversary.MALICIOUS
    most_parties: ClassVar[int] = 2

    @contextmanager
    def open(self, party: Party) -> Iterator[Ring64Session]:
        rank = str(link_of(party).rank)
        with super().open(party) as session:
            notices = rank in self.notices
            yield ProvedSession(session.wires, rank in self.changes, notices, self.late)


@dataclass
class ProvedSession(Ring64Session):
    """Its session at one role."""

    changes: bool = False
    notices: bool = False
    late: bool = False

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list[Ring64Tensor]:
        own = [share + 1 if self.changes else share for share in shares]
        for share, proof in zip(own, proofs, strict=True):
            assert proof is not None
            # Whole messages: what an announcement says besides is nobody's business here.
            said = self.announce(torch.cat([share.reshape(-1), proof]))
            if self.notices and not self.late and not proved(said, share.shape):
                raise TamperedShareError(SAID)
        return super().take_all(own, proofs=proofs, largest=largest)

    def reveal(
        self, values: Sequence[Any], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        if self.notices and self.late:
            raise TamperedShareError(SAID)
        # The dealer has dealt everything by now: it stays to hear how the run ends.
        self.announce(torch.zeros(1, dtype=torch.int64))
        return super().reveal(values, kind=kind, readers=readers)


def proved(said: Sequence[Tensor], shape: torch.Size) -> bool:
    """Whether the shares and proofs of two parties fit."""
    count = shape.numel()
    rows = flattened(reveal([each[:count] for each in said]).view(shape))
    first, second = (Proof.read(each[count:], rows.shape[1]) for each in said)
    assert fits(second.seed, first.digest, 1) and fits(first.seed, second.digest, 0)
    answers = reveal([first.answers, second.answers])
    return torch.equal(coefficients(first.seed, second.seed, len(rows)) @ rows, answers)
