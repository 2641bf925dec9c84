"""Clipped sums from the layers' books on random architectures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.gradients.bookkeeping.booked import Case, OverSpace, OverTime, books
from tests.gradients.loops import (
    Make,
    clipped,
    example_gradients,
    in_float64,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@st.composite
def random_models(draw: st.DrawFn) -> tuple[Make, tuple[int, ...]]:
    """Stacks of layers over vectors, sequences or planes, some of which are called twice."""
    kind = draw(st.sampled_from(["vectors", "sequences", "planes"]))
    width = draw(st.sampled_from([2, 4, 6]))
    plan = draw(
        st.lists(
            st.tuples(st.sampled_from("lnrs"), st.sampled_from([2, 4, 14]), st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    between = {"vectors": (), "sequences": (draw(st.integers(1, 6)),), "planes": (5, 4)}[kind]
    shape = (width, *between) if kind == "planes" else (*between, width)

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        size = width
        for letter, height, bias in plan:
            if kind == "planes":
                layers += _plane_layers(letter, size, height, bias)
            else:
                layers += _row_layers(letter, size, height, bias)
            size = height if letter == "l" else size
        if kind == "planes":
            return OverSpace(*layers, nn.Conv2d(size, 3, 1))
        whole = [*layers, nn.Linear(size, 3)]
        return OverTime(*whole) if kind == "sequences" else nn.Sequential(*whole)

    return make, shape


def _row_layers(letter: str, size: int, height: int, bias: bool) -> list[nn.Module]:
    if letter == "l":
        return [nn.Linear(size, height, bias=bias), nn.Tanh()]
    if letter == "s":
        twice = nn.Linear(size, size, bias=bias)
        return [twice, nn.Tanh(), twice]
    return [nn.LayerNorm(size, bias=bias) if letter == "n" else nn.RMSNorm(size)]


def _plane_layers(letter: str, size: int, height: int, bias: bool) -> list[nn.Module]:
    if letter == "l":
        groups = 2 if bias and height > 2 else 1
        return [nn.Conv2d(size, height, 3, padding=1, groups=groups, bias=bias), nn.Tanh()]
    if letter == "s":
        twice = nn.Conv2d(size, size, 3, padding=1, bias=bias)
        return [twice, nn.Tanh(), twice]
    norm = nn.GroupNorm(2, size) if letter == "n" else nn.InstanceNorm2d(size, affine=True)
    return [norm]


@settings(deadline=None, max_examples=30)
@given(model=random_models(), count=st.integers(1, 6), seed=st.integers(0, 100))
def test_random_architectures(model: tuple[Make, tuple[int, ...]], count: int, seed: int) -> None:
    make, shape = model
    rows = Case(make, shape).rows(count, seed)
    gradients = example_gradients(in_float64(make), rows)
    bound = max(float(gradients.norm(dim=1).median()), 1e-3)
    engine = books(make)
    found = engine.clipped_sum(rows, bound)
    wanted = clipped(gradients, bound).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-9 * bound)
    assert engine.notes == ()
