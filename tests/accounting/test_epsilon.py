"""Accountants against closed forms, their conventions, and what they refuse."""

import ast
import math
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from privtrain.accounting import losses as accountants
from privtrain.accounting.epsilon import (
    Accountant,
    Evaluation,
    RdpCurve,
    best_accountant,
    composed,
    epsilon,
    evaluate,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    no_event,
    non_private_event,
    poisson_sampled,
    rdp_curve,
    repeated,
    supports,
)
from privtrain.accounting.renyi import rdp_to_epsilon
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


def solve_epsilon(delta_of: Callable[[float], float], delta: float) -> float:
    """The epsilon at which a decreasing delta(epsilon) reaches delta."""
    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2
    return float(optimize.brentq(lambda value: delta_of(value) - delta, 0.0, high, xtol=1e-13))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8 (arXiv:1805.06530): the exact value."""

    def delta_of(value: float) -> float:
        shift, drift = 1 / (2 * noise_multiplier), value * noise_multiplier
        log_tail = value + stats.norm.logcdf(-shift - drift)
        return float(stats.norm.cdf(shift - drift) - math.exp(log_tail))

    return solve_epsilon(delta_of, delta)


def sampled_gaussian_epsilon(rate: float, noise_multiplier: float, delta: float) -> float:
    """The exact value of one Poisson-sampled Gaussian: hockey-stick divergence in both directions.

    P = (1 - rate) N(0, z^2) + rate N(1, z^2), Q = N(0, z^2); their ratio grows with x.
    """
    z = noise_multiplier

    def threshold(loss: float) -> float:
        """Where log(P/Q) equals a loss."""
        inner = math.expm1(loss) / rate + 1
        return -math.inf if inner <= 0 else z**2 * math.log(inner) + 0.5

    def remove(value: float) -> float:
        x = threshold(value)
        q = stats.norm.sf(x / z)
        p = (1 - rate) * q + rate * stats.norm.sf((x - 1) / z)
        return float(p - math.exp(value) * q)

    def add(value: float) -> float:
        x = threshold(-value)
        q = stats.norm.cdf(x / z)
        p = (1 - rate) * q + rate * stats.norm.cdf((x - 1) / z)
        return float(q - math.exp(value) * p)

    return max(solve_epsilon(remove, delta), solve_epsilon(add, delta))


@pytest.mark.slow
@PROPERTY
@given(noise=st.floats(0.5, 50), count=st.integers(1, 20), log_delta=st.floats(-18, -5))
def test_pld_is_the_exact_gaussian_from_above(noise: float, count: int, log_delta: float) -> None:
    delta = math.exp(log_delta)
    event = repeated(gaussian_event(noise), count)
    exact = gaussian_epsilon(noise / math.sqrt(count), delta)
    twice = gaussian_epsilon(noise / math.sqrt(count) / 2, delta)
    assert exact - 1e-9 <= epsilon(event, delta) <= exact * 1.01 + 1e-3
    replaced = epsilon(event, delta, relation=REPLACE_ONE)
    assert twice - 1e-9 <= replaced <= twice * 1.01 + 1e-3


@pytest.mark.slow
def test_losses_near_the_end_of_exp() -> None:
    """Here dp_accounting divides by a number below the smallest normal float."""
    for noise, count in ((0.3, 24), (0.3, 27), (0.0265, 1)):
        exact = gaussian_epsilon(noise / math.sqrt(count), 1.5e-8)
        value = epsilon(repeated(gaussian_event(noise), count), 1.5e-8)
        assert exact - 1e-9 <= value <= 1.002 * exact


@pytest.mark.slow
@PROPERTY
@given(rate=st.floats(0.001, 0.9), noise=st.floats(0.4, 20), log_delta=st.floats(-16, -6))
def test_pld_is_the_exact_sampled_gaussian_from_above(
    rate: float, noise: float, log_delta: float
) -> None:
    delta = math.exp(log_delta)
    exact = sampled_gaussian_epsilon(rate, noise, delta)
    value = epsilon(poisson_sampled(rate, gaussian_event(noise)), delta)
    assert exact - 1e-9 <= value <= exact * 1.02 + 2e-3


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


@pytest.mark.slow
@PROPERTY
@given(noise=st.floats(1.0, 30), rate=st.floats(0.001, 0.5), count=st.integers(1, 500))
def test_rdp_is_never_below_the_optimistic_value(noise: float, rate: float, count: int) -> None:
    import dp_accounting
    from dp_accounting import pld

    event = repeated(poisson_sampled(rate, gaussian_event(noise)), count)
    optimistic = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-3,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    ).self_compose(count)
    assert epsilon(event, DELTA, accountant="rdp") >= optimistic.get_epsilon_for_delta(DELTA) - 1e-6


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
        (FIXED, REPLACE_ONE, "rdp", False),
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
        (SAMPLED, REPLACE_ONE, "rdp", "accountant='pld' under replace-one"),
        (laplace_event(1.0), REPLACE_ONE, "pld", "accountant='rdp' under replace-one"),
        (FIXED, REPLACE_ONE, "pld", "accountant='rdp' under replace-one"),
        (FIXED, ADD_REMOVE, "rdp", "accountant='rdp' under replace-one"),
        (CURVE, ADD_REMOVE, "pld", "accountant='rdp' under add-remove"),
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


def test_a_delta_that_cannot_be_resolved_raises() -> None:
    with pytest.raises(UnsupportedError, match="delta"):
        epsilon(repeated(SAMPLED, 100), 1e-40)
    assert epsilon(repeated(SAMPLED, 100), 1e-40, accountant="rdp") < 1e4


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


def test_curves_compose_by_adding() -> None:
    assert composed([CURVE, CURVE]) == repeated(CURVE, 2) == CURVE + CURVE
    assert composed([CURVE]) == CURVE == pickle.loads(pickle.dumps(CURVE))
    assert hash(CURVE) == hash(RdpCurve(CURVE.orders, CURVE.rdp))
    assert RdpCurve(np.array([2, 3]), np.array([0.5, 1])) == RdpCurve((2.0, 3.0), (0.5, 1.0))  # type: ignore[arg-type]
    assert math.inf == RdpCurve((2.0,), (math.inf,)).epsilon(DELTA)
    with pytest.raises(ValueError, match="orders"):
        composed([CURVE, RdpCurve((2.0,), (0.1,))])
    with pytest.raises(ValueError, match="orders"):
        evaluate(composed([CURVE, RdpCurve((2.0,), (0.1,)), gaussian_event(1.0)]), DELTA)
    for sampled in (
        lambda: poisson_sampled(0.1, CURVE),
        lambda: fixed_size_sampled(10, 1, composed([CURVE, gaussian_event(1.0)])),
    ):
        with pytest.raises(UnsupportedError, match="RdpCurve"):
            sampled()


def test_a_curve_takes_no_factor_under_any_relation_and_an_event_beside_it_does() -> None:
    alone = rdp_to_epsilon(CURVE.rdp, CURVE.orders, DELTA, "improved")
    for relation in Relation:
        assert epsilon(CURVE, DELTA, relation=relation, accountant="rdp") == alone
    orders = np.array(CURVE.orders)
    mixed = repeated(composed([CURVE, gaussian_event(3.0)]), 7)
    for relation, sensitivity in ((ADD_REMOVE, 1.0), (ZERO_OUT, 1.0), (REPLACE_ONE, 2.0)):
        total = 7 * (np.array(CURVE.rdp) + orders * sensitivity**2 / (2 * 3.0**2))
        expected = rdp_to_epsilon(total, orders, DELTA, "improved")
        assert evaluate(mixed, DELTA, relation).epsilon == pytest.approx(expected, rel=1e-12)
        assert rdp_curve(mixed, CURVE.orders, relation).rdp == pytest.approx(tuple(total))


def test_conversions() -> None:
    orders, curve = np.array([2.0, 10.0, 100.0]), np.array([0.1, 0.5, 5.0])
    classic = min(curve + math.log(1e5) / (orders - 1))
    assert rdp_to_epsilon(curve, orders, DELTA) == pytest.approx(classic, rel=1e-15)
    assert rdp_to_epsilon(curve, orders, DELTA, "improved") < classic
    assert rdp_to_epsilon(0 * curve, orders, DELTA) == 0.0
    assert rdp_to_epsilon(curve * 1e-14, orders, DELTA, "improved") == 0.0


def test_the_improved_conversion_is_that_of_dp_accounting() -> None:
    import dp_accounting

    orders = np.array([1.5, 2.0, 4.0, 16.0, 64.0, 256.0])
    for scale in (1e-6, 1e-3, 0.1, 3.0):
        curve = scale * orders
        theirs = dp_accounting.rdp.compute_epsilon(orders, curve, DELTA)[0]
        ours = rdp_to_epsilon(curve, orders, DELTA, "improved")
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_rounding_errors_of_rdp_never_undercut() -> None:
    """At large noise the sums of the RDP accountant lose all digits and may turn negative."""
    for noise in (1e3, 1e5, 1e7):
        sampled = rdp_curve(poisson_sampled(0.5, gaussian_event(noise)), [1.5, 2.0, 32.0, 100.0])
        whole = rdp_curve(gaussian_event(noise), sampled.orders)
        for order, part, bound in zip(sampled.orders, sampled.rdp, whole.rdp, strict=True):
            exact = 0.25 * order / (2 * noise**2)  # leading term: rate^2 order / (2 z^2)
            assert 0.99 * exact <= part <= bound * (1 + 1e-12)


def test_results_are_cached_across_equal_plans() -> None:
    accountants.pld_epsilon.cache_clear()
    for _ in range(5):
        evaluate(repeated(poisson_sampled(0.02, gaussian_event(1.7)), 50), DELTA)
    assert accountants.pld_epsilon.cache_info().misses == 1


EXTREME = """
    import resource, time
    from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE
    from privtrain.accounting.epsilon import epsilon, gaussian_event, poisson_sampled, repeated

    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    for noise in (0.01, 0.03, 0.1, 0.3, 1.0, 30.0, 1000.0, 1e6):
        for count in (1, 400, 100_000) if noise >= 0.1 else (1, 400):
            step = poisson_sampled(0.05, gaussian_event(noise))
            for relation in (ADD_REMOVE, REPLACE_ONE):
                assert 0 <= epsilon(repeated(step, count), 1e-5, relation=relation) < 1e12
            epsilon(repeated(gaussian_event(max(noise, 0.1)), count), 1e-5)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30, grown
    print("seconds", time.monotonic() - start)
"""


@pytest.mark.slow
def test_extreme_noise_stays_within_a_gigabyte() -> None:
    script = textwrap.dedent(EXTREME)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_loading_the_module_loads_no_heavy_package() -> None:
    script = (
        "import sys, privtrain.accounting.epsilon, privtrain.accounting.gnmax, "
        "privtrain.accounting.calibration\n"
        "print([n for n in ('dp_accounting', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_only_one_file_imports_dp_accounting() -> None:
    importers = set()
    for path in (ROOT / "privtrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "dp_accounting" for name in names):
                importers.add(path.name)
    assert importers == {"events.py"}
