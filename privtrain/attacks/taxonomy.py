"""What kinds of attacks there are: who attacks, to learn what, by which means."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from privtrain.core.observers import (
    AGGREGATOR,
    CURATOR,
    DEALER,
    PARTICIPANT,
    PUBLIC,
    QUERIER,
    Observer,
)
from privtrain.core.statement import ADD_REMOVE, Relation, Unit

COALITION = "coalition"
"""Stands for every coalition in a list of observers."""

EVERYBODY = (
    *(one.name for one in (PUBLIC, QUERIER, PARTICIPANT, AGGREGATOR, CURATOR, DEALER)),
    COALITION,
)
"""Names of all observers: what everybody may do, each of them may."""


class Goal(StrEnum):
    """What an attack wants to learn or to show."""

    MEMBERSHIP = "membership"
    """Which rows, or clients, were trained on."""

    BOUND = "bound"
    """A lower bound on epsilon: whether a guarantee is false."""

    RECONSTRUCTION = "reconstruction"
    """What the rows are that were trained on."""


class Capability(StrEnum):
    """The strongest means that an attack needs."""

    LABELS = "labels"
    """Asks the predictor, and reads the class that it answers."""

    OUTPUTS = "outputs"
    """Asks the predictor, and reads its outputs."""

    WEIGHTS = "weights"
    """Reads the published weights."""

    MESSAGES = "messages"
    """Reads the messages of the run."""

    CANARIES = "canaries"
    """Plants rows before training."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Where an attack stands among the others.

    Args:
        goal: What it wants.
        capability: The strongest means that it needs.
        observers: Names of those who can carry it out, `COALITION` for all coalitions.
        shadows: Whether it trains shadow models, and so knows the trainer's settings.
        unit: Whose membership it guesses.
        relation: Which data sets its two answers tell apart.
        zero: What a figure of a coin, or a bound of 0, does not mean.
    """

    goal: Goal
    capability: Capability
    observers: tuple[str, ...] = EVERYBODY
    shadows: bool = False
    unit: Unit = Unit.EXAMPLE
    relation: Relation = ADD_REMOVE
    zero: str


@runtime_checkable
class Described(Protocol):
    """An attack that says where it stands; every attack of the library does."""

    about: ClassVar[About]


def may_observe(about: About, observer: Observer) -> bool:
    """Whether an observer can carry out an attack."""
    name = COALITION if observer.is_coalition else observer.name
    return name in about.observers
