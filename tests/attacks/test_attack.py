"""Every attack keeps what attacks promise; its target holds its observer's view alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from privtrain.attacks.attack import (
    GuessesCoins,
    Limited,
    MembershipAttack,
    Reconstruction,
    check_attacks,
)
from privtrain.attacks.gradient_norm import GradientNorm
from privtrain.attacks.label_only import LabelOnly
from privtrain.attacks.lira import LiRA
from privtrain.attacks.loss_gain import LossGain
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.model_sequence import ModelSequence
from privtrain.attacks.one_run.attack import OneRun
from privtrain.attacks.population import PopulationLoss
from privtrain.attacks.rmia import RMIA
from privtrain.attacks.row_span import RowSpan
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer, coalition
from privtrain.core.result import Target
from privtrain.core.task import Rows
from tests.attacks.looking import Looking
from tests.contracts.attack import CHECKS, target, target_of, tried_on

ATTACKS: tuple[MembershipAttack, ...] = (
    LossThreshold(),
    LossThreshold(limit=20, batch_size=3),
    OneRun(guesses=10),
    OneRun(guesses=40, batch_size=3),
    LiRA(shadows=8),
    LiRA(shadows=8, online=False),
    RMIA(shadows=8),
    RMIA(shadows=8, online=False),
    PopulationLoss(),
    PopulationLoss(by_class=True, batch_size=7),
    LabelOnly(queries=20, scale=0.1),
    LabelOnly(method="boundary", queries=30, batch_size=64),
    GradientNorm(),
    ModelSequence(shadows=8),
    ModelSequence(shadows=0, observer=AGGREGATOR),
    RowSpan(),
    LossGain(),
    LossGain(relative=True, observer=coalition({"aggregator", "client-99"})),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_every_attack(attack: MembershipAttack, check: Callable[[MembershipAttack], None]) -> None:
    check(attack)


def test_a_target_holds_what_its_observer_sent_received_or_could_read() -> None:
    seen = target(PUBLIC).view
    assert [entry.receiver for entry in seen.messages] == ["public"]
    assert target(AGGREGATOR).view.kinds == ("model", "update")


class Inventing:
    """A reconstruction."""

    name, observer, needs_messages = "inventing", PUBLIC, False

    def rows(self, target: Target, *, seed: int) -> Rows:
        return Rows(torch.zeros(1, 8))


def test_kinds_of_attacks_are_told_apart() -> None:
    assert isinstance(OneRun(), GuessesCoins) and not isinstance(LossThreshold(), GuessesCoins)
    assert isinstance(LossThreshold(), Limited) and not isinstance(OneRun(), Limited)
    assert isinstance(Inventing(), Reconstruction) and not isinstance(OneRun(), Reconstruction)
    made = (OneRun(), Inventing())
    assert check_attacks(made) == made


class Old:
    """Follows the protocol of version 0.1, whose attacks measured themselves."""

    name, observer = "old", Observer("public")

    def run(self, target: Target, *, seed: int) -> None:
        raise AssertionError("nothing is attacked")


def test_what_does_not_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attacks\[0\]=.*it has no needs_messages, score"):
        check_attacks([Old()])  # type: ignore[list-item]


@dataclass
class Own(Looking):
    """An attack that does not look at its own settings."""

    limit: Any = 5
    kinds: Any = ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit": 0}, r"attacks\[0\]\.limit=0 to be a whole number >= 1"),
        ({"limit": 2.5}, r"attacks\[0\]\.limit=2\.5"),
        ({"kinds": "update", "needs_messages": True}, r"attacks\[0\]\.kinds='update' to be texts"),
        ({"kinds": (1,), "needs_messages": True}, r"attacks\[0\]\.kinds=\(1,\)"),
    ],
)
def test_wrong_settings_of_an_own_attack_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_attacks([Own(**settings)])
    # What is called so by who reads no messages is its own.
    assert len(check_attacks([Own(kinds="update")])) == 1


@pytest.mark.parametrize("attack", [LiRA(), RMIA(), ModelSequence()], ids=repr)
def test_without_shadow_models_it_says_what_to_use(attack: MembershipAttack) -> None:
    with pytest.raises(UnsupportedError, match=r"trained elsewhere.* Use LossThreshold"):
        attack.score(target_of(attack), tried_on(attack, 1), seed=0)


@pytest.mark.parametrize("kind", [LiRA, RMIA])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shadows": 2}, "shadows=2 to be a whole number >= 4"),
        ({"shadows": 5}, "shadows=5 to be even"),
        ({"online": "no"}, "online='no' to be True or False"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_wrong_settings_of_attacks_with_shadow_models_are_named(
    kind: type, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**settings)
