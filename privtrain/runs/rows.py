"""The rows of a comparison: each trains one trainer at one seed and epsilon, and attacks it."""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from privtrain.attacks.attack import Attack
from privtrain.core.abilities import Finished, trained_task
from privtrain.core.cost import Basis
from privtrain.core.errors import DataError, PrivacyError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.identity import Snapshot, value_digest
from privtrain.core.measures import ACCURACY
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import initial_model
from privtrain.core.result import Comparison, Measurement, Row, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import EntropyKind, Seeds
from privtrain.core.settings import kept_settings
from privtrain.core.statement import to_plain
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_follows
from privtrain.core.writing import write_file
from privtrain.ledgers.study import StudyLedger
from privtrain.report.files import JSON_NAME, load, plain_comparison
from privtrain.report.progress import progress_bar
from privtrain.runs.attacking import attacked_row
from privtrain.runs.auditing import store_for
from privtrain.runs.calibrating import calibrate
from privtrain.runs.card import without_counts
from privtrain.runs.checkpoint import Identity
from privtrain.runs.evidence import EVIDENCE, is_kept, keep_evidence
from privtrain.runs.fitting import fit_trial as fit
from privtrain.runs.keeping import INSIDE, MODEL, load_model, save_model
from privtrain.runs.marks import (
    COMPARISON,
    RUN,
    checked_mark,
    differences,
    environment_of,
    identity_of,
    new_mark,
    write_mark,
)
from privtrain.runs.measuring import KEEP, RAISE, failure_of, measured, one_class
from privtrain.runs.shadowing import shadows_kept


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trainer, one seed, one asked epsilon: what becomes a row.

    Args:
        label: What the user called the trainer.
        trainer: The trainer, before it is calibrated.
        seed: Public seed of the run.
        epsilon: The epsilon that is asked for, or None.
        baseline: Label of the row that the gap is measured from, or None.
    """

    label: str
    trainer: Trainer
    seed: int
    epsilon: float | None
    baseline: str | None = None

    def place(self, home: Path, identity: Identity) -> Path:
        """The row's folder in a comparison's: no other cell has it, in any process.

        Args:
            home: The comparison's folder.
            identity: What identifies the comparison.
        """
        parts = (self.label, self.trainer.token, self.trainer, self.seed, self.epsilon)
        return home / f"{self._text}{identity.written(value_digest(parts).hex(), home)[:16]}"

    def others(self, home: Path) -> list[Path]:
        """Folders of rows of this label, seed and epsilon, whose trainer may be another one."""
        # The text is for readers; it may be that of two labels.
        return sorted(
            path for path in home.iterdir() if re.fullmatch(f"{self._text}[0-9a-f]+", path.name)
        )

    @property
    def _text(self) -> str:
        text = re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")[:40] or "trainer"
        asked = "" if self.epsilon is None else f"-epsilon-{self.epsilon:g}"
        return f"{text}{asked}-seed-{self.seed}-"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rows of a comparison share; see `compare`."""

    task: Task
    data: FederatedData
    attacks: tuple[Attack, ...]
    runtimes: Runtimes
    delta: float
    entropy: EntropyKind
    device: str
    study_ledger: StudyLedger | None = None
    errors: str = KEEP
    trainers: tuple[Trainer, ...] = ()
    keep_models: bool = False
    workers: int = 1
    keep_for_audit: bool = False
    keep_messages: bool = False

    @cached_property
    def begun(self) -> Snapshot:
        """What the user's objects were before the first row, which may change them."""
        return Snapshot(self.task, self.attacks, self.trainers)

    @cached_property
    def identity(self) -> Identity:
        """What identifies the comparison; more trainers, seeds and epsilons may be added to it."""
        begun = self.begun
        try:
            # A factory may load weights from a file.
            with kept_settings():
                start: object = initial_model(self.task, Seeds(0)["initialisation", 0, ""])
        except OWN_ERRORS as error:  # each row says what is wrong with the model
            start = type(error).__name__
        further = {"attacks": self.attacks, "delta": self.delta, "initial model": start}
        return identity_of(self.task, self.data, self.entropy, earlier=begun, **further)

    @cached_property
    def environment(self) -> dict[str, str]:
        """What the rows stand on."""
        return environment_of(self.runtimes, self.device)


def cells(
    trainers: Mapping[str, Trainer],
    seeds: Iterable[int],
    epsilons: Sequence[float],
    baseline: Mapping[str, str | None] = MappingProxyType({}),
) -> Iterator[Cell]:
    """All rows of a comparison, in the order of trainers, epsilons and seeds.

    A trainer that draws no noise takes no budget: it has one row a seed.

    Args:
        trainers: Label to trainer.
        seeds: Public seeds.
        epsilons: What is asked of trainers that draw noise.
        baseline: Label to the label of its baseline.
    """
    # An iterator would be empty after the first trainer.
    chosen = list(seeds)
    for label, trainer in trainers.items():
        noisy = _draws_noise(label, trainer)
        for epsilon in epsilons if noisy and epsilons else (None,):
            for seed in chosen:
                yield Cell(
                    label=label,
                    trainer=trainer,
                    seed=seed,
                    epsilon=epsilon,
                    baseline=baseline.get(label),
                )


def _draws_noise(label: str, trainer: Trainer) -> bool:
    """Whether a trainer draws noise; what is no trainer is refused before any is trained."""
    if not isinstance(label, str):
        raise ValueError(f"Expected trainers to have labels in quotes, not {label!r}.")
    name = f"trainers[{label!r}]"
    check_follows(Trainer, "pt.SGD()", **{name: trainer})
    try:
        return trainer.with_noise(1.0) is not None
    except OWN_ERRORS as error:  # a user's own trainer may raise anything
        raise ValueError(
            f"Expected {name}={trainer!r} to answer with_noise(1.0) with a trainer or None; it "
            f"raised {type(error).__name__}: {error}"
        ) from error


def check_folder(folder: Path, conditions: Conditions) -> None:
    """Refuses a folder that belongs to something else; nothing in it is changed.

    Raises:
        DataError: If the folder is another comparison's, holds a fit, or was written by version
            0.1 or a newer one.
    """
    # Written beside it by `save`; a newer version knows what is in there and this one does not.
    written = folder / JSON_NAME
    if written.exists():
        load(written)
    begun = (*folder.glob(f"*/{ROW}"), *folder.glob("*/state.pt"))
    mark = folder / COMPARISON
    checked_mark(mark, conditions.identity, conditions.environment, begun=begun)
    if not mark.exists() and any((folder / name).exists() for name in (RUN, "state.pt")):
        raise DataError(
            f"The folder {folder} holds a fit. Choose another folder for this comparison."
        )


def claim(folder: Path, conditions: Conditions) -> None:
    """Marks a folder as this comparison's, so that it never takes up rows of another one.

    Raises:
        DataError: See `check_folder`.
    """
    check_folder(folder, conditions)
    if not (folder / COMPARISON).exists():
        mark = new_mark(conditions.identity, conditions.environment, folder)
        write_mark(folder / COMPARISON, mark)


ROW = "row.json"
"""A finished row in its folder."""


def save_row(row: Row, folder: Path, environment: Mapping[str, str]) -> None:
    """Keeps a finished row in a folder, so that an interrupted comparison need not repeat it."""
    folder.mkdir(parents=True, exist_ok=True)
    document = plain_comparison(Comparison(rows=(row,), card={"versions": environment}))
    # Replaced as a whole: an interruption never leaves half a row to be read.
    write_file(folder / ROW, json.dumps(to_plain(document)))


def load_row(folder: Path, environment: Mapping[str, str] | None = None) -> Row | None:
    """The finished row in a folder, or None where there is none.

    Args:
        folder: The row's folder.
        environment: What rows stand on now; the row notes where it stood on something else.
    """
    path = folder / ROW
    if not path.exists():
        return None
    made = load(path)
    changed = "" if environment is None else differences(made.card.get("versions", {}), environment)
    (row,) = made.rows
    return replace(row, notes=(*row.notes, f"trained with {changed}")) if changed else row


def kept_row(row: Row | None, folder: Path, shared: Conditions, trainer: Trainer) -> Row | None:
    """A finished row with its model; None where that has to be trained.

    Args:
        row: What `load_row` found.
        folder: The row's folder.
        shared: What all rows share.
        trainer: The row's trainer.

    Raises:
        DataError: If the model is torn or was changed.
    """
    # A row that failed is tried again: a lost party may be back.
    if row is None or row.error is not None:
        return None
    needed = shared.keep_for_audit and not isinstance(trainer, Finished)
    if needed and not is_kept(folder / EVIDENCE, everything=shared.keep_messages):
        return None
    if not shared.keep_models:
        return row
    unkept = any(note.startswith(MODEL_NOT_KEPT) for note in row.notes)
    if isinstance(trainer, Finished) and (unkept or (folder / INSIDE / MODEL).exists()):
        # It need not be the task's model; that it is the same one, the row's folder says.
        own = trainer.trained_elsewhere(shared.task, shared.data).predictor
        return replace(row, predictor=own)
    if unkept:
        return row
    if not (folder / INSIDE / MODEL).exists():
        return None
    model = trained_task(trainer, shared.task).model
    kept = load_model(folder / INSIDE, model=model, device=shared.device)
    return replace(row, predictor=kept)


MODEL_NOT_KEPT = "its model is not kept"
"""Begins the note of a row whose predictor is no torch model."""


def _with_model(row: Row, result: TrainResult, shared: Conditions, folder: Path | None) -> Row:
    """The row with its model, which is also written into the row's folder, if it has one."""
    if not shared.keep_models:
        return row
    row = replace(row, predictor=result.predictor)
    if folder is None:
        return row
    # Beside other rows: what this one may say of the number of rows, another one may hide.
    card = dict(result.card) if shared.data.published else without_counts(result.card)
    try:
        save_model(replace(result, card=card), folder / INSIDE, force=True)
    except UnsupportedError as error:
        return replace(row, notes=(*row.notes, f"{MODEL_NOT_KEPT}: {error}"))
    return row


def left_behind(cell: Cell, home: Path, planned: Collection[Path]) -> tuple[str, ...]:
    """Notes on rows that stay where they are, since another trainer of the label made them."""
    left = [path.name for path in cell.others(home) if path not in planned]
    if not left:
        return ()
    return (
        f"trained anew: the folder has {', '.join(left)} of this label, seed and epsilon, whose "
        "trainer has other settings or other code; it was left as it is",
    )


@kept_settings()
def run_cell(cell: Cell, shared: Conditions, folder: Path | None, description: str) -> Row:
    """One row; an error of any kind becomes the row's error, and the others go on."""
    empty = Row(
        trainer=cell.trainer.token,
        label=cell.label,
        seed=cell.seed,
        epsilon_asked=cell.epsilon,
        baseline=cell.baseline,
    )
    earlier = shared.begun if folder is not None else None
    if folder is not None and not (folder / ROW).exists():
        # Of an attempt that did not end, and perhaps of other noise.
        shutil.rmtree(folder / EVIDENCE, ignore_errors=True)
    try:
        trainer, notes = calibrated(cell, shared)
        with progress_bar(description) as progress:
            result = fit(
                trainer,
                shared.task,
                shared.data,
                noise_seed=cell.seed,
                # A figure of a simulation must not hang on whether somebody pressed Ctrl-C.
                repeats=True,
                runtimes=shared.runtimes,
                delta=shared.delta,
                seed=cell.seed,
                entropy=shared.entropy,
                device=shared.device,
                folder=folder,
                progress=progress,
                study_ledger=shared.study_ledger,
                earlier=earlier,
                store=store_for(
                    *(shared.attacks, shared.entropy, folder), everything=shared.keep_messages
                ),
            )
        # First: an attack is a user's code, and may change the predictor that it was given.
        filled = _with_model(_filled(empty, result, shared), result, shared, folder)
        if shared.keep_for_audit and folder is not None and not isinstance(trainer, Finished):
            keep_evidence(
                *(result, folder / EVIDENCE, shared.task, shared.data),
                earlier=earlier,
                everything=shared.keep_messages,
            )
        filled = replace(filled, notes=(*notes, *filled.notes))
        given = (shared.attacks, shared.task, shared.data)
        with shadows_kept(folder, shared.workers):
            return attacked_row(filled, result, *given, errors=shared.errors)
    # Whatever goes wrong in one trainer (a user's model, a lost party) must not lose the others.
    except OWN_ERRORS as error:
        if shared.errors == RAISE:
            raise
        failure = failure_of(error)
        return replace(empty, error=failure.error, traceback=failure.traceback)


def calibrated(cell: Cell, shared: Conditions) -> tuple[Trainer, tuple[str, ...]]:
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
    # The row then shows what the trainer spends with its own noise, and that the asked epsilon is
    # not met; leaving it out would favour it.
    except (PrivacyError, UnsupportedError) as error:
        return cell.trainer, (f"could not be calibrated to epsilon={cell.epsilon:g}: {error}",)
    return trainer, ()


def _filled(row: Row, result: TrainResult, shared: Conditions) -> Row:
    found = measured(result.predictor, shared.task, shared.data.test, errors=shared.errors)
    accuracy = found.metrics.get(ACCURACY, Measurement())
    # What was spent, by the statement; what was calibrated to is not evidence.
    spent = result.statement.epsilon(PUBLIC)
    asked = row.epsilon_asked
    return replace(
        row,
        accuracy=accuracy.value,
        accuracy_interval=accuracy.interval,
        accuracy_failure=accuracy.failure,
        metrics=found.metrics,
        main=str(shared.task.main),
        classes_predicted=found.classes_predicted,
        statement=result.statement,
        # Of a model that was trained elsewhere nobody here knows one.
        cost=None if result.cost.basis is Basis.ELSEWHERE else result.cost,
        history=result.history,
        halted=result.halted,
        notes=(*result.notes, *one_class(found.classes_predicted, shared.data.test)),
        met=None if asked is None else spent <= asked,
    )
