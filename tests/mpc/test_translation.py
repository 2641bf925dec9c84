"""A torch model against its layers on shares: what would be left out on shares is refused."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.mpc.layers import translate
from privtrain.mpc.translation import check_translation
from tests.mpc.models import FLAT, OfRows, made


class Overwrites(nn.Module):
    """A rectifier in place changes what is added afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, rows: Tensor) -> Tensor:
        values = self.first(rows)
        return self.head(nn.functional.relu(values, inplace=True) + values)  # type: ignore[no-any-return]


def test_a_model_that_computes_something_else_than_its_layers_is_refused() -> None:
    model = Overwrites()
    with pytest.raises(UnsupportedError, match="something else than its layers"):
        check_translation(model, translate(model), (6,))


def test_a_model_is_compared_with_its_layers() -> None:
    for make in FLAT:
        model = made(make)
        check_translation(model, translate(model), (6,))
        check_translation(model, translate(model), (7,))  # told where shares meet
    with pytest.raises(DataError, match=r"to take rows of shape \(2, 3\)"):
        check_translation(OfRows(), translate(OfRows()), (2, 3))


class Unrecorded(nn.Module):
    """Runs its first layer without gradients, which no forward pass shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.first(rows).relu()
        outputs: Tensor = self.last(hidden)
        return outputs


def hooked(register: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    getattr(model[0].weight, register)(lambda changed: None)
    return model


@pytest.mark.parametrize(
    "model",
    [Unrecorded(), hooked("register_hook"), hooked("register_post_accumulate_grad_hook")],
    ids=["no_grad", "hook", "late hook"],
)
def test_what_changes_a_gradient_alone_is_refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=r"use no hooks and no torch\.no_grad"):
        check_translation(model, translate(model), (6,))


class Trains(Unrecorded):
    """Runs another path while it is trained."""

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.first(rows)
        outputs: Tensor = self.last(hidden.relu() if self.training else hidden)
        return outputs


def test_a_model_is_followed_as_it_is_trained() -> None:
    model = Trains().eval()
    nodes = translate(model)
    assert [type(node.layer).__name__ for node in nodes] == ["Linear", "ReLU", "Linear"]
    check_translation(model, nodes, (6,))
    assert not any(module.training for module in model.modules())


class Broadcasts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.last = nn.Linear(6, 1), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.narrow(rows) + self.wide(rows))
        return outputs


def test_an_addition_that_broadcasts_is_refused() -> None:
    model = Broadcasts()
    with pytest.raises(UnsupportedError, match=r"'model' is of rows of shapes \(1,\) and \(8,\)"):
        check_translation(model, translate(model), (6,))


def test_a_model_of_another_type_than_the_rows_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).double()
    check_translation(model, translate(model), (6,))
    with pytest.raises(DataError, match=r"rows of shape \(6,\) and type torch\.float32"):
        check_translation(model, translate(model), (6,), torch.float32)


def test_weights_registered_in_another_order_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight
    with pytest.raises(UnsupportedError, match="weight come before its bias"):
        check_translation(model, translate(model), (6,))


def test_layers_frozen_in_part_are_what_they_compute() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    check_translation(model, translate(model), (6,))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    check_translation(model, translate(model), (6,))


def test_rows_without_channels_are_no_pictures() -> None:
    # Two rows of (5, 5) would be one picture of two channels.
    model = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(DataError, match=r"rows of shape \(5, 5\) to be pictures .*'0' \(Conv2d\)"):
        check_translation(model, translate(model), (5, 5))
    with pytest.raises(DataError, match=r"to take rows of shape \(1, 5, 5\)"):
        check_translation(model, translate(model), (1, 5, 5))
