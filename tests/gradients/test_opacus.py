"""Clipped sums by Opacus against one example at a time."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.opacus import Opacus
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

MODES = ("hooks", "ghost", "functorch")
C = 0.4


def clipped_sum(make: Make, mode: str, rows: Rows, times: int = 1) -> Tensor:
    model = in_float64(make)
    engine = Opacus(mode).engine(model, cross_entropy)
    for _ in range(times):
        value = engine.clipped_sum(rows, C).value
    return value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [mlp, frozen_mlp, cnn, group_norm, layer_norm, Own])
def test_equals_one_example_at_a_time(make: Make, mode: str) -> None:
    rows = rows_for(make)
    gradients = example_gradients(in_float64(make), rows)
    norms = gradients.norm(dim=1)
    assert norms.min() < norms.max()
    assert (norms > C).any(), "the case must clip something"
    found = clipped_sum(make, mode, rows, times=2)  # nothing is left over from the first batch
    torch.testing.assert_close(found, clipped(gradients, C).sum(dim=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [Shared, Tied])
def test_shared_weights_with_hooks(make: Make) -> None:
    rows = rows_for(make)
    expected = clipped(example_gradients(in_float64(make), rows), C).sum(dim=0)
    found = clipped_sum(make, "hooks", rows, times=2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [Shared, Tied])
def test_shared_weights_with_ghost_are_refused_with_the_way_out(make: Make) -> None:
    with pytest.raises(UnsupportedError, match="mode='hooks'"):
        clipped_sum(make, "ghost", rows_for(make))


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_that_no_layer_books_is_refused(mode: str) -> None:
    """Its gradient was left out by hooks, and left out of the norms alone by ghost clipping."""
    with pytest.raises(UnsupportedError, match="outside its own layer"):
        clipped_sum(Outside, mode, rows_for(Outside))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e200])
def test_a_broken_example_adds_nothing_and_harms_nobody(mode: str, value: float) -> None:
    rows = rows_for(mlp)
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[2, 3] = value
    engine = Opacus(mode).engine(in_float64(mlp), cross_entropy)
    found = engine.clipped_sum(bad, C)
    good = rows.take(torch.tensor([0, 1, 3, 4, 5, 6]))
    expected = clipped(example_gradients(in_float64(mlp), good), C).sum(dim=0)
    if value != 1e200 or found.non_finite:
        assert found.non_finite == 1
        torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=1e-12)
    else:  # a gradient of 10^200 has a norm in float64, and is clipped
        assert float((found.value - expected).norm()) <= C * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_only_broken_examples_add_up_to_zero(mode: str) -> None:
    rows = rows_for(mlp)
    bad = Rows(torch.full_like(rows.inputs, float("inf")), rows.labels)
    found = Opacus(mode).engine(in_float64(mlp), cross_entropy).clipped_sum(bad, C)
    assert not found.value.any()
    assert found.non_finite == len(rows)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_adds_up_to_zero(mode: str) -> None:
    engine = Opacus(mode).engine(in_float64(frozen_mlp), cross_entropy)
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [False, True])
def test_the_clipped_gradients_are_those_of_the_units_that_were_kept(
    mode: str, broken: bool
) -> None:
    """Factors of one draw of dropout on gradients of another would bound nothing."""
    model = in_float64(Fixed)
    rows = rows_for(Fixed)
    if broken:
        rows.inputs[0, 0] = float("nan")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = Opacus(mode).engine(model, cross_entropy).clipped_sum(rows, C).value
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


@pytest.mark.parametrize("mode", MODES)
def test_no_contribution_exceeds_the_bound_in_float32(mode: str) -> None:
    generator = torch.Generator().manual_seed(3)
    model = in_float64(mlp).float()
    engine = Opacus(mode).engine(model, cross_entropy)
    for scale in (1e-3, 1.0, 1e3, 1e15):
        inputs = scale * torch.randn(40, 6, generator=generator)
        rows = Rows(inputs, torch.randint(3, (40,), generator=generator))
        for i in range(len(rows)):
            one = engine.clipped_sum(rows.take(torch.tensor([i])), C).value
            assert float(one.double().norm()) <= C * (1 + 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.SyncBatchNorm(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False, track_running_stats=False), "GroupNorm"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "track_running_stats=False"),
        (nn.LSTM(8, 8), "DPLSTM"),
        (nn.GRU(8, 8), "DPGRU"),
        (nn.MultiheadAttention(8, 2), "DPMultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_gradients_of_their_own_are_refused(
    layer: nn.Module, way_out: str, mode: str
) -> None:
    with pytest.raises(UnsupportedError, match=way_out):
        Opacus(mode).engine(nn.Sequential(nn.Linear(6, 8), layer), cross_entropy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_attention_with_a_wrong_forward_pass_is_refused() -> None:
    from opacus.layers import DPLSTM, DPMultiheadAttention

    wrong = DPMultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(UnsupportedError, match="Use one head"):
        Opacus().engine(nn.Sequential(wrong), cross_entropy)
    Opacus().engine(nn.Sequential(DPMultiheadAttention(8, 1, batch_first=True)), cross_entropy)
    with pytest.raises(UnsupportedError, match="steps in time for examples"):
        Opacus().engine(nn.Sequential(DPMultiheadAttention(8, 2)), cross_entropy)
    assert hasattr(__import__("opacus.layers", fromlist=["x"]), DPLSTM.__name__)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_averages_is_refused(mode: str) -> None:
    engine = Opacus(mode).engine(in_float64(mlp), nn.functional.cross_entropy)
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


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_a_batch_does_not_reach(mode: str) -> None:
    rows, few = rows_for(Branches), rows_for(Branches, count=3)
    engine = Opacus(mode).engine(in_float64(Branches), cross_entropy)
    engine.clipped_sum(rows, C)
    found = engine.clipped_sum(few, C).value
    expected = clipped(example_gradients(in_float64(Branches), few), C).sum(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def difference_of_two(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits[:, 0] - logits[:, 1]).sum(dim=1)


def nearly_constant_sequences(seed: int) -> Rows:
    """Two steps that nearly cancel in the gradient, but not in the sums that ghost forms."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 1e4 * torch.randn(1, 1, 6, generator=generator).repeat(1, 2, 1)
    return Rows(inputs + torch.randn(1, 2, 6, generator=generator), torch.zeros(1))


def test_sequences_that_cancel_stay_within_the_bound() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    engine = Opacus("hooks").engine(model, difference_of_two)
    for seed in range(50):
        found = engine.clipped_sum(nearly_constant_sequences(seed), C)
        assert float(found.value.double().norm()) <= C * (1 + 1e-6)
    ghost = Opacus("ghost").engine(nn.Sequential(nn.Linear(6, 4)), difference_of_two)
    with pytest.raises(UnsupportedError, match="mode='hooks'"):
        ghost.clipped_sum(nearly_constant_sequences(0), C)


def test_a_model_is_prepared_once() -> None:
    model = in_float64(mlp)
    opacus = Opacus()
    first = opacus.engine_once(model, cross_entropy)
    assert opacus.engine_once(model, cross_entropy) is first
    rows = rows_for(mlp)
    expected = clipped(example_gradients(in_float64(mlp), rows), C).sum(dim=0)
    torch.testing.assert_close(first.clipped_sum(rows, C).value, expected)


@pytest.mark.parametrize("mode", MODES)
def test_looking_at_the_model_between_batches_changes_nothing(mode: str) -> None:
    rows = rows_for(mlp)
    model = in_float64(mlp)
    engine = Opacus(mode).engine(model, cross_entropy)
    before = engine.clipped_sum(rows, C).value
    model.eval()
    with torch.no_grad():
        model(rows.inputs[:3])
    model.train()
    assert torch.equal(engine.clipped_sum(rows, C).value, before)


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_engine_leaves_a_model_that_can_be_copied_and_trained(mode: str) -> None:
    rows = rows_for(mlp)
    model = in_float64(mlp)
    engine = Opacus(mode).engine(model, cross_entropy)
    engine.clipped_sum(rows, C)
    engine.close()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(example_gradients(twin, rows), example_gradients(in_float64(mlp), rows))
    again = Opacus(mode).engine(model, cross_entropy).clipped_sum(rows, C).value
    expected = clipped(example_gradients(in_float64(mlp), rows), C).sum(dim=0)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-12)


def test_modes_are_checked() -> None:
    with pytest.raises(ValueError, match="mode='fast'"):
        Opacus("fast")
