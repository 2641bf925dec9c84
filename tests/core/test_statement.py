import json
import math
import pickle
import re
from dataclasses import replace

import pytest

from privtrain.core.cost import Cost
from privtrain.core.observers import AGGREGATOR, PUBLIC, coalition
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
    ZERO_OUT,
    Budget,
    Guarantee,
    InputPrivacy,
    PrivacyStatement,
    Unit,
    to_json_text,
    to_plain,
)

GUARANTEE = Guarantee(
    observer=PUBLIC,
    unit=Unit.CLIENT,
    relation=ZERO_OUT,
    epsilon=2.345678,
    delta=1e-5,
    accountant="pld",
    cross_check=2.5,
    theorem="Gaussian mechanism",
    assumptions=("the sample is secret",),
    releases=7,
)
NOTHING = replace(GUARANTEE, observer=AGGREGATOR, epsilon=math.inf, cross_check=None)
STATEMENT = PrivacyStatement(
    guarantees=(GUARANTEE, NOTHING),
    input_privacy=(InputPrivacy(reader="aggregator", reads="every update"),),
    caveats=("floating point",),
)


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_a_statement_is_json_that_any_reader_takes() -> None:
    plain = json.loads(to_json_text(STATEMENT), parse_constant=refuse)
    assert plain == STATEMENT.to_json()
    public, aggregator = plain["guarantees"]
    assert public == {
        "observer": "public",
        "unit": "client",
        "relation": "zero_out",
        "epsilon": 2.345678,
        "delta": 1e-5,
        "accountant": "pld",
        "cross_check": 2.5,
        "theorem": "Gaussian mechanism",
        "assumptions": ["the sample is secret"],
        "data_dependent": False,
        "releases": 7,
        "stated": False,
    }
    assert (aggregator["epsilon"], aggregator["cross_check"]) == ("inf", None)
    assert plain["input_privacy"][0]["adversary"] == "trusted"
    assert plain["caveats"] == ["floating point"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        ({1: (math.inf, {"b", "a"})}, {"1": ["inf", ["a", "b"]]}),
        (Unit.EXAMPLE, "example"),
        ([ADD_REMOVE, None, True, 3, "x"], ["add_remove", None, True, 3, "x"]),
        (frozenset({2, 1}), [1, 2]),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    assert to_plain(value) == expected
    assert json.loads(json.dumps(to_plain(value), allow_nan=False)) == expected


def test_a_cost_is_json_too() -> None:
    cost = Cost(
        bytes_sent=10,
        rounds=2,
        seconds=math.inf,
        peak_memory_bytes=5,
        bytes_sent_by_party={"a": 10},
    )
    plain = json.loads(to_json_text(cost), parse_constant=refuse)
    assert plain["seconds"] == "inf"
    assert plain["bytes_sent_by_party"] == {"a": 10}


def test_the_smallest_formal_epsilon_is_the_answer() -> None:
    private = replace(GUARANTEE, epsilon=0.5, data_dependent=True)
    other = replace(GUARANTEE, epsilon=2.0, relation=REPLACE_ONE)
    made = PrivacyStatement(guarantees=(GUARANTEE, private, other, NOTHING))
    assert made.epsilon() == 2.0
    assert made.epsilon("aggregator") == made.epsilon(AGGREGATOR) == math.inf
    assert made.epsilon("public") == made.epsilon(PUBLIC) == 2.0
    assert made.epsilon("nobody spoken of") == math.inf
    assert PrivacyStatement(guarantees=(private,)).epsilon() == math.inf


def test_a_coalition_is_asked_for_by_its_members_or_its_name() -> None:
    both = coalition({"a", "b"})
    stated = PrivacyStatement(guarantees=(replace(GUARANTEE, observer=both.without_members),))
    assert stated.epsilon(both) == stated.epsilon("coalition of a, b") == GUARANTEE.epsilon
    assert stated.epsilon(coalition({"a"})) == stated.epsilon() == math.inf


def test_an_observer_is_its_name_in_files_and_members_stand_in_none() -> None:
    many = coalition({f"client-{number}" for number in range(9)})
    plain = to_plain({"charged": [replace(GUARANTEE, observer=many)], "to": AGGREGATOR})
    assert plain["to"] == "aggregator"
    assert plain["charged"][0]["observer"] == many.name
    assert "client-8" not in json.dumps(plain)


def test_of_several_units_the_worst_protected_one_is_the_answer() -> None:
    examples = replace(GUARANTEE, unit=Unit.EXAMPLE, epsilon=0.5)
    assert PrivacyStatement(guarantees=(GUARANTEE, examples)).epsilon() == GUARANTEE.epsilon
    assert PrivacyStatement(guarantees=(examples,)).epsilon() == 0.5


def test_printing() -> None:
    assert GUARANTEE.claim == "(2.346, 1e-05)-DP to the public, per client, zero-out"
    assert str(NOTHING).startswith("(inf, 1e-05)-DP to the aggregator")
    assert replace(GUARANTEE, data_dependent=True).claim.endswith("zero-out, data-dependent")
    assert str(STATEMENT).splitlines()[4:] == [
        "aggregator reads every update (trusted, none)",
        "floating point",
    ]


def test_statements_are_frozen_values() -> None:
    assert pickle.loads(pickle.dumps(STATEMENT)) == STATEMENT
    assert hash(STATEMENT) == hash(pickle.loads(pickle.dumps(STATEMENT)))


def test_budgets() -> None:
    assert Budget(3.0) == Budget(epsilon=3.0, delta=1e-5, observer=PUBLIC)
    assert Budget(3.0, observer=AGGREGATOR).observer == AGGREGATOR
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="epsilon="):
            Budget(epsilon)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta="):
            Budget(1.0, delta)


def test_a_guarantee_prints_what_it_rests_on() -> None:
    first, *rest = str(GUARANTEE).splitlines()
    assert first == GUARANTEE.claim == "(2.346, 1e-05)-DP to the public, per client, zero-out"
    assert rest == ["  by Gaussian mechanism", "  if the sample is secret"]
    # Where nothing is promised, nothing has to hold for it.
    assert str(NOTHING) == NOTHING.claim


def test_a_statement_prints_each_theorem_and_assumption_once() -> None:
    other = replace(
        GUARANTEE, unit=Unit.EXAMPLE, assumptions=("the sample is secret", "simulated: void")
    )
    lines = str(replace(STATEMENT, guarantees=(GUARANTEE, other, NOTHING))).splitlines()
    assert lines[:6] == [
        f"{GUARANTEE.claim} [1, 2]",
        f"{other.claim} [1, 2, 3]",
        NOTHING.claim,
        "[1] by Gaussian mechanism",
        "[2] if the sample is secret",
        "[3] if simulated: void",
    ]
    assert lines[6:] == [str(STATEMENT.input_privacy[0]), "floating point"]


def test_a_claim_never_promises_more_than_is_proved() -> None:
    for epsilon, delta in ((2.272008, 1e-5), (4.37651, 1.23456789e-6), (0.1, 1e-5)):
        g = Guarantee(
            observer=PUBLIC, unit=Unit.EXAMPLE, relation=ADD_REMOVE, epsilon=epsilon, delta=delta,
            accountant="pld",
        )  # fmt: skip
        printed = [float(text) for text in re.findall(r"[\d.]+(?:e-\d+)?", g.claim)[:2]]
        assert printed[0] >= epsilon and printed[1] >= delta
        assert printed[0] < epsilon * 1.001 and printed[1] < delta * 1.001
