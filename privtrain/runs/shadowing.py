"""Shadow models for attacks: on the candidates as an attack sees them, and so without the truth."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from privtrain.core.abilities import Reusing
from privtrain.core.result import TrainResult
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.federation import digest
from privtrain.runs.shadows import Shadows, shadows


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
            made = shadows(self.trainer, self.task, self.candidates, count=count, seed=self.seed)
            for array in (made.losses, made.included):
                array.setflags(write=False)  # for the next attack they must be what they are
            self.kept.made[key] = made
        made = self.kept.made[key]
        self.said.extend([f"{count} shadow models", *made.notes])
        return made


def shadowing(
    result: TrainResult, task: Task, data: FederatedData, *, seed: int, kept: Kept, said: list[str]
) -> Callable[[Rows], Shadowing] | None:
    """How shadow models of a run are trained, once it is known on which candidates.

    Args:
        result: The run that is attacked.
        task: What it learned.
        data: Who holds which rows; the candidates are laid out likewise.
        seed: Public seed of the shadow models.
        kept: Where models are kept for other attacks.
        said: Gets what must stand beside the figures of an attack that asks for models.

    Returns:
        From candidates in the order of the attack; None where the run does not say its trainer, or
        that one reuses what it computed in other runs.
    """
    trainer = result.trainer
    # What is kept between runs is paid for by a study, and tells of more than the candidates.
    if trainer is None or (isinstance(trainer, Reusing) and trainer.said_of_reuse(None)):
        return None
    return lambda rows: Shadowing(trainer, task, laid_out(data, rows), seed, kept, said)


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
