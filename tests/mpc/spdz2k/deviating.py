"""A computing party of the authenticated engine that computes something else than its program says.

Unlike a message that is changed on its way, what such a party does is consistent: it goes on with
what it told the other one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import TamperedShareError
from privtrain.core.links import Link
from privtrain.mpc.ring64.wires import MASKED, Compute
from privtrain.mpc.spdz2k.forms import Form
from privtrain.mpc.spdz2k.wires import PartyWires, Words

Wires = Callable[..., PartyWires]


def signed(integer: int) -> int:
    """What int64 makes of an integer below 2^64."""
    return integer - (1 << 64) if integer >> 63 else integer


def shifted(form: Form, error: int, *, many: bool = True) -> Form:
    """A form whose share is off, its MACs as they were."""
    words = form.words.clone(memory_format=torch.contiguous_format)
    share = words[0].view(-1)
    share[: None if many else 1] += signed(error)
    return form.like(words)


def flipped(words: Words, error: int, *, many: bool = True) -> Words:
    """Shares of bits with tags, some bits of which are flipped."""
    words = words.copy()
    words[: None if many else 1] ^= np.uint64(error)
    return words


@dataclass
class Skips(PartyWires):
    """Makes one check less.

    Args:
        skipped: The number of the check, from 1, of those that its program asks for; 0 for none.
    """

    skipped: int = 0
    asked: int = field(default=0, init=False)

    def check(self) -> None:
        self.asked += 1
        if self.asked != self.skipped:
            super().check()


@dataclass
class OffAtOpening(Skips):
    """Adds an error to what it opens, once, and goes on with what was opened.

    Args:
        opening: The number of the opening, from 1.
        error: What is added to a share, or flipped in the share of a bit.
        many: Whether it is added to all elements, or to the first one.
    """

    opening: int = 1
    error: int = 1
    many: bool = False

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        if self._step + 1 == self.opening:
            shares = [
                shifted(share, self.error, many=self.many)
                if isinstance(share, Form)
                else flipped(share, self.error, many=self.many)
                for share in shares
            ]
        return super().open(shares, kind=kind)


class OffMasks(PartyWires):
    """Adds a public number to its shares of masks alone."""

    def random(self, shape: Sequence[int]) -> Form:
        return shifted(super().random(shape), 5)


class OffDealt(PartyWires):
    """Adds a public number to its shares of what is dealt alone."""

    def dealt(self, compute: Compute, shape: Sequence[int]) -> Form:
        return shifted(super().dealt(compute, shape), 5)


class OffMACs(PartyWires):
    """Has other MACs of masks."""

    def random(self, shape: Sequence[int]) -> Form:
        form = super().random(shape)
        words = form.words.clone()
        words[-1] += 1
        return form.like(words)


@dataclass
class FlipsTags(PartyWires):
    """Flips bits of its words.

    Args:
        flips: Which.
    """

    flips: int = 1

    def below(self, *arguments: Any) -> Words:
        return flipped(super().below(*arguments), self.flips)


class OtherUnit(PartyWires):
    """Adds public numbers where it should not, or does not where it should; with their MACs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unit[0] = 1 - self.unit[0]


class OtherKey(PartyWires):
    """Has another share of the last key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unit[-1] += 1


class OtherBitKey(PartyWires):
    """Has another share of the key of bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._bit_key ^= np.uint64(2)


@dataclass
class Reads(OffAtOpening):
    """Goes on whatever a check says, and keeps what it was told as a result.

    Args:
        told: To which it is added.
    """

    told: list[Tensor] = field(default_factory=list)

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        opened = super().open(shares, kind=kind)
        if kind != MASKED:
            self.told += opened
        return opened

    def check(self) -> None:
        try:
            super().check()
        except TamperedShareError:
            return


def wired(*wires: Wires) -> Wires:
    """What makes the wires of each rank, in place of `PartyWires`."""

    def made(link: Link, *arguments: Any, **named: Any) -> PartyWires:
        return wires[link.rank](link, *arguments, **named)

    return made
