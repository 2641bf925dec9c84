"""What may be asked of teachers: settings of answers, checks and caps that fit each other."""

from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer, coalition
from privtrain.core.validate import check_count
from privtrain.release.checked import ConfidentGNMax, InteractiveGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Threshold
from privtrain.release.reduce import MAX, NONE
from privtrain.trainers.teachers import check_votes

AGGREGATOR_READS = (
    "the aggregator reads vote counts and draws their noise, so that it is promised nothing: with "
    "noise_at=AT_PARTY it reads noised counts only, with SharedSum none"
)


def aggregator_counts(release: Release) -> bool:
    """Whether the aggregator reads counts without noise."""
    return release.aggregator_draws and release.readable


def who_is_promised(release: Release, parties: tuple[str, ...]) -> tuple[Observer, ...]:
    """Whom a release of votes promises something: single ones, and all parties together."""
    if len(parties) < 2 or not release.parties_draw:
        # Parties that pool what they see know no noise, and no more than the public does.
        return PUBLIC, AGGREGATOR
    return PUBLIC, AGGREGATOR, coalition(frozenset(parties))


def check_answers(release: Release) -> None:
    """Refuses a release that answers no query.

    Raises:
        UnsupportedError: If neither winners nor counts of votes are released.
        UnsoundReleaseError: If it bounds no votes.
    """
    if release.finish not in (ARGMAX, IDENTITY) or release.reduce is not NONE:
        raise UnsupportedError(
            "PATE releases winners only, or whole noised counts: give Release(..., finish=ARGMAX) "
            f"or Release(..., finish=IDENTITY), not {release}."
        )
    check_votes(release)
    if release.finish == IDENTITY and not release.bounding:
        raise UnsupportedError(
            f"Expected release={release} to count votes, of which finish=IDENTITY makes "
            f"probabilities: {release.mechanism} adds up scores. Use GNMax, or finish=ARGMAX."
        )


def check_consensus(check: Release, answer: Release, teachers: int) -> None:
    """Refuses a check that is none, or does not go with the answers.

    Args:
        check: How a query is checked.
        answer: How it is answered.
        teachers: How many teachers there are.

    Raises:
        UnsupportedError: If it says no more and no less than whether a threshold is reached, or
            votes would leave their party twice.
        UnsoundReleaseError: If it bounds no votes.
        ValueError: If no vote, or every vote, reaches the threshold.
    """
    if check.reduce is not MAX or not isinstance(check.finish, Threshold):
        raise UnsupportedError(
            f"Expected consensus={check} to say whether the largest count reaches a threshold: "
            "Release(GNMax(sigma), reduce=MAX, finish=Threshold(votes))."
        )
    check_votes(check)
    # Votes leave once, before anybody knows which queries pass: noise that parties add to their
    # own would be in the check, too, and answers that are not given would have left.
    if (check.noise_at, check.aggregation) != (answer.noise_at, answer.aggregation):
        raise UnsupportedError(
            f"Expected consensus={check} and release={answer} to have the same noise_at "
            "and aggregation: votes leave their party once, for both."
        )
    threshold = check.finish.threshold
    if not 0 < threshold <= teachers:
        raise ValueError(
            f"Expected threshold={threshold:g} to be above 0 and at most teachers={teachers}, the "
            "largest count there can be: such a check says the same of all votes."
        )


def check_cap(answers: int | None, queries: int, *, checked: bool) -> None:
    """Refuses a number of answers that is no cap.

    Args:
        answers: How many queries are answered at most; None for as many as are asked.
        queries: How many are asked at most.
        checked: Whether they are checked before.

    Raises:
        ValueError: If it is no count, above the number of queries, or caps nothing that varies.
    """
    if answers is None:
        return
    check_count(answers=answers)
    if answers > queries:
        raise ValueError(
            f"Expected answers={answers} <= queries={queries}: a query that is not asked is not "
            "answered."
        )
    if not checked and answers < queries:
        raise ValueError(
            f"Expected answers={answers} to be None: without a check each of queries={queries} is "
            "answered. Ask fewer queries, or check them by release=ConfidentGNMax(...)."
        )


def check_rounds(release: Release | ConfidentGNMax | InteractiveGNMax, queries: int) -> None:
    """Refuses more rounds than there are queries.

    Raises:
        ValueError: If a round would ask about nothing.
    """
    if isinstance(release, InteractiveGNMax) and release.rounds > queries:
        raise ValueError(
            f"Expected rounds={release.rounds} <= queries={queries}: each round asks about a part "
            "of them."
        )


def spread(teachers: int, parties: tuple[str, ...]) -> dict[str, int]:
    """How many teachers each party hosts: as even as possible, at least one.

    Raises:
        ValueError: If there are fewer teachers than parties.
    """
    if teachers < len(parties):
        raise ValueError(
            f"Expected teachers={teachers} >= {len(parties)}, the number of parties: every party "
            "hosts at least one."
        )
    share, more = divmod(teachers, len(parties))
    return {party: share + (number < more) for number, party in enumerate(parties)}
