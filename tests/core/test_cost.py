import sys

import pytest
import torch

from privtrain.core.cost import peak_memory, reset_peak_memory

MEGABYTE = 2**20


def test_a_peak_is_a_plausible_number_of_bytes() -> None:
    assert 10 * MEGABYTE < peak_memory() < 2**40


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can start a new measurement")
def test_the_peak_counts_what_was_held_since_the_reset() -> None:
    if not reset_peak_memory():
        pytest.skip("this kernel does not let a process reset its peak")
    before = peak_memory()
    held = torch.ones(64 * MEGABYTE // 4)
    assert peak_memory() - before > 48 * MEGABYTE
    del held
    assert peak_memory() - before > 48 * MEGABYTE  # a peak stays
    assert reset_peak_memory()
    assert peak_memory() - before < 48 * MEGABYTE
