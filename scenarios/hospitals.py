"""Three hospitals learn to tell malignant from benign tumours: what does each way promise?

Who holds what: the hospitals north, south and west hold the records of their own patients (the
breast cancer data: 30 measurements of a tumour and its diagnosis). They differ in size and in how
many of their patients are ill. Test records belong to nobody.

Who learns what:
  pooled        a curator reads every record. The yardstick; often the law forbids it.
  alone         a hospital's records stay there. Whoever gets the model may learn from it.
  federated     records stay; the aggregator reads each hospital's model in every round, and the
                hospitals read the average. No formal promise.
  DP in silos   the same, but each hospital noises its gradients before anything leaves it.
                Everybody, the aggregator included, is kept from learning much about one patient.
  under MPC     the hospitals compute on secret shares, in real processes: none of them that
                follows the protocol reads a record, a gradient or a model before the end. A
                dealer without records prepares randomness, and must collude with none of them.
                The final model is opened, with no promise about what it gives away.

Settings were chosen on validation records. The comparison takes about a minute on two cores.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import fmean

import torch
import tyro

import privtrain as pt

HOSPITALS = ("north", "south", "west")
FEDERATED, NOISED, SHARED = "federated", "federated, DP in silos", "under MPC"


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    epsilon: float = 3.0
    """What the hospitals promise each patient under DP; smaller is stricter."""
    delta: float = 1e-5
    """Delta of every promise; well below one over the number of patients."""
    skew: float = 1.0
    """How alike hospitals are: 0.3 is very different, 100 is alike (Dirichlet by diagnosis)."""
    epochs: int = 50
    """Passes over its records by each hospital: alone, and as rounds of one pass together."""
    mpc_epochs: int = 16
    """Passes over all records on secret shares; each takes 3 steps."""
    seed: int = 0
    """Public seed: who holds which records, their order, initial weights."""
    processes: bool = False
    """Run the federation's hospitals in worker processes too (Ray; half a minute more)."""
    out: Path | None = None
    """Folder for comparison.json, table.csv, table.tex and report.html."""
    force: bool = False
    """Overwrite what is in that folder."""


def trainers(args: Args) -> dict[str, pt.FedAvg | pt.MPCSGD]:
    """What the hospitals can train together, by name."""
    plain = pt.PlainSteps(epochs=1, learning_rate=5.0)
    noised = pt.DPSteps(pt.Gaussian(0.5, 1.0), sampling_rate=0.5, learning_rate=4.0)
    return {
        FEDERATED: pt.FedAvg(rounds=args.epochs, local=plain),
        NOISED: pt.FedAvg(rounds=20, local=noised),
        SHARED: pt.MPCSGD(
            epochs=args.mpc_epochs,
            batch_size=133,
            learning_rate=2.0,
            momentum=0.9,
            computing_parties=len(HOSPITALS),
        ),
    }


def alone(data: pt.FederatedData, hospital: str) -> pt.FederatedData:
    """What one hospital holds, with the test records of all."""
    return replace(
        data,
        train={hospital: data.train[hospital]},
        public_rows=None,
        name=f"{data.name}, {hospital} only",
    )


def compare(args: Args) -> pt.Comparison:
    """Each hospital alone, and all of them together in several ways, as one table."""
    task, data = pt.data.breast_cancer(
        parties=HOSPITALS, partition=pt.data.Dirichlet(args.skew, minimum=20), seed=args.seed
    )
    star = pt.FlowerRay() if args.processes else pt.InProcess()
    run = partial(
        pt.compare,
        task=task,
        seeds=[args.seed],
        attacks=[pt.LossThreshold()],
        delta=args.delta,
        runtimes=pt.Runtimes(star=star, mesh=pt.Processes()),
    )
    central = pt.SGD(epochs=args.epochs, learning_rate=5.0)
    single = [run({f"{name} alone": central}, data=alone(data, name)) for name in HOSPITALS]
    joint = run({"pooled": central, **trainers(args)}, data=data, epsilons=[args.epsilon])
    rows = (
        joint.rows[0],
        # Of comparisons of their own, in which each would be its own baseline.
        *(replace(row, baseline="pooled") for comparison in single for row in comparison.rows),
        *joint.rows[1:],
    )
    return replace(joint, rows=rows)


def reading(comparison: pt.Comparison, args: Args) -> str:
    """Two lines on what the table says, from its figures."""
    failed = [row.label for row in comparison.rows if row.error is not None]
    if failed:
        return f"Failed, see the table: {', '.join(failed)}."
    scores = {row.label: row.accuracy or 0.0 for row in comparison.rows}
    each = [scores[f"{name} alone"] for name in HOSPITALS]
    noised = next(row for row in comparison.rows if row.label == NOISED)
    # Rounded up: less would promise more than is proved.
    spent = ceil(100 * noised.statement.epsilon()) / 100 if noised.statement else float("inf")
    return (
        f"Alone the hospitals reach {min(each):.1%} to {max(each):.1%} ({fmean(each):.1%} on "
        f"average), federated {scores[FEDERATED]:.1%}, on secret shares {scores[SHARED]:.1%}: "
        "neither promises anything about the model.\n"
        f"Noise in the silos keeps (epsilon {spent:.2f}, delta {args.delta:g}) to everybody and "
        f"costs {100 * (scores[FEDERATED] - scores[NOISED]):.1f} points of accuracy."
    )


def main(args: Args) -> pt.Comparison:
    """Compares, prints the table and how to read it, and writes the report."""
    torch.set_num_threads(1)  # the models are small: more threads only wait for each other
    if args.out is not None and (args.out / "comparison.json").exists() and not args.force:
        raise pt.DataError(f"Expected out={str(args.out)!r} to be empty; --force overwrites it.")
    comparison = compare(args)
    print(comparison)
    print(f"\n{reading(comparison, args)}")
    if args.out is not None:
        print(f"The report lies in {pt.save(comparison, args.out, force=args.force)}/report.html")
    return comparison


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, ValueError, pt.PrivtrainError) as error:
        raise SystemExit(f"hospitals.py: {error}") from None
