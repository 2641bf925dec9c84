import math
from dataclasses import replace

from privtrain.core.cost import Basis
from privtrain.core.result import Comparison
from privtrain.report.publishing import UNPROTECTED, cost_note, publishable_card
from tests.report import examples


def test_all_figures_that_no_guarantee_covers_are_named_with_a_reason() -> None:
    assert set(UNPROTECTED) >= {"accuracy", "leakage", "history.unprotected", "error"}
    assert all(UNPROTECTED.values())


def test_a_card_goes_out_without_a_digest_that_can_be_tried() -> None:
    card = {"data": {"name": "d", "sha256": "ab", "keyed_digest": "cd"}, "date": "today"}
    assert publishable_card(card) == {
        "data": {"name": "d", "keyed_digest": "cd"},
        "date": "today",
    }
    assert card["data"] == {"name": "d", "sha256": "ab", "keyed_digest": "cd"}
    assert publishable_card({"data": "digits"}) == {"data": "digits"}
    assert publishable_card({}) == {}


def noted(basis: Basis, epsilon: float) -> bool:
    row = examples.dp_sgd(0, 3.0)
    assert row.cost is not None and row.statement is not None
    made = (examples.guarantee("public", epsilon),)
    row = replace(
        row,
        cost=replace(row.cost, basis=basis),
        statement=replace(row.statement, guarantees=made),
    )
    return cost_note(Comparison(rows=(row,), card={})) != ""


def test_figures_that_were_not_counted_are_said_to_be_computed() -> None:
    assert noted(Basis.PUBLIC, 1.0)
    assert noted(Basis.WITHHELD, 1.0)
    assert noted(Basis.WITHHELD, math.inf)
    assert not noted(Basis.MEASURED, 1.0)
    # Where nothing is promised, what follows from settings is what was counted.
    assert not noted(Basis.PUBLIC, math.inf)
    assert cost_note(Comparison(rows=(), card={})) == ""
