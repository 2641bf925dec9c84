"""Auditing a finished comparison, from what it kept of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from privtrain.attacks.attack import Attack, check_attack_names, check_attacks
from privtrain.core.abilities import Finished
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.observers import check_observer
from privtrain.core.result import Comparison, Row, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import SEEDED
from privtrain.core.settings import kept_settings
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_count, check_delta, check_is, check_member
from privtrain.runs.attacking import attacked_row, failed_attack, with_leakage
from privtrain.runs.baselines import with_twins
from privtrain.runs.card import published
from privtrain.runs.checkpoint import Identity
from privtrain.runs.checks import check_device, check_kinds, check_mapping
from privtrain.runs.evidence import EVIDENCE, kept_evidence
from privtrain.runs.fitting import default_runtimes
from privtrain.runs.measuring import KEEP, RAISE, failure_of
from privtrain.runs.rows import (
    Cell,
    Conditions,
    calibrated,
)
from privtrain.runs.shadowing import shadows_kept


def audit_comparison(
    comparison: Comparison,
    trainers: Mapping[str, Trainer],
    task: Task,
    data: FederatedData,
    *,
    attacks: Sequence[Attack],
    folder: str | Path,
    runtimes: Runtimes | None = None,
    delta: float = 1e-5,
    device: str = "cpu",
    errors: str = KEEP,
    workers: int = 1,
) -> Comparison:
    """Attacks the runs of a finished comparison that was made with `keep_for_audit=True`.

    Each attack finds what it would have found within `compare`. What it cannot be tried on, such as
    a run that was not kept, shows why in its cell, and the other cells stand.

    Args:
        comparison: What `compare` or `load` returned.
        trainers: Label to trainer, as `compare` was given them.
        task: What was learned.
        data: The rows that were trained on.
        attacks: What is tried on each trained model.
        folder: Where `compare` kept its rows.
        runtimes: Where parties ran; None as for `compare`.
        delta: Delta of the comparison's guarantees, at which trainers were calibrated.
        device: Where tensors are computed.
        errors: "keep" keeps an error in its cell; "raise" raises it.
        workers: Processes for shadow models that cannot be trained at the same time; at least 1.

    Returns:
        The comparison, with figures of these attacks in place of their earlier ones. Nothing is
        written: `save` it.

    Raises:
        ValueError: If an argument is of another kind, attacks share a name, or one observes as a
            party that is not there.
        DataError: If there is no such folder.
    """
    check_is(Comparison, "pt.load(folder)", comparison=comparison)
    check_member((KEEP, RAISE), errors=errors)
    check_mapping(trainers)
    check_kinds(task, data, runtimes=runtimes, folder=folder)
    check_delta(delta)
    check_count(workers=workers)
    check_device(device)
    tried = check_attacks(attacks)
    check_attack_names(tried)
    for attack in tried:
        check_observer(attack.observer, data.parties)
    home = Path(folder)
    if not home.is_dir():
        raise DataError(
            f"There is no folder={str(home)!r}. Give the one in which compare kept its rows."
        )
    shared = Conditions(
        task=task,
        data=data,
        attacks=tried,
        runtimes=runtimes or default_runtimes(),
        delta=delta,
        entropy=SEEDED,
        device=device,
        errors=errors,
        workers=workers,
    )
    known = with_twins(trainers).trainers
    rows = [_audited(row, known, shared, home) for row in comparison.rows]
    return replace(comparison, rows=published(rows, data))


@kept_settings()
def _audited(row: Row, trainers: Mapping[str, Trainer], shared: Conditions, home: Path) -> Row:
    # Of a run that failed there is nothing to learn.
    if row.error is not None:
        return row
    try:
        result, place = _result(row, trainers, shared, home)
        given = (shared.attacks, shared.task, shared.data)
        # Where those lie that the comparison's own attacks asked for.
        with shadows_kept(place, shared.workers):
            return attacked_row(row, result, *given, errors=shared.errors)
    except OWN_ERRORS as error:
        if shared.errors == RAISE and not isinstance(error, NotApplicableError):
            raise
        failure = failure_of(error)
        failed = [failed_attack(attack, failure) for attack in shared.attacks]
        # What was measured while the comparison ran is not lost for it.
        stands = {(one.attack, one.observer) for one in row.leakage if one.metrics}
        new = [one for one in failed if (one.attack, one.observer) not in stands]
        return with_leakage(row, new)


def _result(
    row: Row, trainers: Mapping[str, Trainer], shared: Conditions, home: Path
) -> tuple[TrainResult, Path | None]:
    """The run of a row, as it was kept, and the row's folder; None for one trained elsewhere."""
    if row.label not in trainers:
        raise NotApplicableError(
            f"Expected trainers to hold {row.label!r}, a label of the comparison; they hold "
            f"{', '.join(map(repr, trainers))}.",
            Reason.NOT_KEPT,
        )
    own = trainers[row.label]
    if isinstance(own, Finished):
        return own.trained_elsewhere(shared.task, shared.data), None
    cell = Cell(label=row.label, trainer=own, seed=row.seed, epsilon=row.epsilon_asked)
    identity = Identity({}, shared.data.published)
    if not identity.can_be_told(home):
        raise DataError(
            f"The key in the private folder of {home} is gone, without which no row is found. "
            "Bring it back, or give the folder in which compare kept its rows."
        )
    place = cell.place(home, identity) / EVIDENCE
    others = [path.name for path in cell.others(home) if path != place.parent]
    if not place.exists() and others:
        raise NotApplicableError(
            f"The run of {own!r} is not in {home}: {', '.join(others)} there has the same label, "
            "seed and epsilon, and a trainer with other settings or other code. Give that trainer.",
            Reason.NOT_KEPT,
        )
    # Not before: it takes a while, and of nothing it is for nothing.
    trainer = calibrated(cell, shared)[0] if place.exists() else own
    kept = kept_evidence(place, trainer, shared.task, shared.data, device=shared.device)
    return kept, place.parent
