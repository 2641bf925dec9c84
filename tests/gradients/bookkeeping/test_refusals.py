"""What the layers' books cannot hold: taken another way, or refused."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from tests.gradients.bookkeeping.booked import C, Case, books, equal, expected
from tests.gradients.loops import (
    Make,
    Outside,
    Own,
    example_gradients,
    in_float64,
    mlp,
    rows_for,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.mark.parametrize("make", [Own, Outside])
def test_a_weight_outside_of_layers_is_taken_one_example_at_a_time(make: Make) -> None:
    rows = rows_for(make)
    engine = books(make)
    for _ in range(2):
        found = engine.clipped_sum(rows, C)
        equal(found, expected(make, rows))
        torch.testing.assert_close(
            found.norms, example_gradients(in_float64(make), rows).norm(dim=1)
        )
    assert len(engine.notes) == 1
    assert "torch.func" in engine.notes[0]
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[0, 0] = float("nan")
    found = engine.clipped_sum(bad, C)
    equal(found, expected(make, rows.take(torch.arange(1, 7))))
    assert found.non_finite == 1


class Later(nn.Module):
    """A weight that is used outside of its layer in large batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        if len(x) != 3:
            hidden = nn.functional.linear(hidden, self.body.weight)
        out: Tensor = self.head(hidden)
        return out


def test_a_weight_outside_of_layers_is_noticed_in_any_batch() -> None:
    engine = books(Later)
    few, rows = rows_for(mlp, count=3), rows_for(mlp)
    equal(engine.clipped_sum(few, C), expected_of_three(few))
    assert engine.notes == ()
    equal(engine.clipped_sum(rows, C), expected(Later, rows))
    assert len(engine.notes) == 1


def expected_of_three(rows: Rows) -> Tensor:
    def make() -> nn.Module:
        model = Later()
        return nn.Sequential(model.body, nn.Tanh(), model.head)

    return expected(make, rows)


class Aside(nn.Module):
    """A layer whose output is dropped, and whose weight is used outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        out: Tensor = self.head(torch.tanh(nn.functional.linear(x, self.body.weight)))
        return out


def test_a_call_that_leads_nowhere_does_not_hide_a_use_outside() -> None:
    engine = books(Aside)
    equal(engine.clipped_sum(rows_for(mlp), C), expected(Aside, rows_for(mlp)))
    assert len(engine.notes) == 1


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
        books(lambda: Mixed(before)).clipped_sum(rows_for(mlp), C)


class Added(nn.Module):
    """Another model plus a parameter that no layer books."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.own = body, nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.own
        return out


def test_what_is_refused_is_refused_beside_a_parameter_that_is_not_booked() -> None:
    """One example at a time nothing is mixed, so that another function would be trained."""
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        books(lambda: Added(Mixed(True))).clipped_sum(rows_for(mlp), C)
    with pytest.raises(UnsupportedError, match=r"buffer 'body\.mean'"):
        books(lambda: Added(Counting())).clipped_sum(rows_for(mlp), C)


def test_losses_that_are_not_finite_count_as_zero() -> None:
    rows = rows_for(mlp)

    def shifted(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) + torch.where(targets == 1, torch.inf, 0.0)

    good = rows.take((rows.labels != 1).nonzero().squeeze(1))
    for make in (mlp, lambda: Added(mlp())):
        found = books(make, shifted).clipped_sum(rows, C)
        equal(found, expected(make, good))
        assert found.non_finite == len(rows) - len(good)


def test_half_precision_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="float16"):
        BookKeeping().engine(mlp().half(), cross_entropy)


def test_losses_that_mix_examples_are_refused() -> None:
    def contrast(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits @ logits.mT, torch.arange(len(logits)))

    with pytest.raises(UnsupportedError, match="depends on other examples"):
        books(mlp, contrast).clipped_sum(rows_for(mlp), C)


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
        books(mlp, peeking).clipped_sum(rows_for(mlp), C)


class TimeFirst(nn.Module):
    """Gives its layers inputs of shape (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.transpose(0, 1))
        return out.mean(dim=0)


class Places(nn.Module):
    """Adds what it learned of each place, looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(9, 4), nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed = self.table(x.long().abs() % 9) + self.place(torch.arange(x.shape[1]))
        out: Tensor = self.head(torch.tanh(placed).mean(dim=1))
        return out


@pytest.mark.parametrize("count", [1, 5, 7, 20])
@pytest.mark.parametrize(("make", "shape"), [(TimeFirst, (7, 6)), (Places, (7,))])
def test_layers_that_do_not_see_one_row_each_are_taken_one_example_at_a_time(
    make: Make, shape: tuple[int, ...], count: int
) -> None:
    rows = Case(make, shape, 9 if make is Places else 0).rows(count)
    engine = books(make)
    equal(engine.clipped_sum(rows, C), expected(make, rows))
    assert len(engine.notes) == 1
    assert "does not count the examples" in engine.notes[0]


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
        books(Counting).clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.SyncBatchNorm(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False, track_running_stats=False), "GroupNorm"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "track_running_stats=False"),
        (nn.Embedding(8, 8, max_norm=1.0), "max_norm=None"),
        (nn.LSTM(8, 8, proj_size=4), "DPLSTM"),
        (nn.MultiheadAttention(8, 2), "DPMultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_gradients_of_their_own_are_refused(layer: nn.Module, way_out: str) -> None:
    with pytest.raises(UnsupportedError, match=way_out):
        BookKeeping().engine(nn.Sequential(nn.Linear(6, 8), layer), cross_entropy)


def test_inputs_that_are_overwritten_are_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x) * 1.0
            out: Tensor = self.head(hidden)
            hidden.mul_(2.0)
            return out

    with pytest.raises(UnsupportedError, match="written to afterwards"):
        books(Overwrites).clipped_sum(rows_for(mlp), C)


def test_a_loss_that_averages_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each example"):
        books(mlp, nn.functional.cross_entropy).clipped_sum(rows_for(mlp), C)


def test_micro_batches_are_counted() -> None:
    with pytest.raises(ValueError, match="micro_batch=0"):
        BookKeeping(micro_batch=0)
