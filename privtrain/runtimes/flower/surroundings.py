"""What a runtime changes around it while it is open, and puts back when it closes."""

import gc
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def variables(values: Mapping[str, str], *also: str) -> Iterator[None]:
    """Sets variables of the environment, which other processes inherit.

    Args:
        values: Names and values.
        also: Names of more variables that are put back, since others change them meanwhile.
    """
    before = {name: os.environ.get(name) for name in (*values, *also)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@contextmanager
def silence(logger: str) -> Iterator[None]:
    """Keeps a log from the screen, and warnings of what is left to the garbage collector.

    Args:
        logger: Name of the log, whose errors reach the caller in another way.
    """
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()
            log.setLevel(before)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder with a short path, removed in the end."""
    path = Path(tempfile.mkdtemp(prefix="pt-"))
    try:
        yield path
    finally:
        # Processes that are just ending may still write their logs.
        shutil.rmtree(path, ignore_errors=True)
