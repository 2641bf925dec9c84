"""Signs of masked values: every one right, over whole windows."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.ring64.comparison import WINDOWS, below_zero
from privtrain.mpc.ring64.engine import Ring64
from tests.mpc.ring64.mesh import Ran, run


@dataclass(frozen=True)
class BelowZero:
    """Opens which integers are below zero; party 0 alone holds them."""

    integers: torch.Tensor
    window: int = 64

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            wires = session.wires
            own = self.integers if session.leader else torch.zeros_like(self.integers)
            mask = wires.random(own.shape)
            (masked,) = wires.open([own + mask])
            bits = below_zero(wires, masked.numpy(), mask.numpy(), window=self.window)
            share = wires.dealt(
                lambda: torch.from_numpy(bits.mask.astype(np.int64)), tuple(own.shape)
            )
            (opened,) = wires.open([share], kind="result share")
            return {"result": torch.from_numpy(bits.masked) ^ opened.byte()}


def edges(window: int) -> torch.Tensor:
    half = 1 << (window - 1)
    powers = [1 << bit for bit in range(window - 1)]
    near = [value + step for value in powers for step in (-1, 0, 1)]
    values = [0, *near, half - 1, *(-value for value in near), -half]
    return torch.tensor([value for value in values if -half <= value < half])


def random_integers(count: int, window: int) -> torch.Tensor:
    generator = np.random.default_rng(window)
    half = 1 << (window - 1)
    values = generator.integers(-half, half, count, dtype=np.int64)
    # All magnitudes, not the largest ones only.
    return torch.from_numpy(values >> generator.integers(0, window - 1, count))


def check(ran: Ran, integers: torch.Tensor, count: int) -> None:
    for rank in range(count):
        result = ran.payloads[f"computing-{rank}"]["result"]
        assert int((result != (integers < 0)).sum()) == 0


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_hundred_thousand_signs_without_one_wrong(count: int) -> None:
    integers = torch.cat([edges(64).repeat(30), random_integers(100_000, 64)])
    check(run(BelowZero(integers), count), integers, count)


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_exact_up_to_both_ends(window: int) -> None:
    integers = torch.cat([edges(window).repeat(20), random_integers(1000, window)])
    check(run(BelowZero(integers, window), 2), integers, 2)


def test_a_window_that_does_not_hold_a_value_reads_its_low_bits() -> None:
    beyond = torch.tensor([1 << 42, (1 << 43) + 5])
    result = run(BelowZero(beyond, 43), 2).payloads["computing-0"]["result"]
    assert result.tolist() == [1, 0]


def test_a_window_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"window=32 to be one of \(15, 22"):
        run(BelowZero(edges(15), 32), 2)


@pytest.mark.parametrize(("window", "material"), [(64, 272), (43, 112), (36, 96)])
def test_rounds_bytes_and_material(window: int, material: int) -> None:
    integers = torch.arange(-500, 500)
    ran = run(BelowZero(integers, window), 2)
    assert ran.rounds() == 3
    # The value, two bytes of digits, a bit.
    assert ran.bytes() == 1000 * (8 + 2) + 125
    assert ran.bytes("material", "dealer") == pytest.approx(1000 * (material + 8), abs=500)
