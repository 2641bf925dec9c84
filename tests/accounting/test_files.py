"""Events survive a journal, and nothing but events does."""

import json

import pytest

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.epsilon import rdp_curve
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    non_private_event,
    poisson_sampled,
    repeated,
    truncated_poisson_sampled,
)
from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.core.errors import (
    PrivacyError,
    UnsupportedError,
)

EVENTS = (
    gaussian_event(1.5),
    repeated(poisson_sampled(0.1, gaussian_event(1.0)), 7),
    composed([gaussian_event(1.0), laplace_event(2.0)]),
    fixed_size_sampled(100, 10, gaussian_event(1.0)),
    rdp_curve(gaussian_event(2.0), [2.0, 8.0]),
    non_private_event(),
    composed([repeated(laplace_event(1.0), 3), gaussian_event(float(2))]),
    truncated_poisson_sampled(36, 0.1, 5, gaussian_event(2.0)),
    Approximate(repeated(gaussian_event(2.0), 3), 1e-12),
    rdp_curve(non_private_event(), [2.0, 8.0]),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_a_file(event: object) -> None:
    assert event_from_plain(json.loads(json.dumps(event_to_plain(event)))) == event


def test_what_is_no_event_is_neither_written_nor_read() -> None:
    with pytest.raises(UnsupportedError, match="cannot hold"):
        event_to_plain(object())
    for kind in ("Popen", "attr", "GaussianDpEvent", None):
        with pytest.raises(PrivacyError, match="not known here"):
            event_from_plain({"kind": kind, "fields": []})


GAUSSIAN = {"kind": "GaussianDpEvent", "fields": [2.0]}


@pytest.mark.parametrize(
    "plain",
    [
        None,
        2.0,
        "GaussianDpEvent",
        [GAUSSIAN],
        GAUSSIAN | {"fields": 2.0},
        GAUSSIAN | {"fields": [2.0, 3.0]},
        GAUSSIAN | {"fields": [-2.0]},
        GAUSSIAN | {"fields": [float("nan")]},
        GAUSSIAN | {"fields": [True]},
        GAUSSIAN | {"fields": ["2.0"]},
        GAUSSIAN | {"fields": [GAUSSIAN]},
        GAUSSIAN | {"count": 0},
        {"kind": "SelfComposedDpEvent", "fields": [GAUSSIAN, -1]},
        {"kind": "SelfComposedDpEvent", "fields": [GAUSSIAN, 0.5]},
        {"kind": "SelfComposedDpEvent", "fields": [2.0, 3]},
        {"kind": "PoissonSampledDpEvent", "fields": [-0.1, GAUSSIAN]},
        {"kind": "PoissonSampledDpEvent", "fields": [1.1, GAUSSIAN]},
        {"kind": "SampledWithoutReplacementDpEvent", "fields": [10.5, 2, GAUSSIAN]},
        {"kind": "ComposedDpEvent", "fields": [[GAUSSIAN, 2.0]]},
        {"kind": "ComposedDpEvent", "fields": [2.0]},
        {"kind": "RdpCurve", "fields": [[2.0]]},
        {"kind": "RdpCurve", "fields": [[2.0], [-1.0]]},
        {"kind": "RdpCurve", "fields": [[0.5], [1.0]]},
        {"kind": "Approximate", "fields": [GAUSSIAN, -1e-9]},
        {"kind": "Approximate", "fields": [2.0, 1e-9]},
    ],
    ids=repr,
)
def test_an_event_that_cannot_be_is_refused(plain: object) -> None:
    """The library makes any of them: a negative count would give back what was spent."""
    with pytest.raises(PrivacyError, match=r"not known here.*nothing may be released"):
        event_from_plain(plain)
