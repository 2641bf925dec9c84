"""Values of models that saw a row, and of those that did not, with a leak of known size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Planted:
    """A target with `truth`, and shadow models with `included`."""

    target: Floats
    truth: Flags
    shadows: Floats
    included: Flags


def in_pairs(rng: np.random.Generator, models: int, candidates: int) -> Flags:
    """Random halves and their complements, one after the other."""
    halves = rng.random((models // 2, candidates)) < 0.5
    return np.stack([halves, ~halves], axis=1).reshape(models, candidates)


def planted(
    rng: np.random.Generator, *, models: int, candidates: int, leak: float = 1.0
) -> Planted:
    """Phi of rows that differ in level, deviation and leak; the target is outside of the design."""
    level = rng.normal(2, 2, candidates)
    deviation = rng.uniform(0.5, 1.5, candidates)
    gain = leak * rng.exponential(1, candidates)
    included = in_pairs(rng, models, candidates)
    truth = rng.random(candidates) < 0.5

    def values(flags: Flags) -> Floats:
        drawn: Floats = level + gain * flags + deviation * rng.normal(size=flags.shape)
        return drawn

    return Planted(values(truth), truth, values(included), included)


def losses_of(phi: Floats) -> Floats:
    """Minus log p, where phi is the logit of p."""
    return np.logaddexp(0, -phi)
