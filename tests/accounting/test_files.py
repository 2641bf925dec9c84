"""Events survive a journal, and nothing but events does."""

import json

import pytest

from privtrain.accounting.epsilon import rdp_curve
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    laplace_event,
    non_private_event,
    poisson_sampled,
    repeated,
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
