"""Partitions: which party holds which rows or which columns of a table, each exactly once."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.task import COLUMNS, ROWS, Split
from privtrain.core.validate import (
    check_count,
    check_is,
    check_member,
    check_non_negative,
    check_positive,
)

Indices = NDArray[np.int64]


class Partition(Protocol):
    """A way to share a table among parties. Implementations are frozen dataclasses."""

    @property
    def split(self) -> Split:
        """Whether rows or columns are shared."""
        ...

    @property
    def label_holder(self) -> int | str | None:
        """With `COLUMNS`, the party that holds the labels: its number or its name."""
        ...

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        """Shares items among parties; every item goes to one party, every party gets one.

        Args:
            targets: With `ROWS` the class of every row, shape `(rows,)`; with `COLUMNS` the
                number of every column, shape `(columns,)`.
            parties: How many parties there are.
            generator: Where chance comes from.

        Returns:
            For each party the items it holds, in rising order, shape `(held,)`.

        Raises:
            DataError: If no party could be left without an item.
        """
        ...


def _check_enough(targets: Tensor, parties: int, minimum: int = 1) -> None:
    check_count(parties=parties)
    if len(targets) < parties * minimum:
        raise DataError(
            f"Expected parties={parties} to be at most {len(targets) // minimum}: there are "
            f"{len(targets)} training rows, and every party needs {minimum}. Name fewer parties "
            f"or give more rows. {READS_ROWS}"
        )


def _classes(targets: Tensor) -> Indices:
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(
            f"Expected targets of shape {tuple(targets.shape)} and type {targets.dtype} to be "
            "class numbers of shape (rows,). Use IID() or ByQuantity() for other targets."
        )
    return np.asarray(targets.cpu().numpy(), dtype=np.int64)


def _tensors(groups: Sequence[Indices]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(group).astype(np.int64)) for group in groups]


@dataclass(frozen=True)
class IID:
    """Rows are shuffled and dealt in equal numbers, which differ by at most one."""

    split: ClassVar[Split] = ROWS
    label_holder: ClassVar[None] = None

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        _check_enough(targets, parties)
        return _tensors(np.array_split(generator.permutation(len(targets)), parties))


@dataclass(frozen=True)
class Dirichlet:
    """Each class is shared by proportions from a symmetric Dirichlet distribution.

    A party that is left with fewer rows than `minimum` takes rows, one at a time, from the party
    that then holds most; which of its rows go is drawn by lot.

    Args:
        alpha: Concentration; positive. Large is even, 0.1 gives parties one or two classes.
        minimum: The fewest rows a party holds.

    Raises:
        ValueError: If `alpha` is not positive or `minimum` is below 1.

    Source: Hsu, Qi and Brown 2019 (arXiv:1909.06335), by class as in Yurochkin et al. 2019.
    """

    alpha: float
    minimum: int = 1
    split: ClassVar[Split] = ROWS
    label_holder: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_positive(alpha=self.alpha)
        check_count(minimum=self.minimum)

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        _check_enough(targets, parties, self.minimum)
        classes = _classes(targets)
        shares: list[list[Indices]] = [[] for _ in range(parties)]
        # Hsu et al. 2019 draw for each party how many rows of each class it holds; here, as in
        # Yurochkin et al. 2019, p_k ~ Dir(alpha) is drawn for each class k and says how its rows
        # are shared, so that every row goes to a party whatever the sizes of the classes are.
        for label in np.unique(classes):
            rows = generator.permutation(np.flatnonzero(classes == label))
            proportions = generator.dirichlet(np.full(parties, self.alpha))
            # Cumulated shares are rounded, not each share: rounded shares need not add up.
            cuts = np.rint(np.cumsum(proportions)[:-1] * len(rows)).astype(np.int64)
            for held, share in zip(shares, np.split(rows, cuts), strict=True):
                held.append(share)
        # Mixed: `_fill` takes rows from the end, where those of the last class stand.
        groups = [generator.permutation(np.concatenate(held)) for held in shares]
        return _tensors(_fill(groups, self.minimum))


def _fill(groups: list[Indices], minimum: int) -> list[Indices]:
    # Small alpha leaves parties without rows, which could not train; other implementations draw
    # again until nobody is, which for small alpha and many parties never ends.
    held = [group.tolist() for group in groups]
    largest = [(-len(group), number) for number, group in enumerate(held)]
    heapq.heapify(largest)
    for group in held:
        while len(group) < minimum:
            size, number = heapq.heappop(largest)
            # A party that was filled up still has its old, smaller size in the heap. That does no
            # harm: it holds `minimum` rows, and whoever is largest holds more.
            group.append(held[number].pop())
            heapq.heappush(largest, (size + 1, number))
    return [np.asarray(group, dtype=np.int64) for group in held]


@dataclass(frozen=True)
class Shards:
    """Rows are sorted by class, cut into shards of equal size, and each party draws `per_party`.

    Shards differ by at most one row, so that none is left over.

    Args:
        per_party: How many shards a party draws, hence roughly how many classes it holds at most.

    Source: McMahan et al. 2017, the pathological non-IID split (arXiv:1602.05629).
    """

    per_party: int = 2
    split: ClassVar[Split] = ROWS
    label_holder: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_count(per_party=self.per_party)

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        _check_enough(targets, parties, self.per_party)
        classes = _classes(targets)
        # McMahan et al. 2017, section 3: "sort the data by digit label, divide it into 200 shards
        # of size 300, and assign each of 100 clients 2 shards". Shuffled first and sorted stably,
        # so that chance decides which rows of a class stand in which shard.
        shuffled = generator.permutation(len(classes))
        ordered = shuffled[np.argsort(classes[shuffled], kind="stable")]
        shards = np.array_split(ordered, parties * self.per_party)
        drawn = generator.permutation(len(shards)).reshape(parties, self.per_party)
        return _tensors([np.concatenate([shards[i] for i in mine]) for mine in drawn])


@dataclass(frozen=True)
class ByQuantity:
    """Rows are shuffled and dealt in unequal numbers.

    Sizes follow `fractions`, or a power law: party i holds a share proportional to
    `(i + 1) ** -exponent`. A party's number of rows differs from its share of them by less than
    one (largest remainders), except that a party whose share comes to no row takes one from the
    party that then holds most.

    Args:
        exponent: Of the power law; 0 is even, 1 is Zipf's law.
        fractions: The share of each party; positive, with sum 1. Replaces the power law.

    Raises:
        ValueError: If the exponent is negative, or the fractions are not positive with sum 1.
    """

    exponent: float = 1.0
    fractions: tuple[float, ...] | None = None
    split: ClassVar[Split] = ROWS
    label_holder: ClassVar[None] = None

    def __post_init__(self) -> None:
        if isinstance(self.exponent, (tuple, list)):
            raise ValueError(
                f"Expected exponent={self.exponent} to be a number. Give shares by name: "
                f"ByQuantity(fractions={self.exponent})."
            )
        check_non_negative(exponent=self.exponent)
        if self.fractions is not None:
            for fraction in self.fractions:
                check_positive(fractions=fraction)
            if not math.isclose(sum(self.fractions), 1.0, abs_tol=1e-6):
                raise ValueError(
                    f"Expected fractions={self.fractions} to have the sum 1, "
                    f"not {sum(self.fractions):g}."
                )

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        _check_enough(targets, parties)
        shares = self._shares(parties)
        wanted = shares / shares.sum() * len(targets)
        # Largest remainders: sizes add up exactly and differ from the shares by less than a row.
        sizes = np.floor(wanted).astype(np.int64)
        left = len(targets) - int(sizes.sum())
        sizes[np.argsort(sizes - wanted, kind="stable")[:left]] += 1
        shuffled = generator.permutation(len(targets))
        # A steep power law leaves the last parties none.
        return _tensors(_fill(np.split(shuffled, np.cumsum(sizes)[:-1]), 1))

    def _shares(self, parties: int) -> NDArray[np.float64]:
        if self.fractions is None:
            return np.arange(1, parties + 1, dtype=np.float64) ** -self.exponent
        if len(self.fractions) != parties:
            raise ValueError(
                f"Expected fractions={self.fractions} to name one share for each of "
                f"parties={parties}."
            )
        return np.asarray(self.fractions, dtype=np.float64)


@dataclass(frozen=True)
class ByColumn:
    """Parties hold columns of all rows, and one party also holds the labels.

    Without `columns`, neighbouring columns go to the parties in blocks that differ by at most
    one column; chance plays no part.

    Args:
        columns: For each party the numbers of its columns; each column once.
        label_holder: Which party also holds the labels: its number or its name.
    """

    columns: tuple[tuple[int, ...], ...] | None = None
    label_holder: int | str | None = 0
    split: ClassVar[Split] = COLUMNS

    def __call__(
        self, targets: Tensor, parties: int, generator: np.random.Generator
    ) -> list[Tensor]:
        # Neighbours stay together: columns that words became, or pixels of a row, are one feature.
        check_count(parties=parties)
        total = len(targets)
        if self.columns is None:
            if total < parties:
                raise DataError(
                    f"Expected parties={parties} to be at most {total}, the number of columns. "
                    "Name fewer parties."
                )
            return _tensors(np.array_split(np.arange(total), parties))
        if len(self.columns) != parties or not all(self.columns):
            raise DataError(
                f"Expected columns={self.columns} to name at least one column for each of "
                f"parties={parties}."
            )
        named = sorted(column for held in self.columns for column in held)
        if named != list(range(total)):
            raise DataError(
                f"Expected columns={self.columns} to name each column from 0 to {total - 1} once."
            )
        return _tensors([np.asarray(held, dtype=np.int64) for held in self.columns])


_PARSERS: dict[str, Callable[[str], Partition]] = {
    "columns": lambda text: ByColumn(label_holder=int(text or 0)),
    "dirichlet": lambda text: Dirichlet(float(text or 0.5)),
    "iid": lambda text: IID(),
    "quantity": lambda text: ByQuantity(float(text or 1.0)),
    "shards": lambda text: Shards(int(text or 2)),
}


def parse_partition(text: str) -> Partition:
    """The partition that a word and a number stand for, as the command line writes them.

    Args:
        text: "iid", "dirichlet:0.5" (alpha), "shards:2" (per party), "quantity:1.5" (exponent)
            or "columns:0" (label holder); the number may be left out.

    Returns:
        The partition.

    Raises:
        ValueError: If the word is unknown or the number is none.
    """
    check_is(str, "'dirichlet:0.5'", partition=text)
    word, _, number = text.partition(":")
    check_member(_PARSERS, partition=word)
    # Partitions check their parameters themselves; what they say follows the text that was typed.
    try:
        return _PARSERS[word](number)
    except ValueError as error:
        raise ValueError(f"Expected partition={text!r} to end in a valid number. {error}") from None
