"""Comparing: one comparison of many trainers on one task and one data set."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from privtrain.attacks.attack import Attack, check_attack_names, check_attacks
from privtrain.core.errors import DataError
from privtrain.core.folders import locked_folder
from privtrain.core.observers import check_observer
from privtrain.core.result import Comparison, Row
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import EntropyKind, kind_of
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_distinct, check_member, check_positive, made_folder
from privtrain.ledgers.study import StudyLedger
from privtrain.report.html import comparison_fragment
from privtrain.report.table import comparison_text
from privtrain.runs.attacking import KEEP, RAISE
from privtrain.runs.card import run_card
from privtrain.runs.rows import (
    Cell,
    Conditions,
    cells,
    check_folder,
    claim,
    left_behind,
    load_row,
    published,
    run_cell,
    save_row,
)
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.processes.mesh import Processes


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
    errors: str = KEEP,
) -> Comparison:
    """Trains the same model on the same data in several ways, and attacks each of them.

    A trainer that fails shows its error in its row, and the others finish. So does an attack, or
    the metric: the other figures of the row stand.

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
            interrupted goes on, with the key of its digests in `private/`; never publish it. One
            comparison at a time works there. A row whose trainer changed, its code included, is
            trained anew beside the old one. None keeps everything in memory, and the card then
            holds no digest of the rows.
        study: The study file that repeats the comparison, for its card.
        study_ledger: Adds up all rows' fits; a fit beyond its budget shows that in its row.
        errors: "keep" keeps an error in its row, with its traceback; "raise" raises it. Rows that
            were finished before are in the folder.

    Returns:
        One row a trainer, seed and asked epsilon, and the run card.

    Raises:
        ValueError: If there are no trainers or seeds, a trainer or an attack is none, `errors` is
            another word, an epsilon is not positive, a seed or an epsilon stands there twice,
            attacks share a name, or one observes as a party that is not there.
        DataError: If the test rows have no targets, or the folder is in use, or holds rows of other
            data, another task, delta, attack or entropy, or of version 0.1.
    """
    check_member((KEEP, RAISE), errors=errors)
    _check_mapping(trainers)
    conditions = _conditions(task, data, attacks, runtimes, delta, entropy, device, study_ledger)
    conditions = replace(conditions, errors=errors, trainers=tuple(trainers.values()))
    planned = _planned(trainers, conditions, seeds, epsilons)
    chosen = list(dict.fromkeys(cell.seed for cell in planned))
    home = None if folder is None else made_folder(folder)
    with ExitStack() as stack:
        if home is not None:
            stack.enter_context(locked_folder(home))
            # Rows of other data beside these would make the comparison dishonest.
            claim(home, conditions)
        rows = _rows(planned, conditions, home)
    kind, where = conditions.entropy, conditions.runtimes
    return Comparison(
        rows=published(rows, data),
        card=run_card(
            *(trainers, task, data, where, chosen, epsilons, delta, device),
            statements=[row.statement for row in rows if row.statement is not None],
            entropy=kind.value,
            folder=home,
        ),
        study=study,
        as_text=comparison_text,
        as_html=comparison_fragment,
    )


def check_comparison(
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
    folder: Path,
) -> None:
    """Refuses what `compare` would refuse, and changes nothing in the folder; see there."""
    conditions = _conditions(task, data, attacks, runtimes, delta, entropy, device, None)
    _check_mapping(trainers)
    _planned(trainers, conditions, seeds, epsilons)
    check_folder(folder, conditions)


def _conditions(
    task: Task,
    data: FederatedData,
    attacks: Sequence[Attack],
    runtimes: Runtimes | None,
    delta: float,
    entropy: EntropyKind | None,
    device: str,
    study_ledger: StudyLedger | None,
) -> Conditions:
    tried = check_attacks(attacks)
    check_attack_names(tried)
    if data.test.targets is None:
        raise DataError(
            "Expected data.test.targets, by which compare measures the accuracy of every row; "
            "there are none. Give them, or train by fit, which needs none."
        )
    for attack in tried:  # before hours of training, after which `audit` would refuse it
        check_observer(attack.observer, data.parties)
    where = runtimes or Runtimes(star=FlowerGrid(), mesh=Processes())
    return Conditions(
        task=task,
        data=data,
        attacks=tried,
        runtimes=where,
        delta=delta,
        entropy=kind_of(entropy, real=where.star is not None and where.star.real),
        device=device,
        study_ledger=study_ledger,
    )


def _check_mapping(trainers: object) -> None:
    if not isinstance(trainers, Mapping):
        raise ValueError(
            f"Expected trainers={trainers!r} to be a mapping from label to trainer, such as "
            "{'sgd': pt.SGD()}."
        )


def _planned(
    trainers: Mapping[str, Trainer],
    conditions: Conditions,
    seeds: Iterable[int],
    epsilons: Sequence[float],
) -> list[Cell]:
    if not trainers:
        raise ValueError("Expected trainers={} to name at least one trainer.")
    for epsilon in epsilons:
        check_positive(epsilon=epsilon)
    chosen = list(seeds)
    if not chosen:
        raise ValueError("Expected seeds=[] to hold at least one seed.")
    check_distinct(seeds=chosen, epsilons=epsilons)
    return list(cells(trainers, chosen, epsilons))


def _rows(planned: Sequence[Cell], conditions: Conditions, home: Path | None) -> list[Row]:
    # Before the first row: what a trainer holds may change while it works.
    places: list[Path | None] = [None] * len(planned)
    if home is not None:
        places = [cell.place(home, conditions.identity) for cell in planned]
    taken = [place for place in places if place is not None]
    rows = []
    for number, (cell, place) in enumerate(zip(planned, places, strict=True), start=1):
        row = None if place is None else load_row(place, conditions.environment)
        # A row that failed is tried again: a lost party may be back.
        if row is None or row.error is not None:
            left = () if home is None else left_behind(cell, home, taken)
            description = f"[{number}/{len(planned)}] {cell.label}"
            row = run_cell(cell, conditions, place, description)
            row = replace(row, notes=(*row.notes, *left))
            if place is not None:
                # One by one, so that an interruption loses the row under way and no other.
                save_row(row, place, conditions.environment)
        rows.append(row)
    return rows


def failed(comparison: Comparison) -> tuple[Row, ...]:
    """The rows that failed."""
    return tuple(row for row in comparison.rows if row.error is not None)
