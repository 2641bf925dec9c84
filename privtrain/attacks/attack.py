"""The protocols of attacks, and the targets that limit what they read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from numpy.typing import ArrayLike

from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import Observer
from privtrain.core.result import Predictor, ShadowModels, Target
from privtrain.core.statement import PrivacyCurves
from privtrain.core.task import Rows, Task
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_count, check_follows


class Observing(Protocol):
    """What every attack says of itself. Attacks are frozen values that pickle."""

    @property
    def observer(self) -> Observer:
        """Whose view the attack reads, and nobody else's."""
        ...

    @property
    def name(self) -> str:
        """The attack's name in tables."""
        ...

    @property
    def needs_messages(self) -> bool:
        """Whether it reads the tensors of messages, which a run keeps on request only."""
        ...


@runtime_checkable
class MembershipAttack(Observing, Protocol):
    """Tells which of some rows were trained on."""

    def score(self, target: Target, candidates: Rows, *, seed: int) -> ArrayLike:
        """How likely each candidate is a member.

        Args:
            target: What the attack's observer saw and holds.
            candidates: Rows with their targets, members and others in random order.
            seed: Public seed of the attack's own choices.

        Returns:
            Real numbers, shape `(candidates,)`: larger for "more likely a member". One that is
            not a number counts as the worst score.
        """
        ...


@runtime_checkable
class Reconstruction(Observing, Protocol):
    """Makes up rows that resemble those trained on."""

    def rows(self, target: Target, *, seed: int) -> Rows:
        """Rows that the attack takes for training rows.

        Args:
            target: What the attack's observer saw and holds.
            seed: Public seed of the attack's own choices.

        Returns:
            At least one row, whose inputs have the shape of the data's; targets are not looked at.
        """
        ...


@runtime_checkable
class ClientAttack(Observing, Protocol):
    """Tells which of some clients took part in training."""

    @property
    def rows_each(self) -> int:
        """By how many of its rows a client is shown at most; by equally many each."""
        ...

    def score_clients(self, target: Target, clients: Sequence[Rows], *, seed: int) -> ArrayLike:
        """How likely each client took part.

        Args:
            target: What the attack's observer saw and holds. Its shadow models are trained on the
                rows of all clients, one client's after the other's.
            clients: The rows of each, with their targets; equally many each, in random order.
            seed: Public seed of the attack's own choices.

        Returns:
            Real numbers, shape `(clients,)`: larger for "more likely took part". One that is not a
            number counts as the worst score.
        """
        ...


Attack = MembershipAttack | Reconstruction | ClientAttack
"""Tries to learn about training rows from what one observer saw. It never learns what is true:
`audit` keeps that, and turns what an attack returns into figures."""


@runtime_checkable
class Limited(Protocol):
    """An attack that says how many candidates it takes."""

    @property
    def limit(self) -> int:
        """The largest number of members, and of non-members, among its candidates."""
        ...


@runtime_checkable
class NeedsShadows(Protocol):
    """An attack that says how many shadow models it asks for."""

    @property
    def shadows(self) -> int:
        """The number of shadow models; even, and at least 4."""
        ...


@runtime_checkable
class ReadsMessages(Protocol):
    """An attack that says which messages it reads, where `needs_messages` is set."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of messages whose tensors it reads, such as "update"; empty for all.

        A run keeps no others for it, and what it is handed has no others.
        """
        ...


@runtime_checkable
class NeedsCanaries(Protocol):
    """An attack that needs canaries, which are planted before training."""

    @property
    def canaries_needed(self) -> int:
        """How many canaries there have to be at least."""
        ...


@runtime_checkable
class GuessesCoins(MembershipAttack, NeedsCanaries, Protocol):
    """A membership attack on canaries: its scores bound epsilon from below.

    Each canary is in by an independent fair coin, without which there is no bound. The highest
    scores are guessed "in", as many of the lowest "out"; the other coins are left open.
    """

    @property
    def guesses(self) -> int:
        """The number of guessed coins; at least 2, and fixed beforehand."""
        ...

    @property
    def delta(self) -> float:
        """At which epsilon is bounded, in (0, 1)."""
        ...

    @property
    def confidence(self) -> float:
        """Of the bounds, in (0, 1)."""
        ...


def target_for(
    observer: Observer,
    *,
    transcript: Transcript,
    predictor: Predictor,
    task: Task,
    own: Mapping[str, Rows] | None = None,
    promised: tuple[PrivacyCurves, ...] = (),
) -> Target:
    """The target of an attack by one observer: it holds this observer's view of the transcript.

    Args:
        observer: Who attacks.
        transcript: Every message of the run.
        predictor: The published predictor; everybody may ask it.
        task: What was learned.
        own: Rows that the observer holds itself, by party.
        promised: The run's promises as curves; only those to the observer reach the target.

    Returns:
        A target that holds no message which the observer neither sent nor received.
    """
    # The one place where messages reach an attack: what the observer did not see is left out.
    return Target(
        view=transcript.view(observer),
        predictor=predictor,
        task=task,
        own=dict(own or {}),
        promised=tuple(
            curves for curves in promised if curves.observer == observer.without_members
        ),
    )


def check_attacks(attacks: Iterable[Attack]) -> tuple[Attack, ...]:
    """The attacks; what is none is refused, before hours of training.

    Raises:
        ValueError: If they are no list, or one lacks a name or an observer, is a class, or sets a
            limit that is no number of rows, or kinds that are no texts.
    """
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        raise ValueError(
            f"Expected attacks={attacks!r} to be a list of attacks, such as [pt.LossThreshold()]."
        )
    made = tuple(attacks)
    for number, attack in enumerate(made):
        name = f"attacks[{number}]"
        known = [kind for kind in (Reconstruction, ClientAttack) if isinstance(attack, kind)]
        kind = known[0] if known else MembershipAttack
        check_follows(kind, "pt.LossThreshold()", **{name: attack})
        if not isinstance(attack.name, str):
            raise ValueError(f"Expected {name}.name={attack.name!r} to be text.")
        if not isinstance(attack.observer, Observer):
            raise ValueError(
                f"Expected {name}.observer={attack.observer!r} to be an observer, such as "
                "pt.PUBLIC or pt.coalition({'party-0'})."
            )
        if isinstance(attack, Limited):
            check_count(**{f"{name}.limit": attack.limit})
        if attack.needs_messages and isinstance(attack, ReadsMessages):
            check_kinds(name, attack.kinds)
    return made


def check_kinds(name: str, kinds: tuple[str, ...]) -> None:
    """Raises `ValueError` unless kinds of messages are texts; of one text, each letter is one."""
    if not isinstance(kinds, tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"Expected {name}.kinds={kinds!r} to be texts, such as ('update',).")


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
    """Refuses a target with another observer's view.

    Args:
        target: What an attack was given.
        observer: Whose view it may read.

    Raises:
        ValueError: If the view is another observer's.
    """
    if target.view.observer != observer:
        raise ValueError(
            f"Expected target.view.observer={target.view.observer.name!r} to be "
            f"{observer.name!r}; build the target with target_for(attack.observer, ...)."
        )


def check_shadows(count: int) -> None:
    """Raises `ValueError` unless so many shadow models make complementary pairs, two at least."""
    check_count(4, shadows=count)
    if count % 2:
        raise ValueError(f"Expected shadows={count} to be even: shadow models come in pairs.")


def shadows_of(target: Target, count: int) -> ShadowModels:
    """Shadow models of a target.

    Args:
        target: What an attack was given.
        count: How many models; even.

    Raises:
        NotApplicableError: If there are none.
    """
    if target.shadows is None:
        raise NotApplicableError(
            "This attack needs shadow models, which are trained on candidates by the run's own "
            "trainer: there are none of canaries, nor of a result without a trainer, which is that "
            "of a model that was trained elsewhere, or one that was pickled when its trainer could "
            "not be. Use LossThreshold, for canaries OneRun.",
            Reason.NO_SHADOWS,
        )
    return target.shadows(count)
