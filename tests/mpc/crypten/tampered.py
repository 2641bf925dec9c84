"""CrypTen while a party changes one message: its sums go through gloo, past the party's link."""

import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.crypten.engine import CrypTen
from tests.contracts.engine import Bounds
from tests.mpc.changed_messages import Kind, Network, Place, drawn_from
from tests.mpc.tampered_programs import TEXTS
from tests.mpc.tampering import Suite


@dataclass
class Altered:
    """A communicator whose party changes what it brings to one sum; all others are told that sum.

    Args:
        inner: CrypTen's.
        channel: What calls it, and knows what is sent.
        network: Which message is changed, and how; numbered by their calls.
    """

    inner: Any
    channel: Any
    network: Network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def all_reduce(self, input: Tensor, *args: Any, **options: Any) -> Any:
        made = self.network.send(("", "", self.channel.kind), input)
        return self.inner.all_reduce(input if made is None else made, *args, **options)


@dataclass(frozen=True)
class Tampers:
    """Runs texts again and again in one session, each time with one message of one party changed.

    Args:
        names: Of the texts.
        tries: How often each message is changed.
        bounds: How far right results may be from float64.
    """

    names: tuple[str, ...]
    tries: int
    bounds: Bounds

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """What became of changed messages by their kind: `(2,)`, accepted and without effect."""
        counts: dict[str, Tensor] = {}
        with CrypTen().open(party) as session:
            altered = Altered(session.channel.inner, session.channel, Network())
            session.channel.inner = altered
            for name, culprit in product(self.names, (0, 1)):
                mine = link_of(party).rank == culprit
                altered.network = honest = Network()
                assert not self._wrong(session, party, name)
                for place, number in product(honest.places(), range(self.tries)):
                    choice = random.Random(f"{name} {culprit} {place} {number}")
                    altered.network = _tampering(honest, place, choice) if mine else Network()
                    wrong = self._wrong(session, party, name)
                    if not mine:
                        count = counts.setdefault(place.kind, torch.zeros(2).long())
                        count[0 if wrong else 1] += 1
        return counts

    def _wrong(self, session: Any, party: Party, name: str) -> list[str]:
        """Which results are wrong."""
        opened = TEXTS[name].on(session, party, {})
        return Suite(CrypTen(), self.bounds, step=0.004).wrong(opened, TEXTS[name].plain())


def _tampering(honest: Network, place: Place, choice: random.Random) -> Network:
    # A message of another length would end the process: gloo's frames have one size.
    changes = [each for each in honest.changes_at(place) if each.kind is not Kind.SHORTER]
    (change,) = drawn_from(changes, 1, choice)
    return Network(place, change, choice, honest)
