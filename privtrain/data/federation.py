"""Federated data from a table: a fixed public split, a partition, a digest."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.parties import party_names
from privtrain.core.seeding import Seeds, derive
from privtrain.core.task import ROWS, FederatedData, Rows
from privtrain.core.validate import check_count, check_fraction
from privtrain.data.partition import IID, Partition
from privtrain.data.rows import LazyRows, by_columns, by_rows

EVENLY: Partition = IID()
"""The default partition."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a table is split: which rows are for testing, and who holds the rest.

    Args:
        parties: How many parties there are, or their names.
        partition: Which party holds which rows or columns.
        seed: Public seed of the partition. The test, validation and public rows do not depend
            on it, so that results with different seeds are comparable.
        test_fraction: Fraction of all rows for testing, in (0, 1).
        validation_fraction: Fraction of all rows for choosing settings, in [0, 1).
        public_fraction: Fraction of all rows that anybody may read, without labels, in [0, 1).
    """

    parties: int | Sequence[str] = 10
    partition: Partition = EVENLY
    seed: int = 0
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    public_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_count(0, seed=self.seed)
        check_fraction(
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
            public_fraction=self.public_fraction,
        )
        reserved = self.test_fraction + self.validation_fraction + self.public_fraction
        if reserved >= 1:
            raise ValueError(
                f"Expected test_fraction={self.test_fraction}, validation_fraction="
                f"{self.validation_fraction} and public_fraction={self.public_fraction} to leave "
                f"rows for training; their sum is {reserved:g}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parties."""
        # A text is a sequence, too: parties="bank" would become four parties, b, a, n and k.
        if isinstance(self.parties, str) or self.parties == () or self.parties == []:
            raise ValueError(f"Expected parties={self.parties!r} to be a number or several names.")
        if isinstance(self.parties, Sequence):
            return tuple(self.parties)
        check_count(parties=self.parties)
        return party_names("party", self.parties)


def federate(
    rows: Rows,
    layout: Layout,
    *,
    name: str,
    test: Rows | None = None,
    public: Rows | None = None,
    public_rows: int | None = None,
    count_is_public: bool = False,
    notes: tuple[str, ...] = (),
) -> FederatedData:
    """A table as federated data: split for testing and validation, the rest shared among parties.

    The cut is a plain random permutation from a fixed generator: it depends on the number of
    rows only, neither on the seed nor on labels or values.

    Args:
        rows: All rows, or all but the test rows where `test` is given.
        layout: How the table is cut.
        name: What the data set is called.
        test: Rows for testing, where they are known beforehand.
        public: Rows that anybody may read, where they are known beforehand.
        public_rows: A public figure of how many training rows there are.
        count_is_public: Whether the exact number of training rows is public knowledge.
        notes: What the reader should know.

    Returns:
        The federated data.

    Raises:
        DataError: If rows or parties would be left empty.
    """
    test_index, validation_index, public_index, train_index = fixed_split(
        len(rows), layout, test_given=test is not None
    )
    train = rows.take(train_index)
    # Only training rows have owners; test and validation rows belong to nobody.
    sharing = share(train, layout)
    validation = rows.take(validation_index) if len(validation_index) else None
    # Public rows lose their labels: what anybody may read, nobody has answered yet.
    open_rows = Rows(rows.inputs[public_index]) if len(public_index) else public
    return FederatedData(
        train=sharing.train,
        test=sharing.in_order(rows.take(test_index) if test is None else test),
        validation=None if validation is None else sharing.in_order(validation),
        public=None if open_rows is None else sharing.in_order(open_rows),
        split=layout.partition.split,
        label_holder=sharing.label_holder,
        # Where the number of rows is not public, only a stated figure is passed on: sampling rates
        # of a counted one would be a query on private rows.
        public_rows=len(train) if count_is_public else public_rows,
        name=name,
        digest=digest(part for part in (rows, test, public) if part is not None),
        notes=notes,
    )


def fixed_split(rows: int, layout: Layout, *, test_given: bool) -> tuple[Tensor, ...]:
    """The numbers of the test, validation, public and training rows.

    Args:
        rows: How many rows there are.
        layout: The fractions.
        test_given: Whether test rows are known beforehand, so that none are taken.

    Returns:
        Four index tensors in rising order: test, validation, public, training. Test rows are cut
        off first, so that they do not depend on the other fractions.

    Raises:
        DataError: If there are too few rows.
    """
    # No seed enters: results of all seeds are measured on the same test rows. And nothing is
    # stratified: that would read private labels.
    generator = derive(b"privtrain/fixed split", ("split", rows, "")).numpy()
    test = 0 if test_given else max(1, round(rows * layout.test_fraction))
    validation = round(rows * layout.validation_fraction)
    public = round(rows * layout.public_fraction)
    if test + validation + public >= rows:
        raise DataError(
            f"Expected {rows} rows to be more than the {test + validation + public} that are set "
            "aside for testing, validation and the public. Give more rows or smaller fractions."
        )
    cuts = np.cumsum([test, validation, public])
    indices = np.split(generator.permutation(rows), cuts)
    return tuple(torch.from_numpy(np.sort(index)) for index in indices)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Which party holds what.

    Args:
        train: Party to rows.
        label_holder: With `COLUMNS`, the party that holds the labels.
        columns: With `COLUMNS`, the numbers of the columns in the order of the parties.
    """

    train: LazyRows
    label_holder: str | None = None
    columns: Tensor | None = None

    def in_order(self, rows: Rows) -> Rows:
        """Rows with their columns in the order in which the parties hold them."""
        if self.columns is None:
            return rows
        return Rows(rows.inputs[:, self.columns], rows.targets)


def share(train: Rows, layout: Layout) -> Sharing:
    """Training rows shared among the parties of a layout.

    Args:
        train: The rows.
        layout: The parties and the partition.

    Returns:
        Which party holds what.

    Raises:
        DataError: If a party would be left empty, or nobody holds the labels.
    """
    # This simulates who holds what, which is why it may read labels; parties of a real federation
    # hold what they hold.
    names, partition = layout.names, layout.partition
    generator = Seeds(layout.seed)["partition", 0, ""].numpy()
    if partition.split is ROWS:
        index = partition(train.labels, len(names), generator)
        _check_cover(index, names, len(train), "row")
        return Sharing(train=by_rows(train, names, index))
    if train.inputs.ndim != 2:
        raise DataError(
            f"Expected inputs of shape {tuple(train.inputs.shape)} to have the shape "
            "(rows, columns) where columns are shared. Flatten them first."
        )
    holder = _label_holder(partition, names)
    index = partition(torch.arange(train.inputs.shape[1]), len(names), generator)
    _check_cover(index, names, train.inputs.shape[1], "column")
    return Sharing(
        train=by_columns(train, names, index, holder),
        label_holder=holder,
        columns=torch.cat(index),
    )


def _check_cover(index: list[Tensor], names: tuple[str, ...], total: int, item: str) -> None:
    if len(index) != len(names):
        raise DataError(
            f"Expected the partition to return {len(names)} index tensors, one for each party; it "
            f"returned {len(index)}."
        )
    for name, held in zip(names, index, strict=True):
        if len(held) == 0:
            raise DataError(
                f"Expected every party to hold a {item}; the partition leaves {name} empty. Name "
                "fewer parties or choose another partition."
            )
    # A row that two parties hold would enter a sum twice, and one clipping norm would no longer
    # bound what that row can change. Users write partitions, too, hence the check.
    if not torch.equal(torch.cat(index).sort().values, torch.arange(total)):
        raise DataError(f"Expected the partition to give each of {total} {item}s to one party.")


def _label_holder(partition: Partition, names: tuple[str, ...]) -> str:
    holder = partition.label_holder
    if isinstance(holder, str) and holder in names:
        return holder
    if isinstance(holder, int) and 0 <= holder < len(names):
        return names[holder]
    raise DataError(
        f"Expected label_holder={holder!r} to be a party, since one of them must hold the labels "
        f"where columns are shared: a number from 0 to {len(names) - 1} or one of "
        f"{', '.join(names[:5])}."
    )


def digest(parts: Iterable[Rows]) -> str:
    """SHA-256 over shapes, types and bytes of rows and targets, in order.

    Args:
        parts: Data sets on the CPU.

    Returns:
        64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for part in parts:
        for tensor in (part.inputs, part.targets):
            if tensor is None:
                continue
            # Shape and type as well: the same bytes in another shape are another data set.
            state.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
            state.update(tensor.contiguous().numpy().data)
    return state.hexdigest()
