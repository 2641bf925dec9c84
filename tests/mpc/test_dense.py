"""Layers of flat rows against autograd in float64, on the session of one party."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.task import Rows, binary_cross_entropy
from privtrain.mpc.dense import Descent, Linear, ReLU
from privtrain.mpc.descent import encoded
from privtrain.mpc.layers import sigmoid, step, trained, translate
from privtrain.mpc.sharing import decode
from tests.mpc.models import FLAT, drawn, made, stepped
from tests.mpc.one_party import OpenSession

TARGETS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("make", FLAT)
def test_steps_are_those_of_autograd(make: Callable[[], nn.Module]) -> None:
    model, rows, session = made(make), drawn(4, 6), OpenSession()
    layers = [node.open(session) for node in translate(model)]
    one_hot = nn.functional.one_hot(TARGETS, 3).double()
    for _ in range(3):
        step(session, layers, rows, one_hot, Descent(0.5 / 4, 0.5))
    found = torch.cat([weight.reshape(-1) for weight in trained(layers)])
    wanted = stepped(model, rows, lambda z: nn.functional.cross_entropy(z, TARGETS), 0.5, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert float((wanted - stepped(model, rows, lambda z: z.sum() * 0, 0.5)).abs().max()) > 0.01


def test_what_a_layer_computes_in_plaintext() -> None:
    linear = Linear(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]), (True, False))
    rows = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    assert linear.plain(rows).tolist() == [[-2.5]]
    assert linear.product(rows).tolist() == [[-3.0]]
    assert linear.learns
    assert not ReLU().learns


@pytest.mark.parametrize("floating", [False, True])
def test_steps_on_one_logit_are_those_of_autograd(floating: bool) -> None:
    model, rows, session = made(lambda: nn.Linear(6, 1)), drawn(4, 6), OpenSession()
    labels = torch.tensor([0, 1, 1, 0])
    given = labels.double().reshape(4, 1) if floating else labels
    layers = [node.open(session) for node in translate(model)]
    ((_, targets),) = list(encoded(Rows(rows, given), "a", 1, labels=True))[1:]
    step(session, layers, rows, decode(targets), Descent(0.5 / 4, 0.5), sigmoid)
    found = torch.cat([weight.reshape(-1) for weight in trained(layers)])
    wanted = stepped(model, rows, lambda z: binary_cross_entropy(z, given).mean(), 0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("labels", [torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.0, 0.5])])
def test_labels_of_one_logit_are_0_or_1_one_a_row(labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"labels of a of shape .* to be 0 or 1, one a row"):
        list(encoded(Rows(drawn(2, 6), labels), "a", 1, labels=True))
