"""The protocol of attacks, and the targets that limit what they read."""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from privtrain.core.observers import Observer
from privtrain.core.result import Leakage, Predictor, Target
from privtrain.core.statement import PrivacyCurves
from privtrain.core.task import Canaries, Rows, Task
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_follows


class Attack(Protocol):
    """Tries to learn about training rows from what one observer saw. Frozen, pickles."""

    @property
    def observer(self) -> Observer:
        """Whose view the attack reads, and nobody else's."""
        ...

    @property
    def name(self) -> str:
        """The attack's name in tables."""
        ...

    def run(self, target: Target, *, seed: int) -> Leakage:
        """Attacks a target and measures what was learned.

        Args:
            target: What the attack's observer saw, and the rows whose membership is guessed.
            seed: Public seed of the attack's own choices.

        Returns:
            The leakage by this attack; no evidence of safety against another one.
        """
        ...


@runtime_checkable
class NeedsCanaries(Protocol):
    """An attack that guesses the coins of canaries, which are planted before training."""

    @property
    def canaries_needed(self) -> int:
        """How many canaries there have to be at least."""
        ...


def target_for(
    observer: Observer,
    *,
    transcript: Transcript,
    predictor: Predictor,
    task: Task,
    members: Rows,
    non_members: Rows,
    retrain: Callable[[Rows, int], Predictor] | None = None,
    canaries: Canaries | None = None,
    promised: tuple[PrivacyCurves, ...] = (),
) -> Target:
    """The target of an attack by one observer: it holds this observer's view of the transcript.

    Args:
        observer: Who attacks.
        transcript: Every message of the run.
        predictor: The published predictor; everybody may ask it.
        task: What was learned.
        members: Rows that were trained on.
        non_members: Rows that were not, from the same distribution.
        retrain: Trains a shadow predictor on other rows from a seed.
        canaries: The canaries of a one-run audit, where some were planted.
        promised: The run's promises as curves; only those to the observer reach the target.

    Returns:
        A target that holds no message which the observer did not receive.
    """
    # The one place where messages reach an attack: what the observer did not receive is left out.
    return Target(
        view=transcript.view(observer),
        predictor=predictor,
        task=task,
        members=members,
        non_members=non_members,
        retrain=retrain,
        canaries=canaries,
        promised=tuple(
            curves for curves in promised if curves.observer == observer.without_members
        ),
    )


def check_attacks(attacks: Iterable[Attack]) -> tuple[Attack, ...]:
    """The attacks; what is none is refused, before hours of training.

    Raises:
        ValueError: If they are no list, or one lacks a name or an observer, or is a class.
    """
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        raise ValueError(
            f"Expected attacks={attacks!r} to be a list of attacks, such as [pt.LossThreshold()]."
        )
    made = tuple(attacks)
    for number, attack in enumerate(made):
        name = f"attacks[{number}]"
        check_follows(Attack, "pt.LossThreshold()", **{name: attack})
        if not isinstance(attack.name, str):
            raise ValueError(f"Expected {name}.name={attack.name!r} to be text.")
        if not isinstance(attack.observer, Observer):
            raise ValueError(
                f"Expected {name}.observer={attack.observer!r} to be an observer, such as "
                "pt.PUBLIC or pt.coalition({'party-0'})."
            )
    return made


def check_attack_names(attacks: Iterable[Attack]) -> None:
    """Refuses attacks that share a row of the tables, such as two audits with other guesses.

    Raises:
        ValueError: If two of them have the same name and observer.
    """
    names: set[tuple[str, str]] = set()
    for attack in attacks:
        name = (attack.name, attack.observer.name)
        if name in names:
            raise ValueError(
                f"Expected attacks={attack} to be there once: another one is also called "
                f"{attack.name!r}, and their figures would be mixed. Use audit(...) for the other."
            )
        names.add(name)


def check_target(target: Target, observer: Observer) -> None:
    """Refuses a target with another observer's view, or without rows to tell apart.

    Args:
        target: What an attack was given.
        observer: Whose view it may read.

    Raises:
        ValueError: If the view is another observer's, or one side has no rows.
    """
    if target.view.observer != observer:
        raise ValueError(
            f"Expected target.view.observer={target.view.observer.name!r} to be "
            f"{observer.name!r}; build the target with target_for(attack.observer, ...)."
        )
    for name, rows in (("members", target.members), ("non_members", target.non_members)):
        if len(rows) == 0:
            raise ValueError(f"Expected target.{name} to hold at least one row; it holds none.")
