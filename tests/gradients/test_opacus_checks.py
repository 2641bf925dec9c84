"""Models of which Opacus's per-example gradients would not be those of the examples."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.opacus import Opacus
from tests.gradients.bookkeeping.booked import Case
from tests.gradients.bookkeeping.test_refusals import Aside, Counting, Mixed, TimeFirst
from tests.gradients.loops import (
    Outside,
    clipped,
    example_gradients,
    in_float64,
    mlp,
    rows_for,
)

MODES = ("hooks", "ghost", "functorch")
C = 0.4


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_time_that_is_as_long_as_the_batch_is_not_taken_for_examples(mode: str) -> None:
    """Every step was clipped by itself, so that one example moved the sum by many times C."""
    engine = Opacus(mode).engine(in_float64(TimeFirst), cross_entropy)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine.clipped_sum(Case(TimeFirst, (7, 6)).rows(7), C)
    engine = Opacus(mode).engine(in_float64(TimeFirst), cross_entropy)
    with pytest.raises(UnsupportedError, match="must count the examples"):
        engine.clipped_sum(Case(TimeFirst, (5, 6)).rows(7), C)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [True, False])
def test_models_that_mix_examples_are_refused(before: bool, mode: str) -> None:
    engine = Opacus(mode).engine(in_float64(lambda: Mixed(before)), cross_entropy)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine.clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize("mode", MODES)
def test_models_that_write_to_buffers_are_refused(mode: str) -> None:
    engine = Opacus(mode).engine(in_float64(Counting), cross_entropy)
    with pytest.raises(UnsupportedError, match="buffer 'mean'"):
        engine.clipped_sum(rows_for(mlp), C)


def silent_on_the_first(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) * (targets > 0)


@pytest.mark.parametrize("mode", MODES)
def test_an_example_without_a_gradient_proves_nothing(mode: str) -> None:
    """A comparison of zero with zero let ghost clipping pass models that it does not bound."""
    rows = rows_for(Outside)
    rows.labels[0] = 0
    engine = Opacus(mode).engine(in_float64(Outside), silent_on_the_first)
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        engine.clipped_sum(rows.take(torch.tensor([0])), C)
        engine.clipped_sum(rows, C)


class ZeroHead(Outside):
    """A weight outside of its layer, whose gradient is zero in the beginning."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_start_without_a_gradient_are_checked_later(mode: str) -> None:
    model, rows = in_float64(ZeroHead), rows_for(Outside)
    engine = Opacus(mode).engine(model, cross_entropy)
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        for _ in range(2):
            engine.clipped_sum(rows, C)
            nn.init.ones_(model.head.weight[0].data)  # type: ignore[union-attr, index]


def test_ghost_refuses_a_weight_that_no_hook_measured() -> None:
    rows = rows_for(mlp)
    rows.labels[0] = 0
    engine = Opacus("ghost").engine(in_float64(Aside), silent_on_the_first)
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        engine.clipped_sum(rows, C)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_whose_squares_vanish_are_no_reason_to_refuse(mode: str) -> None:
    def tiny(logits: Tensor, targets: Tensor) -> Tensor:
        return 1e-30 * cross_entropy(logits, targets)

    rows = rows_for(mlp)
    engine = Opacus(mode).engine(in_float64(mlp).float(), tiny)
    found = engine.clipped_sum(Rows(rows.inputs.float(), rows.labels), C).value
    assert 0 < float(found.double().norm()) < 1e-28


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_counts_as_zero_whatever_its_gradient(
    value: float, mode: str
) -> None:
    rows = rows_for(mlp)
    kept = rows.labels != 1
    assert 0 < int(kept.sum()) < len(rows)

    def shifted(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) + torch.where(targets == 1, value, 0.0)

    found = Opacus(mode).engine(in_float64(mlp), shifted).clipped_sum(rows, C)
    good = rows.take(kept.nonzero().squeeze(1))
    wanted = clipped(example_gradients(in_float64(mlp), good), C).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-12)
    assert found.non_finite == len(rows) - len(good)


class Padded(nn.Module):
    """Tokens, of which one is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.table(x.long())).mean(dim=1))
        return out


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # from Opacus, for float64
def test_padding_is_left_to_functorch() -> None:
    for mode in ("hooks", "ghost"):
        with pytest.raises(UnsupportedError, match=r"padding_idx=0.*mode='functorch'"):
            Opacus(mode).engine(Padded(), cross_entropy)
    rows = Case(Padded, (5,), 9).rows()
    found = Opacus("functorch").engine(in_float64(Padded), cross_entropy).clipped_sum(rows, C)
    wanted = clipped(example_gradients(in_float64(Padded), rows), C).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-12)


class Places(nn.Module):
    """Adds what it learned of each place, looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.head = nn.Embedding(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed = x + self.place(torch.arange(x.shape[1]))
        out: Tensor = self.head(functional.gelu(placed).mean(dim=1))
        return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [5, 7])
def test_what_is_computed_once_for_all_examples_is_refused(count: int, mode: str) -> None:
    engine = Opacus(mode).engine(in_float64(Places), cross_entropy)
    with pytest.raises(UnsupportedError, match=r"must count the examples|other examples"):
        engine.clipped_sum(Case(Places, (7, 6)).rows(count), C)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_refused(mode: str) -> None:
    with pytest.raises(UnsupportedError, match=r"'0\.weight' is of type float16"):
        Opacus(mode).engine(mlp().half(), cross_entropy)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_of_factors_is_allowed_for(dtype: torch.dtype, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(10):
        engine = Opacus(mode).engine(in_float64(mlp, seed).to(dtype), cross_entropy)
        for _ in range(4):
            inputs = 100 * torch.randn(1, 6, generator=generator).to(dtype)
            found = engine.clipped_sum(Rows(inputs, torch.zeros(1, dtype=torch.long)), 1e-3)
            assert float(found.value.double().norm()) <= 1e-3
