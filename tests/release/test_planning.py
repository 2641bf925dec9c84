"""Plans of answers: what they cost is what training states, and how often they are right."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

import privtrain as pt
from privtrain.core.errors import BudgetExceededError
from privtrain.ledgers.run import epsilon_of
from privtrain.release.planning import plan, right_answer
from privtrain.runs.calibrating import calibrate
from privtrain.trainers.pate import PATE
from tests.trainers.federations import STAR, a_federation

DATA = a_federation(600, public_rows=60_000)
CHECK: dict[str, Any] = {"threshold": 200, "sigma_check": 150, "sigmas": 50, "answers": 286}


def test_a_plan_costs_what_training_states() -> None:
    found = plan(teachers=250, answers=(100, 286), sigmas=(40, 50))
    assert [(row.answers, row.sigma) for row in found.rows] == [
        *((100, 40.0), (100, 50.0), (286, 40.0), (286, 50.0))
    ]
    for row in found.rows:
        release = pt.Release(pt.GNMax(row.sigma), finish=pt.ARGMAX)
        (public, *_) = PATE(teachers=250, queries=row.answers, release=release).plan(DATA, STAR)
        assert row.epsilon == epsilon_of(public, public.counts, 1e-5)
        assert (row.queries, row.passes) == (row.answers, 1.0)


def test_a_plan_with_checks_costs_the_caps_that_training_states() -> None:
    for row in plan(teachers=250, queries=(487, 1_000), delta=1e-6, **CHECK).rows:
        release = pt.ConfidentGNMax(threshold=200, sigma_check=150, sigma=50)
        trainer = PATE(teachers=250, queries=row.queries, answers=286, release=release)
        (public, *_) = trainer.plan(DATA, STAR)
        assert row.epsilon == epsilon_of(public, {"check": row.queries, "answer": 286}, 1e-6)


def test_golden_prices_of_caps() -> None:
    """286 answers at 150 / 50: a cap of 487, 700, 1,000 and 2,000 questions, delta 1e-5."""
    found = plan(teachers=250, queries=(487, 700, 1_000, 2_000), **CHECK)
    epsilons = [row.epsilon for row in found.rows]
    assert epsilons == pytest.approx([1.70, 1.73, 1.78, 1.93], abs=0.01)
    (alone,) = plan(teachers=250, answers=286, sigmas=50).rows
    assert alone.epsilon < epsilons[0] < epsilons[1] < epsilons[2] < epsilons[3]


def test_noise_that_follows_from_epsilon_is_that_of_calibrate() -> None:
    (row,) = plan(teachers=250, answers=286, epsilon=1.75).rows
    release = pt.Release(pt.GNMax(1.0), finish=pt.ARGMAX)
    trainer = PATE(teachers=250, queries=286, release=release)
    found = calibrate(trainer, DATA, epsilon=1.75, runtimes=STAR)
    assert isinstance(found, PATE)
    assert found.answering.mechanism.sigma == pytest.approx(row.sigma, rel=2e-3)  # type: ignore[attr-defined]
    assert 1.74 < row.epsilon <= 1.75
    settings = CHECK | {"sigmas": None}
    (checked,) = plan(teachers=250, queries=1_000, epsilon=1.75, **settings).rows
    assert checked.epsilon <= 1.75
    assert checked.sigma > row.sigma


# ----------------------------------------------------------------------- how often it is right


def test_two_classes_are_a_normal_tail_and_equal_votes_a_draw() -> None:
    for gap, sigma in ((10.0, 5.0), (3.0, 40.0), (150.0, 40.0)):
        by_hand = stats.norm.cdf(gap / (sigma * math.sqrt(2)))
        assert right_answer([gap + 7, 7.0], sigma) == pytest.approx(by_hand, abs=1e-10)
    for classes in (2, 10, 150):
        assert right_answer([3.0] * classes, 4.0) == pytest.approx(1 / classes, abs=1e-10)


def test_the_chances_of_all_classes_are_those_of_draws_and_sum_to_one() -> None:
    counts, sigma = np.array([11.0, 9.0, 4.0, 0.0]), 4.0
    found = [right_answer([n, *np.delete(counts, k)], sigma) for k, n in enumerate(counts)]
    assert sum(found) == pytest.approx(1, abs=1e-10)
    draws = counts + sigma * np.random.default_rng(0).standard_normal((100_000, 4))
    wins = np.bincount(draws.argmax(axis=1), minlength=4)
    for chance, count in zip(found, wins, strict=True):
        assert stats.binomtest(int(count), 100_000, chance).pvalue > 1e-4
    for factor in (2 / 3, 3 / 2):
        other = right_answer(list(counts), sigma * factor)
        assert stats.binomtest(int(wins[0]), 100_000, other).pvalue < 1e-4


def test_one_rival_is_the_worst_case() -> None:
    """Of all ways to spread the other votes none makes the answer wrong more often."""
    generator = np.random.default_rng(1)
    for sigma in (5.0, 40.0, 100.0):
        (row,) = plan(teachers=250, answers=1, sigmas=sigma, share=0.6).rows
        chances = [
            right_answer([150.0, *(100.0 * generator.dirichlet(np.ones(9)))], sigma)
            for _ in range(20)
        ]
        assert min(chances) >= row.right
        assert row.right == right_answer([150.0, 100.0, *[0.0] * 8], sigma)


def test_a_clear_vote_passes_as_often_as_its_noise_lets_it() -> None:
    (row,) = plan(teachers=250, queries=487, share=0.9, **CHECK).rows
    assert row.passes == pytest.approx(float(stats.norm.cdf(25 / 150)), abs=1e-12)


# ------------------------------------------------------------------------------ what is chosen


def test_the_best_row_has_most_answers_of_those_that_fit_and_are_right() -> None:
    found = plan(teachers=250, answers=(100, 286, 500), sigmas=(40, 50, 100))
    fitting = [r for r in found.rows if r.epsilon <= 2.25 and r.right >= 0.95]
    best = found.best(2.25)
    assert best in fitting
    assert best.answers == max(r.answers for r in fitting) == 500
    # A looser demand on the answers takes more noise, a stricter one fewer answers.
    assert found.best(2.25, right=0.99).answers < 500
    assert found.best(1.1, right=0.6).sigma == 100
    with pytest.raises(BudgetExceededError, match=r"epsilon=0.1 .*costs .*fewer answers"):
        found.best(0.1)
    with pytest.raises(BudgetExceededError, match=r"likeliest row has 0\.995"):
        found.best(10.0, right=0.9999)
    for wrong in ({"epsilon": 0.0}, {"epsilon": 2.0, "right": 1.5}):
        with pytest.raises(ValueError, match=f"{[*wrong][-1]}="):
            found.best(**wrong)


def test_a_plan_prints_and_is_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    found = plan(teachers=250, queries=(487, 700), **CHECK)
    header, first, *_ = str(found).splitlines()
    assert header.split() == ["asked", "answers", "sigma", "epsilon", "passes", "right"]
    assert first.split()[:3] == ["487", "286", "50"]
    # Rounded up, so that it holds.
    assert float(first.split()[3]) >= found.rows[0].epsilon
    assert "one rival, the worst case" in str(found)
    assert "may be published" in str(found)
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.epsilon.tolist() == [row.epsilon for row in found.rows]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"teachers": 0}, "teachers=0"),
        ({"classes": 1}, "classes=1"),
        ({"answers": 0}, "answers=0"),
        ({"answers": (10, 2.5)}, "answers=2.5"),
        ({"sigmas": 0}, "sigmas=0"),
        ({"sigmas": (40, -1)}, "sigmas=-1"),
        ({"sigmas": ()}, "sigmas="),
        ({"answers": []}, "answers="),
        ({"share": 0.5}, "share=0.5"),
        ({"share": 1.1}, "share=1.1"),
        ({"delta": 0}, "delta=0"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": 2.0, "sigmas": 40}, "not both"),
        ({"queries": 10}, "threshold and sigma_check"),
        ({"threshold": 200, "sigma_check": 150}, "queries"),
        ({"queries": 50, "threshold": 200, "sigma_check": 150}, "answers=100 <= queries=50"),
        ({"queries": 2_000, "threshold": 251, "sigma_check": 150}, "threshold=251"),
        ({"queries": 2_000, "threshold": 0, "sigma_check": 150}, "threshold=0"),
        ({"queries": 2_000, "threshold": 9, "sigma_check": -1}, "sigma_check=-1"),
    ],
)
def test_bad_plans_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**({"teachers": 250} | given))


def test_an_epsilon_that_checks_alone_cost_is_refused() -> None:
    settings = CHECK | {"sigmas": None, "sigma_check": 5}
    with pytest.raises(BudgetExceededError, match=r"No answer fits epsilon=1 .*checks alone cost"):
        plan(teachers=250, queries=1_000, epsilon=1.0, **settings)
