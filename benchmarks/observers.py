"""What each observer of a run learns: digits, five trainers, five observers, with shadow models.

    python benchmarks/observers.py [--quick] [--json]

One comparison in this process: each trainer is trained, and attacked from the place of the public,
a participant, the aggregator, the dealer and a coalition of two parties, by the loss and by `RMIA`
with 16 shadow models; whoever reads messages tries what reads them. It is held against what it may
take, 180 seconds. The figures of every cell, or why there is none, are written beside.
"""

import sys
import time
from pathlib import Path

from harness import SEED, Report, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.attacks.attack import Attack
from privtrain.attacks.taxonomy import may_observe
from privtrain.core.observers import Observer
from privtrain.core.trainer import Trainer
from privtrain.report.attack_table import attack_records

SECONDS_ALLOWED = 180.0
PARTIES = 10
EXTRAS: Report = {}


def observers() -> tuple[Observer, ...]:
    """The five places."""
    two = pt.coalition({"party-0", "party-1"})
    return (pt.PUBLIC, pt.PARTICIPANT, pt.AGGREGATOR, pt.DEALER, two)


def attacks(shadows: int) -> list[Attack]:
    """Each attack from each place that can carry it out."""
    asked: list[Attack] = []
    for place in observers():
        asked += [pt.LossThreshold(observer=place), pt.RMIA(shadows=shadows, observer=place)]
    reading = (pt.RowSpan(), pt.LossGain())
    asked += [attack for attack in reading if may_observe(attack.about, attack.observer)]
    return asked


def trainers(quick: bool) -> dict[str, Trainer]:
    """The five trainers at the settings of the command line; short ones with `--quick`."""
    few = 1 if quick else 20
    return {
        "SGD": pt.SGD(epochs=few),
        "FedAvg": pt.FedAvg(rounds=1 if quick else 30),
        "DPSGD": pt.DPSGD(epochs=few),
        "MPC": pt.MPCSGD(epochs=1 if quick else 3),
        "PATE": pt.PATE(),
    }


def rows(quick: bool) -> list[Row]:
    """Seconds of whole comparisons against the allowance."""
    task, data = pt.data.digits(parties=PARTIES, seed=SEED)
    seconds = []
    for _ in range(1 if quick else 3):
        start = time.perf_counter()
        comparison = pt.compare(
            trainers(quick),
            task,
            data,
            attacks=attacks(4 if quick else 16),
            epsilons=[3.0],
            seeds=[SEED],
        )
        seconds.append(time.perf_counter() - start)
    EXTRAS["cells"] = attack_records(comparison)
    EXTRAS["took_most"] = max(
        (leakage.seconds or 0.0, row.label, leakage.attack, leakage.observer)
        for row in comparison.rows
        for leakage in row.leakage
    )
    return [
        from_seconds(
            "digits-five-trainers-five-observers",
            seconds,
            [SECONDS_ALLOWED] * len(seconds),
            ours_name="compare with attacks",
            against_name="allowance of 180 s",
        )
    ]


if __name__ == "__main__":
    main(rows, extras=EXTRAS)
