"""Gaps: what each row is measured from, and the sentences that name it."""

from collections.abc import Mapping

from privtrain.core.measures import better_by
from privtrain.core.result import Comparison, Row

POOLED = "sgd"
"""Token of the trainer that the others are measured from where none is named."""


def baseline_of(row: Row, comparison: Comparison) -> str | None:
    """The label of the row's baseline, the same one for all seeds; None where there is none."""
    if row.baseline is not None:
        return row.baseline
    # Files of earlier versions name none: the first pooled trainer, whether it failed or not.
    return next((other.label for other in comparison.rows if other.trainer == POOLED), None)


def gap(row: Row, comparison: Comparison) -> float | None:
    """By how much a row's main metric is better than that of its baseline with the same seed.

    Returns:
        In the unit of the metric, below zero where it is worse; None where one is missing.
    """
    # Seed by seed: what two runs draw alike from one seed drops out of their difference. Never
    # another baseline where this one failed: a mean over two would be a gap to neither.
    label = baseline_of(row, comparison)
    same = [o for o in comparison.rows if o.label == label and o.seed == row.seed]
    at_epsilon = [other for other in same if other.epsilon_asked == row.epsilon_asked]
    # A baseline that takes no epsilon is that of all; one of several epsilons of its own only.
    chosen = at_epsilon[:1] or (same if len(same) == 1 else [])
    if not chosen or chosen[0].main != row.main:
        return None
    mine, reached = row.leading, chosen[0].leading
    if mine is None or reached is None or mine.value is None or reached.value is None:
        return None
    return better_by(mine.value, reached.value, mine.best)


def main_baseline(baselines: Mapping[str, str | None]) -> str | None:
    """The baseline that most labels are measured from; None where there is none.

    Args:
        baselines: Label to the label of its baseline.
    """
    named = [label for label in baselines.values() if label is not None]
    return max(dict.fromkeys(named), key=named.count, default=None)


def gap_note(baselines: Mapping[str, str | None], metric: str, *, percent: bool) -> str:
    """What gaps are measured from, in a sentence; empty where nothing is.

    Args:
        baselines: Label to the label of its baseline.
        metric: Name of the main metric.
        percent: Whether it is a fraction of rows.
    """
    main = main_baseline(baselines)
    if main is None:
        return ""
    others = [
        f"that of “{label}” is measured from “{other}”, the same steps in plaintext"
        for label, other in baselines.items()
        if other not in (None, main)
    ]
    said = f"Gap: by how much {metric} is better than that of “{main}” with the same seed"
    said += ", in percentage points" if percent else ""
    return "; ".join((said, *others)) + "."
