"""The channel of a secret-shared computation: checks shapes before each send, records each message.

Wraps a communicator with CrypTen's interface. In each call, the parties compare a digest of 16
bytes (of the call's number, operation, types and shapes) and only where it differs the words
themselves. A small tensor shares a frame of fixed size with its digest, so that the check costs no
exchange of its own; before a large one goes a frame with the digest alone. Digests and padding are
protocol headers: no tensor bytes, not in the transcript.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.transcript import Entry

FRAME = 4096
"""Elements that fit into a frame beside the digests. All frames have one size, since gloo aborts
the process where two parties bring different numbers of elements."""

HEADER_BYTES = 128
_DIGEST_BYTES = 16


def digest(text: str) -> Tensor:
    """The first 16 bytes of a text's SHA-256, as two ring elements."""
    return torch.frombuffer(bytearray(_digest_bytes(text)), dtype=torch.int64)


def _digest_bytes(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]


def header(text: str) -> Tensor:
    """A text as a header of fixed size: a digest of all of it, then its beginning."""
    body = text.encode()[: HEADER_BYTES - _DIGEST_BYTES].ljust(HEADER_BYTES - _DIGEST_BYTES, b"\0")
    return torch.frombuffer(bytearray(_digest_bytes(text) + body), dtype=torch.uint8)


def header_text(line: Tensor) -> str:
    """The beginning of the text in a header."""
    return bytes(line[_DIGEST_BYTES:].tolist()).rstrip(b"\0").decode(errors="replace")


def describe(tensors: Tensor | Sequence[Tensor]) -> str:
    """Types and shapes of tensors in words, such as `int64(3, 4)`."""
    if isinstance(tensors, Tensor):
        tensors = [tensors]
    return " ".join(f"{str(t.dtype).removeprefix('torch.')}{tuple(t.shape)}" for t in tensors)


def odd_one_out(lines: Sequence[bytes]) -> int | None:
    """The first rank whose line differs from the most frequent one; None where all are equal.

    Among two different lines, rank 0's counts as the most frequent.
    """
    if len(set(lines)) == 1:
        return None
    # `max` returns the first of the most frequent lines, so every party names the same rank.
    usual = max(lines, key=lines.count)
    return next(rank for rank, line in enumerate(lines) if line != usual)


class DifferError(Exception):
    """The digests of a frame differ: every party sees it, and then compares the texts."""


@dataclass
class Framed:
    """Stands in for torch.distributed where a communicator calls its all-reduce.

    Args:
        inner: torch.distributed.
        count: How many parties there are.
        rank: Own rank.
        staged: Digest of the call that is about to be made; None to make it unchecked.
    """

    inner: Any
    count: int
    rank: int
    staged: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def all_reduce(self, tensor: Tensor, **options: Any) -> Any:
        """Reduces a tensor in place, in a frame with everybody's digest where it fits.

        Raises:
            DifferError: If a party staged another digest; the tensor is unchanged then.
        """
        mine, self.staged = self.staged, None
        if mine is None:
            return self.inner.all_reduce(tensor, **options)
        # One slot a party, zero elsewhere: a sum and an exclusive or both show every digest.
        # CrypTen reduces arithmetic shares by the one and binary shares by the other.
        digests = self.count * len(mine)
        frame = torch.zeros(digests + FRAME, dtype=torch.int64)
        frame[:digests].view(self.count, -1)[self.rank] = mine
        fits = tensor.numel() <= FRAME and tensor.dtype == torch.int64
        if fits:
            frame[digests : digests + tensor.numel()] = tensor.reshape(-1)
        self.inner.all_reduce(frame, **options)
        # Raised before the result is used: sums over different shapes must not be computed with.
        if not bool((frame[:digests].view(self.count, -1) == mine).all()):
            raise DifferError
        if not fits:
            return self.inner.all_reduce(tensor, **options)
        tensor.copy_(frame[digests : digests + tensor.numel()].view(tensor.shape))
        return None


@dataclass
class Wire:
    """The functions that send headers: plain collectives of torch.distributed.

    Args:
        gather: Returns every rank's header, by rank.
        send: Sends a header to a rank.
        recv: Receives a header from a rank.
    """

    gather: Callable[[Tensor], list[Tensor]]
    send: Callable[[Tensor, int], None]
    recv: Callable[[Tensor, int], None]


@dataclass
class Channel:
    """A communicator that checks and records.

    Bytes are counted as CrypTen counts them: an all-reduce sends one tensor a party, to the next
    one in the ring.

    Args:
        inner: The communicator; its methods are CrypTen's.
        wire: What sends headers.
        names: Names of the parties, by rank.
        rank: Own rank.
        entries: Where sent messages are recorded.
        framed: The stand-in for torch.distributed that the communicator calls.
        kind: The name of messages in the transcript.
        checks: Whether shapes are compared; off only to measure what that costs.
    """

    inner: Any
    wire: Wire
    names: tuple[str, ...]
    rank: int
    entries: list[Entry]
    framed: Framed
    kind: str = "masked share"
    checks: bool = True
    round: int = field(default=0, init=False)
    _agreed: int = field(default=0, init=False)

    def __getattr__(self, name: str) -> Any:
        # What sends nothing passes through: ranks, names, counters.
        return getattr(self.inner, name)

    # Asked hundreds of times a step; the process group's answer waits for the threads of gloo.
    def get_rank(self) -> int:
        """Own rank."""
        return self.rank

    def get_world_size(self) -> int:
        """How many parties there are."""
        return len(self.names)

    def all_reduce(self, input: Any, *args: Any, **options: Any) -> Any:
        """Sum over all parties, at every party."""
        text = self._stage("all_reduce", input)
        self._record(input, [self._next])
        try:
            return self._all_reduce(input, *args, **options)
        except DifferError:
            raise self._differ(text) from None

    def _all_reduce(self, input: Any, *args: Any, **options: Any) -> Any:
        if options.pop("batched", False):
            return self._all_reduce_joined(input, *args, **options)
        return self._call("all_reduce", input, *args, **options)

    def _all_reduce_joined(self, tensors: list[Tensor], *args: Any, **options: Any) -> Any:
        """The sums of several tensors, sent as one message: small messages cost their latency."""
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
        sums = self._call("all_reduce", joined, *args, **options).split(
            [tensor.numel() for tensor in tensors]
        )
        return [total.view(tensor.shape) for total, tensor in zip(sums, tensors, strict=True)]

    def reduce(self, input: Any, dst: int, *args: Any, **options: Any) -> Any:
        """Sum over all parties, at one."""
        self._agree(f"reduce to {dst}", input)
        self._record(input, [] if self.rank == dst else [dst])
        return self._call("reduce", input, dst, *args, **options)

    def gather(self, tensor: Tensor, dst: int) -> Any:
        """All parties' tensors, at one."""
        self._agree(f"gather at {dst}", tensor)
        self._record(tensor, [] if self.rank == dst else [dst])
        return self._call("gather", tensor, dst)

    def all_gather(self, tensor: Tensor) -> Any:
        """All parties' tensors, at every party."""
        self._agree("all_gather", tensor)
        self._record(tensor, self._others)
        return self._call("all_gather", tensor)

    def broadcast(self, input: Any, src: int, *args: Any, **options: Any) -> Any:
        """One party's tensor, to all."""
        self._agree(f"broadcast from {src}", input)
        self._record(input, self._others if self.rank == src else [])
        return self._call("broadcast", input, src, *args, **options)

    def scatter(self, scatter_list: Any, src: int, size: Any = None, device: Any = None) -> Any:
        """A tensor of one party's list, to each."""
        own = torch.empty(size, dtype=torch.long, device="meta") if size is not None else None
        self._agree(f"scatter from {src}", scatter_list[self.rank] if own is None else own)
        if self.rank == src:
            for receiver in self._others:
                self._record(scatter_list[receiver], [receiver], advance=False)
        self.round += 1
        return self._call("scatter", scatter_list, src, size=size, device=device)

    def send(self, tensor: Tensor, dst: int) -> Any:
        """A tensor to one party."""
        self._announce(tensor, dst)
        self._record(tensor, [dst])
        return self._call("send", tensor, dst)

    def isend(self, tensor: Tensor, dst: int) -> Any:
        """A tensor to one party, without waiting."""
        self._announce(tensor, dst)
        self._record(tensor, [dst])
        return self._call("isend", tensor, dst)

    def recv(self, tensor: Tensor, src: int) -> Any:
        """A tensor from one party."""
        self._expect(tensor, src)
        self.round += 1
        return self._call("recv", tensor, src)

    def irecv(self, tensor: Tensor, src: int) -> Any:
        """A tensor from one party, without waiting."""
        self._expect(tensor, src)
        self.round += 1
        return self._call("irecv", tensor, src)

    # A pickle runs code of the sender's choice where it is read.
    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ProtocolError(
            "CrypTen was about to send a pickled object; privtrain lets tensors through only."
        )

    send_obj = recv_obj = broadcast_obj = _refuse

    @property
    def _next(self) -> int:
        return (self.rank + 1) % len(self.names)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(len(self.names)) if rank != self.rank]

    def _record(self, tensors: Any, receivers: list[int], *, advance: bool = True) -> None:
        """Adds an entry for each receiver; several tensors are one message, joined end to end."""
        sent = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        size = sum(tensor.element_size() * tensor.nelement() for tensor in sent)
        shape = tuple(sent[0].shape) if len(sent) == 1 else (sum(t.nelement() for t in sent),)
        for receiver in receivers:
            sender, to = self.names[self.rank], self.names[receiver]
            self.entries.append(Entry(sender, to, self.kind, shape, size, self.round))
        self.round += advance

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self.inner, name)(*args, **options)
        # gloo's only error. CrypTen catches it in one place and repeats the exchange, so it must
        # not pass as a RuntimeError.
        except RuntimeError as error:
            raise PartyLostError(f"lost contact in {name}: {error}") from error

    def _stage(self, operation: str, tensors: Any) -> str:
        """Hands the next all-reduce a digest of the call that this party is about to make."""
        if not self.checks:
            return ""
        # Collectives only are counted: a party that takes no part in a send between two others must
        # still agree on the number.
        self._agreed += 1
        text = f"call {self._agreed}: {operation} {describe(tensors)}"
        self.framed.staged = digest(text)
        return text

    def _agree(self, operation: str, tensors: Any) -> None:
        """Compares digests in a frame of their own, before an operation other than all-reduce."""
        if not self.checks:
            return
        text = self._stage(operation, tensors)
        try:
            self.framed.all_reduce(torch.zeros(0, dtype=torch.int64))
        except RuntimeError as error:
            raise PartyLostError(f"lost contact before call {self._agreed}: {error}") from error
        except DifferError:
            raise self._differ(text) from None

    def _differ(self, text: str) -> ProtocolError | PartyLostError:
        """The error after digests differed: it names the odd party and quotes all texts."""
        try:
            lines = self.wire.gather(header(text))
        except RuntimeError as error:
            return PartyLostError(f"lost contact after call {self._agreed}: {error}")
        return _disagreement(self.names, lines)

    # Between two parties no all-reduce carries a digest: the sender's description goes first.
    def _announce(self, tensor: Tensor, dst: int) -> None:
        if self.checks:
            self.wire.send(header(describe(tensor)), dst)

    def _expect(self, tensor: Tensor, src: int) -> None:
        if not self.checks:
            return
        line = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        self.wire.recv(line, src)
        if not torch.equal(line, header(describe(tensor))):
            raise ProtocolError(
                f"{self.names[src]} sends {header_text(line)} where {self.names[self.rank]} "
                f"expects {describe(tensor)}."
            )


def _disagreement(names: Sequence[str], lines: Sequence[Tensor]) -> ProtocolError:
    culprit = odd_one_out([bytes(line.tolist()) for line in lines])
    says = ", ".join(
        f"{name} in {header_text(line)}" for name, line in zip(names, lines, strict=True)
    )
    return ProtocolError(f"{names[culprit or 0]} differs from the others: {says}.")
