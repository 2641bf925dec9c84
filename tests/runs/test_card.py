"""The run card."""

import json
import re
from dataclasses import replace

import privtrain as pt
from privtrain.runs.card import run_card

TASK, DATA = pt.data.digits(parties=4, seed=0)
FAST = {
    "pooled": pt.SGD(epochs=3),
    "FedAvg": pt.FedAvg(rounds=3),
    "DP-SGD": pt.DPSGD(epochs=2.0),
}
HERE = pt.Runtimes(star=pt.InProcess())


def test_the_card_names_versions_data_and_public_seeds_only() -> None:
    card = run_card(FAST, TASK, DATA, HERE, [0, 1], [3.0], 1e-5, "cpu")
    assert card["data"]["sha256"] == DATA.digest and len(DATA.digest) == 64
    assert card["public_seeds"] == [0, 1]
    assert card["versions"]["torch"] and card["versions"]["dp-accounting"]
    text = json.dumps(card)
    assert "entropy" not in text and "key" not in text


def test_a_module_that_is_given_as_a_value_stands_there_by_its_values() -> None:
    net = TASK.model()  # type: ignore[operator]
    card = run_card(FAST, replace(TASK, model=net), DATA, HERE, [0], [], 1e-5, "cpu")
    assert re.search(r"Linear.* of values [0-9a-f]{64}$", card["configuration"]["model"], re.S)
