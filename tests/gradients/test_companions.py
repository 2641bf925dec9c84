"""Batches in which rows have other companions: who is kept stays as it was."""

import pytest
import torch
from torch import Tensor

from privtrain.core.task import Rows
from privtrain.gradients.companions import Change, changes, copies, groups, made_up, shortest


def batch(count: int, *, tokens: bool = False) -> tuple[Rows, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    inputs[:, 3] = torch.randint(5, (count,), generator=generator).float()
    if tokens:
        inputs = inputs.long().abs()
    targets = torch.randint(3, (count,), generator=generator)
    return Rows(inputs, targets), torch.rand(count, generator=generator)


def made(count: int, *, tokens: bool = False) -> tuple[Rows, list[Change]]:
    rows, losses = batch(count, tokens=tokens)
    return rows, list(changes(rows, losses, 3))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 17, 64])
def test_rows_that_are_kept_are_what_they_were(count: int, tokens: bool) -> None:
    rows, others = made(count, tokens=tokens)
    for change in others:
        kept = change.identities < count
        assert bool(kept.any())
        assert len(set(change.identities.tolist())) == len(change.rows)
        before = rows.take(change.identities[kept])
        assert torch.equal(change.rows.inputs[kept], before.inputs)
        assert torch.equal(change.rows.labels[kept], before.labels)


def test_companions_places_and_their_number_change() -> None:
    rows, others = made(64)
    assert [change.name for change in others] == [
        *["other companions"] * 3,
        "one row fewer",
        "other places",
    ]
    same, few, loud, fewer, elsewhere = others
    assert [len(change.rows) for change in others] == [64, 64, 64, 63, 63]
    for change, count in ((same, 32), (few, 3), (loud, 32)):
        assert int((change.identities < 64).sum()) == count
    assert len(same.rows.inputs[same.identities >= 64].unique(dim=0)) == 1
    assert bool(((same.identities < 64) ^ (loud.identities < 64)).all()), "each half is kept once"
    copied = same.rows.inputs[same.identities >= 64][0, :3].abs().max()
    assert float(few.rows.inputs.abs().max()) == pytest.approx(1000 * float(copied))
    assert float(loud.rows.inputs.abs().max()) > 3 * float(rows.inputs.abs().max())
    assert fewer.identities.tolist() == sorted(fewer.identities.tolist())
    assert elsewhere.identities.tolist() != sorted(elsewhere.identities.tolist())


def test_the_rows_with_the_largest_loss_and_input_are_removed() -> None:
    rows, losses = batch(20)
    rows.inputs[5] *= 100
    losses[7] = 9
    *_, fewer, elsewhere = changes(rows, losses, 3)
    assert {*range(20)} - {*fewer.identities.tolist()} == {7}
    assert {*range(20)} - {*elsewhere.identities.tolist()} == {5}
    one, other, every, stay = groups(rows, losses)
    assert bool((one ^ other).all())
    assert bool(every.all())
    assert (~stay).nonzero().flatten().tolist() == [5, 7]


def test_made_up_rows_keep_categories_and_classes() -> None:
    rows, others = made(64)
    loud = others[2].rows
    assert {*loud.inputs[:, 3].tolist()} <= {*rows.inputs[:, 3].tolist()}
    assert int(loud.labels.max()) < 3
    zeros = Rows(rows.inputs, torch.zeros(64, dtype=torch.int64))
    of_zeros = list(changes(zeros, torch.rand(64), 3))[2].rows
    assert {*of_zeros.labels.tolist()} == {0, 1}, "where targets are unknown, other ones are tried"
    values = Rows(rows.inputs, torch.zeros(64))
    assert {*list(changes(values, torch.rand(64), 1))[2].rows.labels.tolist()} == {0.0, 1.0}


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 17])
def test_made_up_rows_stand_beside_rows_as_they_were(count: int, tokens: bool) -> None:
    rows, losses = batch(count, tokens=tokens)
    change = made_up(rows, losses)
    kept = change.identities < count
    assert bool(kept[shortest(rows)])
    assert int((~kept).sum()) == min(4, count - 1)
    assert torch.equal(change.rows.inputs[kept], rows.inputs[kept])
    if count == 17:
        small, large, *padded = change.rows.inputs[~kept]
        assert float(small.double().sum()) <= float(rows.inputs.double().sum(dim=1).min())
        assert float(large.double().sum()) >= float(rows.inputs.double().sum(dim=1).max())
        behind, in_front = padded
        assert behind[2:].tolist() == in_front[:-2].tolist() == [0, 0]
        assert bool(behind[:2].any() or in_front[2:].any())


def test_a_row_among_copies_of_itself() -> None:
    rows, _ = batch(8)
    alike = copies(rows, 5)
    assert torch.equal(alike.rows.inputs, rows.inputs[5].expand(8, 4))
    assert alike.identities.tolist() == [8, 9, 10, 11, 12, 5, 14, 15]


def test_the_shortest_row_is_the_one_with_most_padding() -> None:
    words = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 1], [9, 1, 1, 1], [2, 3, 4, 1]])
    rows = Rows(words, torch.zeros(4, dtype=torch.int64))
    assert shortest(rows) == 2
    *_, elsewhere = changes(rows, torch.tensor([0.0, 9.0, 0.0, 0.0]), 2)
    assert {*range(4)} - {*elsewhere.identities.tolist()} == {0}, "the longest is removed"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.bool, torch.bfloat16])
def test_rows_of_any_type_have_companions(dtype: torch.dtype) -> None:
    rows, losses = batch(8)
    typed = Rows(rows.inputs.abs().to(dtype), rows.labels)
    assert len(list(changes(typed, losses, 3))) == 5
    assert made_up(typed, losses).rows.inputs.dtype is dtype
    lines = Rows(torch.randn(8), rows.labels)
    assert made_up(lines, losses).rows.inputs.shape == (8,)
