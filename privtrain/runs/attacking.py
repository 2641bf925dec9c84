"""What is measured on a trained model, part by part: one that fails leaves the others standing."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from privtrain.attacks.attack import Attack, GuessesCoins
from privtrain.core.errors import NotApplicableError
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.result import Failure, Leakage, Row, TrainResult
from privtrain.core.task import FederatedData, Task
from privtrain.runs.auditing import audited
from privtrain.runs.card import promises, uncounted
from privtrain.runs.measuring import KEEP, RAISE, failure_of
from privtrain.runs.shadowing import Kept


def attacked(
    result: TrainResult,
    attacks: Sequence[Attack],
    task: Task,
    data: FederatedData,
    *,
    seed: int,
    errors: str = KEEP,
) -> tuple[tuple[Leakage, ...], tuple[str, ...]]:
    """What each attack learned, or why it failed, and notes on those that do not apply.

    Args:
        result: What training gave.
        attacks: The attacks.
        task: What was learned.
        data: The rows.
        seed: Public seed of the attacks' own choices.
        errors: `KEEP` or `RAISE`.

    Returns:
        One for each attack, in their order. One that failed has no metrics. And the notes.
    """
    leakages, notes, kept = [], [], Kept()
    for attack in attacks:
        try:
            alone = _copied(attack)
            leakages.append(audited(result, alone, task, data, seed=seed, kept=kept))
        except OWN_ERRORS as error:  # an own attack may raise anything
            # Canaries that a trainer may have made public are not protected by it, so there is
            # nothing to audit: that is no mistake.
            public = result.members is not None and result.members.made_public
            planted = isinstance(attack, GuessesCoins) and data.canaries is not None
            if public and planted and isinstance(error, ValueError):
                notes.append(f"{attack.name} was not run: {text_of(error)}")
                continue
            if errors == RAISE and not isinstance(error, NotApplicableError):
                raise
            leakages.append(failed_attack(attack, failure_of(error)))
    return tuple(leakages), tuple(notes)


def _copied(attack: Attack) -> Attack:
    """A copy: what it remembers of one row is the truth about the next, as coins are the same."""
    try:
        return copy.deepcopy(attack)
    except Exception:  # an own attack may hold what cannot be copied, such as a connection
        return attack


def attacked_row(
    row: Row,
    result: TrainResult,
    attacks: Sequence[Attack],
    task: Task,
    data: FederatedData,
    *,
    errors: str,
) -> Row:
    """The row with what attacks learn of its run; see `attacked` and `with_leakage`."""
    given = (result, attacks, task, data)
    leakage, refused = attacked(*given, seed=row.seed, errors=errors)
    # How many rows were drawn at least once follows the sample, which a promise may count on.
    if result.members is not None and promises([result.statement]):
        leakage = tuple(map(uncounted, leakage))
    return with_leakage(row, leakage, refused)


def with_leakage(row: Row, leakage: Iterable[Leakage], notes: Iterable[str] = ()) -> Row:
    """The row with figures, in place of those of the same attacks and observers, and notes."""
    made = {(one.attack, one.observer): one for one in (*row.leakage, *leakage)}
    fresh = [note for note in notes if note not in row.notes]
    return replace(row, leakage=tuple(made.values()), notes=(*row.notes, *fresh))


def failed_attack(attack: Attack, failure: Failure) -> Leakage:
    """What stands in the cell of an attack that failed or does not apply."""
    name, observer = attack.name, attack.observer.name
    return Leakage(attack=name, observer=observer, metrics={}, failure=failure)
