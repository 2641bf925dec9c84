"""Who takes part: a party is named by a string, and a few names are reserved for roles."""

import re
from collections.abc import Iterable

from privtrain.core.errors import DataError

AGGREGATOR_NAME = "aggregator"
"""The coordinator of a star: sends the model, receives the messages of a round."""

CURATOR_NAME = "curator"
"""Who holds pooled rows in central training."""

PUBLIC_NAME = "public"
"""Everybody: receives what is published at the end."""

ROLES = (
    AGGREGATOR_NAME,
    CURATOR_NAME,
    PUBLIC_NAME,
    "participant",
    "dealer",
    "querier",
    "student",
    "tuner",
    "coalition",
)
"""Names that stand for who does something, not for who holds rows."""

# `computing-0` computes on shares, `north/teacher-3` is a teacher that `north` trains, and a
# coalition is called by its members: all of them send, receive or draw under these names.
_COMPUTING = re.compile(r"computing-\d+")
_COALITION = re.compile(r"coalition(?: (of .*))?", re.DOTALL)
_ROLE = re.compile(rf"{_COMPUTING.pattern}|.*/teacher-\d+|{_COALITION.pattern}", re.DOTALL)


def is_computing(name: str) -> bool:
    """Whether a name is that of a party that computes on shares, and holds no rows."""
    return _COMPUTING.fullmatch(name) is not None


def coalition_of(name: str) -> str | None:
    """What the name of a coalition says of its members, "of a, b"; None for any other name."""
    # A reserved name: no party and no other role may be called so.
    found = _COALITION.fullmatch(name)
    return None if found is None else found[1] or ""


def is_role(name: str) -> bool:
    """Whether a name stands for a role; capitals and spaces around it tell nobody apart."""
    plain = name.strip().casefold()
    return plain in ROLES or _ROLE.fullmatch(plain) is not None


def check_party_names(names: Iterable[str]) -> None:
    """Refuses parties whose messages, noise or views would be mixed with those of a role.

    Args:
        names: What the parties that hold data are called.

    Raises:
        DataError: If a name is no text, is empty, or is that of a role.
    """
    for name in names:
        # The empty name is the one under which a run itself draws.
        if not isinstance(name, str) or not name.strip() or is_role(name):
            raise DataError(
                f"Expected the party {name!r} to have a name of its own: not empty, and none of a "
                f"role, which are {', '.join(ROLES)}, and names such as computing-0 and "
                "a/teacher-0. Call it something else, such as site-0."
            )


def party_names(prefix: str, count: int) -> tuple[str, ...]:
    """Names such as `client-03`, padded so that they sort in the order of their numbers.

    Args:
        prefix: What a party is called.
        count: How many parties there are.

    Returns:
        The names, in order.
    """
    # Unpadded, client-10 would come before client-2 wherever names are sorted.
    width = len(str(count - 1))
    return tuple(f"{prefix}-{index:0{width}d}" for index in range(count))
