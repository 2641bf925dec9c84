import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtrain.mpc.keystream import KEY_BYTES, Keystream
from privtrain.mpc.sharing import LARGEST, decode, encode, reveal, share

VALUES = st.lists(st.floats(-LARGEST / 2, LARGEST / 2), min_size=1, max_size=20)


@given(VALUES, st.integers(2, 5))
def test_shares_add_up_to_the_value(values: list[float], parties: int) -> None:
    integers = encode(torch.tensor(values, dtype=torch.float64))
    shares = share(integers, parties, Keystream())
    assert len(shares) == parties
    assert torch.equal(reveal(shares), integers)
    error = decode(integers) - torch.tensor(values, dtype=torch.float64)
    assert float(error.abs().max()) <= 2.0**-17


def bit_z_scores(tensor: torch.Tensor) -> torch.Tensor:
    """How far the share of ones among each of the 64 bits lies from a half, in deviations."""
    bits = torch.stack([(tensor >> place) & 1 for place in range(64)])
    count = bits.shape[1]
    return (bits.double().sum(1) - count / 2) / (count / 4) ** 0.5


def test_one_share_alone_looks_uniform_whatever_the_value() -> None:
    integers = encode(torch.full((20_000,), 3.25))
    for single_share in share(integers, 3, Keystream(bytes(KEY_BYTES))):
        # 192 two-sided tests at 1e-4 together: |z| < 5.1.
        assert float(bit_z_scores(single_share).abs().max()) < 5.1
    # The test has power: the value itself, or a value with one biased bit, fails it.
    assert float(bit_z_scores(integers).abs().max()) > 100
    biased = Keystream(bytes(KEY_BYTES)).integers((20_000,))
    biased[:1000] &= ~1
    assert float(bit_z_scores(biased).abs().max()) > 5.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), LARGEST, -2 * LARGEST])
def test_what_fixed_point_cannot_hold_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="rows of x"):
        encode(torch.tensor([0.0, bad]), name="rows of x")


def test_fewer_than_two_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="parties=1"):
        share(encode(torch.zeros(1)), 1, Keystream())
