"""What earlier fits released is recognised, and whose rows it was made of."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from privtrain.core.task import COLUMNS, FederatedData, Rows
from privtrain.ledgers.study import StudyLedger
from privtrain.runs import earlier
from privtrain.runs.earlier import from_earlier_fits, remember, row_hashes, sketch_of, varies


def normal(count: int, seed: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator)


def data_of(*parts: Tensor, **options: object) -> FederatedData:
    train = {f"p{number}": Rows(part) for number, part in enumerate(parts)}
    return FederatedData(train=train, test=Rows(normal(3, 99)), **options)  # type: ignore[arg-type]


ROWS = normal(300, 1)


def related(one: FederatedData, other: FederatedData) -> bool:
    first, second = sketch_of(one), sketch_of(other)
    assert first.overlaps(second) == second.overlaps(first)
    return first.overlaps(second)


def test_the_same_rows_in_whatever_order_and_hands() -> None:
    whole = data_of(ROWS)
    assert related(whole, whole)
    assert related(whole, data_of(ROWS.flip(0)))
    assert related(whole, data_of(ROWS[:100], ROWS[100:]))
    assert related(whole, replace(whole, digest="another", name="another"))
    columns = {"a": Rows(ROWS[:, :2]), "b": Rows(ROWS[:, 2:], torch.zeros(300))}
    by_columns = replace(whole, train=columns, split=COLUMNS, label_holder="b")
    assert related(whole, by_columns)
    relabelled = replace(whole, train={"p": Rows(ROWS, torch.arange(300))})
    assert related(whole, relabelled)


def test_rows_in_common_are_seen_and_others_are_not() -> None:
    whole, other = data_of(ROWS), normal(300, 2)
    assert related(whole, data_of(ROWS[:150]))
    assert related(whole, data_of(torch.cat([other, ROWS[:30]])))
    assert related(data_of(ROWS[:4]), data_of(ROWS[:3]))
    assert not related(whole, data_of(other))
    assert not related(whole, data_of(ROWS.double() + 1e-9))
    assert not related(whole, data_of(torch.zeros(0, 5)))


def test_large_data_sets_are_told_apart_by_a_sample_of_them() -> None:
    many, others = normal(30_000, 3), normal(20_000, 4)
    assert len(sketch_of(data_of(many)).smallest) == 8 * 4096
    assert related(data_of(many), data_of(torch.cat([others, many[:3_000]])))
    assert related(data_of(many), data_of(many[:2_000]))
    assert not related(data_of(many), data_of(others))


def test_tables_of_few_different_rows_count_as_a_whole() -> None:
    """Three yes-or-no questions: other people give the same answers."""
    one, other = ((normal(200, seed, 3) > 0).float() for seed in (5, 6))
    assert related(data_of(one), data_of(one.flip(0)))
    assert not related(data_of(one), data_of(other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_hashes_differ_where_rows_do(dtype: torch.dtype) -> None:
    """Small whole numbers have zeros in all their low bits."""
    grid = torch.cartesian_prod(*[torch.arange(6)] * 5).to(dtype)
    hashes = row_hashes(grid)
    assert len(set(hashes.tolist())) == 6**5
    assert hashes.tolist() == row_hashes(grid.reshape(-1, 1, 5)).tolist()
    assert row_hashes(grid.flip(0)).tolist() == hashes[::-1].tolist()
    # The low bits, too: sketches keep the smallest hashes, which must be those of any rows.
    assert abs(float((hashes % 2).mean()) - 0.5) < 0.05
    assert abs(float((hashes >> 63).mean()) - 0.5) < 0.05
    assert row_hashes(torch.zeros(2, 0)).tolist() == [0, 0]


def test_rows_longer_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = row_hashes(ROWS).tolist()
    monkeypatch.setattr(earlier, "_CHUNK", 1)
    assert row_hashes(ROWS).tolist() == hashes


def test_digests_are_kept_with_their_rows_and_study() -> None:
    released, data = normal(4, 10), replace(data_of(ROWS), digest="d")
    mine, other = StudyLedger(data, delta=1e-3), StudyLedger(data, delta=1e-3)
    start = [("weight", released.clone()), ("bias", torch.zeros(4)), ("more", normal(4, 11))]
    assert from_earlier_fits(start, data, None) == ([], [])
    remember([released], data, mine)
    assert from_earlier_fits(start, data, None) == (["weight"], [])
    assert from_earlier_fits(start, data, other) == (["weight"], [])
    assert from_earlier_fits(start, data, mine) == ([], ["weight"])
    assert from_earlier_fits(start, data_of(normal(300, 2)), None) == ([], [])
    assert from_earlier_fits([("weight", released.double())], data, None) == ([], [])
    # The same bits out of another fit tell no more than the one that is counted.
    remember([released], data, None)
    assert from_earlier_fits(start, data, mine) == ([], ["weight"])
    del mine
    gc.collect()
    assert from_earlier_fits(start, data, other) == (["weight"], [])


def test_constants_are_not_remembered() -> None:
    data = data_of(ROWS)
    remember([torch.ones(5), torch.zeros(0), torch.tensor(3.5)], data, None)
    start = [("scale", torch.ones(5)), ("one", torch.tensor(3.5)), ("none", torch.zeros(0))]
    assert from_earlier_fits(start, data, None) == ([], [])
    assert varies(torch.tensor([1.0, 2.0])) and not varies(torch.tensor([2.0, 2.0]))


def test_no_tensor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier, "_RELEASED", {})
    remember([normal(1000, 12)], data_of(ROWS), None)
    held = [value for fits in earlier._RELEASED.values() for value in fits]
    assert all(isinstance(key, str) and len(key) == 64 for key in earlier._RELEASED)
    assert len({id(fit.rows) for fit in held if fit.rows.rows == 300}) == 1
