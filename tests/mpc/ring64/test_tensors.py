"""What values remember of their openings and truncations, without a mesh."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.tensors import Ring64Tensor, as_public
from privtrain.mpc.ring64.wires import Compute

SHARE = torch.arange(12).view(3, 4)


@dataclass
class Alone:
    """The wires of one party that holds values alone, and counts what it opens."""

    opened: list[tuple[int, ...]] = field(default_factory=list)
    leader: bool = True
    deals: bool = False

    def random(self, shape: Sequence[int]) -> Tensor:
        return torch.full(tuple(shape), 1000)

    def dealt(self, compute: Compute, shape: Sequence[int], *, bits: int = 64) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def dealt_bytes(self, compute: Compute, shape: Sequence[int]) -> Tensor:
        raise AssertionError(shape)

    def open(self, shares: Sequence[Tensor], *, kind: str = "") -> list[Tensor]:
        self.opened += [tuple(share.shape) for share in shares]
        return list(shares)

    def announce(self, values: Tensor) -> list[Tensor]:
        raise AssertionError(values)

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        raise AssertionError(owner)


def opened_by(wires: Alone, value: Ring64Tensor) -> tuple[Tensor, Tensor]:
    return Ring64Session(wires).masked(value)


@pytest.fixture
def wires() -> Alone:
    return Alone()


def value_of(wires: Alone, bits: int = 16) -> Ring64Tensor:
    return Ring64Tensor(SHARE, Ring64Session(wires), bits)


def test_views_of_an_opened_value_keep_its_opening(wires: Alone) -> None:
    value = value_of(wires)
    opened_by(wires, value)
    for view in (
        value[1:, ::2],
        value.t(),
        value.reshape(2, 6),
        value.t()[2],
        value.transpose(0, 1).reshape(12),
    ):
        masked, mask = opened_by(wires, view)
        assert torch.equal(masked, view.share + 1000)
        assert torch.equal(mask, torch.full(view.shape, 1000))
    assert wires.opened == [(3, 4)]


def test_a_transposed_value_opens_the_value_itself(wires: Alone) -> None:
    value = value_of(wires)
    masked, _ = opened_by(wires, value.t())
    assert torch.equal(masked, SHARE.t() + 1000)
    opened_by(wires, value)
    assert wires.opened == [(3, 4)]


def test_a_part_of_a_value_is_opened_alone_but_for_inputs(wires: Alone) -> None:
    opened_by(wires, value_of(wires)[0])
    assert wires.opened == [(4,)]
    rows = Ring64Session(wires).take(SHARE)
    opened_by(wires, rows[torch.tensor([2, 0])])
    masked, _ = opened_by(wires, rows[torch.tensor([0])].t())
    assert wires.opened == [(4,), (3, 4)]
    assert torch.equal(masked, SHARE[:1].t() + 1000)


def test_joined_values_keep_their_openings(wires: Alone) -> None:
    first, second = value_of(wires), value_of(wires)
    opened_by(wires, first)
    opened_by(wires, Ring64Tensor.cat([first, second], 0))
    opened_by(wires, second)
    assert wires.opened == [(3, 4), (6, 4), (3, 4)]
    masked, _ = opened_by(wires, Ring64Tensor.cat([first, second], 1))
    assert torch.equal(masked, torch.cat([SHARE, SHARE], 1) + 1000)
    assert len(wires.opened) == 3


def test_values_with_other_points_are_joined_as_numbers(wires: Alone) -> None:
    joined = Ring64Tensor.cat([value_of(wires, 32), value_of(wires)], 0)
    assert joined.bits == 32
    assert torch.equal(joined.share, torch.cat([SHARE, SHARE << 16]))


def test_public_values_need_no_opening(wires: Alone) -> None:
    value = Ring64Session(wires).public(torch.ones(2, 3)).t()[1:]
    masked, mask = opened_by(wires, value)
    assert masked.tolist() == [[2**16, 2**16]] * 2
    assert not mask.any()
    assert wires.opened == []


def test_a_truncation_is_kept_for_the_value_and_its_views(wires: Alone) -> None:
    value = value_of(wires, 32)
    session = Ring64Session(wires)
    once = session.settled([value, value.t()])
    assert wires.opened == [(3, 4)]
    again = session.settled([value.t(), value.t().t()])
    assert wires.opened == [(3, 4)]
    assert all(narrow.bits == 16 for narrow in (*once, *again))
    # What one of them is opened as is known to the other one.
    opened_by(wires, once[1])
    opened_by(wires, again[1])
    assert wires.opened == [(3, 4), (3, 4)]


def test_sums_of_wide_values_do_not_leave_the_ring(wires: Alone) -> None:
    assert (value_of(wires, 32) + value_of(wires)).bits == 32
    assert wires.opened == []
    assert (value_of(wires, 46) - value_of(wires)).bits == 16
    assert wires.opened == [(3, 4)]


def test_public_operands() -> None:
    assert as_public(3)[1] == as_public(torch.tensor([3]))[1] == 0
    integers, bits = as_public(0.5)
    assert (int(integers), bits) == (2**15, 16)
    with pytest.raises(TypeError, match="values of ring64"):
        as_public([1, 2])  # type: ignore[arg-type]
