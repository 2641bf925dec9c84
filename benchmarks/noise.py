"""The price of secure noise: discrete and exact from AES-256, against floats.

    python benchmarks/noise.py [--quick] [--json]

Both sides noise a float32 sum as `Release` does: ours quantises it and adds integers, the other
one adds normals by Box and Muller's transform. Sums of 26,010 and 235,146 values belong to the CNN
and the MLP of benchmarks/per_example.py, whose whole steps are measured, too. Before anything is
timed, both noises are held against their standard deviation. Our normals are timed against numpy's,
one by one from the same generator, too.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from harness import Row, compare, main
from per_example import LEARNING_RATE, WORKS, C, Work, Z

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.core.parameters import trainable
from privtrain.core.seeding import SeededEntropy
from privtrain.core.task import cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.normals import standard_normals
from privtrain.steps.optimizers import GradientVector

SIZES = {"26,010 values": 26_010, "235,146 values": 235_146, "1,000,000 values": 1_000_000}
ENTROPY = SeededEntropy(0)


def noising(size: int, *, secure: bool) -> Callable[[], object]:
    """Noises one sum, each time from a stream of its own."""
    mechanism, total, rounds = Gaussian(C, Z, secure=secure), torch.zeros(size), count()
    return lambda: mechanism.add(total, None, ENTROPY["noise", next(rounds), ""])[0]


def step(work: Work, *, secure: bool) -> Callable[[], object]:
    """A step of `DPSGD(gradients=BookKeeping())`."""
    model, rows, mechanism = work.model(), work.rows(), Gaussian(C, Z, secure=secure)
    engine, parameters = BookKeeping().engine(model, cross_entropy), trainable(model)
    optimizer, rounds = torch.optim.SGD(parameters, LEARNING_RATE), count()
    gradient = GradientVector(parameters)

    def one() -> None:
        value = engine.clipped_sum(rows, C).value
        released, _ = mechanism.add(value, None, ENTROPY["noise", next(rounds), ""])
        gradient.set(released, work.batch)
        optimizer.step()

    return one


def generator() -> np.random.Generator:
    """A generator as mechanisms are given it."""
    return ENTROPY["normals", 0, ""].numpy()


def check() -> None:
    """Stops the benchmark where a noise has another standard deviation than it should."""
    for secure in (False, True):
        drawn = noising(1_000_000, secure=secure)()
        found = float(np.std(np.asarray(drawn, dtype=np.float64)))
        if not abs(found / (C * Z) - 1) < 5e-3:
            raise SystemExit(f"Expected the noise's standard deviation {found} to be {C * Z}.")


def rows(quick: bool) -> list[Row]:
    """Noise alone, then whole steps."""
    check()
    repeats = 5 if quick else 41
    made = []
    for work, size in SIZES.items():
        ours, floats = (noising(size, secure=secure) for secure in (True, False))
        made.append(
            compare(
                f"noise, {work}",
                ours,
                floats,
                ours_name="secure",
                against_name="float",
                repeats=repeats,
                warmup=3,
            )
        )
        made.append(
            compare(
                f"normals, {work}",
                partial(standard_normals, torch.zeros(size), generator()),
                partial(generator().standard_normal, size, np.float32),
                ours_name="float",
                against_name="numpy",
                repeats=repeats,
                warmup=3,
            )
        )
    for name in ("cnn-26k", "mlp-235k"):
        ours, floats = (step(WORKS[name], secure=secure) for secure in (True, False))
        few = 5 if quick else 15
        made.append(
            compare(
                f"step, {name}",
                ours,
                floats,
                ours_name="secure",
                against_name="float",
                repeats=few,
                warmup=2,
            )
        )
    return made


if __name__ == "__main__":
    main(rows)
