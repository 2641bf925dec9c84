"""Clipped sums by book-keeping against one example at a time."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privtrain.core.parameters import ModelPredictor, to_vector
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows, Task, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from tests.gradients.bookkeeping.cases import (
    CASES,
    C,
    Case,
    OverSpace,
    OverTime,
    engine_of,
    equal,
    expected,
)
from tests.gradients.loops import (
    Make,
    Own,
    clipped,
    example_gradients,
    frozen_mlp,
    in_float64,
    layer_norm,
    mlp,
    rows_for,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_micro_batches_change_nothing(case: Case, size: int) -> None:
    found = engine_of(case.make, micro_batch=size).clipped_sum(case.rows(), C)
    equal(found, expected(case.make, case.rows()))
    assert len(found.norms) == len(found.losses) == 7


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("values", [2**22, 1, 300])
def test_broken_examples_add_nothing_and_harm_nobody(
    case: Case, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privtrain.gradients.bookkeeping.sum.FORMED_VALUES", values)
    rows = case.rows(count=12)
    bad = rows.labels == rows.labels[0]

    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        factor = torch.where(targets == rows.labels[0], torch.inf, 1.0)
        return cross_entropy(logits, targets) * factor

    found = engine_of(case.make, broken).clipped_sum(rows, C)
    good = rows.take((~bad).nonzero().squeeze(1))
    assert 0 < len(good) < 12
    equal(found, expected(case.make, good))
    assert found.non_finite == 12 - len(good)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e200])
def test_broken_inputs(value: float) -> None:
    rows = rows_for(mlp)
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[2, 3] = value
    found = engine_of(mlp).clipped_sum(bad, C)
    good = expected(mlp, rows.take(torch.tensor([0, 1, 3, 4, 5, 6])))
    if value != 1e200 or found.non_finite:
        assert found.non_finite == 1
        equal(found, good)
    else:  # a gradient of 10^200 has a norm in float64, and is clipped
        assert float((found.value - good).norm()) <= C * (1 + 1e-9)


def test_only_broken_examples_add_up_to_zero() -> None:
    rows = rows_for(mlp)
    found = engine_of(mlp).clipped_sum(Rows(rows.inputs * torch.inf, rows.labels), C)
    assert not found.value.any()
    assert found.non_finite == len(rows)


def test_an_empty_batch_adds_up_to_zero() -> None:
    found = engine_of(frozen_mlp).clipped_sum(
        rows_for(mlp).take(torch.zeros(0, dtype=torch.long)), C
    )
    size = sum(p.numel() for p in frozen_mlp().parameters() if p.requires_grad)
    assert found.value.shape == (size,)
    assert not found.value.any()
    assert len(found.norms) == len(found.losses) == 0


def test_a_model_that_is_frozen_as_a_whole_adds_nothing() -> None:
    def make() -> nn.Module:
        return mlp().requires_grad_(False)

    found = engine_of(make).clipped_sum(rows_for(mlp), C)
    assert found.value.shape == (0,)
    assert not found.norms.any()


@pytest.mark.parametrize("name", ["mlp", "cnn", "group norm", "layer norm", "shared", "tied"])
def test_equals_opacus(name: str) -> None:
    case = CASES[name]
    rows = case.rows(count=9)
    rows = Rows(rows.inputs.float(), rows.labels)
    sums = []
    for source in (BookKeeping(), Opacus()):
        engine = source.engine(in_float64(case.make).float(), cross_entropy)
        sums.append(engine.clipped_sum(rows, C).value)
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5)


class Fixed(nn.Module):
    """Dropout whose draw is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 50), nn.Linear(50, 3)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.mask = (torch.rand(len(x), 50) < 0.5).to(x.dtype)
        out: Tensor = self.last(self.first(x) * self.mask)
        return out


def test_the_clipped_gradients_are_those_of_the_units_that_were_kept() -> None:
    rows, model = rows_for(Fixed), in_float64(Fixed)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = BookKeeping().engine(model, cross_entropy).clipped_sum(rows, C)
    assert isinstance(model, Fixed)
    assert model.mask is not None

    def kept(logits: nn.Module, inputs: Tensor, mask: Tensor) -> Tensor:
        assert isinstance(logits, Fixed)
        out: Tensor = logits.last(logits.first(inputs) * mask)
        return out

    gradients = []
    for i in range(len(rows)):
        loss = cross_entropy(
            kept(model, rows.inputs[i : i + 1], model.mask[i : i + 1]), rows.labels[i : i + 1]
        )
        parts = torch.autograd.grad(loss.sum(), list(model.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    equal(found, clipped(torch.stack(gradients), C).sum(dim=0))


def test_nothing_is_left_on_the_model() -> None:
    rows, model = rows_for(mlp), in_float64(mlp)
    engine = BookKeeping().engine(model, cross_entropy)
    before = engine.clipped_sum(rows, C).value
    model.eval()
    with torch.no_grad():
        model(rows.inputs[:3])
    model.train()
    assert torch.equal(engine.clipped_sum(rows, C).value, before)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(example_gradients(twin, rows), example_gradients(in_float64(mlp), rows))
    assert all(parameter.grad is None for parameter in model.parameters())
    engine.close()


def trained(gradients: Gradients, task: Task) -> tuple[Tensor, TrainResult]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    rows = Rows(inputs, torch.randint(3, (60,), generator=generator))
    data = FederatedData(train={"a": rows.take(torch.arange(40))}, test=rows, public_rows=40)
    trainer = DPSGD(
        epochs=6,
        # All rows in each step: two fits draw no sample alike.
        sampling_rate=1.0,
        expected_batch=8.0,
        learning_rate=0.3,
        release=Release(Gaussian(C, 0.0)),
        gradients=gradients,
    )
    result = fit(trainer, task, data, delta=1e-5)
    assert isinstance(result.predictor, ModelPredictor)
    return to_vector(result.predictor.module.parameters()), result


def test_training_equals_training_with_opacus() -> None:
    task = Task(model=lambda: layer_norm().double())
    by_bookkeeping, result = trained(BookKeeping(), task)
    by_opacus, _ = trained(Opacus(), task)
    torch.testing.assert_close(by_bookkeeping, by_opacus, rtol=1e-9, atol=1e-11)
    assert not any("torch.func" in note for note in result.notes)


def test_the_result_says_that_a_model_needed_torch_func() -> None:
    _, result = trained(BookKeeping(), Task(model=lambda: Own().double()))
    assert sum("torch.func" in note for note in result.notes) == 1


def test_steps_in_silos_equal_those_with_opacus() -> None:
    rows = rows_for(mlp, count=30)
    task = Task(model=lambda: in_float64(mlp))
    found = []
    for gradients in (BookKeeping(micro_batch=4), Opacus()):
        steps = DPSteps(Gaussian(C, 0.5), expected_batch=8.0, gradients=gradients)
        model, scratch = task.model(), dict[str, Any]()
        for count in range(2):  # the second round finds the model prepared
            draws = Draws(Seeds(0), SeededEntropy(0), count, "a", cache=scratch)
            steps(model, task, rows, draws)
        found.append(to_vector(model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_micro_batches_are_counted() -> None:
    with pytest.raises(ValueError, match="micro_batch=0"):
        BookKeeping(micro_batch=0)


@st.composite
def random_models(draw: st.DrawFn) -> tuple[Make, tuple[int, ...]]:
    """Stacks of layers over vectors, sequences or planes, some of which are called twice."""
    kind = draw(st.sampled_from(["vectors", "sequences", "planes"]))
    width = draw(st.sampled_from([2, 4, 6]))
    plan = draw(
        st.lists(
            st.tuples(st.sampled_from("lnrs"), st.sampled_from([2, 4, 14]), st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    between = {"vectors": (), "sequences": (draw(st.integers(1, 6)),), "planes": (5, 4)}[kind]
    shape = (width, *between) if kind == "planes" else (*between, width)

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        size = width
        for letter, height, bias in plan:
            if kind == "planes":
                layers += _plane_layers(letter, size, height, bias)
            else:
                layers += _row_layers(letter, size, height, bias)
            size = height if letter == "l" else size
        if kind == "planes":
            return OverSpace(*layers, nn.Conv2d(size, 3, 1))
        whole = [*layers, nn.Linear(size, 3)]
        return OverTime(*whole) if kind == "sequences" else nn.Sequential(*whole)

    return make, shape


def _row_layers(letter: str, size: int, height: int, bias: bool) -> list[nn.Module]:
    if letter == "l":
        return [nn.Linear(size, height, bias=bias), nn.Tanh()]
    if letter == "s":
        twice = nn.Linear(size, size, bias=bias)
        return [twice, nn.Tanh(), twice]
    return [nn.LayerNorm(size, bias=bias) if letter == "n" else nn.RMSNorm(size)]


def _plane_layers(letter: str, size: int, height: int, bias: bool) -> list[nn.Module]:
    if letter == "l":
        groups = 2 if bias and height > 2 else 1
        return [nn.Conv2d(size, height, 3, padding=1, groups=groups, bias=bias), nn.Tanh()]
    if letter == "s":
        twice = nn.Conv2d(size, size, 3, padding=1, bias=bias)
        return [twice, nn.Tanh(), twice]
    norm = nn.GroupNorm(2, size) if letter == "n" else nn.InstanceNorm2d(size, affine=True)
    return [norm]


@settings(deadline=None, max_examples=30)
@given(model=random_models(), count=st.integers(1, 6), seed=st.integers(0, 100))
def test_random_architectures(model: tuple[Make, tuple[int, ...]], count: int, seed: int) -> None:
    make, shape = model
    rows = Case(make, shape).rows(count, seed)
    gradients = example_gradients(in_float64(make), rows)
    bound = max(float(gradients.norm(dim=1).median()), 1e-3)
    engine = engine_of(make)
    found = engine.clipped_sum(rows, bound)
    wanted = clipped(gradients, bound).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-9 * bound)
    assert engine.notes == ()
