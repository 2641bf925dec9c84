"""What is kept of an error that a user's own code raised, in this process or in another one."""

import traceback

OWN_ERRORS = (Exception, SystemExit)
"""What own code may raise that is its part's failure; an interrupt ends everything."""

FRAMES = 30
"""The most calls of a traceback that are kept, the last ones."""


class RaisedElsewhereError(Exception):
    """Stands for an error in another process, as the cause of the one that is raised here.

    Args:
        where: Its traceback, as text.
    """

    def __str__(self) -> str:
        return f"raised in another process:\n\n{self.args[0].rstrip()}"


def printable(text: str) -> str:
    """The text with what UTF-8 cannot write, such as half of a surrogate pair, as `\\udcff`."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def text_of(error: BaseException) -> str:
    """The text of an error, of any; it can be written to a file."""
    try:
        return printable(str(error))
    except OWN_ERRORS:
        return "(its text cannot be read: __str__ raised an error itself)"


def shown(error: BaseException) -> str:
    """Type and text of an error, of any, as `repr` gives them; it can be written to a file."""
    try:
        return printable(repr(error))
    except OWN_ERRORS:
        return f"{type(error).__name__}({text_of(error)!r})"


def traceback_of(error: BaseException) -> str:
    """Where an error came from: its last calls, and those of its causes."""
    return printable("".join(traceback.format_exception(error, limit=-FRAMES)))
