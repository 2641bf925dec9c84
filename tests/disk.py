"""A disk with little space left, as far as this process can tell."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def little_space(most: int) -> Iterator[None]:
    """Files of at most so many bytes: the system refuses more, as a full disk does."""
    limit, writes = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    # Python 3.11 keeps what fits of a file of bytecode, and every later import fails of it.
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        sys.dont_write_bytecode = writes
