"""Messages of a run that are counted, and one of them changed on its way."""

import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from privtrain.mpc.spdz2k.wires import INPUT
from tests.mpc.ring64.mesh import QueueLink

POINT, PAYLOAD = 14, 44
"""f and k: bits after the point, and bits of a value of which the ring holds more."""

LOW = (0, POINT, PAYLOAD - 1)
HIGH = tuple(range(PAYLOAD, 64))


class Kind(StrEnum):
    """What is done to a message."""

    FLIP = "bit flipped"
    FLIP_BYTE = "bit of a byte flipped"
    ADD = "value added"
    ZEROS = "zeros"
    ECHO = "the receiver's own of this step"
    EARLIER = "an earlier one of this run"
    BEFORE = "the one so many before"
    OTHER_RUN = "the same one of another run"
    OTHER_STEP = "another step's of another run"
    OTHER_ROLE = "the one for another role"
    EXCHANGED = "two elements exchanged"
    SHORTER = "last element dropped"


class Change(NamedTuple):
    """What is done to a message.

    Args:
        kind: What.
        bit: Which bit is flipped; of `BEFORE`, how many messages before.
        many: Whether half of the elements are changed, or one.
        consistent: Whether the sender itself goes on with the changed message, as far as it
            computes with the very tensor that it sent; or as if it had sent the honest one.
    """

    kind: Kind
    bit: int = 0
    many: bool = False
    consistent: bool = False


class Place(NamedTuple):
    """A message of a run: number n, from 0, of those of its kind from one role to another."""

    sender: str
    to: str
    kind: str
    number: int

    @property
    def flow(self) -> tuple[str, str, str]:
        return self[:3]


@dataclass
class Network:
    """What is on its way between all roles of a run.

    Args:
        place: Which message is changed; None for an honest run.
        change: How.
        choice: Draws places within the message, and messages of other steps.
        honest: What an honest run sent.
    """

    place: Place | None = None
    change: Change = Change(Kind.FLIP)
    choice: random.Random = field(default_factory=partial(random.Random, 0))
    honest: "Network | None" = None
    sent: dict[tuple[str, str, str], list[Tensor]] = field(
        default_factory=lambda: defaultdict(list)
    )
    changed: tuple[Tensor, Tensor] | None = None
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def places(self) -> list[Place]:
        """All messages that were sent."""
        return [Place(*flow, n) for flow, sent in self.sent.items() for n in range(len(sent))]

    def at(self, place: Place) -> Tensor:
        return self.sent[place.flow][place.number]

    def send(self, flow: tuple[str, str, str], tensor: Tensor) -> Tensor | None:
        """Takes a message up.

        Returns:
            What arrives in its place, where that is something else.
        """
        honest = tensor.detach().clone()
        with self.arrived:
            place = Place(*flow, len(self.sent[flow]))
            self.sent[flow].append(honest)
            self.arrived.notify_all()
        if place != self.place:
            return None
        made = self._made(place, honest)
        if made.shape == honest.shape and torch.equal(made, honest):
            return None
        self.changed = honest, made
        return made

    def _made(self, place: Place, honest: Tensor) -> Tensor:
        kind, choice = self.change.kind, self.choice
        if kind is Kind.ZEROS:
            return torch.zeros_like(honest)
        if kind is Kind.ECHO:
            return fitted(self._heard(place), honest)
        if kind is Kind.EARLIER:
            return fitted(choice.choice(self.sent[place.flow][: place.number]), honest)
        if kind is Kind.BEFORE:
            return fitted(self.sent[place.flow][place.number - self.change.bit], honest)
        if kind in (Kind.OTHER_RUN, Kind.OTHER_STEP):
            assert self.honest is not None
            others = list(self.honest.sent[place.flow])
            same = others.pop(place.number)
            other = same if kind is Kind.OTHER_RUN else choice.choice(others)
            return fitted(other, honest)
        if kind is Kind.OTHER_ROLE:
            assert self.honest is not None
            other = choice.choice(self.honest.to_others(place))
            # Of this run, where it was sent before.
            sent = self.sent.get(other.flow, [])
            source = self if len(sent) > other.number else self.honest
            return fitted(source.at(other), honest)
        flat = honest.clone().reshape(-1)
        if kind is Kind.SHORTER:
            return flat[:-1]
        if kind is Kind.EXCHANGED:
            one, other = choice.sample(range(flat.numel()), 2)
            flat[[one, other]] = flat[[other, one]]
            return flat.view(honest.shape)
        return self._spread(flat).view(honest.shape)

    def _spread(self, flat: Tensor) -> Tensor:
        """One element or many, each with a bit flipped or a value added."""
        bits = 8 * flat.element_size()
        count = max(2, flat.numel() // 2) if self.change.many else 1
        for index in self.choice.sample(range(flat.numel()), min(count, flat.numel())):
            if self.change.kind is Kind.ADD:
                flat[index] += self.choice.randrange(1, 2 ** (bits - 1))
            else:
                # Bit 63 of int64 is its sign.
                flat[index] ^= -(2**63) if self.change.bit == 63 else 1 << self.change.bit
        return flat

    def _heard(self, place: Place) -> Tensor:
        """What the receiver sends in the same step, whom the deviating party lets go first."""
        back = self.sent[place.to, place.sender, place.kind]
        with self.arrived:
            if not self.arrived.wait_for(lambda: len(back) > place.number, timeout=5):
                raise TimeoutError(f"{place.to} sends nothing in {place}")
        return back[place.number]

    def to_others(self, place: Place) -> list[Place]:
        """What the same sender sends to others as the same kind and step."""
        others = {to for sender, to, _ in self.sent if sender == place.sender} - {place.to}
        places = [place._replace(to=to) for to in sorted(others)]
        return [each for each in places if len(self.sent.get(each.flow, [])) > each.number]

    def changes_at(self, place: Place) -> list[Change]:
        """All that can be done to a message; this run was an honest one."""
        sent, back = self.at(place), self.sent.get((place.to, place.sender, place.kind), [])
        size, ring = sent.numel(), sent.dtype is torch.int64
        bits = (*LOW, *HIGH) if ring else range(8)
        manies = (False, True) if size > 1 else (False,)
        flip = Kind.FLIP if ring else Kind.FLIP_BYTE
        found = [Change(flip, bit, many) for bit in bits for many in manies]
        found += [Change(Kind.ADD, 0, many) for many in manies]
        kinds = [Kind.ZEROS, Kind.OTHER_RUN, Kind.SHORTER]
        # Neither waits for the other, unless one of them puts its input in after the other.
        at_once = "dealer" not in (place.sender, place.to) and place.kind != INPUT
        kinds += [Kind.ECHO] * (at_once and len(back) > place.number)
        kinds += [Kind.EARLIER] * (place.number > 0) + [Kind.EXCHANGED] * (size > 1)
        kinds += [Kind.OTHER_STEP] * (len(self.sent[place.flow]) > 1)
        kinds += [Kind.OTHER_ROLE] * (len(self.to_others(place)) > 0)
        found += [Change(kind) for kind in kinds]
        alike = [each._replace(consistent=True) for each in found if each.kind is not Kind.SHORTER]
        return found + alike


@dataclass
class TamperedLink(QueueLink):
    """A link on which one message may be changed just before it is sent."""

    network: Network = field(default_factory=Network)

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        made = self.network.send((self.name, to, kind), tensor)
        if made is not None and self.network.change.consistent:
            tensor.detach().copy_(made)
        super().send(to, kind, tensor if made is None else made)


def fitted(other: Tensor, like: Tensor) -> Tensor:
    """The bytes of a message, over and over, in the type and shape of another one."""
    octets = other.contiguous().reshape(-1).view(torch.uint8)
    size = like.numel() * like.element_size()
    if not octets.numel() or not size:
        return torch.zeros_like(like)
    enough = octets.repeat(-(-size // octets.numel()))[:size].clone()
    return enough.view(like.dtype).view(like.shape)


def differs(honest: Tensor, changed: Tensor) -> bool:
    """Whether ring elements of another payload were sent, or another bit in the place of bits."""
    if changed.shape != honest.shape:
        return True
    # Bits are packed into words, whose upper bits count for nothing where there are few. A masked
    # value is so small once in 2^20 times.
    packed = honest >> PAYLOAD == 0
    counts = torch.where(packed, 1, (1 << PAYLOAD) - 1)
    return bool(((honest ^ changed) & counts).any())


def drawn_from(changes: Sequence[Change], tries: int, choice: random.Random) -> list[Change]:
    """Changes at random: as many flips of bits as of all other kinds, and of each low bit as many
    as of all high ones."""
    flips = defaultdict(list)
    others = defaultdict(list)
    for change in changes:
        if change.kind in (Kind.FLIP, Kind.FLIP_BYTE):
            flips[min(change.bit, PAYLOAD)].append(change)
        else:
            others[change.kind].append(change)
    groups = [list(flips.values()), list(others.values())]
    return [choice.choice(choice.choice(groups[number % 2])) for number in range(tries)]
