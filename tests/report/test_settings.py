"""How trainers differ is said beside their figures."""

from dataclasses import replace

import privtrain as pt
from privtrain.core.result import Comparison
from privtrain.report.html import comparison_html
from privtrain.report.settings import differing, in_a_line, settings_of
from privtrain.report.table import comparison_text
from privtrain.runs.card import settings_of as told
from tests.report import examples

TRAINERS = {"pooled": pt.SGD(), "MPC": pt.MPCSGD(), "FedAvg": pt.FedAvg()}
CARD = {"configuration": {"settings": {label: told(t) for label, t in TRAINERS.items()}}}
MADE = Comparison(rows=(examples.sgd(0), examples.fedavg(0)), card=CARD)


def test_settings_that_differ_stand_side_by_side() -> None:
    found = {setting.name: setting.values for setting in differing(settings_of(MADE))}
    assert found["epochs"] == ("20", "3", "–")
    assert found["batch_size"] == ("32", "64", "–")
    assert found["rounds"] == ("–", "–", "30")
    page = comparison_html(MADE)
    assert "How trainers differ" in page and 'href="#settings"' in page
    assert "configuration · settings" not in page
    text = comparison_text(MADE)
    assert "epochs 20, batch_size 32, learning_rate 0.1, optimizer SGD" in " ".join(text.split())


def test_settings_that_all_have_alike_are_no_difference() -> None:
    alike = {"a": {"epochs": "1", "rate": "2"}, "b": {"epochs": "1", "rate": "3"}}
    assert [setting.name for setting in differing(alike)] == ["rate"]


def test_long_settings_are_left_to_the_page() -> None:
    assert in_a_line({"epochs": "1", "release": "R" * 31}) == "epochs 1"


def test_files_without_settings_have_no_table() -> None:
    for card in ({}, {"configuration": {}}, {"configuration": "x"}):
        made = replace(MADE, card=card)
        assert settings_of(made) == {}
        assert "How trainers differ" not in comparison_html(made)
        assert "Settings\n" not in comparison_text(made)
