"""Printing, whatever reads it: a terminal of few characters, or `head`, which leaves early."""

import io
import os
import select
import sys
from collections.abc import Callable


def printing(command: Callable[[], int]) -> int:
    """Runs what prints on standard output, and flushes it.

    Args:
        command: Returns the exit code.

    Returns:
        The exit code; 0 where the reader has left, who has seen what it wanted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A user's names may have characters that the terminal has not; it shows "?".
            stream.reconfigure(errors="replace")
    try:
        code = command()
        # Here, and not when the interpreter ends, which would print a traceback.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Of another pipe, such as one to a party's process, it is an error.
        if not _reader_left():
            raise
        return 0


def _reader_left() -> bool:
    # Then what is still to be printed goes nowhere.
    try:
        place = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file, as in a notebook
        return False
    # Asked of the system: what failed to be written once is dropped, and fails no second time.
    watch = select.poll()
    watch.register(place, select.POLLOUT)
    left = any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return left
