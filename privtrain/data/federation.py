"""Federated data from a table: a coin for each row, a partition, a digest."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.parties import party_names
from privtrain.core.recipe import Encoder
from privtrain.core.seeding import Seeds
from privtrain.core.task import ROWS, FederatedData, Rows
from privtrain.core.validate import check_count, check_follows, check_fraction
from privtrain.data.coins import coins
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
        example = "pt.data.Dirichlet(0.5), or what pt.data.parse_partition reads from text"
        check_follows(Partition, example, partition=self.partition)
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

    def fractions(self, *, test_given: bool) -> dict[str, float]:
        """The fraction of the rows that is set aside for each part; none where rows are given."""
        return {
            "test": 0.0 if test_given else self.test_fraction,
            "validation": self.validation_fraction,
            "public": self.public_fraction,
        }

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
    names: Tensor | None = None,
    test: Rows | None = None,
    public: Rows | None = None,
    public_rows: int | None = None,
    published: int | None = None,
    notes: tuple[str, ...] = (),
    assumptions: tuple[str, ...] = (),
) -> FederatedData:
    """A table as federated data: split for testing and validation, the rest shared among parties.

    The split is a coin for each row: it does not depend on the seed, and adding or removing a row
    moves no other one.

    Args:
        rows: All rows, or all but the test rows where `test` is given.
        layout: How the table is cut.
        name: What the data set is called.
        names: A number for each row that is its own, shape `(rows,)`, int64; None where rows are
            known by their contents.
        test: Rows for testing, where they are known beforehand.
        public: Rows that anybody may read, where they are known beforehand.
        public_rows: A public figure of how many training rows there are.
        published: How many rows the documentation of a published data set states: the public
            figure of how many training rows there are then follows from the fractions.
        notes: What the reader should know.
        assumptions: What every guarantee about these rows assumes.

    Returns:
        The federated data.

    Raises:
        DataError: If a part or a party would be left empty.
    """
    asked = layout.fractions(test_given=test is not None)
    parts = split_by_coin(rows, asked, names)
    train = rows.take(parts["training"])
    # Only training rows have owners; test and validation rows belong to nobody.
    sharing = share(train, layout)
    validation = rows.take(parts["validation"]) if asked["validation"] else None
    # Public rows lose their labels: what anybody may read, nobody has answered yet.
    open_rows = Rows(rows.inputs[parts["public"]]) if asked["public"] else public
    # Where the number of rows is not public, only a stated figure is passed on: sampling rates of a
    # counted one would be a query on private rows. The number that fell to training is counted.
    if published is not None:
        public_rows = round(published * (1 - sum(asked.values())))
    return FederatedData(
        train=sharing.train,
        test=sharing.in_order(rows.take(parts["test"]) if test is None else test),
        validation=None if validation is None else sharing.in_order(validation),
        public=None if open_rows is None else sharing.in_order(open_rows),
        split=layout.partition.split,
        label_holder=sharing.label_holder,
        public_rows=public_rows,
        name=name,
        digest=digest(part for part in (rows, test, public) if part is not None),
        notes=(*notes, *_far_from_asked(parts, asked, len(rows))),
        assumptions=assumptions,
        by_coin=any(asked.values()),
        published=published is not None,
        encoder=Encoder(
            shape=tuple(rows.inputs.shape[1:]),
            dtype=str(rows.inputs.dtype).removeprefix("torch."),
            order=None if sharing.columns is None else tuple(sharing.columns.tolist()),
        ),
    )


def split_by_coin(
    rows: Rows, asked: Mapping[str, float], names: Tensor | None = None
) -> dict[str, Tensor]:
    """The numbers of the rows of each part, each row by a coin of its own.

    Adding or removing a row changes the part that this row is in, by this row, and no other part.
    Rows of one user are in one part.

    Args:
        rows: The rows.
        asked: Part to its fraction of the rows; the sum is below 1.
        names: A number for each row that is its own, or None; see `coins`.

    Returns:
        Index tensors in rising order, of the parts and of what is left for "training". The first
        part does not depend on the fractions of the others, nor each on those behind it.

    Raises:
        DataError: If no row falls into a part that was asked for, or none is left for training.
    """
    # One public key for all: results of all seeds are measured on the same test rows. And nothing
    # is stratified: that would read the labels of other rows.
    drawn = coins(rows, "privtrain/split", names=names)
    place = np.searchsorted(np.cumsum(list(asked.values())), drawn, side="right")
    wanted = {**asked, "training": 1.0}
    parts = {
        part: torch.from_numpy(np.flatnonzero(place == number))
        for number, part in enumerate(wanted)
    }
    for part, fraction in wanted.items():
        if fraction > 0 and len(parts[part]) == 0:
            raise _empty(part, asked, len(rows))
    return parts


def _empty(part: str, asked: Mapping[str, float], rows: int) -> DataError:
    if part == "training":
        fractions = ", ".join(f"{name}_fraction={asked[name]:g}" for name in asked if asked[name])
        asking, way_out = f"beside {fractions}", "smaller fractions"
    else:
        asking = f"with {part}_fraction={asked[part]:g}"
        without = {"test": "test=", "validation": "validation_fraction=0", "public": "public="}
        way_out = f"a larger {part}_fraction, or {without[part]}"
    return DataError(
        f"Expected {rows} rows to leave some for the {part} part {asking}; by a coin for each row "
        f"(for each user, where users are known) none fell there. Give more rows, or {way_out}. "
        f"{READS_ROWS}"
    )


def _far_from_asked(
    parts: Mapping[str, Tensor], asked: Mapping[str, float], rows: int
) -> tuple[str, ...]:
    """Notes on parts that are far larger or smaller than was asked."""
    got = {part: len(parts[part]) / rows for part in asked if asked[part] > 0}
    return tuple(
        f"unprotected: asked {asked[part]:.0%} of the rows for the {part} part, got about "
        f"{share:.0%}: few rows, or few users, share it by coins"
        for part, share in got.items()
        if not 2 / 3 <= share / asked[part] <= 3 / 2
    )


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
                f"fewer parties or choose another partition. {READS_ROWS}"
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
    """SHA-256 over shapes, types and bytes of rows, targets and users, in order.

    Args:
        parts: Data sets on the CPU.

    Returns:
        64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for part in parts:
        for tensor in (part.inputs, part.targets, part.users):
            if tensor is None:
                continue
            # Shape and type as well: the same bytes in another shape are another data set.
            state.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
            state.update(tensor.contiguous().numpy().data)
    return state.hexdigest()
