"""Schools teach a public student to read digits without showing anybody's handwriting (PATE).

Who holds what: ten schools hold labelled images of their pupils' handwriting. Each splits its own
images among its teachers, so that every image is seen by one teacher only. A student holds images
that anybody may read, without labels.

Who learns what:
  pooled   a curator reads every image and label. The yardstick, without any promise.
  DP-SGD   a curator reads every image and label; whoever gets the model learns little about one
           image. Nothing protects from the curator. (Both on digits only.)
  PATE     no image leaves a school. The student asks about public images; every teacher votes, and
           the aggregator, which reads each school's vote counts, adds noise and answers with the
           winner. The student, and whoever gets it, learn little about one image; the aggregator
           is promised nothing. It asks about the middles of clusters, and learns from all images.

What a vote may tell is charged at its worst whatever the teachers said: the formal epsilon. The
data-dependent one is smaller; it is private, one-sided and no differential privacy.

MNIST is read from files, --data mnist --directory DIR, or from where PRIVTRAIN_DATA says. Its
features want pip install "privtrain[scattering]". Settings were chosen on training images.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

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
    """How many public images the student asks about; None for 20 on digits, 300 on MNIST."""
    seeds: int = 1
    """How many seeds: 0, 1, 2, ..."""
    processes: bool = False
    """Run the schools in worker processes (Ray; half a minute to start)."""
    out: Path | None = None
    """Folder for comparison.json, table.csv, table.tex and report.html."""
    force: bool = False
    """Overwrite what is in that folder."""


DIGITS = pt.PATE()  # its defaults were chosen on these images
MNIST = pt.PATE(
    teachers=250,
    queries=300,
    features=pt.Scattering(),
    steps=pt.Ridge(strength=100.0),
    student=pt.SemiSupervised(ridge=0.5, rounds=0, steps=2000, learning_rate=0.005),
)
PUBLIC, IMAGES = {"digits": 240, "mnist": 10_000}, {"digits": 1797, "mnist": 60_000}


def ensemble(args: Args) -> pt.PATE:
    """Teachers, queries and student, before the noise is chosen."""
    pate = DIGITS if args.data == "digits" else MNIST
    teachers, asked = args.teachers or pate.teachers, args.queries or pate.queries
    return replace(pate, teachers=teachers, queries=asked)


def load(args: Args, queries: int) -> tuple[pt.Task, pt.FederatedData]:
    """The images, of which some (by coins), and enough for the student, are public, nobody's."""
    fraction = max(PUBLIC[args.data], queries + 2 * queries**0.5) / IMAGES[args.data]
    if args.data == "digits":
        return pt.data.digits(parties=10, public_fraction=fraction)
    pt.Scattering()(torch.zeros(1, 1, 28, 28))  # names what is to be installed, where it is not
    return pt.data.mnist(args.directory, parties=10, public_fraction=fraction)


# What a curator could do, on digits; DP-SGD on MNIST stands in docs/reproductions.md.
POOLED, PRIVATE = pt.SGD(epochs=20), pt.DPSGD(epochs=20)


def compare(args: Args) -> pt.Comparison:
    """The student beside its yardsticks, as one table; prints how the noise was chosen."""
    pate = ensemble(args)
    task, data = load(args, pate.queries)
    noised: Any = pt.calibrate(pate, data, epsilon=args.epsilon, delta=args.delta)
    print(f"{pate.teachers} teachers, {pate.queries} queries, {noised.release.mechanism}\n")
    return pt.compare(
        {"pooled": POOLED, "DP-SGD": PRIVATE, "PATE": pate}
        if args.data == "digits"
        else {"PATE": pate},
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
    beside = {"DP-SGD": "DP-SGD for the same epsilon", "pooled": "pooled without a promise"}
    others = [
        f", {said} {fmean(score[name]):.1%}" for name, said in beside.items() if name in score
    ]
    return (
        f"The student reaches {fmean(score['PATE']):.1%}{''.join(others)}.\n"
        f"Formal epsilon to the public: {ceil(100 * formal) / 100:.2f}. Data-dependent, one-sided, "
        f"itself PRIVATE, not to be published: {private:.2f}."
    )


def main(args: Args) -> pt.Comparison:
    """Compares, prints the table and how to read it, and writes the report."""
    torch.set_num_threads(1)  # the models are small: more threads only wait for each other
    if args.out is not None and (args.out / "comparison.json").exists() and not args.force:
        raise pt.DataError(f"Expected out={str(args.out)!r} to be empty; --force overwrites it.")
    comparison = compare(args)
    print(f"{comparison}\n\n{reading(comparison)}")
    if args.out is not None:
        print(f"Report: {pt.save(comparison, args.out, force=args.force)}/report.html")
    return comparison


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, ValueError, pt.PrivtrainError) as error:
        raise SystemExit(f"teachers.py: {error}") from None
