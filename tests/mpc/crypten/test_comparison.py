"""Comparisons between threads, whose triples a stand-in for CrypTen's dealer deals."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from operator import sub, xor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.mpc.crypten.comparison import CrypTenGates, negative
from tests.mpc.test_sharing import bit_z_scores

LEAST, MOST = -(2**63), 2**63 - 1
WAIT = 20.0


def uniform(size: Any, generator: torch.Generator) -> Tensor:
    # `random_` leaves the highest bit at zero.
    halves = torch.randint(2**32, (2, *size), generator=generator)
    return halves[0] ^ (halves[1] << 32)


@dataclass
class Table:
    """Where the parties lay down what they open."""

    count: int
    opened: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.count)
        self.laid: list[Any] = [None] * self.count


@dataclass
class Party:
    """CrypTen's provider and communicator at one party."""

    rank: int
    table: Table

    def __post_init__(self) -> None:
        # Every party's copy draws the same, as if one dealer had drawn it.
        self.generator = torch.Generator().manual_seed(11)

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.table.count

    def _own(self, value: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Any:
        others = [uniform(value.shape, self.generator) for _ in range(self.table.count - 1)]
        return SimpleNamespace(share=[reduce(join, [value, *others]), *others][self.rank])

    def generate_binary_triple(self, size0: Any, size1: Any) -> tuple[Any, ...]:
        a, b = uniform(size0, self.generator), uniform(size1, self.generator)
        return tuple(self._own(value, xor) for value in (a, b, a & b))

    def B2A_rng(self, size: Any) -> tuple[Any, Any]:  # noqa: N802 - the name in CrypTen
        bits = uniform(size, self.generator) & 1
        additive = self._own(bits, sub)
        return additive, self._own(bits, xor)

    def all_reduce(self, input: Any, op: Any, batched: bool = False) -> Any:
        assert op == "xor"
        self.table.laid[self.rank] = input if batched else [input]
        self.table.barrier.wait(WAIT)
        opened = [reduce(xor, shares) for shares in zip(*self.table.laid, strict=True)]
        self.table.barrier.wait(WAIT)
        if self.rank == 0:
            self.table.opened += [value.clone().reshape(-1) for value in opened]
        return opened if batched else opened[0]


def together(shares: list[Tensor]) -> tuple[Tensor, Table]:
    """The bits of all parties added up, and what was opened."""
    table = Table(len(shares))

    def run(rank: int) -> Tensor:
        party = Party(rank, table)
        return negative(shares[rank], CrypTenGates(party, party, "xor"))

    with ThreadPoolExecutor(len(shares)) as pool:
        return torch.stack(list(pool.map(run, range(len(shares))))).sum(0), table


def compared(values: Tensor, count: int) -> tuple[Tensor, Table]:
    generator = torch.Generator().manual_seed(5)
    others = [uniform(values.shape, generator) for _ in range(count - 1)]
    return together([reduce(sub, others, values), *others])


PARTIES = pytest.mark.parametrize("count", [2, 3, 4])


@PARTIES
def test_signs_are_those_of_torch(count: int) -> None:
    edges = [0, 1, -1, LEAST, LEAST + 1, MOST, MOST - 1, 2**62, -(2**62), 2**32, -(2**32)]
    powers = [sign * 2**power for power in range(63) for sign in (1, -1)]
    drawn = uniform((700,), torch.Generator().manual_seed(count)) >> (torch.arange(700) % 64)
    values = torch.cat([torch.tensor(edges + powers), drawn])
    bits, _ = compared(values, count)
    assert bits.tolist() == (values < 0).long().tolist()


@PARTIES
@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (64,), (65,), (3, 5, 7)])
def test_any_shape_keeps_its_order(count: int, shape: tuple[int, ...]) -> None:
    values = uniform(shape, torch.Generator().manual_seed(3))
    assert torch.equal(compared(values, count)[0], (values < 0).long())


@pytest.mark.parametrize("hole", [False, True])
def test_a_carry_runs_to_the_sign_from_any_place_unless_a_bit_stops_it(hole: bool) -> None:
    low, stop = torch.tensor([[i, j] for j in range(1, 63) for i in range(j)]).t()
    # One share passes on what the other one's only bit begins, but for the place of the hole.
    passes = MOST - (torch.ones_like(stop) << stop) * int(hole)
    bits = together([torch.ones_like(low) << low, passes])[0]
    assert bits.tolist() == [int(not hole)] * len(low)


@pytest.mark.parametrize(("count", "size", "rounds"), [(2, 40, 8), (3, 56, 9)])
def test_opens_few_bytes_in_few_rounds(count: int, size: int, rounds: int) -> None:
    values = torch.arange(-320, 320)
    _, table = compared(values, count)
    opened = sum(8 * value.numel() for value in table.opened)
    assert size - 1 < opened / values.numel() <= size
    # A product opens two values at once, the signs are opened alone.
    assert (len(table.opened) + 1) // 2 == rounds


def test_what_is_opened_is_uniform_whatever_the_values() -> None:
    for value in (0, LEAST):
        values = torch.full((12_800,), value)
        # The test has power: the bits of these values are as far from uniform as can be.
        assert float(bit_z_scores(values).abs().max()) > 100
        # 2,000 two-sided tests at 3e-7 together: |z| < 5.1.
        for opened in compared(values, 2)[1].opened:
            assert float(bit_z_scores(opened).abs().max()) < 5.1


def widest(count: int) -> float:
    """The largest score of any bit of an opened word beside another one, or beside a share."""
    values = torch.full((6_400,), LEAST)
    generator = torch.Generator().manual_seed(70)
    others = [uniform(values.shape, generator) for _ in range(count - 1)]
    shares = [reduce(sub, others, values), *others]
    seen = together(shares)[1].opened
    found = [0.0]
    for place, opened in enumerate(seen):
        for other in (*shares, *seen[:place]):
            size = min(len(opened), len(other))
            scores = bit_z_scores(opened[:size] ^ other[:size]) if size >= 100 else torch.zeros(1)
            found.append(float(scores.abs().max()))
    return max(found)


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_opened_tells_nothing_beside_shares_and_other_openings(count: int) -> None:
    # Each word alone is uniform, since shares are: two of them together are where a mask that is
    # missing or used twice shows. 10,000 two-sided tests at 1e-8 together.
    assert widest(count) < 5.8


def unmasked(party: Party, deal: Callable[..., Any], size0: Any, size1: Any) -> Any:
    """A dealer whose first triple is of zeros."""
    party.generator, first = party.generator, not hasattr(party, "dealt")
    party.dealt = True  # type: ignore[attr-defined]
    zeros = [torch.zeros(tuple(size), dtype=torch.int64) for size in (size0, size1, size1)]
    return [SimpleNamespace(share=zero) for zero in zeros] if first else deal(party, size0, size1)


def used_again(party: Party, deal: Callable[..., Any], size0: Any, size1: Any) -> Any:
    """A dealer of one triple."""
    party.generator.manual_seed(11)
    return deal(party, size0, size1)


@pytest.mark.parametrize("broken", [unmasked, used_again])
@pytest.mark.parametrize("count", [2, 3])
def test_masks_that_are_missing_or_used_twice_are_seen(
    count: int, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = Party.generate_binary_triple
    monkeypatch.setattr(
        Party, "generate_binary_triple", lambda party, *sizes: broken(party, deal, *sizes)
    )
    assert widest(count) > 20
