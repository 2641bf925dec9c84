"""From plans and what was spent to guarantees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from privtrain.accounting.curves import DELTAS, from_pairs, gaussian_mu, wide_pairs
from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import charged
from privtrain.core.observers import PUBLIC
from privtrain.core.statement import ExactCost, Guarantee, PrivacyCurves
from privtrain.core.trainer import PrivacyPlan

PRIVATE_NUMBER = "computed from the votes: this number is itself private"

# Theorem 6 of Papernot et al. 2018 and Theorem 3 of 2017 bound the divergence of the answers to the
# votes that were seen from the answers to neighbouring votes. The reverse can be far larger: 20
# queries with votes 11:7 and sigma 0.5 give epsilon 15.4 at delta 1e-5, and delta 1.0e-3 back.
ONE_SIDED = (
    "one-sided: bounds how much likelier these votes make the answers than neighbouring votes do, "
    "not the reverse; no differential privacy in either sense"
)

EXACT_METHOD = (
    "quadrature of the chance of each winner, these votes against all that differ by one moved, "
    "missing or further vote in each query, both directions, composed as RDP over the queries that "
    "were answered; releases without such a figure at their planned cost"
)


def guarantees(
    plans: tuple[PrivacyPlan, ...],
    *,
    spent: Mapping[str, int],
    delta: float,
    realised: Mapping[str, Any] | None = None,
    assumptions: tuple[str, ...] = (),
) -> tuple[Guarantee, ...]:
    """The guarantee to each observer, after the releases that were spent.

    Args:
        plans: What each observer was planned to see.
        spent: Kind of release to how many were spent; 0 where it is not named.
        delta: The delta of every guarantee.
        realised: Observer name to the data-dependent event of all releases, where there is one.
        assumptions: What holds for the whole run, such as where its entropy came from.

    Returns:
        One guarantee an observer, and a second, data-dependent one where there is such an event;
        that one holds in one direction only, and says so.
    """
    made = []
    for plan in plans:
        event = charged(plan.charges, spent)
        made.append(_guarantee(plan, event, spent, delta, assumptions))
        # Beside the other guarantee, not in its place: the number is private itself.
        dependent = (realised or {}).get(plan.observer.name)
        if dependent is not None and not math.isinf(made[-1].epsilon):
            private = (*assumptions, PRIVATE_NUMBER)
            bound = _guarantee(plan, dependent, spent, delta, private, data_dependent=True)
            # What is promised whatever the votes are holds for these, too.
            made.append(replace(bound, epsilon=min(bound.epsilon, made[-1].epsilon)))
    return tuple(made)


def exact_costs(
    plans: tuple[PrivacyPlan, ...],
    *,
    spent: Mapping[str, int],
    delta: float,
    exact: Mapping[str, Sequence[tuple[int, Any]]],
) -> tuple[ExactCost, ...]:
    """What the releases that were made exactly told, where it is known.

    The figure compares these votes with each neighbouring data set, whose votes differ by one in
    each query: it is at most the sum over queries of the largest divergence of each.

    Args:
        plans: What each observer was planned to see.
        spent: Kind of release to how many were spent; 0 where it is not named.
        delta: At which the figures are taken.
        exact: Observer name to events after more and more releases, each with their number.

    Returns:
        One for each observer that is promised something and has such an event.
    """
    made = []
    for plan in plans:
        told = exact.get(plan.observer.name)
        if not told:
            continue
        formal = evaluate(charged(plan.charges, spent), delta, plan.relation).epsilon
        if math.isinf(formal):
            continue
        made.append(
            ExactCost(
                observer=plan.observer.without_members,
                unit=plan.unit,
                relation=plan.relation,
                epsilon=min(evaluate(told[-1][1], delta, plan.relation).epsilon, formal),
                delta=delta,
                releases=told[-1][0],
                method=EXACT_METHOD,
            )
        )
    return tuple(made)


def public_curves(
    plans: tuple[PrivacyPlan, ...], *, spent: Mapping[str, int], delta: float
) -> tuple[PrivacyCurves, ...]:
    """Epsilon at every delta, and the trade-off function, to the public, of what was spent.

    Args:
        plans: What each observer was planned to see.
        spent: Kind of release to how many were spent; 0 where it is not named.
        delta: The delta of the guarantees, which is one of the curves', too; a Gaussian summary is
            taken there.

    Returns:
        One a plan that promises the public anything.
    """
    made = []
    for plan in plans:
        if plan.observer != PUBLIC:
            continue
        event = charged(plan.charges, spent)
        # A plan without noise, or without releases, has no curve to draw.
        bound = evaluate(event, delta, plan.relation).epsilon
        if not 0 < bound < math.inf:
            continue
        promised = _finite(wide_pairs(event, plan.relation, also=delta))
        made.append(
            PrivacyCurves(
                observer=plan.observer.without_members,
                unit=plan.unit,
                relation=plan.relation,
                epsilon_by_delta=tuple(p for p in promised if p[0] in (*DELTAS, delta)),
                trade_off=from_pairs(promised),
                mu=gaussian_mu(bound, delta),
                promised=promised,
            )
        )
    return tuple(made)


def _finite(pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """The pairs with a finite epsilon: a distance may take up the smallest deltas."""
    return tuple((delta, epsilon) for delta, epsilon in pairs if math.isfinite(epsilon))


def _guarantee(
    plan: PrivacyPlan,
    event: Any,
    spent: Mapping[str, int],
    delta: float,
    assumptions: tuple[str, ...],
    *,
    data_dependent: bool = False,
) -> Guarantee:
    evaluation = evaluate(event, delta, plan.relation)
    side = ONE_SIDED if data_dependent else ""
    # An infinite epsilon rests on no theorem and on no accountant, so none is named.
    nothing = math.isinf(evaluation.epsilon)
    return Guarantee(
        observer=plan.observer.without_members,
        unit=plan.unit,
        relation=plan.relation,
        epsilon=evaluation.epsilon,
        delta=delta,
        accountant="none" if nothing else evaluation.accountant,
        cross_check=None if nothing else evaluation.cross_check,
        theorem="" if nothing else "; ".join(filter(None, (plan.theorem, side))),
        assumptions=plan.assumptions if nothing else (*plan.assumptions, *assumptions),
        data_dependent=data_dependent,
        releases=sum(spent.get(kind, 0) for kind in plan.charges),
    )
