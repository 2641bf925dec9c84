"""Calibrating: the least noise that keeps a promise."""

import math

from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.event import Event, charged
from privtrain.core.errors import UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData
from privtrain.core.trainer import PrivacyPlan, Trainer
from privtrain.core.validate import check_follows, check_is, check_positive
from privtrain.runs.checks import check_plans
from privtrain.runs.fitting import default_runtimes


def calibrate(
    trainer: Trainer,
    data: FederatedData,
    *,
    epsilon: float,
    delta: float = 1e-5,
    observer: Observer = PUBLIC,
    runtimes: Runtimes | None = None,
) -> Trainer:
    """The same trainer with the least noise that keeps a promise to an observer.

    Args:
        trainer: A trainer that draws noise.
        data: Who holds which rows; only public figures of it are used where they are given.
        epsilon: The promise; positive.
        delta: Its delta, in (0, 1).
        observer: Whom it is given to.
        runtimes: Where parties run, since that decides who knows what.

    Returns:
        The trainer whose own epsilon, evaluated, is at or below the promise.

    Raises:
        ValueError: If an argument is of another kind, or out of its range.
        UnsupportedError: If the trainer draws no noise.
        UnsoundReleaseError: If no noise would protect from this observer, or delta is at least
            one over the number of protected units.
        BudgetExceededError: If no amount of noise keeps the promise, or none that its accountants
            can show at so small a delta.
    """
    check_follows(Trainer, "pt.DPSGD()", trainer=trainer)
    check_is(FederatedData, "that of task, data = pt.data.digits()", data=data)
    check_is(Observer, "pt.PUBLIC", observer=observer)
    if runtimes is not None:
        check_is(Runtimes, "pt.Runtimes(star=pt.InProcess())", runtimes=runtimes)
    check_positive(epsilon=epsilon)
    where = runtimes or default_runtimes()

    def plans_at(scale: float) -> list[PrivacyPlan]:
        noisier = trainer.with_noise(scale)
        if noisier is None:
            raise UnsupportedError(
                f"{trainer.token} draws no noise, so no noise can be calibrated. Give it a "
                "mechanism such as Gaussian first."
            )
        return [plan for plan in noisier.plan(data, where) if plan.observer == observer]

    # Which releases there are, and to whom, is the same at every scale; any scale shows it.
    samples = plans_at(1.0)
    if not samples:
        raise ValueError(
            f"Expected observer={observer.name!r} to be one that {trainer.token} "
            "makes a statement about."
        )
    check_plans(tuple(samples), data, delta)
    # Where noise is drawn twice, in the silos and on their sum, only one of the two is scaled.
    scaled = [
        number
        for number, (plan, other) in enumerate(zip(samples, plans_at(2.0), strict=True))
        if plan.charges != other.charges
    ]
    if not scaled:
        raise UnsoundReleaseError(
            f"No noise of {trainer.token} protects from the {observer}: it knows the noise or "
            "reads what is sent. Let the parties draw the noise, or use a secure aggregation."
        )

    def needed(number: int) -> float:
        """The scale at which one plan keeps the promise."""
        counts = samples[number].counts.values()
        # All kinds as often as planned: so many times, and within that as often as it takes.
        times = math.gcd(*counts)

        # The event comes from the plan that training will spend, so the two cannot disagree.
        def event_of(value: float) -> Event:
            plan = plans_at(value)[number]
            return charged(plan.charges, {kind: n // times for kind, n in plan.counts.items()})

        return calibrate_scale(
            event_of,
            epsilon=epsilon,
            delta=delta,
            relation=samples[number].relation,
            count=times,
        )

    # Each release has to keep the promise, so the one that needs most noise decides.
    scale = max(map(needed, scaled))
    calibrated = trainer.with_noise(scale)
    return trainer if calibrated is None else calibrated
