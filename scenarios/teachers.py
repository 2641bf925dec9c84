"""Schools teach a public student to read digits without showing anybody's handwriting (PATE).

Who holds what: ten schools hold labelled images of their pupils' handwriting. Each splits its own
images among its teachers, so that every image is seen by one teacher only. A student holds images
that anybody may read, without labels.

Who learns what:
  pooled   a curator reads every image and label. The yardstick, without any promise.
  DP-SGD   a curator reads every image and label; whoever gets the model learns little about one
           image. Nothing protects from the curator.
  PATE     no image leaves a school. The student asks about public images; every teacher votes, and
           the aggregator, which reads each school's vote counts, adds noise and answers with the
           winner. The student, and whoever gets it, learn little about one image; the aggregator
           is promised nothing.

What a vote may tell is charged at its worst whatever the teachers said: the formal epsilon. Where
they agree, the data-dependent one is smaller; it is private, one-sided and no differential privacy.

Digits come with the package. MNIST is read from its four files: --data mnist --directory DIR, or
the environment variable PRIVTRAIN_DATA. PATE's settings were chosen on validation images.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
import tyro

import privtrain as pt


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed. What is None takes the value that suits the data."""

    data: Literal["digits", "mnist"] = "digits"
    """Embedded images of 8 x 8 pixels (seconds), or MNIST from files (minutes)."""
    directory: Path | None = None
    """Where the files of MNIST lie; None for the environment variable PRIVTRAIN_DATA."""
    epsilon: float = 3.0
    """What PATE and DP-SGD promise for each image."""
    delta: float = 1e-5
    """Delta of every promise; below one over the number of images."""
    teachers: int | None = None
    """How many teachers; None for 100 on digits, 250 on MNIST as in the papers."""
    queries: int | None = None
    """How many public images the student asks about; None for 150 on digits, 1000 on MNIST."""
    seeds: int = 1
    """How many seeds: 0, 1, 2, ..."""
    processes: bool = False
    """Run the schools in worker processes (Ray; half a minute to start)."""
    out: Path | None = None
    """Folder for comparison.json, table.csv, table.tex and report.html."""
    force: bool = False
    """Overwrite what is in that folder."""


DIGITS = pt.PATE(
    teachers=100,
    queries=150,
    steps=pt.PlainSteps(epochs=40, learning_rate=0.5),
    student=pt.PlainSteps(epochs=60, learning_rate=0.1),
)
MNIST = pt.PATE(
    teachers=250,
    queries=1000,
    steps=pt.PlainSteps(epochs=10, learning_rate=0.003, optimizer="Adam"),
    student=pt.PlainSteps(epochs=20, learning_rate=0.003, optimizer="Adam"),
)


def ensemble(args: Args) -> pt.PATE:
    """Teachers, queries and student, before the noise is chosen."""
    pate = DIGITS if args.data == "digits" else MNIST
    queries = args.queries or pate.queries
    return replace(pate, teachers=args.teachers or pate.teachers, queries=queries)


def load(args: Args, queries: int) -> tuple[pt.Task, pt.FederatedData]:
    """The images, of which enough for the student (by coins: a few more) are public, nobody's."""
    fraction = (queries + 2 * queries**0.5) / (1797 if args.data == "digits" else 60_000)
    if args.data == "digits":
        return pt.data.digits(parties=10, public_fraction=fraction)
    return pt.data.mnist(args.directory, parties=10, public_fraction=fraction)


def yardsticks(args: Args) -> dict[str, pt.SGD | pt.DPSGD]:
    """What a curator could do, without a promise and with the same promise as PATE's."""
    if args.data == "digits":
        return {"pooled": pt.SGD(epochs=20), "DP-SGD": pt.DPSGD(epochs=20)}
    clipped = pt.Release(pt.Gaussian(0.1, 1.0))
    return {
        "pooled": pt.SGD(epochs=2, batch_size=64, learning_rate=0.002, optimizer="Adam"),
        "DP-SGD": pt.DPSGD(epochs=10, expected_batch=512, learning_rate=5.0, release=clipped),
    }


def compare(args: Args) -> pt.Comparison:
    """The student beside its yardsticks, as one table; prints how the noise was chosen."""
    pate = ensemble(args)
    task, data = load(args, pate.queries)
    noised = pt.calibrate(pate, data, epsilon=args.epsilon, delta=args.delta)
    noise = noised.release.mechanism if isinstance(noised, pt.PATE) else "none"
    print(f"{pate.teachers} teachers, {pate.queries} queries; noise on every count: {noise}\n")
    return pt.compare(
        {**yardsticks(args), "PATE": pate},
        task,
        data,
        seeds=range(args.seeds),
        epsilons=[args.epsilon],
        attacks=[pt.LossThreshold()],
        delta=args.delta,
        runtimes=pt.Runtimes(star=pt.FlowerRay() if args.processes else pt.InProcess()),
    )


def reading(comparison: pt.Comparison) -> str:
    """Two lines on what the table says, from its figures; seeds are averaged."""
    failed = [row.label for row in comparison.rows if row.error is not None]
    if failed:
        return f"Failed, see the table: {', '.join(failed)}."
    score: dict[str, list[float]] = {}
    for row in comparison.rows:
        score.setdefault(row.label, []).append(row.accuracy or 0.0)
    students = [row.statement for row in comparison.rows if row.label == "PATE" and row.statement]
    formal = max(statement.epsilon() for statement in students)
    private = max(g.epsilon for s in students for g in s.guarantees if g.data_dependent)
    return (
        f"The student reaches {fmean(score['PATE']):.1%}, DP-SGD for the same epsilon "
        f"{fmean(score['DP-SGD']):.1%}, pooled without a promise {fmean(score['pooled']):.1%}.\n"
        f"Formal epsilon to the public: {formal:.2f}. Data-dependent, one-sided, itself PRIVATE, "
        f"not to be published: {private:.2f}."
    )


def main(args: Args) -> pt.Comparison:
    """Compares, prints the table and how to read it, and writes the report."""
    torch.set_num_threads(1)  # the models are small: more threads only wait for each other
    comparison = compare(args)
    print(comparison)
    print(f"\n{reading(comparison)}")
    if args.out is not None:
        print(f"Report: {pt.save(comparison, args.out, force=args.force)}/report.html")
    return comparison


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
