"""Misspelt names are answered with the nearest that there is."""

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest of the known names; empty where none is near.

    Args:
        given: What was written.
        known: What there is.
    """
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""
