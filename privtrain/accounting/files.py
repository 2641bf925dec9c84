"""Accounting events as plain values that a journal can hold, and back."""

from collections.abc import Mapping
from typing import Any

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.event import Event
from privtrain.accounting.library import event_class, field_names
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import PrivacyError, UnsupportedError


def event_to_plain(event: Event) -> Any:
    """An event as what JSON can hold: its kind and its fields.

    Args:
        event: An event of dp_accounting, an `RdpCurve`, or an `Approximate`.

    Raises:
        UnsupportedError: If it holds something that no file can.
    """
    if event is None or isinstance(event, (bool, int, float, str)):
        return event
    if isinstance(event, (list, tuple)):
        return [event_to_plain(part) for part in event]
    if isinstance(event, RdpCurve):
        return {"kind": "RdpCurve", "fields": [list(event.orders), list(event.rdp)]}
    if isinstance(event, Approximate):
        return {"kind": "Approximate", "fields": [event_to_plain(event.event), event.distance]}
    kind = type(event).__name__
    # By its class, not its name alone: what is written must be the same event when it is read.
    if type(event) is not event_class(kind):
        raise UnsupportedError(
            f"A journal cannot hold the event {event!r}. Keep this study in memory, without a "
            "journal."
        )
    values = [event_to_plain(getattr(event, name)) for name in field_names(event)]
    return {"kind": kind, "fields": values}


def event_from_plain(plain: Any) -> Event:
    """The event that a plain value stands for; the inverse of `event_to_plain`.

    Raises:
        PrivacyError: If it stands for none: what was spent is unknown then.
    """
    if isinstance(plain, list):
        return tuple(event_from_plain(part) for part in plain)
    if not isinstance(plain, Mapping):
        return plain
    kind, values = plain.get("kind"), [event_from_plain(part) for part in plain.get("fields", ())]
    try:
        if kind == "RdpCurve":
            return RdpCurve(*values)
        if kind == "Approximate":
            return Approximate(*values)
        # Nothing but events: a journal must not name any other class of the library.
        made = event_class(str(kind))
        if made is None:
            raise TypeError(f"{kind!r} is no event.")
        return made(*values)
    except (AttributeError, TypeError, ValueError) as error:
        raise PrivacyError(
            f"The journal names the event {kind!r}, which is not known here: what was spent is "
            "unknown, so nothing may be released. Use the version that wrote it."
        ) from error
