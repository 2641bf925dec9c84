"""Observers as study files and the command line write them: a role in quotes, or a list of parties.

Every attack is tried from those places that its `about` names.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from privtrain.attacks.attack import Attack
from privtrain.attacks.taxonomy import Described, may_observe
from privtrain.core.nearest import nearest
from privtrain.core.observers import (
    AGGREGATOR,
    CURATOR,
    DEALER,
    PARTICIPANT,
    PUBLIC,
    QUERIER,
    Observer,
    coalition,
)

ROLES = {one.name: one for one in (PUBLIC, PARTICIPANT, AGGREGATOR, CURATOR, DEALER, QUERIER)}
"""Name to observer, of all but coalitions."""

FIRST_COMPUTING = "computing-0"
"""The first of the parties that compute on shares and hold no rows."""


def observer_of(given: Any) -> Observer:
    """The observer that a study file's value stands for.

    Args:
        given: The name of a role, or a list of the names of parties that pool what they saw.

    Raises:
        ValueError: If there is no such role, or a list names nobody.
    """
    if isinstance(given, Observer):
        return given
    if isinstance(given, (list, tuple)):
        # A tuple first: of names that are none, one may have no hash.
        return coalition({*given} if all(isinstance(name, str) for name in given) else set())
    if given not in ROLES:
        raise ValueError(
            f"Expected observer={given!r} to be one of {', '.join(ROLES)}, or a list of parties, "
            f'such as ["party-0", "party-1"].{nearest(str(given), [*ROLES])}'
        )
    return ROLES[given]


def written(observer: Observer) -> str | list[str]:
    """What a study file holds of an observer; the inverse of `observer_of`."""
    return sorted(observer.corrupted) if observer.corrupted else observer.name


def parsed(text: str) -> Observer:
    """The observer that a word of the command line stands for: aggregator, or [party-0,party-1].

    Raises:
        ValueError: As `observer_of` does.
    """
    if not (text.startswith("[") and text.endswith("]")):
        role = text.lower()
        if role == "coalition":
            raise ValueError(
                "Expected observer='coalition' to name its parties in brackets, such as "
                "'[party-0,party-1]'."
            )
        # As in Python, too: PUBLIC.
        return observer_of(role if role in ROLES else text)
    names = [name.strip().strip("'\"") for name in text[1:-1].split(",")]
    return observer_of([name for name in names if name])


def the_coalition(parties: Sequence[str]) -> Observer:
    """The coalition that is tried where none is named: who coordinates, with the first party.

    It is whoever a run has of the aggregator (or curator) and the first computing party, and the
    first party with rows.
    """
    return coalition({AGGREGATOR.name, FIRST_COMPUTING, *parties[:1]})


def from_places(attacks: Iterable[Attack], observers: Iterable[Observer]) -> list[Attack]:
    """Each attack from each place: the observer is changed where that is a setting.

    Args:
        attacks: Any attacks.
        observers: Who attacks.

    Returns:
        An attack whose observer is no setting once, as it is; the others once for each observer.
    """
    made: list[Attack] = []
    places = list(dict.fromkeys(observers))
    for attack in attacks:
        made += [_from(attack, one) for one in places] if _can_move(attack) else [attack]
    return list(dict.fromkeys(made))


def from_all_places(attacks: Iterable[Attack], parties: Sequence[str]) -> list[Attack]:
    """Each attack from every place from which its `about` says that it can be carried out."""
    places = [PUBLIC, PARTICIPANT, AGGREGATOR, DEALER, the_coalition(parties)]
    made: list[Attack] = []
    for attack in attacks:
        mine = [
            one
            for one in places
            if not isinstance(attack, Described) or may_observe(attack.about, one)
        ]
        made += from_places([attack], mine)
    return made


def _can_move(attack: Attack) -> bool:
    given: Any = attack
    return any(field.name == "observer" and field.init for field in dataclasses.fields(given))


def _from(attack: Attack, observer: Observer) -> Attack:
    changed: Any = attack
    moved: Attack = dataclasses.replace(changed, observer=observer)
    return moved
