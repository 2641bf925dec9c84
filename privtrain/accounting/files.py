"""Accounting events as plain values that a journal can hold, and back."""

import importlib
from collections.abc import Mapping
from typing import Any

from privtrain.accounting.epsilon import Approximate, Event, RdpCurve
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
    fields = getattr(event, "__attrs_attrs__", None)
    if fields is None or type(event) is not getattr(_events(), type(event).__name__, None):
        raise UnsupportedError(
            f"A journal cannot hold the event {event!r}. Keep this study in memory, without a "
            "journal."
        )
    values = [event_to_plain(getattr(event, field.name)) for field in fields]
    return {"kind": type(event).__name__, "fields": values}


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
        made = getattr(_events(), str(kind))
        # Nothing but events: a journal names no other class.
        if not issubclass(made, _events().DpEvent):
            raise AttributeError(kind)
        return made(*values)
    except (AttributeError, TypeError, ValueError) as error:
        raise PrivacyError(
            f"The journal names the event {kind!r}, which is not known here: what was spent is "
            "unknown, so nothing may be released. Use the version that wrote it."
        ) from error


def _events() -> Any:
    # On first use: dp_accounting takes a second to load.
    return importlib.import_module("dp_accounting.dp_event")
