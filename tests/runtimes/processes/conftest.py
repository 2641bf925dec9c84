"""No test of real processes may leave one behind."""

from collections.abc import Iterator

import pytest

from tests.runtimes.processes.watching import children


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before
