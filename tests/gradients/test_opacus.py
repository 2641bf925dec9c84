"""Clipped sums by Opacus against one example at a time, and the models that it gets wrong."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.opacus import Opacus
from tests.gradients.bookkeeping.cases import Case
from tests.gradients.bookkeeping.test_torch_func import TimeFirst
from tests.gradients.loops import (
    Make,
    Outside,
    Own,
    Shared,
    Tied,
    clipped,
    cnn,
    example_gradients,
    frozen_mlp,
    group_norm,
    in_float64,
    layer_norm,
    mlp,
    rows_for,
)
from tests.gradients.test_refusals import Counting, Mixed

C = 0.4


def clipped_sum(make: Make, rows: Rows, times: int = 1) -> Tensor:
    model = in_float64(make)
    engine = Opacus().engine(model, cross_entropy)
    for _ in range(times):
        value = engine.clipped_sum(rows, C).value
    return value


@pytest.mark.parametrize("make", [mlp, frozen_mlp, cnn, group_norm, layer_norm, Own])
def test_equals_one_example_at_a_time(make: Make) -> None:
    rows = rows_for(make)
    gradients = example_gradients(in_float64(make), rows)
    norms = gradients.norm(dim=1)
    assert norms.min() < norms.max()
    assert (norms > C).any(), "the case must clip something"
    found = clipped_sum(make, rows, times=2)  # nothing is left over from the first batch
    torch.testing.assert_close(found, clipped(gradients, C).sum(dim=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [Shared, Tied])
def test_shared_weights(make: Make) -> None:
    rows = rows_for(make)
    expected = clipped(example_gradients(in_float64(make), rows), C).sum(dim=0)
    found = clipped_sum(make, rows, times=2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_weight_outside_of_its_layer_is_refused() -> None:
    """Its gradient was left out by hooks."""
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        clipped_sum(Outside, rows_for(Outside))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e200])
def test_a_broken_example_adds_nothing_and_harms_nobody(value: float) -> None:
    rows = rows_for(mlp)
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[2, 3] = value
    engine = Opacus().engine(in_float64(mlp), cross_entropy)
    found = engine.clipped_sum(bad, C)
    good = rows.take(torch.tensor([0, 1, 3, 4, 5, 6]))
    expected = clipped(example_gradients(in_float64(mlp), good), C).sum(dim=0)
    if value != 1e200 or found.non_finite:
        assert found.non_finite == 1
        torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=1e-12)
    else:  # a gradient of 10^200 has a norm in float64, and is clipped
        assert float((found.value - expected).norm()) <= C * (1 + 1e-9)


def test_only_broken_examples_add_up_to_zero() -> None:
    rows = rows_for(mlp)
    bad = Rows(torch.full_like(rows.inputs, float("inf")), rows.labels)
    found = Opacus().engine(in_float64(mlp), cross_entropy).clipped_sum(bad, C)
    assert not found.value.any()
    assert found.non_finite == len(rows)


def test_an_empty_batch_adds_up_to_zero() -> None:
    engine = Opacus().engine(in_float64(frozen_mlp), cross_entropy)
    found = engine.clipped_sum(rows_for(mlp).take(torch.zeros(0, dtype=torch.long)), C)
    size = sum(p.numel() for p in frozen_mlp().parameters() if p.requires_grad)
    assert found.value.shape == (size,)
    assert not found.value.any()
    assert len(found.norms) == len(found.losses) == 0


class Fixed(nn.Module):
    """Dropout whose draw is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 50), nn.Linear(50, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.rand(len(x), 50) < 0.5).to(x.dtype)
        self.seen.append(mask)
        out: Tensor = self.last(self.first(x) * mask)
        return out


@pytest.mark.parametrize("broken", [False, True])
def test_the_clipped_gradients_are_those_of_the_units_that_were_kept(broken: bool) -> None:
    """Factors of one draw of dropout on gradients of another would bound nothing."""
    model = in_float64(Fixed)
    rows = rows_for(Fixed)
    if broken:
        rows.inputs[0, 0] = float("nan")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = Opacus().engine(model, cross_entropy).clipped_sum(rows, C).value
    masks = model.seen[0]

    class Replay(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            twin = in_float64(Fixed)
            self.first, self.last, self.mask = twin.first, twin.last, mask

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.first(x) * self.mask)
            return out

    single = [rows.take(torch.tensor([i])) for i in range(len(rows))]
    gradients = torch.cat(
        [example_gradients(Replay(masks[i : i + 1]), row) for i, row in enumerate(single)]
    )
    torch.testing.assert_close(found, clipped(gradients, C).sum(dim=0), rtol=1e-9, atol=1e-12)


def test_no_contribution_exceeds_the_bound_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    model = in_float64(mlp).float()
    engine = Opacus().engine(model, cross_entropy)
    for scale in (1e-3, 1.0, 1e3, 1e15):
        inputs = scale * torch.randn(40, 6, generator=generator)
        rows = Rows(inputs, torch.randint(3, (40,), generator=generator))
        for i in range(len(rows)):
            one = engine.clipped_sum(rows.take(torch.tensor([i])), C).value
            assert float(one.double().norm()) <= C * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.SyncBatchNorm(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False, track_running_stats=False), "GroupNorm"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "track_running_stats=False"),
        (nn.LSTM(8, 8), r"BookKeeping\(\).*DPLSTM"),
        (nn.GRU(8, 8), r"BookKeeping\(\).*DPGRU"),
        (nn.MultiheadAttention(8, 2), r"BookKeeping\(\).*DPMultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_gradients_of_their_own_are_refused(layer: nn.Module, way_out: str) -> None:
    with pytest.raises(UnsupportedError, match=way_out):
        Opacus().engine(nn.Sequential(nn.Linear(6, 8), layer), cross_entropy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class Several(nn.Module):
    """A layer of two inputs, or one whose formula in Opacus wants other inputs."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.layer = nn.EmbeddingBag(9, 3) if bag else nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        bag = isinstance(self.layer, nn.EmbeddingBag)
        logits: Tensor = self.layer(x.long()) if bag else self.layer(x, x)
        return logits


@pytest.mark.parametrize("bag", [True, False])
def test_layers_of_several_inputs_are_refused_by_name(bag: bool) -> None:
    rows = Rows(torch.rand(12, 4) * 8, torch.arange(12) % 3)
    with pytest.raises(UnsupportedError, match=r"'layer'.*Use BookKeeping"):
        Opacus().engine(Several(bag), cross_entropy).clipped_sum(rows, 1.0)


def test_the_attention_with_a_wrong_forward_pass_is_refused() -> None:
    from opacus.layers import DPLSTM, DPMultiheadAttention

    wrong = DPMultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(UnsupportedError, match="Use one head"):
        Opacus().engine(nn.Sequential(wrong), cross_entropy)
    Opacus().engine(nn.Sequential(DPMultiheadAttention(8, 1, batch_first=True)), cross_entropy)
    with pytest.raises(UnsupportedError, match="steps in time for examples"):
        Opacus().engine(nn.Sequential(DPMultiheadAttention(8, 2)), cross_entropy)
    assert hasattr(__import__("opacus.layers", fromlist=["x"]), DPLSTM.__name__)


def test_rounding_of_a_large_batch_is_no_weight_outside_its_layer() -> None:
    count = 2**18
    rows = Rows(torch.ones(count, 4), torch.zeros(count, dtype=torch.int64))
    value = Opacus().engine(nn.Linear(4, 3), cross_entropy).clipped_sum(rows, 1.0).value
    # Sums of so many float32 numbers are rounded by some tenths of a percent.
    assert float(value.norm()) <= count * 1.01


def test_a_loss_that_averages_is_refused() -> None:
    engine = Opacus().engine(in_float64(mlp), nn.functional.cross_entropy)
    with pytest.raises(ValueError, match="one value for each example"):
        engine.clipped_sum(rows_for(mlp), C)


class Branches(nn.Module):
    """A layer that some batches do not reach, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.large, self.never = (nn.Linear(6, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.always(x)
        return out + self.large(x) if len(x) > 4 else out


def test_layers_that_a_batch_does_not_reach() -> None:
    rows, few = rows_for(Branches), rows_for(Branches, count=3)
    engine = Opacus().engine(in_float64(Branches), cross_entropy)
    engine.clipped_sum(rows, C)
    found = engine.clipped_sum(few, C).value
    expected = clipped(example_gradients(in_float64(Branches), few), C).sum(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def difference_of_two(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits[:, 0] - logits[:, 1]).sum(dim=1)


def nearly_constant_sequences(seed: int) -> Rows:
    """Two steps that nearly cancel in the gradient, but not in the terms of their Gram matrices."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 1e4 * torch.randn(1, 1, 6, generator=generator).repeat(1, 2, 1)
    return Rows(inputs + torch.randn(1, 2, 6, generator=generator), torch.zeros(1))


def test_sequences_that_cancel_stay_within_the_bound() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    engine = Opacus().engine(model, difference_of_two)
    for seed in range(50):
        found = engine.clipped_sum(nearly_constant_sequences(seed), C)
        assert float(found.value.double().norm()) <= C * (1 + 1e-6)


def test_looking_at_the_model_between_batches_changes_nothing() -> None:
    rows = rows_for(mlp)
    model = in_float64(mlp)
    engine = Opacus().engine(model, cross_entropy)
    before = engine.clipped_sum(rows, C).value
    model.eval()
    with torch.no_grad():
        model(rows.inputs[:3])
    model.train()
    assert torch.equal(engine.clipped_sum(rows, C).value, before)


def test_a_closed_engine_leaves_a_model_that_can_be_copied_and_trained() -> None:
    rows = rows_for(mlp)
    model = in_float64(mlp)
    engine = Opacus().engine(model, cross_entropy)
    engine.clipped_sum(rows, C)
    engine.close()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(example_gradients(twin, rows), example_gradients(in_float64(mlp), rows))
    again = Opacus().engine(model, cross_entropy).clipped_sum(rows, C).value
    expected = clipped(example_gradients(in_float64(mlp), rows), C).sum(dim=0)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-12)


def test_time_that_is_as_long_as_the_batch_is_not_taken_for_examples() -> None:
    """Every step was clipped by itself, so that one example moved the sum by many times C."""
    engine = Opacus().engine(in_float64(TimeFirst), cross_entropy)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine.clipped_sum(Case(TimeFirst, (7, 6)).rows(7), C)
    engine = Opacus().engine(in_float64(TimeFirst), cross_entropy)
    with pytest.raises(UnsupportedError, match="must count the examples"):
        engine.clipped_sum(Case(TimeFirst, (5, 6)).rows(7), C)


@pytest.mark.parametrize("before", [True, False])
def test_models_that_mix_examples_are_refused(before: bool) -> None:
    engine = Opacus().engine(in_float64(lambda: Mixed(before)), cross_entropy)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine.clipped_sum(rows_for(mlp), C)


def test_models_that_write_to_buffers_are_refused() -> None:
    engine = Opacus().engine(in_float64(Counting), cross_entropy)
    with pytest.raises(UnsupportedError, match="buffer 'mean'"):
        engine.clipped_sum(rows_for(mlp), C)


def silent_on_the_first(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) * (targets > 0)


def test_an_example_without_a_gradient_proves_nothing() -> None:
    """A comparison of zero with zero says nothing of a model."""
    rows = rows_for(Outside)
    rows.labels[0] = 0
    engine = Opacus().engine(in_float64(Outside), silent_on_the_first)
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        engine.clipped_sum(rows.take(torch.tensor([0])), C)
        engine.clipped_sum(rows, C)


class ZeroHead(Outside):
    """A weight outside of its layer, whose gradient is zero in the beginning."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)


def test_layers_that_start_without_a_gradient_are_checked_later() -> None:
    model, rows = in_float64(ZeroHead), rows_for(Outside)
    engine = Opacus().engine(model, cross_entropy)
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        for _ in range(2):
            engine.clipped_sum(rows, C)
            nn.init.ones_(model.head.weight[0].data)  # type: ignore[union-attr, index]


def test_gradients_whose_squares_vanish_are_no_reason_to_refuse() -> None:
    def tiny(logits: Tensor, targets: Tensor) -> Tensor:
        return 1e-30 * cross_entropy(logits, targets)

    rows = rows_for(mlp)
    engine = Opacus().engine(in_float64(mlp).float(), tiny)
    found = engine.clipped_sum(Rows(rows.inputs.float(), rows.labels), C).value
    assert 0 < float(found.double().norm()) < 1e-28


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_counts_as_zero_whatever_its_gradient(value: float) -> None:
    rows = rows_for(mlp)
    kept = rows.labels != 1
    assert 0 < int(kept.sum()) < len(rows)

    def shifted(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) + torch.where(targets == 1, value, 0.0)

    found = Opacus().engine(in_float64(mlp), shifted).clipped_sum(rows, C)
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


def test_padding_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"padding_idx=0.*BookKeeping\(\)"):
        Opacus().engine(Padded(), cross_entropy)


class Places(nn.Module):
    """Adds what it learned of each place, looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.head = nn.Embedding(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed = x + self.place(torch.arange(x.shape[1]))
        out: Tensor = self.head(functional.gelu(placed).mean(dim=1))
        return out


@pytest.mark.parametrize("count", [5, 7])
def test_what_is_computed_once_for_all_examples_is_refused(count: int) -> None:
    engine = Opacus().engine(in_float64(Places), cross_entropy)
    with pytest.raises(UnsupportedError, match=r"must count the examples|other examples"):
        engine.clipped_sum(Case(Places, (7, 6)).rows(count), C)


class Level(nn.Module):
    """One number for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).mean()


def test_a_layer_that_returns_one_number_is_refused() -> None:
    class Levelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.level = nn.Linear(6, 3), Level()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out * self.level(x)

    engine = Opacus().engine(in_float64(Levelled), cross_entropy)
    with pytest.raises(UnsupportedError, match=r"'level' returned shape \(\) for a batch of"):
        engine.clipped_sum(rows_for(mlp), C)


def test_half_precision_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'0\.weight' is of type float16"):
        Opacus().engine(mlp().half(), cross_entropy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_of_factors_is_allowed_for(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(10):
        engine = Opacus().engine(in_float64(mlp, seed).to(dtype), cross_entropy)
        for _ in range(4):
            inputs = 100 * torch.randn(1, 6, generator=generator).to(dtype)
            found = engine.clipped_sum(Rows(inputs, torch.zeros(1, dtype=torch.long)), 1e-3)
            assert float(found.value.double().norm()) <= 1e-3
