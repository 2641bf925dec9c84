"""Tests of what an extra installs are skipped where it is missing, with the line that installs it.

`make bare` runs what the base installation can do, in an environment that has nothing else.
"""

from collections.abc import Callable
from typing import Any

import pytest

from privtrain.core.extras import is_missing, missing


def need(package: str) -> None:
    """Skips the rest of a test file, or of a test, where a package is not installed."""
    if is_missing(package):
        pytest.skip(str(missing("This test", package)), allow_module_level=True)


def needing(package: str, *makes: Callable[[], Any]) -> list[Any]:
    """Values for `parametrize` that need a package; a skipped one where it is not installed."""
    if not is_missing(package):
        return [make() for make in makes]
    skipped = pytest.mark.skip(reason=str(missing("This test", package)))
    return [pytest.param(None, id=package, marks=skipped)]
