"""Seconds and epsilons of the two accountants for published plans of DP-SGD.

    python benchmarks/accountants.py [--quick] [--json]

Ours is the PLD accountant, which the library asks by default; it stands against the RDP accountant,
which cross-checks it. Calibration, from a target to the noise multiplier, stands against one
evaluation of the noise that it finds; beside it the largest memory of the process so far. Results
are not taken from a cache. The epsilons stand beside the times: `classic` is RDP as papers before
2020 converted it.
"""

import sys
from pathlib import Path
from typing import Any

from harness import Row, compare, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.accounting import losses
from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.divergences import leaf_rdp
from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated
from privtrain.core.cost import peak_memory

DELTA = 1e-5

PLANS = (
    ("TF Privacy, sigma 1.3, 15 epochs", 256 / 60_000, 1.3, 15 * 60_000 // 256),
    ("TF Privacy, sigma 1.1, 60 epochs", 256 / 60_000, 1.1, 60 * 60_000 // 256),
    ("TF Privacy, sigma 0.7, 45 epochs", 256 / 60_000, 0.7, 45 * 60_000 // 256),
    ("Abadi 2016, sigma 4", 0.01, 4.0, 10_000),
    ("Tramer-Boneh 2021, B 512", 512 / 60_000, 1.23, 4_680),
    ("Tramer-Boneh 2021, B 2048", 2048 / 60_000, 2.15, 1_160),
    ("Tramer-Boneh 2021, B 1024", 1024 / 50_000, 1.54, 1_440),
)
"""Name, sampling rate, noise multiplier, steps."""


TARGETS = (0.01, 0.1, 0.5, 1.0, 3.0, 8.0, 30.0, 100.0, 300.0, 1000.0)
"""Epsilons to which the Tramer-Boneh plan at batch 512 is calibrated."""


def forget() -> None:
    """Empties the caches, so that each timing computes."""
    for cached in (losses.pld_epsilon, losses._composed, leaf_rdp):
        cached.cache_clear()


def row(name: str, event: Any, repeats: int) -> Row:
    """One plan: times of both accountants, and what they answer."""

    def pld() -> float:
        forget()
        return epsilon(event, DELTA, accountant="pld")

    def rdp() -> float:
        forget()
        return epsilon(event, DELTA, accountant="rdp")

    measured = compare(name, pld, rdp, ours_name="pld", against_name="rdp", repeats=repeats)
    classic = epsilon(event, DELTA, accountant="rdp", conversion="classic")
    epsilons = {"pld": pld(), "rdp": rdp(), "classic": classic}
    return {**measured, **{f"epsilon_{key}": round(value, 4) for key, value in epsilons.items()}}


def calibration(target: float, repeats: int) -> Row:
    """One target: time of the whole search, and of one evaluation of what it finds."""
    _, rate, _, steps = PLANS[4]

    def step(scale: float) -> Any:
        return poisson_sampled(rate, gaussian_event(scale))

    def search() -> float:
        forget()
        return calibrate_scale(step, epsilon=target, delta=DELTA, count=steps)

    scale = search()
    event = repeated(step(scale), steps)

    def evaluation() -> float:
        forget()
        return epsilon(event, DELTA)

    name = f"calibrate to epsilon {target:g}"
    sides: dict[str, Any] = {"ours_name": "calibration", "against_name": "one evaluation"}
    measured = compare(name, search, evaluation, repeats=repeats, **sides)
    memory = round(peak_memory() / 1e6)
    scale_and_epsilon = {"noise_multiplier": round(scale, 4), "epsilon_pld": round(evaluation(), 4)}
    return {**measured, **scale_and_epsilon, "peak_memory_mb": memory}


def rows(quick: bool) -> list[Row]:
    """One row a plan and a target; a quick run takes one of each."""
    measured = []
    for name, rate, noise_multiplier, steps in PLANS[4:5] if quick else PLANS:
        step = poisson_sampled(rate, gaussian_event(noise_multiplier))
        measured.append(row(name, repeated(step, steps), repeats=5 if quick else 15))
    targets = TARGETS[4:5] if quick else TARGETS
    return [*measured, *(calibration(target, repeats=5) for target in targets)]


if __name__ == "__main__":
    main(rows)
