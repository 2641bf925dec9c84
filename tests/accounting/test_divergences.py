"""Rényi divergences of events, against lower bounds of what is true."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from privtrain.accounting.epsilon import (
    epsilon,
    rdp_curve,
)
from privtrain.accounting.event import (
    gaussian_event,
    poisson_sampled,
    repeated,
)

DELTA = 1e-5


# Shrinking takes minutes where one evaluation takes a second; a failing example is small enough.
PROPERTY = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


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


def test_rounding_errors_of_rdp_never_undercut() -> None:
    """At large noise the sums of the RDP accountant lose all digits and may turn negative."""
    for noise in (1e3, 1e5, 1e7):
        sampled = rdp_curve(poisson_sampled(0.5, gaussian_event(noise)), [1.5, 2.0, 32.0, 100.0])
        whole = rdp_curve(gaussian_event(noise), sampled.orders)
        for order, part, bound in zip(sampled.orders, sampled.rdp, whole.rdp, strict=True):
            exact = 0.25 * order / (2 * noise**2)  # leading term: rate^2 order / (2 z^2)
            assert 0.99 * exact <= part <= bound * (1 + 1e-12)
