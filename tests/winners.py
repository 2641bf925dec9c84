"""The exact law of noisy winners, for attacks on what PATE states: every outcome is enumerated."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Array = NDArray[np.float64]


def winners(counts: Array, sigma: float) -> Array:
    """Probability that each class wins each query: shape `(queries, classes)`, as that of `counts`.

    By quadrature: class k wins at noised count y, and all others stay below.
    """
    counts = np.asarray(counts, dtype=np.float64)
    y = np.arange(counts.min() - 12 * sigma, counts.max() + 12 * sigma, sigma / 50)
    z = (y - counts[..., None]) / sigma
    below = log_ndtr(z)
    others = below.sum(axis=1, keepdims=True) - below
    density = np.exp(-(z**2) / 2 + others) / np.sqrt(2 * np.pi) / 50
    made: Array = density.sum(axis=-1)
    assert np.allclose(made.sum(axis=1), 1.0, atol=1e-12)
    return made


def sequences(counts: Array, sigma: float) -> Array:
    """Probability of every sequence of answers, shape `(classes ** queries,)`."""
    law = np.ones(1)
    for query in winners(counts, sigma):
        law = np.outer(law, query).ravel()
    return law


def hockey_stick(p: Array, q: Array, epsilon: float) -> float:
    """The least delta at which two laws are (epsilon, delta)-close, in the worse direction."""
    factor = np.exp(epsilon)
    return float(max(np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum()))


def measured(p: Array, q: Array, delta: float) -> float:
    """The least epsilon at a delta: whoever promises less is refuted by these two laws."""
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if hockey_stick(p, q, middle) > delta else (low, middle)
    return high
