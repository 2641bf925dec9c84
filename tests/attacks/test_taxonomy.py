"""Every attack of the library says where it stands, and who may carry it out."""

import pytest

import privtrain as pt
from privtrain.attacks.taxonomy import EVERYBODY, About, Capability, Described, Goal, may_observe
from privtrain.command.tokens import ATTACK_TOKENS


@pytest.mark.parametrize("name", ATTACK_TOKENS.values())
def test_every_attack_is_described(name: str) -> None:
    attack = getattr(pt, name)()
    assert isinstance(attack, Described)
    assert attack.about.observers and set(attack.about.observers) <= set(EVERYBODY)
    assert may_observe(attack.about, attack.observer)
    assert attack.about.zero


def test_a_coalition_of_any_parties_counts_as_one() -> None:
    about = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.MESSAGES,
        observers=("aggregator", "coalition"),
        zero="",
    )
    assert may_observe(about, pt.AGGREGATOR)
    assert may_observe(about, pt.coalition({"party-0", "party-1"}))
    assert not may_observe(about, pt.PUBLIC)
