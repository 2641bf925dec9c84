"""What is computed for many models side by side is what each computes alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from privtrain.steps import tables
from privtrain.steps.tables import Products, Table, Weight


def test_a_table_holds_each_batch_at_a_place_of_its_own() -> None:
    table = Table((3, 0, 16))
    index = table.index([torch.tensor([7, 8, 9]), torch.arange(16)])
    assert index.tolist() == [7, 8, 9, *[7] * 13, *range(16)]
    parts = table.split(index)
    assert [part.tolist() for part in parts] == [[7, 8, 9], [], list(range(16))]
    assert [part.tolist() for part in table.split(table.joined(parts))] == [
        part.tolist() for part in parts
    ]
    shares = table.shares(torch.zeros(1))
    assert shares[:3].tolist() == [float(torch.tensor(1 / 3))] * 3
    assert float(shares[3:16].abs().sum()) == 0
    assert tables._ALIGNED * 4 % 64 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_their_gradients_have_the_bits_of_a_linear_layer(
    dtype: torch.dtype, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    table = Table((5, 1, 0, 32))
    weights, biases = [drawn(3, 5) for _ in range(4)], [drawn(3) for _ in range(4)]
    weight, bias = Weight(weights), Weight(biases) if biased else None
    inputs = [drawn(size, 5) for size in table.sizes]
    value = table.joined(inputs).requires_grad_()
    made = Products.apply(value, weight.store, weight, bias, table)  # type: ignore[no-untyped-call]
    given = [drawn(size, 3) for size in table.sizes]
    made.backward(table.joined(given))
    assert value.grad is not None and weight.store.grad is weight.gradient
    by_value, outputs = table.split(value.grad), table.split(made)
    for number, (own, out) in enumerate(zip(inputs, outputs, strict=True)):
        if not len(own):
            continue
        own, w = own.clone().requires_grad_(), weights[number].clone().requires_grad_()
        b = biases[number].clone().requires_grad_() if biased else None
        alone = functional.linear(own, w, b)
        alone.backward(given[number])  # type: ignore[no-untyped-call]
        assert torch.equal(alone, out) and torch.equal(own.grad, by_value[number])  # type: ignore[arg-type]
        assert torch.equal(w.grad, weight.gradients[number])  # type: ignore[arg-type]
        if bias is not None and b is not None:
            assert torch.equal(b.grad, bias.gradients[number])  # type: ignore[arg-type]


def test_weights_lie_side_by_side_and_are_seen_by_views() -> None:
    weight = Weight([torch.full((3, 5), float(number)) for number in range(2)])
    assert weight.store.shape == (2, 16) and float(weight.store.detach()[1].sum()) == 15.0
    weight.store.data.add_(1)
    assert bool((weight.each[1] == 2).all()) and bool((weight.turned[0] == 1).all())
    views = weight.views()
    (views[0].sum() + 2 * views[1].sum()).backward()
    assert weight.store.grad is not None
    assert weight.store.grad[:, :15].unique(dim=1).flatten().tolist() == [1.0, 2.0]
    assert float(weight.store.grad[:, 15:].abs().sum()) == 0
