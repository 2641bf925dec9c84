import mmap
import subprocess
import sys
import time

import pytest

from privtrain.core.cost import cpu_seconds, peak_memory, reset_peak_memory

MEGABYTE = 2**20


def test_a_peak_is_a_plausible_number_of_bytes() -> None:
    assert 10 * MEGABYTE < peak_memory() < 2**40


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can start a new measurement")
def test_the_peak_counts_what_was_held_since_the_reset() -> None:
    if not reset_peak_memory():
        pytest.skip("this kernel does not let a process reset its peak")
    before = peak_memory()
    # Pages of its own: what a heap frees it may keep for later.
    held = mmap.mmap(-1, 64 * MEGABYTE)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    assert peak_memory() - before > 48 * MEGABYTE
    held.close()
    assert peak_memory() - before > 48 * MEGABYTE  # a peak stays
    assert reset_peak_memory()
    assert peak_memory() - before < 48 * MEGABYTE


def test_processor_time_counts_children_that_ended() -> None:
    before = cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cpu_seconds() - before > 0.25


def test_processor_time_is_finer_than_ticks() -> None:
    # Below the ten milliseconds by which systems tick.
    before, wall = cpu_seconds(), time.perf_counter()
    while time.perf_counter() - wall < 0.004:
        pass
    taken = cpu_seconds() - before
    assert 0 < taken < 0.01


def test_processor_time_without_the_module_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0 < cpu_seconds() <= time.process_time()
