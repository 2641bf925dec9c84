"""The one-run audit: it guesses which canaries were trained on, and bounds epsilon from below.

Steinke, Nasr and Jagielski 2023, Algorithm 1: the coins S and the training run come before (see
`pt.data.with_canaries`), the scores Y, the guesses T and the count of right ones are computed here.
"""

import math
from dataclasses import dataclass, field

import torch

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import row_losses, to_scores
from privtrain.attacks.one_run import f_dp
from privtrain.attacks.one_run.bounds import (
    ceiling,
    check_confidence,
    check_guesses,
    epsilon_bound,
)
from privtrain.attacks.scores import Scores
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Leakage, Target
from privtrain.core.rounding import printed_down
from privtrain.core.seeding import Seeds
from privtrain.core.statement import ADD_REMOVE, PrivacyCurves, Unit
from privtrain.core.task import Canaries
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

    Source: Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846); the test of the curve:
        Mahloujifar, Melis and Chaudhuri 2024 (arXiv:2410.22235).
    """

    guesses: int = 100
    delta: float = 1e-5
    confidence: float = 0.95
    batch_size: int = 1_024
    name: str = field(default="one-run audit", init=False)
    observer: Observer = field(default=PUBLIC, init=False)

    @property
    def canaries_needed(self) -> int:
        return self.guesses

    def __post_init__(self) -> None:
        check_count(2, guesses=self.guesses)
        check_count(batch_size=self.batch_size)
        check_delta(self.delta)
        check_confidence(self.confidence)

    def run(self, target: Target, *, seed: int) -> Leakage:
        """Guesses, counts the right guesses, and bounds epsilon by their number.

        Args:
            target: Holds the public view and the canaries; only the predictor, the loss, the
                canaries and the promised curves are used.
            seed: Public seed of the order in which canaries with equal losses are guessed.

        Returns:
            `epsilon_lower_bound` and its `ceiling`; `correct` of `guesses`; `f_dp_p_value` and
            `f_dp_rejected` (1 or 0), None where no curve is promised per example, add/remove;
            `gaussian_family_epsilon`, which is no lower bound in general; and the `confidence` and
            `delta` of the bounds.

        Raises:
            ValueError: If the view is another observer's, no canaries were planted, or there
                are fewer of them than guesses.
        """
        check_target(target, self.observer)
        canaries = target.canaries
        if canaries is None:
            raise ValueError(
                "Expected data with canaries; plant some with pt.data.with_canaries, train on "
                "that data, and hand the same data to audit. A trainer that makes some of its "
                "training rows public does not protect all canaries: give the data public rows."
            )
        if self.guesses > len(canaries):
            raise ValueError(
                f"Expected guesses={self.guesses} <= {len(canaries)}, the number of canaries."
            )
        # Algorithm 1, the vector of scores Y = (SCORE(x_i, w)), and the guesses T.
        losses = row_losses(target.predictor, target.task, canaries.rows, self.batch_size)
        correct = right_guesses(to_scores(losses), canaries, self.guesses, seed=seed)
        inside = int(canaries.included.sum())
        promised = _example_curves(target.promised)
        metrics = self._metrics(len(canaries), correct, promised)
        proved = printed_down(metrics["epsilon_lower_bound"] or 0.0, 3)
        return Leakage(
            attack=self.name,
            observer=self.observer.name,
            metrics=metrics,
            members=inside,
            non_members=len(canaries) - inside,
            notes=(
                "this attack only, not evidence of safety",
                f"{correct} of {self.guesses} guesses right: epsilon at least "
                f"{proved}; all right would show the ceiling, {metrics['ceiling']:.3g}",
                *self._notes(int(torch.isnan(losses).sum()), promised),
            ),
        )

    def _metrics(
        self, canaries: int, correct: int, promised: PrivacyCurves | None
    ) -> dict[str, float | None]:
        # The whole promised curve is tested at once (Mahloujifar et al. 2024), where there is one.
        counts = {"canaries": canaries, "guesses": self.guesses}
        p_value = None
        if promised is not None:
            curve = f_dp.least_wrong(promised.promised)
            p_value = f_dp.p_value(curve, **counts, correct=correct)
        # Theorem 5.2 of Steinke et al. 2023, at one delta; it needs no promise.
        bound = epsilon_bound(
            **counts, correct=correct, delta=self.delta, confidence=self.confidence
        )
        gaussian = f_dp.gaussian_epsilon_bound(
            **counts, correct=correct, delta=self.delta, confidence=self.confidence
        )
        return {
            "epsilon_lower_bound": bound,
            "ceiling": ceiling(**counts, delta=self.delta, confidence=self.confidence),
            "correct": float(correct),
            "guesses": float(self.guesses),
            "f_dp_p_value": p_value,
            "f_dp_rejected": None if p_value is None else float(p_value <= 1 - self.confidence),
            "gaussian_family_epsilon": gaussian,
            "confidence": self.confidence,
            "delta": self.delta,
        }

    def _notes(self, unscored: int, promised: PrivacyCurves | None) -> tuple[str, ...]:
        notes = [
            f"epsilon_lower_bound holds with confidence {self.confidence:.6g} at delta "
            f"{self.delta:g}, per example, add-remove; compare it with such guarantees only",
            "gaussian_family_epsilon supposes a Gaussian trade-off curve: not a lower bound of "
            "other runs, and not to be compared with a stated epsilon",
        ]
        if promised is None:
            notes.append("no curve is promised per example, add-remove: nothing to test by f-DP")
        if unscored:
            notes.append(f"{unscored} losses were not a number and got the worst score")
        return tuple(notes)


def _example_curves(promised: tuple[PrivacyCurves, ...]) -> PrivacyCurves | None:
    """The finite curves per example and add/remove, which is what a canary's coin decides."""
    for curves in promised:
        fits = curves.unit is Unit.EXAMPLE and curves.relation is ADD_REMOVE
        if fits and any(math.isfinite(bound) for _, bound in curves.promised):
            return curves
    return None


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
