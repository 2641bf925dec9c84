"""What earlier fits of this process released, so that it is not taken for a public start.

A guarantee speaks of one fit. Weights that a fit made of some rows, and from which another fit on
these rows starts, tell of them beside what that other fit states.
"""

import hashlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.core.reachable import tensor_digest
from privtrain.core.task import ROWS, FederatedData
from privtrain.ledgers.study import StudyLedger
from privtrain.runs.checkpoint import LOADED_BEFOREHAND

_WORDS = np.ndarray[Any, np.dtype[np.uint64]]
_KEPT, _CHUNK = 4096, 2**22


@dataclass(frozen=True)
class RowSketch:
    """What tells whether two data sets have rows in common, in 32 KiB.

    Args:
        whole: A hash of all rows, in whatever order.
        rows: How many rows there are.
        distinct: How many different ones.
        smallest: The smallest of their hashes, sorted.
    """

    whole: int
    rows: int
    distinct: int
    smallest: bytes

    def overlaps(self, other: "RowSketch") -> bool:
        """Whether rows are shared beyond what chance makes equal.

        Tables with few different rows share them by chance, as often as they repeat them
        themselves; of those, only the same table counts.
        """
        if (self.whole, self.rows) == (other.whole, other.rows):
            return True
        mine, theirs = (np.frombuffer(s.smallest, np.uint64) for s in (self, other))
        if len(mine) == 0 or len(theirs) == 0:
            return False
        # Where a sketch is cut off, larger hashes of the other say nothing.
        end = min(s[-1] if len(s) == _KEPT else np.uint64(2**64 - 1) for s in (mine, theirs))
        mine, theirs = mine[mine <= end], theirs[theirs <= end]
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        by_chance = sum(1 - sketch.distinct / sketch.rows for sketch in (self, other))
        smaller = min(len(mine), len(theirs))
        return shared >= min(3, smaller) > 0 and shared > (0.01 + by_chance) * smaller


def sketch_of(data: FederatedData) -> RowSketch:
    """The sketch of the training rows; of very many parties, that of their names."""
    hashes = np.concatenate([*_hashes(data), np.zeros(0, np.uint64)])
    distinct = np.unique(hashes)
    with np.errstate(over="ignore"):
        whole = int(hashes.sum(dtype=np.uint64))
    return RowSketch(whole, len(hashes), len(distinct), distinct[:_KEPT].tobytes())


def _hashes(data: FederatedData) -> Iterator[_WORDS]:
    if len(data.parties) > LOADED_BEFOREHAND:
        name = hashlib.sha256(repr((data.name, data.digest, data.parties)).encode()).digest()
        yield np.frombuffer(name[:8], np.uint64)
    elif data.split is ROWS:
        # Without the targets: a row with another label is still that person's.
        yield from (row_hashes(data.train[party].inputs) for party in data.parties)
    else:
        yield row_hashes(data.pooled().inputs)


def row_hashes(inputs: Tensor) -> _WORDS:
    """A 64-bit hash of each row's stored bits, shape `(rows,)`."""
    if inputs.numel() == 0:
        return np.zeros(len(inputs), np.uint64)
    whole = inputs.detach().cpu().contiguous().reshape(len(inputs), -1)
    # As bytes: numpy has no bfloat16.
    flat = whole.view(torch.uint8).numpy()
    pad = -flat.shape[1] % 8
    generator = np.random.Generator(np.random.PCG64(0))
    factors = generator.integers(0, 2**64, (flat.shape[1] + pad) // 8, dtype=np.uint64)
    factors |= np.uint64(1)
    step = max(1, _CHUNK // len(factors))
    made = []
    for start in range(0, len(flat), step):
        words = np.pad(flat[start : start + step], ((0, 0), (0, pad))).view(np.uint64)
        made.append(_mixed((_mixed(words) * factors).sum(axis=1, dtype=np.uint64)))
    return np.concatenate(made)


def _mixed(words: _WORDS) -> _WORDS:
    # Low bits of floats are often zero, and a product alone never carries high bits down. Steps of
    # SplitMix64 (Steele et al. 2014).
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return words ^ (words >> np.uint64(27))


@dataclass(frozen=True)
class _Fit:
    """One fit that released a tensor: on which rows, and in which study."""

    rows: RowSketch
    study: "weakref.ref[StudyLedger] | None"
    journal: Path | None

    def of(self, study: StudyLedger | None) -> bool:
        """Whether it was charged to a study."""
        if study is None or self.study is None:
            return False
        return self.study() is study or (
            self.journal is not None and self.journal == _journal(study)
        )


def _journal(study: StudyLedger) -> Path | None:
    return None if study.journal is None else Path(study.journal).resolve()


# Of the process, since what is asked is what this process did; digests alone, no tensor.
_RELEASED: dict[str, list[_Fit]] = {}
_SKETCHES: dict[RowSketch, RowSketch] = {}


def remember(tensors: Iterable[Tensor], data: FederatedData, study: StudyLedger | None) -> None:
    """Takes note of what a fit made of its rows.

    Args:
        tensors: What training changed.
        data: The rows.
        study: Where the fit was charged, or None.
    """
    digests = [tensor_digest(tensor) for tensor in tensors if varies(tensor)]
    if not digests:
        return
    made = sketch_of(data)
    sketch = _SKETCHES.setdefault(made, made)
    held = None if study is None else weakref.ref(study)
    fit = _Fit(sketch, held, None if study is None else _journal(study))
    for digest in digests:
        _RELEASED.setdefault(digest, []).append(fit)


def from_earlier_fits(
    tensors: Iterable[tuple[str, Tensor]], data: FederatedData, study: StudyLedger | None
) -> tuple[list[str], list[str]]:
    """Which tensors an earlier fit of this process made of these rows.

    Args:
        tensors: Name and tensor of what a fit starts from.
        data: The rows it is to train on.
        study: Where it is charged, or None.

    Returns:
        Names of those that no study counts, and of those that this study counts.
    """
    found = [(name, _RELEASED.get(tensor_digest(t), [])) for name, t in tensors if varies(t)]
    if not any(fits for _, fits in found):
        return [], []
    rows = sketch_of(data)
    mine = [(name, [fit for fit in fits if fit.rows.overlaps(rows)]) for name, fits in found]
    # The same bits may have come out of two fits of one seed: one that is counted covers them.
    loose = [name for name, fits in mine if fits and not any(fit.of(study) for fit in fits)]
    return loose, [name for name, fits in mine if fits and name not in loose]


def varies(tensor: Tensor) -> bool:
    """Whether a tensor holds different values: zeros and ones are everybody's start."""
    flat = tensor.detach().reshape(-1)
    return flat.numel() > 1 and not bool((flat == flat[0]).all())
