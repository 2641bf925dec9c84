"""Shadow models: the same trainer on random halves of the candidates, for membership attacks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from privtrain.attacks.membership import wide_loss
from privtrain.core.abilities import Adapting, Finished, TrainsMany, Twinned
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.parameters import check_no_autocast, initial_model
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.result import Predictor
from privtrain.core.runtime import Draws, Runtimes
from privtrain.core.seeding import SEEDED, OnceOnly, SeededEntropy, Seeds
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import COLUMNS, ROWS, FederatedData, Rows, Task, binary_cross_entropy
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_count, check_follows
from privtrain.report.progress import Report, progress_bar, silent
from privtrain.runs.checks import check_data, check_device, check_kinds, check_plans
from privtrain.runs.fitting import default_runtimes, fit
from privtrain.runs.measuring import outputs_of
from privtrain.runs.roots import noise_root

_MEMORY, _MOST = 2**28, 8
"""Bytes of weights, gradients and optimizers of the models that are trained at the same time; and
their most, after which progress is shown."""

_COPIES = 6
"""What a model takes beside its weights: where it lies twice, a gradient, an optimizer's numbers,
and the model that is asked."""

_ASKED = 1_024
"""Rows that a model is asked about at a time."""

Floats = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Marks = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """What shadow models say of each candidate. Private: it is computed from all candidates.

    Args:
        losses: The task's loss of each model on each candidate, float64, `(models, candidates)`.
        log_probabilities: Log of the probability of the true class, of the same shape; None where
            the task is no classification by logits.
        included: Whether a model was trained on a candidate. Models 2k and 2k+1 are trained on
            complementary halves, so that each candidate is in exactly half of the models.
        notes: How the models were trained, and on whose rows.
    """

    losses: Floats
    log_probabilities: Floats | None
    included: Marks
    notes: tuple[str, ...]


def complementary_halves(parts: Sequence[int], count: int, seed: int) -> Tensor:
    """A design in which each row is in exactly half of the models.

    Args:
        parts: How many rows each party has; half of each party's rows are in a model. Of an odd
            number a coin says which model of a pair has the row more.
        count: How many models; even.
        seed: Public seed of the design.

    Returns:
        Whether a model is trained on a row, boolean, shape `(count, rows)`. Model 2k+1 has the
        rows that model 2k has not.

    Raises:
        ValueError: If `count` is odd or not positive.
    """
    check_count(2, count=count)
    if count % 2:
        raise ValueError(f"Expected count={count} to be even: shadow models come in pairs.")
    included = torch.zeros(count, sum(parts), dtype=torch.bool)
    for pair in range(count // 2):
        draw, start = Seeds(seed)["shadow halves", pair, ""].torch(), 0
        for rows in parts:
            more = int(torch.randint(2, (), generator=draw)) * (rows % 2)
            chosen = torch.randperm(rows, generator=draw)[: rows // 2 + more]
            included[2 * pair, start + chosen] = True
            start += rows
        included[2 * pair + 1] = ~included[2 * pair]
    return included


@kept_settings()
@recorded_gradients()
def shadows(
    trainer: Trainer,
    task: Task,
    candidates: FederatedData,
    *,
    count: int,
    seed: int = 0,
    runtimes: Runtimes | None = None,
    device: str = "cpu",
    progress: Report | None = None,
) -> Shadows:
    """Trains models with the same trainer on random halves of the candidates.

    Each is the model that `fit` trains on these rows, with seeded entropy. Where the trainer can,
    they are trained at the same time. No ledger is charged: nothing of them is published. Of a
    trainer that computes under cryptography its plaintext twin is trained.

    Args:
        trainer: The trainer that is attacked.
        task: What is learned.
        candidates: In `train`, all candidates, at the parties that hold or would hold them; in
            everything else, such as `public_rows`, the data of the attacked run.
        count: How many models; even.
        seed: Public seed of the design and of the models.
        runtimes: Where parties run; None for this process, and real processes for a mesh.
        device: Where tensors are computed.
        progress: Called as `progress(done, total)`; None shows a bar on a terminal.

    Returns:
        What the models say of each candidate, in the order of `candidates.pooled()`.

    Raises:
        ValueError: If `count` is odd or not positive.
        DataError: If a half cannot be trained on, as where a party has a single row.
        UnsupportedError: If the model was trained elsewhere.
    """
    check_kinds(task, candidates, runtimes=runtimes, progress=progress)
    check_follows(Trainer, "pt.SGD()", trainer=trainer)
    check_no_autocast()
    check_device(device)
    check_data(candidates)
    if isinstance(trainer, Finished):
        raise UnsupportedError(
            "A model that was trained elsewhere has no shadow models: nobody knows how to train "
            "another one. Use an attack without shadows."
        )
    notes = ["shadow models were trained on the candidates, members among them; nothing is charged"]
    if isinstance(trainer, Twinned):
        trainer = trainer.plaintext_twin()
        notes.append("shadow models are those of the trainer's plaintext twin")
    parts = [len(candidates.train[name]) for name in candidates.parties]
    included = complementary_halves(parts if candidates.split is ROWS else parts[:1], count, seed)
    where = runtimes or default_runtimes()
    design = _Design(trainer, task, candidates, included, seed, where, device)
    rows = candidates.pooled()
    losses, logs = list[Tensor](), list[Tensor | None]()
    with progress_bar("shadow models") as bar:
        shown = progress or bar
        for predictor in design.predictors(shown, notes):
            loss, log = values_of(predictor, task, rows)
            losses.append(loss)
            logs.append(log)
    told = [log for log in logs if log is not None]
    return Shadows(
        losses=torch.stack(losses).numpy(),
        log_probabilities=torch.stack(told).numpy() if len(told) == count else None,
        included=included.numpy(),
        notes=tuple(notes),
    )


def values_of(predictor: Predictor, task: Task, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """What a model says of rows with targets.

    Args:
        predictor: The model.
        task: Whose loss is taken.
        rows: Rows with targets.

    Returns:
        Losses and log probabilities of the true classes, float64, `(rows,)`; None for the second
        where outputs are no logits of the targets' classes.
    """
    parts = torch.split(torch.arange(len(rows)), _ASKED)
    found = torch.cat([outputs_of(predictor, rows.take(part)).cpu() for part in parts])
    targets = rows.labels.cpu()
    # A copy: a loss may write into its targets.
    losses = wide_loss(task, found, targets.clone()).double()
    outputs, whole = found.double(), not targets.is_floating_point()
    if task.loss is binary_cross_entropy:
        return losses, -losses
    if not whole or targets.dim() != 1 or outputs.dim() != 2 or outputs.shape[1] < 2:
        return losses, None
    logs = torch.log_softmax(outputs, dim=1)
    return losses, logs.gather(1, targets.long().unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class _Design:
    """Which models are trained, on which rows, from which streams."""

    trainer: Trainer
    task: Task
    candidates: FederatedData
    included: Tensor
    seed: int
    where: Runtimes
    device: str

    def predictors(self, progress: Report, notes: list[str]) -> Iterator[Predictor]:
        """The models in their order; one note more where they are trained one by one."""
        count, done = len(self.included), 0
        if isinstance(self.trainer, TrainsMany) and not isinstance(self.trainer, Adapting):
            try:
                for made in self._together(self.trainer):
                    yield from made
                    done += len(made)
                    progress(done, count)
            except DataError:
                raise
            except OWN_ERRORS as error:  # a module may be none that `torch.func` takes
                notes.append(f"shadow models were trained one by one: {text_of(error)}")
        for number in range(done, count):
            yield self._alone(number)
            progress(number + 1, count)

    def _together(self, trainer: TrainsMany) -> Iterator[Sequence[Predictor]]:
        first = self._half(0)
        plans = self.trainer.plan(first, self.where)
        promises = check_plans(plans, first, self._delta)
        draws = [self._draws(number, promises=promises) for number in range(len(self.included))]
        size = sum(p.numel() * p.element_size() for p in self._model(0).parameters())
        chunk = max(1, min(_MOST, _MEMORY // (_COPIES * max(1, size))))
        for start in range(0, len(draws), chunk):
            part = slice(start, start + chunk)
            yield trainer.train_many(self.task, self.candidates, self.included[part], draws[part])

    def _alone(self, number: int) -> Predictor:
        return fit(
            self.trainer,
            self.task,
            self._half(number),
            runtimes=self.where,
            delta=self._delta,
            seed=self._seed(number),
            entropy=SEEDED,
            device=self.device,
            progress=silent,
        ).predictor

    @property
    def _delta(self) -> float:
        """Of `fit`, by which it decides whether anything is promised; never refused."""
        units = (self.candidates.public_rows or 1, len(self.candidates.parties))
        return min(1e-5, 0.5 / max(*units, self.included.shape[1]))

    def _seed(self, number: int) -> int:
        return int.from_bytes(Seeds(self.seed)["shadow model", number, ""].key[:8], "little")

    def _model(self, number: int) -> nn.Module:
        return initial_model(self.task, Seeds(self._seed(number))["initialisation", 0, ""])

    def _draws(self, number: int, *, promises: bool) -> Draws:
        """The streams of `fit` on a half; where nothing is promised, no noise follows from rows."""
        seed, root = self._seed(number), b""
        if promises:
            root = noise_root(self.trainer, self.task, self._half(number), self._model(number))
        entropy = OnceOnly(SeededEntropy(seed, root=root))
        return Draws(Seeds(seed), entropy, 0, CURATOR_NAME, device=self.device)

    def _half(self, number: int) -> FederatedData:
        """The rows of a model, at their parties."""
        marks, train, start = self.included[number], dict[str, Rows](), 0
        for name in self.candidates.parties:
            rows = self.candidates.train[name]
            # Of columns, everybody holds a part of every row.
            own = marks if self.candidates.split is COLUMNS else marks[start : start + len(rows)]
            train[name] = rows.take(own.nonzero().flatten())
            start += len(rows)
        return replace(self.candidates, train=train)
