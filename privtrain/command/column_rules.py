"""Rules for columns as a command line has them, in words; nothing heavy is loaded for them."""

from collections.abc import Sequence


def ranges_of(words: Sequence[str]) -> dict[str, list[float]]:
    """Ranges as a command line has them, `age=0:120`, by column.

    Raises:
        ValueError: If one is written otherwise.
    """
    ranges = {}
    for word in words:
        name, _, ends = word.rpartition("=")
        low, _, high = ends.partition(":")
        try:
            ranges[name] = [float(low), float(high)]
        except ValueError as error:
            raise ValueError(
                f"Expected ranges={word!r} to be a column and its lowest and highest value, such "
                "as age=0:120."
            ) from error
    return ranges


def missing_of(words: Sequence[str]) -> str | float | dict[str, str | float] | None:
    """What is done about missing values, as a command line has it.

    Args:
        words: One rule for all columns, as `drop` or `0`, or rules by column, as `age=indicator`.

    Returns:
        What `from_csv` takes; None where nothing is said.

    Raises:
        ValueError: If there is more than one rule for all columns.
    """
    named = {name: _number_or_word(rule) for name, _, rule in (w.rpartition("=") for w in words)}
    if "" in named and len(words) > 1:
        raise ValueError(
            f"Expected missing={list(words)} to be one rule for all columns, such as drop, or one "
            "for each of some columns, such as age=indicator income=0."
        )
    return named.get("", named or None)


def _number_or_word(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
