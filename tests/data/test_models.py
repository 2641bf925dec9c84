"""Model factories pickle with plain pickle, and have the sizes that are published."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privtrain.data import CNN, MLP, LogisticRegression
from privtrain.data.models import Model, chosen_model, default_model, input_type


def parameters(factory: Callable[[], nn.Module]) -> int:
    return sum(parameter.numel() for parameter in factory().parameters())


@pytest.mark.parametrize(
    ("factory", "shape", "size"),
    [
        (MLP((64, 64, 10)), (64,), 4_810),
        (MLP((64, 32, 10)), (64,), 2_410),
        (LogisticRegression(30, 2), (30,), 62),
        (CNN(), (1, 28, 28), 26_010),
        (MLP((12, 5, 3), torch.float64, flatten=True), (3, 4), 83),
        (LogisticRegression(12, 3, torch.float64, flatten=True), (3, 4), 39),
    ],
)
def test_shapes_and_sizes(
    factory: MLP | LogisticRegression | CNN, shape: tuple[int, ...], size: int
) -> None:
    model = pickle.loads(pickle.dumps(factory))()
    logits = model(torch.zeros(2, *shape, dtype=factory.dtype))
    classes = factory.sizes[-1] if isinstance(factory, MLP) else factory.classes
    assert logits.shape == (2, classes)
    assert logits.dtype == factory.dtype
    assert parameters(factory) == size


def test_the_last_layer_is_linear() -> None:
    assert isinstance(MLP((4, 3, 2))()[-1], nn.Linear)
    assert len(LogisticRegression(4, 2)()) == 1


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"sizes=\(4,\)"):
        MLP((4,))
    with pytest.raises(ValueError, match=r"sizes=\(4, 0, 2\)"):
        MLP((4, 0, 2))


def test_the_default_follows_the_shape() -> None:
    assert default_model((30,), 2, torch.float32) == LogisticRegression(30, 2)
    assert default_model((64,), 10, torch.float32) == MLP((64, 64, 10))
    images = default_model((1, 8, 8), 10, torch.float64)
    assert images == MLP((64, 64, 10), torch.float64, flatten=True)
    assert images()(torch.zeros(3, 1, 8, 8, dtype=torch.float64)).shape == (3, 10)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)),
        nn.LazyLinear(2),
        lambda: nn.Linear(3, 2, device="meta"),
    ],
)
def test_a_model_without_values_is_refused_when_data_are_loaded(model: Model) -> None:
    with pytest.raises(ValueError, match="Give lazy layers their widths"):
        chosen_model(model, torch.zeros(5, 3), 2)


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))


class Padded(nn.Module):
    """Fails on rows of nothing but padding, as torch's encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 0).all()):
            raise RuntimeError("nothing is left")
        out: Tensor = self.table(x).mean(dim=1)
        return out


def test_whole_numbers_stay_where_the_model_takes_no_others() -> None:
    whole, floats = torch.int64, torch.float32
    for model in (embedding, embedding(), Padded):
        assert input_type(model, (3,), None, True) == whole
        assert input_type(model, (3,), None, False) == floats
    for model in (None, lambda: nn.Linear(3, 2), lambda: nn.Linear(4, 2), lambda: None):
        assert input_type(model, (3,), None, True) == floats  # type: ignore[arg-type]
    assert input_type(None, (3,), torch.float64, True) == torch.float64
    for dtype in (torch.int32, torch.float16, torch.bool):
        with pytest.raises(ValueError, match=f"dtype={dtype}"):
            input_type(None, (3,), dtype, True)
    assert chosen_model(Padded, torch.zeros(2, 3, dtype=whole), 2) is Padded
    with pytest.raises(ValueError, match=r"give dtype=torch.int64, without a scale"):
        chosen_model(embedding, torch.zeros(2, 3), 2)
