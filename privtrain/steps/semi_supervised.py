"""How a student learns from a few answers and from many public rows without one.

Answers are spread over a graph of the nearest neighbours of all public rows; a network learns what
was spread, from images that are moved a little; then it learns once more, from its own labels.
Every step reads public rows and released answers alone, so that nothing here costs any privacy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.fields import told
from privtrain.core.parameters import (
    STEPPED,
    ModelPredictor,
    check_types,
    load_state,
    state_of,
    trainable,
)
from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Loss, Rows, Task
from privtrain.core.validate import check_count, check_is, check_positive
from privtrain.data.coins import digests
from privtrain.sampling.passes import batches
from privtrain.steps.augmentation import Affine
from privtrain.steps.consistency import Consistency
from privtrain.steps.features import Features
from privtrain.steps.optimizers import (
    OptimizerFactory,
    check_factory,
    descend,
    make_optimizer,
    try_optimizer,
)
from privtrain.steps.plain import normalises_batches
from privtrain.steps.representatives import representatives
from privtrain.steps.spreading import (
    compressed,
    neighbour_graph,
    regressed,
    shrunk_shares,
    spread,
    with_masses,
)
from privtrain.steps.student import PublicInputs, by_chance

WIDTH = 128
"""In how many directions public rows are compared."""

_REGRESSIONS = 2
"""How often labels are regressed: on what was spread, and once more on what came out."""

_AT_ONCE = 1024
"""How many rows the network is asked about at once."""


@dataclass(frozen=True)
class _Lesson:
    """What a network learns.

    Args:
        inputs: All public rows, shape `(rows, ...)`.
        labels: A class of each, shape `(rows,)`.
        weights: How sure that is, shape `(rows,)`, from 0 to 1.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class SemiSupervised:
    """A student that learns from all public rows, asked about or not.

    Answers are spread over the graph of the nearest neighbours of all public rows (Zhou et al.
    2003); the task's model learns the class that reached each row most, and after that, in each
    round, from the start what it says itself, averaged with what reached the row. No true label of
    a public row is ever read.

    Args:
        typical: Whether it asks about the middles of clusters of public rows, large clusters first,
            whose answers say most about others; else about rows drawn by chance.
        neighbours: To how many others each row is joined in the graph.
        alpha: Which part of what a row is told comes from its neighbours, in (0, 1).
        ridge: Penalty of a ridge regression of what was spread on the features of all public rows,
            in mean squared lengths of their rows, whose scores the model learns in place of what
            was spread; None for none. It helps where classes are nearly linear in the features.
        rounds: How often the model learns from its own labels.
        steps: Steps of each training of the model.
        batch_size: Rows in a step.
        learning_rate: Learning rate of the first step; it falls to zero along a cosine.
        optimizer: Name of a class in `torch.optim`, or a factory.
        augmentation: How images are moved; None for not at all. Of other inputs than images of
            shape `(rows, channels, height, width)` nothing is moved, unless it says its `sides`.
        consistency: Further steps of FixMatch's kind, which want a GPU; None for none.
        validation: Fraction of the answers that are not learned. How many of them the student
            gives is noted, and it is the one of the round that gives most of them.

    Source: Zhou et al. 2003, Learning with local and global consistency; Zhu et al. 2003 for the
        masses of classes; Lee 2013 and Iscen et al. 2019 (arXiv:1904.04717) for own labels.
    """

    typical: bool = True
    neighbours: int = 5
    alpha: float = 0.95
    ridge: float | None = None
    rounds: int = 1
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 0.003
    optimizer: str | OptimizerFactory = "Adam"
    augmentation: Affine | None = Affine()
    consistency: Consistency | None = None
    validation: float = 0.0

    def __post_init__(self) -> None:
        check_count(neighbours=self.neighbours, steps=self.steps, batch_size=self.batch_size)
        check_count(0, rounds=self.rounds)
        check_positive(learning_rate=self.learning_rate)
        if self.ridge is not None:
            check_positive(ridge=self.ridge)
        if not 0 < self.alpha < 1:
            raise ValueError(f"Expected alpha={self.alpha} to be in (0, 1).")
        if not 0 <= self.validation < 1:
            raise ValueError(f"Expected validation={self.validation} to be in [0, 1).")
        check_factory(self.optimizer)
        if self.augmentation is not None:
            check_is(Affine, "Affine(shift=0.08)", augmentation=self.augmentation)
        if self.consistency is not None:
            check_is(Consistency, "Consistency(threshold=0.95)", consistency=self.consistency)

    def __repr__(self) -> str:
        return told(self)

    @property
    def reads_features(self) -> bool:
        return False

    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        check_types(model, STEPPED)
        try_optimizer(self.optimizer, trainable(model), self.learning_rate)
        if self.batch_size == 1 and normalises_batches(model.train()):
            raise DataError(
                "Expected batch_size=1 to give batches of two rows at least: the model normalises "
                "by its batch (nn.BatchNorm). Use a larger batch_size."
            )

    def check_public(self, inputs: Tensor, features: Features | None) -> None:
        if features is None and not inputs.is_floating_point():
            raise UnsupportedError(
                f"SemiSupervised compares public rows by their numbers; these are of type "
                f"{inputs.dtype}, which a model looks up, such as tokens: 3 and 4 are no more "
                "alike than 3 and 300. Give PATE(features=...), a map to quantities, or "
                "student=PlainSteps(...)."
            )
        if self.augmentation is not None:
            self.augmentation.check(inputs)
        if self.consistency is not None and not self._moves(inputs):
            raise UnsupportedError(
                f"Expected consistency={self.consistency!r} with images that augmentation= moves; "
                f"these inputs have shape {('rows', *inputs.shape[1:])}. Give Affine(sides=...) "
                "where pixels are one row of numbers, or leave consistency= out."
            )

    def wanted(self, queries: int) -> int:
        return 12 * queries

    def choose(self, public: PublicInputs, queries: int, seeds: Seeds) -> Tensor:
        if not self.typical or queries >= len(public):
            return by_chance(len(public), queries, seeds)
        drawn = torch.randint(2**31, (), generator=seeds["queries", 0, ""].torch())
        return representatives(_compared(public, seeds), queries, int(drawn))

    def learn(
        self, model: nn.Module, task: Task, answered: Rows, public: PublicInputs, draws: Draws
    ) -> Seen:
        # Layers such as dropout draw from torch's global generator only.
        with global_generator(draws.seeds["dropout", draws.round, draws.name]):
            return self._learn(model, task, answered, public, draws)

    def _learn(
        self, model: nn.Module, task: Task, answered: Rows, public: PublicInputs, draws: Draws
    ) -> Seen:
        inputs = public.inputs.to(draws.device)
        answers = _as_shares(answered.labels, _scores(model, inputs[:1]).shape[1])
        places = _places(answered.inputs, public.inputs)
        kept, held = self._apart(len(answers), draws)
        shares = shrunk_shares(answers[kept])
        likely = with_masses(self._spread(answers[kept], places[kept], public, draws), shares)
        for _ in range(0 if self.ridge is None else _REGRESSIONS):
            likely = with_masses(regressed(_unit(public), likely, self.ridge or 0.0), shares)
        reached = likely
        start = {name: value.clone() for name, value in state_of(model).items()}
        best, notes, loss = (-1, start), _of_one_class(likely), math.nan
        for number in range(self.rounds + 1):
            load_state(model, start)
            sure, labels = likely.max(dim=1)
            lesson = _Lesson(inputs, labels.to(draws.device), sure.float().to(draws.device))
            loss = self._train(model, task, lesson, draws, number)
            scores = _scores(model, inputs).double().cpu()
            if len(held):
                said = scores[places[held]].argmax(dim=1)
                right = int((said == answers[held].argmax(dim=1)).sum())
                notes.append(
                    f"after round {number} of its own labels the student gives {right} of "
                    f"{len(held)} answers that it did not learn"
                )
                if right >= best[0]:
                    best = (right, {name: value.clone() for name, value in state_of(model).items()})
            # Own labels are what the model and the graph say together: where one of them errs, the
            # other one need not. Classes are as common as the answers say.
            likely = with_masses((torch.softmax(scores, dim=1) + reached) / 2, shares)
        if len(held):
            load_state(model, best[1])
        return Seen(numbers={"training_loss": loss}, notes=tuple(notes))

    def _apart(self, answers: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which answers are learned, and which are kept for validation; one is learned at least."""
        held = min(int(self.validation * answers), answers - 1)
        generator = draws.seeds["validation", draws.round, draws.name].torch()
        order = torch.randperm(answers, generator=generator)
        return order[held:].sort().values, order[:held].sort().values

    def _spread(
        self, answers: Tensor, places: Tensor, public: PublicInputs, draws: Draws
    ) -> Tensor:
        """How much of each class reaches each public row, `(rows, classes)`."""
        known = answers.new_zeros(len(public), answers.shape[1])
        # Rows that are equal were answered as one row, perhaps with different answers.
        known.index_add_(0, places, answers)
        graph = neighbour_graph(_compared(public, draws.seeds), self.neighbours)
        return spread(graph, known, self.alpha)

    def _moves(self, inputs: Tensor) -> bool:
        return self.augmentation is not None and self.augmentation.moves(inputs)

    def _train(
        self, model: nn.Module, task: Task, lesson: _Lesson, draws: Draws, number: int
    ) -> float:
        """Trains the model on a lesson; its mean loss."""
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate)
        first = [group["lr"] for group in optimizer.param_groups]
        moves = draws.seeds[f"moves {number}", draws.round, draws.name].torch()
        moved = self._moves(lesson.inputs)
        total = torch.zeros((), device=draws.device)
        model.train()
        for step, index in enumerate(self._batches(len(lesson.inputs), model, draws, number)):
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            inputs, labels = lesson.inputs[index], lesson.labels[index]
            weights = lesson.weights[index]
            if moved and self.augmentation is not None:
                inputs = self.augmentation(inputs, moves)
                if self.consistency is not None:
                    more = self.consistency.more(
                        model, lesson.inputs, len(index), self.augmentation, moves
                    )
                    inputs, labels, weights = more.beside(inputs, labels, weights)
            total += descend(model, optimizer, _Weighted(task.loss, weights), inputs, labels)
        return float(total) / self.steps

    def _batches(self, rows: int, model: nn.Module, draws: Draws, number: int) -> Iterator[Tensor]:
        """Indices of as many batches as there are steps, pass after pass over all rows."""
        order = draws.seeds[f"order {number}", draws.round, draws.name].torch()
        alone = not normalises_batches(model.train())
        epochs = math.ceil(self.steps * min(self.batch_size, rows) / rows) + 1
        every = batches(rows, self.batch_size, epochs, order, alone=alone)
        for _, index in zip(range(self.steps), every, strict=False):
            yield torch.arange(rows) if index is None else index


def _of_one_class(likely: Tensor) -> list[str]:
    """What is said where nothing but one class is left to learn."""
    if len(set(likely.argmax(dim=1).tolist())) > 1:
        return []
    return ["every public row got the label of one class: the student learns no other"]


@dataclass(frozen=True)
class _Weighted:
    """A loss of which each row counts as much as it is sure."""

    loss: Loss
    weights: Tensor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets) * self.weights


_ONE_WAY = 0.9
"""Length of the mean of unit rows above which all point one way, so that cosines say little."""


def _unit(public: PublicInputs) -> Tensor:
    """The features of all public rows, each row of length one, shape `(rows, features)`."""
    values = public.mapped.flatten(1)
    if not bool(torch.isfinite(values).all()):
        raise DataError("Expected public rows to be finite numbers, so that they can be compared.")
    rows = nn.functional.normalize(values.float(), dim=1)
    if float(rows.mean(dim=0).norm()) <= _ONE_WAY:
        return rows
    # Columns of a table, as often as not: each from its own middle, in its own deviations.
    centred = values.double() - values.double().mean(dim=0)
    deviation = centred.square().mean(dim=0).sqrt()
    return nn.functional.normalize(centred / deviation.clamp(min=1e-12), dim=1).float()


def _compared(public: PublicInputs, seeds: Seeds) -> Tensor:
    """What tells how alike public rows are, shape `(rows, width)`."""
    return compressed(_unit(public), WIDTH, seeds["directions", 0, ""].torch())


def _as_shares(answers: Tensor, classes: int) -> Tensor:
    """Answers as probabilities of the classes, shape `(rows, classes)`, float64, on the CPU."""
    if answers.dim() > 1:
        return answers.double().cpu()
    return nn.functional.one_hot(answers.long().cpu(), classes).double()


def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the model says of rows, shape `(rows, classes)`; it is in evaluation mode behind."""
    predict = ModelPredictor(model)
    return torch.cat([predict(part) for part in torch.split(inputs, _AT_ONCE)])


def _places(answered: Tensor, public: Tensor) -> Tensor:
    """Where answered rows stand among the public ones: the first of equal ones, shape `(rows,)`."""
    first: dict[bytes, int] = {}
    for place, digest in enumerate(digests(Rows(public.cpu()), "privtrain/places")):
        first.setdefault(digest, place)
    answered = answered.cpu()
    return torch.tensor([first[each] for each in digests(Rows(answered), "privtrain/places")])
