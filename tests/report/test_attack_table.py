"""The table of attacks: every cell says something, and no epsilon stands for another one."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from privtrain.core.errors import Reason
from privtrain.core.result import Comparison, Failure, Leakage, Row
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Guarantee, PrivacyStatement, Unit
from privtrain.report.attack_table import (
    BELOW,
    COIN,
    HEADER,
    LEAKS,
    attack_records,
    attacks_csv,
    epsilon_to,
    lines,
    several,
)
from privtrain.report.files import load, plain_comparison, save
from privtrain.report.html import comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.table import attacks_text, comparison_text
from tests.report.examples import card, guarantee

FOUND = Leakage(
    attack="RMIA",
    observer="public",
    metrics={"auc": 0.61, "tpr_at_1%_fpr": 0.05, "tpr_at_0.1%_fpr": None},
    intervals={"auc": (0.58, 0.64), "tpr_at_1%_fpr": (0.03, 0.08)},
    members=1_200,
    non_members=1_200,
    unit=Unit.EXAMPLE,
    relation=ADD_REMOVE,
    seconds=4.2,
    queries=2_400,
    roc=((0.01, 0.05), (0.1, 0.2), (1.0, 1.0)),
)
COINLIKE = replace(
    FOUND, observer="aggregator", metrics={"auc": 0.5}, intervals={"auc": (0.47, 0.53)}, roc=()
)
BOUND = replace(
    FOUND,
    attack="one-run audit",
    metrics={"epsilon_lower_bound": 1.2599, "ceiling": 3.48},
    intervals={},
    roc=(),
)
NOT_THERE = Leakage(
    attack="RMIA",
    observer="dealer",
    metrics={},
    failure=Failure(error="NotApplicableError: nobody deals here", reason=Reason.NOBODY),
)
BROKEN = Leakage(
    attack="own", observer="public", metrics={}, failure=Failure(error="ZeroDivisionError: oh")
)


def row(*leakage: Leakage, guarantees: tuple[Guarantee, ...] = (), seed: int = 0) -> Row:
    return Row(
        trainer="sgd",
        label="pooled",
        seed=seed,
        accuracy=0.9,
        statement=PrivacyStatement(guarantees=guarantees, input_privacy=(), caveats=()),
        leakage=leakage,
    )


def comparison(*rows: Row) -> Comparison:
    return Comparison(rows=rows, card=card())


ALL = comparison(
    row(FOUND, COINLIKE, BOUND, NOT_THERE, BROKEN, guarantees=(guarantee("public", 2.9999),))
)


def test_no_cell_is_empty_and_each_says_what_it_is() -> None:
    made = lines(ALL)
    assert [line.figure for line in made] == [
        "0.610",
        "0.500",
        "ε ≥ 1.25",
        "not applicable: nobody in that place",
        "failed",
    ]
    assert [line.found for line in made] == [LEAKS, COIN, LEAKS, "–", "–"]
    for line in made:
        assert len(line.cells) == len(HEADER)
        assert all(line.cells), line
    assert made[0].tpr == ("5.0% (3.0–8.0)", "n/r") and made[1].tpr == ("–", "–")
    assert made[0].interval == "0.580–0.640" and made[2].interval == "of at most 3.48"
    assert made[0].epsilon == "3" and made[1].epsilon == "none stated"
    assert made[0].seconds == "4.2 s" and made[0].queries == "2,400"


def test_over_seeds_a_leak_is_one_of_every_seed() -> None:
    weak = replace(FOUND, metrics={"auc": 0.51}, intervals={"auc": (0.48, 0.54)})
    (line,) = lines(comparison(row(FOUND), row(weak, seed=1)))
    assert line.found == COIN and line.figure == "0.560"
    low = replace(FOUND, metrics={"auc": 0.41}, intervals={"auc": (0.38, 0.44)})
    (line,) = lines(comparison(row(low)))
    assert line.found == BELOW


@pytest.mark.parametrize(
    ("guarantees", "expected"),
    [
        ((), None),
        ((guarantee("public", math.inf),), math.inf),
        ((guarantee("aggregator", 1.0),), None),
        # Another unit's promise is none here; that nothing is promised holds for all of them.
        ((guarantee("public", 1.0, Unit.CLIENT),), None),
        ((guarantee("public", math.inf, Unit.CLIENT),), math.inf),
        # Both hold: the least under the relation that the attack tells apart.
        ((guarantee("public", 2.0), guarantee("public", 1.5)), 1.5),
        ((guarantee("public", 2.0), guarantee("public", 1.0, relation=REPLACE_ONE)), 2.0),
        ((guarantee("public", 1.0, relation=REPLACE_ONE),), 1.0),
        # Computed from the rows, or only stated: no promise to hold a figure against.
        ((guarantee("public", 1.0, data_dependent=True),), None),
        ((replace(guarantee("public", 1.0), stated=True),), None),
    ],
)
def test_the_epsilon_is_that_of_the_observer_and_the_unit(
    guarantees: tuple[Guarantee, ...], expected: float | None
) -> None:
    assert epsilon_to(guarantees, FOUND) == expected


def test_a_promise_for_another_unit_is_shown_as_such() -> None:
    (line,) = lines(comparison(row(FOUND, guarantees=(guarantee("public", 1.0, Unit.CLIENT),))))
    assert line.epsilon == "1 per client"


def test_what_is_only_stated_is_shown_as_such_in_the_text_alone() -> None:
    stated = replace(guarantee("public", 3.0), stated=True)
    of_clients = replace(guarantee("public", 1.0, Unit.CLIENT), stated=True)
    for given, expected in (
        ((stated,), "3, as stated"),
        ((of_clients,), "1 per client, as stated"),
        ((stated, guarantee("public", 2.0)), "2"),
        ((replace(guarantee("aggregator", 3.0), stated=True),), "none stated"),
    ):
        (line,) = lines(comparison(row(FOUND, guarantees=given)))
        assert line.epsilon == expected
    (record,) = attack_records(comparison(row(FOUND, guarantees=(stated,))))
    assert record["epsilon"] is None


def test_records_have_exactly_these_keys_and_go_into_json() -> None:
    failed = replace(row(), error="OSError: no disk")
    found = attack_records(comparison(*ALL.rows, failed))
    keys = ["trainer", "label", "seed", "attack", "observer", "auc", "interval", "tpr", "epsilon"]
    assert all(list(record) == [*keys, "error"] for record in found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found[0]["tpr"] == {"1%": 0.05, "0.1%": None} and found[0]["interval"] == [0.58, 0.64]
    assert found[0]["epsilon"] == 2.9999 and found[0]["error"] is None
    assert found[3]["error"] == "not applicable: nobody in that place"
    assert found[4]["error"] == "ZeroDivisionError: oh"
    assert found[5]["attack"] is None and found[5]["error"] == "OSError: no disk"
    endless = comparison(row(FOUND, guarantees=(guarantee("public", math.inf),)))
    assert attack_records(endless)[0]["epsilon"] == "inf"


def test_the_file_has_every_figure_in_full_precision() -> None:
    first, _, bound, nobody, broken = csv.DictReader(attacks_csv(ALL).splitlines())
    assert first["unprotected_auc"] == "0.61" and first["unprotected_auc_low"] == "0.58"
    assert first["unprotected_tpr_at_0.1%_fpr"] == "n/r" and first["epsilon"] == "2.9999"
    assert bound["unprotected_epsilon_lower_bound"] == "1.2599"
    assert nobody["not_applicable"] == "nobody in that place" and nobody["error"] == ""
    assert broken["not_applicable"] == "" and broken["error"] == "ZeroDivisionError: oh"


@pytest.mark.parametrize("width", [80, 100, 120, 140])
def test_the_text_shows_the_leak_beside_the_coin(width: int) -> None:
    text = attacks_text(ALL, width=width)
    # Rather a little wider than without a column.
    assert max(map(len, text.splitlines())) <= max(width, 86)
    for words in (
        "leaks",
        "a coin",
        "0.580–0.640",
        "n/r",
        "ε ≥ 1.25",
        "failed",
        "formal",
        "stated",
    ):
        assert words in text
    assert ("queries" in text) is (width >= 120)


def test_one_attack_from_one_place_needs_no_table_of_its_own() -> None:
    alone = comparison(row(FOUND))
    assert not several(alone) and several(ALL)
    assert "Learned by each attack" not in comparison_text(alone)
    assert "Learned by each attack" in comparison_text(ALL)
    assert "privtrain-attacks" not in to_latex(alone) and "privtrain-attacks" in to_latex(ALL)
    assert attacks_text(comparison(row())) == ""


def test_what_does_not_apply_has_not_failed() -> None:
    (one,) = comparison(row(FOUND, NOT_THERE)).rows
    assert one.failures == ()
    text = comparison_text(comparison(one))
    assert "failed" not in text.lower() and "nobody deals here" in text
    assert [part for part, _ in ALL.rows[0].failures] == ["own (public)"]


def test_the_page_has_the_table_and_the_curve() -> None:
    page = comparison_html(ALL)
    assert '<strong class="error">leaks</strong>' in page
    assert "not applicable: nobody in that place" in page


def test_it_is_written_beside_the_others_and_read_back(tmp_path: Path) -> None:
    save(ALL, tmp_path)
    assert (tmp_path / "attacks.csv").read_text() == attacks_csv(ALL)
    assert load(tmp_path).rows == ALL.rows
    assert load(tmp_path).rows[0].leakage[0].seconds == 4.2
    save(comparison(row(FOUND)), tmp_path, force=True)
    assert not (tmp_path / "attacks.csv").exists()


def test_older_leakage_is_written_as_it_was() -> None:
    old = Leakage(attack="loss threshold", observer="public", metrics={"auc": 0.5})
    (plain,) = plain_comparison(comparison(row(old)))["rows"]
    assert set(plain["leakage"][0]) == {
        *("attack", "observer", "metrics", "intervals", "members", "non_members", "notes"),
        "failure",
    }


def test_a_long_coalition_and_many_digits_break_no_column() -> None:
    long = replace(
        FOUND,
        observer="coalition of aggregator, computing-0, party-0",
        intervals={"auc": (0.50002, 0.58664)},
    )
    text = attacks_text(comparison(row(long)), width=80)
    assert "0.50002–" in text and "0.58664" in text
    for words in ("from coalition of", "computing-0,", "formal"):
        assert words in text


def test_a_few_plain_records_are_a_leak_that_no_auc_shows() -> None:
    few = replace(
        FOUND,
        metrics={"auc": 0.501, "tpr_at_1%_fpr": 0.038},
        intervals={"auc": (0.475, 0.527), "tpr_at_1%_fpr": (0.019, 0.06)},
    )
    (line,) = lines(comparison(row(few)))
    assert line.found == "leaks at 1%"
    none = replace(few, intervals={"auc": (0.475, 0.527), "tpr_at_1%_fpr": (0.008, 0.06)})
    (line,) = lines(comparison(row(none)))
    assert line.found == COIN


def test_a_mean_of_some_seeds_says_so() -> None:
    torn = replace(
        FOUND, metrics={}, intervals={}, roc=(), failure=Failure(error="MemoryError: no")
    )
    (line,) = lines(comparison(row(FOUND), row(torn, seed=1), row(torn, seed=2)))
    assert line.figure == "0.610 (1 of 3 seeds)"
