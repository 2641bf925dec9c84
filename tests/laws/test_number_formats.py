"""Whatever kinds of numbers a model is made of, one row is bounded, and every value gets noise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain import data as datasets
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.task import FederatedData, Rows, Task, cross_entropy
from privtrain.core.trainer import Trainer
from privtrain.gradients import opacus
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.clipping import AutomaticClipping, PerLayerClipping
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.release.placement import AT_PARTY
from privtrain.runs.fitting import fit
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.sgd import SGD
from tests.statistics import assert_power, std_is

SLACK = 1 + 2.0**-10
"""What rounding may add to the reach of one row; secure noise allows for 2^-8."""

Make = Callable[[], nn.Module]


class Coarse(nn.Module):
    """All in bfloat16; inputs are float32."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.bfloat16())
        return out


class Mixed(nn.Module):
    """A trunk below a head of another type, with buffers of whole numbers and truth values."""

    def __init__(self, trunk: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 8, dtype=trunk), nn.Linear(8, 3, dtype=head)
        self.register_buffer("chosen", torch.arange(8) != 3)
        self.register_buffer("shift", torch.arange(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.trunk(x.to(self.trunk.weight.dtype)).relu() * self.chosen
        out: Tensor = self.head((hidden + 0 * self.shift).to(self.head.weight.dtype))
        return out


class Tempered(nn.Module):
    """Parameters without dimensions, and one without values, outside of layers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0, dtype=dtype))
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x) * self.temperature + self.nothing.sum()
        return out


class Cast(nn.Module):
    """Casts by `torch.autocast` inside of forward; a layer may be called twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.twice = nn.Linear(6, 8), nn.Linear(8, 3), twice

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.head(self.body(x).relu())
            return out + self.head(self.body(-x).relu()) if self.twice else out


class Waves(nn.Module):
    """Real parameters, complex activations and a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("turn", torch.exp(1j * torch.arange(5.0)).to(torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(self.body(x)) * self.turn
        out: Tensor = self.head(torch.fft.irfft(waves, n=8).relu())
        return out


class Complex(nn.Module):
    """Complex weights, of which the imaginary part of the product is the output."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        product = x.to(self.weight.dtype) @ self.weight
        return (product.imag + 0.1 * product.real).float()


class Scaled(nn.Module):
    """A parameter of any type beside a layer in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.last, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x) * self.scale.float()
        return out


BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
MODELS: dict[str, Make] = {
    "float32": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "bfloat16": lambda: Coarse(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "bfloat16 over time": lambda: Coarse(
        *(nn.Unflatten(1, (3, 2)), nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        *(nn.Flatten(), nn.Linear(9, 3)),
    ),
    "bfloat16 convolution": lambda: Coarse(
        *(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 5, 2), nn.GroupNorm(1, 5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(10, 3)),
    ),
    "bfloat16 below float32": lambda: Mixed(BF16, F32),
    "float32 below float64": lambda: Mixed(F32, F64),
    "float64 below bfloat16": lambda: Mixed(F64, BF16),
    "temperature": Tempered,
    "temperature in bfloat16": lambda: Tempered(BF16),
    "temperature in float64": lambda: Tempered(F64),
    "autocast": Cast,
    "autocast twice": lambda: Cast(twice=True),
    "complex activations": Waves,
}
ENGINES: dict[str, Gradients] = {
    "book-keeping": BookKeeping(),
    "pieces": BookKeeping(micro_batch=100),
    "layers": BookKeeping(clipping=PerLayerClipping()),
    "automatic": BookKeeping(clipping=AutomaticClipping()),
    "opacus": Opacus(),
}


def agreeing(count: int, width: int = 6) -> Rows:
    """Rows of one class whose gradients are much alike, the first one large."""
    generator = torch.Generator().manual_seed(0)
    inputs = 0.5 + 3 * torch.randn(count, width, generator=generator)
    inputs[0] *= 30
    return Rows(inputs, torch.zeros(count, dtype=torch.long))


def reach(make: Make, gradients: Gradients, rows: Rows, clipping_norm: float = 1.0) -> float:
    """By how many clipping norms one row moves the sum at most, of a few rows."""
    torch.manual_seed(0)
    engine = gradients.engine(make(), cross_entropy)
    whole = engine.clipped_sum(rows, clipping_norm).value.double()
    places = torch.arange(len(rows))
    moved = []
    for place in (0, 1, len(rows) // 2, len(rows) - 1):
        others = engine.clipped_sum(rows.take(places[places != place]), clipping_norm).value
        moved.append(float(torch.linalg.vector_norm(whole - others.double())))
    engine.close()
    return max(moved) / clipping_norm


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_one_row_moves_a_sum_by_the_clipping_norm(model: str, engine: str) -> None:
    moved = reach(MODELS[model], ENGINES[engine], agreeing(300))
    # From below, too: a bound that scales everything down would hold, and train nothing.
    assert 0.8 < moved <= SLACK


@pytest.mark.parametrize("engine", ["book-keeping", "opacus"])
def test_large_batches_in_bfloat16_are_bounded(engine: str) -> None:
    assert 0.99 < reach(lambda: Coarse(nn.Linear(6, 3)), ENGINES[engine], agreeing(6_000)) <= SLACK


def test_sums_in_bfloat16_would_not_be_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opacus, "sum_type", lambda parameters, rows: BF16)
    assert reach(lambda: Coarse(nn.Linear(6, 3)), Opacus(), agreeing(6_000)) > 1.1


@pytest.mark.parametrize("model", ["bfloat16", "bfloat16 below float32", "temperature in bfloat16"])
@pytest.mark.parametrize("engine", ["book-keeping", "opacus"])
def test_a_large_gradient_is_clipped_to_the_whole_norm(model: str, engine: str) -> None:
    # With the slack of bfloat16 it was clipped to 8% of it.
    torch.manual_seed(0)
    found = ENGINES[engine].engine(MODELS[model](), cross_entropy).clipped_sum(agreeing(1), 1e-3)
    assert 0.999e-3 <= float(torch.linalg.vector_norm(found.value.double())) <= 1e-3 * SLACK


def one_step(model: Make, gradients: Gradients) -> nn.Module:
    """What one step of noise alone makes of zeros: a normal value of each parameter."""

    def zeros() -> nn.Module:
        made = model()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
        return made

    task, data = rows_of(zeros)
    trainer = DPSGD(
        epochs=1,
        sampling_rate=1.0,
        expected_batch=1.0,
        learning_rate=1.0,
        gradients=gradients,
        release=Release(Gaussian(1e-3, 1e3)),
    )
    trained = fit(trainer, task, data, delta=1e-3).predictor
    return trained.module  # type: ignore[attr-defined] # of a `ModelPredictor`


def rows_of(model: Make) -> tuple[Task, FederatedData]:
    """Public figures and rows of three classes at two parties."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6))
    return datasets.from_arrays(
        inputs, np.arange(120) % 3, parties=2, classes=3, model=model, public_rows=84
    )


class Many(nn.Module):
    """Many parameters without dimensions beside layers of three types."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Linear(6, 100, dtype=BF16)
        self.single = nn.Linear(100, 100)
        self.wide = nn.Linear(100, 3, dtype=F64)
        self.scalars = nn.ParameterList(nn.Parameter(torch.tensor(0.0)) for _ in range(150))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.single(self.coarse(x.bfloat16()).float())
        out: Tensor = self.wide(hidden.double())
        return out + sum(self.scalars)


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("engine", ["book-keeping", "opacus"])
def test_every_parameter_gets_the_whole_noise(engine: str) -> None:
    trained = one_step(Many, ENGINES[engine])
    assert isinstance(trained, Many)
    for layer in (trained.coarse, trained.single, trained.wide):
        values = torch.cat([layer.weight.flatten(), layer.bias]).detach().double()
        assert_power(std_is, values, 1.0)
    assert_power(std_is, torch.stack([each.detach() for each in trained.scalars]), 1.0)


@pytest.mark.parametrize("dtype", [BF16, F64])
def test_torchs_default_type_changes_neither_bound_nor_noise(dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 200, dtype=F32), nn.Linear(200, 3, dtype=F32))

    rows = agreeing(300)
    with default_type(dtype):
        trained = one_step(make, BookKeeping())
        assert reach(make, BookKeeping(), rows) <= SLACK
    values = torch.cat([each.detach().flatten() for each in trained.parameters()])
    assert_power(std_is, values, 1.0)


PRIVATE: dict[str, Trainer] = {
    "book-keeping": DPSGD(epochs=1),
    "opacus": DPSGD(epochs=1, gradients=Opacus()),
    "secure": DPSGD(epochs=1, release=Release(Gaussian(1.0, 1.0, secure=True))),
    "silos": FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 1.0))),
    "clients": FedAvg(rounds=1, release=Release(Gaussian(1.0, 1.0))),
    "clipped": FedAvg(rounds=1, release=Release(Gaussian(1.0, 0.0))),
    "local": FedAvg(rounds=1, release=Release(Gaussian(1.0, 1.0), AT_PARTY)),
    "exact": FedAvg(rounds=1),
}


@pytest.mark.parametrize("trainer", PRIVATE)
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Complex, "'weight' is of type complex64"),
        (lambda: Complex(torch.complex128), "'weight' is of type complex128"),
        (lambda: Scaled(torch.complex64), "'scale' is of type complex64"),
        (lambda: Scaled(torch.float8_e4m3fn), "'scale' is of type float8_e4m3fn"),
    ],
)
def test_other_numbers_are_refused_by_name(model: Make, named: str, trainer: str) -> None:
    torch.manual_seed(0)
    _, data = rows_of(MODELS["float32"])
    with pytest.raises(UnsupportedError, match=named):
        fit(PRIVATE[trainer], Task(model=model), data, delta=1e-3)


def test_shares_refuse_complex_weights() -> None:
    _, data = rows_of(MODELS["float32"])
    task = Task(model=lambda: nn.Sequential(nn.Linear(6, 3, dtype=torch.complex64)))
    with pytest.raises(UnsupportedError, match="complex64"):
        fit(MPCSGD(epochs=1), task, data)


@pytest.mark.parametrize("trainer", [*PRIVATE.values(), SGD(epochs=1)])
def test_autocast_around_training_is_refused(trainer: Trainer) -> None:
    task, data = rows_of(MODELS["float32"])
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(UnsupportedError, match=r"autocast\('cpu'\) is on"),
    ):
        fit(trainer, task, data, delta=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["float32", "temperature"])
def test_engines_refuse_it_at_any_time(model: str, engine: str) -> None:
    rows = agreeing(20)
    prepared = ENGINES[engine].engine(MODELS[model](), cross_entropy)
    prepared.clipped_sum(rows, 1.0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnsupportedError, match="autocast"):
        prepared.clipped_sum(rows, 1.0)
    assert float(torch.linalg.vector_norm(prepared.clipped_sum(rows, 1.0).value)) > 0


def test_rows_of_another_type_are_named() -> None:
    _, data = rows_of(MODELS["float32"])
    task = Task(model=lambda: nn.Sequential(nn.Linear(6, 3, dtype=F64)))
    for trainer in (PRIVATE["book-keeping"], PRIVATE["opacus"], SGD(epochs=1)):
        with pytest.raises(DataError, match=r"data.test.inputs .* torch.float32.*model.double\(\)"):
            fit(trainer, task, data, delta=1e-3)
