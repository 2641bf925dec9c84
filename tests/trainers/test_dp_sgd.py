"""DP-SGD: a loop over examples as oracle, public figures, noise of the right size."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated
from privtrain.core.errors import (
    BudgetExceededError,
    PrivacyError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import AGGREGATOR, CURATOR, PUBLIC
from privtrain.core.parameters import initial_model
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.result import TrainResult
from privtrain.core.seeding import SEEDED, SYSTEM, EntropyKind, SeededEntropy, Seeds, Stream
from privtrain.core.statement import ADD_REMOVE, ZERO_OUT, Budget
from privtrain.core.task import FederatedData, Loss, Rows, Task
from privtrain.core.trainer import RELEASE
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import GradientEngine, Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY
from privtrain.runs.checkpoint import FileCheckpoint
from privtrain.runs.fitting import fit
from privtrain.runs.roots import noise_root
from privtrain.sampling.batches import PoissonBatches, ShuffledEpochs
from privtrain.sampling.figures import BatchSampling
from privtrain.trainers.dp_sgd import DPSGD
from tests.extras import needing
from tests.gradients.loops import clipped, example_gradients
from tests.statistics import assert_power, mean_is_zero, normal_with_std, std_is
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector


def run(trainer: DPSGD, data: FederatedData, task: Task = TASK, **options: object) -> TrainResult:
    return fit(trainer, task, data, runtimes=STAR, **{"delta": 1e-5, **options})  # type: ignore[arg-type]


def start(task: Task = TASK, seed: int = 0) -> nn.Module:
    return initial_model(task, Seeds(seed)["initialisation", 0, ""])


def test_the_recorded_loss_is_the_mean_of_the_steps_since_the_last_record() -> None:
    losses: list[float] = []

    class Watching:
        def engine(self, model: nn.Module, loss: Loss) -> Any:
            inner = BookKeeping().engine(model, loss)

            def clipped_sum(batch: Rows, bound: float) -> Any:
                found = inner.clipped_sum(batch, bound)
                losses.append(float(found.losses.mean()))
                return found

            offered = {"notes": (), "assumptions": (), "close": inner.close}
            return SimpleNamespace(clipped_sum=clipped_sum, try_on=inner.try_on, **offered)

    trainer = DPSGD(epochs=12, expected_batch=20.0, gradients=Watching())
    recorded = run(trainer, a_federation(40, public_rows=40)).history.unprotected["training_loss"]
    assert [place for place, _ in recorded] == sorted(
        {-(-24 * part // 20) for part in range(1, 21)}
    )
    start_ = 0
    for place, loss in recorded:
        assert loss == pytest.approx(sum(losses[start_:place]) / (place - start_))
        start_ = place


@pytest.mark.parametrize(
    ("sampling", "saved"),
    [(PoissonBatches(), range(2, 41, 2)), (ShuffledEpochs(), range(5, 41, 5))],
    ids=str,
)
def test_a_run_is_kept_at_the_end_of_a_draw_where_the_curve_has_a_further_point(
    sampling: BatchSampling, saved: range, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[tuple[int, int]] = []

    def save(_: FileCheckpoint, done: int, state: Mapping[str, Any]) -> None:
        kept.append((done, len(state["seen"])))

    monkeypatch.setattr(FileCheckpoint, "save", save)
    data = a_federation(40, public_rows=40)
    exact = Release(Gaussian(1.0, 0.0))  # so that nothing has to be accounted for
    trainer = DPSGD(epochs=8, expected_batch=8.0, sampling=sampling, release=exact)
    result = run(trainer, data, folder=tmp_path)
    # Of 40 steps every second one is a point; what none holds yet is kept beside the model.
    places = [place for place, _ in result.history.unprotected["training_loss"]]
    assert places == list(range(2, 41, 2))
    assert kept == [(done, done % 2) for done in saved]


# ---------------------------------------------------------------------- against plain loops


@pytest.mark.parametrize("gradients", [BookKeeping(), *needing("opacus", Opacus)], ids=str)
def test_without_noise_training_equals_a_loop_over_examples(gradients: Gradients) -> None:
    data = a_federation(30, 10)
    trainer = DPSGD(
        epochs=2,
        expected_batch=7.0,
        sampling_rate=0.25,
        learning_rate=0.3,
        release=Release(Gaussian(0.4, 0.0)),
        gradients=gradients,
    )
    found = vector(module(run(trainer, data)))
    model, rows = start(), data.pooled()
    entropy = SeededEntropy(0, root=noise_root(trainer, TASK, data, start()))
    sizes = []
    for step in range(8):
        coins = entropy["sample", step, CURATOR_NAME].numpy().random(40)
        batch = rows.take(torch.from_numpy((coins < 0.25).nonzero()[0]))
        sizes.append(len(batch))
        total = clipped(example_gradients(model, batch), 0.4).sum(dim=0)
        first = 0
        with torch.no_grad():
            for parameter in model.parameters():
                part = total[first : first + parameter.numel()].view_as(parameter)
                parameter -= 0.3 * part / 7.0
                first += parameter.numel()
    assert len(set(sizes)) > 2, "batches of Poisson sampling differ in size"
    torch.testing.assert_close(found, vector(model), rtol=1e-9, atol=1e-12)


class Wide:
    """Makes a linear model that starts at zero, large enough for statistics."""

    def __call__(self) -> nn.Module:
        layer = nn.Linear(5, 400, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


def no_signal(logits: Tensor, targets: Tensor) -> Tensor:
    return 0.0 * logits.sum(dim=1)


SILENT = Task(model=Wide(), loss=no_signal)


def one_step(mechanism: object, data: FederatedData, task: Task = SILENT, seed: int = 0) -> Tensor:
    """The noised sum of gradients of one step, read from the trained model."""
    trainer = DPSGD(
        epochs=1,
        sampling_rate=1.0,
        expected_batch=10.0,
        learning_rate=0.5,
        release=Release(mechanism),  # type: ignore[arg-type]
    )
    return -vector(module(run(trainer, data, task, seed=seed))) * 10.0 / 0.5


@dataclass(frozen=True)
class Broken(Gaussian):
    """A Gaussian whose noise is not what its event says."""

    factor: float = 1.0

    def add(
        self, total: Tensor, state: object, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, object]:
        released, state = super().add(total, state, stream, fraction=fraction)
        return total + (released - total) * self.factor, state


@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_of_a_step_has_the_stated_size(secure: bool) -> None:
    samples = one_step(Gaussian(0.7, 1.5, secure=secure), a_federation(10))
    assert_power(std_is, samples, 0.7 * 1.5)
    assert_power(normal_with_std, samples, 0.7 * 1.5)
    assert mean_is_zero(samples, 0.7 * 1.5)


@pytest.mark.parametrize("factor", [0.0, 2 / 3, 1.5])
def test_a_broken_twin_is_caught_by_its_statistics(factor: float) -> None:
    samples = one_step(Broken(0.7, 1.5, factor=factor), a_federation(10))
    assert not std_is(samples, 0.7 * 1.5)


def test_steps_draw_noise_of_their_own() -> None:
    trainer = DPSGD(
        epochs=4,
        sampling_rate=1.0,
        expected_batch=1.0,
        learning_rate=1.0,
        release=Release(Gaussian(0.5, 2.0)),
    )
    samples = vector(module(run(trainer, a_federation(6), SILENT)))
    assert_power(std_is, samples, 1.0 * math.sqrt(4))  # the same noise four times would give 4


def test_a_row_moves_the_clipped_sum_by_at_most_the_sensitivity_and_an_unclipped_one_by_more() -> (
    None
):
    """Two data sets that differ in one row, without noise: what is left is the row's share."""
    rows = some_rows(3, 20)
    loud = Rows(
        torch.cat([rows.inputs, 1e3 * rows.inputs[:1]]),
        torch.cat([rows.labels, rows.labels[:1] * 0]),
    )
    one, other = (
        FederatedData(train={"a": held}, test=rows, public_rows=20) for held in (rows, loud)
    )
    bounded = Gaussian(0.3, 0.0)
    moved = one_step(bounded, other, TASK) - one_step(bounded, one, TASK)
    assert 0.1 < float(moved.norm()) <= 0.3 * (1 + 1e-9)
    unclipped = one_step(Gaussian(1e9, 0.0), other, TASK) - one_step(Gaussian(1e9, 0.0), one, TASK)
    assert float(unclipped.norm()) > 3.0


def test_one_infinite_example_changes_nothing_else() -> None:
    rows = some_rows(3, 12)
    task = replace(TASK, loss=lambda logits, targets: _inf_at(logits, targets))
    with_it = Rows(
        torch.cat([rows.inputs, torch.full((1, 5), 7e5)]), torch.cat([rows.labels, rows.labels[:1]])
    )
    one, other = (FederatedData(train={"a": held}, test=rows) for held in (rows, with_it))
    expected, found = (one_step(Gaussian(0.3, 0.0), data, task) for data in (one, other))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def _inf_at(logits: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    huge = logits.abs().amax(dim=1) > 1e4
    return torch.where(huge, torch.exp(logits.abs().amax(dim=1)), losses)


# ------------------------------------------------------------------------------- public figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "public_rows"),
    [
        (DPSGD(epochs=3, expected_batch=8.0), 40),
        (DPSGD(epochs=3, expected_batch=8.0, sampling_rate=0.2), None),
        (DPSGD(epochs=3, expected_batch=8.0, sampling_rate=0.2), 40),
    ],
)
def test_nothing_is_scaled_by_the_private_number_of_rows(
    trainer: DPSGD, public_rows: int | None
) -> None:
    rows = some_rows(3, 41)
    data = [
        FederatedData(
            train={"a": rows.take(torch.arange(count))}, test=rows, public_rows=public_rows
        )
        for count in (40, 41)
    ]
    one, other = (trainer.batches(held) for held in data)
    assert one == other
    assert (one.sampling.rate, one.sampling.expected_size, one.steps) == (0.2, 8.0, 15)
    assert trainer.plan(data[0], STAR) == trainer.plan(data[1], STAR)
    assert {p.relation for p in trainer.plan(data[0], STAR) if p.observer.name == "public"} == {
        ADD_REMOVE
    }
    results = [run(trainer, held) for held in data]
    assert results[0].statement == results[1].statement


def test_a_counted_number_of_rows_is_said_to_be_public() -> None:
    trainer = DPSGD(epochs=2, expected_batch=10.0)
    (public, _) = trainer.plan(a_federation(30, 10), STAR)
    assert public.relation is ZERO_OUT
    assert any("40, is public" in text for text in public.assumptions)


@pytest.mark.slow
def test_the_statement_is_that_of_poisson_gaussians() -> None:
    trainer = DPSGD(epochs=2, expected_batch=8.0, release=Release(Gaussian(3.0, 1.2)))
    data = a_federation(40, public_rows=40)
    by_hand = epsilon(repeated(poisson_sampled(0.2, gaussian_event(1.2)), 10), 1e-5)
    found = run(trainer, data)
    assert found.statement.epsilon() == pytest.approx(by_hand, rel=1e-9)
    assert found.statement.epsilon(CURATOR) == math.inf
    assert [g.observer for g in found.statement.guarantees] == [PUBLIC, CURATOR]
    assert found.history.epsilon[-1] == (10, pytest.approx(by_hand, rel=1e-9))
    values = [value for _, value in found.history.epsilon]
    assert values == sorted(values)


def test_batches_and_noise_follow_from_entropy_not_from_the_public_seed() -> None:
    """Whoever knows data order and initialisation must not know the sample."""
    data = a_federation(40)
    trainer = DPSGD(epochs=2, sampling_rate=0.2)
    drawn: list[tuple[str, int, str]] = []

    class Watched(Seeds):
        def __getitem__(self, name):  # type: ignore[no-untyped-def]
            drawn.append(name)
            return super().__getitem__(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("privtrain.runs.fitting.Seeds", Watched)
        run(trainer, data)
    assert {name for name, _, _ in drawn} == {"initialisation"}


DRAWN: list[Tensor] = []
"""What models drew, pass by pass."""


class Masked(nn.Module):
    """Draws by a function, and keeps what it drew."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3, dtype=torch.float64)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.linear(x)
        if self.training:
            DRAWN.append(self.draw())
        return answer


@pytest.mark.parametrize(
    "draw",
    [
        lambda: nn.functional.dropout(torch.ones(40)),
        lambda: torch.from_numpy(np.random.rand(4)),
        lambda: torch.tensor([random.random()]),
    ],
    ids=["torch", "numpy", "python"],
)
def test_what_a_model_draws_does_not_follow_from_the_public_seed(
    draw: Callable[[], Tensor],
) -> None:
    task, data = Task(model=lambda: Masked(draw)), a_federation(40, public_rows=40)
    trainer = DPSGD(epochs=3, sampling_rate=1.0, release=Release(Gaussian(1.0, 0.0)))

    def drawn(entropy: EntropyKind, seed: int = 0) -> list[tuple[float, ...]]:
        DRAWN.clear()
        run(trainer, data, task, entropy=entropy, seed=seed)
        # Before them the first batch was tried, under draws that are held fixed.
        return [tuple(values.tolist()) for values in DRAWN[-3:]]

    seeded = drawn(SEEDED)
    assert drawn(SEEDED) == seeded
    others = [drawn(SEEDED, 1), drawn(SYSTEM), drawn(SYSTEM)]
    # Neither two runs nor two steps of one draw the same.
    assert len(set(seeded)) == 3
    for place, one in enumerate([seeded, *others]):
        for other in [seeded, *others][place + 1 :]:
            assert not set(one) & set(other)


def test_the_guarantee_says_where_a_models_draws_come_from() -> None:
    public, _ = run(DPSGD(epochs=1), a_federation(40)).statement.guarantees
    assert any("dropout masks, comes from entropy" in text for text in public.assumptions)


# ------------------------------------------------------------------------------------ budgets


@pytest.mark.slow
def test_a_budget_halts_and_keeps_what_was_trained() -> None:
    trainer = DPSGD(epochs=5, expected_batch=8.0)
    data = a_federation(40, public_rows=40)
    whole = run(trainer, data).statement.epsilon()
    budget = Budget(whole / 2)
    found = run(trainer, data, budget=budget)
    assert found.halted is not None
    assert "budget" in found.halted
    assert 0 < found.statement.epsilon() <= budget.epsilon
    public = found.statement.guarantees[0]
    assert 1 <= public.releases < 25
    (plan, _) = trainer.plan(data, STAR)
    more = epsilon(
        repeated(plan.charges[RELEASE].event, public.releases + 1), 1e-5, relation=plan.relation
    )
    assert more > budget.epsilon, "another release would have fitted"
    assert not torch.equal(vector(module(found)), vector(start()))


@pytest.mark.slow
def test_a_halted_run_can_be_opened_again(tmp_path: Path) -> None:
    trainer, data = DPSGD(epochs=5, expected_batch=8.0), a_federation(40, public_rows=40)
    budget = Budget(0.5 * run(trainer, data).statement.epsilon())
    one, again = (run(trainer, data, budget=budget, folder=tmp_path) for _ in range(2))
    assert one.halted is not None
    assert again.halted is not None
    assert torch.equal(vector(module(one)), vector(module(again)))
    assert one.statement.epsilon() == again.statement.epsilon()


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    data = a_federation(40, public_rows=40)
    trainer = DPSGD(epochs=1, expected_batch=8.0)
    found = run(trainer, data, budget=Budget(50.0))
    assert found.halted is None
    assert torch.equal(vector(module(found)), vector(module(run(trainer, data))))


def test_a_budget_in_which_nothing_fits_is_an_error() -> None:
    with pytest.raises(BudgetExceededError, match="Not one release fits"):
        run(DPSGD(epochs=1), a_federation(40), budget=Budget(1e-3))


def test_a_budget_to_the_curator_is_an_error() -> None:
    with pytest.raises(BudgetExceededError, match="inf"):
        run(DPSGD(epochs=1), a_federation(40), budget=Budget(5.0, observer=CURATOR))
    with pytest.raises(ValueError, match="observer='aggregator' to be one of curator, public"):
        run(DPSGD(epochs=1), a_federation(40), budget=Budget(5.0, observer=AGGREGATOR))


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (lambda: nn.BatchNorm1d(5), "GroupNorm"),
        (lambda: nn.InstanceNorm1d(5, track_running_stats=True), "track_running_stats=False"),
    ],
)
@pytest.mark.filterwarnings("ignore:input's size at dim=0")
def test_layers_that_mix_or_remember_examples_are_refused(
    layer: Callable[[], nn.Module], way_out: str
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(layer(), nn.Linear(5, 3)).double()

    with pytest.raises(UnsupportedError, match=way_out):
        run(DPSGD(epochs=1), a_federation(20), Task(model=make))


@pytest.mark.parametrize(
    "release",
    [
        Release(),
        Release(Exact()),
        Release(Laplace(1.0, 1.0)),
        Release(Gaussian(1.0, 1.0), AT_PARTY),
        Release(Gaussian(1.0, 1.0), finish=ARGMAX),
    ],
    ids=str,
)
def test_releases_that_cannot_protect_gradients_are_refused(release: Release) -> None:
    with pytest.raises((UnsupportedError, UnsoundReleaseError)):
        DPSGD(release=release)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0.0},
        {"expected_batch": 0.0},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"learning_rate": math.nan},
    ],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DPSGD(**wrong)  # type: ignore[arg-type]


def test_delta_has_to_be_below_one_over_the_rows() -> None:
    with pytest.raises(PrivacyError, match="1 / 40"):
        run(DPSGD(epochs=1), a_federation(40), delta=0.03)


@pytest.mark.slow
def test_dropout_repeats_bit_for_bit() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    data, task = a_federation(40), Task(model=make)
    found = [vector(module(run(DPSGD(epochs=2), data, task, seed=seed))) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_trained_model_is_free_of_hooks() -> None:
    model = module(run(DPSGD(epochs=1), a_federation(20)))
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


class Tried(BookKeeping):
    """Keeps what a model was tried on before training."""

    def engine(self, model: nn.Module, loss: Loss) -> GradientEngine:
        made = super().engine(model, loss)
        DRAWN.clear()
        made.try_on = lambda rows: DRAWN.extend((rows.inputs, rows.labels))  # type: ignore[method-assign]
        return made


def test_a_model_is_tried_on_public_rows_where_there_are_any() -> None:
    trainer = DPSGD(epochs=1, expected_batch=7.5, gradients=Tried())
    public = some_rows(3, 20)
    run(trainer, replace(a_federation(20), public=Rows(public.inputs)))
    inputs, labels = DRAWN
    assert torch.equal(inputs, public.inputs[:8])
    # Of two values: what is computed from the targets of a batch would not show in equal ones.
    assert torch.equal(labels, torch.arange(8) % 2)
    for other in (public.inputs[:, :4], public.inputs.float()):
        run(trainer, replace(a_federation(20), public=Rows(other)))
        assert len(DRAWN[0]) == 0
    DRAWN.clear()
    run(trainer, a_federation(20))
    assert not DRAWN


def test_the_guarantee_says_what_the_engine_assumes() -> None:
    data = a_federation(40)
    for given, where in ((data, "one batch"), (replace(data, public=some_rows(3)), "public rows")):
        public, _ = run(DPSGD(epochs=1), given).statement.guarantees
        (found,) = [text for text in public.assumptions if "influence one another" in text]
        assert where in found
