"""Observers as files and words of the command line hold them."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

import privtrain as pt
from privtrain.attacks.taxonomy import COALITION, About, Capability, Goal
from privtrain.command.observing import (
    ROLES,
    from_all_places,
    from_places,
    observer_of,
    parsed,
    the_coalition,
    written,
)
from privtrain.core.observers import PARTICIPANT, Observer

PAIR = pt.coalition({"b", "a"})


@dataclass(frozen=True)
class Narrow:
    """Reads what arrives at whoever coordinates."""

    name: str = "narrow"
    observer: Observer = pt.AGGREGATOR
    needs_messages: ClassVar[bool] = True
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.MESSAGES,
        observers=("aggregator", COALITION),
        zero="nothing",
    )

    def score(self, target: Any, candidates: Any, *, seed: int) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Fixed:
    """Stands in one place."""

    name: str = "fixed"
    observer: Observer = field(default=PARTICIPANT, init=False)
    needs_messages: ClassVar[bool] = False

    def score(self, target: Any, candidates: Any, *, seed: int) -> Any:
        raise NotImplementedError


def test_what_is_written_is_read_again() -> None:
    for observer in (*ROLES.values(), PAIR):
        assert observer_of(written(observer)) == observer
    assert written(PAIR) == ["a", "b"]
    assert parsed("aggregator") == pt.AGGREGATOR
    assert parsed("[b, 'a']") == PAIR


@pytest.mark.parametrize("given", ["agregator", 3, [], ["a", 1]])
def test_what_is_no_observer_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"Expected (observer|corrupted)="):
        observer_of(given)
    with pytest.raises(ValueError, match=r"Did you mean 'aggregator'"):
        parsed("agregator")


def test_attacks_move_to_places_where_their_observer_is_a_setting() -> None:
    rmia = pt.RMIA(shadows=4)
    moved = from_places([rmia, pt.LossThreshold()], [pt.PUBLIC, PAIR, pt.PUBLIC])
    assert moved == [
        *(rmia, replace(rmia, observer=PAIR)),
        *(pt.LossThreshold(), pt.LossThreshold(observer=PAIR)),
    ]
    assert from_places([Fixed()], [pt.PUBLIC, PAIR]) == [Fixed()]


def test_all_places_are_those_of_who_can_carry_it_out() -> None:
    everywhere = from_all_places([pt.LossThreshold()], ["p0", "p1"])
    assert [attack.observer.name for attack in everywhere] == [
        *("public", "participant", "aggregator", "dealer"),
        "coalition of aggregator, computing-0, p0",
    ]
    narrow: Any = Narrow()
    found = from_all_places([narrow], ["p0", "p1"])
    assert [attack.observer for attack in found] == [pt.AGGREGATOR, the_coalition(["p0"])]


def test_a_role_may_be_written_as_in_python_and_a_coalition_names_its_parties() -> None:
    assert parsed("PUBLIC") == pt.PUBLIC and parsed("Aggregator") == pt.AGGREGATOR
    with pytest.raises(ValueError, match=r"in brackets, such as '\[party-0,party-1\]'"):
        parsed("coalition")
