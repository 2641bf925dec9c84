"""What one changed row, user or party moves of the votes, as a plan for each of them."""

from dataclasses import replace

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.event import Event, composed, repeated, terms_of
from privtrain.accounting.library import Kind, is_kind
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.statement import REPLACE_ONE, Relation, Unit
from privtrain.core.trainer import PrivacyPlan
from privtrain.sampling.assignment import USERS, AssignedBy
from privtrain.trainers.teachers import of_two_votes

ONE_PARTY = "each user's rows lie at one party"

STAYS_KEPT = "a replaced row is given up to the public neither before nor after"


def of_units(
    plan: PrivacyPlan,
    *,
    relation: Relation,
    assigned_by: AssignedBy,
    teachers: int,
    parties: int,
    given_up: bool,
) -> tuple[PrivacyPlan, ...]:
    """What an observer is promised for each row or user and, where that holds, for each party.

    Args:
        plan: What the observer sees, about one moved vote.
        relation: Which data sets are neighbours where a row, or a user, is there or not.
        assigned_by: What decides on the teacher of a row.
        teachers: How many there are.
        parties: Over how many parties they are spread, each of which hosts one at least.
        given_up: Whether rows of the parties become public.

    Returns:
        One plan a unit.
    """
    alone = teachers == parties
    own = replace(plan, unit=assigned_by.unit)
    if assigned_by is USERS and parties > 1:
        own = replace(own, assumptions=(*own.assumptions, ONE_PARTY))
    if own.relation is not REPLACE_ONE:
        own = replace(own, relation=relation)
    elif assigned_by is USERS:
        own = _of_one_vote(own, "a replaced user keeps its number and with it the teacher")
    else:
        if given_up:
            # The coin is of the row's contents: one that is given up in one of the two data sets
            # changes what is asked.
            own = replace(own, assumptions=(*own.assumptions, STAYS_KEPT))
        kept = "its party hosts one teacher, which a replaced row keeps"
        own = _of_one_vote(own, kept) if alone else of_two_votes(own)
    # With public rows of its own no party would be protected as a whole: they tell of it.
    if not alone or given_up:
        return (own,)
    whole = _of_one_vote(plan, "each party hosts one teacher: all of its rows move one vote")
    return own, replace(whole, unit=Unit.CLIENT)


def _of_one_vote(plan: PrivacyPlan, why: str) -> PrivacyPlan:
    """A plan under replace-one in which one vote moves and not two."""
    charges = plan.charges
    if plan.relation is not REPLACE_ONE:
        charges = {
            kind: replace(charge, event=_of_replaced(charge.event))
            for kind, charge in charges.items()
        }
    theorem = "; ".join(filter(None, (plan.theorem, why)))
    return replace(plan, relation=REPLACE_ONE, charges=charges, theorem=theorem)


def _of_replaced(event: Event) -> Event:
    """What costs under replace-one what an event costs under the other relations."""
    if isinstance(event, Approximate):
        return event.map(_of_replaced)
    if isinstance(event, RdpCurve):
        return event
    # Accountants double the sensitivity of additive noise under replace-one. A moved vote is a
    # replacement already, under every relation: noise twice as wide makes up for it.
    parts = {
        type(leaf)(2 * leaf.noise_multiplier)
        if is_kind(leaf, Kind.GAUSSIAN, Kind.LAPLACE)
        else leaf: count
        for leaf, count in terms_of(event).items()
    }
    return composed(repeated(part, count) for part, count in parts.items())
