"""Settings of answers, checks and caps that do not fit each other are refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from privtrain.core.errors import UnsupportedError
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax
from privtrain.release.checked import ConfidentGNMax, InteractiveGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Threshold
from privtrain.release.plain import PlainSum
from privtrain.release.reduce import MAX
from privtrain.release.shared import SharedSum
from privtrain.trainers.pate import PATE

CONFIDENT = ConfidentGNMax(threshold=4.0, sigma_check=1.0, sigma=3.0)
INTERACTIVE = InteractiveGNMax(threshold=4.0, confidence=0.9, sigma_check=1.0, sigma=3.0)
PAIR: dict[str, Any] = {
    "release": Release(GNMax(3.0), finish=ARGMAX),
    "consensus": Release(GNMax(1.0), reduce=MAX, finish=Threshold(4.0)),
}
SIX = PATE(teachers=6, queries=12)
WAYS = pytest.mark.parametrize(
    "way", [{"release": CONFIDENT}, {"release": INTERACTIVE}, PAIR], ids=["one", "rounds", "pair"]
)


@WAYS
def test_more_answers_than_queries_are_refused(way: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="answers=13 <= queries=12"):
        replace(SIX, answers=13, **way)
    for answers in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"answers={answers}"):
            replace(SIX, answers=answers, **way)
    assert replace(SIX, answers=12, **way).cap == replace(SIX, **way).cap == 12
    assert replace(SIX, answers=1, **way).cap == 1


def test_a_cap_without_a_check_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without a check each of queries=12 is answered.*Ask"):
        replace(SIX, answers=5)
    assert replace(SIX, answers=12).cap == 12


def with_threshold(way: dict[str, Any], threshold: float) -> PATE:
    if "consensus" in way:
        check = replace(way["consensus"], finish=Threshold(threshold))
        return replace(SIX, **(way | {"consensus": check}))
    return replace(SIX, release=replace(way["release"], threshold=threshold))


@WAYS
@pytest.mark.parametrize("threshold", [0.0, -1.0, 6.5, 99.0])
def test_a_threshold_that_all_votes_or_none_reach_is_refused(
    way: dict[str, Any], threshold: float
) -> None:
    with pytest.raises(ValueError, match="threshold="):
        with_threshold(way, threshold)


@WAYS
def test_a_threshold_of_all_votes_is_allowed_until_there_are_fewer(way: dict[str, Any]) -> None:
    unanimous = with_threshold(way, 6.0)
    with pytest.raises(ValueError, match="threshold=6 to be above 0 and at most teachers=5"):
        replace(unanimous, teachers=5)


@pytest.mark.parametrize("release", [CONFIDENT, INTERACTIVE])
def test_two_checks_of_a_query_are_refused(release: Any) -> None:
    with pytest.raises(ValueError, match="checks each query itself"):
        replace(SIX, release=release, consensus=PAIR["consensus"])


def test_more_rounds_than_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds=13 <= queries=12"):
        replace(SIX, release=replace(INTERACTIVE, rounds=13))
    assert replace(SIX, release=replace(INTERACTIVE, rounds=12))


def test_the_largest_count_alone_is_no_answer() -> None:
    with pytest.raises(UnsupportedError, match="winners only, or whole noised counts"):
        replace(SIX, release=Release(GNMax(3.0), reduce=MAX, finish=IDENTITY))


@pytest.mark.parametrize("aggregation", [PlainSum(), SharedSum()])
def test_scores_that_nobody_made_votes_of_are_no_histogram(aggregation: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"adds up scores.*Use GNMax, or finish=ARGMAX"):
        replace(SIX, release=Release(Exact(), aggregation=aggregation))


@pytest.mark.parametrize("release", [GNMax(3.0), Release, ConfidentGNMax, "ConfidentGNMax", None])
def test_what_is_no_release_is_refused_by_name(release: Any) -> None:
    with pytest.raises(ValueError, match="release="):
        replace(SIX, release=release)
