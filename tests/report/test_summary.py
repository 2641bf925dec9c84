import math
from dataclasses import replace

import pytest

from privtrain.core.observers import AGGREGATOR, CURATOR, Observer, coalition
from privtrain.core.result import Comparison, Row
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
    SIMULATED,
    ZERO_OUT,
    PrivacyStatement,
    Unit,
)
from privtrain.report import summary
from tests.report import examples


def compared(*rows: Row) -> Comparison:
    return Comparison(rows=rows, card={})


def by_name(comparison: Comparison) -> dict[str, summary.Group]:
    return {group.name: group for group in summary.groups(comparison)}


def test_rows_are_gathered_over_seeds_in_order() -> None:
    found = summary.groups(examples.realistic())
    assert [group.name for group in found] == [
        "pooled", "DP-SGD, ε 1", "DP-SGD, ε 3", "DP-SGD, ε 8", "FedAvg",
        "FedAvg, local DP per client, ε 1", "FedAvg, local DP per client, ε 3",
        "FedAvg, local DP per client, ε 8", "MPC", "PATE, ε 1", "PATE, ε 3", "PATE, ε 8",
    ]  # fmt: skip
    assert sum(len(group.rows) for group in found) == len(examples.realistic().rows)


def test_accuracy_is_a_mean_and_its_interval_a_hull() -> None:
    group = by_name(examples.realistic())["pooled"]
    assert group.accuracy is not None
    assert group.accuracy.mean == pytest.approx(0.974)
    assert (group.accuracy.low, group.accuracy.high) == pytest.approx((0.972, 0.976))
    assert group.accuracy_interval == pytest.approx((0.951, 0.991))


def test_the_mean_of_equal_accuracies_lies_among_them() -> None:
    for value in (0.8534488, 0.1, 0.7, 1 / 3):
        rows = [replace(examples.sgd(seed), accuracy=value) for seed in range(3)]
        (group,) = summary.groups(compared(*rows))
        assert group.accuracy is not None
        assert group.accuracy.low == group.accuracy.mean == group.accuracy.high == value


def test_the_gap_is_taken_seed_by_seed() -> None:
    pooled = [examples.sgd(seed) for seed in range(2)]
    other = [replace(examples.fedavg(seed), accuracy=0.9 + 0.01 * seed) for seed in range(2)]
    gap = by_name(compared(*pooled, *other))["FedAvg"].gap
    assert gap == pytest.approx(((0.9 - 0.972) + (0.91 - 0.974)) / 2)


def test_no_gap_without_a_pooled_run_of_the_same_seed() -> None:
    assert by_name(compared(examples.fedavg(0)))["FedAvg"].gap is None
    assert by_name(compared(examples.sgd(1), examples.fedavg(0)))["FedAvg"].gap is None
    failed = Row(trainer="sgd", label="pooled", seed=0, error="DataError: no rows")
    assert by_name(compared(failed, examples.fedavg(0)))["FedAvg"].gap is None


def test_failed_seeds_count_in_no_mean() -> None:
    group = by_name(examples.realistic())["MPC"]
    assert group.accuracy is not None
    assert group.accuracy.mean == 0.953
    assert group.seeds == "2 of 3"
    assert group.flags == ("1 of 3 failed",)
    assert len(group.errors) == 1


def test_a_group_that_failed_has_no_figures() -> None:
    group = by_name(examples.realistic())["PATE, ε 1"]
    assert group.accuracy is None
    assert group.accuracy_interval is None
    assert group.gap is None
    assert group.cost("bytes_sent") is None
    assert group.bytes_by_busiest_party is None
    assert group.headline is None
    assert group.attacks == ()
    assert group.flags == ("failed",)


def test_flags_of_an_unmet_epsilon_a_halt_and_simulated_entropy() -> None:
    found = by_name(examples.realistic())
    assert found["DP-SGD, ε 1"].flags == ("asked 1, spent 1.31", "simulated entropy")
    assert found["DP-SGD, ε 3"].flags == ("halted", "simulated entropy")
    assert found["MPC"].flags == ("1 of 3 failed",)


def test_the_worst_seed_gives_the_guarantee_and_the_best_theorem_counts_within_a_seed() -> None:
    def row(seed: int, *epsilons: float) -> Row:
        guarantees = tuple(examples.guarantee("public", epsilon) for epsilon in epsilons)
        return replace(examples.sgd(seed), statement=PrivacyStatement(guarantees=guarantees))

    (group,) = summary.groups(compared(row(0, 2.0, 3.0), row(1, 5.0, 4.0)))
    assert [g.epsilon for g in group.guarantees] == [4.0]


def test_a_data_dependent_epsilon_is_no_headline() -> None:
    group = by_name(examples.realistic())["PATE, ε 3"]
    assert group.headline is not None
    assert group.headline.epsilon == 3.0
    assert [g.data_dependent for g in group.promised("public")] == [False, True]
    only = examples.guarantee("public", 1.0, data_dependent=True)
    assert summary.headlines([only]) == ()


def test_missing_is_not_infinite() -> None:
    group = by_name(examples.realistic())["DP-SGD, ε 1"]
    assert group.promised("aggregator") == ()
    (nothing,) = by_name(examples.realistic())["FedAvg"].promised("aggregator")
    assert math.isinf(nothing.epsilon)


def test_guarantees_of_different_units_stay_apart() -> None:
    statement = PrivacyStatement(
        guarantees=(
            examples.guarantee("public", 3.0, Unit.EXAMPLE, ADD_REMOVE),
            examples.guarantee("public", math.inf, Unit.CLIENT, ADD_REMOVE),
        )
    )
    (group,) = summary.groups(compared(replace(examples.sgd(0), statement=statement)))
    assert len(group.promised("public")) == 2
    assert group.headline is not None
    assert (group.headline.epsilon, group.headline.unit) == (math.inf, Unit.CLIENT)
    assert [g.epsilon for g in group.headlines] == [math.inf, 3.0]


@pytest.mark.parametrize("epsilons", [(5.458, 1.5), (1.5, 5.458), (2.0, 2.0)])
def test_no_headline_is_the_best_of_several_units(epsilons: tuple[float, float]) -> None:
    statement = PrivacyStatement(
        guarantees=(
            examples.guarantee("public", epsilons[0], Unit.EXAMPLE, ADD_REMOVE),
            examples.guarantee("public", 0.1, Unit.EXAMPLE, ADD_REMOVE, data_dependent=True),
            examples.guarantee("public", epsilons[1], Unit.CLIENT, ZERO_OUT),
            examples.guarantee("public", 9.0, Unit.CLIENT, REPLACE_ONE),
            examples.guarantee("participant", 50.0, Unit.CLIENT, ZERO_OUT),
        )
    )
    (group,) = summary.groups(compared(replace(examples.sgd(0), statement=statement)))
    assert group.headline is not None
    assert group.headline.epsilon == statement.epsilon("public") == max(epsilons)
    assert sorted(g.epsilon for g in group.headlines) == sorted(epsilons)


def test_the_headline_is_that_of_the_worst_seed() -> None:
    def row(seed: int, example: float, client: float) -> Row:
        made = (
            examples.guarantee("public", example, Unit.EXAMPLE, ADD_REMOVE),
            examples.guarantee("public", client, Unit.CLIENT, ZERO_OUT),
        )
        return replace(examples.sgd(seed), statement=PrivacyStatement(guarantees=made))

    rows = (row(0, 3.0, 2.0), row(1, 2.5, 4.0))
    (group,) = summary.groups(compared(*rows))
    assert [(g.epsilon, g.unit) for g in group.headlines] == [
        (4.0, Unit.CLIENT),
        (3.0, Unit.EXAMPLE),
    ]
    statements = [row.statement for row in rows if row.statement is not None]
    assert group.headlines[0].epsilon == max(s.epsilon() for s in statements)


def test_all_coalitions_share_a_column() -> None:
    found = summary.observers(summary.groups(examples.realistic()))
    assert found == ("public", "participant", "aggregator", "coalition")


def test_a_column_is_asked_of_the_observer() -> None:
    made = tuple(
        replace(examples.guarantee("public", 1.0), observer=observer)
        for observer in (
            coalition({"a", "b"}).without_members,
            Observer("coalition of 6 parties"),
            Observer("coalitions"),
            CURATOR,
            AGGREGATOR,
        )
    )
    (group,) = summary.groups(
        compared(replace(examples.sgd(0), statement=PrivacyStatement(guarantees=made)))
    )
    assert summary.observers([group]) == (
        "aggregator",
        "curator",
        "coalition",
        "coalitions",
    )
    assert [str(g.observer) for g in group.promised("coalition")] == [
        "coalition of a, b",
        "coalition of 6 parties",
    ]


def test_an_unresolvable_metric_stays_unresolvable() -> None:
    group = by_name(examples.realistic())["pooled"]
    (attack,) = group.attacks
    low = group.measured(attack, "tpr_at_0.1%_fpr")
    assert low is not None
    assert low.value is None
    assert group.measured(attack, "nothing") is None
    auc = group.strongest("auc")
    assert auc is not None
    assert auc.value == pytest.approx(0.561)
    assert auc.interval == pytest.approx((0.531, 0.591))


def test_remarks_name_their_runs_briefly() -> None:
    found = dict(summary.remarks(examples.realistic()))
    assert [where for _, where in found["Failed (unprotected)"]] == [
        ("MPC, seed 1",),
        ("PATE, ε 1, seeds 0, 1, 2",),
    ]
    assert found["Halted early"][0][1] == ("DP-SGD, ε 3, seed 2",)
    assert found["Attacks (unprotected)"][0][1] == ("all",)
    assert summary.remarks(compared(replace(examples.mpc_sgd(0), notes=(), leakage=())))[0][0] == (
        "Caveats"
    )


def test_seeded_entropy_is_found_among_caveats_and_assumptions() -> None:
    told = replace(
        examples.guarantee("public", 1.0), assumptions=("the sample is secret", SIMULATED)
    )
    row = replace(examples.sgd(0), statement=PrivacyStatement(guarantees=(told,)))
    assert summary.is_simulated(row)
    assert dict(summary.remarks(compared(row)))["Caveats"][0][0] == SIMULATED
    assert summary.is_simulated(examples.sgd(0))
    assert not summary.is_simulated(examples.mpc_sgd(0))
    assert not summary.is_simulated(examples.mpc_sgd(1))
    # A text of a user's trainer that begins alike is another one.
    other = replace(told, assumptions=("simulated clients are as fast as real ones",))
    row = replace(examples.sgd(0), statement=PrivacyStatement(guarantees=(other,)))
    assert not summary.is_simulated(row)
    assert summary.rests_on(row) == other.rests_on


def test_bytes_of_the_busiest_party() -> None:
    found = by_name(examples.realistic())
    assert found["FedAvg"].bytes_by_busiest_party == 7_600_000
    assert found["pooled"].bytes_by_busiest_party == 0
