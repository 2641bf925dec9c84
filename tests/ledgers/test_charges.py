"""Charges survive a journal, and keep the form of version 0.1 where one unit is protected."""

import json
from pathlib import Path

import pytest

from privtrain.accounting.event import composed, gaussian_event, laplace_event, repeated
from privtrain.core.errors import PrivacyError, UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Unit
from privtrain.ledgers.charges import BEGINNINGS, Charge, Cost, charge_to_plain, read_charge
from privtrain.ledgers.journal import Line

ONE = Charge(
    name="dp_sgd",
    unit=Unit.EXAMPLE,
    relation=ADD_REMOVE,
    event=repeated(gaussian_event(2.0), 7),
    run="a run",
)
CLIENTS = Cost(
    unit=Unit.CLIENT,
    relation=REPLACE_ONE,
    event=composed([gaussian_event(1.0), laplace_event(3.0)]),
)
TWO = Charge(
    name="fedavg",
    unit=Unit.EXAMPLE,
    relation=ADD_REMOVE,
    event=gaussian_event(2.0),
    further=(CLIENTS,),
)


@pytest.mark.parametrize("charge", [ONE, TWO], ids=["one", "two"])
def test_charges_survive_a_file(charge: Charge) -> None:
    text = json.dumps(charge_to_plain(charge))
    assert text.startswith(BEGINNINGS)
    again = read_charge(Line(2, json.loads(text)), Path("study.jsonl"), ())
    assert again == charge
    assert again.costs == charge.costs
    assert len(charge.costs) == 1 + len(charge.further)


def test_one_unit_is_written_as_before() -> None:
    assert set(charge_to_plain(ONE)) == {"name", "unit", "relation", "run", "event"}


def test_a_charge_of_other_units_than_the_first_is_refused() -> None:
    for charge, first in ((ONE, TWO), (TWO, ONE)):
        line = Line(9, charge_to_plain(charge))
        with pytest.raises(PrivacyError, match=r"Line 9 of the privacy journal study\.jsonl"):
            read_charge(line, Path("study.jsonl"), (first,))
        assert read_charge(line, Path("study.jsonl"), (charge,)) == charge


def test_what_no_file_can_hold_is_not_written() -> None:
    charge = Charge(name="x", unit=Unit.EXAMPLE, relation=ADD_REMOVE, event=object())
    with pytest.raises(UnsupportedError, match="cannot hold"):
        charge_to_plain(charge)
