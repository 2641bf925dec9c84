"""Membership attacks on a trainer: AUC and true positive rates over nine targets.

    PRIVTRAIN_DATA=folder/of/mnist python benchmarks/membership.py [--quick] [--json]

20,000 rows of MNIST, half of them in each perceptron 784-64-10, 20 epochs: nine targets, sixteen
shadow models each (`pt.audit_trainer`), by SGD and by DP-SGD of epsilon 3 at delta 1e-5. Figures
are medians over three seeds, each of them a mean over targets; beside those of DP-SGD stands the
best that its trade-off curve allows. Times are seconds of scoring, against the loss threshold. With
`--quick`, six small models of digits.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import Report, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import privtrain as pt
from privtrain.accounting.curves import from_pairs
from privtrain.accounting.guarantees import public_curves
from privtrain.attacks.attack import MembershipAttack
from privtrain.core.result import Leakage
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.models import MLP
from privtrain.report.progress import silent
from privtrain.runs.auditing_trainers import Trained, judged, train_pairs
from privtrain.runs.fitting import default_runtimes

DELTA = 1e-5
SEEDS = (0, 1, 2)
FIGURES = ("auc", "tpr_at_1%_fpr", "tpr_at_0.1%_fpr")
EXTRAS: Report = {"delta": DELTA, "seeds": SEEDS, "candidates": 20_000, "targets": 9}

# By the name of the row: two of them are called alike.
ATTACKS: Mapping[str, MembershipAttack] = {
    "RMIA": pt.RMIA(),
    "RMIA, 4 shadows": pt.RMIA(shadows=4),
    "RMIA offline": pt.RMIA(online=False),
    "LiRA": pt.LiRA(),
    "LiRA offline": pt.LiRA(online=False),
    "loss threshold": pt.LossThreshold(),
}


def images() -> tuple[Task, FederatedData]:
    """A perceptron, and candidates of which each half has 10,000 rows."""
    task, data = pt.data.mnist(parties=1, seed=0, flat=True, model=MLP((784, 64, 10)))
    (name,) = data.parties
    whole = data.train[name]
    few = Rows(whole.inputs[:20_000], whole.labels[:20_000])
    return task, replace(data, train={name: few}, validation=None, public_rows=10_000)


def bounds(trainer: Trainer, data: FederatedData) -> dict[str, float]:
    """The largest figures that what is promised per example, add/remove, allows."""
    plans = trainer.plan(data, default_runtimes())
    spent = {kind: count for plan in plans for kind, count in plan.counts.items()}
    (curves,) = public_curves(plans, spent=spent, delta=DELTA)
    grid = np.union1d(np.linspace(0, 1, 10_001), np.logspace(-6, -1, 1_001))
    best = 1 - np.array(from_pairs(curves.promised, false_positives=grid))[:, 1]
    # From the right end of each step: no smaller than the area.
    area = float((np.diff(grid) * best[1:]).sum())
    return {
        "largest_auc": area,
        "largest_tpr_at_1%_fpr": float(best[grid >= 0.01][0]),
        "largest_tpr_at_0.1%_fpr": float(best[grid >= 0.001][0]),
    }


def accuracies(trained: Trained) -> tuple[float, float]:
    """Mean accuracy of the targets on their members, and on the others."""
    inside, outside = [], []
    for predictor, marks in zip(trained.targets, trained.truth, strict=True):
        right = predictor(trained.rows.inputs).argmax(dim=1) == trained.rows.labels
        members = torch.from_numpy(marks.copy())
        inside.append(right[members].double().mean().item())
        outside.append(right[~members].double().mean().item())
    return statistics.mean(inside), statistics.mean(outside)


def measured(
    work: str,
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    attacks: Mapping[str, MembershipAttack],
    seeds: Sequence[int],
    *,
    targets: int,
    shadows: int,
) -> list[Row]:
    """A row for each attack on one trainer."""
    found: dict[str, list[Leakage]] = {name: [] for name in attacks}
    accurate = []
    for seed in seeds:
        trained = train_pairs(
            trainer, task, data, targets=targets, shadows=shadows, seed=seed,
            where=default_runtimes(), device="cpu", progress=silent,
        )  # fmt: skip
        accurate.append(accuracies(trained))
        for name, attack in attacks.items():
            leakage = judged(trained, attack, seed=seed)
            if leakage.failure is not None:
                raise RuntimeError(f"{name} on {work}: {leakage.failure}")
            found[name].append(leakage)
    against = [leakage.seconds or 0.0 for leakage in found["loss threshold"]]
    accuracy = {
        f"accuracy_{side}": statistics.median(pair[place] for pair in accurate)
        for place, side in enumerate(("in", "out"))
    }
    return [
        from_seconds(
            work,
            [leakage.seconds or 0.0 for leakage in of_seeds],
            against,
            ours_name=name,
            against_name="loss threshold",
        )
        | figures(of_seeds)
        | accuracy
        for name, of_seeds in found.items()
    ]


def figures(of_seeds: list[Leakage]) -> Row:
    """Medians over the seeds, with the interval of the seed in the middle."""
    made: Row = {}
    for name in FIGURES:
        values = [leakage.metrics[name] for leakage in of_seeds]
        known = [value for value in values if value is not None]
        made[name] = statistics.median_low(known) if known else None
        made[f"{name}_by_seed"] = values
        middle = values.index(made[name])
        made[f"{name}_interval"] = of_seeds[middle].intervals.get(name)
    made["auc_deviation"] = statistics.median(
        leakage.metrics["auc_deviation"] or 0.0 for leakage in of_seeds
    )
    return made


def rows(quick: bool) -> list[Row]:
    """Both trainers."""
    if quick:
        task, data = pt.data.digits(parties=1, seed=0)
        sizes = {"targets": 2, "shadows": 4}
        plain, noised = pt.SGD(epochs=1), pt.DPSGD(epochs=1)
        attacks: Mapping[str, MembershipAttack] = {
            "RMIA": pt.RMIA(shadows=4),
            "loss threshold": pt.LossThreshold(),
        }
    else:
        task, data = images()
        sizes = {"targets": 9, "shadows": 16}
        plain = pt.SGD(epochs=20, batch_size=32, learning_rate=0.1)
        noised = pt.DPSGD(epochs=20, expected_batch=256, learning_rate=1.0)
        attacks = ATTACKS
    private = pt.calibrate(noised, data, epsilon=3.0, delta=DELTA)
    seeds, best = SEEDS[:1] if quick else SEEDS, bounds(private, data)
    few = {name: attack for name, attack in attacks.items() if name != "RMIA, 4 shadows"}
    return [
        *measured("SGD", plain, task, data, attacks, seeds, **sizes),
        *(
            row | best
            for row in measured("DP-SGD, epsilon 3", private, task, data, few, seeds, **sizes)
        ),
    ]


if __name__ == "__main__":
    main(rows, extras=EXTRAS)
