"""A run in its folder: refused, gone on with, or repeated to the bit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.folders import locked_folder
from privtrain.core.runtime import Draws, Seen
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Trainer
from privtrain.data.models import MLP, LogisticRegression
from privtrain.runs.fitting import fit_trial
from tests.runs.folders import contents

GENERATOR = torch.Generator().manual_seed(0)
DATA = FederatedData(
    train={
        f"p{k}": Rows(torch.randn(20, 3, generator=GENERATOR), torch.arange(20) % 2)
        for k in range(3)
    },
    test=Rows(torch.randn(30, 3, generator=GENERATOR), torch.arange(30) % 2),
    digest="d",
)
TASK = Task(model=LogisticRegression(3, 2))
HERE = pt.Runtimes(star=pt.InProcess())
NOISY = pt.Release(pt.Gaussian(1.0, 1.0))
DPSGD = pt.DPSGD(epochs=6, expected_batch=6.0)


@dataclass(frozen=True)
class Interrupted(pt.PlainSteps):
    """Local steps that are interrupted in a round, while a file is there."""

    at: int = 0
    bomb: str = ""

    def __call__(self, model: nn.Module, task: Task, rows: Rows, draws: Draws) -> Seen:
        if draws.round == self.at and draws.name == "p1" and Path(self.bomb).exists():
            raise KeyboardInterrupt
        return super().__call__(model, task, rows, draws)


def stop_at(place: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == place:
            raise KeyboardInterrupt

    return progress


def weights(result: pt.TrainResult) -> Tensor:
    predictor: Any = result.predictor
    return torch.cat([p.detach().flatten() for p in predictor.module.parameters()])


def trial(trainer: Trainer, folder: Path | None, **options: Any) -> pt.TrainResult:
    settings: dict[str, Any] = {"runtimes": HERE, "delta": 1e-3, "noise_seed": 0, "repeats": True}
    return fit_trial(trainer, TASK, DATA, folder=folder, **(settings | options))


def public(result: pt.TrainResult) -> pt.Guarantee:
    return result.statement.guarantees[0]


@pytest.mark.parametrize("place", [1, 20, 41])
def test_a_simulation_that_was_interrupted_is_repeated_to_the_bit(
    place: int, tmp_path: Path
) -> None:
    whole = trial(DPSGD, None)
    for _ in range(2):  # the second sitting stops where the first one did
        with pytest.raises(KeyboardInterrupt):
            trial(DPSGD, tmp_path, progress=stop_at(place))
    journal = (tmp_path / "journal.jsonl").read_text()
    again = trial(DPSGD, tmp_path)
    assert again.halted is None
    assert torch.equal(weights(again), weights(whole))
    assert again.statement == whole.statement
    assert again.history == whole.history
    assert len(again.transcript.entries) == len(whole.transcript.entries)
    # Nothing that was written down is taken back.
    assert (tmp_path / "journal.jsonl").read_text().startswith(journal)
    # A finished run is not repeated.
    assert weights(trial(DPSGD, tmp_path)).equal(weights(whole))


def test_rounds_of_a_federation_are_repeated(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.touch()
    local = Interrupted(epochs=1, batch_size=5, at=2, bomb=str(bomb))
    trainer = pt.FedAvg(rounds=5, local=local, release=NOISY)
    with pytest.raises(KeyboardInterrupt):
        trial(trainer, tmp_path / "run")
    bomb.unlink()
    again, whole = trial(trainer, tmp_path / "run"), trial(trainer, None)
    assert again.halted is None
    assert torch.equal(weights(again), weights(whole))


def test_with_entropy_of_the_system_it_goes_on_and_halts(tmp_path: Path) -> None:
    """Other noise on the same steps would be a second release of each."""
    with pytest.raises(KeyboardInterrupt):
        trial(DPSGD, tmp_path, entropy=pt.SYSTEM, progress=stop_at(20))
    again = trial(DPSGD, tmp_path, entropy=pt.SYSTEM)
    assert again.halted is not None
    assert public(again).releases == DPSGD.plan(DATA, HERE)[0].counts[RELEASE]


def test_after_a_sitting_with_other_noise_it_is_not_repeated(tmp_path: Path) -> None:
    """What was released under two noises cannot be released again under one of them."""
    with pytest.raises(KeyboardInterrupt):
        trial(DPSGD, tmp_path, progress=stop_at(20))
    with pytest.raises(KeyboardInterrupt):
        trial(DPSGD, tmp_path, progress=stop_at(40), repeats=False)
    assert trial(DPSGD, tmp_path).halted is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, pt.TamperedShareError])
def test_nothing_is_taken_up_after_a_share_was_altered(
    error: type[BaseException], tmp_path: Path
) -> None:
    def fails(done: int, total: int) -> None:
        if done == 3:
            raise error("step 9, product")

    trainer = pt.FedAvg(rounds=5, local=pt.PlainSteps(epochs=1, batch_size=5))
    with pytest.raises(error):
        trial(trainer, tmp_path, progress=fails)
    rounds: list[int] = []
    again = trial(trainer, tmp_path, progress=lambda done, total: rounds.append(done))
    assert again.halted is None
    assert len(again.transcript.entries) == len(trial(trainer, None).transcript.entries)
    said = "aborted: TamperedShareError: step 9, product" in " ".join(again.notes)
    assert (said, rounds[0]) == ((False, 4) if error is KeyboardInterrupt else (True, 1))


@pytest.mark.parametrize("other", ["threads", "version"])
def test_what_may_have_other_bits_is_not_repeated(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trial(DPSGD, tmp_path, progress=stop_at(20))
    if other == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    else:
        monkeypatch.setattr("privtrain.runs.marks.versions", lambda: {"torch": "99.0"})
    resumed = trial(DPSGD, tmp_path)
    assert resumed.halted is not None
    noted = any(note.startswith("begun with") and "(now 99.0)" in note for note in resumed.notes)
    assert noted == (other == "version")


def test_as_another_fit_of_a_study_it_is_not_repeated(tmp_path: Path) -> None:
    """The noise of a fit depends on its number in the study."""
    study = pt.StudyLedger(DATA, delta=1e-3)
    with pytest.raises(KeyboardInterrupt):
        trial(DPSGD, tmp_path, progress=stop_at(20), study_ledger=study)
    other = pt.StudyLedger(DATA, delta=1e-3)
    trial(replace(DPSGD, epochs=1), None, study_ledger=other)
    assert trial(DPSGD, tmp_path, study_ledger=other).halted is not None


def test_a_finished_run_says_again_what_it_found_out(tmp_path: Path) -> None:
    """An engine that makes no step tries no row."""
    once, again = (trial(DPSGD, tmp_path) for _ in range(2))
    assert again.statement == once.statement
    assert again.notes == once.notes
    assert torch.equal(weights(again), weights(once))


def plus(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none") * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": replace(TASK, loss=plus)}, "task's loss"),
        ({"task": replace(TASK, model=MLP((3, 4, 2)))}, "initial model"),
        ({"task": replace(TASK, metrics={"accuracy": lambda o, t: 0.5})}, "task's metrics"),
        ({"data": replace(DATA, test=DATA.train["p0"])}, "data"),
        ({"data": replace(DATA, train={**DATA.train, "p2": DATA.train["p1"]})}, "data"),
        ({"seed": 1}, "seed"),
        ({"entropy": pt.SYSTEM}, "entropy"),
        ({"trainer": pt.SGD(epochs=1, learning_rate=0.7)}, "trainer"),
        ({"trainer": pt.SGD(epochs=1, optimizer=torch.optim.Adam)}, "trainer"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_stays_as_it_was(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"trainer": pt.SGD(epochs=1), "task": TASK, "data": DATA}
    pt.fit(**usual, runtimes=HERE, folder=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match=rf"another run or comparison: other .*{named}"):
        pt.fit(**(usual | change), runtimes=HERE, folder=tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        before = contents(tmp_path)
        with pytest.raises(pt.DataError, match="is in use: process"):
            pt.fit(pt.SGD(epochs=1), TASK, DATA, folder=tmp_path)
        assert contents(tmp_path) == before
    pt.fit(pt.SGD(epochs=1), TASK, DATA, folder=tmp_path)


def test_a_run_keeps_its_folder_while_it_trains(tmp_path: Path) -> None:
    seen = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(pt.DataError, match="is in use"):
            pt.fit(pt.SGD(epochs=1), TASK, DATA, folder=tmp_path)
        seen.append(done)

    pt.fit(pt.SGD(epochs=1), TASK, DATA, folder=tmp_path, progress=progress)
    assert seen


def test_a_fit_and_a_comparison_share_no_folder(tmp_path: Path) -> None:
    trainers: dict[str, Trainer] = {"pooled": pt.SGD(epochs=1)}
    pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path / "compared")
    pt.fit(trainers["pooled"], TASK, DATA, folder=tmp_path / "fitted")
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match="it holds a comparison"):
        pt.fit(trainers["pooled"], TASK, DATA, folder=tmp_path / "compared")
    with pytest.raises(pt.DataError, match="holds a fit"):
        pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path / "fitted")
    assert contents(tmp_path) == before
