"""Checkpoints: a folder of another run, broken files, full disks."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import (
    PrivtrainError,
)
from privtrain.core.result import TrainResult
from privtrain.core.seeding import SEEDED, SYSTEM
from privtrain.core.trainer import Trainer
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.checkpoint import identity_of, layout_of
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.sgd import SGD
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


def test_an_identity_without_a_key_is_recognised_once_and_replaced(tmp_path: Path) -> None:
    """As version 0.1 wrote it, which whoever knows all rows but one value could try."""
    with pytest.raises(KeyboardInterrupt):
        run(SGD(epochs=3), tmp_path, progress=stop_at(1))
    path = tmp_path / "state.pt"
    saved = torch.load(path, weights_only=True)
    plain = identity_of(SGD(epochs=3), TASK, DATA.name, DATA.digest, layout_of(DATA), 0, SEEDED)
    assert saved["identity"] != plain
    torch.save({**saved, "identity": plain}, path)
    resumed = run(SGD(epochs=3), tmp_path)
    assert torch.load(path, weights_only=True)["identity"] == saved["identity"]
    assert torch.equal(vector(module(resumed)), vector(module(run(SGD(epochs=3)))))
    # A run that was finished is rewritten, too, when it is next looked at.
    finished = torch.load(path, weights_only=True)
    torch.save({**finished, "identity": plain}, path)
    run(SGD(epochs=3), tmp_path)
    assert torch.load(path, weights_only=True)["identity"] == saved["identity"]


def test_without_its_key_a_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    run(SGD(epochs=1), tmp_path)
    (tmp_path / "private" / "digest.key").unlink()
    with pytest.raises(PrivtrainError, match="the key in its private folder is gone"):
        run(SGD(epochs=1), tmp_path)
