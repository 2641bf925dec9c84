"""Partitions: every item exactly once, no party empty, and the distribution they promise."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import COLUMNS, ROWS
from privtrain.data import (
    IID,
    ByColumn,
    ByQuantity,
    Dirichlet,
    Partition,
    Shards,
    parse_partition,
)

BY_ROWS: list[tuple[Partition, int]] = [
    # The partition, and how many rows a party needs.
    (IID(), 1),
    (Dirichlet(0.01), 1),
    (Dirichlet(0.5, minimum=3), 3),
    (Dirichlet(100.0), 1),
    (Shards(), 2),
    (Shards(per_party=1), 1),
    (ByQuantity(), 1),
    (ByQuantity(exponent=3.0), 1),
]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def covers(index: list[Tensor], total: int) -> bool:
    return torch.equal(torch.cat(index).sort().values, torch.arange(total))


@pytest.mark.parametrize(("partition", "needed"), BY_ROWS, ids=lambda value: str(value))
@given(
    rows=st.integers(0, 200),
    parties=st.integers(1, 25),
    classes=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_every_row_exactly_once(
    partition: Partition, needed: int, rows: int, parties: int, classes: int, seed: int
) -> None:
    targets = torch.from_numpy(generator(seed).integers(0, classes, rows))
    if rows < parties * needed:
        with pytest.raises(DataError, match=f"parties={parties}"):
            partition(targets, parties, generator(seed))
        return
    index = partition(targets, parties, generator(seed))
    assert len(index) == parties
    assert covers(index, rows)
    assert all(len(held) >= needed or needed == 2 for held in index)
    assert all(len(held) >= 1 for held in index)
    assert all(bool((held.diff() > 0).all()) for held in index)


@given(columns=st.integers(1, 80), parties=st.integers(1, 25))
def test_every_column_exactly_once(columns: int, parties: int) -> None:
    if columns < parties:
        with pytest.raises(DataError, match=f"parties={parties}"):
            ByColumn()(torch.arange(columns), parties, generator())
        return
    index = ByColumn()(torch.arange(columns), parties, generator())
    sizes = [len(held) for held in index]
    assert torch.equal(torch.cat(index), torch.arange(columns))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("partition", [partition for partition, _ in BY_ROWS], ids=str)
def test_the_generator_decides(partition: Partition) -> None:
    targets = torch.arange(300) % 7

    def parts(seed: int) -> list[list[int]]:
        return [held.tolist() for held in partition(targets, 6, generator(seed))]

    assert parts(1) == parts(1)
    assert parts(1) != parts(2)


def test_partitions_are_values() -> None:
    for partition in [*(partition for partition, _ in BY_ROWS), ByColumn(((0,), (1,)))]:
        assert pickle.loads(pickle.dumps(partition)) == partition
        assert partition.split is (COLUMNS if isinstance(partition, ByColumn) else ROWS)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(held) for held in IID()(torch.zeros(101, dtype=torch.int64), 9, generator())]
    assert sorted(set(sizes)) == [11, 12]


def dirichlet_deviation(drawn: float, expected: float) -> float:
    """How many standard errors the variance of shares is from that of concentration `expected`."""
    parties, classes, rows = 5, 3000, 100
    targets = torch.arange(classes).repeat_interleave(rows)
    first = Dirichlet(drawn)(targets, parties, generator(3))[0]
    shares = np.bincount(targets[first].numpy(), minlength=classes) / rows
    squares = (shares - 1 / parties) ** 2
    variance = (1 / parties) * (1 - 1 / parties) / (parties * expected + 1)
    return float((squares.mean() - variance) / (squares.std() / np.sqrt(classes)))


@pytest.mark.slow
def test_dirichlet_has_the_stated_concentration() -> None:
    # |z| < 4 is a false alarm once in 16,000 seeds; the same test notices a factor of 3/2.
    assert abs(dirichlet_deviation(0.5, 0.5)) < 4
    assert dirichlet_deviation(0.5 * 2 / 3, 0.5) > 4
    assert dirichlet_deviation(0.5 * 3 / 2, 0.5) < -4


def test_dirichlet_fills_up_from_the_largest_party() -> None:
    targets = torch.zeros(40, dtype=torch.int64)
    bare = [len(held) for held in Dirichlet(0.01)(targets, 4, generator(5))]
    assert sorted(bare) == [1, 1, 1, 37]  # one party drew everything and gave three rows away
    filled = [len(held) for held in Dirichlet(0.01, minimum=6)(targets, 4, generator(5))]
    assert sorted(filled) == [6, 6, 6, 22]
    even = [len(held) for held in Dirichlet(0.01, minimum=10)(targets, 4, generator(5))]
    assert even == [10, 10, 10, 10]


def test_shards_give_few_classes() -> None:
    targets = torch.arange(1000) % 10
    held = [set(targets[index].tolist()) for index in Shards(2)(targets, 50, generator())]
    assert max(len(classes) for classes in held) <= 2
    assert min(len(classes) for classes in held) >= 1


def test_quantity_follows_the_shares() -> None:
    targets = torch.zeros(1003, dtype=torch.int64)
    power = [len(held) for held in ByQuantity(1.0)(targets, 3, generator())]
    assert power == [547, 274, 182]  # 1,003 x (6, 3, 2) / 11, largest remainders
    even = [len(held) for held in ByQuantity(0.0)(targets, 4, generator())]
    assert sorted(even) == [250, 251, 251, 251]


@pytest.mark.parametrize(
    ("fractions", "rows", "sizes"),
    [
        ((0.8, 0.1, 0.1), 100, [80, 10, 10]),
        ((0.8, 0.1, 0.1), 10, [8, 1, 1]),
        ((0.1, 0.2, 0.7), 10, [1, 2, 7]),
        # 0.29 x 100 is 28.999999999999996 in floats.
        ((0.29, 0.71), 100, [29, 71]),
        ((0.7, 0.2, 0.1), 1003, [702, 201, 100]),
        ((1 / 3, 1 / 3, 1 / 3), 100, [34, 33, 33]),
        # Whose share is no row takes one from the largest.
        ((0.998, 0.001, 0.001), 10, [8, 1, 1]),
        ((0.8, 0.1, 0.1), 3, [1, 1, 1]),
    ],
)
def test_sizes_are_the_stated_fractions(
    fractions: tuple[float, ...], rows: int, sizes: list[int]
) -> None:
    index = ByQuantity(fractions=fractions)(torch.zeros(rows), len(fractions), generator())
    assert [len(held) for held in index] == sizes
    assert covers(index, rows)


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=12), rows=st.integers(12, 3000))
def test_no_size_is_a_row_off(weights: list[int], rows: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    partition = ByQuantity(fractions=tuple(shares))
    sizes = [len(held) for held in partition(torch.zeros(rows), len(weights), generator())]
    assert sum(sizes) == rows
    if rows * min(shares) >= 1:
        assert all(abs(n - share * rows) < 1 for n, share in zip(sizes, shares, strict=True))


def test_columns_as_named() -> None:
    partition = ByColumn(((3, 1), (0,), (2,)))
    index = partition(torch.arange(4), 3, generator())
    assert [held.tolist() for held in index] == [[1, 3], [0], [2]]


@pytest.mark.parametrize(
    "columns", [((0, 1),), ((0, 1), ()), ((0,), (2,)), ((0, 1), (1, 2)), ((0, 1), (2, 3))]
)
def test_columns_must_be_named_once(columns: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(DataError, match="columns="):
        ByColumn(columns)(torch.arange(3), 2, generator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(0.0), r"alpha=0\.0"),
        (lambda: Dirichlet(float("nan")), "alpha=nan"),
        (lambda: Dirichlet(1.0, minimum=0), "minimum=0"),
        (lambda: Shards(0), "per_party=0"),
        (lambda: ByQuantity(-1.0), r"exponent=-1\.0"),
        (
            lambda: ByQuantity((0.8, 0.2)),  # type: ignore[arg-type]
            r"exponent=\(0\.8, 0\.2\) .*ByQuantity\(fractions=\(0\.8, 0\.2\)\)",
        ),
        (lambda: ByQuantity(fractions=(0.5, 0.5, 0.0)), r"fractions=0\.0 > 0"),
        (lambda: ByQuantity(fractions=(0.5, 0.6)), "sum 1"),
        (lambda: ByQuantity(fractions=(1.5, -0.5)), r"fractions=-0\.5"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], Partition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_fractions_must_fit_the_parties() -> None:
    with pytest.raises(ValueError, match="parties=3"):
        ByQuantity(fractions=(0.5, 0.5))(torch.zeros(9), 3, generator())


@pytest.mark.parametrize("partition", [Dirichlet(0.5), Shards()])
def test_label_partitions_want_class_numbers(partition: Partition) -> None:
    with pytest.raises(DataError, match=r"Use IID\(\)"):
        partition(torch.rand(30), 3, generator())


def test_parse_partition() -> None:
    assert parse_partition("iid") == IID()
    assert parse_partition("dirichlet:0.3") == Dirichlet(0.3)
    assert parse_partition("dirichlet") == Dirichlet(0.5)
    assert parse_partition("shards:3") == Shards(3)
    assert parse_partition("quantity:2") == ByQuantity(2.0)
    assert parse_partition("columns:1") == ByColumn(label_holder=1)
    with pytest.raises(ValueError, match=r"partition='even'.*dirichlet, iid"):
        parse_partition("even")
    with pytest.raises(ValueError, match="partition='shards:x'"):
        parse_partition("shards:x")
    with pytest.raises(ValueError, match=r"alpha=-1\.0"):
        parse_partition("dirichlet:-1")
