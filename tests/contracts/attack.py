"""What every membership attack promises, as checks that take one.

A test file runs them all: `@pytest.mark.parametrize("check", CHECKS)`, then `check(attack)`.
"""

import dataclasses
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.attack import GuessesCoins, MembershipAttack, target_for
from privtrain.attacks.membership import row_losses
from privtrain.attacks.scores import Scores, auc_interval
from privtrain.core.observers import Observer
from privtrain.core.parameters import ModelPredictor
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Leakage, Predictor, Target
from privtrain.core.statement import to_json_text
from privtrain.core.task import Canaries, Rows, Task, concatenate
from privtrain.core.transcript import Transcript
from privtrain.runs.refereeing import Candidates, scores_of
from tests.attacks.looking import judged, judged_by_coins
from tests.contracts.federation import FEDERATED, federation, wide_rows

CLASSES = 10

TASK = Task(model=lambda: nn.Linear(8, CLASSES))


def rows(seed: int, count: int = 40) -> Rows:
    """Rows whose labels are coin flips: whoever knows a label has seen the row."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    return Rows(torch.randn(count, 8, generator=generator), targets)


CANARIES = Canaries(rows=rows(3), included=torch.arange(40) % 2 == 0)


def untrained() -> Predictor:
    """A model that has seen no row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModelPredictor(nn.Linear(8, CLASSES))


@dataclasses.dataclass(frozen=True)
class ByHeart:
    """Gives the rows that it was trained on their labels, and answers others by chance."""

    known: Rows

    def __call__(self, inputs: Tensor) -> Tensor:
        equal = (inputs[:, None] == self.known.inputs[None]).all(dim=2).double()
        return 9.0 * equal @ nn.functional.one_hot(self.known.labels, CLASSES).double()


class Memory(nn.Module):
    """Gives rows near those that it knows their labels; elsewhere answers change within a step."""

    known: Tensor

    def __init__(self, known: Rows) -> None:
        super().__init__()
        self.register_buffer("known", known.inputs)
        self.votes = nn.Parameter(9.0 * nn.functional.one_hot(known.labels, CLASSES).float())
        generator = torch.Generator().manual_seed(0)
        self.waves = nn.Parameter(30.0 * torch.randn(8, CLASSES, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        apart = (inputs[:, None] - self.known[None]).square().sum(dim=2)
        logits: Tensor = torch.exp(-10 * apart) @ self.votes + torch.cos(inputs @ self.waves)
        return logits


@dataclasses.dataclass(frozen=True)
class Lending:
    """Shadow models that know halves of the candidates by heart; which, follows from rows alone."""

    candidates: Rows

    def __call__(self, count: int) -> "Lent":
        # By a column and not by places: a row is in the same models wherever it stands.
        places = self.candidates.inputs[:, 0].argsort().argsort()
        included = torch.zeros(count, len(places), dtype=torch.bool)
        for pair in range(0, count, 2):
            coins = torch.randperm(len(places), generator=torch.Generator().manual_seed(pair))
            included[pair] = (coins % 2 == 0)[places]
            included[pair + 1] = ~included[pair]
        losses = [
            row_losses(
                ByHeart(self.candidates.take(half.nonzero()[:, 0])), TASK, self.candidates, 64
            )
            for half in included
        ]
        return Lent(torch.stack(losses).numpy(), included.numpy())


@dataclasses.dataclass(frozen=True)
class Lent:
    """What these models say."""

    losses: np.ndarray
    included: np.ndarray


def handed(observer: Observer, candidates: Rows) -> Target:
    """The target of an attack on some candidates."""
    return dataclasses.replace(target(observer), shadows=Lending(candidates))


def tried_on(attack: MembershipAttack, seed: int, count: int = 40) -> Rows:
    """Rows of the kind that an attack is tried on."""
    return wide_rows(seed, count) if attack.needs_messages else rows(seed, count)


def target_of(attack: MembershipAttack, *, knowing: bool = False) -> Target:
    """What an attack is handed by a run that has not seen its candidates, or those of one side."""
    if not attack.needs_messages:
        return target(attack.observer, ModelPredictor(Memory(SIDES[0])) if knowing else untrained())
    result = federation(1 if knowing else 3)
    return target_for(
        attack.observer, transcript=result.transcript, predictor=result.predictor, task=FEDERATED
    )


def target(observer: Observer, predictor: Predictor | None = None) -> Target:
    """What an attack by an observer is handed: messages of all kinds were sent."""
    transcript = Transcript(keep_payloads=True)
    transcript.send("client-0", AGGREGATOR_NAME, "update", torch.ones(4), round=0)
    transcript.send(AGGREGATOR_NAME, "client-0", "model", torch.ones(4), round=0)
    transcript.publish("model", torch.ones(4), sender=AGGREGATOR_NAME, round=1)
    model = untrained() if predictor is None else predictor
    handed = target_for(observer, transcript=transcript, predictor=model, task=TASK)
    return dataclasses.replace(handed, population=rows(4, 200))


def leakage(attack: MembershipAttack, seed: int = 0) -> Leakage:
    """What the referee finds on a run that has seen no row."""
    if isinstance(attack, GuessesCoins):
        return judged_by_coins(attack, target(attack.observer), CANARIES, seed=seed)
    sides = tried_on(attack, 1), tried_on(attack, 2)
    return judged(attack, target_of(attack), *sides, seed=seed, lend=Lending)


def check_frozen(attack: MembershipAttack) -> None:
    """It is a frozen value that pickles."""
    assert pickle.loads(pickle.dumps(attack)) == attack
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.name = "other"  # type: ignore[misc]  # must not work


def check_repeats(attack: MembershipAttack) -> None:
    """The same seed gives the same figures, and nobody's generator moves."""
    before = torch.get_rng_state()
    assert leakage(attack, seed=3) == leakage(attack, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def check_own_view(attack: MembershipAttack) -> None:
    """It refuses another observer's view."""
    with pytest.raises(ValueError, match="somebody else"):
        attack.score(target(Observer("somebody else")), tried_on(attack, 1), seed=0)


def check_place(attack: MembershipAttack) -> None:
    """What it says of a candidate does not follow from its place."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    candidates = tried_on(attack, 1)
    moved = candidates.take(order)

    def scored(given: Rows) -> Scores:
        seen = dataclasses.replace(target_of(attack), shadows=Lending(given))
        return np.asarray(attack.score(seen, given, seed=0))

    there, scores = scored(candidates), scored(moved)
    np.testing.assert_allclose(scores, there[order.numpy()], rtol=1e-5, atol=1e-6)


def check_rows_stay(attack: MembershipAttack) -> None:
    """It writes into no row that it was handed."""
    candidates, before = tried_on(attack, 1), tried_on(attack, 1)
    seen = dataclasses.replace(target_of(attack), shadows=Lending(candidates))
    attack.score(seen, candidates, seed=0)
    assert torch.equal(candidates.inputs, before.inputs)
    assert torch.equal(candidates.labels, before.labels)


def check_complete(attack: MembershipAttack) -> None:
    """What it learned is complete and can be written."""
    learned = leakage(attack)
    assert (learned.attack, learned.observer) == (attack.name, attack.observer.name)
    assert learned.members and learned.non_members
    assert set(learned.intervals) <= set(learned.metrics)
    for name, (low, high) in learned.intervals.items():
        value = learned.metrics[name]
        assert value is not None and low <= value <= high
    assert "this attack only" in learned.notes[0]
    assert '"metrics"' in to_json_text(learned)


SIDES = rows(1, 300), rows(2, 300)


def by_sides(attack: MembershipAttack, *, knowing: bool) -> tuple[Scores, Scores]:
    """Its scores of rows that the run has seen where it is knowing, and of as many others."""
    sides = (wide_rows(1), wide_rows(2)) if attack.needs_messages else SIDES
    half = len(sides[0])
    truth = Candidates(concatenate([*sides]), torch.arange(2 * half) < half)
    scores = scores_of(attack, target_of(attack, knowing=knowing), truth, seed=0, lend=Lending)
    return scores[:half], scores[half:]


def check_null(attack: MembershipAttack) -> None:
    """Of a run that has seen no row it learns nothing."""
    low, high = auc_interval(*by_sides(attack, knowing=False), confidence=0.999)
    assert low <= 0.5 <= high


def check_power(attack: MembershipAttack) -> None:
    """It finds what a run knows by heart."""
    low, _ = auc_interval(*by_sides(attack, knowing=True), confidence=0.999)
    assert low > 0.9


CHECKS: tuple[Callable[[MembershipAttack], None], ...] = (
    check_frozen,
    check_repeats,
    check_own_view,
    check_place,
    check_rows_stay,
    check_complete,
    check_null,
    check_power,
)
