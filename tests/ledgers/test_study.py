"""The study ledger: all fits on the same rows add up, before each of them, and stay spent."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtrain.accounting.epsilon import epsilon, rdp_curve
from privtrain.accounting.event import (
    composed,
    gaussian_event,
    non_private_event,
    repeated,
    truncated_poisson_sampled,
)
from privtrain.accounting.filter import RdpFilter
from privtrain.core.errors import (
    BudgetExceededError,
    DataError,
    PrivacyError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import to_vector
from privtrain.core.statement import REPLACE_ONE, ZERO_OUT, Budget, Relation, Unit
from privtrain.core.trainer import PrivacyPlan
from privtrain.ledgers.study import StudyLedger
from privtrain.runs.calibrating import calibrate
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation

DATA = replace(a_federation(12, 9, 15, public_rows=36), digest="ab" * 32)
BUDGET = Budget(2.0, 1e-5)
DP = DPSGD(epochs=1, expected_batch=6)


def a_plan(
    noise: float = 4.0, count: int = 3, unit: Unit = Unit.EXAMPLE, relation: Relation = ZERO_OUT
) -> tuple[PrivacyPlan, ...]:
    event = gaussian_event(noise) if noise else non_private_event()
    return (PrivacyPlan(observer=PUBLIC, unit=unit, relation=relation, event=event, count=count),)


def spent(study: StudyLedger, *noises: float) -> StudyLedger:
    for noise in noises:
        study.spend(a_plan(noise), DATA, name="dp_sgd")
    return study


def test_fits_add_up_to_the_composition_of_all_their_releases() -> None:
    study = spent(StudyLedger(DATA), 4.0, 9.0)
    whole = composed([repeated(gaussian_event(4.0), 3), repeated(gaussian_event(9.0), 3)])
    assert study.epsilon == epsilon(whole, 1e-5, relation=ZERO_OUT)
    # In closed form: Gaussians are one Gaussian of the summed precision.
    one = gaussian_event((3 / 4.0**2 + 3 / 9.0**2) ** -0.5)
    assert study.epsilon == pytest.approx(epsilon(one, 1e-5, relation=ZERO_OUT), rel=1e-3)
    said = study.guarantee()
    assert said.releases == 2
    assert "fixed before the first result" in said.assumptions[0]


def test_a_fit_beyond_the_budget_is_refused_and_a_smaller_one_is_not() -> None:
    study = spent(StudyLedger(DATA, budget=BUDGET), 6.0)
    before = study.epsilon
    with pytest.raises(BudgetExceededError, match=r"dp_sgd would bring.*beyond its budget of 2"):
        spent(study, 2.0)
    assert study.epsilon == before
    assert before < spent(study, 20.0).epsilon <= BUDGET.epsilon


def test_what_promises_nothing_fits_no_budget_and_makes_the_sum_infinite() -> None:
    with pytest.raises(BudgetExceededError):
        spent(StudyLedger(DATA, budget=BUDGET), 0.0)
    with pytest.raises(BudgetExceededError):
        spent(StudyLedger(DATA, budget=BUDGET, adaptive=True), 0.0)
    assert math.isinf(spent(StudyLedger(DATA), 4.0, 0.0).epsilon)


def test_an_adaptive_study_is_a_filter_and_promises_its_budget() -> None:
    study = StudyLedger(DATA, budget=BUDGET, adaptive=True)
    twin = RdpFilter(BUDGET, relation=ZERO_OUT)
    while twin.fits(repeated(gaussian_event(8.0), 3)):
        twin.spend(repeated(gaussian_event(8.0), 3))
        spent(study, 8.0)
    with pytest.raises(BudgetExceededError, match="at order"):
        spent(study, 8.0)
    assert len(study.charges) > 2
    said = study.guarantee()
    assert said.epsilon == BUDGET.epsilon == study.epsilon
    assert "filter" in said.theorem
    assert f"{twin.fixed_order:g}" in said.assumptions[0]


def test_other_rows_units_and_relations_are_refused() -> None:
    study = spent(StudyLedger(DATA), 4.0)
    with pytest.raises(DataError, match="another StudyLedger"):
        study.spend(a_plan(), replace(DATA, digest="cd" * 32), name="dp_sgd")
    for plans in (a_plan(unit=Unit.CLIENT), a_plan(relation=REPLACE_ONE), ()):
        with pytest.raises(UnsoundReleaseError, match="no common sum"):
            study.spend(plans, DATA, name="fedavg")
    assert len(study.charges) == 1


def test_rows_without_a_digest_and_contradictions_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.digest"):
        StudyLedger(replace(DATA, digest=""))
    with pytest.raises(ValueError, match="budget=None"):
        StudyLedger(DATA, adaptive=True)
    with pytest.raises(ValueError, match="order=8"):
        StudyLedger(DATA, budget=BUDGET, order=8.0)
    with pytest.raises(PrivacyError, match="Nothing was charged"):
        StudyLedger(DATA).guarantee()


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_journal_gives_back_what_was_spent(tmp_path: Path, adaptive: bool) -> None:
    journal = tmp_path / "study" / "journal.jsonl"
    study = StudyLedger(DATA, budget=BUDGET, adaptive=adaptive, journal=journal)
    spent(study, 8.0, 9.0)
    again = StudyLedger(DATA, budget=BUDGET, adaptive=adaptive, journal=journal)
    assert again.charges == study.charges
    assert again.epsilon == study.epsilon
    spent(again, 30.0)
    with pytest.raises(PrivacyError, match="changed by somebody else"):
        spent(study, 30.0)
    for other in (
        {"data": replace(DATA, digest="ef" * 32)},
        {"budget": Budget(3.0, 1e-5)},
        {"budget": Budget(2.0, 1e-6)},
        {"adaptive": not adaptive},
    ):
        options: dict[str, Any] = {"data": DATA, "budget": BUDGET, "adaptive": adaptive, **other}
        with pytest.raises(PrivacyError, match="belongs to a study of other rows"):
            StudyLedger(journal=journal, **options)


def test_a_line_that_a_crash_cut_off_spent_nothing_and_swallows_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    spent(StudyLedger(DATA, journal=journal), 8.0)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'\n{"name": "dp_s')
    again = StudyLedger(DATA, journal=journal)
    assert len(again.charges) == 1
    spent(again, 9.0)
    assert len(StudyLedger(DATA, journal=journal).charges) == 2
    journal.write_bytes(whole[:20])
    assert StudyLedger(DATA, journal=journal).charges == ()


def test_a_journal_that_cannot_be_written_means_nothing_is_spent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    study = StudyLedger(DATA, journal=tmp_path / "file" / "journal.jsonl")
    with pytest.raises(PrivacyError, match="Nothing was trained"):
        spent(study, 4.0)
    assert study.charges == ()


# Twins


@dataclass
class BrokenStudy:
    """Twin: keeps the dearest fit instead of the sum, as somebody who reads statements would."""

    worst: float = 0.0

    def spend(self, plans: tuple[PrivacyPlan, ...], data: object, *, name: str) -> None:
        event = repeated(plans[0].event, plans[0].count)
        self.worst = max(self.worst, epsilon(event, 1e-5, relation=plans[0].relation))

    @property
    def epsilon(self) -> float:
        return self.worst


def adds_up(make: Callable[[], Any]) -> bool:
    """Whether two fits cost more than each of them."""
    study, alone = make(), make()
    alone.spend(a_plan(), DATA, name="a")
    for name in ("a", "b"):
        study.spend(a_plan(), DATA, name=name)
    return bool(study.epsilon > 1.05 * alone.epsilon)


def test_a_twin_that_keeps_the_largest_is_caught() -> None:
    assert adds_up(lambda: StudyLedger(DATA))
    assert not adds_up(BrokenStudy)


@given(noises=st.lists(st.floats(2.0, 40.0), min_size=1, max_size=4), further=st.floats(2.0, 40.0))
@settings(max_examples=10, deadline=None)
def test_another_fit_never_lowers_epsilon(noises: list[float], further: float) -> None:
    study = spent(StudyLedger(DATA), *noises)
    before = study.epsilon
    assert spent(study, further).epsilon >= before


# Fits


def test_a_fit_is_charged_before_it_trains() -> None:
    study = StudyLedger(DATA)

    def stop(done: int, total: int) -> None:
        assert len(study.charges) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(DP, TASK, DATA, runtimes=STAR, delta=1e-3, study_ledger=study, progress=stop)
    assert len(study.charges) == 1


@pytest.mark.slow
def test_two_fits_cost_what_the_study_says_and_a_third_is_refused() -> None:
    one = fit(DP, TASK, DATA, runtimes=STAR, delta=1e-3)
    budget = Budget(1.6 * one.statement.epsilon(), 1e-3)
    study = StudyLedger(DATA, budget=budget)
    fitted = 0
    with pytest.raises(BudgetExceededError):
        for seed in range(20):
            fit(DP, TASK, DATA, runtimes=STAR, delta=1e-3, seed=seed, study_ledger=study)
            fitted += 1
    assert 1 <= fitted < 20
    assert one.statement.epsilon() <= study.epsilon <= budget.epsilon


def test_an_interrupted_run_is_paid_for_once(tmp_path: Path) -> None:
    study = StudyLedger(DATA, delta=1e-3)
    options: dict[str, Any] = {"runtimes": STAR, "delta": 1e-3, "study_ledger": study}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(DP, TASK, DATA, folder=tmp_path / "run", progress=stop, **options)
    fit(DP, TASK, DATA, folder=tmp_path / "run", **options)
    assert len(study.charges) == 1
    fit(DP, TASK, DATA, folder=tmp_path / "other", **options)
    assert len(study.charges) == 2


def test_a_comparison_charges_every_row_and_shows_the_one_that_did_not_fit() -> None:
    one = fit(DP, TASK, DATA, runtimes=STAR, delta=1e-3)
    study = StudyLedger(DATA, budget=Budget(1.1 * one.statement.epsilon(), 1e-3))
    compared = compare(
        {"first": DP, "plain": SGD(epochs=1), "second": DP},
        *(TASK, DATA),
        runtimes=STAR,
        delta=1e-3,
        study_ledger=study,
    )
    errors = [row.error for row in compared.rows]
    assert errors[0] is None
    assert all("BudgetExceededError" in str(error) for error in errors[1:])
    assert len(study.charges) == 1


def test_fits_of_one_study_share_no_noise() -> None:
    """The same trainer twice with one seed: noise that both share would cancel."""
    study, models = StudyLedger(data=DATA), []
    for _ in range(2):
        result = fit(DP, TASK, DATA, runtimes=STAR, seed=0, study_ledger=study)
        models.append(to_vector(result.predictor.module.parameters()))  # type: ignore[attr-defined]
    assert not torch.equal(*models)
    alone = fit(DP, TASK, DATA, runtimes=STAR, seed=0)
    first = to_vector(alone.predictor.module.parameters())  # type: ignore[attr-defined]
    assert torch.equal(first, models[0]), "the first fit is the one without a study"


def test_what_no_accountant_can_add_up_is_refused_before_it_is_charged(tmp_path: Path) -> None:
    def plan(event: Any) -> tuple[PrivacyPlan, ...]:
        (one,) = a_plan()
        return (replace(one, event=event, count=1),)

    study = StudyLedger(data=DATA, journal=tmp_path / "study")
    cut = truncated_poisson_sampled(36, 0.1, 5, gaussian_event(2.0))
    study.spend(plan(cut), DATA, name="dp_sgd")
    before = (tmp_path / "study").read_bytes()
    with pytest.raises(UnsupportedError):
        study.spend(plan(rdp_curve(gaussian_event(2.0), [2.0, 8.0])), DATA, name="tune")
    assert (tmp_path / "study").read_bytes() == before
    assert len(study.charges) == 1
    assert study.epsilon > 0


def test_a_fit_tells_which_one_of_the_study_it_is() -> None:
    study = StudyLedger(data=DATA)
    settings: dict[str, Any] = {"name": "dp_sgd", "run": "a", "resumes": True}
    assert study.spend(a_plan(), DATA, **settings) == 0
    assert study.spend(a_plan(), DATA, name="dp_sgd") == 1
    assert study.spend(a_plan(), DATA, **settings) == 0, "it goes on with the noise it had"
    assert len(study.charges) == 2


def test_a_delta_of_the_study_or_of_a_calibration_that_promises_nothing_is_refused() -> None:
    for study in (StudyLedger(data=DATA, delta=0.1), StudyLedger(data=DATA, budget=Budget(9, 0.1))):
        with pytest.raises(UnsoundReleaseError, match=r"delta=0\.1"):
            fit(DP, TASK, DATA, runtimes=STAR, study_ledger=study)
        assert study.charges == ()
    with pytest.raises(UnsoundReleaseError, match=r"delta=0\.1"):
        calibrate(DP, DATA, epsilon=1.0, delta=0.1, runtimes=STAR)
