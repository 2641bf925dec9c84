"""Tuning: the best of a random number of runs, with the choice counted.

Settings that are chosen by looking at the results of private runs leak through the choice. Here the
number of runs is random, their settings are drawn at random, only the best run is released, and the
statement speaks of the whole (Papernot and Steinke 2022, arXiv:2110.03620).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from privtrain.core.errors import DataError, PrivacyError, UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import PUBLIC, Exposure
from privtrain.core.result import Predictor, TrainResult
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
from privtrain.core.statement import Budget, PrivacyStatement, Relation, Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan, Trainer
from privtrain.privacy.accountants import ORDERS
from privtrain.privacy.accounting import (
    Event,
    RdpCurve,
    no_event,
    non_private_event,
    rdp_curve,
    repeated,
)
from privtrain.privacy.gaussian import Gaussian, Laplace
from privtrain.privacy.guarantees import guarantees, public_curves
from privtrain.privacy.ledger import JournalLedger
from privtrain.privacy.mechanism import is_secure
from privtrain.privacy.selection import THEOREMS, RandomTrials, costliest
from privtrain.privacy.study_ledger import StudyLedger
from privtrain.report.progress import progress_bar
from privtrain.training import (
    SIMULATED,
    TUNING_NOT_COUNTED,
    check_plans,
    default_runtimes,
    fit,
)

TUNING_COUNTED = (
    "tuning counted: the choice among the trials is; trials and grids chosen by looking are not"
)
UNSEEN = "neither the number of trials nor any other trial, nor the time they took, is released"
SEES_TRIALS = "it sees every trial, not only the best one"


class Score(Protocol):
    """How good a trained model is, so that the best one can be chosen."""

    @property
    def rows(self) -> Rows:
        """What it is measured on."""
        ...

    @property
    def assumption(self) -> str:
        """What has to hold for its cost."""
        ...

    def event(self, unit: Unit, relation: Relation) -> Event:
        """What measuring one model releases."""
        ...

    def measure(self, predictor: Predictor, generator: np.random.Generator) -> float:
        """The score; larger is better."""
        ...


def _correct(predictor: Predictor, rows: Rows) -> float:
    with torch.no_grad():
        return float((predictor(rows.inputs).argmax(dim=1) == rows.labels).sum())


@dataclass(frozen=True)
class PublicRows:
    """Scores a model by its accuracy on rows that are declared public; that costs nothing.

    Args:
        rows: Rows with labels that anybody may read and nobody is protected in.
    """

    rows: Rows

    @property
    def assumption(self) -> str:
        """What has to hold for its cost."""
        return "the rows that scores were measured on are public, as the user declared"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """Nothing: it is computed from what is released and what is public."""
        return no_event()

    def measure(self, predictor: Predictor, generator: np.random.Generator) -> float:
        """Accuracy, in 0..1."""
        return _correct(predictor, self.rows) / max(1, len(self.rows))


@dataclass(frozen=True)
class PrivateRows:
    """Scores a model by a noisy number of private rows that it answers correctly.

    One row changes that number by at most 1, under every relation.

    Args:
        rows: Private rows with labels, such as `data.validation`.
        mechanism: The noise, `Gaussian(1.0, noise_multiplier)` or `Laplace(1.0, ...)`: a row
            contributes at most 1.

    Raises:
        UnsoundReleaseError: If there is no noise.
        UnsupportedError: If the noise is secure.
        ValueError: If the clipping norm is not 1.
    """

    rows: Rows
    mechanism: Gaussian | Laplace

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, (Gaussian, Laplace)) or not self.mechanism.noisy:
            raise UnsoundReleaseError(
                f"A score on private rows needs noise, and mechanism={self.mechanism!r} draws "
                "none: choosing by it is a release. Use Gaussian(1.0, noise_multiplier) or "
                "PublicRows."
            )
        if is_secure(self.mechanism):
            raise UnsupportedError(
                f"{self.mechanism} has no theorem under a selection yet. Use secure=False."
            )
        if self.mechanism.clipping_norm != 1.0:
            raise ValueError(
                f"Expected mechanism.clipping_norm={self.mechanism.clipping_norm!r} to be 1.0: a "
                "row is answered correctly or not."
            )

    @property
    def assumption(self) -> str:
        """What has to hold for its cost."""
        return "scores are noisy counts of correctly answered private rows, paid for in each trial"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """One noised count.

        Raises:
            UnsoundReleaseError: If the unit may hold many rows.
        """
        if unit is not Unit.EXAMPLE:
            raise UnsoundReleaseError(
                f"The score hides one row, and the trainer promises something per {unit}, who may "
                "hold many of the scored rows. Score on PublicRows instead."
            )
        seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
        return self.mechanism.event(seen, relation)

    def measure(self, predictor: Predictor, generator: np.random.Generator) -> float:
        """The number of rows answered correctly, plus noise; it may be negative."""
        count = torch.tensor([_correct(predictor, self.rows)], dtype=torch.float64)
        noise, _ = self.mechanism.noise(count, self.mechanism.init(count), generator)
        return float(count + noise)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best of the trials: all that is released of them.

    Args:
        label: What the user called its trainer.
        trainer: Its settings.
        score: Its score, as it was compared.
        result: Its result. The statement speaks of the whole selection; cost, transcript and
            history are those of the best trial alone.
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
        score: How models are compared: `PublicRows(rows)` or `PrivateRows(rows, mechanism)`.
        trials: The distribution of the number of trials; None for a geometric one of mean 10.
        budget: What the whole may cost the public at most. Its delta replaces `delta`.
        delta: Delta of the guarantee.
        runtimes: Where parties run; see `fit`.
        seed: Public seed of data order and initialisation.
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
    drawn, where = trials or RandomTrials(), runtimes or default_runtimes()
    delta = budget.delta if budget is not None else delta
    check_score(score, data)
    plans = selection_plans(trainers, data, where, score=score, trials=drawn)
    check_plans(plans, data, delta)
    real = where.star is not None and where.star.real
    kind = kind_of(entropy, real=real)
    ledger, fits = JournalLedger(plans, budget=budget, delta=delta), 0
    if study_ledger is not None:
        check_plans(plans, data, study_ledger.delta)
        name = f"tune({', '.join(trainers)})"
        fits = study_ledger.spend_run(ledger, data, name=name, folder=None)
    source = OnceOnly(SeededEntropy(seed, fit=fits) if kind is SEEDED else SystemEntropy())
    count, labels = drawn.draw(source["trials", 0, "tuner"].numpy()), tuple(trainers)
    best: _Trial | None = None
    # No figures: how many trials there are stays secret, also on a screen.
    with progress_bar("tuning"):
        for number in range(count):
            place = int(source["settings", number, "tuner"].numpy().integers(len(labels)))
            options: dict[str, Any] = {"runtimes": where, "delta": delta, "device": device}
            result = fit(
                *(trainers[labels[place]], task, data),
                seed=_seed_of(seed, number, fits),
                entropy=kind,
                progress=lambda done, total: None,
                **options,
            )
            value = score.measure(result.predictor, source["score", number, "tuner"].numpy())
            if best is None or value > best.score:
                best = _Trial(label=labels[place], score=value, result=result)
    if best is None:
        raise PrivacyError(
            f"No trial was drawn, which {drawn} does with probability {math.exp(-drawn.mean):.2g}. "
            "Nothing was released, and what was spent stays spent. Tune again, counting both."
        )
    return Tuned(
        label=best.label,
        trainer=trainers[best.label],
        score=best.score,
        result=_stated(best.result, plans, delta, simulated=kind is SEEDED),
        trials=drawn,
    )


def check_score(score: Score, data: FederatedData) -> None:
    """Refuses scores that would leak, or spoil the figures that are reported.

    Raises:
        UnsoundReleaseError: If private rows are scored without noise.
        DataError: If there are no rows or labels, or they are the test rows.
    """
    if not isinstance(score, (PublicRows, PrivateRows)):
        raise UnsoundReleaseError(
            f"Expected score={type(score).__name__} to say whose rows it looks at: rows are "
            "private unless they are declared. Use PublicRows(rows) where anybody may read them, "
            "or PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )
    rows = score.rows
    if not isinstance(rows, Rows) or rows.targets is None or len(rows) == 0:
        raise DataError("Expected score.rows to hold rows with labels; there are none.")
    if rows.inputs is data.test.inputs:
        raise DataError(
            "Expected score.rows to be other rows than data.test: a model that was chosen on the "
            "test rows looks better there than it is. Use validation or public rows."
        )
    private = [*(data.train[party].inputs for party in data.parties[:_FEW])]
    if isinstance(score, PublicRows) and any(rows.inputs is inputs for inputs in private):
        raise UnsoundReleaseError(
            "PublicRows holds rows of data.train, which the statement protects. Score on other "
            "rows, or use PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )


_FEW = 10_000


def selection_plans(
    trainers: Mapping[str, Trainer],
    data: FederatedData,
    runtimes: Runtimes,
    *,
    score: Score,
    trials: RandomTrials,
) -> tuple[PrivacyPlan, ...]:
    """What each observer sees of a selection, as one release.

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
    for label, found in kinds.items():
        if found != kinds[first]:
            raise UnsoundReleaseError(
                f"{label!r} promises other things than {first!r}: other observers, units or "
                "relations. Only settings of one promise can be chosen from."
            )
    made = []
    for number, plan in enumerate(planned[first]):
        if plan.observer != PUBLIC:
            event, assumptions = non_private_event(), (*plan.assumptions, SEES_TRIALS)
        else:
            same = [plans[number] for plans in planned.values()]
            event = _cost([_once(p, score) for p in same], trials, plan.relation)
            known = dict.fromkeys(a for p in same for a in p.assumptions)
            assumptions = (*known, score.assumption, UNSEEN)
        theorem = f"{THEOREMS}; of each trial: {plan.theorem}"
        made.append(replace(plan, event=event, count=1, theorem=theorem, assumptions=assumptions))
    return tuple(made)


def _kind_of(plan: PrivacyPlan) -> tuple[Any, ...]:
    return plan.observer, plan.unit, plan.relation


def _once(plan: PrivacyPlan, score: Score) -> list[Event]:
    """What one trial releases: the model, and its score."""
    return [repeated(plan.event, plan.count), score.event(plan.unit, plan.relation)]


def _cost(choices: list[list[Event]], trials: RandomTrials, relation: Relation) -> Event:
    """The curve of the selection; one that promises nothing where a trial promises nothing."""
    events = [event for parts in choices for event in parts]
    orders = next((e.orders for e in events if isinstance(e, RdpCurve)), ORDERS)
    curves = []
    for parts in choices:
        model, measured = (rdp_curve(part, orders, relation) for part in parts)
        curves.append(model + measured)
    found = trials.cost(costliest(curves))
    return non_private_event() if all(map(math.isinf, found.rdp)) else found


def _seed_of(seed: int, number: int, fits: int) -> int:
    """The public seed of a trial: data order and initialisation are not those of another one."""
    return int.from_bytes(Seeds(seed)["trial", number, str(fits or "")].key[:6], "little")


def _stated(
    result: TrainResult, plans: tuple[PrivacyPlan, ...], delta: float, *, simulated: bool
) -> TrainResult:
    """The best trial's result, with the statement of the whole selection."""
    made = guarantees(plans, spent=1, delta=delta, assumptions=(SIMULATED,) if simulated else ())
    caveats = [c for c in result.statement.caveats if c != TUNING_NOT_COUNTED]
    statement = PrivacyStatement(
        guarantees=made,
        input_privacy=result.statement.input_privacy,
        caveats=(*caveats, TUNING_COUNTED),
        curves=public_curves(plans, spent=1, delta=delta),
    )
    # Epsilon over the rounds is that of one trial, which is not what was promised.
    history = replace(result.history, epsilon=[])
    note = "cost, transcript and history are those of the best trial alone"
    return replace(result, statement=statement, history=history, notes=(*result.notes, note))
