"""The statement of a finished run: guarantees, caveats, curves, cost."""

import math

from privtrain.accounting.guarantees import guarantees, public_curves
from privtrain.core.cost import Cost, peak_memory
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Curve, Predictor, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import SEEDED
from privtrain.core.statement import Guarantee, PrivacyStatement
from privtrain.core.task import FederatedData
from privtrain.core.trainer import PrivacyPlan, Run, Trainer
from privtrain.ledgers.run import epsilon_of

# These texts are stored in results and compared by reports: they do not change.
SIMULATED = "simulated: void if the seed is known"
FLOAT_NOISE = "float noise: research use"
TUNING_NOT_COUNTED = "tuning not counted: settings chosen by looking at results are not counted"
CAVEATS = ("timing and sizes of messages are not hidden", TUNING_NOT_COUNTED)


def result_of(
    trainer: Trainer,
    data: FederatedData,
    runtimes: Runtimes,
    plans: tuple[PrivacyPlan, ...],
    run: Run,
    predictor: Predictor,
    seconds: float,
    delta: float,
) -> TrainResult:
    """The result of a finished run: the predictor, its statement, its cost and its history."""
    seeded = run.entropy.kind is SEEDED
    # After what was spent, not what was planned: a halted run promises more, an aborted round that
    # was paid for counts although its result was lost.
    made = guarantees(
        plans,
        spent=run.ledger.spent,
        delta=delta,
        realised=run.realised,
        assumptions=(
            *data.assumptions,
            *dict.fromkeys(run.assumptions),
            *((SIMULATED,) if seeded else ()),
        ),
    )
    run.history.epsilon = _epsilon_curve(plans, run.ledger.spent, delta)
    statement = PrivacyStatement(
        guarantees=made,
        input_privacy=trainer.input_privacy(data, runtimes),
        caveats=_caveats(trainer, plans, made),
        curves=public_curves(plans, spent=run.ledger.spent, delta=delta),
    )
    cost = Cost(
        bytes_sent=run.transcript.bytes_sent,
        bytes_sent_by_party=run.transcript.bytes_sent_by_party,
        rounds=run.transcript.rounds,
        seconds=seconds,
        # Parties in other processes report their own.
        peak_memory_bytes=max(peak_memory(), run.peak_memory_bytes),
    )
    return TrainResult(
        predictor=predictor,
        statement=statement,
        cost=cost,
        history=run.history,
        transcript=run.transcript,
        halted=run.halted,
        notes=tuple(run.notes),
        members=run.members,
    )


def _caveats(
    trainer: Trainer, plans: tuple[PrivacyPlan, ...], made: tuple[Guarantee, ...]
) -> tuple[str, ...]:
    """What the figures leave out, and what a trainer's engine does not protect from."""
    # The theorems speak of real numbers; floats have gaps that can give a contribution away
    # (Mironov 2012). Where nothing is promised, nothing is void.
    noisy = any(math.isfinite(guarantee.epsilon) for guarantee in made)
    noise = (FLOAT_NOISE,) if noisy and any(plan.float_noise for plan in plans) else ()
    aggregation = getattr(getattr(trainer, "release", None), "aggregation", None)
    engine = (*getattr(trainer, "caveats", ()), *getattr(aggregation, "caveats", ()))
    return (*noise, *CAVEATS, *dict.fromkeys(engine))


def _epsilon_curve(plans: tuple[PrivacyPlan, ...], spent: int, delta: float) -> Curve:
    """Epsilon to the public after eighths of the releases; empty where nothing is promised."""
    public = [plan for plan in plans if plan.observer == PUBLIC]
    if not public or spent == 0 or epsilon_of(public[0], 1, delta) == float("inf"):
        return []
    # Eighths: every point is an evaluation by the accountant, which may take seconds.
    counts = sorted({max(1, round(spent * part / 8)) for part in range(1, 9)})
    return [(count, epsilon_of(public[0], count, delta)) for count in counts]
