"""A toy engine whose dealer is a party of its own: additive shares modulo 2^64, for tests only.

Two computing parties, semi-honest. They ask the dealer for what they need: triples for products,
and random numbers with their bits for comparisons. Everything goes over the parties' links.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.core.links import Link
from privtrain.core.runtime import Party, Payload, Program, link_of
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.mpc.crypten.functions import one_hot_argmax, softmax
from privtrain.mpc.engine import Operand, Shared
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.sharing import PRECISION_BITS, SUM_BITS, encode, reveal, share

DEALER = "dealer"
END, PRODUCT, MATRIX_PRODUCT, BITS = range(4)
"""What the dealer is asked for; sizes follow in the same message."""

CAVEATS = ("A toy for tests: nobody checks what the dealer deals.",)


@dataclass(frozen=True)
class DealtEngine:
    """Additive shares between two parties, with a dealer beside them."""

    @property
    def name(self) -> str:
        return "dealt"

    @property
    def caveats(self) -> tuple[str, ...]:
        return CAVEATS

    @property
    def most_parties(self) -> int:
        return 2

    @property
    def opens_to_some(self) -> bool:
        return False

    @property
    def exact_truncation(self) -> bool:
        return False

    @property
    def pictures(self) -> bool:
        return False

    @property
    def sigmoid(self) -> bool:
        return False

    @property
    def keeps_shares(self) -> bool:
        return True

    @property
    def authenticated(self) -> bool:
        return False

    @property
    def adversary(self) -> Adversary:
        return Adversary.SEMI_HONEST

    @property
    def row_bits(self) -> int:
        return PRECISION_BITS

    @property
    def weight_bits(self) -> int:
        return PRECISION_BITS

    @property
    def gradient_bits(self) -> int:
        return PRECISION_BITS

    @property
    def sum_bits(self) -> int:
        return SUM_BITS

    @property
    def range_bits(self) -> int:
        return 62

    def check(self, parties: int) -> None:
        if parties != 2:
            raise UnsupportedError(f"The toy engine runs with 2 parties, not with {parties}.")

    @property
    def helper_names(self) -> tuple[str, ...]:
        return (DEALER,)

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        return {DEALER: Deal(tuple(programs))}

    @contextmanager
    def open(self, party: Party) -> Iterator["DealtSession"]:
        link = link_of(party)
        yield DealtSession(link)
        # After an error the link is closed, and the dealer sees that.
        if link.rank == 0:
            link.send(DEALER, "request", torch.tensor([END]))

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        honest = f"both of {', '.join(names)}, or one of them and the dealer"
        reads = dict.fromkeys(names, "shares, masked values and what is opened")
        reads[DEALER] = "sizes of what is multiplied and compared; with a computing party, all"
        return tuple(
            InputPrivacy(
                reader=reader,
                reads=what,
                adversary=Adversary.SEMI_HONEST,
                security=Security.COMPUTATIONAL,
                dealer=DEALER,
                honest=honest,
            )
            for reader, what in reads.items()
        )


@dataclass(frozen=True)
class Deal:
    """The dealer's program: it holds no rows, and deals until nobody asks any more.

    Args:
        computing: The parties that it deals to; the first one asks.
    """

    computing: tuple[str, ...]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        link = link_of(party)
        link.knows("every triple and random bit that it deals")
        secret = Keystream(party.entropy["deal", 0, party.name].key)
        while True:
            what, *sizes = link.receive(self.computing[0], "request").tolist()
            if what == END:
                return {}
            kind = "bit share" if what == BITS else "triple share"
            dealt = torch.cat([part.reshape(-1) for part in _correlated(what, sizes, secret)])
            shares = share(dealt, len(self.computing), secret)
            for name, own_share in zip(self.computing, shares, strict=True):
                link.send(name, kind, own_share)


def _correlated(what: int, sizes: list[int], secret: Keystream) -> list[Tensor]:
    """(a, b, ab) for a product, or (r, its 64 bits)."""
    if what == BITS:
        mask = secret.integers(sizes)
        return [mask, (mask.unsqueeze(-1) >> torch.arange(64)) & 1]
    if what == PRODUCT:
        a, b = secret.integers(sizes), secret.integers(sizes)
        return [a, b, a * b]
    rows, inner, columns = sizes
    a, b = secret.integers((rows, inner)), secret.integers((inner, columns))
    return [a, b, a @ b]


@dataclass
class DealtSession:
    """An open session at one computing party."""

    link: Link

    @property
    def first(self) -> bool:
        return self.link.rank == 0

    @property
    def other(self) -> str:
        return self.link.names[1 - self.link.rank]

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> "DealtTensor":
        return DealtTensor(share, self)

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list["DealtTensor"]:
        return [self.take(share, largest=largest) for share in shares]

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> "DealtTensor":
        if self.link.rank != owner:
            return self.take(self.link.receive(self.other, "input share"))
        assert integers is not None
        own_share, others = share(integers, 2, Keystream())
        self.link.send(self.other, "input share", others)
        return self.take(own_share)

    def announce(self, values: Tensor) -> list[Tensor]:
        self.link.send(self.other, "announcement", values)
        said = [values, self.link.receive(self.other, "announcement")]
        return said if self.first else said[::-1]

    def join(self, values: Sequence[Any], *, dim: int) -> "DealtTensor":
        return DealtTensor.cat(values, dim)

    def public(self, values: Tensor) -> "DealtTensor":
        integers = encode(values)
        return self.take(integers if self.first else torch.zeros_like(integers))

    def scale(self, shared: Any, factor: float) -> "DealtTensor":
        if factor == 0:
            return shared.with_share(shared.share * 0)  # type: ignore[no-any-return]
        shift = PRECISION_BITS - 1 - math.floor(math.log2(abs(factor)))
        return shared.with_share(shared.share * round(factor * 2**shift)).cut(shift)

    def positive(self, shared: Shared) -> Shared:
        return shared.gt(0)

    def relu(self, shared: Shared) -> tuple[Shared, Shared]:
        above = self.positive(shared)
        return shared * above, above

    def sigmoid(self, logits: Shared) -> Shared:
        raise UnsupportedError("The toy engine has no sigmoid. Use Ring64().")

    def bilinear(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Shared, right: Shared
    ) -> Shared:
        raise UnsupportedError("The toy engine has no bilinear functions. Use Ring64().")

    def linear(self, function: Callable[[Tensor], Tensor], shared: Shared) -> Shared:
        raise UnsupportedError("The toy engine has no linear functions. Use Ring64().")

    def softmax(self, logits: Shared) -> Shared:
        return softmax(logits)

    def largest(self, shared: Shared) -> Shared:
        return one_hot_argmax(shared)

    def maximum(self, shared: Any) -> Any:
        raise UnsupportedError("The toy engine has no maximum. Use Ring64().")

    def shares(self, values: Sequence[Any]) -> list[Tensor]:
        return [value.share for value in values]

    def reveal(
        self, values: Sequence[Any], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        opened = self.opened([value.share for value in values], kind)
        pairs = zip(opened, values, strict=True)
        return [integers.double() / 2.0**value.bits for integers, value in pairs]

    def opened(self, shares: Sequence[Tensor], kind: str) -> list[Tensor]:
        """The integers that shares add up to, in one message each way."""
        joined = torch.cat([one.reshape(-1) for one in shares])
        self.link.send(self.other, kind, joined)
        parts = reveal([joined, self.link.receive(self.other, kind)]).split(
            [one.numel() for one in shares]
        )
        return [part.view(one.shape) for part, one in zip(parts, shares, strict=True)]

    def dealt(self, what: int, sizes: Sequence[int], shapes: Sequence[Sequence[int]]) -> Any:
        """This party's shares of what the dealer deals, in their shapes."""
        if self.first:
            self.link.send(DEALER, "request", torch.tensor([what, *sizes]))
        joined = self.link.receive(DEALER, "bit share" if what == BITS else "triple share")
        parts = joined.split([math.prod(shape) for shape in shapes])
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclass
class DealtTensor:
    """One party's share of a tensor of integers, each with some bits after the binary point."""

    share: Tensor
    session: DealtSession = field(repr=False)
    bits: int = PRECISION_BITS

    def with_share(self, share: Tensor, bits: int | None = None) -> "DealtTensor":
        return DealtTensor(share, self.session, self.bits if bits is None else bits)

    def cut(self, bits: int) -> "DealtTensor":
        """Without the last bits: each party cuts its own share (Mohassel and Zhang 2017)."""
        cut = self.share >> bits if self.session.first else -(-self.share >> bits)
        return self.with_share(cut)

    def _public(self, other: Any) -> tuple[Tensor, int]:
        """Public values as integers: whole ones as they are, others in fixed point."""
        if isinstance(other, int) or (isinstance(other, Tensor) and not other.is_floating_point()):
            return torch.as_tensor(other).long(), 0
        return encode(torch.as_tensor(other, dtype=torch.float64)), PRECISION_BITS

    def _sum(self, other: Any, sign: int) -> "DealtTensor":
        if isinstance(other, DealtTensor):
            share, bits = other.share, other.bits
        else:
            public, bits = self._public(other)
            # One party only, or it would be added twice.
            share = public if self.session.first else torch.zeros_like(public)
        most = max(bits, self.bits)
        lifted = (self.share << (most - self.bits)) + sign * (share << (most - bits))
        return self.with_share(lifted, most)

    def __add__(self, other: Operand) -> "DealtTensor":
        return self._sum(other, 1)

    def __sub__(self, other: Operand) -> "DealtTensor":
        return self._sum(other, -1)

    def __rsub__(self, other: float) -> "DealtTensor":
        return self.with_share(-self.share) + other

    def __mul__(self, other: Operand) -> "DealtTensor":
        if not isinstance(other, DealtTensor):
            public, bits = self._public(other)
            return self._cut_product(self.share * public, bits)
        x, y = torch.broadcast_tensors(self.share, other.share)
        a, b, c = self.session.dealt(PRODUCT, x.shape, [x.shape] * 3)
        d, e = self.session.opened([x - a, y - b], "masked share")
        both = d * e if self.session.first else 0
        return self._cut_product(c + d * b + a * e + both, other.bits)

    def matmul(self, other: Any) -> "DealtTensor":
        (rows, inner), columns = self.share.shape, other.share.shape[1]
        shapes = [(rows, inner), (inner, columns), (rows, columns)]
        a, b, c = self.session.dealt(MATRIX_PRODUCT, (rows, inner, columns), shapes)
        d, e = self.session.opened([self.share - a, other.share - b], "masked share")
        both = d @ e if self.session.first else 0
        return self._cut_product(c + d @ b + a @ e + both, other.bits)

    def _cut_product(self, share: Tensor, bits: int) -> "DealtTensor":
        product = self.with_share(share, self.bits + bits)
        if product.bits <= PRECISION_BITS:
            return product
        return product.with_share(product.cut(PRECISION_BITS).share, PRECISION_BITS)

    def square(self) -> "DealtTensor":
        return self * self

    def div(self, divisor: int) -> "DealtTensor":
        return self.cut(divisor.bit_length() - 1)

    def lt(self, other: float) -> "DealtTensor":
        """As `gt`, of both sides exchanged."""
        return (other - self).gt(0.0)

    def gt(self, other: float) -> "DealtTensor":
        """The highest bit of a difference, opened under a mask whose bits are shared."""
        negative = other - self
        shape = negative.share.shape
        mask, bits = self.session.dealt(BITS, shape, [shape, (*shape, 64)])
        (masked,) = self.session.opened([negative.share + mask], "masked share")
        c = (masked.unsqueeze(-1) >> torch.arange(64)) & 1
        r = self.with_share(bits, 0)
        differs = r * (1 - 2 * c) + c
        # c < r in the low bits: at the highest place where they differ, r has the one.
        same = 1 - differs[..., 1:63]
        suffix = same
        for step in (1, 2, 4, 8, 16, 32):
            ahead = suffix[..., : 62 - step] * suffix[..., step:]
            suffix = DealtTensor.cat([ahead, suffix[..., 62 - step :]], -1)
        at_place = r[..., :63] * (1 - c[..., :63])
        borrow = (at_place[..., :62] * suffix).sum(-1) + at_place[..., 62]
        high = differs[..., 63]
        return high + borrow - (high * borrow) * 2

    def __getitem__(self, index: Any) -> "DealtTensor":
        return self.with_share(self.share[index])

    def t(self) -> "DealtTensor":
        return self.with_share(self.share.t())

    def sum(self, dim: int, keepdim: bool = False) -> "DealtTensor":
        return self.with_share(self.share.sum(dim, keepdim=keepdim))

    def mean(self, dim: int, keepdim: bool = False) -> "DealtTensor":
        return self.sum(dim, keepdim).div(self.size(dim))

    def size(self, dim: int) -> int:
        return self.share.size(dim)

    def reshape(self, *shape: int) -> "DealtTensor":
        return self.with_share(self.share.reshape(*shape))

    @staticmethod
    def cat(tensors: Sequence[Any], dim: int) -> "DealtTensor":
        most = max(tensor.bits for tensor in tensors)
        shares = [tensor.share << (most - tensor.bits) for tensor in tensors]
        return tensors[0].with_share(torch.cat(shares, dim), most)
