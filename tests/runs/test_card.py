"""The run card."""

import hashlib
import hmac
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.core.keys import make_key
from privtrain.core.result import Leakage
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
    ZERO_OUT,
    Guarantee,
    PrivacyStatement,
    Relation,
    Unit,
)
from privtrain.runs.candidate_clients import IDLE, MADE_UP
from privtrain.runs.card import fit_card, run_card, settings_of, uncounted, without_counts

TASK, DATA = pt.data.digits(parties=4, seed=0)
OWN = replace(DATA, public_rows=None, published=False)
FAST = {
    "pooled": pt.SGD(epochs=3),
    "FedAvg": pt.FedAvg(rounds=3),
    "DP-SGD": pt.DPSGD(epochs=2.0),
}
HERE = pt.Runtimes(star=pt.InProcess())
GIVEN = (HERE, [0, 1], [3.0], 1e-5, "cpu")


def stated(unit: Unit, relation: Relation, epsilon: float = 1.0) -> PrivacyStatement:
    made = Guarantee(
        observer=pt.PUBLIC,
        unit=unit,
        relation=relation,
        epsilon=epsilon,
        delta=1e-5,
        accountant="pld",
    )
    return PrivacyStatement(guarantees=(made,))


def test_the_card_names_versions_data_and_public_seeds_only() -> None:
    card = run_card(FAST, TASK, DATA, *GIVEN, entropy="seeded")
    assert card["public_seeds"] == [0, 1]
    assert card["versions"]["torch"] and card["versions"]["dp-accounting"]
    assert card["configuration"]["entropy"] == "seeded"
    assert "key" not in json.dumps(card)


def test_without_a_folder_there_is_no_digest_of_the_rows() -> None:
    assert len(DATA.digest) == 64
    assert DATA.digest not in json.dumps(run_card(FAST, TASK, DATA, *GIVEN))


def test_rows_that_everybody_has_need_no_key(tmp_path: Path) -> None:
    card = run_card(FAST, TASK, DATA, *GIVEN, folder=tmp_path)
    assert DATA.published and "keyed_digest" not in card["data"]
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_the_rows_is_keyed(tmp_path: Path) -> None:
    make_key(tmp_path)
    card = run_card(FAST, TASK, DATA, *GIVEN, folder=tmp_path)
    assert DATA.digest not in json.dumps(card)
    key = (tmp_path / "private" / "digest.key").read_bytes()
    expected = hmac.new(key, DATA.digest.encode(), hashlib.sha256).hexdigest()
    assert card["data"]["keyed_digest"] == expected
    assert "never publish" in card["data"]["keyed_digest_means"]
    other = run_card(FAST, TASK, replace(DATA, digest="0" * 64), *GIVEN, folder=tmp_path)
    assert other["data"]["keyed_digest"] != expected
    none = run_card(FAST, TASK, replace(DATA, digest=""), *GIVEN, folder=tmp_path)
    assert "keyed_digest" not in none["data"]


@pytest.mark.parametrize(
    ("data", "statement", "exact"),
    [
        (OWN, stated(Unit.EXAMPLE, ADD_REMOVE), False),
        (OWN, stated(Unit.USER, ADD_REMOVE), False),
        (OWN, stated(Unit.CLIENT, ADD_REMOVE), True),
        (OWN, stated(Unit.EXAMPLE, ZERO_OUT), True),
        (OWN, stated(Unit.EXAMPLE, REPLACE_ONE), True),
        (OWN, stated(Unit.EXAMPLE, ADD_REMOVE, math.inf), True),
        # A number that is stated does not make the true one public.
        (replace(OWN, public_rows=1000), stated(Unit.EXAMPLE, ADD_REMOVE), False),
        (replace(OWN, published=True), stated(Unit.EXAMPLE, ADD_REMOVE), True),
    ],
)
def test_exact_numbers_of_rows_stand_there_only_where_they_are_public(
    data: pt.FederatedData, statement: PrivacyStatement, exact: bool
) -> None:
    both = [stated(Unit.EXAMPLE, ZERO_OUT), statement]
    found = run_card(FAST, TASK, data, *GIVEN, statements=both)["data"]
    assert data.validation is not None
    assert found["test_rows"] == (len(data.test) if exact else "not public")
    assert found["validation_rows"] == (len(data.validation) if exact else "not public")
    assert (found["public_part_rows"] == "not public") is not exact


def test_the_number_of_clients_is_hidden_where_one_more_or_less_is() -> None:
    hidden = run_card(FAST, TASK, DATA, *GIVEN, statements=[stated(Unit.CLIENT, ADD_REMOVE)])
    assert hidden["data"]["parties"] == "not public"
    for shown in (stated(Unit.CLIENT, ZERO_OUT), stated(Unit.CLIENT, ADD_REMOVE, math.inf)):
        assert run_card(FAST, TASK, DATA, *GIVEN, statements=[shown])["data"]["parties"] == 4


def test_a_module_that_is_given_as_a_value_stands_there_by_its_values() -> None:
    net = TASK.model()  # type: ignore[operator]
    card = run_card(FAST, replace(TASK, model=net), DATA, *GIVEN)
    assert re.search(r"Linear.* of values [0-9a-f]{64}$", card["configuration"]["model"], re.S)


def fitted(statement: PrivacyStatement) -> dict[str, object]:
    card = fit_card(
        *(pt.DPSGD(epochs=2.0), TASK, OWN, HERE, 7, 1e-5, "cpu"),
        statement=statement,
        entropy="system",
        folder=None,
    )
    assert "keyed_digest" not in json.dumps(card)
    return card


def test_the_card_of_a_fit_has_all_settings_seed_and_versions() -> None:
    card = fitted(stated(Unit.EXAMPLE, ZERO_OUT))
    configuration = card["configuration"]
    assert isinstance(configuration, dict)
    settings = configuration["settings"]
    assert settings["epochs"] == 2.0
    # At their defaults, too, and within parts.
    assert settings["learning_rate"] == pt.DPSGD().learning_rate
    assert settings["release"]["mechanism"]["kind"] == "Gaussian"
    assert settings["release"]["mechanism"]["noise_multiplier"] == 1.0
    assert card["public_seeds"] == [7]
    assert "epsilons" not in configuration


def test_the_card_of_a_fit_hides_what_is_promised() -> None:
    hidden = fitted(stated(Unit.EXAMPLE, ADD_REMOVE))["data"]
    assert isinstance(hidden, dict)
    assert {hidden[n] for n in ("test_rows", "validation_rows", "public_part_rows")} == {
        "not public"
    }
    assert hidden["parties"] == 4
    clients = fitted(stated(Unit.CLIENT, ADD_REMOVE))["data"]
    assert isinstance(clients, dict)
    assert clients["parties"] == "not public"
    nothing = fitted(stated(Unit.EXAMPLE, ADD_REMOVE, math.inf))
    assert isinstance(nothing["data"], dict) and nothing["data"]["test_rows"] == len(OWN.test)
    beside = without_counts(nothing)["data"]
    assert set(beside.values()) & {len(OWN.test), 4} == set()


def test_settings_that_no_file_holds_are_printed() -> None:
    def schedule(step: int) -> float:
        return 0.1

    settings = settings_of({"rate": schedule, "many": (1, math.inf), "none": None})
    assert settings["many"] == [1, "inf"] and settings["none"] is None
    assert "schedule" in settings["rate"] and " at 0x" not in settings["rate"]
    json.dumps(settings, allow_nan=False)


def test_figures_of_attacks_tell_no_number_of_rows_once_uncounted() -> None:
    told = Leakage(
        attack="loss",
        observer="public",
        metrics={"auc": 0.5},
        members=359,
        non_members=359,
        queries=718,
        notes=(
            "3 of the non-members are equal to a member",
            "17 scores were not a number and got the worst score",
            "16 shadow models",
        ),
    )
    kept = uncounted(told)
    assert (kept.members, kept.non_members, kept.queries) == (None, None, None)
    assert kept.notes == (
        "some of the non-members are equal to a member",
        "some scores were not a number and got the worst score",
        "16 shadow models",
    )
    assert kept.metrics == told.metrics


def test_rates_that_are_fractions_of_hidden_counts_lose_their_digits() -> None:
    told = Leakage(
        attack="loss",
        observer="public",
        metrics={"auc": 0.123456, "tpr_at_1%_fpr": None, "realised_fpr_at_1%": 0.0081},
        intervals={"auc": (0.10149, 0.15811)},
        notes=(f"members took part, {IDLE}; this bounds no epsilon", MADE_UP),
    )
    kept = uncounted(told)
    assert kept.metrics == {"auc": 0.123, "tpr_at_1%_fpr": None}
    assert kept.intervals == {"auc": (0.101, 0.159)}
    first, second = kept.notes
    assert first == f"members took part, {second}; this bounds no epsilon"
    bound = replace(told, metrics={"epsilon_lower_bound": 1.23456}, intervals={})
    assert uncounted(bound).metrics == bound.metrics
