"""Splitting and sharing a table: a coin for each row, and every row once."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Rows
from privtrain.data import from_arrays, from_csv, from_npz
from privtrain.data.coins import coins, digests
from privtrain.data.federation import Layout, digest, federate, split_by_coin
from tests.statistics import ALARM

Y = np.arange(100) % 3


def numbered(rows: int = 100) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(rows, dtype=np.float64)[:, None]


def first_columns(data: FederatedData) -> list[list[float]]:
    held: list[Rows | None] = [data.test, data.validation, data.public, data.pooled()]
    return [[] if part is None else part.inputs[:, 0].tolist() for part in held]


def test_the_split_depends_neither_on_the_seed_nor_on_the_order_of_the_table() -> None:
    _, first = from_arrays(numbered(), Y, parties=3, public_fraction=0.1)
    _, other = from_arrays(numbered()[::-1], Y[::-1], parties=4, public_fraction=0.1, seed=7)
    pairs = zip(first_columns(first), first_columns(other), strict=True)
    assert all(sorted(mine) == sorted(theirs) for mine, theirs in pairs)
    assert sorted(number for part in first_columns(first) for number in part) == list(range(100))
    _, wider = from_arrays(numbered(), Y, parties=3, validation_fraction=0.3)
    assert first_columns(wider)[0] == first_columns(first)[0]
    assert set(first_columns(first)[1]) < set(first_columns(wider)[1])
    assert first.digest != other.digest  # another order


# --------------------------------------------------- adding or removing a row moves no other one

Split = Callable[[Rows, Mapping[str, float]], dict[str, Tensor]]
ASKED = {"test": 0.2, "validation": 0.1, "public": 0.15}


def changes(split: Split, rows: Rows, gone: list[int]) -> dict[str, Counter[tuple[float, ...]]]:
    """What is in each part with the rows and not without them, or the other way round."""

    def contents(given: Rows) -> dict[str, Counter[tuple[float, ...]]]:
        return {
            part: Counter(map(tuple, given.inputs[index].tolist()))
            for part, index in split(given, ASKED).items()
        }

    rest = rows.take(torch.tensor([n for n in range(len(rows)) if n not in gone]))
    whole, without = contents(rows), contents(rest)
    return {part: (whole[part] - without[part]) + (without[part] - whole[part]) for part in whole}


def moved(split: Split, rows: Rows, gone: list[int]) -> int:
    """How many rows more than those that left are in another part."""
    return sum(found.total() for found in changes(split, rows, gone).values()) - len(gone)


def table(seed: int, *, users: bool = False) -> Rows:
    """Random rows, some of which occur many times."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(100, 300))
    copies = generator.integers(0, count // 2, count) if seed % 2 else np.arange(count)
    return Rows(
        torch.from_numpy(generator.normal(size=(count, 2))[copies]),
        torch.from_numpy(generator.integers(0, 2, count)[copies]),
        torch.from_numpy(generator.integers(0, 40, count)) if users else None,
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_row_that_leaves_changes_its_own_part_only(seed: int) -> None:
    rows = table(seed)
    for place in np.random.default_rng(seed).integers(0, len(rows), 10).tolist():
        found = [part for part in changes(split_by_coin, rows, [place]).values() if part]
        assert [part.total() for part in found] == [1]
        assert list(found[0].elements()) == [tuple(rows.inputs[place].tolist())]


@pytest.mark.parametrize("seed", range(8))
def test_a_user_who_leaves_was_in_one_part_and_changes_that_only(seed: int) -> None:
    rows = table(seed, users=True)
    assert rows.users is not None
    for user in rows.users.unique()[:8].tolist():
        own = (rows.users == user).nonzero()[:, 0].tolist()
        found = [part for part in changes(split_by_coin, rows, own).values() if part]
        assert [part.total() for part in found] == [len(own)]


def by_permutation(rows: Rows, asked: Mapping[str, float]) -> dict[str, Tensor]:
    """The broken twin: a list that is shuffled by its length, and cut."""
    cuts = np.cumsum([round(len(rows) * fraction) for fraction in asked.values()])
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    indices = zip([*asked, "training"], np.split(order, cuts), strict=True)
    return {part: torch.from_numpy(np.sort(index)) for part, index in indices}


def by_rank(rows: Rows, asked: Mapping[str, float]) -> dict[str, Tensor]:
    """Another one: as many rows as were asked, those with the smallest coins."""
    order = np.argsort(coins(rows, "x"))
    cuts = np.cumsum([round(len(rows) * fraction) for fraction in asked.values()])
    indices = zip([*asked, "training"], np.split(order, cuts), strict=True)
    return {part: torch.from_numpy(np.sort(index)) for part, index in indices}


def by_contents(rows: Rows, asked: Mapping[str, float]) -> dict[str, Tensor]:
    """And one whose equal rows all go one way: sizes are not those of coins."""
    drawn = np.array([int.from_bytes(d[:4], "little") / 2.0**32 for d in digests(rows, "x")])
    place = np.searchsorted(np.cumsum(list(asked.values())), drawn, side="right")
    return {
        part: torch.from_numpy(np.flatnonzero(place == number))
        for number, part in enumerate([*asked, "training"])
    }


def test_broken_twins_are_caught() -> None:
    rows = table(0)
    assert moved(split_by_coin, rows, [0]) == 0
    assert moved(by_permutation, rows, [0]) > 50
    assert max(moved(by_rank, rows, [place]) for place in range(20)) > 0
    copied = rows.take(torch.arange(400) // 100)
    assert len(by_contents(copied, ASKED)["training"]) % 100 == 0
    assert len(split_by_coin(copied, ASKED)["training"]) % 100 != 0


def test_sizes_are_those_of_coins() -> None:
    """Over many tables, with and without copies."""
    totals: Counter[str] = Counter()
    for seed in range(40):
        for part, index in split_by_coin(table(seed), ASKED).items():
            totals[part] += len(index)
    for part, fraction in {**ASKED, "training": 0.55}.items():
        assert stats.binomtest(totals[part], totals.total(), fraction).pvalue > ALARM
        assert stats.binomtest(totals[part], totals.total(), fraction * 1.25).pvalue < ALARM


def test_one_row_less_in_arrays_is_one_row_less_in_training() -> None:
    """The table of the review: 409 of 700 training rows used to change."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(1000, 5)), generator.integers(0, 2, 1000)
    options: dict[str, Any] = {"parties": 1, "classes": 2, "public_rows": 700, "scale": (-4, 4)}

    def parts(keep: Any) -> list[set[tuple[float, ...]]]:
        _, data = from_arrays(x[keep], y[keep], public_fraction=0.1, **options)
        held: list[Rows | None] = [data.pooled(), data.test, data.validation, data.public]
        return [set() if p is None else set(map(tuple, p.inputs.tolist())) for p in held]

    whole = parts(slice(None))
    for place in (0, 500, 999):
        without = parts(np.arange(1000) != place)
        assert sum(len(a ^ b) for a, b in zip(whole, without, strict=True)) == 1


def test_files_are_split_by_coins(tmp_path: Path) -> None:
    x, y = np.random.default_rng(1).integers(0, 50, size=(80, 3)).astype(float), np.arange(80) % 2
    np.savez(tmp_path / "t.npz", x=x, y=y)
    _, data = from_npz(tmp_path / "t.npz", parties=2)
    assert first_columns(data) == first_columns(from_arrays(x, y, parties=2)[1])
    assert data.by_coin


@pytest.mark.parametrize("copies", [1, 3])
def test_a_line_less_in_a_table_is_a_row_less_whatever_words_it_brought(
    tmp_path: Path, copies: int
) -> None:
    """Its word gave every row a further column; its class, every row another number."""
    lines = [f"{n // copies},{'ab'[n % 2 * (copies == 1)]},m" for n in range(60)]
    odd = [f"{n // copies},b,p" for n in range(60, 120)]
    alone = "999,unheard of,k"  # before all other classes and behind all other words

    def parts(rows: list[str]) -> list[Counter[float]]:
        (tmp_path / "t.csv").write_text("\n".join(["n,word,y", *rows]))
        return [Counter(part) for part in first_columns(from_csv(tmp_path / "t.csv", parties=1)[1])]

    whole, without = parts([alone, *lines, *odd]), parts([*lines, *odd])
    changed = [a - b for a, b in zip(whole, without, strict=True)]
    assert [list(part.elements()) for part in changed if part] == [[999.0]]
    assert not any(b - a for a, b in zip(whole, without, strict=True))
    fewer = parts([*lines[1:], *odd])
    assert sum((a - b).total() for a, b in zip(without, fewer, strict=True)) == 1
    assert not any(b - a for a, b in zip(without, fewer, strict=True))


def test_one_party_holds_a_users_rows_in_one_part_only() -> None:
    """The table of the review: 44 of 60 users had rows in the public part, and in training."""
    users = np.repeat(np.arange(60), 5)
    generator = np.random.default_rng(0)
    _, data = from_arrays(
        generator.normal(size=(300, 3)),
        generator.integers(0, 2, 300),
        users=users,
        parties=2,
        public_fraction=0.2,
    )
    held = [data.pooled().users, data.test.users]
    assert data.validation is not None and data.public is not None
    owners = [set(part.tolist()) for part in [*held, data.validation.users] if part is not None]
    assert sum(map(len, owners)) + len(data.public) // 5 == 60
    assert len(set.union(*owners)) == sum(map(len, owners))


def test_a_part_far_from_what_was_asked_is_named_and_an_empty_one_refused() -> None:
    two = np.arange(400) % 2  # two users: no fifth of them
    x, y = np.arange(400.0)[:, None], np.arange(400) // 2 % 2
    notes = [
        note
        for seed in range(150)
        for note in tried(x, y, users=[f"{seed}/{user}" for user in two], parties=1)
    ]
    assert any(note.startswith("unprotected: asked 20% of the rows for the test") for note in notes)
    assert any("to leave some for the training part" in note for note in notes)
    assert any("to leave some for the test part" in note and "test=" in note for note in notes)
    many = np.random.default_rng(0).normal(size=(2_000, 1))
    assert from_arrays(many, np.arange(2_000) % 2, classes=2, parties=1)[1].notes == ()


def tried(*arrays: Any, **options: Any) -> tuple[str, ...]:
    try:
        return from_arrays(*arrays, classes=2, validation_fraction=0.0, **options)[1].notes
    except DataError as error:
        assert "Unprotected" in str(error)
        return (str(error),)


def test_the_digest_holds_users_where_there_are_some() -> None:
    rows = table(0, users=True)
    assert rows.users is not None
    nobody = Rows(rows.inputs, rows.targets)
    others = Rows(rows.inputs, rows.targets, rows.users + 1)
    assert len({digest([rows]), digest([nobody]), digest([others])}) == 3
    # What version 0.1 wrote for these rows.
    few = Rows(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1]))
    assert digest([few]).startswith("04afa1766c08d0674d37")


class Lossy:
    """A partition that does what its user asks: here, something wrong."""

    def __init__(self, index: list[list[int]]) -> None:
        self.index = [torch.tensor(held, dtype=torch.int64) for held in index]
        self.split = Layout().partition.split
        self.label_holder = None

    def __call__(self, targets: Tensor, parties: int, generator: object) -> list[Tensor]:
        return self.index


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([[0, 1, 2], []], "leaves party-1 empty"),
        ([[0, 1], [3]], "each of 4 rows to one party"),
        ([[0, 1, 2], [2, 3]], "each of 4 rows to one party"),
        ([[0, 1, 2, 3]], "returned 1"),
    ],
)
def test_a_wrong_partition_is_caught(index: list[list[int]], message: str) -> None:
    rows = Rows(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    layout = Layout(parties=2, partition=Lossy(index), validation_fraction=0.0)
    with pytest.raises(DataError, match=message):
        federate(rows, layout, name="x", test=rows)
