"""Options of loaders, as a study file may hold them: of another kind, they are refused by name."""

from collections.abc import Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import Any

from privtrain.core.validate import check_count


def to_words(argument: str, given: Iterable[Any], minimum: int = 0) -> tuple[str, ...]:
    """What may stand in a column, in an order that everybody has who states it.

    Args:
        argument: What messages call it.
        given: Words or numbers in an order, each once.
        minimum: How many there are at least.

    Returns:
        The words, without surrounding white space, as a table has them.

    Raises:
        ValueError: If it is something else, has no order, or holds a word twice.
    """
    # A text is a list of letters to Python. The order of a set is another in every process, and so
    # would be the number of a class.
    unordered = isinstance(given, AbstractSet) and not isinstance(given, KeysView)
    if isinstance(given, (str, bytes, Mapping)) or unordered or not isinstance(given, Iterable):
        raise ValueError(
            f"Expected {argument}={given!r} to be a list of words in an order, such as "
            "['no', 'yes']."
        )
    words = tuple(str(word).strip() for word in given)
    check_count(minimum, **{argument: len(words)})
    twice = [word for place, word in enumerate(words) if word in words[:place]]
    if twice:
        raise ValueError(
            f"Expected {argument}={list(words)} to hold each word once; {twice[0]!r} stands there "
            "twice. Leave one out."
        )
    return words


def to_names(argument: str, given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Names of columns: one, several or none.

    Raises:
        ValueError: If it is something else.
    """
    if given is None:
        return ()
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if any(not isinstance(name, str) for name in names):
        raise ValueError(f"Expected {argument}={given!r} to hold names of columns, in quotes.")
    return names


def to_name(argument: str, given: str) -> str:
    """The name of one column.

    Raises:
        ValueError: If it is no text.
    """
    if not isinstance(given, str):
        raise ValueError(f"Expected {argument}={given!r} to be the name of one column, in quotes.")
    return given


def to_categories(given: Mapping[str, Iterable[Any]] | None) -> dict[str, tuple[str, ...]]:
    """The words of columns, by name.

    Raises:
        ValueError: If it is no mapping, or those of a column cannot be used; see `to_words`.
    """
    table = _table("categories", given)
    return {name: to_words(f"categories[{name!r}]", words) for name, words in table.items()}


def to_ranges(given: Mapping[str, Sequence[float]] | None) -> dict[str, tuple[float, float]]:
    """The lowest and highest values of columns, by name.

    Raises:
        ValueError: If it is no mapping, or one holds something else than two numbers.
    """
    ranges = {}
    for name, ends in _table("ranges", given).items():
        pair = isinstance(ends, Sequence) and len(ends) == 2
        if not pair or any(not isinstance(end, Real) or isinstance(end, bool) for end in ends):
            raise ValueError(
                f"Expected ranges[{name!r}]={ends!r} to be a lowest and a highest value, such as "
                "[0, 120]."
            )
        ranges[name] = (ends[0], ends[1])
    return ranges


def _table(argument: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"Expected {argument}={given!r} to be a table from column to value.")
    return dict(given or {})


def check_delimiter(delimiter: str) -> None:
    """Refuses what cannot stand between two values.

    Raises:
        ValueError: If it is not one character, or ends a line or a text.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(
            f"Expected delimiter={delimiter!r} to be one character, such as ',' or ';'."
        )
