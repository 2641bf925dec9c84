"""Text for a terminal that has few characters, such as one of code page 1252."""

import sys

_ALIKE = {"ε": "e", "δ": "d", "μ": "u", "≈": "~", "−": "-", "–": "-", "─": "-", "…": ".", "·": "."}
"""What looks most like a character, of one column as well: tables stay aligned."""


def for_terminal(text: str) -> str:
    """The text with what standard output cannot write as what looks most like it, or "?"."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if _fits(text, encoding):
        return text
    return "".join(c if _fits(c, encoding) else _ALIKE.get(c, "?") for c in text)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    except LookupError:  # a stream of another kind: nobody knows what it writes
        return True
    return True
