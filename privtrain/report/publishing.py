"""What is published beside a guarantee, and which of it no guarantee covers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from privtrain.core.cost import Basis
from privtrain.core.result import Comparison, History, Row
from privtrain.core.statement import PrivacyStatement

UNPROTECTED = {
    "accuracy": "computed from the test rows, which nothing protects",
    "metrics": "all metrics likewise, and what the labels of these rows alone would reach",
    "classes_predicted": "counted on the test rows",
    "leakage": "exact functions of members' rows and coins, as attacks and audits measured them",
    "history.unprotected": "diagnostics of a simulation, computed from private rows without noise",
    "error": "why a run failed: it may name parties, rows or their number",
    "traceback": "where the error of a run came from: it may quote values",
    "accuracy_failure": "why the accuracy was not measured, likewise; so is a failure of an attack",
    "statement.guarantees": "those marked data_dependent alone: computed from votes without noise",
    "cost.seconds": "timing is not hidden, nor are CPU seconds and memory",
}
"""Which figures of a row no guarantee covers, by their names in comparison.json, and why."""

OF_VOTES = {
    "statement.exact": "what releases exactly told: computed from votes without noise",
    "history.votes": "computed from votes without noise, but for how many queries were asked and "
    "answered, and what public labels say of the answers",
}
"""The same of a row whose teachers voted; other rows have none of it."""


def unprotected(
    statements: Iterable[PrivacyStatement | None], histories: Iterable[History | None]
) -> dict[str, str]:
    """Which figures of some rows no guarantee covers, by their names in files, and why.

    Args:
        statements: Those of the rows.
        histories: Those of the rows.
    """
    there = {
        "statement.exact": any(each is not None and each.exact for each in statements),
        "history.votes": any(each is not None and each.votes for each in histories),
    }
    return {**UNPROTECTED, **{name: why for name, why in OF_VOTES.items() if there[name]}}


def publishable_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card without what version 0.1 wrote into it: a digest of all rows without a key."""
    data = card.get("data")
    if not isinstance(data, Mapping):
        return dict(card)
    return {**card, "data": {name: item for name, item in data.items() if name != "sha256"}}


COST_BASIS = (
    "Bytes and rounds beside a promise that hides who was drawn, or how many rows there are, "
    "follow from public figures and expected numbers; – where these do not give them."
)


def cost_note(comparison: Comparison) -> str:
    """What must be known of bytes and rounds; empty where all of them were counted."""
    return COST_BASIS if any(map(_is_computed, comparison.rows)) else ""


def _is_computed(row: Row) -> bool:
    if row.cost is None or row.statement is None or row.cost.basis is Basis.MEASURED:
        return False
    promised = any(math.isfinite(g.epsilon) for g in row.statement.guarantees)
    return promised or row.cost.basis is Basis.WITHHELD
