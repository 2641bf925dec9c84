"""What is published beside a guarantee, and which of it no guarantee covers."""

import math
from collections.abc import Mapping
from typing import Any

from privtrain.core.cost import Basis
from privtrain.core.result import Comparison, Row

UNPROTECTED = {
    "accuracy": "computed from the test rows, which nothing protects",
    "leakage": "exact functions of members' rows and coins, as attacks and audits measured them",
    "history.unprotected": "diagnostics of a simulation, computed from private rows without noise",
    "error": "why a run failed: it may name parties, rows or their number",
    "traceback": "where the error of a run came from: it may quote values",
    "accuracy_failure": "why the accuracy was not measured, likewise; so is a failure of an attack",
    "statement.guarantees": "those marked data_dependent alone: computed from votes without noise",
    "cost.seconds": "timing is not hidden, nor is memory",
}
"""Which figures of a row no guarantee covers, by their names in comparison.json, and why."""


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
