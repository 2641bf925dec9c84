"""What a study charges one fit, and how its journal holds that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtrain.accounting.event import Event
from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.core.errors import PrivacyError
from privtrain.core.statement import Relation, Unit
from privtrain.ledgers.journal import Line, unreadable

BEGINNINGS = ('{"study": "', '{"name": "')
"""How the lines of a study's journal begin: the first one, and charges."""

_COST = ("unit", "relation", "event")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a fit may release about one unit.

    Args:
        unit: Whose contribution is hidden.
        relation: Which data sets are neighbours.
        event: Everything that the fit may release.
    """

    unit: Unit
    relation: Relation
    event: Event


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one fit was charged.

    Args:
        name: What was trained.
        unit: Whose contribution is hidden.
        relation: Which data sets are neighbours.
        event: Everything that the fit may release.
        run: What identifies a run that may be resumed; empty where it cannot be.
        further: The same about each further unit that the study protects.
    """

    name: str
    unit: Unit
    relation: Relation
    event: Event
    run: str = ""
    further: tuple[Cost, ...] = ()

    @property
    def costs(self) -> tuple[Cost, ...]:
        """What the fit costs each unit, in the order of the study."""
        return (Cost(unit=self.unit, relation=self.relation, event=self.event), *self.further)


def charge_to_plain(charge: Charge) -> dict[str, Any]:
    """A charge as what JSON can hold.

    Raises:
        UnsupportedError: If an event cannot be written.
    """
    first, *further = (_plain(cost) for cost in charge.costs)
    line = {"name": charge.name, "run": charge.run, **first}
    return {**line, "further": further} if further else line


def read_charge(line: Line, journal: Path, earlier: Sequence[Charge]) -> Charge:
    """A charge that stands in a journal; the inverse of `charge_to_plain`.

    Args:
        line: Where it stands.
        journal: The file, for messages.
        earlier: Charges before it, which say what the study protects; none where it is the first.

    Raises:
        PrivacyError: If no study writes such a line there: what was spent is unknown then.
    """
    values = dict(line.values)
    try:
        further = [_cost(part) for part in values.pop("further", ())]
        first = _cost({key: values.pop(key) for key in _COST})
        charge = Charge(
            name=_text(values.pop("name")),
            run=_text(values.pop("run")),
            unit=first.unit,
            relation=first.relation,
            event=first.event,
            further=tuple(further),
        )
    except (AttributeError, KeyError, TypeError, ValueError, PrivacyError) as error:
        why = f"no charge can be read from it ({error})"
        raise unreadable(journal, line.number, why) from None
    kinds = [[(cost.unit, cost.relation) for cost in one.costs] for one in (*earlier[:1], charge)]
    # The study adds up what all fits promise alike.
    if values or kinds[0] != kinds[-1]:
        raise unreadable(journal, line.number, "it is no charge of this study")
    return charge


def _plain(cost: Cost) -> dict[str, Any]:
    values = (str(cost.unit), str(cost.relation), event_to_plain(cost.event))
    return dict(zip(_COST, values, strict=True))


def _cost(plain: Mapping[str, Any]) -> Cost:
    if set(plain) != set(_COST):
        raise ValueError(f"expected {', '.join(_COST)}, and nothing else")
    return Cost(
        unit=Unit(plain["unit"]),
        relation=Relation(plain["relation"]),
        event=event_from_plain(plain["event"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
