"""Fast normals, held against their definition in float64 and against the normal law."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privtrain.core.errors import UnsupportedError
from privtrain.core.seeding import Words
from privtrain.mechanisms import normals
from privtrain.mechanisms.normals import standard_normals
from tests.statistics import assert_power, independent, normal_with_std, std_is

MANY = 300_001


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def plain(count: int, wide: bool, generator: np.random.Generator, block: int) -> np.ndarray:
    """Box and Muller 1958, number by number, from the same words."""
    pairs, words = (count + 1) // 2, Words(generator.bytes(32))
    radii, turns = list[float](), list[float]()
    for start in range(0, pairs, block):
        size = min(block, pairs - start)
        if wide:
            drawn = [int(word) for word in words.take(2 * size)]
            radii += [((word >> 11) + 1) / 2.0**53 for word in drawn[:size]]
            turns += [word / 2.0**64 for word in drawn[size:]]
        else:
            drawn = [int(word) for word in words.take(size).view(np.uint32)]
            radii += [(word + 1) / 2.0**32 for word in drawn[:size]]
            turns += [word / 2.0**32 for word in drawn[size:]]
    lengths = [math.sqrt(-2 * math.log(radius)) for radius in radii]
    made = [r * math.cos(2 * math.pi * t) for r, t in zip(lengths, turns, strict=True)]
    made += [r * math.sin(2 * math.pi * t) for r, t in zip(lengths, turns, strict=True)]
    return np.array(made[:count])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 5_000])
@pytest.mark.parametrize("block", [2**16, 3, 2_500, 1_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-4), (torch.float64, 1e-9)])
def test_fast_normals_are_the_plain_ones(
    count: int, block: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(normals, "BLOCK", block)
    like = torch.empty(count, dtype=dtype)
    drawn = standard_normals(like, generator())
    assert drawn.dtype == like.dtype
    assert drawn.shape == like.shape
    expected = plain(count, dtype is torch.float64, generator(), block)
    np.testing.assert_allclose(drawn.double(), expected, atol=tolerance)
    scaled = standard_normals(like, generator(), 2.5)
    torch.testing.assert_close(scaled, 2.5 * drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_normal_and_independent(dtype: torch.dtype) -> None:
    drawn = standard_normals(torch.empty(MANY, dtype=dtype), generator(1))
    assert_power(std_is, drawn, 1.0)
    assert_power(normal_with_std, drawn, 1.0)
    half = MANY // 2
    first, second = drawn[:half], drawn[half : 2 * half]
    assert independent(first, second)
    assert independent(first.square(), second.square())
    assert independent(drawn[:-1], drawn[1:])


def test_tails_are_those_of_a_normal() -> None:
    drawn = standard_normals(torch.empty(4_000_000), generator(2)).abs()
    assert bool(torch.isfinite(drawn).all())
    for level in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(level)
        found = int((drawn > level).sum())
        assert stats.binomtest(found, drawn.numel(), expected).pvalue > 1e-4
        assert stats.binomtest(found, drawn.numel(), 1.5 * expected).pvalue < 0.05


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 11.54), (torch.float64, 12.74)])
@pytest.mark.parametrize("word", [0, 2**64 - 1, 0x7FFFFFFF7FFFFFFF, 0x8000000080000000])
def test_the_ends_are_finite(
    dtype: torch.dtype, largest: float, word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "take", lambda self, count: np.full(count, word, dtype=np.uint64))
    drawn = standard_normals(torch.empty(4, dtype=dtype), generator())
    assert bool(torch.isfinite(drawn).all())
    assert float(drawn.abs().max()) <= largest


def test_shape_type_and_blocks_change_nothing() -> None:
    flat = standard_normals(torch.empty(200_000), generator(3))
    shaped = standard_normals(torch.empty(400, 500), generator(3))
    assert torch.equal(flat.view(400, 500), shaped)
    half = standard_normals(torch.empty(200_000, dtype=torch.float16), generator(3))
    assert torch.equal(half, flat.half())


def radii_beyond(dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Squares of radii whose first bits are all zero, less the smallest they can be."""
    monkeypatch.setattr(normals, "_narrow", lambda pairs, words: zeros(pairs))
    monkeypatch.setattr(normals, "_wide", lambda pairs, words: zeros(pairs))
    drawn = standard_normals(torch.empty(2 * count, dtype=dtype), generator(4)).double()
    bits = 53 if dtype is torch.float64 else 32
    return (drawn[:count].square() - 2 * bits * math.log(2)).numpy()


def zeros(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(pairs, dtype=torch.int64), torch.zeros(pairs, dtype=torch.int64)


def tail_is_right(squares: np.ndarray, scale: float) -> bool:
    """Whether squared radii beyond a radius follow the tail's law: an exponential of mean 2."""
    return bool(stats.kstest(squares, stats.expon(0, 2 * scale).cdf).pvalue >= 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tail_beyond_the_first_bits_is_drawn(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    squares = radii_beyond(dtype, 3_000, monkeypatch)
    assert_power(tail_is_right, squares, 1.0)
    monkeypatch.setattr(normals, "_refine", lambda *given: None)
    # All of them at 6.66 or 8.57 standard deviations, and nothing beyond.
    assert not tail_is_right(radii_beyond(dtype, 3_000, monkeypatch), 1.0)


def test_small_uniform_numbers_are_spread_over_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = torch.arange(4_000) % (2 * normals.COARSE)
    monkeypatch.setattr(normals, "_narrow", lambda pairs, words: (cells, torch.zeros(pairs)))
    drawn = standard_normals(torch.empty(8_000), generator(5))[:4_000].double()
    places = torch.exp(-drawn.square() / 2) * 2.0**32 - cells
    few = cells < 100  # beyond, float32 rounds a place in its cell
    assert stats.kstest(places[few].numpy(), stats.uniform.cdf).pvalue > 1e-4
    coarse = cells >= normals.COARSE
    assert float((places[coarse] - 1).abs().max()) < 0.05


def test_complex_noise_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"like of type torch\.complex64"):
        standard_normals(torch.empty(3, dtype=torch.complex64), generator())
