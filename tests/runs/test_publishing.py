"""What leaves a fit is made anew, and what a fit starts from is looked at before it is paid."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, PartyLostError, PrivacyError, UnsupportedError
from privtrain.core.parameters import ModelPredictor, initial_model, to_vector, trainable
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Run, Trainer
from privtrain.gradients.opacus import Opacus
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.runs.publishing import OWN_OBJECT, PUBLIC_START, STUDY_START
from privtrain.runs.scoring import PublicRows
from privtrain.runs.tuning import tune
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, a_federation, module, some_rows, vector

DELTA = 1e-3
DATA = replace(a_federation(20, 16, public_rows=36), public=some_rows(50, 20))
NOISY = Release(Gaussian(1.0, 2.0))
DP = DPSGD(epochs=2.0, expected_batch=12.0, release=NOISY)
HOOKS = replace(DP, gradients=Opacus())
CLIENTS = FedAvg(rounds=2, release=NOISY)
VOTES = PATE(teachers=4, queries=8, release=Release(GNMax(sigma=5.0), finish=ARGMAX))
PLAIN = SGD(epochs=2)
PROMISING = [DP, HOOKS, CLIENTS, VOTES]
ALL: list[Any] = [*PROMISING, PLAIN, FedAvg(rounds=2)]
NAMES = ["dp_sgd", "opacus", "clients", "pate", "sgd", "fedavg"]


def linear() -> nn.Module:
    return nn.Linear(5, 3, dtype=torch.float64)


def run(trainer: Trainer, model: Any, data: FederatedData = DATA, **options: Any) -> TrainResult:
    return fit(trainer, Task(model=model), data, runtimes=STAR, delta=DELTA, **options)


def assumptions(result: TrainResult) -> set[str]:
    return {text for guarantee in result.statement.guarantees for text in guarantee.assumptions}


class Peek(nn.Module):
    """Keeps its last batch in an attribute, in a list, on a parameter and as extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.peek = x.detach().clone()
        self.log.append(self.peek)
        self.inner.weight.note = self.peek  # type: ignore[assignment]
        return self.inner(x)  # type: ignore[no-any-return]

    def get_extra_state(self) -> Tensor:
        return self.peek

    def set_extra_state(self, state: Tensor) -> None:
        self.peek = state


def kept_in(model: nn.Module) -> list[str]:
    """Tensors of a module beside its parameters and buffers."""
    found = []
    for name, layer in model.named_modules():
        found += [f"{name}.{key}" for key, v in vars(layer).items() if isinstance(v, Tensor)]
        found += [f"{name}.{key}" for key, v in vars(layer).items() if isinstance(v, list) and v]
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
        found += [f"{name} hook" for table in hooks for _ in table]
    for name, parameter in model.named_parameters():
        found += [f"{name}.{key}" for key in vars(parameter)]
        found += [f"{name}.grad"] if parameter.grad is not None else []
    return found


# ------------------------------------------------------------------------------------- the factory


@pytest.mark.parametrize("trainer", ALL, ids=NAMES)
def test_a_factory_of_one_module_is_refused_before_anything_is_spent(
    trainer: Trainer, tmp_path: Path
) -> None:
    net = linear()
    before = to_vector(trainable(net))
    study = StudyLedger(replace(DATA, digest="d"), delta=DELTA)
    with pytest.raises(ValueError, match=r"new module .* Task\(model=net\)"):
        run(trainer, lambda: net, replace(DATA, digest="d"), folder=tmp_path, study_ledger=study)
    assert study.charges == ()
    assert not (tmp_path / "journal.jsonl").exists()
    assert torch.equal(before, to_vector(trainable(net)))


def test_a_comparison_shows_the_refusal_and_a_value_starts_each_row_alike() -> None:
    net = linear()
    trainers = {"SGD": SGD(epochs=20), "DP": replace(DP, release=Release(Gaussian(1.0, 1e6)))}
    rows = compare(trainers, Task(model=lambda: net), DATA, runtimes=STAR, delta=DELTA).rows
    assert all("to make a new module" in str(row.error) for row in rows)
    before = to_vector(trainable(net))
    made = compare(trainers, Task(model=net), DATA, runtimes=STAR, delta=DELTA)
    assert all(row.error is None for row in made.rows)
    assert torch.equal(before, to_vector(trainable(net)))
    alone = compare({"DP": trainers["DP"]}, Task(model=net), DATA, runtimes=STAR, delta=DELTA)
    # What another row trained before it changes nothing.
    assert alone.rows[0].accuracy == made.rows[1].accuracy
    assert "of values" in made.card["configuration"]["model"]


def test_tuning_refuses_the_factory_before_the_study_pays() -> None:
    data, net = replace(DATA, digest="d"), linear()
    study = StudyLedger(data, delta=DELTA)
    score = PublicRows(some_rows(7))
    options: dict[str, Any] = {"score": score, "runtimes": STAR, "delta": DELTA}
    with pytest.raises(ValueError, match="to make a new module"):
        tune({"a": DP}, Task(model=lambda: net), data, study_ledger=study, **options)
    assert study.charges == ()
    assert tune({"a": DP}, Task(model=net), data, **options).result.halted is None


def test_a_later_fit_does_not_change_an_earlier_predictor() -> None:
    net = linear()
    first = run(DP, net)
    before = vector(module(first))
    run(SGD(epochs=3), net)
    assert torch.equal(before, vector(module(first)))


@pytest.mark.parametrize("trainer", [CLIENTS, VOTES, DP], ids=["clients", "pate", "dp_sgd"])
def test_a_value_gives_the_same_bits_in_process_and_on_the_grid(trainer: Trainer) -> None:
    net = linear()
    task, grid = Task(model=net), Runtimes(star=FlowerGrid())
    one, two = (fit(trainer, task, DATA, runtimes=where, delta=DELTA) for where in (STAR, grid))
    assert torch.equal(vector(module(one)), vector(module(two)))


# ------------------------------------------------------------------------------ what is published


@pytest.mark.parametrize("trainer", ALL, ids=NAMES)
def test_no_object_that_saw_rows_leaves_a_fit(trainer: Trainer) -> None:
    published = module(run(trainer, Peek))
    assert kept_in(published) == []
    assert not hasattr(published, "peek")


@pytest.mark.parametrize("trainer", [DP, HOOKS, PLAIN], ids=["dp_sgd", "opacus", "sgd"])
def test_checkpoints_hold_parameters_and_buffers_alone(trainer: Trainer, tmp_path: Path) -> None:
    whole = run(trainer, Peek, folder=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["state"]["model"]
    assert set(state) == {"inner.weight", "inner.bias"}
    # A finished run is opened again from there.
    assert torch.equal(vector(module(run(trainer, Peek, folder=tmp_path))), vector(module(whole)))


def hooked(store: list[Tensor]) -> nn.Module:
    layer = linear()
    layer.register_forward_hook(lambda module, inputs, output: store.append(inputs[0]))
    return layer


def in_class() -> nn.Module:
    class Keeps(Peek):
        seen: ClassVar[list[Tensor]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach())
            return self.inner(x)  # type: ignore[no-any-return]

    return Keeps()


@pytest.mark.parametrize("trainer", PROMISING, ids=NAMES[:4])
def test_what_is_kept_outside_of_the_model_is_found_before_anything_is_spent(
    trainer: Trainer,
) -> None:
    data = replace(DATA, digest="d")
    study = StudyLedger(data, delta=DELTA)
    kind = type(in_class())
    with pytest.raises(PrivacyError, match=r"in '<Keeps>\.seen\[\d\]'.*Nothing was trained"):
        run(trainer, kind, data, study_ledger=study)
    with pytest.raises(PrivacyError, match=r"_forward_hooks\[0\]\(store\).*Nothing was trained"):
        run(trainer, functools.partial(hooked, []), data, study_ledger=study)
    with pytest.raises(PrivacyError, match="Nothing was trained"):
        run(trainer, hooked([]), data, study_ledger=study)
    assert study.charges == ()
    # Nobody is promised anything: nothing is false.
    run(PLAIN, kind, data)


class Overwriting(Peek):
    """Leaves the same trace of the same trial in each fit."""

    last = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        type(self).last = x.detach()
        return self.inner(x)  # type: ignore[no-any-return]


def test_what_an_earlier_trial_left_is_no_excuse() -> None:
    for _ in range(3):
        with pytest.raises(PrivacyError, match=r"'<Overwriting>\.last'.*Nothing was trained"):
            run(DP, Overwriting)


class Late(Peek):
    """Keeps what it saw on its class once it has been used for a while."""

    calls = 0
    seen: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            self.seen.append(x.detach())
        return self.inner(x)  # type: ignore[no-any-return]


def test_what_is_kept_later_is_found_in_the_end() -> None:
    with pytest.raises(PrivacyError, match=r"'<Late>\.seen\[0\]'.*What was spent stays spent"):
        run(replace(DP, epochs=5.0), Late)


class LateBuffer(nn.Module):
    """Writes a row into a buffer, or a frozen parameter, once it has been used for a while."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.inner, self.calls = linear(), 0
        place = torch.zeros(5, dtype=torch.float64)
        if frozen:
            self.place = nn.Parameter(place, requires_grad=False)
        else:
            self.register_buffer("place", place)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3 and self.training:
            self.place.data.copy_(x.detach()[0])
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("frozen", "what"), [(False, "the buffer"), (True, "frozen parameter")])
def test_what_training_changed_and_no_release_covers_is_refused_by_name(
    frozen: bool, what: str
) -> None:
    make = functools.partial(LateBuffer, frozen=frozen)
    with pytest.raises(PrivacyError, match=f"{what} 'place'"):
        run(replace(DP, epochs=5.0), make)
    # A client's own copy does not leave it, and without a promise nothing is false.
    initial = module(run(CLIENTS, make)).place
    assert not bool(initial.any())  # type: ignore[operator]
    assert bool(module(run(SGD(epochs=5), make)).place.any())  # type: ignore[operator]


def normalised() -> nn.Module:
    layers = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.register_buffer("scale", torch.tensor([0.1, 0.7], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_buffers_that_are_averaged_in_the_clear_stay_as_they_were() -> None:
    """A mean of three equal numbers may differ from them in its last bit."""
    silos = FedAvg(rounds=3, local=DPSteps(Gaussian(1.0, 2.0), expected_batch=4.0))
    data = a_federation(12, 13, 14, public_rows=39)
    published: Any = module(run(silos, Scaled, data))
    assert published.scale.tolist() == [0.1, 0.7]


def local_class() -> nn.Module:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    return Local()


def test_classes_that_are_made_by_the_factory_are_the_same_by_name() -> None:
    def normed() -> nn.Module:
        return torch.nn.utils.parametrizations.weight_norm(linear())  # type: ignore[no-any-return]

    for make in (local_class, normed):
        assert OWN_OBJECT not in run(DP, make).notes


def test_statistics_that_a_release_covers_or_nobody_promised_are_published() -> None:
    for trainer in (PLAIN, VOTES):
        statistics: Any = module(run(trainer, normalised))[1]
        assert bool(statistics.running_mean.any())
        assert int(statistics.num_batches_tracked) > 0
    bounded: Any = module(run(CLIENTS, normalised))[1]
    assert not bool(bounded.running_mean.any())


class Writing(nn.Module):
    """Writes a row into a parameter that is trained."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = linear(), how
        self.row = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 0:
            if self.how == "data":
                self.row.data.copy_(x.detach()[0])
            elif self.how == "in place":
                with torch.no_grad():
                    self.row.copy_(x[0])
            elif self.how == "used":
                self.inner.weight.data[0] = x.detach()[0]
            else:
                self.row = nn.Parameter(x.detach()[0].clone())
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["data", "in place", "used", "replaced"])
def test_a_parameter_that_the_model_writes_itself_is_not_published(how: str) -> None:
    """Noise covers what an optimizer makes of a noised sum, and nothing beside it."""
    make = functools.partial(Writing, how)
    silos = FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 2.0), expected_batch=4.0))
    written = r"its own trainable parameters|writes to its tensor"
    for trainer in (DP, silos):
        with pytest.raises((PrivacyError, PartyLostError, UnsupportedError), match=written):
            run(trainer, make)
    with pytest.raises(Exception, match=rf"{written}|vmap|_forward_counter"):
        run(HOOKS, make)
    # A client's whole change is clipped and noised, whatever changed it.
    run(CLIENTS, make)


class Growing(nn.Module):
    """Registers a parameter while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = linear(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5:
            self.rows = nn.Parameter(x.detach().clone(), requires_grad=False)
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_model_that_grows_is_refused_where_something_is_promised() -> None:
    with pytest.raises(PrivacyError, match="changed which parameters and buffers the Growing has"):
        run(replace(DP, epochs=5.0), Growing)
    grown: Any = module(run(SGD(epochs=5), Growing))
    assert hasattr(grown, "rows")
    # What it learned is known as an earlier fit's all the same.
    with pytest.raises(PrivacyError, match="an earlier fit made of these rows"):
        run(DP, grown.inner)


# ----------------------------------------------------------------------------------- own trainers


@dataclass(frozen=True)
class Several:
    """A predictor of several modules."""

    first: nn.Module
    others: tuple[nn.Module, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        modules: Any = (self.first, *self.others)
        return sum(m(inputs) for m in modules) / len(modules)  # type: ignore[no-any-return]


class Holder:
    """A predictor of a class that nobody can look into."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Own(DPSGD):
    """An own trainer; what it returns depends on `kind`."""

    kind: str = "module"

    def train(self, task: Task, data: FederatedData, run: Run) -> Any:
        model = DPSGD.train(self, task, data, run).module
        other = initial_model(task, run.seeds["another", 0, ""])
        other(data.pooled().inputs)
        return {
            "module": model.eval(),
            "several": Several(model, (other, model)),
            "holder": Holder(model),
            "nobody's": ModelPredictor(nn.Sequential(model)),
            "tensors": replace(Several(model, ()), first=nn.Identity()),
        }[self.kind]


def own(kind: str) -> TrainResult:
    settings = {"epochs": DP.epochs, "expected_batch": DP.expected_batch, "release": NOISY}
    return run(Own(kind=kind, **settings), Peek, keep_payloads=True)  # type: ignore[arg-type]


def test_a_module_as_a_predictor_is_made_anew() -> None:
    result: Any = own("module")
    assert isinstance(result.predictor, Peek) and not result.predictor.training
    assert kept_in(result.predictor) == []
    published = [e.payload for e in result.transcript.entries if e.receiver == "public"][-1]
    assert published is not None and torch.equal(vector(result.predictor), published)
    assert OWN_OBJECT not in result.notes


def test_a_predictor_of_several_modules_is_made_anew() -> None:
    result: Any = own("several")
    first, (other, again) = result.predictor.first, result.predictor.others
    assert again is first and other is not first
    assert kept_in(first) == kept_in(other) == []
    # Each of them starts from its own stream, frozen layers included.
    assert not torch.equal(vector(first), vector(other))
    assert OWN_OBJECT in result.notes


@pytest.mark.parametrize("kind", ["holder", "nobody's", "tensors"])
def test_what_cannot_be_made_anew_is_noted(kind: str) -> None:
    assert OWN_OBJECT in own(kind).notes
    assert OWN_OBJECT not in run(PLAIN, Peek).notes


# --------------------------------------------------------------------------------------- its start


def test_the_start_is_an_assumption_where_it_does_not_follow_from_the_seed() -> None:
    net = linear()
    assert PUBLIC_START in assumptions(run(DP, net))
    assert PUBLIC_START in assumptions(run(DP, lambda: copy.deepcopy(net)))
    assert PUBLIC_START not in assumptions(run(DP, linear))
    # Ones and zeros are everybody's start.
    made = functools.partial(nn.LayerNorm, 5, dtype=torch.float64)
    assert PUBLIC_START not in assumptions(run(DP, lambda: nn.Sequential(made(), linear())))
    assert assumptions(run(PLAIN, net)) == set() or PUBLIC_START not in assumptions(run(PLAIN, net))


def under_a_new_head(layer: nn.Module) -> nn.Module:
    head = nn.Linear(3, 3, dtype=torch.float64)
    return nn.Sequential(copy.deepcopy(layer).requires_grad_(False), nn.ReLU(), head)


def test_what_an_earlier_fit_made_of_these_rows_is_refused(tmp_path: Path) -> None:
    earlier = module(run(replace(PLAIN, learning_rate=0.3), linear))
    state = copy.deepcopy(earlier.state_dict())
    torch.save(state, tmp_path / "model.pt")

    def loaded(source: Callable[[], Any]) -> nn.Module:
        model = linear()
        model.load_state_dict(source())
        return model

    starts: list[Any] = [
        earlier,
        copy.deepcopy(earlier),
        lambda: copy.deepcopy(earlier),
        functools.partial(loaded, lambda: state),
        functools.partial(loaded, lambda: torch.load(tmp_path / "model.pt")),
        lambda: nn.Sequential(
            copy.deepcopy(earlier).requires_grad_(False), nn.ReLU(), nn.Linear(3, 3).double()
        ),
    ]
    for start in starts:
        for trainer in PROMISING:
            with pytest.raises(PrivacyError, match=r"an earlier fit made of these rows.*study_led"):
                run(trainer, start)
    # On other rows it is post-processing, and without a promise nothing is false.
    other = replace(DATA, train={"p": some_rows(900, 36)})
    assert PUBLIC_START in assumptions(run(DP, earlier, other))
    run(PLAIN, earlier)


def test_a_study_adds_up_what_starts_from_its_own_fits(tmp_path: Path) -> None:
    data = replace(DATA, digest="d")
    budget = Budget(20.0, DELTA)
    study = StudyLedger(data, budget=budget, journal=tmp_path / "study.jsonl")
    noisier = replace(DP, release=Release(Gaussian(1.0, 3.0)))
    first = run(noisier, linear, data, study_ledger=study)
    alone = study.epsilon
    with pytest.raises(PrivacyError, match="an earlier fit made of these rows"):
        run(DP, module(first), data)
    with pytest.raises(PrivacyError, match="an earlier fit made of these rows"):
        run(DP, module(first), data, study_ledger=StudyLedger(data, delta=DELTA))
    second = run(DP, module(first), data, study_ledger=study)
    assert STUDY_START in assumptions(second) and PUBLIC_START not in assumptions(second)
    assert study.epsilon > alone
    # The study by its journal, opened again.
    reopened = StudyLedger(data, budget=budget, journal=tmp_path / "study.jsonl")
    assert STUDY_START in assumptions(run(DP, module(second), data, study_ledger=reopened))


def test_equal_starts_that_no_fit_changed_are_everybodys() -> None:
    def frozen() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4).requires_grad_(False), nn.Linear(4, 3)).double()

    first = run(DP, frozen)
    run(DP, frozen)
    layer: Any = module(first)[0]
    run(DP, lambda: nn.Sequential(copy.deepcopy(layer), nn.Linear(4, 3).double()))
    still = run(
        replace(PLAIN, optimizer=functools.partial(torch.optim.SGD, maximize=False)), linear
    )
    run(DP, linear)
    del still


def test_a_trial_of_the_model_neither_hides_nor_adds_an_error() -> None:
    def raises() -> nn.Module:
        return nn.Sequential(nn.Linear(7, 3)).double()

    with pytest.raises((RuntimeError, DataError), match="shapes cannot be multiplied"):
        run(DP, raises)
