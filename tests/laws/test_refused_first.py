"""What will be refused is refused before anything is spent or trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor, nn

from privtrain.core.errors import (
    BudgetExceededError,
    ProtocolError,
    UnsupportedError,
)
from privtrain.core.runtime import Payload, Reply, Runtimes
from privtrain.core.statement import Budget, Unit
from privtrain.core.task import Rows, Task
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.mpc.ring64.engine import Ring64
from privtrain.release.aggregation import Aggregation
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.release.shared import SharedSum
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes.mesh import Processes
from privtrain.sampling.sampling import Everyone, Sampling
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from tests.contracts.aggregation import MaskedSum, a_run
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

C = 0.3
QUICK = PlainSteps(epochs=1, learning_rate=0.2)
PARTIES = a_federation(12, 9, 15, 11)
DATA = replace(PARTIES, public=Rows(some_rows(77, 40).inputs), digest="these rows")
BOTH = Runtimes(star=InProcess(), mesh=Processes())


class Counting:
    """A model factory that counts what is trained."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> nn.Module:
        self.made += 1
        return TASK.model()


def votes(mechanism: object, *rest: object, **parts: object) -> PATE:
    return PATE(
        teachers=8,
        queries=12,
        steps=QUICK,
        student=QUICK,
        release=Release(mechanism, *rest, finish=ARGMAX, **parts),
    )  # type: ignore[arg-type]


def averages(*release: object, **parts: object) -> FedAvg:
    return FedAvg(rounds=2, local=QUICK, release=Release(*release, **parts))  # type: ignore[arg-type]


class NoEngine(Ring64):
    """An engine that is not installed."""

    def check(self, parties: int) -> None:
        raise UnsupportedError("The engine none is not installed: pip install none")


CASES: list[tuple[str, Callable[[], object], Runtimes, str]] = [
    ("pate", lambda: votes(GNMax(2.0), aggregation=SharedSum()), BOTH, "on shares"),
    ("pate ln", lambda: votes(LNMax(2.0), aggregation=SharedSum()), BOTH, "on shares"),
    ("pate own", lambda: votes(GNMax(2.0), AT_PARTY, aggregation=SharedSum()), BOTH, "on shares"),
    ("fedavg", lambda: averages(Gaussian(C, 1.0), aggregation=SharedSum()), BOTH, "on shares"),
    ("no mesh", lambda: averages(aggregation=SharedSum()), STAR, "mesh=Processes"),
    ("no star", lambda: averages(Gaussian(C, 1.0)), Runtimes(mesh=Processes()), "star=InProcess"),
    ("no runtime", lambda: averages(Gaussian(C, 1.0)), Runtimes(), "star=InProcess"),
    ("engine", lambda: averages(aggregation=SharedSum(NoEngine())), BOTH, "not installed"),
    ("range", lambda: averages(Gaussian(5e3, 0.0), aggregation=SharedSum()), BOTH, "fixed point"),
    ("split", lambda: averages(Laplace(C, 1.0), SPLIT(honest_survivors=4)), STAR, "split"),
    ("split votes", lambda: votes(LNMax(2.0), SPLIT(honest_survivors=4)), STAR, "split"),
]


@pytest.mark.parametrize(
    ("make", "runtimes", "why"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_will_be_refused_costs_nothing(
    make: Callable[[], object], runtimes: Runtimes, why: str
) -> None:
    counting = Counting()
    ledger = StudyLedger(DATA, budget=Budget(1e6, 1e-5))
    given = {"runtimes": runtimes, "study_ledger": None if runtimes == Runtimes() else ledger}
    task = Task(model=counting)
    with pytest.raises(UnsupportedError, match=why):
        fit(make(), task, DATA, **given)  # type: ignore[arg-type] # one dict for all options
    # Where nothing runs at all, that is found behind the checks of the model.
    assert counting.made == 0 or runtimes == Runtimes()
    assert ledger.charges == ()


def test_too_many_votes_and_parties_for_fixed_point_are_refused() -> None:
    many = replace(votes(Exact(), aggregation=SharedSum()), teachers=4 * 4_096)
    with pytest.raises(UnsupportedError, match="fixed point"):
        many.plan(DATA, BOTH)
    with pytest.raises(UnsupportedError, match="hold up to"):
        Release(aggregation=SharedSum()).check(BOTH, parties=2**19)
    Release(aggregation=SharedSum()).check(BOTH, parties=2**19 - 1)


def test_a_finish_that_shares_cannot_compute_is_refused() -> None:
    @dataclass(frozen=True)
    class Squared:
        def __call__(self, aggregate: Tensor) -> Tensor:
            return aggregate**2

    with pytest.raises(UnsupportedError, match="Squared"):
        Release(aggregation=SharedSum(), finish=Squared()).check(BOTH, parties=3)
    for limit in (4_096.0, -1e9):
        release = Release(aggregation=SharedSum(), finish=Threshold(limit))
        with pytest.raises(UnsupportedError, match="below 4096"):
            release.check(BOTH, parties=3)
    Release(aggregation=SharedSum(), finish=Threshold(2.0)).check(BOTH, parties=3)


def test_noise_with_memory_is_not_left_to_parties() -> None:
    release = Release(BandedMatrix(C, 1.0, bands=2, steps=2), AT_PARTY)
    with pytest.raises(UnsupportedError, match="remembers"):
        release.check(STAR, parties=3)
    Release(BandedMatrix(C, 1.0, bands=1, steps=2), AT_PARTY).check(STAR, parties=3)


def test_a_runtime_that_asks_others_is_not_believed() -> None:
    @dataclass
    class Astray:
        answered: tuple[str, ...]

        def map(self, step: object, payloads: object, **options: object) -> object:
            return {party: Reply({}) for party in self.answered}

    asked: dict[str, Payload] = {"a": {}, "b": {}}
    one = a_run()
    # Others, more, in another order, too few: however many had to reply.
    for answered in (("a'", "b"), ("a", "b", "c"), ("b", "a"), ("a",), ()):
        one.star = Astray(answered)  # type: ignore[assignment] # half a star is enough
        for at_least in (None, 2):
            with pytest.raises(ProtocolError, match=r"\['a', 'b'\] were asked"):
                one.map(lambda payload, party: Reply(payload), asked, round=3, at_least=at_least)
    one.star = Astray(("b",))  # type: ignore[assignment]
    step = one.map(lambda payload, party: Reply(payload), asked, round=3, at_least=1)
    assert list(step) == ["b"]


def test_the_budget_error_is_still_the_first() -> None:
    with pytest.raises(BudgetExceededError):
        fit(averages(Gaussian(C, 1.0)), TASK, DATA, runtimes=STAR, budget=Budget(1e-6, 1e-5))


def test_parts_of_laplace_noise_are_refused_where_only_the_sum_is_read() -> None:
    """A plan alone would pass: ten tenths of the variance are hidden from everybody."""
    release = Release(Laplace(C, 1.0), SPLIT(honest_survivors=10), MaskedSum())
    release.plans(unit=Unit.CLIENT, count=1, parties=20)
    with pytest.raises(UnsupportedError, match="split"):
        release.check(STAR, parties=20)


MEMBERS = sorted(name for name in dir(Mechanism) if not name.startswith("_"))


@pytest.mark.parametrize("lacks", MEMBERS)
@pytest.mark.parametrize("make", [Release, DPSteps], ids=["release", "steps"])
def test_own_mechanisms_without_a_member_are_refused_when_they_are_given(
    make: Callable[[Any], object], lacks: str
) -> None:
    class Old:
        """What was enough before."""

    for member in set(MEMBERS) - {lacks}:
        setattr(Old, member, lambda self: None)
    with pytest.raises(ValueError, match=rf"Gaussian\(1.0, 1.0\); it has no {lacks}\.$"):
        make(Old())


@pytest.mark.parametrize(
    "lacks", sorted(name for name in dir(Sampling) if not name.startswith("_"))
)
def test_own_samplings_without_a_member_are_refused_when_they_are_given(lacks: str) -> None:
    class Old:
        """What was enough before."""

    for member in set(dir(Everyone)) - {lacks}:
        if not member.startswith("_"):
            setattr(Old, member, lambda self: None)
    with pytest.raises(ValueError, match=rf"Everyone\(\); it has no {lacks}\.$"):
        FedAvg(sampling=Old())  # type: ignore[arg-type] # that is what is tested


MEMBERS_OF_AGGREGATIONS = sorted(name for name in dir(Aggregation) if not name.startswith("_"))


@pytest.mark.parametrize("lacks", MEMBERS_OF_AGGREGATIONS)
def test_own_aggregations_without_a_member_are_refused_when_they_are_given(lacks: str) -> None:
    class Old:
        """What was enough before."""

    for member in set(MEMBERS_OF_AGGREGATIONS) - {lacks}:
        setattr(Old, member, lambda self: None)
    with pytest.raises(ValueError, match=rf"PlainSum\(\); it has no {lacks}\.$"):
        Release(aggregation=Old())  # type: ignore[arg-type] # that is what is tested
