"""Accountants against closed forms, their conventions, and what they refuse."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from privtrain.accounting.curves import gaussian_epsilon
from privtrain.accounting.epsilon import (
    Accountant,
    Evaluation,
    best_accountant,
    epsilon,
    evaluate,
    supports,
    tightest,
)
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    no_event,
    non_private_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation

ROOT = Path(__file__).parent.parent.parent
DELTA = 1e-5
# Shrinking takes minutes where one evaluation takes a second; a failing example is small enough.
PROPERTY = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
CURVE = RdpCurve((2.0, 4.0, 8.0, 32.0), (0.1, 0.2, 0.4, 1.6))


@pytest.mark.slow
@PROPERTY
@given(noise=st.floats(1.0, 30), rate=st.sampled_from([0.01, 0.1]), count=st.integers(1, 300))
def test_composition_and_less_noise_never_lower_epsilon(
    noise: float, rate: float, count: int
) -> None:
    step = poisson_sampled(rate, gaussian_event(noise))
    more = composed([repeated(step, count), laplace_event(20.0)])
    louder = repeated(poisson_sampled(rate, gaussian_event(noise * 1.1)), count)
    names: tuple[Accountant, ...] = ("pld", "rdp")
    for accountant in names:
        value = epsilon(repeated(step, count), DELTA, accountant=accountant)
        # A grid that follows the size of the answer may move the upper bound by its step.
        slack = 0.02 * value + 1e-6 if accountant == "pld" else 1e-12
        again = epsilon(repeated(step, count + 1), DELTA, accountant=accountant)
        assert again >= value - slack
        assert epsilon(more, DELTA, accountant=accountant) >= value - slack
        assert epsilon(louder, DELTA, accountant=accountant) <= value + slack


def test_relations_of_a_gaussian() -> None:
    event = repeated(gaussian_event(3.0), 10)
    names: tuple[Accountant, ...] = ("pld", "rdp")
    for accountant in names:
        add, zero, replaced = (
            epsilon(event, DELTA, relation=relation, accountant=accountant)
            for relation in (ADD_REMOVE, ZERO_OUT, REPLACE_ONE)
        )
        half = epsilon(repeated(gaussian_event(1.5), 10), DELTA, accountant=accountant)
        assert add == zero
        assert replaced == pytest.approx(half, rel=1e-6)


def test_laplace_under_replace_one_has_half_the_noise() -> None:
    replaced = evaluate(repeated(laplace_event(10.0), 5), DELTA, REPLACE_ONE)
    half = epsilon(repeated(laplace_event(5.0), 5), DELTA, accountant="rdp")
    assert replaced == Evaluation(half, "rdp", None)
    # Pure DP: never more than the sum of 1 / noise_multiplier.
    assert epsilon(laplace_event(0.5), DELTA) <= 2.0 + 1e-3


def test_nothing_released_costs_nothing() -> None:
    for event in (no_event(), repeated(gaussian_event(1.0), 0), composed([]), CURVE.repeated(0)):
        for relation in Relation:
            assert epsilon(event, DELTA, relation=relation, accountant="rdp") == 0.0
    assert evaluate(repeated(gaussian_event(1.0), 0), DELTA) == Evaluation(0.0, "none", None)


def test_a_release_without_protection_is_infinite() -> None:
    import dp_accounting

    exposed = [
        non_private_event(),
        gaussian_event(0.0),
        laplace_event(0.0),
        dp_accounting.GaussianDpEvent(0.0),
        repeated(gaussian_event(0), 3),
    ]
    exposed += [poisson_sampled(0.1, gaussian_event(0.0)), composed([CURVE, gaussian_event(0.0)])]
    exposed += [dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(0.0))]
    for event in exposed:
        assert epsilon(event, DELTA) == math.inf
        assert evaluate(event, DELTA, REPLACE_ONE) == Evaluation(math.inf, "none", None)


FIXED = fixed_size_sampled(1000, 10, gaussian_event(1.0))
SAMPLED = poisson_sampled(0.01, gaussian_event(1.0))


@pytest.mark.parametrize(
    ("event", "relation", "best", "crossed"),
    [
        (gaussian_event(1.0), ADD_REMOVE, "pld", True),
        (gaussian_event(1.0), REPLACE_ONE, "pld", True),
        (SAMPLED, ADD_REMOVE, "pld", True),
        (SAMPLED, ZERO_OUT, "pld", True),
        (SAMPLED, REPLACE_ONE, "pld", False),
        (FIXED, REPLACE_ONE, "pld", True),
        (laplace_event(2.0), ADD_REMOVE, "pld", True),
        (laplace_event(2.0), REPLACE_ONE, "rdp", False),
        (CURVE, ADD_REMOVE, "rdp", False),
        (composed([CURVE, gaussian_event(5.0)]), REPLACE_ONE, "rdp", False),
    ],
)
def test_the_best_accountant_and_its_cross_check(
    event: Any, relation: Relation, best: str, crossed: bool
) -> None:
    found = evaluate(event, DELTA, relation)
    assert best_accountant(event, relation) == found.accountant == best
    assert (found.cross_check is not None) == crossed
    if found.cross_check is not None:
        assert found.cross_check != found.epsilon
        assert found.cross_check > 0.9 * found.epsilon


@pytest.mark.parametrize(
    ("event", "relation", "accountant", "way_out"),
    [
        (SAMPLED, REPLACE_ONE, "rdp", "PLD under replace-one"),
        (laplace_event(1.0), REPLACE_ONE, "pld", "RDP under replace-one"),
        (FIXED, ADD_REMOVE, "pld", "PLD under replace-one; RDP under replace-one"),
        (FIXED, ADD_REMOVE, "rdp", "PLD under replace-one; RDP under replace-one"),
        (CURVE, ADD_REMOVE, "pld", "RDP under add-remove"),
        # What was asked for comes first.
        (CURVE, ZERO_OUT, "pld", "Possible: RDP under zero-out; RDP under add-remove; RDP under"),
    ],
)
def test_unsupported_pairs_name_the_pair_and_the_way_out(
    event: Any, relation: Relation, accountant: Accountant, way_out: str
) -> None:
    assert not supports(event, relation, accountant)
    with pytest.raises(UnsupportedError) as caught:
        epsilon(event, DELTA, relation=relation, accountant=accountant)
    text = str(caught.value)
    assert accountant.upper() in text
    assert relation.value.replace("_", "-") in text
    assert type(event).__name__ in text
    assert way_out in text


def test_what_nobody_reads_is_refused() -> None:
    import dp_accounting

    unknown = dp_accounting.UnsupportedDpEvent()
    with pytest.raises(UnsupportedError, match="No accountant"):
        evaluate(unknown, DELTA)
    with pytest.raises(UnsupportedError, match="replace-one"):
        evaluate(FIXED, DELTA, ADD_REMOVE)
    # The RDP accountant would read it, and forget that a replaced row moves twice as far.
    concentrated = dp_accounting.ZCDpEvent(rho=0.1)
    with pytest.raises(UnsupportedError):
        epsilon(concentrated, DELTA, relation=REPLACE_ONE, accountant="rdp")


@pytest.mark.parametrize("delta", [1e-12, 1e-13, 1e-15, 1e-18, 1e-20, 1e-30])
def test_small_deltas_have_an_epsilon_between_the_truth_and_renyi(delta: float) -> None:
    # Balle and Wang 2018: the exact epsilon of Gaussians that are not sampled.
    many = repeated(gaussian_event(3.0), 5)
    truth = gaussian_epsilon(math.sqrt(5) / 3, delta)
    found = evaluate(many, delta)
    assert truth * (1 - 1e-6) <= found.epsilon <= 1.04 * truth
    sampled = repeated(SAMPLED, 500)
    found = evaluate(sampled, delta)
    by_renyi = epsilon(sampled, delta, accountant="rdp")
    assert epsilon(SAMPLED, delta, accountant="rdp") * 0.8 < found.epsilon <= by_renyi
    # At 1e-15 privacy losses still tell more; far below them only Renyi divergences tell anything.
    assert found.accountant == ("pld" if delta > 1e-20 else "rdp")


def test_epsilons_of_smaller_deltas_are_larger() -> None:
    """Across all changes of window and accountant."""
    deltas = [10.0 ** (-power / 2) for power in range(20, 50)]
    for event in (repeated(SAMPLED, 300), repeated(laplace_event(5.0), 10), gaussian_event(2.0)):
        found = [tightest(event, delta)[0] for delta in deltas]
        assert all(b >= a * (1 - 1e-4) for a, b in pairwise(found)), found


def test_a_delta_that_cannot_be_resolved_is_refused_with_a_way_out_that_is_there() -> None:
    single = repeated(SAMPLED, 100)
    with pytest.raises(UnsupportedError, match="delta=1e-40") as caught:
        epsilon(single, 1e-40)
    assert "accountant=" not in str(caught.value) and "larger delta" in str(caught.value)
    assert epsilon(single, 1e-40, accountant="rdp") < 1e4
    # Only privacy losses read a replaced row of a Poisson sample.
    with pytest.raises(UnsupportedError, match="larger delta"):
        evaluate(single, 1e-30, REPLACE_ONE)
    assert evaluate(single, 1e-15, REPLACE_ONE).epsilon < 20
    # Convolutions of several kinds of losses are noise below 1e-14: Renyi divergences take over.
    several = composed([single, repeated(laplace_event(9.0), 2)])
    assert evaluate(several, 1e-13).accountant == "pld"
    assert evaluate(several, 1e-15).accountant == "rdp"
    with pytest.raises(UnsupportedError, match="delta"):
        epsilon(several, 1e-15)


@pytest.mark.parametrize(
    "call",
    [
        lambda: epsilon(SAMPLED, 0.0),
        lambda: epsilon(SAMPLED, 1.0),
        lambda: epsilon(SAMPLED, DELTA, accountant="prv"),  # type: ignore[arg-type]
        lambda: epsilon(SAMPLED, DELTA, conversion="best"),  # type: ignore[arg-type]
        lambda: epsilon(SAMPLED, DELTA, relation="swap"),  # type: ignore[arg-type]
        lambda: epsilon(3.0, DELTA),
        lambda: gaussian_event(-1.0),
        lambda: gaussian_event(math.nan),
        lambda: laplace_event(math.inf),
        lambda: poisson_sampled(0.0, gaussian_event(1.0)),
        lambda: poisson_sampled(1.5, gaussian_event(1.0)),
        lambda: fixed_size_sampled(10, 11, gaussian_event(1.0)),
        lambda: repeated(gaussian_event(1.0), -1),
        lambda: repeated(gaussian_event(1.0), 1.5),  # type: ignore[arg-type]
        lambda: RdpCurve((1.0, 2.0), (0.1, 0.1)),
        lambda: RdpCurve((2.0, 3.0), (0.1,)),
        lambda: RdpCurve((2.0,), (-0.1,)),
        lambda: RdpCurve((), ()),
    ],
)
def test_wrong_arguments(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()


def test_sampling_everybody_changes_nothing_and_gaussians_of_one_sample_merge() -> None:
    assert poisson_sampled(1.0, gaussian_event(2.0)) == gaussian_event(2.0)
    both = composed([gaussian_event(3.0), repeated(gaussian_event(4.0), 2)])
    merged = 1 / math.sqrt(1 / 9 + 2 / 16)
    left = epsilon(poisson_sampled(0.1, both), DELTA)
    assert left == pytest.approx(epsilon(poisson_sampled(0.1, gaussian_event(merged)), DELTA))
