"""Whatever is made of forms, its MACs are the keys times its value, and its check is of these."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.mpc.spdz2k.forms import MOST_COLUMNS, Form, Product, times
from tests.mpc.spdz2k.shared_forms import Dealer, check_laws

Law = Callable[[Any], Any]

PUBLIC = torch.tensor([[3, -7, 2**63 - 1, 0, 11]])
PICKED = torch.tensor([2, 0, 2])
MATRIX = torch.arange(-10, 10).reshape(5, 4) * 2**40 + 1

# On a form, and on the value itself.
UNARY: dict[str, tuple[Law, Law]] = {
    "minus": (lambda x: -x, lambda x: -x),
    "times an integer": (lambda x: x * -40503, lambda x: x * -40503),
    "times public": (lambda x: x * PUBLIC, lambda x: x * PUBLIC),
    "times a public number": (lambda x: x * torch.tensor(7), lambda x: x * 7),
    "shifted left": (lambda x: x << 13, lambda x: x << 13),
    "plus public": (lambda x: x.shifted(PUBLIC), lambda x: x + PUBLIC),
    "plus a public row": (lambda x: x.shifted(PUBLIC[0]), lambda x: x + PUBLIC[0]),
    "plus a public number": (lambda x: x.shifted(torch.tensor(1 << 42)), lambda x: x + (1 << 42)),
    "minus, plus public": (lambda x: (-x).shifted(PUBLIC), lambda x: PUBLIC - x),
    "rows": (lambda x: x[1:, ::2], lambda x: x[1:, ::2]),
    "picked rows": (lambda x: x[PICKED], lambda x: x[PICKED]),
    "picked pairs": (lambda x: x[PICKED, PICKED], lambda x: x[PICKED, PICKED]),
    "picked pairs apart": (
        lambda x: x[:, None][PICKED, :, PICKED],
        lambda x: x[:, None][PICKED, :, PICKED],
    ),
    "one row": (lambda x: x[1], lambda x: x[1]),
    "one value": (lambda x: x[1, 2], lambda x: x[1, 2]),
    "transposed": (lambda x: x.t(), lambda x: x.t()),
    "dimensions exchanged": (lambda x: x.transpose(0, -1), lambda x: x.transpose(0, -1)),
    "another shape": (lambda x: x.reshape(5, -1), lambda x: x.reshape(5, -1)),
    "flat": (lambda x: x.reshape((-1,)), lambda x: x.reshape(-1)),
    "sum over rows": (lambda x: x.sum(0), lambda x: x.sum(0)),
    "sum over columns": (lambda x: x.sum(-1, keepdim=True), lambda x: x.sum(-1, keepdim=True)),
    "times a matrix": (lambda x: x @ MATRIX, lambda x: x @ MATRIX),
    "a matrix times it": (lambda x: times(MATRIX[:3, :4], x), lambda x: MATRIX[:3, :4] @ x),
}


def both_of(dealer: Dealer, kind: str, rows: int = 4) -> tuple[tuple[Form, Form], Tensor]:
    """Forms of a matrix with five columns, and the matrix."""
    if kind == "dealt":
        value = dealer.drawn(rows, 5)
        return dealer.deal(value), value
    x, y = dealer.drawn(rows, 3), dealer.drawn(3, 5)
    both, value = dealer.product(x, y), x @ y
    if kind == "product with a bias":
        bias = dealer.drawn(5)
        added = dealer.deal(bias)
        return (both[0] + added[0], both[1] + added[1]), value + bias
    return both, value


KINDS = ("dealt", "product", "product with a bias")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNARY)
def test_operations_on_one_form(name: str, kind: str) -> None:
    dealer = Dealer()
    both, value = both_of(dealer, kind)
    check_laws(dealer, both, value)
    on_form, on_value = UNARY[name]
    check_laws(dealer, (on_form(both[0]), on_form(both[1])), on_value(value))


BINARY: dict[str, Law] = {
    "sum": lambda one: lambda two: one + two,
    "difference": lambda one: lambda two: one - two,
    "difference the other way": lambda one: lambda two: two - one,
    "scaled, then a sum": lambda one: lambda two: one * 3 + two,
    "a sum, then scaled": lambda one: lambda two: (one + two) * -5,
    "two sums": lambda one: lambda two: ((one << 3) + two) + (two << 1),
    "a negated sum": lambda one: lambda two: -(one - two),
    "of two views": lambda one: lambda two: (one + two)[1:, :2] - (one - two)[:-1, 3:],
}
SHAPES = [(4, 5), (5,), (1, 5), (4, 1), (1, 1), (), (1,), (2, 4, 5), (3, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_operations_on_two_forms_of_any_shapes(kind: str, shape: tuple[int, ...]) -> None:
    for name, law in BINARY.items():
        if name == "of two views" and len(shape) > 2:
            continue
        dealer = Dealer()
        both, value = both_of(dealer, kind)
        other = dealer.drawn(*shape)
        pair = dealer.deal(other)
        made = [law(one)(two) for one, two in zip(both, pair, strict=True)]
        check_laws(dealer, (made[0], made[1]), law(value)(other))


def test_a_product_and_a_product() -> None:
    dealer = Dealer()
    (one, value), (two, other) = both_of(dealer, "product"), both_of(dealer, "product with a bias")
    check_laws(dealer, (one[0] + two[0], one[1] + two[1]), value + other)
    check_laws(dealer, (one[0] - two[0], one[1] - two[1]), value - other)


@pytest.mark.parametrize("shape", [(10,), (1, 10), (128, 1), (), (128, 10)])
def test_biases_leave_the_product_one_that_is_checked_by_its_rows(shape: tuple[int, ...]) -> None:
    dealer = Dealer()
    x, y, bias, mask = (dealer.drawn(*size) for size in ((128, 7), (7, 10), shape, (128, 10)))
    both = dealer.product(x, y)
    made = [
        ((one + added) * 3 + cover).shifted(torch.tensor(1 << 42))
        for one, added, cover in zip(both, dealer.deal(bias), dealer.deal(mask), strict=True)
    ]
    assert all(isinstance(each, Product) for each in made)
    check_laws(dealer, (made[0], made[1]), (x @ y + bias) * 3 + mask + (1 << 42))


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((), 1),
        ((1,), 1),
        ((300,), 300),
        ((300, 2), 300),
        ((2, MOST_COLUMNS), 2),
        ((2, MOST_COLUMNS + 1), 2 * (MOST_COLUMNS + 1)),
        ((3, 2, 4), 3),
    ],
)
def test_no_check_vector_is_long_and_none_of_a_flat_tensor(
    shape: tuple[int, ...], rows: int
) -> None:
    dealer = Dealer()
    value = dealer.drawn(*shape)
    both = dealer.deal(value)
    assert both[0].rows == rows
    check_laws(dealer, both, value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_mac_of_any_entry_and_key_is_seen(kind: str) -> None:
    dealer = Dealer()
    both, value = both_of(dealer, kind, rows=2)
    for key in range(3):
        for entry in range(value.numel()):
            words = both[0].words.clone()
            words[1 + key].view(-1)[entry] += 1 << 63
            with pytest.raises(AssertionError):
                check_laws(dealer, (both[0].like(words), both[1]), value)


def test_the_dealer_has_values_alone() -> None:
    unit = torch.zeros(1).long()
    value = torch.arange(6).reshape(1, 2, 3)
    form = Form(value, unit)
    assert torch.equal(form.shifted(torch.tensor(5)).share, value[0])
    assert torch.equal((form.t() @ torch.ones(2, 1).long()).share, value[0].sum(0).unsqueeze(1))
    assert torch.equal((form + form[0]).share, value[0] + value[0, 0])
