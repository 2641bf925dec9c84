"""What becomes one total, and which sums that were formed elsewhere are refused."""

import math

import pytest
import torch

from privtrain.core.errors import ProtocolError, UnsoundReleaseError
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.aggregation import BoundedSum
from privtrain.release.door import Release
from privtrain.release.placement import AT_PARTY, SPLIT, Placement
from tests.contracts.aggregation import a_party, a_run


def test_a_message_of_another_shape_is_refused() -> None:
    run = a_run()
    messages = {f"p{size}": Release().leave([torch.ones(size)], a_party()) for size in (3, 4)}
    with pytest.raises(ProtocolError, match=r"of p4 has shape \(4,\)"):
        Release().arrive(messages, run, round=0)


@pytest.mark.parametrize("noise_at", [AT_PARTY, SPLIT(honest_survivors=3)])
def test_a_fused_sum_has_no_party_to_draw_its_noise(noise_at: Placement) -> None:
    with pytest.raises(UnsoundReleaseError, match=r"nobody would draw it.*AT_AGGREGATOR"):
        Release(Gaussian(1.0, 1.0), noise_at).arrive(
            BoundedSum(torch.ones(2), 1.0), a_run(), round=0
        )
    exact = Release(Gaussian(1.0, 0.0), noise_at)
    loose = BoundedSum(torch.ones(2), 9.0)
    assert exact.arrive(loose, a_run(), round=0).value.tolist() == [1.0, 1.0]


def test_a_fused_sum_that_is_bounded_too_loosely_is_refused() -> None:
    with pytest.raises(UnsoundReleaseError, match=r"bounded by 10.*covers 1\.0"):
        Release(Gaussian(1.0, 1.0)).arrive(BoundedSum(torch.ones(2), 10.0), a_run(), round=0)
    with pytest.raises(UnsoundReleaseError, match="bounded by nan"):
        Release(Gaussian(1.0, 1.0)).arrive(BoundedSum(torch.ones(2), math.nan), a_run(), round=0)
