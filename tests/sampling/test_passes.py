"""Passes over rows hold every row once an epoch."""

import pytest
import torch

from privtrain.sampling.passes import batches


@pytest.mark.parametrize(("rows", "size"), [(11, 4), (12, 4), (3, 4), (1, 1), (7, 1)])
def test_every_epoch_holds_every_row_once(rows: int, size: int) -> None:
    found = list(batches(rows, size, 3, torch.Generator().manual_seed(0)))
    full = [torch.arange(rows) if index is None else index for index in found]
    assert len(full) == 3 * -(-rows // size)
    per_epoch = len(full) // 3
    for epoch in range(3):
        seen = torch.cat(full[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert torch.equal(seen.sort().values, torch.arange(rows))
    assert all(len(index) <= size for index in full)


def test_epochs_have_orders_of_their_own() -> None:
    found = [i for i in batches(64, 32, 2, torch.Generator().manual_seed(0)) if i is not None]
    assert not torch.equal(found[0], found[2])


def test_all_rows_stay_in_their_own_order() -> None:
    assert list(batches(9, None, 2, torch.Generator())) == [None, None]
    assert list(batches(9, 9, 1, torch.Generator())) == [None]


@pytest.mark.parametrize(
    ("rows", "size", "lengths"),
    [(10, 9, [10]), (10, 3, [3, 3, 4]), (11, 3, [3, 3, 3, 2]), (4, 1, [1] * 4), (3, 2, [3])],
)
def test_a_row_that_must_not_be_alone_joins_the_batch_before(
    rows: int, size: int, lengths: list[int]
) -> None:
    found = batches(rows, size, 1, torch.Generator().manual_seed(0), alone=False)
    index = [i for i in found if i is not None]
    assert [len(i) for i in index] == lengths
    assert torch.cat(index).sort().values.tolist() == list(range(rows))
    usual = [i for i in batches(rows, size, 1, torch.Generator().manual_seed(0)) if i is not None]
    assert torch.equal(torch.cat(index), torch.cat(usual))
