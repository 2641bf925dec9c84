"""Label-only membership inference: how far does a row lie from where the model says otherwise?

Of what a predictor answers the class alone is read: `Labels` lets nothing else through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import classes_of
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring.signals import robustness_scores
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Predictor, Target
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_member, check_positive

_STEPS = 8
"""Halvings of the first line to another class; the distance is known to 2^-8 of its length."""

_FEWER_STEPS = 6
"""Halvings of each later line."""

_ROUNDS = 4
"""How often a boundary's direction is estimated at most."""

_ROUND = 20
"""Queries that one estimate takes at least, with the bisection along it."""

_RADIUS = 0.1
"""How far around a point of the boundary is asked, as a part of its distance."""

_COMPARED = 2**24
"""Distances between rows that are held at a time: 64 MB in float32."""


class Method(StrEnum):
    """How the distance to another class is measured."""

    NOISE = "noise"
    BOUNDARY = "boundary"


@dataclass(frozen=True, kw_only=True)
class LabelOnly:
    """A membership attack that reads no more of an answer than its class.

    A row whose class is answered wrongly gets a lower score than all others. Among those answered
    rightly members lie further from other classes. Distances are in standard deviations of each
    column among the candidates; a column that is constant stays as it is.

    Args:
        method: "noise": how many noisy copies keep the class. "boundary": the distance to the
            nearest point of another class that was found, starting towards the nearest candidate
            of another answer and turning with estimates of the boundary's direction.
        queries: How many rows are asked for each candidate at most, itself among them. At least 2.
        scale: Standard deviation of the noise, in those of the columns; positive. It is no part of
            "boundary".
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own rows are no candidates.

    Source: Choquette-Choo et al. 2021, sections 3 and 4 (arXiv:2007.14321); boundary: Li and Zhang
        2021 (arXiv:2007.15528), with directions as HopSkipJump estimates them (Chen, Jordan and
        Wainwright 2020, equation 16, arXiv:1904.02144).
    """

    method: str = Method.NOISE.value
    queries: int = 100
    scale: float = 0.5
    limit: int = 1_000
    batch_size: int = 1_024
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.LABELS,
        zero="few queries, or noise that changes hardly any class or nearly all of them",
    )

    def __post_init__(self) -> None:
        check_member([*Method], method=self.method)
        check_count(2, queries=self.queries)
        check_positive(scale=self.scale)
        check_count(limit=self.limit, batch_size=self.batch_size)

    @property
    def name(self) -> str:
        return f"label-only {self.method}"

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """How robust the right class of each candidate is.

        Args:
            target: Whose predictor is asked.
            candidates: Rows with classes as targets.
            seed: Of the noise and of the directions that are tried, the same for all candidates.

        Returns:
            Shape `(candidates,)`. Of rows answered rightly: the fraction of copies that keep the
            class, or the distance, infinite where no other class was found; below 0 for others.

        Raises:
            ValueError: If the view is another observer's.
            NotApplicableError: If there are no classes, or inputs are whole numbers.
        """
        check_target(target, self.observer)
        truth = classes_of(candidates)
        inputs = candidates.inputs.detach()
        if not inputs.is_floating_point():
            raise NotApplicableError(
                f"Expected inputs of type {inputs.dtype} to be real numbers: noise on numbers that "
                "a model looks up means nothing. Use LossThreshold.",
                Reason.NO_REAL_INPUTS,
            )
        ask = Labels(target.predictor, int(truth.max()) + 1, self.batch_size)
        # The same draws for every candidate: a score does not follow from its place.
        draws = Seeds(seed)["label-only", 0, ""].torch()
        if self.method == Method.NOISE:
            return _kept(ask, inputs, truth, self.queries, self.scale, draws)
        return _distances(ask, inputs, truth, self.queries, draws)


@dataclass(frozen=True)
class Labels:
    """A predictor of which nothing but the answered class is read.

    Args:
        predictor: What answers.
        classes: How many classes there are at least.
        batch_size: The number of rows in one call of the predictor.
    """

    predictor: Predictor
    classes: int
    batch_size: int

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """The class of each row, shape `(rows,)`, int64, on the CPU; -1 of what is no number.

        Raises:
            NotApplicableError: If the outputs are no logits of classes.
        """
        stream = Seeds(0)["label-only/answers", 0, ""]
        answers = []
        for part in torch.split(inputs, self.batch_size):
            # What a model draws must not move the generators of other threads.
            with global_generator(stream):
                outputs = self.predictor(part).detach().cpu()
            answers.append(self._answered(outputs))
        return torch.cat(answers)

    def _answered(self, outputs: Tensor) -> Tensor:
        single = outputs.numel() == len(outputs)
        if single and self.classes <= 2:
            flat = outputs.reshape(-1)
            return (flat > 0).long().masked_fill(flat.isnan(), -1)
        if single or outputs.ndim != 2:
            raise NotApplicableError(
                f"Expected outputs of shape {tuple(outputs.shape)} to be logits of "
                f"{self.classes} classes, of which the largest is read. Use LossThreshold.",
                Reason.NO_CLASSES,
            )
        return outputs.argmax(dim=1).masked_fill(outputs.isnan().any(dim=1), -1)


def _deviations(inputs: Tensor) -> Tensor:
    """The standard deviation of each column among the candidates, `(1, ...)`; 0 of a single row."""
    return inputs.double().std(dim=0, correction=0, keepdim=True)


def _noise(count: int, like: Tensor, draws: torch.Generator) -> Iterator[Tensor]:
    """Standard normal rows, each of the shape of one of these, in float64."""
    for _ in range(count):
        yield torch.randn(like.shape[1:], generator=draws, dtype=torch.float64).to(like.device)


def _kept(
    ask: Labels,
    inputs: Tensor,
    truth: Tensor,
    queries: int,
    scale: float,
    draws: torch.Generator,
) -> Scores:
    """Choquette-Choo et al. 2021, robustness to random noise; less 1 for rows answered wrongly."""
    step = scale * _deviations(inputs)
    copies = [ask(inputs) == truth]
    for noise in _noise(queries - 1, inputs, draws):
        copies.append(ask((inputs + step * noise).to(inputs.dtype)) == truth)
    agreement = torch.stack(copies).numpy()
    scores: Scores = robustness_scores(agreement) - ~agreement[0]
    return scores


def _distances(
    ask: Labels, inputs: Tensor, truth: Tensor, queries: int, draws: torch.Generator
) -> Scores:
    """The distance to the nearest point found of another class, -1 for rows answered wrongly."""
    answers = ask(inputs)
    scores = torch.full((len(inputs),), -1.0, dtype=torch.float64)
    scores[answers == truth] = torch.inf
    unit = _deviations(inputs)
    # In units of the columns; a constant column stays at 0, and is never moved.
    scaled = torch.where(unit > 0, inputs / unit, 0.0).flatten(1)
    nearest = _nearest(scaled, answers, truth)
    chosen = ((answers == truth) & (nearest >= 0)).nonzero().flatten()
    if len(chosen):
        rays = _Rays(ask, inputs[chosen], unit, truth[chosen])
        toward = scaled[nearest[chosen]] - scaled[chosen]
        scores[chosen] = _shortest(rays, toward, queries - 1, draws).cpu()
    return scores.numpy()


def _nearest(scaled: Tensor, answers: Tensor, truth: Tensor) -> Tensor:
    """Of each row, the number of the nearest one with another answer than its class; -1 of none."""
    said, true, found = answers.to(scaled.device), truth.to(scaled.device), []
    for part in torch.split(torch.arange(len(scaled)), max(1, _COMPARED // len(scaled))):
        apart = torch.cdist(scaled[part], scaled)
        apart.masked_fill_(said[None] == true[part, None], torch.inf)
        least, number = apart.min(dim=1)
        found.append(number.masked_fill(least.isinf(), -1))
    return torch.cat(found).to(answers.device)


@dataclass(frozen=True)
class _Rays:
    """Rays that lead away from rows, and whether a point on them has another class.

    Args:
        ask: Answers classes.
        start: The rows, `(rows, ...)`.
        unit: The unit of each column, `(1, ...)`.
        truth: Their classes, `(rows,)`.
    """

    ask: Labels
    start: Tensor
    unit: Tensor
    truth: Tensor

    def outside(self, moved: Tensor) -> Tensor:
        """Whether rows moved by so much, `(rows, values)`, are answered otherwise: one query."""
        points = self.start + self.unit * moved.view_as(self.start)
        other = self.ask(points.to(self.start.dtype)) != self.truth
        return other.to(moved.device)

    def bisected(self, direction: Tensor, far: Tensor, steps: int) -> Tensor:
        """A distance along unit vectors with another class; `far` where none is found."""
        near = torch.zeros_like(far)
        for _ in range(steps):
            middle = (near + far) / 2
            other = self.outside(middle[:, None] * direction)
            near, far = torch.where(other, near, middle), torch.where(other, middle, far)
        return far


def _shortest(rays: _Rays, toward: Tensor, queries: int, draws: torch.Generator) -> Tensor:
    """The shortest distances found by at most so many queries a row, `(rows,)`.

    Args:
        rays: From the rows.
        toward: To a point of another class, `(rows, values)`.
        queries: How many rows may be asked for each.
        draws: Of the directions around a point of the boundary.
    """
    far = toward.norm(dim=1)
    direction = toward / far[:, None]
    steps = min(_STEPS, queries)
    far, left = rays.bisected(direction, far, steps), queries - steps
    for rounds in range(min(_ROUNDS, left // _ROUND), 0, -1):
        probes = left // rounds - _FEWER_STEPS
        left -= probes + _FEWER_STEPS
        # Where the boundary is flat, the line along its normal is the shortest.
        turned = direction + _outward(rays, direction, far, probes, draws)
        turned = torch.nn.functional.normalize(turned)
        shorter = rays.bisected(turned, far, _FEWER_STEPS)
        direction = torch.where((shorter < far)[:, None], turned, direction)
        far = shorter
    return far


def _outward(
    rays: _Rays, direction: Tensor, far: Tensor, probes: int, draws: torch.Generator
) -> Tensor:
    """The direction in which the boundary is left, unit vectors; Chen et al. 2020, equation 16."""
    boundary, said, tried = far[:, None] * direction, [], []
    for noise in _noise(probes, rays.start, draws):
        # A column that is never moved takes no part in a direction.
        around = torch.nn.functional.normalize((noise * (rays.unit[0] > 0)).flatten(), dim=0)
        said.append(rays.outside(boundary + _RADIUS * far[:, None] * around).double())
        tried.append(around)
    signs = torch.stack(said, dim=1)
    return torch.nn.functional.normalize(
        (signs - signs.mean(dim=1, keepdim=True)) @ torch.stack(tried)
    )
