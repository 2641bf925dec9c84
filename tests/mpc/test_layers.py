import pytest
from torch import nn

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.layers import translate
from tests.mpc.federations import CLASSES, FEATURES


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)), "Tanh"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)), "BatchNorm"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU()), "must end in nn.Linear"),
        (nn.Sequential(nn.Linear(FEATURES, 4), nn.Flatten(), nn.Linear(4, 4)), "Flatten"),
        (nn.ReLU(), "must end in nn.Linear"),
    ],
)
def test_layers_that_cannot_be_trained_on_shares_are_named(model: nn.Module, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        translate(model)
