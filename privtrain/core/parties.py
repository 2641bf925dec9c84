"""Who takes part: a party is named by a string, and a few names are reserved for roles."""

AGGREGATOR_NAME = "aggregator"
"""The coordinator of a star: sends the model, receives the messages of a round."""

CURATOR_NAME = "curator"
"""Who holds pooled rows in central training."""

PUBLIC_NAME = "public"
"""Everybody: receives what is published at the end."""


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
