"""Shadow models for attacks: on the candidates as an attack sees them, and so without the truth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from privtrain.core.abilities import Reusing
from privtrain.core.errors import NotApplicableError, PrivtrainError, Reason
from privtrain.core.failures import text_of
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import Unit
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.federation import digest
from privtrain.runs.shadows import Shadows, shadows

# Around an attack and not in what it is handed: a run's folder tells who is a member.
_PLACE: ContextVar[tuple[Path | None, int]] = ContextVar("folder and workers", default=(None, 1))


@contextmanager
def shadows_kept(folder: str | Path | None, workers: int = 1) -> Iterator[None]:
    """Keeps what shadow models say, for attacks that ask for them within, and for later ones.

    That holds no truth about the run: candidates lie in the order in which attacks see them. It
    is private all the same, since it is computed from all of them.

    Args:
        folder: Such as that of the attacked run; None keeps nothing.
        workers: See `privtrain.runs.shadows.shadows`.
    """
    before = _PLACE.set((None if folder is None else Path(folder), workers))
    try:
        yield
    finally:
        _PLACE.reset(before)


@dataclass
class Kept:
    """Shadow models that one attack asked for, and the next may use. They hold no truth."""

    made: dict[tuple[str, int], Shadows] = field(default_factory=dict)


@dataclass(frozen=True)
class Shadowing:
    """Trains shadow models of a run when an attack asks for them.

    Args:
        trainer: The run's trainer.
        task: What it learned.
        candidates: All candidates, in the order in which the attack sees them; no other row of the
            run but public ones.
        seed: Public seed of the halves and of the models.
        kept: Where they are kept for other attacks on the same candidates.
        said: What is added here must stand beside the figures of who asks.
    """

    trainer: Trainer
    task: Task
    candidates: FederatedData
    seed: int
    kept: Kept
    said: list[str]

    def __call__(self, count: int) -> Shadows:
        """What `count` models say of each candidate; see `privtrain.runs.shadows.shadows`."""
        key = (digest(self.candidates.train.values()), count)
        if key not in self.kept.made:
            folder, workers = _PLACE.get()
            try:
                made = shadows(
                    *(self.trainer, self.task, self.candidates),
                    count=count,
                    seed=self.seed,
                    folder=folder,
                    workers=workers,
                )
            except NotApplicableError:
                raise
            except ValueError as error:  # DataError among them
                raise NotApplicableError(
                    f"A half of {len(self.candidates.test)} candidates cannot be trained on as the "
                    f"run was: {text_of(error)} Or give the run more test rows, on which "
                    "the number of candidates depends.",
                    Reason.NO_SHADOWS,
                ) from error
            self.kept.made[key] = made
        made = self.kept.made[key]
        self.said.extend([f"{count} shadow models", *made.notes])
        # Copies: whoever holds an array can make it writable again, and the next attack must find
        # what was made.
        names = ("losses", "log_probabilities", "included")
        arrays = {name: getattr(made, name) for name in names}
        copies = {name: one.copy() for name, one in arrays.items() if one is not None}
        for one in copies.values():
            one.setflags(write=False)
        return replace(made, **copies)


@dataclass(frozen=True)
class Refusing:
    """Stands where there are no shadow models, and says why.

    Args:
        why: The sentence.
    """

    why: str

    def __call__(self, count: int) -> Shadows:
        """Raises `NotApplicableError`."""
        raise NotApplicableError(self.why, Reason.NO_SHADOWS)


OF_USERS = (
    "A trainer that protects users has no shadow models: whose rows candidates are is kept from "
    "attacks, since users of members and of others differ. Use LossThreshold, or attack a run that "
    "protects single rows."
)
OF_OTHER_RUNS = (
    "A trainer that takes what it computed in other runs, as PATE(votes=...) does, has no shadow "
    "models: that tells of more rows than the candidates, and a study pays for it. Use "
    "LossThreshold, or attack a run that keeps nothing."
)


def shadowing(
    result: TrainResult, task: Task, data: FederatedData, *, seed: int, kept: Kept, said: list[str]
) -> Callable[[Rows], Callable[[int], Shadows]] | None:
    """How shadow models of a run are trained, once it is known on which candidates.

    Args:
        result: The run that is attacked.
        task: What it learned.
        data: Who holds which rows; the candidates are laid out likewise.
        seed: Public seed of the shadow models.
        kept: Where models are kept for other attacks.
        said: Gets what must stand beside the figures of an attack that asks for models.

    Returns:
        From candidates in the order of the attack; None where the run does not say its trainer.
    """
    trainer = result.trainer
    if trainer is None:
        return None
    if reuses(trainer):
        return lambda rows: Refusing(OF_OTHER_RUNS)
    if any(plan.unit is Unit.USER for plan in trainer.plan(data, Runtimes())):
        return lambda rows: Refusing(OF_USERS)
    return lambda rows: Shadowing(trainer, task, laid_out(data, rows), seed, kept, said)


def reuses(trainer: Trainer) -> bool:
    """Whether a trainer keeps what it computed for other runs, as it refuses to without a study."""
    # What is kept between runs is paid for by a study, and tells of more than the candidates.
    if not isinstance(trainer, Reusing):
        return False
    try:
        trainer.check_reuse(Runtimes(), None)
    except PrivtrainError:
        return True
    return False


def laid_out(data: FederatedData, candidates: Rows) -> FederatedData:
    """Data as those of a run, whose training rows are the candidates and which has no others.

    Args:
        data: Who holds which rows of the run; public rows and figures stay what they are.
        candidates: With targets. Which party holds which of them follows from their order alone.
    """
    names = data.parties
    if data.split is ROWS:
        # Two for each, so that no half of a party's is without a row.
        names = names[: max(1, len(candidates) // 2)]
        numbers = torch.arange(len(candidates)).tensor_split(len(names))
        train = {name: candidates.take(own) for name, own in zip(names, numbers, strict=True)}
    else:
        widths = [data.train[name].inputs.shape[1] for name in names]
        parts = zip(names, torch.split(candidates.inputs, widths, dim=1), strict=True)
        train = {
            name: Rows(own, candidates.targets if name == data.label_holder else None)
            for name, own in parts
        }
    # The test rows are the non-members: they stand for themselves nowhere.
    return replace(
        data,
        train=train,
        test=candidates,
        validation=None,
        canaries=None,
        encoder=None,
        digest=digest(train.values()),
        notes=(),
    )
