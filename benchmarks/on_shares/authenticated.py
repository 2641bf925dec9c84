"""`spdz2k`, the engine whose values have MACs, as a side beside `ring64`."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from on_shares.sides import Ring64Side, Side, computing_parties
from on_shares.works import Work
from torch import Tensor

from privtrain.core.links import Link
from privtrain.core.runtime import Party, link_of
from privtrain.mpc.ring64.material import KIND as MATERIAL
from privtrain.mpc.ring64.streamed import DEALER
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.spdz2k.engine import SPDZ2k

AUTHENTICATED = "spdz2k"
ARRIVED = "arrived"


@dataclass
class Stored:
    """A link whose material is received before a program asks for it.

    Args:
        link: The link.
    """

    link: Link
    _messages: deque[Tensor] = field(default_factory=deque, init=False)

    def arrive(self) -> None:
        """Receives material up to the empty message that the dealer sends behind it."""
        while (message := self.link.receive(DEALER, MATERIAL)).numel():
            self._messages.append(message)

    def receive(self, sender: str, kind: str, **expected: Any) -> Tensor:
        """What arrived, or comes next."""
        if kind == MATERIAL and self._messages:
            return self._messages.popleft()
        return self.link.receive(sender, kind, **expected)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)


@dataclass
class Spdz2kSide(Ring64Side):
    """`spdz2k`: as `ring64`; a run ends with the check of all that it opened.

    Args:
        stored: The link that the session has.
    """

    name: str = field(default=AUTHENTICATED, init=False)
    stored: Stored = field(kw_only=True)
    _operands: list[Any] = field(default_factory=list, init=False)

    def prepare(self, work: Work) -> Work:
        super().prepare(work)
        if not self.session.deals:
            self._arrive()
        self._operands = self._prepared.taken(self.session)
        if self.session.deals:
            self._deliver()
        return work

    def _compute(self) -> None:
        # An input is public under a mask from the start; operands are as what was computed before.
        operands: list[Any] = [
            Ring64Tensor(each.share, self.session, whole=True, largest=each.largest)
            for each in self._operands
        ]
        results: list[Any] = self._prepared.work.run(self.session, operands)
        self._result = self.session.settled(results)
        self.session.finish()
        self.session.wires.check()  # type: ignore[attr-defined]  # this engine's wires

    def _arrive(self) -> None:
        self.stored.arrive()
        first, second = computing_parties(self.link)
        # Both have material to read.
        if self.link.rank == 0:
            self.link.receive(second, ARRIVED)
        else:
            self.link.send(first, ARRIVED, torch.zeros(0))

    def _deliver(self) -> None:
        for material in self.session.wires.materials:  # type: ignore[attr-defined]
            material.flush()
            self.link.send(material.to, MATERIAL, torch.empty(0, dtype=torch.uint8))
        # The first party says next that it is ready, not what it took.
        self.session.wires.materials[0].drain()  # type: ignore[attr-defined]

    def opened(self) -> list[Tensor]:
        """Deals what covers the result, too."""
        if not self.session.deals:
            self._arrive()
        result = super().opened()
        if self.session.deals:
            self._deliver()
        return result


@dataclass(frozen=True)
class Authenticated:
    """`spdz2k` among all parties of a mesh of two and the dealer."""

    @contextmanager
    def open(self, party: Party) -> Iterator[Sequence[Side]]:
        """A session of its own."""
        stored: Any = Stored(link_of(party))
        with SPDZ2k().open(replace(party, link=stored)) as session:
            yield [Spdz2kSide(session, link_of(party), stored=stored)]
