"""The rows of a comparison: each trains one trainer at one seed and epsilon, and attacks it."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from privtrain.attacks.attack import Attack
from privtrain.attacks.scores import clopper_pearson
from privtrain.core.cost import Basis
from privtrain.core.errors import DataError, PrivacyError, UnsupportedError
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Comparison, Predictor, Row, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import EntropyKind, Seeds, global_generator
from privtrain.core.statement import to_plain
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import made_folder
from privtrain.ledgers.study import StudyLedger
from privtrain.report.files import load, plain_comparison
from privtrain.report.progress import progress_bar
from privtrain.runs.attacking import KEEP, RAISE, attacked, failure_of
from privtrain.runs.calibrating import calibrate
from privtrain.runs.card import parties_are_public, promises, rows_are_public
from privtrain.runs.checkpoint import identity_of, keyed_identity, layout_of
from privtrain.runs.fitting import fit


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
        # The text is for readers, the hash tells settings apart: a trainer is known by its repr.
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
    errors: str = KEEP


def cells(
    trainers: Mapping[str, Trainer], seeds: Iterable[int], epsilons: Sequence[float]
) -> Iterator[Cell]:
    """All rows of a comparison, in the order of trainers, epsilons and seeds.

    A trainer that draws no noise takes no budget: it has one row a seed.
    """
    # An iterator would be empty after the first trainer.
    chosen = list(seeds)
    for label, trainer in trainers.items():
        noisy = trainer.with_noise(1.0) is not None
        for epsilon in epsilons if noisy and epsilons else (None,):
            for seed in chosen:
                yield Cell(label=label, trainer=trainer, seed=seed, epsilon=epsilon)


def claim(folder: Path, conditions: Conditions) -> None:
    """Marks a folder as this comparison's, so that it never takes up rows of another one.

    Raises:
        DataError: If the folder is another comparison's, or cannot be written.
    """
    data = conditions.data
    # Trainers, seeds and epsilons are left out: more of them may be added to a folder later.
    mine = identity_of(
        conditions.task,
        (data.name, data.digest, layout_of(data)),
        (conditions.attacks, conditions.delta, conditions.entropy),
    )
    mark = made_folder(folder) / "comparison.id"
    keyed = keyed_identity(mine, folder)
    # Version 0.1 wrote its mark without a key: it is recognised once, and replaced.
    if mark.exists() and mark.read_text() not in (keyed, mine):
        raise DataError(
            f"The folder {folder} holds rows of another data set, partition, task, delta or "
            "attack, or the key in its private folder is gone. Choose another folder."
        )
    mark.write_text(keyed)


def save_row(row: Row, folder: Path) -> None:
    """Keeps a finished row in a folder, so that an interrupted comparison need not repeat it."""
    folder.mkdir(parents=True, exist_ok=True)
    document = plain_comparison(Comparison(rows=(row,), card={}))
    # Replaced as a whole: an interruption never leaves half a row to be read.
    fresh = folder / "row.new"
    fresh.write_text(json.dumps(to_plain(document)))
    fresh.replace(folder / "row.json")


def load_row(folder: Path) -> Row | None:
    """The finished row in a folder, or None where there is none."""
    path = folder / "row.json"
    if not path.exists():
        return None
    return load(path).rows[0]


def run_cell(cell: Cell, shared: Conditions, folder: Path | None, description: str) -> Row:
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
        # First: an attack is a user's code, and may change the predictor that it was given.
        filled = _filled(empty, result, shared)
        leakage, refused = attacked(
            *(result, shared.attacks, shared.task, shared.data),
            seed=cell.seed,
            errors=shared.errors,
        )
        # How many rows were drawn at least once follows the sample, which a promise may count on.
        if result.members is not None and promises([result.statement]):
            leakage = tuple(replace(one, members=None, non_members=None) for one in leakage)
        return replace(filled, leakage=leakage, notes=(*notes, *filled.notes, *refused))
    # Whatever goes wrong in one trainer (a user's model, a lost party) must not lose the others.
    except Exception as error:
        if shared.errors == RAISE:
            raise
        failure = failure_of(error)
        return replace(empty, error=failure.error, traceback=failure.traceback)


def published(rows: Iterable[Row], data: FederatedData) -> tuple[Row, ...]:
    """The rows without what a guarantee of any of them hides from who reads all of them.

    What is counted in a run that promises nothing, such as the bytes of all rows, would tell the
    number that another run of the same comparison promises to hide.
    """
    made = tuple(rows)
    statements = [row.statement for row in made if row.statement is not None]
    hides_rows = not rows_are_public(data, statements)
    hidden = set() if parties_are_public(statements) else set(data.parties)
    return tuple(_published(row, hides_rows, hidden) for row in made)


def _published(row: Row, hides_rows: bool, hidden: set[str]) -> Row:
    cost = row.cost
    counted = cost is not None and cost.basis is Basis.MEASURED
    # Figures by party tell who there is, whatever they follow from.
    named = cost is not None and not hidden.isdisjoint(cost.bytes_sent_by_party)
    if cost is not None and ((hides_rows and counted) or named):
        cost = replace(
            cost, bytes_sent=None, rounds=None, bytes_sent_by_party={}, basis=Basis.WITHHELD
        )
    leakage = row.leakage
    if hides_rows:
        leakage = tuple(replace(one, members=None, non_members=None) for one in leakage)
    return replace(row, cost=cost, leakage=leakage)


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
    # The row then shows what the trainer spends with its own noise, and that the asked epsilon is
    # not met; leaving it out would favour it.
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

    Raises:
        ValueError: If there is no such metric, or it gives no fraction.
    """
    if "accuracy" not in task.metrics:
        raise ValueError(
            f"Expected task.metrics to hold 'accuracy'; there is {', '.join(task.metrics) or None}."
        )
    # What a model draws must not move the generators of other threads, nor follow from them.
    with global_generator(Seeds(0)["evaluation", 0, ""]):
        outputs = predictor(rows.inputs)
    # A copy: a metric may write into its targets, and the next row is measured on them.
    accuracy = float(task.metrics["accuracy"](outputs, rows.labels.clone()))
    if not 0 <= accuracy <= 1:
        raise ValueError(f"Expected task.metrics['accuracy'] to be in 0..1, not {accuracy}.")
    # The interval is that of a count of successes, so the accuracy is turned into one again.
    return accuracy, clopper_pearson(round(accuracy * len(rows)), len(rows))


def _filled(row: Row, result: TrainResult, shared: Conditions) -> Row:
    failure, accuracy, interval = None, None, None
    try:
        accuracy, interval = accuracy_with_interval(result.predictor, shared.task, shared.data.test)
    except Exception as error:  # a user's metric may raise anything
        if shared.errors == RAISE:
            raise
        failure = failure_of(error)
    # What was spent, by the statement; what was calibrated to is not evidence.
    spent = result.statement.epsilon(PUBLIC.name)
    asked = row.epsilon_asked
    return replace(
        row,
        accuracy=accuracy,
        accuracy_interval=interval,
        accuracy_failure=failure,
        statement=result.statement,
        cost=result.cost,
        history=result.history,
        halted=result.halted,
        notes=result.notes,
        met=None if asked is None else spent <= asked,
    )
