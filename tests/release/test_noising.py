"""What is noised and finished, what mechanisms remember of it, and what exactly it cost."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.runtime import Reply
from privtrain.core.seeding import Stream
from privtrain.core.statement import Relation, Unit
from privtrain.core.trainer import RELEASE, Run
from privtrain.ledgers.run import JournalLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import About, Exact, State
from privtrain.mechanisms.reach import Reach
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.aggregation import BoundedSum
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import AT_PARTY
from privtrain.release.reduce import MAX
from tests.contracts.aggregation import (
    InMemory,
    MaskedSum,
    SharedSum,
    SharesOpenedLate,
    a_party,
    a_run,
)
from tests.statistics import assert_power, independent, std_is

WIDE = torch.zeros(3000)


def test_the_aggregator_never_draws_the_same_noise_twice() -> None:
    release, run = Release(Gaussian(1.0, 1.0)), a_run()
    message = {"client-0": release.leave([WIDE], a_party())}
    first = release.arrive(message, run, round=0).value
    with pytest.raises(RuntimeError, match="twice"):
        release.arrive(message, run, round=0)
    assert independent(first, release.arrive(message, run, round=1).value)


def test_a_sealed_sum_is_finished_on_shares_and_never_without_its_noise() -> None:
    messages = {
        "a": Reply({"update": torch.tensor([1.0, 5.0])}),
        "b": Reply({"update": torch.tensor([2.0, 5.0])}),
    }
    shared = Release(aggregation=SharedSum(), finish=ARGMAX)
    assert shared.arrive(messages, a_run(), round=0).value.item() == 1
    for release in (
        Release(Gaussian(1.0, 1.0), aggregation=SharedSum()),
        Release(GNMax(1.0), aggregation=SharedSum(), finish=ARGMAX),
    ):
        with pytest.raises(UnsupportedError, match="on shares"):
            release.arrive(messages, a_run(), round=0)


def test_sealing_opens_once_with_the_releases_finish() -> None:
    sealed = SharesOpenedLate(torch.tensor([3.0, 1.0]))
    assert sealed.open(ARGMAX, Exact()).item() == 0
    assert sealed.opened == [ARGMAX]


@dataclass(frozen=True)
class Remembering:
    """Adds the last noise again: a stand-in for correlated noise, whose state is a tensor."""

    about: About = About(theorem="", noisy=True, separation=2)

    def bound(self, contribution: Tensor) -> Tensor:
        return contribution

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return total

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        return Reach(norm=0.0, radius=1.0, bound=1.0)

    def sensitivity(self, relation: Relation) -> float:
        return 1.0

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        fresh = torch.from_numpy(stream.numpy().standard_normal(tuple(total.shape)))
        return total + fresh - (0 if state is None else state), fresh

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        return Gaussian(1.0, 1.0).event(exposure, relation)

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> None:
        return


def remembered(run: Run) -> dict[str, Any]:
    """What mechanisms remember, as a checkpoint holds it."""
    run.checkpoint = kept = InMemory()
    run.keep(1)
    memory: dict[str, Any] = kept.state["memory"]
    return memory


def test_a_mechanisms_memory_reaches_from_release_to_release() -> None:
    release, run = Release(Remembering()), a_run()
    zeros = {"a": Reply({"update": torch.zeros(2000, dtype=torch.float64)})}
    total = sum(release.arrive(zeros, run, round=r).value for r in range(8))
    assert isinstance(total, Tensor)
    # The noises cancel but for the last one: eight independent ones would have std sqrt(8).
    assert_power(std_is, total, 1.0)
    assert set(remembered(run)) == {"update"}


def test_kinds_have_a_memory_each() -> None:
    release, run = Release(Remembering()), a_run()
    release.arrive({"a": Reply({"update": torch.zeros(3)})}, run, round=0)
    release.arrive({"a": Reply({"check": torch.zeros(5)})}, run, round=0, kind="check")
    assert {kind: len(state) for kind, state in remembered(run).items()} == {
        "update": 3,
        "check": 5,
    }


def test_parties_do_not_draw_noise_that_has_to_be_remembered() -> None:
    with pytest.raises(UnsupportedError, match=r"remembers.*AT_AGGREGATOR"):
        Release(Remembering(), AT_PARTY).leave([torch.zeros(3)], a_party())


VOTES = torch.tensor([[9.0, 0.0, 1.0], [4.0, 5.0, 1.0]], dtype=torch.float64)


def realised(release: Release, votes: Tensor | BoundedSum = VOTES) -> Any:
    """What a release of votes says of its exact cost."""
    given = votes if isinstance(votes, BoundedSum) else {"a": Reply({"votes": votes})}
    expected = Expected(contributions=10)
    return release.arrive(given, a_run(), round=0, kind="votes", expected=expected).realised


@pytest.mark.parametrize("mechanism", [GNMax(3.0), LNMax(3.0)])
def test_winners_come_with_the_cost_of_their_exact_votes(mechanism: GNMax | LNMax) -> None:
    assert realised(Release(mechanism, finish=ARGMAX)) == mechanism.realised(VOTES)


def test_no_exact_cost_is_stated_where_none_was_proved_or_nobody_can_tell() -> None:
    """The proofs speak of the winner alone, from counts before the noise that somebody reads."""
    for release in (
        Release(GNMax(3.0)),
        Release(GNMax(3.0), finish=Threshold(4.0)),
        Release(GNMax(3.0), reduce=MAX),
        Release(GNMax(3.0), AT_PARTY, finish=ARGMAX),
        Release(GNMax(3.0), aggregation=MaskedSum(), finish=ARGMAX),
        Release(Gaussian(1.0, 3.0), finish=ARGMAX),
        Release(finish=ARGMAX),
    ):
        assert realised(release) is None, release
    fused = BoundedSum(VOTES, 1.0)
    assert realised(Release(GNMax(3.0), finish=ARGMAX), fused) is None
    assert realised(Release(GNMax(3.0), finish=ARGMAX), VOTES[0]) is None


def test_a_release_uses_the_charge_that_it_names() -> None:
    release = Release(GNMax(3.0))
    plans = [
        release.plans(unit=Unit.CLIENT, count=2, parties=1, charge=kind)
        for kind in ("check", "answer")
    ]
    both = tuple(one.beside(other) for one, other in zip(*plans, strict=True))
    run = a_run(ledger=JournalLedger(both))
    assert run.spend(kind="answer")
    votes = {"a": Reply({"votes": VOTES})}
    for charge in ("check", RELEASE):
        with pytest.raises(BudgetExceededError, match="not paid for"):
            release.arrive(votes, run, round=0, kind="votes", charge=charge)
    ten = Expected(contributions=10)
    release.arrive(votes, run, round=0, kind="votes", charge="answer", expected=ten)
