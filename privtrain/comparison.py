"""Comparing: fit and audit many trainers on one task and one data set."""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from privtrain.attacks.attack import Attack, check_attack_names
from privtrain.attacks.scores import clopper_pearson
from privtrain.auditing import audit
from privtrain.checkpoint import identity_of, layout_of
from privtrain.core.errors import DataError, PrivacyError, UnsupportedError
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Comparison, Leakage, Predictor, Row, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import EntropyKind
from privtrain.core.statement import to_plain
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_distinct, check_positive, made_folder
from privtrain.privacy.study_ledger import StudyLedger
from privtrain.report.files import load, plain_comparison
from privtrain.report.html import comparison_fragment
from privtrain.report.progress import progress_bar
from privtrain.report.table import comparison_text
from privtrain.runtimes.flower import FlowerGrid
from privtrain.runtimes.processes import Processes
from privtrain.training import calibrate, fit

PACKAGES = ("torch", "numpy", "flwr", "opacus", "crypten", "dp-accounting", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trainer, one seed, one asked epsilon: what becomes a row.

    Args:
        label: What the user called the trainer.
        trainer: The trainer, before it is calibrated.
        seed: Public seed of the run.
        epsilon: The epsilon that is asked for, or None.
    """

    label: str
    trainer: Trainer
    seed: int
    epsilon: float | None

    @property
    def folder_name(self) -> str:
        """A folder's name that no other cell of the comparison has."""
        text = re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")[:40] or "trainer"
        settings = hashlib.sha256(f"{self.label}{self.trainer!r}".encode()).hexdigest()[:8]
        asked = "" if self.epsilon is None else f"-epsilon-{self.epsilon:g}"
        return f"{text}{asked}-seed-{self.seed}-{settings}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rows of a comparison share; see `compare`."""

    task: Task
    data: FederatedData
    attacks: tuple[Attack, ...]
    runtimes: Runtimes
    delta: float
    entropy: EntropyKind | None
    device: str
    study_ledger: StudyLedger | None = None


def cells(
    trainers: Mapping[str, Trainer], seeds: Iterable[int], epsilons: Sequence[float]
) -> Iterator[Cell]:
    """All rows of a comparison, in the order of trainers, epsilons and seeds.

    A trainer that draws no noise takes no budget: it has one row a seed.
    """
    chosen = list(seeds)
    for label, trainer in trainers.items():
        noisy = trainer.with_noise(1.0) is not None
        for epsilon in epsilons if noisy and epsilons else (None,):
            for seed in chosen:
                yield Cell(label=label, trainer=trainer, seed=seed, epsilon=epsilon)


def compare(
    trainers: Mapping[str, Trainer],
    task: Task,
    data: FederatedData,
    *,
    attacks: Sequence[Attack] = (),
    seeds: Iterable[int] = (0,),
    epsilons: Sequence[float] = (),
    runtimes: Runtimes | None = None,
    delta: float = 1e-5,
    entropy: EntropyKind | None = None,
    device: str = "cpu",
    folder: str | Path | None = None,
    study: Mapping[str, Any] | None = None,
    study_ledger: StudyLedger | None = None,
) -> Comparison:
    """Trains the same model on the same data in several ways, and attacks each of them.

    A trainer that fails shows its error in its row, and the others finish.

    Args:
        trainers: Label to trainer.
        task: What is learned.
        data: Who holds which rows.
        attacks: What is tried on each trained model.
        seeds: Public seeds; each gives a row.
        epsilons: What is asked of trainers that draw noise, which are calibrated for each of
            them; empty for the noise they have.
        runtimes: Where parties run; None for Flower's grid in this process, and real processes
            for a mesh.
        delta: Delta of every guarantee.
        entropy: `SEEDED` or `SYSTEM`; see `fit`.
        device: Where tensors are computed.
        folder: Where finished rows and checkpoints are kept, so that a comparison that was
            interrupted goes on; None keeps everything in memory.
        study: The study file that repeats the comparison, for its card.
        study_ledger: Adds up all rows' fits; a fit beyond its budget shows that in its row.

    Returns:
        One row a trainer, seed and asked epsilon, and the run card.

    Raises:
        ValueError: If there are no trainers or seeds, an epsilon is not positive, a seed or an
            epsilon stands there twice, or attacks share a name.
        DataError: If the folder holds rows of other data, another task, delta or attack.
    """
    if not trainers:
        raise ValueError("Expected trainers={} to name at least one trainer.")
    for epsilon in epsilons:
        check_positive(epsilon=epsilon)
    check_attack_names(attacks)
    chosen = list(seeds)
    if not chosen:
        raise ValueError("Expected seeds=[] to hold at least one seed.")
    check_distinct(seeds=chosen, epsilons=epsilons)
    where = runtimes or Runtimes(star=FlowerGrid(), mesh=Processes())
    home = None if folder is None else Path(folder)
    conditions = Conditions(
        task=task,
        data=data,
        attacks=tuple(attacks),
        runtimes=where,
        delta=delta,
        entropy=entropy,
        device=device,
        study_ledger=study_ledger,
    )
    if home is not None:
        claim(home, conditions)
    planned = list(cells(trainers, chosen, epsilons))
    rows = []
    for number, cell in enumerate(planned, start=1):
        place = None if home is None else home / cell.folder_name
        row = None if place is None else load_row(place)
        if row is None or row.error is not None:
            description = f"[{number}/{len(planned)}] {cell.label}"
            row = _run(cell, conditions, place, description)
            if place is not None:
                save_row(row, place)
        rows.append(row)
    return Comparison(
        rows=tuple(rows),
        card=run_card(trainers, task, data, where, chosen, epsilons, delta, device),
        study=study,
        as_text=comparison_text,
        as_html=comparison_fragment,
    )


def claim(folder: Path, conditions: Conditions) -> None:
    """Marks a folder as this comparison's, so that it never takes up rows of another one.

    Raises:
        DataError: If the folder is another comparison's, or cannot be written.
    """
    held = conditions.data
    mine = identity_of(
        conditions.task,
        (held.name, held.digest, layout_of(held)),
        (conditions.attacks, conditions.delta, conditions.entropy),
    )
    mark = made_folder(folder) / "comparison.id"
    if mark.exists() and mark.read_text() != mine:
        raise DataError(
            f"The folder {folder} holds rows of another data set, partition, task, delta or "
            "attack. Choose another folder."
        )
    mark.write_text(mine)


def save_row(row: Row, folder: Path) -> None:
    """Keeps a finished row in a folder, so that an interrupted comparison need not repeat it."""
    folder.mkdir(parents=True, exist_ok=True)
    document = plain_comparison(Comparison(rows=(row,), card={}))
    fresh = folder / "row.new"
    fresh.write_text(json.dumps(to_plain(document)))
    fresh.replace(folder / "row.json")


def load_row(folder: Path) -> Row | None:
    """The finished row in a folder, or None where there is none."""
    path = folder / "row.json"
    if not path.exists():
        return None
    return load(path).rows[0]


def _run(cell: Cell, shared: Conditions, folder: Path | None, description: str) -> Row:
    """One row; an error of any kind becomes the row's error, and the others go on."""
    empty = Row(
        trainer=cell.trainer.token, label=cell.label, seed=cell.seed, epsilon_asked=cell.epsilon
    )
    try:
        trainer, notes = _calibrated(cell, shared)
        with progress_bar(description) as progress:
            result = fit(
                trainer,
                shared.task,
                shared.data,
                runtimes=shared.runtimes,
                delta=shared.delta,
                seed=cell.seed,
                entropy=shared.entropy,
                device=shared.device,
                folder=folder,
                progress=progress,
                study_ledger=shared.study_ledger,
            )
        leakage, refused = _attacked(result, shared, cell.seed)
        filled = _filled(empty, result, shared.task, shared.data)
        return replace(filled, leakage=leakage, notes=(*notes, *filled.notes, *refused))
    # Whatever goes wrong in one trainer (a user's model, a lost party) must not lose the others.
    except Exception as error:
        return replace(empty, error=f"{type(error).__name__}: {error}")


def _attacked(
    result: TrainResult, shared: Conditions, seed: int
) -> tuple[tuple[Leakage, ...], tuple[str, ...]]:
    """What the attacks learned, and which of them do not apply to what was trained."""
    found, refused = [], []
    for attack in shared.attacks:
        try:
            found.append(audit(result, attack, shared.task, shared.data, seed=seed))
        except ValueError as error:
            # Canaries that a trainer may have made public are not protected by it, so there is
            # nothing to audit; its other figures stand.
            if result.members is None or shared.data.canaries is None:
                raise
            refused.append(f"{attack.name} was not run: {error}")
    return tuple(found), tuple(refused)


def _calibrated(cell: Cell, shared: Conditions) -> tuple[Trainer, tuple[str, ...]]:
    """The trainer with the noise that the asked epsilon needs; as it is where none would do."""
    if cell.epsilon is None:
        return cell.trainer, ()
    try:
        trainer = calibrate(
            cell.trainer,
            shared.data,
            epsilon=cell.epsilon,
            delta=shared.delta,
            runtimes=shared.runtimes,
        )
    except (PrivacyError, UnsupportedError) as error:
        return cell.trainer, (f"could not be calibrated to epsilon={cell.epsilon:g}: {error}",)
    return trainer, ()


def accuracy_with_interval(
    predictor: Predictor, task: Task, rows: Rows
) -> tuple[float, tuple[float, float]]:
    """Accuracy on rows, and its 95% Clopper-Pearson interval.

    Args:
        predictor: What is measured.
        task: Whose metric called "accuracy" is taken.
        rows: Test rows.

    Returns:
        Accuracy in 0..1, and the interval.
    """
    accuracy = task.metrics["accuracy"](predictor(rows.inputs), rows.labels)
    return accuracy, clopper_pearson(round(accuracy * len(rows)), len(rows))


def _filled(row: Row, result: TrainResult, task: Task, data: FederatedData) -> Row:
    accuracy, interval = accuracy_with_interval(result.predictor, task, data.test)
    spent = result.statement.epsilon(PUBLIC.name)
    asked = row.epsilon_asked
    return replace(
        row,
        accuracy=accuracy,
        accuracy_interval=interval,
        statement=result.statement,
        cost=result.cost,
        history=result.history,
        halted=result.halted,
        notes=result.notes,
        met=None if asked is None else spent <= asked,
    )


def run_card(
    trainers: Mapping[str, Trainer],
    task: Task,
    data: FederatedData,
    runtimes: Runtimes,
    seeds: Sequence[int],
    epsilons: Sequence[float],
    delta: float,
    device: str,
) -> dict[str, Any]:
    """What a reader needs to repeat a comparison. It holds public seeds only.

    Returns:
        Versions, configuration, data, machine and seeds, as values that JSON can hold.
    """
    validation, public = data.validation, data.public
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "data": {
            "name": data.name,
            "sha256": data.digest,
            "parties": len(data.parties),
            "split": str(data.split),
            "public_rows_stated": data.public_rows,
            "test_rows": len(data.test),
            "validation_rows": 0 if validation is None else len(validation),
            "public_part_rows": 0 if public is None else len(public),
        },
        "configuration": {
            "task": task.name,
            "model": _factory_name(task),
            "trainers": {label: repr(trainer) for label, trainer in trainers.items()},
            "runtimes": [r.name for r in (runtimes.star, runtimes.mesh) if r is not None],
            "device": device,
            "delta": delta,
            "epsilons": list(epsilons),
        },
        "public_seeds": list(seeds),
    }


def _factory_name(task: Task) -> str:
    name = getattr(task.model, "__qualname__", None)
    return f"{task.model.__module__}:{name}" if name else repr(task.model)


def versions() -> dict[str, str]:
    """Versions of Python, privtrain and what it stands on; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for package in ("privtrain", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The kind of machine, without its name."""
    import torch

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "byte_order": sys.byteorder,
    }


def failed(comparison: Comparison) -> tuple[Row, ...]:
    """The rows that failed."""
    return tuple(row for row in comparison.rows if row.error is not None)


def unmet(comparison: Comparison) -> tuple[Row, ...]:
    """The rows that spent more than the epsilon that was asked."""
    return tuple(row for row in comparison.rows if row.met is False)
