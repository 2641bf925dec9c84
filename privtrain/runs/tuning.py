"""Tuning: the best of a random number of runs, with the choice counted.

Settings that are chosen by looking at the results of private runs leak through the choice. Here the
number of runs is random, their settings are drawn at random, only the best run is released, and the
statement speaks of the whole (Papernot and Steinke 2022, arXiv:2110.03620).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.epsilon import rdp_curve
from privtrain.accounting.event import Event, charged, non_private_event
from privtrain.accounting.guarantees import guarantees, public_curves
from privtrain.accounting.renyi import RdpCurve
from privtrain.accounting.selection import THEOREMS, RandomTrials, costliest
from privtrain.core.errors import PrivacyError, UnsoundReleaseError
from privtrain.core.identity import value_digest
from privtrain.core.measures import Metric, better_by
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import initial_model
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import (
    SEEDED,
    EntropyKind,
    OnceOnly,
    SeededEntropy,
    Seeds,
    SystemEntropy,
    kind_of,
)
from privtrain.core.settings import kept_settings
from privtrain.core.statement import Budget, PrivacyStatement, Relation
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan, Trainer
from privtrain.core.validate import check_follows
from privtrain.ledgers.run import JournalLedger
from privtrain.ledgers.study import StudyLedger
from privtrain.report.progress import progress_bar
from privtrain.runs.card import fit_card
from privtrain.runs.checks import check_kinds, check_mapping, check_plans
from privtrain.runs.fitting import default_runtimes, fit_trial
from privtrain.runs.publishing import checked_start, renewed
from privtrain.runs.roots import rows_digest
from privtrain.runs.scoring import Score, check_score, leading, try_score
from privtrain.runs.statements import TUNING_NOT_COUNTED, with_secret_samples

TUNING_COUNTED = (
    "tuning counted: the choice among the trials is; trials and grids chosen by looking are not"
)
UNSEEN = "neither the number of trials nor any other trial, nor the time they took, is released"
ONE_TRIAL = (
    "bytes, rounds, transcript and history are those of the best trial alone; its seconds and "
    "memory are withheld, since they would tell how many trials were made before it"
)
SEES_TRIALS = "it sees every trial, not only the best one"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best of the trials: all that is released of them.

    Args:
        label: What the user called its trainer.
        trainer: Its settings.
        score: Its score, as it was compared.
        result: Its result. The statement speaks of the whole selection; transcript, history, bytes
            and rounds are those of the best trial alone. Its seconds and memory are withheld.
        trials: How the number of trials was drawn. The number itself stays secret.
    """

    label: str
    trainer: Trainer
    score: float
    result: TrainResult
    trials: RandomTrials


@dataclass(frozen=True, kw_only=True)
class _Trial:
    label: str
    score: float
    result: TrainResult = field(repr=False)


@kept_settings()
def tune(
    trainers: Mapping[str, Trainer],
    task: Task,
    data: FederatedData,
    *,
    score: Score,
    trials: RandomTrials | None = None,
    budget: Budget | None = None,
    delta: float = 1e-5,
    runtimes: Runtimes | None = None,
    seed: int = 0,
    entropy: EntropyKind | None = None,
    device: str = "cpu",
    study_ledger: StudyLedger | None = None,
) -> Tuned:
    """Chooses the best of several settings, and states what model and choice cost together.

    A random number of trials is run, each with settings drawn uniformly and with replacement. Only
    the best trial is returned. The statement holds for whoever sees nothing else: who takes part in
    the trials or watches how long they take sees more.

    Args:
        trainers: Label to settings; fixed before looking at the data.
        task: What is learned.
        data: Who holds which rows.
        score: How models are compared: by the task's main metric, whose good values may be the low
            ones, on `PublicRows(rows)`; or by the rows that it counts, of which
            `PrivateRows(rows, mechanism)` takes the noised number.
        trials: The distribution of the number of trials; None for a geometric one of mean 10.
        budget: What the whole may cost the public at most. Its delta replaces `delta`.
        delta: Delta of the guarantee.
        runtimes: Where parties run; see `fit`.
        seed: Public seed of data order and initialisation, which are those of every trial.
        entropy: `SEEDED` or `SYSTEM`, of which the number of trials, the settings and the noise
            are drawn; see `fit`.
        device: Where tensors are computed.
        study_ledger: Charged for the whole before the first trial.

    Returns:
        The best trial, its settings and its score.

    Raises:
        UnsoundReleaseError: If scores would leak, or settings promise different things.
        BudgetExceededError: If the whole does not fit the budget. Nothing is run then.
        PrivacyError: If no trial was drawn, which happens to Poisson numbers only. What was spent
            stays spent.
    """
    check_kinds(task, data, runtimes=runtimes, budget=budget, study_ledger=study_ledger)
    check_mapping(trainers)
    drawn, where = trials or RandomTrials(), runtimes or default_runtimes()
    # A budget is a pair: whether it is kept says nothing about another delta.
    delta = budget.delta if budget is not None else delta
    check_score(score, data, task)
    _, metric = leading(task)
    # `score` itself goes into the root of the noise, as the user gave it.
    of_task = score.by(metric)
    for label, trainer in trainers.items():
        check_follows(Trainer, "pt.SGD()", **{f"trainers[{label!r}]": trainer})
    plans = selection_plans(trainers, data, where, score=score, trials=drawn)
    promises = check_plans(plans, data, delta)
    # Before the study pays for the whole; each trial looks again.
    start = checked_start(task, data, Seeds(seed), promises=promises, study=study_ledger)
    try_score(score, data, task, initial_model(task, Seeds(seed)["initialisation", 0, ""]))
    real = where.star is not None and where.star.real
    kind = kind_of(entropy, real=real)
    ledger, fits = JournalLedger(plans, budget=budget, delta=delta), 0
    if study_ledger is not None:
        check_plans(plans, data, study_ledger.delta)
        run_name = f"tune({', '.join(trainers)})"
        fits = study_ledger.spend_run(ledger, data, name=run_name, folder=None)
    root = b""
    if kind is SEEDED:
        # The noise on the scores: another choice, or one from other rows, must not share it.
        root = value_digest(tuple(trainers.items()), task, score, rows_digest(data), drawn)
    seeded = SeededEntropy(seed, fit=fits, root=root)
    source = OnceOnly(seeded if kind is SEEDED else SystemEntropy())
    # K, the number of runs: from entropy and not from a seed, because the theorem holds against who
    # does not know it.
    count, labels = drawn.draw(source["trials", 0, "tuner"].numpy()), tuple(trainers)
    best: _Trial | None = None
    # No figures: how many trials there are stays secret, also on a screen.
    with progress_bar("tuning"):
        for number in range(count):
            # With replacement and whatever the data: the settings of a trial tell nothing of them.
            place = int(source["settings", number, "tuner"].numpy().integers(len(labels)))
            options: dict[str, Any] = {"runtimes": where, "delta": delta, "device": device}
            result = fit_trial(
                *(trainers[labels[place]], task, data),
                # All start alike: a model shows its start, most of all in a frozen layer, and with
                # it would show the number of its trial, which the theorem keeps secret.
                seed=seed,
                noise_seed=_noise_seed(seed, number, fits),
                entropy=kind,
                # A bar for each trial would show how many there are.
                progress=lambda done, total: None,
                paid_by=study_ledger,
                **options,
            )
            stream = source["score", number, "tuner"]
            value = of_task.measure(result.predictor, stream)
            # Only the best run leaves the loop; the others are as if they had not been.
            if best is None or _is_better(value, best.score, metric):
                best = _Trial(label=labels[place], score=value, result=result)
    if best is None:
        raise PrivacyError(
            f"No trial was drawn, which {drawn} does with probability {math.exp(-drawn.mean):.2g}. "
            "Nothing was released, and what was spent stays spent. Tune again, counting both."
        )
    # In a module that was made before the first trial: one of a later trial shows which it was
    # by what counts in the whole process, such as the numbers of its hooks.
    result = replace(best.result, predictor=renewed(best.result.predictor, start, device))
    result = _stated(result, plans, delta, simulated=kind is SEEDED)
    # A card of its own: the date on the best trial's would show which of them it was.
    card = fit_card(
        *(trainers[best.label], task, data, where, seed, delta, device),
        statement=result.statement,
        entropy=kind.value,
        folder=None,
    )
    return Tuned(
        label=best.label,
        trainer=trainers[best.label],
        score=best.score,
        result=replace(result, card=card),
        trials=drawn,
    )


def _is_better(value: float, other: float, metric: Metric) -> bool:
    # Of a trial that has no score, such as one that diverged, every other is the better one.
    return math.isnan(other) > math.isnan(value) or better_by(value, other, metric.best) > 0


def selection_plans(
    trainers: Mapping[str, Trainer],
    data: FederatedData,
    runtimes: Runtimes,
    *,
    score: Score,
    trials: RandomTrials,
) -> tuple[PrivacyPlan, ...]:
    """The plan of a whole selection for each observer, as one release.

    Raises:
        ValueError: If there are no trainers.
        UnsoundReleaseError: If trainers promise different things to the public.
        UnsupportedError: If no Rényi accountant reads what a trainer releases.
    """
    if not trainers:
        raise ValueError("Expected trainers={} to name at least one trainer.")
    planned = {label: trainer.plan(data, runtimes) for label, trainer in trainers.items()}
    kinds = {label: [_kind_of(p) for p in plans] for label, plans in planned.items()}
    first = next(iter(trainers))
    # The theorem is about one curve for all trials; other units or relations have no common one.
    for label, promised in kinds.items():
        if promised != kinds[first]:
            raise UnsoundReleaseError(
                f"{label!r} promises other things than {first!r}: other observers, units or "
                "relations. Only settings of one promise can be chosen from."
            )
    made = []
    for number, plan in enumerate(planned[first]):
        # The theorem holds for who sees the best run alone; within the trials, all are seen.
        if plan.observer != PUBLIC:
            event, assumptions = non_private_event(), (*plan.assumptions, SEES_TRIALS)
        else:
            same = [plans[number] for plans in planned.values()]
            event = _cost([_once(p, score) for p in same], trials, plan.relation)
            known = dict.fromkeys(a for p in same for a in p.assumptions)
            assumptions = (*known, score.assumption, UNSEEN)
        theorem = f"{THEOREMS}; of each trial: {plan.theorem}"
        charges = {RELEASE: Charge(event, 1)}
        made.append(replace(plan, charges=charges, theorem=theorem, assumptions=assumptions))
    return tuple(made)


def _kind_of(plan: PrivacyPlan) -> tuple[Any, ...]:
    return plan.observer, plan.unit, plan.relation


def _once(plan: PrivacyPlan, score: Score) -> list[Event]:
    """What one trial releases: the model, and its score."""
    return [charged(plan.charges), score.event(plan.unit, plan.relation)]


def _cost(choices: list[list[Event]], trials: RandomTrials, relation: Relation) -> Event:
    """The curve of the selection; one that promises nothing where a trial promises nothing."""
    # A curve is known at its own orders only, so the others are evaluated there.
    events = [event for parts in choices for event in parts]
    orders = next((e.orders for e in events if isinstance(e, RdpCurve)), ORDERS)
    curves = []
    # A trial releases its model and its score; Rényi divergences of the two add up.
    for parts in choices:
        model, measured = (rdp_curve(part, orders, relation) for part in parts)
        curves.append(model + measured)
    cost = trials.cost(costliest(curves))
    return non_private_event() if all(map(math.isinf, cost.rdp)) else cost


def _noise_seed(seed: int, number: int, fits: int) -> int:
    """The seed of a trial's entropy in a simulation: two trials must not draw the same noise."""
    return int.from_bytes(Seeds(seed)["trial", number, str(fits or "")].key[:6], "little")


def _stated(
    result: TrainResult, plans: tuple[PrivacyPlan, ...], delta: float, *, simulated: bool
) -> TrainResult:
    """The best trial's result, with the statement of the whole selection."""
    plans = with_secret_samples(plans, seeded=simulated)
    planned = {text for plan in plans for text in plan.assumptions}
    # What was assumed of the rows, and what turned out while the trial ran.
    assumed = dict.fromkeys(
        text
        for guarantee in result.statement.guarantees
        if guarantee.observer == PUBLIC and not guarantee.data_dependent
        for text in guarantee.assumptions
        if text not in planned
    )
    made = guarantees(plans, spent={RELEASE: 1}, delta=delta, assumptions=tuple(assumed))
    caveats = [c for c in result.statement.caveats if c != TUNING_NOT_COUNTED]
    statement = PrivacyStatement(
        guarantees=made,
        input_privacy=result.statement.input_privacy,
        caveats=(*caveats, TUNING_COUNTED),
        curves=public_curves(plans, spent={RELEASE: 1}, delta=delta),
    )
    # Epsilon over the rounds is that of one trial, which is not what was promised.
    history = replace(result.history, epsilon=[])
    # The first trial is slower than later ones, and memory grows from trial to trial: either would
    # tell which one won.
    cost = replace(result.cost, seconds=math.nan, cpu_seconds=math.nan, peak_memory_bytes=math.nan)
    return replace(
        result,
        statement=statement,
        history=history,
        cost=cost,
        notes=(*result.notes, ONE_TRIAL),
    )
