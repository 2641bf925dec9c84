"""Training: run one trainer, with its ledger, its checkpoints and its statement."""

from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from privtrain.core.abilities import (
    Adapting,
    Addressing,
    Checking,
    CheckingRows,
    Finished,
    Reusing,
    Trying,
)
from privtrain.core.cost import reset_peak_memory
from privtrain.core.errors import PrivacyError, TamperedShareError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.folders import locked_folder
from privtrain.core.identity import Snapshot, value_digest
from privtrain.core.outcome import Outcome
from privtrain.core.parameters import check_no_autocast, initial_model
from privtrain.core.payloads import PayloadStore
from privtrain.core.recipe import Recipe, encoder_of
from privtrain.core.result import History, Predictor, TrainResult
from privtrain.core.runtime import Runtimes, Setting
from privtrain.core.seeding import (
    SEEDED,
    Entropy,
    EntropyKind,
    OnceOnly,
    SeededEntropy,
    Seeds,
    SystemEntropy,
    kind_of,
)
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Mesh, PrivacyPlan, Run, Trainer
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_flag, check_follows, made_folder
from privtrain.data.factories import factory_to_plain
from privtrain.ledgers.run import JournalLedger, planned_counts
from privtrain.ledgers.study import StudyLedger
from privtrain.report.progress import Report, progress_bar
from privtrain.runs.card import fit_card
from privtrain.runs.checkpoint import LOADED_BEFOREHAND, FileCheckpoint, Identity
from privtrain.runs.checks import check_data, check_device, check_fits, check_kinds, check_plans
from privtrain.runs.marks import environment_of, identity_of
from privtrain.runs.measuring import outputs_of, value_of
from privtrain.runs.opening import LateStar
from privtrain.runs.publishing import checked_start, published
from privtrain.runs.roots import noise_root
from privtrain.runs.sittings import open_sitting
from privtrain.runs.statements import result_of
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes.mesh import Processes

WATCHED = 10
"""How often a run measures the model on validation rows."""


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
    # Overwriting it would forget what was spent on these rows.
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
        # One sync pays for a block of releases. A crash loses an unfinished block, so it is at most
        # a twentieth of what is planned of the rarest kind.
        block=max(1, min(planned_counts(plans).values(), default=1) // 20),
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
            One run at a time works there, and a folder of another one is refused: of another
            trainer, task, data, seed or entropy, their code included. None keeps both in memory.
        progress: Called as `progress(done, total)`; None shows a bar on a terminal.
        keep_payloads: Whether the transcript keeps the tensors themselves; seeded entropy only.
        study_ledger: Adds up all fits on the same rows; the whole plan is paid there beforehand.

    Returns:
        The predictor, the statement, the cost, the history and the transcript.

    Raises:
        BudgetExceededError: If not one release fits the budget, or the plan not the study's.
        UnsoundReleaseError: If a promise could not be kept.
        ValueError: If the task's factory makes no new module at each call.
        PrivacyError: If a model keeps what no release covers, or starts from what an earlier fit
            made of these rows.
        PartyLostError: If a party dies or freezes.
        TamperedShareError: If a share was altered; `folder` says so, and nothing of the run is
            taken up there.
        DataError: If the data cannot be trained on, or the folder cannot be written, is in use,
            or belongs to another run or to version 0.1.
    """
    return fit_trial(
        *(trainer, task, data),
        noise_seed=seed,
        runtimes=runtimes,
        budget=budget,
        delta=delta,
        seed=seed,
        entropy=entropy,
        device=device,
        folder=folder,
        progress=progress,
        keep_payloads=keep_payloads,
        study_ledger=study_ledger,
    )


@kept_settings()
@recorded_gradients()
def fit_trial(
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    *,
    noise_seed: int,
    repeats: bool = False,
    runtimes: Runtimes | None = None,
    budget: Budget | None = None,
    delta: float = 1e-5,
    seed: int = 0,
    entropy: EntropyKind | None = None,
    device: str = "cpu",
    folder: str | Path | None = None,
    progress: Report | None = None,
    keep_payloads: bool = False,
    store: PayloadStore | None = None,
    study_ledger: StudyLedger | None = None,
    paid_by: StudyLedger | None = None,
    earlier: Snapshot | None = None,
) -> TrainResult:
    """`fit`, with a seed of its own for seeded entropy: trials that start alike share no noise.

    `store` says which payloads are kept, if not all, and holds them.

    `paid_by` is the study that has paid for this trial already, together with others.

    What `earlier` holds identifies the folder as it was then, before other trials used it.

    Where `repeats` is set, a simulation that was interrupted in its folder begins again with the
    noise it had, instead of going on with fresh noise and halting early.
    """
    kinds = {"runtimes": runtimes, "budget": budget, "study_ledger": study_ledger}
    check_kinds(task, data, **kinds, folder=folder, progress=progress)
    where = runtimes or default_runtimes()
    # A budget is a pair: whether it is kept says nothing about another delta.
    delta = budget.delta if budget is not None else delta
    real = where.star is not None and where.star.real
    kind, seeds = kind_of(entropy, real=real), Seeds(seed)
    check_flag(keep_payloads=keep_payloads)
    keep_payloads = keep_payloads or store is not None
    if keep_payloads and kind is not SEEDED:
        raise UnsupportedError("keep_payloads=True records secrets; it needs entropy=SEEDED.")
    # All refusals come before the first release: what is refused has cost no privacy.
    check_follows(Trainer, "pt.SGD()", trainer=trainer)
    check_no_autocast()
    check_device(device)
    check_data(data)
    if isinstance(trainer, Finished):
        if budget is not None:
            raise UnsupportedError(
                f"budget={budget} cannot be kept by a model that was trained elsewhere. Leave it "
                "out, and state what was spent in guarantees=."
            )
        return trainer.trained_elsewhere(task, data)
    beside: object = None
    if isinstance(trainer, Adapting):
        task, beside = trainer.adapted(task), trainer.read_beside()
    if isinstance(trainer, Reusing):
        trainer.check_reuse(where, study_ledger or paid_by)
    plans = trainer.plan(data, where)
    others = trainer.others if isinstance(trainer, Addressing) else ()
    promises = check_plans(plans, data, delta)
    study = study_ledger or paid_by
    start = checked_start(task, data, seeds, promises=promises, study=study, beside=beside)
    _try_beforehand(trainer, task, data, seeds, device)
    with ExitStack() as stack:
        home = None if folder is None else made_folder(folder)
        if home is not None:
            stack.enter_context(locked_folder(home))
        ledger = open_ledger(plans, promises=promises, budget=budget, delta=delta, folder=home)
        transcript, history = Transcript(keep_payloads, store), History()
        outcome = Outcome(history, list(data.notes), assumptions=list(start.assumptions))
        identity, environment = Identity({}), dict[str, str]()
        if home is not None:
            settings: Any = {"trainer": (trainer.token, trainer), "initial model": start.module}
            seen = (task, data, kind)
            identity = identity_of(*seen, earlier=earlier, seed=(seed, noise_seed), **settings)
            environment = environment_of(where, device)
        kept = (transcript, history)
        sitting = open_sitting(home, identity, environment, lambda: ledger.spent_by_kind, *kept)
        checkpoint = sitting.checkpoint
        _take_up(ledger, checkpoint, home, promises=promises)
        fits = 0
        if study_ledger is not None:
            # A study states its guarantee at a delta of its own, which has to mean something, too.
            check_plans(plans, data, study_ledger.delta)
            # All that the run may spend: a study whose budget it exceeds must refuse it unstarted.
            fits = study_ledger.spend_run(ledger, data, name=trainer.token, folder=home)
        if isinstance(trainer, Reusing):
            outcome.note(*trainer.said_of_reuse(study_ledger or paid_by))
        root = noise_root(trainer, task, data, start.module) if kind is SEEDED else b""
        noise = value_digest(root, noise_seed, fits) if root and promises else b""
        sitting.begin(ledger, noise, repeats=repeats)
        source: Entropy = SystemEntropy()
        if kind is SEEDED:
            # Where nothing is promised, a resumed run repeats what it drew: the same bits as one
            # that was never interrupted.
            source = SeededEntropy(noise_seed, fit=fits, root=root)
            if promises:
                source = _resumed(source, ledger, checkpoint)
        setting = Setting(
            data=data,
            seeds=seeds,
            entropy=source,
            transcript=transcript,
            device=device,
            report_memory=outcome.report_memory,
            report_cpu=outcome.report_cpu,
            others=others,
        )
        shown = progress or stack.enter_context(progress_bar(trainer.token))
        run = Run(
            # The stack closes the parties when the run ends, however it ends.
            star=None if where.star is None else LateStar(where.star, setting, stack),
            mesh=None
            if where.mesh is None
            else Mesh(where.mesh, transcript, outcome, seeds, shown),
            ledger=ledger,
            transcript=transcript,
            seeds=seeds,
            entropy=OnceOnly(source),
            device=device,
            progress=shown,
            watch=_watcher(task, data, history),
            outcome=outcome,
            checkpoint=None if home is None else checkpoint,
            folder=home,
        )
        # The peak is the process's own, and an earlier fit's would be reported as this one's.
        reset_peak_memory()
        try:
            predictor = trainer.train(task, data, run)
        except TamperedShareError as error:
            sitting.abort(error)
            raise
        took = (checkpoint.seconds, checkpoint.cpu_seconds(outcome.cpu_elsewhere.values()))
        # Not in a `finally`: after an error it is unknown which releases of a block were made.
        ledger.close()
        sitting.end(run, environment)
    predictor = published(predictor, start, data, run, study_ledger or paid_by)
    made = result_of(trainer, data, where, plans, run, predictor, took, delta)
    try:
        card = fit_card(
            *(trainer, task, data, where, seed, delta, device),
            statement=made.statement,
            entropy=kind.value,
            folder=home,
        )
    except OWN_ERRORS as error:  # what a user's settings do when they are read
        # What was trained was paid for.
        said = f"there is no run card: {type(error).__name__}: {text_of(error)}"
        return replace(made, notes=(*made.notes, said))
    # In plain values: of rows nothing stays in a result, of the user's own objects the trainer.
    return replace(made, card=card, recipe=recipe_of(task, data, seed))


def recipe_of(task: Task, data: FederatedData, seed: int) -> Recipe:
    """How a task's model and its inputs are made again."""
    return Recipe(
        factory=factory_to_plain(task.model),
        seed=seed,
        encoder=encoder_of(data.test.inputs, data.test.targets, data.encoder),
    )


def _try_beforehand(
    trainer: Trainer, task: Task, data: FederatedData, seeds: Seeds, device: str
) -> None:
    """Tries trainer, model and loss as far as a trainer knows how, before anything is spent."""
    if not isinstance(trainer, Checking):
        return
    stream = seeds["initialisation", 0, ""]
    tried = initial_model(task, stream)
    # Layers that cannot be trained are named before the model is run.
    trainer.check(task, tried.to(device))
    # Another one: what it ran on may leave something in it.
    check_fits(task, data, initial_model(task, stream))
    # Where there are more parties, each is looked at when it is drawn.
    if isinstance(trainer, CheckingRows) and len(data.parties) <= LOADED_BEFOREHAND:
        trainer.check_rows(data, tried)
    if isinstance(trainer, Trying):
        trainer.try_beforehand(task, data, tried)


def _take_up(
    ledger: JournalLedger, checkpoint: FileCheckpoint, home: Path | None, *, promises: bool
) -> None:
    """Holds what a checkpoint says was spent against the ledger."""
    before = checkpoint.spent_by_kind
    known = ledger.spent_by_kind
    if promises and any(count > known.get(kind, 0) for kind, count in before.items()):
        raise PrivacyError(
            f"The checkpoint in {home} stands after {checkpoint.spent_before} releases, and the "
            f"privacy journal beside it knows of {ledger.spent}: entries were lost. Put the "
            "journal back, or choose another folder."
        )
    # No journal counts what promises nothing; how many rounds were made is still reported.
    if not promises:
        for kind, count in before.items():
            if count:
                ledger.spend(count, kind=kind)
                ledger.use(count, kind=kind)


def _resumed(
    source: SeededEntropy, ledger: JournalLedger, checkpoint: FileCheckpoint
) -> SeededEntropy:
    """The entropy of a simulation that promises something, fresh where it goes on.

    Whatever drew noise before was spent before. Noise that two runs share, be they one run twice or
    two fits, would cancel in the difference of their results.
    """
    saved = checkpoint.load()
    # Two runs that were interrupted at different steps of one block go on from other models.
    root = source.root if saved is None else value_digest(source.root, *saved)
    return replace(source, attempt=ledger.spent, root=root)


def _watcher(task: Task, data: FederatedData, history: History) -> Any:
    """Makes the function that measures a model on validation rows, a few times over a run."""
    rows, measures = data.validation, task.measures

    def watch(done: int, total: int, predictor: Predictor) -> None:
        every = max(1, total // WATCHED)
        due = done % every == 0 or done == total
        if rows is None or rows.targets is None or len(rows) == 0 or not due or not measures:
            return
        # No noise covers this figure: `History` keeps it apart as an unprotected diagnostic, and
        # nothing may be stopped or chosen by it.
        # A curve is no reason to lose what was paid for: what fails is left out of it.
        with suppress(*OWN_ERRORS):
            outputs = outputs_of(predictor, rows, "validation")
            for name, metric in measures.items():
                with suppress(*OWN_ERRORS):
                    value = value_of(name, metric, outputs, rows.targets)
                    history.record(done, **{f"validation_{name}": value})

    return watch


def default_runtimes() -> Runtimes:
    """Parties in this process for a star, real processes for a mesh."""
    # Processes even in a simulation: a mesh's parties wait for each other in the middle of a step.
    return Runtimes(star=InProcess(), mesh=Processes())
