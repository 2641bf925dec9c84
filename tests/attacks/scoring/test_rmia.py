import math

import numpy as np
import pytest
from scipy import stats

from privtrain.attacks.scores import auc, auc_interval, tpr_at_fpr
from privtrain.attacks.scoring import rmia
from tests.attacks.scoring.planted import Flags, Floats, in_pairs, losses_of, planted

POPULATION = 50


def by_loop(
    target: Floats,
    shadows: Floats,
    included: Flags,
    population: tuple[Floats, Floats],
    gamma: float,
    a: float | None,
) -> Floats:
    """Equations 1 and 2, pair by pair; online where `a` is None."""

    def ratio(loss: float, models: Floats, flags: Flags) -> float:
        inside = [math.exp(-v) for v, saw in zip(models, flags, strict=True) if saw]
        outside = [math.exp(-v) for v, saw in zip(models, flags, strict=True) if not saw]
        out = sum(outside) / len(outside)
        if a is not None:
            marginal = ((1 + a) * out + (1 - a)) / 2
        else:
            marginal = (sum(inside) / len(inside) + out) / 2 if inside else out
        return math.exp(-loss) / marginal

    nowhere = np.zeros(len(shadows), dtype=bool)
    found = []
    for row, loss in enumerate(target):
        x = ratio(loss, shadows[:, row], included[:, row])
        dominated = [
            x / ratio(z, population[1][:, place], nowhere) >= gamma
            for place, z in enumerate(population[0])
        ]
        found.append(sum(dominated) / len(dominated))
    return np.array(found)


def population_of(rng: np.random.Generator, models: int) -> tuple[Floats, Floats]:
    """Losses of a target and of shadow models on rows that none of them saw."""
    level = rng.normal(2, 2, POPULATION)
    return losses_of(level + rng.normal(size=POPULATION)), losses_of(
        level + rng.normal(size=(models, POPULATION))
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 1.3])
@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("models", [4, 16])
def test_scores_equal_the_paper_pair_by_pair(models: int, a: float | None, gamma: float) -> None:
    rng = np.random.default_rng(models)
    run, population = planted(rng, models=models, candidates=40), population_of(rng, models)
    arrays = (losses_of(run.target), losses_of(run.shadows), run.included)
    if a is None:
        ratios, others = rmia.online_ratios(*arrays), rmia.online_ratios(*population)
    else:
        ratios = rmia.offline_ratios(*arrays, a=a)
        others = rmia.offline_ratios(*population, a=a)
    found = rmia.scores(ratios, others, gamma=gamma)
    np.testing.assert_allclose(found, by_loop(*arrays, population, gamma, a), rtol=1e-12)
    assert len(set(found.tolist())) > 3


def test_ratios_of_fixed_arrays_by_hand() -> None:
    included = np.array([[True], [False], [True], [False]])
    shadows = -np.log(np.array([[0.9], [0.4], [0.7], [0.2]]))
    target = -np.log(np.array([0.8]))
    # p_IN = 0.8, p_OUT = 0.3: online 0.8 / 0.55; a = 0.2: (1.2 x 0.3 + 0.8) / 2 = 0.58.
    assert rmia.online_ratios(target, shadows, included) == pytest.approx([0.8 / 0.55], abs=1e-12)
    assert rmia.offline_ratios(target, shadows, included, a=0.2) == pytest.approx([0.8 / 0.58])
    assert rmia.online_ratios(target, shadows) == pytest.approx([0.8 / 0.55], abs=1e-12)
    ratios, population = np.array([1.0, 0.5, 2.0, 4.0, 0.1]), np.array([2.0, 0.5, 1.0, 1.0])
    assert rmia.scores(ratios, population).tolist() == [0.75, 0.25, 1.0, 1.0, 0.0]
    assert rmia.scores(ratios, population, gamma=2.0).tolist() == [0.25, 0.0, 0.75, 1.0, 0.0]


def test_more_models_on_one_side_do_not_shift_the_marginal() -> None:
    included = np.array([[True], [False], [False], [False]])
    shadows = -np.log(np.array([[0.9], [0.1], [0.1], [0.1]]))
    found = rmia.online_ratios(-np.log(np.array([0.5])), shadows, included)
    assert found == pytest.approx([1.0], abs=1e-12)


def test_offline_does_not_read_what_in_models_say() -> None:
    run = planted(np.random.default_rng(0), models=4, candidates=20)
    losses, shadows = losses_of(run.target), losses_of(run.shadows)
    changed = np.where(run.included, np.nan, shadows)
    np.testing.assert_array_equal(
        rmia.offline_ratios(losses, shadows, run.included, a=0.5),
        rmia.offline_ratios(losses, changed, run.included, a=0.5),
    )


def test_untied_scores_break_ties_by_the_mean_log_ratio_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    ratios, population = rng.exponential(1, 400), rng.exponential(1, 20)
    plain, untied = rmia.scores(ratios, population), rmia.untied_scores(ratios, population)
    for row, ratio in enumerate(ratios):
        mean = sum(math.log(ratio / z) for z in population) / 20
        assert untied[row] == pytest.approx(plain[row] + 1 / (1 + math.exp(-mean)) / 20, abs=1e-12)
    assert ((untied >= plain) & (untied < plain + 1 / 20)).all()
    assert len(set(plain.tolist())) <= 21 and len(set(untied.tolist())) == 400
    assert np.argsort(untied).tolist() == np.argsort(ratios).tolist()
    # Rows that are equal stay tied.
    assert len(set(rmia.untied_scores(np.ones(3), population).tolist())) == 1


def test_low_rates_are_not_read_off_one_tied_block() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.exponential(2.0, 10_000), rng.exponential(1.0, 10_000)
    population = rng.exponential(1.0, 100)

    def rate(score: object) -> float:
        point = tpr_at_fpr(*(score(r, population) for r in (members, others)), 0.001)  # type: ignore[operator]
        assert point is not None
        return point.tpr

    # One population row in 100 bounds a block of some 1% of the others: nobody is below it.
    assert rate(rmia.scores) == 0.0
    assert rate(rmia.untied_scores) > 0.02


def test_losses_beyond_the_range_of_floats_have_finite_ratios() -> None:
    included = in_pairs(np.random.default_rng(0), 4, 3)
    shadows = np.full((4, 3), 1e6)
    shadows[:, 1] = 0.0
    found = rmia.online_ratios([np.inf, np.inf, 0.0], shadows, included)
    assert np.isfinite(found).all() and (found > 0).all()
    assert found[0] == pytest.approx(1.0) and found[1] < 1e-300 < 1e300 < found[2]


def test_rows_that_are_no_number_come_last() -> None:
    run = planted(np.random.default_rng(0), models=4, candidates=5)
    losses, shadows = losses_of(run.target), losses_of(run.shadows)
    losses[0], shadows[1, 1] = np.nan, np.nan
    ratios = rmia.online_ratios(losses, shadows, run.included)
    for score in (rmia.scores, rmia.untied_scores):
        found = score(ratios, np.ones(4))
        assert np.isneginf(found).tolist() == [True, True, False, False, False]


def test_best_a_is_the_one_that_a_loop_over_shadows_prefers() -> None:
    run = planted(np.random.default_rng(3), models=6, candidates=300, leak=2.0)
    losses = losses_of(run.shadows)
    grid = (0.0, 0.2, 0.5, 0.8, 1.0)
    areas = []
    for a in grid:
        total = 0.0
        for attacked in range(6):
            # Pairs lie side by side: 0 and 1, 2 and 3, 4 and 5.
            others = [m for m in range(6) if m // 2 != attacked // 2]
            ratios = rmia.offline_ratios(
                losses[attacked], losses[others], run.included[others], a=a
            )
            members = run.included[attacked]
            total += auc(ratios[members], ratios[~members])
        areas.append(total)
    assert rmia.best_a(losses, run.included, grid=grid) == grid[int(np.argmax(areas))]
    assert max(areas) - min(areas) > 0.01
    assert rmia.best_a(losses, run.included, grid=[0.4]) == 0.4
    assert rmia.best_a(losses, run.included) in rmia.TENTHS


def test_best_a_leaves_out_rows_that_are_no_number() -> None:
    run = planted(np.random.default_rng(3), models=6, candidates=300, leak=2.0)
    losses, broken = losses_of(run.shadows), np.arange(300) % 3 == 0
    losses[:, broken] = np.nan
    rest = rmia.best_a(losses[:, ~broken], run.included[:, ~broken])
    assert rmia.best_a(losses, run.included) == rest


def test_a_model_is_attacked_by_those_of_other_pairs() -> None:
    included = in_pairs(np.random.default_rng(4), 6, 50)[[0, 2, 4, 1, 3, 5]]
    assert rmia.attackers_of(included, 1).tolist() == [True, False, True, True, False, True]
    # Without a complement, as where coins are independent, only the model itself is left out.
    assert rmia.attackers_of(included[:3], 1).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="four at least"):
        rmia.best_a(np.zeros((2, 50)), included[[0, 3]])


@pytest.mark.parametrize("a", [-0.1, 1.1, math.nan])
def test_a_out_of_range_is_refused(a: float) -> None:
    with pytest.raises(ValueError, match="Expected a="):
        rmia.offline_ratios([0.1], [[0.1]], [[False]], a=a)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="target to be losses"):
        rmia.online_ratios([-0.5], [[0.1]])
    with pytest.raises(ValueError, match="shadows to be losses"):
        rmia.online_ratios([0.5], [[-0.1]])
    with pytest.raises(ValueError, match="a model that is IN"):
        rmia.online_ratios([0.5], [[0.1]], np.array([[False]]))
    with pytest.raises(ValueError, match="a model that is OUT"):
        rmia.offline_ratios([0.5], [[0.1]], np.array([[True]]), a=0.3)
    with pytest.raises(ValueError, match="population with shape"):
        rmia.scores([1.0], [])
    with pytest.raises(ValueError, match="population to be finite and above 0"):
        rmia.scores([1.0], [math.nan])
    with pytest.raises(ValueError, match="gamma=0"):
        rmia.scores([1.0], [1.0], gamma=0)
    with pytest.raises(ValueError, match="grid"):
        rmia.best_a(np.zeros((4, 1)), np.zeros((4, 1), dtype=bool), grid=[])


@pytest.mark.parametrize("a", [None, 0.3])
@pytest.mark.parametrize("models", [4, 16])
def test_a_coin_where_membership_is_permuted_and_power_where_it_is_not(
    models: int, a: float | None
) -> None:
    rng = np.random.default_rng(models)
    run, population = planted(rng, models=models, candidates=300), population_of(rng, models)
    losses, shadows = losses_of(run.target), losses_of(run.shadows)

    def attack(included: Flags, truth: Flags) -> tuple[float, tuple[float, float]]:
        if a is None:
            pair = rmia.online_ratios(losses, shadows, included), rmia.online_ratios(*population)
        else:
            pair = (
                rmia.offline_ratios(losses, shadows, included, a=a),
                rmia.offline_ratios(*population, a=a),
            )
        found = rmia.untied_scores(*pair)
        return auc(found[truth], found[~truth]), auc_interval(found[truth], found[~truth])

    areas, missed = [], 0
    for _ in range(200):
        area, (low, high) = attack(
            run.included[:, rng.permutation(300)], rng.permutation(run.truth)
        )
        areas.append(area)
        missed += not low <= 0.5 <= high
    members = run.truth.sum()
    deviation = math.sqrt(301 / (12 * members * (300 - members)) / 200)
    assert abs(np.mean(areas) - 0.5) < stats.norm.isf(5e-5) * deviation
    assert missed <= stats.binom.isf(1e-4, 200, 0.05)
    assert attack(run.included, run.truth)[1][0] > 0.5
