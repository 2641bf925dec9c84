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
    kind = plain.get("kind") if isinstance(plain, Mapping) else plain
    try:
        return _made(plain)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise PrivacyError(
            f"The journal names the event {kind!r}, which is not known here: what was spent is "
            f"unknown, so nothing may be released. Use the version that wrote it. ({error})"
        ) from error


def _made(plain: Any) -> Event:
    if not isinstance(plain, Mapping) or set(plain) != {"kind", "fields"}:
        raise TypeError(f"{plain!r} is no event.")
    kind, fields = plain["kind"], plain["fields"]
    if not isinstance(fields, list):
        raise TypeError(f"{fields!r} are no fields.")
    if kind == "RdpCurve":
        orders, rdp = fields
        return RdpCurve(_numbers("orders", orders), _numbers("rdp", rdp))
    if kind == "Approximate":
        inner, distance = fields
        return Approximate(_made(inner), *_numbers("distance", [distance]))
    # Nothing but events: a journal must not name any other class of the library.
    known = event_class(str(kind))
    if known is None:
        raise TypeError(f"{kind!r} is no event.")
    names = field_names(known)
    return known(*(_field(name, value) for name, value in zip(names, fields, strict=True)))


def _field(name: str, value: Any) -> Any:
    """A field of an event; the library takes any number, also one that lowers what was spent."""
    if name == "event":
        return _made(value)
    if name == "events":
        return tuple(map(_made, value))
    if isinstance(value, list):
        return tuple(_field(name, part) for part in value)
    (number,) = _numbers(name, [value])
    if name.startswith("sampling_prob") and number > 1:
        raise ValueError(f"{name}={number!r} is no probability.")
    if name.endswith(("count", "size")) and not isinstance(number, int):
        raise ValueError(f"{name}={number!r} is no whole number.")
    return number


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Numbers of an event, none of which is a truth value, negative or NaN."""
    for value in values:
        if type(value) not in (int, float) or not value >= 0:
            raise ValueError(f"{name}={value!r} is no number of at least 0.")
    return tuple(values)
