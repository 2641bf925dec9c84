"""What is measured on a trained model, part by part: one that fails leaves the others standing."""

from collections.abc import Sequence

from privtrain.attacks.attack import Attack, GuessesCoins
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.result import Failure, Leakage, TrainResult
from privtrain.core.task import FederatedData, Task
from privtrain.runs.auditing import audited
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
            leakages.append(audited(result, attack, task, data, seed=seed, kept=kept))
        except OWN_ERRORS as error:  # an own attack may raise anything
            # Canaries that a trainer may have made public are not protected by it, so there is
            # nothing to audit: that is no mistake.
            public = result.members is not None and result.members.made_public
            planted = isinstance(attack, GuessesCoins) and data.canaries is not None
            if public and planted and isinstance(error, ValueError):
                notes.append(f"{attack.name} was not run: {text_of(error)}")
                continue
            if errors == RAISE:
                raise
            leakages.append(_failed(attack, failure_of(error)))
    return tuple(leakages), tuple(notes)


def _failed(attack: Attack, failure: Failure) -> Leakage:
    name, observer = attack.name, attack.observer.name
    return Leakage(attack=name, observer=observer, metrics={}, failure=failure)
