"""What epsilon costs: accuracy and seconds of DP-SGD beside SGD, at epsilon 1, 3 and 8.

    python benchmarks/privacy_utility.py [--quick] [--json]

Each pair is one seed: a whole private training, noise calibrated beforehand, and a whole training
without privacy, one after the other. Digits come with the package; Adult is read where its files
are (`PRIVTRAIN_DATA`, or shared/data beside the checkout). Accuracy is on test rows, averaged over
the seeds; recipes are the library's defaults for digits and those of reproductions/central_dp.py
for Adult.
"""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness import Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt

ROOT = Path(__file__).resolve().parent.parent
DELTA = 1e-5
EPSILONS = (1.0, 3.0, 8.0)
Work = tuple[str, pt.Task, pt.FederatedData, pt.DPSGD, pt.SGD]


def digits(quick: bool) -> Work:
    """Embedded images of digits; the number of rows is declared public."""
    task, data = pt.data.digits(parties=1)
    data = replace(data, public_rows=len(data.pooled()))
    epochs = 2 if quick else 20
    return "digits", task, data, pt.DPSGD(epochs=epochs), pt.SGD(epochs=epochs)


def adult(directory: Path) -> Work:
    """Census records, logistic regression."""
    task, data = pt.data.adult(directory, parties=1)
    rows = len(data.pooled())
    data = replace(data, public_rows=rows)
    private = pt.DPSGD(
        epochs=477 * 2048 / rows,
        expected_batch=2048,
        learning_rate=4.0,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        release=pt.Release(pt.Gaussian(0.2, 1.0)),
    )
    return "adult", task, data, private, pt.SGD(epochs=60, batch_size=1024, learning_rate=0.5)


def works(quick: bool) -> list[Work]:
    """What is there."""
    available = [digits(quick)]
    given = os.environ.get("PRIVTRAIN_DATA")
    directory = Path(given) if given else ROOT.parent / "shared" / "data"
    if not quick:
        try:
            available.append(adult(directory))
        except pt.DataError as error:
            print(f"Without Adult: {error}", file=sys.stderr)
    return available


def trained(trainer: Any, task: pt.Task, data: pt.FederatedData, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy of one training."""
    start = time.perf_counter()
    result = pt.fit(trainer, task, data, delta=DELTA, seed=seed)
    seconds = time.perf_counter() - start
    logits = result.predictor(data.test.inputs)
    return seconds, task.metrics["accuracy"](logits, data.test.labels)


def row(work: Work, epsilon: float, seeds: int) -> Row:
    """One data set at one epsilon."""
    name, task, data, private, plain = work
    calibrated = pt.calibrate(private, data, epsilon=epsilon, delta=DELTA)
    for trainer in (calibrated, plain):  # what is loaded on first use is not timed
        trained(trainer, task, data, 0)
    sides: dict[str, list[tuple[float, float]]] = {"private": [], "plain": []}
    for seed in range(seeds):
        order = [("private", calibrated), ("plain", plain)]
        for side, trainer in order if seed % 2 == 0 else order[::-1]:
            sides[side].append(trained(trainer, task, data, seed))
    measured = from_seconds(
        f"{name}, epsilon {epsilon:g}",
        [seconds for seconds, _ in sides["private"]],
        [seconds for seconds, _ in sides["plain"]],
        ours_name="dp_sgd",
        against_name="sgd",
    )
    scores = {side: [score for _, score in pairs] for side, pairs in sides.items()}
    return {
        **measured,
        "epsilon": epsilon,
        "delta": DELTA,
        "accuracy": round(fmean(scores["private"]), 4),
        "accuracy_min": round(min(scores["private"]), 4),
        "accuracy_max": round(max(scores["private"]), 4),
        "accuracy_without": round(fmean(scores["plain"]), 4),
    }


def rows(quick: bool) -> list[Row]:
    """One row a data set and epsilon."""
    epsilons = EPSILONS[1:2] if quick else EPSILONS
    return [row(work, epsilon, seeds=5) for work in works(quick) for epsilon in epsilons]


if __name__ == "__main__":
    main(rows)
