"""What computing parties see of a run of ring64, and how far it is from uniform."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtrc
from torch import Tensor

from privtrain.core.runtime import Party
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.ring64.wires import MASKED, PartyWires

LEAST_FOR_BYTES = 4096
"""Words from which chi-square of 256 bytes is near enough to its limit."""

IN_PAIRS = 128
"""Words of each tensor that are compared with those of others: all bits of a difference that is the
same throughout have a p-value of 2^-127."""


class Seen(NamedTuple):
    """A tensor as somebody sees it.

    Args:
        words: int64, flat.
        bits: How many of their lowest bits are random; none of the others are.
    """

    words: NDArray[np.int64]
    bits: int

    @staticmethod
    def of(tensor: Tensor, bits: int = 64) -> "Seen":
        """A copy, of int64 or bytes."""
        flat = tensor.detach().reshape(-1).numpy()
        return Seen(flat.astype(np.int64), 8 if flat.dtype == np.uint8 else bits)


Views = dict[str, list[Seen]]
"""Tensors by what they are: "opened", "message of NAME", "share at NAME", in their order."""


@dataclass
class Overheard:
    """Wires that keep what passes; see `Wires`.

    Args:
        wires: A computing party's.
        name: Its name.
        views: Where it is kept.
    """

    wires: PartyWires
    name: str
    views: Views
    deals: bool = False

    @property
    def leader(self) -> bool:
        return self.wires.leader

    def _kept(self, share: Tensor, bits: int = 64) -> Tensor:
        self.views[f"share at {self.name}"].append(Seen.of(share, bits))
        return share

    def random(self, shape: Sequence[int]) -> Tensor:
        return self._kept(self.wires.random(shape))

    def dealt(self, compute: Callable[[], Tensor], shape: Sequence[int], *, bits: int = 64) -> Any:
        return self._kept(self.wires.dealt(compute, shape, bits=bits), bits)

    def random_bytes(self, shape: Sequence[int]) -> Tensor:
        return self._kept(self.wires.random_bytes(shape))

    def dealt_bytes(self, compute: Callable[[], Tensor], shape: Sequence[int]) -> Tensor:
        return self._kept(self.wires.dealt_bytes(compute, shape))

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        return self._kept(self.wires.own(integers, shape, owner))

    def announce(self, values: Tensor) -> list[Tensor]:
        return self.wires.announce(values)

    def open(
        self,
        shares: Sequence[Tensor],
        *,
        kind: str = MASKED,
        readers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        self.views[f"message of {self.name}"] += map(Seen.of, shares)
        opened = self.wires.open(shares, kind=kind, readers=readers)
        # What is revealed at the end is the result, and as little uniform as that.
        if self.leader and kind == MASKED:
            self.views["opened"] += map(Seen.of, opened)
        return opened


@dataclass(frozen=True)
class Watched(Ring64):
    """The engine with views of its computing parties, for threads."""

    views: Views = field(default_factory=lambda: defaultdict(list), compare=False, repr=False)

    @contextmanager
    def open(self, party: Party) -> Iterator[Ring64Session]:
        with super().open(party) as session:
            if not session.deals:
                session.wires = Overheard(session.wires, party.name, self.views)  # type: ignore[arg-type]
            yield session

    @staticmethod
    def shares_of(result: Ring64Tensor) -> list[Seen]:
        """A role's share of a result."""
        return [Seen.of(result.share)]


def pooled(views: Views, repeats: int) -> Views:
    """The views of a session that did the same so many times, each tensor with its repeats."""
    result = {}
    for what, seen in views.items():
        each, rest = divmod(len(seen), repeats)
        assert not rest, what
        result[what] = [
            Seen(np.concatenate([one.words for one in seen[start::each]]), seen[start].bits)
            for start in range(each)
        ]
    return result


def of_bits(words: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    """p-values of each bit of words `(..., count)` as a fair coin: two-sided, exact."""
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 8)
    coins = np.unpackbits(octets[..., : -(-bits // 8)], axis=-1, bitorder="little")[..., :bits]
    count, ones = words.shape[-1], coins.sum(-2, dtype=np.int64)
    return np.minimum(2 * bdtr(np.minimum(ones, count - ones), count, 0.5), 1.0).ravel()


def of_bytes(words: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    """p-values of each byte's distribution, by chi-square; none where there are few."""
    if len(words) < LEAST_FOR_BYTES or bits < 8:
        return np.ones(0)
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8)[:, : bits // 8]
    counts = np.stack([np.bincount(octet, minlength=256) for octet in octets.T])
    expected = len(words) / 256
    return chdtrc(255, ((counts - expected) ** 2).sum(1) / expected)  # type: ignore[no-any-return]


def of_each(seen: Seen) -> NDArray[np.float64]:
    """p-values of a tensor alone, and of each word against the next."""
    words, bits = seen
    changes = words[1:] ^ words[:-1]
    return np.concatenate([of_bits(words, bits), of_bytes(words, bits), of_bits(changes, bits)])


def of_pairs(seen: Sequence[Seen]) -> NDArray[np.float64]:
    """p-values of tensors against one another: differences and exclusive or of their words."""
    found = [np.ones(0)]
    for bits in {each.bits for each in seen}:
        alike = [each.words for each in seen if each.bits == bits and len(each.words) >= IN_PAIRS]
        words = np.array([each[:IN_PAIRS] for each in alike])
        for number, first in enumerate(words[:-1], 1):
            found += [of_bits(words[number:] - first, bits), of_bits(words[number:] ^ first, bits)]
    return np.concatenate(found)


def alarm(views: Views, *, pairs: bool = True) -> float:
    """How likely uniform views would look at least as bad, all tests together (Bonferroni).

    Args:
        views: What is seen.
        pairs: Whether tensors of one kind are compared with one another.
    """
    found = [of_each(seen) for kind in views.values() for seen in kind]
    if pairs:
        found += map(of_pairs, views.values())
    together = np.concatenate(found)
    return float(together.min() * together.size)
