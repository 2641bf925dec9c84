"""What plans say: to whom, by which theorem, and on whose noise they count."""

from collections.abc import Callable

import pytest
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.runtime import Reply
from privtrain.core.statement import Unit
from privtrain.core.trainer import RELEASE
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mechanisms.votes import LNMax
from privtrain.release.arrival import UNREADABLE
from privtrain.release.door import Release
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT
from privtrain.release.shared import SharedSum
from privtrain.sampling.sampling import FixedSize, Poisson
from tests.contracts.aggregation import MaskedSum, a_party, a_run


@pytest.mark.parametrize("mechanism", [Laplace(1.0, 1.0), LNMax(20.0)])
def test_a_split_of_laplace_noise_is_refused_when_it_is_planned(mechanism: Mechanism) -> None:
    release = Release(mechanism, SPLIT(honest_survivors=10), MaskedSum())
    with pytest.raises(UnsupportedError, match="split"):
        release.plans(unit=Unit.CLIENT, count=1, parties=9)
    with pytest.raises(UnsupportedError, match="split"):
        release.leave([torch.ones(1, 3)], a_party())


def test_plans_default_to_three_observers_and_carry_theorem_and_assumptions() -> None:
    plans = Release(Gaussian(1.0, 1.0)).plans(
        unit=Unit.CLIENT, count=7, parties=4, assumptions=("it rains",)
    )
    assert [plan.observer.name for plan in plans] == ["public", "participant", "aggregator"]
    assert all(
        plan.charges[RELEASE].count == 7 and plan.assumptions == ("it rains",) for plan in plans
    )
    assert all("Gaussian mechanism" in plan.theorem for plan in plans)


PLANNED = {"unit": Unit.CLIENT, "count": 1}


def texts(release: Release, observer: object = PUBLIC, **options: object) -> str:
    settings: dict[str, object] = {**PLANNED, "parties": 100, "observers": (observer,), **options}
    (plan,) = release.plans(**settings)  # type: ignore[arg-type] # one dict for all cases
    return "; ".join(plan.assumptions)


def test_statements_say_whose_noise_they_count_on() -> None:
    split = Release(Gaussian(1.0, 1.0), SPLIT(honest_survivors=100))
    local = Release(Gaussian(1.0, 1.0), AT_PARTY)
    said: Callable[..., str] = texts
    assert "noise of 100 honest parties that stay to the end" in said(split)
    assert "1/100 of its variance" in said(split)
    assert "noise of 100 honest parties that stay to the end" in said(local)
    # Fewer count than there are, where fewer are enough.
    assert "noise of 30 honest parties" in said(
        Release(Gaussian(1.0, 1.0), SPLIT(honest_survivors=30))
    )
    assert "noise of 10 honest parties" in said(local, sampling=FixedSize(10))
    # Who reads single messages is protected from by the party's own noise alone.
    for release in (split, local):
        alone = said(release, AGGREGATOR)
        assert "noise of the protected party itself" in alone
        assert "honest parties" not in alone
    assert said(Release(Gaussian(1.0, 1.0))) == ""


def test_a_participant_counts_on_one_noise_less() -> None:
    plans = Release(Gaussian(1.0, 1.0), AT_PARTY).plans(unit=Unit.CLIENT, count=1, parties=100)
    said = {plan.observer.name: plan.assumptions[0] for plan in plans}
    assert "noise of 100 honest" in said["public"]
    assert "noise of 99 honest" in said["participant"]


@pytest.mark.parametrize("mechanism", [Laplace(1.0, 1.0), Gaussian(1.0, 1.0, secure=True)])
def test_noises_that_are_charged_as_one_count_on_the_protected_party(mechanism: Mechanism) -> None:
    said = texts(Release(mechanism, AT_PARTY))
    assert "noise of the protected party itself, all of it" in said
    assert "honest parties" not in said


def test_where_the_number_of_parties_varies_one_noise_is_counted() -> None:
    said = texts(Release(Gaussian(1.0, 1.0), AT_PARTY), sampling=Poisson(0.3))
    assert "noise of the protected party itself" in said


def test_what_nobody_can_read_is_an_assumption() -> None:
    masked = Release(Gaussian(1.0, 1.0), SPLIT(honest_survivors=5), MaskedSum())
    assert UNREADABLE in texts(masked)
    assert UNREADABLE not in texts(Release(Gaussian(1.0, 1.0), AT_AGGREGATOR))
    assert Release(Gaussian(1.0, 0.0), aggregation=SharedSum()).trusted("client", "it") == (
        UNREADABLE,
    )
    assert Release(Gaussian(1.0, 0.0)).trusted("client", "it") == ()
    # And it is not touched.
    run = a_run()
    sent = {"client-0": Reply({"update": torch.full((3,), 1e9)})}
    assert masked.admit(sent, run, round=0) == sent
    assert run.outcome.history.unprotected == {}
