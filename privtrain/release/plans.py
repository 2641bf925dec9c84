"""What a release reveals to each observer, as plans for an accountant."""

from dataclasses import replace
from typing import Any

from privtrain.core.observers import PARTICIPANT, Exposure, Observer
from privtrain.core.statement import ADD_REMOVE, ZERO_OUT, Relation, Unit
from privtrain.core.trainer import Charge, PrivacyPlan
from privtrain.release.arrival import UNREADABLE
from privtrain.release.finish import Argmax, Threshold
from privtrain.release.parts import Parts
from privtrain.release.reduce import NONE
from privtrain.sampling.sampling import Everyone, Sampling
from privtrain.sampling.schedule import check_separation

WINNER_ONLY = "the observer sees the winner of each vote only, not the noised counts"

CHECK_ONLY = "the observer sees of each check only whether it is passed, not the noised count"


def plans(
    release: Parts,
    *,
    unit: Unit,
    count: int,
    parties: int,
    sampling: Sampling | None,
    observers: tuple[Observer, ...],
    assumptions: tuple[str, ...],
    charge: str,
) -> tuple[PrivacyPlan, ...]:
    """One privacy plan for each observer, for a number of releases; see `Release.plans`."""
    chosen = sampling or Everyone()
    about = release.mechanism.about
    check_separation(release.mechanism, about.separation, chosen)
    unread = (UNREADABLE,) if about.noisy and not release.readable else ()
    plans = []
    for observer in observers:
        relation, exposure = _exposure(release, observer, chosen, parties)
        event = release.mechanism.event(exposure, relation)
        counted = _counted(release, exposure, relation, event) if release.parties_draw else ()
        # A participant is one party that knows whether it took part, whoever it is.
        corrupted = 1 if observer == PARTICIPANT else len(observer.corrupted)
        event = chosen.amplified(event, exposure, parties, corrupted)
        theorem, sees = _theorem(release, exposure)
        plan = PrivacyPlan(
            observer=observer,
            unit=unit,
            relation=relation,
            charges={charge: Charge(event, count)},
            theorem=theorem,
            assumptions=(*assumptions, *about.assumptions, *sees, *counted, *unread),
            float_noise=about.grid is None,
        )
        plans.append(plan)
    return tuple(plans)


def _theorem(release: Parts, exposure: Exposure) -> tuple[str, tuple[str, ...]]:
    """What an observer's guarantee rests on, and what it takes for granted of its view."""
    about = release.mechanism.about
    if exposure.winner_only and about.of_winner:
        return about.of_winner, (WINNER_ONLY,)
    if exposure.check_only and about.of_check:
        return about.of_check, (CHECK_ONLY,)
    if not exposure.largest_only or not about.theorem:
        return about.theorem, ()
    return f"{about.theorem}, at the sensitivity of the largest value alone (reduce=MAX)", ()


def _exposure(
    release: Parts, observer: Observer, sampling: Sampling, parties: int
) -> tuple[Relation, Exposure]:
    """The relation of an observer's guarantee, and what it sees of one release."""
    # The smallest sample is the worst case: fewer parties draw less noise of their own.
    exposure = release.aggregation.exposure(
        observer, release.noise_at, parties=sampling.at_least(parties)
    )
    relation = sampling.relation(exposure, parties)
    if release.parties_draw:
        # A party takes its noise along: nobody leaves unseen, and where the number of
        # parties varies, so does the noise, which shows who takes part.
        relation = ZERO_OUT if relation is ADD_REMOVE else relation
        exposure = replace(exposure, knows_sample=exposure.knows_sample or sampling.varies)
    if release.reduce is not NONE:
        # Who reads single messages sees all of them.
        exposure = replace(exposure, largest_only=not exposure.single_messages)
    # Docs, decision 022: of a winner and of a check three, or two, outcomes are seen.
    finish_only = exposure.finish_only and not exposure.single_messages
    return relation, replace(
        exposure,
        winner_only=finish_only and release.reduce is NONE and isinstance(release.finish, Argmax),
        check_only=finish_only and exposure.largest_only and isinstance(release.finish, Threshold),
    )


def _counted(release: Parts, exposure: Exposure, relation: Relation, event: Any) -> tuple[str, ...]:
    """Whose honest noise an event rests on, for the assumptions of its guarantee."""
    fraction = release.noise_at.fraction
    drawers = round(exposure.hidden_variance / fraction)
    if drawers > 1:
        # Some mechanisms charge several noises as one, which the protected party draws itself.
        alone = replace(exposure, variance=fraction, noise_known=0.0)
        whole = fraction == 1
        if not (whole and release.mechanism.event(alone, relation) == event):
            return (
                f"counts on the noise of {drawers} honest parties that stay to the end, each "
                f"of which draws {_share(fraction)}",
            )
    return (f"counts on the noise of the protected party itself, {_share(fraction)}",)


def _share(fraction: float) -> str:
    return "all of it" if fraction == 1 else f"1/{round(1 / fraction)} of its variance"
