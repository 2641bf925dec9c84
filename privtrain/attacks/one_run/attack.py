"""The one-run audit: it guesses which canaries were trained on, and bounds epsilon from below.

Steinke, Nasr and Jagielski 2023, Algorithm 1: the coins S and the training run come before (see
`pt.data.with_canaries`), the scores Y are the attack's, the guesses T and the count of right ones
the referee's.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import row_losses
from privtrain.attacks.one_run.bounds import check_confidence, check_guesses
from privtrain.attacks.scores import Scores
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.seeding import Seeds
from privtrain.core.task import Canaries, Rows
from privtrain.core.validate import check_count, check_delta


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """Guesses the coins of canaries from the published predictor's loss on them.

    The canaries with the smallest losses are guessed to be in, as many with the largest to be
    out, and the rest is left open. Of a single run this gives a lower bound on epsilon, per
    example and add/remove, and a test of the whole curve that the run's accountant states.
    Plant canaries with `pt.data.with_canaries` before training.

    Args:
        guesses: The number of guessed coins, half of them "in"; at least 2. Fixed beforehand:
            choosing it by the result makes the figures void.
        delta: Of the lower bound, in (0, 1); compare it with an epsilon at the same delta.
        confidence: Of the bounds and the test, in (0, 1).
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; canaries among its own rows are not guessed.

    Source: Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846); the test of the curve:
        Mahloujifar, Melis and Chaudhuri 2024 (arXiv:2410.22235).
    """

    guesses: int = 100
    delta: float = 1e-5
    confidence: float = 0.95
    batch_size: int = 1_024
    name: str = field(default="one-run audit", init=False)
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.BOUND,
        capability=Capability.CANARIES,
        zero="few canaries: compare the bound with its ceiling, not with the stated epsilon alone",
    )

    @property
    def canaries_needed(self) -> int:
        return self.guesses

    def __post_init__(self) -> None:
        check_count(2, guesses=self.guesses)
        check_count(batch_size=self.batch_size)
        check_delta(self.delta)
        check_confidence(self.confidence)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """Minus the loss of the published predictor; the seed plays no part.

        Raises:
            ValueError: If the view is another observer's, or the loss does not give one value a
                row.
        """
        check_target(target, self.observer)
        # Algorithm 1, the vector of scores Y = (SCORE(x_i, w)).
        losses = row_losses(target.predictor, target.task, candidates, self.batch_size)
        scores: Scores = (-losses).numpy()
        return scores


def right_guesses(scores: Scores, canaries: Canaries, guesses: int, *, seed: int) -> int:
    """The number of right guesses, where the highest scores are guessed "in", the lowest "out".

    Args:
        scores: Larger means "more likely in", shape `(canaries,)`; no NaN.
        canaries: The canaries and their coins.
        guesses: The number of guesses; the larger half of them "in".
        seed: Public seed of the order among equal scores.

    Returns:
        In 0..guesses.

    Raises:
        ValueError: If there are fewer canaries than guesses, or not as many scores as canaries.
    """
    check_guesses(canaries=len(canaries), guesses=guesses, correct=0)
    values = torch.as_tensor(scores, dtype=torch.float64)
    if values.shape != canaries.included.shape or bool(torch.isnan(values).any()):
        raise ValueError(
            f"Expected scores of shape {tuple(values.shape)} to be numbers, one for each of "
            f"{len(canaries)} canaries."
        )
    # Equal scores in random order: the order in which canaries are stored must not tell anything.
    generator = Seeds(seed)["one-run audit/ties", 0, ""].torch()
    shuffled = torch.randperm(len(values), generator=generator)
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    # Algorithm 1: T_i = +1 for the k_+ largest scores and -1 for the k_- smallest; 0, no guess, for
    # the rest.
    said_out = guesses // 2
    inside = canaries.included[order[: guesses - said_out]].sum()
    outside = (~canaries.included[order[len(order) - said_out :]]).sum()
    return int(inside + outside)
