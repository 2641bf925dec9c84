"""Training: run one trainer, with its ledger, its checkpoints and its statement."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from privtrain.checkpoint import LOADED_BEFOREHAND, FileCheckpoint, identity_of, layout_of
from privtrain.core.cost import Cost
from privtrain.core.errors import DataError, PrivacyError, UnsoundReleaseError, UnsupportedError
from privtrain.core.memory import peak_memory, reset_peak_memory
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Curve, History, Predictor, TrainResult
from privtrain.core.runtime import Runtimes, Setting, Star
from privtrain.core.seeding import (
    SEEDED,
    EntropyKind,
    OnceOnly,
    SeededEntropy,
    Seeds,
    SystemEntropy,
    kind_of,
)
from privtrain.core.statement import Budget, Guarantee, PrivacyStatement, Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import PrivacyPlan, Run, Trainer
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_delta, check_finite, made_folder
from privtrain.privacy.calibration import calibrate_scale
from privtrain.privacy.guarantees import guarantees, public_curves
from privtrain.privacy.ledger import JournalLedger, epsilon_of
from privtrain.privacy.sampling import check_delta_below
from privtrain.privacy.study_ledger import StudyLedger
from privtrain.report.progress import Report, progress_bar
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes import Processes

SIMULATED = "simulated: void if the seed is known"
FLOAT_NOISE = "float noise: research use"
TUNING_NOT_COUNTED = "tuning not counted: settings chosen by looking at results are not counted"
CAVEATS = ("timing and sizes of messages are not hidden", TUNING_NOT_COUNTED)
WATCHED = 10
"""How often the model is looked at on validation rows."""


def default_runtimes() -> Runtimes:
    """Parties in this process for a star, real processes for a mesh."""
    return Runtimes(star=InProcess(), mesh=Processes())


def check_data(data: FederatedData) -> None:
    """Refuses data that cannot be trained on.

    Raises:
        DataError: If a party is empty, or there are no parties or test rows.
        ValueError: If a value is NaN or infinite.
    """
    if not data.parties:
        raise DataError("Expected data.train to hold at least one party; it is empty.")
    if len(data.test) == 0:
        raise DataError("Expected data.test to hold rows; there are none to measure accuracy on.")
    check_finite(test=data.test.inputs)
    # More parties than this are loaded one by one when they are sampled, and checked by loss.
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            rows = data.train[party]
            if len(rows) == 0:
                raise DataError(
                    f"The party {party!r} holds no rows. Leave it out, or use another partition."
                )
            check_finite(**{f"train[{party}]": rows.inputs})
            if rows.targets is not None:
                check_finite(**{f"train[{party}].targets": rows.targets})


def _population(plan: PrivacyPlan, data: FederatedData) -> int:
    if plan.unit is Unit.CLIENT:
        return len(data.parties)
    if plan.unit is Unit.USER:
        users = data.pooled().users
        return 1 if users is None else len(set(users.tolist()))
    if data.public_rows is not None:
        return data.public_rows
    return len(data.pooled()) if len(data.parties) <= LOADED_BEFOREHAND else len(data.parties)


def check_plans(plans: tuple[PrivacyPlan, ...], data: FederatedData, delta: float) -> bool:
    """Refuses a delta that would make a guarantee empty.

    Returns:
        Whether anything is promised to anybody.

    Raises:
        UnsoundReleaseError: If delta is at least one over the number of protected units.
    """
    check_delta(delta)
    promising = [plan for plan in plans if epsilon_of(plan, 1, delta) < float("inf")]
    for plan in promising:
        check_delta_below(delta, _population(plan, data), str(plan.unit))
    return bool(promising)


def open_ledger(
    plans: tuple[PrivacyPlan, ...],
    *,
    promises: bool,
    budget: Budget | None,
    delta: float,
    folder: Path | None,
) -> JournalLedger:
    """The ledger of a run.

    Where nothing is promised there is no journal: an interrupted round follows from public seeds
    alone, so that repeating it releases nothing new, and the checkpoint keeps the count.

    Raises:
        PrivacyError: If the folder's journal is another plan's.
        BudgetExceededError: If not one release fits the budget.
    """
    journal = None if folder is None else folder / "journal.jsonl"
    if journal is not None and journal.exists() and not promises:
        raise PrivacyError(
            f"The privacy journal {journal} belongs to another plan: this trainer promises "
            "nothing. Choose another folder."
        )
    return JournalLedger(
        plans,
        budget=budget,
        delta=delta,
        journal=journal if promises else None,
        block=max(1, max((plan.count for plan in plans), default=1) // 20),
    )


def fit(
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    *,
    runtimes: Runtimes | None = None,
    budget: Budget | None = None,
    delta: float = 1e-5,
    seed: int = 0,
    entropy: EntropyKind | None = None,
    device: str = "cpu",
    folder: str | Path | None = None,
    progress: Report | None = None,
    keep_payloads: bool = False,
    study_ledger: StudyLedger | None = None,
) -> TrainResult:
    """Trains one model under one technique, and states what it cost and what it promises.

    Args:
        trainer: How to train.
        task: What is learned.
        data: Who holds which rows.
        runtimes: Where parties run; None for this process, and real processes for a mesh.
        budget: What may be spent at most. Where it is reached, training stops, and the result is
            what was trained so far, marked `halted`. Its delta replaces `delta`.
        delta: Delta of every guarantee, in (0, 1) and below one over the number of units.
        seed: Public seed of data order and initialisation.
        entropy: `SEEDED` or `SYSTEM`; None for the system's wherever parties are real processes,
            and seeded in a simulation.
        device: Where tensors are computed, such as "cpu" or "cuda".
        folder: Where the journal and checkpoints go; a run that was interrupted there goes on.
            None keeps both in memory.
        progress: Called as `progress(done, total)`; None shows a bar on a terminal.
        keep_payloads: Whether the transcript keeps the tensors themselves; seeded entropy only.
        study_ledger: Adds up all fits on the same rows; the whole plan is paid there beforehand.

    Returns:
        The predictor, the statement, the cost, the history and the transcript.

    Raises:
        BudgetExceededError: If not one release fits the budget, or the plan not the study's.
        UnsoundReleaseError: If a promise could not be kept.
        PartyLostError: If a party dies or freezes.
        DataError: If the data cannot be trained on, or the folder cannot be written.
    """
    where = runtimes or default_runtimes()
    delta = budget.delta if budget is not None else delta
    real = where.star is not None and where.star.real
    kind, seeds = kind_of(entropy, real=real), Seeds(seed)
    if keep_payloads and kind is not SEEDED:
        raise UnsupportedError("keep_payloads=True records secrets; it needs entropy=SEEDED.")
    check_device(device)
    check_data(data)
    plans = trainer.plan(data, where)
    promises = check_plans(plans, data, delta)
    home = None if folder is None else made_folder(folder)
    ledger = open_ledger(plans, promises=promises, budget=budget, delta=delta, folder=home)
    fits = 0
    if study_ledger is not None:
        check_plans(plans, data, study_ledger.delta)
        fits = study_ledger.spend_run(ledger, data, name=trainer.token, folder=home)
    transcript, history = Transcript(keep_payloads=keep_payloads), History()
    checkpoint = FileCheckpoint(
        transcript,
        history,
        None if home is None else home / "state.pt",
        identity_of(trainer, task, data.name, data.digest, layout_of(data), seed, kind),
        lambda: ledger.spent,
    )
    if not promises and checkpoint.spent_before:
        ledger.spend(checkpoint.spent_before)
        ledger.use(checkpoint.spent_before)
    # A resumed run draws fresh noise: whatever drew noise before was spent before.
    seeded = SeededEntropy(seed, attempt=ledger.spent, fit=fits)
    source = seeded if kind is SEEDED else SystemEntropy()
    with ExitStack() as stack:
        run = Run(
            runtimes=where,
            ledger=ledger,
            transcript=transcript,
            seeds=seeds,
            entropy=OnceOnly(source),
            checkpoint=checkpoint,
            open_star=lambda: _open(stack, where, data, run),
            history=history,
            device=device,
            progress=progress or stack.enter_context(progress_bar(trainer.token)),
            watch=_watcher(data, history),
            notes=list(data.notes),
        )
        reset_peak_memory()
        predictor = trainer.train(task, data, run)
        seconds = checkpoint.seconds
    ledger.close()
    return _result(trainer, data, where, plans, run, predictor, seconds, delta)


def check_device(device: str) -> None:
    """Raises `ValueError` if a device is unknown or not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device={device!r} to be available here; use 'cpu'. ({error})"
        ) from error


def _open(stack: ExitStack, runtimes: Runtimes, data: FederatedData, run: Run) -> Star:
    if runtimes.star is None:
        raise UnsupportedError(
            "This trainer needs rounds around a coordinator: give "
            "runtimes=Runtimes(star=InProcess())."
        )
    setting = Setting(
        data=data,
        seeds=run.seeds,
        entropy=run.party_entropy,
        transcript=run.transcript,
        device=run.device,
    )
    return stack.enter_context(runtimes.star.open(setting))


def _watcher(data: FederatedData, history: History) -> Any:
    """Looks at the model on validation rows a few times over a run."""
    rows = data.validation

    def watch(done: int, total: int, predictor: Predictor) -> None:
        every = max(1, total // WATCHED)
        looked = done % every == 0 or done == total
        if rows is None or rows.targets is None or len(rows) == 0 or not looked:
            return
        correct = predictor(rows.inputs).argmax(dim=1) == rows.labels
        history.record(done, validation_accuracy=float(correct.double().mean()))

    return watch


def _result(
    trainer: Trainer,
    data: FederatedData,
    runtimes: Runtimes,
    plans: tuple[PrivacyPlan, ...],
    run: Run,
    predictor: Predictor,
    seconds: float,
    delta: float,
) -> TrainResult:
    seeded = run.entropy.kind is SEEDED
    made = guarantees(
        plans,
        spent=run.ledger.spent,
        delta=delta,
        realised=run.realised,
        assumptions=(SIMULATED,) if seeded else (),
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
    counts = sorted({max(1, round(spent * part / 8)) for part in range(1, 9)})
    return [(count, epsilon_of(public[0], count, delta)) for count in counts]


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
        UnsupportedError: If the trainer draws no noise.
        UnsoundReleaseError: If no noise would protect from this observer, or delta is at least
            one over the number of protected units.
    """
    where = runtimes or default_runtimes()

    def plans_at(scale: float) -> list[PrivacyPlan]:
        noisier = trainer.with_noise(scale)
        if noisier is None:
            raise UnsupportedError(
                f"{trainer.token} draws no noise, so no noise can be calibrated. Give it a "
                "mechanism such as Gaussian first."
            )
        return [plan for plan in noisier.plan(data, where) if plan.observer == observer]

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
        if plan.event != other.event
    ]
    if not scaled:
        raise UnsoundReleaseError(
            f"No noise of {trainer.token} protects from the {observer}: it knows the noise or "
            "reads what is sent. Let the parties draw the noise, or use a secure aggregation."
        )
    scale = max(
        calibrate_scale(
            lambda value, number=number: plans_at(value)[number].event,  # type: ignore[misc]
            epsilon=epsilon,
            delta=delta,
            relation=samples[number].relation,
            count=samples[number].count,
        )
        for number in scaled
    )
    calibrated = trainer.with_noise(scale)
    return trainer if calibrated is None else calibrated
