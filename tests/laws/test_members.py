"""Members are the rows that training used: found again from the weights, which rows alone move.

Row i is the i-th unit vector, so that column i of a linear model's weights moves if and only if
row i took part in a step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from privtrain.attacks.membership import LossThreshold
from privtrain.core.errors import DataError
from privtrain.core.observers import PARTICIPANT, PUBLIC
from privtrain.core.parameters import initial_model, trainable
from privtrain.core.result import Members, TrainResult
from privtrain.core.runtime import Draws, Runtimes, Seen
from privtrain.core.seeding import SEEDED, SYSTEM, EntropyKind, Seeds
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Trainer
from privtrain.data.canaries import with_canaries
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.auditing import audit, declared, protected_canaries
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.in_process import InProcess
from privtrain.sampling.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
    TruncatedPoissonBatches,
)
from privtrain.sampling.cyclic import CyclicPoisson, FixedOrder
from privtrain.sampling.figures import BatchSampling
from privtrain.sampling.sampling import FixedSize, Poisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.sgd import SGD
from tests.attacks.looking import Looking
from tests.trainers.federations import module

ROWS, PARTIES = 60, 6
STAR = Runtimes(star=InProcess())
FREE = Release(Gaussian(1.0, 0.0))
"""Clips and draws no noise: what moved then moved by rows alone."""

FAINT = Release(Gaussian(1.0, 0.02))
"""Draws noise, far smaller than what a row does below."""

LOUD = PlainSteps(epochs=5, learning_rate=5.0)
"""Fills the bound: each of a client's ten rows does a third of it, 0.1 after averaging over two."""


class _Linear:
    def __call__(self) -> nn.Module:
        return nn.Linear(ROWS, 2, bias=False).double()


TASK = Task(model=_Linear())


def unit_vectors(parties: int = PARTIES) -> FederatedData:
    """Unit vectors, those of one party next to each other; every five of them are one user's."""
    rows = Rows(
        torch.eye(ROWS, dtype=torch.float64), torch.arange(ROWS) % 2, torch.arange(ROWS) // 5
    )
    parts = torch.arange(ROWS).tensor_split(parties)
    train = {f"p{number}": rows.take(part) for number, part in enumerate(parts)}
    return FederatedData(train=train, test=rows.take(torch.arange(20)), public_rows=ROWS)


def moved(result: TrainResult, threshold: float = 0.0) -> list[int]:
    """The rows whose column of the weights is another than in the beginning."""
    start = initial_model(TASK, Seeds(0)["initialisation", 0, ""])
    (before,), (after,) = trainable(start), trainable(module(result))
    return ((after - before).abs().amax(dim=0) > threshold).nonzero().flatten().tolist()


def attacked(result: TrainResult, data: FederatedData) -> list[int]:
    """The rows that count as members."""
    members, _ = declared(result, data, PUBLIC)
    numbers: list[int] = members.inputs.argmax(dim=1).tolist()
    return numbers


def train(trainer: Trainer, data: FederatedData, **options: object) -> TrainResult:
    settings = {"runtimes": STAR, "delta": 1e-3} | options
    return fit(trainer, TASK, data, **settings)  # type: ignore[arg-type]


SAMPLINGS: list[BatchSampling] = [
    PoissonBatches(),
    PoissonBatches(rows_per_user=2),
    TruncatedPoissonBatches(8),
    FixedSizeBatches(),
    ShuffledEpochs(),
    CyclicPoisson(4),
    FixedOrder(),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_members_of_pooled_training_are_the_rows_of_its_batches(sampling: BatchSampling) -> None:
    data = unit_vectors()
    trainer = DPSGD(epochs=0.5, expected_batch=6, sampling=sampling, release=FREE)
    result = train(trainer, data)
    assert attacked(result, data) == moved(result)
    assert 0 < len(moved(result)) < 50, "half an epoch leaves rows out"
    if sampling == PoissonBatches(rows_per_user=2):
        longer = train(replace(trainer, epochs=12), data)
        assert attacked(longer, data) == moved(longer)
        assert len(moved(longer)) == 24, "two of five rows of each of twelve users"


def silos(scale: float) -> DPSteps:
    return DPSteps(Gaussian(1.0, scale), epochs=0.4, sampling_rate=0.2, expected_batch=2)


FEDERATED: list[tuple[FedAvg, float]] = [
    (FedAvg(rounds=2, sampling=FixedSize(2)), 0.0),
    (FedAvg(rounds=2, sampling=Poisson(0.3), release=FREE), 0.0),
    # Drawn from entropy: nobody knows the cohorts but the run.
    (FedAvg(rounds=2, sampling=FixedSize(2), release=FAINT, local=LOUD), 0.06),
    (FedAvg(rounds=2, local=silos(0.0)), 0.0),
    (FedAvg(rounds=2, local=silos(0.0), sampling=FixedSize(2)), 0.0),
]


@pytest.mark.parametrize("entropy", [SEEDED, SYSTEM])
@pytest.mark.parametrize(
    ("trainer", "threshold"),
    [pytest.param(*case, marks=pytest.mark.slow if case[1] else ()) for case in FEDERATED],
    ids=lambda value: str(value)[:90],
)
def test_members_of_a_federation_are_the_rows_of_who_was_drawn(
    trainer: FedAvg, threshold: float, entropy: EntropyKind
) -> None:
    data = unit_vectors()
    result = train(trainer, data, entropy=entropy)
    found = moved(result, threshold)
    assert attacked(result, data) == found
    assert 0 < len(found) < ROWS


def test_every_runtime_tells_the_same_members() -> None:
    data, trainer = unit_vectors(), FEDERATED[-1][0]
    here = attacked(train(trainer, data), data)
    flower = train(trainer, data, runtimes=Runtimes(star=FlowerGrid()))
    assert attacked(flower, data) == here


def test_where_all_rows_are_used_all_are_members() -> None:
    data = unit_vectors()
    for trainer in (SGD(epochs=1), FedAvg(rounds=1), DPSGD(epochs=30, release=FREE)):
        result = train(trainer, data)
        assert attacked(result, data) == moved(result) == list(range(ROWS))


@pytest.mark.slow  # so little noise has privacy losses on a wide grid
def test_a_halted_run_has_the_members_of_the_steps_it_took() -> None:
    data = unit_vectors()
    pooled = DPSGD(epochs=1, expected_batch=6, sampling=FixedSizeBatches(), release=FAINT)
    rounds = FedAvg(rounds=9, sampling=FixedSize(1), release=FAINT, local=LOUD)
    for trainer, threshold, most in ((pooled, 0.02, 18), (rounds, 0.15, 30)):
        three = epsilon_of(trainer.plan(data, STAR)[0], {RELEASE: 3}, 1e-3)
        result = train(trainer, data, budget=Budget(epsilon=three, delta=1e-3))
        assert result.halted is not None
        assert attacked(result, data) == moved(result, threshold)
        assert 0 < len(moved(result, threshold)) <= most


def stop_at(step: int) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize(
    ("trainer", "after"),
    [
        (DPSGD(epochs=0.5, sampling_rate=0.025, expected_batch=2, release=FREE), 11),
        (FedAvg(rounds=4, sampling=FixedSize(1)), 2),
        (FedAvg(rounds=4, local=silos(0.0), sampling=FixedSize(2)), 2),
    ],
    ids=["dp_sgd", "fedavg", "silos"],
)
def test_a_resumed_run_has_the_members_of_all_its_sittings(
    trainer: Trainer, after: int, tmp_path: Path
) -> None:
    data = unit_vectors()
    with pytest.raises(KeyboardInterrupt):
        train(trainer, data, folder=tmp_path, progress=stop_at(after))
    resumed = train(trainer, data, folder=tmp_path)
    assert attacked(resumed, data) == moved(resumed)
    assert 0 < len(moved(resumed)) < ROWS
    assert resumed.members is not None
    assert resumed.members.doubt == ""


def test_what_a_checkpoint_does_not_hold_is_doubted(tmp_path: Path) -> None:
    data = unit_vectors()
    for name, trainer, after in (
        ("pooled", DPSGD(epochs=1, expected_batch=3, release=FREE), 10),
        ("rounds", FedAvg(rounds=4, sampling=FixedSize(1)), 2),
    ):
        with pytest.raises(KeyboardInterrupt):
            train(trainer, data, folder=tmp_path / name, progress=stop_at(after))
        saved = torch.load(tmp_path / name / "state.pt", weights_only=True)
        saved["state"] = {
            key: value for key, value in saved["state"].items() if key not in ("used", "members")
        }
        torch.save(saved, tmp_path / name / "state.pt")
        result = train(trainer, data, folder=tmp_path / name)
        leakage = audit(result, LossThreshold(), TASK, data)
        assert any("before the interruption was not kept" in note for note in leakage.notes)


@dataclass(frozen=True)
class Silent:
    """Noised steps that do not tell which rows they drew."""

    steps: DPSteps

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        return replace(self.steps(model, task, rows, draws), used=None)

    def settled(self, data: FederatedData) -> "Silent":
        return Silent(self.steps.settled(data))

    def plans(self, data: FederatedData, rounds: int) -> object:
        return self.steps.plans(data, rounds)

    def with_scale(self, scale: float) -> "Silent":
        return Silent(replace(self.steps, mechanism=Gaussian(1.0, scale)))


def test_what_no_party_tells_is_said_and_not_guessed() -> None:
    data = unit_vectors()
    told = train(FedAvg(rounds=1, local=silos(0.0)), data)
    kept = train(FedAvg(rounds=1, local=Silent(silos(0.0))), data)  # type: ignore[arg-type]
    for result, doubted in ((told, False), (kept, True)):
        leakage = audit(result, LossThreshold(), TASK, data)
        said = [note for note in leakage.notes if note.startswith("members are all rows that may")]
        assert bool(said) == doubted
    assert attacked(kept, data) == list(range(ROWS))
    assert len(attacked(told, data)) < ROWS


def test_own_rows_are_no_candidates_whether_they_were_used_or_not() -> None:
    data = unit_vectors()
    result = train(FedAvg(rounds=1, sampling=FixedSize(1)), data)
    with pytest.raises(ValueError, match="all rows that were used are those of p"):
        audit(result, Looking(PARTICIPANT), TASK, data)


def test_canaries_are_no_members_and_keep_their_coins_where_rows_are_left_out() -> None:
    data = unit_vectors(1)
    canaries = Rows(torch.eye(ROWS, dtype=torch.float64)[:10], torch.arange(10) % 2)
    planted = with_canaries(data, canaries)
    result = train(DPSGD(epochs=0.3, expected_batch=6, release=FREE), planted)
    protected = protected_canaries(result, planted, frozenset())
    assert protected is not None and planted.canaries is not None
    # A coin is about the data, not about one batch.
    assert torch.equal(protected.included, planted.canaries.included)
    assert result.members is not None
    marks = result.members.rows["p0"]
    assert marks is not None
    assert attacked(result, planted) == marks[:ROWS].nonzero().flatten().tolist()


def test_other_data_than_was_trained_on_are_refused() -> None:
    data = unit_vectors(1)
    result = train(DPSGD(epochs=0.3, expected_batch=6, release=FREE), data)
    fewer = replace(data, train={"p0": data.train["p0"].take(torch.arange(50))})
    with pytest.raises(DataError, match="p0 held 60 rows then, and 50 in data"):
        audit(result, Looking(), TASK, fewer)
    nothing = replace(result, members=Members())
    with pytest.raises(ValueError, match="training rows to guess: none was used"):
        audit(nothing, Looking(), TASK, data)


def test_members_are_not_printed() -> None:
    result = train(FedAvg(rounds=1, sampling=FixedSize(1)), unit_vectors())
    assert "members" not in repr(result)
