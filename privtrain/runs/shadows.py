"""Shadow models: the same trainer on random halves of the candidates, for membership attacks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from privtrain.attacks.membership import wide_loss
from privtrain.core.abilities import Adapting, Finished, Summing, TrainsMany, Twinned
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.failures import OWN_ERRORS, text_of
from privtrain.core.parameters import check_no_autocast, initial_model
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.result import Predictor
from privtrain.core.runtime import Draws, Runtimes
from privtrain.core.seeding import SEEDED, OnceOnly, SeededEntropy, Seeds
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import (
    COLUMNS,
    ROWS,
    FederatedData,
    Rows,
    Task,
    binary_cross_entropy,
    cross_entropy,
)
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_count, check_follows
from privtrain.report.progress import Report, progress_bar, silent
from privtrain.runs.answers import AnswerFiles, Answers
from privtrain.runs.checkpoint import Identity
from privtrain.runs.checks import check_data, check_device, check_kinds, check_plans
from privtrain.runs.fitting import default_runtimes, fit
from privtrain.runs.marks import environment_of, identity_of
from privtrain.runs.measuring import outputs_of
from privtrain.runs.roots import noise_root
from privtrain.runs.workers import in_processes, pickled

_MEMORY, _MOST = 2**28, 8
"""Bytes of weights, gradients and optimizers of the models that are trained at the same time; and
their most, which are finished at the same time."""

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
    folder: str | Path | None = None,
    workers: int = 1,
    progress: Report | None = None,
) -> Shadows:
    """Trains models with the same trainer on random halves of the candidates.

    Each is the model that `fit` trains on these rows, with seeded entropy. Where the trainer can,
    up to eight are trained at the same time; fewer, where six times their weights or four times
    the inputs of their batches take more than 256 MiB. They are asked about 1,024 rows at a time.
    No ledger is charged: nothing of them is published. Of a trainer that computes under
    cryptography its plaintext twin is trained.

    Args:
        trainer: The trainer that is attacked.
        task: What is learned.
        candidates: In `train`, all candidates, at the parties that hold or would hold them; in
            everything else, such as `public_rows`, the data of the attacked run.
        count: How many models; even.
        seed: Public seed of the design and of the models.
        runtimes: Where parties run; None for this process, and real processes for a mesh.
        device: Where tensors are computed.
        folder: Where it is kept what each finished model says, so that a call that was interrupted,
            or asks for more models, goes on from there, to the same bits. Models of other trainers,
            candidates, seeds or versions lie beside them in folders of their own. Private: never
            publish it. None keeps nothing.
        workers: Processes that train what cannot be trained at the same time: to the bits of one
            process whose torch has one thread.
        progress: Called as `progress(done, total)`, in models; None shows a bar on a terminal.

    Returns:
        What the models say of each candidate, in the order of `candidates.pooled()`.

    Raises:
        ValueError: If `count` is odd or not positive.
        DataError: If a half cannot be trained on, as where a party has a single row, or the folder
            cannot be written.
        NotApplicableError: If the model was trained elsewhere.
        PrivtrainError: If the disk is full or a worker died; what was finished stays in the folder.
    """
    check_kinds(task, candidates, runtimes=runtimes, progress=progress, folder=folder)
    check_follows(Trainer, "pt.SGD()", trainer=trainer)
    check_count(workers=workers)
    check_no_autocast()
    check_device(device)
    check_data(candidates)
    notes = ["shadow models were trained on the candidates, members among them; nothing is charged"]
    trainer = _in_plaintext(trainer, notes)
    parts = [len(candidates.train[name]) for name in candidates.parties]
    included = complementary_halves(parts if candidates.split is ROWS else parts[:1], count, seed)
    where = runtimes or default_runtimes()
    design = Design(trainer, task, candidates, included, seed, where, device)
    # Before the first model: what a trainer holds may change while it works.
    files = AnswerFiles(None) if folder is None else AnswerFiles.of(design.identity, Path(folder))
    made = files.load(range(count))
    wanted = [number for number in range(count) if number not in made]
    with progress_bar("shadow models") as bar:
        for number, answers in design.answers(wanted, workers, progress or bar):
            files.save(number, answers)
            made[number] = answers
    ordered = [made[number] for number in range(count)]
    told = [each.log_probabilities for each in ordered if each.log_probabilities is not None]
    return Shadows(
        losses=np.stack([each.losses for each in ordered]),
        log_probabilities=np.stack(told) if len(told) == count else None,
        included=included.numpy(),
        notes=tuple(dict.fromkeys([*notes, *(note for each in ordered for note in each.notes)])),
    )


def _in_plaintext(trainer: Trainer, notes: list[str]) -> Trainer:
    """What trains the shadow models of a trainer, and a note where it is another one."""
    if isinstance(trainer, Finished):
        raise NotApplicableError(
            "A model that was trained elsewhere has no shadow models: nobody knows how to train "
            "another one. Use an attack without shadows.",
            Reason.NO_SHADOWS,
        )
    if isinstance(trainer, Twinned):
        notes.append("shadow models are those of the trainer's plaintext twin")
        return trainer.plaintext_twin()
    plain = trainer.with_plain_sum() if isinstance(trainer, Summing) else None
    if plain is None:
        return trainer
    notes.append("sums of shadow models are plain: those on shares are equal up to fixed point")
    return plain


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
    losses, logs = list[Tensor](), list[Tensor]()
    # Part by part: what a model says of all rows may be larger than they are.
    for start in range(0, len(rows), _ASKED):
        own = Rows(rows.inputs[start : start + _ASKED], rows.labels[start : start + _ASKED])
        loss, log = _values(outputs_of(predictor, own).cpu(), own.labels.cpu(), task)
        losses.append(loss)
        logs += [] if log is None else [log]
    return torch.cat(losses), torch.cat(logs) if len(logs) == len(losses) else None


def _values(outputs: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, Tensor | None]:
    # A copy: a loss may write into its targets.
    losses = wide_loss(task, outputs, targets.clone()).double()
    if task.loss is binary_cross_entropy:
        return losses, -losses
    whole = not targets.is_floating_point()
    if not whole or targets.dim() != 1 or outputs.dim() != 2 or outputs.shape[1] < 2:
        return losses, None
    if task.loss is cross_entropy:
        return losses, -losses
    logs = torch.log_softmax(outputs.double(), dim=1)
    return losses, logs.gather(1, targets.long().unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Design:
    """Which models are trained, on which rows, from which streams.

    Args:
        trainer: What trains them.
        task: What is learned.
        candidates: All candidates, at their parties; see `shadows`.
        included: Whether a model is trained on a candidate, boolean, `(models, candidates)`.
        seed: Public seed of the models.
        where: Where parties run.
        device: Where tensors are computed.
    """

    trainer: Trainer
    task: Task
    candidates: FederatedData
    included: Tensor
    seed: int
    where: Runtimes
    device: str

    @property
    def identity(self) -> Identity:
        """What identifies the models, whose number is no matter."""
        return identity_of(
            *(self.task, self.candidates, SEEDED),
            trainer=(self.trainer.token, self.trainer),
            seed=self.seed,
            model=self._model(0),
            # Other versions round otherwise.
            environment=sorted(environment_of(self.where, self.device).items()),
        )

    def predictors(self, progress: Report, notes: list[str]) -> Iterator[Predictor]:
        """The models in their order; one note more where they are trained one by one."""
        count, done = len(self.included), 0
        for _, predictor in self._together(range(count), progress, notes):
            yield predictor
            done += 1
        for number in range(done, count):
            yield self._alone(number)
            progress(number + 1, count)

    def answers(
        self, wanted: Sequence[int], workers: int, progress: Report
    ) -> Iterator[tuple[int, Answers]]:
        """What some of the models say of all candidates, as they are finished.

        Args:
            wanted: Their numbers; what is trained together with them comes along.
            workers: Processes that train what cannot be trained at the same time.
            progress: Called as `progress(done, total)`, in models.
        """
        rows, notes, left = self.candidates.joined(), list[str](), list(wanted)
        for number, predictor in self._together(wanted, progress, notes):
            yield number, _answers_of(predictor, self.task, rows)
            left = [other for other in left if other != number]
        done = len(self.included) - len(left)
        for number, answers in self._one_by_one(left, workers, notes):
            yield number, replace(answers, notes=tuple(notes))
            done += 1
            progress(done, len(self.included))

    def _one_by_one(
        self, numbers: Sequence[int], workers: int, notes: list[str]
    ) -> Iterator[tuple[int, Answers]]:
        if min(workers, len(numbers)) > 1:
            try:
                job = pickled(self._answered)
            except Exception as error:  # whatever an object raises that cannot be pickled
                notes.append(f"trained in one process, since pickling failed: {text_of(error)}")
            else:
                yield from in_processes(job, numbers, workers)
                return
        for number in numbers:
            yield number, self._answered(number)

    def _answered(self, number: int) -> Answers:
        return _answers_of(self._alone(number), self.task, self.candidates.joined())

    def _together(
        self, wanted: Sequence[int], progress: Report, notes: list[str]
    ) -> Iterator[tuple[int, Predictor]]:
        """The wanted models with those that are trained at the same time, if any can be."""
        trainer = self.trainer
        if not isinstance(trainer, TrainsMany) or isinstance(trainer, Adapting) or not wanted:
            return
        try:
            for chunk in self._chunks():
                if set(wanted).isdisjoint(chunk):
                    continue
                part = slice(chunk.start, chunk.stop)
                shown = _within(chunk, len(self.included), progress)
                made = trainer.train_many(
                    *(self.task, self.candidates, self.included[part], self._draws(chunk), shown)
                )
                yield from zip(chunk, made, strict=True)
                progress(chunk.stop, len(self.included))
        except DataError:
            raise
        except OWN_ERRORS as error:  # a module may be none that `torch.func` takes
            notes.append(f"shadow models were trained one by one: {text_of(error)}")

    def _chunks(self) -> Iterator[range]:
        """The numbers of models that are trained at the same time, whichever are wanted."""
        count = len(self.included)
        size = sum(p.numel() * p.element_size() for p in self._model(0).parameters())
        chunk = max(1, min(_MOST, _MEMORY // (_COPIES * max(1, size))))
        for start in range(0, count, chunk):
            yield range(start, min(start + chunk, count))

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

    @cached_property
    def _promises(self) -> bool:
        first = self._half(0)
        return check_plans(self.trainer.plan(first, self.where), first, self._delta)

    @property
    def _delta(self) -> float:
        """Of `fit`, by which it decides whether anything is promised; never refused."""
        units = (self.candidates.public_rows or 1, len(self.candidates.parties))
        return min(1e-5, 0.5 / max(*units, self.included.shape[1]))

    def _seed(self, number: int) -> int:
        return int.from_bytes(Seeds(self.seed)["shadow model", number, ""].key[:8], "little")

    def _model(self, number: int) -> nn.Module:
        return initial_model(self.task, Seeds(self._seed(number))["initialisation", 0, ""])

    def _draws(self, numbers: Iterable[int]) -> list[Draws]:
        """The streams of `fit` on halves; where nothing is promised, no noise follows from rows."""
        made = []
        for number in numbers:
            seed, root = self._seed(number), b""
            if self._promises:
                half, model = self._half(number), self._model(number)
                root = noise_root(self.trainer, self.task, half, model)
            entropy = OnceOnly(SeededEntropy(seed, root=root))
            made.append(Draws(Seeds(seed), entropy, 0, CURATOR_NAME, device=self.device))
        return made

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


def _answers_of(predictor: Predictor, task: Task, rows: Rows) -> Answers:
    losses, logs = values_of(predictor, task, rows)
    return Answers(losses.numpy(), None if logs is None else logs.numpy())


def _within(chunk: range, count: int, progress: Report) -> Report:
    """Steps of models that are trained at the same time, told as if one followed the other."""
    told = 0

    def shown(done: int, total: int) -> None:
        nonlocal told
        models = len(chunk) * done // total
        if told < models < len(chunk):
            told = models
            progress(chunk.start + models, count)

    return shown
