"""What is measured on a trained model, part by part: one that fails leaves the others standing."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from torch import Tensor

from privtrain.attacks.attack import Attack
from privtrain.core.errors import PrivtrainError
from privtrain.core.failures import OWN_ERRORS, text_of, traceback_of
from privtrain.core.result import Failure, Leakage, TrainResult
from privtrain.core.statement import to_plain
from privtrain.core.task import FederatedData, Task
from privtrain.runs.auditing import audit

KEEP, RAISE = "keep", "raise"
"""What `compare` does with an error: it goes into the row, or stops the comparison."""


def failure_of(error: BaseException) -> Failure:
    """Why a part failed; where the error is not one of ours, also where it came from."""
    ours = isinstance(error, PrivtrainError) and error.__cause__ is None
    return Failure(
        error=f"{type(error).__name__}: {text_of(error)}",
        traceback=None if ours else traceback_of(error),
    )


def attacked(
    result: TrainResult,
    attacks: Sequence[Attack],
    task: Task,
    data: FederatedData,
    *,
    seed: int,
    errors: str = KEEP,
) -> tuple[tuple[Leakage, ...], tuple[str, ...]]:
    """What each attack learned, or why it failed, and notes on those that do not apply.

    Args:
        result: What training gave.
        attacks: The attacks.
        task: What was learned.
        data: The rows.
        seed: Public seed of the attacks' own choices.
        errors: `KEEP` or `RAISE`.

    Returns:
        One for each attack, in their order. One that failed has no metrics; of one that gave a
        figure which is not a number, the other figures stand. And the notes.
    """
    leakages, notes = [], []
    for attack in attacks:
        try:
            leakages.append(_checked(audit(result, attack, task, data, seed=seed), attack))
        except OWN_ERRORS as error:  # an own attack may raise anything
            # Canaries that a trainer may have made public are not protected by it, so there is
            # nothing to audit: that is no mistake.
            public = result.members is not None and result.members.made_public
            if public and data.canaries is not None and isinstance(error, ValueError):
                notes.append(f"{attack.name} was not run: {text_of(error)}")
                continue
            if errors == RAISE:
                raise
            leakages.append(_failed(attack, failure_of(error)))
    return tuple(leakages), tuple(notes)


def _failed(attack: Attack, failure: Failure) -> Leakage:
    name, observer = attack.name, attack.observer.name
    return Leakage(attack=name, observer=observer, metrics={}, failure=failure)


def _checked(leakage: Any, attack: Attack) -> Leakage:
    """What an attack returned, with plain numbers."""
    if not isinstance(leakage, Leakage):
        raise TypeError(f"Expected {attack.name!r} to return a Leakage, not {leakage!r}.")
    metrics: dict[str, float | None] = {}
    wrong: list[str] = []
    for name, value in leakage.metrics.items():
        if not isinstance(name, str):
            wrong.append(f"one called {name!r}")
            continue
        plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if (plain is not None and not isinstance(plain, Real)) or plain != plain:
            wrong.append(f"{name}={plain!r}")
        else:
            metrics[name] = plain if isinstance(plain, (int, float, type(None))) else float(plain)
    intervals: dict[str, tuple[float, float]] = {}
    for name, interval in leakage.intervals.items():
        try:
            low, high = map(float, interval)
        except (TypeError, ValueError):
            wrong.append(f"the interval of {name}, {interval!r}")
            continue
        if name in metrics and not math.isnan(low) and not math.isnan(high):
            intervals[name] = (low, high)
    failure = leakage.failure
    if wrong:
        failure = Failure(
            error=f"ValueError: Expected the metrics of {attack.name!r} to be numbers, or None "
            f"where rows are too few; {', '.join(wrong)}."
        )
    # Under its own name: a figure of one attack must not stand as that of another.
    checked = replace(
        leakage,
        attack=attack.name,
        observer=attack.observer.name,
        metrics=metrics,
        intervals=intervals,
        failure=failure,
    )
    json.dumps(to_plain(checked))  # now, and not when all rows are written
    return checked
