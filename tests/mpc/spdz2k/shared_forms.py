"""Forms of both parties under keys that the test knows, and the laws that they keep."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.check import Strength
from privtrain.mpc.spdz2k.forms import Form, Product

Both = tuple[Form, Form]


@dataclass
class Dealer:
    """Deals values to both parties, as the engine's dealer does.

    Args:
        strength: How many keys of how many bits.
        stream: Where keys and shares come from.
    """

    strength: Strength = Strength()
    stream: Keystream = field(default_factory=lambda: Keystream(bytes(32)))
    keys: Tensor = field(init=False)
    shares_of_keys: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        count = self.strength.keys
        self.keys = self.stream.integers((count,)) & ((1 << self.strength.key_bits) - 1)
        first = self.stream.integers((count,))
        self.shares_of_keys = first, self.keys - first

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        first, second = self.shares_of_keys
        return torch.cat([torch.ones(1).long(), first]), torch.cat([torch.zeros(1).long(), second])

    def drawn(self, *shape: int) -> Tensor:
        return self.stream.integers(shape)

    def deal(self, value: Tensor) -> Both:
        macs = self.keys.view(-1, *[1] * value.dim()) * value
        words = torch.cat([value.unsqueeze(0), macs])
        first = self.stream.integers(tuple(words.shape))
        one, other = self.units
        return Form(first, one), Form(words - first, other)

    def product(self, x: Tensor, y: Tensor) -> Both:
        """The forms of a matrix product, from factors opened under masks."""
        r, s = self.drawn(*x.shape), self.drawn(*y.shape)
        masked = x + r, y + s
        both = self.deal(r @ s)
        made = []
        for form, mask, other in zip(both, self.deal(r), self.deal(s), strict=True):
            share = form.share - masked[0] @ other.share - mask.share @ masked[1]
            share = share + form.unit[0] * (masked[0] @ masked[1])
            made.append(Product(share, masked, (mask, other), form))
        return made[0], made[1]


def value_of(both: Both) -> Tensor:
    return both[0].share + both[1].share


def check_laws(dealer: Dealer, both: Both, value: Tensor) -> None:
    """Shares add up to the value, MACs to each key times it; sums of MACs are what they say."""
    total = both[0].words + both[1].words
    assert torch.equal(total[0], value)
    assert both[0].shape == both[1].shape == value.shape
    assert torch.equal(total[1:], dealer.keys.view(-1, *[1] * value.dim()) * value)
    for form in both:
        coefficients = dealer.drawn(dealer.strength.keys, form.rows) & 0xFFFFF
        table = form.words[1:].reshape(dealer.strength.keys, form.rows, -1)
        plain = (table * coefficients.unsqueeze(-1)).sum(1)
        assert torch.equal(form.contracted(coefficients), plain)
