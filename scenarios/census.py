"""A census office predicts incomes and asks what privacy costs: the price of epsilon on Adult.

Who holds what: the office holds one record a person, with age, education, work and whether the
income is above 50,000 dollars a year (Adult: 29,305 training records, a tenth kept apart for
validation, and 16,281 test records that are read once, at the end).

Who learns what:
  pooled   the office reads every record, and the model promises nothing to anybody.
  DP-SGD   the office reads every record; whoever gets the model learns little about one person,
           the less the smaller epsilon. Nothing protects from the office.

Both are logistic regression. The recipe was chosen on validation records and is the same for every
epsilon; only the noise is calibrated. That choice is not counted in any epsilon.

Adult is read from its two files: --directory DIR, or the environment variable PRIVTRAIN_DATA.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import tyro

import privtrain as pt

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
STEPS, BATCH = 477, 2048


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    directory: Path | None = None
    """Where the files of Adult lie; None for the environment variable PRIVTRAIN_DATA."""
    epsilons: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 8.0)
    """What DP-SGD promises for each person."""
    delta: float = 1e-5
    """Delta of every promise; below one over the number of records."""
    seeds: int = 3
    """How many seeds: 0, 1, 2, ..."""
    out: Path = Path("runs/census")
    """Folder for the plot (in report.html) and for the figures."""
    force: bool = False
    """Overwrite what is in that folder."""


def ways(rows: int) -> dict[str, pt.SGD | pt.DPSGD]:
    """With and without a promise, for a number of training records."""
    return {
        "pooled": pt.SGD(epochs=60, batch_size=1024, learning_rate=0.5),
        "DP-SGD": pt.DPSGD(
            epochs=STEPS * BATCH / rows,
            expected_batch=BATCH,
            learning_rate=4.0,
            optimizer=MOMENTUM,
            release=pt.Release(pt.Gaussian(0.2, 1.0)),
        ),
    }


def compare(args: Args) -> pt.Comparison:
    """The same model without a promise and at every epsilon, as one table."""
    task, data = pt.data.adult(args.directory, parties=1)
    return pt.compare(
        ways(len(data.pooled())),
        task,
        data,
        seeds=range(args.seeds),
        epsilons=list(args.epsilons),
        attacks=[pt.LossThreshold()],
        delta=args.delta,
    )


def reading(comparison: pt.Comparison) -> str:
    """One line an epsilon: what it costs in points of accuracy; seeds are averaged."""
    failed = [row.label for row in comparison.rows if row.error is not None]
    if failed:
        return f"Failed, see the table: {', '.join(failed)}."
    plain = fmean(row.accuracy or 0.0 for row in comparison.rows if row.label == "pooled")
    scores: dict[float, list[float]] = {}
    for row in comparison.rows:
        if row.epsilon_asked is not None:
            scores.setdefault(row.epsilon_asked, []).append(row.accuracy or 0.0)
    lines = [f"Without a promise: {plain:.1%}."]
    for epsilon, accuracies in sorted(scores.items()):
        price = 100 * (plain - fmean(accuracies))
        lines.append(
            f"epsilon {epsilon:g}: {fmean(accuracies):.1%}, the price is {price:.1f} points."
        )
    return "\n".join(lines)


def main(args: Args) -> pt.Comparison:
    """Compares, prints the table and the price, and writes the report with the plot."""
    torch.set_num_threads(1)  # the model is small: more threads only wait for each other
    if (args.out / "comparison.json").exists() and not args.force:
        raise pt.DataError(f"Expected out={str(args.out)!r} to be empty; --force overwrites it.")
    args.out.mkdir(parents=True, exist_ok=True)
    comparison = compare(args)
    print(comparison)
    print(f"\n{reading(comparison)}")
    pt.save(comparison, args.out, force=args.force)
    print(f"The plot is in {args.out / 'report.html'}.")
    return comparison


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, ValueError, pt.PrivtrainError) as error:
        sys.exit(f"census.py: {error}")
