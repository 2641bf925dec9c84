"""DP-FTRL beside DP-SGD: accuracy at epsilon 1, 3 and 8, and what correlated noise costs in time.

    PRIVTRAIN_DATA=folder/of/mnist python benchmarks/dp_ftrl.py [--quick] [--json]

Both sides train the same model from the same start with the same clipping norm, expected batch and
number of steps, calibrated to the same epsilon at delta 1e-5; one thread, seeds in turn. Only the
noise and the batches differ: independent noise and Poisson batches, or `BandedMatrix` and
`CyclicPoisson`. The number of bands is the one of `BANDS` with the smallest predicted noise, which
follows from public figures. Each side's learning rate is chosen from `RATES` on validation rows
with a seed that is not among the others; that choice is not counted in the epsilons. Accuracy is
on test rows. Without MNIST's files, digits alone are trained on, and the results say so.
"""

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import Report, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.core.metrics import accuracy
from privtrain.core.task import FederatedData, Task
from privtrain.mechanisms.banded import BandedMatrix, prefix_error

DELTA = 1e-5
BANDS = (2, 4, 8, 16, 32)
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = (0, 1, 2, 3, 4)
CHOOSING_SEED = 100
EXTRAS: Report = {"delta": DELTA, "seeds": SEEDS, "choosing_seed": CHOOSING_SEED, "left_out": []}


@dataclass(frozen=True)
class Work:
    """Rows, a model, and what both sides have in common.

    Args:
        name: What it is called.
        task: What is learned.
        data: From which rows.
        epochs: Expected passes.
        batch: Expected batch.
    """

    name: str
    task: Task
    data: FederatedData
    epochs: float
    batch: float

    def trainer(self, bands: int = 0) -> pt.DPSGD:
        """DP-SGD for no bands, else DP-FTRL."""
        plain = pt.DPSGD(epochs=self.epochs, expected_batch=self.batch)
        if bands == 0:
            return plain
        mechanism = BandedMatrix(1.0, 1.0, bands, plain.batches(self.data).steps)
        return replace(plain, release=pt.Release(mechanism), sampling=pt.CyclicPoisson(bands))

    def calibrated(self, epsilon: float, bands: int = 0) -> pt.DPSGD:
        """The same at an epsilon."""
        calibrated = pt.calibrate(self.trainer(bands), self.data, epsilon=epsilon, delta=DELTA)
        if not isinstance(calibrated, pt.DPSGD):
            raise TypeError(f"Expected {calibrated} to be a DPSGD.")
        return calibrated


def works(quick: bool) -> list[Work]:
    """Digits, and MNIST where its files are."""
    task, data = pt.data.digits(parties=1)
    on_digits = [Work("digits, MLP", task, data, 1.0 if quick else 20.0, 64.0)]
    if quick:
        return on_digits
    try:
        task, data = pt.data.mnist(
            parties=1, flat=True, model=pt.data.LogisticRegression(784, 10), validation_fraction=0.1
        )
    except pt.DataError as error:
        EXTRAS["left_out"].append(f"MNIST: {type(error).__name__}")
        return on_digits
    return [*on_digits, Work("MNIST, logistic regression", task, data, 10.0, 512.0)]


def predicted(trainer: pt.DPSGD, steps: int) -> float:
    """Noise that summed gradients carry, in clipping norms; see `prefix_error`."""
    mechanism = trainer.release.mechanism
    column = mechanism.coefficients if isinstance(mechanism, BandedMatrix) else (1.0,)
    multiplier = float(getattr(mechanism, "noise_multiplier", math.nan))
    return multiplier * prefix_error(column, steps)


def trained(trainer: pt.DPSGD, work: Work, seed: int, *, on_test: bool) -> tuple[float, float]:
    """Seconds of training, and accuracy on test or on validation rows."""
    start = time.perf_counter()
    result = pt.fit(
        trainer, work.task, work.data, delta=DELTA, seed=seed, progress=lambda done, total: None
    )
    seconds = time.perf_counter() - start
    rows = work.data.test if on_test else work.data.validation
    if rows is None:
        raise ValueError("Expected validation=None to hold rows.")
    return seconds, accuracy(result.predictor(rows.inputs), rows.labels)


def chosen(trainer: pt.DPSGD, work: Work, rates: Sequence[float]) -> pt.DPSGD:
    """The trainer with the learning rate that does best on validation rows."""
    candidates = [replace(trainer, learning_rate=rate) for rate in rates]
    if len(candidates) == 1:
        return candidates[0]
    return max(
        candidates, key=lambda trainer: trained(trainer, work, CHOOSING_SEED, on_test=False)[1]
    )


def row(work: Work, epsilon: float, rates: Sequence[float], banded: Sequence[int]) -> Row:
    """Both sides at one epsilon, seed by seed, in turn."""
    batches = work.trainer().batches(work.data)
    plain = work.calibrated(epsilon)
    # With more groups than batches in an epoch, a run would make fewer passes.
    most = work.data.public_rows or len(work.data.pooled())
    tried = {b: work.calibrated(epsilon, b) for b in banded if b * work.batch <= most}
    noise = {b: predicted(side, batches.steps) for b, side in tried.items()}
    bands = min(noise, key=lambda b: noise[b])
    sides = (chosen(tried[bands], work, rates), chosen(plain, work, rates))
    seconds: tuple[list[float], list[float]] = ([], [])
    accuracies: tuple[list[float], list[float]] = ([], [])
    for place, seed in enumerate(SEEDS):
        for side in (0, 1) if place % 2 == 0 else (1, 0):
            took, accurate = trained(sides[side], work, seed, on_test=True)
            seconds[side].append(took)
            accuracies[side].append(accurate)
    timed = from_seconds(
        f"{work.name}, epsilon {epsilon:g}", *seconds, ours_name="DP-FTRL", against_name="DP-SGD"
    )
    return timed | {
        "epsilon": epsilon,
        "steps": batches.steps,
        "bands": bands,
        **_figures("ours", sides[0], accuracies[0], noise[bands]),
        **_figures("against", sides[1], accuracies[1], predicted(plain, batches.steps)),
        "predicted_noise_by_bands": {str(b): round(value, 3) for b, value in noise.items()},
        "accuracy_difference_by_seed": [a - b for a, b in zip(*accuracies, strict=True)],
    }


def _figures(side: str, trainer: pt.DPSGD, accuracies: list[float], noise: float) -> Row:
    return {
        f"{side}_accuracy_mean": statistics.mean(accuracies),
        f"{side}_accuracy_by_seed": accuracies,
        f"{side}_learning_rate": trainer.learning_rate,
        f"{side}_noise_multiplier": getattr(trainer.release.mechanism, "noise_multiplier", None),
        f"{side}_predicted_noise": noise,
    }


def rows(quick: bool) -> list[Row]:
    """Every work at every epsilon; a quick run takes one of each and chooses nothing."""
    rates = RATES[2:3] if quick else RATES
    epsilons = (8.0,) if quick else (1.0, 3.0, 8.0)
    banded = BANDS[:1] if quick else BANDS
    return [row(work, epsilon, rates, banded) for work in works(quick) for epsilon in epsilons]


if __name__ == "__main__":
    main(rows, extras=EXTRAS)
