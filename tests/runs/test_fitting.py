"""Training: resuming, refusals, budgets, calibration and what a result says."""

import functools
import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import (
    PartyLostError,
    PrivacyError,
    UnsupportedError,
)
from privtrain.core.observers import DEALER
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Draws, Runtimes, Seen, Setting
from privtrain.core.seeding import SEEDED, SYSTEM
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Trainer
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.runs.scoring import PublicRows
from privtrain.runs.tuning import tune
from privtrain.runtimes.in_process import InProcessStar
from privtrain.sampling.batches import ShuffledEpochs
from privtrain.sampling.sampling import FixedSize, Poisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.weights import ByExamples
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

DATA = a_federation(12, 9, 15, public_rows=36)
LOCAL = PlainSteps(epochs=1, batch_size=5)
NOISY = Release(Gaussian(1.0, 1.0))
SERVER = functools.partial(torch.optim.Adam, lr=0.05)


def run(trainer: Trainer, folder: Path | None = None, **options: object) -> TrainResult:
    return fit(trainer, TASK, DATA, runtimes=STAR, folder=folder, **options)  # type: ignore[arg-type]


def stop_at(place: int) -> Callable[[int, int], None]:
    """Interrupts a run right after a checkpoint."""

    def progress(done: int, total: int) -> None:
        if done == place:
            raise KeyboardInterrupt

    return progress


@dataclass(frozen=True)
class Interrupted(PlainSteps):
    """Local steps that are interrupted in a round, while a file is there."""

    at: int = 0
    party: str = "p1"
    bomb: str = ""

    def __call__(self, model: torch.nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        if draws.round == self.at and draws.name == self.party and Path(self.bomb).exists():
            raise KeyboardInterrupt
        return super().__call__(model, task, rows, draws)


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize(
    "trainer",
    [
        SGD(epochs=4, optimizer=functools.partial(torch.optim.SGD, momentum=0.9)),
        FedAvg(rounds=4, local=LOCAL, sampling=FixedSize(2)),
        FedAvg(rounds=4, local=LOCAL, server_optimizer=SERVER, sampling=Poisson(0.5)),
    ],
    ids=["sgd", "fedavg", "fedavg-adam"],
)
def test_a_run_without_promises_goes_on_bit_for_bit(
    trainer: Trainer, place: int, tmp_path: Path
) -> None:
    whole = run(trainer)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run", progress=stop_at(place))
    resumed = run(trainer, tmp_path / "run")
    assert torch.equal(vector(module(resumed)), vector(module(whole)))
    assert resumed.halted is None
    assert resumed.statement == whole.statement
    assert resumed.transcript.entries == whole.transcript.entries
    assert resumed.history.unprotected == whole.history.unprotected
    again = run(trainer, tmp_path / "run")  # a finished run can be opened again
    assert torch.equal(vector(module(again)), vector(module(whole)))
    assert again.statement == whole.statement
    assert again.halted is None


def dropping() -> nn.Module:
    layers = (nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(*layers).double()


MOMENTUM = functools.partial(torch.optim.SGD, momentum=0.9)
CLIPPED = Release(Gaussian(0.5, 0.0))


@pytest.mark.parametrize(
    "trainer",
    [
        DPSGD(epochs=2, expected_batch=9.0, release=CLIPPED, optimizer=MOMENTUM),
        DPSGD(epochs=2, expected_batch=9.0, release=CLIPPED, sampling=ShuffledEpochs()),
        FedAvg(
            rounds=3,
            local=DPSteps(Gaussian(0.5, 0.0), optimizer="Adam", learning_rate=0.05),
            server_optimizer=SERVER,
            sampling=Poisson(0.7),
        ),
        FedAvg(rounds=3, local=LOCAL, release=CLIPPED, weights=ByExamples(bound=12)),
    ],
    ids=["dp-sgd", "shuffled", "silos", "clipped"],
)
def test_a_run_without_noise_goes_on_bit_for_bit_after_every_step(
    trainer: Trainer, tmp_path: Path
) -> None:
    """Samples and dropout masks of a resumed run came from other streams."""
    task, options = Task(model=dropping), {"runtimes": STAR}
    places: list[int] = []
    whole: TrainResult = fit(trainer, task, DATA, progress=lambda n, _: places.append(n), **options)
    for place in places[:-1]:
        folder = tmp_path / str(place)
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, task, DATA, folder=folder, progress=stop_at(place), **options)
        resumed = fit(trainer, task, DATA, folder=folder, **options)
        assert torch.equal(vector(module(resumed)), vector(module(whole))), place
        assert resumed.history.unprotected == whole.history.unprotected
        assert resumed.statement == whole.statement
        assert resumed.halted is None


def test_an_interruption_within_a_round_costs_a_run_without_promises_nothing(
    tmp_path: Path,
) -> None:
    bomb = tmp_path / "bomb"
    bomb.touch()
    local = Interrupted(epochs=1, batch_size=5, at=2, bomb=str(bomb))
    trainer = FedAvg(rounds=4, local=local)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run")
    bomb.unlink()
    resumed = run(trainer, tmp_path / "run")
    whole = run(FedAvg(rounds=4, local=LOCAL))
    assert torch.equal(vector(module(resumed)), vector(module(whole)))
    assert resumed.halted is None
    assert {g.releases for g in resumed.statement.guarantees} == {4}


def test_a_private_run_keeps_aborted_rounds_spent_and_draws_fresh_noise(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.touch()
    local = Interrupted(epochs=1, batch_size=5, at=2, bomb=str(bomb))
    trainer = FedAvg(rounds=5, local=local, release=NOISY)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run")
    bomb.unlink()
    resumed = run(trainer, tmp_path / "run", keep_payloads=True)
    assert resumed.halted is not None
    (public, *_) = resumed.statement.guarantees
    plans = trainer.plan(DATA, STAR)
    assert public.releases == sum(plans[0].counts.values()) == 5
    assert public.epsilon == epsilon_of(plans[0], {RELEASE: 5}, 1e-5)
    rounds = [e.round for e in resumed.transcript.entries if e.kind == "update"]
    assert sorted(set(rounds)) == [0, 1, 2, 3], "one round of the plan went to the aborted one"
    whole = run(trainer, keep_payloads=True)
    models = [
        {e.round: e.payload for e in r.transcript.entries if e.kind == "model"}
        for r in (resumed, whole)
    ]
    assert models[0][2] is not None
    assert models[1][2] is not None
    assert torch.equal(models[0][2], models[1][2]), "the rounds before are the same"
    assert models[0][3] is not None
    assert models[1][3] is not None
    assert not torch.equal(models[0][3], models[1][3]), "the aborted round's noise came back"


def test_noise_is_fresh_in_every_sitting_even_before_the_first_checkpoint(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        bomb = tmp_path / "bomb"
        bomb.touch()

        @dataclass(frozen=True)
        class Looking(PlainSteps):
            def __call__(
                self, model: torch.nn.Module, task: Task, rows: Rows, draws: Draws
            ) -> Seen:
                seen.append(draws.entropy["noise", 0, ""].key)
                raise KeyboardInterrupt

            def __repr__(self) -> str:
                return "Looking"

        with pytest.raises(KeyboardInterrupt):
            run(FedAvg(rounds=5, local=Looking(), release=NOISY), tmp_path / "run")
    assert len(set(seen)) == 3


@pytest.mark.slow
def test_dp_sgd_keeps_what_an_unfinished_block_reserved(tmp_path: Path) -> None:
    trainer = DPSGD(epochs=20, expected_batch=9.0)  # 80 steps in blocks of 4
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run", progress=stop_at(30))
    resumed = run(trainer, tmp_path / "run")
    (public, *_) = resumed.statement.guarantees
    assert public.releases == trainer.plan(DATA, STAR)[0].counts[RELEASE] == 80
    assert resumed.halted is not None
    assert bool(torch.isfinite(vector(module(resumed))).all())
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    numbers = [json.loads(line).get("spent_up_to", 0) for line in lines if line]
    assert numbers == sorted(numbers)
    assert max(numbers) == 80


@pytest.mark.slow
def test_silos_draw_fresh_noise_after_an_interruption(tmp_path: Path) -> None:
    trainer = FedAvg(rounds=3, local=DPSteps(Gaussian(1.0, 1.0)))
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run", progress=stop_at(1))
    resumed = run(trainer, tmp_path / "run")
    assert resumed.halted is None
    assert not torch.equal(vector(module(resumed)), vector(module(run(trainer))))


def test_answers_of_teachers_are_not_asked_for_twice(tmp_path: Path) -> None:
    trainer = PATE(
        teachers=6,
        queries=9,
        release=Release(GNMax(2.0), finish=ARGMAX),
        steps=LOCAL,
        student=LOCAL,
    )
    whole = run(trainer)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "run", progress=stop_at(1))
    resumed = run(trainer, tmp_path / "run")
    assert torch.equal(vector(module(resumed)), vector(module(whole)))
    assert resumed.statement == whole.statement
    assert resumed.notes == whole.notes
    assert resumed.members is not None
    assert resumed.halted is None
    again = run(trainer, tmp_path / "run")
    assert again.statement == whole.statement


@pytest.mark.parametrize("other", [FedAvg(rounds=3, local=LOCAL), SGD(epochs=1)])
def test_the_journal_of_another_plan_is_refused(other: Trainer, tmp_path: Path) -> None:
    private = FedAvg(rounds=3, local=LOCAL, release=NOISY)
    run(private, tmp_path)
    (tmp_path / "state.pt").unlink()
    for trainer in (other, replace(private, rounds=4)):
        with pytest.raises(PrivacyError, match="another plan"):
            run(trainer, tmp_path)


def test_a_trainer_that_needs_a_star_says_so_and_spends_nothing(tmp_path: Path) -> None:
    trainer = FedAvg(rounds=1, release=NOISY)
    with pytest.raises(UnsupportedError, match="InProcess"):
        fit(trainer, TASK, DATA, runtimes=Runtimes(), folder=tmp_path)
    # Nothing of the plan is gone: with a star the run ends as planned.
    assert run(trainer, tmp_path).halted is None


@pytest.mark.parametrize("member", ["caveats", "with_noise"])
def test_an_own_trainer_without_a_member_is_refused_by_its_name(
    member: str, tmp_path: Path
) -> None:
    inner = SGD(epochs=1)
    has = {"token", "plan", "input_privacy", "with_noise", "caveats", "train"} - {member}
    old = SimpleNamespace(**{name: getattr(inner, name) for name in has})
    with pytest.raises(ValueError, match=f"it has no {member}"):
        run(old, tmp_path / "run")  # type: ignore[arg-type] # that is what is tested
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=rf"trainers\['old'\]=.*it has no {member}"):
        tune({"old": old}, TASK, DATA, score=PublicRows(some_rows(5)))  # type: ignore[dict-item]


def test_an_error_of_a_users_model_names_the_party() -> None:
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        # Not on the few rows that are tried beforehand.
        if len(targets) <= 3:
            return nn.functional.cross_entropy(logits, targets, reduction="none")
        raise ZeroDivisionError("in the loss")

    with pytest.raises(PartyLostError, match=r"p0 failed in round 0.*in the loss"):
        fit(FedAvg(rounds=1), replace(TASK, loss=broken), DATA, runtimes=STAR)


def test_a_budget_for_an_observer_without_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="dealer"):
        run(FedAvg(rounds=1, release=NOISY), budget=Budget(100.0, observer=DEALER))


def test_seeded_and_system_entropy_are_told_apart() -> None:
    trainer = FedAvg(rounds=2, local=LOCAL, release=NOISY)
    seeded = [run(trainer, entropy=kind) for kind in (None, SEEDED, "seeded")]
    system = [run(trainer, entropy=kind) for kind in (SYSTEM, "system")]
    void = "simulated: void if the seed is known"
    for result in seeded:
        assert all(
            (void in g.assumptions) == (g.epsilon < math.inf) for g in result.statement.guarantees
        )
        assert torch.equal(vector(module(result)), vector(module(seeded[0])))
    for result in system:
        assert not any(void in g.assumptions for g in result.statement.guarantees)
    assert not torch.equal(vector(module(system[0])), vector(module(system[1])))
    with pytest.raises(ValueError, match="random"):
        run(trainer, entropy="random")


def test_payloads_are_kept_in_seeded_simulation_only() -> None:
    with pytest.raises(UnsupportedError, match="SEEDED"):
        run(SGD(epochs=1), entropy=SYSTEM, keep_payloads=True)
    assert all(e.payload is None for e in run(SGD(epochs=1)).transcript.entries)
    kept = run(SGD(epochs=1), keep_payloads=True).transcript.entries
    assert all(e.payload is not None for e in kept)


def test_diagnostics_are_unprotected_and_apart_from_the_epsilon() -> None:
    watched = replace(DATA, validation=some_rows(9))
    result = fit(DPSGD(epochs=2, expected_batch=9.0), TASK, watched, runtimes=STAR)
    assert {"training_loss", "fraction_clipped", "validation_accuracy"} <= set(
        result.history.unprotected
    )
    assert result.history.epsilon[-1][1] == result.statement.epsilon()
    assert not any("loss" in e.kind for e in result.transcript.entries)


def test_looking_at_validation_rows_changes_nothing() -> None:
    watched = replace(DATA, validation=some_rows(9))
    for trainer in (SGD(epochs=3), FedAvg(rounds=3, local=LOCAL), DPSGD(epochs=2)):
        one, other = (fit(trainer, TASK, data, runtimes=STAR) for data in (DATA, watched))
        assert torch.equal(vector(module(one)), vector(module(other)))


def test_validation_rows_without_labels_are_not_looked_at() -> None:
    unlabelled = replace(DATA, validation=Rows(some_rows(9).inputs))
    result = fit(SGD(epochs=1), TASK, unlabelled, runtimes=STAR)
    assert "validation_accuracy" not in result.history.unprotected


def test_notes_on_the_data_reach_the_result() -> None:
    noted = replace(DATA, notes=("categories were read from private rows",))
    assert fit(SGD(epochs=1), TASK, noted, runtimes=STAR).notes == noted.notes


def test_progress_ends_at_its_total() -> None:
    for trainer in (SGD(epochs=2), FedAvg(rounds=2), DPSGD(epochs=1)):
        seen: list[tuple[int, int]] = []
        run(trainer, progress=lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        assert seen[-1][0] == seen[-1][1] == len(seen)


@dataclass(frozen=True)
class Elsewhere:
    """A star that says that its parties run in processes of so many bytes each."""

    sizes: tuple[int, ...]
    name: str = "elsewhere"
    real: bool = False

    @contextmanager
    def open(self, setting: Setting) -> Iterator[InProcessStar]:
        for size in self.sizes:
            setting.report_memory(size)
        yield InProcessStar(setting)


@dataclass(frozen=True)
class Working:
    """A star whose two workers say three times how long they have worked."""

    name: str = "working"
    real: bool = False

    @contextmanager
    def open(self, setting: Setting) -> Iterator[InProcessStar]:
        for process, seconds in (("1", 1000.0), ("2", 500.0), ("1", 3000.0), ("1", 2000.0)):
            setting.report_cpu(process, seconds)
        yield InProcessStar(setting)


def test_processor_time_is_that_of_all_processes_workers_included() -> None:
    trainer, data = FedAvg(rounds=1, local=LOCAL), a_federation(4, 4)
    result = fit(trainer, TASK, data, runtimes=Runtimes(star=Working()))
    assert result.cost.cpu_seconds is not None
    assert 3500.0 < result.cost.cpu_seconds < 3600.0
    alone = fit(trainer, TASK, data).cost.cpu_seconds
    assert alone is not None and 0 < alone < 100


def test_peak_memory_is_that_of_the_largest_process_workers_included() -> None:
    trainer, data = FedAvg(rounds=1, local=LOCAL), a_federation(4, 4)
    for sizes, largest in (((10**13, 10**14, 7), 10**14), ((7,), None)):
        result = fit(trainer, TASK, data, runtimes=Runtimes(star=Elsewhere(sizes)))
        if largest is None:
            assert 10**7 < result.cost.peak_memory_bytes < 10**13
        else:
            assert result.cost.peak_memory_bytes == largest


def test_outputs_that_have_no_accuracy_cost_the_curve_and_not_the_run() -> None:
    def model() -> nn.Module:
        return nn.Linear(5, 3).double()

    targets = torch.rand(12, 3, dtype=torch.float64)
    rows = Rows(torch.randn(12, 5, dtype=torch.float64), targets)
    task = Task(model=model, loss=lambda o, t: (o - t).square().sum(dim=1))
    data = FederatedData(train={"a": rows}, test=rows, validation=rows)
    result = fit(SGD(epochs=1), task, data)
    assert "validation_accuracy" not in result.history.unprotected
    assert "training_loss" in result.history.unprotected


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "trainer", [SGD(epochs=1), DPSGD(epochs=1, expected_batch=9.0), FedAvg(rounds=2, local=LOCAL)]
)
def test_gradients_are_recorded_whatever_the_caller_turned_off(
    around: Callable[[], torch.no_grad | torch.inference_mode], trainer: Trainer
) -> None:
    right = run(trainer)
    with around():
        # Its tensors were made there, too.
        data = a_federation(12, 9, 15, public_rows=36)
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        inside = fit(trainer, TASK, data, runtimes=STAR)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    after = fit(trainer, TASK, data, runtimes=STAR)
    for made in (inside, after):
        assert torch.equal(vector(module(made)), vector(module(right)))


def test_a_result_pickles_without_a_trainer_that_does_not() -> None:
    made = run(SGD(epochs=1, optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr)))
    again = pickle.loads(pickle.dumps(made))
    assert made.trainer is not None and again.trainer is None
    assert torch.equal(vector(module(again)), vector(module(made)))
    assert again.statement == made.statement
    plain = run(SGD(epochs=1))
    assert pickle.loads(pickle.dumps(plain)).trainer == plain.trainer == SGD(epochs=1)
