from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import to_vector, trainable
from privtrain.core.runtime import Party, Payload
from privtrain.core.task import binary_cross_entropy
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import (
    Node,
    Probabilities,
    sigmoid,
    softmax,
    step,
    trained,
    translate,
)
from privtrain.mpc.ring64.engine import Ring64
from tests.mpc.federations import CLASSES, FEATURES
from tests.mpc.models import (
    PICTURE,
    Residual,
    SmallResNet,
    convolutional,
    drawn,
    made,
    pooled,
    stepped,
)
from tests.mpc.one_party import OpenSession
from tests.mpc.ring64.mesh import run
from tests.mpc.ring64.test_session import shared


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)), "Tanh"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)), "BatchNorm"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU()), "must end in nn.Linear"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.Flatten(0), nn.Linear(4, 4)), "Flatten"),
        (nn.ReLU(), "must end in nn.Linear"),
    ],
)
def test_layers_that_cannot_be_trained_on_shares_are_named(model: nn.Module, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        translate(model)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.first(rows))  # type: ignore[no-any-return]


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(self.layer(rows))  # type: ignore[no-any-return]


class Spare(nn.Module):
    """A weight that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Tied(), "'second' .* the weights of 'first'"),
        (Twice(), "'layer' .* the weights of 'layer'"),
        (Spare(), r"parameter 'spare\.weight' is trained, and no layer"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "computes its weights"),
    ],
)
def test_weights_that_are_not_one_layers_own_are_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        translate(model)


def test_a_frozen_layer_may_run_twice() -> None:
    assert len(translate(nn.Sequential(Twice().requires_grad_(False), nn.Linear(3, 2)))) == 3


def test_weights_are_opened_in_the_order_of_the_models_parameters() -> None:
    model = made(Residual)
    layers = [node.open(OpenSession()) for node in translate(model)]
    assert [layer.node.name for layer in layers][:2] == ["first", "model"]
    for found, wanted in zip(trained(layers), trainable(model), strict=True):
        assert torch.equal(found, wanted)


@dataclass(frozen=True)
class OneStep:
    """One step of a model on shares under a dealer; opens the weights."""

    nodes: tuple[Node, ...]
    rows: Tensor
    targets: Tensor
    probabilities: Probabilities = softmax

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            layers = [node.open(session) for node in self.nodes]
            x, y = shared(session, party, self.rows, 0), shared(session, party, self.targets, 1)
            descent = Descent(0.5 / len(self.rows), 0.5)
            step(session, layers, x, y, descent, self.probabilities)
            opened = session.reveal(trained(layers), kind="weight share")
        return {"weights": torch.cat([weight.reshape(-1) for weight in opened])}


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Residual, (6,)), (SmallResNet, PICTURE), (convolutional, PICTURE), (pooled, PICTURE)],
)
def test_a_step_under_a_dealer_equals_float64(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    rows, labels = drawn(8, *shape), torch.arange(8) % 3
    model, one_hot = made(make), nn.functional.one_hot(labels, 3).double()
    wanted = stepped(model, rows, lambda z: nn.functional.cross_entropy(z, labels), 0.5)
    ran = run(OneStep(translate(model), rows, one_hot), 2)
    for name in ("computing-0", "computing-1"):
        assert float((ran.payloads[name]["weights"] - wanted).abs().max()) < 1e-4
    assert float((wanted - to_vector(trainable(model))).abs().max()) > 0.01


def test_a_step_on_one_logit_under_a_dealer_equals_float64() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)))
    rows, labels = drawn(8, 6), (torch.arange(8) % 2).double()
    wanted = stepped(model, rows, lambda z: binary_cross_entropy(z, labels).mean(), 0.5)
    ran = run(OneStep(translate(model), rows, labels.reshape(8, 1), sigmoid), 2)
    for name in ("computing-0", "computing-1"):
        assert float((ran.payloads[name]["weights"] - wanted).abs().max()) < 1e-4
    assert float((wanted - to_vector(trainable(model))).abs().max()) > 0.01


def hooked(place: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    if place == "backward":
        model[2].register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 2,))
    elif place == "forward":
        # Made-up rows do not show it.
        model[0].register_forward_hook(lambda layer, inputs, outputs: outputs.clamp(max=1e6))
    else:
        model[1].forward = lambda rows: rows.clamp(0, 1e6)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("place", ["forward", "backward", "replaced"])
def test_hooks_are_refused_whatever_made_up_rows_show(place: str) -> None:
    with pytest.raises(UnsupportedError, match="has a hook or a forward of its own"):
        translate(hooked(place))


class Clamps(nn.Module):
    """Writes into a value, and drops what the call returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.first(rows)
        hidden.clamp_(-1e6, 1e6)
        outputs: Tensor = self.last(hidden.relu())
        return outputs


def test_a_call_whose_result_is_dropped_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"clamp_.* which writes into a value"):
        translate(Clamps())
