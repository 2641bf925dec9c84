"""Layers of pictures against autograd in float64, on the session of one party."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.convolution import Windows
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import (
    check_engine,
    evaluated,
    sigmoid,
    softmax,
    step,
    takes_pictures,
    trained,
    translate,
)
from privtrain.mpc.pictures import AvgPool2d
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.translation import check_translation
from tests.mpc.models import (
    OF_PICTURES,
    PICTURE,
    SmallResNet,
    depthwise,
    drawn,
    made,
    stepped,
)
from tests.mpc.one_party import OpenSession
from tests.mpc.ring64.mesh import run
from tests.mpc.ring64.test_session import shared

TARGETS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("make", OF_PICTURES)
def test_steps_are_those_of_autograd(make: Callable[[], nn.Module]) -> None:
    model, rows, session = made(make), drawn(4, *PICTURE), OpenSession()
    layers = [node.open(session) for node in translate(model)]
    one_hot = nn.functional.one_hot(TARGETS, 3).double()
    for _ in range(3):
        step(session, layers, rows, one_hot, Descent(0.5 / 4, 0.5))
    found = torch.cat([weight.reshape(-1) for weight in trained(layers)])
    wanted = stepped(model, rows, lambda z: nn.functional.cross_entropy(z, TARGETS), 0.5, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert float((wanted - stepped(model, rows, lambda z: z.sum() * 0, 0.5)).abs().max()) > 0.01


@pytest.mark.parametrize("make", OF_PICTURES)
def test_what_the_layers_compute_in_plaintext(make: Callable[[], nn.Module]) -> None:
    model, rows = made(make), drawn(4, *PICTURE)
    nodes = translate(model)
    assert takes_pictures(nodes)
    *_, (_, _, outputs) = evaluated(nodes, rows)
    torch.testing.assert_close(outputs, model(rows))
    check_translation(model, nodes, PICTURE)


@dataclass(frozen=True)
class Pooled:
    """Sums of products of pictures, which are pooled in between or not; opens them."""

    kernel: tuple[int, int] | None

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            values = shared(session, party, drawn(2, *PICTURE), 0)
            values = values * values
            if self.kernel:
                pool = AvgPool2d(Windows(self.kernel, self.kernel)).open(session)
                values = pool.forward(session, values)
            return {"result": session.reveal([values * values], kind="result share")[0]}


@pytest.mark.parametrize(("kernel", "more"), [((2, 2), 0), ((3, 1), 1)])
def test_pooling_by_a_power_of_two_takes_no_round(kernel: tuple[int, int], more: int) -> None:
    ran, plain = run(Pooled(kernel)), functional.avg_pool2d(drawn(2, *PICTURE).square(), kernel)
    found = ran.payloads["computing-0"]["result"]
    assert float((found - plain.square()).abs().max()) < 2e-3
    assert ran.rounds() == run(Pooled(None)).rounds() + more


def test_pooling_is_that_of_torch() -> None:
    rows = drawn(2, *PICTURE)
    for pool, wanted in (
        (AvgPool2d(None), functional.adaptive_avg_pool2d(rows, 1)),
        (AvgPool2d(Windows((2, 3), (2, 1))), functional.avg_pool2d(rows, (2, 3), (2, 1))),
        (
            AvgPool2d(Windows((2, 2), (2, 2), (1, 1))),
            functional.avg_pool2d(rows, 2, padding=1),
        ),
    ):
        torch.testing.assert_close(pool.plain(rows), wanted)


def ending(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ending(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), r"'1' \(MaxPool2d"),
        (ending(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), r"'1' \(BatchNorm2d"),
        (ending(nn.Conv2d(2, 4, 3), nn.Dropout()), r"'1' \(Dropout"),
        (ending(nn.Conv2d(2, 4, 3, padding_mode="reflect", padding=1)), "other values than zeros"),
        (ending(nn.Conv2d(2, 4, 2, padding="same")), "more zeros at one side"),
        (ending(nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode=True"),
        (ending(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "count_include_pad"),
        (ending(nn.AdaptiveAvgPool2d(2)), r"'0' \(AdaptiveAvgPool2d"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(3, 2)), "put nn.Flatten in front"),
        (nn.Sequential(nn.Flatten(), nn.AvgPool2d(2), nn.Linear(3, 2)), "takes flat rows"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(3, 2)), r"'1' \(Flatten"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(1, 2), nn.Linear(3, 2)), r"'1' \(Flatten"),
        (nn.Sequential(nn.Conv2d(2, 4, 3)), "must end in nn.Linear"),
    ],
)
def test_layers_that_cannot_be_trained_on_shares_are_named(model: nn.Module, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        translate(model)


def test_an_engine_of_matrices_is_not_asked_for_convolutions() -> None:
    nodes = translate(made(OF_PICTURES[0]))
    check_engine(Ring64(), nodes, sigmoid)
    check_engine(CrypTen(), translate(nn.Linear(3, 2)), softmax)
    with pytest.raises(UnsupportedError, match=r"'stem' \(Conv2d\).* CrypTen.*engine=pt.Ring64"):
        check_engine(CrypTen(), nodes, softmax)
    with pytest.raises(UnsupportedError, match=r"binary_cross_entropy.* CrypTen.*engine=pt.Ring64"):
        check_engine(CrypTen(), translate(nn.Linear(3, 1)), sigmoid)


@dataclass
class Counts(OpenSession):
    """Counts bilinear functions."""

    count: int = 0

    def bilinear(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
    ) -> Tensor:
        self.count += 1
        return super().bilinear(function, left, right)


def test_no_gradient_is_computed_that_nobody_needs() -> None:
    # Forward, and the gradient of the weight; that of the inputs behind the stem.
    for make, products in ((SmallResNet, 3 + 3 + 2), (depthwise, 1)):
        session = Counts()
        layers = [node.open(session) for node in translate(made(make))]
        one_hot = nn.functional.one_hot(TARGETS, 3).double()
        step(session, layers, drawn(4, *PICTURE), one_hot, Descent(0.5, 0.0))
        assert session.count == products
