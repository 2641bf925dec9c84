"""Who is measured from whom is settled before anything is trained."""

import pytest

import privtrain as pt
from privtrain.runs.baselines import with_twins
from privtrain.runs.comparing import compare

TASK, DATA = pt.data.digits(parties=4, seed=0)
HERE = pt.Runtimes(star=pt.InProcess())
MPC = pt.MPCSGD(epochs=2, batch_size=100, learning_rate=0.3)


def test_a_secure_trainer_is_followed_by_its_twin() -> None:
    found = with_twins({"pooled": pt.SGD(), "MPC": MPC, "DP": pt.DPSGD()})
    assert list(found.trainers) == ["pooled", "MPC", "MPC, in plaintext", "DP"]
    assert dict(found.baseline) == {
        "pooled": "pooled",
        "MPC": "MPC, in plaintext",
        "MPC, in plaintext": "pooled",
        "DP": "pooled",
    }


def test_a_twin_that_is_there_already_is_taken() -> None:
    found = with_twins({"MPC": MPC, "the same": MPC.plaintext_twin()})
    assert list(found.trainers) == ["MPC", "the same"]
    assert found.baseline["MPC"] == "the same"
    assert found.baseline["the same"] is None


def test_a_label_that_is_taken_is_not_overwritten() -> None:
    found = with_twins({"MPC": MPC, "MPC, in plaintext": pt.SGD()})
    assert list(found.trainers) == ["MPC", "MPC, in plaintext again", "MPC, in plaintext"]
    assert found.trainers["MPC, in plaintext"] == pt.SGD()


def test_the_baseline_is_the_named_one_or_the_first_pooled_one() -> None:
    trainers = {"DP": pt.DPSGD(), "one epoch": pt.SGD(epochs=1), "pooled": pt.SGD()}
    assert set(with_twins(trainers).baseline.values()) == {"one epoch"}
    assert set(with_twins(trainers, "pooled").baseline.values()) == {"pooled"}
    assert set(with_twins({"DP": pt.DPSGD()}).baseline.values()) == {None}
    with pytest.raises(ValueError, match=r"Expected baseline='poled'.*Did you mean 'pooled'"):
        with_twins(trainers, "poled")


def test_a_named_baseline_is_refused_before_training_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"Expected baseline='best' to be the label"):
        compare({"pooled": pt.SGD(epochs=1)}, TASK, DATA, runtimes=HERE, baseline="best")


def test_gaps_are_measured_from_the_named_baseline() -> None:
    trainers = {"short": pt.SGD(epochs=1), "long": pt.SGD(epochs=3)}
    comparison = compare(trainers, TASK, DATA, runtimes=HERE, baseline="long")
    assert [row.baseline for row in comparison.rows] == ["long", "long"]
    assert "“long” with the same seed" in " ".join(str(comparison).split())


def test_the_twin_takes_the_steps_of_sgd_with_the_same_settings() -> None:
    same = pt.SGD(epochs=2, batch_size=100, learning_rate=0.3)
    comparison = compare({"same": same, "twin": MPC.plaintext_twin()}, TASK, DATA, runtimes=HERE)
    first, twin = comparison.rows
    assert first.accuracy == twin.accuracy
    assert first.history is not None and twin.history is not None
    assert first.history.unprotected == twin.history.unprotected


def test_two_secure_trainers_of_the_same_steps_share_a_twin() -> None:
    three = pt.MPCSGD(epochs=2, batch_size=100, learning_rate=0.3, computing_parties=3)
    found = with_twins({"two": MPC, "DP": pt.DPSGD(), "three": three})
    assert list(found.trainers) == ["two", "DP", "three", "two, in plaintext"]
    assert found.baseline["two"] == found.baseline["three"] == "two, in plaintext"
    assert dict(found.owners) == {"two, in plaintext": ("two", "three")}


def test_a_named_baseline_is_that_of_secure_trainers_too() -> None:
    found = with_twins({"MPC": MPC, "DP": pt.DPSGD()}, "DP")
    assert dict(found.baseline) == {"MPC": "DP", "MPC, in plaintext": "DP", "DP": "DP"}


@pytest.mark.parametrize("others", [{}, {"pooled": pt.SGD(epochs=1)}])
def test_the_twin_of_a_trainer_that_refuses_is_left_out(others: dict[str, pt.SGD]) -> None:
    # Nothing here carries shares from party to party.
    comparison = compare({"MPC": MPC, **others}, TASK, DATA, runtimes=HERE, seeds=(0, 1))
    assert [row.label for row in comparison.rows] == ["MPC"] * 2 + [*others] * 2
    assert str(comparison.rows[0].error).startswith("UnsupportedError")
    assert {row.baseline for row in comparison.rows} == {next(iter(others), None)}
    assert "in plaintext" not in f"{comparison} {comparison.card}"


def test_a_twin_that_the_user_asked_for_stays() -> None:
    trainers = {"MPC": MPC, "the same": MPC.plaintext_twin()}
    comparison = compare(trainers, TASK, DATA, runtimes=HERE)
    assert [row.label for row in comparison.rows] == ["MPC", "the same"]


def test_a_twin_whose_trainer_broke_down_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: pt.MPCSGD, task: pt.Task, data: pt.FederatedData, run: object) -> None:
        raise RuntimeError("the line is dead")

    monkeypatch.setattr(pt.MPCSGD, "train", lost)
    comparison = compare({"MPC": MPC}, TASK, DATA)
    assert [row.label for row in comparison.rows] == ["MPC", "MPC, in plaintext"]
