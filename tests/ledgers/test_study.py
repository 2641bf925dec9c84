"""The study ledger: all fits on the same rows add up, before each of them, and stay spent."""

import copy
import json
import math
import pickle
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
    charged,
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
from privtrain.core.keys import keyed_digest
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer, coalition
from privtrain.core.parameters import to_vector
from privtrain.core.statement import REPLACE_ONE, ZERO_OUT, Budget, Relation, Unit
from privtrain.core.trainer import RELEASE, PrivacyPlan
from privtrain.core.trainer import Charge as PlannedCharge
from privtrain.ledgers.run import JournalLedger, digest_of
from privtrain.ledgers.study import StudyLedger
from privtrain.runs.calibrating import calibrate
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.sgd import SGD
from tests.threads import meeting, outcomes
from tests.trainers.federations import STAR, TASK, a_federation

DATA = replace(a_federation(12, 9, 15, public_rows=36), digest="ab" * 32)
BUDGET = Budget(2.0, 1e-5)
DP = DPSGD(epochs=1, expected_batch=6)


def a_plan(
    noise: float = 4.0, count: int = 3, unit: Unit = Unit.EXAMPLE, relation: Relation = ZERO_OUT
) -> tuple[PrivacyPlan, ...]:
    event = gaussian_event(noise) if noise else non_private_event()
    charges = {RELEASE: PlannedCharge(event, count)}
    return (PrivacyPlan(observer=PUBLIC, unit=unit, relation=relation, charges=charges),)


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


def test_the_guarantee_of_a_study_says_what_it_rests_on() -> None:
    assumed = "the classes are public"
    data = replace(DATA, assumptions=(assumed,))
    for adaptive in (False, True):
        study = StudyLedger(data, budget=BUDGET, adaptive=adaptive)
        spent(study, 20.0)
        said = study.guarantee().assumptions
        assert "statement of each fit" in said[1]
        assert assumed in said[2:]
        assert ("fixed before" in said[0]) is not adaptive


# Threads


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_threads_do_not_spend_one_budget_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool, adaptive: bool
) -> None:
    journal = tmp_path / "study.jsonl" if on_disk else None
    study = StudyLedger(DATA, budget=BUDGET, adaptive=adaptive, journal=journal)
    checked = StudyLedger._check
    with monkeypatch.context() as patch:
        # All of them have been checked before the first is charged, unless a lock forbids it.
        bound = meeting(4, lambda *arguments: checked(study, *arguments))
        patch.setattr(StudyLedger, "_check", lambda self, *arguments: bound(*arguments))
        made = outcomes(4, lambda: study.spend(a_plan(4.0), DATA, name="dp_sgd"))
    errors = [type(one).__name__ for one in made if isinstance(one, Exception)]
    assert errors == ["BudgetExceededError"] * 3
    assert len(study.charges) == 1
    assert study.epsilon <= BUDGET.epsilon
    if on_disk:
        again = StudyLedger(DATA, budget=BUDGET, adaptive=adaptive, journal=journal)
        assert again.charges == study.charges


def test_threads_get_numbers_of_their_own() -> None:
    """Two fits of one number would draw the same noise."""
    study = StudyLedger(DATA)
    assert sorted(outcomes(6, lambda: study.spend(a_plan(), DATA, name="x"))) == list(range(6))


def test_of_two_studies_on_one_journal_in_two_threads_one_pays(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    studies = [StudyLedger(DATA, budget=BUDGET, journal=journal) for _ in range(2)]
    made = outcomes(2, lambda: studies.pop().spend(a_plan(5.0), DATA, name="x"))
    assert sorted(type(one).__name__ for one in made) == ["PrivacyError", "int"]
    assert len(StudyLedger(DATA, budget=BUDGET, journal=journal).charges) == 1


@pytest.mark.slow
def test_fits_in_threads_keep_the_budget_together() -> None:
    alone = fit(DP, TASK, DATA, runtimes=STAR, delta=1e-3).statement.epsilon()
    study = StudyLedger(DATA, budget=Budget(1.1 * alone, 1e-3))
    made = outcomes(4, lambda: fit(DP, TASK, DATA, runtimes=STAR, study_ledger=study))
    assert sum(isinstance(one, BudgetExceededError) for one in made) == 3
    assert study.epsilon <= 1.1 * alone


def test_a_study_is_a_value_with_its_lock() -> None:
    study = spent(StudyLedger(DATA, budget=BUDGET), 8.0)
    for other in (pickle.loads(pickle.dumps(study)), copy.deepcopy(study)):
        assert other.charges == study.charges
        spent(other, 20.0)
        assert len(other.charges) == len(study.charges) + 1
    assert "_lock" not in repr(study)


# Whose promise it is


def to(observer: Observer, noise: float = 8.0) -> tuple[PrivacyPlan, ...]:
    return tuple(replace(plan, observer=observer) for plan in a_plan(noise, unit=Unit.CLIENT))


def test_a_journal_of_one_coalition_is_none_of_another(tmp_path: Path) -> None:
    """The aggregator draws the noise: what two clients were charged says nothing of it."""
    journal = tmp_path / "study.jsonl"
    charged = coalition({"p1", "p2"})
    study = StudyLedger(DATA, budget=Budget(3.0, 1e-3, charged), journal=journal)
    study.spend(to(charged), DATA, name="fedavg")
    assert study.guarantee().observer == charged.without_members
    assert json.loads(journal.read_text().splitlines()[1])["members"] == ["p1", "p2"]
    for other in (
        coalition({"p0", "aggregator"}),
        coalition({"p0", "p1"}),
        coalition({"p1"}),
        # The same name by hand, and other members.
        Observer(charged.name, frozenset({"p0", "p1"})),
        PUBLIC,
    ):
        with pytest.raises(PrivacyError, match="of another observer"):
            StudyLedger(DATA, budget=Budget(3.0, 1e-3, other), journal=journal)
    again = StudyLedger(DATA, budget=Budget(3.0, 1e-3, coalition({"p2", "p1"})), journal=journal)
    assert again.charges == study.charges


def test_a_coalition_with_a_party_that_holds_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'p9' does not\. Known are p0, p1, p2, aggregator"):
        StudyLedger(DATA, budget=Budget(3.0, 1e-3, coalition({"p1", "p9"})))
    with pytest.raises(ValueError, match=r"observer='p1'"):
        StudyLedger(DATA, budget=Budget(3.0, 1e-3, Observer("p1")))


@pytest.mark.parametrize("observer", [PUBLIC, AGGREGATOR, coalition({"p1", "p2"})])
def test_journals_of_version_0_1_go_on_where_they_say_whose_they_are(
    tmp_path: Path, observer: Observer
) -> None:
    name = "coalition of 2 parties" if observer.corrupted else observer.name
    header = {
        "study": DATA.digest,
        "epsilon": 3.0,
        "delta": 1e-3,
        "observer": name,
        "order": None,
    }
    charge = {
        "name": "fedavg",
        "unit": "client",
        "relation": "zero_out",
        "run": "",
        "event": {"kind": "GaussianDpEvent", "fields": [8.0]},
    }
    journal = tmp_path / "study.jsonl"
    old = f"\n{json.dumps(header)}\n{json.dumps(charge)}"
    journal.write_text(old)
    budget = Budget(3.0, 1e-3, observer)
    if observer.corrupted:
        with pytest.raises(PrivacyError, match=r"version 0\.1.*how many.*not which"):
            StudyLedger(DATA, budget=budget, journal=journal)
        return
    study = StudyLedger(DATA, budget=budget, journal=journal)
    assert len(study.charges) == 1
    study.spend(to(observer), DATA, name="fedavg")
    # It goes on behind what stands there; the digest that 0.1 wrote is not written again.
    assert journal.read_text().startswith(old)
    assert journal.read_text().count(DATA.digest) == 1
    assert len(StudyLedger(DATA, budget=budget, journal=journal).charges) == 2
    with pytest.raises(PrivacyError, match="of other rows"):
        StudyLedger(replace(DATA, digest="cd" * 32), budget=budget, journal=journal)
    for size in range(len(f"\n{json.dumps(header)}") + 1):
        journal.write_text(old[:size])
        begun = StudyLedger(DATA, budget=budget, journal=journal)
        begun.spend(to(observer), DATA, name="fedavg")
        assert len(StudyLedger(DATA, budget=budget, journal=journal).charges) == 1


# What the journal tells of the rows


def test_nothing_that_is_written_or_said_identifies_rows_to_who_has_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    journal = folder / "study.jsonl"
    study = StudyLedger(DATA, journal=journal)
    assert not folder.exists(), "nothing is written before the first charge"
    spent(study, 8.0)
    key = folder / "private" / "digest.key"
    assert key.stat().st_mode & 0o077 == 0
    text = journal.read_text()
    header = json.loads(text.splitlines()[1])
    assert header["keyed"] is True
    assert header["study"] == keyed_digest(DATA.digest, folder)
    assert DATA.digest[:8] not in text
    other = replace(DATA, digest="cd" * 32)
    with pytest.raises(DataError, match="pay for both") as refused:
        study.spend(a_plan(), other, name="dp_sgd")
    with pytest.raises(PrivacyError) as reopened:
        StudyLedger(other, journal=journal)
    for error in (refused, reopened):
        assert "cdcd" not in str(error.value)
        assert DATA.digest[:8] not in str(error.value)
        assert header["study"][:8] not in str(error.value)
    # Two studies of the same rows show two digests.
    elsewhere = tmp_path / "elsewhere" / "study.jsonl"
    spent(StudyLedger(DATA, journal=elsewhere), 8.0)
    assert json.loads(elsewhere.read_text().splitlines()[1])["study"] != header["study"]


def test_without_a_journal_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spent(StudyLedger(DATA), 8.0)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_without_its_key_does_not_go_on(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    spent(StudyLedger(DATA, journal=journal), 8.0)
    (tmp_path / "private" / "digest.key").unlink()
    with pytest.raises(PrivacyError, match=r"without its key.*private"):
        StudyLedger(DATA, journal=journal)
    assert not (tmp_path / "private" / "digest.key").exists(), "no other key in its place"


# Entries that cannot be


CHARGE: dict[str, Any] = {
    "name": "dp_sgd",
    "run": "",
    "unit": "example",
    "relation": "zero_out",
    "event": {"kind": "GaussianDpEvent", "fields": [8.0]},
}


def gaussian(value: Any) -> dict[str, Any]:
    return {"kind": "GaussianDpEvent", "fields": [value]}


@pytest.mark.parametrize(
    "line",
    [
        CHARGE | {"unit": "row"},
        CHARGE | {"unit": "client"},
        CHARGE | {"relation": "swap"},
        CHARGE | {"relation": "replace_one"},
        CHARGE | {"event": None},
        CHARGE | {"event": 8.0},
        CHARGE | {"event": [gaussian(8.0)]},
        CHARGE | {"event": {"kind": "Popen", "fields": ["ls"]}},
        CHARGE | {"event": gaussian(-8.0)},
        CHARGE | {"event": gaussian(math.nan)},
        CHARGE | {"event": gaussian("8")},
        CHARGE | {"event": gaussian(True)},
        CHARGE | {"event": {"kind": "SelfComposedDpEvent", "fields": [gaussian(8.0), -3]}},
        CHARGE | {"event": {"kind": "SelfComposedDpEvent", "fields": [gaussian(8.0), 0.5]}},
        CHARGE | {"event": {"kind": "PoissonSampledDpEvent", "fields": [1.5, gaussian(8.0)]}},
        CHARGE | {"event": {"kind": "RdpCurve", "fields": [[2.0], [-1.0]]}},
        CHARGE | {"event": {"kind": "Approximate", "fields": [gaussian(8.0), -1e-9]}},
        CHARGE | {"event": gaussian(8.0) | {"times": 0}},
        CHARGE | {"name": 3},
        CHARGE | {"run": None},
        CHARGE | {"refund": 1.0},
        CHARGE | {"further": [{"unit": "client"}]},
        CHARGE | {"further": 7},
        {key: value for key, value in CHARGE.items() if key != "event"},
        {},
        {"spent_up_to": 3},
        [],
        "x",
        -1,
        "HEADER",
        "GARBAGE",
    ],
    ids=repr,
)
def test_an_entry_that_cannot_be_is_refused_with_file_and_line(tmp_path: Path, line: Any) -> None:
    journal = tmp_path / "study.jsonl"
    spent(StudyLedger(DATA, journal=journal), 8.0)
    whole = journal.read_text()
    made = {"HEADER": whole.splitlines()[1], "GARBAGE": "no entry"}
    text = made[line] if line in ("HEADER", "GARBAGE") else json.dumps(line)
    for further in ("", f"\n{json.dumps(CHARGE)}"):
        journal.write_text(f"{whole}\n{text}{further}")
        with pytest.raises(PrivacyError, match=r"Line 4 of the privacy journal .*study\.jsonl"):
            StudyLedger(DATA, journal=journal)
    journal.write_text(f"{whole}\n{json.dumps(CHARGE)}")
    assert len(StudyLedger(DATA, journal=journal).charges) == 2


def test_a_study_cut_at_every_byte_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    spent(StudyLedger(DATA, journal=journal), 8.0, 9.0)
    whole = journal.read_bytes()
    header, first = whole.split(b"\n")[1:3]
    ends = (len(header) + len(first) + 2, len(whole))
    for size in range(len(whole) + 1):
        journal.write_bytes(whole[:size])
        study = StudyLedger(DATA, journal=journal)
        before = len(study.charges)
        assert before == sum(size >= end for end in ends)
        spent(study, 10.0)
        assert len(StudyLedger(DATA, journal=journal).charges) == before + 1


# Several units


BOTH = (*a_plan(4.0), *a_plan(2.0, unit=Unit.CLIENT))


def test_a_budget_holds_for_every_unit_that_is_promised(tmp_path: Path) -> None:
    """Noise in the silos and on their sum: each protects other units, and both are promised."""
    alone = [StudyLedger(DATA) for _ in range(2)]
    for study, plan in zip(alone, BOTH, strict=True):
        study.spend((plan,), DATA, name="fedavg")
    example, client = (study.epsilon for study in alone)
    assert client > 1.5 * example
    both = StudyLedger(DATA, journal=tmp_path / "study.jsonl")
    both.spend(BOTH, DATA, name="fedavg")
    assert [(g.unit, g.epsilon) for g in both.guarantees()] == [
        (Unit.EXAMPLE, example),
        (Unit.CLIENT, client),
    ]
    assert (both.epsilon, both.guarantee().unit) == (client, Unit.CLIENT)
    again = StudyLedger(DATA, journal=tmp_path / "study.jsonl")
    assert again.charges == both.charges
    assert again.guarantees() == both.guarantees()
    # A budget that the first unit keeps and the second does not.
    budget = Budget((example + client) / 2, 1e-5)
    for adaptive in (False, True):
        study = StudyLedger(DATA, budget=budget, adaptive=adaptive)
        for plans in (BOTH, BOTH[::-1]):
            with pytest.raises(BudgetExceededError):
                study.spend(plans, DATA, name="fedavg")
        assert study.charges == ()
        study.spend((*a_plan(40.0), *a_plan(20.0, unit=Unit.CLIENT)), DATA, name="fedavg")
        with pytest.raises(BudgetExceededError):
            study.spend(BOTH, DATA, name="fedavg")


def test_a_fit_that_says_nothing_of_a_unit_has_no_place_in_its_sum() -> None:
    study = StudyLedger(DATA)
    study.spend(BOTH, DATA, name="fedavg")
    with pytest.raises(UnsoundReleaseError, match="no common sum"):
        study.spend(a_plan(), DATA, name="dp_sgd")
    # The other way round the study promises one unit, and says so.
    examples = spent(StudyLedger(DATA), 4.0)
    examples.spend(BOTH, DATA, name="fedavg")
    assert [g.unit for g in examples.guarantees()] == [Unit.EXAMPLE]
    # What promises nothing makes every sum infinite.
    study.spend(a_plan(0.0), DATA, name="sgd")
    assert [g.epsilon for g in study.guarantees()] == [math.inf] * 2


def test_two_plans_about_one_unit_are_not_charged_as_one() -> None:
    study = StudyLedger(DATA)
    with pytest.raises(UnsoundReleaseError, match="2 plans"):
        study.spend((*a_plan(4.0), *a_plan(9.0)), DATA, name="mine")
    with pytest.raises(UnsoundReleaseError, match="2 plans"):
        study.spend((*a_plan(4.0), *a_plan(relation=REPLACE_ONE)), DATA, name="mine")
    assert study.charges == ()


# Twins


@dataclass
class BrokenStudy:
    """Twin: keeps the dearest fit instead of the sum, as somebody who reads statements would."""

    worst: float = 0.0

    def spend(self, plans: tuple[PrivacyPlan, ...], data: object, *, name: str) -> None:
        event = charged(plans[0].charges)
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
        return (replace(one, charges={RELEASE: PlannedCharge(event, 1)}),)

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


def test_kinds_of_a_fit_are_charged_together_and_as_often_as_each_may_be_made(
    tmp_path: Path,
) -> None:
    (one,) = a_plan()
    charges = {
        "check": PlannedCharge(gaussian_event(20.0), 9),
        "answer": PlannedCharge(gaussian_event(8.0), 4),
    }
    plan, study = (replace(one, charges=charges),), StudyLedger(DATA, journal=tmp_path / "study")
    study.spend(plan, DATA, name="pate")
    study.spend(plan, DATA, name="pate", counts={"check": 3, "answer": 99})
    study.spend(plan, DATA, name="pate", counts={"answer": 1})
    whole = [repeated(gaussian_event(20.0), 12), repeated(gaussian_event(8.0), 9)]
    assert study.epsilon == epsilon(composed(whole), 1e-5, relation=ZERO_OUT)
    assert StudyLedger(DATA, journal=tmp_path / "study").epsilon == study.epsilon


def test_a_run_of_several_kinds_is_known_by_all_of_its_numbers(tmp_path: Path) -> None:
    (one,) = a_plan()
    charges = {kind: PlannedCharge(gaussian_event(9.0), 4) for kind in ("a", "b")}
    ledger = JournalLedger((replace(one, charges=charges),))
    study = StudyLedger(DATA)
    assert study.spend_run(ledger, DATA, name="pate", folder=tmp_path) == 0
    assert ledger.spend(kind="b")
    assert study.spend_run(ledger, DATA, name="pate", folder=tmp_path) == 0, "it goes on"
    assert study.charges[0].run.endswith(" a 4, b 4")
    alone = JournalLedger(a_plan())
    assert study.spend_run(alone, DATA, name="dp_sgd", folder=tmp_path) == 1
    # As version 0.1 wrote it.
    assert study.charges[1].run.endswith(f"{digest_of(alone.plans, 1e-5)} 3")
