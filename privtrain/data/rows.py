"""Mappings from party to rows that give a party its rows only when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from privtrain.core.task import Rows


class LazyRows(Mapping[str, Rows]):
    """A mapping from party to rows that loads a party's rows whenever they are asked for.

    It stores no rows: a million simulated clients cost their names and nothing more until a few of
    them are sampled. (`Mapping` is inherited because `FederatedData.train` is one.)

    Args:
        names: Names of the parties, in order, each once.
        load: Gives the rows of a party; the same rows whenever it is called with the same name.
            Where rows travel to other processes, it must pickle.

    Raises:
        ValueError: If a name occurs twice.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], Rows]) -> None:
        given = tuple(names)
        # A dictionary, not a set: parties have an order, which decides the order of sums.
        self._names = dict.fromkeys(given)
        self._load = load
        if len(self._names) != len(given):
            twice = next(name for name in self._names if given.count(name) > 1)
            raise ValueError(f"Expected names to be different; {twice!r} occurs twice.")

    def __getitem__(self, party: str) -> Rows:
        # Asked before loading: a loader that makes rows of any name would invent a party.
        if party not in self._names:
            raise KeyError(party)
        return self._load(party)

    def __contains__(self, party: object) -> bool:
        return party in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"LazyRows({len(self)} parties)"


class RowSlices:
    """Gives each party its block of one table in memory.

    Args:
        rows: The rows of all parties, those of one party next to each other.
        bounds: Party to the first row of its block and the first row behind it.
    """

    def __init__(self, rows: Rows, bounds: Mapping[str, tuple[int, int]]) -> None:
        self._rows = rows
        self._bounds = dict(bounds)

    def __call__(self, party: str) -> Rows:
        """A copy of the rows of a party."""
        start, stop = self._bounds[party]
        # `take` copies. A view would carry the storage of all parties along when it is pickled to
        # the process of one, and a party that writes into its rows would write into the table.
        return self._rows.take(torch.arange(start, stop))


class ColumnSlices:
    """Gives each party its columns of one table in memory, and one of them the labels.

    Args:
        rows: All columns of all rows, inputs of shape `(rows, columns)`.
        columns: Party to the columns it holds, shape `(held,)`.
        label_holder: The party that also holds the labels.
    """

    def __init__(self, rows: Rows, columns: Mapping[str, Tensor], label_holder: str) -> None:
        self._rows = rows
        self._columns = dict(columns)
        self._label_holder = label_holder

    def __call__(self, party: str) -> Rows:
        """A copy of the columns of a party."""
        targets = self._rows.labels.clone() if party == self._label_holder else None
        return Rows(self._rows.inputs[:, self._columns[party]], targets)


def by_rows(rows: Rows, names: tuple[str, ...], index: list[Tensor]) -> LazyRows:
    """The rows of a table, shared among parties.

    Args:
        rows: The table.
        names: Names of the parties.
        index: For each party the rows it holds, shape `(held,)`.

    Returns:
        Party to rows.
    """
    # The table is reordered once, so that each party's rows are neighbours: two numbers a party say
    # where they lie, where an index would cost eight bytes a row.
    bounds, start = {}, 0
    for name, held in zip(names, index, strict=True):
        bounds[name] = (start, start + len(held))
        start += len(held)
    return LazyRows(names, RowSlices(rows.take(torch.cat(index)), bounds))


def by_columns(
    rows: Rows, names: tuple[str, ...], index: list[Tensor], label_holder: str
) -> LazyRows:
    """The columns of a table, shared among parties.

    Args:
        rows: The table, inputs of shape `(rows, columns)`.
        names: Names of the parties.
        index: For each party the columns it holds, shape `(held,)`.
        label_holder: The party that also holds the labels.

    Returns:
        Party to its columns of all rows.
    """
    columns = dict(zip(names, index, strict=True))
    return LazyRows(names, ColumnSlices(rows, columns, label_holder))
