"""The statement of a finished run: guarantees, caveats, curves, cost."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import relies_on_sample
from privtrain.accounting.guarantees import exact_costs, guarantees, public_curves
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.cost import Basis, Cost, PublicCost, peak_memory
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Curve, Predictor, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import SEEDED
from privtrain.core.statement import (
    ADD_REMOVE,
    SIMULATED,
    Guarantee,
    PrivacyStatement,
    Unit,
)
from privtrain.core.task import FederatedData
from privtrain.core.trainer import PrivacyPlan, Run, Trainer
from privtrain.ledgers.run import epsilon_of
from privtrain.sampling.figures import SAMPLED_IN_SECRET

# These texts are stored in results and compared by reports: they do not change.
FLOAT_NOISE = "float noise: research use"
TUNING_NOT_COUNTED = "tuning not counted: settings chosen by looking at results are not counted"
OTHER_PARTS = "rows in the test, validation and public parts are not protected"
USERS_KNOWN = (
    "users are known and may have several rows: what is promised per example is less for a user "
    "with all rows; PoissonBatches(rows_per_user=...) of DPSGD protects users"
)
CAVEATS = ("timing and sizes of messages are not hidden", TUNING_NOT_COUNTED)


def result_of(
    trainer: Trainer,
    data: FederatedData,
    runtimes: Runtimes,
    plans: tuple[PrivacyPlan, ...],
    run: Run,
    predictor: Predictor,
    took: tuple[float, float | None],
    delta: float,
) -> TrainResult:
    """The result of a finished run: the predictor, its statement, its cost and its history."""
    seeded = run.entropy.kind is SEEDED
    plans, spent = with_secret_samples(plans, seeded=seeded), run.ledger.spent_by_kind
    # After what was spent, not what was planned: a halted run promises more, an aborted round that
    # was paid for counts although its result was lost.
    made = about(
        data,
        guarantees(
            plans,
            spent=spent,
            delta=delta,
            # An exact function of private votes: it may be looked at in a simulation alone.
            realised=run.outcome.realised if seeded else {},
            assumptions=(
                *dict.fromkeys(run.outcome.assumptions),
                *((SIMULATED,) if seeded else ()),
            ),
        ),
    )
    history = run.outcome.history
    history.epsilon = _epsilon_curve(plans, spent, delta)
    if history.votes is not None:
        told = run.outcome.exact.get(PUBLIC.name, []) if seeded else []
        relation = next(plan.relation for plan in plans if plan.observer == PUBLIC)
        points = ((n, evaluate(event, delta, relation).epsilon) for n, event in told)
        history.votes = replace(history.votes, epsilon=tuple(points))
    statement = PrivacyStatement(
        guarantees=made,
        input_privacy=trainer.input_privacy(data, runtimes),
        caveats=_caveats(trainer, data, plans, made),
        curves=public_curves(plans, spent=spent, delta=delta),
        exact=exact_costs(
            plans, spent=spent, delta=delta, exact=run.outcome.exact if seeded else {}
        ),
    )
    return TrainResult(
        predictor=predictor,
        statement=statement,
        cost=_cost(plans, made, run, took),
        history=history,
        transcript=run.transcript,
        halted=run.outcome.halted,
        notes=(*run.outcome.notes, *_notes_on_users(data, made)),
        members=run.outcome.members,
        trainer=trainer,
    )


def about(data: FederatedData, made: tuple[Guarantee, ...]) -> tuple[Guarantee, ...]:
    """Guarantees with what they assume of the data; where nothing is promised, nothing is assumed.

    Args:
        data: What was trained on.
        made: The guarantees, without it.
    """
    return tuple(
        replace(g, assumptions=(*g.assumptions, *data.assumed(g.unit, g.relation)))
        if math.isfinite(g.epsilon)
        else g
        for g in made
    )


def _notes_on_users(data: FederatedData, made: tuple[Guarantee, ...]) -> tuple[str, ...]:
    """Says that a promise for single rows is none for users, where users are known."""
    if not any(math.isfinite(g.epsilon) and g.unit is Unit.EXAMPLE for g in made):
        return ()
    # The rows of one party say whether a loader knows users; all parties may be a million.
    return () if data.train[next(iter(data.train))].users is None else (USERS_KNOWN,)


def with_secret_samples(plans: tuple[PrivacyPlan, ...], *, seeded: bool) -> tuple[PrivacyPlan, ...]:
    """The plans, each assuming that its sample is secret if it counts on that, and never if seeded.

    A sample that follows from a seed is no secret to whoever knows the seed: `SIMULATED` says so
    in place of it.
    """
    return tuple(replace(plan, assumptions=_about_sample(plan, seeded)) for plan in plans)


def _about_sample(plan: PrivacyPlan, seeded: bool) -> tuple[str, ...]:
    said = SAMPLED_IN_SECRET in plan.assumptions
    if seeded:
        return tuple(text for text in plan.assumptions if text != SAMPLED_IN_SECRET)
    needed = _relies_on_sample(plan) and not said
    return (*plan.assumptions, SAMPLED_IN_SECRET) if needed else plan.assumptions


def _relies_on_sample(plan: PrivacyPlan) -> bool:
    return any(relies_on_sample(charge.event) for charge in plan.charges.values())


def _cost(
    plans: tuple[PrivacyPlan, ...],
    made: tuple[Guarantee, ...],
    run: Run,
    took: tuple[float, float | None],
) -> Cost:
    """Bytes and rounds by public figures, or as measured where that breaks no promise."""
    promised = {(g.observer.name, g.unit) for g in made if math.isfinite(g.epsilon)}
    hidden = any(
        _hides_messages(plan) for plan in plans if (plan.observer.name, plan.unit) in promised
    )
    # Never by a look at the measured figures: that the two agree would tell of the sample.
    figures, basis = run.outcome.public_cost, Basis.PUBLIC
    if figures is None and hidden:
        basis = Basis.WITHHELD
    elif figures is None or (figures.bytes_sent is None and not hidden):
        figures, basis = PublicCost.of(run.transcript), Basis.MEASURED
    return Cost(
        bytes_sent=None if figures is None else figures.bytes_sent,
        bytes_sent_by_party={} if figures is None else figures.bytes_sent_by_party,
        rounds=None if figures is None else figures.rounds,
        seconds=took[0],
        cpu_seconds=took[1],
        # Parties in other processes report their own.
        peak_memory_bytes=max(peak_memory(), run.outcome.peak_memory_bytes),
        basis=basis,
    )


def _hides_messages(plan: PrivacyPlan) -> bool:
    """Whether names, sizes or number of messages may show what a plan promises to hide."""
    # Under add/remove a name, a count or a size that is there for one neighbour only tells them
    # apart; a curve does not say whether a secret sample is behind it.
    curve = any(isinstance(charge.event, RdpCurve) for charge in plan.charges.values())
    return plan.relation is ADD_REMOVE or curve or _relies_on_sample(plan)


def _caveats(
    trainer: Trainer,
    data: FederatedData,
    plans: tuple[PrivacyPlan, ...],
    made: tuple[Guarantee, ...],
) -> tuple[str, ...]:
    """What the figures leave out, and what a trainer's engine does not protect from."""
    # The theorems speak of real numbers; floats have gaps that can give a contribution away
    # (Mironov 2012). Where nothing is promised, nothing is void.
    noisy = any(math.isfinite(guarantee.epsilon) for guarantee in made)
    noise = (FLOAT_NOISE,) if noisy and any(plan.float_noise for plan in plans) else ()
    parts = (OTHER_PARTS,) if noisy and data.by_coin else ()
    return (*noise, *parts, *CAVEATS, *dict.fromkeys(trainer.caveats))


def _epsilon_curve(plans: tuple[PrivacyPlan, ...], spent: Mapping[str, int], delta: float) -> Curve:
    """Epsilon to the public after eighths of the releases; empty where nothing is promised."""
    public = [plan for plan in plans if plan.observer == PUBLIC]
    made = {kind: count for kind, count in spent.items() if count}
    if not made or math.isinf(_worst_unit(public, dict.fromkeys(made, 1), delta)):
        return []
    # Eighths: every point is an evaluation by the accountant, which may take seconds.
    points: dict[int, dict[str, int]] = {}
    for part in range(1, 9):
        counts = {kind: max(1, round(count * part / 8)) for kind, count in made.items()}
        points[sum(counts.values())] = counts
    return [(total, _worst_unit(public, counts, delta)) for total, counts in points.items()]


def _worst_unit(public: Iterable[PrivacyPlan], counts: Mapping[str, int], delta: float) -> float:
    """The epsilon of the worst protected unit, as `PrivacyStatement.epsilon` has it."""
    best: dict[Unit, float] = {}
    for plan in public:
        spent = epsilon_of(plan, counts, delta)
        best[plan.unit] = min(spent, best.get(plan.unit, math.inf))
    return max(best.values(), default=math.inf)
