"""PATE at an epsilon that may be published: MNIST, digits, Adult, and the row of 2017.

    python reproductions/pate.py [--directory DATA] [--only mnist digits adult lnmax]
    python reproductions/pate.py --seeds 1 --first-seed 7      # seeds that nobody has seen
    python reproductions/pate.py --validation                  # as settings were chosen; not kept
    python reproductions/pate.py --table

Data are read from --directory, or from where the environment variable PRIVTRAIN_DATA says; digits
need none. Every run is written to results/pate.json as soon as it is finished, and is not repeated
without `--again`: an interrupted reproduction goes on where it was. `--workers 2` trains two at a
time, each with one thread. MNIST needs `pip install "privtrain[scattering]"`.

On MNIST, 10,000 images of the training set are public and the other 50,000 private, another split
for each seed; the 10,000 test images are read once, after training. Settings were fixed on images
of the training set (`--validation`: 40,000 private, 10,000 public, 10,000 to measure on), and the
choice is not counted in epsilon.
"""

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro

import privtrain as pt
from privtrain.command.terminal import printing
from privtrain.core.validate import check_count, check_member

RESULTS = Path(__file__).resolve().parent / "results" / "pate.json"
DELTA = 1e-5
IGNORE_INTERRUPTS = (signal.SIGINT, signal.SIG_IGN)
"""For workers: the process that started them stops them."""
PUBLIC = 10_000
"""Public images of MNIST, and those that settings were chosen on."""

STUDENT = pt.SemiSupervised(ridge=0.5, rounds=0, steps=2000, batch_size=128, learning_rate=0.005)
MNIST = pt.PATE(
    teachers=250,
    queries=300,
    features=pt.Scattering(),
    steps=pt.Ridge(strength=100.0),
    student=STUDENT,
)
# Papernot et al. 2017, Table 1: 250 teachers, 100 queries, Laplace noise of scale 1 / 0.05.
LNMAX = replace(MNIST, queries=100, release=pt.Release(pt.LNMax(20.0), finish=pt.ARGMAX))
ADULT = pt.PATE(
    teachers=250,
    queries=1000,
    steps=pt.Ridge(strength=0.1),
    student=pt.PlainSteps(epochs=60, batch_size=64, learning_rate=0.2),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained.

    Args:
        trainer: Before its noise is chosen.
        epsilons: What it shall promise the public; None for the noise that it has.
        data: What it is trained on.
    """

    trainer: pt.PATE
    epsilons: tuple[float | None, ...]
    data: str


STUDIES = {
    "mnist": Study(trainer=MNIST, epsilons=(1.75,), data="mnist"),
    "digits": Study(trainer=pt.PATE(), epsilons=(3.0, 1.0, 8.0), data="digits"),
    "adult": Study(trainer=ADULT, epsilons=(1.9,), data="adult"),
    "lnmax": Study(trainer=LNMAX, epsilons=(None,), data="mnist"),
}
POOLED = {"adult": pt.SGD(epochs=60, batch_size=1024, learning_rate=0.5)}
"""What a study is held against: the same model, without privacy."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run.

    Args:
        study: Name of the study.
        epsilon: What is asked.
        seed: Seed of the split, of teachers, noise and student.
        private: False for the yardstick without privacy.
    """

    study: str
    epsilon: float | None
    seed: int
    private: bool = True


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    directory: Path | None = None
    """Holds the folders mnist and adult (default: the environment variable PRIVTRAIN_DATA)."""
    only: tuple[str, ...] = tuple(STUDIES)
    """Names of studies."""
    seeds: int = 3
    """How many seeds."""
    first_seed: int = 0
    """The first of them; the others follow."""
    workers: int = 1
    """Runs at a time."""
    validation: bool = False
    """Measure on validation rows, from seed 100 on; nothing is written."""
    again: bool = False
    """Run what is written down already, too; what comes out replaces it."""
    table: bool = False
    """Print the table of what was measured."""

    def __post_init__(self) -> None:
        check_count(seeds=self.seeds, workers=self.workers)
        check_count(0, first_seed=self.first_seed)
        for name in self.only:
            check_member(STUDIES, only=name)


@cache
def images(directory: Path | None) -> tuple[pt.Task, pt.Rows, pt.Rows]:
    """Task, the 60,000 images of the training set and the test images."""
    task, data = pt.data.mnist(directory, parties=1, validation_fraction=0.0)
    return task, data.pooled(), data.test


def problem(
    data: str, directory: Path | None, seed: int, validation: bool
) -> tuple[pt.Task, pt.FederatedData, pt.Rows]:
    """Task, data, and the rows to measure on, whose labels nothing else reads."""
    if data == "mnist":
        task, rows, test = images(directory)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        public, kept, private = torch.split(order, [PUBLIC, PUBLIC, len(rows) - 2 * PUBLIC])
        measured = rows.take(kept) if validation else test
        held = private if validation else torch.cat([kept, private])
        return (
            task,
            pt.FederatedData(
                train={"all": rows.take(held)},
                test=measured,
                public=pt.Rows(rows.inputs[public]),
                public_rows=len(held),
            ),
            measured,
        )
    if data == "adult":
        task, made = pt.data.adult(directory, parties=1, public_fraction=0.2, seed=seed)
    else:
        task, made = pt.data.digits(seed=seed)
    measured = made.validation if validation and made.validation is not None else made.test
    return task, made, measured


def trained(job: Job, args: Args) -> dict[str, object]:
    """Trains, measures and says what it cost."""
    torch.set_num_threads(1)
    study = STUDIES[job.study]
    seed = job.seed + 100 if args.validation else job.seed
    task, data, measured = problem(study.data, args.directory, seed, args.validation)
    trainer: Any = study.trainer if job.private else POOLED[job.study]
    if job.private and job.epsilon is not None:
        trainer = pt.calibrate(trainer, data, epsilon=job.epsilon, delta=DELTA)
    start = time.process_time()
    result = pt.fit(trainer, task, data, delta=DELTA, seed=seed)
    cpu = time.process_time() - start
    right = result.predictor(measured.inputs).argmax(dim=1) == measured.labels
    public = [g for g in result.statement.guarantees if g.observer.name == "public"]
    private = [g.epsilon for g in public if g.data_dependent]
    return {
        **asdict(job),
        "accuracy": float(right.double().mean()),
        "noise": repr(trainer.release.mechanism) if job.private else "none",
        "answers": trainer.cap if job.private else None,
        "epsilon_public": result.statement.epsilon() if job.private else None,
        "epsilon_private": max(private, default=None),
        "rows": len(measured),
        "cpu_seconds": round(cpu, 1),
        "torch": torch.__version__,
    }


def jobs(args: Args) -> Iterator[Job]:
    """All runs, study after study."""
    for name in args.only:
        for epsilon in STUDIES[name].epsilons:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                yield Job(study=name, epsilon=epsilon, seed=seed)
        if name in POOLED:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                yield Job(study=name, epsilon=None, seed=seed, private=False)


def read() -> list[dict[str, object]]:
    """What was measured so far."""
    if not RESULTS.exists():
        return []
    rows: list[dict[str, object]] = json.loads(RESULTS.read_text())["rows"]
    return rows


def key_of(row: Mapping[str, object]) -> tuple[object, ...]:
    """What tells a run from others."""
    return tuple(row[name] for name in Job.__dataclass_fields__)


def write(row: dict[str, object]) -> None:
    """Adds a run, or puts it in the place of an earlier one, whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    beside = RESULTS.with_suffix(".part")
    rows = {key_of(entry): entry for entry in read()} | {key_of(row): row}
    lines = ",\n".join(json.dumps(entry) for entry in rows.values())
    beside.write_text(f'{{"delta": {DELTA}, "rows": [\n{lines}\n]}}\n')
    os.replace(beside, RESULTS)


def missing(args: Args) -> list[Job]:
    """Runs that are not written down yet."""
    done = {key_of(row) for row in read()}
    return [job for job in jobs(args) if key_of(vars(job)) not in done]


def table(rows: list[dict[str, object]]) -> str:
    """A table for the documentation: mean over seeds, worst and best; epsilons are the largest."""
    lines = [
        "| study | ε asked | noise | answers | ε, may be published | ε of these votes, private "
    ]
    lines[0] += "| accuracy | seeds | CPU s |"
    lines.append("|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["study"], row["epsilon"], row["private"]), []).append(row)
    for (study, asked, private), runs in groups.items():
        scores = [100 * run["accuracy"] for run in runs]
        spread = f"{statistics.fmean(scores):.2f} ({min(scores):.2f}–{max(scores):.2f})"
        shown = [
            "–" if None in values else f"{max(values):.3f}"
            for values in ([run[f"epsilon_{key}"] for run in runs] for key in ("public", "private"))
        ]
        name = study if private else f"{study}, without privacy"
        seconds = statistics.median(run["cpu_seconds"] for run in runs)
        lines.append(
            f"| {name} | {'–' if asked is None else f'{asked:g}'} | {runs[0]['noise']} "
            f"| {runs[0]['answers'] or '–'} | {' | '.join(shown)} | {spread} | {len(runs)} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines)


def main(args: Args) -> int:
    """Runs what is missing, and prints each run when it is finished."""
    if args.table:
        print(table(read()))
        return 0
    asked = list(jobs(args))
    todo = asked if args.again or args.validation else missing(args)
    if len(todo) < len(asked):
        # Beside the runs, which are JSON.
        stream = sys.stderr if todo else sys.stdout
        done = f"{len(asked) - len(todo)} of {len(asked)} runs are in {RESULTS}"
        print(f"{done}. --again repeats them, --table prints their table.", file=stream)
    keep: Callable[[dict[str, object]], None] = (lambda row: None) if args.validation else write
    for row in results(todo, args):
        keep(row)
        print(json.dumps(row), flush=True)
    return 0


def results(todo: list[Job], args: Args) -> Iterator[dict[str, object]]:
    """Runs in the order in which they finish; an interrupt does not wait for those under way."""
    if args.workers == 1:
        yield from (trained(job, args) for job in todo)
        return
    pool = ProcessPoolExecutor(args.workers, initializer=signal.signal, initargs=IGNORE_INTERRUPTS)
    try:
        for future in as_completed([pool.submit(trained, job, args) for job in todo]):
            yield future.result()
    except BaseException:
        for worker in list(pool._processes.values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    try:
        args = tyro.cli(Args, description=__doc__)
        sys.exit(printing(lambda: main(args)))
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished runs are kept; the same command goes on.")
    except (ValueError, pt.PrivtrainError) as error:
        sys.exit(f"pate.py: {error}")
