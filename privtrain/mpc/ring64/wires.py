"""What a role of the ring engine draws and sends: one interface for computing parties and dealer.

The dealer runs the program of the computing parties on the masks of values instead of their shares:
where a party draws its share of a mask, the dealer draws all of them and knows their sum. Nothing
that is dealt depends on what is opened, so the dealer runs ahead and hears nothing.

Source: function-dependent preprocessing as in Turbospeedz (Ben-Efraim, Nielsen and Omri 2019,
eprint 2019/080), with additive shares and a semi-honest dealer.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.core.links import Link
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.material import MaterialReader, MaterialSender
from privtrain.mpc.ring64.ring import RING_BITS, uniform_bytes

MASKED = "masked share"
ANNOUNCEMENT = "announcement"

Compute = Callable[[], Tensor]
"""What the dealer computes from masks, and nobody else calls."""


Rekey = Callable[[bytes], tuple[Keystream, ...]]
"""Streams that follow from a digest, too: for what is dealt long before it is used.

Where something else is announced then, a party would draw masks where shares of corrections were
dealt, of which another party knows much. Other streams have nothing in common with what was dealt.
"""


class Wires(Protocol):
    """One role's randomness and messages. All roles call the same methods in the same order."""

    @property
    def leader(self) -> bool:
        """Whether this role's share takes up public constants: at one computing party."""
        ...

    @property
    def deals(self) -> bool:
        """Whether this is the dealer: its shares and opened values are zeros."""
        ...

    def random(self, shape: Sequence[int]) -> Tensor:
        """A uniform mask that nobody but the dealer knows.

        Args:
            shape: Shape of the mask.

        Returns:
            int64: a party's share of the mask, the dealer's mask itself.
        """
        ...

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = RING_BITS) -> Tensor:
        """Shares of what the dealer computes from masks.

        Args:
            compute: Called by the dealer only: int64, of that shape.
            shape: Shape of the value.
            bits: The shares add up to the value modulo 2^bits, from 1 to 64.

        Returns:
            int64: a party's share, zeros at the dealer.
        """
        ...

    def random_bytes(self, shape: Sequence[int]) -> Tensor:
        """As `random`, shared by exclusive or; uint8."""
        ...

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        """Shares by exclusive or of bytes that the dealer computes; uint8, zeros at the dealer."""
        ...

    def open(
        self,
        shares: Sequence[Tensor],
        *,
        kind: str = MASKED,
        readers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Opens values in one message from each computing party to each that reads them.

        Args:
            shares: int64 shares of sums, or uint8 shares by exclusive or; mixed as needed.
            kind: The message's name in the transcript.
            readers: Ranks of those that read; None for all.

        Returns:
            The values, of the shares' shapes and types; zeros at the dealer, and nothing at a party
            that does not read.

        Raises:
            ProtocolError: If a party sends shares of other values.
        """
        ...

    def announce(self, values: Tensor) -> list[Tensor]:
        """What each computing party announces, by rank; the dealer hears it and says nothing."""
        ...

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        """This role's share of a value of one party; nothing is sent."""
        ...


@dataclass
class PartyWires:
    """The wires of a computing party.

    Args:
        link: Its link.
        others: The other computing parties, by rank.
        stream: What the dealer can draw as well.
        pairs: Ranks (owner, receiver) to the stream from which the receiver's share is drawn, for
            the pairs that this party is of.
        material: Where corrections are read; None where this party needs none.
        dealer: Who deals; None where all was dealt before.
        rekey: Digest of what was announced to the stream from then on; None where it goes on.
    """

    link: Link
    others: tuple[str, ...]
    stream: Keystream = field(repr=False)
    pairs: dict[tuple[int, int], Keystream] = field(repr=False)
    material: MaterialReader | None
    dealer: str | None
    rekey: Rekey | None = field(default=None, repr=False)
    deals: bool = field(default=False, init=False)
    _heard: bytes = field(default=b"", init=False, repr=False)

    @property
    def leader(self) -> bool:
        return self.link.rank == 0

    def random(self, shape: Sequence[int]) -> Tensor:
        return self.stream.integers(shape)

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = RING_BITS) -> Tensor:
        if self.material is None:
            return lowest(self.stream.integers(shape), bits)
        return _read(self.material, shape, bits)

    def random_bytes(self, shape: Sequence[int]) -> Tensor:
        return uniform_bytes(self.stream, shape)

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        if self.material is None:
            return uniform_bytes(self.stream, shape)
        return self.material.take(prod(shape), torch.uint8).view(tuple(shape))

    def open(
        self,
        shares: Sequence[Tensor],
        *,
        kind: str = MASKED,
        readers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        if self.material is not None:
            self.material.step += 1
        words = [share.reshape(-1) for share in shares if share.dtype is torch.int64]
        octets = [share.reshape(-1) for share in shares if share.dtype is not torch.int64]
        size = 8 * sum(word.numel() for word in words)
        parts = [*(word.view(torch.uint8) for word in words), *octets] if octets else words
        message = torch.cat(parts) if len(parts) != 1 else parts[0]
        for name in self.others:
            if readers is None or self.link.names.index(name) in readers:
                self.link.send(name, kind, message)
        if readers is not None and self.link.rank not in readers:
            return []
        total, rest = _kinds(message, size)
        for name in self.others:
            received = self.link.receive(name, kind)
            if received.shape != message.shape or received.dtype != message.dtype:
                raise ProtocolError(
                    f"{name} opened {tuple(received.shape)} of {received.dtype} where this party "
                    f"opened {tuple(message.shape)} of {message.dtype}."
                )
            other_total, other_rest = _kinds(received, size)
            # Not in place: the message may be the share itself.
            if total is not None and other_total is not None:
                total = total + other_total
            if rest is not None and other_rest is not None:
                rest = rest ^ other_rest
        return _parted(shares, total, rest)

    def announce(self, values: Tensor) -> list[Tensor]:
        said = announced(self.link, self.others, values, self.dealer)
        self._heard = absorbed(self._heard, said)
        if self.material is not None:
            self.material.heard = self._heard
        if self.rekey is not None:
            (self.stream,) = self.rekey(self._heard)
        return said

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        # What the receivers draw from keys that each shares with the owner, the owner subtracts.
        if self.link.rank != owner:
            return self.pairs[owner, self.link.rank].integers(shape)
        if integers is None or tuple(integers.shape) != tuple(shape):
            raise ValueError(f"Expected the owner to bring integers of shape {tuple(shape)}.")
        own_share = integers.clone()
        for rank in range(len(self.others) + 1):
            if rank != owner:
                own_share -= self.pairs[owner, rank].integers(shape)
        return own_share


@dataclass
class OfflineWires:
    """The wires of a computing party while its material is dealt ahead: zeros, and nothing opened.

    It follows the program as the dealer does, so that both know how much is dealt, and for what.

    Args:
        link: Its link.
        others: The other computing parties, by rank.
        material: Where corrections come by; None where this party needs none.
        dealer: Who deals.
    """

    link: Link
    others: tuple[str, ...]
    material: MaterialReader | None
    dealer: str
    leader: bool = field(default=False, init=False)
    deals: bool = field(default=True, init=False)
    _heard: bytes = field(default=b"", init=False, repr=False)

    def random(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = RING_BITS) -> Tensor:
        if self.material is not None:
            _read(self.material, shape, bits)
        return self.random(shape)

    def random_bytes(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.uint8)

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        if self.material is not None:
            self.material.take(prod(shape), torch.uint8)
        return self.random_bytes(shape)

    def open(
        self,
        shares: Sequence[Tensor],
        *,
        kind: str = MASKED,
        readers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        if self.material is not None:
            self.material.step += 1
        return [torch.zeros_like(share) for share in shares]

    def announce(self, values: Tensor) -> list[Tensor]:
        said = announced(self.link, self.others, values, self.dealer)
        self._heard = absorbed(self._heard, said)
        if self.material is not None:
            self.material.heard = self._heard
        return said

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        return self.random(shape)


@dataclass
class DealerWires:
    """The wires of the dealer.

    Args:
        link: Its link.
        computing: The computing parties, by rank.
        streams: The stream of each of them.
        material: Where corrections go.
        rekey: Digest of what was announced to the streams from then on; None where they go on.
    """

    link: Link
    computing: tuple[str, ...]
    streams: tuple[Keystream, ...] = field(repr=False)
    material: MaterialSender
    rekey: Rekey | None = field(default=None, repr=False)
    leader: bool = field(default=False, init=False)
    deals: bool = field(default=True, init=False)
    _heard: bytes = field(default=b"", init=False, repr=False)

    def random(self, shape: Sequence[int]) -> Tensor:
        first, *others = self.streams
        mask = first.integers(shape)
        for stream in others:
            mask += stream.integers(shape)
        return mask

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = RING_BITS) -> Tensor:
        correction = compute()
        _check(correction, shape)
        # Not in place: what is computed may be a mask that is needed again.
        for stream in self.streams[:-1]:
            correction = correction - stream.integers(shape)
        if bits == RING_BITS:
            self.material.put(correction)
        else:
            self.material.put(narrowed(lowest(correction, bits), -(-bits // 8)))
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def random_bytes(self, shape: Sequence[int]) -> Tensor:
        first, *others = self.streams
        mask = uniform_bytes(first, shape)
        for stream in others:
            mask ^= uniform_bytes(stream, shape)
        return mask

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        correction = compute()
        _check(correction, shape)
        for stream in self.streams[:-1]:
            correction = correction ^ uniform_bytes(stream, shape)
        self.material.put(correction)
        return torch.zeros(tuple(shape), dtype=torch.uint8)

    def open(
        self,
        shares: Sequence[Tensor],
        *,
        kind: str = MASKED,
        readers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        self.material.step += 1
        return [torch.zeros_like(share) for share in shares]

    def announce(self, values: Tensor) -> list[Tensor]:
        # Before it waits: a party may need what was dealt so far to get to its announcement.
        self.material.drain()
        said = [self.link.receive(name, ANNOUNCEMENT) for name in self.computing]
        self._heard = self.material.heard = absorbed(self._heard, said)
        if self.rekey is not None:
            self.streams = self.rekey(self._heard)
        return said

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def _read(material: MaterialReader, shape: Sequence[int], bits: int) -> Tensor:
    """The next correction of a value that is shared modulo 2^bits; int64."""
    if bits == RING_BITS:
        return material.take(prod(shape), torch.int64).view(tuple(shape))
    width = -(-bits // 8)
    narrow = material.take(width * prod(shape), torch.uint8)
    return widened(narrow, width).view(tuple(shape))


def announced(
    link: Link, others: tuple[str, ...], values: Tensor, dealer: str | None
) -> list[Tensor]:
    """What each computing party announces, by rank; the dealer, where there is one, hears it."""
    for name in others if dealer is None else (*others, dealer):
        link.send(name, ANNOUNCEMENT, values)
    said = {name: link.receive(name, ANNOUNCEMENT) for name in others}
    own = link.names[link.rank]
    return [values if name == own else said[name] for name in link.names if name != dealer]


def absorbed(digest: bytes, said: Sequence[Tensor]) -> bytes:
    """The digest of all that was announced, after this."""
    state = hashlib.sha256(digest)
    for values in said:
        state.update(f"{values.dtype} {tuple(values.shape)} ".encode())
        state.update(values.contiguous().numpy().tobytes())
    return state.digest()


def lowest(integers: Tensor, bits: int) -> Tensor:
    """Integers modulo 2^bits, from 0; the same ones where bits is 64."""
    return integers if bits == RING_BITS else integers & ((1 << bits) - 1)


def narrowed(integers: Tensor, width: int) -> Tensor:
    """The lowest bytes of integers, `(elements * width,)`; little-endian."""
    return integers.reshape(-1, 1).view(torch.uint8)[:, :width].reshape(-1)


def widened(octets: Tensor, width: int) -> Tensor:
    """Integers from 0 of their lowest bytes, `(elements,)`."""
    wide = torch.zeros((octets.numel() // width, 8), dtype=torch.uint8)
    wide[:, :width] = octets.view(-1, width)
    return wide.view(torch.int64).view(-1)


def _check(value: Tensor, shape: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"Expected {tuple(value.shape)} to be dealt as shape={tuple(shape)}.")


def _kinds(message: Tensor, size: int) -> tuple[Tensor | None, Tensor | None]:
    """The integers of a message, in its first bytes, and the bytes behind them."""
    if message.dtype is torch.int64:
        return message, None
    if size == 0:
        return None, message
    return message[:size].view(torch.int64), message[size:]


def _parted(shares: Sequence[Tensor], total: Tensor | None, rest: Tensor | None) -> list[Tensor]:
    """The opened values one by one, in the order of their shares."""
    if len(shares) == 1:
        return [source.view(shares[0].shape) for source in (total, rest) if source is not None]
    opened, at = [], {torch.int64: 0, torch.uint8: 0}
    for share in shares:
        source = total if share.dtype is torch.int64 else rest
        if source is None:
            raise RuntimeError(f"Expected a value of {share.dtype} to be opened.")
        start = at[share.dtype]
        at[share.dtype] = end = start + share.numel()
        opened.append(source[start:end].view(share.shape))
    return opened
