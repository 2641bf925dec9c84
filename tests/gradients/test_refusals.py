"""Models and losses that mix examples or keep what they saw are refused."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from tests.gradients.bookkeeping.cases import C, engine_of, equal, expected
from tests.gradients.loops import (
    mlp,
    rows_for,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


class Mixed(nn.Module):
    """Takes the mean of the batch from every example, before or behind the first layer."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.body, self.head, self.before = nn.Linear(6, 6), nn.Linear(6, 3), before

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x - x.mean(dim=0) if self.before else x)
        out: Tensor = self.head(x if self.before else x - x.mean(dim=0))
        return out


@pytest.mark.parametrize("before", [True, False])
def test_models_that_mix_examples_are_refused(before: bool) -> None:
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine_of(lambda: Mixed(before)).clipped_sum(rows_for(mlp), C)


class Added(nn.Module):
    """Another model plus a parameter that belongs to no layer."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.own = body, nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.own
        return out


def test_what_is_refused_is_refused_beside_a_parameter_without_a_formula() -> None:
    """One example at a time nothing is mixed, so that another function would be trained."""
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine_of(lambda: Added(Mixed(True))).clipped_sum(rows_for(mlp), C)
    with pytest.raises(UnsupportedError, match=r"buffer 'body\.mean'"):
        engine_of(lambda: Added(Counting())).clipped_sum(rows_for(mlp), C)


def test_losses_that_are_not_finite_count_as_zero() -> None:
    rows = rows_for(mlp)

    def shifted(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) + torch.where(targets == 1, torch.inf, 0.0)

    good = rows.take((rows.labels != 1).nonzero().squeeze(1))
    for make in (mlp, lambda: Added(mlp())):
        found = engine_of(make, shifted).clipped_sum(rows, C)
        equal(found, expected(make, good))
        assert found.non_finite == len(rows) - len(good)


def test_half_precision_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="float16"):
        BookKeeping().engine(mlp().half(), cross_entropy)


def test_losses_that_mix_examples_are_refused() -> None:
    def contrast(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits @ logits.mT, torch.arange(len(logits)))

    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine_of(mlp, contrast).clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize(
    ("reader", "read"), [(0, 1), (1, 0), (2, 0), (4, 6), (6, 4), (0, 6), (6, 0), (3, 5)]
)
def test_one_example_that_looks_at_one_other_is_found(reader: int, read: int) -> None:
    def peeking(logits: Tensor, targets: Tensor) -> Tensor:
        losses = cross_entropy(logits, targets)
        return (
            losses
            + (torch.arange(len(losses)) == reader) * logits[read % len(losses)].square().sum()
        )

    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine_of(mlp, peeking).clipped_sum(rows_for(mlp), C)


class Counting(nn.Module):
    """Keeps a mean of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean += x.detach().mean(dim=0)
        out: Tensor = self.body(x)
        return out


def test_models_that_write_to_buffers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="buffer 'mean'"):
        engine_of(Counting).clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.SyncBatchNorm(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False, track_running_stats=False), "GroupNorm"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "track_running_stats=False"),
        (nn.Embedding(8, 8, max_norm=1.0), "max_norm=None"),
        (nn.LSTM(8, 8, proj_size=4), "without proj_size="),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_gradients_of_their_own_are_refused(layer: nn.Module, way_out: str) -> None:
    with pytest.raises(UnsupportedError, match=way_out) as error:
        BookKeeping().engine(nn.Sequential(nn.Linear(6, 8), layer), cross_entropy)
    assert "Opacus" not in str(error.value), "nobody chose it"


def test_a_loss_that_averages_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each example"):
        engine_of(mlp, nn.functional.cross_entropy).clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize("flat", [True, False])
def test_a_loss_that_broadcasts_is_refused_with_the_way_out(flat: bool) -> None:
    rows = rows_for(mlp)
    values = Rows(rows.inputs, torch.zeros(len(rows), dtype=torch.float64))

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - (targets if flat else targets.unsqueeze(1))).square()

    shape = rf"\({len(rows)}, {len(rows) if flat else 1}\)"
    with pytest.raises(ValueError, match=rf"{shape}.*outputs\.squeeze\(1\)"):
        engine_of(lambda: nn.Sequential(nn.Linear(6, 1)), squares).clipped_sum(values, C)


class Scaled(nn.Module):
    """Scales by the first batch, through `data`, which counts no version."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.body, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6))
        self.register_buffer("size", torch.ones(6))
        self.what, self.fresh = what, True

    def forward(self, x: Tensor) -> Tensor:
        if self.fresh:
            getattr(self, self.what).data.copy_(x.detach().std(dim=0))
            self.fresh = False
        out: Tensor = self.body(x * self.scale / self.size)
        return out


@pytest.mark.parametrize("what", ["scale", "size"])
def test_models_that_are_scaled_by_the_first_batch_are_refused(what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"writes to its tensor '{what}'"):
        engine_of(lambda: Scaled(what)).clipped_sum(rows_for(mlp), C)
