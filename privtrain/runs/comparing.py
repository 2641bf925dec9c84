"""Comparing: one comparison of many trainers on one task and one data set."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from privtrain.attacks.attack import Attack, check_attack_names, check_attacks
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.folders import locked_folder
from privtrain.core.observers import check_observer
from privtrain.core.result import Comparison, Row
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import SEEDED, EntropyKind, kind_of
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import (
    check_count,
    check_delta,
    check_distinct,
    check_flag,
    check_list,
    check_member,
    check_positive,
    check_seed,
    made_folder,
)
from privtrain.ledgers.study import StudyLedger
from privtrain.report.html import comparison_fragment
from privtrain.report.records import records
from privtrain.report.table import comparison_text
from privtrain.runs.baselines import Baselines, with_twins
from privtrain.runs.card import published, run_card
from privtrain.runs.checks import check_device, check_kinds, check_mapping
from privtrain.runs.measuring import KEEP, RAISE, check_metrics
from privtrain.runs.rows import (
    Cell,
    Conditions,
    cells,
    check_folder,
    claim,
    kept_row,
    left_behind,
    load_row,
    run_cell,
    save_row,
)
from privtrain.runs.warming import WarmUps
from privtrain.runtimes.in_process import InProcess
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
    keep_models: bool = False,
    keep_for_audit: bool = False,
    keep_messages: bool = False,
    baseline: str | None = None,
    workers: int = 1,
) -> Comparison:
    """Trains the same model on the same data in several ways, and attacks each of them.

    A trainer that fails shows its error in its row, and the others finish. So does an attack, or
    the metric: the other figures of the row stand.

    A trainer that computes under cryptography is followed by its plaintext twin, the baseline of
    its gap: the same steps without cryptography. Where such a trainer refuses the task or the data,
    its twin is left out.

    Where attacks read messages, a seeded simulation keeps what their observers saw of the kinds
    that they name: up to 256 MiB in memory, and beyond it on disk until the row is attacked.

    Args:
        trainers: Label to trainer.
        task: What is learned.
        data: Who holds which rows.
        attacks: What is tried on each trained model.
        seeds: Public seeds; each gives a row.
        epsilons: What is asked of trainers that draw noise, which are calibrated for each of
            them; empty for the noise they have.
        runtimes: Where parties run; None for this process, and real processes for a mesh.
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
        keep_models: Whether each row has its model as `row.predictor`. With a folder, each lies
            in `model/` of its row's folder, as `save_model` writes it, and a comparison that goes
            on finds it again; a finished row that has none is trained again.
        keep_for_audit: Whether each row keeps in `evidence/` of its folder what `audit_comparison`
            needs, messages that attacks read among it. It tells who was a member: never publish it.
            A finished row that has none is trained again.
        keep_messages: Whether it keeps all messages, for attacks to come; seeded simulations only.
        baseline: Label of the trainer that all gaps are measured from, seed by seed; None for the
            first pooled trainer without privacy (`SGD`), or a plaintext twin. Where it failed there
            is no gap.
        workers: Processes that train shadow models of attacks, where a trainer cannot train many
            at the same time. What they say is kept in the row's folder.

    Returns:
        One row a trainer, seed and asked epsilon, and the run card.

    Raises:
        ValueError: If there are no trainers or seeds, an argument is of another kind, `errors` is
            another word, an epsilon is not positive, a seed or an epsilon stands there twice,
            attacks share a name, or one observes as a party that is not there.
        DataError: If the test rows have no targets, or the folder is in use, or holds rows of other
            data, another task, delta, attack or entropy, or of version 0.1.
    """
    check_member((KEEP, RAISE), errors=errors)
    check_count(workers=workers)
    check_flag(keep_models=keep_models, keep_for_audit=keep_for_audit, keep_messages=keep_messages)
    if keep_for_audit and folder is None:
        raise ValueError(
            "Expected folder=None to be a folder, where keep_for_audit=True keeps runs."
        )
    if keep_messages and not keep_for_audit:
        raise ValueError("Expected keep_messages=True to come with keep_for_audit=True.")
    check_mapping(trainers)
    check_kinds(task, data, runtimes=runtimes, study_ledger=study_ledger, folder=folder)
    against = with_twins(trainers, baseline)
    trainers = against.trainers
    conditions = _conditions(task, data, attacks, runtimes, delta, entropy, device, study_ledger)
    if keep_messages and conditions.entropy is not SEEDED:
        raise UnsupportedError("keep_messages=True records secrets; it needs entropy=SEEDED.")
    conditions = replace(
        conditions,
        errors=errors,
        trainers=tuple(trainers.values()),
        keep_models=keep_models,
        workers=workers,
        keep_for_audit=keep_for_audit,
        keep_messages=keep_messages,
    )
    planned = _planned(against, conditions, seeds, epsilons)
    chosen = list(dict.fromkeys(cell.seed for cell in planned))
    home = None if folder is None else made_folder(folder)
    with ExitStack() as stack:
        if home is not None:
            stack.enter_context(locked_folder(home))
            # Rows of other data beside these would make the comparison dishonest.
            claim(home, conditions)
        rows = _rows(planned, conditions, home, against)
    trainers = {label: own for label, own in trainers.items() if _needed(label, against, rows)}
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
        as_records=records,
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
    baseline: str | None = None,
) -> None:
    """Refuses what `compare` would refuse, and changes nothing in the folder; see there."""
    check_kinds(task, data, runtimes=runtimes, folder=folder)
    conditions = _conditions(task, data, attacks, runtimes, delta, entropy, device, None)
    check_mapping(trainers)
    _planned(with_twins(trainers, baseline), conditions, seeds, epsilons)
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
    check_delta(delta)
    check_device(device)
    tried = check_attacks(attacks)
    check_attack_names(tried)
    if data.test.targets is None:
        raise DataError(
            "Expected data.test.targets, by which compare measures the accuracy of every row, or "
            "another metric; there are none. Give them, or train by fit, which needs none."
        )
    check_metrics(task, data.test)
    for attack in tried:  # before hours of training, after which `audit` would refuse it
        check_observer(attack.observer, data.parties)
    where = runtimes or Runtimes(star=InProcess(), mesh=Processes())
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


def _planned(
    measured: Baselines,
    conditions: Conditions,
    seeds: Iterable[int],
    epsilons: Sequence[float],
) -> list[Cell]:
    if not measured.trainers:
        raise ValueError("Expected trainers={} to name at least one trainer.")
    check_list("[1.0, 3.0]", epsilons=epsilons)
    for epsilon in epsilons:
        check_positive(epsilon=epsilon)
    check_list("range(3), which is 0, 1, 2", seeds=seeds)
    chosen = list(seeds)
    for seed in chosen:
        check_seed(seed)
    if not chosen:
        raise ValueError("Expected seeds=[] to hold at least one seed.")
    check_distinct(seeds=chosen, epsilons=epsilons)
    return list(cells(measured.trainers, chosen, epsilons, measured.baseline))


def _needed(label: str, against: Baselines, rows: Sequence[Row]) -> bool:
    """Whether a trainer takes part: not a twin, all of whose owners refused the task or the data.

    Args:
        label: Its label.
        against: Whose twin it may be.
        rows: The rows of its owners, among others.
    """
    owners = against.owners.get(label)
    if owners is None:
        return True
    errors = [row.error or "" for row in rows if row.label in owners]
    return not all(error.startswith(_REFUSALS) for error in errors)


_REFUSALS = tuple(f"{kind.__name__}:" for kind in (DataError, UnsupportedError))


def _rows(
    planned: Sequence[Cell], conditions: Conditions, home: Path | None, against: Baselines
) -> list[Row]:
    # Before the first row: what a trainer holds may change while it works.
    places: list[Path | None] = [None] * len(planned)
    if home is not None:
        places = [cell.place(home, conditions.identity) for cell in planned]
    taken = [place for place in places if place is not None]
    rows: list[Row] = []
    warm = WarmUps(conditions.runtimes, conditions.device)
    for number, (cell, place) in enumerate(zip(planned, places, strict=True), start=1):
        if not _needed(cell.label, against, rows):
            continue
        row = None
        if place is not None:
            row = kept_row(load_row(place, conditions.environment), place, conditions, cell.trainer)
        # What a kept row is measured against follows from the trainers beside it.
        row = None if row is None else replace(row, baseline=cell.baseline)
        if row is not None and conditions.task.main in row.metrics:
            row = replace(row, main=str(conditions.task.main))
        if row is None:
            left = () if home is None else left_behind(cell, home, taken)
            description = f"[{number}/{len(planned)}] {cell.label}"
            # Before its clock: the first row must not look slower than the others for it.
            warm.before(cell.trainer)
            row = run_cell(cell, conditions, place, description)
            row = replace(row, notes=(*row.notes, *left))
            if place is not None:
                # One by one, so that an interruption loses the row under way and no other.
                save_row(row, place, conditions.environment)
        rows.append(row)
    # What is left out is nobody's baseline.
    shown = {row.label for row in rows}
    return [
        row if row.baseline in shown else replace(row, baseline=against.instead(row.baseline))
        for row in rows
    ]


def failed(comparison: Comparison) -> tuple[Row, ...]:
    """The rows that failed."""
    return tuple(row for row in comparison.rows if row.error is not None)
