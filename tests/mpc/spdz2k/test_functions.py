"""Sigmoid and softmax against float64, over all values that a session may have."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.spdz2k import series
from privtrain.mpc.spdz2k.functions import exponentials
from privtrain.mpc.spdz2k.session import TRUNCATED_BITS
from privtrain.mpc.spdz2k.wires import PartyWires
from tests.mpc.spdz2k.programs import openings, ran_on, with_bits_above

UNIT = 2.0**-TRUNCATED_BITS


@pytest.fixture(params=["as opened", "with bits above payloads"])
def above(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test once as it is, and once with changes above all that is opened."""
    if request.param != "as opened":
        monkeypatch.setattr(PartyWires, "open", with_bits_above(PartyWires.open))


def fixed(values: Tensor, bits: int) -> Tensor:
    return (values.double() * 2.0**bits).round().long()


@pytest.mark.usefixtures("above")
@pytest.mark.parametrize("bits", [0, 14, 16, 28, 32])
def test_sigmoid(bits: int) -> None:
    integers = fixed(torch.linspace(-series.SIGMOID_REACH, series.SIGMOID_REACH, 4001), bits)
    ran, (found,) = ran_on(lambda s, x: [s.sigmoid(x)], integers, bits=bits)
    error = (found - (integers.double() / 2.0**bits).sigmoid()).abs().max()
    assert series.SIGMOID_ERROR / 4 < float(error) <= series.SIGMOID_ERROR + UNIT
    # The values under masks; then a truncation, as results are opened with fewer bits.
    assert openings(ran) == 2


EACH = 1.2e-4
"""Of a probability: a unit in the last place, and the errors of both series."""


def logits(classes: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(classes)
    values = torch.randn(100, classes, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return values.round()
    values = values * {"almost ties": 2.0**-17, "near": 0.01, "usual": 3.0, "far": 30.0}[kind]
    values[0], values[1] = 0, torch.linspace(0, 8, classes)
    values[2] = torch.cat([torch.tensor([60.0]), torch.zeros(classes - 1)])
    return values


@pytest.mark.usefixtures("above")
@pytest.mark.parametrize("bits", [16, 28])
@pytest.mark.parametrize("classes", [2, 3, 10, 17])
def test_softmax(classes: int, bits: int) -> None:
    kinds = ("almost ties", "near", "usual", "far", "ties")
    integers = fixed(torch.cat([logits(classes, kind) for kind in kinds]), bits)
    _, (found,) = ran_on(lambda s, x: [s.softmax(x)], integers, bits=bits)
    expected = (integers.double() / 2.0**bits).softmax(-1)
    # Of what counts as impossible; a row may miss as much for each class.
    lost = torch.where(expected < expected.amax(-1, True) * 3.4e-4, expected, 0).sum(-1)
    error = (found - expected).abs().amax(-1)
    assert float((error - lost).max()) <= EACH
    assert float(found.min()) >= -EACH
    assert float((found.sum(-1) - 1).abs().max()) <= classes * EACH / 2


@pytest.mark.parametrize("largest", [1, 8])
def test_softmax_of_known_magnitudes_is_the_same_for_less_material(largest: int) -> None:
    integers = fixed(logits(10, "usual").clamp(-largest, largest), 16)
    known, (found,) = ran_on(lambda s, x: [s.softmax(x)], integers, largest=largest << 16)
    free, (other,) = ran_on(lambda s, x: [s.softmax(x)], integers)
    assert float((found - other).abs().max()) <= 2 * EACH
    assert known.bytes("material", "dealer") < free.bytes("material", "dealer")
    # Two for each halving of ten classes; gaps and their bits; exponentials are truncated and
    # opened; so is one over their sum; the product is truncated.
    assert openings(known) == openings(free) == 4 * 2 + 2 + 2 + 2 + 1


@pytest.mark.usefixtures("above")
@pytest.mark.parametrize("bits", [16, 28])
def test_exponentials_below_the_largest(bits: int) -> None:
    gaps = torch.cat([torch.linspace(0, 12, 500), torch.tensor([7.9, 8.1, 100.0, 1000.0])])
    integers = fixed(torch.stack([torch.full_like(gaps, 5.0), 5 - gaps], 1), bits)

    def of(s: Any, x: Any) -> Any:
        found = exponentials(s, x.t().share, x)
        return [x.derived(found, series.RESULT_BITS)]

    _, (found,) = ran_on(of, integers, bits=bits)
    one, other = found
    # One factor for both, of a game that is won by half a unit at most.
    assert float((one - 1).abs().max()) <= 2.0**-15 + UNIT + series.EXPONENTIAL_ERROR
    counts = (integers[:, 0] - integers[:, 1]) / 2.0**bits
    expected = (-counts).exp()
    inside = counts < 8 - 2.0**-14
    assert float((other - expected)[inside].abs().max()) <= EACH
    assert not other[counts > 8].any()


def test_no_exponent_is_beyond_the_range_where_the_largest_was_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, NDArray[np.int64]] = {}

    def spied(name: str) -> None:
        function = getattr(series, name)

        def spy(place: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
            seen[name] = place.copy()
            found: NDArray[np.int64] = function(place, bits)
            return found

        monkeypatch.setattr(series, name, spy)

    spied("public_exponential")
    spied("exponential_table")
    generator = torch.Generator().manual_seed(0)
    near = torch.randint(0, 3 << 12, (300, 17), generator=generator)
    ran_on(lambda s, x: [s.softmax(x)], near, bits=28)
    exponents = (seen["public_exponential"] - seen["exponential_table"]) % (1 << 20)
    top = series.EXPONENTIAL_RANGE << 16
    # Of a unit beyond it e^8 might come, where a mask is at the end of its range.
    assert top - 16 < exponents.min() < exponents.max() <= top


def test_softmax_of_one_class_and_of_too_many() -> None:
    _, (found,) = ran_on(lambda s, x: [s.softmax(x)], torch.arange(4).reshape(4, 1))
    assert torch.equal(found, torch.ones(4, 1).double())
    many = torch.zeros(1, series.MOST_CLASSES + 1).long()
    with pytest.raises(UnsupportedError, match="classes=256 <= 255"):
        ran_on(lambda s, x: [s.softmax(x)], many)


def test_softmax_of_whole_numbers() -> None:
    bits = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]]).double()
    _, (found,) = ran_on(lambda s, x: [s.softmax(s.positive(x))], (bits * 2**16).long())
    assert float((found - bits.softmax(1)).abs().max()) < 2e-4
