"""Where the real files of MNIST and Adult lie, if they are on this machine."""

import os
from pathlib import Path

import pytest

from privtrain.data.files import VARIABLE

CHECKOUT = Path(__file__).parent.parent.parent


def real_data() -> Path | None:
    """The directory that `PRIVTRAIN_DATA` names, else `../shared/data` beside the checkout."""
    given = os.environ.get(VARIABLE)
    directory = Path(given) if given else CHECKOUT.parent / "shared" / "data"
    return directory if directory.is_dir() else None


@pytest.fixture
def data_directory() -> Path:
    directory = real_data()
    if directory is None:
        pytest.skip(f"no data files: set {VARIABLE} or put them into ../shared/data")
    return directory
