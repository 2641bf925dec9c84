"""Keyed digests: what identifies private rows to whoever has the key, and tells nobody else.

A plain digest of rows can be tried: who knows all of them but one value finds it by hashing.
"""

import hashlib
import hmac
import os
import time
from pathlib import Path

from privtrain.core.errors import DataError

PRIVATE = "private"
"""The subfolder that is never published: it holds the key."""

KEY = "digest.key"

WARNING = (
    "Never publish this folder. With the key, whoever knows all rows but one value can find that "
    "value by trying.\n"
)

_BYTES = 32

# A second in all: a key that stays empty is one that a crash left.
_TRIES, _PAUSE = 100, 0.01


def keyed_digest(digest: str, folder: Path) -> str:
    """HMAC-SHA256 of a digest, under the key of a folder.

    Args:
        digest: A digest of private rows.
        folder: A run's folder; the key lies in its private subfolder, and is made there when it
            is first needed, readable by its owner alone.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: If the key cannot be made or read.
    """
    return hmac.new(_key(folder), digest.encode(), hashlib.sha256).hexdigest()


def has_key(folder: Path) -> bool:
    """Whether a folder has its key already; without it, nothing can be told from its digests."""
    return _place(folder).exists()


def make_key(folder: Path) -> None:
    """Makes the key of a folder, where it has none yet.

    Raises:
        DataError: If the key cannot be made or read.
    """
    _key(folder)


def home_of_key(folder: Path) -> Path:
    """The folder whose key is used in a folder: that of the run which it is a part of.

    A comparison keeps its rows in folders of their own, below its own one or below `rows/` in it;
    all of them share its key, so that there is one secret to keep.

    Args:
        folder: A run's folder.

    Returns:
        The nearest of the folder and the two above it that has a key; the folder itself if none
        of them has one.
    """
    above = (folder, *folder.absolute().parents[:2])
    return next((place for place in above if has_key(place)), folder)


def _place(folder: Path) -> Path:
    return folder / PRIVATE / KEY


def _key(folder: Path) -> bytes:
    path = _place(folder)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # Exclusive: of two runs that begin at once, one makes the key and both read it.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(_BYTES))
            (path.parent / "README").write_text(WARNING)
        key = _read(path)
    except OSError as error:
        raise DataError(
            f"Cannot make or read the key {path}: {error.strerror}. Choose a folder that you may "
            "write to."
        ) from error
    if len(key) != _BYTES:
        raise DataError(
            f"The key {path} has {len(key)} bytes, {_BYTES} expected. Choose another folder: what "
            "was written under the lost key cannot be compared with anything."
        )
    return key


def _read(path: Path) -> bytes:
    """The key; where another run is just making it, a moment later."""
    for _ in range(_TRIES):
        key = path.read_bytes()
        if key:
            break
        time.sleep(_PAUSE)
    return key
