"""What a role of the authenticated engine draws and sends: computing parties and the dealer.

As in `privtrain.mpc.ring64.wires` the dealer runs the parties' program on masks. What it deals has
MACs; party 0 draws its shares of all of it from a seed, party 1 is sent the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.links import Link
from privtrain.mpc.keystream import BoundKeystream, Keystream
from privtrain.mpc.ring64.material import MaterialReader, MaterialSender
from privtrain.mpc.ring64.wires import ANNOUNCEMENT, MASKED, Compute, absorbed
from privtrain.mpc.spdz2k import dcf
from privtrain.mpc.spdz2k.check import Check, Strength, heard
from privtrain.mpc.spdz2k.forms import Form

INPUT = "masked input"

Words = NDArray[np.uint64]
"""Shares by exclusive or of a secret bit times the key of bits, `(values,)`."""


class Wires(Protocol):
    """One role's randomness and messages. All roles call the same methods in the same order."""

    @property
    def deals(self) -> bool:
        """Whether this is the dealer: what it opens are zeros."""
        ...

    @property
    def unit(self) -> Tensor:
        """What stands for the public value 1, see `Form`."""
        ...

    def random(self, shape: Sequence[int]) -> Form:
        """A uniform mask that nobody but the dealer knows, with MACs."""
        ...

    def known(self, shape: Sequence[int], owner: int) -> Form:
        """A uniform mask that one party knows: its share of it is all of it."""
        ...

    def dealt(self, compute: Compute, shape: Sequence[int]) -> Form:
        """What the dealer computes from masks, with MACs.

        Args:
            compute: Called by the dealer only: int64, of that shape.
            shape: Shape of the value.
        """
        ...

    def coins(self, shape: Sequence[int]) -> Tensor:
        """Bits that the dealer draws for itself, 0 or 1; zeros elsewhere."""
        ...

    def below(
        self, bits: int, points: Tensor, thresholds: Tensor, flips: Tensor, known: Tensor
    ) -> Words:
        """Shares of whether public points are below secret thresholds, with tags.

        Args:
            bits: Bits of points and thresholds.
            points: Public, `(values,)`, from 0 to 2^bits - 1.
            thresholds: At the dealer.
            flips: 1 at the dealer where the answer is flipped.
            known: 1 where it is flipped publicly.
        """
        ...

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        """Opens values and bits in one message from each party to the other.

        Returns:
            int64 of the values' shapes, bits as 0 and 1; zeros at the dealer.

        Raises:
            ProtocolError: If the other party sends shares of other values.
        """
        ...

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> tuple[Tensor, Form]:
        """A value of one party under a mask that it knows, sent to the other, and the mask."""
        ...

    def swap(self, values: Tensor, *, kind: str) -> Tensor:
        """What the other party says at the same time, of one shape; zeros at the dealer."""
        ...

    def announce(self, values: Tensor) -> list[Tensor]:
        """What each computing party announces, by rank."""
        ...

    def check(self) -> None:
        """Checks all that was opened so far; nothing at the dealer."""
        ...


@dataclass
class PartyWires:
    """The wires of a computing party.

    Args:
        link: Its link.
        other: The other computing party.
        dealer: Who deals.
        stream: What the dealer can draw as well.
        material: Where corrections are read.
        strength: As for all roles.
        heard: Digest of what the program follows from, beside its text: of the inputs' names and
            shapes, then of announcements. Where the dealer's is another one, MACs do not fit.
    """

    link: Link
    other: str
    dealer: str
    stream: BoundKeystream = field(repr=False)
    material: MaterialReader = field(repr=False)
    strength: Strength = Strength()
    heard: bytes = field(default=b"", repr=False)
    deals: bool = field(default=False, init=False)
    unit: Tensor = field(init=False, repr=False)
    _check: Check = field(init=False, repr=False)
    _bit_key: np.uint64 = field(init=False, repr=False)
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.stream.bind(f"keys {self.strength} {self.heard.hex()}")
        self.material.heard = self.heard
        *keys, bit_key = self._rest(self.strength.keys + 1)
        self._bit_key = bit_key.numpy().view(np.uint64)[()]
        leads = torch.tensor(1 - self.link.rank)
        self.unit = torch.stack([leads, *keys])
        self._check = Check(self.link, self.other, self.unit[1:], self.strength)
        self._check.begin()

    def _rest(self, *shape: int) -> Tensor:
        """What party 0 draws, and party 1 is sent."""
        if self.link.rank == 0:
            return self.stream.integers(shape)
        return self.material.take(prod(shape), torch.int64).view(shape)

    def random(self, shape: Sequence[int]) -> Form:
        self.stream.bind(_random(shape))
        share = self.stream.integers((1, *shape))
        return Form(torch.cat([share, self._rest(self.strength.keys, *shape)]), self.unit)

    def known(self, shape: Sequence[int], owner: int) -> Form:
        self.stream.bind(_known(shape, owner))
        size = (1, *shape)
        own = owner == self.link.rank
        mask = self.stream.integers(size) if own else torch.zeros(size, dtype=torch.int64)
        return Form(torch.cat([mask, self._rest(self.strength.keys, *shape)]), self.unit)

    def dealt(self, compute: Compute, shape: Sequence[int]) -> Form:
        self.stream.bind(_dealt(shape))
        return Form(self._rest(1 + self.strength.keys, *shape), self.unit)

    def coins(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def below(
        self, bits: int, points: Tensor, thresholds: Tensor, flips: Tensor, known: Tensor
    ) -> Words:
        count, sizes = points.numel(), dcf.sizes(bits)
        self.stream.bind(_below(bits, count))
        own = self.stream.integers((sizes.own, count))
        common = self.material.take(sizes.common * count, torch.int64).view(sizes.common, count)
        words = dcf.evaluate(
            bits,
            self.link.rank,
            own.numpy().view(np.uint64),
            common.numpy().view(np.uint64),
            points.numpy().view(np.uint64),
        )
        words ^= known.numpy().view(np.uint64) * self._bit_key
        return words

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        self._check.go_on()
        self._step += 1
        self.material.step = self._step
        values = [share for share in shares if isinstance(share, Form)]
        words = [share for share in shares if not isinstance(share, Form)]
        bits = np.concatenate(words) if words else np.empty(0, np.uint64)
        message = torch.cat([*(each.share.reshape(-1) for each in values), _packed(bits)])
        self.link.send(self.other, kind, message)
        received = heard(self.link, self.other, kind, message.shape)
        self._check.step(self._step, kind)
        size = sum(value.shape.numel() for value in values)
        total = message[:size] + received[:size]
        opened = _unpacked(message[size:] ^ received[size:], len(bits))
        if words:
            self._check.bits(bits ^ opened.numpy().view(np.uint64) * self._bit_key)
        results = _parted(shares, total, opened)
        for share, value in zip(shares, results, strict=True):
            if isinstance(share, Form):
                self._check.value(share, value)
        if self._check.full:
            self._check.run()
        return results

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> tuple[Tensor, Form]:
        mask = self.known(shape, owner)
        if self.link.rank != owner:
            masked = heard(self.link, self.other, INPUT, shape)
            return masked, mask
        if integers is None or tuple(integers.shape) != tuple(shape):
            raise ValueError(f"Expected the owner to bring integers of shape {tuple(shape)}.")
        masked = integers + mask.share
        self.link.send(self.other, INPUT, masked)
        return masked, mask

    def swap(self, values: Tensor, *, kind: str) -> Tensor:
        self.link.send(self.other, kind, values)
        return heard(self.link, self.other, kind, values.shape, values.dtype)

    def announce(self, values: Tensor) -> list[Tensor]:
        for name in (self.other, self.dealer):
            self.link.send(name, ANNOUNCEMENT, values)
        other = heard(self.link, self.other, ANNOUNCEMENT, values.shape, values.dtype)
        said = [values, other] if self.link.rank == 0 else [other, values]
        self.material.heard = self.heard = absorbed(self.heard, said)
        self.stream.bind(f"heard {self.heard.hex()}")
        return said

    def check(self) -> None:
        self._check.run()


@dataclass
class DealerWires:
    """The wires of the dealer.

    Args:
        link: Its link.
        computing: The computing parties, by rank.
        streams: The stream of each of them.
        materials: Where corrections go, one for each of them.
        strength: As for all roles.
        heard: As at the parties.
    """

    link: Link
    computing: tuple[str, ...]
    streams: tuple[BoundKeystream, BoundKeystream] = field(repr=False)
    materials: tuple[MaterialSender, MaterialSender] = field(repr=False)
    strength: Strength = Strength()
    heard: bytes = field(default=b"", repr=False)
    deals: bool = field(default=True, init=False)
    unit: Tensor = field(init=False, repr=False)
    _own: Keystream = field(default_factory=Keystream, init=False, repr=False)
    _keys: Tensor = field(init=False, repr=False)
    _bit_key: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.unit = torch.zeros(1, dtype=torch.int64)
        mask = (1 << self.strength.key_bits) - 1
        self._keys = self._own.integers((self.strength.keys,)) & mask
        # Odd, so that a share's lowest bit is a share of the bit itself.
        key = self._own.integers((1,)) | 1
        self._bit_key = int(key.numpy().view(np.uint64)[0])
        self._bind(f"keys {self.strength} {self.heard.hex()}")
        for material in self.materials:
            material.heard = self.heard
        drawn = self.streams[0].integers((self.strength.keys + 1,))
        self.materials[1].put(torch.cat([self._keys - drawn[:-1], key ^ drawn[-1:]]))

    def _bind(self, use: str) -> None:
        for stream in self.streams:
            stream.bind(use)

    def _deal(self, words: Tensor) -> None:
        """Sends party 1 what is left of values when party 0's shares are taken off."""
        self.materials[1].put(words - self.streams[0].integers(tuple(words.shape)))

    def _macs(self, values: Tensor) -> Tensor:
        return self._keys.view(-1, *[1] * values.dim()) * values

    def random(self, shape: Sequence[int]) -> Form:
        self._bind(_random(shape))
        mask = self.streams[0].integers(shape) + self.streams[1].integers(shape)
        self._deal(self._macs(mask))
        return Form(mask.unsqueeze(0), self.unit)

    def known(self, shape: Sequence[int], owner: int) -> Form:
        self._bind(_known(shape, owner))
        mask = self.streams[owner].integers(shape)
        self._deal(self._macs(mask))
        return Form(mask.unsqueeze(0), self.unit)

    def dealt(self, compute: Compute, shape: Sequence[int]) -> Form:
        value = compute()
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"Expected {tuple(value.shape)} to be dealt as shape={tuple(shape)}.")
        self._bind(_dealt(shape))
        self._deal(torch.cat([value.unsqueeze(0), self._macs(value)]))
        return Form(value.unsqueeze(0), self.unit)

    def coins(self, shape: Sequence[int]) -> Tensor:
        return self._own.integers(shape) & 1

    def below(
        self, bits: int, points: Tensor, thresholds: Tensor, flips: Tensor, known: Tensor
    ) -> Words:
        count, sizes = points.numel(), dcf.sizes(bits)
        self._bind(_below(bits, count))
        own, other = (stream.integers((sizes.own, count)) for stream in self.streams)
        _, common = dcf.generate(
            bits,
            thresholds.numpy().view(np.uint64),
            flips.numpy().astype(np.uint8),
            self._bit_key,
            own.numpy().view(np.uint64),
            other.numpy().view(np.uint64),
        )
        # Party 1 first, and both at once: while the dealer waits for one of them to take what was
        # sent, nothing that the other one needs to get there may be left with it.
        for material in reversed(self.materials):
            material.put(torch.from_numpy(common.view(np.int64)))
            material.flush()
        return np.zeros(count, np.uint64)

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        for material in self.materials:
            material.step += 1
        return [
            torch.zeros(share.shape, dtype=torch.int64)
            if isinstance(share, Form)
            else torch.zeros(len(share), dtype=torch.int64)
            for share in shares
        ]

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> tuple[Tensor, Form]:
        return torch.zeros(tuple(shape), dtype=torch.int64), self.known(shape, owner)

    def swap(self, values: Tensor, *, kind: str) -> Tensor:
        return torch.zeros_like(values)

    def announce(self, values: Tensor) -> list[Tensor]:
        # Before it waits: a party may need what was dealt so far to get to its announcement.
        self.drain()
        first = self.link.receive(self.computing[0], ANNOUNCEMENT)
        second = heard(self.link, self.computing[1], ANNOUNCEMENT, first.shape, first.dtype)
        said = [first, second]
        self.heard = absorbed(self.heard, said)
        for material in self.materials:
            material.heard = self.heard
        self._bind(f"heard {self.heard.hex()}")
        return said

    def drain(self) -> None:
        """Sends what is left, and waits until both parties took all of it."""
        for material in self.materials:
            material.flush()
        for material in self.materials:
            material.drain()

    def check(self) -> None:
        """Nothing: the dealer hears nothing of what is opened."""


# What words are drawn for, in the same words at all roles.


def _random(shape: Sequence[int]) -> str:
    return f"mask {tuple(shape)}"


def _known(shape: Sequence[int], owner: int) -> str:
    return f"mask of {owner} {tuple(shape)}"


def _dealt(shape: Sequence[int]) -> str:
    return f"dealt {tuple(shape)}"


def _below(bits: int, count: int) -> str:
    return f"below {bits} {count}"


def _packed(bits: Words) -> Tensor:
    """The lowest bits of words, 64 in an integer."""
    octets = np.packbits((bits & np.uint64(1)).astype(np.uint8), bitorder="little")
    padded = np.zeros(-(-len(octets) // 8) * 8, np.uint8)
    padded[: len(octets)] = octets
    return torch.from_numpy(padded.view(np.int64))


def _unpacked(words: Tensor, count: int) -> Tensor:
    octets = words.numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, count=count, bitorder="little").astype(np.int64))


def _parted(shares: Sequence[Form | Words], total: Tensor, bits: Tensor) -> list[Tensor]:
    """The opened values one by one, in the order of their shares."""
    results, values_from, bits_from = list[Tensor](), 0, 0
    for share in shares:
        if isinstance(share, Form):
            size = share.shape.numel()
            results.append(total[values_from : values_from + size].view(share.shape))
            values_from += size
        else:
            results.append(bits[bits_from : bits_from + len(share)])
            bits_from += len(share)
    return results
