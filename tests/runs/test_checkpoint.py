"""Checkpoints: a folder of another run, broken files, full disks."""

import errno
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.result import History, TrainResult
from privtrain.core.seeding import SYSTEM
from privtrain.core.trainer import Trainer
from privtrain.core.transcript import Transcript
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.checkpoint import FileCheckpoint, Identity, read_state
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.runs.folders import contents
from tests.trainers.federations import STAR, TASK, a_federation, module, vector

DATA = a_federation(12, 9, 15, public_rows=36)
LOCAL = PlainSteps(epochs=1, batch_size=5)
NOISY = Release(Gaussian(1.0, 1.0))


def run(trainer: Trainer, folder: Path | None = None, **options: object) -> TrainResult:
    return fit(trainer, TASK, DATA, runtimes=STAR, folder=folder, **options)  # type: ignore[arg-type]


def stop_at(place: int) -> Callable[[int, int], None]:
    """Interrupts a run right after a checkpoint."""

    def progress(done: int, total: int) -> None:
        if done == place:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "other",
    [
        {"trainer": FedAvg(rounds=3, local=PlainSteps(learning_rate=0.3))},
        {"trainer": FedAvg(rounds=4, local=LOCAL)},
        {"seed": 1},
        {"data": a_federation(12, 9)},
        {"task": replace(TASK, name="other")},
        {"trainer": FedAvg(rounds=3, local=LOCAL, release=NOISY)},
        {"entropy": SYSTEM},
    ],
    ids=["settings", "rounds", "seed", "data", "task", "release", "entropy"],
)
def test_the_folder_of_another_run_is_refused(other: dict[str, object], tmp_path: Path) -> None:
    given = {"trainer": FedAvg(rounds=3, local=LOCAL), "task": TASK, "data": DATA, "seed": 0}
    settings = {"runtimes": STAR, "folder": tmp_path}
    fit(**given, **settings)  # type: ignore[arg-type]
    with pytest.raises(PrivtrainError, match=r"another (run|plan)"):
        fit(**{**given, **settings, **other})  # type: ignore[arg-type]


def test_a_checkpoint_is_for_its_owner_alone(tmp_path: Path) -> None:
    # As an interrupted write of anybody may have left it.
    (tmp_path / "state.new").touch(mode=0o644)
    run(SGD(epochs=1), tmp_path)
    assert stat.S_IMODE((tmp_path / "state.pt").stat().st_mode) == 0o600
    assert not (tmp_path / "state.new").exists()


def test_exchanges_without_a_message_are_numbered_after_an_interruption(tmp_path: Path) -> None:
    def checkpoint() -> FileCheckpoint:
        path = tmp_path / "state.pt"
        identity = Identity({"rows": "digest"}, published=True)
        return FileCheckpoint(Transcript(), History(), path, identity, saved=read_state(path))

    first = checkpoint()
    first.transcript.send("a", "b", "x", torch.ones(1), round=first.transcript.exchange())
    first.transcript.exchange()
    first.save(1, {})
    assert checkpoint().transcript.exchange() == 2
    # An earlier version told no number: it follows from the entries, as it did.
    path = tmp_path / "state.pt"
    saved = torch.load(path, weights_only=True)
    del saved["exchanges"]
    torch.save(saved, path)
    assert checkpoint().transcript.exchange() == 1
    torch.save({**saved, "exchanges": "many"}, path)
    with pytest.raises(PrivtrainError, match=r"state\.pt cannot be read"):
        checkpoint()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_broken_checkpoint_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(PrivtrainError, match=r"state\.pt cannot be read"):
        run(SGD(epochs=1), tmp_path)


def test_a_checkpoint_that_lacks_something_is_a_clear_error(tmp_path: Path) -> None:
    torch.save({"done": 1}, tmp_path / "state.pt")
    with pytest.raises(PrivtrainError, match=r"state\.pt cannot be read"):
        run(SGD(epochs=1), tmp_path)


@pytest.mark.parametrize("trainer", [SGD(epochs=3), FedAvg(rounds=3, local=LOCAL, release=NOISY)])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path, progress=stop_at(1))

    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(PrivtrainError, match=r"(?s)No space left.*Free disk space"):
            run(trainer, tmp_path)
    assert bool(torch.isfinite(vector(module(run(trainer, tmp_path)))).all())


@pytest.mark.parametrize("mark", ["kept", "gone"])
def test_a_checkpoint_of_version_0_1_is_refused(mark: str, tmp_path: Path) -> None:
    run(SGD(epochs=1), tmp_path)
    path = tmp_path / "state.pt"
    saved = torch.load(path, weights_only=True)
    del saved["schema"]
    torch.save(saved, path)
    if mark == "gone":
        (tmp_path / "run.id").unlink()
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"version 0\.1 .* Choose another folder"):
        run(SGD(epochs=1), tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    run(SGD(epochs=1), tmp_path)
    path = tmp_path / "state.pt"
    torch.save({**torch.load(path, weights_only=True), "schema": 99}, path)
    with pytest.raises(DataError, match=r"state\.pt was written by a newer version"):
        run(SGD(epochs=1), tmp_path)


def test_a_checkpoint_under_the_mark_of_another_run_is_refused(tmp_path: Path) -> None:
    """As when files of two folders were put together by hand."""
    run(SGD(epochs=1), tmp_path / "one")
    run(SGD(epochs=2), tmp_path / "two")
    (tmp_path / "two" / "state.pt").replace(tmp_path / "one" / "state.pt")
    with pytest.raises(PrivtrainError, match=r"state\.pt belongs to another run"):
        run(SGD(epochs=1), tmp_path / "one")


def test_without_its_key_a_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    run(SGD(epochs=1), tmp_path)
    (tmp_path / "private" / "digest.key").unlink()
    before = contents(tmp_path)
    with pytest.raises(PrivtrainError, match="the key in its private folder is gone"):
        run(SGD(epochs=1), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("layout", ["of today", "before the run kept its own part"])
def test_a_data_dependent_charge_survives_an_interruption(layout: str, tmp_path: Path) -> None:
    """Votes are counted once: a resumed run has the charge from its checkpoint alone."""
    trainer = PATE(
        teachers=6,
        queries=8,
        release=Release(GNMax(2.0), finish=ARGMAX),
        steps=LOCAL,
        student=LOCAL,
    )
    whole = run(trainer, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(trainer, tmp_path / "cut", progress=stop_at(1))
    path = tmp_path / "cut" / "state.pt"
    saved = torch.load(path, weights_only=True)
    state, charges = saved["state"], saved["state"]["realised"]
    assert set(charges) == {"public"}
    assert charges["public"]["kind"] == "RdpCurve"
    if layout != "of today":
        orders, rdp = charges["public"]["fields"]
        old = {"asked": state["asked"], "labels": state["labels"]}
        torch.save({**saved, "state": {**old, "realised": {"public": (orders, rdp)}}}, path)
    resumed = run(trainer, tmp_path / "cut")
    assert resumed.statement.guarantees == whole.statement.guarantees
    assert any(guarantee.data_dependent for guarantee in resumed.statement.guarantees)
    assert torch.equal(vector(module(resumed)), vector(module(whole)))


def test_a_charge_that_stands_for_no_event_is_refused(tmp_path: Path) -> None:
    run(SGD(epochs=1), tmp_path)
    path = tmp_path / "state.pt"
    saved = torch.load(path, weights_only=True)
    for broken in ({"kind": "Nothing", "fields": []}, ([2.0],)):
        saved["state"]["realised"] = {"public": broken}
        torch.save(saved, path)
        with pytest.raises(PrivtrainError, match=r"cannot be read|not known here"):
            run(SGD(epochs=1), tmp_path)


def test_processor_time_adds_up_over_sittings(tmp_path: Path) -> None:
    first = FileCheckpoint(Transcript(), History(), tmp_path / "state.pt")
    first.save(1, {})
    saved = read_state(tmp_path / "state.pt")
    assert saved is not None and saved["cpu_seconds"] >= 0
    saved = {**saved, "cpu_seconds": 1000.0}
    again = FileCheckpoint(Transcript(), History(), tmp_path / "state.pt", saved=saved)
    assert 1000 <= (again.cpu_seconds() or 0) < 1100
    # Of workers in earlier sittings nobody knows, and of earlier versions nothing.
    assert again.cpu_seconds([5.0]) is None
    old = {name: value for name, value in saved.items() if name != "cpu_seconds"}
    assert (
        FileCheckpoint(Transcript(), History(), tmp_path / "state.pt", saved=old).cpu_seconds()
        is None
    )
    again.forget()
    assert 5 <= (again.cpu_seconds([5.0]) or 0) < 100
